"""Whole samples: a product, a fault, a camera; and data sets of them in the MVTec layout.

The products (``FAMILIES``) and the faults (``DEFECT_TYPES``) are listed in ``tables``.
"""

import itertools
import json
import os
import uuid
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from joblib import Parallel, delayed
from PIL import Image

from .defects import DEFECTS
from .fields import blur, coords, grain, grey, peak, rotate, smooth
from .objects import OBJECTS
from .tables import DEFECT_TYPES, FAMILIES, PART_FAULTS, defects_of
from .textures import TEXTURES

VERSION = 2  # of the pixels: raise it when a change of the generator changes them, so that old data is made again


def _rng(*keys):
    """Generator from words and numbers, the same on every machine."""
    return np.random.default_rng(
        [zlib.crc32(k.encode()) if isinstance(k, str) else int(k) for k in keys]
    )


def _blocks(image, quality):
    """Rounding of 8 x 8 cosine coefficients, as JPEG does (without its colour coding)."""
    size = image.shape[0]
    k = np.arange(8)
    basis = (
        np.cos(np.pi * (k + 0.5)[None] * k[:, None] / 8)
        * np.where(k == 0, np.sqrt(1 / 8), 0.5)[:, None]
    )
    step = quality * (1 + 0.8 * (k[:, None] + k[None])) / 255
    tiles = image.reshape(size // 8, 8, size // 8, 8, 3).transpose(0, 2, 4, 1, 3)
    tiles = basis.T @ (np.round(basis @ tiles @ basis.T / step) * step) @ basis
    return tiles.transpose(0, 3, 1, 4, 2).reshape(size, size, 3)


def _camera(image, style, rng, strength, level):
    """Light, lens, sensor and coding: what the rig keeps comes from ``style``, the rest from ``rng``.

    ``level`` is the mean brightness of the piece without its fault, for the exposure.
    """
    size = image.shape[0]
    mono = peak(np.abs(image - image[..., :1])).max() < 1e-9 or style.uniform() < 0.12
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
    shot = grain(rng, size) * noise
    image = (
        image + shot[..., None]
        if mono
        else image + shot[..., None] + 0.5 * noise * rng.normal(size=image.shape)
    )
    return _blocks(image, quality * strength) if coded and size % 8 == 0 and strength > 0 else image


def sample(
    family, defect="good", seed=0, style_seed=0, size=224, area=None, contrast=None, camera=1.0
):
    """One image of a product, good or with a fault, and its exact mask.

    Parameters
    ----------
    family : a key of FAMILIES.
    defect : "good" or a key of DEFECT_TYPES.
    seed : image; the same seed shows the same piece with and without the fault.
    style_seed : product line (colours, scale, pattern, rig).
    size : side S in pixels.
    area : share of the image covered by the fault, reached approximately; None: usual for the type.
    contrast : visibility in (0, 1], None: random in 0.45..1. Faults of parts ignore both.
    camera : strength of light, lens and sensor effects; 0 switches them off.

    Returns
    -------
    image (S, S, 3) uint8 RGB, mask (S, S) bool, all False when good.

    Raises
    ------
    ValueError for an unknown family or defect, an area or contrast out of range, a part fault on a texture.
    """
    if family not in FAMILIES:
        raise ValueError(f"family {family!r} is unknown; choose one of {', '.join(FAMILIES)}")
    if defect != "good" and defect not in DEFECT_TYPES:
        raise ValueError(
            f"defect {defect!r} is unknown; choose 'good' or one of {', '.join(DEFECT_TYPES)}"
        )
    for name, value in (("area", area), ("contrast", contrast)):
        if value is not None and not 0 < value <= 1:
            raise ValueError(
                f"{name} must be above 0 and at most 1, got {value}; use None for a random one"
            )
    part = defect if defect in PART_FAULTS else None
    style, rng = _rng(family, style_seed), _rng(family, style_seed, seed, "image")
    if family in OBJECTS:
        image, support, mask = OBJECTS[family](style, rng, size, part)
    elif part:
        raise ValueError(
            f"{part} needs an object; {family!r} is a texture, choose one of {', '.join(OBJECTS)}"
        )
    else:
        image = TEXTURES[family](style, rng, size)
        support, mask = np.ones((size, size), bool), np.zeros((size, size), bool)
    monochrome, level = peak(np.abs(image - image[..., :1])).max() < 1e-9, image.mean()
    if defect != "good" and not part:
        rng = _rng(family, style_seed, seed, defect)
        low, high = DEFECT_TYPES[defect].area
        drawn = np.exp(rng.uniform(np.log(low), np.log(high))) * np.clip(
            1.6 * support.mean(), 0.3, 1
        )
        chosen = rng.uniform(0.45, 1)
        image, mask = DEFECTS[defect](
            image, support, rng, area or drawn, chosen if contrast is None else contrast
        )
        if monochrome:  # a monochrome camera shows every fault in grey
            image = np.repeat(grey(image)[..., None], 3, 2)
    image = _camera(
        image,
        _rng(family, style_seed, "rig"),
        _rng(family, style_seed, seed, "camera"),
        camera,
        level,
    )
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), mask


