"""Irregular training textures: minerals, fibres, crusts, metals, plastics and photographs.

Every family is ``(style, rng, size) -> (S, S, 3) float64 in 0..1``: ``style`` draws what a product
line keeps, ``rng`` what differs from image to image.
"""

from collections.abc import Mapping

import numpy as np

from .aliases import Field, Image, Rng, Texture
from .fields import coords, lerp, look_up, relief, rotate, step, unit
from .noise import fractal, grain, smooth, warp, worley
from .outlines import box, strokes
from .palette import chance, colour, lit, mottle, near, pick, registry, tone
from .photographs import photo


def stone(style: Rng, rng: Rng, size: int) -> Image:
    """Draw granite (mineral grains) or marble (veins)."""
    base = tone(style, val=(0.2, 0.95), sat=(0.05, 0.45), grey=0.4)
    minerals = [near(style, base, 0.5) for _ in range(5)]
    minerals = np.stack([*minerals, base * 0.35, base * 0.3 + 0.7])
    if chance(style, 0.6):
        y, x = warp(*coords(size), rng, 0.006, 0.03)
        d1, d2, cell = worley(rng, size, style.uniform(300, 3000), at=(y, x))
        weights = np.cumsum(style.uniform(0.05, 1, len(minerals)))
        kind = np.searchsorted(weights / weights[-1], rng.uniform(size=cell.max() + 1))[cell]
        image = minerals[np.minimum(kind, len(minerals) - 1)]
        return np.clip(image * (0.9 + 0.2 * fractal(rng, size, 0.02, 2)[..., None]), 0, 1)
    y, x = warp(*coords(size), rng, 0.06, style.uniform(0.2, 0.6))
    scale = style.uniform(0.2, 0.5)
    field, (v, u) = np.zeros_like(y), rotate(y, x, 0.6)
    for k in range(4):
        octave = smooth(rng, size, (scale / 2**k, 2 * scale / 2**k))
        field = field + 0.5**k * look_up(octave, v, u)
    field = np.abs(unit(field) - 0.25)
    veins = np.exp(-field * style.uniform(8, 30)) * style.uniform(0.4, 1)
    image = mottle(style, rng, size, base, 0.2)
    image = lerp(image, minerals[5] if chance(style, 0.5) else minerals[6], veins)
    return np.clip(image + 0.02 * grain(rng, size, 0.7)[..., None], 0, 1)


def paper(style: Rng, rng: Rng, size: int) -> Image:
    """Draw paper, card board or tissue: fibres and formation."""
    base = tone(style, (0.05, 0.16), (0.02, 0.45), (0.45, 0.97), 0.4)
    fibre = smooth(rng, size, (0.008, style.uniform(0.01, 0.06)))
    image = lit(mottle(style, rng, size, base, 0.06, 0.1), fibre, style.uniform(0.005, 0.06))
    count = pick(style, 0, 30, 150, 400)
    lines = []
    for _ in range(count):
        start, angle, bend = rng.uniform(0, 1, 2), rng.uniform(0, np.pi), rng.normal()
        along = np.linspace(0, rng.uniform(0.01, 0.06), 4)
        y, x = along * np.sin(angle + bend * along * 20), along * np.cos(angle)
        lines.append((start + np.stack([y, x], 1), 0.002))
    image = lerp(image, near(style, base, 0.5), style.uniform(0.2, 0.7) * strokes(size, lines))
    return lit(image, grain(rng, size, 0.6), style.uniform(0.005, 0.03))


def concrete(style: Rng, rng: Rng, size: int) -> Image:
    """Draw concrete or cement: clouds, sand, air pores."""
    base = tone(style, (0.05, 0.15), (0.02, 0.15), (0.3, 0.85), 0.5)
    image = mottle(style, rng, size, base, style.uniform(0.05, 0.25), style.uniform(0.2, 0.7))
    sand = relief(grain(rng, size, style.uniform(0.5, 1.5)), style.uniform(0, 6.3), 0.7)
    image = lit(image, sand, style.uniform(0.03, 0.2))
    pores = step(style.uniform(2.4, 3.2), 4.0, smooth(rng, size, style.uniform(0.012, 0.04)))
    return image * (1 - style.uniform(0.2, 0.7) * pores[..., None])


