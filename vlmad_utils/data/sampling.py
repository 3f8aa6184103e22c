"""Choose images of an index: some of the test images, and draws of references."""

import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from .images import DataError


def subset(index: pd.DataFrame, limit: int, seed: int = 0) -> pd.DataFrame:
    """Return at most ``limit`` test images, spread evenly, and all train rows.

    Categories take turns; within a category normal and anomalous images take turns, within the
    anomalous ones the kinds of defect. Which kind and which images of a kind come first is drawn
    with ``seed``, whatever the order of the rows; a smaller limit gives a subset of a larger one.

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
    # who starts alternates by category, else one image of each would be normal images only
    starts = (test["label"] + pd.factorize(test["category"], sort=True)[0]) % 2
    order = test[kinds].assign(starts=starts).loc[drawn]
    # which kind comes first is drawn, too: no kind is always left over
    order["kind"] = order.groupby(kinds).ngroup()
    order["kind"] = order.groupby(kinds[:3])["kind"].transform(lambda kind: pd.factorize(kind)[0])
    order = _take_turns(order, kinds, ["kind"])
    order = _take_turns(order, kinds[:3], ["starts"])
    order = _take_turns(order, kinds[:2], kinds[:2])
    chosen = rows[(rows["split"] != "test") | rows.index.isin(order.index[:limit])]
    chosen = chosen.reset_index(drop=True)
    chosen.attrs = dict(index.attrs)
    return chosen


def _take_turns(rows: pd.DataFrame, groups: list[str], ties: list[str]) -> pd.DataFrame:
    """Reorder rows: the first of each group, then the second of each, ...; ``ties`` go first."""
    turns = rows.assign(turn=rows.groupby(groups).cumcount())
    return turns.sort_values(["turn", *ties], kind="stable")


def split_references(index: pd.DataFrame, k_shot: int, seed: int = 0) -> pd.DataFrame:
    """Draw ``k_shot`` normal train images per category, without replacement.

    The draw depends on the seed and the file names, not on the order of the rows; fewer shots are
    a subset of more.

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
    DataError when a category has fewer than ``k_shot`` normal train images; ValueError for a
    negative ``k_shot``.
    """
    if k_shot < 0:
        raise ValueError(f"k_shot={k_shot}: wanted 0 or more")
    picked = []
    for _, group in index.reset_index(drop=True).groupby(["dataset", "category"]):
        normals = group[(group["split"] == "train") & (group["label"] == 0)]
        if len(normals) < k_shot:
            dataset, category = group[["dataset", "category"]].iloc[0]
            there = f"{len(normals)} normal train images there"
            raise DataError(f"{dataset}/{category}: {k_shot} references wanted, {there}")
        picked += _shuffled(normals, seed)[:k_shot]
    return index.iloc[picked]


def _shuffled(group: pd.DataFrame, seed: int) -> list[int]:
    """Return the rows of one category in an order that only seed and file names determine."""
    dataset, category = group[["dataset", "category"]].iloc[0] if len(group) else ("", "")
    key = zlib.crc32(f"{dataset}/{category}".encode("utf-8", "surrogateescape"))
    labels = list(group["image_path"].map(lambda path: Path(path).parts).sort_values().index)
    return [labels[i] for i in np.random.default_rng([seed, key]).permutation(len(labels))]
