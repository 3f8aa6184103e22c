"""Coordinates and operations on fields: the brushes of the procedural generator.

Every length is a share of the image side, so that a product looks the same at any size. Only
``Generator.integers``, ``uniform`` and ``normal`` are drawn. Everything stays float64 until the
last rounding to uint8: the rounding errors that differ between machines vanish in it.
"""

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from .aliases import Field, Image, Point


def coords(size: int) -> tuple[Field, Field]:
    """Return the pixel centres ``(y, x)``, each (S, S) float64 in 0..1, rows downwards."""
    line = (np.arange(size) + 0.5) / size
    square = (size, size)
    return np.broadcast_to(line[:, None], square).copy(), np.broadcast_to(line, square).copy()


def rotate(
    y: Field, x: Field, angle: float, centre: Point | np.ndarray = (0.5, 0.5)
) -> tuple[Field, Field]:
    """Turn coordinates ``(y, x)`` by ``angle`` (radian) about ``centre`` (y, x)."""
    dy, dx = y - centre[0], x - centre[1]
    turned_y = centre[0] + np.cos(angle) * dy - np.sin(angle) * dx
    return turned_y, centre[1] + np.sin(angle) * dy + np.cos(angle) * dx


def unit(field: Field) -> Field:
    """Stretch ``field`` to 0..1 (a constant field becomes 0)."""
    low, high = field.min(), field.max()
    return (field - low) / max(high - low, 1e-12)


def blur(field: np.ndarray, sigma: float) -> np.ndarray:
    """Blur (S, S) or (S, S, 3) by a Gaussian of ``sigma`` pixels; edge pixels are repeated."""
    if sigma <= 0:
        return field
    spread = (sigma, sigma, 0) if field.ndim == 3 else sigma
    return gaussian_filter(field, spread, mode="nearest", truncate=3)


def look_up(image: np.ndarray, y: Field, x: Field, order: int = 1) -> np.ndarray:
    """Read ``image`` (h, w) or (h, w, 3) at ``y``, ``x`` (S, S) in 0..1, mirrored at the edge."""
    where = np.stack([y * image.shape[0] - 0.5, x * image.shape[1] - 0.5])
    if image.ndim == 2:
        return map_coordinates(image, where, order=order, mode="mirror")
    planes = (image[..., c] for c in range(image.shape[2]))
    return np.stack([map_coordinates(p, where, order=order, mode="mirror") for p in planes], -1)


def lerp(a: np.ndarray, b: np.ndarray, t: np.ndarray | float) -> np.ndarray:
    """Mix: ``a`` where ``t`` is 0, ``b`` where it is 1.

    A (S, S) ``t`` spreads over colours (3,) or (S, S, 3).
    """
    a, b, t = np.asarray(a, float), np.asarray(b, float), np.asarray(t, float)
    if t.ndim == 2 and (a.ndim in (1, 3) or b.ndim in (1, 3)):
        t = t[..., None]
        a, b = (v[..., None] if v.ndim == 2 else v for v in (a, b))
    return a + (b - a) * t


def step(low: float, high: float, field: Field) -> Field:
    """Return 0 below ``low``, 1 above ``high``, smooth between (``low`` > ``high``: falling)."""
    t = np.clip((field - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def relief(height: Field, angle: float, strength: float = 1.0, sigma: float = 0.0) -> Field:
    """Light a ``height`` (S, S) in pixels from ``angle``: shading (S, S) about 0, in -1..1."""
    height = blur(height, sigma)
    slope_y, slope_x = np.gradient(height)
    return np.tanh(strength * (np.cos(angle) * slope_x + np.sin(angle) * slope_y))


def grey(image: Image) -> Field:
    """Return the mean over the channels of (..., 3); much faster than ``mean(-1)`` here."""
    return (image[..., 0] + image[..., 1] + image[..., 2]) / 3


def peak(image: Image) -> Field:
    """Return the maximum over the channels of (..., 3)."""
    return np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])
