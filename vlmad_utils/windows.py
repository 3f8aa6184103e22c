"""Geometry of WinCLIP's windows on the patch grid."""

import torch


def window_indices(grid, k, stride=1):
    """Patch numbers of every k x k window.

    Parameters
    ----------
    grid : (h, w) patches
    k : side of the window in patches, 1 <= k <= min(grid)
    stride : step between windows in patches (WinCLIP: 1)

    Returns
    -------
    (W, k * k) int64: row w lists the row-major patch numbers (from 0, CLS not counted) of window w; windows are
    row-major over their top-left corner

    Source: WinCLIP section 4.2; 15 x 15 patches give 196 windows of 2 x 2 and 169 of 3 x 3.
    """
    numbers = torch.arange(grid[0] * grid[1]).reshape(grid)
    return numbers.unfold(0, k, stride).unfold(1, k, stride).reshape(-1, k * k)
