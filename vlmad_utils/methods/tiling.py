"""Several views of one image: square tiles of an image that is not square, and crops for a multi-crop score."""

import numpy as np
import torch

from .scores import upsample


def five_crops(image, share=0.8):
    """The four corners and the centre of an image.

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
    corners = [
        (0, 0),
        (0, width - w),
        (height - h, 0),
        (height - h, width - w),
        ((height - h) // 2, (width - w) // 2),
    ]
    return [image[top : top + h, left : left + w] for top, left in corners]


def tiles(height, width, stride=0.8):
    """Square boxes (top, left, bottom, right) in pixels that cover an image; the side is the shorter edge.

    Parameters
    ----------
    stride : step in sides along the longer edge; the last tile is aligned with the border

    Source: mala-lab's rebuild (stride 0.8), here for portrait images too. The alternative is to squash the image.
    """
    side, length = min(height, width), max(height, width)
    starts = [*range(0, length - side, max(1, int(stride * side))), length - side]
    return [(s, 0, s + side, side) if height > width else (0, s, side, s + side) for s in starts]


def merge_tiles(scores, boxes, size):
    """Scores of one image's tiles as scores of the image.

    Parameters
    ----------
    scores : Scores of the T tiles
    boxes : T boxes from :func:`tiles`
    size : (H, W) of the image in pixels

    Returns
    -------
    (image score, map (H, W)) : the mean of the tiles; where tiles overlap the mean of their upsampled maps

    Raises
    ------
    ValueError when the boxes leave part of the image uncovered, or their number is not T.
    """
    if len(boxes) != len(scores):
        raise ValueError(f"There are {len(scores)} tile scores and {len(boxes)} boxes.")
    total, count = torch.zeros(size), torch.zeros(size)
    for tile, (top, left, bottom, right) in zip(scores.maps, boxes, strict=True):
        total[top:bottom, left:right] += upsample(tile[None], (bottom - top, right - left))[0]
        count[top:bottom, left:right] += 1
    if (count == 0).any():
        raise ValueError(f"{int((count == 0).sum())} of {np.prod(size)} pixels are in no tile.")
    return scores.image.mean(), total / count
