"""Share work between the cores of a CPU."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

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
