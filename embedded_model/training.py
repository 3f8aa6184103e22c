"""Train the embedded model's heads on procedural images.

    python -m embedded_model.training          (make embedded)

No image of a real data set is used. Three steps, each resumable: encode generated images (good and
defective pieces in pairs), encode captions, fit the heads. Same seed, same machine: same heads.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from joblib import Parallel, delayed
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from vlmad_procedural import FAMILIES, defects_of, sample
from vlmad_procedural.generate import VERSION
from vlmad_utils.data import fetch
from vlmad_utils.models import dinov2
from vlmad_utils.models.embedded import (
    FOLDER,
    HEAD_BLOCKS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Heads,
    stack_tokens,
)
from vlmad_utils.models.sentences import MiniLM
from vlmad_utils.paths import atomic_write, sha256, store_dir

from . import RECORDS
from .bank import Bank, CaptionBank, draw_text, text_hash
from .losses import losses, shift_style

RECIPE: dict[str, Any] = {
    "images": {"224": 6000, "336": 1500},
    "data_seed": 2,
    "epochs": 8,
    "batch_size": 32,
    "lr": 1e-3,
    "weight_decay": 0.05,
    "dropout": 0.3,
    "average": 0.998,
    "style_shift": 0.7,
    "caption_variants": 2,
    "prompts_per_side": 4,
    "loss": {
        "patch_focal": 1.0,
        "patch_dice": 1.0,
        "saliency": 0.3,
        "top_patches": 0.3,
        "image": 1.0,
        "captions": 0.2,
    },
}
CHUNK = 120  # images per file of the token cache
BATCH = 24  # images encoded at once

Group = tuple[pd.DataFrame, Tensor, Tensor]  # rows of plan, tokens x and coverage of one size


def plan(n: int, seed: int) -> pd.DataFrame:
    """Plan what to generate: n / 2 pairs of a defective and a good piece of one product line.

    Returns
    -------
    DataFrame: family, defect, seed, style_seed, area (share of the image), contrast. Rows 2 i and
    2 i + 1 are a pair. In half of the pairs the good image shows the very same piece, so that only
    the defect tells them apart.
    """
    rng = np.random.default_rng(seed)
    families = [name for name, family in FAMILIES.items() if family.role == "train"]
    rows: list[tuple[Any, ...]] = []
    for i in range(n // 2):
        family = families[i % len(families)]
        kinds = defects_of(family, "train")
        kind = kinds[rng.integers(len(kinds))]
        style, piece = int(rng.integers(10**6)), int(rng.integers(10**6))
        area = float(np.exp(rng.uniform(np.log(0.002), np.log(0.06))))
        rows.append((family, kind, piece, style, area, float(rng.uniform(0.4, 1))))
        rows.append((family, "good", piece + int(rng.random() < 0.5), style, None, None))
    columns = ["family", "defect", "seed", "style_seed", "area", "contrast"]
    return pd.DataFrame(rows, columns=columns)


def _draw(row: Any, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the image and mask of a row of :func:`plan`."""
    area, contrast = (None, None) if row.defect == "good" else (row.area, row.contrast)
    return sample(row.family, row.defect, row.seed, row.style_seed, size, area, contrast)


def encode_images(rows: pd.DataFrame, size: int, folder: Path) -> tuple[Tensor, Tensor]:
    """Generate and encode the images of a plan; those already in ``folder`` are read.

    Returns
    -------
    x : (n, 1 + N, 3 C) float16, stacked and layer-normed tokens, CLS first
    coverage : (n, N) float32, share of each patch that the mask covers
    """
    grid = size // 14
    tower = None
    x = torch.empty(len(rows), 1 + grid * grid, 3 * 384, dtype=torch.float16)
    coverage = torch.empty(len(rows), grid * grid)
    with (
        tqdm(total=len(rows), desc="generate and encode", unit="image") as bar,
        Parallel(n_jobs=-1) as pool,
    ):
        for start in range(0, len(rows), CHUNK):
            part = rows.iloc[start : start + CHUNK]
            path = folder / f"{start:06d}.safetensors"
            if not path.exists():
                tower = tower or dinov2.load_tower()
                drawn = pool(delayed(_draw)(row, size) for row in part.itertuples())
                images, masks = (np.stack(arrays) for arrays in zip(*drawn))
                share = F.avg_pool2d(torch.from_numpy(masks).float()[:, None], 14).flatten(1)
                batches = (images[i : i + BATCH] for i in range(0, len(images), BATCH))
                tokens = torch.cat([_tokens(tower, batch) for batch in batches])
                with atomic_write(path) as temporary:
                    save_file({"x": tokens, "coverage": share}, temporary)
            stored = load_file(path)
            x[start : start + len(part)] = stored["x"]
            coverage[start : start + len(part)] = stored["coverage"]
            bar.update(len(part))
    return x, coverage


