"""The canvas of the procedural objects: albedo and relief that are lit once at the end.

A family paints signed distance shapes, in units of the object (half its long side is 1). Each
stroke changes albedo, relief, gloss and metal. One lighting pass then gives highlights, dark
crevices and the cast shadow, so that all parts of an image agree about where the lamp is.
"""

import copy
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from .aliases import Colour, Count, Field, Image, Range, Rng, Shade, Shape
from .noise import smooth
from .objects_colours import ground
from .objects_shapes import text

Turn = Literal["free", "small", "none"]
Part = tuple[int, float, float, float]  # number, shift along x and y, turn


def _turning(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def still(n: Count) -> list[Part]:
    """Return n parts that all lie where they should, in the form of :meth:`Canvas.parts`."""
    return [(i, 0, 0, 0) for i in range(n)]


class Canvas:
    """What is painted, in pixels, and the pose of the frame in which the next shape is given.

    Parameters
    ----------
    style, rng, chance : ``style`` is fixed for a product, ``rng`` varies with the image, and
        ``chance`` chooses the part with the defect, so that good and defective images share all
        other draws
    size : side S in pixels
    fault : "missing_part", "misplaced_part" or None
    fill : range of the object's long side as a share of the image side
    turn : how far the object turns: "free", "small" or "none"
    cut : whether the object may lie partly outside the image

    Attributes
    ----------
    albedo : (S, S, 3)
    height : (S, S) relief in pixels
    gloss, metal, cover : (S, S) in 0..1
    unit : pixels in one local unit
    """

    def __init__(
        self,
        style: Rng,
        rng: Rng,
        chance: Rng,
        size: int,
        fault: str | None,
        fill: Range,
        turn: Turn,
        cut: bool,
    ) -> None:
        self.style, self.rng, self.chance, self.size, self.fault = style, rng, chance, size, fault
        self.ground = ground(style, rng, size)
        self.albedo = self.ground.copy()
        self.height, self.gloss, self.metal, self.cover = (np.zeros((size, size)) for _ in range(4))
        fine, self.coarse = rng.normal(size=(size, size)), smooth(rng, size, 1 / 12)
        self.fine = fine * 0.6 + smooth(rng, size, 1 / 90) * 0.6
        azimuth, tilt = style.uniform(0, 2 * np.pi) + rng.normal() * 0.12, style.uniform(0.35, 0.95)
        lamp = np.array([np.cos(azimuth) * tilt, np.sin(azimuth) * tilt, 1.0])
        self.light = lamp / np.hypot(1, tilt)
        self.ambient = style.uniform(0.3, 0.65)
        self.exposure = style.uniform(0.85, 1.12) * rng.uniform(0.95, 1.05)
        self.shadow, self.soft = style.uniform(0.15, 0.6), style.uniform(0.01, 0.035) * size
        self.blur = style.uniform(0.3, 0.8) * size / 224
        self.noise = style.choice([0.004, 0.009, 0.018], p=[0.5, 0.3, 0.2])
        self.env, self.tone = style.uniform(2, 6, 2), 1 + style.normal(size=3) * 0.025
        scale = style.uniform(*fill) * rng.uniform(0.96, 1.04)
        free = {"free": np.pi, "small": 0.07, "none": 0.012}[turn]
        angle = rng.uniform(-free, free) + (style.integers(4) * np.pi / 2 if turn == "small" else 0)
        away = max(0, 1 - scale) * 0.35 + 0.02 + (0.32 if cut and style.uniform() < 0.2 else 0)
        self.unit = scale * size / 2
        self.turn = self.unit * _turning(angle)
        self.at = (size - 1) / 2 + rng.uniform(-away, away, 2) * size / 2

    def sub(
        self, x: float = 0.0, y: float = 0.0, angle: float = 0.0, scale: float = 1.0
    ) -> "Canvas":
        """Return the same canvas seen from a frame at (x, y), turned by ``angle`` rad, scaled."""
        part = copy.copy(self)
        part.at, part.unit = self.turn @ (x, y) + self.at, self.unit * scale
        part.turn = self.turn @ _turning(angle) * scale
        return part

    def window(self, r: float) -> tuple[tuple[slice, slice], Field, Field]:
        """Return slices of the pixels within r of the local origin, and their local x, y."""
        reach = r * self.unit + 2
        left, top = np.clip(np.floor(self.at - reach), 0, self.size).astype(int)
        right, bottom = np.clip(np.ceil(self.at + reach) + 1, 0, self.size).astype(int)
        px = np.arange(left, right) - self.at[0]
        py = (np.arange(top, bottom) - self.at[1])[:, None]
        (a, b), (p, q) = self.turn / self.unit**2
        return (slice(top, bottom), slice(left, right)), px * a + py * p, px * b + py * q

    def paint(
        self,
        shape: Shape,
        r: float,
        color: Shade | Colour | tuple[float, float, float],
        lift: float = 0.0,
        bevel: float = 0.05,
        gloss: float = 0.15,
        metal: float = 0.0,
        grain: float = 0.03,
        mottle: float = 0.02,
        alpha: float = 1.0,
        body: bool = True,
        over: bool = False,
    ) -> None:
        """Paint a shape of reach r with its colour and ``lift`` units of relief.

        Parameters
        ----------
        bevel : width of the round shoulders of the relief
        gloss, metal : of the surface, in 0..1
        grain, mottle : fine and coarse unevenness of the colour
        alpha : opacity
        body : whether the shape is part of the object (a hole or a print is not)
        over : hide the relief below
        """
        win, x, y = self.window(r)
        d = shape(x, y)
        if not d.size:
            return
        a = np.clip(0.5 - d * self.unit, 0, 1) * alpha
        base = color(x, y, d) if callable(color) else np.asarray(color)
        base = base * (1 + grain * self.fine[win] + mottle * self.coarse[win])[..., None]
        self.albedo[win] += a[..., None] * (base - self.albedo[win])
        for layer, value in ((self.gloss, gloss), (self.metal, metal)):
            layer[win] += a * (value - layer[win])
        if over:
            self.height[win] += a * (self.height[win].mean() - self.height[win])
        if lift:
            t = np.clip(-d / bevel, 0, 1)
            self.height[win] += lift * self.unit * np.sqrt(t * (2 - t))
        if body:
            self.cover[win] = np.maximum(self.cover[win], a)

    def cut(
        self, shape: Shape, r: float, deep: Colour | tuple[float, float, float] | None = None
    ) -> None:
        """Cut through to the ground, or to a bottom of colour ``deep`` (part of the object)."""
        win, x, y = self.window(r)
        d = shape(x, y)
        if not d.size:
            return
        a = np.clip(0.5 - d * self.unit, 0, 1) * self.cover[win]
        bottom = self.ground[win] * 0.8 if deep is None else np.asarray(deep)
        self.albedo[win] += a[..., None] * (bottom - self.albedo[win])
        layers = [self.height, self.gloss, self.metal]
        for layer in [*layers, self.cover] if deep is None else layers:
            layer[win] *= 1 - a

    def write(
        self,
        letters: str,
        height: float,
        color: Colour | tuple[float, float, float],
        weight: float = 0.1,
        lift: float = 0.0,
        **surface: Any,
    ) -> None:
        """Print or emboss letters; ``surface``: gloss, metal, grain ... of :meth:`paint`."""
        shape, reach = text(letters, height, weight)
        bevel = weight * height
        self.paint(shape, reach, color, lift=lift, bevel=bevel, body=False, **surface)

    def parts(self, n: Count, shift: float, turn: float = 0.0) -> list[Part]:
        """Return the parts to draw: the defective one is left out, or moved by about ``shift``."""
        victim, way = int(self.chance.integers(n)), self.chance.uniform(0, 2 * np.pi)
        far = self.chance.uniform(0.8, 1.3)
        spin = turn * far * self.chance.choice([-1, 1])
        parts = still(n)
        if self.fault == "misplaced_part":
            x, y = far * shift * np.cos(way), far * shift * np.sin(way)
            parts[victim] = (victim, float(x), float(y), float(spin))
        elif self.fault == "missing_part":
            del parts[victim]
        return parts

    def lit(self) -> Image:
        """Return the image (S, S, 3) after lighting, shadow and lens blur, without noise."""
        z = ndimage.gaussian_filter(self.height, 0.6 * self.size / 224, truncate=2)
        gy, gx = np.gradient(z)
        nz = 1 / np.sqrt(1 + gx * gx + gy * gy)
        nx, ny = -gx * nz, -gy * nz
        lx, ly, lz = self.light
        diffuse = np.clip(nx * lx + ny * ly + nz * lz, 0, None) / lz
        shade = self.ambient + (1 - self.ambient) * np.minimum(diffuse, 1.7)
        mirror = np.sin(self.env[0] * (nx * lx + ny * ly) * 2 + self.env[1] * ny)
        shade = shade + self.metal * (0.28 * (mirror + 0.35 * self.coarse))
        low = ndimage.uniform_filter(z, max(3, int(self.size * 0.05)))
        shade *= np.clip(1 - 1.6 * (low - z) / (self.size * 0.05), 0.45, 1.06)
        step = np.round(self.light[:2] * self.soft * 2).astype(int)
        rows, cols = (np.clip(np.arange(self.size) + s, 0, self.size - 1) for s in step[::-1])
        fall = ndimage.uniform_filter(self.cover[np.ix_(rows, cols)], max(3, int(self.soft)))
        fall = ndimage.uniform_filter(fall, max(3, int(self.soft * 1.5)))
        shade *= 1 - self.shadow * fall * (1 - self.cover)
        half = np.array([lx, ly, lz + 1]) / np.sqrt(lx**2 + ly**2 + (lz + 1) ** 2)
        glint = np.clip(nx * half[0] + ny * half[1] + nz * half[2], 0, 1) ** 48
        image = self.albedo * shade[..., None] + (self.gloss * glint)[..., None]
        image = image * self.exposure * self.tone
        return np.clip(ndimage.gaussian_filter(image, (self.blur, self.blur, 0), truncate=2), 0, 1)
