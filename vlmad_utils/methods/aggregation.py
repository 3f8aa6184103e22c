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
    indices : (W, n) patch numbers of each window, from :func:`window_indices`, on any device
    grid : (h, w)

    Returns
    -------
    (B, h, w) of the scores' type. A patch under a window of score 0 gets 0, the limit of the
    harmonic mean.

    Raises
    ------
    ValueError for negative scores on a CPU: clamp distances first. On another device they give
    NaN, which :meth:`.Scores.cpu` refuses, since a look at them would make the host wait.

    Source: WinCLIP, harmonic aggregation of windows: |W_p| / sum over windows of 1/score.
    """
    scores = tensor(scores)
    if scores.device.type != "cpu":
        scores = scores.where(scores >= 0, torch.nan)
    elif (scores < 0).any():
        raise ValueError(
            f"A harmonic mean wants scores >= 0, found {scores.min():g}: clamp distances at 0."
        )
    total, count = _cover(1 / _wide(scores), indices, grid)  # 1/score of a tiny score swamps others
    return (count / total).to(scores.dtype)


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
    scores = tensor(scores)
    total, count = _cover(_wide(scores), indices, grid)
    return (total / count).to(scores.dtype)


def _wide(scores: torch.Tensor) -> torch.Tensor:
    """Return float64, which Apple's GPUs do not have."""
    return scores if scores.device.type == "mps" else scores.double()


def _cover(
    values: torch.Tensor, indices: torch.Tensor, grid: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum (B, h, w) over the windows that cover each patch, and their number (h, w)."""
    patches, size = indices.flatten().to(values.device), grid[0] * grid[1]
    values = values.repeat_interleave(indices.shape[1], dim=1)  # a window's value for each patch
    total = values.new_zeros(len(values), size).index_add_(1, patches, values)
    count = values.new_zeros(size).index_add_(0, patches, values.new_ones(len(patches)))
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
