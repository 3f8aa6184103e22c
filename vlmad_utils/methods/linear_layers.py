"""The linear layers that APRIL-GAN trains, and their checkpoints."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .scores import Encoded, beside
from .training import load_checkpoint, official_weights, save_checkpoint

OFFICIAL_BLOCKS = (6, 12, 18, 24)  # of ViT-L-14-336 at 518 pixels


class LinearLayers(nn.Module):
    """Project the tokens of each block by one linear layer C -> D.

    Parameters
    ----------
    blocks : block numbers, from 1
    width, dim : C and D
    seed : of the initial weights; the caller's random numbers are not touched

    Source: APRIL-GAN, zero-shot; ``fc`` is the official name of the weights.
    """

    def __init__(self, blocks: Sequence[int], width: int, dim: int, seed: int = 111) -> None:
        super().__init__()
        self.blocks, self.width, self.dim = tuple(int(b) for b in blocks), int(width), int(dim)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # manual_seed would reseed GPUs
            self.fc = nn.ModuleList([nn.Linear(self.width, self.dim) for _ in self.blocks])
        self._copies: dict[Any, tuple[Sequence[Any], list[int], LinearLayers]] = {}

    def forward(self, tokens: Mapping[int, torch.Tensor]) -> list[torch.Tensor]:
        """Project {block: (B, N, C)} to a list of (B, N, D), in the order of ``blocks``."""
        for b in self.blocks:
            if b not in tokens or tokens[b].shape[-1] != self.width:
                found = {key: tokens[key].shape[-1] for key in tokens.keys()}
                raise ValueError(
                    f"These layers want tokens of block {b} with width {self.width}, found "
                    f"{found}: encode with the backbone they were trained on and "
                    f"blocks={self.blocks}."
                )
        return [layer(tokens[b]) for layer, b in zip(self.fc, self.blocks, strict=True)]

    def project(self, features: Encoded) -> list[torch.Tensor]:
        """Project the tokens of encoded images to a list over blocks of (B, N, D).

        Tokens go to the device and type of the weights: see :meth:`beside`.
        """
        weight = next(self.parameters())
        return self({b: beside(features.tokens[b], weight) for b in self.blocks})

    def beside(self, other: torch.Tensor) -> "LinearLayers":
        """Return the layers on the device of a tensor and of its type; a copy, if it differs.

        The copy is kept until the weights change, so that not each batch makes one.
        """
        weights = list(self.parameters())
        if weights[0].device == other.device and weights[0].dtype == other.dtype:
            return self
        if any(weight.is_inference() for weight in weights):  # nobody counts their changes
            return copy.deepcopy(self).to(other.device, other.dtype)
        key, versions = (other.device, other.dtype), [weight._version for weight in weights]
        of, known, found = self._copies.get(key, ((), [], self))
        if known != versions or any(one is not two for one, two in zip(of, weights)):
            found = copy.deepcopy(self).to(other.device, other.dtype)
            self._copies[key] = weights, versions, found
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy holds: not the copies of these layers on other devices."""
        return {**self.__dict__, "_copies": {}}


def save(layers: LinearLayers, path: Path | str, **card: Any) -> None:
    """Write the weights as safetensors, and a JSON card of the same name next to them.

    Parameters
    ----------
    path : ends in .safetensors; the card gets the suffix .json
    card : what a reader must know, e.g. backbone=model.name, identity=model.identity, trained_on=,
        prompts=, epochs=, lr=, seed=, licence=
    """
    shape = {"blocks": layers.blocks, "width": layers.width, "dim": layers.dim}
    save_checkpoint(layers, path, method="april_gan", **shape, **card)


def load(
    path: Path | str, device: str | torch.device = "cpu"
) -> tuple[LinearLayers, dict[str, Any]]:
    """Return (LinearLayers, card) written by :func:`save`.

    Parameters
    ----------
    device : of the layers; weights that were trained on a GPU load on a CPU, and the reverse

    Raises
    ------
    As :func:`.training.load_checkpoint`; RuntimeError when weights and card do not fit.
    """
    weights, card = load_checkpoint(path, "april_gan")
    layers = LinearLayers(card["blocks"], card["width"], card["dim"])
    layers.load_state_dict(weights)
    return layers.eval().requires_grad_(False).to(device), card


def load_official(path: Path | str, blocks: Sequence[int] = OFFICIAL_BLOCKS) -> LinearLayers:
    """Return LinearLayers from a checkpoint of the official code.

    Use them with ``models.load("ViT-L-14-336", "openai", image_size=518, quick_gelu=False)``. The
    official results have this mismatch: exact GELU with weights that were trained for QuickGELU.

    Raises
    ------
    ValueError when the file has another layout.
    """
    weights = official_weights(path, "APRIL-GAN", "trainable_linearlayer", "fc.0.weight")
    weights = {name: value.float() for name, value in weights.items()}
    if len(weights) != 2 * len(blocks):
        raise ValueError(
            f"The checkpoint has {len(weights) // 2} layers, blocks={tuple(blocks)} names "
            f"{len(blocks)}."
        )
    dim, width = weights["fc.0.weight"].shape
    layers = LinearLayers(blocks, width, dim)
    layers.load_state_dict(weights)
    return layers.eval().requires_grad_(False)
