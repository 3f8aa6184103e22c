"""Tables that notebooks leave for the report, and published numbers, which are never mixed with measured ones."""

import re

import pandas as pd

from .. import paths


def save_table(frame, name):
    """Write a tidy table as ``<name>.csv``, numbers to 6 digits, at once or not at all; returns the frame.

    Parameters
    ----------
    frame : DataFrame; every column becomes text in the file
    name : of the table, beginning with its notebook's number, e.g. "22_shots", or that of the module that makes it

    Raises
    ------
    ValueError for an empty frame; OSError, with advice, where the table cannot be written.
    """
    if not len(frame):
        raise ValueError(f"the table {name!r} is empty: nothing was written")
    with paths.atomic_write(
        paths.results_dir() / f"{name}.csv", "set VLMAD_RESULTS to a folder that can be written"
    ) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
    return frame


def load_table(name):
    """The table that :func:`save_table` wrote.

    Raises
    ------
    FileNotFoundError that names the notebook to run, or the make target.
    """
    path = paths.results_dir() / f"{name}.csv"
    if not path.exists():
        wanted = (
            f"the notebook whose name begins with {name[:2]}"
            if name[:2].isdigit()
            else f"make {name}"
        )
        raise FileNotFoundError(f"no table {path.name} in {path.parent.name}/: run {wanted} first")
    return pd.read_csv(path)


def published(**where):
    """Published results with their sources (data/published_results.csv), in the units of the papers (per cent).

    Parameters
    ----------
    where : column = value or list of values, e.g. method="WinCLIP", dataset=["MVTec-AD", "VisA"], category="mean"

    Returns
    -------
    DataFrame: method, setting, dataset, category, task, metric, value, std, source, evidence

    Raises
    ------
    ValueError for an unknown column, or when nothing fits (says which values the last column has).
    """
    table = pd.read_csv(_published_file())
    for column, value in where.items():
        if column not in table:
            raise ValueError(
                f"published results have no column {column!r}; found {', '.join(table)}"
            )
        known = table[column].unique()
        table = table[table[column].isin([value] if isinstance(value, str) else value)]
        if table.empty:
            raise ValueError(
                f"no published result has {column} = {value!r}; here it takes {', '.join(map(str, known[:30]))}"
            )
    return table.reset_index(drop=True)


def quote(index, columns, **where):
    """Published results as a wide table of text, blank where nothing was published; for :func:`published`'s ``where``.

    Parameters
    ----------
    index, columns : names of columns that make rows and columns, e.g. ["method", "source"] and ["dataset", "metric"]
    """
    table = published(**where)
    table["value"] = table["value"].map("{:.1f}".format)
    wide = table.pivot_table(
        index=index, columns=columns, values="value", aggfunc="first", fill_value=""
    )
    return wide.sort_index(
        key=lambda level: level.map(lambda name: re.sub(r"\d+", lambda n: n[0].zfill(6), name))
    )  # 2-shot before 16-shot


def _published_file():
    root = paths.checkout()
    if root is None:
        raise FileNotFoundError(
            "published results lie in the repository (data/published_results.csv): work in a checkout of it"
        )
    return root / "data" / "published_results.csv"
