"""Write, read and bundle shards: files of many rows, each written whole or not at all.

A row has a CRC-32 over its key and its bytes, so that it is never taken for another. A shard is
never changed: new rows make a new one, and :func:`bundle` makes a large one of many small ones.
"""

import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .. import paths
from .header import Damaged, Foreign, Form, decoded, encoded, file_name, row_bytes
from .reading import neighbours, read_at, spread, widen

SUFFIX = ".safetensors"
PART = ".part"  # of a file that is not whole yet
BUNDLE = ".bundle.part"  # of one that only a process with the claim writes
HEADER = 100_000_000  # bytes; safetensors reads no longer header either


class DamagedRow(ValueError):
    """Say that a row does not fit its checksum.

    Attributes
    ----------
    shard : of the row
    """

    def __init__(self, shard: "Shard") -> None:
        super().__init__(f"{shard.path} holds a row that does not fit its checksum")
        self.shard = shard


@dataclass(eq=False)
class Shard:
    """One file: what its header says, and which of its rows were found right."""

    path: Path
    keys: list[str]  # "" for a damaged row that could not be taken out of the file
    crcs: np.ndarray  # (n,) uint32, over key and row
    form: Form
    start: int  # bytes before row 0
    stamp: tuple[int, ...]  # of the file that was looked at
    right: np.ndarray = field(init=False)  # (n,) bool, found right once by this process

    def __post_init__(self) -> None:
        self.right = np.zeros(len(self.keys), bool)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def n_bytes(self) -> int:
        """Return the bytes of all rows."""
        return len(self) * row_bytes(self.form)

    def open(self) -> BinaryIO:
        """Open the file that was looked at.

        Raises
        ------
        FileNotFoundError when it is gone or is another one by now.
        """
        stream = open(self.path, "rb", buffering=0)
        if stamp_of(os.fstat(stream.fileno())) == self.stamp:
            return stream
        stream.close()
        raise FileNotFoundError(f"{self.path} has changed")

    def unlink(self) -> None:
        """Remove the file, if it is still the one that was looked at.

        Raises
        ------
        PermissionError for another user's file, or on Windows for one that somebody reads.
        """
        with suppress(FileNotFoundError):
            if stamp_of(os.stat(self.path)) == self.stamp:
                os.unlink(self.path)

    def row(self, stream: BinaryIO, row: int) -> np.ndarray:
        """Read one row.

        Raises
        ------
        DamagedRow where it is cut or does not fit its checksum.
        """
        dtype, shape = self.form
        content = np.empty(shape, dtype)
        read_at(stream, content, self.start + row * row_bytes(self.form))
        if not self.check(row, content, again=True):
            raise DamagedRow(self)
        return content

    def check(self, row: int, content: np.ndarray, again: bool = False) -> bool:
        """Return whether a row is what was written; what was found right is remembered."""
        if again or not self.right[row]:
            self.right[row] = _crc(self.keys[row], content) == self.crcs[row]
        return bool(self.right[row])

    def read(self, keys: Sequence[str], positions: Sequence[int], out: np.ndarray) -> list[int]:
        """Copy the rows of ``keys[i]`` to ``out[i]`` for i in positions; return damaged positions.

        Neighbours are read together. A checksum is computed when a row is read for the first time.
        """
        dtype, shape = self.form
        size = row_bytes(self.form)
        row_of = {key: row for row, key in enumerate(self.keys)}
        runs = neighbours(sorted((row_of[keys[i]], i) for i in positions), size)
        straight = out.dtype == dtype and out.flags.c_contiguous
        with self.open() as stream:

            def fetch(run: tuple[int, int, int]) -> list[int]:
                row, i, n = run
                rows = out[i : i + n] if straight else np.empty((n, *shape), dtype)
                read_at(stream, rows, self.start + row * size)
                if not straight:
                    widen(rows, out[i : i + n])
                return [i + k for k in range(n) if not self.check(row + k, rows[k])]

            damaged = spread(fetch, runs, len(positions) * size)
        return [i for positions in damaged for i in positions]


def fit(kind: str, key: str, shape: tuple[int, ...], out: np.ndarray) -> None:
    """Compare the shape of an array with that of a row of ``out``.

    Raises
    ------
    ValueError where they differ.
    """
    if shape != out.shape[1:]:
        raise ValueError(f"{kind} of image {key} has shape {shape}, expected {out.shape[1:]}")


