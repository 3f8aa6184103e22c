"""Read own images: MVTec AD's form, folders good/ and bad/, or unlabelled images."""

from pathlib import Path

from .kit import (
    BAD,
    GOOD,
    TRUTH,
    Problem,
    Row,
    by_stem,
    categories,
    child,
    images,
    reserve,
    subfolders,
    tree,
    with_masks,
)


def folder(root: Path, problems: list[Problem], normals: str | Path | None = None) -> list[Row]:
    """Return the rows of own images.

    ``normals`` is another folder of normal images: train references of every category.
    """
    normals = Path(normals).absolute() if normals is not None else None
    bases = [root] if child(root, "test") or child(root, "train") else categories(root)
    rows = [] if bases else _loose(root, problems, normals)
    for base in bases:
        rows += tree(base, problems, masks=child(base, "ground_truth") is not None)
    if normals is None:
        return rows
    references = images(normals)
    if not references:
        problems.append((root.name, normals, "normals= holds no image"))
    for category, noun in {row.category: row.noun for row in rows}.items():
        rows += [Row(category, "train", 0, "good", image, noun=noun) for image in references]
    return rows


def _loose(root: Path, problems: list[Problem], normals: Path | None) -> list[Row]:
    """Return the rows of good/ and bad/, and of unlabelled images directly in the folder."""
    rows = [Row(root.name, "test", -1, "unknown", image) for image in images(root)]
    truth = next(filter(None, (child(root, name) for name in TRUTH)), None)
    kinds = [p for p in subfolders(root) if p.name.lower() not in TRUTH and p != normals]
    good = [kind for kind in kinds if kind.name.lower() in GOOD]
    rows += [Row(root.name, "test", 0, "good", image) for kind in good for image in images(kind)]
    for kind in kinds:
        # with good/ every other folder is a kind of defect; without it only what is called so:
        # it may hold somebody's results
        if kind in good or not (good or kind.name.lower() in BAD):
            continue
        for place in (kind, *subfolders(kind)):
            where = truth / place.relative_to(root) if truth else None
            masks = by_stem(where) if truth else None
            rows += with_masks(root.name, place.name, images(place), masks, problems, where=where)
    rows = [row._replace(noun="object") for row in rows]
    return rows if normals is not None else reserve(rows)
