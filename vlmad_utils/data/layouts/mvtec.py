"""Read folders in MVTec AD's form, and those nearly so: MVTec AD, MPDD, BTAD, VisA."""

import csv
from collections.abc import Mapping
from pathlib import Path

from ..images import DataError
from .kit import Problem, Row, categories, child, tree


def mvtec(
    root: Path, problems: list[Problem], renamed: Mapping[str, str] | None = None
) -> list[Row]:
    """Return the rows of all categories; ``renamed`` maps folders to names of defects."""
    return [row for base in categories(root) for row in tree(base, problems, renamed=renamed)]


def btad(root: Path, problems: list[Problem]) -> list[Row]:
    """Return the rows of BTAD: MVTec AD's form with other names."""
    return mvtec(root, problems, {"ko": "defective"})


def visa(root: Path, problems: list[Problem]) -> list[Row]:
    """Return the rows of VisA as downloaded (a table of files), or reorganised as MVTec AD."""
    table = root / "split_csv" / "1cls.csv"
    if not table.is_file():
        return mvtec(child(root, "1cls") or root, problems, {"bad": "anomaly"})
    rows = []
    with open(table, newline="", encoding="utf-8-sig") as stream:
        lines = csv.DictReader(stream)
        if missing := {"object", "split", "label", "image", "mask"} - set(lines.fieldnames or ()):
            raise DataError(f"{table}: columns {sorted(missing)} are missing")
        for line in lines:
            category, image, mask = line["object"], root / line["image"], line["mask"]
            if line["label"] == "normal":
                rows.append(Row(category, line["split"], 0, "good", image))
            elif mask and (root / mask).is_file():
                rows.append(Row(category, line["split"], 1, "anomaly", image, root / mask))
            else:
                place = root / mask if mask else f"its name in {table}"
                reason = f"a defective image without mask: wanted {place}"
                problems.append((category, image, reason))
    return rows


def has_categories(root: Path) -> bool:
    """Return whether a folder looks like VisA, raw or reorganised."""
    table = root / "split_csv" / "1cls.csv"
    return table.is_file() or bool(categories(child(root, "1cls") or root))
