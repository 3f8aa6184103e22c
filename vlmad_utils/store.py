"""Where encoded arrays lie: on disk, one small safetensors file per image and kind of feature, named by what makes it:

    <store>/v1/<backbone fingerprint>/<kind>/<2 hex>/<content hash of the image>.safetensors

A file is written beside its place and renamed, and it carries a checksum: what reads wrong is computed again.
"""

import errno
import json
import uuid
import warnings
import zlib

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


class StoreError(OSError):
    """The store cannot be written. The message says where it is and what to do; what it holds is kept."""


class DiskStore:
    """Arrays on disk under (kind, key). Safe for several processes: equal keys hold equal bytes."""

    def __init__(self, folder, fingerprint):
        folder = paths.user_folder(folder)
        self.folder = folder / f"v{LAYOUT}" / fingerprint
        self.name = str(self.folder)
        try:
            layouts = sorted(path.name for path in folder.glob("v[0-9]*"))
        except OSError as error:
            raise self._failure("read", error, "nothing was deleted or computed again") from error
        other = [name for name in layouts if name != f"v{LAYOUT}"]
        if other:
            warnings.warn(
                f"the feature store {folder} also holds {', '.join(other)}, written by another version of the package. This one "
                f"reads v{LAYOUT} only and computes what is missing; remove the other folders when nothing else reads them."
            )

    def path(self, kind, key):
        return self.folder / kind / key[:2] / f"{key}.safetensors"

    def has(self, kind, key):
        try:
            return self.path(kind, key).exists()
        except OSError as error:
            raise self._failure("read", error, "nothing was deleted or computed again") from error

    def put(self, kind, key, array):
        path = self.path(kind, key)
        array = np.ascontiguousarray(array)
        try:
            with paths.atomic_write(
                path
            ) as temporary:  # not save_file, whose own temporary file outlives a kill
                temporary.write_bytes(
                    save({"x": array}, metadata={"crc32": str(zlib.crc32(array))})
                )
        except OSError as error:
            raise self._failure("written", error, "what it holds is kept") from error

    def get(self, kind, key):
        """The array, or None when it is missing or does not read as it was written (then it is removed)."""
        path = self.path(kind, key)
        try:
            content = path.read_bytes()  # not safe_open, which calls any failure a missing file
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failure("read", error, "nothing was deleted or computed again") from error
        try:
            array = load(content)["x"]
            if _metadata(content)["crc32"] == str(zlib.crc32(np.ascontiguousarray(array))):
                return array
            reason = "its checksum is wrong"
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            reason = str(error)
        warnings.warn(
            f"{path.name} ({kind}) in the feature store was damaged ({reason}); it is computed again."
        )
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise self._failure("written", error, "what it holds is kept") from error
        return None

    def _failure(self, done, error, kept):
        right = "read" if done == "read" else "write"
        advice = SYSTEM_LIMITS.get(error.errno) or (
            f"Make room and get the right to {right} there, set VLMAD_STORE (or store=) to another folder, "
            "or pass store=None"
        )
        where = self.folder.parents[1]
        return StoreError(
            f"the feature store {where} cannot be {done} ({error}); {kept}. {advice}."
        )


def _metadata(content):
    """Return the metadata of a safetensors file; its header is JSON after a length of 8 bytes."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size])["__metadata__"]


class MemoryStore:
    """The same without a disk; scores are identical, since both round alike."""

    def __init__(self):
        self.arrays, self.name = {}, uuid.uuid4().hex

    def has(self, kind, key):
        return (kind, key) in self.arrays

    def put(self, kind, key, array):
        self.arrays[kind, key] = array

    def get(self, kind, key):
        return self.arrays.get((kind, key))
