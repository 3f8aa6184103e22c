"""Look at every image and mask of an index before anything is computed from them."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from .images import DataError, header_size, read_image, read_mask


def check(index, on_error="raise", pixels=True, skipped=()):
    """Look at every image and mask of an index: can they be read, and does each mask fit its image?

    Parameters
    ----------
    index : DataFrame with ``COLUMNS``
    on_error : "raise" or "skip", as in :func:`index`
    pixels : decode the files (finds truncated ones and empty masks); False: headers only (about 10,000 files a second)
    skipped : (path, reason) pairs found before, to be reported together

    Returns
    -------
    DataFrame without the broken rows; ``attrs["skipped"]`` lists them

    Raises
    ------
    DataError with the first broken files, with "raise".
    """
    pairs = list(zip(index["image_path"], index["mask_path"], index["label"], strict=True))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda pair: _broken(*pair, pixels), pairs)
        quiet = (
            {"disable": True} if not pixels or len(pairs) < 500 else {}
        )  # left out, TQDM_DISABLE decides
        found = list(tqdm(found, total=len(pairs), desc="checking", unit="image", **quiet))
    skipped = [*skipped, *(bad for bad in found if bad)]
    if skipped and on_error == "raise":
        raise DataError(listed(skipped))
    kept = index[np.array([bad is None for bad in found], dtype=bool)].reset_index(drop=True)
    kept.attrs["skipped"] = skipped
    if skipped:
        warnings.warn(
            f"left out: {listed(skipped)}\nall of them are in index.attrs['skipped']", stacklevel=3
        )
    return kept


def _broken(image, mask, label, pixels):
    """(path, reason) when an image or its mask cannot be used, else None."""
    path = image
    try:
        size = read_image(image).shape[:2] if pixels else header_size(image)
        if mask is None:
            return None
        path = mask
        marked = read_mask(mask) if pixels else None
        mask_size = marked.shape if pixels else header_size(mask)
    except DataError as error:
        return path, str(error).removeprefix(f"{path}: ")
    if pixels and label == 1 and not marked.any():
        return (
            mask,
            f"the mask is empty, but its image {image} is anomalous: mark the defect, or call the image normal",
        )
    if size != mask_size:
        return (
            mask,
            f"the mask has {mask_size[0]}x{mask_size[1]} pixels, its image {image} {size[0]}x{size[1]}",
        )
    return None


def first_lines(pairs, most=5):
    more = [f"  ... and {len(pairs) - most} more"] if len(pairs) > most else []
    return [f"  {path}: {why}" for path, why in pairs[:most]] + more


def listed(pairs):
    return "\n".join([f"{len(pairs)} problem{'s' if len(pairs) > 1 else ''}", *first_lines(pairs)])
