"""Write and read the header of a shard: what it holds, and a checksum of each row.

A shard is a safetensors file with one tensor "x" (n, ...): a length in 8 bytes, so many bytes of
JSON, then the rows. The metadata in the JSON are ``layout``, ``keys`` and ``crc32``. The name of
the file is the hash of its header.
"""

import hashlib
import json
import math
import sys
from collections.abc import Sequence

import numpy as np

LAYOUT = "2"  # of shards and folders; part of the path, so that an old store is left alone
Form = tuple[np.dtype, tuple[int, ...]]  # type and shape of a row
TYPES = {
    code: np.dtype(name)
    for code, name in (
        ("F64", "<f8"),
        ("F32", "<f4"),
        ("F16", "<f2"),
        ("I64", "<i8"),
        ("I32", "<i4"),
        ("I16", "<i2"),
        ("I8", "i1"),
        ("U8", "u1"),
        ("BOOL", "?"),
    )
}
CODES = {dtype: code for code, dtype in TYPES.items()}


class Damaged(ValueError):
    """Say what is wrong with a file that is no whole shard: damaged, or still being copied."""


class Foreign(Exception):
    """Say why a file is no shard of this layout; it is left alone."""


def row_bytes(form: Form) -> int:
    """Return the bytes of one row."""
    return math.prod(form[1]) * form[0].itemsize


def encoded(keys: Sequence[str], crcs: np.ndarray, form: Form) -> bytes:
    """Return the bytes before the first row.

    Raises
    ------
    ValueError for a key with a blank; TypeError for a type that the store does not keep.
    """
    dtype, shape = form
    if any(not key or " " in key for key in keys):
        raise ValueError("A key is a text without blanks.")
    if dtype not in CODES:
        raise TypeError(f"The store keeps {', '.join(map(str, CODES))}, found {dtype}.")
    size = len(keys) * row_bytes(form)
    tensor = {"dtype": CODES[dtype], "shape": [len(keys), *shape], "data_offsets": [0, size]}
    said = {"layout": LAYOUT, "keys": " ".join(keys), "crc32": crcs.astype(">u4").tobytes().hex()}
    text = json.dumps({"__metadata__": said, "x": tensor}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_name(head: bytes) -> str:
    """Return the name that a shard with this header has, without a suffix: 40 hex digits."""
    return hashlib.sha256(head).hexdigest()[:40]


def decoded(head: bytes, name: str, n_bytes: int) -> tuple[list[str], np.ndarray, Form]:
    """Read the bytes before the first row, ``n_bytes`` before the end of the file ``name``.

    Returns
    -------
    keys, checksums (n,) uint32 over key and row, type and shape of a row

    Raises
    ------
    Foreign for another layout; Damaged where the hash of the header is not the name, for nothing
    that it says can be trusted then, or where the file is cut.
    """
    if file_name(head) != name:
        raise Damaged("its header is not what was written")
    try:
        read = json.loads(head[8:])
        said, tensor = read["__metadata__"], read["x"]
        if said["layout"] != LAYOUT:
            raise Foreign(f"its layout is {said['layout']}, not {LAYOUT}")
        keys = [sys.intern(key) for key in said["keys"].split(" ")]
        crcs = np.frombuffer(bytes.fromhex(said["crc32"]), ">u4").astype(np.uint32)
        n, *shape = tensor["shape"]
        form = TYPES[tensor["dtype"]], tuple(shape)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Foreign(f"its header is of another make: {error!r}") from error
    if (size := n * row_bytes(form)) != n_bytes:
        raise Damaged(f"it holds {n_bytes} bytes of {size}")
    return keys, crcs, form
