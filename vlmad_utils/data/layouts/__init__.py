"""Read every layout: one small module per family, one function per data set.

Titles, licences and home pages are in ``datasets.yaml``.
"""

from pathlib import Path

import yaml

from .fetched import elpv, textile
from .kit import Layout, categories, child, starting
from .mvtec import btad, has_categories, mvtec, visa
from .own_folder import folder
from .procedural import evaluation_families, procedural
from .surfaces import dagm, ground_truths, kolektor_sdd, ksdd2, magnetic_tile

_READERS = {  # name: (does a folder look like it?, how it is read)
    "mvtec": (categories, mvtec),
    "mpdd": (categories, mvtec),
    "btad": (categories, btad),
    "visa": (has_categories, visa),
    "kolektor_sdd": (lambda root: starting(root, "kos"), kolektor_sdd),
    "ksdd2": (ground_truths, ksdd2),
    "dagm": (lambda root: starting(root, "class"), dagm),
    "magnetic_tile": (lambda root: starting(root, "mt_"), magnetic_tile),
    "elpv": (lambda root: (root / "labels.csv").is_file(), elpv),
    "textile": (lambda root: child(root, "nominal"), textile),
    "procedural": (categories, procedural),
    "folder": (lambda root: root.is_dir(), folder),
}
_USUAL = {"procedural": evaluation_families}
_ABOUT = yaml.safe_load(Path(__file__).with_name("datasets.yaml").read_text(encoding="utf-8"))
DATASETS = {
    name: Layout(name, found, read, **_ABOUT[name], usual=_USUAL.get(name, set))
    for name, (found, read) in _READERS.items()
}
