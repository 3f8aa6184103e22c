"""Windows by a plain search over all places, and that they cover every patch."""

from fixtures.cases import few_examples
from hypothesis import given
from hypothesis import strategies as st

from vlmad_utils.models.windows import window_indices


def places(side, k, stride):
    """Every stride-th place where a window fits, and the last one that fits."""
    fits = [place for place in range(side) if place + k <= side]
    return [place for place in fits if place % stride == 0 or place == fits[-1]]


@few_examples
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_window_indices_are_those_of_a_search_and_cover_the_grid(height, width, k, stride):
    k = min(k, height, width)
    stride = min(stride, k)
    found = window_indices((height, width), k, stride).tolist()
    assert found == [
        [(top + dy) * width + left + dx for dy in range(k) for dx in range(k)]
        for top in places(height, k, stride)
        for left in places(width, k, stride)
    ]
    assert {patch for window in found for patch in window} == set(range(height * width))
