"""Encode images once and keep their features where every notebook and method reads them.

Files of the store (:mod:`vlmad_utils.store`) are named by what makes them. So asking for more
later computes only the difference, another model or another image never meets old numbers, and
renamed or moved images are found again. A kill at any moment loses at most the batches in flight:
one on the device, three on their way to the store.
"""

import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from tqdm import tqdm

from .. import data
from ..models.backbone import Backbone
from ..paths import store_folder
from ..store import DiskStore, MemoryStore, Store
from . import sizes
from .arrays import Features
from .batches import Job, Ready, cluster, run, run_on_cluster
from .kinds import Names, kinds_of, request, shape_of
from .reading import Item, Read, name_of, read_ahead, read_and_hash, reader
from .writing import Failures

Images = pd.DataFrame | pd.Series | Iterable[Item] | Item


def encode(
    model: Backbone,
    images: Images,
    blocks: Names = (),
    windows: Names = (),
    patches: bool = True,
    store: Path | str | None = "auto",
    batch_size: sizes.BatchSize = "auto",
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
    batch_size : images per forward pass; "auto" is 8 on a CPU and what its memory holds on a GPU,
        at most 128. What a GPU cannot hold goes in parts; the model remembers their size
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
    or written; EncodingError where a process that reads images died or the GPU failed. After any
    of them the same call computes only the rest.

    Notes
    -----
    Each file is read once, for its hash and its pixels: by threads for a model on the CPU, by as
    many processes as there are cores for a model on a GPU, which resizes images itself, to the
    same numbers. A thread writes to the store meanwhile.

    Under ``joblib.parallel_config(backend="dask")`` batches spread over a cluster that shares the
    store and the images; the model is sent once. Without a store, and under joblib's other
    backends, batches run in this process. The numbers are the same. What another process stores
    meanwhile is not computed again.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is 'raise' or 'skip', found {on_error!r}.")
    sizes.check(batch_size)
    kinds = kinds_of(blocks, windows, patches)
    asked = request(kinds)  # as the model will be asked, so that no batch can be refused
    model.check_request(asked["blocks"], asked["windows"])

    index, items = _listed(images)
    where = MemoryStore() if store is None else DiskStore(store_folder(store), model.fingerprint)
    run_of = _Run(model, kinds, where, batch_size, progress)
    hashes, failures = run_of.fill(items, f"encode with {model.name}")
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

    kept, wanted = [items[i] for i in good], frozenset(good.values())

    def recompute() -> None:  # of a file that holds another image by now, nothing
        run_of.fill(kept, "mend the store", wanted)

    return Features(
        where,
        list(good.values()),
        model.grid,
        {kind: shape_of(model, kind) for kind in kinds},
        None if index is None else index.iloc[list(good)].reset_index(drop=True),
        recompute,
    )


class _Run:
    """Encode lists of images into a store with the same model and options."""

    def __init__(
        self,
        model: Backbone,
        kinds: Sequence[str],
        store: Store,
        batch_size: sizes.BatchSize,
        progress: bool,
    ) -> None:
        self.model, self.kinds, self.store = model, kinds, store
        self.batch_size, self.progress = batch_size, progress

    def fill(
        self, items: Sequence[Item], label: str, wanted: Collection[str] | None = None
    ) -> tuple[list[str | Exception], Failures]:
        """Compute what the store lacks of some images.

        Parameters
        ----------
        label : of the bar, which appears with the first image that lacks anything
        wanted : content hashes to which it is limited; None takes all

        Returns
        -------
        the hash of each image, or why it could not be read; {hash: why it could not be encoded}
        """
        hashes: list[str | Exception] = []
        failures: Failures = {}
        backend = cluster(self.store)
        read = reader(self.model, self.kinds, self.store)
        if backend is not None:  # its workers read the images
            read = partial(read_and_hash, None, self.kinds, self.store)
        with _Bar(len(items), label, self.progress) as bar:
            asked = (self.model, self._lacking(items, read, hashes, wanted, bar), self.store)
            if backend is None:
                found = run(*asked, self.batch_size)
            else:
                found = run_on_cluster(*asked, self.batch_size, backend)
            with closing(found):
                for n, failed in found:
                    failures |= failed
                    bar.update(n)
        return hashes, failures

    def _lacking(
        self,
        items: Sequence[Item],
        read: Read,
        hashes: list[str | Exception],
        wanted: Collection[str] | None,
        bar: "_Bar",
    ) -> Iterator[Ready]:
        """Yield a job for each distinct image of which the store lacks some kinds, and the image.

        The hash of each image goes to ``hashes``.
        """
        seen = set()
        ahead = 2 * sizes.expected(self.model, self.batch_size)
        with closing(read_ahead(read, items, self.model.device, len(items), ahead)) as readings:
            for item, found in readings:
                hashes.append(
                    found.image
                    if isinstance(found.image, Exception) and not found.key
                    else found.key
                )
                new = (
                    found.key and found.key not in seen and (wanted is None or found.key in wanted)
                )
                if new and found.lacks:
                    seen.add(found.key)
                    bar.start()
                    yield Job(found.key, item, found.lacks), found.image
                else:
                    bar.leave_out()


class _Bar:
    """Show images with rate and remaining time; nothing where there is nothing to do."""

    def __init__(self, total: int | None, label: str, show: bool) -> None:
        self.total, self.label, self.show = total, label, show
        self._bar: tqdm | None = None

    def start(self) -> None:
        """Show it, if it is not yet there."""
        if self._bar is None:
            # without progress nothing; else TQDM_DISABLE decides
            quiet: dict[str, Any] = {} if self.show else {"disable": True}
            self._bar = tqdm(total=self.total, desc=self.label, unit="image", **quiet)

    def leave_out(self) -> None:
        """Count one image less."""
        self.total = None if self.total is None else self.total - 1
        if self._bar is not None:
            self._bar.total = self.total

    def update(self, n: int) -> None:
        """Count n images as done."""
        if self._bar is not None:
            self._bar.update(n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


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
    read = partial(read_and_hash, None, (), MemoryStore())
    readings = [found for _, found in read_ahead(read, items, "cpu", len(items), 16)]
    errors = {i: f.image for i, f in enumerate(readings) if isinstance(f.image, Exception)}
    if errors:
        raise data.DataError(
            f"{len(errors)} of {len(items)} images cannot be read:\n"
            f"{_report(items, errors)}\nMend or remove them."
        )
    return [found.key for found in readings]


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


def _report(items: Sequence[Item], errors: Mapping[int, Exception]) -> str:
    """Return a line for each image that failed: its name and the error."""
    lines = []
    for i, error in errors.items():
        name = name_of(items[i])
        said = str(error).removeprefix(f"{name}: ")  # read_image names the file, too
        lines.append(f"  {name}: {said}")
    return "\n".join(lines)
