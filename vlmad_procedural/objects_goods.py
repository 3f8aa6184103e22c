"""Procedural consumer goods: baked, sewn, packed, moulded and grown."""

import numpy as np

from .canvas import Canvas, still
from .objects_colours import hsv, metal, tint
from .objects_kit import family, lattice
from .objects_shapes import blob, box, disc, ellipse, ngon, ring, stick, words


@family("cookie", "biscuit", "cracker", turn="free", fill=(0.55, 1.05))
def cookie(c: Canvas) -> None:
    """Draw a biscuit with toasted rim and chips, or a cracker with docking holes."""
    s, r = c.style, c.rng
    dough = hsv(s.uniform(0.07, 0.115), s.uniform(0.4, 0.68), s.uniform(0.45, 0.85))
    square, wavy = s.uniform() < 0.35, s.uniform(0.004, 0.03)
    aspect, thick, rough = s.uniform(0.6, 1), s.uniform(0.08, 0.2), s.uniform(0.03, 0.15)
    if square:
        body = box(1, aspect, s.uniform(0.04, 0.3))
    else:
        body = blob(r.normal(size=7) * wavy, r.uniform(0, 7, 7), 0.95, s.choice([1, 1, 1.2]))
    scallop, toast = s.choice([0, 0.012, 0.022]), s.uniform(0.2, 0.5)

    waves = s.integers(16, 40)

    def outline(x, y):
        if square:
            return body(x, y) + scallop * (np.cos(x * waves) + np.cos(y * waves))
        return body(x, y) + scallop * np.cos(np.arctan2(y, x) * waves)

    def baked(x, y, d):
        return dough * (1 - toast * np.exp(d / 0.1))[..., None]

    bevel = 0.12 + 0.3 * s.uniform()
    c.paint(outline, 1.25, baked, lift=thick, bevel=bevel, gloss=0.05, mottle=rough, grain=0.08)
    bumps = c.rng.normal(size=c.coarse.shape)
    c.height += c.cover * rough * (2 * c.coarse + bumps * 0.5 + c.fine) * c.size / 224
    if s.uniform() < 0.3:
        c.paint(ring(0.5, 0.56), 1, dough * 0.9, lift=-0.03, bevel=0.03, mottle=rough)
    kind, n = s.integers(3), s.integers(6, 24)
    if kind == 0:
        k = s.integers(3, 6)
        for i, dx, dy, _ in c.parts(k * k, 0.1):
            sides = 1.5, 1.5 * aspect if square else 1.5
            x, y = (np.array([i % k, i // k]) / (k - 1) - 0.5) * sides
            if square or np.hypot(x, y) < 0.8:
                c.sub(x + dx, y + dy).paint(disc(0.045), 0.05, dough * 0.35, lift=-0.06, gloss=0)
        return
    chip = hsv(0.05, 0.6, s.uniform(0.12, 0.3)) if s.uniform() < 0.7 else tint(s, value=(0.5, 0.95))
    spots, turns = r.uniform(-0.62, 0.62, (n, 2)) * (1, aspect), r.uniform(0, 7, n)
    sizes = r.uniform(0.06, 0.14, n)
    bite = c.chance.uniform(0, 2 * np.pi)
    turn = c.chance.uniform(0, 2 * np.pi)
    for i in range(n):
        spot = spots[i]
        if i == 0 and c.fault == "misplaced_part":  # a chip that hangs over the rim
            spot = np.array([np.cos(turn), np.sin(turn) * (aspect if square else 1)]) * 0.97
            sizes[i] = 0.14
        tilt = box(sizes[i], sizes[i] * 0.7, 0.05) if kind == 1 else disc(sizes[i])
        at = c.sub(spot[0], spot[1], turns[i])
        at.paint(tilt, 0.25, chip, lift=0.08, bevel=0.08, gloss=0.25, over=True)
    if c.fault == "missing_part":
        reach = 0.9 * (aspect if square else 1)
        at = c.sub(reach * np.cos(bite), reach * np.sin(bite))
        at.cut(blob([0.1, 0.08, 0.1], [1, 2, bite], 0.25), 0.4)


@family("button", "cloth button", "shirt button", turn="free")
def button(c: Canvas) -> None:
    """Draw a sewing button with 2 to 4 holes, rim and dish."""
    s = c.style
    color, n = tint(s, sat=(0.05, 0.9), value=(0.12, 0.95)), s.choice([2, 4, 4, 3])
    shine, dish = s.uniform(0.1, 0.6), s.uniform(0.4, 0.75)
    body = disc(1) if s.uniform() < 0.75 else ngon(s.choice([6, 8]), 0.95)
    swirl = s.uniform(0.02, 0.16)
    c.paint(body, 1.1, color, lift=0.12, bevel=s.uniform(0.08, 0.3), gloss=shine, mottle=swirl)
    inner, bevel = color * s.uniform(0.85, 1.08), s.uniform(0.04, dish)
    c.paint(disc(dish), 1, inner, lift=-0.06, bevel=bevel, gloss=shine, mottle=swirl)
    if s.uniform() < 0.4:
        c.paint(ring(0.8, 0.85), 1, color * 0.8, lift=-0.03, bevel=0.02, gloss=shine)
    far, hole = s.uniform(0.16, 0.3), s.uniform(0.07, 0.12)
    under = None if s.uniform() < 0.6 else color * 0.2
    for i, dx, dy, _ in c.parts(n, 0.14):
        at = c.sub(angle=i * 2 * np.pi / n).sub(far + dx, dy)
        at.paint(disc(hole * 1.3), 0.2, color * 0.8, lift=-0.03, bevel=0.04)
        at.cut(disc(hole), 0.2, under)


@family("toy brick", "building block", "tile with studs", turn="small", fill=(0.6, 1.2))
def brick(c: Canvas) -> None:
    """Draw a plastic brick with a grid of studs, embossed letters on each."""
    s = c.style
    nx, ny = s.integers(2, 7), s.integers(1, 5)
    nx, ny = max(nx, ny), min(nx, ny)
    color, logo = tint(s, sat=(0.1, 0.95), value=(0.25, 0.95)), words(s, s.integers(0, 3))
    cell = 1 / nx
    c.paint(box(1, ny * cell, 0.03), 1.5, color, lift=0.1, bevel=0.03, gloss=0.5)
    if s.uniform() < 0.4:
        top = box(0.96, ny * cell - 0.04, 0.03)
        c.paint(top, 1.5, color * 0.95, lift=-0.02, bevel=0.02, gloss=0.5)
    size, high = cell * s.uniform(0.45, 0.68), cell * s.uniform(0.2, 0.5)
    for i, dx, dy, a in c.parts(nx * ny, cell * 0.5, 0.6):
        at = c.sub((2 * (i % nx) + 1 - nx) * cell + dx, (2 * (i // nx) + 1 - ny) * cell + dy, a)
        at.paint(disc(size), size, color, lift=high, bevel=size * 0.3, gloss=0.5)
        if logo:
            at.write(logo, size * 0.6, color, 0.1, 0.02, gloss=0.5)


@family("pill blister", "tablet pack", "blister pack", fill=(0.75, 1.25))
def pill_blister(c: Canvas) -> None:
    """Draw foil with domed pockets, a tablet in each."""
    s = c.style
    nx, ny, oval = s.integers(2, 6), s.integers(2, 5), s.uniform() < 0.4
    foil = hsv(s.uniform(), s.choice([0.02, 0.3]), s.uniform(0.55, 0.85))
    pill, cell = tint(s, sat=(0, 0.6), value=(0.6, 0.97)), 1.84 / max(nx, ny)
    shiny, print_ = s.uniform(0.2, 1), s.uniform() < 0.4
    card = box(nx * cell / 2 + 0.08, ny * cell / 2 + 0.08, 0.06)
    c.paint(card, 1.5, foil, lift=0.03, bevel=0.02, gloss=0.4, metal=shiny, mottle=0.06)
    size, label = cell * s.uniform(0.28, 0.36), words(s, 2)
    dome = ellipse(size * 1.28, size * (0.9 if oval else 1.28))
    body = ellipse(size, size * 0.6) if oval else disc(size)
    spots = lattice(nx, ny, cell, cell)
    for x, y in spots:
        c.sub(x, y).paint(dome, size * 1.3, foil * 0.85, -0.02, 0.03, gloss=0.5, metal=shiny * 0.6)
    for i, dx, dy, a in c.parts(nx * ny, size * 0.6, 0.6):
        at = c.sub(spots[i][0] + dx, spots[i][1] + dy, a)
        at.paint(body, size, pill, lift=0.07, bevel=size * 0.5, gloss=0.15)
        if print_:
            at.write(label, size * 0.45, pill * 0.6)
        elif not oval:
            at.paint(box(size * 0.8, 0.012), size, pill * 0.75, lift=-0.02, bevel=0.012)
    for x, y in spots:
        c.sub(x, y).paint(dome, size * 1.3, (1, 1, 1), lift=0.03, bevel=0.05, gloss=0.6, alpha=0.08)


@family("tablet", "pill", "lozenge", fill=(0.8, 1.1), turn="free")
def tablets(c: Canvas) -> None:
    """Draw a few loose tablets with a score or a print; the print may be absent or shifted."""
    s, r = c.style, c.rng
    n, color = s.choice([1, 1, 3, 5, 8]), tint(s, sat=(0, 0.7), value=(0.55, 0.97))
    label = words(s, s.integers(1, 4))
    size, kind, mode = 0.8 / np.sqrt(n + 0.3 * (n > 1)), s.integers(3), s.integers(3)
    body = [disc(size), ellipse(size, size * 0.55), box(size, size * 0.6, size * 0.35)][kind]
    speckle, ink = s.choice([0.01, 0.1]), color * s.uniform(0.3, 0.75)
    turns, low = r.uniform(0, 7, n), r.uniform(0, 7)
    far = size * 1.3 * np.sqrt(np.arange(n) + (0.3 if n > 1 else 0))
    golden = np.pi * (3 - np.sqrt(5))
    spots = [c.sub(angle=low + i * golden).sub(far[i], 0, turns[i]) for i in range(n)]
    for at in spots:
        at.paint(body, size * 1.2, color, 0.3 * size, 0.5 * size, 0.25, grain=speckle)
    for i, dx, dy, a in c.parts(n, size * 0.3, 0.9) if c.fault else still(n):
        at = spots[i].sub(dx, dy, a)
        if mode:
            at.write(label, size * 0.5, ink, 0.1, -0.03 if mode == 1 else 0)
        else:
            at.paint(box(size * 0.08, size * 0.5), size, ink, lift=-0.05, bevel=size * 0.08)


@family("toothbrush", "brush head", "brush", fill=(0.7, 1.2))
def toothbrush(c: Canvas) -> None:
    """Draw a brush head with rows of tufts of bristles."""
    s, r = c.style, c.rng
    nx, ny = s.integers(6, 12), s.integers(3, 5)
    color, wide = tint(s, value=(0.3, 0.95)), ny * 0.8 / nx
    handle = stick(0, 0, 1.5, 0, wide * 0.5)
    c.sub(0.9).paint(handle, 3, color, lift=0.15, bevel=wide * 0.5, gloss=0.4)
    c.paint(box(1, wide + 0.1, wide), 1.5, color, lift=0.08, bevel=0.08, gloss=0.4)
    inks = [tint(s, sat=(0.01, top), value=(0.65, 0.98)) for top in (0.1, 0.4, 0.8)]
    size, jitter = 0.8 / nx, r.normal(size=(nx * ny, 2)) * 0.012
    lean, pitch = r.normal(size=(nx * ny, 2)) * 0.02, size * 0.38

    def bristles(x, y):
        u, v = x - pitch * np.round(x / pitch), y - pitch * np.round(y / pitch)
        return np.maximum(np.hypot(u, v) - 0.4 * pitch, np.hypot(x, y) - size * 0.95)

    for i, dx, dy, a in c.parts(nx * ny, size * 0.9, 0.5):
        x, y = (i % nx - (nx - 1) / 2) * 1.7 / nx, (i // nx - (ny - 1) / 2) * 1.7 / nx
        at = c.sub(x + jitter[i, 0] + dx, y + jitter[i, 1] + dy, a)
        ink = inks[(i % nx in (0, nx - 1)) + (i // nx % 2)]
        at.paint(disc(size), size, ink * 0.55, lift=0.05, bevel=size, gloss=0.1)
        at.sub(lean[i, 0], lean[i, 1]).paint(
            bristles, size, ink, 0.05, pitch * 0.4, gloss=0.2, grain=0.1
        )


@family("comb", "rake", "heat sink", fill=(0.7, 1.1))
def comb(c: Canvas) -> None:
    """Draw a back with a row of teeth."""
    s = c.style
    n, color, back = s.integers(9, 22), tint(s, sat=(0, 0.9)), s.uniform(0.15, 0.4)
    shine = dict(gloss=0.4, metal=s.choice([0, 0, 0.9]))
    long, pitch = s.uniform(0.6, 1.3), 1.9 / n
    bar = box(1, back, s.uniform(0.02, 0.2))
    c.sub(y=-0.6).paint(bar, 1.4, color, lift=0.1, bevel=0.06, **shine)
    if s.uniform() < 0.5:
        c.sub(y=-0.6).write(words(s, 7), back * 0.5, color * 0.6, 0.1, -0.02)
    low, half = back - 0.62, pitch * s.uniform(0.22, 0.36)
    for i, dx, dy, a in c.parts(n, pitch * 0.4, 0.25):
        at = c.sub((i - (n - 1) / 2) * pitch + dx, low + dy / 4, a)
        at.paint(stick(0, 0, 0, long, half), long + half, color, lift=0.08, bevel=half, **shine)


@family("nut shell", "hazelnut", "almond", "seed", name="nutshell", turn="free", fill=(0.6, 1.05))
def nutshell(c: Canvas) -> None:
    """Draw an organic ellipse with fibres along its meridians and a paler cap."""
    s, r = c.style, c.rng
    shell = hsv(s.uniform(0.04, 0.1), s.uniform(0.4, 0.75), s.uniform(0.25, 0.7))
    aspect, cap = s.uniform(1.05, 1.6), s.uniform(-0.7, -0.45)
    waves = np.append(0.05 * s.normal(), r.normal(size=4) * 0.012)
    body = blob(waves, r.uniform(0, 7, 5) * (0, 1, 1, 1, 1), 0.95, aspect)
    knots, rough, pits = np.linspace(-2.2, 2.2, 70), s.uniform(0.05, 0.2), s.uniform(0, 0.5)
    table = r.normal(size=70)

    def fibre(x, y, d=0):
        meridian = y * aspect / np.sqrt(np.maximum(1 - x * x * 0.95, 0.05))
        return np.interp(meridian * 1.2 + 0.03 * np.sin(9 * x), knots, table)

    def husk(x, y, d):
        return shell * (1 + rough * fibre(x, y))[..., None]

    c.paint(body, 1.2, husk, lift=0.55, bevel=0.75, gloss=0.15, mottle=0.1, grain=0.08)
    win, x, y = c.window(1.3)
    bumps = c.cover[win] * (rough * 8 * fibre(x, y) + pits * c.coarse[win] * 4)
    c.height[win] += bumps * c.size / 224
    size = s.uniform(0.3, 0.5)
    patch = blob([0.1, 0.05, 0.04], [table[0], 1, 2], size, 1 / 1.6)
    for _, dx, dy, _ in c.parts(1, 0.35):

        def top(x, y, dx=dx, dy=dy):
            return np.maximum(patch(x - cap - dx, y - dy), body(x, y))

        pale = shell * 0.6 + 0.25
        c.paint(top, 1.2, pale, lift=0.02, bevel=0.1, gloss=0.05, mottle=0.12, grain=0.08)
    if s.uniform() < 0.4:
        scar = ellipse(0.2, 0.04)
        c.sub(0.5, 0.1).paint(scar, 0.3, shell * 0.5, lift=-0.03, bevel=0.04, body=False)


@family("zipper", "zip fastener", "zip", turn="none", fill=(0.9, 1.5))
def zipper(c: Canvas) -> None:
    """Draw two woven tapes with interlocking teeth and sometimes the slider."""
    s, r = c.style, c.rng
    c = c.sub(angle=s.integers(2) * np.pi / 2)
    cloth = tint(s, sat=(0, 0.8), value=(0.06, 0.8))
    tooth = metal(s) if s.uniform() < 0.6 else tint(s)
    shine, weave = dict(gloss=0.4, metal=s.choice([0, 0.9])), s.uniform(0.02, 0.05)
    n, size = s.integers(9, 18), s.uniform(0.09, 0.16)
    shift, jitter = r.uniform(-0.5, 0.5), r.normal(size=(2 * n, 2)) * 0.006

    def tape(x, y, d):
        threads = 0.16 * np.sin(x / weave * 3) * np.sin(y / weave * 3 + x / weave)
        return cloth * (1 + threads)[..., None]

    for side in (-1, 1):
        band = c.sub(side * 0.43)
        band.paint(box(0.415, 3), 3.1, tape, 0.05, 0.04, gloss=0.03, grain=0.12, mottle=0.06)
        c.sub(side * 0.62).paint(box(0.012, 3), 3.1, cloth * 0.7, lift=-0.02, bevel=0.02)
    pitch = 2.4 / n
    for i, dx, dy, a in c.parts(2 * n, pitch * 0.5, 0.7):
        side = 1 if i % 2 else -1
        x = side * size * 0.55 + jitter[i, 0] + dx / 2
        at = c.sub(x, (i / 2 - n / 2 + shift) * pitch + jitter[i, 1] + dy / 2, a)
        body = box(size, pitch * 0.24, pitch * 0.1)
        at.paint(body, 2 * size, tooth, lift=0.08, bevel=pitch * 0.2, **shine)
        knob = at.sub(-side * size * 0.75)
        knob.paint(disc(pitch * 0.3), size, tooth, lift=0.02, bevel=pitch * 0.3, **shine)
    if s.uniform() < 0.25:
        at = c.sub(0, s.uniform(-0.8, 0.8))
        at.paint(box(0.22, 0.26, 0.1), 0.5, tooth, lift=0.15, bevel=0.08, over=True, **shine)
        tab = box(0.1, 0.32, 0.06)
        at.sub(0, 0.4).paint(tab, 0.5, tooth, lift=0.06, bevel=0.04, over=True, **shine)
        at.sub(0, 0.55).cut(box(0.05, 0.08, 0.03), 0.2, cloth)


@family("carton", "package", "box", "label", name="label_box", fill=(0.7, 1.3))
def label_box(c: Canvas) -> None:
    """Draw a carton with tape, printed label, logo, lines of text and a barcode."""
    s = c.style
    if s.uniform() < 0.6:
        card = hsv(0.09, s.uniform(0.3, 0.5), s.uniform(0.5, 0.75))
    else:
        card = tint(s, value=(0.3, 0.95))
    long = s.uniform(0.6, 1)
    c.paint(box(1, long, 0.02), 1.45, card, 0.15, 0.03, gloss=0.06, grain=0.06, mottle=0.05)
    if s.uniform() < 0.5:
        c.paint(box(1, 0.1), 1.2, card * 0.8 + 0.12, gloss=0.4, alpha=0.6)
    paper = hsv(s.uniform(), s.choice([0.02, 0.03, 0.2]), 0.93)
    ink = tint(s, sat=(0.5, 0.9), value=(0.3, 0.7))
    bars, titles = s.uniform(0.2, 1, 28), [words(s, s.integers(4, 8)) for _ in range(3)]
    left, low = s.uniform(-0.3, 0.3), s.uniform(-0.15, 0.15) * long
    group, dark = c.chance.integers(3), (0.08, 0.08, 0.09)
    edges = np.cumsum(bars)

    def barcode(x, y):
        white = np.searchsorted(edges, (x + 0.4) / 0.8 * edges[-1]) % 2
        return np.maximum(np.abs(y) - 0.11, np.where(white, 0.02, -0.02) + 9 * (np.abs(x) > 0.4))

    for _, dx, dy, a in c.parts(1, 0.15, 0.35) if group == 0 else still(1):
        at = c.sub(left + dx, low + dy, a)
        at.paint(box(0.55, 0.4, 0.02), 0.7, paper, lift=0.01, bevel=0.01, gloss=0.1, grain=0.015)
        at.sub(0, -0.31).paint(box(0.54, 0.08), 0.6, ink)
        at.sub(0, -0.31).write(titles[0], 0.1, paper)
        for k, line in enumerate(titles[1:]):
            at.sub(-0.15, -0.14 + 0.14 * k).write(line, 0.08, dark)
        for _, ex, ey, turn in c.parts(1, 0.12, 0.4) if group == 1 else still(1):
            at.sub(0.05 + ex, 0.23 + ey, turn).paint(barcode, 0.45, dark)
        logo = blob([0.12, 0.1], [left, low], 0.1)
        for _, ex, ey, turn in c.parts(1, 0.1, 0.5) if group == 2 else still(1):
            at.sub(0.36 + ex, -0.07 + ey, turn).paint(logo, 0.15, ink)


GOODS = (
    cookie,
    button,
    brick,
    pill_blister,
    tablets,
    toothbrush,
    comb,
    nutshell,
    zipper,
    label_box,
)
