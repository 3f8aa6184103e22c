"""Geometry of WinCLIP's windows on the patch grid."""

import itertools
import re

import torch


def window_spec(window):
    """(k, stride) of a window size k, or of "<k>s<stride>" for sparse windows, e.g. "3s2".

    Raises
    ------
    ValueError for anything else.
    """
    if isinstance(window, str) and (found := re.fullmatch(r"(\d+)s(\d+)", window)):
        k, stride = map(int, found.groups())
    elif isinstance(window, int) or hasattr(window, "__index__"):
        k, stride = int(window), 1
    else:
        k = stride = 0
    if k < 1 or stride < 1:
        raise ValueError(
            f'a window is its side in patches, e.g. 2, or "<side>s<stride>", e.g. "3s2"; found {window!r}'
        )
    return k, stride


def window_indices(grid, window, stride=None):
    """Patch numbers of every k x k window.

    Parameters
    ----------
    grid : (h, w) patches
    window : side k of the window in patches, 1 <= k <= min(grid), or "<k>s<stride>"
    stride : step between windows in patches (WinCLIP: 1). With a larger one the last window of a row or column is moved
        to the border, so that no patch is left out as long as stride <= k

    Returns
    -------
    (W, k * k) int64: row w lists the row-major patch numbers (from 0, CLS not counted) of window w; windows are
    row-major over their top-left corner

    Source: WinCLIP section 4.2; 15 x 15 patches give 196 windows of 2 x 2 and 169 of 3 x 3.
    """
    k, step = window_spec(window)
    step = stride or step
    tops, lefts = (sorted({*range(0, side - k + 1, step), side - k}) for side in grid)
    corners = torch.tensor(list(itertools.product(tops, lefts)))
    inside = torch.cartesian_prod(torch.arange(k), torch.arange(k)).reshape(-1, 2)
    patches = corners[:, None] + inside  # (W, k * k, 2)
    return patches[..., 0] * grid[1] + patches[..., 1]


def check_image_size(name, size, patch, least=1):
    """Check that the patches cover the image.

    Parameters
    ----------
    name : of the model, for the message
    size, patch : pixels of a side
    least : patches of a side that are enough

    Raises
    ------
    ValueError with the nearest size that works.
    """
    if size % patch or size < least * patch:
        raise ValueError(
            f"image_size of {name} is a multiple of {patch} (patch size), found {size}; "
            f"the nearest is {max(least, round(size / patch)) * patch}."
        )
