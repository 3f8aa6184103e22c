"""Procedural objects turned, cut or struck from metal."""

import numpy as np

from .canvas import Canvas, still
from .objects_colours import metal, tint, turned
from .objects_kit import family, screw_head
from .objects_shapes import blob, box, disc, ellipse, ngon, ring, stick, words


@family("washer", "metal ring", "seal ring", name="ring", turn="free")
def ring_part(c: Canvas) -> None:
    """Draw a flat or toothed washer with drilled holes, bumps or teeth."""
    s = c.style
    inner, kind, n = s.uniform(0.35, 0.7), s.integers(4), s.integers(3, 13)
    rubber = s.uniform() < 0.3
    color = tint(s, sat=(0.05, 0.6), value=(0.1, 0.6)) if rubber else metal(s)
    shine = dict(gloss=0.2 if rubber else 0.5, metal=0 if rubber else 1)
    outer = 0.85 if kind == 2 else 1
    face, thick = turned(s, color, s.uniform(0.01, 0.06)), s.uniform(0.05, 0.12)
    bevel = s.choice([0.03, 0.08, (1 - inner) / 2])
    c.paint(ring(inner, outer), 1, face, lift=thick, bevel=bevel, **shine)
    mid, width = (inner + outer) / 2, outer - inner
    if s.uniform() < 0.4:
        groove = ring(mid - 0.08 * width, mid + 0.08 * width)
        c.paint(groove, 1, color * 0.9, lift=-0.03, bevel=0.03, **shine)
    if s.uniform() < 0.3 and kind != 0:
        for i, letter in enumerate(words(s, s.integers(3, 7))):
            c.sub(angle=0.3 * i).sub(y=-mid).write(letter, width * 0.4, color * 0.4)
    size, turns = width * s.uniform(0.13, 0.26), 2 * np.pi / n
    for i, dx, dy, a in c.parts(n, size * 1.6, 0.3):
        at = c.sub(angle=i * turns + a)
        if kind == 0:
            hole = at.sub(mid + dx, dy)
            hole.paint(disc(size * 1.3), size * 1.4, color * 0.8, lift=-0.02, **shine)
            hole.cut(disc(size), size)
        elif kind == 1:
            at.sub(mid + dx, dy).paint(disc(size), size, color, lift=0.07, bevel=size, **shine)
        elif kind == 2:
            at.sub(0.9 + dx / 3, dy).paint(box(0.1, 0.9 / n, 0.03), 0.5, color, lift=0.06, **shine)
        else:
            at.sub(inner + dx, dy).cut(disc(size), size)


@family("gear", "cog wheel", "sprocket", turn="free", fill=(0.6, 1.12))
def gear(c: Canvas) -> None:
    """Draw a spur gear with bore, keyway, hub and lightening holes."""
    s = c.style
    n, root = s.integers(9, 37), s.uniform(0.78, 0.88)
    color = metal(s) if s.uniform() < 0.7 else tint(s, sat=(0.05, 0.8))
    shine = dict(gloss=0.4, metal=0.8 if s.uniform() < 0.7 else 0)
    lift, tip = s.uniform(0.06, 0.14), s.uniform(0.3, 0.55)

    def tooth(x, y):
        flank = (np.pi / n) * (0.62 - tip * (x + 0.9 - root) * 1.2)
        return np.maximum(np.abs(y) - flank, np.abs(x) - 0.1)

    which = c.chance.uniform() < 0.75
    holes, bore = s.choice([0, 3, 4, 5, 6, 8]), s.uniform(0.12, 0.3)
    teeth = c.parts(n, 0.05, np.pi / n) if which or not holes else still(n)
    for i, dx, dy, a in teeth:
        at = c.sub(angle=2 * np.pi * i / n + a).sub(0.9 + dx, dy)
        at.paint(tooth, 0.22, color, lift=lift, bevel=0.03, **shine)
    c.paint(disc(root + 0.01), 1, turned(s, color, 0.03), lift=lift, bevel=0.02, **shine)
    if s.uniform() < 0.6:
        c.paint(ring(bore + 0.14, root - 0.1), 1, turned(s, color * 0.9, 0.04), lift=-0.05, **shine)
    gaps = still(holes) if which or not holes else c.parts(holes, 0.1)
    for i, dx, dy, _ in gaps:
        c.sub(angle=2 * np.pi * i / holes).sub((bore + root) / 2 + dx, dy).cut(disc(0.1), 0.1)
    c.cut(disc(bore), bore)
    if s.uniform() < 0.5:
        c.sub(bore).cut(box(0.07, 0.06), 0.1)


