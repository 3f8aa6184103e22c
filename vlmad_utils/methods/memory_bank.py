"""Vision-only memory bank: how far is a patch from the nearest normal patch?

PatchCore (Roth et al., CVPR 2022, arXiv 2106.08265) and AnomalyDINO (Damm et al., WACV 2025,
arXiv 2405.14529). No text takes part, so this answers "does language help?". Nothing is trained:
K normal images are given.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from sklearn.decomposition import PCA

from .neighbours import DistanceCache, nearest, nearest_unit, reference_distance
from .scores import ArrayLike, Encoded, Scores, batches, beside, moved, tensor, unit

__all__ = [
    "DistanceCache",
    "nearest",
    "reference_distance",
    "top_mean",
    "patch_distance",
    "coreset",
    "rotations",
    "foreground",
    "few_shot",
]


def top_mean(distances: ArrayLike, fraction: float = 0.01) -> torch.Tensor:
    """Average the largest int(fraction * N) of distances (B, N) -> (B,).

    Where that count is 0, the maximum is returned.

    Source: AnomalyDINO (mean of the top 1 %).
    """
    distances = tensor(distances)
    return distances.topk(max(1, int(fraction * distances.shape[-1])), dim=-1).values.mean(dim=-1)


def patch_distance(
    query: ArrayLike, memory: ArrayLike, k: int = 1, foreground: ArrayLike | None = None
) -> torch.Tensor:
    """Return the mean distance of each patch to its k nearest memory tokens.

    Parameters
    ----------
    query : (B, N, C); memory : (M, C)
    foreground : (B, N) bool or None; patches outside are not searched and get 0

    Returns
    -------
    (B, N) in [0, 2]
    """
    query = tensor(query)
    return _distance_to_bank(query, unit(beside(memory, query)), k, foreground)


def _distance_to_bank(
    query: torch.Tensor, bank: torch.Tensor, k: int, foreground: ArrayLike | None
) -> torch.Tensor:
    """Measure as :func:`patch_distance` does, against a bank (M, C) of unit vectors."""
    if foreground is None:
        return nearest_unit(unit(query), bank, k)[0].mean(dim=-1)
    inside = torch.as_tensor(foreground).to(query.device)
    out = query.new_zeros(inside.shape)
    out[inside] = nearest_unit(unit(query[inside]), bank, k)[0].mean(dim=-1)
    return out


def coreset(memory: ArrayLike, n: int, seed: int = 0, width: int | None = 128) -> torch.Tensor:
    """Return the row numbers of n vectors that cover the memory (greedy k-centre).

    Parameters
    ----------
    memory : (M, C)
    n : how many to keep; n >= M keeps all
    seed : of the first vector and of the random projection
    width : distances are computed in a Gaussian random projection of this width (None: in full
        width)

    Returns
    -------
    (min(n, M),) int64 on the device of the memory, in the order of choice

    Raises
    ------
    ValueError for n below 1.

    Source: PatchCore, algorithm 1; distances of unit vectors here, as the search is by cosine.
    """
    points, rng = unit(memory), np.random.default_rng(seed)
    if n < 1:
        raise ValueError(f"A coreset keeps at least 1 vector, found n={n}.")
    if n >= len(points):
        return torch.arange(len(points), device=points.device)
    if width and width < points.shape[1]:
        drawn = rng.standard_normal((points.shape[1], width)) / width**0.5
        points = points @ beside(drawn, points)
    # gap: squared distance of each vector to the nearest chosen one
    gap = points.new_full((len(points),), torch.inf)
    chosen = torch.tensor([int(rng.integers(len(points)))], device=points.device)  # (1,)
    found = [chosen]
    while len(found) < n:
        gap = torch.minimum(gap, (points - points[chosen]).square().sum(dim=1))
        chosen = gap.argmax(dim=0, keepdim=True)  # stays on the device: the host need not wait
        found.append(chosen)
    return torch.cat(found)


def rotations(image: np.ndarray, n: int = 8) -> list[np.ndarray]:
    """Return n copies of an image (H, W, 3) uint8, turned by 360/n degrees each.

    Corners are filled with the nearest border. Encode the copies as further references.

    Source: AnomalyDINO, "agnostic" preprocessing.
    """
    image = np.asarray(image)
    return [image] + [
        ndimage.rotate(image, 360 * i / n, reshape=False, order=1, mode="nearest")
        for i in range(1, n)
    ]


def foreground(
    tokens: ArrayLike,
    grid: tuple[int, int],
    threshold: float = 0.0,
    centre_share: float = 0.35,
) -> torch.Tensor:
    """Return the mask of the patches that belong to the object.

    The mask is where the first principal component of one image's tokens is high.

    Parameters
    ----------
    tokens : (N, C); grid : (h, w)
    threshold : on the component, which has mean 0 (AnomalyDINO uses 10 on DINOv2's tokens)
    centre_share : the component's sign is free; it is turned when the mask fills less of the
        middle than this

    Returns
    -------
    (N,) bool on the CPU, where it is computed, dilated and closed by one patch

    Source: AnomalyDINO, masking. It makes sense for one object on a plain ground only, not for
    textures.
    """
    component = PCA(1, svd_solver="full").fit_transform(tensor(tokens).cpu().numpy())
    component = component[:, 0].reshape(grid)
    h, w = grid
    middle = component[int(h * 0.2) : max(1, int(h * 0.8)), int(w * 0.2) : max(1, int(w * 0.8))]
    mask = (component if (middle > threshold).mean() > centre_share else -component) > threshold
    mask = np.pad(ndimage.binary_dilation(mask, np.ones((3, 3))), 1, mode="edge")
    return torch.from_numpy(ndimage.binary_closing(mask, np.ones((3, 3)))[1:-1, 1:-1].reshape(-1))


def few_shot(
    features: Encoded,
    references: Encoded,
    block: int | str | Sequence[int | str] = "final",
    k: int = 1,
    coreset_size: int | None = None,
    seed: int = 0,
    mask: bool = False,
    top: float = 0.01,
    cache: DistanceCache | None = None,
) -> Scores:
    """Score images by the distance of their patches to the nearest reference patch.

    Parameters
    ----------
    features : encoded test images with ``tokens[block]`` (B, N, C)
    references : encoded normal images; rotated copies are simply more of them (:func:`rotations`)
    block : block number, "final", or a sequence of them whose distances are averaged
    k : neighbours
    coreset_size : None keeps the whole bank; else how many tokens (per block)
    seed : of the coreset
    mask : score only the foreground (:func:`foreground`, from the first block)
    top : share of patches whose mean is the image score
    cache : remembers distances to single references; used for k=1 without coreset and mask

    Returns
    -------
    Scores, training-free; maps (B, h, w) on the patch grid. For AnomalyDINO's maps upsample them
    and ``smooth(maps, 4)`` at the original size.

    Source: PatchCore, section 3.3 (distance of a patch to the bank; its weight of the image score
    is left out); AnomalyDINO (image score).
    """
    blocks = [block] if isinstance(block, (int, str)) else list(block)
    if k == 1 and coreset_size is None and not mask:
        layers = [reference_distance(features, references, b, cache=cache) for b in blocks]
        distances = torch.stack(layers).mean(dim=0)
    else:
        banks = _banks(moved(references, features.device), blocks, coreset_size, seed)
        distances = torch.cat([_searched(part, banks, k, mask) for part in batches(features)])
    return Scores(
        top_mean(distances, top),
        distances.unflatten(1, tuple(features.grid)),
        f"cosine distance to the {k} nearest reference patches; image: mean of the top {top:.0%}",
        "training-free",
        (0.0, 2.0),
        (0.0, 2.0),
    )


def _banks(
    references: Encoded, blocks: Sequence[int | str], coreset_size: int | None, seed: int
) -> dict[int | str, torch.Tensor]:
    """Return {block: (M, C)}, the tokens of all references with unit length."""
    banks = {}
    for b in blocks:
        bank = tensor(references.tokens[b]).flatten(0, 1)
        chosen = bank if coreset_size is None else bank[coreset(bank, coreset_size, seed)]
        banks[b] = unit(chosen)
    return banks


def _searched(
    part: Encoded, banks: dict[int | str, torch.Tensor], k: int, mask: bool
) -> torch.Tensor:
    """Return the distances (B, N) to whole banks, which single references cannot give."""
    tokens = {b: tensor(part.tokens[b]) for b in banks}
    first = next(iter(tokens.values()))
    inside = torch.stack([foreground(t, part.grid) for t in first]) if mask else None
    layers = [_distance_to_bank(tokens[b], bank, k, inside) for b, bank in banks.items()]
    return torch.stack(layers).mean(dim=0)