def look(path: Path) -> Shard:
    """Read the header of a shard.

    Raises
    ------
    Foreign for a file of another make; Damaged for one that is not whole.
    """
    if not re.fullmatch("[0-9a-f]{40}", path.stem):
        raise Foreign("its name is not that of a shard")
    with open(path, "rb") as stream:  # buffered: a raw read may return less than there is
        about = os.fstat(stream.fileno())
        head = stream.read(8)
        length = int.from_bytes(head, "little")
        if length > HEADER:
            raise Damaged(f"its header would be {length} bytes long")
        if about.st_size < 8 + length:
            raise Damaged("it ends in its header" if about.st_size else "it is empty")
        head += stream.read(length)
    keys, crcs, form = decoded(head, path.stem, about.st_size - len(head))
    return Shard(path, keys, crcs, form, len(head), stamp_of(about))


def write(folder: Path, keys: Sequence[str], rows: np.ndarray) -> Shard:
    """Write rows (n, ...), one a key, as a new shard."""
    if len(keys) != len(rows):
        raise ValueError(f"One key a row is needed, found {len(keys)} keys and {len(rows)} rows.")
    rows = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    crcs = np.array([_crc(key, row) for key, row in zip(keys, rows)], np.uint32)
    return _written(folder, keys, crcs, (rows.dtype, rows.shape[1:]), [rows])


def bundle(folder: Path, parts: Sequence[tuple[Shard, Sequence[int]]], suffix: str = PART) -> Shard:
    """Write some rows of shards of one form as a new shard, one after the other.

    It returns when bytes and name are on the disk, so that the old files may go.

    Parameters
    ----------
    suffix : of the temporary name; :data:`BUNDLE` for who has the claim, as the next one removes it

    Raises
    ------
    DamagedRow for a row that does not fit its checksum; FileNotFoundError for a shard that is gone.
    """
    keys = [shard.keys[row] for shard, rows in parts for row in rows]
    crcs = np.concatenate([shard.crcs[list(rows)] for shard, rows in parts])

    def contents() -> Iterator[np.ndarray]:
        for shard, rows in parts:
            with shard.open() as stream:
                yield from (shard.row(stream, row) for row in rows)

    return _written(folder, keys, crcs, parts[0][0].form, contents(), True, suffix)


def right_rows(shard: Shard) -> list[int]:
    """Return the rows that fit their checksums."""
    found = []
    with shard.open() as stream:
        for row, key in enumerate(shard.keys):
            try:
                shard.row(stream, row)
            except DamagedRow:
                continue
            found += [row] if key else []
    return found


def _written(
    folder: Path,
    keys: Sequence[str],
    crcs: np.ndarray,
    form: Form,
    contents: Iterable[np.ndarray],
    lasting: bool = False,
    suffix: str = PART,
) -> Shard:
    head = encoded(keys, crcs, form)
    path = folder / f"{file_name(head)}{SUFFIX}"
    try:
        with paths.atomic_write(path, suffix=suffix) as temporary:
            with open(temporary, "wb") as stream:
                stream.write(head)
                for content in contents:
                    stream.write(content.data)
                stream.flush()
                if lasting:
                    os.fsync(stream.fileno())
            stamp = stamp_of(os.stat(temporary))
    except PermissionError:
        # Windows refuses to replace a file that another process reads; it may hold the same
        if (there := _same(path, len(keys))) is None:
            raise
        return there
    if lasting:
        _keep_names(folder)
    return Shard(path, list(map(sys.intern, keys)), crcs, form, len(head), stamp)


def _same(path: Path, n: int) -> Shard | None:
    """Return the shard that is there, if it holds all that its name stands for: n rows."""
    with suppress(Damaged, OSError):
        shard = look(path)
        return shard if len(right_rows(shard)) == n else None
    return None


def _keep_names(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can (Windows does not)."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _crc(key: str, row: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(row).data, zlib.crc32(key.encode()))


def stamp_of(about: os.stat_result) -> tuple[int, ...]:
    """Return what differs when another file has taken the place of one."""
    return about.st_ino, about.st_size, about.st_mtime_ns
