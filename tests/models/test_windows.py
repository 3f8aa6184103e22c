"""The geometry of windows on the patch grid: what each holds, and that no patch is left out."""

import numpy as np
import pytest
import torch
from fixtures import tiny
from fixtures.properties import examples
from hypothesis import given
from hypothesis import strategies as st

from vlmad_utils.models.backbone import TABLES
from vlmad_utils.models.windows import window_indices

grids = st.tuples(st.integers(1, 9), st.integers(1, 9))


def test_number_and_order_of_windows():
    assert len(window_indices((15, 15), 2)) == 196 and len(window_indices((15, 15), 3)) == 169
    counts = torch.bincount(window_indices((15, 15), 3).flatten(), minlength=225).view(15, 15)
    assert (counts[0, 0], counts[0, 7], counts[7, 7]) == (1, 3, 9)
    assert torch.equal(window_indices((2, 3), 1).flatten(), torch.arange(6))


@examples(60)
@given(grids, st.integers(1, 9))
def test_windows_cover_every_patch_as_often_as_it_has_places_for_them(grid, k):
    k = min(k, *grid)
    indices = window_indices(grid, k)
    assert indices.shape == ((grid[0] - k + 1) * (grid[1] - k + 1), k * k) and len(
        {tuple(w) for w in indices.tolist()}
    ) == len(indices)
    rows, columns = indices // grid[1], indices % grid[1]
    for line in (rows, columns):
        assert (line.amax(1) - line.amin(1) == k - 1).all()
    places = [
        np.minimum.reduce(
            [np.arange(n) + 1, np.arange(n, 0, -1), np.full(n, k), np.full(n, n - k + 1)]
        )
        for n in grid
    ]
    assert (
        torch.bincount(indices.flatten(), minlength=grid[0] * grid[1]).reshape(grid).tolist()
        == np.outer(*places).tolist()
    )


@examples(60)
@given(grids, st.integers(1, 9), st.integers(1, 9))
def test_sparse_windows_are_some_of_all_and_leave_no_patch_out(grid, k, stride):
    k = min(k, *grid)
    stride = min(stride, k)
    every, sparse = (
        {tuple(w) for w in window_indices(grid, spec).tolist()} for spec in (k, f"{k}s{stride}")
    )
    assert sparse <= every and {p for w in sparse for p in w} == set(range(grid[0] * grid[1]))
    assert len(sparse) == len(window_indices(grid, k, stride)) and (stride > 1 or sparse == every)


@pytest.mark.parametrize(
    "window, nearest", [("2s3", "2s2"), ("3s4", "3s3"), ("1s2", "1s1"), ("6s9", "6s6")]
)
def test_sparse_windows_that_leave_patches_out_are_refused(window, nearest):
    """Before anything is encoded: a map with a hole has no score there."""
    model = tiny.model()
    with pytest.raises(ValueError, match=f"{window}.*leave.*{nearest}"):
        model.check_request((), (2, window))
    model.check_request((), (nearest,))


@pytest.mark.parametrize("window", ["2s0", "s2", "2x2", 0, -1, 2.5, None])
def test_what_is_no_window_is_refused(window):
    with pytest.raises(ValueError, match="side.*stride"):
        tiny.model().check_request((), (window,))


def test_tables_of_windows_are_kept_for_the_last_batch_sizes_only():
    model = tiny.model.__wrapped__()
    images = tiny.arrays("inputs")["test_images"][:1]
    for n in range(1, 12):
        model.encode_image(images.expand(n, -1, -1, -1), windows=(2,))
    tables = [name for name in model.made if name.startswith("windows ")]
    assert len(tables) == TABLES and "of 11 images" in tables[-1]
