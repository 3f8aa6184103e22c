"""One small function per data set layout: which files are there, which are normal, which mask belongs to which image.

Masks are always found by name, never by order. A layout function gets the root folder and a list of problems; it
returns rows and appends (category, path, reason) for what is missing or broken instead of stopping. Titles, licences
and home pages stand in ``datasets.yaml``.
"""

import csv
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from .images import DataError, read_mask

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
GOOD = {"good", "ok", "normal", "normals", "nominal", "pass", "non_defective"}
BAD = {"bad", "ng", "nok", "ko", "fail", "defect", "defects", "defective", "anomaly", "anomalies", "anomalous",
       "abnormal"}  # fmt: skip
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


DATASETS = {}
_ABOUT = yaml.safe_load(Path(__file__).with_name("datasets.yaml").read_text(encoding="utf-8"))


def register(name, found, **more):
    """Decorator: enter a layout function into ``DATASETS``."""

    def enter(function):
        DATASETS[name] = Layout(name=name, found=found, read=function, **_ABOUT[name], **more)
        return function

    return enter


def _entries(folder, fits):
    """What fits directly in a folder, sorted; none if there is no folder. Hidden files do not count: macOS leaves
    ``._x.png`` beside ``x.png``."""
    try:
        if folder is None or not Path(folder).is_dir():
            return []
        return sorted(p for p in Path(folder).iterdir() if not p.name.startswith(".") and fits(p))
    except PermissionError as error:
        raise DataError(f"{error.filename}: no right to look into it; get it (chmod u+rx), or move the folder away") from None


def images(folder):
    """Image files directly in a folder; also links that lead nowhere, so that they are reported and not overlooked."""
    return _entries(folder, lambda p: p.suffix.lower() in EXTENSIONS and (p.is_file() or not p.exists()))


def subfolders(folder):
    """Folders directly in a folder. A link to a folder around it is not followed: it would show all images again."""
    return _entries(folder, lambda p: p.is_dir() and not (p.is_symlink() and Path(folder).resolve().is_relative_to(p.resolve())))


def starting(folder, start):
    """Subfolders whose name begins with ``start``, upper or lower case."""
    return [p for p in subfolders(folder) if p.name.lower().startswith(start)]


def child(folder, name):
    """Subfolder by name, upper or lower case; None when there is none."""
    return next((p for p in subfolders(folder) if p.name.lower() == name.lower()), None)


def categories(root):
    """Folders that hold train/ or test/."""
    return [folder for folder in subfolders(root) if child(folder, "test") or child(folder, "train")]


def by_stem(folder):
    """{name without extension: path} of the images in a folder."""
    return {path.stem: path for path in images(folder)}


def with_masks(category, defect, pictures, masks, problems, split="test", suffixes=("_mask", ""), where="ground_truth"):
    """Rows of defective images, each with the mask ``<stem><suffix>`` out of ``masks``; masks None: none are wanted."""
    rows, taken = [], {image.stem + suffixes[0] for image in pictures}  # x_mask.png is of x.png, never of x_mask.png
    for image in pictures:
        names = [image.stem + s for s in suffixes if s == suffixes[0] or image.stem + s not in taken]
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
    return [Row(category, split, 1, "defective", image, mask) if defective else Row(category, split, 0, "good", image)]


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


@register("mvtec", categories)
def mvtec(root, problems):
    return [row for base in categories(root) for row in tree(base, problems)]


register("mpdd", categories)(mvtec)


@register("btad", categories)
def btad(root, problems):
    return [row for base in categories(root) for row in tree(base, problems, renamed={"ko": "defective"})]


@register("visa", lambda root: (root / "split_csv" / "1cls.csv").is_file() or categories(child(root, "1cls") or root))
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
                problems.append((category, image, f"a defective image without mask: wanted {wanted}"))
    return rows


@register("kolektor_sdd", lambda root: starting(root, "kos"))
def kolektor_sdd(root, problems):
    rows = []
    for files in map(by_stem, starting(root, "kos")):
        for stem, image in files.items():
            if not stem.endswith("_label"):
                rows += by_mask("kolektor_sdd", "test", image, files.get(f"{stem}_label"), problems)
    return reserve(rows)


def _ground_truths(root):
    return [stem for split in ("train", "test") for stem in by_stem(child(root, split)) if stem.endswith("_GT")]


@register("ksdd2", _ground_truths)
def ksdd2(root, problems):
    rows = []
    for split in ("train", "test"):
        files = by_stem(child(root, split))
        for stem, image in files.items():
            if not stem.endswith("_GT"):
                rows += by_mask("ksdd2", split, image, files.get(f"{stem}_GT"), problems)
    return rows


