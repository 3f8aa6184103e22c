"""Index every data set in one tidy table: one row per image, the columns always ``COLUMNS``.

>>> index = data.index("elpv", limit=120)
>>> references = data.split_references(index, k_shot=4, seed=0)
"""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from .checks import check, first_lines, listed
from .images import DataError
from .layouts import DATASETS
from .layouts.kit import Layout, Problem, Row, in_order
from .layouts.procedural import planned
from .roots import draw, find, indent, own_root
from .sampling import subset

COLUMNS = ["dataset", "category", "split", "label"]
COLUMNS += ["defect", "image_path", "mask_path", "object_name"]


def index(
    name: str,
    root: str | Path | None = None,
    categories: str | Iterable[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    *,
    pixels: bool | None = None,
    object_names: str | Mapping[str, str] | None = None,
    references: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Return the index of a data set, sorted by category, split and path.

    Parameters
    ----------
    name : one of ``layouts.DATASETS``: mvtec, visa, btad, mpdd, kolektor_sdd, ksdd2, dagm,
        magnetic_tile, elpv, textile, procedural, or folder for own images
    root : folder of the data set (or one that holds it under a usual name); default the folder of
        data sets in the environment variable VLMAD_DATA, or what was fetched. ``elpv`` and
        ``textile`` are fetched on first use, ``procedural`` is drawn as far as the index lists it
    categories : one name or several; default all (for procedural: the families for evaluation)
    limit : at most so many test images, see :func:`subset`; train references are kept
    seed : of the choice that ``limit`` makes
    on_error : "raise" names broken files in an error; "skip" leaves them out, with one warning,
        and lists them as (path, reason) in ``index.attrs["skipped"]``
    pixels : check by decoding every image, not only its header; default only with "skip", as it
        takes minutes for large data sets
    object_names : words for prompts, as text or {category: text}; default the category's name in
        words
    references : False leaves the train images out
    options : of one layout: ``probabilities=(0, 1/3, 2/3, 1)`` for elpv, ``normals=<folder>`` for
        folder

    Returns
    -------
    DataFrame with the columns

    - dataset, category, object_name : str
    - split : "train" or "test". Data sets without a split (elpv, textile, kolektor_sdd,
      magnetic_tile, own good/ and bad/) give 100 normals per category, at most half, to train,
      always the same ones
    - label : 0 normal, 1 anomalous, -1 unknown; dagm and ksdd2 have anomalous images in train too
    - defect : "good" for normal, else its name
    - image_path, mask_path : absolute paths; mask_path is None for normal images and where there
      are no masks

    Raises
    ------
    DataError when the data set is missing (says where to get it, its licence and its layout), a
    category is unknown or empty, or (unless "skip") a file is corrupt, a mask is missing or of
    another size than its image.
    """
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}; known are {', '.join(DATASETS)}")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}: wanted 'raise' or 'skip'")
    asked = [categories] if isinstance(categories, str) else categories
    asked = None if asked is None else list(asked)
    layout, place = DATASETS[name], find(name, root, asked)
    problems: list[Problem] = []
    ours = name == "procedural" and not root and place == own_root(name)
    rows = planned(place, asked) if ours else layout.read(place, problems, **options)
    known = {row.category for row in rows} | {category for category, _, _ in problems}
    if not known:
        expected = f"wanted layout:\n{indent(layout.text)}"
        raise DataError(f"no image of {layout.title} found in {place}; {expected}")
    if unknown := sorted(set(asked or ()) - known):
        there = f"{layout.title} has {', '.join(sorted(known))}"
        raise DataError(f"no category {', '.join(unknown)} in {place}; {there}")
    chosen = layout.usual(known) if asked is None else set(asked)
    skipped = [(str(path), reason) for category, path, reason in problems if category in chosen]
    if skipped and on_error == "raise":
        raise DataError(listed(skipped))
    rows = [row for row in rows if row.category in chosen and (references or row.split == "test")]
    if isinstance(object_names, str):
        object_names = dict.fromkeys(known, object_names)
    table = _table(layout, rows, object_names or {})
    if ours:
        table = table if limit is None else subset(table, limit, seed)
        draw(place, table)
    decode = on_error == "skip" if pixels is None else pixels
    table = check(table, on_error, pixels=decode, skipped=skipped)
    left = set(table.loc[table["split"] == "test", "category"])
    # a limit may leave some of ours out
    if gone := sorted({row.category for row in rows if not ours} - left):
        text = f"no test image in {', '.join(gone)}"
        if on_error == "raise" or not left:
            lines = first_lines(table.attrs["skipped"])
            raise DataError("\n".join([f"{layout.title} in {place}: {text}", *lines]))
        warnings.warn(text, stacklevel=2)
    return table if limit is None else subset(table, limit, seed)


def own_categories(
    texts: Iterable[str], limit: int | None = None, seed: int = 0
) -> list[pd.DataFrame]:
    """Index own folders as a command line names them, one category each.

    Parameters
    ----------
    texts : CATEGORY=ROOT:OBJECT, e.g. cookie=sets/cookie:cookie
    limit, seed : as in :func:`index`

    Raises
    ------
    ValueError for a text of another form, a folder that holds several categories, or a category
    that is named twice.
    """
    found: dict[str, pd.DataFrame] = {}
    for text in texts:
        category, _, rest = text.partition("=")
        root, _, noun = rest.rpartition(":")
        if not (category and root and noun):
            raise ValueError(
                f"a folder is CATEGORY=ROOT:OBJECT, e.g. cookie=sets/cookie:cookie, found {text!r}"
            )
        if category in found:
            raise ValueError(f"category {category!r} is named twice: give each folder its own")
        own = index("folder", root=root, limit=limit, seed=seed)
        if len(there := list(dict.fromkeys(own["category"]))) > 1:
            raise ValueError(
                f"{root} holds {len(there)} categories, {', '.join(there)}, which would be mixed "
                f"in one: name each, e.g. {there[0]}={root}/{there[0]}:{noun}"
            )
        found[category] = own.assign(category=category, object_name=noun)
    return list(found.values())


def _table(layout: Layout, rows: list[Row], words: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows as a table, sorted; ``words`` come before the data set's own words."""
    records = []
    for row in sorted(rows, key=lambda row: (row.category, row.split, in_order(row.image))):
        noun = words.get(row.category) or row.noun or layout.words.get(row.category)
        about = (layout.name, row.category, row.split, row.label, row.defect)
        files = (str(row.image), str(row.mask) if row.mask else None)
        records.append((*about, *files, noun or row.category.replace("_", " ")))
    # object columns keep None as None and any file name as it is
    return pd.DataFrame(records, columns=COLUMNS, dtype=object).astype({"label": int})
