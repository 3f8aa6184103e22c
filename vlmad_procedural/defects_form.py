"""Training defects of form and structure, see ``defects``."""

import numpy as np
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter

from .aliases import Drawn, Image, Mask, Point, Rng
from .fields import blur, coords, lerp, look_up, relief, rotate, step, unit
from .marks import LEVEL, blend, cluster, cut, dome, gap, line, lips, local, patch, site, slit
from .noise import fractal, smooth, worley
from .outlines import path
from .palette import chance, lit, pick


def crack(image: Image, support: Mask, rng: Rng, area: float, contrast: float) -> Drawn:
    """Draw a branching crack, or a net of fine cracks."""
    size = image.shape[0]
    if chance(rng, 0.12) and area > 0.002:
        _, depth = patch(support, rng, min(area * 8, 0.4))
        y, x = coords(size)
        y, x = y + 0.008 * smooth(rng, size, 0.05), x + 0.008 * smooth(rng, size, 0.05)
        d1, d2, _ = worley(rng, size, rng.uniform(60, 300), at=(y, x))
        alpha, _ = cut(-(d2 - d1) * size - 50 * (depth < 0), support, area, 1.5)
    else:
        rugged, branches = rng.uniform(0.3, 2.5), int(rng.integers(0, 6))

        def draw(start, angle, length):
            main = path(rng, start, angle, length / (1 + 0.3 * branches), rugged, 30)
            main = main + rng.normal(size=main.shape) * 0.003
            lines = [(main, np.linspace(1.4, rng.uniform(0.2, 1), len(main)))]
            for _ in range(branches):
                at = int(rng.integers(2, 28))
                heading = angle + pick(rng, -1, 1) * rng.uniform(0.4, 1.3)
                long = length * rng.uniform(0.1, 0.3)
                side = path(rng, main[at], heading, long, rugged, 12)
                lines.append((side, np.linspace(0.8, 0.2, len(side))))
            return lines

        alpha = line(support, rng, area, draw, 0.015)
    alpha = blur(alpha, rng.uniform(0, 0.7)) * support
    alpha = alpha / max(alpha.max(), 1e-9)
    painted = lips(gap(image, alpha, rng), alpha, rng, 0.5)
    return blend(image, painted, alpha, contrast)


def cut_open(image: Image, support: Mask, rng: Rng, area: float, contrast: float) -> Drawn:
    """Draw a cut with lips, straight or a little curved."""
    draw = slit(rng, pick(rng, 1, 1, 1, 2, 3), rng.uniform(0, 0.4))
    alpha = line(support, rng, area, draw, 0.04)
    inside = gap(image, alpha, rng, 0.8)
    inside = lerp(image * 0.3, inside, step(0.1, 0.8, blur(alpha, 0.7)))
    return blend(image, lips(inside, alpha, rng, rng.uniform(0.3, 1.2)), alpha, contrast)


def pit(image: Image, support: Mask, rng: Rng, area: float, contrast: float) -> Drawn:
    """Draw one pit or a cluster of pits, lit from a side."""
    size, count = image.shape[0], pick(rng, 1, 2, 4, 8, 14)
    count = max(1, min(count, int(area * size * size / 12)))
    spread, rough = rng.uniform(0.02, 0.12), rng.uniform(0.05, 0.3)
    alpha, height = cluster(support, rng, area, count, spread, soft=0.3, kind="blob", rough=rough)
    deep = -unit(height) * size * np.sqrt(area) * rng.uniform(0.5, 1.2)
    shade = relief(deep, rng.uniform(0, 6.3), 1, 0.6)
    dark = image * (1 - rng.uniform(0.1, 0.75) * unit(height)[..., None])
    painted = lit(dark, shade, rng.uniform(0.4, 1))
    return blend(image, painted, alpha, contrast)


