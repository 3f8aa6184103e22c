"""From windows to patches, and from scales to one map: the two means of WinCLIP.

Source: Jeong et al., CVPR 2023, arXiv 2303.14814.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch

from .scores import ArrayLike, tensor

Mean = Literal["harmonic", "arithmetic", "normality"]
MEANS = get_args(Mean)


def harmonic(scores: ArrayLike, indices: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Return, for each patch, the harmonic mean of the scores of the windows that cover it.

    Parameters
    ----------
    scores : (B, W), one non-negative score per window
    indices : (W, n) patch numbers of each window, from :func:`window_indices`
    grid : (h, w)

    Returns
    -------
    (B, h, w) float32. A patch under a window of score 0 gets 0, the limit of the harmonic mean.

    Raises
    ------
    ValueError for negative scores: clamp distances first.

    Source: WinCLIP, harmonic aggregation of windows: |W_p| / sum over windows of 1/score.
    """
    scores = tensor(scores)
    if (scores < 0).any():
        raise ValueError(
            f"A harmonic mean wants scores >= 0, found {scores.min():g}: clamp distances at 0."
        )
    # double: 1/score of a tiny score swamps the others
    total, count = _cover(1 / scores.double(), indices, grid)
    return (count / total).float()


def spread(
    scores: ArrayLike, indices: torch.Tensor, grid: Sequence[int], mean: Mean = "harmonic"
) -> torch.Tensor:
    """Spread window scores (B, W) to patches (B, h, w).

    Parameters
    ----------
    scores, indices, grid : as in :func:`harmonic`
    mean : "harmonic" (the paper: low votes win); "arithmetic"; "normality" (harmonic mean of
        1 - score, then 1 minus it: high votes win; one public rebuild does so)
    """
    if mean == "harmonic":
        return harmonic(scores, indices, grid)
    if mean == "normality":
        return 1 - harmonic(1 - tensor(scores), indices, grid)
    if mean != "arithmetic":
        raise ValueError(f"mean is one of {MEANS}, found {mean!r}.")
    total, count = _cover(tensor(scores).double(), indices, grid)
    return (total / count).float()


def _cover(
    values: torch.Tensor, indices: torch.Tensor, grid: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum (B, h, w) over the windows that cover each patch, and their number (h, w)."""
    patches, size = indices.flatten(), grid[0] * grid[1]
    values = values.repeat_interleave(indices.shape[1], dim=1)  # a window's value for each patch
    total = values.new_zeros(len(values), size).index_add_(1, patches, values)
    count = torch.bincount(patches, minlength=size)
    return total.unflatten(1, tuple(grid)), count.reshape(tuple(grid))


def combine(maps: torch.Tensor, mean: Mean = "harmonic") -> torch.Tensor:
    """Average maps (S, B, h, w) over their scales -> (B, h, w).

    Source: WinCLIP, multi-scale aggregation.
    """
    if mean == "harmonic":
        return len(maps) / (1 / maps).sum(dim=0)
    if mean == "normality":
        return 1 - combine(1 - maps)
    if mean != "arithmetic":
        raise ValueError(f"mean is one of {MEANS}, found {mean!r}.")
    return maps.mean(dim=0)
