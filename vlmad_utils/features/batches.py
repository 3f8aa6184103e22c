"""Bring images through a model into the store, batch by batch.

An image goes from its file through ``read_image`` and ``Backbone.preprocess`` (:func:`load`), in
a batch through ``Backbone.encode_image`` (:func:`forward`), is rounded and stored
(:func:`encode_batch`). Batches run in this process, or on the workers of a Dask cluster.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from joblib import Parallel, delayed, parallel_config
from joblib.parallel import get_active_backend

from .. import data
from ..models.backbone import Backbone
from ..store import SYSTEM_LIMITS, MemoryStore, Store
from .kinds import request, stored_type

Item = str | os.PathLike[str] | np.ndarray  # an image: its path, or (H, W, 3) uint8, RGB
Failures = dict[str, Exception]  # {key of an image: why it could not be encoded}
Result = TypeVar("Result")


class Job(NamedTuple):
    """One image to encode."""

    key: str  # its content hash
    item: Item
    kinds: tuple[str, ...]  # what the store lacks of it


def run(
    model: Backbone, jobs: Sequence[Job], store: Store, batch_size: int
) -> Iterator[tuple[list[Job], Failures]]:
    """Yield each batch, once it is stored, and what failed in it.

    joblib's own backends would send a copy of the model to their processes with each batch, so
    only a cluster that keeps the model on its workers gets batches. It needs a store on disk:
    what a worker puts into its own memory is lost.
    """
    batches = [list(jobs[i : i + batch_size]) for i in range(0, len(jobs), batch_size)]
    backend, _ = get_active_backend()
    keeps_the_model = hasattr(backend, "data_futures")  # Dask's
    if not batches or not keeps_the_model or isinstance(store, MemoryStore):
        yield from zip(batches, _run_here(model, batches, store))
        return
    with _sent_once(model, backend):
        results = Parallel(return_as="generator")(
            delayed(_run_on_worker)(model, batch, store) for batch in batches
        )
    yield from zip(batches, results)


def _run_here(model: Backbone, batches: Iterable[list[Job]], store: Store) -> Iterator[Failures]:
    for batch, pixels in read_ahead(model, batches):
        yield encode_batch(model, batch, list(pixels), store)


def _run_on_worker(model: Backbone, batch: list[Job], store: Store) -> Failures:
    """Read the images there, too: paths are short, pixels are not."""
    [failures] = _run_here(model, [batch], store)
    return failures


def _sent_once(model: Backbone, backend: Any) -> AbstractContextManager:
    """Bring the model to every worker of Dask before the first batch; joblib sends it with each."""
    if id(model) in backend.data_futures:
        return nullcontext()
    return parallel_config(
        backend="dask",
        client=backend.client,
        scatter=[model],
        wait_for_workers_timeout=backend.wait_for_workers_timeout,
        **backend.submit_kwargs,
    )


def read_ahead(
    model: Backbone, batches: Iterable[list[Job]], n: int = 2
) -> Iterator[tuple[list[Job], Iterator[torch.Tensor | Exception]]]:
    """Yield batches with their pixels; threads read up to n further ones while the model works."""
    read = partial(attempt, partial(load, model))
    with ThreadPoolExecutor(4) as pool:
        waiting = deque()
        for batch in batches:
            waiting.append((batch, pool.map(read, [job.item for job in batch])))
            if len(waiting) > n:
                yield waiting.popleft()
        yield from waiting


def load(model: Backbone, item: Item) -> torch.Tensor:
    """Return the pixels (3, H, W) that the model sees of an image."""
    return model.preprocess(item if isinstance(item, np.ndarray) else data.read_image(item))


def attempt(function: Callable[[Item], Result], item: Item) -> Result | Exception:
    """Return what a function makes of an image, or the exception if the image is to blame.

    Raises
    ------
    OSError or MemoryError for what no image is to blame for, such as too many open files.
    """
    try:
        return function(item)
    except MemoryError:
        raise
    except Exception as error:  # reported by name by the caller, never swallowed
        if isinstance(error, OSError) and error.errno in SYSTEM_LIMITS:
            advice = f"{os.strerror(error.errno)}, no image is to blame. "
            advice += SYSTEM_LIMITS[error.errno]
            raise OSError(error.errno, advice, error.filename) from error
        return error


def encode_batch(
    model: Backbone,
    batch: Sequence[Job],
    pixels: Sequence[torch.Tensor | Exception],
    store: Store,
) -> Failures:
    """Encode a batch, store what the store lacks, and return what failed.

    Images of one batch may lack different kinds. Those that lack the same go through the model
    together.
    """
    failures: Failures = {}
    groups: dict[tuple[str, ...], list[tuple[str, torch.Tensor]]] = {}
    for job, image in zip(batch, pixels):
        if isinstance(image, Exception):
            failures[job.key] = image
            continue
        # another process may have stored some since the job was made
        lacking = tuple(kind for kind in job.kinds if not store.has(kind, job.key))
        if lacking:
            groups.setdefault(lacking, []).append((job.key, image))
    for kinds, group in sorted(groups.items(), key=lambda pair: pair[0]):
        arrays = forward(model, torch.stack([image for _, image in group]), kinds)
        for i, (key, _) in enumerate(group):
            strange = [kind for kind in kinds if not np.isfinite(arrays[kind][i]).all()]
            if strange:
                failures[key] = data.DataError(
                    f"the model gave NaN or numbers beyond 65504 ({', '.join(strange)}): check "
                    "its weights and its precision"
                )
                continue
            for kind in kinds:
                store.put(kind, key, arrays[kind][i])
    return failures


def forward(model: Backbone, pixels: torch.Tensor, kinds: Sequence[str]) -> dict[str, np.ndarray]:
    """Return arrays (B, ...) of these kinds for pixels (B, 3, H, W), rounded as they are stored."""
    if torch.device(model.device).type == "cuda":
        pixels = pixels.pin_memory()  # copied while the GPU works
    found = _within_memory(model, pixels, request(kinds))
    with np.errstate(over="ignore"):  # what is beyond float16 becomes infinite; the caller looks
        return {kind: found[kind].numpy().astype(stored_type(kind)) for kind in kinds}


def _within_memory(
    model: Backbone, pixels: torch.Tensor, asked: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Call ``model.encode_image``; halve a batch that is too large for the memory of a GPU."""
    try:
        return model.encode_image(pixels, **asked)
    except torch.OutOfMemoryError:
        if len(pixels) == 1:
            raise
    torch.cuda.empty_cache()  # after the except block: what the traceback held is free by now
    halves = [_within_memory(model, half, asked) for half in pixels.tensor_split(2)]
    return {kind: torch.cat([half[kind] for half in halves]) for kind in halves[0]}
