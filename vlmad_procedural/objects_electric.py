"""Procedural objects of electrical engineering."""

import numpy as np

from .aliases import Colour, Count
from .canvas import Canvas
from .objects_colours import DARK, hsv, metal, tint
from .objects_kit import family, lattice, screw_head
from .objects_shapes import blob, box, disc, frame, stick, words


@family("connector", "pin header", "terminal block", fill=(0.75, 1.3))
def connector(c: Canvas) -> None:
    """Draw a plastic housing with rows of pins or sockets, a latch and screws."""
    s = c.style
    rows, cols, kind = s.integers(1, 4), s.integers(3, 11), s.integers(3)
    color = tint(s, sat=(0, 0.8), value=(0.06, 0.9))
    pin = np.array([(0.85, 0.68, 0.3), (0.75, 0.76, 0.78), (0.7, 0.45, 0.28)][s.integers(3)])
    cell = 1.7 / cols
    high = rows * cell / 2 + 0.08
    c.paint(box(1, high, 0.05), 1.5, color, lift=0.12, bevel=0.04, gloss=0.3)
    if s.uniform() < 0.6:
        latch = box(s.uniform(0.15, 0.5), 0.09, 0.03)
        c.sub(y=-high).paint(latch, 1, color * 0.9, lift=0.08, bevel=0.03, gloss=0.3)
    if s.uniform() < 0.5:
        for side in (-0.94, 0.94):
            screw_head(c.sub(side), 0.055, pin, 1, side)
    if s.uniform() < 0.4:
        white = hsv(0, 0, 0.9 if c.ground.mean() < 0.5 else 0.1)
        c.sub(y=high + 0.14).write(words(s, 6), 0.12, white)
    deep = color * 0.25 if s.uniform() < 0.7 else DARK
    spots = lattice(cols, rows, cell, cell)
    hole = box(0.38 * cell, 0.38 * cell, 0.05 * cell) if kind < 2 else disc(0.4 * cell)
    for x, y in spots:
        c.sub(x, y).paint(hole, 0.6 * cell, deep, lift=-0.08, bevel=0.03, gloss=0.05)
    for i, dx, dy, a in c.parts(len(spots), cell * 0.3, 0.8):
        at = c.sub(spots[i][0] + dx, spots[i][1] + dy, a)
        if kind == 0:
            peg = box(0.17 * cell, 0.17 * cell, 0.04 * cell)
            at.paint(peg, 0.3 * cell, pin, 0.1, 0.05, 0.6, 0.8)
        elif kind == 1:
            tab = box(0.26 * cell, 0.1 * cell, 0.03 * cell)
            at.paint(tab, 0.3 * cell, pin, 0.06, 0.04, 0.6, 0.8)
        else:
            screw_head(at, 0.3 * cell, pin, 0, 0.6)


@family("cable", "cable cross section", "wire", turn="free", fill=(0.75, 1.15))
def cable_section(c: Canvas) -> None:
    """Draw a cut cable: coloured cores with strands, filler and sheath."""
    s, r = c.style, c.rng
    n = s.integers(2, 8)
    sheath, filler = tint(s, sat=(0, 0.7), value=(0.08, 0.85)), hsv(0, 0, s.uniform(0.15, 0.8))
    wave = r.normal(size=4) * 0.008
    outside, inside = blob(wave, r.uniform(0, 7, 4)), blob(wave, r.uniform(0, 7, 4), 0.84)
    c.paint(outside, 1.1, sheath, lift=0.1, bevel=0.03, gloss=0.2, grain=0.06, mottle=0.06)
    c.paint(inside, 1, filler, lift=-0.06, bevel=0.04, gloss=0.05, grain=0.12, mottle=0.1)
    middle = n > 5
    around = n - middle
    half = np.sin(np.pi / around)
    size = min(0.27 if middle else 1, 0.84 * half / (1 + half), 0.42) * 0.97
    far, copper = 0.83 - size, np.array([(0.78, 0.45, 0.28), (0.75, 0.72, 0.68)][s.integers(2)])
    colors = [tint(s, sat=(0.3, 0.95), value=(0.25, 0.95)) for _ in range(n)]
    core, pitch = size * s.uniform(0.6, 0.82), size * s.uniform(0.14, 0.34)
    turns, low = r.uniform(0, 7, n), s.uniform(0, 7)

    def strands(x, y):
        near = []
        for a, b in ((0, 0), (pitch / 2, pitch * 0.866)):
            u = x - a - pitch * np.round((x - a) / pitch)
            v = y - b - pitch * 1.732 * np.round((y - b) / pitch / 1.732)
            near.append(np.hypot(u, v))
        return np.maximum(np.minimum(*near) - pitch * 0.46, np.hypot(x, y) - core)

    for i, dx, dy, _ in c.parts(n, size * 0.45, 0.3):
        out, turn = 0 if middle and i == n - 1 else far, low + i * 2 * np.pi / around
        at = c.sub(out * np.cos(turn) + dx, out * np.sin(turn) + dy, turns[i])
        at.paint(disc(size), size, colors[i], lift=0.05, bevel=0.03, gloss=0.2, over=True)
        at.paint(disc(core), core, copper * 0.3, lift=-0.03, bevel=0.02)
        at.paint(strands, core, copper, lift=0.05, bevel=pitch * 0.4, gloss=0.5, metal=0.6)


