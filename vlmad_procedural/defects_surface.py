"""Training defects of what lies on a surface or of its colour, see ``defects``."""

import numpy as np

from .aliases import Drawn, Image, Mask, Rng
from .fields import blur, coords, grey, lerp, look_up, relief, rotate, step
from .marks import LEVEL, blend, cluster, cut, dome, ink, line, local, patch, site
from .noise import fractal, grain, smooth
from .outlines import path
from .palette import chance, colour, lit, pick
from .textures import TRAIN_TEXTURES


def contamination(image: Image, support: Mask, rng: Rng, area: float, contrast: float) -> Drawn:
    """Draw powder, particles or drops that lie on the surface."""
    size, kind = image.shape[0], rng.integers(3)
    if kind == 0:
        _, depth = patch(support, rng, min(area * rng.uniform(3, 15), 0.5), kind="blob")
        specks = smooth(rng, size, rng.uniform(0.008, 0.03)) + 1.5 * np.clip(depth, -2, 0.5)
        alpha, depth = cut(specks, support, area, 0.8)
        height = alpha
    else:
        count = int(np.exp(rng.uniform(0, np.log(2 + 20 * min(1, area * 100)))))
        shape, rough = (pick(rng, "polygon", "blob"), None) if kind == 1 else ("blob", 0.06)
        spread = rng.uniform(0.03, 0.3)
        alpha, height = cluster(support, rng, area, count, spread, kind=shape, rough=rough)
    angle, strength = rng.uniform(0, 6.3), rng.uniform(0.5, 1.2)
    shade = relief(height * size * np.sqrt(area) * 0.6, angle, strength, 0.6)
    if kind == 2:  # a drop is a lens: it shows the surface from elsewhere, and a lamp
        y, x = coords(size)
        push = 0.02 * rng.uniform(-1, 1, 2)
        body = look_up(image, y + push[0] * height, x + push[1] * height)
        body = body * lerp(np.ones(3), ink(image, alpha, rng), rng.uniform(0.2, 0.9))
        body = lerp(lit(body, shade, 0.7), np.ones(3), 0.9 * step(0.6, 0.9, shade))
    else:
        body = ink(image, alpha, rng) * (0.8 + 0.4 * fractal(rng, size, 0.02, 2)[..., None])
        body = lit(body, shade, 0.6)
    return blend(image, np.clip(body, 0, 1), alpha * rng.uniform(0.7, 1), contrast)


def foreign_patch(image: Image, support: Mask, rng: Rng, area: float, contrast: float) -> Drawn:
    """Draw a piece of another material, glued, inlaid or lying with a shadow."""
    size = image.shape[0]
    alpha, depth = patch(support, rng, area, kind=pick(rng, "polygon", "polygon", "blob"))
    name = pick(rng, *[n for n in TRAIN_TEXTURES if n not in ("foam", "asphalt", "photo")])
    seed = rng.integers(0, 2**31, 2)
    style, piece = (np.random.default_rng(int(s)) for s in seed)
    other = TRAIN_TEXTURES[name](style, piece, size)
    other = np.clip(other * rng.uniform(0.7, 1.2), 0, 1)
    shade = relief(dome(depth, 0.2) * 3, rng.uniform(0, 6.3), 0.8, 0.8)
    painted = lit(other, shade, rng.uniform(0, 0.6))
    if chance(rng, 0.5):
        move = int(max(1, size * rng.uniform(0.005, 0.015)))
        moved = np.roll(alpha, (move, pick(rng, -move, move)), (0, 1))
        shadow = blur(moved, move / 2) * rng.uniform(0.2, 0.5) * (1 - alpha) * support
        total = alpha + shadow
        return blend(image, np.where((alpha > LEVEL)[..., None], painted, 0.0), total, contrast)
    return blend(image, painted, alpha, contrast)


def discolouration(image: Image, support: Mask, rng: Rng, area: float, contrast: float) -> Drawn:
    """Draw a soft tint that lets the texture through."""
    soft, kind = rng.uniform(0.1, 0.9), pick(rng, "blob", "splat")
    alpha, _ = patch(support, rng, area, soft=soft, kind=kind)
    tint = colour(rng, None, (0.1, 0.8), (0.5, 1.0))
    strength = rng.uniform(0.4, 1)
    paints = image * tint, lerp(image, tint, 0.5), grey(image)[..., None] * tint + 0.1
    painted = pick(rng, *paints, 1 - (1 - image) * (1 - 0.5 * tint))
    return blend(image, lerp(image, painted, strength), alpha, contrast)


def burn(image: Image, support: Mask, rng: Rng, area: float, contrast: float) -> Drawn:
    """Draw a scorch mark: brown rim, charred middle, sometimes ash."""
    size = image.shape[0]
    soft, kind = rng.uniform(0.3, 0.8), pick(rng, "blob", "splat")
    alpha, depth = patch(support, rng, area, soft=soft, kind=kind)
    heat = np.clip(depth * rng.uniform(1, 2.5) + 0.25 * smooth(rng, size, 0.03), 0, 1)
    brown = image * lerp(np.ones(3), colour(rng, (0.04, 0.1), (0.5, 0.9), (0.3, 0.6)), 0.9)
    painted = lerp(brown, image * 0.15 + 0.02, step(0.1, 0.7, heat))
    if chance(rng, 0.3):
        painted = lerp(painted, np.full(3, 0.75), step(0.6, 1, heat) * fractal(rng, size, 0.03, 3))
    return blend(image, painted, alpha, contrast)


