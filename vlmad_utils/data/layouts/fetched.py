"""The two sets that are fetched as packages: ELPV solar cells and simulated textile."""

from ..images import DataError
from .kit import Row, child, images, reserve


def elpv(root, problems, probabilities=(0, 1)):
    """``probabilities`` of a defect to keep: 0 is normal, 1 defective; 1/3 and 2/3 get label -1 when asked for."""
    kinds = ((0, "good"), (-1, "uncertain 1/3"), (-1, "uncertain 2/3"), (1, "defective"))  # thirds
    wanted, rows, table = {round(3 * p) for p in probabilities}, [], root / "labels.csv"
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
        try:
            path, probability, category = line.split()
            thirds = round(3 * float(probability))
            label, defect = kinds[thirds]
        except (ValueError, IndexError):
            raise DataError(
                f"{table}, line {number}: {line!r} is not 'path probability type'"
            ) from None
        if thirds in wanted:
            rows.append(Row(category, "test", label, defect, root / path))
    return reserve(rows)


def textile(root, problems):
    kinds = (("nominal", 0, "good"), ("local", 1, "local"), ("global", 1, "global"))
    return reserve(
        [
            Row("textile", "test", label, defect, image)
            for kind, label, defect in kinds
            for image in images(child(root, kind))
        ]
    )