def terrazzo(style: Rng, rng: Rng, size: int) -> Image:
    """Draw stone chips in a binder."""
    base = tone(style, sat=(0.02, 0.5), val=(0.3, 0.95))
    y, x = warp(*coords(size), rng, style.uniform(0, 0.008), 0.06)
    d1, d2, cell = worley(rng, size, style.uniform(80, 900), style.uniform(0.8, 1), at=(y, x))
    count, n = int(style.integers(2, 6)), cell.max() + 1
    palette = np.stack([tone(style, val=(0.1, 0.95), sat=(0.05, 0.6)) for _ in range(count)])
    chips = palette[rng.integers(0, len(palette), n)][cell]
    chips = chips * (0.85 + 0.3 * rng.uniform(size=n)[cell, None])
    gap = style.uniform(0.05, 0.4) * rng.uniform(0.4, 2.2, n)[cell] * d2.mean()
    kept = (rng.uniform(size=n) < style.uniform(0.4, 0.95))[cell]
    alpha = step(0, 0.006, d2 - d1 - gap) * kept
    image = lerp(mottle(style, rng, size, base, 0.05), chips, alpha)
    return np.clip(image + 0.015 * grain(rng, size)[..., None], 0, 1)


def felt(style: Rng, rng: Rng, size: int) -> Image:
    """Draw matted fibres in all directions."""
    base = tone(style)
    fibres = np.zeros((size, size))
    for angle in rng.uniform(0, np.pi, 4):
        streaks = smooth(rng, size, (0.005, style.uniform(0.02, 0.06)))
        y, x = rotate(*warp(*coords(size), rng, 0.02, 0.06), angle)
        fibres = fibres + look_up(streaks, y, x)
    melange = step(-0.5, 1.5, smooth(rng, size, style.uniform(0.008, 0.03)) + 0.7 * fibres)
    image = lerp(base, near(style, base, style.uniform(0.1, 0.9)), melange)
    return np.clip(lit(image, fibres / 3, style.uniform(0.08, 0.35)), 0, 1)


def cork(style: Rng, rng: Rng, size: int) -> Image:
    """Draw pressed granules with dark specks: cork, chip board or rubber granulate."""
    base = tone(style, (0.06, 0.1), (0.35, 0.65), (0.35, 0.8), 0.15)
    y, x = warp(*coords(size), rng, 0.01, 0.04)
    d1, d2, cell = worley(rng, size, style.uniform(150, 1500), at=(y, x))
    tint = base * (1 + style.uniform(0.08, 0.3) * rng.normal(size=(cell.max() + 1, 1)))[cell]
    tint = tint * (1 - style.uniform(0.1, 0.6) * step(0.006, 0, d2 - d1)[..., None])
    specks = step(1.6, 2.4, smooth(rng, size, (0.015, 0.025)))
    image = lerp(tint, base * 0.3, 0.8 * specks)
    return np.clip(image * (0.85 + 0.3 * fractal(rng, size, 0.02, 2)[..., None]), 0, 1)


def foam(style: Rng, rng: Rng, size: int) -> Image:
    """Draw sponge or foam: pores of all sizes are normal here."""
    base = tone(style, val=(0.3, 0.95))
    depth = np.zeros((size, size))
    for n, share in ((style.uniform(80, 500), 0.5), (style.uniform(600, 2500), 0.8)):
        y, x = warp(*coords(size), rng, 0.008, 0.05)
        d1, _, cell = worley(rng, size, n, at=(y, x))
        radius = d1.mean() * rng.uniform(0.2, 1.5, cell.max() + 1)[cell] * share
        depth = np.maximum(depth, step(1.15, style.uniform(0.1, 0.8), d1 / radius))
    image = mottle(style, rng, size, base, 0.08)
    shade = relief(-depth * 2, style.uniform(0, 6.3), 1)
    image = lit(image, shade, style.uniform(0.1, 0.4))
    image = image * (1 - style.uniform(0.2, 0.8) * depth[..., None])
    return image * (0.95 + 0.1 * fractal(rng, size, 0.015, 2)[..., None])


