"""Several views of one image: square tiles of a long image, and crops for a multi-crop score."""

from collections.abc import Sequence

import numpy as np
import torch

from .scores import Scores, upsample

Box = tuple[int, int, int, int]


def five_crops(image: np.ndarray, share: float = 0.8) -> list[np.ndarray]:
    """Cut the four corners and the centre out of an image.

    Parameters
    ----------
    image : (H, W, 3) array
    share : of each side that a crop keeps

    Returns
    -------
    list of five arrays (round(share * H), round(share * W), 3)
    """
    height, width = image.shape[:2]
    h, w = max(1, round(share * height)), max(1, round(share * width))
    bottom, right = height - h, width - w
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    return [image[top : top + h, left : left + w] for top, left in corners]


def tiles(height: int, width: int, stride: float = 0.8) -> list[Box]:
    """Return square boxes (top, left, bottom, right) in pixels that cover an image.

    Parameters
    ----------
    height, width : of the image in pixels; the shorter one is the side of a box
    stride : step in sides along the longer edge; the last tile is aligned with the border

    Source: mala-lab's rebuild of WinCLIP (stride 0.8), here for portrait images too. The
    alternative is to squash the image.
    """
    side, length = min(height, width), max(height, width)
    starts = [*range(0, length - side, max(1, int(stride * side))), length - side]
    return [(s, 0, s + side, side) if height > width else (0, s, side, s + side) for s in starts]


def merge_tiles(
    scores: Scores, boxes: Sequence[Box], size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge the scores of one image's tiles into scores of the image.

    Parameters
    ----------
    scores : Scores of the T tiles
    boxes : T boxes from :func:`tiles`
    size : (H, W) of the image in pixels

    Returns
    -------
    (image score, map (H, W)) : the mean of the tiles; where tiles overlap, the mean of their
    upsampled maps

    Raises
    ------
    ValueError when the boxes leave part of the image uncovered, or their number is not T.
    """
    if len(boxes) != len(scores):
        raise ValueError(f"There are {len(scores)} tile scores and {len(boxes)} boxes.")
    total, count = scores.maps.new_zeros(size), scores.maps.new_zeros(size)
    for tile, (top, left, bottom, right) in zip(scores.maps, boxes, strict=True):
        total[top:bottom, left:right] += upsample(tile[None], (bottom - top, right - left))[0]
        count[top:bottom, left:right] += 1
    if (count == 0).any():
        raise ValueError(f"{int((count == 0).sum())} of {count.numel()} pixels are in no tile.")
    return scores.image.mean(), total / count
