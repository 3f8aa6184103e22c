"""Find the folder of a data set; fetch or draw what the project can; else say what is missing.

Roots come from ``root=``, or from the environment variable VLMAD_DATA, a folder that holds the data
sets under their usual names.
"""

import os
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
from filelock import FileLock

from vlmad_procedural import generate

from .. import paths
from . import fetch
from .images import DataError
from .layouts import DATASETS
from .layouts.kit import Layout


def available(root: str | Path | None = None) -> pd.DataFrame:
    """Return which data sets are there: name, title, licence, masks, present, where, home.

    Parameters
    ----------
    root : folder that holds data sets under their usual names; default VLMAD_DATA
    """
    rows = []
    for name, layout in DATASETS.items():
        if name == "folder":
            continue
        there = (p for p in _places(layout, root) if p.is_dir() and layout.found(p))
        where = str(next(there, ""))
        about = (layout.title, layout.licence, layout.masks)
        rows.append((name, *about, bool(where), where, layout.home))
    columns = ["name", "title", "licence", "masks", "present", "where", "home"]
    return pd.DataFrame(rows, columns=columns)


def licences(names: str | Iterable[str]) -> str:
    """Return the line about licences that goes with images of data sets.

    Parameters
    ----------
    names : of a data set, or of several (e.g. a column), each named once in the line

    Returns
    -------
    text, e.g. "elpv, CC BY-NC-SA 4.0; textile, MIT"
    """
    names = [names] if isinstance(names, str) else dict.fromkeys(names)
    return "; ".join(f"{name}, {DATASETS[name].licence}" for name in names)


def find(name: str, root: str | Path | None, families: list[str] | None) -> Path:
    """Return the absolute folder of a data set; fetch it where the project can.

    Parameters
    ----------
    name : key of ``DATASETS``
    root : a folder that holds it under a usual name, else the folder itself; None to look in
        VLMAD_DATA and where the project keeps its own
    families : of the procedural set, to be checked when it is not drawn yet

    Raises
    ------
    DataError when it is not there.
    """
    layout = DATASETS[name]
    if root and not paths.user_folder(root).is_dir():
        missing = paths.user_folder(root).absolute()
        raise DataError(f"{layout.title}: there is no folder {missing}")
    if name == "folder" and not root:
        expected = f"Wanted layout:\n{indent(layout.text)}"
        raise DataError(f"own images need root=<their folder>. {expected}")
    places = _places(layout, root)
    for place in places:
        if place.is_dir() and layout.found(place) and (root or place != own_root(name)):
            return place
    if not root and name in fetch.SOURCES:
        return Path(os.path.abspath(fetch.fetch(name)[name]))
    if not root and name == "procedural":
        if unknown := sorted(set(families or ()) - set(generate.FAMILIES)):
            known = ", ".join(generate.FAMILIES)
            raise DataError(f"unknown families {', '.join(unknown)}; known are {known}")
        return own_root(name)
    looked = "\n".join(f"  {place}" for place in places)
    raise DataError(
        f"{layout.title} is not there. Looked for it in\n"
        f"{looked or '  nowhere: neither root= nor VLMAD_DATA is set'}\n"
        f"Get it from {layout.home}\n"
        f"(licence: {layout.licence}), then pass root=<its folder>, or set VLMAD_DATA to a\n"
        f"folder that holds it as one of {', '.join(layout.folders)}. Wanted layout:\n"
        f"{indent(layout.text)}"
    )


def own_root(name: str) -> Path:
    """Return where this project keeps a data set that it fetches or draws."""
    return paths.raw_dir().absolute() / name


def draw(root: Path, table: pd.DataFrame) -> None:
    """Draw the procedural images of an index that are not there yet.

    Raises
    ------
    DataError when the folder cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        # two notebooks may ask at once; where nobody can write, the images are there or an error
        with FileLock(root / ".lock") if os.access(root, os.W_OK) else nullcontext():
            images = set(map(Path, table["image_path"]))
            generate.write(root, table["category"].unique(), only=images)
    except OSError as error:
        advice = "set VLMAD_RAW to a folder that can"
        raise DataError(f"{root}: cannot be written ({error}); {advice}") from error


def indent(text: str) -> str:
    """Return a text with two spaces before each line."""
    return "\n".join("  " + line for line in text.strip().splitlines())


def _places(layout: Layout, root: str | Path | None) -> list[Path]:
    """Return the folders where a data set may be, first choice first."""
    home = root or os.environ.get("VLMAD_DATA")
    places = [paths.user_folder(home) / folder for folder in layout.folders] if home else []
    # last: any folder of data sets looks like one in MVTec AD's form
    places += [paths.user_folder(root)] if root else []
    if not root and layout.name in ("elpv", "textile", "procedural"):
        places.append(own_root(layout.name))
    return [Path(os.path.abspath(place)) for place in places]
