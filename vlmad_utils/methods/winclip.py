"""WinCLIP and WinCLIP+ (Jeong et al., CVPR 2023, arXiv 2303.14814).

Zero-shot: every window of 2 x 2 and 3 x 3 patches is embedded on its own and compared with the two text prototypes; a
patch gets the harmonic mean over the windows that cover it, then over the scales. Few-shot ("+"): the same windows and
the patch tokens are also compared with those of K normal images. Nothing is trained.

There is no official code; where public rebuilds differ an option reproduces each, and the default is the reading
that agrees best with the paper.
"""

import torch

from ..models.windows import window_indices
from .memory_bank import reference_distance
from .scores import Scores, anomaly_probability, batches, tensor
from .tiling import five_crops, merge_tiles, tiles

__all__ = [
    "harmonic",
    "spread",
    "combine",
    "image_score",
    "zero_shot",
    "association",
    "visual_maps",
    "few_shot",
    "window_indices",
    "five_crops",
    "tiles",
    "merge_tiles",
]
MEANS = ("harmonic", "arithmetic", "normality")


def harmonic(scores, indices, grid):
    """Harmonic mean, for each patch, of the scores of the windows that cover it.

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
    total, count = _cover(
        1 / scores.double(), indices, grid
    )  # double: 1/score of a tiny score swamps the others
    return (count / total).float()


def spread(scores, indices, grid, mean="harmonic"):
    """Window scores (B, W) to patches (B, h, w).

    Parameters
    ----------
    mean : "harmonic" (the paper: low votes win); "arithmetic"; "normality" (harmonic mean of 1 - score, then 1 minus
        it: high votes win; one public rebuild does so)
    """
    if mean == "harmonic":
        return harmonic(scores, indices, grid)
    if mean == "normality":
        return 1 - harmonic(1 - tensor(scores), indices, grid)
    if mean != "arithmetic":
        raise ValueError(f"mean is one of {MEANS}, found {mean!r}.")
    total, count = _cover(tensor(scores).double(), indices, grid)
    return (total / count).float()


def _cover(values, indices, grid):
    """Sum (B, h, w) over the windows that cover each patch, and their number (h, w)."""
    patches, size = indices.flatten(), grid[0] * grid[1]
    values = values.repeat_interleave(indices.shape[1], dim=1)  # each window's value once per patch
    total = values.new_zeros(len(values), size).index_add_(1, patches, values)
    count = torch.bincount(patches, minlength=size)
    return total.unflatten(1, tuple(grid)), count.reshape(tuple(grid))


def combine(maps, mean="harmonic"):
    """Mean over scales of maps (S, B, h, w) -> (B, h, w). Source: WinCLIP, multi-scale aggregation."""
    if mean == "harmonic":
        return len(maps) / (1 / maps).sum(dim=0)
    if mean == "normality":
        return 1 - combine(1 - maps)
    if mean != "arithmetic":
        raise ValueError(f"mean is one of {MEANS}, found {mean!r}.")
    return maps.mean(dim=0)


def image_score(features, prototypes, temperature=0.07, crops=None):
    """ascore0 of the whole image (B,).

    Parameters
    ----------
    crops : None, or (B, n, D) embeddings of further views, e.g. of :func:`.tiling.five_crops`: the mean over the image
        and its views ("multi-crop"). The paper's 91.8 on MVTec includes one, single-view 90.8; which crops, it is not
        known.
    """
    score = anomaly_probability(features.image, prototypes, temperature)
    if crops is None:
        return score
    return torch.cat(
        [score[:, None], anomaly_probability(crops, prototypes, temperature)], dim=1
    ).mean(dim=1)


def zero_shot(
    features,
    prototypes,
    temperature=0.07,
    windows=(2, 3),
    image_scale=True,
    within="harmonic",
    across="harmonic",
    image_from="image",
    crops=None,
):
    """WinCLIP, zero-shot.

    Parameters
    ----------
    features : encoded images with ``image`` (B, D) and ``windows[k]`` (B, W, D)
    prototypes : (2, D)
    temperature : 0.07 as in most rebuilds; ``1 / model.logit_scale`` for the checkpoint's (about 0.01)
    windows : window sizes in patches; (2, 3) in the paper; 1 to 7 in the source paper's ablation; "3s2" for every second one
    image_scale : the whole image is one more scale
    within, across : mean over windows and over scales: "harmonic" (paper), "arithmetic", "normality"
    image_from : "image" (paper: the map takes no part) or "map" (its maximum; one public rebuild does so)
    crops : see :func:`image_score`

    Returns
    -------
    Scores, training-free, both in [0, 1]; maps on the patch grid: ``upsample(maps, size)`` for pixels (no smoothing)

    Source: WinCLIP, zero-shot anomaly classification and segmentation.
    """
    if image_from not in ("image", "map"):
        raise ValueError(f"image_from is 'image' or 'map', found {image_from!r}.")
    grid = tuple(features.grid)
    image, maps = image_score(features, prototypes, temperature, crops), []
    for part in batches(features):
        scales = [
            spread(
                anomaly_probability(part.windows[k], prototypes, temperature),
                window_indices(grid, k),
                grid,
                within,
            )
            for k in windows
        ]
        if image_scale:
            whole = anomaly_probability(part.image, prototypes, temperature)
            scales.append(whole[:, None, None].expand(-1, *grid))
        if not scales:
            raise ValueError(
                "The map needs at least one scale: windows=() with image_scale=False leaves none."
            )
        maps.append(combine(torch.stack(scales), across))
    maps = torch.cat(maps)
    return Scores(
        image if image_from == "image" else maps.amax(dim=(1, 2)),
        maps,
        "probability of the anomalous prompts",
        "training-free",
    )


def association(features, references, name, kind="windows", cache=None):
    """Half the cosine distance to the nearest vector of the references, over all positions of all of them.

    Parameters
    ----------
    features, references : encoded images, B and K of them
    name, kind : a size of "windows", or a block of "tokens"
    cache : :class:`.memory_bank.DistanceCache` or None

    Returns
    -------
    (B, W) or (B, N) float32 in [0, 1]

    Source: WinCLIP, reference association.
    """
    return reference_distance(features, references, name, kind, cache) / 2


def visual_maps(features, references, windows=(2, 3), token="final", within="harmonic", cache=None):
    """Association maps {scale: (B, h, w)} and their mean, from the three memories of K normal images.

    Parameters
    ----------
    features, references : encoded images with ``windows[k]`` (B, W, D) and ``tokens[token]`` (B, N, C)
    token : "final" takes patch tokens after the final norm (anomalib); a block number takes them before it (the last
        block: Accurate-WinCLIP, mala-lab); None leaves the patch memory out
    within : how window associations spread to patches
    cache : :class:`.memory_bank.DistanceCache` or None

    Returns
    -------
    dict {"patch": ..., 2: ..., 3: ..., "visual": arithmetic mean of the others}

    Source: WinCLIP+, multi-scale visual memory (M^W).
    """
    grid = tuple(features.grid)
    maps = {
        k: spread(
            association(features, references, k, cache=cache), window_indices(grid, k), grid, within
        )
        for k in windows
    }
    if token is not None:
        maps["patch"] = association(features, references, token, "tokens", cache).unflatten(1, grid)
    if not maps:
        raise ValueError(
            "WinCLIP+ needs at least one memory: windows=() with token=None leaves none."
        )
    maps["visual"] = torch.stack(list(maps.values())).mean(dim=0)
    return maps


def few_shot(
    features,
    references,
    prototypes,
    temperature=0.07,
    windows=(2, 3),
    token="final",
    fusion="average",
    image_scale=True,
    within="harmonic",
    across="harmonic",
    crops=None,
    cache=None,
):
    """WinCLIP+, with K normal reference images.

    Parameters
    ----------
    references : encoded normal images
    fusion : of language map and visual map: "average" (anomalib), "add" (Accurate-WinCLIP; the same ranking) or
        "reciprocal" (1 / (1/t + 1/v), one public rebuild)
    the others : as in :func:`zero_shot` and :func:`visual_maps`

    Returns
    -------
    Scores, training-free. Image: half of (language score + maximum of the visual map), in [0, 1]. Maps on the patch
    grid, in [0, 1] ([0, 2] for "add").

    Source: WinCLIP+, few-normal-shot classification and segmentation.
    """
    language = zero_shot(
        features, prototypes, temperature, windows, image_scale, within, across, crops=crops
    )
    visual = visual_maps(features, references, windows, token, within, cache)["visual"]
    image = (
        language.image + visual.amax(dim=(1, 2))
    ) / 2  # maximum on the grid, not on the upsampled map
    if fusion not in ("average", "add", "reciprocal"):
        raise ValueError(f"fusion is average, add or reciprocal, found {fusion!r}.")
    if fusion == "reciprocal":
        maps = 1 / (1 / language.maps + 1 / visual)
    else:
        maps = (language.maps + visual) / (2 if fusion == "average" else 1)
    return Scores(
        image,
        maps,
        f"language probability and visual distance, {fusion}",
        "training-free",
        map_range=(0.0, 2.0 if fusion == "add" else 1.0),
    )
