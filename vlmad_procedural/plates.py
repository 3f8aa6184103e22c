"""Training textures of electronics: crystal plates, barred plates, circuits, modules.

Every family is ``(style, rng, size) -> (S, S, 3) float64 in 0..1``, see ``textures``.
"""

from collections.abc import Mapping

import numpy as np

from .aliases import Field, Image, Rng, Texture
from .fields import coords, lerp, relief, rotate, step
from .noise import fractal, grain, smooth, warp, worley
from .outlines import box, strokes
from .palette import chance, colour, lit, near, pick, place, registry, tiles, tone


def polycrystal(style: Rng, rng: Rng, size: int) -> Image:
    """Draw a plate of crystal grains with thin bars and finer lines, as in electroluminescence."""
    y, x = warp(*coords(size), rng, style.uniform(0.004, 0.02), 0.08)
    stretch = style.uniform(0.6, 1.7)
    d1, d2, cell = worley(rng, size, style.uniform(15, 250), at=(y * stretch, x / stretch))
    level, spread = style.uniform(0.25, 0.75), style.uniform(0.04, 0.3)
    grey = level * (1 + spread * rng.normal(size=cell.max() + 1)[cell])
    grey = grey * (1 - style.uniform(0, 0.35) * step(0.012, 0, d2 - d1))
    cloud = fractal(rng, size, style.uniform(0.06, 0.25), 4)
    grey = grey * (1 - style.uniform(0, 0.9) * step(style.uniform(0.5, 0.75), 1.0, cloud))
    return _bars(style, rng, size, grey + 0.01 * grain(rng, size, 0.8))


def barred_plate(style: Rng, rng: Rng, size: int) -> Image:
    """Draw a greyscale flat plate, dark or bright, with fine lines and a few bars."""
    level = style.uniform(0.08, 0.85)
    y, x = coords(size)
    bowl = np.hypot(y - 0.5 + 0.1 * rng.normal(), x - 0.5 + 0.1 * rng.normal())
    shade = 1 + style.uniform(-0.4, 0.4) * bowl
    shade = shade + style.uniform(0, 0.12) * smooth(rng, size, style.uniform(0.15, 0.6))
    noise = style.uniform(0.003, 0.02) * grain(rng, size, style.uniform(0, 1.2))
    return _bars(style, rng, size, level * shade + noise)


def _bars(style: Rng, rng: Rng, size: int, grey: Field) -> Image:
    """Draw bars, lines and border of a plate over its ``grey`` (S, S); return (S, S, 3)."""
    y, x = rotate(*coords(size), 0.006 * rng.normal())
    shift = 0.008 * rng.normal()
    y, x = (y, x) if chance(style, 0.5) else (x, y)
    lines = int(style.integers(25, 100))
    grey = grey * (1 - style.uniform(0, 0.2) * (0.5 + 0.5 * np.cos(2 * np.pi * lines * x)))
    count, width = int(style.integers(2, 6)), style.uniform(0.003, 0.015)
    offset = np.abs((y * count + shift) % 1 - 0.5) / count
    bar = pick(style, 0.03, 0.1, 0.9) * np.ones_like(grey)
    grey = lerp(grey, bar, style.uniform(0.4, 1) * step(width + 0.004, width, offset))
    halo = style.uniform(-0.25, 0.25) * np.exp(-((offset / (0.3 / count)) ** 2))
    grey = grey * (1 + halo)
    if chance(style, 0.5):
        margin = style.uniform(0.01, 0.04)
        corner = style.uniform(0.005, 0.14)
        half = 0.5 - margin
        v, u = np.abs(y - 0.5), np.abs(x - 0.5)
        inside = box(y, x, (0.5 + shift, 0.5), (half, half), radius=0.004)
        inside = inside * step(0.004, -0.004, v + u - 2 * half + corner)
        grey = lerp(style.uniform(0, 0.15) * np.ones_like(grey), grey, inside)
    return np.repeat(np.clip(grey, 0, 1)[..., None], 3, 2)