@torch.inference_mode()
def _tokens(tower: Any, images: np.ndarray) -> Tensor:
    """Encode images (B, S, S, 3) uint8 to tokens (B, 1 + N, 3 C) float16."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    pixels = (torch.from_numpy(images).float() / 255 - mean) / std
    out = tower.forward_intermediates(
        pixels.permute(0, 3, 1, 2),
        indices=[b - 1 for b in HEAD_BLOCKS],
        return_prefix_tokens=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    both = {b: torch.cat([prefix, body], dim=1) for b, (body, prefix) in zip(HEAD_BLOCKS, out)}
    return stack_tokens(both).half()


class _Run(NamedTuple):
    """All that changes in training, and its checkpoint."""

    heads: Heads
    averaged: AveragedModel
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler

    @classmethod
    def start(cls, recipe: Mapping[str, Any], steps: int) -> "_Run":
        """Set up training over ``steps`` batches."""
        lr = recipe["lr"]
        heads = Heads(dropout=recipe["dropout"])
        averaged = AveragedModel(heads, multi_avg_fn=get_ema_multi_avg_fn(recipe["average"]))
        decay = recipe["weight_decay"]
        optimizer = torch.optim.AdamW(heads.parameters(), lr=lr, weight_decay=decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, lr, total_steps=steps + 1, pct_start=0.1
        )
        return cls(heads, averaged, optimizer, schedule)

    def load(self, path: Path) -> int:
        """Read a checkpoint and return the number of epochs done."""
        state = torch.load(path, weights_only=True)
        for name, part in self._asdict().items():
            part.load_state_dict(state[name])
        return state["epoch"]

    def save(self, path: Path, epoch: int) -> None:
        """Write a checkpoint after ``epoch`` epochs."""
        state = {name: part.state_dict() for name, part in self._asdict().items()}
        with atomic_write(path) as temporary:
            torch.save(state | {"epoch": epoch}, temporary)

    def step(self, loss: Tensor) -> None:
        """Take one step down the gradient of ``loss``."""
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.heads.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        with torch.no_grad():
            for name in ("patch_scale", "image_scale", "caption_scale"):
                getattr(self.heads, name).clamp_(max=math.log(50))
        self.averaged.update_parameters(self.heads)


def _labels(rows: pd.DataFrame) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Return the label (n,), and numbers of the family and of the defect (n,)."""
    family, defect = (rows[c].astype("category").cat.codes.to_numpy() for c in ("family", "defect"))
    return torch.from_numpy((rows.defect != "good").to_numpy(np.int64)), family, defect


def _epoch(
    run: _Run,
    groups: Sequence[Group],
    bank: Bank,
    recipe: Mapping[str, Any],
    rng: np.random.Generator,
) -> dict[str, float]:
    """Train one epoch and return the mean of each loss term."""
    labels = [_labels(rows) for rows, _, _ in groups]
    batches = batches_of([len(rows) for rows, _, _ in groups], recipe["batch_size"], rng)
    means: dict[str, float] = {}
    for number, ix in batches:
        (rows, x, coverage), (label, family, kind) = groups[number], labels[number]
        two, single = draw_text(rows.iloc[ix], bank, rng, recipe["prompts_per_side"])
        same = torch.from_numpy((family[ix, None] == family[ix]) & (kind[ix, None] == kind[ix]))
        shifted = shift_style(x[ix].float(), recipe["style_shift"])
        with torch.autocast("cpu", torch.bfloat16):
            terms = losses(run.heads, shifted, coverage[ix], label[ix], two, single, same)
        weighted = (recipe["loss"][name] * value.float() for name, value in terms.items())
        run.step(sum(weighted, torch.zeros(())))
        for name, value in terms.items():
            means[name] = means.get(name, 0.0) + value.item() / len(batches)
    return means


