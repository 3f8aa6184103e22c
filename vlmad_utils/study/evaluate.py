"""From scores to tidy rows, and from rows to means over categories."""

import numpy as np
import pandas as pd

from .. import data, evaluation
from ..methods import upsample


def evaluate(index, scores, size=(224, 224), draws=1000, seed=0):
    """All metrics of one category as a list of dicts.

    Parameters
    ----------
    index : DataFrame of ``data.index``, B test images of one category, labels 0 and 1
    scores : Scores of the same images in the same order
    size : (H, W) at which maps (bilinear) and masks (binarised first) meet
    draws : of the bootstrap over images; 0 leaves the intervals NaN

    Returns
    -------
    list of dicts: metric, value, low, high (95 % interval), chance

    Raises
    ------
    ValueError when lengths differ, several categories are mixed, or a label is unknown.
    """
    if len(index) != len(scores):
        raise ValueError(
            f"The index has {len(index)} images, the scores {len(scores)}: give the scores of these images."
        )
    if index[["dataset", "category"]].drop_duplicates().shape[0] != 1:
        raise ValueError(
            "evaluate takes one category at a time: scores of different categories are not comparable."
        )
    labels, image = index["label"].to_numpy(), scores.image.numpy()
    if not set(labels) <= {0, 1}:
        raise ValueError(
            f"Labels are 0 or 1, found {sorted(set(labels))}: leave out images whose label is unknown."
        )
    nothing = evaluation.Interval(np.nan, np.nan, np.nan)
    if draws:
        found = evaluation.image_bootstrap(image, labels, n=draws, seed=seed)
    else:
        found = {
            name: nothing._replace(value=value)
            for name, value in evaluation.evaluate_arrays(image, labels).items()
        }
    has_masks = index["mask_path"].notna().to_numpy()
    if has_masks.any() and has_masks[labels == 1].all():
        maps, masks = upsample(scores.maps, size).numpy(), data.read_masks(index, size)
        if draws:
            found |= evaluation.pixel_bootstrap(maps, masks, n=draws, seed=seed)
        else:
            exact = evaluation.evaluate_arrays(image, labels, maps, masks)
            found |= {
                name: nothing._replace(value=value)
                for name, value in exact.items()
                if name not in found
            }
    return [
        {
            "metric": name,
            **interval._asdict(),
            "chance": evaluation.chance(name, labels if name.startswith("image") else masks),
        }
        for name, interval in found.items()
    ]


def summarise(rows, metric, by=("dataset", "method", "k_shot")):
    """Macro mean over categories.

    Parameters
    ----------
    rows : ``Result.rows``
    metric : e.g. "image_auroc"
    by : columns that make one line

    Returns
    -------
    DataFrame: by, value (mean over categories of the mean over seeds), low, high, seed_sd (standard deviation of that
    mean over seeds, NaN with one), chance, n_categories, n_images, training

    Notes
    -----
    low and high: the categories' bootstrap distances to their value, averaged over seeds, added in quadrature and divided
    by the number of categories, since images of different categories are drawn independently. The categories are taken
    as given, and the luck of the references is not in it: that is seed_sd.
    """
    by, part = list(by), rows[rows["metric"] == metric]
    if part.empty:
        raise ValueError(
            f"No row has metric {metric!r}; found {', '.join(sorted(rows['metric'].unique()))}."
        )
    lines = []
    for name, group in part.groupby(by, sort=False):
        per = group.groupby(["dataset", "category"])[
            ["value", "low", "high", "chance", "n_images"]
        ].mean()
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
