"""Procedural objects kept for evaluation: capsule, nut, bottle, screw. Never part of training."""

import numpy as np

from .canvas import Canvas, still
from .objects_colours import hsv, metal, tint, turned
from .objects_kit import family
from .objects_shapes import box, disc, ngon, ring, stick, words


@family("capsule", "pill capsule", "drug capsule", fill=(0.65, 0.98))
def capsule(c: Canvas) -> None:
    """Draw a capsule of two colours with a seam and a print on either half."""
    s = c.style
    colors = [tint(s, sat=(0.05, 0.9), value=(0.2, 0.95)) for _ in range(2)]
    r, seam = s.uniform(0.3, 0.42), s.uniform(-0.2, 0.2)
    labels = [words(s, s.integers(2, 5)) for _ in range(2)]
    inks = [(0.95, 0.95, 0.95) if k.mean() < 0.5 else (0.1, 0.1, 0.12) for k in colors]
    half, wider = stick(-1 + r, 0, 1 - r, 0, r), stick(-1 + r, 0, 1 - r, 0, r * 1.03)

    def lid(x, y):
        return np.maximum(wider(x, y), seam - x)

    moved = c.chance.uniform() < 0.4 and c.fault == "misplaced_part"
    for _, dx, dy, _ in c.parts(1, 0.12) if moved else still(1):
        c.paint(half, 1, colors[0], lift=0.8 * r, bevel=r, gloss=0.45, grain=0.01)
        cap = c.sub(dx / 2, dy / 2, dy)
        cap.paint(lid, 1.05, colors[1], lift=0.02, bevel=0.02, gloss=0.45, grain=0.01)
        cap.sub(seam + 0.06).paint(box(0.012, r), r, colors[1] * 0.8, lift=-0.01, bevel=0.01)
    for i, dx, dy, a in c.parts(2, 0.16, 0.6):
        c.sub((-0.5 + seam / 2, 0.5 + seam / 2)[i] + dx, dy, a).write(labels[i], r * 0.5, inks[i])


@family("nut", "hexagon nut", "metal nut", turn="free")
def nut(c: Canvas) -> None:
    """Draw a hexagon nut; a corner may be gone, or the hole off centre."""
    s = c.style
    color, bore = metal(s), s.uniform(0.4, 0.55)
    shine, thread = dict(gloss=0.5, metal=1), s.integers(3, 6)

    def hexagon(x, y):
        return np.maximum(ngon(6, 0.85)(x, y), np.hypot(x, y) - 0.97)

    face, bevel = turned(s, color, 0.03), s.uniform(0.03, 0.1)
    c.paint(hexagon, 1, face, lift=0.14, bevel=bevel, **shine)
    c.paint(ring(bore, 0.8), 1, turned(s, color * 1.03, 0.05), lift=0.03, bevel=0.03, **shine)
    if s.uniform() < 0.5:
        for i in range(3):
            at = c.sub(angle=i * 2 * np.pi / 3).sub(y=-0.7)
            at.write(words(s, 1), 0.12, color * 0.5, 0.1, -0.02)
    gone = c.chance.uniform() < 0.5
    for _, dx, dy, _ in still(1) if c.fault == "missing_part" and gone else c.parts(1, 0.1):
        at = c.sub(dx, dy)
        at.paint(disc(bore), 1, color * 0.45, lift=-0.1, bevel=0.05, **shine)
        for k in range(thread):
            far = bore * (0.98 - 0.05 * k)
            thread_ring = ring(far - 0.012, far + 0.012)
            shade = color * (0.9 - 0.12 * k)
            at.paint(thread_ring, 1, shade, lift=0.03, bevel=0.02, **shine)
        at.cut(disc(bore * (0.95 - 0.05 * thread)), 1)
    corner, size = c.chance.integers(6), c.chance.uniform(0.25, 0.4)
    if c.fault == "missing_part" and gone:
        c.sub(angle=(corner + 0.5) * np.pi / 3).sub(1.0).cut(disc(size), 0.5)


