"""The model card: every number comes from the evaluation, the heads and their recipe."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vlmad_procedural import DEFECT_TYPES, FAMILIES
from vlmad_utils.models.embedded import Embedded

SIZES = (224, 336)  # pixels; the first is the model's own
COLUMNS = {  # (metric, score) of the evaluation: its heading
    ("image_auroc", "top patches"): "patches: image AUROC",
    ("image_auroc", "image head"): "image head: image AUROC",
    ("pixel_auroc", "map"): "patches: pixel AUROC",
    ("image_auroc", "brightness baseline"): "brightness: image AUROC",
}
LARGER = [name for name in COLUMNS if name[1] != "brightness baseline"]  # again at the second size
LOOKS = (
    "Both recipes were chosen on training families and kinds of defect held out for that purpose. "
    "With the first one the real sets were looked at once on samples with the heads of one more "
    "run, then by test runs of the notebooks 00 and 02, then in full over three seeds (elpv mono "
    "0.867, poly 0.625; mean of cookie, ball_screw, pcb 0.739), then on samples at 448 pixels. "
    "Because that missed aims, the second recipe was made, without looking at the real sets again; "
    "the table above is its first and only full look, after test runs of notebooks on small "
    "samples of elpv and textile. The feasibility run that the design comes from had seen the same "
    "sets, and the generator was drawn by people who knew them."
)


def _cell(rows: pd.DataFrame, metric: str, score: str) -> str:
    """Write the mean over seeds and the widest interval of one score, "-" without rows."""
    one = rows[(rows.metric == metric) & (rows.score == score)]
    if not len(one):
        return "-"
    return f"{one.value.mean():.3f} [{one.low.min():.3f}, {one.high.max():.3f}]"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _results(own: pd.DataFrame, larger: pd.DataFrame) -> str:
    """Write the table of results at the model's own image size and at the larger one."""
    heads = [*COLUMNS.values(), *(f"{COLUMNS[name]} at {SIZES[1]} px" for name in LARGER)]
    lines = [_line(["set", "images", *heads]), "|---|---|" + "---|" * len(heads)]
    for (dataset, category), part in own.groupby(["dataset", "category"], sort=True):
        other = larger[(larger.dataset == dataset) & (larger.category == category)]
        cells = [_cell(part, *name) for name in COLUMNS] + [_cell(other, *name) for name in LARGER]
        lines.append(_line([f"{dataset} {category}", str(int(part.n_images.max())), *cells]))
    means = []
    for frame, names in ((own, list(COLUMNS)), (larger, LARGER)):
        held = frame[frame.dataset == "procedural"]
        means += [held[(held.metric == m) & (held.score == s)].value.mean() for m, s in names]
    bold = " | ".join(f"**{mean:.3f}**" for mean in means)
    return "\n".join([*lines, f"| **procedural, mean of held-out families** | | {bold} |"])


def _prompts(frame: pd.DataFrame) -> str:
    """Write what the sets of prompts give on the held-out families."""
    procedural = frame[(frame.dataset == "procedural") & (frame.score == "image head")]
    by = procedural.groupby("prompts").value.mean()
    retrieval = frame[frame.metric == "noun_retrieval"]
    return (
        f"on the held-out families (image head) the AUROC is {by['winclip']:.3f}, "
        f"{by['swapped']:.3f} with the two sides swapped, {by['held-out synonyms']:.3f} with words "
        f"never trained with (pristine; ruined, marred) against {by['plain words']:.3f} with "
        f"trained words in the same form, {by['shuffled text head']:.3f} with a shuffled text "
        "head; the name of the material is retrieved among ten for "
        f"{100 * retrieval.value.mean():.0f} % of normal images "
        f"(chance {100 * retrieval.low.mean():.0f} %)."
    )


def card(frame: pd.DataFrame, models: Sequence[Embedded], facts: Mapping[str, Any]) -> str:
    """Fill the template card.md.

    Parameters
    ----------
    frame : rows of the evaluation
    models : one a training seed, the first being the shipped one
    facts : card.json of its heads, with the recipe
    """
    recipe = facts["recipe"]
    own, larger = (frame[frame.image_size == size] for size in SIZES)
    shown = [part[part.prompts.isin(["winclip", "none"])] for part in (own, larger)]
    families = {
        role: [n for n, f in FAMILIES.items() if f.role == role] for role in ("train", "eval")
    }
    template = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    return template.format(
        parameters=sum(p.numel() for p in models[0].heads.parameters()),
        images=" and ".join(f"{n:,} at {size}" for size, n in recipe["images"].items()),
        n_train=len(families["train"]),
        eval_families=", ".join(families["eval"]),
        eval_defects=", ".join(n for n, d in DEFECT_TYPES.items() if d.role == "eval"),
        epochs=recipe["epochs"],
        batch=recipe["batch_size"],
        lr=recipe["lr"],
        dropout=recipe["dropout"],
        average=recipe["average"],
        shift=recipe["style_shift"],
        seeds=len(models),
        table=_results(*shown),
        prompts=_prompts(own),
        looks=LOOKS,
    )
