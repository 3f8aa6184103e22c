"""The procedural set, whose pictures this project draws."""

from vlmad_procedural.generate import FAMILIES, pictures

from .kit import Row
from .mvtec import mvtec


def evaluation_families(known):
    return {
        name for name in known if name not in FAMILIES or FAMILIES[name].role == "eval"
    } or known


def procedural(root, problems):
    nouns = {name: family.nouns[0] for name, family in FAMILIES.items()}
    return [row._replace(noun=nouns.get(row.category)) for row in mvtec(root, problems)]


def planned(root, families=None):
    """Rows of the procedural set as this project makes it, whether its pictures are drawn or not."""
    chosen = [n for n, f in FAMILIES.items() if f.role == "eval"] if families is None else families
    return [
        Row(
            name,
            p.path.parent.parent.name,
            int(p.mask is not None),
            p.defect,
            p.path,
            p.mask,
            FAMILIES[name].nouns[0],
        )
        for name in chosen
        for p in pictures(root, name)
    ]
