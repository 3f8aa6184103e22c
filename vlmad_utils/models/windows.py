"""The geometry of the patch grid: WinCLIP's windows on it, and image sizes that it covers."""

import itertools
import re
from typing import SupportsIndex

import torch

Window = int | str  # side in patches, e.g. 2, or "<side>s<stride>", e.g. "3s2"


def window_spec(window: Window) -> tuple[int, int]:
    """Return (side, stride) of windows in patches, e.g. (2, 1) of 2 and (3, 2) of "3s2".

    Raises
    ------
    ValueError for anything else.
    """
    side = stride = 0
    if isinstance(window, str) and (found := re.fullmatch(r"(\d+)s(\d+)", window)):
        side, stride = map(int, found.groups())
    elif isinstance(window, SupportsIndex):
        side, stride = window.__index__(), 1
    if side < 1 or stride < 1:
        raise ValueError(
            'a window is its side in patches, e.g. 2, or "<side>s<stride>", e.g. "3s2"; '
            f"found {window!r}"
        )
    return side, stride


def window_indices(
    grid: tuple[int, int], window: Window, stride: int | None = None
) -> torch.Tensor:
    """Return the patch numbers of every window of k x k patches.

    Parameters
    ----------
    grid : (h, w) patches
    window : side k in patches, 1 <= k <= min(grid), or "<k>s<stride>"
    stride : step between windows in patches (WinCLIP: 1). With a larger one the last window of a
        row or column moves to the border; no patch is left out as long as stride <= k

    Returns
    -------
    (W, k * k) int64: row w lists the row-major patch numbers (from 0, CLS not counted) of window w;
    windows are row-major over their top-left corner

    Raises
    ------
    ValueError for a window that is larger than the grid, or a stride that leaves patches out.

    Source: WinCLIP section 4.2; 15 x 15 patches give 196 windows of 2 x 2 and 169 of 3 x 3.
    """
    k, step = window_spec(window)
    step = step if stride is None else stride
    if not (k <= min(grid) and 1 <= step <= k):
        raise ValueError(
            f"a window of {k} x {k} patches at every {step}. place does not cover a grid of "
            f"{grid}: expected a side of 1 to {min(grid)}, and a stride of 1 to the side"
        )
    tops, lefts = (sorted({*range(0, side - k + 1, step), side - k}) for side in grid)
    corners = torch.tensor(list(itertools.product(tops, lefts)))
    inside = torch.cartesian_prod(torch.arange(k), torch.arange(k)).reshape(-1, 2)
    patches = corners[:, None] + inside  # (W, k * k, 2)
    return patches[..., 0] * grid[1] + patches[..., 1]


def check_image_size(name: str, size: int, patch: int, least: int = 1) -> None:
    """Check that patches cover the side of an image.

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
