"""The types that the drawing functions share.

S is the image side in pixels. All fields and images are float64 until the last rounding to uint8.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

Rng: TypeAlias = np.random.Generator
Field: TypeAlias = np.ndarray  # (S, S) float64
Image: TypeAlias = np.ndarray  # (S, S, 3) float64 RGB in 0..1
Mask: TypeAlias = np.ndarray  # (S, S) bool
Colour: TypeAlias = np.ndarray  # (3,) float64 RGB in 0..1
Range: TypeAlias = tuple[float, float]  # (lowest, highest) of a random draw
Point: TypeAlias = tuple[float, float]  # (y, x) in 0..1
Count: TypeAlias = int | np.integer

# (style, rng, size) -> image: style draws what a product line keeps, rng what differs by image
Texture: TypeAlias = Callable[[Rng, Rng, int], Image]
Drawn: TypeAlias = tuple[Image, Mask]  # an image with a defect, and its mask
# (image, support, rng, area, contrast), see ``defects``
DrawDefect: TypeAlias = Callable[[Image, Mask, Rng, float, float], Drawn]
# (start, angle, length) -> polylines (K, 2) as (y, x) in 0..1, each with a width, one or (K,)
Strokes: TypeAlias = Sequence[tuple[np.ndarray, float | np.ndarray]]
DrawLine: TypeAlias = Callable[[Point, float, float], Strokes]
# local (x, y) -> signed distance, negative inside
Shape: TypeAlias = Callable[[Field, Field], Field]
# local (x, y, distance) -> colours (h, w, 3)
Shade: TypeAlias = Callable[[Field, Field, Field], Image]
