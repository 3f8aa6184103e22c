"""What the readers of layouts share: rows, folders, masks by name.

Masks are always found by name, never by order. A layout function gets the root folder and a list of problems; it
returns rows and appends (category, path, reason) for what is missing or broken instead of stopping.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..images import DataError, read_mask

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
GOOD = {"good", "ok", "normal", "normals", "nominal", "pass", "non_defective"}
BAD = {
    "bad",
    "ng",
    "nok",
    "ko",
    "fail",
    "defect",
    "defects",
    "defective",
    "anomaly",
    "anomalies",
    "anomalous",
    "abnormal",
}
TRUTH = ("ground_truth", "masks")
REFERENCES = 100  # normals per category kept for train where a data set has no split of its own


class Row(NamedTuple):
    """One image; ``mask`` None: the data set has none for it; ``noun`` None: the category's name says it."""

    category: str
    split: str
    label: int
    defect: str
    image: Path
    mask: Path | None = None
    noun: str | None = None


@dataclass(frozen=True)
class Layout:
    """A data set: what a reader must know to get it (``datasets.yaml``), and the functions that read its layout."""

    name: str
    found: Callable  # root -> does this folder look like it?
    read: Callable  # (root, problems, **options) -> rows
    title: str
    licence: str
    home: str
    masks: bool  # are there pixel masks?
    folders: tuple  # usual folder names under VLMAD_DATA
    text: str  # layout wanted
    words: dict = field(default_factory=dict)  # category -> object name
    usual: Callable = set  # categories there are -> those of an index that does not name any


def _entries(folder, fits):
    """What fits directly in a folder, sorted; none if there is no folder. Hidden files do not count: macOS leaves
    ``._x.png`` beside ``x.png``."""
    try:
        if folder is None or not Path(folder).is_dir():
            return []
        return sorted(p for p in Path(folder).iterdir() if not p.name.startswith(".") and fits(p))
    except PermissionError as error:
        raise DataError(
            f"{error.filename}: no right to look into it; get it (chmod u+rx), or move the folder away"
        ) from None


def images(folder):
    """Image files directly in a folder; also links that lead nowhere, so that they are reported and not overlooked."""
    return _entries(
        folder, lambda p: p.suffix.lower() in EXTENSIONS and (p.is_file() or not p.exists())
    )


def subfolders(folder):
    """Folders directly in a folder. A link to a folder around it is not followed: it would show all images again."""
    return _entries(
        folder,
        lambda p: (
            p.is_dir()
            and not (p.is_symlink() and Path(folder).resolve().is_relative_to(p.resolve()))
        ),
    )


def starting(folder, start):
    """Subfolders whose name begins with ``start``, upper or lower case."""
    return [p for p in subfolders(folder) if p.name.lower().startswith(start)]


def child(folder, name):
    """Subfolder by name, upper or lower case; None when there is none."""
    return next((p for p in subfolders(folder) if p.name.lower() == name.lower()), None)


def categories(root):
    """Folders that hold train/ or test/."""
    return [
        folder for folder in subfolders(root) if child(folder, "test") or child(folder, "train")
    ]


def by_stem(folder):
    """{name without extension: path} of the images in a folder."""
    return {path.stem: path for path in images(folder)}


def with_masks(
    category,
    defect,
    pictures,
    masks,
    problems,
    split="test",
    suffixes=("_mask", ""),
    where="ground_truth",
):
    """Rows of defective images, each with the mask ``<stem><suffix>`` out of ``masks``; masks None: none are wanted."""
    rows, taken = (
        [],
        {image.stem + suffixes[0] for image in pictures},
    )  # x_mask.png is of x.png, never of x_mask.png
    for image in pictures:
        names = [
            image.stem + s for s in suffixes if s == suffixes[0] or image.stem + s not in taken
        ]
        named = [masks[name] for name in names if name in masks] if masks is not None else [None]
        if named:
            rows.append(Row(category, split, 1, defect, image, named[0]))
        else:
            wanted = f"{where}/{image.stem}{suffixes[0]}.png"
            problems.append((category, image, f"a defective image without mask: wanted {wanted}"))
    return rows


def tree(base, problems, masks=True, renamed=None):
    """Rows of one category in MVTec AD's form: {train,test}/<kind>/x.png, ground_truth/<kind>/x_mask.png (or x.png).

    Images directly in train/ are normal, directly in test/ unlabelled.

    Parameters
    ----------
    base : folder of the category
    problems : list that takes what is wrong
    masks : whether every defective image needs one
    renamed : {folder name: name of the defect}
    """
    rows, category, truth = [], base.name, child(base, "ground_truth")
    for split, loose in (("train", (0, "good")), ("test", (-1, "unknown"))):
        place = child(base, split)
        rows += [Row(category, split, *loose, image) for image in images(place)]
        for kind in subfolders(place):
            if kind.name.lower() in GOOD:
                rows += [Row(category, split, 0, "good", image) for image in images(kind)]
                continue
            named = (by_stem(truth / kind.name) if truth else {}) if masks else None
            defect = (renamed or {}).get(kind.name, kind.name)
            where = f"{base / 'ground_truth' / kind.name}"
            rows += with_masks(category, defect, images(kind), named, problems, split, where=where)
    if not any(row.split == "test" for row in rows) and not any(p[0] == category for p in problems):
        problems.append((category, base, "an empty category: no image under test/"))
    return rows


def by_mask(category, split, image, mask, problems):
    """Row (none or one, as a list) of an image whose mask tells whether it is defective."""
    if mask is None:
        problems.append((category, image, "there is no mask beside it, which would tell its label"))
        return []
    try:
        defective = read_mask(mask).any()
    except DataError as error:
        problems.append((category, image, f"its mask tells the label, but {error}"))
        return []
    return [
        Row(category, split, 1, "defective", image, mask)
        if defective
        else Row(category, split, 0, "good", image)
    ]


def reserve(rows):
    """A split for data sets that have none: normals drawn with a fixed seed become train references, the rest is test.

    Per category ``REFERENCES`` normals, at most half of them. The draw depends on the file names only.
    """
    kept = set()
    for category in sorted({row.category for row in rows}):
        normals = sorted(row.image for row in rows if row.category == category and row.label == 0)
        order = np.random.default_rng([0, zlib.crc32(category.encode())]).permutation(len(normals))
        kept |= {normals[i] for i in order[: min(REFERENCES, len(normals) // 2)]}
    return [row._replace(split="train" if row.image in kept else "test") for row in rows]
