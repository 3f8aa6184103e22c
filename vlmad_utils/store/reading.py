"""Read ranges of a file into arrays: neighbours at once, large reads by several threads."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, TypeVar

import numpy as np
import torch

CHUNK = 1 << 20  # bytes that are read at once: they stay in the processor's cache
LARGE = 1 << 25  # bytes of a read from which threads share it
ALONE = (1 << 15) - 1  # numbers that torch copies in one thread

Item = TypeVar("Item")
Result = TypeVar("Result")


def neighbours(pairs: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int, int]]:
    """Return (first row, first position, n) of rows that are neighbours in file and result.

    Parameters
    ----------
    pairs : (row, position), sorted
    size : bytes of a row
    """
    most = max(1, CHUNK // max(1, size))
    found: list[tuple[int, int, int]] = []
    for row, i in pairs:
        first, start, n = found[-1] if found else (-1, -1, most)
        if n < most and (row, i) == (first + n, start + n):
            found[-1] = first, start, n + 1
        else:
            found.append((row, i, 1))
    return found


def read_at(stream: BinaryIO, into: np.ndarray, offset: int) -> None:
    """Fill an array with the bytes of a file from an offset; threads may share the file.

    Where the file ends early, the rest of the array is zero, and a checksum finds it.
    """
    view = into.data.cast("B") if into.size else memoryview(b"")
    while len(view):
        if hasattr(os, "preadv"):
            n = os.preadv(stream.fileno(), [view], offset)
        else:  # Windows
            stream.seek(offset)
            n = stream.readinto(view)  # pyrefly: ignore
        if not n:
            view[:] = bytes(len(view))
            return
        view, offset = view[n:], offset + n


def widen(rows: np.ndarray, out: np.ndarray) -> None:
    """Copy float16 to float32: torch is 8 times as fast as NumPy and gives the same numbers.

    It gets so few at once that it starts no threads of its own.
    """
    source, target = torch.from_numpy(rows), torch.from_numpy(out)
    if not out.flags.c_contiguous:
        target.copy_(source)
        return
    pairs = zip(source.reshape(-1).split(ALONE), target.view(-1).split(ALONE))
    for few, place in pairs:
        place.copy_(few)


def spread(function: Callable[[Item], Result], items: Sequence[Item], n_bytes: int) -> list[Result]:
    """Return the results in order; where they read many bytes, several are computed at once."""
    if n_bytes < LARGE or not hasattr(os, "preadv"):
        return list(map(function, items))
    with ThreadPoolExecutor(min(4, 1 + torch.get_num_threads())) as pool:
        return list(pool.map(function, items))
