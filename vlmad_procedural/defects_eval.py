"""Faults kept for evaluation, of the same form as those of ``defects``."""

import numpy as np

from .fields import blur, colour, coords, fractal, lerp, look_up, path, relief, smooth, step
from .marks import LEVEL, blend, dark_or_light, dome, ink, line, lips, patch, slit
from .palette import lit, pick


def scratch(image, support, rng, area, contrast):
    """Thin straight scratches, single or in a bundle, catching the light or dark."""
    size = image.shape[0]
    alpha = line(
        support, rng, area, slit(rng, int(pick(rng, 1, 1, 2, 3, 6)), rng.uniform(0, 0.15)), 0.012
    )
    alpha = alpha * step(-2.2, -0.6, smooth(rng, size, 0.06))
    groove = np.broadcast_to(dark_or_light(image, alpha, rng, 0.35), image.shape)
    return blend(image, lips(groove, alpha, rng, 0.5), alpha, contrast)


def hole(image, support, rng, area, contrast):
    """Hole right through: a dark or bright inside, a worn rim."""
    size = image.shape[0]
    alpha, depth = patch(support, rng, area, kind="blob", rough=rng.uniform(0.03, 0.35))
    inner = colour(rng, None, (0, 0.3), pick(rng, (0, 0.12), (0, 0.12), (0.8, 1)))
    inner = inner * (0.7 + 0.6 * fractal(rng, size, 0.2, 2)[..., None])
    rim = lit(
        image * rng.uniform(0.3, 0.9),
        relief(-dome(depth, 0.3) * 4, rng.uniform(0, 6.3), 1, 0.6),
        0.8,
    )
    return blend(
        image,
        lerp(rim, np.clip(inner, 0, 1), step(0.02, rng.uniform(0.1, 0.3), depth)),
        alpha,
        contrast,
    )


def stain(image, support, rng, area, contrast):
    """Dried liquid: a translucent tint, darker along the rim, with a few splashes."""
    size = image.shape[0]
    alpha, depth = patch(
        support,
        rng,
        area,
        kind=pick(rng, "blob", "splat"),
        rough=rng.uniform(0.05, 0.25),
        soft=0.12,
    )
    liquid = colour(rng, pick(rng, (0.02, 0.13), (0.02, 0.13), (0, 1)), (0.3, 0.9), (0.15, 0.75))
    rim = np.exp(-((depth - 0.08) ** 2) / 0.01) * rng.uniform(0, 1)
    amount = np.clip(rng.uniform(0.35, 0.8) + rim * 0.5 + 0.1 * smooth(rng, size, 0.08), 0, 1)
    painted = lerp(
        image, pick(rng, image * liquid, image * liquid, lerp(image, liquid, 0.7)), amount
    )
    return blend(image, painted, alpha, contrast)


def thread(image, support, rng, area, contrast):
    """A loose thread, hair or fibre lying on the surface, round in the light, with a shadow."""
    size, curl = image.shape[0], rng.uniform(0.6, 3)

    def draw(start, angle, length):
        return [
            (path(rng, start, angle, length / 2, curl, 60, 0), 1),
            (path(rng, start, angle + np.pi, length / 2, curl, 60, 0), 1),
        ]

    alpha = line(support, rng, area, draw, 0.014)
    move = max(1, size // 110)
    shadow = blur(np.roll(alpha, (move, move), (0, 1)), 0.8) * 0.35 * (1 - alpha) * support
    yarn = lit(
        np.broadcast_to(ink(image, alpha, rng, 0.6), image.shape),
        relief(blur(alpha, 1) * 3, rng.uniform(0, 6.3), 1),
        0.5,
    )
    return blend(
        image, lerp(np.zeros(3), yarn, step(0, LEVEL, alpha)), np.maximum(alpha, shadow), contrast
    )


def dent(image, support, rng, area, contrast):
    """Dent or bump: shading and distortion only, no new colour."""
    size = image.shape[0]
    alpha, depth = patch(support, rng, area, kind="blob", rough=rng.uniform(0.02, 0.15), soft=0.35)
    radius = np.sqrt(area / np.pi) * size
    height = -dome(depth, 1.0) * radius * rng.uniform(0.3, 0.7) * pick(rng, 1, 1, -1)
    slope_y, slope_x = np.gradient(height)
    y, x = coords(size)
    moved = look_up(image, y + 0.02 * slope_y, x + 0.02 * slope_x)
    shade = relief(height, rng.uniform(0, 6.3), rng.uniform(0.9, 1.8), 0.7)
    painted = lerp(
        lit(moved, shade, rng.uniform(0.5, 0.9)),
        np.ones(3),
        rng.uniform(0, 0.5) * step(0.55, 0.9, shade),
    )
    return blend(image, painted, alpha, contrast)


EVAL_DEFECTS = {f.__name__: f for f in (scratch, hole, stain, thread, dent)}