def plaster(style: Rng, rng: Rng, size: int) -> Image:
    """Draw a rough cast or trowelled wall."""
    base = tone(style, sat=(0.02, 0.4), val=(0.45, 0.95), grey=0.3)
    scale = style.uniform(0.03, 0.2)
    stretch = pick(style, 1, 1, 3)
    gain = style.uniform(0.4, 0.65)
    height = fractal(rng, size, (scale, scale * stretch), 5, gain) * size * scale
    image = mottle(style, rng, size, base, 0.04)
    shade = relief(height, style.uniform(0, 6.3), style.uniform(0.3, 1.5))
    return lit(image, shade, style.uniform(0.1, 0.5))


def cast_metal(style: Rng, rng: Rng, size: int) -> Image:
    """Draw cast, sand-blasted or rusted metal."""
    base = tone(style, (0.55, 0.65), (0.02, 0.15), (0.2, 0.75), 0.6)
    bumps = relief(grain(rng, size, style.uniform(0.6, 2.2)) * 2, style.uniform(0, 6.3), 0.6)
    image = lit(mottle(style, rng, size, base, 0.15), bumps, style.uniform(0.08, 0.45))
    if chance(style, 0.5):
        cloud = fractal(rng, size, style.uniform(0.08, 0.4), 6, 0.65)
        dark = colour(style, 0.03, (0.5, 0.9), (0.15, 0.4))
        rust = colour(style, 0.07, (0.6, 0.9), (0.4, 0.75))
        tint = lerp(dark, rust, fractal(rng, size, 0.05, 4))
        edge = style.uniform(0.2, 0.7)
        image = lerp(image, lit(tint, bumps, 0.3), step(edge, edge + 0.15, cloud))
    return image


def hammered_metal(style: Rng, rng: Rng, size: int) -> Image:
    """Draw dimpled or hammer-painted metal."""
    base = tone(style, sat=(0.1, 0.5), val=(0.25, 0.8), grey=0.5)
    d1, d2, _ = worley(rng, size, style.uniform(60, 900), style.uniform(0.3, 1))
    height = -((d1 / d1.mean()) ** 2) * pick(style, 1, -1) * style.uniform(1, 3)
    normal = relief(height, style.uniform(0, 6.3), style.uniform(0.8, 2), 0.7)
    gloss = step(0.55, 0.95, normal) * style.uniform(0, 0.7)
    image = lit(mottle(style, rng, size, base, 0.1), normal, style.uniform(0.2, 0.6))
    return lerp(image, np.ones(3), gloss)


def ceramic_glaze(style: Rng, rng: Rng, size: int) -> Image:
    """Draw glazed ceramic or enamel: smooth, speckled, with soft reflections."""
    base = tone(style, val=(0.3, 0.98))
    image = lerp(base, near(style, base, 0.4), fractal(rng, size, style.uniform(0.2, 0.7), 4))
    specks = step(style.uniform(1.6, 2.6), 3.4, smooth(rng, size, style.uniform(0.008, 0.03)))
    image = lerp(image, tone(style, val=(0.02, 0.95)), style.uniform(0, 1) * specks)
    return lerp(image, np.ones(3), style.uniform(0, 0.4) * _gloss(style, rng, size))


def asphalt(style: Rng, rng: Rng, size: int) -> Image:
    """Draw aggregate in dark binder, or sand paper, grit and gravel."""
    base = tone(style, (0.05, 0.7), (0.02, 0.2), (0.1, 0.5), 0.5)
    d1, d2, cell = worley(rng, size, style.uniform(500, 3500), 1)
    spread = style.uniform(0.2, 0.9) * rng.normal(size=(cell.max() + 1, 1))
    stones = base * (1 + spread)[cell] + 0.05
    image = lerp(base * 0.5, np.clip(stones, 0, 1), step(0.1, 0.6, (d2 - d1) / d1.mean()))
    grit = relief(grain(rng, size, 1.0) * 2, style.uniform(0, 6.3), 0.6)
    return lit(image, grit, style.uniform(0.1, 0.4))


