"""WinCLIP and WinCLIP+ (Jeong et al., CVPR 2023, arXiv 2303.14814).

Zero-shot: every window of 2 x 2 and 3 x 3 patches is embedded alone and compared with the two
text prototypes. A patch gets the harmonic mean over the windows that cover it, then over the
scales. Few-shot ("+"): the same windows and the patch tokens are also compared with those of K
normal images. Nothing is trained.

There is no official code. Where public rebuilds differ, an option reproduces each, and the
default is the reading that agrees best with the paper.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import torch

from ..models.windows import window_indices
from .aggregation import MEANS, Mean, combine, harmonic, spread
from .neighbours import DistanceCache, reference_distance
from .scores import ArrayLike, Encoded, Scores, anomaly_probability, batches, beside
from .tiling import five_crops, merge_tiles, tiles

__all__ = [
    "MEANS",
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
Window = int | str  # side in patches, or "<side>s<stride>"


# ---- zero-shot: language -------------------------------------------------------------------------
def image_score(
    features: Encoded,
    prototypes: ArrayLike,
    temperature: float = 0.07,
    crops: ArrayLike | None = None,
) -> torch.Tensor:
    """Return ascore0 of the whole image (B,).

    Parameters
    ----------
    crops : None, or (B, n, D) embeddings of further views, e.g. of :func:`.tiling.five_crops`: the
        score is the mean over the image and its views ("multi-crop"). The paper's 91.8 on MVTec
        includes multi-crop, single-view is 90.8; the paper does not say which crops.
    """
    score = anomaly_probability(features.image, prototypes, temperature)
    if crops is None:
        return score
    views = anomaly_probability(beside(crops, score), prototypes, temperature)
    return torch.cat([score[:, None], views], dim=1).mean(dim=1)


def zero_shot(
    features: Encoded,
    prototypes: ArrayLike,
    temperature: float = 0.07,
    windows: Sequence[Window] = (2, 3),
    image_scale: bool = True,
    within: Mean = "harmonic",
    across: Mean = "harmonic",
    image_from: Literal["image", "map"] = "image",
    crops: ArrayLike | None = None,
) -> Scores:
    """Score images with WinCLIP, zero-shot.

    Parameters
    ----------
    features : encoded images with ``image`` (B, D) and ``windows[k]`` (B, W, D)
    prototypes : (2, D)
    temperature : 0.07 as in most rebuilds; ``1 / model.logit_scale`` for the checkpoint's (about
        0.01)
    windows : window sizes in patches; (2, 3) in the paper; "3s2" for every second window of 3
    image_scale : the whole image is one more scale
    within, across : mean over windows and over scales: "harmonic" (paper), "arithmetic",
        "normality"
    image_from : "image" (paper: the map takes no part) or "map" (its maximum; one public rebuild
        does so)
    crops : see :func:`image_score`

    Returns
    -------
    Scores, training-free, both in [0, 1]; maps on the patch grid: ``upsample(maps, size)`` for
    pixels (no smoothing)

    Raises
    ------
    ValueError for an unknown ``image_from``, or when no scale is left.

    Source: WinCLIP, zero-shot anomaly classification and segmentation.
    """
    if image_from not in ("image", "map"):
        raise ValueError(f"image_from is 'image' or 'map', found {image_from!r}.")
    if not windows and not image_scale:
        raise ValueError(
            "The map needs at least one scale: windows=() with image_scale=False leaves none."
        )
    grid = (features.grid[0], features.grid[1])
    parts = []
    for part in batches(features):
        scales = []
        for k in windows:
            probability = anomaly_probability(part.windows[k], prototypes, temperature)
            scales.append(spread(probability, _indices(grid, k, probability.device), grid, within))
        if image_scale:
            whole = anomaly_probability(part.image, prototypes, temperature)
            scales.append(whole[:, None, None].expand(-1, *grid))
        parts.append(combine(torch.stack(scales), across))
    maps = torch.cat(parts)
    if image_from == "map":
        image = maps.amax(dim=(1, 2))
    else:
        image = image_score(features, prototypes, temperature, crops)
    return Scores(image, maps, "probability of the anomalous prompts", "training-free")


@functools.lru_cache(maxsize=32)
def _indices(grid: tuple[int, int], window: Window, device: torch.device) -> torch.Tensor:
    """Return the patch numbers of each window on a device; they are only read."""
    return window_indices(grid, window).to(device)


# ---- few-shot: language and references -----------------------------------------------------------
def association(
    features: Encoded,
    references: Encoded,
    name: int | str,
    kind: Literal["tokens", "windows"] = "windows",
    cache: DistanceCache | None = None,
) -> torch.Tensor:
    """Return half the cosine distance to the nearest vector of all references, at any position.

    Parameters
    ----------
    features, references : encoded images, B and K of them
    name, kind : a size of "windows", or a block of "tokens"
    cache : remembers distances to single references

    Returns
    -------
    (B, W) or (B, N) float32 in [0, 1]

    Source: WinCLIP, reference association.
    """
    return reference_distance(features, references, name, kind, cache) / 2


def visual_maps(
    features: Encoded,
    references: Encoded,
    windows: Sequence[Window] = (2, 3),
    token: int | str | None = "final",
    within: Mean = "harmonic",
    cache: DistanceCache | None = None,
) -> dict[Window, torch.Tensor]:
    """Return the association maps of each scale and their mean, from K normal images.

    Parameters
    ----------
    features, references : encoded images with ``windows[k]`` (B, W, D) and ``tokens[token]``
        (B, N, C)
    windows : window sizes in patches, one memory each
    token : "final" takes patch tokens after the final norm (anomalib); a block number takes them
        before it (the last block: Accurate-WinCLIP, mala-lab); None leaves the patch memory out
    within : how window associations spread to patches
    cache : remembers distances to single references

    Returns
    -------
    dict of maps (B, h, w): {2: ..., 3: ..., "patch": ..., "visual": arithmetic mean of the others}

    Raises
    ------
    ValueError when no memory is left.

    Source: WinCLIP+, multi-scale visual memory (M^W).
    """
    grid = (features.grid[0], features.grid[1])
    maps: dict[Window, torch.Tensor] = {}
    for k in windows:
        distance = association(features, references, k, cache=cache)
        maps[k] = spread(distance, _indices(grid, k, distance.device), grid, within)
    if token is not None:
        distance = association(features, references, token, "tokens", cache)
        maps["patch"] = distance.unflatten(1, grid)
    if not maps:
        raise ValueError(
            "WinCLIP+ needs at least one memory: windows=() with token=None leaves none."
        )
    maps["visual"] = torch.stack(list(maps.values())).mean(dim=0)
    return maps


def few_shot(
    features: Encoded,
    references: Encoded,
    prototypes: ArrayLike,
    temperature: float = 0.07,
    windows: Sequence[Window] = (2, 3),
    token: int | str | None = "final",
    fusion: Literal["average", "add", "reciprocal"] = "average",
    image_scale: bool = True,
    within: Mean = "harmonic",
    across: Mean = "harmonic",
    crops: ArrayLike | None = None,
    cache: DistanceCache | None = None,
) -> Scores:
    """Score images with WinCLIP+, given K normal reference images.

    Parameters
    ----------
    references : encoded normal images
    fusion : of language map t and visual map v: "average" (anomalib), "add" (Accurate-WinCLIP; the
        same ranking) or "reciprocal" (1 / (1/t + 1/v), one public rebuild)
    the others : as in :func:`zero_shot` and :func:`visual_maps`

    Returns
    -------
    Scores, training-free. Image: half of (language score + maximum of the visual map on the patch
    grid, before upsampling), in [0, 1]. Maps on the patch grid, in [0, 1] ([0, 2] for "add").

    Raises
    ------
    ValueError for an unknown ``fusion``, and as the two functions above.

    Source: WinCLIP+, few-normal-shot classification and segmentation.
    """
    if fusion not in ("average", "add", "reciprocal"):
        raise ValueError(f"fusion is average, add or reciprocal, found {fusion!r}.")
    language = zero_shot(
        features, prototypes, temperature, windows, image_scale, within, across, crops=crops
    )
    visual = visual_maps(features, references, windows, token, within, cache)["visual"]
    if fusion == "reciprocal":
        maps = 1 / (1 / language.maps + 1 / visual)
    else:
        maps = (language.maps + visual) / (2 if fusion == "average" else 1)
    return Scores(
        (language.image + visual.amax(dim=(1, 2))) / 2,
        maps,
        f"language probability and visual distance, {fusion}",
        "training-free",
        map_range=(0.0, 2.0 if fusion == "add" else 1.0),
    )
