"""The sentence embeddings of all captions, drawn at random in training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from vlmad_procedural import DEFECT_TYPES, FAMILIES
from vlmad_utils.paths import atomic_write, content_hash

from . import captions


class Bank(Protocol):
    """What :func:`draw_text` needs: numbers of nouns and states by owner, and their embeddings.

    nouns : {family, "object" or "other": numbers}
    states : {"good", "bad" or a defect: numbers}
    defects : the defects of training
    """

    nouns: dict[str, np.ndarray]
    states: dict[str, np.ndarray]
    defects: list[str]

    def __call__(self, noun: Any, state: Any, rng: np.random.Generator) -> Tensor:
        """Return sentence embeddings (..., 384) of noun and state numbers."""
        ...


def text_hash(text: str) -> str:
    """Return the hash of a text that names a cached file."""
    return content_hash(np.frombuffer(text.encode(), np.uint8))


def _numbers(owners: list[str]) -> dict[str, np.ndarray]:
    return {o: np.array([i for i, p in enumerate(owners) if p == o]) for o in dict.fromkeys(owners)}


class CaptionBank:
    """Sentence embeddings of every noun x state in a few templates, drawn once.

    Parameters
    ----------
    sentences : texts -> embeddings (B, 384)
    folder : of the cache
    variants : templates for each pair of noun and state
    seed : of the choice of templates
    """

    def __init__(
        self, sentences: Callable[[list[str]], Tensor], folder: Path, variants: int, seed: int = 0
    ) -> None:
        self.families = [name for name, family in FAMILIES.items() if family.role == "train"]
        self.defects = [name for name, defect in DEFECT_TYPES.items() if defect.role == "train"]
        nouns = [(f, noun) for f in self.families for noun in captions.nouns(f)]
        nouns += [("object", noun) for noun in captions.OBJECT_WORDS]
        nouns += [("other", noun) for noun in captions.OTHER_NOUNS]
        states = [("good", s) for s in captions.NORMAL_STATES]
        states += [("bad", s) for s in captions.ANOMALOUS_STATES]
        states += [(d, s) for d in self.defects for s in captions.defect_phrases(d)]
        self.nouns = _numbers([owner for owner, _ in nouns])
        self.states = _numbers([owner for owner, _ in states])
        rng = np.random.default_rng(seed)
        texts = [
            captions.fill(captions.TEMPLATES[t], state, noun)
            for _, noun in nouns
            for _, state in states
            for t in rng.choice(len(captions.TEMPLATES), variants, replace=False)
        ]
        self.name = f"captions-{text_hash(chr(10).join(texts))[:12]}"
        path = folder / f"{self.name}.safetensors"
        if not path.exists():
            starts = tqdm(range(0, len(texts), 4096), desc="encode captions")
            parts = [sentences(texts[i : i + 4096]) for i in starts]
            with atomic_write(path) as temporary:
                save_file({"e": torch.cat(parts).half()}, temporary)
        self.embeddings = load_file(path)["e"].reshape(len(nouns), len(states), variants, -1)

    def __call__(self, noun: Any, state: Any, rng: np.random.Generator) -> Tensor:
        """Return embeddings (..., 384) float32 of noun and state numbers, template drawn."""
        return self.embeddings[noun, state, rng.integers(self.embeddings.shape[2])].float()


def draw_text(
    rows: pd.DataFrame, bank: Bank, rng: np.random.Generator, prompts: int
) -> tuple[Tensor, Tensor]:
    """Draw words for a batch of images.

    The noun of the prompts is the image's own in half of the cases, else a general or a foreign
    one, so that the state is read whatever the noun.

    Returns
    -------
    two_prompts : (B, 2, P, 384) of P = ``prompts`` normal and anomalous prompts
    caption : (B, 384)
    """
    normal, bad = bank.states["good"], bank.states["bad"]
    two, single = [], []
    shared = rng.choice(normal, prompts)
    for family, defect in zip(rows.family, rows.defect):
        u = rng.random()
        owner = family if u < 0.5 else "object" if u < 0.75 else "other"
        noun = rng.choice(bank.nouns[owner])
        named = defect if defect != "good" else bank.defects[rng.integers(len(bank.defects))]
        both = np.concatenate([bad, bank.states[named]])
        anomalous = rng.choice(bad if rng.random() < 0.7 else both, prompts)
        two.append(torch.stack([bank(noun, shared, rng), bank(noun, anomalous, rng)]))
        words = normal if defect == "good" else np.concatenate([bad[:8], bank.states[defect]])
        single.append(bank(rng.choice(bank.nouns[family]), rng.choice(words), rng))
    return torch.stack(two), torch.stack(single)
