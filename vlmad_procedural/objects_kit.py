"""Drawing kit of the procedural objects: a canvas of albedo and relief that is lit once at the end.

A family paints signed distance shapes, in units of the object (half its long side is 1). Each stroke
changes albedo, relief, gloss and metal; one lighting pass then gives highlights, dark crevices and the
cast shadow, so that all parts of an image agree about where the lamp is.
"""

import copy
import zlib

import numpy as np
from scipy import ndimage

from .fields import smooth
from .objects_shapes import box, disc, ground, ngon, text

FAULTS = (None, "missing_part", "misplaced_part")
FAMILIES, NOUNS = {}, {}


class Canvas:
    """What is painted, in pixels, and the pose of the frame in which the next shape is given.

    `albedo` (S, S, 3), `height` (S, S) in pixels, `gloss`, `metal`, `cover` (S, S) in 0..1; `unit` is
    the number of pixels in one local unit. `style` is fixed for a product, `rng` varies with the image,
    and `chance` chooses the faulty part, so that faulty and faultless images share all other draws.
    """

    def __init__(self, style, rng, chance, size, fault, fill, turn, cut):
        self.style, self.rng, self.chance, self.size, self.fault = style, rng, chance, size, fault
        self.ground = ground(style, rng, size)
        self.albedo = self.ground.copy()
        self.height, self.gloss, self.metal, self.cover = (np.zeros((size, size)) for _ in range(4))
        self.fine, self.coarse = rng.normal(size=(size, size)), smooth(rng, size, 1 / 12)
        self.fine = self.fine * 0.6 + smooth(rng, size, 1 / 90) * 0.6
        azimuth, tilt = style.uniform(0, 2 * np.pi) + rng.normal() * 0.12, style.uniform(0.35, 0.95)
        self.light = np.array([np.cos(azimuth) * tilt, np.sin(azimuth) * tilt, 1.0]) / np.hypot(
            1, tilt
        )
        self.ambient, self.exposure = (
            style.uniform(0.3, 0.65),
            style.uniform(0.85, 1.12) * rng.uniform(0.95, 1.05),
        )
        self.shadow, self.soft = style.uniform(0.15, 0.6), style.uniform(0.01, 0.035) * size
        self.blur, self.noise = (
            style.uniform(0.3, 0.8) * size / 224,
            style.choice([0.004, 0.009, 0.018], p=[0.5, 0.3, 0.2]),
        )
        self.env, self.tone = style.uniform(2, 6, 2), 1 + style.normal(size=3) * 0.025
        scale = style.uniform(*fill) * rng.uniform(0.96, 1.04)
        free = {"free": np.pi, "small": 0.07, "none": 0.012}[turn]
        angle = rng.uniform(-free, free) + (style.integers(4) * np.pi / 2 if turn == "small" else 0)
        away = max(0, 1 - scale) * 0.35 + 0.02 + (0.32 if cut and style.uniform() < 0.2 else 0)
        self.unit = scale * size / 2
        self.turn = self.unit * np.array(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        )
        self.at = (size - 1) / 2 + rng.uniform(-away, away, 2) * size / 2

    def sub(self, x=0.0, y=0.0, angle=0.0, scale=1.0):
        """The same canvas seen from a local frame at (x, y), turned by `angle` rad and scaled."""
        part = copy.copy(self)
        part.at, part.unit = self.turn @ (x, y) + self.at, self.unit * scale
        part.turn = (
            self.turn
            @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            * scale
        )
        return part

    def window(self, r):
        """Slices of the pixels within r of the local origin, and their local x, y."""
        reach = r * self.unit + 2
        low = np.clip(np.floor(self.at - reach), 0, self.size).astype(int)
        high = np.clip(np.ceil(self.at + reach) + 1, 0, self.size).astype(int)
        px, py = (
            np.arange(low[0], high[0]) - self.at[0],
            (np.arange(low[1], high[1]) - self.at[1])[:, None],
        )
        (a, b), (p, q) = self.turn / self.unit**2
        return (slice(low[1], high[1]), slice(low[0], high[0])), px * a + py * p, px * b + py * q

    def paint(
        self,
        shape,
        r,
        color,
        lift=0.0,
        bevel=0.05,
        gloss=0.15,
        metal=0.0,
        grain=0.03,
        mottle=0.02,
        alpha=1.0,
        body=True,
        over=False,
    ):
        """Paint a shape of reach r: its colour, and `lift` units of relief with round shoulders `bevel` wide.

        `over` hides the relief below; `body` makes the shape part of the object (a hole or print is not).
        """
        win, x, y = self.window(r)
        d = shape(x, y)
        if not d.size:
            return
        a = np.clip(0.5 - d * self.unit, 0, 1) * alpha
        color = color(x, y, d) if callable(color) else np.asarray(color)
        color = color * (1 + grain * self.fine[win] + mottle * self.coarse[win])[..., None]
        self.albedo[win] += a[..., None] * (color - self.albedo[win])
        for layer, value in ((self.gloss, gloss), (self.metal, metal)):
            layer[win] += a * (value - layer[win])
        if over:
            self.height[win] += a * (self.height[win].mean() - self.height[win])
        if lift:
            t = np.clip(-d / bevel, 0, 1)
            self.height[win] += lift * self.unit * np.sqrt(t * (2 - t))
        if body:
            self.cover[win] = np.maximum(self.cover[win], a)

    def cut(self, shape, r, deep=None):
        """Cut through to the ground, or down to a dark bottom of colour `deep` (part of the object)."""
        win, x, y = self.window(r)
        d = shape(x, y)
        if not d.size:
            return
        a = np.clip(0.5 - d * self.unit, 0, 1) * self.cover[win]
        bottom = self.ground[win] * 0.8 if deep is None else np.asarray(deep)
        self.albedo[win] += a[..., None] * (bottom - self.albedo[win])
        for layer in (self.height, self.gloss, self.metal) + (
            (self.cover,) if deep is None else ()
        ):
            layer[win] *= 1 - a

    def write(self, string, height, color, weight=0.1, lift=0.0, **kw):
        shape, reach = text(string, height, weight)
        self.paint(shape, reach, color, lift=lift, bevel=weight * height, body=False, **kw)

    def parts(self, n, shift, turn=0.0):
        """(i, dx, dy, angle) of each part to draw; the faulty one is left out, or moved by about `shift`."""
        victim, way, far = (
            self.chance.integers(n),
            self.chance.uniform(0, 2 * np.pi),
            self.chance.uniform(0.8, 1.3),
        )
        spin = turn * far * self.chance.choice([-1, 1])
        moved = (far * shift * np.cos(way), far * shift * np.sin(way), spin)
        return [
            (i, *(moved if i == victim and self.fault == "misplaced_part" else (0, 0, 0)))
            for i in range(n)
            if i != victim or self.fault != "missing_part"
        ]

    def lit(self):
        """Image (S, S, 3) after lighting, shadow, lens blur; sensor noise is added by `family`."""
        z = ndimage.gaussian_filter(self.height, 0.6 * self.size / 224, truncate=2)
        gy, gx = np.gradient(z)
        nz = 1 / np.sqrt(1 + gx * gx + gy * gy)
        nx, ny = -gx * nz, -gy * nz
        lx, ly, lz = self.light
        diffuse = np.clip(nx * lx + ny * ly + nz * lz, 0, None) / lz
        shade = self.ambient + (1 - self.ambient) * np.minimum(diffuse, 1.7)
        mirror = (
            np.sin(self.env[0] * (nx * lx + ny * ly) * 2 + self.env[1] * ny) + 0.35 * self.coarse
        )
        shade = shade + self.metal * (0.28 * mirror)
        low = ndimage.uniform_filter(z, max(3, int(self.size * 0.05)))
        shade *= np.clip(1 - 1.6 * (low - z) / (self.size * 0.05), 0.45, 1.06)
        step = np.round(self.light[:2] * self.soft * 2).astype(int)
        rows, cols = (np.clip(np.arange(self.size) + s, 0, self.size - 1) for s in step[::-1])
        fall = ndimage.uniform_filter(self.cover[np.ix_(rows, cols)], max(3, int(self.soft)))
        fall = ndimage.uniform_filter(fall, max(3, int(self.soft * 1.5)))
        shade *= 1 - self.shadow * fall * (1 - self.cover)
        half = np.array([lx, ly, lz + 1]) / np.sqrt(lx**2 + ly**2 + (lz + 1) ** 2)
        glint = np.clip(nx * half[0] + ny * half[1] + nz * half[2], 0, 1) ** 48
        image = (
            (self.albedo * shade[..., None] + (self.gloss * glint)[..., None])
            * self.exposure
            * self.tone
        )
        return np.clip(ndimage.gaussian_filter(image, (self.blur, self.blur, 0), truncate=2), 0, 1)


