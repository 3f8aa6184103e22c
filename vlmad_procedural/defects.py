"""Faults with exact masks: ``(image, support, rng, area, contrast) -> (image, mask)``.

image (S, S, 3) float64 in 0..1; support (S, S) bool, where a fault may lie; area, the share of the image that
the fault covers, reached approximately; contrast in (0, 1], scales the visible change linearly. The mask
(S, S) bool is exact: pixels of which more than ``marks.LEVEL`` was replaced.
"""

import numpy as np
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter

from .defects_eval import EVAL_DEFECTS
from .fields import (
    blur,
    colour,
    coords,
    fractal,
    grain,
    grey,
    lerp,
    look_up,
    path,
    relief,
    rotate,
    smooth,
    step,
    unit,
    worley,
)
from .marks import (
    LEVEL,
    blend,
    cluster,
    cut,
    dark_or_light,
    dome,
    ink,
    line,
    lips,
    local,
    patch,
    site,
    slit,
)
from .palette import chance, lit, pick
from .textures import TRAIN_TEXTURES


def crack(image, support, rng, area, contrast):
    """Branching crack, or a net of fine cracks."""
    size = image.shape[0]
    if chance(rng, 0.12) and area > 0.002:
        _, depth = patch(support, rng, min(area * 8, 0.4))
        y, x = coords(size)
        y, x = y + 0.008 * smooth(rng, size, 0.05), x + 0.008 * smooth(rng, size, 0.05)
        d1, d2, _ = worley(rng, size, rng.uniform(60, 300), y=y, x=x)
        alpha, _ = cut(-(d2 - d1) * size - 50 * (depth < 0), support, area, 1.5)
    else:
        rugged, branches = rng.uniform(0.3, 2.5), int(rng.integers(0, 6))

        def draw(start, angle, length):
            main = path(rng, start, angle, length / (1 + 0.3 * branches), rugged, 30)
            main = main + rng.normal(size=main.shape) * 0.003
            lines = [(main, np.linspace(1.4, rng.uniform(0.2, 1), len(main)))]
            for _ in range(branches):
                at = int(rng.integers(2, 28))
                side = path(
                    rng,
                    main[at],
                    angle + pick(rng, -1, 1) * rng.uniform(0.4, 1.3),
                    length * rng.uniform(0.1, 0.3),
                    rugged,
                    12,
                )
                lines.append((side, np.linspace(0.8, 0.2, len(side))))
            return lines

        alpha = line(support, rng, area, draw, 0.015)
    alpha = blur(alpha, rng.uniform(0, 0.7)) * support
    alpha = alpha / max(alpha.max(), 1e-9)
    return blend(
        image,
        lips(np.broadcast_to(dark_or_light(image, alpha, rng), image.shape), alpha, rng, 0.5),
        alpha,
        contrast,
    )


def cut_open(image, support, rng, area, contrast):
    """Cut with lips, straight or a little curved."""
    alpha = line(
        support, rng, area, slit(rng, int(pick(rng, 1, 1, 1, 2, 3)), rng.uniform(0, 0.4)), 0.04
    )
    gap = np.broadcast_to(dark_or_light(image, alpha, rng, 0.8), image.shape)
    gap = lerp(image * 0.3, gap, step(0.1, 0.8, blur(alpha, 0.7)))
    return blend(image, lips(gap, alpha, rng, rng.uniform(0.3, 1.2)), alpha, contrast)


