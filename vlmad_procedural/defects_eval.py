"""Defects kept for evaluation, see ``defects``."""

from collections.abc import Mapping

import numpy as np

from .aliases import DrawDefect, Drawn, Image, Mask, Rng
from .fields import blur, coords, lerp, look_up, relief, step
from .marks import LEVEL, blend, dome, gap, ink, line, lips, patch, slit
from .noise import fractal, smooth
from .outlines import path
from .palette import colour, lit, pick, registry


def scratch(image: Image, support: Mask, rng: Rng, area: float, contrast: float) -> Drawn:
    """Draw thin straight scratches, single or in a bundle, catching the light or dark."""
    size = image.shape[0]
    draw = slit(rng, pick(rng, 1, 1, 2, 3, 6), rng.uniform(0, 0.15))
    alpha = line(support, rng, area, draw, 0.012)
    alpha = alpha * step(-2.2, -0.6, smooth(rng, size, 0.06))
    groove = gap(image, alpha, rng, 0.35)
    return blend(image, lips(groove, alpha, rng, 0.5), alpha, contrast)


def hole(image: Image, support: Mask, rng: Rng, area: float, contrast: float) -> Drawn:
    """Draw a hole right through: a dark or bright inside, a worn rim."""
    size = image.shape[0]
    alpha, depth = patch(support, rng, area, kind="blob", rough=rng.uniform(0.03, 0.35))
    inner = colour(rng, None, (0, 0.3), pick(rng, (0, 0.12), (0, 0.12), (0.8, 1)))
    inner = inner * (0.7 + 0.6 * fractal(rng, size, 0.2, 2)[..., None])
    worn = image * rng.uniform(0.3, 0.9)
    rim = lit(worn, relief(-dome(depth, 0.3) * 4, rng.uniform(0, 6.3), 1, 0.6), 0.8)
    inside = step(0.02, rng.uniform(0.1, 0.3), depth)
    return blend(image, lerp(rim, np.clip(inner, 0, 1), inside), alpha, contrast)


def stain(image: Image, support: Mask, rng: Rng, area: float, contrast: float) -> Drawn:
    """Draw dried liquid: a translucent tint, darker along the rim, with a few splashes."""
    size = image.shape[0]
    kind, rough = pick(rng, "blob", "splat"), rng.uniform(0.05, 0.25)
    alpha, depth = patch(support, rng, area, kind=kind, rough=rough, soft=0.12)
    liquid = colour(rng, pick(rng, (0.02, 0.13), (0.02, 0.13), (0, 1)), (0.3, 0.9), (0.15, 0.75))
    rim = np.exp(-((depth - 0.08) ** 2) / 0.01) * rng.uniform(0, 1)
    amount = np.clip(rng.uniform(0.35, 0.8) + rim * 0.5 + 0.1 * smooth(rng, size, 0.08), 0, 1)
    tinted = pick(rng, image * liquid, image * liquid, lerp(image, liquid, 0.7))
    painted = lerp(image, tinted, amount)
    return blend(image, painted, alpha, contrast)


def thread(image: Image, support: Mask, rng: Rng, area: float, contrast: float) -> Drawn:
    """Draw a loose thread, hair or fibre on the surface, round in the light, with a shadow."""
    size, curl = image.shape[0], rng.uniform(0.6, 3)

    def draw(start, angle, length):
        ends = angle, angle + np.pi
        return [(path(rng, start, end, length / 2, curl, 60, 0), 1) for end in ends]

    alpha = line(support, rng, area, draw, 0.014)
    move = max(1, size // 110)
    shadow = blur(np.roll(alpha, (move, move), (0, 1)), 0.8) * 0.35 * (1 - alpha) * support
    yarn = ink(image, alpha, rng, 0.6)
    yarn = lit(yarn, relief(blur(alpha, 1) * 3, rng.uniform(0, 6.3), 1), 0.5)
    painted = lerp(np.zeros(3), yarn, step(0, LEVEL, alpha))
    return blend(image, painted, np.maximum(alpha, shadow), contrast)


def dent(image: Image, support: Mask, rng: Rng, area: float, contrast: float) -> Drawn:
    """Draw a dent or bump: shading and distortion only, no new colour."""
    size = image.shape[0]
    alpha, depth = patch(support, rng, area, kind="blob", rough=rng.uniform(0.02, 0.15), soft=0.35)
    radius = np.sqrt(area / np.pi) * size
    height = -dome(depth, 1.0) * radius * rng.uniform(0.3, 0.7) * pick(rng, 1, 1, -1)
    slope_y, slope_x = np.gradient(height)
    y, x = coords(size)
    moved = look_up(image, y + 0.02 * slope_y, x + 0.02 * slope_x)
    shade = relief(height, rng.uniform(0, 6.3), rng.uniform(0.9, 1.8), 0.7)
    painted = lit(moved, shade, rng.uniform(0.5, 0.9))
    painted = lerp(painted, np.ones(3), rng.uniform(0, 0.5) * step(0.55, 0.9, shade))
    return blend(image, painted, alpha, contrast)


EVAL_DEFECTS: Mapping[str, DrawDefect] = registry(scratch, hole, stain, thread, dent)
