"""Measure the embedded model.

    python -m embedded_model.evaluation [--folder CATEGORY=ROOT:OBJECT ...]

Zero-shot, training-free on every set named here: the heads saw procedural training families only.
Writes data/embedded/evaluation.csv (tidy rows with bootstrap intervals) and the model card next to
it, README.md; with --out X.csv the card is X.md. More than one training seed is measured when
data/embedded-seed1, ... exist (python -m embedded_model.training --seeds 3).
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from vlmad_procedural import FAMILIES
from vlmad_utils import data, evaluation
from vlmad_utils.data import fetch
from vlmad_utils.data.index import own_categories
from vlmad_utils.models import dinov2, prompts
from vlmad_utils.models.embedded import FOLDER, HEAD_BLOCKS, Embedded, load_heads, stack_tokens
from vlmad_utils.models.sentences import MiniLM

from . import RECORDS, captions
from .card import SIZES, card

RESULTS = RECORDS / "evaluation.csv"
TOP = 3  # patches in the patch score
VARIANTS = ("winclip", "swapped", "held-out synonyms", "plain words", "shuffled text head")

# of one set of prompts: image-head score (B,) and logit difference of the patches (B, h, w)
Scores = dict[str, tuple[np.ndarray, np.ndarray]]


def two_prompt_sets(model: Embedded, noun: str) -> dict[str, Tensor]:
    """Return the prototypes (2, D) of each of VARIANTS.

    These are the WinCLIP ensemble, the same swapped, words never trained with, trained plain words
    in the same form, and a text head with permuted inputs (must give chance).
    """
    held = {side: list(states) for side, states in captions.HELD_OUT_SYNONYMS.items()}
    plain = {"normal": ["perfect {}"], "anomalous": ["damaged {}", "broken {}"]}
    forms = {"templates": ["a photo of a {}.", "a close-up photo of the {}.", "{}"]}
    winclip = prompts.prototypes(model, noun, "winclip")
    order = np.random.default_rng(0).permutation(model.heads.text.in_features)
    permutation, shuffled = torch.from_numpy(order), []
    for side in prompts.compose(noun, "winclip"):
        with torch.inference_mode():
            z = F.normalize(model.heads.text(model.sentences(side)[:, permutation]), dim=-1)
        shuffled.append(F.normalize(z.mean(0), dim=-1))
    return {
        "winclip": winclip,
        "swapped": winclip.flip(0),
        "held-out synonyms": prompts.prototypes(model, noun, {**held, **forms}),
        "plain words": prompts.prototypes(model, noun, {**plain, **forms}),
        "shuffled text head": torch.stack(shuffled),
    }


@torch.inference_mode()
def score(
    models: Sequence[Embedded], index: pd.DataFrame, batch_size: int = 8
) -> tuple[list[Scores], list[np.ndarray]]:
    """Score all images with every model; the tower runs once.

    Returns
    -------
    one entry a model of {variant: (image-head score (B,), patch logit difference (B, h, w))},
        higher is more anomalous
    one entry a model of image embeddings (B, D)
    """
    first = models[0]
    nouns = dict.fromkeys(index.object_name)
    text = [{noun: two_prompt_sets(model, noun) for noun in nouns} for model in models]
    scores = [{variant: ([], []) for variant in VARIANTS} for _ in models]
    embeddings = [[] for _ in models]
    for start in tqdm(range(0, len(index), batch_size), desc=index.dataset.iloc[0], unit="batch"):
        part = index.iloc[start : start + batch_size]
        pixels = torch.stack([first.preprocess(data.read_image(path)) for path in part.image_path])
        _, taken = first.run(first.embed(pixels), HEAD_BLOCKS)
        x = stack_tokens(taken)
        for model, sets, found, kept in zip(models, text, scores, embeddings):
            hidden = model.heads.trunk(x[:, 1:])
            patches = F.normalize(model.heads.patch(hidden), dim=-1)
            image = F.normalize(model.heads.image(hidden, x[:, 0]), dim=-1)
            kept.append(image)
            for variant, (whole, maps) in found.items():
                t = torch.stack([sets[noun][variant] for noun in part.object_name])  # (b, 2, D)
                direction = t[:, 1] - t[:, 0]
                whole.append((image * direction).sum(-1))
                logits = (patches @ direction[..., None])[..., 0]
                maps.append(logits.unflatten(1, first.grid))
    return [_joined(found) for found in scores], [torch.cat(e).numpy() for e in embeddings]


def _joined(found: Mapping[str, tuple[list[Tensor], list[Tensor]]]) -> Scores:
    return {v: (torch.cat(a).numpy(), torch.cat(b).numpy()) for v, (a, b) in found.items()}


def top_patches(maps: np.ndarray) -> np.ndarray:
    """Return the mean of the TOP highest patches of each map (B, h, w) -> (B,)."""
    return np.sort(maps.reshape(len(maps), -1), axis=1)[:, -TOP:].mean(1)


def pixel_scores(
    maps: np.ndarray, index: pd.DataFrame, size: int = 224
) -> tuple[np.ndarray, np.ndarray]:
    """Return bilinear maps and masks (binarised first), both (B, size, size)."""
    up = F.interpolate(torch.from_numpy(maps)[:, None], size=(size, size), mode="bilinear")
    masks = np.stack([data.read_mask(path, size=(size, size)) for path in index.mask_path])
    return up[:, 0].numpy(), masks


def _metrics(
    variants: Scores, part: pd.DataFrame, brightness: np.ndarray, n: int
) -> list[tuple[str, str, str, evaluation.Interval]]:
    """Measure one model on one category: (metric, score, prompts, interval) of each row."""
    labels = part.label.to_numpy()
    rows = []
    for variant, (image, maps) in variants.items():
        top = evaluation.bootstrap(top_patches(maps), labels, n=n)
        rows.append(("image_auroc", "top patches", variant, top))
        whole = evaluation.bootstrap(image, labels, n=n)
        rows.append(("image_auroc", "image head", variant, whole))
        if variant == "winclip" and part.mask_path.notna().any():
            pixels = evaluation.pixel_bootstrap(*pixel_scores(maps, part), n=n)["pixel_auroc"]
            rows.append(("pixel_auroc", "map", variant, pixels))
    unusual = np.abs(brightness - np.median(brightness))
    trivial = evaluation.bootstrap(unusual, labels, n=n)
    return [*rows, ("image_auroc", "brightness baseline", "none", trivial)]


def evaluate(
    models: Sequence[Embedded], index: pd.DataFrame, size: int, n: int = 1000
) -> list[dict[str, Any]]:
    """Return tidy rows of one data set for all models (seeds), one group of rows a category."""
    rows = []
    for category, part in index[index.split == "test"].groupby("category", sort=True):
        part = part.reset_index(drop=True)
        scores, _ = score(models, part)
        brightness = np.array([data.read_image(path).mean() for path in part.image_path])
        facts = {"dataset": part.dataset[0], "category": category}
        counts = {"n_images": len(part), "n_anomalous": int(part.label.sum())}
        for seed, variants in enumerate(scores):
            base = {**facts, "seed": seed, "image_size": size, **counts}
            for metric, name, variant, interval in _metrics(variants, part, brightness, n):
                row = {**base, "metric": metric, "score": name, "prompts": variant}
                row |= {"value": interval.value, "low": interval.low, "high": interval.high}
                rows.append(row)
    return rows


def noun_retrieval(models: Sequence[Embedded], index: pd.DataFrame) -> tuple[list[float], float]:
    """Return how often the right noun is the nearest one, and the chance of that.

    For each model: the share of normal images whose family noun is the nearest of all families'
    nouns.
    """
    part = index[(index.label == 0) & (index.split == "test")].reset_index(drop=True)
    nouns = sorted(set(part.object_name))
    _, embeddings = score(models, part)
    found = []
    for model, image in zip(models, embeddings):
        forms = [prompts.embed(model, [f"a photo of a {n}.", n]).mean(0) for n in nouns]
        text = F.normalize(torch.stack(forms), dim=-1).numpy()
        nearest = (nouns[i] for i in (image @ text.T).argmax(1))
        found.append(float(np.mean([a == b for a, b in zip(nearest, part.object_name)])))
    return found, 1 / len(nouns)


def _sets(folders: Sequence[str]) -> list[pd.DataFrame]:
    """Return the indexes of the sets to measure; ``folders`` are CATEGORY=ROOT:OBJECT."""
    own = [index.assign(dataset="real") for index in own_categories(folders)]  # refused at once
    return [data.index("procedural"), data.index("elpv"), data.index("textile", limit=400), *own]


def card_path(out: Path) -> Path:
    """Return where the card goes: README.md for the usual table, else the table's name with .md.

    Raises
    ------
    ValueError for a table that would be the card.
    """
    if out.suffix == ".md":
        raise ValueError(f"--out {out} is the name of a card: give that of a table, e.g. own.csv")
    usual = out.resolve() == RESULTS.resolve()
    return out.with_name("README.md") if usual else out.with_suffix(".md")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder",
        action="append",
        default=[],
        metavar="CATEGORY=ROOT:OBJECT",
        help="an MVTec-like category of your own, e.g. cookie=sets/cookie:cookie",
    )
    about = "CSV of the rows, by default %(default)s; the card goes next to it"
    parser.add_argument("--out", type=Path, default=RESULTS, help=about)
    options = parser.parse_args(arguments)
    path = card_path(options.out)
    folders = [FOLDER, *sorted(RECORDS.parent.glob(f"{RECORDS.name}-seed*"))]
    tower, sentences = dinov2.load_tower(), MiniLM(fetch.fetch(["minilm"])["minilm"])
    models = {
        size: [Embedded(tower, sentences, load_heads(folder)[0], size) for folder in folders]
        for size in SIZES
    }
    sets, own = _sets(options.folder), models[SIZES[0]]
    rows = [row for size in SIZES for index in sets for row in evaluate(models[size], index, size)]
    shares, chance = noun_retrieval(own, sets[0])
    retrieval = {
        "dataset": "procedural",
        "category": "held-out families",
        "metric": "noun_retrieval",
        "score": "image head",
        "prompts": "nouns",
        "low": chance,
        "high": np.nan,
        "image_size": SIZES[0],
    }
    extra = [{**retrieval, "seed": seed, "value": share} for seed, share in enumerate(shares)]
    frame = pd.concat([pd.DataFrame(rows), pd.DataFrame(extra)], ignore_index=True)
    frame.round(4).to_csv(options.out, index=False)
    text = card(frame, own, load_heads(FOLDER)[1])
    path.write_text(text, encoding="utf-8")
    shown = frame[frame.prompts.isin(["winclip", "none", "nouns"])]
    columns = ["image_size", "metric", "score"]
    wide = shown.pivot_table(index=["dataset", "category"], columns=columns, values="value")
    print(wide.round(3).to_string())
    print("families:", ", ".join(n for n, family in FAMILIES.items() if family.role == "eval"))


if __name__ == "__main__":
    main()
