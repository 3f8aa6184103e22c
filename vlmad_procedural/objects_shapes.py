"""Signed distance shapes, letters, colours and grounds for the procedural objects."""

import numpy as np

from .fields import smooth

# strokes on a 3 x 5 grid: the digits are x, y of the points of a polyline
GLYPHS = {
    "0": "0020240400",
    "1": "011014",
    "2": "002022020424",
    "3": "00202404,0222",
    "4": "000222,2024",
    "5": "200002222404",
    "6": "200004242202",
    "7": "002014",
    "8": "0020240400,0222",
    "9": "220200202404",
    "A": "0401102124,0222",
    "C": "20000424",
    "E": "20000424,0212",
    "F": "200004,0212",
    "H": "0004,2024,0222",
    "K": "0004,2002,0224",
    "L": "000424",
    "M": "0400122024",
    "N": "04002420",
    "P": "0400202202",
    "R": "0400202202,1224",
    "T": "0020,1014",
    "U": "00042420",
    "V": "001420",
    "X": "0024,2004",
    "Z": "00200424",
    "-": "0222",
}
METALS = (
    (0.70, 0.71, 0.73),
    (0.55, 0.56, 0.58),
    (0.78, 0.66, 0.40),
    (0.72, 0.45, 0.30),
    (0.28, 0.28, 0.30),
    (0.82, 0.82, 0.80),
)
DARK = (0.05, 0.05, 0.055)


# --- shapes: functions of local x, y giving the signed distance (negative inside) --------------------


def disc(r):
    return lambda x, y: np.hypot(x, y) - r


def ring(r0, r1):
    return lambda x, y: np.abs(np.hypot(x, y) - (r0 + r1) / 2) - (r1 - r0) / 2


def box(a, b, r=0.0):
    def shape(x, y):
        u, v = np.abs(x) - a + r, np.abs(y) - b + r
        return np.hypot(np.maximum(u, 0), np.maximum(v, 0)) + np.minimum(np.maximum(u, v), 0) - r

    return shape


def stick(x0, y0, x1, y1, r):
    dx, dy = x1 - x0, y1 - y0
    norm = dx * dx + dy * dy + 1e-12

    def shape(x, y):
        t = np.clip(((x - x0) * dx + (y - y0) * dy) / norm, 0, 1)
        return np.hypot(x - x0 - t * dx, y - y0 - t * dy) - r

    return shape


def ngon(n, r):
    def shape(x, y):
        a = np.mod(np.arctan2(y, x) + np.pi / n, 2 * np.pi / n) - np.pi / n
        return np.hypot(x, y) * np.cos(a) - r

    return shape


def ellipse(a, b):
    def shape(x, y):
        k = np.hypot(x / a, y / b)
        return k * (k - 1) / (np.hypot(x / a**2, y / b**2) + 1e-9)

    return shape


def blob(amplitudes, phases, r=1.0, aspect=1.0):
    """Disc with a wavy outline: radius r (1 + sum_k amplitude_k cos(k angle + phase_k)), k from 2."""

    def shape(x, y):
        a = np.arctan2(y * aspect, x)
        wave = sum(
            m * np.cos((k + 2) * a + p)
            for k, (m, p) in enumerate(zip(amplitudes, phases, strict=True))
        )
        return np.hypot(x, y * aspect) - r * (1 + wave)

    return shape


def text(words, height, weight=0.1):
    """Shape and half length of a line of letters of the given height, centred at the origin."""
    step, parts = height / 4, []
    for i, letter in enumerate(words):
        for line in filter(None, GLYPHS.get(letter, "").split(",")):
            points = [
                (int(line[j]) + 3.4 * i - 1.7 * len(words) + 0.7, int(line[j + 1]) - 2)
                for j in range(0, len(line), 2)
            ]
            parts += [
                stick(*np.multiply(p, step), *np.multiply(q, step), weight * height)
                for p, q in zip(points, points[1:], strict=False)
            ]
    return (lambda x, y: np.minimum.reduce([part(x, y) for part in parts])), step * 1.7 * len(
        words
    ) + height


def words(rng, n):
    return "".join(rng.choice(list(GLYPHS), n))


# --- colours -----------------------------------------------------------------------------------------


def hsv(h, s, v):
    k = np.mod(np.array([5.0, 3.0, 1.0]) + h * 6, 6)
    return v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1)


def tint(rng, hue=(0, 1), sat=(0.2, 0.9), value=(0.2, 0.9)):
    return hsv(rng.uniform(*hue), rng.uniform(*sat), rng.uniform(*value))


def metal(rng):
    return np.array(METALS[rng.integers(len(METALS))]) * rng.uniform(0.85, 1.1)


def turned(rng, color, amount=0.08, fine=120, radial=True):
    """Colour with tool marks: concentric (radial) or straight along y, from a random 1-d profile."""
    knots, table = np.linspace(-1.5, 1.5, fine), rng.normal(size=fine) * amount

    def shade(x, y, d):
        return (
            np.asarray(color)
            * (1 + np.interp(np.hypot(x, y) if radial else x, knots, table))[..., None]
        )

    return shade


def ground(style, rng, size):
    """Albedo (size, size, 3) of what is under the object: plain, graded, wood, cloth, belt, stone, metal."""
    kind = style.choice(
        ["plain", "graded", "wood", "cloth", "belt", "stone", "metal"],
        p=[0.34, 0.12, 0.12, 0.12, 0.12, 0.09, 0.09],
    )
    value = style.choice(
        [style.uniform(0.82, 0.97), style.uniform(0.03, 0.2), style.uniform(0.3, 0.7)],
        p=[0.42, 0.25, 0.33],
    )
    color = hsv(style.uniform(), style.choice([0.03, 0.1, 0.4], p=[0.55, 0.3, 0.15]), value)
    angle, pitch, depth = (
        style.uniform(0, np.pi),
        style.uniform(3, 9) * size / 224,
        style.uniform(0.04, 0.14),
    )
    y, x = np.mgrid[:size, :size] / 1.0
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    shift = rng.uniform(0, size)
    if kind == "wood":
        color = tint(style, (0.05, 0.11), (0.3, 0.6), (0.35, 0.8))
        rings = (
            v / (4 * pitch) + 0.8 * smooth(rng, size, 60 / 224) + 0.15 * smooth(rng, size, 8 / 224)
        )
        wave = np.sin(2 * np.pi * rings) * 0.6 + smooth(rng, size, (2 / 224, 30 / 224)) * 0.5
    elif kind == "cloth":
        wave = np.sin(2 * np.pi * (u + shift) / pitch) * np.sin(2 * np.pi * (v + shift) / pitch)
        wave = wave + 0.5 * smooth(rng, size, 3 / 224)
    elif kind == "belt":
        wave = np.tanh(3 * np.sin(2 * np.pi * (u + shift) / (pitch * 4))) + 0.4 * smooth(
            rng, size, 2 / 224
        )
    elif kind == "stone":
        wave = 1.2 * smooth(rng, size, 2.5 / 224) + smooth(rng, size, 12 / 224)
    elif kind == "metal":
        wave = smooth(rng, size, (1.5 / 224, 60 / 224)) + 0.5 * smooth(rng, size, 50 / 224)
    elif kind == "graded":
        wave = 3 * (u / size - 0.5)
    else:
        wave = 0.15 * smooth(rng, size, 40 / 224)
    return np.clip(color * (1 + depth * wave)[..., None], 0, 1)
