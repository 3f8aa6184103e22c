"""The camera: light, lens, sensor and coding of an image."""

import numpy as np

from .aliases import Image, Rng
from .fields import blur, coords, grey, peak, rotate
from .noise import grain, smooth


def is_grey(image: Image) -> bool:
    """Return True for an image (S, S, 3) with three equal channels."""
    return bool(peak(np.abs(image - image[..., :1])).max() < 1e-9)


def blocks(image: Image, quality: float) -> Image:
    """Round the cosine coefficients of 8 x 8 blocks, as JPEG does (without its colour coding)."""
    size = image.shape[0]
    k = np.arange(8)
    weight = np.where(k == 0, np.sqrt(1 / 8), 0.5)
    basis = np.cos(np.pi * (k + 0.5)[None] * k[:, None] / 8) * weight[:, None]
    step = quality * (1 + 0.8 * (k[:, None] + k[None])) / 255
    tiles = image.reshape(size // 8, 8, size // 8, 8, 3).transpose(0, 2, 4, 1, 3)
    tiles = basis.T @ (np.round(basis @ tiles @ basis.T / step) * step) @ basis
    return tiles.transpose(0, 3, 1, 4, 2).reshape(size, size, 3)


def camera(image: Image, style: Rng, rng: Rng, strength: float, level: float) -> Image:
    """Photograph an image (S, S, 3): ``style`` draws what the rig keeps, ``rng`` the rest.

    ``level`` is the mean brightness of the piece without its defect, for the exposure.
    """
    size = image.shape[0]
    mono = is_grey(image) or style.uniform() < 0.12
    y, x = coords(size)
    slope, _ = rotate(y, x, style.uniform(0, 6.3) + 0.3 * rng.normal())
    light = 1 + strength * style.uniform(0, 0.35) * (slope - 0.5) * 2
    light = light + strength * style.uniform(0, 0.06) * smooth(rng, size, 0.6)
    light = light - strength * style.uniform(0, 0.5) * ((y - 0.5) ** 2 + (x - 0.5) ** 2)
    exposure = (np.clip(level, 0.2, 0.62) / max(level, 0.02)) ** (0.8 * strength)
    exposure = exposure * np.exp(strength * (0.1 * style.normal() + 0.04 * rng.normal()))
    cast = 1 + strength * (0.05 * style.normal(size=3) + 0.01 * rng.normal(size=3))
    gamma = np.exp(strength * 0.2 * style.normal())
    soft = strength * (style.uniform(0, 1) ** 2 * 1.2 + rng.uniform(0, 0.3)) * size / 224
    noise = strength * (0.002 + 0.03 * style.uniform() ** 3)
    quality, coded = style.uniform(1, 9), style.uniform() < 0.35
    if mono:
        image = np.repeat(grey(image)[..., None], 3, 2)
        cast = np.ones(3)
    image = np.clip(image * (light * exposure)[..., None] * cast, 0, 1) ** gamma
    image = blur(image, soft) if soft > 0.25 else image
    image = image + (grain(rng, size) * noise)[..., None]
    if not mono:
        image = image + 0.5 * noise * rng.normal(size=image.shape)
    return blocks(image, quality * strength) if coded and size % 8 == 0 and strength > 0 else image
