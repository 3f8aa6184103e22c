"""Share work between the cores of a CPU, and keep a caller's settings out of it."""

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

import torch

from .onednn import OneDNN

Part = TypeVar("Part")
Result = TypeVar("Result")
HALF_SUMS = (  # what PyTorch may do in half on CUDA
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)


def on_all_cores(
    function: Callable[[Part], Result],
    parts: Sequence[Part],
    device: torch.device,
    least: int = 2,
) -> list[Result]:
    """Return [function(part), ...]; on a CPU each core takes whole parts.

    Small products do not split well.

    Parameters
    ----------
    least : parts from which cores work by themselves; PyTorch splits the products of fewer
    """
    n = torch.get_num_threads()
    if device.type != "cpu" or n < 2 or len(parts) < least:
        return [function(part) for part in parts]
    try:
        with ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, parts))
    finally:
        torch.set_num_threads(n)  # the workers' setting would hold for later threads, too


def no_autocast(device: torch.device | str) -> torch.autocast:
    """Return the context in which a caller's autocast does not hold."""
    return torch.autocast(torch.device(device).type, enabled=False)


class Shared:
    """A setting of the whole process that holds while any thread is inside.

    The first thread makes it, the last one takes it back: each by itself would take it from others.

    Parameters
    ----------
    setting : makes the context that sets it
    """

    def __init__(self, setting: Callable[[], AbstractContextManager[Any]]) -> None:
        self._setting, self._lock, self._inside = setting, threading.Lock(), 0
        self._undone = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._undone.enter_context(self._setting())
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._undone.close()


@contextmanager
def own_precision(device: torch.device | str) -> Generator[None, None, None]:
    """Compute in the precision that a model says, whatever the caller chose for others.

    As :func:`exact`; besides, on a CPU layers go through oneDNN, which is set per thread.
    """
    layers = OneDNN() if torch.device(device).type == "cpu" else nullcontext()
    with exact(device), layers:
        yield


@contextmanager
def exact(device: torch.device | str) -> Generator[None, None, None]:
    """Compute without what a caller chose for speed.

    Autocast is off, which is set per thread. Float32 products are float32: no TF32 on a GPU, no
    bfloat16 on a CPU. On CUDA sums of half products are float32. These settings hold for the whole
    process; they are changed only where they differ, and back again when no thread is inside.
    """
    sums = _FULL_SUMS if torch.device(device).type == "cuda" else nullcontext()
    with no_autocast(device), _EXACT_PRODUCTS, sums:
        yield


@contextmanager
def _exact_products() -> Generator[None, None, None]:
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller uses PyTorch's newer settings, which do not mix with these
        with _exact_by_newer_settings():
            yield
        return
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _exact_by_newer_settings() -> Generator[None, None, None]:
    owners = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # pyrefly: ignore
    before = [owner.fp32_precision for owner in owners]
    try:
        for owner in owners:
            owner.fp32_precision = "ieee"
        yield
    finally:
        for owner, value in zip(owners, before):
            owner.fp32_precision = value


@contextmanager
def _full_sums() -> Generator[None, None, None]:
    owner = torch.backends.cuda.matmul
    found = [name for name in HALF_SUMS if getattr(owner, name, False)]
    splits = {name: getattr(owner, f"{name}_split_k", True) for name in found}
    try:
        for name in found:
            setattr(owner, name, False)
        yield
    finally:
        for name, split in splits.items():
            setattr(owner, name, True if split else (True, False))


_EXACT_PRODUCTS, _FULL_SUMS = Shared(_exact_products), Shared(_full_sums)
