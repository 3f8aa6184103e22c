"""Measure the embedded model: python -m embedded_model.evaluation [--folder NAME=ROOT:OBJECT ...]

Zero-shot, training-free on every set named here: the heads saw procedural training families only. Writes
data/embedded/evaluation.csv (tidy rows with bootstrap intervals) and the model card beside it. More than one training
seed is measured when data/embedded-seed1, ... exist (python -m embedded_model.training --seeds 3).
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tqdm import tqdm

from vlmad_procedural import generate
from vlmad_utils import data, evaluation
from vlmad_utils.data import fetch
from vlmad_utils.models import dinov2, prompts
from vlmad_utils.models.embedded import FOLDER, HEAD_BLOCKS, Embedded, load_heads, stack_tokens
from vlmad_utils.models.sentences import MiniLM

from . import RECORDS, captions

TOP = 3  # patches in the patch score
SIZES = (224, 336)  # pixels; the first is the model's own
VARIANTS = ("winclip", "swapped", "held-out synonyms", "plain words", "shuffled text head")


def two_prompt_sets(model, noun):
    """{variant: prototypes (2, D)}: the WinCLIP ensemble, the same swapped, words never trained with, trained plain
    words in the same form, and a text head with permuted inputs (must give chance)."""
    held = {side: list(states) for side, states in captions.HELD_OUT_SYNONYMS.items()}
    plain = {"normal": ["perfect {}"], "anomalous": ["damaged {}", "broken {}"]}
    forms = {"templates": ["a photo of a {}.", "a close-up photo of the {}.", "{}"]}
    found = {
        "winclip": prompts.prototypes(model, noun, "winclip"),
        "held-out synonyms": prompts.prototypes(model, noun, {**held, **forms}),
        "plain words": prompts.prototypes(model, noun, {**plain, **forms}),
    }
    found["swapped"] = found["winclip"].flip(0)
    permutation = torch.from_numpy(
        np.random.default_rng(0).permutation(model.heads.text.in_features)
    )
    shuffled = []
    for side in prompts.compose(noun, "winclip"):
        with torch.inference_mode():
            z = F.normalize(model.heads.text(model.sentences(side)[:, permutation]), dim=-1)
        shuffled.append(F.normalize(z.mean(0), dim=-1))
    found["shuffled text head"] = torch.stack(shuffled)
    return {name: found[name] for name in VARIANTS}


@torch.inference_mode()
def score(models, index, batch_size=8):
    """Scores of all images with every model, the tower run once.

    Returns
    -------
    list (one entry a model) of {variant: (image-head score (B,), patch logit difference (B, h, w))}, higher is more
    anomalous, and list of image embeddings (B, D)
    """
    first = models[0]
    nouns = index.object_name.tolist()
    text = [
        {noun: two_prompt_sets(model, noun) for noun in dict.fromkeys(nouns)} for model in models
    ]
    found = [{variant: ([], []) for variant in VARIANTS} for _ in models]
    embeddings = [[] for _ in models]
    for start in tqdm(range(0, len(index), batch_size), desc=index.dataset.iloc[0], unit="batch"):
        part = index.iloc[start : start + batch_size]
        pixels = torch.stack([first.preprocess(data.read_image(path)) for path in part.image_path])
        _, taken = first.run(first.embed(pixels), HEAD_BLOCKS)
        x = stack_tokens(taken)
        for i, model in enumerate(models):
            hidden = model.heads.trunk(x[:, 1:])
            patches = F.normalize(model.heads.patch(hidden), dim=-1)
            image = F.normalize(model.heads.image(hidden, x[:, 0]), dim=-1)
            embeddings[i].append(image)
            for variant in VARIANTS:
                t = torch.stack([text[i][noun][variant] for noun in part.object_name])  # (b, 2, D)
                direction = t[:, 1] - t[:, 0]
                found[i][variant][0].append((image * direction).sum(-1))
                found[i][variant][1].append(
                    (patches @ direction[..., None])[..., 0].unflatten(1, first.grid)
                )
    return (
        [
            {v: tuple(torch.cat(p).numpy() for p in pair) for v, pair in one.items()}
            for one in found
        ],
        [torch.cat(e).numpy() for e in embeddings],
    )


def top_patches(maps):
    """Mean of the TOP highest patches of each map (B, h, w) -> (B,)."""
    return np.sort(maps.reshape(len(maps), -1), axis=1)[:, -TOP:].mean(1)


def pixel_scores(maps, index, size=224):
    """Maps bilinearly at size x size, and masks (binarised first), both (B, size, size)."""
    up = F.interpolate(torch.from_numpy(maps)[:, None], size=(size, size), mode="bilinear")[
        :, 0
    ].numpy()
    masks = np.stack([data.read_mask(path, size=(size, size)) for path in index.mask_path])
    return up, masks


def evaluate(models, index, size, n=1000):
    """Tidy rows of one data set for all models (seeds), one group of rows a category."""
    rows = []
    for category, part in index[index.split == "test"].groupby("category", sort=True):
        part = part.reset_index(drop=True)
        labels = part.label.to_numpy()
        pixels = part.mask_path.notna().any()
        scores, embeddings = score(models, part)
        brightness = np.array([data.read_image(path).mean() for path in part.image_path])
        for seed, variants in enumerate(scores):
            base = {
                "dataset": part.dataset[0],
                "category": category,
                "seed": seed,
                "image_size": size,
                "n_images": len(part),
                "n_anomalous": int(labels.sum()),
            }

            def add(metric, score_name, variant, interval, base=base):
                rows.append(
                    {
                        **base,
                        "metric": metric,
                        "score": score_name,
                        "prompts": variant,
                        "value": interval.value,
                        "low": interval.low,
                        "high": interval.high,
                    }
                )

            for variant, (image, maps) in variants.items():
                add(
                    "image_auroc",
                    "top patches",
                    variant,
                    evaluation.bootstrap(top_patches(maps), labels, n=n),
                )
                add("image_auroc", "image head", variant, evaluation.bootstrap(image, labels, n=n))
                if pixels and variant == "winclip":
                    up, masks = pixel_scores(maps, part)
                    add(
                        "pixel_auroc",
                        "map",
                        variant,
                        evaluation.pixel_bootstrap(up, masks, n=n)["pixel_auroc"],
                    )
            add(
                "image_auroc",
                "brightness baseline",
                "none",
                evaluation.bootstrap(np.abs(brightness - np.median(brightness)), labels, n=n),
            )
    return rows


def noun_retrieval(models, index):
    """Share of normal images whose family noun is the nearest of all families' nouns, per model; and chance."""
    part = index[(index.label == 0) & (index.split == "test")].reset_index(drop=True)
    nouns = sorted(set(part.object_name))
    _, embeddings = score(models, part)
    found = []
    for model, image in zip(models, embeddings):
        text = F.normalize(
            torch.stack([prompts.embed(model, [f"a photo of a {n}.", n]).mean(0) for n in nouns]),
            dim=-1,
        ).numpy()
        found.append(
            float(
                np.mean(
                    [
                        nouns[i] == name
                        for i, name in zip((image @ text.T).argmax(1), part.object_name)
                    ]
                )
            )
        )
    return found, 1 / len(nouns)


