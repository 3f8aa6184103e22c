"""Read the procedural set, whose images this project draws."""

from collections.abc import Iterable
from pathlib import Path

from vlmad_procedural.generate import FAMILIES, pictures

from .kit import Problem, Row
from .mvtec import mvtec


def evaluation_families(known: set[str]) -> set[str]:
    """Return the families for evaluation among those there are; all when there are none."""
    return {n for n in known if n not in FAMILIES or FAMILIES[n].role == "eval"} or known


def procedural(root: Path, problems: list[Problem]) -> list[Row]:
    """Return the rows of images that lie in a folder."""
    nouns = {name: family.nouns[0] for name, family in FAMILIES.items()}
    return [row._replace(noun=nouns.get(row.category)) for row in mvtec(root, problems)]


def planned(root: Path, families: Iterable[str] | None = None) -> list[Row]:
    """Return the rows of the set as this project makes it, drawn or not.

    ``families`` defaults to those for evaluation.
    """
    if families is None:
        families = [name for name, family in FAMILIES.items() if family.role == "eval"]
    rows = []
    for name in families:
        for made in pictures(root, name):
            split, label = made.path.parent.parent.name, int(made.mask is not None)
            noun = FAMILIES[name].nouns[0]
            rows.append(Row(name, split, label, made.defect, made.path, made.mask, noun))
    return rows
