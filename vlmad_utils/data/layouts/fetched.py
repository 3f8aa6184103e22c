"""Read the two sets that are fetched as packages: ELPV solar cells and simulated textile."""

from collections.abc import Iterable
from pathlib import Path

from ..images import DataError
from .kit import Problem, Row, child, images, reserve

THIRDS = ((0, "good"), (-1, "uncertain 1/3"), (-1, "uncertain 2/3"), (1, "defective"))
KINDS = (("nominal", 0, "good"), ("local", 1, "local"), ("global", 1, "global"))


def elpv(root: Path, problems: list[Problem], probabilities: Iterable[float] = (0, 1)) -> list[Row]:
    """Return the rows of ELPV, one category per type of cell.

    ``probabilities`` are those of a defect to keep: 0 is normal, 1 defective; 1/3 and 2/3 get
    label -1 when asked for.
    """
    chosen, rows, table = {round(3 * p) for p in probabilities}, [], root / "labels.csv"
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
        try:
            path, probability, category = line.split()
            thirds = round(3 * float(probability))
            label, defect = THIRDS[thirds]
        except (ValueError, IndexError):
            form = "path probability type"
            raise DataError(f"{table}, line {number}: {line!r} is not {form!r}") from None
        if thirds in chosen:
            rows.append(Row(category, "test", label, defect, root / path))
    return reserve(rows)


def textile(root: Path, problems: list[Problem]) -> list[Row]:
    """Return the rows of the simulated textile: nominal, local and global changes."""
    rows = []
    for kind, label, defect in KINDS:
        rows += [Row("textile", "test", label, defect, p) for p in images(child(root, kind))]
    return reserve(rows)
