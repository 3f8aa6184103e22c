"""Vision-only memory bank: how far is a patch from the nearest normal patch? (PatchCore, AnomalyDINO)

No text takes part, so it answers "does language help?". Nothing is trained: training-free, K normal images are given.
"""

import functools
import threading
from collections import OrderedDict

import numpy as np
import torch
from scipy import ndimage
from sklearn.decomposition import PCA

from ..models.onednn import linear
from .scores import Scores, batches, tensor, unit

BUDGET = 2**24  # similarities held at once: 64 MB


class DistanceCache:
    """Remember distances of test images to single reference images.

    A draw of 8 references holds that of 4, and draws of different seeds meet again. Threads may
    share a cache; it goes empty to another process.

    Parameters
    ----------
    max_bytes : how much is kept; the oldest entries go first
    """

    def __init__(self, max_bytes: int = 2**28) -> None:
        self.max_bytes = max_bytes
        self._known: OrderedDict[tuple, torch.Tensor] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

    def get(self, key: tuple) -> torch.Tensor | None:
        """Return the distances under a key, or None."""
        with self._lock:
            return self._known.get(key)

    def put(self, key: tuple, distances: torch.Tensor) -> None:
        """Keep distances under a key, and drop the oldest entries while there is no room."""
        with self._lock:
            if key in self._known:
                self._nbytes -= self._known.pop(key).nbytes
            self._known[key] = distances
            self._nbytes += distances.nbytes
            while self._nbytes > self.max_bytes:
                self._nbytes -= self._known.popitem(last=False)[1].nbytes

    @property
    def nbytes(self) -> int:
        """Return how many bytes are kept."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._known)

    def __reduce__(self) -> tuple:
        return DistanceCache, (self.max_bytes,)


def nearest(query, memory, k=1):
    """Cosine distance of each query vector to its k nearest memory vectors.

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
    One matrix product per block of queries, so that memory stays near 64 MB whatever the size of the bank.
    """
    return _nearest(unit(query), unit(memory), k)


def _nearest(query, memory, k=1):
    """Search as :func:`nearest` does, for vectors that already have unit length."""
    if not 1 <= k <= len(memory):
        raise ValueError(f"k is 1 to {len(memory)} (vectors in the memory), found {k}.")
    if query.shape[-1] != memory.shape[-1]:
        raise ValueError(
            f"Query vectors have width {query.shape[-1]}, memory vectors {memory.shape[-1]}: encode both "
            "with the same backbone and block."
        )
    flat, parts = query.reshape(-1, query.shape[-1]), []
    for rows in flat.split(max(1, BUDGET // len(memory))):
        cosines = linear(rows, memory)  # rows @ memory.T
        parts.append(
            cosines.max(dim=-1, keepdim=True) if k == 1 else cosines.topk(k, dim=-1)
        )  # the same, but faster
    cosine, index = torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])
    shape = (*query.shape[:-1], k)
    return (1 - cosine).clamp(min=0).reshape(shape), index.reshape(shape)


def reference_distance(features, references, name, kind="tokens", cache=None):
    """Cosine distance of each test token to the nearest token of K reference images: (B, N) float32 in [0, 2].

    Parameters
    ----------
    name : block, or size of windows
    kind : "tokens", or "windows" for (B, W) distances of window embeddings
    cache : :class:`DistanceCache` or None; it remembers stored images, not arrays, which may change
    """
    singles = [references[i] for i in range(len(references))]
    if features.identity is None or references.identity is None:
        cache = None

    @functools.cache  # each reference is read and normalised once a call
    def bank(i):
        return unit(getattr(singles[i], kind)[name][0])

    parts = []
    for part in batches(features):
        keys = [(part.identity, kind, name, one.identity) for one in singles]
        found = [None if cache is None else cache.get(key) for key in keys]
        new = [i for i, distance in enumerate(found) if distance is None]
        query = unit(getattr(part, kind)[name]) if new else None
        for i in new:
            found[i] = _nearest(query, bank(i))[0][..., 0]
            if cache is not None:
                cache.put(keys[i], found[i])
        parts.append(torch.stack(found).amin(dim=0))
    return torch.cat(parts)


def top_mean(distances, fraction=0.01):
    """Mean of the largest int(fraction * N) of distances (B, N) -> (B,); the maximum when that count is 0.

    Source: AnomalyDINO (arXiv 2405.14529; mean of the top 1 %).
    """
    distances = tensor(distances)
    return distances.topk(max(1, int(fraction * distances.shape[-1])), dim=-1).values.mean(dim=-1)


def patch_distance(query, memory, k=1, foreground=None):
    """Mean distance to the k nearest memory tokens.

    Parameters
    ----------
    query : (B, N, C); memory : (M, C)
    foreground : (B, N) bool or None; patches outside are not searched and get 0

    Returns
    -------
    (B, N) float32 in [0, 2]
    """
    return _patch_distance(query, unit(memory), k, foreground)


def _patch_distance(query, memory, k, foreground):
    """Search as :func:`patch_distance` does, in a memory of unit vectors."""
    if foreground is None:
        return _nearest(unit(query), memory, k)[0].mean(dim=-1)
    foreground = torch.as_tensor(foreground)
    out = torch.zeros(foreground.shape)
    out[foreground] = _nearest(unit(tensor(query)[foreground]), memory, k)[0].mean(dim=-1)
    return out


def coreset(memory, n, seed=0, width=128):
    """Row numbers of n vectors that cover the memory (greedy k-centre).

    Parameters
    ----------
    memory : (M, C)
    n : how many to keep; n >= M keeps all
    seed : of the first vector and of the random projection
    width : distances are computed in a Gaussian random projection of this width (None: in full width)

    Returns
    -------
    (min(n, M),) int64, in the order of choice

    Source: PatchCore (arXiv 2106.08265) algorithm 1; distances of unit vectors here, as the search is by cosine.
    """
    points, rng = unit(memory), np.random.default_rng(seed)
    if n < 1:
        raise ValueError(f"A coreset keeps at least 1 vector, found n={n}.")
    if n >= len(points):
        return torch.arange(len(points))
    if width and width < points.shape[1]:
        points = points @ tensor(rng.standard_normal((points.shape[1], width)) / width**0.5)
    chosen = [int(rng.integers(len(points)))]
    gap = (
        (points - points[chosen[0]]).square().sum(dim=1)
    )  # squared distance to the nearest chosen vector
    while len(chosen) < n:
        chosen.append(int(gap.argmax()))
        gap = torch.minimum(gap, (points - points[chosen[-1]]).square().sum(dim=1))
    return torch.tensor(chosen)


def rotations(image, n=8):
    """n copies of an image (H, W, 3) uint8, turned by 360/n degrees each; corners are filled with the nearest border.

    Source: AnomalyDINO, "agnostic" preprocessing. Encode them as further references.
    """
    image = np.asarray(image)
    return [image] + [
        ndimage.rotate(image, 360 * i / n, reshape=False, order=1, mode="nearest")
        for i in range(1, n)
    ]


def foreground(tokens, grid, threshold=0.0, centre_share=0.35):
    """Mask of the patches that belong to the object: the first principal component of one image's tokens.

    Parameters
    ----------
    tokens : (N, C); grid : (h, w)
    threshold : on the component, which has mean 0 (AnomalyDINO uses 10 on DINOv2's tokens)
    centre_share : the component's sign is free; it is turned when the mask fills less of the middle than this

    Returns
    -------
    (N,) bool, dilated and closed by one patch

    Source: AnomalyDINO, masking. Only sensible for one object on a plain ground, not for textures.
    """
    component = PCA(1, svd_solver="full").fit_transform(tensor(tokens).numpy())[:, 0].reshape(grid)
    h, w = grid
    middle = component[int(h * 0.2) : max(1, int(h * 0.8)), int(w * 0.2) : max(1, int(w * 0.8))]
    mask = (component if (middle > threshold).mean() > centre_share else -component) > threshold
    mask = np.pad(ndimage.binary_dilation(mask, np.ones((3, 3))), 1, mode="edge")
    return torch.from_numpy(ndimage.binary_closing(mask, np.ones((3, 3)))[1:-1, 1:-1].reshape(-1))


def few_shot(
    features,
    references,
    block="final",
    k=1,
    coreset_size=None,
    seed=0,
    mask=False,
    top=0.01,
    cache=None,
):
    """Anomaly scores from the distance to the nearest reference patch.

    Parameters
    ----------
    features : encoded test images with ``tokens[block]`` (B, N, C)
    references : encoded normal images; rotated copies are simply more of them (:func:`rotations`)
    block : block number, "final", or a sequence of them whose distances are averaged
    k : neighbours
    coreset_size : None keeps the whole bank; else how many tokens (per block)
    mask : score only the foreground (:func:`foreground`, from the first block)
    top : share of patches whose mean is the image score
    cache : :class:`DistanceCache` or None; used for k=1 without coreset and mask

    Returns
    -------
    Scores, training-free; maps (B, h, w) on the patch grid. For AnomalyDINO's picture upsample them and
    ``smooth(maps, 4)`` at the original size.
    """
    blocks = [block] if isinstance(block, (int, str)) else list(block)
    if k == 1 and coreset_size is None and not mask:
        distances = torch.stack(
            [reference_distance(features, references, b, cache=cache) for b in blocks]
        ).mean(dim=0)
    else:
        distances = _searched(features, references, blocks, k, coreset_size, seed, mask)
    return Scores(
        top_mean(distances, top),
        distances.unflatten(1, tuple(features.grid)),
        f"cosine distance to the {k} nearest reference patches; image: mean of the top {top:.0%}",
        "training-free",
        (0.0, 2.0),
        (0.0, 2.0),
    )


def _searched(features, references, blocks, k, coreset_size, seed, mask):
    """Distances (B, N) to all references at once, for what cannot be put together from single ones."""
    banks = []
    for b in blocks:
        bank = tensor(references.tokens[b]).flatten(0, 1)
        banks.append(
            unit(bank if coreset_size is None else bank[coreset(bank, coreset_size, seed)])
        )
    parts = []
    for part in batches(features):
        tokens = {b: tensor(part.tokens[b]) for b in blocks}
        inside = (
            torch.stack([foreground(t, part.grid) for t in tokens[blocks[0]]]) if mask else None
        )
        layers = [
            _patch_distance(tokens[b], bank, k, inside)
            for b, bank in zip(blocks, banks, strict=True)
        ]
        parts.append(torch.stack(layers).mean(dim=0))
    return torch.cat(parts)
