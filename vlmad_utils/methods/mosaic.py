"""APRIL-GAN's mosaics of training images, made before encoding."""

from collections.abc import Sequence

import numpy as np
from PIL import Image


def mosaic(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return one 2 x 2 mosaic of images of one class (the paper: probability 0.2, MVTec AD only).

    Parameters
    ----------
    images : of (H, W, 3) uint8; masks : of (H', W') bool, True on defects
    rng : draws four images with replacement

    Returns
    -------
    (image (H, W, 3) uint8, mask (H, W) bool) of the size of the first draw; a defect that touches
    a pixel marks it

    Source: APRIL-GAN, training.
    """
    picks = rng.integers(len(images), size=4)
    height, width = np.shape(images[picks[0]])[:2]
    image, mask = np.empty((height, width, 3), np.uint8), np.empty((height, width), bool)
    tops, lefts = (0, height // 2, height), (0, width // 2, width)
    for quarter, pick in enumerate(picks):
        rows, columns = slice(*tops[quarter // 2 :][:2]), slice(*lefts[quarter % 2 :][:2])
        size = (columns.stop - columns.start, rows.stop - rows.start)
        small = Image.fromarray(np.asarray(images[pick])).resize(size, Image.Resampling.BICUBIC)
        image[rows, columns] = np.asarray(small)
        defect = Image.fromarray(np.asarray(masks[pick], np.float32))
        mask[rows, columns] = np.asarray(defect.resize(size, Image.Resampling.BOX)) > 1e-6
    return image, mask
