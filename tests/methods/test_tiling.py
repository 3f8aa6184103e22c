"""Tiles of long images, and crops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmad_utils.methods import Scores, winclip


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 60), st.integers(8, 60), st.floats(0.3, 1.0), st.floats(0, 1))
def test_tiles_cover_and_merge(height, width, stride, value):
    boxes = winclip.tiles(height, width, stride)
    side = min(height, width)
    assert len(set(boxes)) == len(boxes)
    assert all(
        b - t == r - left == side and 0 <= t and 0 <= left and b <= height and r <= width
        for t, left, b, r in boxes
    )
    maps = torch.full((len(boxes), 3, 3), value)
    constant = Scores(maps[:, 0, 0], maps, "m", "training-free")
    image, merged = winclip.merge_tiles(constant, boxes, (height, width))
    assert merged.shape == (height, width)
    assert torch.allclose(merged, torch.full_like(merged, value), atol=1e-5)
    assert image == pytest.approx(value, abs=1e-5)
    if height == width:
        assert boxes == [(0, 0, side, side)]


def test_tiles_put_each_map_in_its_place():
    boxes = winclip.tiles(10, 20, stride=1)
    maps = torch.stack([torch.zeros(2, 2), torch.ones(2, 2)])
    scores = Scores(maps[:, 0, 0], maps, "m", "training-free")
    image, merged = winclip.merge_tiles(scores, boxes, (10, 20))
    assert image == 0.5 and (merged[:, :10] == 0).all()
    assert torch.allclose(merged[:, 10:], torch.ones(10, 10))
    _, tall = winclip.merge_tiles(scores, winclip.tiles(20, 10, 1), (20, 10))
    assert torch.allclose(tall, merged.T)
    with pytest.raises(ValueError, match="boxes"):
        winclip.merge_tiles(scores, boxes[:1], (10, 20))
    with pytest.raises(ValueError, match="no tile"):
        winclip.merge_tiles(scores, boxes, (10, 30))


def test_five_crops():
    image = np.arange(10 * 20 * 3).reshape(10, 20, 3)
    crops = winclip.five_crops(image)
    assert len(crops) == 5 and all(c.shape == (8, 16, 3) for c in crops)
    assert crops[0][0, 0, 0] == image[0, 0, 0] and crops[3][-1, -1, 0] == image[-1, -1, 0]
    assert np.array_equal(crops[4], image[1:9, 2:18])
    assert all(np.array_equal(c, image) for c in winclip.five_crops(image, share=1))
