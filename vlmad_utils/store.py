"""Keep arrays on disk: one small safetensors file per image and kind, named by what makes it.

    <store>/v1/<fingerprint of the backbone>/<kind>/<2 hex>/<content hash of image>.safetensors

A file is written under another name and renamed, and it carries a checksum. What reads wrong is
computed again.
"""

import errno
import json
import uuid
import warnings
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from . import paths

LAYOUT = "1"  # layout of the files; part of the path, so that an old store is left alone

# errors of the whole machine, and what to do: no file is to blame for them
SYSTEM_LIMITS = {
    errno.EMFILE: "Close files that this process has open, or let it open more (ulimit -n)",
    errno.ENFILE: "Close programs: the machine has too many files open (fs.file-max)",
    errno.ENOMEM: "Free memory, or use a machine with more of it",
}
ELSEWHERE = "set VLMAD_STORE (or store=) to another folder, or pass store=None"


class StoreError(OSError):
    """Say where the store is that cannot be read or written, and what to do; nothing is lost."""


class DiskStore:
    """Keep arrays on disk under (kind, key). Several processes may: equal keys hold equal bytes.

    Attributes
    ----------
    folder : of this layout and fingerprint
    name : names the store
    """

    def __init__(self, folder: Path | str, fingerprint: str) -> None:
        folder = paths.user_folder(folder).absolute()  # wherever the process goes later
        self.folder: Path = folder / f"v{LAYOUT}" / fingerprint
        self.name: str = str(self.folder)
        try:
            layouts = sorted(path.name for path in folder.glob("v[0-9]*"))
        except OSError as error:
            raise self._not_readable(error) from error
        other = [name for name in layouts if name != f"v{LAYOUT}"]
        if other:
            warnings.warn(
                f"the feature store {folder} also holds {', '.join(other)}, written by another "
                f"version of the package. This one reads v{LAYOUT} only and computes what is "
                "missing; remove the other folders when nothing else reads them."
            )

    def path(self, kind: str, key: str) -> Path:
        """Return where the file of an array is."""
        return self.folder / kind / key[:2] / f"{key}.safetensors"

    def has(self, kind: str, key: str) -> bool:
        """Return whether there is a file; it may be damaged."""
        try:
            return self.path(kind, key).exists()
        except OSError as error:
            raise self._not_readable(error) from error

    def put(self, kind: str, key: str, array: np.ndarray) -> None:
        """Write an array, whole or not at all.

        Raises
        ------
        StoreError where it cannot be written.
        """
        array = np.ascontiguousarray(array)
        content = save({"x": array}, metadata={"crc32": _checksum(array)})
        try:
            with paths.atomic_write(self.path(kind, key)) as temporary:
                temporary.write_bytes(content)  # save_file's own temporary file outlives a kill
        except PermissionError as error:
            # Windows refuses to replace a file that another process reads; it may hold the same
            if not self._holds(kind, key, array):
                raise self._not_writable(error) from error
        except OSError as error:
            raise self._not_writable(error) from error

    def put_rows(self, kind: str, keys: Sequence[str], rows: np.ndarray) -> None:
        """Write rows (n, ...), one a key."""
        for key, row in zip(keys, rows, strict=True):
            self.put(kind, key, row)

    def lacking(self, kind: str, keys: Iterable[str]) -> list[str]:
        """Return the keys that are not there."""
        return [key for key in keys if not self.has(kind, key)]

    def read(self, kind: str, keys: Sequence[str], out: np.ndarray) -> list[int]:
        """Fill ``out`` (n, ...), float32 or the type that is stored; return missing positions.

        Raises
        ------
        ValueError for an array whose shape is not that of a row of ``out``; StoreError where the
        store cannot be read.
        """
        return _read(self, kind, keys, out)

    def seal(self) -> None:
        """Bundle what was written; nothing to do in this layout."""

    def _holds(self, kind: str, key: str, array: np.ndarray) -> bool:
        """Return whether an array with the same bytes is there."""
        with suppress(StoreError):
            found = self.get(kind, key)
            return found is not None and paths.content_hash(found) == paths.content_hash(array)
        return False

    def get(self, kind: str, key: str) -> np.ndarray | None:
        """Return the array, or None where there is none.

        A file that does not hold what was written is removed with a warning.

        Raises
        ------
        StoreError where the file cannot be read, for whatever reason; it is kept.
        """
        path = self.path(kind, key)
        try:
            content = path.read_bytes()  # safe_open says of any failure that the file is missing
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._not_readable(error) from error
        try:
            array = load(content)["x"]
            if _metadata(content)["crc32"] == _checksum(array):
                return array
            reason = "its checksum is wrong"
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            reason = str(error)
        warnings.warn(
            f"{path.name} ({kind}) in the feature store was damaged ({reason}); "
            "it is computed again."
        )
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise self._not_writable(error) from error
        return None

    def _not_readable(self, error: OSError) -> StoreError:
        advice = SYSTEM_LIMITS.get(error.errno or 0, f"Get the right to read there, {ELSEWHERE}")
        return StoreError(
            f"the feature store {self.folder.parents[1]} cannot be read ({error}); nothing was "
            f"deleted or computed again. {advice}."
        )

    def _not_writable(self, error: OSError) -> StoreError:
        default = f"Make room and get the right to write there, {ELSEWHERE}"
        advice = SYSTEM_LIMITS.get(error.errno or 0, default)
        return StoreError(
            f"the feature store {self.folder.parents[1]} cannot be written ({error}); what it "
            f"holds is kept. {advice}."
        )


def _checksum(array: np.ndarray) -> str:
    return str(zlib.crc32(np.ascontiguousarray(array).data))


def _metadata(content: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file; its header is JSON after a length of 8 bytes."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size])["__metadata__"]


class MemoryStore:
    """Keep arrays in memory, as :class:`DiskStore` does on disk."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[str, str], np.ndarray] = {}
        self.name: str = uuid.uuid4().hex

    def has(self, kind: str, key: str) -> bool:
        """Return whether there is an array."""
        return (kind, key) in self.arrays

    def put(self, kind: str, key: str, array: np.ndarray) -> None:
        """Keep an array; it is not copied."""
        self.arrays[kind, key] = array

    def put_rows(self, kind: str, keys: Sequence[str], rows: np.ndarray) -> None:
        """Keep rows (n, ...), one a key."""
        for key, row in zip(keys, rows, strict=True):
            self.put(kind, key, row)

    def lacking(self, kind: str, keys: Iterable[str]) -> list[str]:
        """Return the keys that are not there."""
        return [key for key in keys if not self.has(kind, key)]

    def read(self, kind: str, keys: Sequence[str], out: np.ndarray) -> list[int]:
        """Fill ``out`` (n, ...), float32 or the type that is kept; return missing positions.

        Raises
        ------
        ValueError for an array whose shape is not that of a row of ``out``.
        """
        return _read(self, kind, keys, out)

    def seal(self) -> None:
        """Do nothing: memory needs no bundling."""

    def get(self, kind: str, key: str) -> np.ndarray | None:
        """Return the array, or None where there is none."""
        return self.arrays.get((kind, key))


def _read(
    store: "DiskStore | MemoryStore", kind: str, keys: Sequence[str], out: np.ndarray
) -> list[int]:
    missing = []
    for i, key in enumerate(keys):
        array = store.get(kind, key)
        if array is None:
            missing.append(i)
        elif array.shape != out.shape[1:]:
            raise ValueError(
                f"{kind} of image {key} has shape {array.shape}, expected {out.shape[1:]}"
            )
        else:
            out[i] = array
    return missing


Store = DiskStore | MemoryStore
