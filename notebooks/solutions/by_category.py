"""A sample scored category by category: the helper of the worked answers to the exercises.

Values are means over the categories of a data set. Intervals are 95 % bootstrap intervals over
images.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np
import pandas as pd

from vlmad_utils import data, evaluation
from vlmad_utils.methods import Scores, upsample


class Sample:
    """Test images of an index, whose categories are scored apart.

    Parameters
    ----------
    index : DataFrame of ``data.index``, train rows included
    draws : bootstrap draws
    seed : of the draws

    Attributes
    ----------
    index : all rows, numbered from 0
    test : its test rows, numbered from 0
    labels : (B,) of the test rows
    groups : {(dataset, category): row numbers}
    datasets : {dataset: its part of groups, by category}
    """

    def __init__(self, index: pd.DataFrame, draws: int = 1000, seed: int = 0) -> None:
        self.index = index.reset_index(drop=True)
        self.test = self.index[self.index["split"] == "test"].reset_index(drop=True)
        self.labels, self.draws, self.seed = self.test["label"].to_numpy(), draws, seed
        groups = self.test.groupby(["dataset", "category"], sort=False).indices
        self.groups = cast(dict[tuple[str, str], np.ndarray], groups)
        self.datasets: dict[str, dict[str, np.ndarray]] = {}
        for (dataset, category), rows in self.groups.items():
            self.datasets.setdefault(dataset, {})[category] = rows

    def each(self, score: Callable[[np.ndarray, str], Scores]) -> tuple[np.ndarray, np.ndarray]:
        """Return image scores (B,) and maps (B, h, w) of all test images.

        ``score`` takes the row numbers of one category and its noun.
        """
        found = [score(rows, self.test["object_name"][rows[0]]) for rows in self.groups.values()]
        image = np.empty(len(self.test))
        maps = np.empty((len(self.test), *found[0].maps.shape[1:]), np.float32)
        for rows, scores in zip(self.groups.values(), found):
            image[rows], maps[rows] = scores.image.numpy(), scores.maps.numpy()
        return image, maps

    def _chosen(self, dataset: str, categories: Sequence[str] | None) -> dict[str, np.ndarray]:
        """Return {category: its rows} of a data set, or of some of its categories."""
        rows_of = self.datasets[dataset]
        return {c: rows for c, rows in rows_of.items() if c in (categories or [c])}

    def auroc(
        self, scores: np.ndarray, dataset: str, categories: Sequence[str] | None = None
    ) -> evaluation.Interval:
        """Return the image AUROC of scores (B,), mean over the categories or over some of them."""
        chosen = self._chosen(dataset, categories)
        parts = {c: (scores[rows], self.labels[rows]) for c, rows in chosen.items()}
        return evaluation.bootstrap_mean(parts, n=self.draws, seed=self.seed)

    def gap(
        self, a: np.ndarray, b: np.ndarray, dataset: str, categories: Sequence[str] | None = None
    ) -> evaluation.Difference:
        """Return the paired difference of the image AUROC of scores a minus scores b, both (B,)."""
        chosen = self._chosen(dataset, categories)
        parts = {c: (a[rows], b[rows], self.labels[rows]) for c, rows in chosen.items()}
        return evaluation.paired(parts, n=4 * self.draws, seed=self.seed)

    def table(self, scores: Mapping[str, np.ndarray], against: str | None = None) -> pd.DataFrame:
        """Write a table: a line for each of {name: scores (B,)}, a column for each data set.

        The last lines are the chance level and n. With ``against``, a name, other lines also give
        their paired difference to it, in a second column.
        """
        compared = against is not None and len(scores) > 1
        columns, lines = [], {name: {} for name in (*scores, "chance", "images (categories)")}
        for dataset, groups in self.datasets.items():
            difference = f"{dataset}, difference"
            columns += [dataset, difference] if compared else [dataset]
            for name, x in scores.items():
                lines[name][dataset] = as_text(self.auroc(x, dataset))
                if against is not None and name != against:
                    lines[name][difference] = as_text(self.gap(x, scores[against], dataset), "+.3f")
            n = sum(map(len, groups.values()))
            lines["chance"][dataset] = "0.50"
            lines["images (categories)"][dataset] = f"{n} ({len(groups)})"
        return pd.DataFrame(lines).T[columns].fillna("")

    def pixels(self, maps: np.ndarray, size: tuple[int, int] = (112, 112)) -> pd.DataFrame:
        """Return pixel AUROC and AU-PRO of maps (B, h, w), a line for each category with masks.

        A category counts when all its anomalous images have masks.
        """
        lines: dict[tuple[str, str], dict[str, float]] = {}
        for name, rows in self.groups.items():
            part = self.test.iloc[rows]
            if part.loc[part["label"] == 1, "mask_path"].notna().all():
                up, masks = upsample(maps[rows], size).numpy(), data.read_masks(part, size)
                ranking = evaluation.rank(up, masks, regions=True)
                pixel_auroc, aupro = evaluation.auroc(ranking), evaluation.aupro(ranking)
                lines[name] = {"pixel_auroc": pixel_auroc, "aupro": aupro}
        index = pd.MultiIndex.from_tuples(lines, names=["dataset", "category"])
        return pd.DataFrame(list(lines.values()), index, ["pixel_auroc", "aupro"])


def as_text(interval: evaluation.Interval | evaluation.Difference, form: str = ".2f") -> str:
    """Write an interval or a difference as text: value [low, high]."""
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def over_categories(
    differences: Sequence[float] | np.ndarray | pd.Series, draws: int = 2000, seed: int = 0
) -> evaluation.Interval:
    """Return the mean of differences, one per category; categories are drawn with replacement."""
    values = np.asarray(differences, float)
    chosen = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[chosen].mean(axis=1), [0.025, 0.975]).tolist()
    return evaluation.Interval(float(values.mean()), low, high)
