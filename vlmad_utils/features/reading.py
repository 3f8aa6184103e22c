"""Read images ahead of the model: each file once, for its hash and its pixels.

Threads read for a CPU, whose cores the model needs itself. For a GPU processes read, one a core:
they hold neither the model nor the GPU, and send images through shared memory.
"""

import gc
import os
import pickle
import shutil
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import current_process
from typing import Any, NamedTuple, TypeVar

import joblib
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .. import data
from ..models import resize
from ..models.backbone import Backbone
from ..paths import content_hash
from ..store import SYSTEM_LIMITS, Store
from .items import Item

Prepare = Callable[[np.ndarray], torch.Tensor]
Result = TypeVar("Result")

LARGE = 2**28  # bytes of a file that is not held in memory beside its image
THREADS = 4
FEW = 256  # images for which no processes are started: that takes a second
PER_PROCESS = 4  # images that each process reads ahead
SHARED = PER_PROCESS * 3 * resize.MOST_PIXELS  # bytes of shared memory that each may fill


class EncodingError(RuntimeError):
    """Say what broke off a run, a process that reads or the GPU, and what to do."""


class Reading(NamedTuple):
    """What reading an image gave.

    Attributes
    ----------
    key : content hash; empty where the file could not be read, or nobody asked for it
    lacks : kinds that the store seems to lack of it
    image : what goes to the model, or why it could not be read; None where nothing is lacking
    """

    key: str
    lacks: tuple[str, ...]
    image: torch.Tensor | Exception | None


Read = Callable[[Item], Reading]


class _Raised(NamedTuple):
    """An error that no image is to blame for, on its way from a process."""

    error: Exception


def reader(model: Backbone, kinds: Sequence[str] | None = None, store: Store | None = None) -> Read:
    """Return what reads an image for a model, and decodes it only if the store lacks some kinds.

    Without a store each image is decoded, and none is hashed.
    """
    prepare: Prepare
    if torch.device(model.device).type == "cuda":  # the model itself stays here
        prepare = partial(resize.for_device, model.image_size)
    else:
        prepare = model.preprocess
    if store is None:
        return partial(read_only, prepare)
    return partial(read_and_hash, prepare, tuple(kinds or ()), store)


def read_only(prepare: Prepare, item: Item) -> Reading:
    """Read an image and nothing else."""
    return Reading("", (), attempt(lambda item: prepare(_decoded(_content(item), item)), item))


def read_and_hash(
    prepare: Prepare | None, kinds: Sequence[str], store: Store, item: Item
) -> Reading:
    """Hash an image; prepare it if the store lacks some kinds of it.

    Parameters
    ----------
    prepare : turns the array (H, W, 3) uint8 into what goes to the model; None only hashes
    """
    content = attempt(_content, item)
    if isinstance(content, Exception):
        return Reading("", (), content)
    state = attempt(_state, item) if content is None else None
    key = attempt(content_hash, item if content is None else content)
    if isinstance(key, Exception):
        return Reading("", (), key)
    # one look is enough for a new image; what is stored by now is left out before it is encoded
    new = bool(kinds) and not store.has(kinds[0], key)
    lacks = tuple(kind for kind in kinds if new or not store.has(kind, key))
    if not lacks or prepare is None:
        return Reading(key, lacks, None)

    def decoded(item: Item) -> torch.Tensor:
        image = prepare(_decoded(content, item))
        if content is None and _state(item) != state:  # its hash is of what it held before
            raise data.DataError("the file changed while it was read: run this again")
        return image

    return Reading(key, lacks, attempt(decoded, item))


def _state(item: Item) -> tuple[int, int] | None:
    """Return size and time of a file; None for an array."""
    if isinstance(item, np.ndarray):
        return None
    found = os.stat(item)
    return found.st_size, found.st_mtime_ns


def _content(item: Item) -> bytes | None:
    """Return the bytes of a file; None for an array, and for a file too large to hold."""
    if isinstance(item, np.ndarray):
        return None
    if not isinstance(item, (str, os.PathLike)):
        raise TypeError("an image is a path or an array (H, W, 3)")
    with open(item, "rb") as file:
        return None if os.fstat(file.fileno()).st_size > LARGE else file.read()


def _decoded(content: bytes | None, item: Item) -> np.ndarray:
    if isinstance(item, np.ndarray):
        return item
    return data.read_image(item) if content is None else data.decode_image(content, item)


def attempt(function: Callable[[Any], Result], item: Any) -> Result | Exception:
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


