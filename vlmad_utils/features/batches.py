"""Bring images through a model into the store, batch by batch.

What was read (:mod:`.reading`) goes in a batch to the device and through ``Backbone.encode_image``
(:func:`forward`), is rounded there, and stored by a thread (:mod:`.writing`). Batches run in this
process, or on the workers of a Dask cluster.
"""

import functools
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from joblib.parallel import get_active_backend

from .. import data
from ..models import resize
from ..models.backbone import Backbone
from ..store import MemoryStore, Store
from .cluster import on_own_card, spread
from .items import Item, name_of
from .kinds import request, torch_type
from .reading import EncodingError, read_ahead, reader
from .sizes import BatchSize, chosen, expected, no_memory, within_memory
from .writing import WAITING, Failures, Writer

TASKS = 16  # for each worker of a cluster: so many that all end at about the same time
MOST_AT_ONCE = 512  # images of a task


class Job(NamedTuple):
    """One image to encode."""

    key: str  # its content hash
    item: Item
    kinds: tuple[str, ...]  # what the store lacks of it


Ready = tuple[Job, torch.Tensor | Exception | None]  # and what reading it gave


def run(
    model: Backbone,
    ready: Iterator[Ready],
    store: Store,
    batch_size: BatchSize,
    seal: bool = True,
) -> Generator[tuple[int, Failures], None, None]:
    """Encode images and store them; yield for each batch its size and what failed in it.

    The last yield tells what failed after its batch, with the size 0.

    Raises
    ------
    EncodingError where the GPU fails; what was encoded before is then stored.
    """
    first = next(ready, None)
    if first is None:  # then nothing is measured, either
        return
    size, on_device = chosen(model, first[0].kinds, batch_size), Loader(model)
    with (
        gpu_errors("What was encoded before is stored, only the rest is computed") as flying,
        Writer(store, seal) as writer,
    ):
        for batch in batched(chain([first], ready), size):
            flying.append([job.item for job, _ in batch])
            yield len(batch), _encode(model, batch, store, on_device, writer)
    yield 0, writer.failures


def batched(items: Iterable[Any], n: int) -> Iterator[list[Any]]:
    """Yield lists of n items, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, n)):
        yield batch


@contextmanager
def gpu_errors(rest: str) -> Generator[deque[list[Item]], None, None]:
    """Name the images on which a GPU works when it fails.

    Yields
    ------
    the latest batches, to which each is added

    Raises
    ------
    EncodingError for an error of the driver; too little memory is none.
    """
    flying: deque[list[Item]] = deque(maxlen=WAITING + 2)
    try:
        yield flying
    except RuntimeError as error:
        driver = getattr(torch, "AcceleratorError", ())  # since PyTorch 2.8
        if no_memory(error) or not (isinstance(error, driver) or "CUDA error" in str(error)):
            raise
        names = [name_of(item) for items in flying for item in items]
        more = f" and {len(names) - 5} more images" if len(names) > 5 else ""
        raise EncodingError(
            f"the GPU failed ({error}) while it worked on {', '.join(names[:5])}{more}. {rest}: "
            "restart this process and run it again."
        ) from error


@functools.cache
def _stream_of(device: int) -> torch.cuda.Stream:
    """Return the stream on which all loaders of a GPU work: PyTorch keeps memory for each one."""
    return torch.cuda.Stream(device)


class Loader:
    """Bring images to the device of a model, on a GPU while it still works on others."""

    def __init__(self, model: Backbone) -> None:
        self.model = model
        self.device = torch.device(model.device)
        real = self.device.type == "cuda" and torch.cuda.is_available()
        self._stream = None
        if real:  # "cuda" is the current one
            i = self.device.index
            self._stream = _stream_of(torch.cuda.current_device() if i is None else i)

    def __call__(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the pixels (B, 3, H, W) float32 that the model sees.

        Parameters
        ----------
        images : from :func:`.reading.reader`: uint8 of any size for a GPU, else pixels
        """
        if self.device.type != "cuda":
            return torch.stack(list(images))
        model = self.model
        asked = (model.image_size, model.mean, model.std, self.device)

        def resized(some: Sequence[torch.Tensor]) -> torch.Tensor:
            return resize.pixels(some, *asked)

        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            pixels = _joined(within_memory(model, resized, images, ("pixels",)))
        if self._stream is None:
            return pixels
        now = torch.cuda.current_stream(self.device)
        now.wait_stream(self._stream)
        pixels.record_stream(now)  # its memory was taken for the other stream
        return pixels


