"""Look at every image and mask of an index before anything is computed from them."""

import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import pandas as pd
from tqdm import tqdm

from .images import DataError, header_size, read_image, read_mask


def check(
    index: pd.DataFrame,
    on_error: Literal["raise", "skip"] = "raise",
    pixels: bool = True,
    skipped: Iterable[tuple[str, str]] = (),
) -> pd.DataFrame:
    """Check that every image and mask of an index can be read and that each mask fits its image.

    Parameters
    ----------
    index : DataFrame with ``COLUMNS``
    on_error : "raise" or "skip", as in :func:`index`
    pixels : decode the files (finds truncated ones and empty masks); False: headers only (about
        10,000 files a second)
    skipped : (path, reason) pairs found before, to be reported together

    Returns
    -------
    DataFrame without the broken rows; ``attrs["skipped"]`` lists them

    Raises
    ------
    DataError with the first broken files, with "raise".
    """
    columns = (index[name] for name in ("image_path", "mask_path", "label"))
    rows = list(zip(*columns, strict=True))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found: Iterable = pool.map(lambda row: _broken(*row, pixels=pixels), rows)
        if pixels and len(rows) >= 500:
            found = tqdm(found, "checking", len(rows), unit="image")
        found = list(found)
    skipped = [*skipped, *(bad for bad in found if bad)]
    if skipped and on_error == "raise":
        raise DataError(listed(skipped))
    kept = index[np.array([bad is None for bad in found], dtype=bool)].reset_index(drop=True)
    kept.attrs["skipped"] = skipped
    if skipped:
        text = f"left out: {listed(skipped)}\nall of them are in index.attrs['skipped']"
        warnings.warn(text, stacklevel=3)
    return kept


def _broken(image: str, mask: str | None, label: int, pixels: bool) -> tuple[str, str] | None:
    """Return (path, reason) when an image or its mask cannot be used, else None."""
    path = image
    try:
        size = read_image(image).shape[:2] if pixels else header_size(image)
        if mask is None:
            return None
        path = mask
        marked = read_mask(mask) if pixels else None
        mask_size = header_size(mask) if marked is None else marked.shape
    except DataError as error:
        return path, str(error).removeprefix(f"{path}: ")
    if label == 1 and marked is not None and not marked.any():
        advice = "mark the defect, or call the image normal"
        return mask, f"the mask is empty, but its image {image} is anomalous: {advice}"
    if size != mask_size:
        theirs, ours = (f"{height}x{width}" for height, width in (mask_size, size))
        return mask, f"the mask has {theirs} pixels, its image {image} {ours}"
    return None


def first_lines(pairs: Sequence[tuple[str, str]], most: int = 5) -> list[str]:
    """Return a line for each of the first (path, reason) pairs and one for how many more."""
    more = [f"  ... and {len(pairs) - most} more"] if len(pairs) > most else []
    return [f"  {path}: {why}" for path, why in pairs[:most]] + more


def listed(pairs: Sequence[tuple[str, str]]) -> str:
    """Return a text that counts (path, reason) pairs and names the first ones."""
    return "\n".join([f"{len(pairs)} problem{'s' if len(pairs) > 1 else ''}", *first_lines(pairs)])