def chip(image: Image, support: Mask, rng: Rng, area: float, contrast: float) -> Drawn:
    """Break a piece from the edge of the support or the image, or inside: fresh material."""
    size = image.shape[0]
    centre: Point | None = None
    rim = support & ~minimum_filter(support, 3)
    if rim.any():
        centre = site(rim, rng)
    elif chance(rng, 0.5):
        left, right, low, high = rng.uniform(size=4)
        centre = pick(rng, (0.0, left), (1.0, right), (low, 0.0), (high, 1.0))
    kind, rough = pick(rng, "polygon", "blob"), rng.uniform(0.1, 0.3)
    alpha, depth = patch(support, rng, area, kind=kind, centre=centre, rough=rough)
    here = local(image, alpha)
    around = maximum_filter(alpha > LEVEL, max(3, size // 20)) & ~support
    if around.any() and chance(rng, 0.5):
        painted = image[around].mean(0) * (0.95 + 0.1 * fractal(rng, size, 0.03, 2)[..., None])
        return blend(image, lerp(image * 0.4, painted, step(0, 0.15, depth)), alpha, contrast)
    fresh = lerp(here, pick(rng, np.ones(3), np.zeros(3)), rng.uniform(0.2, 0.6))
    fresh = fresh * (1 + 0.05 * rng.normal(size=3))
    facets = fractal(rng, size, max(0.03, np.sqrt(area)), 4, 0.6) * size * 0.08
    shade = relief(facets - 2 * dome(depth, 0.3), rng.uniform(0, 6.3), 1)
    return blend(image, lit(fresh, shade, rng.uniform(0.2, 0.7)), alpha, contrast)


def fold(image: Image, support: Mask, rng: Rng, area: float, contrast: float) -> Drawn:
    """Draw a wrinkle or crease: a ridge, light and dark, that pulls the texture along."""
    size = image.shape[0]
    count = pick(rng, 1, 1, 2)
    core = line(support, rng, min(area * 0.25, 0.01), slit(rng, count, rng.uniform(0.1, 0.8)), 0.01)
    away = np.asarray(distance_transform_edt(core <= 0.5 * core.max()))
    _, depth = cut(-away, support, area, 1.0)
    sigma = max(depth.max(), 2.0)  # half the width, in pixels
    alpha = np.clip(2 * depth / sigma + LEVEL, 0, 1)
    height = blur(np.exp(-((away / (0.55 * sigma)) ** 2)), max(1.0, 0.3 * sigma))
    slope_y, slope_x = np.gradient(height * sigma)
    y, x = coords(size)
    pull = rng.uniform(0.5, 2) * sigma / size
    moved = look_up(image, y + pull * slope_y, x + pull * slope_x)
    shade = relief(height * sigma * 1.5, rng.uniform(0, 6.3), 1)
    return blend(image, lit(moved, shade, rng.uniform(0.4, 0.9)), alpha, contrast)


def displaced_texture(image: Image, support: Mask, rng: Rng, area: float, contrast: float) -> Drawn:
    """Shift, turn, mirror or scale a patch of the surface: a defect of structure alone."""
    size = image.shape[0]
    alpha, depth = patch(support, rng, area, kind=pick(rng, "polygon", "blob"), rough=0.1)
    y, x = coords(size)
    inside = alpha > LEVEL
    centre = (y[inside].mean(), x[inside].mean())
    kind, reach = rng.integers(4), np.sqrt(area) * 0.4 + 0.02
    if kind == 0:
        y, x = y + reach * pick(rng, -1, 1), x + reach * rng.uniform(-1, 1)
    elif kind == 1:
        y, x = rotate(y, x, rng.uniform(0.4, 2.7), centre)
    elif kind == 2:
        y, x = x - centre[1] + centre[0], y - centre[0] + centre[1]
    else:
        factor = pick(rng, rng.uniform(0.4, 0.7), rng.uniform(1.4, 2))
        y, x = centre[0] + (y - centre[0]) * factor, centre[1] + (x - centre[1]) * factor
    moved = look_up(image, y, x)
    if chance(rng, 0.5):
        shade = relief(dome(depth, 0.2) * 3, rng.uniform(0, 6.3), 0.8, 0.7)
        moved = lit(moved, shade, rng.uniform(0.1, 0.5))
    return blend(image, moved, alpha, contrast)


def erosion(image: Image, support: Mask, rng: Rng, area: float, contrast: float) -> Drawn:
    """Eat away, merge or remove structure: broken lines, bridges, bald spots."""
    size = image.shape[0]
    alpha, _ = patch(support, rng, area, kind=pick(rng, "polygon", "blob", "splat"))
    wide = max(3, int(size * rng.uniform(0.012, 0.04)))
    kind = rng.integers(3)
    if kind < 2:
        painted = (minimum_filter, maximum_filter)[kind](image, (wide, wide, 1))
        painted = blur(painted, 0.7)
    else:
        where = np.flatnonzero(support)
        sample = image.reshape(-1, 3)[where[rng.integers(0, len(where))]]
        painted = sample * (0.95 + 0.1 * fractal(rng, size, 0.02, 2)[..., None])
    return blend(image, painted, alpha, contrast)
