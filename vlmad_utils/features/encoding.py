"""Encode images once and keep their features where every notebook and method reads them.

Files of the store (:mod:`vlmad_utils.store`) are named by what makes them. So asking for more
later computes only the difference, another model or another image never meets old numbers, and
renamed or moved images are found again. A kill at any moment loses at most the batch in flight.
"""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from tqdm import tqdm

from .. import data
from ..models.backbone import Backbone
from ..paths import content_hash, store_folder
from ..store import DiskStore, MemoryStore, Store
from .arrays import Features
from .batches import Failures, Item, Job, attempt, run
from .kinds import Names, kinds_of, request, shape_of

Images = pd.DataFrame | pd.Series | Iterable[Item] | Item


def encode(
    model: Backbone,
    images: Images,
    blocks: Names = (),
    windows: Names = (),
    patches: bool = True,
    store: Path | str | None = "auto",
    batch_size: int = 8,
    progress: bool = True,
    on_error: Literal["raise", "skip"] = "raise",
) -> Features:
    """Encode images once; compute only what the store lacks.

    Parameters
    ----------
    model : Backbone
    images : DataFrame with a column image_path (from ``data.index``), a row of it, a list of
        paths or of (H, W, 3) uint8 arrays, or one path or array
    blocks, windows, patches : what to compute, see ``Backbone.encode_image``
    store : "auto" (:func:`vlmad_utils.paths.store_dir`), a folder, or None for memory only
    batch_size : images per forward pass; halved as often as the memory of a GPU asks for it
    progress : show a bar with rate and remaining time
    on_error : "raise", or "skip" to leave unreadable files out and report them

    Returns
    -------
    Features. Tokens, patches and windows are rounded to float16, also without a store, so scores
    do not depend on it. The image embedding is float32.

    Raises
    ------
    ValueError for what the model cannot give, before anything is read; DataError that names the
    images that cannot be read (the others are stored); StoreError where the store cannot be read
    or written.

    Notes
    -----
    Under ``joblib.parallel_config(backend="dask")`` batches spread over a cluster that shares the
    store and the images; the model is sent once. Without a store, and under joblib's other
    backends, batches run in this process. The numbers are the same. What another process stores
    meanwhile is not computed again.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is 'raise' or 'skip', found {on_error!r}.")
    if batch_size < 1:
        raise ValueError(f"batch_size is at least 1, found {batch_size!r}.")
    kinds = kinds_of(blocks, windows, patches)
    asked = request(kinds)  # as the model will be asked, so that no batch can be refused
    model.check_request(asked["blocks"], asked["windows"])

    index, items = _listed(images)
    where = MemoryStore() if store is None else DiskStore(store_folder(store), model.fingerprint)
    hashes = _hashes(items)

    def fill(todo: Sequence[Job], label: str) -> Failures:
        failures: Failures = {}
        quiet: dict[str, Any] = (
            {} if progress else {"disable": True}
        )  # left out, TQDM_DISABLE decides
        if todo:
            with tqdm(total=len(todo), desc=label, unit="image", **quiet) as bar:
                for batch, failed in run(model, todo, where, batch_size):
                    failures |= failed
                    bar.update(len(batch))
        return failures

    failures = fill(_lacking(where, kinds, items, hashes), f"encode with {model.name}")
    errors, good = {}, {}  # {position: error}, {position: key}
    for i, found in enumerate(hashes):
        if isinstance(found, Exception):
            errors[i] = found
        elif found in failures:
            errors[i] = failures[found]
        else:
            good[i] = found
    if errors and on_error == "raise":
        raise data.DataError(
            f"{len(errors)} of {len(items)} images could not be encoded (the others are stored):\n"
            f'{_report(items, errors)}\nMend or remove them, or pass on_error="skip".'
        )
    if errors:
        warnings.warn(
            f"{len(errors)} of {len(items)} images were left out:\n{_report(items, errors)}"
        )

    def recompute() -> None:
        lost = _lacking(where, kinds, [items[i] for i in good], list(good.values()))
        now = _hashes([job.item for job in lost])  # a file may hold another image by now
        fill([job for job, key in zip(lost, now) if key == job.key], "mend the store")

    return Features(
        where,
        list(good.values()),
        model.grid,
        {kind: shape_of(model, kind) for kind in kinds},
        None if index is None else index.iloc[list(good)].reset_index(drop=True),
        recompute,
    )


def keys(images: Images) -> list[str]:
    """Return what names each image in the store: a hash of its content, so a copy has the same.

    Parameters
    ----------
    images : as in :func:`encode`; none is encoded

    Raises
    ------
    DataError that names the files that cannot be read.
    """
    _, items = _listed(images)
    hashes = _hashes(items)
    errors = {i: found for i, found in enumerate(hashes) if isinstance(found, Exception)}
    if errors:
        raise data.DataError(
            f"{len(errors)} of {len(items)} images cannot be read:\n"
            f"{_report(items, errors)}\nMend or remove them."
        )
    return [str(found) for found in hashes]


def _listed(images: Images) -> tuple[pd.DataFrame | None, list[Item]]:
    """Return the table, or None, and the images as a list; a single one is a list of one."""
    if isinstance(images, pd.Series) and "image_path" in images.index:  # a row of a table
        images = images.to_frame().T.infer_objects()
    if isinstance(images, pd.DataFrame):
        if "image_path" not in images:
            columns = ", ".join(map(str, images.columns))
            raise ValueError(
                f"The table has no column image_path, found {columns}: see data.index."
            )
        return images.reset_index(drop=True), list(images["image_path"])
    if isinstance(images, (str, os.PathLike)):
        return None, [images]
    if isinstance(images, np.ndarray) and images.ndim in (2, 3):
        return None, [images]
    if not isinstance(images, Iterable):
        raise TypeError(
            "images is a table of data.index, a list of paths or of arrays (H, W, 3), or one of "
            f"these, found {type(images).__name__}."
        )
    return None, list(images)


def _hashes(items: Sequence[Item]) -> list[str | Exception]:
    """Return the content hash of each image, or the exception that reading it raised."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda item: attempt(_hash, item), items))


def _hash(item: Item) -> str:
    if not isinstance(item, (str, os.PathLike, np.ndarray)):
        raise TypeError("an image is a path or an array (H, W, 3)")
    return content_hash(Path(item) if isinstance(item, os.PathLike) else item)


def _lacking(
    store: Store, kinds: Sequence[str], items: Sequence[Item], hashes: Sequence[str | Exception]
) -> list[Job]:
    """Return a job for each distinct image of which the store lacks some kinds."""
    jobs: dict[str, Job] = {}
    for item, key in zip(items, hashes):
        if isinstance(key, Exception) or key in jobs:
            continue
        missing = tuple(kind for kind in kinds if not store.has(kind, key))
        if missing:
            jobs[key] = Job(key, item, missing)
    return list(jobs.values())


def _report(items: Sequence[Item], errors: Mapping[int, Exception]) -> str:
    """Return a line for each image that failed: its name and the error."""
    lines = []
    for i, error in errors.items():
        item = items[i]
        if isinstance(item, np.ndarray):
            name = f"array {item.shape}"
        else:
            name = str(item) if isinstance(item, (str, os.PathLike)) else type(item).__name__
        said = str(error).removeprefix(f"{name}: ")  # read_image names the file, too
        lines.append(f"  {name}: {said}")
    return "\n".join(lines)
