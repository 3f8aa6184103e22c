"""Families of procedural objects: a drawing, rendered with and without a defect of assembly."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .aliases import Colour, Count, Image, Mask, Range, Rng
from .canvas import Canvas, Turn
from .objects_shapes import box, disc, ngon

FAULTS = (None, "missing_part", "misplaced_part")


@dataclass(frozen=True)
class ObjectFamily:
    """A kind of object: ``draw`` paints it, ``nouns`` name it in prompts.

    ``fill``, ``turn`` and ``cut`` are the pose, see :class:`Canvas`.
    """

    name: str
    nouns: tuple[str, ...]
    draw: Callable[[Canvas], None]
    fill: Range
    turn: Turn
    cut: bool

    def _render(
        self, seeds: tuple[int, int], size: int, fault: str | None, attempt: int = 0
    ) -> tuple[Image, Mask, float]:
        """Return the lit image (S, S, 3), the support (S, S) and the deviation of the noise."""
        style, rng, chance = (np.random.default_rng(seed) for seed in (*seeds, [seeds[1], attempt]))
        canvas = Canvas(style, rng, chance, size, fault, self.fill, self.turn, self.cut)
        self.draw(canvas)
        return canvas.lit(), canvas.cover > 0.5, canvas.noise

    def __call__(
        self, style: Rng, rng: Rng, size: int, fault: str | None = None
    ) -> tuple[Image, Mask, Mask]:
        """Draw one object.

        Parameters
        ----------
        style, rng : what the product line keeps, what differs by image
        size : side S in pixels
        fault : one of FAULTS

        Returns
        -------
        image : (S, S, 3) float64 in 0..1
        support : (S, S) bool, pixels of the object
        mask : (S, S) bool, where the image differs from the good one drawn with the same numbers;
            outside the mask both images are equal

        Raises
        ------
        ValueError for an unknown fault.
        """
        if fault not in FAULTS:
            raise ValueError(f"fault {fault!r} is unknown; use one of {FAULTS}")
        salt = zlib.crc32(self.name.encode())  # families differ under equal seeds
        seeds = int(style.integers(2**62)) ^ salt, int(rng.integers(2**62)) ^ salt
        image, support, noise = self._render(seeds, size, None)
        mask = np.zeros((size, size), bool)
        for attempt in range(5 if fault else 0):  # the chosen part may lie outside the frame
            other, covered, _ = self._render(seeds, size, fault, attempt)
            change = ndimage.binary_opening(np.abs(other - image).max(2) > 0.05)
            if change.sum() >= 6e-4 * size**2:
                mask = ndimage.binary_closing(np.pad(change, 4), iterations=3)[4:-4, 4:-4]
                full = ndimage.binary_fill_holes(mask)
                mask = ndimage.binary_dilation(full if full.sum() < 1.6 * mask.sum() else mask)
                image, support = np.where(mask[..., None], other, image), covered
                break
        grain = np.random.default_rng([seeds[1], 99]).normal(size=image.shape) * noise
        return np.clip(image + grain, 0, 1), support, mask


def family(
    *nouns: str,
    name: str | None = None,
    fill: Range = (0.55, 0.97),
    turn: Turn = "small",
    cut: bool = True,
) -> Callable[[Callable[[Canvas], None]], ObjectFamily]:
    """Make ``draw(canvas)`` an :class:`ObjectFamily` called ``name`` (default: as the function)."""

    def make(draw: Callable[[Canvas], None]) -> ObjectFamily:
        return ObjectFamily(name or draw.__name__, nouns, draw, fill, turn, cut)

    return make


def lattice(columns: Count, rows: Count, width: float, height: float) -> list[tuple[float, float]]:
    """Return the places (x, y) of a centred lattice of cells, row by row."""
    left, top = (columns - 1) / 2, (rows - 1) / 2
    cells = (divmod(i, columns) for i in range(columns * rows))
    return [((column - left) * width, (row - top) * height) for row, column in cells]


def screw_head(c: Canvas, r: float, color: Colour, kind: int, angle: float = 0.0) -> None:
    """Paint a round screw head with a slot (0), cross (1) or hexagon (2) recess."""
    c.paint(disc(r), r, color, lift=0.35 * r, bevel=0.6 * r, gloss=0.5, metal=0.8)
    c = c.sub(angle=angle)
    if kind == 2:
        c.paint(ngon(6, 0.45 * r), r, np.multiply(color, 0.3), lift=-0.3 * r, bevel=0.1 * r)
    slot, dark = box(0.75 * r, 0.13 * r), np.multiply(color, 0.35)
    for turn in ((0,), (0, np.pi / 2), ())[kind]:
        c.sub(angle=turn).paint(slot, r, dark, lift=-0.2 * r, bevel=0.06 * r)
