"""Placing and blending of faults: patches and lines of a wished area, and how they change an image.

Areas are shares of the image. A patch grows from a potential (S, S), high at its middle, cut at the height
that leaves exactly the wished number of pixels inside the support; a line is redrawn as wide as needed.
"""

import numpy as np

from .fields import (
    blur,
    colour,
    coords,
    grey,
    lerp,
    path,
    peak,
    relief,
    rotate,
    smooth,
    step,
    strokes,
)
from .palette import chance, lit, pick

LEVEL = 0.15  # a pixel belongs to the mask when more than this share of it was replaced
VISIBLE = 0.15  # smallest mean change of a full-contrast fault, in 0..1


def site(support, rng):
    """A random place (y, x) in 0..1 inside ``support`` (S, S) bool."""
    places = np.flatnonzero(support)
    size = support.shape[0]
    best = None
    for _ in range(4):  # a place whose surroundings are inside too is better
        row, column = divmod(int(places[rng.integers(len(places))]), size)
        reach = size // 16
        around = support[
            max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1
        ].sum()
        if best is None or around > best[0]:
            best = around, ((row + 0.5) / size, (column + 0.5) / size)
    return best[1]


def cut(potential, support, area, soft):
    """Patch of ``area`` where ``potential`` is highest inside ``support``.

    Returns alpha (S, S) in 0..1, above LEVEL for exactly the wished pixels, its edge ``soft`` wide in units
    of the potential; and depth (S, S): potential above the edge.
    """
    inside = potential[support]
    count = int(np.clip(round(area * potential.size), 4, max(4, 0.7 * inside.size)))
    edge = np.partition(inside, -count)[-count] if count <= inside.size else inside.min()
    depth = np.where(support, potential - edge, -1.0)
    return np.clip(depth / soft + LEVEL, 0, 1) * support, depth


def patch(support, rng, area, soft=None, kind=None, centre=None, rough=None):
    """A compact patch: alpha and depth of ``cut``, depth as a share of the patch radius.

    ``kind`` "blob", "polygon" or "splat" (default any), ``soft`` edge as a share of the radius.
    """
    size = support.shape[0]
    radius = max(np.sqrt(area / np.pi), 1.5 / size)
    y, x = coords(size)
    centre = site(support, rng) if centre is None else centre
    kind = kind or pick(rng, "blob", "blob", "polygon", "splat")
    stretch = np.exp(rng.uniform(0, 1) ** 2 * 0.7)
    v, u = rotate(y, x, rng.uniform(0, 2 * np.pi), centre)
    v, u = (v - centre[0]) * stretch, (u - centre[1]) / stretch
    if kind == "polygon":
        sides = int(rng.integers(3, 8))
        angles = (np.arange(sides) + rng.uniform(-0.3, 0.3, sides)) * 2 * np.pi / sides
        reach = rng.uniform(0.7, 1.3, sides)
        distance = np.max(
            [(np.sin(a) * v + np.cos(a) * u) / r for a, r in zip(angles, reach, strict=True)],
            axis=0,
        )
        rough = 0.05 if rough is None else rough
    else:
        distance = np.hypot(v, u)
        rough = rng.uniform(0.1, 0.5) if rough is None else rough
    noise = rough * smooth(rng, size, max(radius * rng.uniform(0.6, 1.6), 0.012))
    if kind == "splat":
        noise = noise * 0.6 + 0.5 * smooth(rng, size, max(radius * 0.35, 0.012))
    noise = noise + 0.25 * rough * smooth(rng, size, max(radius * 0.2, 0.008))
    least = 1.5 / size / radius
    soft = least if soft is None else max(soft, least)
    return cut(-distance / radius + noise, support, area, soft)


def cluster(support, rng, area, count, spread, **options):
    """``count`` patches scattered by ``spread`` about a place: alpha and height (S, S) in 0..1."""
    middle, shares = np.asarray(site(support, rng)), rng.uniform(0.2, 1, count)
    shares, alpha, height = shares / shares.sum(), np.zeros(support.shape), np.zeros(support.shape)
    for share in shares:
        centre = np.clip(middle + spread * rng.normal(size=2) * (count > 1), 0.01, 0.99)
        one, depth = patch(support, rng, area * share, centre=tuple(centre), **options)
        alpha, height = (
            np.maximum(alpha, one),
            np.maximum(height, dome(depth) * np.sqrt(share / shares.max())),
        )
    return alpha, height