@family("coin", "medal", "token", turn="free")
def coin(c: Canvas) -> None:
    """Draw a struck coin with rim, beads, legend and an emblem."""
    s = c.style
    color, legend, n = metal(s), words(s, s.integers(5, 12)), s.integers(12, 40)
    shine = dict(gloss=0.4, metal=0.9)
    c.paint(disc(1), 1, turned(s, color, 0.02), lift=0.1, bevel=0.04, **shine)
    c.paint(disc(0.9), 1, color * 0.92, lift=-0.05, bevel=0.03, mottle=0.05, **shine)
    which, beads = c.chance.integers(3), s.uniform() < 0.6
    if beads:
        for i, dx, dy, _ in c.parts(n, 0.08) if which == 0 else still(n):
            at = c.sub(angle=i * 2 * np.pi / n).sub(0.84 + dx, dy)
            at.paint(disc(0.035), 0.04, color, 0.04, 0.035, **shine)
    span, low, m = s.uniform(0.29, 0.36), s.uniform(0, 7), len(legend)
    for i, dx, dy, a in c.parts(m, 0.12, 0.7) if which == 1 or not beads else still(m):
        at = c.sub(angle=low + i * span).sub(dx, dy - 0.68, a)
        at.write(legend[i], 0.2, color * 1.05, 0.12, 0.04, **shine)
    kind, arms, tilt = s.integers(3), s.integers(4, 9), s.uniform(0, 7)
    digits, reach = words(s, 2), s.uniform(0.3, 0.45)
    for _, dx, dy, a in c.parts(1, 0.15, 0.6) if which == 2 else still(1):
        at = c.sub(dx, dy, tilt + a)
        if kind == 0:
            at.write(digits, 0.6, color * 1.05, 0.1, 0.06, **shine)
        elif kind == 1:
            arm = stick(0, 0, reach, 0, 0.06)
            for k in range(arms):
                at.sub(angle=k * 2 * np.pi / arms).paint(arm, 0.6, color, 0.05, 0.06, **shine)
        else:
            at.paint(blob([0.15, 0.12, 0.06], [tilt, 1, 2], reach), 0.6, color, 0.09, 0.25, **shine)
            at.sub(0.1, -0.1).paint(ring(0.1, 0.16), 0.2, color, -0.03, 0.03, **shine)


@family("bearing", "ball bearing", turn="free", fill=(0.6, 1.15))
def bearing(c: Canvas) -> None:
    """Draw a ball bearing: two races, and balls in the gap."""
    s = c.style
    color, n, inner = metal(s), s.integers(7, 15), s.uniform(0.3, 0.5)
    gap = (inner + 0.14, 0.84)
    shine, mid = dict(gloss=0.5, metal=1), (inner + 0.98) / 2
    c.paint(ring(inner, 1), 1, np.array([0.12, 0.11, 0.1]) * s.uniform(0.5, 2), lift=0.02)
    for a, b in ((inner, gap[0]), (gap[1], 1)):
        c.paint(ring(a, b), 1, turned(s, color, 0.04), lift=0.1, bevel=0.03, **shine)
    size = min((gap[1] - gap[0]) / 2 * 0.95, mid * np.pi / n * 0.9)
    cage = None if s.uniform() < 0.4 else metal(s) * 0.8
    if cage is not None:
        rail = ring(mid - size * 0.5, mid + size * 0.5)
        c.paint(rail, 1, cage, lift=0.05, bevel=0.03, gloss=0.3, metal=0.6)
    if s.uniform() < 0.5:
        for i, letter in enumerate(words(s, 7)):
            c.sub(angle=0.14 * i).sub(y=-(gap[1] + 1) / 2).write(letter, 0.08, color * 0.35)
    for i, dx, dy, a in c.parts(n, size * 0.3, np.pi / n):
        at = c.sub(angle=2 * np.pi * i / n + a).sub(mid + dx / 3, dy / 3)
        if cage is not None:
            at.paint(disc(size * 1.05), size * 1.1, color * 0.25, lift=-0.02)
        at.paint(disc(size), size, color * 1.05, lift=size * 0.9, bevel=size, **shine)