def circuit_pattern(style: Rng, rng: Rng, size: int) -> Image:
    """Draw traces and pads of a circuit: coloured board, or two-level like an etched mask."""
    nodes, lines, pads = int(style.integers(9, 22)), [], []
    for _ in range(int(nodes * style.uniform(0.8, 1.8))):
        at, route = style.integers(0, nodes + 1, 2), []
        route.append(at)
        direction = style.integers(8)
        for _ in range(style.integers(2, 6)):
            direction = (direction + style.integers(-1, 2)) % 8
            angle = direction * np.pi / 4
            move = np.round([np.sin(angle), np.cos(angle)]).astype(int)
            at = at + move * style.integers(1, 5)
            route.append(at)
        lines.append((np.array(route), style.uniform(0.12, 0.3)))
        pads += [route[0], route[-1]]
    centre, turn = 0.02 * rng.normal(size=2), 0.015 * rng.normal()

    def board(points):
        y, x = (np.asarray(points, float) / nodes).T
        return np.stack(rotate(y, x, turn), -1) + centre

    pitch = 1 / nodes
    ends = [board([p, p + [0, 1e-3]]) for p in pads]
    widths = style.uniform(0.5, 0.8) * pitch, 0.25 * pitch
    disc, hole = (strokes(size, [(end, width) for end in ends]) for width in widths)
    traces = np.maximum(strokes(size, [(board(p), w * pitch) for p, w in lines]), disc)
    green = colour(style, (0.3, 0.45), (0.5, 0.9), (0.15, 0.5))
    ground = pick(style, green, tone(style, val=(0.05, 0.5)), np.full(3, 0.04))
    similar = near(style, ground, 0.9)
    copper = colour(style, (0.08, 0.14), (0.3, 0.7), (0.6, 0.95))
    metal = pick(style, similar, copper, np.full(3, 0.92))
    image = lerp(ground * (0.92 + 0.16 * fractal(rng, size, 0.02, 2)[..., None]), metal, traces)
    if chance(style, 0.6):
        image = lit(image, relief(traces * 3, style.uniform(0, 6.3), 0.8), 0.3)
        image = lerp(image, colour(style, (0.08, 0.14), (0.1, 0.5), (0.7, 0.95)), disc)
    return np.clip(lerp(image, ground * 0.3, hole * pick(style, 0, 1)), 0, 1)


def die_grid(style: Rng, rng: Rng, size: int) -> Image:
    """Draw equal modules with streets between them: wafer dies, keys, blister pack, display."""
    base, street = tone(style, val=(0.2, 0.9)), tone(style, val=(0.02, 0.9), grey=0.6)
    y, x = place(style, rng, size, turn=False)
    n, gap = style.uniform(2.5, 12), style.uniform(0.05, 0.2)
    v, u, cell = tiles(y, x * style.uniform(0.6, 1.4), n, 0)
    r = np.maximum(np.abs(v), np.abs(u))
    inside = step(0.5 - gap + n / size, 0.5 - gap - n / size, r)
    module = base * (1 + style.uniform(0, 0.06) * rng.normal(size=(4096, 1)))[cell]
    for _ in range(style.integers(0, 5)):
        cv, cu, hv, hu = *style.uniform(-0.35, 0.35, 2), *style.uniform(0.03, 0.2, 2)
        block = step(n / size, -n / size, np.maximum(np.abs(v - cv) - hv, np.abs(u - cu) - hu))
        module = lerp(module, tone(style, val=(0.05, 0.95)), block * style.uniform(0.3, 1))
    image = lerp(street * np.ones((size, size, 1)), module, inside)
    image = lit(image, relief(inside * 2, style.uniform(0, 6.3), 0.8, 0.7), style.uniform(0, 0.4))
    image = image * (0.92 + 0.16 * fractal(rng, size, 0.4, 3)[..., None])
    return np.clip(image + 0.01 * grain(rng, size)[..., None], 0, 1)


PLATES: Mapping[str, Texture] = registry(polycrystal, barred_plate, circuit_pattern, die_grid)
