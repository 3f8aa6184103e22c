"""Search for the nearest normal vector by cosine distance, which all few-shot methods share."""

import functools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Literal

import torch

from ..models.onednn import linear
from .scores import ArrayLike, Encoded, batches, beside, moved, unit

# similarities held at once, 64 and 512 MB; the least number of queries in a product
BLOCK_CPU, BLOCK_GPU = (2**24, 2**8), (2**27, 2**11)


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
    memory : (M, C), any length; it goes to the device of the queries
    k : how many neighbours, 1 <= k <= M

    Returns
    -------
    distance : (..., k), 1 - cos, ascending, in [0, 2]; rounding below 0 is clamped to 0. float32,
        or float64 for float64 queries
    index : (..., k) int64, row of ``memory``

    Raises
    ------
    ValueError for k out of range or widths that differ.

    Notes
    -----
    Exact: one matrix product per block of queries, and of memory above 65,536 vectors. A block
    holds 64 MB of similarities on a CPU and 512 MB on another device, whatever the size of the
    bank.
    """
    query = unit(query)
    return nearest_unit(query, unit(beside(memory, query)), k)


def nearest_unit(
    query: torch.Tensor, memory: torch.Tensor, k: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Search as :func:`nearest` does, for vectors that already have unit length."""
    if not 1 <= k <= len(memory):
        raise ValueError(f"k is 1 to {len(memory)} (vectors in the memory), found {k}.")
    _check_width(query, memory)
    flat, memory, parts = query.reshape(-1, query.shape[-1]), memory.to(query), []
    at_once, vectors = _block(len(memory), query.device)
    for rows in flat.split(at_once):
        found = [_best(rows, some, k) for some in memory.split(vectors)]
        cosine, index = found[0]
        if len(found) > 1:  # the best of the best of each block
            cosine, place = torch.cat([c for c, _ in found], dim=-1).topk(k, dim=-1)
            indices = torch.cat([i + n * vectors for n, (_, i) in enumerate(found)], dim=-1)
            index = indices.gather(-1, place)
        parts.append((cosine, index))
    cosine, index = (torch.cat(x) for x in zip(*parts, strict=True))
    shape = (*query.shape[:-1], k)
    return (1 - cosine).clamp(min=0).reshape(shape), index.reshape(shape)


def nearest_per_image(query: ArrayLike, images: ArrayLike) -> torch.Tensor:
    """Return the cosine distance of each query vector to the nearest vector of each image.

    Parameters
    ----------
    query : (..., C), e.g. (B, N, C), any length
    images : (K, M, C), M vectors of each of K images, any length; they go to the device of the
        queries

    Returns
    -------
    (..., K), e.g. (B, N, K), 1 - cos in [0, 2]; float32, or float64 for float64 queries

    Raises
    ------
    ValueError for widths that differ.

    Notes
    -----
    Blocks of queries and images, of the size in :func:`nearest`. A CPU takes one image in a
    product: larger ones are not faster there, and can move the last bit.
    """
    query = unit(query)
    images = unit(beside(images, query))
    return torch.stack(_to_each(query, list(images)), dim=-1)


def _to_each(query: torch.Tensor, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return K distances (...) to images (M, C) of one shape; vectors of unit length."""
    if query.device.type == "cpu":
        return [nearest_unit(query, image)[0][..., 0] for image in images]
    _check_width(query, images[0])
    flat, n = query.reshape(-1, query.shape[-1]), len(images[0])
    at_once, vectors = _block(n * len(images), query.device)
    found: list[torch.Tensor] = []
    for some in _groups(images, max(1, vectors // n)):
        memory = torch.cat(list(some))
        cosines = (linear(rows, memory) for rows in flat.split(at_once))
        best = torch.cat([x.unflatten(1, (len(some), n)).amax(dim=2) for x in cosines])
        found += (1 - best).clamp(min=0).T.contiguous().unbind()
    return [distance.reshape(query.shape[:-1]) for distance in found]


def _groups(images: Sequence[torch.Tensor], size: int) -> Iterator[Sequence[torch.Tensor]]:
    """Yield the images, ``size`` at a time."""
    for start in range(0, len(images), size):
        yield images[start : start + size]


def _block(n_memory: int, device: torch.device) -> tuple[int, int]:
    """Return how many queries and how many memory vectors go into one product."""
    budget, least = BLOCK_CPU if device.type == "cpu" else BLOCK_GPU
    rows = max(budget // n_memory, least)
    return rows, max(1, budget // rows)


def _best(rows: torch.Tensor, memory: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k highest cosines, and their places in the memory."""
    cosines = linear(rows, memory)  # rows @ memory.T
    if k == 1:  # max gives what topk gives, but faster
        return cosines.max(dim=-1, keepdim=True)
    return cosines.topk(min(k, len(memory)), dim=-1)


def _check_width(query: torch.Tensor, memory: torch.Tensor) -> None:
    if query.shape[-1] != memory.shape[-1]:
        raise ValueError(
            f"Query vectors have width {query.shape[-1]}, memory vectors {memory.shape[-1]}: "
            "encode both with the same backbone and block."
        )


def reference_distance(
    features: Encoded,
    references: Encoded,
    name: int | str,
    kind: Literal["tokens", "windows"] = "tokens",
    cache: DistanceCache | None = None,
) -> torch.Tensor:
    """Return the cosine distance of each test token to the nearest token of K reference images.

    Distances are kept for each reference, so that a cache can combine them anew. Those that it
    lacks are searched at once. Each is read and normalised once a call; all K are held in memory.

    Parameters
    ----------
    features, references : encoded images, B and K of them; references go to the features' device
    name : block, or size of windows
    kind : "tokens", or "windows" for the distances of window embeddings
    cache : remembers distances of stored images; arrays may change, so theirs are not remembered

    Returns
    -------
    (B, N), or (B, W) for windows, in [0, 2]; see :func:`nearest_per_image`

    Raises
    ------
    ValueError without references.
    """
    if not len(references):
        raise ValueError("Found 0 reference images, expected at least one normal image.")
    if cache is None or features.identity is None or references.identity is None:
        cache = DistanceCache(0)  # keeps nothing
    references = moved(references, features.device)
    singles = [references[i] for i in range(len(references))]

    @functools.cache
    def bank(i: int) -> torch.Tensor:
        return unit(getattr(singles[i], kind)[name][0])

    parts = []
    for part in batches(features):
        about = (part.identity, str(part.device), kind, name)
        keys = [(*about, one.identity) for one in singles]
        remembered = [cache.get(key) for key in keys]
        distances = [found for found in remembered if found is not None]
        if lacking := [i for i, found in enumerate(remembered) if found is None]:
            query = unit(getattr(part, kind)[name])
            new = _to_each(query, [bank(i) for i in lacking])
            for i, found in zip(lacking, new, strict=True):
                cache.put(keys[i], found)
            distances += new
        parts.append(torch.stack(distances).amin(dim=0))
    return torch.cat(parts)