LOOKS = (
    "Both recipes were chosen on training families and kinds of defect held out for that purpose. With the first one the real sets were "
    "looked at once on samples with the heads of one more run, then by test runs of the notebooks 00 and 02, then in full over three seeds "
    "(elpv mono 0.867, poly 0.625; mean of cookie, ball_screw, pcb 0.739), then on samples at 448 pixels. Because that missed aims, the "
    "second recipe was made, without looking at the real sets again; the table above is its first and only full look, after test runs of "
    "notebooks on small samples of elpv and textile. The feasibility run that the design comes from had seen the same sets, and the "
    "generator was drawn by people who knew them."
)


def card(frame, models, facts):
    """Text of the model card, every number from ``frame`` (rows of this script), the heads and their recipe."""
    recipe = facts["recipe"]
    frame, larger = (frame[frame.image_size == size] for size in SIZES)
    winclip, larger = (f[f.prompts.isin(["winclip", "none"])] for f in (frame, larger))
    names = {
        ("image_auroc", "top patches"): "patches: image AUROC",
        ("image_auroc", "image head"): "image head: image AUROC",
        ("pixel_auroc", "map"): "patches: pixel AUROC",
        ("image_auroc", "brightness baseline"): "brightness: image AUROC",
    }
    more = [name for name in names if name[1] != "brightness baseline"]
    heads = [*names.values(), *(f"{names[name]} at {SIZES[1]} px" for name in more)]
    lines = ["| set | images | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(heads)]
    for (dataset, category), part in winclip.groupby(["dataset", "category"], sort=True):
        other = larger[(larger.dataset == dataset) & (larger.category == category)]
        cells = []
        for table, (metric, score_name) in [
            *((part, name) for name in names),
            *((other, name) for name in more),
        ]:
            one = table[(table.metric == metric) & (table.score == score_name)]
            cells.append(
                f"{one.value.mean():.3f} [{one.low.min():.3f}, {one.high.max():.3f}]"
                if len(one)
                else "-"
            )
        lines.append(
            f"| {dataset} {category} | {int(part.n_images.max())} | " + " | ".join(cells) + " |"
        )
    means = [
        held[(held.metric == m) & (held.score == s)].value.mean()
        for held, kinds in (
            (winclip[winclip.dataset == "procedural"], names),
            (larger[larger.dataset == "procedural"], more),
        )
        for m, s in kinds
    ]
    lines.append(
        "| **procedural, mean of held-out families** | | "
        + " | ".join(f"**{m:.3f}**" for m in means)
        + " |"
    )
    procedural = frame[(frame.dataset == "procedural") & (frame.score == "image head")]
    by = procedural.groupby("prompts").value.mean()
    retrieval = frame[frame.metric == "noun_retrieval"]
    words = (
        f"on the held-out families (image head) the AUROC is {by['winclip']:.3f}, {by['swapped']:.3f} with the two sides swapped, "
        f"{by['held-out synonyms']:.3f} with words never trained with (pristine; ruined, marred) against {by['plain words']:.3f} with "
        f"trained words in the same form, {by['shuffled text head']:.3f} with a shuffled text head; the name of the material is "
        f"retrieved among ten for {100 * retrieval.value.mean():.0f} % of normal images (chance {100 * retrieval.low.mean():.0f} %)."
    )
    roles = {
        role: [n for n, f in generate.FAMILIES.items() if f.role == role]
        for role in ("train", "eval")
    }
    return (
        (Path(__file__).parent / "card.md")
        .read_text(encoding="utf-8")
        .format(
            parameters=sum(p.numel() for p in models[0].heads.parameters()),
            images=" and ".join(f"{n:,} at {size}" for size, n in recipe["images"].items()),
            n_train=len(roles["train"]),
            eval_families=", ".join(roles["eval"]),
            eval_defects=", ".join(n for n, d in generate.DEFECT_TYPES.items() if d.role == "eval"),
            epochs=recipe["epochs"],
            batch=recipe["batch_size"],
            lr=recipe["lr"],
            dropout=recipe["dropout"],
            average=recipe["average"],
            shift=recipe["style_shift"],
            seeds=len(models),
            table="\n".join(lines),
            prompts=words,
            looks=LOOKS,
        )
    )


def main(arguments=None):
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
    parser.add_argument("--out", type=Path, default=RECORDS / "evaluation.csv")
    options = parser.parse_args(arguments)
    folders = [FOLDER, *sorted(RECORDS.parent.glob(f"{RECORDS.name}-seed*"))]
    tower, sentences = dinov2.load_tower(), MiniLM(fetch.fetch(["minilm"])["minilm"])
    held_out = data.index("procedural")
    sets = [held_out, data.index("elpv"), data.index("textile", limit=400)]
    for entry in options.folder:
        category, _, rest = entry.partition("=")
        root, _, noun = rest.rpartition(":")
        sets.append(
            data.index("folder", root=root).assign(
                dataset="real", category=category, object_name=noun
            )
        )
    rows = []
    for size in SIZES:
        models = [Embedded(tower, sentences, load_heads(folder)[0], size) for folder in folders]
        rows += [row for index in sets for row in evaluate(models, index, size)]
    frame, size = pd.DataFrame(rows), SIZES[0]
    models = [Embedded(tower, sentences, load_heads(folder)[0], size) for folder in folders]
    retrieval, chance = noun_retrieval(models, held_out)
    extra = [
        {
            "dataset": "procedural",
            "category": "held-out families",
            "seed": seed,
            "metric": "noun_retrieval",
            "score": "image head",
            "prompts": "nouns",
            "value": value,
            "low": chance,
            "high": np.nan,
            "image_size": size,
        }
        for seed, value in enumerate(retrieval)
    ]
    frame = pd.concat([frame, pd.DataFrame(extra)], ignore_index=True)
    frame.round(4).to_csv(options.out, index=False)
    options.out.with_name("README.md").write_text(
        card(frame, models, load_heads(FOLDER)[1]), encoding="utf-8"
    )
    wide = frame[frame.prompts.isin(["winclip", "none", "nouns"])].pivot_table(
        index=["dataset", "category"], columns=["image_size", "metric", "score"], values="value"
    )
    print(wide.round(3).to_string())
    print(
        "families:",
        ", ".join(name for name, family in generate.FAMILIES.items() if family.role == "eval"),
    )


if __name__ == "__main__":
    main()
