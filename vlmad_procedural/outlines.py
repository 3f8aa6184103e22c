"""Antialiased shapes on the image: boxes and polylines."""

import numpy as np
import PIL.Image
from PIL import ImageDraw

from .aliases import Field, Point, Rng, Strokes
from .fields import rotate

OVERSAMPLE = 4  # strokes are drawn this much larger and averaged: antialiasing


def box(
    y: Field,
    x: Field,
    centre: Point | np.ndarray,
    half: Point,
    radius: float = 0.0,
    soft: float = 0.0,
) -> Field:
    """Return the alpha (S, S) of a box with ``half`` sides (y, x), corners ``radius`` round."""
    v, u = rotate(y, x, 0.0, centre)
    v, u = np.abs(v - centre[0]) - half[0] + radius, np.abs(u - centre[1]) - half[1] + radius
    outside = np.hypot(np.maximum(v, 0), np.maximum(u, 0))
    distance = outside + np.minimum(np.maximum(v, u), 0) - radius
    return np.clip(0.5 - distance / (1.0 / y.shape[0] + soft), 0, 1)


def strokes(size: int, lines: Strokes) -> Field:
    """Return the alpha (S, S) of polylines with round joints.

    ``lines``: points (K, 2) as (y, x) in 0..1 and a width, share of the side, one or (K,).
    """
    scale = size * OVERSAMPLE
    canvas = PIL.Image.new("L", (scale, scale), 0)
    draw = ImageDraw.Draw(canvas)
    for points, width in lines:
        points = np.asarray(points, float)[:, ::-1] * scale
        widths = np.broadcast_to(np.asarray(width, float) * scale, len(points))
        for a, b, wide in zip(points[:-1], points[1:], (widths[:-1] + widths[1:]) / 2, strict=True):
            draw.line([tuple(a), tuple(b)], fill=255, width=max(1, int(round(wide))))
        for (x, y), wide in zip(points, widths, strict=True):
            if wide > 3:
                r = wide / 2
                draw.ellipse([x - r, y - r, x + r, y + r], fill=255)
    return np.asarray(canvas.reduce(OVERSAMPLE), float) / 255


def path(
    rng: Rng,
    start: Point | np.ndarray,
    angle: float,
    length: float,
    wiggle: float = 0.4,
    steps: int = 24,
    jag: float = 0.4,
) -> np.ndarray:
    """Draw a wandering line (steps + 1, 2) as (y, x) from ``start``, ``length`` long.

    It heads to ``angle`` +- ``wiggle``; with ``jag`` 0 it is smooth.
    """
    bends = np.cumsum(rng.normal(size=steps)) * wiggle / np.sqrt(steps)
    turns = bends + rng.normal(size=steps) * wiggle * jag
    moves = np.stack([np.sin(angle + turns), np.cos(angle + turns)], 1) * length / steps
    return np.concatenate([np.zeros((1, 2)), np.cumsum(moves, 0)]) + np.asarray(start, float)
