"""AnomalyCLIP (Zhou et al., ICLR 2024, arXiv 2310.18961).

Two prompts that name no class are learned once, on another labelled data set: 12 free vectors before "object." and 12
before "damaged object.", with free tokens inside the text tower. The image tower is frozen; its patch features come
from a second, V-V attention stream (DPAM).

What is trained: only :class:`PromptLearner`. What is used: ``zero_shot`` with the two prototypes it gives.

    model = DPAM(models.load("ViT-L-14-336", "openai", image_size=518))   # or the embedded model as it is
    feats = features.encode(model, index)                                    # cached under its own fingerprint
    learner, history = train(text_tower(model), feats, masks, labels)
    scores = zero_shot(other_feats, learner.prototypes(), size=(518, 518))
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..models.dense import DPAM, dpam, resize_positions
from ..models.text_towers import BertText, OpenClipText, overwritten, text_tower
from .scores import Scores, anomaly_probability, batches, smooth, tensor, upsample
from .training import dice_loss, fit, focal_loss, load_checkpoint, save_checkpoint

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


# ---- scores ----------------------------------------------------------------------------------------------------------
def zero_shot(features, prototypes, temperature=0.07, blocks=None, size=None, sigma=4.0):
    """AnomalyCLIP, zero-shot.

    Parameters
    ----------
    features : encoded by :class:`DPAM` (or the embedded model): ``image`` (B, D), ``patches`` (B, N, D), and
        ``tokens[b]`` (B, N, D) when ``blocks`` are named
    prototypes : (2, D) from a trained :class:`PromptLearner` (with hand-written prompts nothing is trained: then use
        ``clip_ac.zero_shot`` on the same features)
    blocks : None takes the last block only (official since April 2025); else maps are summed over these
    size : (H, W) of the maps; the official code takes the input size, 518. None stays on the patch grid, unsmoothed
    sigma : of the Gaussian, in pixels of a 518-pixel image; scaled with ``size``

    Returns
    -------
    Scores, trained elsewhere. Image in [0, 1], from CLS only; maps in [0, number of blocks].

    Source: AnomalyCLIP, training and inference; official test.py: softmax on the grid, **then** bilinear (the
    opposite of APRIL-GAN), then Gaussian.
    """
    maps = []
    for part in batches(features):
        layers = [part.patches] if blocks is None else [part.tokens[b] for b in blocks]
        grids = sum(anomaly_probability(x, prototypes, temperature) for x in layers).unflatten(
            1, tuple(part.grid)
        )
        maps.append(
            grids if size is None else smooth(upsample(grids, size), sigma * min(size) / 518)
        )
    return Scores(
        anomaly_probability(features.image, prototypes, temperature),
        torch.cat(maps),
        "probability of the learned anomalous prompt",
        "trained elsewhere",
        map_range=(0.0, float(len(blocks) if blocks is not None else 1)),
    )


# ---- learning the prompts -------------------------------------------------------------------------------------------
class PromptLearner(nn.Module):
    """Object-agnostic learnable prompts, with learnable tokens inside the text tower.

    Source: AnomalyCLIP, object-agnostic text prompts; refinement of the textual space.

    Parameters
    ----------
    tower : text tower; it is used, never trained, and not part of the state
    n_vectors : free vectors before "object." and before "damaged object."
    depth, length : text blocks 2..depth get ``length`` free tokens each, which overwrite those after the start token
        (issue #75 of the official code); a tower with fewer blocks gets fewer. depth=1: none
    seed : initial values are N(0, 0.02^2)
    """

    def __init__(self, tower, n_vectors=12, depth=9, length=4, seed=111):
        super().__init__()
        self.__dict__["tower"] = tower  # not a submodule
        self.config = {"n_vectors": n_vectors, "depth": depth, "length": length, "seed": seed}
        self.ids, self.mask = tower.tokenize(
            ["X " * n_vectors + words for words in ("object.", "damaged object.")]
        )
        free = self.ids[:, 1 : 1 + n_vectors]
        if n_vectors and not (free == free[0, 0]).all():
            raise ValueError(
                "This tokenizer does not give one token per placeholder X, so prompts cannot be learned."
            )
        self.fixed = (
            tower.embed_tokens(self.ids).detach().clone()
        )  # (2, L, width); leaves of no graph
        rng, width = torch.Generator().manual_seed(seed), tower.width

        def parameter(*shape):
            return nn.Parameter(torch.randn(*shape, generator=rng).mul(0.02).to(self.fixed.device))

        self.vectors = parameter(2, n_vectors, width)
        self.deep = nn.ParameterList(
            parameter(length, width) for _ in range(min(depth, len(tower.blocks)) - 1)
        )

    def forward(self):
        """(2, D), unit length, row 0 normal, row 1 anomalous; differentiable."""
        n = self.config["n_vectors"]
        embeddings = torch.cat([self.fixed[:, :1], self.vectors, self.fixed[:, 1 + n :]], dim=1)
        with overwritten(self.tower.blocks, self.deep):
            return F.normalize(
                self.tower.encode_embeddings(embeddings, self.ids, self.mask).float(), dim=-1
            )

    @torch.no_grad()
    def prototypes(self):
        """The learned prototypes (2, D) float32 on the CPU, for scoring."""
        return self().cpu()


def glocal_loss(image, patches, prototypes, labels, masks, grid, temperature=0.07, weight=4.0):
    """Cross-entropy of the image plus ``weight`` times, per block, focal + dice(anomalous) + dice(normal).

    Parameters
    ----------
    image : (B, D); patches : list over blocks of (B, N, D); prototypes : (2, D), differentiable
    labels : (B,) int64, 1 anomalous; masks : (B, H, W), True on defects; maps are upsampled to this size

    Source: AnomalyCLIP, glocal context optimisation; lambda = 4.
    """
    text = F.normalize(prototypes, dim=-1).T / temperature
    loss = F.cross_entropy(F.normalize(image, dim=-1) @ text, labels)
    for x in patches:
        grids = (
            (F.normalize(x, dim=-1) @ text)
            .softmax(dim=-1)
            .transpose(1, 2)
            .unflatten(2, tuple(grid))
        )
        maps = F.interpolate(grids, size=masks.shape[1:], mode="bilinear", align_corners=False)
        loss = loss + weight * (
            focal_loss(maps, masks)
            + dice_loss(maps[:, 1], masks)
            + dice_loss(maps[:, 0], ~masks.bool())
        )
    return loss


def train(
    tower,
    features,
    masks,
    labels,
    blocks=None,
    epochs=15,
    batch_size=8,
    lr=1e-3,
    temperature=0.07,
    weight=4.0,
    seed=111,
    progress=True,
    **prompts,
):
    """Learn the prompts from cached features; neither tower changes and no image is encoded again.

    Parameters
    ----------
    tower : text tower, see :func:`text_tower`
    features : encoded images as for :func:`zero_shot`, normal and anomalous, of another data set than the tested one
    masks : (B, H, W) bool; labels : (B,), 1 anomalous
    blocks : None uses the last block (``patches``); else ``tokens[b]`` of these
    prompts : n_vectors, depth, length of :class:`PromptLearner`

    Returns
    -------
    (PromptLearner in eval mode, list of mean losses per epoch)

    Source: official train.py: Adam, lr 1e-3, betas (0.5, 0.999), batch 8, 15 epochs.
    """
    masks, labels, n = (
        torch.as_tensor(masks),
        torch.as_tensor(np.asarray(labels)).long(),
        len(features),
    )
    if not len(masks) == len(labels) == n:
        raise ValueError(
            f"Found {n} encoded images, {len(masks)} masks and {len(labels)} labels: one each is wanted."
        )
    found = labels.unique().tolist()
    if found != [0, 1]:
        raise ValueError(
            f"Training needs normal (0) and anomalous (1) images, found labels {found}."
        )
    learner = PromptLearner(tower, seed=seed, **prompts)
    device = learner.vectors.device

    def loss_of(rows):
        part = features[rows]
        patches = [part.patches] if blocks is None else [part.tokens[b] for b in blocks]
        return glocal_loss(
            tensor(part.image).to(device),
            [tensor(x).to(device) for x in patches],
            learner(),
            labels[rows].to(device),
            masks[rows].to(device),
            part.grid,
            temperature,
            weight,
        )

    return learner, fit(
        learner, n, loss_of, epochs, batch_size, lr, seed, "learn prompts", progress
    )


# ---- checkpoints -----------------------------------------------------------------------------------------------------
def save(learner, path, **card):
    """Write the prompts as safetensors and beside them a JSON card; for ``card`` see :func:`.april_gan.save`."""
    save_checkpoint(learner, path, method="anomalyclip", prompts=learner.config, **card)


def load(path, tower):
    """(PromptLearner, card) written by :func:`save`; ``tower`` must be the text tower that it was trained with.

    Raises
    ------
    As :func:`.training.load_checkpoint`; RuntimeError when the weights do not fit the tower.
    """
    weights, card = load_checkpoint(path, "anomalyclip")
    learner = PromptLearner(tower, **card["prompts"])
    learner.load_state_dict(weights)
    return learner.eval().requires_grad_(False), card


def load_official(path, tower):
    """PromptLearner from a checkpoint of the official code (ViT-L-14-336, "openai", QuickGELU, 518 pixels).

    Raises
    ------
    ValueError when the file has another layout; RuntimeError when it does not fit the tower.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("prompt_learner") if isinstance(state, dict) else None
    if state is None or "ctx_pos" not in state:
        raise ValueError(
            f"{Path(path).name} has no 'prompt_learner' with 'ctx_pos': an AnomalyCLIP checkpoint (e.g. "
            "epoch_15.pth of its train.py) is wanted."
        )
    deep = [
        state[f"compound_prompts_text.{i}"]
        for i in range(sum("compound_prompts_text" in k for k in state))
    ]
    vectors = torch.stack(
        [state["ctx_pos"].reshape(-1, tower.width), state["ctx_neg"].reshape(-1, tower.width)]
    )
    learner = PromptLearner(tower, vectors.shape[1], len(deep) + 1, len(deep[0]) if deep else 0)
    learner.load_state_dict({"vectors": vectors, **{f"deep.{i}": x for i, x in enumerate(deep)}})
    return learner.eval().requires_grad_(False)