def smear(image: Image, support: Mask, rng: Rng, area: float, contrast: float) -> Drawn:
    """Draw a smudge, oil or wiped paint along one direction."""
    size, angle, centre = image.shape[0], rng.uniform(0, np.pi), site(support, rng)
    y, x = rotate(*coords(size), angle, centre)
    bend = 0.03 * smooth(rng, size, 0.4)
    radius, stretch = np.sqrt(area / np.pi), rng.uniform(1.3, 3)
    streaks = look_up(smooth(rng, size, (rng.uniform(0.008, 0.03), 0.5)), y + bend, x)
    distance = np.hypot((y - centre[0] + bend) * stretch, (x - centre[1]) / stretch) / radius
    ridges = -distance + rng.uniform(0.1, 0.6) * streaks
    alpha, _ = cut(ridges, support, area, rng.uniform(0.3, 1))
    kind = rng.integers(3)
    if kind == 0:  # the surface itself is wiped along
        step_ = np.array([-np.sin(angle), np.cos(angle)]) * rng.uniform(0.01, 0.025)
        rows, columns = coords(size)
        steps = range(-3, 4)
        wiped = [look_up(image, rows + k * step_[0], columns + k * step_[1]) for k in steps]
        painted = sum(wiped) / 7
        painted = painted * (1 + 0.12 * np.tanh(streaks)[..., None])
    elif kind == 1:  # oil: darker and deeper in colour
        painted = image * lerp(np.ones(3), colour(rng, None, (0.1, 0.7), (0.2, 0.7)), 0.9)
    else:
        mark = ink(image, alpha, rng)
        painted = lerp(image, mark, rng.uniform(0.5, 0.95) * step(-1.5, 0.8, streaks))
    return blend(image, painted, alpha, contrast)


def dark_region(image: Image, support: Mask, rng: Rng, area: float, contrast: float) -> Drawn:
    """Darken or brighten a large region, soft or with straight edges."""
    size = image.shape[0]
    if chance(rng, 0.4):
        angle = pick(rng, 0, np.pi / 2, rng.uniform(0, np.pi))
        y, _ = rotate(*coords(size), angle)
        soft = pick(rng, 0.008, 0.008, rng.uniform(0.05, 0.2))
        ragged = rng.uniform(0, 0.03) * smooth(rng, size, 0.06)
        band = pick(rng, y, -y, -np.abs(y - rng.uniform(0.2, 0.8)))
        alpha, _ = cut(band + ragged, support, area, soft)
    else:
        alpha, _ = patch(support, rng, area, soft=pick(rng, 0.05, rng.uniform(0.2, 1)))
    factor = pick(rng, rng.uniform(0.1, 0.6), rng.uniform(0.1, 0.6), rng.uniform(1.4, 2.2))
    keep = rng.uniform(0.5, 1)
    painted = lerp(local(image, alpha) * np.ones_like(image), image, keep) * factor
    return blend(image, painted * (1 + 0.08 * smooth(rng, size, 0.1)[..., None]), alpha, contrast)


def blur_patch(image: Image, support: Mask, rng: Rng, area: float, contrast: float) -> Drawn:
    """Remove the texture of a patch: worn, polished, melted or out of focus."""
    size = image.shape[0]
    alpha, _ = patch(support, rng, area, soft=rng.uniform(0.05, 0.6))
    painted = blur(image, size * rng.uniform(0.01, 0.05))
    painted = painted * rng.uniform(0.8, 1.2)
    painted = painted + rng.uniform(0, 0.02) * grain(rng, size, 0.7)[..., None]
    return blend(image, painted, alpha, contrast)


def ink_mark(image: Image, support: Mask, rng: Rng, area: float, contrast: float) -> Drawn:
    """Draw with pen, marker or chalk: scribble, ring, cross or letters."""
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
            circle = np.concatenate([np.sin(6.6 * t), np.cos(6.6 * t + 0.2)], 1)
            return [(start + radii * circle * (1 + 0.1 * t), 1)]
        lines = []
        for k in range(int(rng.integers(1, 4))):  # bars of a letter
            heading = angle + k * pick(rng, 1.57, 2.1)
            at = start + 0.06 * k * length
            lines.append((path(rng, at, heading, length / 2.5, jitter * 0.3, 16), 1))
        return lines

    alpha = line(support, rng, area, draw, 0.025) * rng.uniform(0.6, 1)
    if chance(rng, 0.3):
        alpha = alpha * step(-1.2, 0.6, smooth(rng, image.shape[0], 0.012))
    return blend(image, np.broadcast_to(ink(image, alpha, rng, 0.7), image.shape), alpha, contrast)
