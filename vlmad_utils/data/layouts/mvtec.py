"""Folders in MVTec AD's form, and those that are nearly so: MVTec AD, MPDD, BTAD, VisA."""

import csv

from ..images import DataError
from .kit import Row, categories, child, tree


def mvtec(root, problems):
    return [row for base in categories(root) for row in tree(base, problems)]


def btad(root, problems):
    return [
        row
        for base in categories(root)
        for row in tree(base, problems, renamed={"ko": "defective"})
    ]


def visa(root, problems):
    table = root / "split_csv" / "1cls.csv"
    if not table.is_file():
        bases = categories(child(root, "1cls") or root)
        return [row for base in bases for row in tree(base, problems, renamed={"bad": "anomaly"})]
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
                wanted = root / mask if mask else f"its name in {table}"
                problems.append(
                    (category, image, f"a defective image without mask: wanted {wanted}")
                )
    return rows


def has_categories(root):
    """Whether a folder looks like VisA, raw or reorganised."""
    return (root / "split_csv" / "1cls.csv").is_file() or categories(child(root, "1cls") or root)
