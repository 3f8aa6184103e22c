"""Regular training textures: woven, printed, punched; more in ``surfaces`` and ``plates``.

Every family is ``(style, rng, size) -> (S, S, 3) float64 in 0..1``: ``style`` draws what a product
line keeps, ``rng`` what differs from image to image. None shares its construction with
``textures_eval``.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from .aliases import Field, Image, Rng, Texture
from .fields import coords, lerp, relief, rotate, step
from .noise import fractal, grain, smooth, warp, worley
from .palette import chance, lit, near, pick, place, registry, tiles, tone
from .plates import PLATES
from .surfaces import SURFACES
from .textures_eval import EVAL_TEXTURES


def carpet(style: Rng, rng: Rng, size: int) -> Image:
    """Draw cut or looped pile."""
    base = tone(style, val=(0.2, 0.95))
    y, x = warp(*place(style, rng, size), rng, style.uniform(0.001, 0.004), 0.03)
    n = style.uniform(18, 70)
    v, u, cell = tiles(y, x, n, style.integers(2))
    loops = np.exp(-(v * v + u * u) * style.uniform(2, 8)) * style.uniform(0, 1)
    pile = relief(grain(rng, size, style.uniform(0.5, 1.4)) * 2, style.uniform(0, 6.3), 0.7)
    yarn = rng.uniform(size=4096)[cell] if chance(style, 0.5) else fractal(rng, size, 0.02, 2)
    other = near(style, base, style.uniform(0.1, 0.9))
    image = lerp(base, other, yarn) * (0.6 + 0.5 * loops[..., None])
    image = lit(image, pile, style.uniform(0.1, 0.5))
    return np.clip(image * (0.9 + 0.2 * fractal(rng, size, 0.3, 3)[..., None]), 0, 1)


def grid(style: Rng, rng: Rng, size: int) -> Image:
    """Draw a lattice of flat bars over a dark or bright ground, straight or diagonal."""
    ground, bar = style.uniform(0.02, 0.6), style.uniform(0.3, 0.95)
    y, x = warp(*place(style, rng, size), rng, style.uniform(0, 0.003), 0.2)
    n, ratio, thick = style.uniform(6, 28), style.uniform(0.7, 1.4), style.uniform(0.08, 0.3)
    if chance(style, 0.5):
        y, x = y + x * style.uniform(0.3, 1), y - x
    a, b = (np.abs((t % 1) - 0.5) for t in (y * n, x * n * ratio))
    soft = style.uniform(0.02, 0.1) + n / size
    low, high = 0.5 - thick - soft, 0.5 - thick + soft
    bars = np.maximum(step(low, high, a), step(low, high, b))
    image = lerp(ground * np.ones(3), bar * tone(style, sat=(0, 0.2), val=1.0, grey=0.7), bars)
    image = lit(image, relief(bars * 3, style.uniform(0, 6.3), 1, 0.5), style.uniform(0, 0.5))
    return np.clip(image * (0.9 + 0.2 * fractal(rng, size, 0.2, 3)[..., None]), 0, 1)


def corduroy(style: Rng, rng: Rng, size: int) -> Image:
    """Draw ribbed cloth or rubber."""
    base = tone(style, val=(0.1, 0.8))
    y, x = warp(*place(style, rng, size), rng, style.uniform(0.001, 0.006), style.uniform(0.1, 0.4))
    n = style.uniform(9, 45)
    profile = np.abs(np.sin(np.pi * y * n)) ** style.uniform(0.4, 1.5)
    nap = smooth(rng, size, style.uniform(0.006, 0.02))
    image = lerp(base * style.uniform(0.2, 0.7), near(style, base, 0.1), profile)
    return lit(image, np.tanh(nap) * (0.3 + 0.7 * profile), style.uniform(0.05, 0.3))


def knit(style: Rng, rng: Rng, size: int) -> Image:
    """Draw rows of V-shaped stitches, plain or striped."""
    base = tone(style, val=(0.15, 0.9))
    y, x = warp(*place(style, rng, size), rng, style.uniform(0.001, 0.004), 0.1)
    n, tall = style.uniform(8, 30), style.uniform(0.6, 1.1)
    u = (x * n) % 1 - 0.5
    slant = y * n / tall + style.uniform(0.6, 1.1) * np.abs(u) * 2
    row = np.floor(slant)
    v = slant - row - 0.5
    lobes = np.sqrt(np.clip(1 - (v / 0.5) ** 2, 0, 1))
    lobes = lobes * np.clip(np.sin(2 * np.pi * np.abs(u)), 0.05, 1) ** 0.4
    stripe = (row % style.integers(2, 9) == 0) * pick(style, 0, 0, 1)
    yarn = lerp(base, tone(style, val=(0.15, 0.9)), stripe * np.ones_like(y))
    fuzz = grain(rng, size, 0.6)
    yarn = yarn * (style.uniform(0.1, 0.4) + 0.65 * lobes[..., None])
    return lit(yarn, np.tanh(fuzz), style.uniform(0.04, 0.2))


def perforated_sheet(style: Rng, rng: Rng, size: int) -> Image:
    """Draw a sheet with regular holes (round, square, slots): holes are normal here."""
    base = tone(style, sat=(0, 0.5), val=(0.3, 0.95), grey=0.6)
    through = tone(style, val=(0, 0.3), sat=(0, 0.3))
    y, x = place(style, rng, size)
    n, radius = style.uniform(5, 24), style.uniform(0.15, 0.4)
    v, u, _ = tiles(y, x, n, style.integers(2))
    shape = style.integers(3)
    if shape == 0:
        distance = np.hypot(v, u) - radius
    elif shape == 1:
        distance = np.maximum(np.abs(v), np.abs(u)) - radius
    else:
        distance = np.hypot(v, np.maximum(np.abs(u) - 0.25, 0)) - radius * 0.5
    edge = n / size
    holes = step(edge, -edge, distance)
    image = base * (0.92 + 0.16 * fractal(rng, size, 0.3, 4)[..., None])
    punched = relief(step(4 * edge, -edge, distance) * -3, style.uniform(0, 6.3), 0.8)
    image = lit(image, punched, style.uniform(0.1, 0.6))
    image = np.clip(image + style.uniform(0, 0.03) * grain(rng, size, 0.6)[..., None], 0, 1)
    return lerp(image, through * (0.7 + 0.6 * fractal(rng, size, 0.5, 2)[..., None]), holes)


def _motif(style: Rng, v: Field, u: Field) -> Field:
    """Draw a printed figure on tile coordinates: signed level (S, S), negative inside."""
    v, u = rotate(v, u, style.uniform(0, 6.3), (0, 0))
    r, angle, size = np.hypot(v, u), np.arctan2(v, u), style.uniform(0.15, 0.4)
    kind = style.integers(6)
    if kind == 0:
        return r - size
    if kind == 1:
        return np.abs(r - size) - 0.3 * size
    if kind == 2:
        return r - size * (0.7 + style.uniform(0.1, 0.4) * np.cos(angle * style.integers(3, 9)))
    if kind == 3:
        return np.maximum(np.abs(v), np.abs(u)) - size
    if kind == 4:
        arm = size * style.uniform(0.15, 0.4)
        v, u = np.abs(v), np.abs(u)
        return np.maximum(np.minimum(v, u) - arm, np.maximum(v, u) - size)
    glyph = style.uniform(size=(7, 5)) < 0.5
    row, column = ((t / (2.4 * size) + 0.5) * k for t, k in ((v, 7), (u, 5)))
    inside = (row >= 0) & (row < 7) & (column >= 0) & (column < 5)
    hit = glyph[np.clip(row, 0, 6).astype(int), np.clip(column, 0, 4).astype(int)] & inside
    return np.where(hit, -0.1, 0.1)


def printed_pattern(style: Rng, rng: Rng, size: int) -> Image:
    """Draw repeated printed motifs or stripes on cloth, paper or film."""
    ground = tone(style, val=(0.1, 0.98), sat=(0.02, 0.7))
    y, x = warp(*place(style, rng, size), rng, style.uniform(0, 0.004), 0.3)
    n, kind, image = style.uniform(3, 16), style.integers(2), ground * np.ones((size, size, 1))
    for _ in range(style.integers(1, 4)):
        ink = tone(style, val=(0.02, 0.95), sat=(0.1, 0.95), grey=0.2)
        if chance(style, 0.25):
            level = np.abs((y * n * 0.5 + style.uniform()) % 1 - 0.5) - style.uniform(0.05, 0.25)
        else:
            dy, dx = style.uniform(-0.5, 0.5, 2)
            level = _motif(style, *tiles(y + dy / n, x + dx / n, n, kind)[:2])
        image = lerp(image, ink, style.uniform(0.5, 1) * step(n / size, -n / size, level))
    cloth = np.sin(2 * np.pi * x * 70) * np.sin(2 * np.pi * y * 70) * style.uniform(0, 0.1)
    return lit(image, cloth + 0.15 * smooth(rng, size, 0.01), style.uniform(0.1, 0.6))


def tread_plate(style: Rng, rng: Rng, size: int) -> Image:
    """Draw a sheet with raised studs or bars in a regular order."""
    base = tone(style, sat=(0, 0.4), val=(0.2, 0.8), grey=0.6)
    y, x = place(style, rng, size)
    n = style.uniform(4, 14)
    v, u, _ = tiles(y, x, n, 0)
    odd = (np.floor(y * n) + np.floor(x * n)) % 2
    v, u = rotate(np.where(odd, v, u), np.where(odd, u, -v), np.pi / 4 * style.integers(2), (0, 0))
    long, wide = style.uniform(0.15, 0.48), style.uniform(0.06, 0.2)
    height = step(0.08, -0.05, np.hypot(v / wide, u / long) * wide - wide) * size / n * 0.25
    shade = relief(height, style.uniform(0, 6.3), style.uniform(0.5, 1.5), 0.8)
    image = base * (0.85 + 0.3 * fractal(rng, size, style.uniform(0.1, 0.4), 5)[..., None])
    image = lit(image, shade + 0.1 * grain(rng, size, 0.8), style.uniform(0.2, 0.7))
    return lerp(image, np.ones(3), style.uniform(0, 0.6) * step(0.5, 0.95, shade))


def granules(style: Rng, rng: Rng, size: int) -> Image:
    """Draw a layer of small goods: beads, pellets, seeds, grains."""
    base = tone(style, val=(0.2, 0.95))
    stretch = pick(style, 1.0, 1.0, style.uniform(0.5, 0.8))
    y, x = coords(size)
    n = style.uniform(60, 700)
    d1, d2, cell = worley(rng, size, n, style.uniform(0.5, 0.8), at=(y * stretch, x))
    tint = base * (1 + style.uniform(0.02, 0.25) * rng.normal(size=(cell.max() + 1, 1)))[cell]
    dome = np.sqrt(np.clip(1 - (d1 / (d1.mean() * 1.55)) ** 2, 0, 1))
    beads = dome * size / np.sqrt(n) * 0.5
    shade = relief(beads, style.uniform(0, 6.3), style.uniform(0.6, 1.4), 0.6)
    image = np.clip(tint * (0.2 + 0.8 * dome[..., None] ** 0.5), 0, 1)
    image = lit(image, shade, style.uniform(0.2, 0.6))
    return lerp(image, np.ones(3), style.uniform(0, 0.8) * step(0.55, 0.95, shade * dome))


REGULAR = registry(
    carpet, grid, corduroy, knit, perforated_sheet, printed_pattern, tread_plate, granules
)
TRAIN_TEXTURES: Mapping[str, Texture] = MappingProxyType({**REGULAR, **PLATES, **SURFACES})
TEXTURES: Mapping[str, Texture] = MappingProxyType({**TRAIN_TEXTURES, **EVAL_TEXTURES})