def component(
    c: Canvas, kind: Count, w: float, h: float, color: Colour, label: str, lead: Colour
) -> None:
    """Paint a part of a board: chip with legs (0), resistor (1), can (2) or connector (3)."""
    if kind == 0:
        for k in range(5):
            for side in (-1, 1):
                leg = c.sub((k - 2) * w * 0.4, side * h * 1.1)
                leg.paint(box(w * 0.09, h * 0.3), w, lead, 0.03, 0.02, 0.5, 0.8)
        c.paint(box(w, h, 0.01), 1.5 * w, DARK, lift=0.06, bevel=0.02, gloss=0.25, over=True)
        c.sub(-w * 0.8, h * 0.7).paint(disc(0.1 * h), h, (0.2, 0.2, 0.2), lift=-0.02, bevel=0.02)
        c.write(label, h * 0.45, (0.6, 0.6, 0.6))
    elif kind == 1:
        ends = box(w, h * 0.7, 0.01)
        c.paint(ends, 1.5 * w, lead, lift=0.04, bevel=0.02, gloss=0.5, metal=0.6, over=True)
        c.paint(box(w * 0.65, h * 0.7, 0.01), w * 1.2, color, lift=0.01, bevel=0.02, gloss=0.2)
        c.write(label[:2], h * 0.6, (0.85, 0.85, 0.85))
    elif kind == 2:
        c.paint(disc(h * 1.2), h * 1.2, color, lift=0.12, bevel=0.03, gloss=0.4, over=True)
        c.paint(disc(h), h, lead, lift=0.02, bevel=0.02, gloss=0.5, metal=0.6)
        c.paint(lambda x, y: np.maximum(np.hypot(x, y) - h * 0.98, 0.4 * h - x), h, color * 0.5)
    else:
        white = hsv(0, 0, 0.85)
        c.paint(box(w, h, 0.02), 1.5 * w, white, lift=0.1, bevel=0.02, gloss=0.2, over=True)
        for k in range(4):
            hole = c.sub((k - 1.5) * w * 0.45)
            hole.paint(box(w * 0.14, h * 0.5), w, DARK, lift=-0.06, bevel=0.02)