@family("threaded rod", "ball screw", "spindle", turn="none", fill=(0.95, 1.3), cut=False)
def threaded_rod(c: Canvas) -> None:
    """Draw a cylinder with helical grooves in close view; the defect fills or shifts a groove."""
    s = c.style
    c = c.sub(angle=s.integers(2) * np.pi / 2)
    radius = s.choice([s.uniform(0.35, 0.75), s.uniform(0.8, 1.4)])
    pitch = s.uniform(0.14, 0.4) * s.choice([1, 1, 1.7])
    starts, deep, land = s.choice([1, 1, 2, -1]), s.uniform(0.05, 0.14), s.uniform(0.1, 0.65)
    color, phase = metal(s), c.rng.uniform(0, 1)
    spot = c.chance.uniform(-0.6, 0.6, 2) * (1, min(radius, 0.9) * 0.8)
    width, reach = pitch * c.chance.uniform(0.7, 1.3), c.chance.uniform(0.12, 0.3) + 0.3 * pitch
    win, x, y = c.window(3)
    t = np.clip(y / radius, -0.999, 0.999)
    local = np.clip(1.8 - 1.8 * np.hypot((x - spot[0]) / width, (y - spot[1]) / reach), 0, 1)
    local = local * local * (3 - 2 * local)
    turn = x / pitch + starts * np.arcsin(t) / (2 * np.pi) + phase
    if c.fault == "misplaced_part":
        turn = turn + 0.4 * local
    wave = 0.5 - 0.5 * np.cos(2 * np.pi * turn)
    groove = np.clip((wave - land) / (1 - land), 0, 1) ** s.choice([0.5, 1.0])
    if c.fault == "missing_part":
        groove = groove * (1 - local)
    tone = 1 - 0.45 * groove * s.uniform(0.4, 1.2)
    marks = turned(s, np.ones(3), 1.0, 300, False)(x, y, y)[..., 0]
    tone = tone * (1 + 0.04 * marks)

    def shade(x, y, d):
        return color * (tone * (0.55 + 0.45 * np.sqrt(1 - t * t)))[..., None]

    c.paint(lambda x, y: np.abs(y) - radius + 0 * x, 3, shade, gloss=0.5, metal=1, grain=0.05)
    inside = np.abs(y) < radius
    c.height[win] += inside * c.unit * (0.5 * radius * np.sqrt(1 - t * t) - deep * groove)
    if s.uniform() < 0.3:
        end = c.sub(s.choice([-1, 1]) * s.uniform(0.8, 1))
        tip = box(0.3, radius * 1.25, 0.05)
        end.paint(tip, 2, color * 0.8, lift=0.3, bevel=0.2, gloss=0.4, metal=1)


@family("key", "door key", "latch key", turn="free", fill=(0.75, 1.05))
def key(c: Canvas) -> None:
    """Draw a key with bow, hole, blade, groove and cuts."""
    s = c.style
    color, n, wide = metal(s), s.integers(4, 8), s.uniform(0.12, 0.2)
    shine = dict(gloss=0.5, metal=0.8)
    bows = disc(0.36), box(0.34, 0.38, 0.12), ngon(6, 0.34), blob([0.05, 0.16], [0, 0], 0.36)
    bow = bows[s.integers(4)]
    plastic = s.uniform() < 0.3
    steel = turned(s, color, 0.04, radial=False)
    c.sub(0.2).paint(box(0.78, wide, 0.03), 1, steel, lift=0.07, bevel=0.03, **shine)
    grip, shiny = (tint(s), 0) if plastic else (color, 0.8)
    c.sub(-0.62).paint(bow, 0.5, grip, lift=0.1, bevel=0.05, gloss=0.4, metal=shiny, over=True)
    groove = box(0.7, wide * 0.12)
    c.sub(0.25, -wide * 0.2).paint(groove, 0.8, color * 0.8, lift=-0.03, bevel=0.02, **shine)
    c.sub(-0.62, 0.18).write(words(s, 4), 0.09, color * 0.5, 0.1, -0.01)
    c.sub(-0.82).cut(disc(s.uniform(0.06, 0.11)), 0.15)
    deep, pitch = s.uniform(0.25, 0.8, n) * wide, 0.95 / n
    for i, dx, dy, a in c.parts(n, pitch * 0.5, 0.3):
        at = c.sub(-0.02 + i * pitch + dx / 2, wide + dy / 3, a + np.pi / 4)
        at.cut(box(deep[i], deep[i]), 0.4)


