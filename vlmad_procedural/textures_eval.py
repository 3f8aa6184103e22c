"""Evaluation textures: disjoint in name and construction from the training families.

Every family is ``(style, rng, size) -> (S, S, 3) float64 in 0..1``: ``style`` draws what a product
line keeps, ``rng`` what differs from image to image.
"""

from collections.abc import Mapping

import numpy as np

from .aliases import Image, Rng, Texture
from .fields import coords, lerp, look_up, relief, rotate, step, unit
from .noise import fractal, smooth, warp, worley
from .palette import chance, colour, lit, near, pick, place, registry, tone


def weave(style: Rng, rng: Rng, size: int) -> Image:
    """Draw woven cloth: plain, basket or twill, yarns over and under."""
    warp_yarn = tone(style, val=(0.15, 0.9))
    weft_yarn = near(style, warp_yarn, style.uniform(0.05, 0.8))
    y, x = warp(*place(style, rng, size), rng, style.uniform(0.001, 0.004), 0.12)
    n, repeat = style.uniform(14, 48), pick(style, 2, 2, 3, 4)
    row, column = np.floor(y * n), np.floor(x * n)
    group = pick(style, 1, 1, 2)
    over = (np.floor(row / group) + np.floor(column / group)) % repeat < repeat / 2
    v, u = y * n - row - 0.5, x * n - column - 0.5
    across, along = np.where(over, u, v), np.where(over, v, u)
    height = np.sqrt(np.clip(1 - (across / 0.52) ** 2, 0, 1))
    height = height * (0.65 + 0.35 * np.cos(np.pi * along))
    yarns = 1 + 0.08 * rng.normal(size=(2, 512))
    shade = np.where(over, yarns[0][(column.astype(int)) % 512], yarns[1][(row.astype(int)) % 512])
    image = np.where(over[..., None], warp_yarn, weft_yarn)
    image = image * (shade * (0.25 + 0.75 * height))[..., None]
    fibres = np.where(over, smooth(rng, size, (0.03, 0.006)), smooth(rng, size, (0.006, 0.03)))
    return lit(np.clip(image, 0, 1), np.tanh(fibres), style.uniform(0.05, 0.25))


def leather(style: Rng, rng: Rng, size: int) -> Image:
    """Draw leather: grain of warped cells, wrinkles, soft shine."""
    base = tone(style, (0.0, 0.1), (0.2, 0.75), (0.12, 0.75), 0.3)
    y, x = warp(*coords(size), rng, 0.01, 0.05)
    stretch = style.uniform(0.7, 1.4)
    d1, d2, _ = worley(rng, size, style.uniform(700, 3500), 1, at=(y * stretch, x))
    cells = (d2 - d1) / d1.mean()
    folds = style.uniform(0, 1.5) * fractal(rng, size, style.uniform(0.04, 0.1), 3)
    height = step(0, 0.9, cells) + folds
    dark = base * style.uniform(0.62, 0.9)
    image = lerp(dark, near(style, base, 0.08), step(0, 0.8, cells))
    image = image * (0.85 + 0.3 * fractal(rng, size, 0.35, 3)[..., None])
    shade = relief(height * 1.5, style.uniform(0, 6.3), style.uniform(0.4, 1), 0.8)
    image = lit(image, shade, style.uniform(0.1, 0.4))
    return lerp(image, np.ones(3), style.uniform(0, 0.2) * np.clip(shade, 0, 1))


def wood(style: Rng, rng: Rng, size: int) -> Image:
    """Draw planed wood: flat sawn rings, pores, sometimes joints between boards."""
    pale = colour(style, (0.06, 0.11), (0.25, 0.6), (0.5, 0.92))
    dark = near(style, pale * np.array([0.72, 0.6, 0.5]), 0.2)
    across, along = rotate(*coords(size), pick(style, 0, np.pi / 2) + 0.03 * rng.normal())
    boards = pick(style, 0, 0, style.uniform(2, 5))
    plank = np.floor(across * boards + rng.uniform()) if boards else np.zeros_like(across)
    offset = rng.normal(size=64)[plank.astype(int) % 64]
    centre = 0.5 + 0.6 * offset
    bend = 0.05 * smooth(rng, size, (0.5, 1.2))
    stretched = (along - 0.5 - 0.3 * offset) * style.uniform(0.05, 0.25)
    field = np.hypot(across - centre + bend, stretched)
    field = field + 0.004 * smooth(rng, size, (0.03, 0.3))
    phase = (field * style.uniform(12, 40)) % 1
    rings = phase ** style.uniform(1, 4) * step(1, 0.9, phase)
    fibre = smooth(rng, size, (0.006, style.uniform(0.15, 0.5)))
    pores = step(1.5, 2.5, smooth(rng, size, (0.006, 0.05)))
    fibre, pores = (look_up(f, across, along) for f in (fibre, pores))
    image = lerp(pale, dark, np.clip(style.uniform(0.4, 0.9) * rings + 0.1 * fibre, 0, 1))
    image = image * (1 + 0.06 * offset[..., None])
    image = image * (1 - style.uniform(0.1, 0.5) * pores[..., None])
    if boards:
        border = np.abs(plank - np.roll(plank, 1, 0)) + np.abs(plank - np.roll(plank, 1, 1)) > 0
        border[0], border[:, 0] = False, False
        image = image * (1 - 0.5 * border[..., None])
    return np.clip(lit(image, np.tanh(fibre), style.uniform(0.02, 0.1)), 0, 1)


