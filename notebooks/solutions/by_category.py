"""What the worked answers to the exercises need again and again: a sample scored category by category, told in words.

Values are means over the categories of a data set; intervals are 95 % bootstrap intervals over images.
"""

import numpy as np
import pandas as pd

from vlmad_utils import data, evaluation
from vlmad_utils.methods import upsample


class Sample:
    """Test images of an index, whose categories are scored apart.

    Attributes
    ----------
    index : DataFrame of ``data.index``, train rows included; test : its test rows, numbered from 0
    labels : (B,) of the test rows; groups : {(dataset, category): row numbers}
    datasets : {dataset: its part of groups, by category}
    """

    def __init__(self, index, draws=1000, seed=0):
        self.index = index.reset_index(drop=True)
        self.test = self.index[self.index["split"] == "test"].reset_index(drop=True)
        self.labels, self.draws, self.seed = self.test["label"].to_numpy(), draws, seed
        self.groups = self.test.groupby(["dataset", "category"], sort=False).indices
        self.datasets = {
            d: {c: rows for (name, c), rows in self.groups.items() if name == d}
            for d, _ in self.groups
        }

    def each(self, score):
        """Image scores (B,) and maps (B, h, w) of all test images; ``score``: (rows, noun) of one category -> Scores."""
        found = {
            name: score(rows, self.test["object_name"][rows[0]])
            for name, rows in self.groups.items()
        }
        first = next(iter(found.values()))
        image, maps = (
            np.empty(len(self.test)),
            np.empty((len(self.test), *first.maps.shape[1:]), np.float32),
        )
        for name, rows in self.groups.items():
            image[rows], maps[rows] = found[name].image.numpy(), found[name].maps.numpy()
        return image, maps

    def auroc(self, scores, dataset, categories=None):
        """Interval of the image AUROC of scores (B,), mean over the categories (or over some of them)."""
        parts = {
            c: (scores[rows], self.labels[rows])
            for c, rows in self.datasets[dataset].items()
            if c in (categories or [c])
        }
        return evaluation.bootstrap_mean(parts, n=self.draws, seed=self.seed)

    def gap(self, a, b, dataset, categories=None):
        """Paired Difference of the image AUROC of scores a minus scores b."""
        parts = {
            c: (a[rows], b[rows], self.labels[rows])
            for c, rows in self.datasets[dataset].items()
            if c in (categories or [c])
        }
        return evaluation.paired(parts, n=4 * self.draws, seed=self.seed)

    def table(self, scores, against=None):
        """Text table: a line for each of {name: scores (B,)}, a column for each data set; the last lines are chance and n.

        against : a name; other lines then say their paired difference to it, in a second column
        """
        lines = {}
        for name, x in scores.items():
            lines[name] = {d: as_text(self.auroc(x, d)) for d in self.datasets}
            if against is not None and name != against:
                lines[name] |= {
                    f"{d}, difference": as_text(self.gap(x, scores[against], d), "+.3f")
                    for d in self.datasets
                }
        lines["chance"] = dict.fromkeys(self.datasets, "0.50")
        lines["images (categories)"] = {
            d: f"{sum(map(len, c.values()))} ({len(c)})" for d, c in self.datasets.items()
        }
        columns = [
            c
            for d in self.datasets
            for c in (d, f"{d}, difference")
            if c == d or against is not None and len(scores) > 1
        ]
        return pd.DataFrame(lines).T[columns].fillna("")

    def pixels(self, maps, size=(112, 112)):
        """Pixel AUROC and AU-PRO of maps (B, h, w), a line for each category whose anomalous images have masks."""
        lines = {}
        for name, rows in self.groups.items():
            part = self.test.iloc[rows]
            if part.loc[part["label"] == 1, "mask_path"].notna().all():
                up, masks = upsample(maps[rows], size).numpy(), data.read_masks(part, size)
                ranking = evaluation.rank(up, masks, regions=True)
                lines[name] = {
                    "pixel_auroc": evaluation.auroc(ranking),
                    "aupro": evaluation.aupro(ranking),
                }
        index = pd.MultiIndex.from_tuples(lines, names=["dataset", "category"])
        return pd.DataFrame(list(lines.values()), index, ["pixel_auroc", "aupro"])


def as_text(interval, form=".2f"):
    """An Interval or Difference as text: value [low, high]."""
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def over_categories(differences, draws=2000, seed=0):
    """Interval of the mean of differences, one per category, the categories drawn with replacement."""
    differences = np.asarray(differences, float)
    drawn = differences[
        np.random.default_rng(seed).integers(len(differences), size=(draws, len(differences)))
    ].mean(axis=1)
    return evaluation.Interval(
        float(differences.mean()), *np.quantile(drawn, [0.025, 0.975]).tolist()
    )
