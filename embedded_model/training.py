"""Train the embedded model's heads on procedural images: python -m embedded_model.training (make embedded).

No image of a real data set is used. Three steps, each resumable: encode generated images (good and faulty pieces in
pairs), encode captions, fit the heads. Same seed, same machine: same heads.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from joblib import Parallel, delayed
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from vlmad_procedural import generate
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
from vlmad_utils.paths import content_hash, sha256, store_dir

from . import RECORDS, captions

RECIPE = {
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


def plan(n, seed):
    """What to generate: n / 2 pairs of a faulty piece and a good piece of the same product line.

    Returns
    -------
    DataFrame: family, defect, seed, style_seed, area (share of the image), contrast; rows 2 i and 2 i + 1 are a pair.
    In half of the pairs the good image shows the very same piece, so that only the fault tells them apart.
    """
    rng = np.random.default_rng(seed)
    families = [name for name, family in generate.FAMILIES.items() if family.role == "train"]
    rows = []
    for i in range(n // 2):
        family = families[i % len(families)]
        kinds = generate.defects_of(family, "train")
        kind, style, piece = (
            kinds[rng.integers(len(kinds))],
            int(rng.integers(10**6)),
            int(rng.integers(10**6)),
        )
        area, contrast = (
            float(np.exp(rng.uniform(np.log(0.002), np.log(0.06)))),
            float(rng.uniform(0.4, 1)),
        )
        rows.append((family, kind, piece, style, area, contrast))
        rows.append((family, "good", piece + int(rng.random() < 0.5), style, None, None))
    return pd.DataFrame(
        rows, columns=["family", "defect", "seed", "style_seed", "area", "contrast"]
    )


def _draw(row, size):
    area, contrast = (None, None) if row.defect == "good" else (row.area, row.contrast)
    return generate.sample(row.family, row.defect, row.seed, row.style_seed, size, area, contrast)


def encode_images(rows, size, folder):
    """Tokens and mask coverage of generated images, from the cache in ``folder`` where they are already there.

    Returns
    -------
    x : (n, 1 + N, 3 C) float16, stacked and layer-normed tokens, CLS first
    coverage : (n, N) float32, share of each patch that the mask covers
    """
    folder.mkdir(parents=True, exist_ok=True)
    grid = size // 14
    tower = None
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
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
                tokens = []
                for batch in range(0, len(drawn), 24):
                    pixels = (
                        torch.from_numpy(
                            np.stack([image for image, _ in drawn[batch : batch + 24]])
                        ).float()
                        / 255
                    )
                    tokens.append(
                        _tokens(tower, ((pixels - mean) / std).permute(0, 3, 1, 2)).half()
                    )
                masks = torch.from_numpy(np.stack([mask for _, mask in drawn])).float()
                temporary = path.with_suffix(".part")
                save_file(
                    {
                        "x": torch.cat(tokens),
                        "coverage": F.avg_pool2d(masks[:, None], 14).flatten(1),
                    },
                    temporary,
                )
                os.replace(temporary, path)
            stored = load_file(path)
            x[start : start + len(part)], coverage[start : start + len(part)] = (
                stored["x"],
                stored["coverage"],
            )
            bar.update(len(part))
    return x, coverage


@torch.inference_mode()
def _tokens(tower, pixels):
    out = tower.forward_intermediates(
        pixels,
        indices=[b - 1 for b in HEAD_BLOCKS],
        return_prefix_tokens=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    return stack_tokens(
        {b: torch.cat([prefix, body], dim=1) for b, (body, prefix) in zip(HEAD_BLOCKS, out)}
    )


class CaptionBank:
    """Sentence embeddings of every noun x state in a few templates, drawn once."""

    def __init__(self, sentences, folder, variants, seed=0):
        self.families = [
            name for name, family in generate.FAMILIES.items() if family.role == "train"
        ]
        defects = [name for name, defect in generate.DEFECT_TYPES.items() if defect.role == "train"]
        owned = [(f, noun) for f in self.families for noun in captions.nouns(f)]
        owned += [("object", noun) for noun in captions.OBJECT_WORDS] + [
            ("other", noun) for noun in captions.OTHER_NOUNS
        ]
        states = [("good", s) for s in captions.NORMAL_STATES] + [
            ("bad", s) for s in captions.ANOMALOUS_STATES
        ]
        states += [(d, s) for d in defects for s in captions.defect_phrases(d)]
        self.nouns = {
            o: np.array([i for i, (p, _) in enumerate(owned) if p == o]) for o, _ in owned
        }
        self.states = {
            k: np.array([i for i, (p, _) in enumerate(states) if p == k]) for k, _ in states
        }
        self.defects = defects
        rng = np.random.default_rng(seed)
        texts = [
            captions.fill(captions.TEMPLATES[t], state, noun)
            for _, noun in owned
            for _, state in states
            for t in rng.choice(len(captions.TEMPLATES), variants, replace=False)
        ]
        path = (
            folder
            / f"captions-{content_hash(np.frombuffer(chr(10).join(texts).encode(), np.uint8))[:12]}.safetensors"
        )
        if not path.exists():
            parts = [
                sentences(texts[i : i + 4096])
                for i in tqdm(range(0, len(texts), 4096), desc="encode captions")
            ]
            temporary = path.with_suffix(".part")
            save_file({"e": torch.cat(parts).half()}, temporary)
            os.replace(temporary, path)
        self.embeddings = load_file(path)["e"].reshape(len(owned), len(states), variants, -1)

    def __call__(self, noun, state, rng):
        """Sentence embeddings (..., 384) float32 of noun and state numbers, template drawn."""
        return self.embeddings[noun, state, rng.integers(self.embeddings.shape[2])].float()


def shift_style(x, strength):
    """Move all patches of an image by the difference of the mean patches of two images, CLS by that of their CLS.

    So a fault is learnt as what departs from the rest of its image, not as a place in the feature space. Of each pair
    (rows 2 i and 2 i + 1, one product line) both get the same shift; 3 pairs in 10 stay as they are.

    x : (B, 1 + N, C), B even; strength : the largest share of the difference. Source: in the manner of MixStyle
    (arXiv 2104.02008), here on the mean alone.
    """
    pair = torch.arange(len(x)) // 2
    share = (strength * torch.rand(len(x) // 2) * (torch.rand(len(x) // 2) < 0.7))[pair, None, None]
    other = torch.randperm(len(x))[2 * pair]
    mean = torch.cat(
        [x[:, :1], x[:, 1:].mean(1, keepdim=True).expand(-1, x.shape[1] - 1, -1)], dim=1
    )
    return x + share * (mean[other] - mean)


def _patch_loss(logit, positive, counted):
    """Focal loss over patches; clear positives and clear negatives weigh alike whatever their number."""
    bce = F.binary_cross_entropy_with_logits(logit, positive.float(), reduction="none")
    p = torch.sigmoid(logit)
    focal = (1 - torch.where(positive, p, 1 - p)) ** 1.5 * bce * counted
    return 0.5 * focal[positive].sum() / positive.sum().clamp(min=1) + 4 * focal[
        ~positive
    ].mean(), p


def _contrast(logits, positive):
    """Symmetric InfoNCE with several positives a row."""

    def one(lg, ps):
        return (torch.logsumexp(lg, 1) - torch.logsumexp(lg.masked_fill(~ps, -1e9), 1)).mean()

    return one(logits, positive) + one(logits.T, positive.T)


def losses(heads, x, coverage, label, two_prompts, caption, same):
    """All terms of one batch.

    Parameters
    ----------
    x (B, 1 + N, 3 C); coverage (B, N); label (B,) 0/1; two_prompts (B, 2, P, 384) sentence embeddings of sampled normal
    and anomalous prompts; caption (B, 384) one caption an image; same (B, B) bool, captions that fit an image
    """
    hidden = heads.trunk(x[:, 1:])
    patches = F.normalize(heads.patch(hidden).float(), dim=-1)
    image = F.normalize(heads.image(hidden, x[:, 0]).float(), dim=-1)
    prototypes = F.normalize(
        F.normalize(heads.text(two_prompts), dim=-1).mean(2), dim=-1
    )  # (B, 2, D)
    logit = (
        torch.einsum("bnd,bd->bn", patches, prototypes[:, 1] - prototypes[:, 0])
        * heads.patch_scale.exp()
    )
    positive = coverage > 0.15
    counted = positive | (coverage < 0.02)
    focal, p = _patch_loss(logit, positive, counted)
    saliency, _ = _patch_loss(heads.saliency(hidden)[..., 0].float(), positive, counted)
    dice = (1 - (2 * (p * coverage).sum(1) + 1) / (p.sum(1) + coverage.sum(1) + 1)).mean()
    top = F.binary_cross_entropy_with_logits(logit.topk(4, 1).values.mean(1), label.float())
    two_way = F.cross_entropy(
        torch.einsum("bd,bcd->bc", image, prototypes) * heads.image_scale.exp(), label
    )
    words = F.normalize(heads.text(caption), dim=-1)
    return {
        "patch_focal": focal,
        "patch_dice": dice,
        "saliency": saliency,
        "top_patches": top,
        "image": two_way,
        "captions": _contrast(image @ words.T * heads.caption_scale.exp(), same),
    }


def draw_text(rows, bank, rng, prompts):
    """Sampled words for a batch: two_prompts (B, 2, P, 384) and caption (B, 384). The noun of the prompts is the
    image's own in half of the cases, else a general or a foreign one, so that the state is read whatever the noun."""
    normal, bad = bank.states["good"], bank.states["bad"]
    two, single = [], []
    shared = rng.choice(normal, prompts)
    for family, defect in zip(rows.family, rows.defect):
        u = rng.random()
        noun = rng.choice(bank.nouns[family if u < 0.5 else "object" if u < 0.75 else "other"])
        own = bank.states[
            defect if defect != "good" else bank.defects[rng.integers(len(bank.defects))]
        ]
        anomalous = rng.choice(bad if rng.random() < 0.7 else np.concatenate([bad, own]), prompts)
        two.append(torch.stack([bank(noun, shared, rng), bank(noun, anomalous, rng)]))
        words = normal if defect == "good" else np.concatenate([bad[:8], bank.states[defect]])
        single.append(bank(rng.choice(bank.nouns[family]), rng.choice(words), rng))
    return torch.stack(two), torch.stack(single)


