"""AnomalyCLIP (Zhou et al., ICLR 2024, arXiv 2310.18961).

Two prompts that name no class are learned on another labelled dataset: 12 free vectors before
"object." and 12 before "damaged object.", with free tokens inside the text tower. The image tower
is frozen; its patch features come from a second, V-V attention stream (DPAM).

What is trained: only :class:`PromptLearner`. What is used: ``zero_shot`` with its two prototypes.

    model = models.load("ViT-L-14-336", "openai", image_size=518)
    model = DPAM(model)                          # the embedded model is used as it is
    feats = features.encode(model, index)        # stored under a fingerprint of DPAM
    learner, history = train(text_tower(model), feats, masks, labels)
    scores = zero_shot(other_feats, learner.prototypes(), size=(518, 518))
"""

from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
import torch.nn.functional as F

from ..models.dense import DPAM, dpam, resize_positions
from ..models.text_towers import BertText, OpenClipText, text_tower
from .prompt_learner import PromptLearner, TextTower, load, load_official, save
from .scores import (
    ArrayLike,
    Encoded,
    Scores,
    anomaly_probability,
    batches,
    beside,
    smooth,
    tensor,
    upsample,
)
from .training import dice_loss, fit, focal_loss

__all__ = [
    "DPAM",
    "dpam",
    "resize_positions",
    "zero_shot",
    "PromptLearner",
    "glocal_loss",
    "train",
    "save",
    "load",
    "load_official",
    "BertText",
    "OpenClipText",
    "text_tower",
]


def _dense(part: Encoded, blocks: Sequence[int] | None) -> list[torch.Tensor]:
    """Return features (B, N, D) of some blocks, or of the last one."""
    if blocks is None:
        return [tensor(part.patches)]
    return [tensor(part.tokens[b]) for b in blocks]


def zero_shot(
    features: Encoded,
    prototypes: ArrayLike,
    temperature: float = 0.07,
    blocks: Sequence[int] | None = None,
    size: Sequence[int] | None = None,
    sigma: float = 4.0,
) -> Scores:
    """Score images with AnomalyCLIP, zero-shot.

    Parameters
    ----------
    features : encoded by :class:`DPAM` (or the embedded model): ``image`` (B, D), ``patches``
        (B, N, D), and ``tokens[b]`` (B, N, D) when ``blocks`` are named
    prototypes : (2, D) from a trained :class:`PromptLearner`. With hand-written prompts nothing is
        trained: use ``clip_ac.zero_shot`` on the same features
    blocks : None takes the last block only (official since April 2025); else maps are summed over
        these
    size : (H, W) of the maps; the official code takes the input size, 518. None stays on the patch
        grid, unsmoothed
    sigma : of the Gaussian, in pixels of a 518-pixel image; scaled with ``size``

    Returns
    -------
    Scores, trained elsewhere. Image in [0, 1], from CLS only; maps in [0, number of blocks].

    Source: AnomalyCLIP, training and inference; official test.py: softmax on the grid, **then**
    bilinear (the opposite of APRIL-GAN), then Gaussian.
    """
    image, parts = tensor(features.image), []
    prototypes = beside(prototypes, image)
    for part in batches(features):
        layers = [anomaly_probability(x, prototypes, temperature) for x in _dense(part, blocks)]
        grids = reduce(torch.add, layers).unflatten(1, tuple(part.grid))
        if size is not None:
            grids = smooth(upsample(grids, size), sigma * min(size) / 518)
        parts.append(grids)
    return Scores(
        anomaly_probability(image, prototypes, temperature),
        torch.cat(parts),
        "probability of the learned anomalous prompt",
        "trained elsewhere",
        map_range=(0.0, float(1 if blocks is None else len(blocks))),
    )


def glocal_loss(
    image: torch.Tensor,
    patches: Sequence[torch.Tensor],
    prototypes: torch.Tensor,
    labels: torch.Tensor,
    masks: torch.Tensor,
    grid: Sequence[int],
    temperature: float = 0.07,
    weight: float = 4.0,
) -> torch.Tensor:
    """Return the loss of the image plus ``weight`` times the losses of the maps.

    The image's is the cross-entropy; those of a block's map are focal + dice(anomalous) +
    dice(normal).

    Parameters
    ----------
    image : (B, D); patches : list over blocks of (B, N, D); prototypes : (2, D), differentiable
    labels : (B,) int64, 1 anomalous
    masks : (B, H, W), True on defects; maps are upsampled to this size
    grid : (h, w)

    Source: AnomalyCLIP, glocal context optimisation; lambda = 4.
    """
    text = F.normalize(prototypes, dim=-1).T / temperature
    loss = F.cross_entropy(F.normalize(image, dim=-1) @ text, labels)
    for x in patches:
        probabilities = (F.normalize(x, dim=-1) @ text).softmax(dim=-1)
        grids = probabilities.transpose(1, 2).unflatten(2, tuple(grid))
        maps = F.interpolate(grids, size=masks.shape[1:], mode="bilinear", align_corners=False)
        loss = loss + weight * (
            focal_loss(maps, masks)
            + dice_loss(maps[:, 1], masks)
            + dice_loss(maps[:, 0], ~masks.bool())
        )
    return loss


def train(
    tower: TextTower,
    features: Encoded,
    masks: ArrayLike,
    labels: ArrayLike,
    blocks: Sequence[int] | None = None,
    epochs: int = 15,
    batch_size: int = 8,
    lr: float = 1e-3,
    temperature: float = 0.07,
    weight: float = 4.0,
    seed: int = 111,
    progress: bool = True,
    **prompts: int,
) -> tuple[PromptLearner, list[float]]:
    """Learn the prompts from cached features; neither tower changes and no image is encoded again.

    Parameters
    ----------
    tower : text tower, see :func:`text_tower`; prompts are learned on its device, to which each
        batch goes
    features : encoded images as for :func:`zero_shot`, normal and anomalous, of another dataset
        than the tested one
    masks : (B, H, W) bool; labels : (B,), 1 anomalous
    blocks : None uses the last block (``patches``); else ``tokens[b]`` of these
    prompts : n_vectors, depth, length of :class:`PromptLearner`

    Returns
    -------
    (PromptLearner in eval mode, list of mean losses per epoch)

    Raises
    ------
    ValueError when lengths differ, or labels are not both 0 and 1.

    Source: official train.py: Adam, lr 1e-3, betas (0.5, 0.999), batch 8, 15 epochs.
    """
    masks, classes = torch.as_tensor(masks), torch.as_tensor(np.asarray(labels).copy()).long()
    n = len(features)
    if not len(masks) == len(classes) == n:
        raise ValueError(
            f"Found {n} encoded images, {len(masks)} masks and {len(classes)} labels: one each is "
            "wanted."
        )
    found = classes.unique().tolist()
    if found != [0, 1]:
        raise ValueError(
            f"Training needs normal (0) and anomalous (1) images, found labels {found}."
        )
    learner = PromptLearner(tower, seed=seed, **prompts)
    device = learner.vectors.device

    def loss_of(rows: np.ndarray) -> torch.Tensor:
        part = features[rows]
        return glocal_loss(
            beside(part.image, learner.vectors),
            [beside(x, learner.vectors) for x in _dense(part, blocks)],
            learner(),
            classes[rows].to(device),
            masks[rows].to(device),
            part.grid,
            temperature,
            weight,
        )

    return learner, fit(
        learner, n, loss_of, epochs, batch_size, lr, seed, "learn prompts", progress
    )
