"""Write encoded batches to the store in a thread, while the device computes the next one."""

import queue
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self

import torch

from .. import data
from ..store import MemoryStore, Store

WAITING = 2  # batches that may wait: more would only fill memory
Failures = dict[str, Exception]  # {key of an image: why it could not be encoded}


class _Batch(NamedTuple):
    """Arrays on their way to the store."""

    keys: list[str]
    arrays: dict[str, torch.Tensor]
    finite: torch.Tensor  # (kinds, B) bool, beside them
    computed: torch.cuda.Event | None = None  # once it is over they can be read


class Writer:
    """Write batches in the order in which they come; the store is sealed at the end.

    After an error the next :meth:`put`, or the end of the ``with`` block, raises it. Batches that
    were waiting are written first, as far as that goes, so nothing that was computed is lost.

    Attributes
    ----------
    failures : {key: error} of images whose arrays are no numbers
    """

    def __init__(self, store: Store, seal: bool = True) -> None:
        self._seal = seal  # on a cluster that is done once, at the end
        self.store, self.failures = store, Failures()
        self._queue: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(WAITING)  # beside the queue: its end always has room
        self._error: BaseException | None = None
        self._copies: torch.cuda.Stream | None = None
        self._thread = threading.Thread(target=self._work, name="vlmad writer", daemon=True)

    def put(self, keys: Sequence[str], arrays: dict[str, torch.Tensor]) -> None:
        """Hand over arrays {kind: (B, ...)} of B images, of the types that are stored.

        Raises
        ------
        What writing an earlier batch raised; this one is written all the same.
        """
        finite = torch.stack([torch.isfinite(x).flatten(1).all(1) for x in arrays.values()])
        computed = None
        if finite.device.type == "cuda" and torch.cuda.is_available():
            computed = torch.cuda.Event()
            computed.record(torch.cuda.current_stream(finite.device))
        self._room.acquire()
        self._queue.put(_Batch(list(keys), arrays, finite, computed))
        self._raise()

    def _on_host(self, batch: _Batch) -> _Batch:
        """Copy a batch to the host, beside what the device computes meanwhile."""
        if batch.computed is None:
            arrays = {kind: x.cpu() for kind, x in batch.arrays.items()}
            return _Batch(batch.keys, arrays, batch.finite.cpu())
        if self._copies is None:
            self._copies = torch.cuda.Stream(batch.finite.device)
        # a store in memory keeps what it gets, and pinned memory is scarce
        pinned = not isinstance(self.store, MemoryStore)
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(batch.computed)
            arrays = {}
            for kind, x in batch.arrays.items():
                # "cpu": a caller may have set another device for new tensors
                host = torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=pinned)
                arrays[kind] = host.copy_(x, non_blocking=True)
            finite = batch.finite.cpu()
            self._copies.synchronize()
        return _Batch(batch.keys, arrays, finite)

    def _work(self) -> None:
        while (batch := self._queue.get()) is not None:
            self._room.release()
            try:
                batch = self._on_host(batch)  # the device's memory is free from here on
                self.failures |= write(self.store, batch.keys, batch.arrays, batch.finite)
            except BaseException as error:  # raised in the caller's thread
                self._error = self._error or error
            del batch  # its memory is free while this waits

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        try:
            if self._seal:
                self.store.seal()
        except Exception:
            if error is None and self._error is None:  # else the first error says more
                raise
        if error is None:
            self._raise()


def write(
    store: Store, keys: Sequence[str], arrays: dict[str, torch.Tensor], finite: torch.Tensor
) -> Failures:
    """Store arrays {kind: (B, ...)} of the host; return the images of which they are no numbers.

    Parameters
    ----------
    finite : (kinds, B) bool
    """
    failures: Failures = {}
    for key, column in zip(keys, finite.T.tolist()):
        strange = [kind for kind, fine in zip(arrays, column) if not fine]
        if strange:
            failures[key] = not_finite(strange)
    good = [i for i, key in enumerate(keys) if key not in failures]
    for kind, rows in arrays.items() if good else ():
        rows = rows.numpy()
        rows = rows if len(good) == len(keys) else rows[good]
        store.put_rows(kind, [keys[i] for i in good], rows)
    return failures


def not_finite(kinds: Sequence[str]) -> data.DataError:
    """Return the error of an image of which a model gave no numbers."""
    return data.DataError(
        f"the model gave NaN or numbers beyond 65504 ({', '.join(kinds)}): check "
        "its weights and its precision"
    )
