"""Measure time and memory on a machine that other work shares."""

import ctypes
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

PROCESSES = 3  # in which a memory is measured: what the system keeps for a process varies
Row = dict[str, Any]


def in_turn(rounds: int, warm_up: int = 1, /, **calls: Callable[[], Any]) -> dict[str, np.ndarray]:
    """Time calls in turn: each round times every call once.

    So other work on the machine hits all of them alike, and a ratio can be formed in each round.
    ``torch.utils.benchmark`` cannot do that: it times one statement to the end, then the next.

    Parameters
    ----------
    rounds : that count
    warm_up : rounds before them that do not
    calls : functions without arguments

    Returns
    -------
    {name: (rounds,) float64 seconds}
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-warm_up, rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()  # a GPU works on after the call
            if number >= 0:
                seconds[name].append(time.perf_counter() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def table_row(
    part: str,
    what: str,
    values: np.ndarray | Sequence[float] | float,
    unit: str = "s",
    goal: str = "",
) -> Row:
    """Return a row (part, what, unit, median, low, high, rounds, goal) of values (rounds,)."""
    values = np.atleast_1d(values)
    return {
        "part": part,
        "what": what,
        "unit": unit,
        "median": np.median(values),
        "low": values.min(),
        "high": values.max(),
        "rounds": len(values),
        "goal": goal,
    }


def in_fresh_process(
    task: Callable[..., Callable[[], Any]], *arguments: Any
) -> tuple[float, float]:
    """Measure ``task(*arguments)()`` in a new process: (seconds, MB).

    The memory is the highest above what was there before the call.

    Parameters
    ----------
    task : function of a module (it is pickled); it sets up, which is not measured, and returns
        the call that is measured
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measured, task, torch.get_num_threads(), arguments).result()


def _measured(
    task: Callable[..., Callable[[], Any]], threads: int, arguments: Sequence[Any]
) -> tuple[float, float]:
    torch.set_num_threads(threads)
    call = task(*arguments)
    forget_memory()
    before, began = highest_memory(), time.perf_counter()
    call()
    return time.perf_counter() - began, (highest_memory() - before) / 2**20


def forget_memory() -> None:
    """Give freed memory back to the system, and forget the highest so far (Linux with glibc)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def highest_memory() -> float:
    """Return the bytes that this process had in memory at most; NaN where that is not known.

    On Linux not by getrusage, which counts the parent after a spawn.
    """
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()):
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # on Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
