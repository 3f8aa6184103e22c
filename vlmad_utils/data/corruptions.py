"""Corrupt images as happens between the line and the model, at three severities.

Everything is deterministic: the noise of an image depends on the image and the seed.
"""

import io
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage
from skimage.util import random_noise

from ..paths import atomic_write, content_hash
from .images import read_image

CORRUPTIONS: dict[str, tuple[float, float, float]] = {  # severities 1, 2, 3
    "noise": (0.03, 0.08, 0.16),  # standard deviation, of white = 1
    "blur": (1, 2, 4),  # standard deviation in pixels for a side of 224; grows with the image
    "brightness": (0.75, 0.5, 0.25),  # factor
    "JPEG": (40, 15, 5),  # quality
    "rotation": (5, 15, 45),  # degrees; corners show the mirrored image
}


def corrupt(image: np.ndarray, kind: str, severity: int, seed: int = 0) -> np.ndarray:
    """Return a corrupted copy of an image.

    Parameters
    ----------
    image : (H, W, 3) uint8, RGB
    kind : one of ``CORRUPTIONS``
    severity : 1, 2 or 3
    seed : of the noise

    Returns
    -------
    (H, W, 3) uint8
    """
    if kind not in CORRUPTIONS or severity not in (1, 2, 3):
        known = ", ".join(CORRUPTIONS)
        raise ValueError(
            f"wanted one of {known} at severity 1, 2 or 3, found {kind!r} at {severity!r}"
        )
    amount = CORRUPTIONS[kind][severity - 1]
    if kind == "noise":
        rng = np.random.default_rng([seed, zlib.crc32(np.ascontiguousarray(image).data)])
        noisy = random_noise(image, "gaussian", var=amount**2, rng=rng)
        return np.round(255 * noisy).astype(np.uint8)
    if kind == "blur":
        sigma = amount * len(image) / 224
        return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="reflect")
    if kind == "brightness":
        return np.round(image * amount).astype(np.uint8)
    if kind == "rotation":
        return ndimage.rotate(image, amount, reshape=False, order=1, mode="reflect")
    Image.fromarray(image).save(file := io.BytesIO(), "JPEG", quality=int(amount))
    return np.array(Image.open(file))


def corrupted(
    index: pd.DataFrame, kind: str, severity: int, folder: str | Path, seed: int = 0
) -> pd.DataFrame:
    """Write corrupted copies of the test images and return the index that names them.

    References and labels stay. Masks are left out: they do not turn with their image.

    Parameters
    ----------
    index : DataFrame with ``COLUMNS``
    kind, severity, seed : as in :func:`corrupt`
    folder : of the copies, PNG files. Their names hold kind, severity, seed and a hash of the
        image, so copies of other seeds and images stay
    """
    paths = list(index["image_path"])
    for i in np.flatnonzero(index["split"] == "test"):
        image = read_image(paths[i])
        copy = Path(folder) / f"{kind}-{severity}-seed{seed}-{content_hash(image)}.png"
        with atomic_write(copy, "pass a folder that can be written") as temporary:
            # level 1: the usual 6 takes most of the time here
            corrupt_image = corrupt(image, kind, severity, seed)
            Image.fromarray(corrupt_image).save(temporary, format="png", compress_level=1)
        paths[i] = str(copy)
    return index.assign(image_path=paths, mask_path=None)
