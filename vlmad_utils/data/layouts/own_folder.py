"""Own images: MVTec AD's form, good/ beside bad/, or unlabelled ones."""

from pathlib import Path

from .kit import (
    BAD,
    GOOD,
    TRUTH,
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


def folder(root, problems, normals=None):
    """``normals``: another folder of normal images, which become train references of every category."""
    normals = Path(normals).absolute() if normals is not None else None
    bases = [root] if child(root, "test") or child(root, "train") else categories(root)
    if bases:
        rows = [
            row
            for base in bases
            for row in tree(base, problems, masks=child(base, "ground_truth") is not None)
        ]
    else:
        rows = _own(root, problems, normals)
    if normals is not None:
        if not images(normals):
            problems.append((root.name, normals, "normals= holds no image"))
        nouns = {row.category: row.noun for row in rows}
        rows += [
            Row(category, "train", 0, "good", image, noun=noun)
            for category, noun in nouns.items()
            for image in images(normals)
        ]
    return rows


def _own(root, problems, normals):
    """good/ and bad/, or unlabelled images directly in the folder."""
    rows = [Row(root.name, "test", -1, "unknown", image) for image in images(root)]
    truth = next((child(root, name) for name in TRUTH if child(root, name)), None)
    kinds = [
        kind for kind in subfolders(root) if kind.name.lower() not in TRUTH and kind != normals
    ]
    good = [kind for kind in kinds if kind.name.lower() in GOOD]
    rows += [Row(root.name, "test", 0, "good", image) for kind in good for image in images(kind)]
    for kind in kinds:
        # beside good/ every folder is a kind of defect; else only what is called so: it may hold somebody's results
        if kind not in good and (good or kind.name.lower() in BAD):
            for place in (kind, *subfolders(kind)):
                where = truth and truth / place.relative_to(root)
                masks = truth and by_stem(where)
                rows += with_masks(
                    root.name, place.name, images(place), masks, problems, where=where
                )
    rows = [row._replace(noun="object") for row in rows]
    return rows if normals is not None else reserve(rows)