@family("circuit board", "printed circuit board", "electronic module", fill=(0.8, 1.6))
def circuit_board(c: Canvas) -> None:
    """Draw a board with traces, vias, pads, components and silk screen."""
    s = c.style
    mask = [
        hsv(0.38, 0.75, 0.32),
        hsv(0.36, 0.7, 0.45),
        hsv(0.62, 0.7, 0.4),
        hsv(0.0, 0.75, 0.5),
        hsv(0, 0, 0.1),
        hsv(0.13, 0.5, 0.6),
    ][s.integers(6)]
    lead, gold = np.array([0.75, 0.76, 0.77]), np.array([0.83, 0.68, 0.35])
    long = s.uniform(0.6, 1)
    c.paint(box(1, long, 0.04), 1.45, mask, lift=0.05, bevel=0.02, gloss=0.12, mottle=0.04)
    for _ in range(s.integers(5, 13)):
        x, y, w = s.uniform(-0.9, 0.9), s.uniform(-0.9, 0.9) * long, s.uniform(0.008, 0.025)
        dx, dy, diagonal = s.uniform(-0.6, 0.6), s.uniform(-0.5, 0.5), s.uniform(0.05, 0.25)
        ends = np.clip(x + dx, -0.92, 0.92), np.clip(y + dy, -0.92 * long, 0.92 * long)
        knee_x = np.clip(x + diagonal * np.sign(dx), -0.92, 0.92)
        knee = knee_x, np.clip(y + diagonal, -0.92 * long, 0.92 * long)
        for a, b in (((x, y), knee), (knee, (ends[0], knee[1])), ((ends[0], knee[1]), ends)):
            mid = c.sub((a[0] + b[0]) / 2, (a[1] + b[1]) / 2)
            v = (b[0] - a[0]) / 2, (b[1] - a[1]) / 2
            mid.paint(stick(-v[0], -v[1], *v, w), np.hypot(*v) + w, mask * 1.3, 0.004, 0.01)
        for a in ((x, y), ends):
            c.sub(*a).paint(disc(0.03), 0.03, gold, 0, gloss=0.4, metal=0.4)
            c.sub(*a).paint(disc(0.014), 0.02, DARK)
    for x in (-0.92, 0.92):
        for y in (-0.92 * long, 0.92 * long):
            c.sub(x, y).paint(disc(0.06), 0.06, gold, gloss=0.4, metal=0.5)
            c.sub(x, y).cut(disc(0.04), 0.04)
    nx = s.integers(2, 6)
    ny = max(1, int(nx * long + 0.3))
    cell = (1.7 / nx, 1.75 * long / ny)
    todo = []
    for x, y in lattice(nx, ny, *cell):
        kind, label, color = s.integers(4), words(s, 4), tint(s, sat=(0, 0.8), value=(0.1, 0.6))
        w = cell[0] * s.uniform(0.24, 0.36) * (0.6 if kind == 1 else 1)
        h = min(w * s.uniform(0.35, 0.8), cell[1] * 0.26)
        todo.append((x, y, kind, w, h, color, label))
        c.sub(x, y).paint(frame(w * 1.15, h * 1.45, 0.006), 2 * w, (0.9, 0.9, 0.88))
        c.sub(x - w, y + h * 1.8).write(label[:3], 0.07, (0.9, 0.9, 0.88))
        for side in (-1, 1):
            pad = c.sub(x + side * w * 0.8, y)
            pad.paint(box(w * 0.15, h * 0.6), w, lead, 0.01, 0.01, 0.5, 0.6)
    for i, dx, dy, a in c.parts(len(todo), 0.1, 0.35):
        x, y, kind, w, h, color, label = todo[i]
        component(c.sub(x + dx * 0.6, y + dy * 0.6, a), kind, w, h, color, label, lead)


@family("wall plug", "socket", "power outlet", turn="small", fill=(0.6, 1.2))
def socket(c: Canvas) -> None:
    """Draw a socket plate: recess, contact holes, screws and clips."""
    s = c.style
    pale = s.uniform() < 0.7
    color = tint(s, sat=(0, 0.15), value=(0.75, 0.95)) if pale else tint(s, value=(0.1, 0.6))
    n, deep, far = s.choice([2, 2, 3, 5]), s.uniform(0.6, 0.8), s.uniform(0.25, 0.42)
    kind, steel = s.integers(2), metal(s)
    plate = box(1, 1, s.uniform(0.05, 0.4)) if s.uniform() < 0.7 else disc(1)
    c.paint(plate, 1.45, color, 0.1, 0.1, 0.35)
    recess = disc(deep) if s.uniform() < 0.7 else box(deep, deep * 0.7, 0.2)
    c.paint(recess, 1, color * 0.93, -0.1, 0.06, 0.3)
    screws, tilt = s.integers(1, 3), s.uniform(0, 3)
    turns = [i * 2 * np.pi / n for i in range(n)]
    spots = [("hole", far * np.cos(turn), far * np.sin(turn)) for turn in turns]
    spots += [("clip", 0, side * deep * 0.85) for side in (-1, 1)] if s.uniform() < 0.5 else []
    spots += [("screw", 0, 0)] if screws == 1 else [("screw", -0.82, 0), ("screw", 0.82, 0)]
    for i, dx, dy, a in c.parts(len(spots), 0.14, 0.6):
        part, x, y = spots[i]
        at = c.sub(x + dx, y + dy, a)
        if part == "screw":
            screw_head(at, 0.09, steel, int(tilt), tilt)
        elif part == "clip":
            at.paint(box(0.13, 0.07, 0.02), 0.2, steel, 0.06, 0.03, 0.4, 1)
        else:
            at.paint(disc(0.11) if kind else box(0.05, 0.13, 0.02), 0.2, color * 0.8, -0.03, 0.03)
            at.cut(disc(0.08) if kind else box(0.035, 0.11, 0.02), 0.2, (0.04, 0.04, 0.04))


ELECTRIC = (connector, cable_section, circuit_board, socket)
