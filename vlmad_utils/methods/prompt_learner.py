"""The prompts that AnomalyCLIP learns, and their checkpoints."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..models.text_towers import TextTower, overwritten
from .training import load_checkpoint, official_weights, save_checkpoint

ENDINGS = ("object.", "damaged object.")


class PromptLearner(nn.Module):
    """Learn two prompts that name no class, with free tokens inside the text tower.

    Parameters
    ----------
    tower : text tower; it is used, never trained, and not part of the state
    n_vectors : free vectors before "object." and before "damaged object."
    depth, length : text blocks 2..depth get ``length`` free tokens each, which overwrite those
        after the start token (issue #75 of the official code); a tower with fewer blocks gets
        fewer. depth=1: none
    seed : initial values are N(0, 0.02^2)

    Raises
    ------
    ValueError when the tokenizer does not give one token per placeholder, or deep tokens would
    overwrite the words.

    Source: AnomalyCLIP, object-agnostic text prompts; refinement of the textual space.
    """

    tower: TextTower

    def __init__(
        self,
        tower: TextTower,
        n_vectors: int = 12,
        depth: int = 9,
        length: int = 4,
        seed: int = 111,
    ) -> None:
        super().__init__()
        self.__dict__["tower"] = tower  # not a submodule
        self.config = {"n_vectors": n_vectors, "depth": depth, "length": length, "seed": seed}
        self.ids, self.mask = tower.tokenize(["X " * n_vectors + words for words in ENDINGS])
        free = self.ids[:, 1 : 1 + n_vectors]
        if n_vectors and not (free == free[0, 0]).all():
            raise ValueError(
                "This tokenizer does not give one token per placeholder X, so prompts cannot be "
                "learned."
            )
        self.fixed = tower.embed_tokens(self.ids).detach().clone()  # (2, L, width), without graph
        rng, width = torch.Generator().manual_seed(seed), tower.width

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=rng).mul(0.02).to(self.fixed.device))

        self.vectors = parameter(2, n_vectors, width)
        n_deep = min(depth, len(tower.blocks)) - 1
        if n_deep > 0 and length > n_vectors:
            raise ValueError(
                f"length={length} tokens in the tower would overwrite more than the "
                f"n_vectors={n_vectors} free vectors: expected length <= n_vectors, or depth=1."
            )
        self.deep = nn.ParameterList(parameter(length, width) for _ in range(n_deep))

    def forward(self) -> torch.Tensor:
        """Return (2, D), unit length, row 0 normal, row 1 anomalous; differentiable."""
        n = self.config["n_vectors"]
        embeddings = torch.cat([self.fixed[:, :1], self.vectors, self.fixed[:, 1 + n :]], dim=1)
        with overwritten(self.tower.blocks, self.deep):
            text = self.tower.encode_embeddings(embeddings, self.ids, self.mask)
            return F.normalize(text.float(), dim=-1)

    @torch.no_grad()
    def prototypes(self) -> torch.Tensor:
        """Return the learned prototypes (2, D) float32 on the CPU, for scoring."""
        return self().cpu()


def save(learner: PromptLearner, path: Path | str, **card: Any) -> None:
    """Write the prompts as safetensors, and a JSON card of the same name next to them.

    For ``card`` see :func:`.april_gan.save`.
    """
    save_checkpoint(learner, path, method="anomalyclip", prompts=learner.config, **card)


def load(path: Path | str, tower: TextTower) -> tuple[PromptLearner, dict[str, Any]]:
    """Return (PromptLearner, card) written by :func:`save`.

    Parameters
    ----------
    tower : the text tower that the prompts were trained with

    Raises
    ------
    As :func:`.training.load_checkpoint`; RuntimeError when the weights do not fit the tower.
    """
    weights, card = load_checkpoint(path, "anomalyclip")
    learner = PromptLearner(tower, **card["prompts"])
    learner.load_state_dict(weights)
    return learner.eval().requires_grad_(False), card


def load_official(path: Path | str, tower: TextTower) -> PromptLearner:
    """Return a PromptLearner from a checkpoint of the official code.

    It was trained with ViT-L-14-336, "openai", QuickGELU, 518 pixels.

    Raises
    ------
    ValueError when the file has another layout; RuntimeError when it does not fit the tower.
    """
    state = official_weights(path, "AnomalyCLIP", "prompt_learner", "ctx_pos")
    depth = sum("compound_prompts_text" in name for name in state)
    deep = [state[f"compound_prompts_text.{i}"] for i in range(depth)]
    context = [state[name].reshape(-1, tower.width) for name in ("ctx_pos", "ctx_neg")]
    learner = PromptLearner(tower, len(context[0]), depth + 1, len(deep[0]) if deep else 0)
    weights = {"vectors": torch.stack(context), **{f"deep.{i}": x for i, x in enumerate(deep)}}
    learner.load_state_dict(weights)
    return learner.eval().requires_grad_(False)