def fit(groups, bank, recipe=RECIPE, seed=0, checkpoint=None, report=print):
    """Fit the heads; continues from ``checkpoint`` (a file, written after each epoch) when it is there.

    Parameters
    ----------
    groups : list of (rows, x, coverage), one for each image size; a batch is of one size

    Returns
    -------
    Heads in eval mode: the exponential moving average of the weights
    """
    torch.manual_seed(seed)
    heads = Heads(dropout=recipe["dropout"])
    averaged = AveragedModel(heads, multi_avg_fn=get_ema_multi_avg_fn(recipe["average"]))
    optimizer = torch.optim.AdamW(
        heads.parameters(), lr=recipe["lr"], weight_decay=recipe["weight_decay"]
    )
    size = recipe["batch_size"]
    per_epoch = sum(len(rows) // size for rows, _, _ in groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe["lr"], total_steps=recipe["epochs"] * per_epoch + 1, pct_start=0.1
    )
    kept = {"heads": heads, "averaged": averaged, "optimizer": optimizer, "schedule": schedule}
    done = 0
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for name, part in kept.items():
            part.load_state_dict(state[name])
        done = state["epoch"]
    facts = [
        (
            torch.from_numpy((rows.defect != "good").to_numpy(np.int64)),
            *(rows[c].astype("category").cat.codes.to_numpy() for c in ("family", "defect")),
        )
        for rows, _, _ in groups
    ]
    scales = (heads.patch_scale, heads.image_scale, heads.caption_scale)
    for epoch in range(done, recipe["epochs"]):
        rng = np.random.default_rng(
            [seed, epoch]
        )  # an epoch does not depend on where the run was interrupted
        torch.manual_seed(seed * 1000 + epoch)
        sums, began = {}, time.monotonic()
        for number, ix in batches_of([len(rows) for rows, _, _ in groups], size, rng):
            (rows, x, coverage), (label, family, kind) = groups[number], facts[number]
            two, single = draw_text(rows.iloc[ix], bank, rng, recipe["prompts_per_side"])
            same = torch.from_numpy((family[ix, None] == family[ix]) & (kind[ix, None] == kind[ix]))
            shifted = shift_style(x[ix].float(), recipe["style_shift"])
            with torch.autocast("cpu", torch.bfloat16):
                terms = losses(heads, shifted, coverage[ix], label[ix], two, single, same)
            loss = sum(recipe["loss"][name] * value.float() for name, value in terms.items())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(heads.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for scale in scales:
                    scale.clamp_(max=math.log(50))
            averaged.update_parameters(heads)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.item() / per_epoch
        report(
            f"seed {seed} epoch {epoch + 1}/{recipe['epochs']} ({time.monotonic() - began:.0f} s)  "
            + "  ".join(f"{name} {value:.3f}" for name, value in sums.items()),
            flush=True,
        )
        if checkpoint:
            temporary = checkpoint.with_suffix(".part")
            torch.save(
                {name: part.state_dict() for name, part in kept.items()} | {"epoch": epoch + 1},
                temporary,
            )
            os.replace(temporary, checkpoint)
    return averaged.module.eval()


def batches_of(lengths, size, rng):
    """Shuffled batches (group number, row numbers) of whole pairs, the groups mixed at random."""
    found = []
    for number, length in enumerate(lengths):
        order = (
            2 * rng.permutation(length // 2)[:, None] + [0, 1]
        ).ravel()  # pairs stay in one batch
        found += [
            (number, order[start : start + size]) for start in range(0, length // size * size, size)
        ]
    return [found[i] for i in rng.permutation(len(found))]


def save_heads(heads, folder, facts):
    """Write heads.safetensors (float16) and card.json with its hash; both or, at worst, a mismatch that load reports."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "heads.safetensors"
    save_file({k: v.detach().half().contiguous() for k, v in heads.state_dict().items()}, path)
    card = {"sha256": sha256(path), "heads": {}, **facts}
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return path


def prepare(recipe=RECIPE, cache=None):
    """Generated and encoded training data: groups of (rows, x, coverage), one for each image size; bank; cache folder."""
    cache = cache or store_dir() / "embedded_training"
    groups = []
    for number, (size, images) in enumerate(recipe["images"].items()):
        rows = plan(images, recipe["data_seed"] + 100 * number)
        name = content_hash(
            np.frombuffer((rows.to_csv() + str(generate.VERSION)).encode(), np.uint8)
        )[:12]
        x, coverage = encode_images(rows, int(size), cache / f"tokens-{size}-{name}")
        rows.loc[coverage.sum(1).numpy() == 0, "defect"] = (
            "good"  # the rare part fault that lies outside the frame
        )
        groups.append((rows, x, coverage))
    bank = CaptionBank(MiniLM(fetch.fetch(["minilm"])["minilm"]), cache, recipe["caption_variants"])
    return groups, bank, cache


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="how many training seeds (the first is shipped)"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the shipped heads")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    groups, bank, cache = prepare()
    for seed in range(options.seeds):
        checkpoint = (
            cache
            / f"seed{seed}-{content_hash(np.frombuffer(json.dumps(RECIPE).encode(), np.uint8))[:8]}.pt"
        )
        heads = fit(groups, bank, seed=seed, checkpoint=checkpoint)
        folder = options.out if seed == 0 else RECORDS.parent / f"{RECORDS.name}-seed{seed}"
        print(save_heads(heads, folder, {"seed": seed, "recipe": RECIPE}))
    print(
        f"{(time.monotonic() - began) / 60:.1f} minutes; measure with python -m embedded_model.evaluation"
    )


if __name__ == "__main__":
    main()