@family("bottle", "glass bottle", "bottle seen from above", turn="none", fill=(0.8, 1.1), cut=False)
def bottle(c: Canvas) -> None:
    """Draw a bottle from above: body, shoulder, mouth and dark throat as rings."""
    s = c.style
    glass = tint(s, (0.03, 0.45), (0.3, 0.9), (0.08, 0.5))
    mouth, throat = s.uniform(0.6, 0.75), s.uniform(0.4, 0.52)
    c.paint(disc(1), 1, glass, lift=0.3, bevel=0.3, gloss=0.6, grain=0.01)
    for _ in range(s.integers(1, 4)):
        at = s.uniform(mouth + 0.03, 0.95)
        line, shade = ring(at, at + s.uniform(0.01, 0.05)), glass * s.uniform(0.6, 1.7)
        c.paint(line, 1, shade, lift=0.02, bevel=0.02, gloss=0.8)
    rim, bite = c.chance.uniform() < 0.6, c.chance.uniform(0, 2 * np.pi)
    size = c.chance.uniform(0.15, 0.35)
    broken = rim and c.fault == "missing_part"

    def lip(x, y):
        away = np.hypot(x - mouth * np.cos(bite), y - mouth * np.sin(bite))
        gone = size - away + 0.03 * np.sin(9 * x + 7 * y)
        return np.maximum(ring(throat, mouth)(x, y), gone) if broken else ring(throat, mouth)(x, y)

    def dark(x, y, d):
        return glass * (0.12 + 0.5 * (np.hypot(x, y) / throat) ** 3)[..., None]

    for _, dx, dy, _ in c.parts(1, 0.1) if rim and not broken else still(1):
        at = c.sub(dx, dy)
        bright, bevel = np.minimum(glass * 1.5 + 0.05, 1), (mouth - throat) / 2
        at.paint(lip, 1, bright, lift=0.12, bevel=bevel, gloss=1)
        at.paint(disc(throat), 1, dark, gloss=0.1)
    n, kind = s.integers(8, 40), s.uniform(0.04, 0.07)
    run = max(1, n // 8)  # a run of knurls, so that what is missing can be seen
    first = c.chance.integers(n)
    for i in range(n):
        hit = not rim and (i - first) % n < run
        if hit and c.fault == "missing_part":
            continue
        away = 0.06 if hit and c.fault == "misplaced_part" else 0
        at = c.sub(angle=2 * np.pi * (i + 0.5 * bool(away)) / n).sub((mouth + 1) / 2 + away)
        bright = np.minimum(glass * 2 + 0.1, 1)
        at.paint(box(kind, 0.6 / n), 0.2, bright, lift=0.05, bevel=0.03, gloss=0.8)


@family("screw", "metal screw", "bolt", turn="free", fill=(0.75, 1.02), cut=False)
def screw(c: Canvas) -> None:
    """Draw a screw from the side; a crest may be gone, or the head askew."""
    s = c.style
    color, n, wide = metal(s), s.integers(9, 20), s.uniform(0.09, 0.15)
    shine, head, pointed = dict(gloss=0.5, metal=1), s.integers(3), s.uniform() < 0.6
    start, tall = s.uniform(-0.55, -0.2), s.uniform(0.2, 0.3)
    taper = s.uniform(0.12, 0.25) if pointed else 0.01

    def width(x, r):
        return r * np.clip((1 - x) / taper, 0, 1)

    def shank(x, y):
        return np.maximum(np.abs(y) - width(x, wide), np.abs(x - 0.1) - 0.9)

    c.paint(shank, 1.2, color, lift=0.1, bevel=wide, **shine)
    which = c.chance.uniform() < 0.65
    pitch, lean = (1 - start) / n, s.uniform(0.15, 0.35)
    run = max(2, n // 5)
    first = c.chance.integers(n - run)
    for i in range(n):
        hit = which and first <= i < first + run
        if hit and c.fault == "missing_part":
            continue
        x = start + (i + 0.5) * pitch + (0.4 * pitch if hit and c.fault == "misplaced_part" else 0)
        r = width(x, wide * 1.45)
        lean_now = -lean if hit and c.fault == "misplaced_part" else lean
        crest, reach = stick(-lean_now * r, -r, lean_now * r, r, pitch * 0.28), r * 1.2 + pitch
        c.sub(x).paint(crest, reach, color * 1.05, lift=0.05, bevel=pitch * 0.28, **shine)

    def countersunk(x, y):
        return np.maximum(np.abs(y) - tall * (1 - (x + 0.12) / 0.3), np.abs(x) - 0.13)

    def rounded(x, y):
        return np.maximum(np.hypot((x - 0.12) * tall / 0.25, y) - tall, x - 0.12)

    for _, dx, dy, a in still(1) if which else c.parts(1, 0.08, 0.22):
        at = c.sub(-0.85 + dx / 2, dy, a)
        if head == 0:
            at.paint(countersunk, 0.5, color, lift=0.13, bevel=0.1, **shine)
        elif head == 1:
            at.paint(rounded, 0.5, color, lift=0.2, bevel=tall, **shine)
        else:
            at.paint(box(0.13, tall, 0.02), 0.5, color, lift=0.15, bevel=0.06, **shine)
            for y in (-0.4, 0.4):
                at.sub(0, y * tall).paint(box(0.13, 0.01), 0.3, color * 0.5, lift=-0.03, bevel=0.02)
    if s.uniform() < 0.5:
        c.sub(-0.9, 0).paint(box(0.09, 0.02), 0.1, hsv(0, 0, 0.1), body=False)


EVAL = (capsule, nut, bottle, screw)
