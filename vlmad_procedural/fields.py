"""Smooth noise, cells, shapes and colours over float64 arrays: the brushes of the procedural generator.

Every field is (S, S) float64 and every length a share of the image side, so that a product looks the same at
any size. Only ``Generator.integers``, ``uniform`` and ``normal`` are drawn, and everything stays float64
until the last rounding to uint8: the rounding errors that differ between machines vanish in it.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

OVERSAMPLE = 4  # shapes are drawn this much larger and averaged: antialiasing


def coords(size):
    """Pixel centres ``(y, x)``, each (S, S) float64 in 0..1, rows downwards."""
    line = (np.arange(size) + 0.5) / size
    return np.broadcast_to(line[:, None], (size, size)).copy(), np.broadcast_to(
        line, (size, size)
    ).copy()


def rotate(y, x, angle, centre=(0.5, 0.5)):
    """Coordinates ``(y, x)`` turned by ``angle`` (radian) about ``centre`` (y, x)."""
    dy, dx = y - centre[0], x - centre[1]
    return centre[0] + np.cos(angle) * dy - np.sin(angle) * dx, centre[1] + np.sin(
        angle
    ) * dy + np.cos(angle) * dx


@lru_cache(maxsize=256)
def _spline(size, cells):
    """Weights (S, cells + 3) of the uniform cubic B-spline over ``cells`` cells (float)."""
    t = (np.arange(size) + 0.5) / size * cells
    index, f = np.floor(t).astype(int), t - np.floor(t)
    weights = np.zeros((size, int(np.ceil(cells)) + 3))
    parts = ((1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3)
    for offset, part in enumerate(parts):
        weights[np.arange(size), index + offset] = part / 6
    return weights


def smooth(rng, size, scale):
    """One octave of smooth noise (S, S) with a deviation of about one.

    ``scale`` is the feature size as a share of the side, or a pair (along y, along x) for streaks.
    """
    scale_y, scale_x = (scale, scale) if np.isscalar(scale) else scale
    # features below 1.5 pixel cannot be shown
    rows = _spline(size, float(round(min(1 / scale_y, size / 1.5), 3)))
    columns = _spline(size, float(round(min(1 / scale_x, size / 1.5), 3)))
    return rows @ rng.normal(size=(rows.shape[1], columns.shape[1])) @ columns.T / 0.48


def unit(field):
    """``field`` stretched to 0..1 (a constant field becomes 0)."""
    low, high = field.min(), field.max()
    return (field - low) / max(high - low, 1e-12)


def fractal(rng, size, scale, octaves=4, gain=0.5):
    """Fractal noise (S, S) in 0..1: octaves of smooth noise, each half the size and ``gain`` the weight.

    ``scale`` is the size of the largest features as a share of the side (0.25: about four across), or a pair
    (along y, along x) for streaks.
    """
    total, scale = 0.0, np.asarray(scale, float)
    for octave in range(octaves):
        total = total + gain**octave * smooth(
            rng, size, tuple(np.broadcast_to(scale / 2**octave, 2))
        )
    return unit(total)


def grain(rng, size, sigma=0.0):
    """White noise (S, S), blurred by ``sigma`` pixels, mean 0 and deviation 1."""
    noise = rng.normal(size=(size, size))
    if sigma > 0:
        noise = gaussian_filter(noise, sigma, mode="wrap", truncate=3)
        noise /= noise.std()
    return noise


def warp(y, x, rng, amount, scale):
    """Coordinates pushed about by smooth noise of size ``scale``, deviation ``amount`` (share of side)."""
    size = y.shape[0]
    return y + amount * smooth(rng, size, scale), x + amount * smooth(rng, size, scale)


def blur(field, sigma):
    """Gaussian blur by ``sigma`` pixels of (S, S) or (S, S, 3), edges mirrored."""
    if sigma <= 0:
        return field
    spread = (sigma, sigma, 0) if field.ndim == 3 else sigma
    return gaussian_filter(field, spread, mode="nearest", truncate=3)


def look_up(image, y, x, order=1):
    """``image`` (h, w) or (h, w, 3) read at ``y``, ``x`` (S, S) in 0..1, mirrored beyond the edge."""
    where = np.stack([y * image.shape[0] - 0.5, x * image.shape[1] - 0.5])
    planes = image[..., None] if image.ndim == 2 else image
    out = [
        map_coordinates(planes[..., c], where, order=order, mode="mirror")
        for c in range(planes.shape[2])
    ]
    return out[0] if image.ndim == 2 else np.stack(out, axis=-1)


def worley(rng, size, n, jitter=1.0, y=None, x=None):
    """Cells about ``n`` random points.

    Returns distance to the nearest and to the second nearest point, both (S, S) as a share of the side, and
    the cell id (S, S) int64. ``jitter`` below 1 keeps to a lattice (0: regular); ``y``, ``x`` replace
    the pixel coordinates (warped cells).
    """
    if y is None:
        y, x = coords(size)
    side = max(2, int(round(np.sqrt(n))))
    # one ring outside: no special cells at the border
    rows, columns = (
        np.arange(np.floor(t.min() * side) - 1, np.ceil(t.max() * side) + 1) for t in (y, x)
    )
    points = (np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2) + 0.5) / side
    points = points + jitter * rng.uniform(-0.5, 0.5, points.shape) * 1.6 / side
    tree = cKDTree(points, leafsize=10, balanced_tree=False, compact_nodes=False)
    distance, cell = tree.query(np.stack([y, x], -1), k=2)
    return distance[..., 0], distance[..., 1], cell[..., 0]


def colour(rng, hue=None, sat=(0.1, 0.7), val=(0.2, 0.9)):
    """A random RGB colour (3,) in 0..1. Each argument is a number or a (low, high) range; hue None: any."""
    pick = [
        v if np.isscalar(v) else rng.uniform(*v)
        for v in ((0.0, 1.0) if hue is None else hue, sat, val)
    ]
    h, s, v = pick[0] % 1.0, pick[1], pick[2]
    return v * (1 - s + s * np.clip(np.abs((h * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1))


def lerp(a, b, t):
    """``a`` where ``t`` is 0, ``b`` where it is 1. A (S, S) ``t`` spreads over colours (3,) or (S, S, 3)."""
    a, b, t = np.asarray(a, float), np.asarray(b, float), np.asarray(t, float)
    if t.ndim == 2 and (a.ndim in (1, 3) or b.ndim in (1, 3)):
        t = t[..., None]
        a, b = (v[..., None] if v.ndim == 2 else v for v in (a, b))
    return a + (b - a) * t


def step(low, high, field):
    """0 below ``low``, 1 above ``high``, smooth between (``low`` may exceed ``high``: falling)."""
    t = np.clip((field - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def relief(height, angle, strength=1.0, sigma=0.0):
    """Light from ``angle`` on a ``height`` (S, S) in pixels: shading (S, S) about 0, in -1..1."""
    height = blur(height, sigma)
    slope_y, slope_x = np.gradient(height)
    return np.tanh(strength * (np.cos(angle) * slope_x + np.sin(angle) * slope_y))


def cover(distance, size, soft=0.0):
    """Alpha (S, S) of a shape from a signed ``distance`` (share of side, negative inside), antialiased."""
    return np.clip(0.5 - distance / (1.0 / size + soft), 0, 1)


def ellipse(y, x, centre, radii, angle=0.0, soft=0.0):
    """Alpha (S, S) of an ellipse with ``radii`` (y, x), turned by ``angle``, edge ``soft`` wide."""
    v, u = rotate(y, x, angle, centre)
    v, u = (v - centre[0]) / radii[0], (u - centre[1]) / radii[1]
    r = np.sqrt(v * v + u * u)
    return cover((r - 1) * min(radii), y.shape[0], soft)


def box(y, x, centre, half, angle=0.0, radius=0.0, soft=0.0):
    """Alpha (S, S) of a box with ``half`` sides (y, x), rounded by ``radius``, turned by ``angle``."""
    v, u = rotate(y, x, angle, centre)
    v, u = np.abs(v - centre[0]) - half[0] + radius, np.abs(u - centre[1]) - half[1] + radius
    outside = np.hypot(np.maximum(v, 0), np.maximum(u, 0))
    return cover(outside + np.minimum(np.maximum(v, u), 0) - radius, y.shape[0], soft)


def grey(image):
    """Mean over the channels of (..., 3); much faster than ``mean(-1)`` on so short an axis."""
    return (image[..., 0] + image[..., 1] + image[..., 2]) / 3


def peak(image):
    """Maximum over the channels of (..., 3)."""
    return np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])


def _canvas(size):
    picture = Image.new("L", (size * OVERSAMPLE, size * OVERSAMPLE), 0)
    return picture, ImageDraw.Draw(picture), size * OVERSAMPLE


def _alpha(picture):
    return np.asarray(picture.reduce(OVERSAMPLE), float) / 255


def polygon(size, points):
    """Alpha (S, S) of the polygon with vertices ``points`` (K, 2) as (y, x) in 0..1, antialiased."""
    picture, draw, scale = _canvas(size)
    draw.polygon([(float(q[1] * scale), float(q[0] * scale)) for q in points], fill=255)
    return _alpha(picture)


def strokes(size, lines):
    """Alpha (S, S) of polylines with round joints.

    ``lines``: pairs of points (K, 2) as (y, x) in 0..1 and a width, share of the side, one number or (K,).
    """
    picture, draw, scale = _canvas(size)
    for points, width in lines:
        points = np.asarray(points, float)[:, ::-1] * scale
        widths = np.broadcast_to(np.asarray(width, float) * scale, len(points))
        for a, b, wide in zip(points[:-1], points[1:], (widths[:-1] + widths[1:]) / 2, strict=True):
            draw.line([tuple(a), tuple(b)], fill=255, width=max(1, int(round(wide))))
        for centre, wide in zip(points, widths, strict=True):
            if wide > 3:
                r = wide / 2
                draw.ellipse([centre[0] - r, centre[1] - r, centre[0] + r, centre[1] + r], fill=255)
    return _alpha(picture)


def path(rng, start, angle, length, wiggle=0.4, steps=24, jag=0.4):
    """A wandering line (steps + 1, 2) as (y, x) from ``start``, ``length`` long.

    It heads to ``angle`` +- ``wiggle``; with ``jag`` 0 it is smooth.
    """
    turns = (
        np.cumsum(rng.normal(size=steps)) * wiggle / np.sqrt(steps)
        + rng.normal(size=steps) * wiggle * jag
    )
    moves = np.stack([np.sin(angle + turns), np.cos(angle + turns)], 1) * length / steps
    return np.concatenate([np.zeros((1, 2)), np.cumsum(moves, 0)]) + np.asarray(start, float)
