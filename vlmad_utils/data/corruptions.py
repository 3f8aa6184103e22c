"""What goes wrong between the line and the model: corruptions of a picture at three severities, and of a procedural scene.

Everything is deterministic: the noise of a picture depends on the picture and the seed.
"""

import io
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.util import random_noise

from .images import read_image

CORRUPTIONS = {  # severities 1, 2, 3; blur is for a side of 224 pixels and grows with the picture
    "noise": (0.03, 0.08, 0.16),  # standard deviation, of white = 1
    "blur": (1, 2, 4),  # standard deviation, pixels
    "brightness": (0.75, 0.5, 0.25),  # factor
    "JPEG": (40, 15, 5),  # quality
    "rotation": (5, 15, 45),  # degrees; corners show the mirrored picture
}


def corrupt(image, kind, severity, seed=0):
    """A corrupted copy of a picture (H, W, 3) uint8; ``kind`` of CORRUPTIONS, ``severity`` 1, 2 or 3."""
    if kind not in CORRUPTIONS or severity not in (1, 2, 3):
        raise ValueError(
            f"wanted one of {', '.join(CORRUPTIONS)} at severity 1, 2 or 3, found {kind!r} at {severity!r}"
        )
    amount = CORRUPTIONS[kind][severity - 1]
    if kind == "noise":
        rng = np.random.default_rng([seed, zlib.crc32(np.ascontiguousarray(image))])
        return np.round(255 * random_noise(image, "gaussian", var=amount**2, rng=rng)).astype(
            np.uint8
        )
    if kind == "blur":
        return ndimage.gaussian_filter(
            image, (amount * len(image) / 224,) * 2 + (0,), mode="reflect"
        )
    if kind == "brightness":
        return np.round(image * amount).astype(np.uint8)
    if kind == "rotation":
        return ndimage.rotate(image, amount, reshape=False, order=1, mode="reflect")
    Image.fromarray(image).save(file := io.BytesIO(), "JPEG", quality=amount)
    return np.array(Image.open(file))


def corrupted(index, kind, severity, folder, seed=0):
    """The index with corrupted copies (PNG, in ``folder``) in place of the test pictures; references and labels stay."""
    paths, folder = list(index["image_path"]), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for i in np.flatnonzero(index["split"] == "test"):
        picture = corrupt(read_image(paths[i]), kind, severity, seed)
        paths[i] = str(folder / f"{kind}-{severity}-{i}.png")
        Image.fromarray(picture).save(
            paths[i], compress_level=1
        )  # the usual 6 takes most of the time here
    return index.assign(image_path=paths, mask_path=None)  # a mask does not turn with its picture
