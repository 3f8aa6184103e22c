"""Time and memory on a machine that other work shares: alternatives in turn, memory in a process of its own."""

import ctypes
import re
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch


def in_turn(rounds, warm_up=1, **calls):
    """{name: seconds (rounds,)} of calls without arguments: each round times every call once, so that other work on the
    machine hits them alike; ``warm_up`` rounds before them do not count."""
    seconds = {name: [] for name in calls}
    for number in range(-warm_up, rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            seconds[name] += [time.perf_counter() - began] * (number >= 0)
    return {name: np.array(values) for name, values in seconds.items()}


def table_row(part, what, values, unit="s", goal=""):
    """A row of a table (part, what, unit, median, low, high, rounds, goal) from values (rounds,), or from one."""
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


def in_fresh_process(task, *arguments):
    """(seconds, MB) of ``task(*arguments)()`` in a process of its own: time, and highest memory above what was there before.

    ``task`` is a function of a module (it is pickled); it sets up, which is not measured, and returns what is.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measured, task, torch.get_num_threads(), arguments).result()


def _measured(task, threads, arguments):
    torch.set_num_threads(threads)
    call = task(*arguments)
    forget_memory()
    before, began = highest_memory(), time.perf_counter()
    call()
    return time.perf_counter() - began, (highest_memory() - before) / 2**20


def forget_memory():
    """Return what was freed to the system, where glibc can, and forget the highest memory so far (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def highest_memory():
    """Bytes that this process had in memory at most, and not its parent, as getrusage says after a spawn on Linux."""
    with suppress(OSError):
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