def line(support, rng, area, draw, widest=0.03):
    """A line-like fault: alpha (S, S). ``draw(start, angle, length)`` gives ``strokes`` about one wide."""
    size = support.shape[0]
    width = np.exp(rng.uniform(np.log(0.005), np.log(max(0.006, min(widest, np.sqrt(area) * 0.3)))))
    length = float(np.clip(area / width, 0.06, 1.2))
    width, best = area / length, None
    for _ in range(4):
        lines = draw(site(support, rng), rng.uniform(0, 2 * np.pi), length)
        scaled = [(points, np.asarray(w, float) * width) for points, w in lines]
        alpha = strokes(size, scaled) * support
        share = (alpha > LEVEL).mean()
        if best is None or share > best[0]:
            best = share, alpha, lines
        if share > 0.8 * area:
            break
    share, alpha, lines = best
    if share > 0 and not 0.8 < share / area < 1.25:
        factor = np.clip(area / share, 0.3, 3)
        alpha = (
            strokes(
                size,
                [
                    (p, np.maximum(np.asarray(w, float) * width * factor, 0.6 / size))
                    for p, w in lines
                ],
            )
            * support
        )
    return alpha


def local(image, alpha):
    """Mean colour (3,) of ``image`` under ``alpha``."""
    return (image * alpha[..., None]).sum((0, 1)) / max(alpha.sum(), 1e-9)


def ink(image, alpha, rng, saturation=0.5):
    """A colour (3,) that stands out from what is under ``alpha``: darker, brighter or of another hue."""
    here = local(image, alpha)
    if chance(rng, saturation):
        found = colour(rng, None, (0.2, 0.9), (0.1, 0.95))
    elif here.mean() > rng.uniform(0.15, 0.6):
        found = here * rng.uniform(0.05, 0.6)
    else:
        found = lerp(here, np.ones(3), rng.uniform(0.4, 0.95))
    if np.abs(found - here).max() < 0.25:
        found = here * 0.3 if here.mean() > 0.4 else lerp(here, np.ones(3), 0.6)
    return found


def blend(image, painted, alpha, contrast):
    """Put ``painted`` (S, S, 3) over ``image`` by ``alpha`` (S, S), at ``contrast`` in (0, 1].

    A change too small to be seen on this surface (below VISIBLE plus 0.6 of the deviation of the surface) is
    pushed darker or brighter first. Returns the image and the mask: alpha above LEVEL.
    """
    mask = alpha > LEVEL
    if mask.any():
        change = peak(np.abs(painted[mask] - image[mask])) * alpha[mask]
        wanted = VISIBLE + 0.6 * grey(image[mask]).std()
        lack = wanted - change.mean()
        if lack > 0:
            away = np.mean(painted[mask] - image[mask])
            if abs(away) < 0.02:
                away = 0.5 - image[mask].mean()
            bright = image[mask].mean()
            sign = 1 if (away > 0 and bright < 0.85) or bright < 0.15 else -1
            painted = painted + sign * 1.3 * lack
    painted = np.clip(painted, 0, 1)
    return image + contrast * alpha[..., None] * (painted - image), mask


def dome(depth, power=0.5):
    """Height (S, S) of a swelling over a patch ``depth``: 0 at the edge, up to 1."""
    inside = np.clip(depth, 0, None)
    return step(0, 1, inside / max(inside.max(), 1e-9)) ** power


def dark_or_light(image, alpha, rng, dark=0.75):
    """Colour (3,) of a gap: mostly dark, sometimes light (or the other way where the surface is dark)."""
    here = local(image, alpha)
    if chance(rng, dark) == (here.mean() > 0.25):
        return here * rng.uniform(0.02, 0.45)
    return lerp(here, np.ones(3), rng.uniform(0.5, 0.95))


def lips(image, alpha, rng, amount):
    """Light on one lip of a gap and shade on the other, (S, S, 3)."""
    return lit(image, relief(-blur(alpha, 0.8) * 3, rng.uniform(0, 6.3), 1), amount)


def slit(rng, count, curve):
    """Drawer of ``count`` tapering, nearly parallel strokes for ``line``."""

    def draw(start, angle, length):
        lines, t = [], np.linspace(0, 1, 20)
        for k in range(count):
            shift = 0.03 * rng.normal(size=2) * (k > 0)
            points = path(
                rng,
                np.asarray(start) + shift,
                angle + 0.06 * rng.normal(),
                length / count**0.5 * rng.uniform(0.7, 1),
                curve,
                19,
                0.1,
            )
            lines.append(
                (
                    points,
                    np.clip(np.sin(np.pi * t), 0.15, 1) ** 0.7 * rng.uniform(0.6, 1.4) / count**0.5,
                )
            )
        return lines

    return draw
