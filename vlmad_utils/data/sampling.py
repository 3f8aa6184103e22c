"""Choose images of an index: a part of the test images, and draws of references."""

import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from .images import DataError


def subset(index, limit, seed=0):
    """At most ``limit`` test images, spread evenly; all train rows stay.

    Categories take turns; within a category normal and anomalous images take turns, within the anomalous ones the
    kinds of defect. Which kind and which images of a kind come first is drawn with ``seed``, whatever the order of the
    rows; a smaller limit gives a part of a larger one.

    Parameters
    ----------
    index : DataFrame with ``COLUMNS``
    limit : number of test images, at least 1
    seed : of the draw

    Returns
    -------
    DataFrame in the order of ``index``

    Raises
    ------
    ValueError for a limit below 1.
    """
    if limit < 1:
        raise ValueError(f"limit={limit}: wanted at least 1")
    rows = index.reset_index(drop=True)
    test = rows[rows["split"] == "test"]
    kinds = ["dataset", "category", "label", "defect"]
    drawn = [i for _, group in test.groupby(kinds[:2]) for i in _shuffled(group, seed)]
    # who starts alternates from category to category, else one image of each would be normal images only
    starts = (test["label"] + pd.factorize(test["category"], sort=True)[0]) % 2
    order = test[kinds].assign(starts=starts).loc[drawn]
    order["kind"] = order.groupby(
        kinds
    ).ngroup()  # which kind comes first is drawn, too: no kind is always left over
    order["kind"] = order.groupby(kinds[:3])["kind"].transform(lambda kind: pd.factorize(kind)[0])
    order = _take_turns(order, kinds, ["kind"])
    order = _take_turns(order, kinds[:3], ["starts"])
    order = _take_turns(order, kinds[:2], kinds[:2])
    chosen = rows[(rows["split"] != "test") | rows.index.isin(order.index[:limit])].reset_index(
        drop=True
    )
    chosen.attrs = dict(index.attrs)
    return chosen


def _take_turns(rows, groups, ties):
    """Rows reordered: the first of each group, then the second of each, ...; columns ``ties`` say who goes first."""
    return rows.assign(turn=rows.groupby(groups).cumcount()).sort_values(
        ["turn", *ties], kind="stable"
    )


def split_references(index, k_shot, seed=0):
    """Draw ``k_shot`` normal train images per category, without replacement.

    The draw depends on the seed and the file names, not on the order of the rows; fewer shots are a part of more.

    Parameters
    ----------
    index : DataFrame with ``COLUMNS``
    k_shot : images per category
    seed : of the draw

    Returns
    -------
    DataFrame, rows of ``index`` with their row labels, grouped by category in the order drawn

    Raises
    ------
    DataError when a category has fewer than ``k_shot`` normal train images; ValueError for a negative ``k_shot``.
    """
    if k_shot < 0:
        raise ValueError(f"k_shot={k_shot}: wanted 0 or more")
    picked = []
    for (dataset, category), group in index.reset_index(drop=True).groupby(["dataset", "category"]):
        normals = group[(group["split"] == "train") & (group["label"] == 0)]
        if len(normals) < k_shot:
            there = f"{len(normals)} normal train images there"
            raise DataError(f"{dataset}/{category}: {k_shot} references wanted, {there}")
        picked += _shuffled(normals, seed)[:k_shot]
    return index.iloc[picked]


def _shuffled(group, seed):
    """Row labels of one category in an order that only the seed and the file names determine."""
    dataset, category = group[["dataset", "category"]].iloc[0] if len(group) else ("", "")
    rng = np.random.default_rng(
        [seed, zlib.crc32(f"{dataset}/{category}".encode("utf-8", "surrogateescape"))]
    )
    labels = list(group["image_path"].map(lambda path: Path(path).parts).sort_values().index)
    return [labels[i] for i in rng.permutation(len(labels))]