def read_ahead(
    read: Read, items: Iterable[Item], device: torch.device | str, n: int | None, ahead: int
) -> Generator[tuple[Item, Reading], None, None]:
    """Yield images and what reading them gave, in their order, while further ones are read.

    ``items`` may be endless: it is asked for few more than were taken.

    Parameters
    ----------
    device : of the model
    n : number of images, None where nobody knows
    ahead : images that threads read ahead
    """
    # an array would be copied to a process, and back
    held = isinstance(items, Sequence) and all(isinstance(item, np.ndarray) for item in items)
    if not held and processes_pay(device, n):
        return in_processes(read, items, joblib.cpu_count())
    if torch.device(device).type == "cuda":
        return in_threads(partial(_pinned, read), items, ahead, max(THREADS, joblib.cpu_count()))
    return in_threads(read, items, ahead, THREADS)


def _pinned(read: Read, item: Item) -> Reading:
    """Read an image into memory that a GPU copies by itself."""
    found = read(item)
    if isinstance(found.image, torch.Tensor):
        return found._replace(image=found.image.pin_memory())
    return found


def processes_pay(device: torch.device | str, n: int | None) -> bool:
    """Return whether processes read faster than threads, and can be had.

    They start by fork, where a script needs no ``if __name__ == "__main__"``. A process that may
    have no children, as a worker of Dask, reads in threads. So does one with little shared memory
    (in Docker see ``--shm-size``).
    """
    if torch.device(device).type != "cuda" or (n is not None and n < FEW):
        return False
    cores = joblib.cpu_count()
    if not sys.platform.startswith("linux") or current_process().daemon or cores < 2:
        return False
    return os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free >= cores * SHARED


def in_threads(
    read: Read, items: Iterable[Item], ahead: int, threads: int
) -> Generator[tuple[Item, Reading], None, None]:
    """Read in threads, ``ahead`` images further than what was taken."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(read, item)))
                if len(waiting) > ahead:
                    first, found = waiting.popleft()
                    yield first, found.result()
            while waiting:
                first, found = waiting.popleft()
                yield first, found.result()
        finally:
            for _, found in waiting:  # after an error nobody waits for them
                found.cancel()


class _Each(Dataset):
    """Read any item in a process of a DataLoader, whose sampler gives the items themselves."""

    def __init__(self, read: Read) -> None:
        self.read = read

    def __getitem__(self, index: Item) -> Reading | _Raised:
        try:
            found = self.read(index)
        except Exception as error:  # a DataLoader would hide it in the text of a traceback
            return _Raised(_sendable(error))
        if isinstance(found.image, Exception):
            return found._replace(image=_sendable(found.image))
        return found


def _sendable(error: Exception) -> Exception:
    """Return an error that another process can read."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class does
        return data.DataError(f"{type(error).__name__}: {error}")
    return error


def in_processes(
    read: Read, items: Iterable[Item], processes: int
) -> Generator[tuple[Item, Reading], None, None]:
    """Read in processes, which start by fork and end with the generator.

    Raises
    ------
    EncodingError where one of them died, e.g. killed because memory ran out.
    """
    waiting: deque[Item] = deque()

    def told() -> Iterator[Item]:
        for item in items:
            waiting.append(item)
            yield item

    loader = DataLoader(
        _Each(read),
        sampler=told(),
        batch_size=None,
        num_workers=processes,
        prefetch_factor=PER_PROCESS,
        collate_fn=_same,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="fork",
        generator=torch.Generator(),  # else it would draw from the user's
    )
    gc.collect()
    gc.freeze()  # else collecting garbage in a process would copy what it shares with this one
    # "cpu": a caller may have set another device for new tensors
    with warnings.catch_warnings(), torch.device("cpu"):
        # of Python 3.12 and later; they run no code of torch's threads
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
        try:
            found: Any = iter(loader)
        finally:
            gc.unfreeze()
    try:
        yield from _received(found, waiting)
    finally:
        # now, not when the last traceback is forgotten, maybe in another process
        found._shutdown_workers()


def _received(
    found: Iterator[Any], waiting: deque[Item]
) -> Generator[tuple[Item, Reading], None, None]:
    """Yield what processes send, with the image that it belongs to."""
    while True:
        try:
            reading = next(found)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise EncodingError(
                f"a process that reads images died ({error}). What was encoded before is stored. "
                "It was killed or crashed; often memory ran out: free memory and run this again, "
                "only the rest is computed."
            ) from error
        if isinstance(reading, _Raised):
            raise reading.error
        # the thread that pins memory makes a list of a tuple
        yield waiting.popleft(), reading._replace(lacks=tuple(reading.lacks))


def _same(found: Any) -> Any:
    return found
