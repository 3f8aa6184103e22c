"""APRIL-GAN (Chen, Han, Zhang, CVPR 2023 VAND workshop, arXiv 2305.17382).

Patch tokens of four blocks each get one linear layer into the joint space, where they are
compared with the text. Only these layers are trained, with masks, on another dataset than the one
under test: "zero-shot" here means trained elsewhere, not training-free. Few-shot adds the distance
to the raw tokens of K normal images, block by block.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from .linear_layers import OFFICIAL_BLOCKS, LinearLayers, load, load_official, save
from .memory_bank import top_mean
from .mosaic import mosaic
from .neighbours import DistanceCache, reference_distance
from .scores import (
    ArrayLike,
    Encoded,
    Scores,
    anomaly_probability,
    batches,
    beside,
    tensor,
    upsample,
)
from .training import dice_loss, fit, focal_loss

__all__ = [
    "OFFICIAL_BLOCKS",
    "LinearLayers",
    "layer_logits",
    "layer_map",
    "zero_shot",
    "layer_distance",
    "few_shot",
    "train",
    "mosaic",
    "save",
    "load",
    "load_official",
]


# ---- scores --------------------------------------------------------------------------------------
def layer_logits(
    projected: torch.Tensor, prototypes: torch.Tensor, grid: Sequence[int], scale: float = 100.0
) -> torch.Tensor:
    """Return scale * cos(projected token, prototype).

    Parameters
    ----------
    projected : (B, N, D); prototypes : (2, D) or (B, 2, D)
    grid : (h, w)

    Returns
    -------
    (B, 2, h, w)
    """
    cosine = F.normalize(projected, dim=-1) @ F.normalize(prototypes, dim=-1).transpose(-1, -2)
    return scale * cosine.transpose(1, 2).unflatten(2, tuple(grid))


def layer_map(logits: torch.Tensor, size: Sequence[int] | None = None) -> torch.Tensor:
    """Return both probabilities (B, 2, H, W) of logits (B, 2, h, w).

    As in the official code the **logits** are upsampled (align_corners=True), then softmax.
    """
    if size is not None:
        logits = F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=True)
    return logits.softmax(dim=1)


@torch.no_grad()
def zero_shot(
    features: Encoded,
    prototypes: ArrayLike,
    layers: LinearLayers,
    size: Sequence[int] | None = None,
    scale: float = 100.0,
    image_from: Literal["image", "map"] = "image",
) -> Scores:
    """Score images with APRIL-GAN, zero-shot.

    Parameters
    ----------
    features : encoded images with ``image`` (B, D) and ``tokens[b]`` (B, N, C) for the blocks of
        ``layers``
    prototypes : (2, D), from the "april-gan" ensemble
    layers : trained on another dataset; from elsewhere, a copy goes to the features' device
    size : (H, W) of the maps; the official code takes the input size (518, 518). None stays on the
        patch grid
    scale : 1 / temperature
    image_from : "image" (official: the CLS embedding only) or "map" (not in the paper: mean of the
        top 1 % of the map, over L), for towers whose image embedding sees less than their patches

    Returns
    -------
    Scores, trained elsewhere. Image in [0, 1]. Maps: sum over the L blocks, in [0, L].

    Raises
    ------
    ValueError for an unknown ``image_from``.

    Source: APRIL-GAN, zero-shot anomaly segmentation; official test.py.
    """
    if image_from not in ("image", "map"):
        raise ValueError(f"image_from is 'image' or 'map', found {image_from!r}.")
    image = tensor(features.image)
    text, layers, parts = beside(prototypes, image), layers.beside(image), []
    for part in batches(features):
        logits = [layer_logits(x, text, part.grid, scale) for x in layers.project(part)]
        parts.append(reduce(torch.add, [layer_map(x, size)[:, 1] for x in logits]))
    maps = torch.cat(parts)
    if image_from == "image":
        image = anomaly_probability(image, text, 1 / scale)
    else:
        image = top_mean(maps.flatten(1)) / len(layers.blocks)
    return Scores(
        image,
        maps,
        f"image: probability of the anomalous prompts, from the {image_from}; "
        "map: its sum over blocks",
        "trained elsewhere",
        map_range=(0.0, float(len(layers.blocks))),
    )


def layer_distance(
    features: Encoded, references: Encoded, block: int, cache: DistanceCache | None = None
) -> torch.Tensor:
    """Return 1 - cos of each raw token to the nearest reference token of the same block.

    Parameters
    ----------
    cache : remembers distances to single references

    Returns
    -------
    (B, h, w) in [0, 2]
    """
    distance = reference_distance(features, references, block, cache=cache)
    return distance.unflatten(1, tuple(features.grid))


def few_shot(
    features: Encoded,
    references: Encoded,
    prototypes: ArrayLike,
    layers: LinearLayers,
    size: Sequence[int] | None = None,
    scale: float = 100.0,
    transductive: bool = False,
    image_from: Literal["image", "map"] = "image",
    zero: Scores | None = None,
    cache: DistanceCache | None = None,
) -> Scores:
    """Score images with APRIL-GAN, few-shot: add, per block, the distance to K normal images.

    Parameters
    ----------
    references : encoded normal images with the same blocks
    transductive : True gives the official image score, half of (text probability + maximum of the
        map, min-max scaled over **all test images given**). It needs the whole test set, and one
        image's score depends on the others. False (default) divides the maximum by the number of
        blocks L instead: same parts, one image at a time.
    zero : what :func:`zero_shot` gives for the same arguments, where it is known; it is the same
        for all references
    cache : remembers distances to single references
    the others : as in :func:`zero_shot`

    Returns
    -------
    Scores, "trained elsewhere" or "transductive". Maps in [0, 3 L] (L probabilities and L
    distances up to 2); image in [0, 2], or [0, 1] when transductive.

    Source: APRIL-GAN, few-shot; official test.py.
    """
    if zero is None:
        zero = zero_shot(features, prototypes, layers, size, scale, image_from)
    number, maps = len(layers.blocks), zero.maps.clone()
    for block in layers.blocks:
        distance = layer_distance(features, references, block, cache)
        maps += distance if size is None else upsample(distance, size, align_corners=True)
    peak = maps.amax(dim=(1, 2))
    if transductive:
        spread = (peak.max() - peak.min()).clamp(min=1e-12)  # one image, or equal ones: 0
        peak = (peak - peak.min()) / spread
    else:
        peak = peak / number
    return Scores(
        (zero.image + peak) / 2,
        maps,
        "text probability and distance to references, summed over blocks",
        "transductive" if transductive else "trained elsewhere",
        (0.0, 1.0 if transductive else 2.0),
        (0.0, 3.0 * number),
    )


# ---- training ------------------------------------------------------------------------------------
def train(
    features: Encoded,
    masks: ArrayLike,
    prototypes: ArrayLike,
    blocks: Sequence[int],
    epochs: int = 15,
    batch_size: int = 8,
    lr: float = 1e-3,
    seed: int = 111,
    scale: float = 100.0,
    progress: bool = True,
) -> tuple[LinearLayers, list[float]]:
    """Train the linear layers from cached tokens, on their device; no image is encoded again.

    Parameters
    ----------
    features : encoded images, normal and anomalous, with ``tokens[b]`` (B, N, C)
    masks : (B, H, W) bool, True on defects; the loss is taken at this size
    prototypes : (2, D), or (B, 2, D) with the prototypes of each image's object
    blocks : block numbers that get a layer
    epochs : 15 on VisA, 3 on MVTec AD in the paper
    seed : of initial weights and shuffling

    Returns
    -------
    (LinearLayers in eval mode, on the device of the features; list of mean losses per epoch)

    Raises
    ------
    ValueError when lengths differ or no mask has a defect.

    Source: APRIL-GAN, losses; official train.py: per block focal + dice, summed; Adam, betas
    (0.5, 0.999).
    """
    first = tensor(features[:1].tokens[blocks[0]])
    masks, text, n = torch.as_tensor(masks), beside(prototypes, first), len(features)
    if len(masks) != n or (text.ndim == 3 and len(text) != n):
        raise ValueError(
            f"Found {n} encoded images, {len(masks)} masks, prototypes {tuple(text.shape)}: one "
            "mask per image is wanted, and (2, D) or one (2, D) per image."
        )
    if not masks.any():
        raise ValueError(
            "No mask holds a defect: training needs anomalous images with masks, of another "
            "dataset."
        )
    layers = LinearLayers(blocks, first.shape[-1], text.shape[-1], seed).beside(first)

    def loss_of(rows: np.ndarray) -> torch.Tensor:
        part, mask = features[rows], masks[rows].to(text.device)
        loss = text.new_zeros(())
        words = text if text.ndim == 2 else text[rows]
        for x in layers.project(part):
            probabilities = layer_map(layer_logits(x, words, part.grid, scale), mask.shape[1:])
            loss = loss + focal_loss(probabilities, mask) + dice_loss(probabilities[:, 1], mask)
        return loss

    label = "train linear layers"
    return layers, fit(layers, n, loss_of, epochs, batch_size, lr, seed, label, progress)