def family(*nouns, name=None, fill=(0.55, 0.97), turn="small", cut=True):
    """Register `draw(canvas)` under `name` (else its own) as `f(style, rng, size, fault=None)`.

    The returned function gives image (S, S, 3) float64 in 0..1, support (S, S) bool (pixels of the
    object) and fault mask (S, S) bool: where the faulty image differs from the faultless one drawn with
    the same numbers. Outside the mask both images are equal.

    Raises: ValueError for an unknown fault.
    """

    def register(draw):
        salt = zlib.crc32((name or draw.__name__).encode())

        def make(style, rng, size, fault=None):
            if fault not in FAULTS:
                raise ValueError(f"fault {fault!r} is unknown; use one of {FAULTS}")
            seeds = [
                int(g.integers(2**62)) ^ salt for g in (style, rng)
            ]  # families differ under equal seeds

            def render(fault, attempt=0):
                random = [
                    np.random.default_rng(s) for s in (seeds[0], seeds[1], [seeds[1], attempt])
                ]
                canvas = Canvas(*random, size, fault, fill, turn, cut)
                draw(canvas)
                return canvas.lit(), canvas

            image, canvas = render(None)
            mask, support = np.zeros((size, size), bool), canvas.cover > 0.5
            for attempt in range(5 if fault else 0):  # the chosen part may lie outside the frame
                other, faulty = render(fault, attempt)
                change = ndimage.binary_opening(np.abs(other - image).max(2) > 0.05)
                if change.sum() >= 6e-4 * size**2:
                    mask = ndimage.binary_closing(np.pad(change, 4), iterations=3)[4:-4, 4:-4]
                    full = ndimage.binary_fill_holes(mask)
                    mask = ndimage.binary_dilation(full if full.sum() < 1.6 * mask.sum() else mask)
                    image, support = np.where(mask[..., None], other, image), faulty.cover > 0.5
                    break
            grain = np.random.default_rng([seeds[1], 99]).normal(size=image.shape) * canvas.noise
            return np.clip(image + grain, 0, 1), support, mask

        make.__name__, make.__doc__ = name or draw.__name__, draw.__doc__
        FAMILIES[make.__name__], NOUNS[make.__name__] = make, list(nouns)
        return make

    return register


def screw_head(c, r, color, kind, angle=0.0):
    """A round screw head with a slot (0), cross (1) or hexagon (2) recess."""
    c.paint(disc(r), r, color, lift=0.35 * r, bevel=0.6 * r, gloss=0.5, metal=0.8)
    c = c.sub(angle=angle)
    if kind == 2:
        c.paint(ngon(6, 0.45 * r), r, np.multiply(color, 0.3), lift=-0.3 * r, bevel=0.1 * r)
    for turn in (0, np.pi / 2) if kind == 1 else (0,) if kind == 0 else ():
        c.sub(angle=turn).paint(
            box(0.75 * r, 0.13 * r), r, np.multiply(color, 0.35), lift=-0.2 * r, bevel=0.06 * r
        )