def _encode(
    model: Backbone, batch: Sequence[Ready], store: Store, on_device: Loader, writer: Writer
) -> Failures:
    """Encode a batch and hand over what the store lacks; return the images that were not read.

    Images of one batch may lack different kinds. Those that lack the same go through the model
    together.
    """
    read = [(job, image) for job, image in batch if isinstance(image, torch.Tensor)]
    lacking: dict[str, set[str]] = {}  # another process may have stored some since they were read
    for kind in {kind for job, _ in read for kind in job.kinds}:
        lacking[kind] = set(store.lacking(kind, [j.key for j, _ in read if kind in j.kinds]))
    groups: dict[tuple[str, ...], list[tuple[Job, torch.Tensor]]] = {}
    for job, image in read:
        kinds = tuple(kind for kind in job.kinds if job.key in lacking[kind])
        if kinds:
            groups.setdefault(kinds, []).append((job, image))
    for kinds, group in sorted(groups.items(), key=lambda pair: pair[0]):
        arrays = forward(model, on_device([image for _, image in group]), kinds)
        writer.put([job.key for job, _ in group], arrays)
    return {job.key: image for job, image in batch if isinstance(image, Exception)}


def forward(model: Backbone, pixels: torch.Tensor, kinds: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return arrays (B, ...) of these kinds for pixels (B, 3, H, W), rounded as they are stored.

    What is beyond float16 becomes infinite.
    """

    def encoded(some: torch.Tensor) -> dict[str, torch.Tensor]:
        found = model.encode_image(some, **request(kinds))
        return {kind: found[kind].to(torch_type(kind)) for kind in kinds}

    parts = within_memory(model, encoded, pixels, kinds)
    return {kind: _joined([part[kind] for part in parts]) for kind in kinds}


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


# ---- on a Dask cluster ------------------------------------------------------------------------


def cluster(store: Store) -> Any:
    """Return joblib's active backend if it can encode for a store, else None.

    joblib's own backends would send a copy of the model to their processes with each batch, so
    only a cluster that keeps the model on its workers gets batches (Dask's). It needs a store on
    disk: what a worker puts into its own memory is lost.
    """
    backend, _ = get_active_backend()
    return (
        backend if hasattr(backend, "data_futures") and not isinstance(store, MemoryStore) else None
    )


def run_on_cluster(
    model: Backbone, ready: Iterator[Ready], store: Store, batch_size: BatchSize, backend: Any
) -> Generator[tuple[int, Failures], None, None]:
    """Do what :func:`run` does on the workers of a cluster, which read the images themselves."""
    jobs = [job for job, _ in ready]
    if not jobs:
        return
    # whole batches, so that each image meets the same others as in one process
    unit, workers = expected(model, batch_size), max(1, len(backend.client.ncores()))
    units = max(1, min(MOST_AT_ONCE, len(jobs) // (TASKS * workers)) // unit)
    parts = list(batched(jobs, unit * units))
    tasks = [(part, store, batch_size) for part in parts]
    names = [f"{name_of(part[0].item)} to {name_of(part[-1].item)}" for part in parts]
    try:
        with closing(spread(_run_on_worker, model, tasks, names, backend.client)) as found:
            yield from zip(map(len, parts), found)
    finally:
        store.seal()  # what workers wrote as well


def _run_on_worker(
    model: Backbone, part: list[Job], store: Store, batch_size: BatchSize
) -> Failures:
    """Read the images there, too: paths are short, pixels are not."""
    failures, model = Failures(), on_own_card(model)
    with closing(_read_again(model, part, store, expected(model, batch_size))) as ready:
        for _, failed in run(model, ready, store, batch_size, seal=False):
            failures |= failed
    return failures


def _read_again(
    model: Backbone, part: list[Job], store: Store, batch_size: int
) -> Generator[Ready, None, None]:
    """Yield images as long as their files still hold what was hashed."""
    read = reader(model, list(dict.fromkeys(kind for job in part for kind in job.kinds)), store)
    items = [job.item for job in part]
    with closing(read_ahead(read, items, model.device, len(part), batch_size)) as readings:
        for job, (_, found) in zip(part, readings):
            if found.key not in ("", job.key):
                yield job, data.DataError("the file changed while it was encoded: run this again")
            elif found.image is not None:  # else another process has stored it
                yield job, found.image
