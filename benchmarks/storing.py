"""Measure the feature store: how many files it has, and how fast it is read."""

import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlmad_utils.store import DiskStore

from .timing import Row, in_turn, table_row

KINDS = ("image", "patches", "tokens-6", "tokens-final", "windows-2", "windows-3")  # of an image
BATCH = 64  # images that are encoded at once


def storing(o: Mapping[str, Any]) -> Iterator[Row]:
    """Count the files of many images; time reading against a plain sequential read."""
    yield from _files(o["stored"])
    yield from _reading(o["read"])


def _files(n: int) -> Iterator[Row]:
    """Store rows of two numbers: files depend on the number of rows only."""
    keys = [f"{i:064x}" for i in range(n)]
    with tempfile.TemporaryDirectory() as folder:
        store, began = DiskStore(folder, "fingerprint"), time.perf_counter()
        for start in range(0, n, BATCH):
            some = keys[start : start + BATCH]
            rows = np.arange(2 * len(some), dtype=np.float16).reshape(-1, 2)
            for kind in KINDS:
                store.put_rows(kind, some, rows)
        store.seal()
        seconds = time.perf_counter() - began
        found = sum(path.is_file() for path in Path(folder).rglob("*"))
        began = time.perf_counter()
        fresh = DiskStore(folder, "fingerprint")
        lacking = sum(len(fresh.lacking(kind, keys)) for kind in KINDS)
        looked = time.perf_counter() - began
    if lacking:
        raise AssertionError(f"The store lacks {lacking} of {n * len(KINDS)} rows it was given.")
    what = f"{n:,} images, {len(KINDS)} kinds"
    goal = "<= 2000" if n == 150_000 else ""
    yield table_row("store", f"{what}: files", found, "", goal)
    yield table_row(
        "store", f"{what}: to write them in batches, ms an image", 1000 * seconds / n, "ms"
    )
    yield table_row("store", f"{what}: to look for all of them anew", looked)


def _reading(n: int) -> Iterator[Row]:
    """Read n arrays of the size that 196 windows have, all of them lately written."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n, 196, 640), np.float32).astype(np.float16)
    keys, buffer = [f"{i:064x}" for i in range(n)], bytearray(1 << 20)
    halves, floats = np.empty_like(rows), np.empty(rows.shape, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        store = DiskStore(folder, "fingerprint")
        for start in range(0, n, BATCH):
            store.put_rows("windows-2", keys[start : start + BATCH], rows[start : start + BATCH])
        store.seal()
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())

        def plain() -> None:
            for path in files:
                with open(path, "rb", buffering=0) as stream:
                    while stream.readinto(buffer):
                        pass

        calls = {
            "plain": plain,
            "first": lambda: DiskStore(folder, "fingerprint").read("windows-2", keys, floats),
            "again": lambda: store.read("windows-2", keys, floats),
            "stored": lambda: store.read("windows-2", keys, halves),
        }
        s = in_turn(5, 1, **calls)
    if not np.array_equal(halves, rows) or not np.array_equal(floats, rows.astype(np.float32)):
        raise AssertionError("The store gave other numbers than it was given.")
    yield table_row(
        "store", "plain sequential read, files in memory", rows.nbytes / 1e9 / s["plain"], "GB/s"
    )
    for name, what in {
        "stored": "as they are stored",
        "again": "to float32",
        "first": "to float32, for the first time, with checksums",
    }.items():
        goal = ">= 0.7" if name == "stored" else ""
        rate = f"rate of reading arrays {what} / plain read of the files"
        yield table_row("store", rate, s["plain"] / s[name], "x", goal)
