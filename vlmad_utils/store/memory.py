"""Keep arrays in memory under a kind and a key, as the store on disk does."""

import uuid
from collections.abc import Iterable, Sequence

import numpy as np

from .shards import fit


class MemoryStore:
    """Keep arrays in memory, as :class:`DiskStore` does on disk."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[str, str], np.ndarray] = {}
        self.name: str = uuid.uuid4().hex

    def has(self, kind: str, key: str) -> bool:
        """Return whether there is an array."""
        return (kind, key) in self.arrays

    def lacking(self, kind: str, keys: Iterable[str]) -> list[str]:
        """Return the keys that are not there."""
        return [key for key in keys if not self.has(kind, key)]

    def put(self, kind: str, key: str, array: np.ndarray) -> None:
        """Keep an array; it is not copied."""
        self.arrays[kind, key] = array

    def put_rows(self, kind: str, keys: Sequence[str], rows: np.ndarray) -> None:
        """Keep rows (n, ...), one a key; they are not copied."""
        for key, row in zip(keys, rows, strict=True):
            self.put(kind, key, row)

    def seal(self) -> None:
        """Do nothing: memory needs no bundling."""

    def get(self, kind: str, key: str) -> np.ndarray | None:
        """Return the array, or None where there is none."""
        return self.arrays.get((kind, key))

    def read(self, kind: str, keys: Sequence[str], out: np.ndarray) -> list[int]:
        """Fill ``out`` (n, ...), float32 or the type that is kept; return missing positions.

        Raises
        ------
        ValueError for an array whose shape is not that of a row of ``out``.
        """
        missing = []
        for i, key in enumerate(keys):
            array = self.get(kind, key)
            if array is None:
                missing.append(i)
            else:
                fit(kind, key, array.shape, out)
                out[i] = array
        return missing