def tile(style: Rng, rng: Rng, size: int) -> Image:
    """Draw ceramic tiles or bricks with joints, plain or speckled."""
    base, grout = tone(style, val=(0.2, 0.95)), tone(style, val=(0.2, 0.9), grey=0.8, sat=(0, 0.2))
    y, x = rotate(*coords(size), 0.012 * rng.normal())
    y, x = y + rng.uniform(), x + rng.uniform()
    n, aspect, bond = style.uniform(2, 9), pick(style, 1, 1, 0.5), pick(style, 0, 0.5)
    row = np.floor(y * n)
    column = np.floor(x * n * aspect + bond * (row % 2))
    v, u = y * n - row - 0.5, (x * n * aspect + bond * (row % 2) - column - 0.5) / aspect
    rim = np.maximum(np.abs(v) - 0.5, np.abs(u) - 0.5 / aspect)
    width = style.uniform(0.02, 0.06)
    cell = ((row * 31 + column * 17).astype(int)) % 256
    glaze = base * (1 + style.uniform(0, 0.12) * rng.normal(size=(256, 1)))[cell]
    clouds = fractal(rng, size, style.uniform(0.03, 0.3), 5)
    glaze = lerp(glaze, tone(style, val=(0.2, 0.95)), style.uniform(0, 0.5) * clouds)
    specks = step(1.3, 2.4, smooth(rng, size, style.uniform(0.01, 0.03))) * pick(style, 0, 0.5, 0.9)
    glaze = lerp(np.clip(glaze, 0, 1), base * 0.3, specks)
    sandy = grout * (0.9 + 0.2 * fractal(rng, size, 0.01, 1)[..., None])
    soft = n / size
    image = lerp(sandy, glaze, step(-width + soft, -width - soft, rim))
    pillow = step(0, -4 * width, rim) * 3
    return lit(image, relief(pillow, style.uniform(0, 6.3), 0.8, 0.8), style.uniform(0.1, 0.4))


def mesh(style: Rng, rng: Rng, size: int) -> Image:
    """Draw wire netting before a distant ground: round wires over and under, or a honeycomb."""
    wire = tone(style, sat=(0, 0.3), val=(0.35, 0.95), grey=0.7)
    ground = tone(style, val=(0.02, 0.5))
    image = ground * (0.7 + 0.6 * fractal(rng, size, 0.5, 3)[..., None])
    y, x = warp(*place(style, rng, size), rng, style.uniform(0.001, 0.003), 0.2)
    n, radius = style.uniform(7, 20), style.uniform(0.1, 0.22)
    if chance(style, 0.35):
        root = np.sqrt(3)
        rows = [((y * n / root + s) % 1 - 0.5) * root for s in (0, 0.5)]
        columns = [(x * n + s) % 1 - 0.5 for s in (0, 0.5)]
        centres = [(np.abs(v), np.abs(u)) for v, u in zip(rows, columns, strict=True)]
        edge = np.minimum(*[np.maximum(u, u / 2 + v * root / 2) for v, u in centres])
        across = (0.5 - edge) / (radius * 0.7)
        height = np.sqrt(np.clip(1 - across**2, 0, 1))
        alpha = step(1 + n / size / radius, 1 - n / size / radius, across)
    else:
        over = (np.floor(y * n) + np.floor(x * n)) % 2 < 1
        a, b = (np.abs(t % 1 - 0.5) / radius for t in (y * n, x * n))
        hv, hu = (np.sqrt(np.clip(1 - t**2, 0, 1)) for t in (a, b))
        lift = 0.4 * np.where(over, 1, -1) * np.cos(np.pi * (y * n % 1 - 0.5))
        lift = lift * np.cos(np.pi * (x * n % 1 - 0.5))
        height = np.maximum(hv * (1 + lift), hu * (1 - lift))
        alpha = step(1 + n / size / radius, 1 - n / size / radius, np.minimum(a, b))
    shade = relief(height * size / n * 0.3, style.uniform(0, 6.3), 1)
    shaded = lit(wire * (0.25 + 0.6 * np.clip(height, 0, 1.2)[..., None]), shade, 0.4)
    shaded = shaded * (0.9 + 0.2 * fractal(rng, size, 0.05, 3)[..., None])
    return np.clip(lerp(image, np.clip(shaded, 0, 1), alpha), 0, 1)


def brushed_metal(style: Rng, rng: Rng, size: int) -> Image:
    """Draw brushed or ground metal: fine streaks and an anisotropic shine."""
    base = tone(style, pick(style, (0.55, 0.65), (0.06, 0.12)), (0.02, 0.4), (0.35, 0.85), 0.5)
    turn = pick(style, 0, np.pi / 2, style.uniform(0, np.pi)) + 0.02 * rng.normal()
    y, x = rotate(*coords(size), turn)
    streaks = smooth(rng, size, (0.005, style.uniform(0.2, 0.8)))
    streaks = streaks + 0.6 * smooth(rng, size, (0.015, 1.5))
    streaks = np.tanh(look_up(streaks, y, x) / 1.5)
    shine = np.exp(-((y - rng.uniform(0.2, 0.8)) ** 2) / style.uniform(0.05, 0.4))
    shine = shine * style.uniform(0, 0.4)
    image = base * (0.85 + shine + 0.15 * unit(smooth(rng, size, 0.8)))[..., None]
    return lit(np.clip(image, 0, 1), streaks, style.uniform(0.04, 0.25))


EVAL_TEXTURES: Mapping[str, Texture] = registry(weave, leather, wood, tile, mesh, brushed_metal)