def support(family, seed=0, style_seed=0, size=224):
    """Where the object lies in the picture that :func:`sample` makes of these arguments: (size, size) bool."""
    return OBJECTS[family](
        _rng(family, style_seed), _rng(family, style_seed, seed, "image"), size, None
    )[1]


def _save(pixels, path):
    """PNG at ``path``, whole or not at all."""
    with _atomic(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="png", compress_level=4)


@contextmanager
def _atomic(path):
    """A name to write to, which takes the place of ``path`` at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Picture(NamedTuple):
    """A picture of a data set: where it and its mask lie (None for a good one), and what draws it."""

    path: Path
    mask: Path | None
    defect: str
    number: int


def pictures(root, family, n_train=16, n_good=20, n_defect=5):
    """The :class:`Picture` list of a category as :func:`write` lays it out, drawn or not."""
    folder, number = Path(root) / family, itertools.count()
    groups = [("train/good", "good", n_train), ("test/good", "good", n_good)]
    groups += [(f"test/{d}", d, n_defect) for d in defects_of(family)]
    return [
        Picture(
            folder / place / f"{i:03d}.png",
            None if defect == "good" else folder / "ground_truth" / defect / f"{i:03d}_mask.png",
            defect,
            next(number),
        )
        for place, defect, count in groups
        for i in range(count)
    ]


def _category(root, family, counts, size, seed, only):
    """One category folder; its manifest, written first, says of what plan its pictures are."""
    folder = Path(root) / family
    plan = {
        "family": family,
        **counts,
        "size": size,
        "seed": seed,
        "defects": list(defects_of(family)),
        "version": VERSION,
    }
    manifest = folder / "manifest.json"
    if not manifest.exists() or json.loads(manifest.read_text()) != plan:
        for path in folder.rglob("*.png"):  # another plan's, or nobody's
            path.unlink()
        with _atomic(manifest) as temporary:
            temporary.write_text(json.dumps(plan, indent=1))
    for picture in pictures(root, family, **counts):
        if picture.path.exists() or only is not None and picture.path not in only:
            continue
        image, mask = sample(
            family, picture.defect, seed=picture.number, style_seed=seed, size=size
        )
        if picture.mask:  # before its image: what has an image has its mask
            _save(mask.astype(np.uint8) * 255, picture.mask)
        _save(image, picture.path)
    return folder


def write(
    root, families=None, n_train=16, n_good=20, n_defect=5, size=224, seed=0, jobs=1, only=None
):
    """Data set in the MVTec layout: one category per family, faults of the family's own role.

    ``<root>/<family>/{train/good, test/good, test/<defect>, ground_truth/<defect>/<stem>_mask.png}``. The
    ``manifest.json`` of a category says what it is made of; what was drawn with the same arguments is not drawn again.

    Parameters: ``families`` names (default: all of role "eval"), images per category in train, good test and
    each fault, ``size`` in pixels, ``seed`` of the product lines, ``jobs`` processes, ``only`` a set of paths
    (of :func:`pictures`): the others wait until they are asked for.
    Returns the list of category folders.
    """
    families = (
        [n for n, f in FAMILIES.items() if f.role == "eval"] if families is None else list(families)
    )
    unknown = [n for n in families if n not in FAMILIES]
    if unknown:
        raise ValueError(f"families {unknown} are unknown; choose from {', '.join(FAMILIES)}")
    counts = {"n_train": n_train, "n_good": n_good, "n_defect": n_defect}
    task = (delayed(_category)(root, name, counts, size, seed, only) for name in families)
    return Parallel(n_jobs=jobs)(task)
