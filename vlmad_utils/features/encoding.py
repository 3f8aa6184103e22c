"""Encode images once and keep their features where every notebook and method reads them.

Files of the store (:mod:`vlmad_utils.store`) are named by what makes them. So asking for more
later computes only the difference, another model or another image never meets old numbers, and
renamed or moved images are found again. A kill at any moment loses at most the batches in flight:
one on the device, three on their way to the store.
"""

import warnings
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd

from .. import data
from ..models.backbone import Backbone
from ..paths import store_folder
from ..store import DiskStore, MemoryStore, Store
from . import sizes
from .arrays import Features
from .bars import Bar
from .batches import Job, Ready, cluster, run, run_on_cluster
from .items import Images, Item, items_of, name_of, reason, report
from .kinds import Names, kinds_of, request, shape_of
from .reading import Read, read_ahead, read_and_hash, reader
from .writing import Failures


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
    many processes as there are cores for a model on a GPU (CUDA), which resizes images itself, to
    the same numbers. Threads read for a GPU, too, where there are fewer than 256 images, on Windows
    and macOS, with one core, on a worker of Dask, and where ``/dev/shm`` has less than 1 GiB free.
    A thread writes to the store meanwhile.

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
            f'{report(_failed(items, errors))}\nMend or remove them, or pass on_error="skip".'
        )
    if errors:
        warnings.warn(
            f"{len(errors)} of {len(items)} images were left out:\n{report(_failed(items, errors))}"
        )

    kept, wanted = [items[i] for i in good], frozenset(good.values())

    def recompute() -> dict[str, str]:  # {key: why not}
        hashes, failures = run_of.fill(kept, "mend the store", wanted)
        why = {}
        for key, item, found in zip(good.values(), kept, hashes):
            if isinstance(found, Exception):
                why[key] = reason(item, found)
            elif found != key:
                why[key] = f"{name_of(item)} holds another image by now"
            elif key in failures:
                why[key] = reason(item, failures[key])
        return why

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
        with (
            Bar(len(items), label, self.progress) as bar,
            # after an error its traceback keeps generators: close them now, with what they started
            closing(self._lacking(items, read, hashes, wanted, bar)) as ready,
        ):
            asked = (self.model, ready, self.store)
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
        bar: Bar,
    ) -> Generator[Ready, None, None]:
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
            f"{report(_failed(items, errors))}\nMend or remove them."
        )
    return [found.key for found in readings]


def _listed(images: Images) -> tuple[pd.DataFrame | None, list[Item]]:
    """Return the table, or None, and the images as a list."""
    index, items = items_of(images)
    return index, list(items)


def _failed(
    items: Sequence[Item], errors: Mapping[int, Exception]
) -> list[tuple[int, Item, Exception]]:
    """Return position, image and error of each image that failed."""
    return [(i, items[i], error) for i, error in errors.items()]
