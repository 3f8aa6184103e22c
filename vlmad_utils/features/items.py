"""Take images in all forms in which they come: tables, paths, arrays, generators of them."""

import os
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

Item = str | os.PathLike[str] | np.ndarray  # an image: its path, or (H, W, 3) uint8, RGB
MOST_LINES = 10  # of a report on images that failed
Images = pd.DataFrame | pd.Series | Iterable[Item] | Item


def items_of(images: Images) -> tuple[pd.DataFrame | None, Iterable[Item]]:
    """Return the table, or None, and the images; a single one is a list of one.

    Arrays of a generator are copied when it gives them: a camera may fill the same one again.

    Raises
    ------
    ValueError for a table without images; TypeError for what holds no images.
    """
    if isinstance(images, pd.Series) and "image_path" in images.index:  # a row of a table
        images = images.to_frame().T.infer_objects()
    if isinstance(images, pd.DataFrame):
        if "image_path" not in images:
            columns = ", ".join(map(str, images.columns))
            raise ValueError(
                f"The table has no column image_path, found {columns}: see data.index."
            )
        return images.reset_index(drop=True), list(images["image_path"])
    if isinstance(images, (str, os.PathLike)):
        return None, [images]
    if isinstance(images, np.ndarray) and images.ndim in (2, 3):
        return None, [images]
    if isinstance(images, (bytes, bytearray, memoryview)):
        raise TypeError(
            f"images is {type(images).__name__}, the content of a file as it seems: give its path, "
            "or an array (H, W, 3) uint8."
        )
    if not isinstance(images, Iterable):
        raise TypeError(
            "images is a table of data.index, a list of paths or of arrays (H, W, 3), or one of "
            f"these, found {type(images).__name__}."
        )
    if isinstance(images, (Sequence, pd.Series, np.ndarray)):
        return None, images
    return None, (each.copy() if isinstance(each, np.ndarray) else each for each in images)


def name_of(item: Item) -> str:
    """Return what an image is called in messages."""
    if isinstance(item, np.ndarray):
        return f"array {item.shape}"
    return str(item) if isinstance(item, (str, os.PathLike)) else type(item).__name__


def reason(item: Item, error: Exception) -> str:
    """Return which image failed, and why."""
    name = name_of(item)
    said = str(error).removeprefix(f"{name}: ")  # read_image names the file, too
    return f"{name}: {said}"


def report(failed: Sequence[tuple[int, Item, Exception]]) -> str:
    """Return a line for each image that failed, ten at most; a path names it, else its position.

    Parameters
    ----------
    failed : position, image and error of each
    """
    lines = [
        f"  {reason(item, error)}"
        if isinstance(item, (str, os.PathLike))
        else f"  image {i}, {reason(item, error)}"
        for i, item, error in failed[:MOST_LINES]
    ]
    more = len(failed) - MOST_LINES
    return "\n".join([*lines, f"  and {more} more"] if more > 0 else lines)
