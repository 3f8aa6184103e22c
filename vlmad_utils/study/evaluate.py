"""Turn scores into tidy rows, and rows into means over categories."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from .. import data, evaluation
from ..methods import Scores, upsample
from .checks import check_labels


def evaluate(
    index: pd.DataFrame,
    scores: Scores,
    size: tuple[int, int] = (224, 224),
    draws: int = 1000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Compute all metrics of one category.

    Parameters
    ----------
    index : DataFrame of ``data.index``, B test images of one category, labels 0 and 1
    scores : Scores of the same images in the same order, on any device
    size : (H, W) at which maps (bilinear) and masks (binarised first) meet
    draws : of the bootstrap over images; 0 leaves the intervals NaN

    Returns
    -------
    list of dicts: metric, value, low, high (95 % interval), chance

    Raises
    ------
    ValueError when lengths differ, several categories are mixed, or a label is unknown.

    Warns
    -----
    UserWarning when only some anomalous images have a mask: pixel metrics are then left out.
    """
    if len(index) != len(scores):
        raise ValueError(
            f"The index has {len(index)} images, the scores {len(scores)}: "
            "give the scores of these images."
        )
    if len(index[["dataset", "category"]].drop_duplicates()) != 1:
        raise ValueError(
            "evaluate takes one category at a time: "
            "scores of different categories are not comparable."
        )
    check_labels(index["label"])
    scores = scores.cpu()
    labels, image = index["label"].to_numpy(), scores.image.numpy()
    if draws:
        found = evaluation.image_bootstrap(image, labels, n=draws, seed=seed)
    else:
        found = _without_intervals(evaluation.evaluate_arrays(image, labels))
    has_masks, masks = index["mask_path"].notna().to_numpy(), None
    without = index["image_path"][(labels == 1) & ~has_masks]
    if has_masks.any() and len(without):
        dataset, category = index[["dataset", "category"]].iloc[0]
        more = f" and {len(without) - 5} more" if len(without) > 5 else ""
        warnings.warn(
            f"{dataset}/{category} gets no pixel metrics: {len(without)} anomalous images have no "
            f"mask, {', '.join(without.iloc[:5])}{more}. Give each a mask, or leave them out.",
            stacklevel=2,
        )
    elif has_masks.any():
        maps, masks = upsample(scores.maps, size).numpy(), data.read_masks(index, size)
        if draws:
            found |= evaluation.pixel_bootstrap(maps, masks, n=draws, seed=seed)
        else:
            exact = evaluation.evaluate_arrays(image, labels, maps, masks)
            found = _without_intervals(exact)
    return [
        {
            "metric": name,
            **interval._asdict(),
            "chance": evaluation.chance(name, labels if name.startswith("image") else masks),
        }
        for name, interval in found.items()
    ]


def _without_intervals(values: dict[str, float]) -> dict[str, evaluation.Interval]:
    return {name: evaluation.Interval(value, np.nan, np.nan) for name, value in values.items()}


def summarise(
    rows: pd.DataFrame, metric: str, by: Sequence[str] = ("dataset", "method", "k_shot")
) -> pd.DataFrame:
    """Average a metric over categories (macro mean).

    Parameters
    ----------
    rows : ``Result.rows``
    metric : e.g. "image_auroc"
    by : columns that make one line

    Returns
    -------
    DataFrame: by, value (mean over categories of the mean over seeds), low, high, seed_sd
    (standard deviation of that mean over seeds, NaN with one), chance, n_categories, n_images,
    training

    Raises
    ------
    ValueError when no row has the metric, or when a line would mix backbones.

    Notes
    -----
    low and high: the categories' bootstrap distances to their value, averaged over seeds, added in
    quadrature and divided by the number of categories, since images of different categories are
    drawn independently. The categories are taken as given. The luck of the references is not in
    the interval: that is seed_sd.
    """
    by, part = list(by), rows[rows["metric"] == metric]
    if part.empty:
        raise ValueError(
            f"No row has metric {metric!r}; found {', '.join(sorted(rows['metric'].unique()))}."
        )
    lines = []
    for name, group in part.groupby(by, sort=False):
        if "backbone" not in by and "backbone" in group and group["backbone"].nunique() > 1:
            raise ValueError(
                f"the line {name} would be a mean over the backbones "
                f"{', '.join(map(str, group['backbone'].unique()))}: name 'backbone' in by, or "
                "summarise the rows of one at a time."
            )
        columns = ["value", "low", "high", "chance", "n_images"]
        per = group.groupby(["dataset", "category"])[columns].mean()
        below, above = (
            np.sqrt((side**2).sum()) / len(per)
            for side in (per["value"] - per["low"], per["high"] - per["value"])
        )
        seeds = group.groupby("seed")["value"].mean()
        mean = per["value"].mean()
        unknown = per["low"].isna().any()
        lines.append(
            {
                **dict(zip(by, name if isinstance(name, tuple) else (name,), strict=True)),
                "value": mean,
                "low": np.nan if unknown else mean - below,
                "high": np.nan if unknown else mean + above,
                "seed_sd": seeds.std() if len(seeds) > 1 else np.nan,
                "chance": per["chance"].mean(),
                "n_categories": len(per),
                "n_images": int(per["n_images"].sum()),
                "training": " / ".join(sorted(group["training"].unique())),
            }
        )
    return pd.DataFrame(lines)
