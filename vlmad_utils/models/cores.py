"""Share work between the cores of a CPU, and keep a caller's settings out of it."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch

from .onednn import OneDNN

Part = TypeVar("Part")
Result = TypeVar("Result")


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


@contextmanager
def own_precision(device: torch.device | str) -> Generator[None, None, None]:
    """Compute in the precision that a model says, whatever the caller chose for others.

    Autocast is off. Float32 products are float32: no TF32 on a GPU, no bfloat16 on a CPU. That
    setting holds for the whole process; it is changed only where a caller changed it, and back
    again. On a CPU layers go through oneDNN. Autocast and oneDNN are set per thread.
    """
    layers = OneDNN() if torch.device(device).type == "cpu" else nullcontext()
    with no_autocast(device), layers, _exact_products():
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