def contamination(image, support, rng, area, contrast):
    """Powder, particles or drops that lie on the surface."""
    size, kind = image.shape[0], rng.integers(3)
    if kind == 0:
        _, depth = patch(support, rng, min(area * rng.uniform(3, 15), 0.5), kind="blob")
        alpha, depth = cut(
            smooth(rng, size, rng.uniform(0.008, 0.03)) + 1.5 * np.clip(depth, -2, 0.5),
            support,
            area,
            0.8,
        )
        height = alpha
    else:
        count = int(np.exp(rng.uniform(0, np.log(2 + 20 * min(1, area * 100)))))
        shape, rough = (pick(rng, "polygon", "blob"), None) if kind == 1 else ("blob", 0.06)
        alpha, height = cluster(
            support, rng, area, count, rng.uniform(0.03, 0.3), kind=shape, rough=rough
        )
    shade = relief(
        height * size * np.sqrt(area) * 0.6, rng.uniform(0, 6.3), rng.uniform(0.5, 1.2), 0.6
    )
    if kind == 2:  # a drop is a lens: it shows the surface from elsewhere, and a lamp
        y, x = coords(size)
        push = 0.02 * rng.uniform(-1, 1, 2)
        body = look_up(image, y + push[0] * height, x + push[1] * height) * lerp(
            np.ones(3), ink(image, alpha, rng), rng.uniform(0.2, 0.9)
        )
        body = lerp(lit(body, shade, 0.7), np.ones(3), 0.9 * step(0.6, 0.9, shade))
    else:
        body = lit(
            np.broadcast_to(ink(image, alpha, rng), image.shape)
            * (0.8 + 0.4 * fractal(rng, size, 0.02, 2)[..., None]),
            shade,
            0.6,
        )
    return blend(image, np.clip(body, 0, 1), alpha * rng.uniform(0.7, 1), contrast)


def foreign_patch(image, support, rng, area, contrast):
    """A piece of another material, glued, inlaid or lying with a shadow."""
    size = image.shape[0]
    alpha, depth = patch(support, rng, area, kind=pick(rng, "polygon", "polygon", "blob"))
    name = pick(rng, *[n for n in TRAIN_TEXTURES if n not in ("foam", "asphalt", "photo")])
    seed = rng.integers(0, 2**31, 2)
    other = TRAIN_TEXTURES[name](*(np.random.default_rng(int(s)) for s in seed), size)
    other = np.clip(other * rng.uniform(0.7, 1.2), 0, 1)
    painted = lit(
        other, relief(dome(depth, 0.2) * 3, rng.uniform(0, 6.3), 0.8, 0.8), rng.uniform(0, 0.6)
    )
    if chance(rng, 0.5):
        move = int(max(1, size * rng.uniform(0.005, 0.015)))
        shadow = (
            blur(np.roll(alpha, (move, pick(rng, -move, move)), (0, 1)), move / 2)
            * rng.uniform(0.2, 0.5)
            * (1 - alpha)
            * support
        )
        total = alpha + shadow
        return blend(image, np.where((alpha > LEVEL)[..., None], painted, 0.0), total, contrast)
    return blend(image, painted, alpha, contrast)


def discolouration(image, support, rng, area, contrast):
    """Soft tint that lets the texture through."""
    alpha, depth = patch(
        support, rng, area, soft=rng.uniform(0.1, 0.9), kind=pick(rng, "blob", "splat")
    )
    tint = colour(rng, None, (0.1, 0.8), (0.5, 1.0))
    strength = rng.uniform(0.4, 1)
    painted = pick(
        rng,
        image * tint,
        lerp(image, tint, 0.5),
        grey(image)[..., None] * tint + 0.1,
        1 - (1 - image) * (1 - 0.5 * tint),
    )
    return blend(image, lerp(image, painted, strength), alpha, contrast)


def burn(image, support, rng, area, contrast):
    """Scorch mark: brown rim, charred middle, sometimes ash."""
    size = image.shape[0]
    alpha, depth = patch(
        support, rng, area, soft=rng.uniform(0.3, 0.8), kind=pick(rng, "blob", "splat")
    )
    heat = np.clip(depth * rng.uniform(1, 2.5) + 0.25 * smooth(rng, size, 0.03), 0, 1)
    brown = image * lerp(np.ones(3), colour(rng, (0.04, 0.1), (0.5, 0.9), (0.3, 0.6)), 0.9)
    painted = lerp(brown, image * 0.15 + 0.02, step(0.1, 0.7, heat))
    if chance(rng, 0.3):
        painted = lerp(painted, np.full(3, 0.75), step(0.6, 1, heat) * fractal(rng, size, 0.03, 3))
    return blend(image, painted, alpha, contrast)


def pit(image, support, rng, area, contrast):
    """One pit or a cluster of pits, lit from a side."""
    size, count = image.shape[0], int(pick(rng, 1, 2, 4, 8, 14))
    count = max(1, min(count, int(area * size * size / 12)))
    spread, rough = rng.uniform(0.02, 0.12), rng.uniform(0.05, 0.3)
    alpha, height = cluster(support, rng, area, count, spread, soft=0.3, kind="blob", rough=rough)
    shade = relief(
        -unit(height) * size * np.sqrt(area) * rng.uniform(0.5, 1.2), rng.uniform(0, 6.3), 1, 0.6
    )
    painted = lit(
        image * (1 - rng.uniform(0.1, 0.75) * unit(height)[..., None]), shade, rng.uniform(0.4, 1)
    )
    return blend(image, painted, alpha, contrast)


