"""Irregular training textures: minerals, fibres, crusts, metals, plastics and photographs.

Every family is ``(style, rng, size) -> (S, S, 3) float64 in 0..1``: ``style`` draws what a product line
keeps, ``rng`` what differs from image to image.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import skimage
import sklearn
from PIL import Image

from .fields import (
    box,
    colour,
    coords,
    fractal,
    grain,
    grey,
    lerp,
    look_up,
    relief,
    rotate,
    smooth,
    step,
    strokes,
    unit,
    warp,
    worley,
)
from .palette import chance, lit, mottle, near, pick, tone


def stone(style, rng, size):
    """Granite (mineral grains) or marble (veins)."""
    base = tone(style, val=(0.2, 0.95), sat=(0.05, 0.45), grey=0.4)
    minerals = np.stack(
        [near(style, base, 0.5) for _ in range(5)] + [base * 0.35, base * 0.3 + 0.7]
    )
    if chance(style, 0.6):
        y, x = warp(*coords(size), rng, 0.006, 0.03)
        d1, d2, cell = worley(rng, size, style.uniform(300, 3000), y=y, x=x)
        weights = np.cumsum(style.uniform(0.05, 1, len(minerals)))
        kind = np.searchsorted(weights / weights[-1], rng.uniform(size=cell.max() + 1))[cell]
        image = minerals[np.minimum(kind, len(minerals) - 1)]
        return np.clip(image * (0.9 + 0.2 * fractal(rng, size, 0.02, 2)[..., None]), 0, 1)
    y, x = warp(*coords(size), rng, 0.06, style.uniform(0.2, 0.6))
    scale = style.uniform(0.2, 0.5)
    field = sum(
        0.5**k * look_up(smooth(rng, size, (scale / 2**k, 2 * scale / 2**k)), *rotate(y, x, 0.6))
        for k in range(4)
    )
    field = np.abs(unit(field) - 0.25)
    veins = np.exp(-field * style.uniform(8, 30)) * style.uniform(0.4, 1)
    image = lerp(
        mottle(style, rng, size, base, 0.2),
        minerals[5] if chance(style, 0.5) else minerals[6],
        veins,
    )
    return np.clip(image + 0.02 * grain(rng, size, 0.7)[..., None], 0, 1)


def paper(style, rng, size):
    """Paper, card board or tissue: fibres and formation."""
    base = tone(style, (0.05, 0.16), (0.02, 0.45), (0.45, 0.97), 0.4)
    fibre = smooth(rng, size, (0.008, style.uniform(0.01, 0.06)))
    image = lit(mottle(style, rng, size, base, 0.06, 0.1), fibre, style.uniform(0.005, 0.06))
    count = int(pick(style, 0, 30, 150, 400))
    lines = []
    for _ in range(count):
        start, angle, bend = rng.uniform(0, 1, 2), rng.uniform(0, np.pi), rng.normal()
        along = np.linspace(0, rng.uniform(0.01, 0.06), 4)
        lines.append(
            (
                start
                + np.stack([along * np.sin(angle + bend * along * 20), along * np.cos(angle)], 1),
                0.002,
            )
        )
    image = lerp(image, near(style, base, 0.5), style.uniform(0.2, 0.7) * strokes(size, lines))
    return np.clip(
        image * (1 + style.uniform(0.005, 0.03) * grain(rng, size, 0.6)[..., None]), 0, 1
    )


def concrete(style, rng, size):
    """Concrete or cement: clouds, sand, air pores."""
    base = tone(style, (0.05, 0.15), (0.02, 0.15), (0.3, 0.85), 0.5)
    image = mottle(style, rng, size, base, style.uniform(0.05, 0.25), style.uniform(0.2, 0.7))
    image = lit(
        image,
        relief(grain(rng, size, style.uniform(0.5, 1.5)), style.uniform(0, 6.3), 0.7),
        style.uniform(0.03, 0.2),
    )
    pores = step(style.uniform(2.4, 3.2), 4.0, smooth(rng, size, style.uniform(0.012, 0.04)))
    return image * (1 - style.uniform(0.2, 0.7) * pores[..., None])


def terrazzo(style, rng, size):
    """Stone chips in a binder."""
    base = tone(style, sat=(0.02, 0.5), val=(0.3, 0.95))
    y, x = warp(*coords(size), rng, style.uniform(0, 0.008), 0.06)
    d1, d2, cell = worley(rng, size, style.uniform(80, 900), style.uniform(0.8, 1), y=y, x=x)
    palette = np.stack(
        [tone(style, val=(0.1, 0.95), sat=(0.05, 0.6)) for _ in range(int(style.integers(2, 6)))]
    )
    chips = palette[rng.integers(0, len(palette), cell.max() + 1)][cell] * (
        0.85 + 0.3 * rng.uniform(size=cell.max() + 1)[cell, None]
    )
    gap = style.uniform(0.05, 0.4) * rng.uniform(0.4, 2.2, cell.max() + 1)[cell] * d2.mean()
    alpha = (
        step(0, 0.006, d2 - d1 - gap)
        * (rng.uniform(size=cell.max() + 1) < style.uniform(0.4, 0.95))[cell]
    )
    return np.clip(
        lerp(mottle(style, rng, size, base, 0.05), chips, alpha)
        + 0.015 * grain(rng, size)[..., None],
        0,
        1,
    )


def felt(style, rng, size):
    """Matted fibres in all directions."""
    base = tone(style)
    fibres = sum(
        look_up(
            smooth(rng, size, (0.005, style.uniform(0.02, 0.06))),
            *rotate(*warp(*coords(size), rng, 0.02, 0.06), a),
        )
        for a in rng.uniform(0, np.pi, 4)
    )
    melange = step(-0.5, 1.5, smooth(rng, size, style.uniform(0.008, 0.03)) + 0.7 * fibres)
    image = lerp(base, near(style, base, style.uniform(0.1, 0.9)), melange)
    return np.clip(lit(image, fibres / 3, style.uniform(0.08, 0.35)), 0, 1)


def cork(style, rng, size):
    """Pressed granules with dark specks: cork, chip board or rubber granulate."""
    base = tone(style, (0.06, 0.1), (0.35, 0.65), (0.35, 0.8), 0.15)
    y, x = warp(*coords(size), rng, 0.01, 0.04)
    d1, d2, cell = worley(rng, size, style.uniform(150, 1500), y=y, x=x)
    tint = base * (1 + style.uniform(0.08, 0.3) * rng.normal(size=(cell.max() + 1, 1)))[cell]
    tint = tint * (1 - style.uniform(0.1, 0.6) * step(0.006, 0, d2 - d1)[..., None])
    specks = step(1.6, 2.4, smooth(rng, size, (0.015, 0.025)))
    return np.clip(
        lerp(tint, base * 0.3, 0.8 * specks)
        * (0.85 + 0.3 * fractal(rng, size, 0.02, 2)[..., None]),
        0,
        1,
    )


def foam(style, rng, size):
    """Sponge or foam: pores of all sizes are normal here."""
    base = tone(style, val=(0.3, 0.95))
    depth = np.zeros((size, size))
    for n, share in ((style.uniform(80, 500), 0.5), (style.uniform(600, 2500), 0.8)):
        y, x = warp(*coords(size), rng, 0.008, 0.05)
        d1, _, cell = worley(rng, size, n, y=y, x=x)
        radius = d1.mean() * rng.uniform(0.2, 1.5, cell.max() + 1)[cell] * share
        depth = np.maximum(depth, step(1.15, style.uniform(0.1, 0.8), d1 / radius))
    image = lit(
        mottle(style, rng, size, base, 0.08),
        relief(-depth * 2, style.uniform(0, 6.3), 1),
        style.uniform(0.1, 0.4),
    )
    return (
        image
        * (1 - style.uniform(0.2, 0.8) * depth[..., None])
        * (0.95 + 0.1 * fractal(rng, size, 0.015, 2)[..., None])
    )


def plaster(style, rng, size):
    """Rough cast or trowelled wall."""
    base = tone(style, sat=(0.02, 0.4), val=(0.45, 0.95), grey=0.3)
    scale = style.uniform(0.03, 0.2)
    stretch = pick(style, 1, 1, 3)
    height = (
        fractal(rng, size, (scale, scale * stretch), 5, style.uniform(0.4, 0.65)) * size * scale
    )
    return lit(
        mottle(style, rng, size, base, 0.04),
        relief(height, style.uniform(0, 6.3), style.uniform(0.3, 1.5)),
        style.uniform(0.1, 0.5),
    )


def cast_metal(style, rng, size):
    """Cast, sand-blasted or rusted metal."""
    base = tone(style, (0.55, 0.65), (0.02, 0.15), (0.2, 0.75), 0.6)
    bumps = relief(grain(rng, size, style.uniform(0.6, 2.2)) * 2, style.uniform(0, 6.3), 0.6)
    image = lit(mottle(style, rng, size, base, 0.15), bumps, style.uniform(0.08, 0.45))
    if chance(style, 0.5):
        cloud = fractal(rng, size, style.uniform(0.08, 0.4), 6, 0.65)
        tint = lerp(
            colour(style, 0.03, (0.5, 0.9), (0.15, 0.4)),
            colour(style, 0.07, (0.6, 0.9), (0.4, 0.75)),
            fractal(rng, size, 0.05, 4),
        )
        edge = style.uniform(0.2, 0.7)
        image = lerp(image, lit(tint, bumps, 0.3), step(edge, edge + 0.15, cloud))
    return image


def hammered_metal(style, rng, size):
    """Dimpled or hammer-painted metal."""
    base = tone(style, sat=(0.1, 0.5), val=(0.25, 0.8), grey=0.5)
    d1, d2, _ = worley(rng, size, style.uniform(60, 900), style.uniform(0.3, 1))
    height = -((d1 / d1.mean()) ** 2) * pick(style, 1, -1) * style.uniform(1, 3)
    normal = relief(height, style.uniform(0, 6.3), style.uniform(0.8, 2), 0.7)
    gloss = step(0.55, 0.95, normal) * style.uniform(0, 0.7)
    image = lit(mottle(style, rng, size, base, 0.1), normal, style.uniform(0.2, 0.6))
    return lerp(image, np.ones(3), gloss)


def ceramic_glaze(style, rng, size):
    """Glazed ceramic or enamel: smooth, speckled, with soft reflections."""
    base = tone(style, val=(0.3, 0.98))
    image = lerp(base, near(style, base, 0.4), fractal(rng, size, style.uniform(0.2, 0.7), 4))
    specks = step(style.uniform(1.6, 2.6), 3.4, smooth(rng, size, style.uniform(0.008, 0.03)))
    image = lerp(image, tone(style, val=(0.02, 0.95)), style.uniform(0, 1) * specks)
    return lerp(image, np.ones(3), style.uniform(0, 0.4) * _gloss(style, rng, size))


def asphalt(style, rng, size):
    """Aggregate in dark binder, or sand paper, grit and gravel."""
    base = tone(style, (0.05, 0.7), (0.02, 0.2), (0.1, 0.5), 0.5)
    d1, d2, cell = worley(rng, size, style.uniform(500, 3500), 1)
    stones = (
        base * (1 + style.uniform(0.2, 0.9) * rng.normal(size=(cell.max() + 1, 1)))[cell] + 0.05
    )
    image = lerp(base * 0.5, np.clip(stones, 0, 1), step(0.1, 0.6, (d2 - d1) / d1.mean()))
    return lit(
        image,
        relief(grain(rng, size, 1.0) * 2, style.uniform(0, 6.3), 0.6),
        style.uniform(0.1, 0.4),
    )


def bread_crust(style, rng, size):
    """Baked crust: browned, blistered, porous."""
    pale = colour(style, (0.08, 0.12), (0.35, 0.6), (0.7, 0.95))
    brown = colour(style, (0.05, 0.08), (0.6, 0.85), (0.25, 0.55))
    height = fractal(rng, size, style.uniform(0.08, 0.3), 5, 0.6)
    image = lerp(
        pale,
        brown,
        np.clip(
            unit(height + style.uniform(0, 0.6) * fractal(rng, size, 0.5, 2))
            * style.uniform(0.7, 1.2),
            0,
            1,
        ),
    )
    pores = step(style.uniform(1.2, 2.2), 3.0, smooth(rng, size, style.uniform(0.015, 0.04)))
    shade = relief(height * size * 0.06 - pores, style.uniform(0, 6.3), 1, 0.6)
    return lit(image, shade, style.uniform(0.1, 0.4)) * (
        1 - style.uniform(0.1, 0.5) * pores[..., None]
    )


def fur(style, rng, size):
    """Fur, grass, bristles: streaks along a flowing direction."""
    base = tone(style, val=(0.2, 0.9))
    y, x = rotate(
        *warp(*coords(size), rng, style.uniform(0.01, 0.06), style.uniform(0.1, 0.4)),
        style.uniform(0, np.pi),
    )
    length = style.uniform(0.06, 0.3)
    hairs = look_up(
        smooth(rng, size, (0.007, length)) + 0.7 * smooth(rng, size, (0.014, length * 0.6)), y, x
    )
    image = lerp(
        base,
        near(style, base, 0.8),
        step(-1, 1.5, look_up(smooth(rng, size, (0.02, length)), y, x)),
    )
    return lit(image, np.tanh(hairs) * 0.8, style.uniform(0.2, 0.7))


def _gloss(style, rng, size):
    """Reflections (S, S) in 0..1: a soft window, tube or lamp at a place that moves from image to image."""
    y, x = rotate(*warp(*coords(size), rng, 0.01, 0.5), style.uniform(0, np.pi))
    at = rng.uniform(0, 1, 2)
    kind = style.integers(3)
    if kind == 0:
        return np.exp(-(((y - at[0]) / style.uniform(0.02, 0.15)) ** 2))
    if kind == 1:
        return np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / style.uniform(0.05, 0.3) ** 2)
    return box(
        y, x, at, (style.uniform(0.05, 0.2), style.uniform(0.1, 0.4)), soft=style.uniform(0.02, 0.1)
    )


def plastic(style, rng, size):
    """Moulded or painted plastic with a fine grain and highlights."""
    base = tone(style, sat=(0.1, 0.95), val=(0.05, 0.95))
    peel = relief(
        fractal(rng, size, style.uniform(0.015, 0.06), 2) * 4,
        style.uniform(0, 6.3),
        style.uniform(0.2, 1),
    )
    image = lit(mottle(style, rng, size, base, 0.03, 0.8), peel, style.uniform(0.01, 0.25))
    return lerp(
        image,
        np.ones(3),
        style.uniform(0.05, 0.7) * np.clip(_gloss(style, rng, size) * (1 + 0.5 * peel), 0, 1),
    )


def gradient(style, rng, size):
    """A plain, almost featureless surface: sheet, film, glass, screen."""
    base, other = tone(style, val=(0.03, 0.98), grey=0.4), None
    other = near(style, base, style.uniform(0.05, 0.5))
    y, x = rotate(*coords(size), style.uniform(0, 6.3) + 0.2 * rng.normal())
    image = lerp(base, other, np.clip(y + 0.1 * rng.normal() + 0.1 * smooth(rng, size, 0.6), 0, 1))
    return np.clip(
        image + style.uniform(0, 0.025) * grain(rng, size, style.uniform(0, 1.5))[..., None], 0, 1
    )


PHOTOS = (
    "brick.png",
    "grass.png",
    "gravel.png",
    "coins.png",
    "moon.png",
    "cell.png",
    "ihc.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "page.png",
    "chelsea.png",
    "motorcycle_left.png",
    "rocket.jpg",
    "camera.png",
    "astronaut.png",
    "china.jpg",
    "flower.jpg",
)


@lru_cache(maxsize=32)
def _photograph(name):
    """A photograph inside the installed scikit-image or scikit-learn wheel; None when it is not shipped."""
    for folder in (
        Path(skimage.__file__).parent / "data",
        Path(sklearn.__file__).parent / "datasets" / "images",
    ):
        if (folder / name).exists():
            return Image.open(folder / name).convert("RGB")
    return None


def photo(style, rng, size):
    """Crop of a real photograph out of the installed wheels, recoloured per product line."""
    pictures = [p for p in map(_photograph, PHOTOS) if p is not None]
    picture = pictures[style.integers(len(pictures))]
    side = min(picture.size) * style.uniform(0.3, 0.95)
    left, top = (rng.uniform(0, extent - side) for extent in picture.size)
    pixels = picture.resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    image = np.asarray(pixels, float) / 255
    gray = grey(image)[..., None]
    image = np.clip(gray + (image - gray) * style.uniform(0, 1.3), 0, 1)
    tint = 1 + style.uniform(0, 0.25) * style.uniform(-1, 1, 3)
    return np.clip((image * tint) ** style.uniform(0.7, 1.4) * style.uniform(0.7, 1.1), 0, 1)


SURFACES = {
    f.__name__: f
    for f in (
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
}