def bread_crust(style: Rng, rng: Rng, size: int) -> Image:
    """Draw baked crust: browned, blistered, porous."""
    pale = colour(style, (0.08, 0.12), (0.35, 0.6), (0.7, 0.95))
    brown = colour(style, (0.05, 0.08), (0.6, 0.85), (0.25, 0.55))
    height = fractal(rng, size, style.uniform(0.08, 0.3), 5, 0.6)
    browned = unit(height + style.uniform(0, 0.6) * fractal(rng, size, 0.5, 2))
    image = lerp(pale, brown, np.clip(browned * style.uniform(0.7, 1.2), 0, 1))
    pores = step(style.uniform(1.2, 2.2), 3.0, smooth(rng, size, style.uniform(0.015, 0.04)))
    shade = relief(height * size * 0.06 - pores, style.uniform(0, 6.3), 1, 0.6)
    image = lit(image, shade, style.uniform(0.1, 0.4))
    return image * (1 - style.uniform(0.1, 0.5) * pores[..., None])


def fur(style: Rng, rng: Rng, size: int) -> Image:
    """Draw fur, grass, bristles: streaks along a flowing direction."""
    base = tone(style, val=(0.2, 0.9))
    y, x = warp(*coords(size), rng, style.uniform(0.01, 0.06), style.uniform(0.1, 0.4))
    y, x = rotate(y, x, style.uniform(0, np.pi))
    length = style.uniform(0.06, 0.3)
    hairs = smooth(rng, size, (0.007, length)) + 0.7 * smooth(rng, size, (0.014, length * 0.6))
    hairs = look_up(hairs, y, x)
    locks = step(-1, 1.5, look_up(smooth(rng, size, (0.02, length)), y, x))
    image = lerp(base, near(style, base, 0.8), locks)
    return lit(image, np.tanh(hairs) * 0.8, style.uniform(0.2, 0.7))


def _gloss(style: Rng, rng: Rng, size: int) -> Field:
    """Draw reflections (S, S) in 0..1: a window, tube or lamp, elsewhere in every image."""
    y, x = rotate(*warp(*coords(size), rng, 0.01, 0.5), style.uniform(0, np.pi))
    at = rng.uniform(0, 1, 2)
    kind = style.integers(3)
    if kind == 0:
        return np.exp(-(((y - at[0]) / style.uniform(0.02, 0.15)) ** 2))
    if kind == 1:
        return np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / style.uniform(0.05, 0.3) ** 2)
    half = style.uniform(0.05, 0.2), style.uniform(0.1, 0.4)
    return box(y, x, at, half, soft=style.uniform(0.02, 0.1))


def plastic(style: Rng, rng: Rng, size: int) -> Image:
    """Draw moulded or painted plastic with a fine grain and highlights."""
    base = tone(style, sat=(0.1, 0.95), val=(0.05, 0.95))
    bumps = fractal(rng, size, style.uniform(0.015, 0.06), 2) * 4
    peel = relief(bumps, style.uniform(0, 6.3), style.uniform(0.2, 1))
    image = lit(mottle(style, rng, size, base, 0.03, 0.8), peel, style.uniform(0.01, 0.25))
    shine = style.uniform(0.05, 0.7)
    gloss = np.clip(_gloss(style, rng, size) * (1 + 0.5 * peel), 0, 1)
    return lerp(image, np.ones(3), shine * gloss)


def gradient(style: Rng, rng: Rng, size: int) -> Image:
    """Draw a plain, almost featureless surface: sheet, film, glass, screen."""
    base, other = tone(style, val=(0.03, 0.98), grey=0.4), None
    other = near(style, base, style.uniform(0.05, 0.5))
    y, x = rotate(*coords(size), style.uniform(0, 6.3) + 0.2 * rng.normal())
    image = lerp(base, other, np.clip(y + 0.1 * rng.normal() + 0.1 * smooth(rng, size, 0.6), 0, 1))
    noise = style.uniform(0, 0.025) * grain(rng, size, style.uniform(0, 1.5))
    return np.clip(image + noise[..., None], 0, 1)


SURFACES: Mapping[str, Texture] = registry(
    stone,
    paper,
    concrete,
    terrazzo,
    felt,
    cork,
    foam,
    plaster,
    cast_metal,
    hammered_metal,
    ceramic_glaze,
    asphalt,
    bread_crust,
    fur,
    plastic,
    gradient,
    photo,
)