@family("lens", "glass disc", "camera lens", turn="free")
def lens(c: Canvas) -> None:
    """Draw coated glass in a mount with screws, notches and print."""
    s, r = c.style, c.rng
    mount, glass, n = metal(s) * s.choice([0.25, 1]), s.uniform(0.5, 0.85), s.integers(3, 7)
    coat, edge = tint(s, (0.4, 0.95), (0.3, 0.8), (0.1, 0.5)), s.uniform(0.3, 0.9)
    c.paint(disc(1), 1, turned(s, mount, 0.03), lift=0.1, bevel=0.04, gloss=0.4, metal=0.7)
    for _ in range(s.integers(1, 4)):
        at = s.uniform(glass, 0.97)
        c.paint(ring(at, at + 0.02), 1, mount * 0.6, lift=-0.02, bevel=0.01, gloss=0.3)

    def coated(x, y, d):
        return coat * (edge + (1 - edge) * (np.hypot(x, y) / glass) ** 2)[..., None]

    c.paint(disc(glass), 1, coated, lift=0.1, bevel=glass, gloss=0.3, grain=0.005, mottle=0.02)
    for k in range(s.integers(1, 4)):
        spot = np.array([np.cos(k * 2.5 + 1), np.sin(k * 2.5 + 1)]) * glass * 0.45
        x, y = spot + r.normal(size=2) * 0.03
        glint, alpha = ellipse(0.16 * glass, 0.07 * glass), s.uniform(0.15, 0.6)
        c.sub(x, y, k).paint(glint, 0.3, (1, 1, 1), alpha=alpha, grain=0)
    mid, kind, letters = (1 + glass) / 2, s.integers(2), words(s, s.integers(4, 12))
    size = (1 - glass) * 0.28
    for i, letter in enumerate(letters):
        c.sub(angle=i * size * 1.3 + 0.5).sub(y=-mid).write(letter, size, (0.85, 0.85, 0.85))
    for i, dx, dy, a in c.parts(n, size, 0.3):
        at = c.sub(angle=i * 2 * np.pi / n + a).sub(mid + dx / 2, dy)
        if kind:
            screw_head(at, size * 0.8, metal(np.random.default_rng(0)), 1, i)
        else:
            at.sub(size * 0.8).cut(box(size, size * 0.8, 0.02), 0.5)


@family("tool blade", "saw blade", "knife blade", name="blade", fill=(0.8, 1.3))
def blade(c: Canvas) -> None:
    """Draw a steel blade with teeth or snap lines, holes and print."""
    s = c.style
    n, wide, saw = s.integers(7, 22), s.uniform(0.25, 0.5), s.uniform() < 0.65
    color = metal(s)
    shine = dict(gloss=0.4, metal=1)
    slope = s.uniform(-0.4, 0.4)

    def sheet(x, y):
        return np.maximum(np.abs(y) - wide, np.abs(x + slope * y) - 0.97)

    steel = turned(s, color, 0.05, 300, s.uniform() < 0.2)
    c.paint(sheet, 1.3, steel, lift=0.05, bevel=0.02, **shine)
    c.sub(y=wide - 0.08).paint(box(0.96, 0.06), 1.2, color * 1.15, lift=-0.03, bevel=0.05, **shine)
    c.sub(y=0.2 * wide).write(words(s, 8), 0.11, color * 0.4)
    which = c.chance.uniform() < 0.7
    pitch, lean = 1.9 / n, s.uniform(0, 0.8)

    def tooth(x, y):
        return np.maximum(np.abs(x - lean * y) - (pitch * 0.5 - y * 0.55), -0.02 - y)

    for i, dx, dy, a in c.parts(n, pitch * 0.35, 0.5) if which else still(n):
        along = (i - (n - 1) / 2) * pitch * (1 if saw else 0.7)
        at = c.sub(along + dx - slope * wide * saw, wide + dy / 3 - 0.01, a)
        if saw:
            at.paint(tooth, pitch * 1.2, color * 1.05, lift=0.04, bevel=0.02, **shine)
        else:
            snap, at = box(0.012, wide * 0.9), at.sub(0, -wide, lean)
            at.paint(snap, wide, color * 0.45, lift=-0.02, bevel=0.01, body=False)
    holes = s.integers(1, 4)
    for i, dx, dy, _ in still(holes) if which else c.parts(holes, 0.14):
        c.sub((i - (holes - 1) / 2) * 0.6 + dx, -0.5 * wide + dy).cut(disc(0.22 * wide), 0.2)


MACHINED = (ring_part, gear, coin, bearing, threaded_rod, key, lens, blade)
