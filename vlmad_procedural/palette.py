"""Draws and colours that the texture families share."""

import numpy as np

from .fields import colour, coords, fractal, lerp, rotate


def pick(rng, *options):
    """One of ``options``."""
    return options[rng.integers(len(options))]


def chance(rng, probability):
    """True with ``probability``."""
    return rng.uniform() < probability


def tone(style, hue=None, sat=(0.1, 0.7), val=(0.15, 0.9), grey=0.25):
    """Main colour (3,) of a product; grey with probability ``grey``."""
    # squared: muted colours are the rule, loud ones the exception
    strength = sat[0] + (sat[1] - sat[0]) * style.uniform() ** 2
    return colour(style, hue, 0.0 if chance(style, grey) else strength, val)


def near(style, base, spread=0.15):
    """A colour (3,) close to ``base``, mostly in brightness."""
    return np.clip(
        base * (1 + spread * style.uniform(-1.5, 1.5)) + spread * 0.12 * style.uniform(-1, 1, 3),
        0,
        1,
    )


def place(style, rng, size, turn=True):
    """Coordinates of a product laid under the camera: fixed direction, small turn and a free shift."""
    angle = pick(style, 0, 0, np.pi / 2, np.pi / 4, style.uniform(0, np.pi)) if turn else 0.0
    y, x = rotate(*coords(size), angle + 0.02 * rng.normal())
    return y + rng.uniform(), x + rng.uniform()


def lit(base, shade, amount):
    """Colours ``base`` (3,) or (S, S, 3) under a shading (S, S) in -1..1."""
    return np.clip(base * (1 + amount * shade[..., None]), 0, 1)


def mottle(style, rng, size, base, amount=0.15, scale=0.4):
    """(S, S, 3): ``base`` with broad unevenness, a fresh one in every image."""
    return lerp(base, near(style, base, amount * 2), fractal(rng, size, scale, 3))


def tiles(y, x, n, kind):
    """Repeat: position in the tile (v, u) in -0.5..0.5 and tile id; odd rows shifted by half if ``kind``."""
    row = np.floor(y * n)
    shift = 0.5 * (row % 2) if kind else 0.0
    column = np.floor(x * n + shift)
    identity = ((row * 7919 + column * 104729).astype(np.int64) % 4096 + 4096) % 4096
    return y * n - row - 0.5, x * n + shift - column - 0.5, identity
