"""Random choices and colours that the texture families share."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from .aliases import Colour, Count, Field, Image, Range, Rng
from .fields import coords, lerp, rotate
from .noise import fractal

T = TypeVar("T")
Drawer = TypeVar("Drawer", bound=Callable[..., Any])


def registry(*drawers: Drawer) -> Mapping[str, Drawer]:
    """Return the functions by their names, read-only and in this order."""
    return MappingProxyType({drawer.__name__: drawer for drawer in drawers})


def pick(rng: Rng, *options: T) -> T:
    """Return one of ``options`` at random."""
    return options[rng.integers(len(options))]


def chance(rng: Rng, probability: float) -> bool:
    """Return True with ``probability``."""
    return rng.uniform() < probability


def colour(
    rng: Rng,
    hue: Range | float | None = None,
    sat: Range | float = (0.1, 0.7),
    val: Range | float = (0.2, 0.9),
) -> Colour:
    """Draw an RGB colour (3,). Each argument is a number or a range; hue None: any."""
    h, s, v = (
        rng.uniform(*wanted) if isinstance(wanted, tuple) else wanted
        for wanted in ((0.0, 1.0) if hue is None else hue, sat, val)
    )
    h = h % 1.0
    return v * (1 - s + s * np.clip(np.abs((h * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1))


def tone(
    style: Rng,
    hue: Range | None = None,
    sat: Range = (0.1, 0.7),
    val: Range | float = (0.15, 0.9),
    grey: float = 0.25,
) -> Colour:
    """Draw the main colour (3,) of a product; grey with probability ``grey``."""
    # squared: muted colours are the rule, loud ones the exception
    strength = sat[0] + (sat[1] - sat[0]) * style.uniform() ** 2
    return colour(style, hue, 0.0 if chance(style, grey) else strength, val)


def near(style: Rng, base: Colour, spread: float = 0.15) -> Colour:
    """Draw a colour (3,) close to ``base``, different mostly in brightness."""
    brighter = base * (1 + spread * style.uniform(-1.5, 1.5))
    return np.clip(brighter + spread * 0.12 * style.uniform(-1, 1, 3), 0, 1)


def place(style: Rng, rng: Rng, size: int, turn: bool = True) -> tuple[Field, Field]:
    """Return coordinates of a product under the camera: fixed direction, small turn, free shift."""
    angle = pick(style, 0, 0, np.pi / 2, np.pi / 4, style.uniform(0, np.pi)) if turn else 0.0
    y, x = rotate(*coords(size), angle + 0.02 * rng.normal())
    return y + rng.uniform(), x + rng.uniform()


def lit(base: np.ndarray, shade: Field, amount: float) -> Image:
    """Return colours ``base`` (3,) or (S, S, 3) under a shading (S, S) in -1..1."""
    return np.clip(base * (1 + amount * shade[..., None]), 0, 1)


def mottle(
    style: Rng, rng: Rng, size: int, base: Colour, amount: float = 0.15, scale: float = 0.4
) -> Image:
    """Return ``base`` (S, S, 3) with broad unevenness, a fresh one in every image."""
    return lerp(base, near(style, base, amount * 2), fractal(rng, size, scale, 3))


def tiles(y: Field, x: Field, n: float, shifted: Count) -> tuple[Field, Field, np.ndarray]:
    """Repeat: position in the tile (v, u) in -0.5..0.5 and tile id; ``shifted``: odd rows by half.

    The id is (S, S) int64 in 0..4095.
    """
    row = np.floor(y * n)
    shift = 0.5 * (row % 2) if shifted else 0.0
    column = np.floor(x * n + shift)
    identity = ((row * 7919 + column * 104729).astype(np.int64) % 4096 + 4096) % 4096
    return y * n - row - 0.5, x * n + shift - column - 0.5, identity
