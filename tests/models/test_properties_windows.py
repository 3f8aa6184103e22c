"""Properties of the aggregation of windows that hold for any grid."""

import torch
from fixtures.properties import examples
from hypothesis import given
from hypothesis import strategies as st

from vlmad_utils.methods import winclip
from vlmad_utils.models.windows import window_indices

grids = st.tuples(st.integers(1, 9), st.integers(1, 9))


@examples(60)
@given(grids, st.integers(1, 5), st.integers(0, 10**6), st.floats(0.01, 1))
def test_harmonic_mean_is_bounded_monotone_and_keeps_constants(grid, k, seed, value):
    k = min(k, *grid)
    indices = window_indices(grid, k)
    scores = torch.rand(2, len(indices), generator=torch.Generator().manual_seed(seed))
    found = winclip.harmonic(scores, indices, grid)
    for mean in (
        "arithmetic",
        "normality",
    ):  # low votes win in the harmonic mean, high ones in that of normality
        assert (winclip.spread(scores, indices, grid, mean) >= found - 1e-6).all()
    for b, patch in ((b, p) for b in range(2) for p in range(grid[0] * grid[1])):
        votes = scores[b, (indices == patch).any(dim=1)]
        assert votes.min() - 1e-6 <= found.flatten(1)[b, patch] <= votes.max() + 1e-6
    assert torch.allclose(
        winclip.harmonic(torch.full((1, len(indices)), value), indices, grid),
        torch.full((1, *grid), value),
    )
    assert torch.allclose(winclip.harmonic(scores * value, indices, grid), found * value, atol=1e-6)
    assert (winclip.harmonic(scores + 0.1, indices, grid) > found).all()
    assert (winclip.harmonic(scores * 0, indices, grid) == 0).all()


@examples(40)
@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_scales_combine_in_any_order_between_their_lowest_and_highest(values, random):
    maps = torch.tensor(values)[:, None, None, None].expand(-1, 1, 2, 2)
    mixed = torch.tensor(random.sample(values, len(values)))[:, None, None, None].expand(
        -1, 1, 2, 2
    )
    for mean in winclip.MEANS:
        found = winclip.combine(maps, mean)
        assert min(values) - 1e-5 <= found.min() and found.max() <= max(values) + 1e-5
        assert torch.allclose(found, winclip.combine(mixed, mean), atol=1e-5)
