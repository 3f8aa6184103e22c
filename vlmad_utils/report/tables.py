"""Tables that notebooks leave for the report, and published numbers, which stay apart from them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd

from .. import paths


def save_table(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Write a tidy table as ``<name>.csv``, numbers to 6 digits, and return it unchanged.

    The file appears whole or not at all.

    Parameters
    ----------
    frame : every column becomes text in the file; the index is left out
    name : of the table; begins with its notebook's number, e.g. "22_shots", or is the name of the
        module that makes it

    Raises
    ------
    ValueError for an empty frame; OSError, with advice, where the table cannot be written.
    """
    if not len(frame):
        raise ValueError(f"the table {name!r} is empty: nothing was written")
    advice = "set VLMAD_RESULTS to a folder that can be written"
    with paths.atomic_write(paths.results_dir() / f"{name}.csv", advice) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
    return frame


def load_table(name: str) -> pd.DataFrame:
    """Return the table that :func:`save_table` wrote.

    Raises
    ------
    FileNotFoundError that names the notebook to run, or the make target.
    """
    path = paths.results_dir() / f"{name}.csv"
    if not path.exists():
        notebook = f"the notebook whose name begins with {name[:2]}"
        maker = notebook if name[:2].isdigit() else f"make {name}"
        raise FileNotFoundError(f"no table {path.name} in {path.parent.name}/: run {maker} first")
    return pd.read_csv(path)


def published(**where: str | Sequence[str]) -> pd.DataFrame:
    """Return published results with their sources, in the units of the papers (per cent).

    Parameters
    ----------
    where : column = value or list of values, e.g. method="WinCLIP",
        dataset=["MVTec-AD", "VisA"], category="mean"

    Returns
    -------
    Columns method, setting, dataset, category, task, metric, value, std, source, evidence, from
    data/published_results.csv

    Raises
    ------
    ValueError for an unknown column, or when nothing fits (says which values the last column has).
    """
    table = pd.read_csv(_published_file())
    for column, value in where.items():
        if column not in table:
            raise ValueError(
                f"published results have no column {column!r}; found {', '.join(table.columns)}"
            )
        known = table[column].unique()
        table = table[table[column].isin([value] if isinstance(value, str) else value)]
        if table.empty:
            raise ValueError(
                f"no published result has {column} = {value!r}; here it takes "
                f"{', '.join(map(str, known[:30]))}"
            )
    return table.reset_index(drop=True)


def quote(
    index: str | list[str], columns: str | list[str], **where: str | Sequence[str]
) -> pd.DataFrame:
    """Return published results as a wide table of text, blank where nothing was published.

    Parameters
    ----------
    index, columns : columns of :func:`published` that make rows and columns, e.g.
        ["method", "source"] and ["dataset", "metric"]
    where : as in :func:`published`
    """
    table = published(**where)
    table["value"] = table["value"].map("{:.1f}".format)
    first = cast(Any, "first")  # pandas' types do not know it
    wide = table.pivot_table("value", index, columns, aggfunc=first, fill_value="")
    return wide.sort_index(key=lambda level: level.map(_in_counting_order))


def _in_counting_order(name: str) -> str:
    """Return a key that sorts 2-shot before 16-shot."""
    return re.sub(r"\d+", lambda number: number[0].zfill(6), name)


def _published_file() -> Path:
    root = paths.checkout()
    if root is None:
        raise FileNotFoundError(
            "published results lie in the repository (data/published_results.csv): work in a "
            "checkout of it"
        )
    return root / "data" / "published_results.csv"