def chip(image, support, rng, area, contrast):
    """A piece broken from the edge (of the support, else of the picture or inside): fresh rough material."""
    size, centre = image.shape[0], None
    rim = support & ~minimum_filter(support, 3)
    if rim.any():
        centre = site(rim, rng)
    elif chance(rng, 0.5):
        centre = pick(
            rng,
            (0.0, rng.uniform()),
            (1.0, rng.uniform()),
            (rng.uniform(), 0.0),
            (rng.uniform(), 1.0),
        )
    alpha, depth = patch(
        support,
        rng,
        area,
        kind=pick(rng, "polygon", "blob"),
        centre=centre,
        rough=rng.uniform(0.1, 0.3),
    )
    here = local(image, alpha)
    around = maximum_filter(alpha > LEVEL, max(3, size // 20)) & ~support
    if around.any() and chance(rng, 0.5):
        painted = np.broadcast_to(image[around].mean(0), image.shape) * (
            0.95 + 0.1 * fractal(rng, size, 0.03, 2)[..., None]
        )
        return blend(image, lerp(image * 0.4, painted, step(0, 0.15, depth)), alpha, contrast)
    fresh = lerp(here, pick(rng, np.ones(3), np.zeros(3)), rng.uniform(0.2, 0.6)) * (
        1 + 0.05 * rng.normal(size=3)
    )
    facets = fractal(rng, size, max(0.03, np.sqrt(area)), 4, 0.6) * size * 0.08
    shade = relief(facets - 2 * dome(depth, 0.3), rng.uniform(0, 6.3), 1)
    return blend(
        image,
        lit(np.broadcast_to(fresh, image.shape), shade, rng.uniform(0.2, 0.7)),
        alpha,
        contrast,
    )


def smear(image, support, rng, area, contrast):
    """Smudge, oil or wiped paint along one direction."""
    size, angle, centre = image.shape[0], rng.uniform(0, np.pi), site(support, rng)
    y, x = rotate(*coords(size), angle, centre)
    bend = 0.03 * smooth(rng, size, 0.4)
    radius, stretch = np.sqrt(area / np.pi), rng.uniform(1.3, 3)
    streaks = look_up(smooth(rng, size, (rng.uniform(0.008, 0.03), 0.5)), y + bend, x)
    distance = np.hypot((y - centre[0] + bend) * stretch, (x - centre[1]) / stretch) / radius
    alpha, depth = cut(
        -distance + rng.uniform(0.1, 0.6) * streaks, support, area, rng.uniform(0.3, 1)
    )
    kind = rng.integers(3)
    if kind == 0:  # the surface itself is wiped along
        step_ = np.array([-np.sin(angle), np.cos(angle)]) * rng.uniform(0.01, 0.025)
        rows, columns = coords(size)
        painted = (
            sum(look_up(image, rows + k * step_[0], columns + k * step_[1]) for k in range(-3, 4))
            / 7
        )
        painted = painted * (1 + 0.12 * np.tanh(streaks)[..., None])
    elif kind == 1:  # oil: darker and deeper in colour
        painted = image * lerp(np.ones(3), colour(rng, None, (0.1, 0.7), (0.2, 0.7)), 0.9)
    else:
        painted = lerp(
            image, ink(image, alpha, rng), rng.uniform(0.5, 0.95) * step(-1.5, 0.8, streaks)
        )
    return blend(image, painted, alpha, contrast)


def fold(image, support, rng, area, contrast):
    """Wrinkle or crease: a ridge with a light and a dark side that pulls the texture along."""
    size = image.shape[0]
    count = int(pick(rng, 1, 1, 2))
    core = line(support, rng, min(area * 0.25, 0.01), slit(rng, count, rng.uniform(0.1, 0.8)), 0.01)
    away = distance_transform_edt(core <= 0.5 * core.max())
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


def displaced_texture(image, support, rng, area, contrast):
    """A patch of the surface itself, shifted, turned, mirrored or scaled: a fault of structure alone."""
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
        moved = lit(
            moved,
            relief(dome(depth, 0.2) * 3, rng.uniform(0, 6.3), 0.8, 0.7),
            rng.uniform(0.1, 0.5),
        )
    return blend(image, moved, alpha, contrast)


def dark_region(image, support, rng, area, contrast):
    """A large region darker or brighter than it should be, soft or bounded by straight edges."""
    size = image.shape[0]
    if chance(rng, 0.4):
        angle = pick(rng, 0, np.pi / 2, rng.uniform(0, np.pi))
        y, _ = rotate(*coords(size), angle)
        soft = pick(rng, 0.008, 0.008, rng.uniform(0.05, 0.2))
        ragged = rng.uniform(0, 0.03) * smooth(rng, size, 0.06)
        alpha, _ = cut(
            pick(rng, y, -y, -np.abs(y - rng.uniform(0.2, 0.8))) + ragged, support, area, soft
        )
    else:
        alpha, _ = patch(support, rng, area, soft=pick(rng, 0.05, rng.uniform(0.2, 1)))
    factor = pick(rng, rng.uniform(0.1, 0.6), rng.uniform(0.1, 0.6), rng.uniform(1.4, 2.2))
    keep = rng.uniform(0.5, 1)
    painted = lerp(local(image, alpha) * np.ones_like(image), image, keep) * factor
    return blend(image, painted * (1 + 0.08 * smooth(rng, size, 0.1)[..., None]), alpha, contrast)


def blur_patch(image, support, rng, area, contrast):
    """A patch that lost its texture: worn, polished, melted or out of focus."""
    size = image.shape[0]
    alpha, _ = patch(support, rng, area, soft=rng.uniform(0.05, 0.6))
    painted = blur(image, size * rng.uniform(0.01, 0.05))
    painted = (
        painted * rng.uniform(0.8, 1.2) + rng.uniform(0, 0.02) * grain(rng, size, 0.7)[..., None]
    )
    return blend(image, painted, alpha, contrast)


def erosion(image, support, rng, area, contrast):
    """Structure eaten away, merged or missing: broken lines, bridges, bald spots."""
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


def ink_mark(image, support, rng, area, contrast):
    """Pen, marker or chalk: scribble, ring, cross or letters."""
    kind, jitter = rng.integers(3), rng.uniform(0.2, 1)

    def draw(start, angle, length):
        t, start = np.linspace(0, 1, 60)[:, None], np.asarray(start)
        if kind == 0:  # loops that drift
            turn = rng.uniform(2, 7) * 2 * np.pi * t
            loops = np.concatenate([np.sin(turn + jitter), np.cos(turn)], 1) * length * 0.05
            drift = np.array([[np.sin(angle), np.cos(angle)]]) * length * 0.35
            return [(start + loops + (t - 0.5) * drift, 1)]
        if kind == 1:  # ring, not quite closed
            radii = length / 6.5 * np.array([[1, rng.uniform(0.5, 1)]])
            return [
                (
                    start
                    + radii
                    * np.concatenate([np.sin(6.6 * t), np.cos(6.6 * t + 0.2)], 1)
                    * (1 + 0.1 * t),
                    1,
                )
            ]
        lines = []
        for k in range(int(rng.integers(1, 4))):  # bars of a letter
            heading = angle + k * pick(rng, 1.57, 2.1)
            lines.append(
                (path(rng, start + 0.06 * k * length, heading, length / 2.5, jitter * 0.3, 16), 1)
            )
        return lines

    alpha = line(support, rng, area, draw, 0.025) * rng.uniform(0.6, 1)
    if chance(rng, 0.3):
        alpha = alpha * step(-1.2, 0.6, smooth(rng, image.shape[0], 0.012))
    return blend(image, np.broadcast_to(ink(image, alpha, rng, 0.7), image.shape), alpha, contrast)


TRAIN_DEFECTS = {
    f.__name__: f
    for f in (
        crack,
        contamination,
        foreign_patch,
        discolouration,
        burn,
        pit,
        chip,
        smear,
        fold,
        displaced_texture,
        dark_region,
        blur_patch,
        erosion,
        ink_mark,
    )
} | {"cut": cut_open}
DEFECTS = TRAIN_DEFECTS | EVAL_DEFECTS