def fit(
    groups: Sequence[Group],
    bank: Bank,
    recipe: Mapping[str, Any] = RECIPE,
    seed: int = 0,
    checkpoint: Path | None = None,
    report: Callable[..., Any] = print,
) -> Heads:
    """Fit the heads; continue from ``checkpoint`` when it is there.

    Parameters
    ----------
    groups : (rows, x, coverage), one for each image size; a batch is of one size
    bank : draws the words
    recipe : as RECIPE
    seed : of weights and batches
    checkpoint : a file, written after each epoch
    report : called with a line of text after each epoch

    Returns
    -------
    Heads in eval mode: the exponential moving average of the weights
    """
    torch.manual_seed(seed)
    epochs, size = recipe["epochs"], recipe["batch_size"]
    run = _Run.start(recipe, epochs * sum(len(rows) // size for rows, _, _ in groups))
    done = run.load(checkpoint) if checkpoint and checkpoint.exists() else 0
    for epoch in range(done, epochs):
        # an epoch does not depend on where the run was interrupted
        rng = np.random.default_rng([seed, epoch])
        torch.manual_seed(seed * 1000 + epoch)
        began = time.monotonic()
        means = _epoch(run, groups, bank, recipe, rng)
        terms = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        took = f"{time.monotonic() - began:.0f} s"
        report(f"seed {seed} epoch {epoch + 1}/{epochs} ({took})  {terms}", flush=True)
        if checkpoint:
            run.save(checkpoint, epoch + 1)
    averaged = run.averaged.module.eval()
    assert isinstance(averaged, Heads)
    return averaged


def batches_of(
    lengths: Sequence[int], size: int, rng: np.random.Generator
) -> list[tuple[int, np.ndarray]]:
    """Shuffle batches (group number, row numbers) of whole pairs, the groups mixed at random."""
    found = []
    for number, length in enumerate(lengths):
        pairs = 2 * rng.permutation(length // 2)[:, None] + [0, 1]  # pairs stay in one batch
        starts = range(0, length // size * size, size)
        found += [(number, pairs.ravel()[start : start + size]) for start in starts]
    return [found[i] for i in rng.permutation(len(found))]


def save_heads(heads: Heads, folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write heads.safetensors (float16) and card.json with its hash.

    Both are written or, at worst, a mismatch that load reports.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "heads.safetensors"
    save_file({k: v.detach().half().contiguous() for k, v in heads.state_dict().items()}, path)
    card = {"sha256": sha256(path), "heads": {}, **facts}
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return path


def prepare(
    recipe: Mapping[str, Any] = RECIPE, cache: Path | None = None
) -> tuple[list[Group], CaptionBank, Path]:
    """Generate and encode the training data, or read it from ``cache``.

    Returns
    -------
    groups : (rows, x, coverage), one for each image size
    bank : the encoded captions
    cache : its folder
    """
    cache = cache or store_dir() / "embedded_training"
    groups: list[Group] = []
    for number, (size, images) in enumerate(recipe["images"].items()):
        rows = plan(images, recipe["data_seed"] + 100 * number)
        name = text_hash(rows.to_csv() + str(VERSION))[:12]
        x, coverage = encode_images(rows, int(size), cache / f"tokens-{size}-{name}")
        # the rare part defect that lies outside the frame
        rows.loc[coverage.sum(1).numpy() == 0, "defect"] = "good"
        groups.append((rows, x, coverage))
    sentences = MiniLM(fetch.fetch(["minilm"])["minilm"])
    return groups, CaptionBank(sentences, cache, recipe["caption_variants"]), cache


def checkpoint_name(seed: int, groups: Sequence[Group], bank: CaptionBank) -> str:
    """Return the name of a checkpoint: of the seed, the recipe, the images and the captions."""
    images = [text_hash(rows.to_csv()) for rows, _, _ in groups]
    made_of = json.dumps([RECIPE, VERSION, images, bank.name])
    return f"seed{seed}-{text_hash(made_of)[:12]}.pt"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    seeds = "how many training seeds (the first is shipped)"
    parser.add_argument("--seeds", type=int, default=1, help=seeds)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the shipped heads")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    groups, bank, cache = prepare()
    for seed in range(options.seeds):
        checkpoint = cache / checkpoint_name(seed, groups, bank)
        heads = fit(groups, bank, seed=seed, checkpoint=checkpoint)
        folder = options.out if seed == 0 else RECORDS.parent / f"{RECORDS.name}-seed{seed}"
        print(save_heads(heads, folder, {"seed": seed, "recipe": RECIPE}))
    minutes = (time.monotonic() - began) / 60
    print(f"{minutes:.1f} minutes; measure with python -m embedded_model.evaluation")


if __name__ == "__main__":
    main()
