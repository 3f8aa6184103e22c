"""Placing and blending of defects: patches and lines of an expected area, changes of an image.

Areas are shares of the image. A patch grows from a potential (S, S), high at its middle, cut at the
height that leaves exactly the expected number of pixels inside the support. A line is redrawn as
wide as needed.
"""

from typing import Any

import numpy as np

from .aliases import Colour, DrawLine, Drawn, Field, Image, Mask, Point, Rng, Strokes
from .fields import blur, coords, grey, lerp, peak, relief, rotate, step
from .noise import smooth
from .outlines import path, strokes
from .palette import chance, colour, lit, pick

LEVEL = 0.15  # a pixel belongs to the mask when more than this share of it was replaced
VISIBLE = 0.15  # smallest mean change of a full-contrast defect, in 0..1


def site(support: Mask, rng: Rng) -> Point:
    """Draw a place (y, x) in 0..1 inside ``support`` (S, S) bool."""
    places, size = np.flatnonzero(support), support.shape[0]
    reach = size // 16
    most, best = -1, (0.5, 0.5)
    for _ in range(4):  # a place whose surroundings are inside too is better
        row, column = divmod(int(places[rng.integers(len(places))]), size)
        rows = slice(max(row - reach, 0), row + reach + 1)
        columns = slice(max(column - reach, 0), column + reach + 1)
        around = support[rows, columns].sum()
        if around > most:
            most, best = around, ((row + 0.5) / size, (column + 0.5) / size)
    return best


def cut(potential: Field, support: Mask, area: float, soft: float) -> tuple[Field, Field]:
    """Cut the patch of ``area`` where ``potential`` is highest inside ``support``.

    Returns
    -------
    alpha : (S, S) in 0..1, above LEVEL for exactly the expected pixels; its edge is ``soft`` wide
        in units of the potential
    depth : (S, S), potential above the edge
    """
    inside = potential[support]
    count = int(np.clip(round(area * potential.size), 4, max(4, 0.7 * inside.size)))
    edge = np.partition(inside, -count)[-count] if count <= inside.size else inside.min()
    depth = np.where(support, potential - edge, -1.0)
    return np.clip(depth / soft + LEVEL, 0, 1) * support, depth


