"""APRIL-GAN (Chen, Han, Zhang, VAND 2023, arXiv 2305.17382), the "AprilLab framework" of the source paper.

Patch tokens of four blocks each get one linear layer into the joint space, where they are compared with the text. Only
these layers are trained, with masks, on another data set than the one under test: "zero-shot" here means trained
elsewhere, not training-free. Few-shot adds the distance to the raw tokens of K normal images, block by block.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from .memory_bank import reference_distance, top_mean
from .scores import Scores, anomaly_probability, batches, tensor, upsample
from .training import dice_loss, fit, focal_loss, load_checkpoint, save_checkpoint

OFFICIAL_BLOCKS = (6, 12, 18, 24)  # of ViT-L-14-336 at 518 pixels


class LinearLayers(nn.Module):
    """One linear layer C -> D per block. Source: APRIL-GAN, zero-shot; ``fc`` is the official name of the weights.

    Parameters
    ----------
    blocks : block numbers, from 1; width, dim : C and D; seed : of the initial weights
    """

    def __init__(self, blocks, width, dim, seed=111):
        super().__init__()
        self.blocks, self.width, self.dim = tuple(int(b) for b in blocks), int(width), int(dim)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.fc = nn.ModuleList([nn.Linear(self.width, self.dim) for _ in self.blocks])

    def forward(self, tokens):
        """{block: (B, N, C)} -> list of (B, N, D), in the order of ``blocks``."""
        for b in self.blocks:
            if b not in tokens or tokens[b].shape[-1] != self.width:
                raise ValueError(
                    f"These layers want tokens of block {b} with width {self.width}, found "
                    f"{ {key: tokens[key].shape[-1] for key in tokens.keys()} }: encode with the backbone "
                    f"they were trained on and blocks={self.blocks}."
                )
        return [layer(tokens[b]) for layer, b in zip(self.fc, self.blocks, strict=True)]


# ---- scores ----------------------------------------------------------------------------------------------------------
def layer_logits(projected, prototypes, grid, scale=100.0):
    """scale * cos(projected token, prototype): (B, N, D), (2, D) or (B, 2, D) -> (B, 2, h, w)."""
    cosine = F.normalize(projected, dim=-1) @ F.normalize(prototypes, dim=-1).transpose(-1, -2)
    return scale * cosine.transpose(1, 2).unflatten(2, tuple(grid))


def layer_map(logits, size=None):
    """Both probabilities (B, 2, H, W): upsample the **logits** (align_corners=True), then softmax, as the code does."""
    if size is not None:
        logits = F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=True)
    return logits.softmax(dim=1)


@torch.no_grad()
def zero_shot(features, prototypes, layers, size=None, scale=100.0, image_from="image"):
    """APRIL-GAN, zero-shot.

    Parameters
    ----------
    features : encoded images with ``image`` (B, D) and ``tokens[b]`` (B, N, C) for the blocks of ``layers``
    prototypes : (2, D), from the "april-gan" ensemble
    layers : trained :class:`LinearLayers`
    size : (H, W) of the maps; the official code takes the input size (518, 518). None stays on the patch grid
    scale : 1 / temperature
    image_from : "image" (official: the CLS embedding only) or "map" (not in the paper: mean of the top 1 % of the map, over
        L), for towers whose image embedding sees less than their patches

    Returns
    -------
    Scores, trained elsewhere. Image in [0, 1]. Maps: sum over blocks, in [0, L].

    Raises
    ------
    ValueError for an unknown ``image_from``.

    Source: APRIL-GAN, zero-shot anomaly segmentation; official test.py.
    """
    if image_from not in ("image", "map"):
        raise ValueError(f"image_from is 'image' or 'map', found {image_from!r}.")
    maps = torch.cat(
        [
            sum(
                layer_map(layer_logits(x, tensor(prototypes), part.grid, scale), size)[:, 1]
                for x in layers({b: tensor(part.tokens[b]) for b in layers.blocks})
            )
            for part in batches(features)
        ]
    )
    image = (
        anomaly_probability(features.image, prototypes, 1 / scale)
        if image_from == "image"
        else top_mean(maps.flatten(1)) / len(layers.blocks)
    )
    return Scores(
        image,
        maps,
        f"image: probability of the anomalous prompts, from the {image_from}; map: its sum over blocks",
        "trained elsewhere",
        map_range=(0.0, float(len(layers.blocks))),
    )


def layer_distance(features, references, block, cache=None):
    """1 - cos of each raw token to the nearest reference token of the same block: (B, h, w) in [0, 2]."""
    return reference_distance(features, references, block, cache=cache).unflatten(
        1, tuple(features.grid)
    )


def few_shot(
    features,
    references,
    prototypes,
    layers,
    size=None,
    scale=100.0,
    transductive=False,
    image_from="image",
    zero=None,
    cache=None,
):
    """APRIL-GAN, few-shot: the zero-shot map plus, per block, the distance to K normal images.

    Parameters
    ----------
    references : encoded normal images with the same blocks
    transductive : True gives the official image score, half of (text probability + maximum of the map, min-max scaled
        over **all test images given**): it needs the whole test set, and one image's score depends on the others.
        False (default) divides the maximum by the number of blocks L instead: same parts, one image at a time.
    zero : what :func:`zero_shot` gives for the same arguments, where it is known; it is the same for all references
    cache : :class:`.memory_bank.DistanceCache` or None
    the others : as in :func:`zero_shot`

    Returns
    -------
    Scores, "trained elsewhere" or "transductive". Maps in [0, 3 L] (L probabilities and L distances up to 2); image in
    [0, 2], or [0, 1] when transductive.

    Source: APRIL-GAN, few-shot; official test.py.
    """
    zero = zero or zero_shot(features, prototypes, layers, size, scale, image_from)
    number, maps = len(layers.blocks), zero.maps.clone()
    for block in layers.blocks:
        distance = layer_distance(features, references, block, cache)
        maps += distance if size is None else upsample(distance, size, align_corners=True)
    peak = maps.amax(dim=(1, 2))
    if transductive:
        peak = (peak - peak.min()) / (peak.max() - peak.min()).clamp(
            min=1e-12
        )  # one image, or equal ones: 0
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


# ---- training --------------------------------------------------------------------------------------------------------
def train(
    features,
    masks,
    prototypes,
    blocks,
    epochs=15,
    batch_size=8,
    lr=1e-3,
    seed=111,
    scale=100.0,
    progress=True,
):
    """Train the linear layers from cached tokens; images are never encoded again.

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
    (LinearLayers in eval mode, list of mean losses per epoch)

    Raises
    ------
    ValueError when lengths differ or no mask has a defect.

    Source: APRIL-GAN, losses; official train.py: per block focal + dice, summed; Adam, betas (0.5, 0.999).
    """
    masks, prototypes, n = torch.as_tensor(masks), tensor(prototypes), len(features)
    if len(masks) != n or (prototypes.ndim == 3 and len(prototypes) != n):
        raise ValueError(
            f"Found {n} encoded images, {len(masks)} masks, prototypes {tuple(prototypes.shape)}: one "
            "mask per image is wanted, and (2, D) or one (2, D) per image."
        )
    if not masks.any():
        raise ValueError(
            "No mask holds a defect: training needs anomalous images with masks, of another data set."
        )
    layers = LinearLayers(
        blocks, features[:1].tokens[blocks[0]].shape[-1], prototypes.shape[-1], seed
    )

    def loss_of(rows):
        part, mask = features[rows], masks[rows]
        text, loss = prototypes if prototypes.ndim == 2 else prototypes[rows], 0.0
        for x in layers({b: tensor(part.tokens[b]) for b in layers.blocks}):
            probabilities = layer_map(layer_logits(x, text, part.grid, scale), mask.shape[1:])
            loss = loss + focal_loss(probabilities, mask) + dice_loss(probabilities[:, 1], mask)
        return loss

    return layers, fit(
        layers, n, loss_of, epochs, batch_size, lr, seed, "train linear layers", progress
    )


def mosaic(images, masks, rng):
    """One 2 x 2 mosaic of images of one class, for use before encoding (the paper: probability 0.2, MVTec AD only).

    Parameters
    ----------
    images : sequence of (H, W, 3) uint8; masks : sequence of (H', W') bool, True on defects
    rng : np.random.Generator; draws four with replacement

    Returns
    -------
    (image (H, W, 3) uint8, mask (H, W) bool) of the size of the first draw; a defect that touches a pixel marks it
    """
    picks = rng.integers(len(images), size=4)
    height, width = np.shape(images[picks[0]])[:2]
    image, mask = np.empty((height, width, 3), np.uint8), np.empty((height, width), bool)
    tops, lefts = (0, height // 2, height), (0, width // 2, width)
    for quarter, pick in enumerate(picks):
        rows, columns = slice(*tops[quarter // 2 :][:2]), slice(*lefts[quarter % 2 :][:2])
        size = (columns.stop - columns.start, rows.stop - rows.start)
        image[rows, columns] = Image.fromarray(np.asarray(images[pick])).resize(
            size, Image.Resampling.BICUBIC
        )
        small = Image.fromarray(np.asarray(masks[pick], np.float32)).resize(
            size, Image.Resampling.BOX
        )
        mask[rows, columns] = np.asarray(small) > 1e-6
    return image, mask


# ---- checkpoints -----------------------------------------------------------------------------------------------------
def save(layers, path, **card):
    """Write weights as safetensors and beside them a JSON card.

    Parameters
    ----------
    path : ends in .safetensors; the card gets the suffix .json
    card : what a reader must know, e.g. backbone=model.name, fingerprint=model.fingerprint, trained_on=, prompts=,
        epochs=, lr=, seed=, licence=
    """
    save_checkpoint(
        layers,
        path,
        method="april_gan",
        blocks=layers.blocks,
        width=layers.width,
        dim=layers.dim,
        **card,
    )


def load(path):
    """(LinearLayers, card) written by :func:`save`.

    Raises
    ------
    As :func:`.training.load_checkpoint`; RuntimeError when weights and card do not fit.
    """
    weights, card = load_checkpoint(path, "april_gan")
    layers = LinearLayers(card["blocks"], card["width"], card["dim"])
    layers.load_state_dict(weights)
    return layers.eval().requires_grad_(False), card


def load_official(path, blocks=OFFICIAL_BLOCKS):
    """LinearLayers from a checkpoint of the official code.

    Notes
    -----
    Use them with ``models.load("ViT-L-14-336", "openai", image_size=518, quick_gelu=False)``: the official results
    have this mismatch: exact GELU with weights that were trained for QuickGELU.

    Raises
    ------
    ValueError when the file has another layout.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or "trainable_linearlayer" not in state:
        found = ", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f"{Path(path).name} has no key 'trainable_linearlayer', found {found}: an APRIL-GAN "
            "checkpoint (e.g. epoch_15.pth of its train.py) is wanted."
        )
    weights = {k: v.float() for k, v in state["trainable_linearlayer"].items()}
    if len(weights) != 2 * len(blocks):
        raise ValueError(
            f"The checkpoint has {len(weights) // 2} layers, blocks={tuple(blocks)} names {len(blocks)}."
        )
    dim, width = weights["fc.0.weight"].shape
    layers = LinearLayers(blocks, width, dim)
    layers.load_state_dict(weights)
    return layers.eval().requires_grad_(False)
