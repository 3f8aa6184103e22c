"""Search for the nearest normal vector by cosine distance, which all few-shot methods share."""

import functools
import threading
from collections import OrderedDict
from typing import Literal

import torch

from ..models.onednn import linear
from .scores import ArrayLike, Encoded, batches, unit

BUDGET = 2**24  # similarities held at once: 64 MB


class DistanceCache:
    """Remember distances of test images to single reference images.

    A draw of 8 references holds the draw of 4, and draws of different seeds share images. Threads
    may share a cache. It goes empty to another process.

    Parameters
    ----------
    max_bytes : how much is kept; the oldest entries go first
    """

    def __init__(self, max_bytes: int = 2**28) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._known: OrderedDict[tuple, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple) -> torch.Tensor | None:
        """Return the distances under a key, or None."""
        with self._lock:
            return self._known.get(key)

    def put(self, key: tuple, distances: torch.Tensor) -> None:
        """Keep distances under a key, and drop the oldest entries while there is no room."""
        with self._lock:
            if key in self._known:
                self.nbytes -= self._known.pop(key).nbytes
            self._known[key] = distances
            self.nbytes += distances.nbytes
            while self.nbytes > self.max_bytes:
                self.nbytes -= self._known.popitem(last=False)[1].nbytes

    def __len__(self) -> int:
        return len(self._known)

    def __reduce__(self) -> tuple:
        return DistanceCache, (self.max_bytes,)


def nearest(query: ArrayLike, memory: ArrayLike, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cosine distance of each query vector to its k nearest memory vectors.

    Parameters
    ----------
    query : (..., C), any length
    memory : (M, C), any length
    k : how many neighbours, 1 <= k <= M

    Returns
    -------
    distance : (..., k) float32, 1 - cos, ascending, in [0, 2]; rounding below 0 is clamped to 0
    index : (..., k) int64, row of ``memory``

    Raises
    ------
    ValueError for k out of range or widths that differ.

    Notes
    -----
    One matrix product per block of queries keeps memory near 64 MB, whatever the size of the bank.
    """
    return nearest_unit(unit(query), unit(memory), k)


def nearest_unit(
    query: torch.Tensor, memory: torch.Tensor, k: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Search as :func:`nearest` does, for vectors that already have unit length."""
    if not 1 <= k <= len(memory):
        raise ValueError(f"k is 1 to {len(memory)} (vectors in the memory), found {k}.")
    if query.shape[-1] != memory.shape[-1]:
        raise ValueError(
            f"Query vectors have width {query.shape[-1]}, memory vectors {memory.shape[-1]}: "
            "encode both with the same backbone and block."
        )
    parts = []
    for rows in query.reshape(-1, query.shape[-1]).split(max(1, BUDGET // len(memory))):
        cosines = linear(rows, memory)  # rows @ memory.T
        # max gives what topk gives, but faster
        parts.append(cosines.max(dim=-1, keepdim=True) if k == 1 else cosines.topk(k, dim=-1))
    cosine, index = torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])
    shape = (*query.shape[:-1], k)
    return (1 - cosine).clamp(min=0).reshape(shape), index.reshape(shape)


def reference_distance(
    features: Encoded,
    references: Encoded,
    name: int | str,
    kind: Literal["tokens", "windows"] = "tokens",
    cache: DistanceCache | None = None,
) -> torch.Tensor:
    """Return the cosine distance of each test token to the nearest token of K reference images.

    The references are searched one by one, so that a cache can combine them anew. Each one is
    read and normalised once a call; all K are held in memory.

    Parameters
    ----------
    features, references : encoded images, B and K of them
    name : block, or size of windows
    kind : "tokens", or "windows" for the distances of window embeddings
    cache : remembers distances of stored images; arrays may change, so theirs are not remembered

    Returns
    -------
    (B, N), or (B, W) for windows, float32 in [0, 2]

    Raises
    ------
    ValueError without references.
    """
    if not len(references):
        raise ValueError("Found 0 reference images, expected at least one normal image.")
    if cache is None or features.identity is None or references.identity is None:
        cache = DistanceCache(0)  # keeps nothing
    singles = [references[i] for i in range(len(references))]

    @functools.cache
    def bank(i: int) -> torch.Tensor:
        return unit(getattr(singles[i], kind)[name][0])

    parts = []
    for part in batches(features):
        query, distances = None, []
        for i, one in enumerate(singles):
            key = (part.identity, kind, name, one.identity)
            found = cache.get(key)
            if found is None:
                query = unit(getattr(part, kind)[name]) if query is None else query
                found = nearest_unit(query, bank(i))[0][..., 0]
                cache.put(key, found)
            distances.append(found)
        parts.append(torch.stack(distances).amin(dim=0))
    return torch.cat(parts)
