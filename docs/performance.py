"""Write the tables of docs/performance.md from data/results/; ``python docs/performance.py``."""

import operator
import re
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "data" / "results"
COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
UNITS = {"x": "", "s": " s", "ms": " ms", "MB": " MB"}


def load(name: str) -> pd.DataFrame:
    """Read a table of a benchmark; empty where it was never made."""
    path = RESULTS / f"{name}.csv"
    columns = ["part", "what", "unit", "median", "low", "high", "rounds", "goal"]
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=columns)


def measured(row: pd.Series) -> str:
    """Write a median with its unit, lowest and highest."""
    unit = UNITS.get(row["unit"], f" {row['unit']}") if isinstance(row["unit"], str) else ""
    median, low, high = (
        f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}" for x in row[["median", "low", "high"]]
    )
    return f"{median}{unit}" + (f" [{low}, {high}]" if row["rounds"] > 1 else "")


def verdict(row: pd.Series) -> str:
    """Write the goal of a row, and whether its median meets it; empty without a goal."""
    goal = row["goal"]
    if not isinstance(goal, str) or not goal:
        return ""
    found = re.fullmatch(r"([<>]=?) ([\d.]+(?:e-?\d+)?)( .*)?", goal)
    if not found:
        raise ValueError(f"a goal is e.g. '>= 2.1' or '< 20 s', found {goal!r}")
    bound = float(found[2]) * (1000 if "GB" in goal else 1)  # rows are in MB
    met = COMPARE[found[1]](row["median"], bound)
    return f"{goal}: {'met' if met else '**missed**'}"


def table(rows: pd.DataFrame) -> str:
    """Write rows as a table: what was measured, the number, the goal."""
    if rows.empty:
        return "Not measured yet."
    lines = ["| what | median [lowest, highest] | goal |", "|---|---|---|"]
    lines += [f"| {row['what']} | {measured(row)} | {verdict(row)} |" for _, row in rows.iterrows()]
    return "\n".join(lines)


def peers() -> str:
    """Write the comparison with anomalib: ratios and the check."""
    rows = load("bench_peers")
    return table(rows[(rows["unit"] == "x") | rows["goal"].notna()])


def other_host() -> str:
    """Write the comparison with anomalib on a host where oneDNN is no faster than MKL."""
    rows = load("bench_peers_other_host")
    return table(rows[(rows["unit"] == "x") | rows["goal"].notna()])


def windows() -> str:
    """Write seconds and ratios of window encoding for one and for eight images."""
    rows = load("bench")
    rows = rows[rows["part"].str.startswith("windows, batch ")]
    several = rows["part"].nunique() > 1
    batch = rows["part"].str.removeprefix("windows, ")
    rows = rows.assign(what=rows["what"] + (", " + batch if several else ""))
    order = rows["what"].str.replace(r", batch \d+$", "", regex=True)
    rows = rows.assign(order=pd.factorize(order)[0]).sort_values("order", kind="stable")
    seconds = rows["what"].str.match("(package|plain forward), s an image")
    return table(rows[seconds | (rows["unit"] == "x")])


def others() -> str:
    """Write what else ``make bench`` measures: scoring, the study, the store, growth."""
    rows = load("bench")
    rows = rows[~rows["part"].str.startswith("windows, batch ")]
    rows = rows[~rows["what"].str.contains("number of runs", regex=False)]
    named = rows["part"] != "scoring"
    return table(rows.assign(what=rows["what"].where(~named, rows["part"] + ": " + rows["what"])))


def gpu() -> str:
    """Write what the GPU command measured, and on which card; not what it had to leave out."""
    rows = load("bench_gpu")
    if rows.empty:
        return table(rows)
    rows = rows[rows["median"].notna()]
    card, version = rows[["card", "torch"]].iloc[0]
    what = rows["part"] + ": " + rows["what"]
    return f"{card}, PyTorch {version}.\n\n{table(rows.assign(what=what))}"


TABLES = {
    "peers": peers,
    "other_host": other_host,
    "windows": windows,
    "others": others,
    "gpu": gpu,
}


def page() -> str:
    """Return the page with its tables renewed.

    Raises
    ------
    ValueError when the place of a table is missing.
    """
    text = PAGE.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        begin, end = f"<!-- {name}: python docs/performance.py -->", f"<!-- end of {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{PAGE.name} has no place for {name}: put {begin} and {end}")
        new = f"{begin}\n{make()}\n{end}"
        text = pattern.sub(lambda _, new=new: new, text)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