def patch(
    support: Mask,
    rng: Rng,
    area: float,
    soft: float | None = None,
    kind: str | None = None,
    centre: Point | None = None,
    rough: float | None = None,
) -> tuple[Field, Field]:
    """Draw a compact patch: alpha and depth of :func:`cut`, depth as a share of the patch radius.

    ``kind`` is "blob", "polygon" or "splat" (default any); ``soft`` is the edge as a share of the
    radius, ``rough`` the unevenness of the outline.
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
        reach = zip(angles, rng.uniform(0.7, 1.3, sides), strict=True)
        distance = np.max([(np.sin(a) * v + np.cos(a) * u) / r for a, r in reach], axis=0)
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


def cluster(
    support: Mask, rng: Rng, area: float, count: int, spread: float, **options: Any
) -> tuple[Field, Field]:
    """Scatter ``count`` patches by ``spread`` about a place: alpha and height (S, S) in 0..1.

    ``options`` are those of :func:`patch`.
    """
    middle, shares = np.asarray(site(support, rng)), rng.uniform(0.2, 1, count)
    shares, alpha, height = shares / shares.sum(), np.zeros(support.shape), np.zeros(support.shape)
    for share in shares:
        y, x = np.clip(middle + spread * rng.normal(size=2) * (count > 1), 0.01, 0.99)
        one, depth = patch(support, rng, area * share, centre=(y, x), **options)
        alpha = np.maximum(alpha, one)
        height = np.maximum(height, dome(depth) * np.sqrt(share / shares.max()))
    return alpha, height


def line(support: Mask, rng: Rng, area: float, draw: DrawLine, widest: float = 0.03) -> Field:
    """Draw a defect like a line: alpha (S, S); ``draw`` gives ``strokes`` about one wide."""
    size = support.shape[0]
    width = np.exp(rng.uniform(np.log(0.005), np.log(max(0.006, min(widest, np.sqrt(area) * 0.3)))))
    length = float(np.clip(area / width, 0.06, 1.2))
    width, share = area / length, -1.0
    lines, alpha = [], np.zeros(support.shape)
    for _ in range(4):
        tried = draw(site(support, rng), rng.uniform(0, 2 * np.pi), length)
        drawn = strokes(size, [(p, np.asarray(w, float) * width) for p, w in tried]) * support
        covered = (drawn > LEVEL).mean()
        if covered > share:
            share, alpha, lines = covered, drawn, tried
        if covered > 0.8 * area:
            break
    if share > 0 and not 0.8 < share / area < 1.25:
        factor = np.clip(area / share, 0.3, 3)
        wider = [(p, np.asarray(w, float) * width * factor) for p, w in lines]
        alpha = strokes(size, [(p, np.maximum(w, 0.6 / size)) for p, w in wider]) * support
    return alpha


def local(image: Image, alpha: Field) -> Colour:
    """Return the mean colour (3,) of ``image`` under ``alpha``."""
    return (image * alpha[..., None]).sum((0, 1)) / max(alpha.sum(), 1e-9)


def ink(image: Image, alpha: Field, rng: Rng, saturation: float = 0.5) -> Colour:
    """Draw a colour (3,) unlike what is under ``alpha``: darker, brighter or of another hue."""
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


def blend(image: Image, painted: Image, alpha: Field, contrast: float) -> Drawn:
    """Put ``painted`` (S, S, 3) over ``image`` by ``alpha`` (S, S), at ``contrast`` in (0, 1].

    A change too small to be seen on this surface (below VISIBLE plus 0.6 of the deviation of the
    surface) is made darker or brighter first. Returns the image and the mask: alpha above LEVEL.
    """
    mask = alpha > LEVEL
    if mask.any():
        change = peak(np.abs(painted[mask] - image[mask])) * alpha[mask]
        lack = VISIBLE + 0.6 * grey(image[mask]).std() - change.mean()
        if lack > 0:
            bright = image[mask].mean()
            away = np.mean(painted[mask] - image[mask])
            away = 0.5 - bright if abs(away) < 0.02 else away
            sign = 1 if (away > 0 and bright < 0.85) or bright < 0.15 else -1
            painted = painted + sign * 1.3 * lack
    painted = np.clip(painted, 0, 1)
    return image + contrast * alpha[..., None] * (painted - image), mask


def dome(depth: Field, power: float = 0.5) -> Field:
    """Return the height (S, S) of a swelling over a patch ``depth``: 0 at the edge, up to 1."""
    inside = np.clip(depth, 0, None)
    return step(0, 1, inside / max(inside.max(), 1e-9)) ** power


def gap(image: Image, alpha: Field, rng: Rng, dark: float = 0.75) -> Image:
    """Draw the one colour (S, S, 3) of a gap: mostly dark, sometimes light.

    It is the other way round where the surface is dark.
    """
    here = local(image, alpha)
    if chance(rng, dark) == (here.mean() > 0.25):
        return np.broadcast_to(here * rng.uniform(0.02, 0.45), image.shape)
    return np.broadcast_to(lerp(here, np.ones(3), rng.uniform(0.5, 0.95)), image.shape)


def lips(image: Image, alpha: Field, rng: Rng, amount: float) -> Image:
    """Light one lip of a gap and shade the other, (S, S, 3)."""
    return lit(image, relief(-blur(alpha, 0.8) * 3, rng.uniform(0, 6.3), 1), amount)


def slit(rng: Rng, count: int, curve: float) -> DrawLine:
    """Return the drawer of ``count`` tapering, nearly parallel strokes for :func:`line`."""

    def draw(start: Point, angle: float, length: float) -> Strokes:
        lines, share = [], count**0.5
        taper = np.clip(np.sin(np.pi * np.linspace(0, 1, 20)), 0.15, 1) ** 0.7
        for k in range(count):
            begin = np.asarray(start) + 0.03 * rng.normal(size=2) * (k > 0)
            heading = angle + 0.06 * rng.normal()
            long = length / share * rng.uniform(0.7, 1)
            points = path(rng, begin, heading, long, curve, 19, 0.1)
            lines.append((points, taper * rng.uniform(0.6, 1.4) / share))
        return lines

    return draw
