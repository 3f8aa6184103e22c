"""Share what the readers of layouts need: rows, folders, masks by name.

Masks are always found by name, never by order. A layout function gets the root folder and a list
of problems; it returns rows and appends (category, path, reason) for what is missing or broken
instead of stopping.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from ..images import DataError, read_mask

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
GOOD = {"good", "ok", "normal", "normals", "nominal", "pass", "non_defective"}
BAD = {"bad", "ng", "nok", "ko", "fail", "abnormal"}
BAD |= {"defect", "defects", "defective", "anomaly", "anomalies", "anomalous"}
TRUTH = ("ground_truth", "masks")
REFERENCES = 100  # normals per category kept for train where a data set has no split of its own

Problem = tuple[str, Path, str]  # category, path, reason


class Row(NamedTuple):
    """Describe one image.

    ``mask`` None: the data set has none for it; ``noun`` None: the category's name says it.
    """

    category: str
    split: str
    label: int
    defect: str
    image: Path
    mask: Path | None = None
    noun: str | None = None


@dataclass(frozen=True)
class Layout:
    """Hold what a reader must know to get a data set, and the functions that read its layout.

    Parameters
    ----------
    name : of the data set
    found : root -> does this folder look like it?
    read : (root, problems, **options) -> rows
    title, licence, home, text : of ``datasets.yaml``; ``text`` is the layout
    masks : whether there are pixel masks
    folders : usual folder names under VLMAD_DATA
    words : {category: object name}
    usual : categories there are -> those of an index that does not name any
    """

    name: str
    found: Callable[[Path], object]
    read: Callable[..., list[Row]]
    title: str
    licence: str
    home: str
    masks: bool
    folders: Sequence[str]
    text: str
    words: Mapping[str, str] = field(default_factory=dict)
    usual: Callable[[set[str]], set[str]] = set


def in_order(path: PurePath) -> tuple[str, ...]:
    """Return a key that sorts paths alike on every system; on Windows paths ignore case."""
    return path.parts


def _entries(folder: Path | None, fits: Callable[[Path], bool]) -> list[Path]:
    """Return what fits directly in a folder, sorted; nothing if there is no folder.

    Hidden files do not count: macOS leaves ``._x.png`` next to ``x.png``.
    """
    try:
        if folder is None or not Path(folder).is_dir():
            return []
        found = (p for p in Path(folder).iterdir() if not p.name.startswith(".") and fits(p))
        return sorted(found, key=in_order)
    except PermissionError as error:
        advice = "get it (chmod u+rx), or move the folder away"
        raise DataError(f"{error.filename}: no right to look into it; {advice}") from None


def images(folder: Path | None) -> list[Path]:
    """Return the image files directly in a folder.

    Links that lead nowhere count, so that they are reported and not overlooked.
    """

    def fits(path: Path) -> bool:
        return path.suffix.lower() in EXTENSIONS and (path.is_file() or not path.exists())

    return _entries(folder, fits)


def subfolders(folder: Path | None) -> list[Path]:
    """Return the folders directly in a folder.

    A link to a folder around it is not followed: it would show all images again.
    """

    def around(path: Path) -> bool:
        return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())

    return _entries(folder, lambda path: path.is_dir() and not around(path))


def starting(folder: Path, start: str) -> list[Path]:
    """Return the subfolders whose name begins with ``start``, upper or lower case."""
    return [p for p in subfolders(folder) if p.name.lower().startswith(start)]


def child(folder: Path | None, name: str) -> Path | None:
    """Return a subfolder by name, upper or lower case; None when there is none."""
    return next((p for p in subfolders(folder) if p.name.lower() == name.lower()), None)


def categories(root: Path) -> list[Path]:
    """Return the folders that hold train/ or test/."""
    return [
        folder for folder in subfolders(root) if child(folder, "test") or child(folder, "train")
    ]


def by_stem(folder: Path | None) -> dict[str, Path]:
    """Return {name without extension: path} of the images in a folder."""
    return {path.stem: path for path in images(folder)}


def with_masks(
    category: str,
    defect: str,
    pictures: Sequence[Path],
    masks: Mapping[str, Path] | None,
    problems: list[Problem],
    split: str = "test",
    suffixes: tuple[str, ...] = ("_mask", ""),
    where: Path | str | None = "ground_truth",
) -> list[Row]:
    """Return the rows of defective images, each with its mask ``<stem><suffix>``.

    Parameters
    ----------
    category, defect, split : of all rows
    pictures : image files
    masks : {stem: path}; None: the images need none
    problems : list that takes what is wrong
    suffixes : of the stems of masks, first choice first
    where : folder that a missing mask should be in, for the message
    """
    rows = []
    # x_mask.png is the mask of x.png, never of x_mask.png
    taken = {image.stem + suffixes[0] for image in pictures}
    for image in pictures:
        if masks is None:
            rows.append(Row(category, split, 1, defect, image))
            continue
        first, *others = (image.stem + suffix for suffix in suffixes)
        names = [first, *(name for name in others if name not in taken)]
        mask = next((masks[name] for name in names if name in masks), None)
        if mask:
            rows.append(Row(category, split, 1, defect, image, mask))
        else:
            reason = f"a defective image without mask: wanted {where}/{first}.png"
            problems.append((category, image, reason))
    return rows


def tree(
    base: Path,
    problems: list[Problem],
    masks: bool = True,
    renamed: Mapping[str, str] | None = None,
) -> list[Row]:
    """Return the rows of one category in MVTec AD's form.

    The form is {train,test}/<kind>/x.png, ground_truth/<kind>/x_mask.png (or x.png). Images
    directly in train/ are normal, directly in test/ unlabelled.

    Parameters
    ----------
    base : folder of the category
    problems : list that takes what is wrong
    masks : whether every defective image needs one
    renamed : {folder name: name of the defect}
    """
    rows, category, truth = [], base.name, child(base, "ground_truth")
    for split, label, loose in (("train", 0, "good"), ("test", -1, "unknown")):
        place = child(base, split)
        rows += [Row(category, split, label, loose, image) for image in images(place)]
        for kind in subfolders(place):
            if kind.name.lower() in GOOD:
                rows += [Row(category, split, 0, "good", image) for image in images(kind)]
                continue
            named = by_stem(truth and truth / kind.name) if masks else None
            defect = (renamed or {}).get(kind.name, kind.name)
            where = base / "ground_truth" / kind.name
            rows += with_masks(category, defect, images(kind), named, problems, split, where=where)
    if not any(row.split == "test" for row in rows) and not any(p[0] == category for p in problems):
        problems.append((category, base, "an empty category: no image under test/"))
    return rows


def by_mask(
    category: str, split: str, image: Path, mask: Path | None, problems: list[Problem]
) -> list[Row]:
    """Return the row of an image whose mask tells whether it is defective, or no row."""
    if mask is None:
        reason = "there is no mask next to it, which would tell its label"
        problems.append((category, image, reason))
        return []
    try:
        defective = read_mask(mask).any()
    except DataError as error:
        problems.append((category, image, f"its mask tells the label, but {error}"))
        return []
    if defective:
        return [Row(category, split, 1, "defective", image, mask)]
    return [Row(category, split, 0, "good", image)]


def reserve(rows: list[Row]) -> list[Row]:
    """Split a data set that has no split: some normals become train references, the rest is test.

    Per category ``REFERENCES`` normals, at most half of them, drawn with a fixed seed. The draw
    depends on the file names only.
    """
    kept = set()
    for category in sorted({row.category for row in rows}):
        normals = [row.image for row in rows if row.category == category and row.label == 0]
        normals.sort(key=in_order)
        order = np.random.default_rng([0, zlib.crc32(category.encode())]).permutation(len(normals))
        kept |= {normals[i] for i in order[: min(REFERENCES, len(normals) // 2)]}
    return [row._replace(split="train" if row.image in kept else "test") for row in rows]
