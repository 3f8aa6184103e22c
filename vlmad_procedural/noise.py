"""Random fields: smooth and fractal noise, grain, warped coordinates, cells."""

from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree

from .aliases import Field, Rng
from .fields import coords, unit


@lru_cache(maxsize=256)
def _spline(size: int, cells: float) -> np.ndarray:
    """Return the weights (S, cells + 3) of the uniform cubic B-spline over ``cells`` cells."""
    t = (np.arange(size) + 0.5) / size * cells
    index, f = np.floor(t).astype(int), t - np.floor(t)
    weights = np.zeros((size, int(np.ceil(cells)) + 3))
    parts = ((1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3)
    for offset, part in enumerate(parts):
        weights[np.arange(size), index + offset] = part / 6
    weights.flags.writeable = False  # all callers share it
    return weights


def smooth(rng: Rng, size: int, scale: float | tuple[float, float]) -> Field:
    """Draw one octave of smooth noise (S, S) with a deviation of about one.

    ``scale`` is the feature size as a share of the side, or a pair (along y, along x) for streaks.
    """
    scale_y, scale_x = scale if isinstance(scale, tuple) else (scale, scale)
    # features below 1.5 pixel cannot be shown
    rows = _spline(size, float(round(min(1 / scale_y, size / 1.5), 3)))
    columns = _spline(size, float(round(min(1 / scale_x, size / 1.5), 3)))
    return rows @ rng.normal(size=(rows.shape[1], columns.shape[1])) @ columns.T / 0.48


def fractal(
    rng: Rng,
    size: int,
    scale: float | tuple[float, float],
    octaves: int = 4,
    gain: float = 0.5,
) -> Field:
    """Draw fractal noise (S, S) in 0..1: octaves, each half the size and ``gain`` the weight.

    ``scale`` is the size of the largest features as a share of the side (0.25: about four across),
    or a pair (along y, along x) for streaks.
    """
    scale_y, scale_x = scale if isinstance(scale, tuple) else (scale, scale)
    total = np.zeros((size, size))
    for octave in range(octaves):
        part = (scale_y / 2**octave, scale_x / 2**octave)
        total = total + gain**octave * smooth(rng, size, part)
    return unit(total)


def grain(rng: Rng, size: int, sigma: float = 0.0) -> Field:
    """Draw white noise (S, S), blurred by ``sigma`` pixels, mean 0 and deviation 1."""
    noise = rng.normal(size=(size, size))
    if sigma > 0:
        noise = gaussian_filter(noise, sigma, mode="wrap", truncate=3)
        noise /= noise.std()
    return noise


def warp(y: Field, x: Field, rng: Rng, amount: float, scale: float) -> tuple[Field, Field]:
    """Move coordinates by smooth noise of size ``scale``, deviation ``amount`` (share of side)."""
    size = y.shape[0]
    return y + amount * smooth(rng, size, scale), x + amount * smooth(rng, size, scale)


def worley(
    rng: Rng, size: int, n: float, jitter: float = 1.0, at: tuple[Field, Field] | None = None
) -> tuple[Field, Field, np.ndarray]:
    """Draw cells about ``n`` random points.

    ``jitter`` below 1 keeps to a lattice (0: regular); ``at`` (y, x) replaces the pixel
    coordinates (warped cells).

    Returns
    -------
    distance to the nearest and to the second nearest point, both (S, S) as a share of the side
    cell id (S, S) int64
    """
    y, x = coords(size) if at is None else at
    side = max(2, int(round(np.sqrt(n))))
    # one ring outside: no special cells at the border
    rows, columns = (
        np.arange(np.floor(t.min() * side) - 1, np.ceil(t.max() * side) + 1) for t in (y, x)
    )
    points = (np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2) + 0.5) / side
    points = points + jitter * rng.uniform(-0.5, 0.5, points.shape) * 1.6 / side
    tree = KDTree(points, leafsize=10, balanced_tree=False, compact_nodes=False)
    distance, cell = tree.query(np.stack([y, x], -1), k=2)
    return distance[..., 0], distance[..., 1], cell[..., 0]