@register("dagm", lambda root: starting(root, "class"))
def dagm(root, problems):
    rows = []
    for base in starting(root, "class"):
        for split in ("train", "test"):
            place = child(child(base, base.name) or base, split)  # some archives nest Class1/Class1
            labels = child(place, "label")
            files, listed = by_stem(labels), labels and labels / "Labels.txt"
            words = listed.read_text(encoding="utf-8", errors="replace").split() if listed and listed.is_file() else []
            defective = {Path(word).stem for word in words} | set(files)
            bad = [image for image in images(place) if f"{image.stem}_label" in defective]
            rows += with_masks(base.name, "defective", bad, files, problems, split, ("_label",), labels)
            rows += [Row(base.name, split, 0, "good", image) for image in images(place) if image not in bad]
    return rows


@register("magnetic_tile", lambda root: starting(root, "mt_"))
def magnetic_tile(root, problems):
    rows = []
    for base in starting(root, "mt_"):
        place, kind = child(base, "imgs") or base, base.name[3:].lower()
        pictures = [p for p in images(place) if p.suffix.lower() in (".jpg", ".jpeg")]
        masks = {p.stem: p for p in images(place) if p.suffix.lower() == ".png"}
        if kind == "free":
            rows += [Row("magnetic_tile", "test", 0, "good", image) for image in pictures]
        else:
            rows += with_masks("magnetic_tile", kind, pictures, masks, problems, suffixes=("",), where=place)
    return reserve(rows)


@register("elpv", lambda root: (root / "labels.csv").is_file())
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
            raise DataError(f"{table}, line {number}: {line!r} is not 'path probability type'") from None
        if thirds in wanted:
            rows.append(Row(category, "test", label, defect, root / path))
    return reserve(rows)


@register("textile", lambda root: child(root, "nominal"))
def textile(root, problems):
    kinds = (("nominal", 0, "good"), ("local", 1, "local"), ("global", 1, "global"))
    return reserve([Row("textile", "test", label, defect, image)
                    for kind, label, defect in kinds for image in images(child(root, kind))])  # fmt: skip


def _families():
    from .procedural.generate import FAMILIES  # here: only this data set needs the generator's imports

    return FAMILIES


def _evaluation(known):
    return {name for name in known if name not in _families() or _families()[name].role == "eval"} or known


@register("procedural", categories, usual=_evaluation)
def procedural(root, problems):
    nouns = {name: family.nouns[0] for name, family in _families().items()}
    return [row._replace(noun=nouns.get(row.category)) for row in mvtec(root, problems)]


def planned(root, families=None):
    """Rows of the procedural set as this project makes it, whether its pictures are drawn or not."""
    from .procedural.generate import pictures

    chosen = [n for n, f in _families().items() if f.role == "eval"] if families is None else families
    return [Row(name, p.path.parent.parent.name, int(p.mask is not None), p.defect, p.path, p.mask, _families()[name].nouns[0])
            for name in chosen for p in pictures(root, name)]


@register("folder", lambda root: root.is_dir())
def folder(root, problems, normals=None):
    """``normals``: another folder of normal images, which become train references of every category."""
    normals = Path(normals).absolute() if normals is not None else None
    bases = [root] if child(root, "test") or child(root, "train") else categories(root)
    if bases:
        rows = [row for base in bases for row in tree(base, problems, masks=child(base, "ground_truth") is not None)]
    else:
        rows = _own(root, problems, normals)
    if normals is not None:
        if not images(normals):
            problems.append((root.name, normals, "normals= holds no image"))
        nouns = {row.category: row.noun for row in rows}
        rows += [Row(category, "train", 0, "good", image, noun=noun)
                 for category, noun in nouns.items() for image in images(normals)]  # fmt: skip
    return rows


def _own(root, problems, normals):
    """good/ and bad/, or unlabelled images directly in the folder."""
    rows = [Row(root.name, "test", -1, "unknown", image) for image in images(root)]
    truth = next((child(root, name) for name in TRUTH if child(root, name)), None)
    kinds = [kind for kind in subfolders(root) if kind.name.lower() not in TRUTH and kind != normals]
    good = [kind for kind in kinds if kind.name.lower() in GOOD]
    rows += [Row(root.name, "test", 0, "good", image) for kind in good for image in images(kind)]
    for kind in kinds:
        # beside good/ every folder is a kind of defect; else only what is called so: it may hold somebody's results
        if kind not in good and (good or kind.name.lower() in BAD):
            for place in (kind, *subfolders(kind)):
                where = truth and truth / place.relative_to(root)
                masks = truth and by_stem(where)
                rows += with_masks(root.name, place.name, images(place), masks, problems, where=where)
    rows = [row._replace(noun="object") for row in rows]
    return rows if normals is not None else reserve(rows)
