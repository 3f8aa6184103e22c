"""Colours of the procedural objects, and the ground under them."""

import numpy as np

from .aliases import Colour, Field, Image, Range, Rng, Shade
from .noise import smooth

METALS = (
    (0.70, 0.71, 0.73),
    (0.55, 0.56, 0.58),
    (0.78, 0.66, 0.40),
    (0.72, 0.45, 0.30),
    (0.28, 0.28, 0.30),
    (0.82, 0.82, 0.80),
)
DARK = (0.05, 0.05, 0.055)
KINDS = ("plain", "graded", "wood", "cloth", "belt", "stone", "metal")


def hsv(h: float, s: float, v: float) -> Colour:
    """Return the RGB colour (3,) of hue, saturation and value, each in 0..1."""
    k = np.mod(np.array([5.0, 3.0, 1.0]) + h * 6, 6)
    return v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1)


def tint(
    rng: Rng, hue: Range = (0, 1), sat: Range = (0.2, 0.9), value: Range = (0.2, 0.9)
) -> Colour:
    """Draw a colour (3,) from ranges of hue, saturation and value."""
    return hsv(rng.uniform(*hue), rng.uniform(*sat), rng.uniform(*value))


def metal(rng: Rng) -> Colour:
    """Draw the colour (3,) of a metal."""
    return np.array(METALS[rng.integers(len(METALS))]) * rng.uniform(0.85, 1.1)


def turned(
    rng: Rng, color: Colour, amount: float = 0.08, fine: int = 120, radial: bool = True
) -> Shade:
    """Return ``color`` with tool marks from a random profile, concentric or straight along y."""
    knots, table = np.linspace(-1.5, 1.5, fine), rng.normal(size=fine) * amount

    def shade(x: Field, y: Field, d: Field) -> Image:
        marks = np.interp(np.hypot(x, y) if radial else x, knots, table)
        return np.asarray(color) * (1 + marks)[..., None]

    return shade


def ground(style: Rng, rng: Rng, size: int) -> Image:
    """Draw the albedo (S, S, 3) of what is under the object, one of KINDS."""
    kind = style.choice(KINDS, p=[0.34, 0.12, 0.12, 0.12, 0.12, 0.09, 0.09])
    values = [style.uniform(0.82, 0.97), style.uniform(0.03, 0.2), style.uniform(0.3, 0.7)]
    value = style.choice(values, p=[0.42, 0.25, 0.33])
    color = hsv(style.uniform(), style.choice([0.03, 0.1, 0.4], p=[0.55, 0.3, 0.15]), value)
    angle, pitch = style.uniform(0, np.pi), style.uniform(3, 9) * size / 224
    depth = style.uniform(0.04, 0.14)
    y, x = np.mgrid[:size, :size] / 1.0
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    shift = rng.uniform(0, size)
    if kind == "wood":
        color = tint(style, (0.05, 0.11), (0.3, 0.6), (0.35, 0.8))
        rings = v / (4 * pitch) + 0.8 * smooth(rng, size, 60 / 224)
        rings = rings + 0.15 * smooth(rng, size, 8 / 224)
        wave = np.sin(2 * np.pi * rings) * 0.6 + smooth(rng, size, (2 / 224, 30 / 224)) * 0.5
    elif kind == "cloth":
        wave = np.sin(2 * np.pi * (u + shift) / pitch) * np.sin(2 * np.pi * (v + shift) / pitch)
        wave = wave + 0.5 * smooth(rng, size, 3 / 224)
    elif kind == "belt":
        wave = np.tanh(3 * np.sin(2 * np.pi * (u + shift) / (pitch * 4)))
        wave = wave + 0.4 * smooth(rng, size, 2 / 224)
    elif kind == "stone":
        wave = 1.2 * smooth(rng, size, 2.5 / 224) + smooth(rng, size, 12 / 224)
    elif kind == "metal":
        wave = smooth(rng, size, (1.5 / 224, 60 / 224)) + 0.5 * smooth(rng, size, 50 / 224)
    elif kind == "graded":
        wave = 3 * (u / size - 0.5)
    else:
        wave = 0.15 * smooth(rng, size, 40 / 224)
    return np.clip(color * (1 + depth * wave)[..., None], 0, 1)
