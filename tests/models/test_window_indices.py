"""Indices of windows equal those of a loop."""

from fixtures.cases import few_examples
from hypothesis import given
from hypothesis import strategies as st

from vlmad_utils.models.windows import window_indices


@few_examples
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_window_indices_equal_a_loop(height, width, k, stride):
    k = min(k, height, width)
    tops, lefts = (
        sorted({*range(0, side - k + 1, stride), side - k}) for side in (height, width)
    )  # the last lies at the border
    wanted = [
        [(top + dy) * width + left + dx for dy in range(k) for dx in range(k)]
        for top in tops
        for left in lefts
    ]
    assert window_indices((height, width), k, stride).tolist() == wanted
