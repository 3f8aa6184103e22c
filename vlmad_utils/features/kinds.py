"""Name the arrays of an image: "image", "patches", "tokens-<block>" and "windows-<size>".

A kind is part of a file's place in the store. The same names are the keys of what
``Backbone.encode_image`` returns.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from ..models.backbone import Backbone
from ..models.windows import window_indices

Names = Iterable[int | str] | int | str  # of blocks or windows; a single one is a list of one


def kinds_of(blocks: Names, windows: Names, patches: bool) -> list[str]:
    """Return the kinds that a request asks for, each once, the image embedding first."""
    kinds = ["image"]
    kinds += [f"tokens-{block}" for block in listed(blocks)]
    kinds += [f"windows-{window}" for window in listed(windows)]
    if patches:
        kinds.append("patches")
    return list(dict.fromkeys(kinds))


def listed(names: Names) -> Iterable[int | str]:
    """Return blocks or windows as a list; a single one is a list of one."""
    return [names] if isinstance(names, str) or not isinstance(names, Iterable) else names


def parsed(kind: str) -> tuple[str, int | str]:
    """Return what a kind is and its block or window: "tokens-9" is ("tokens", 9)."""
    what, _, name = kind.partition("-")
    return what, int(name) if name.isdigit() else name


def request(kinds: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of ``Backbone.encode_image`` that make it give these kinds."""
    pairs = [parsed(kind) for kind in kinds]
    return {
        "blocks": [name for what, name in pairs if what == "tokens"],
        "windows": [name for what, name in pairs if what == "windows"],
        "patches": "patches" in kinds,
    }


def stored_type(kind: str) -> np.dtype:
    """Return the type in which a kind is stored: float16, but float32 for the image embedding."""
    return np.dtype(np.float32 if kind == "image" else np.float16)


def torch_type(kind: str) -> torch.dtype:
    """Return :func:`stored_type` as PyTorch names it."""
    return torch.float32 if kind == "image" else torch.float16


def shape_of(model: Backbone, kind: str) -> tuple[int, ...]:
    """Return the shape of one image's array of a kind, as in ``Backbone.encode_image``."""
    what, name = parsed(kind)
    n_patches = model.grid[0] * model.grid[1]
    if what == "tokens":
        return (1 if name == "cls" else n_patches, model.token_width)
    if what == "windows":
        return (len(window_indices(model.grid, name)), model.dim)
    return (n_patches, model.dim) if what == "patches" else (model.dim,)


def disk_need(
    model: Backbone,
    n_images: int,
    blocks: Names = (),
    windows: Names = (),
    patches: bool = True,
) -> int:
    """Return the bytes that :func:`encode` writes for so many different images.

    They follow from the shapes alone. About 50 bytes a row for its key and checksum come on top,
    and the room of one more file while small ones are bundled (2 GiB at most, a kind).
    """
    per_image = 0
    for kind in kinds_of(blocks, windows, patches):
        per_image += math.prod(shape_of(model, kind)) * stored_type(kind).itemsize
    return n_images * per_image
