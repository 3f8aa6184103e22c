"""Signed distance shapes and letters for the procedural objects.

A shape is a function of local x, y that gives the signed distance, negative inside.
"""

from collections.abc import Iterable

import numpy as np

from .aliases import Count, Field, Rng, Shape

# strokes on a 3 x 5 grid: the digits are x, y of the points of a polyline
GLYPHS = """
    0:0020240400 1:011014 2:002022020424 3:00202404,0222 4:000222,2024 5:200002222404
    6:200004242202 7:002014 8:0020240400,0222 9:220200202404 A:0401102124,0222 C:20000424
    E:20000424,0212 F:200004,0212 H:0004,2024,0222 K:0004,2002,0224 L:000424 M:0400122024
    N:04002420 P:0400202202 R:0400202202,1224 T:0020,1014 U:00042420 V:001420 X:0024,2004
    Z:00200424 -:0222
"""
_LINES = {glyph[0]: glyph[2:].split(",") for glyph in GLYPHS.split()}


def disc(r: float) -> Shape:
    """Return a disc of radius r."""
    return lambda x, y: np.hypot(x, y) - r


def ring(r0: float, r1: float) -> Shape:
    """Return a ring between the radii r0 and r1."""
    return lambda x, y: np.abs(np.hypot(x, y) - (r0 + r1) / 2) - (r1 - r0) / 2


def box(a: float, b: float, r: float = 0.0) -> Shape:
    """Return a box of half sides a (along x) and b, its corners round by r."""

    def shape(x: Field, y: Field) -> Field:
        u, v = np.abs(x) - a + r, np.abs(y) - b + r
        return np.hypot(np.maximum(u, 0), np.maximum(v, 0)) + np.minimum(np.maximum(u, v), 0) - r

    return shape


def frame(a: float, b: float, r: float) -> Shape:
    """Return the outline of a box of half sides a (along x) and b, 2 r thick."""
    inner = box(a, b)
    return lambda x, y: np.abs(inner(x, y)) - r


def stick(x0: float, y0: float, x1: float, y1: float, r: float) -> Shape:
    """Return a line from (x0, y0) to (x1, y1), 2 r thick with round ends."""
    dx, dy = x1 - x0, y1 - y0
    norm = dx * dx + dy * dy + 1e-12

    def shape(x: Field, y: Field) -> Field:
        t = np.clip(((x - x0) * dx + (y - y0) * dy) / norm, 0, 1)
        return np.hypot(x - x0 - t * dx, y - y0 - t * dy) - r

    return shape


def ngon(n: Count, r: float) -> Shape:
    """Return a regular polygon of n sides at distance r from its middle."""

    def shape(x: Field, y: Field) -> Field:
        a = np.mod(np.arctan2(y, x) + np.pi / n, 2 * np.pi / n) - np.pi / n
        return np.hypot(x, y) * np.cos(a) - r

    return shape


def ellipse(a: float, b: float) -> Shape:
    """Return an ellipse of half axes a (along x) and b; the distance is approximate."""

    def shape(x: Field, y: Field) -> Field:
        k = np.hypot(x / a, y / b)
        return k * (k - 1) / (np.hypot(x / a**2, y / b**2) + 1e-9)

    return shape


def blob(
    amplitudes: Iterable[float], phases: Iterable[float], r: float = 1.0, aspect: float = 1.0
) -> Shape:
    """Return a disc with a wavy outline.

    Its radius is r (1 + sum_k amplitude_k cos(k angle + phase_k)), k from 2.
    """
    waves = [(k + 2, m, p) for k, (m, p) in enumerate(zip(amplitudes, phases, strict=True))]

    def shape(x: Field, y: Field) -> Field:
        a = np.arctan2(y * aspect, x)
        wave = sum(m * np.cos(k * a + p) for k, m, p in waves)
        return np.hypot(x, y * aspect) - r * (1 + wave)

    return shape


def text(letters: str, height: float, weight: float = 0.1) -> tuple[Shape, float]:
    """Return the shape and half length of a line of letters, centred at the origin."""
    step, parts = height / 4, []
    for i, letter in enumerate(letters):
        for line in _LINES.get(letter, ()):
            digits = [int(digit) for digit in line]
            right = [x + 3.4 * i - 1.7 * len(letters) + 0.7 for x in digits[::2]]
            points = [(x, y - 2) for x, y in zip(right, digits[1::2])]
            for p, q in zip(points, points[1:]):
                x0, y0 = np.multiply(p, step)
                x1, y1 = np.multiply(q, step)
                parts.append(stick(x0, y0, x1, y1, weight * height))

    def shape(x: Field, y: Field) -> Field:
        return np.minimum.reduce([part(x, y) for part in parts])

    return shape, step * 1.7 * len(letters) + height


def words(rng: Rng, n: Count) -> str:
    """Draw n letters."""
    return "".join(rng.choice(list(_LINES), n))
