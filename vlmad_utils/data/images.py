"""Read any image file as 8-bit RGB and any mask file as booleans; name what cannot be read."""

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar, cast

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from ..store import SYSTEM_LIMITS

ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")  # modes of Pillow with transparency
Result = TypeVar("Result")


class DataError(ValueError):
    """Name the data set or file that is wrong, and say what was expected."""


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Return an image as RGB, upright.

    Rules for what is not 8-bit RGB:

    - grey, bilevel, palette, CMYK, YCbCr: converted by Pillow; of an animation or a stack, the
      first frame;
    - EXIF orientation is applied, so the array is what a viewer shows;
    - transparent pixels (RGBA, LA, palette or tRNS transparency) are laid over white;
    - 16-bit grey: the high byte, as Pillow does for 16-bit RGB; never stretched image by image,
      so that brightness stays comparable (12-bit data in a 16-bit file comes out dark: multiply
      it by 16 before use);
    - 32-bit integers and floats: [0, 1] is multiplied by 255, [0, 255] is kept, integers up to
      65535 lose their low byte; any other range is an error.

    Returns
    -------
    array (H, W, 3) uint8, RGB, 0..255

    Raises
    ------
    DataError when the file is missing, empty, truncated, not an image, or larger than Pillow's
    safety limit. MemoryError, or OSError with advice, where the machine has no memory or no more
    open files: no image is to blame.
    """
    return _read(path, _rgb)


def decode_image(content: bytes, path: str | os.PathLike[str]) -> np.ndarray:
    """Return the image that the bytes of a file hold, as :func:`read_image` does.

    Parameters
    ----------
    content : all bytes of the file
    path : where they are from, for messages

    Returns
    -------
    array (H, W, 3) uint8, RGB, 0..255

    Raises
    ------
    DataError and MemoryError as :func:`read_image`.
    """
    return _read(path, _rgb, _Content(content, path))


def read_mask(
    path: str | Path | None,
    size: int | Sequence[int] | None = None,
    how: Literal["nearest", "any"] = "nearest",
) -> np.ndarray:
    """Return a mask as booleans: True where a defect is.

    The mask is binarised with > 0 before any resizing, as masks may hold class ids. Palette masks
    count by index (0 is background), colour masks by any channel, alpha is ignored. JPEG masks are
    cut at half, because compression leaves faint noise around the edges.

    Parameters
    ----------
    path : of the mask, or None for an image without defect (``size`` is then needed)
    size : None for the mask's own size, or (H, W) in pixels, or one number for both
    how : "nearest" keeps the share of defective pixels right on average (thin defects may break up
        or vanish); "any" marks every output pixel that touches a defect (nothing vanishes, areas
        grow by up to a pixel)

    Returns
    -------
    array (H, W) bool

    Raises
    ------
    DataError when the file cannot be read; ValueError for another ``how``, or when ``path`` and
    ``size`` are None.
    """
    if how not in ("nearest", "any"):
        raise ValueError(f"how={how!r}: wanted 'nearest' or 'any'")
    if path is None and size is None:
        raise ValueError("an image without mask needs size=(H, W) for its empty mask")
    mask = None if path is None else _read(path, _mask)
    if mask is not None and size is None:
        return mask
    height, width = cast("Sequence[int]", (size, size) if np.isscalar(size) else size)
    if mask is None:
        return np.zeros((height, width), dtype=bool)
    if mask.shape == (height, width):
        return mask
    if how == "nearest":
        nearest = Image.Resampling.NEAREST
        return np.asarray(Image.fromarray(mask).resize((width, height), nearest))
    share = Image.fromarray(mask.astype(np.float32))
    return np.asarray(share.resize((width, height), Image.Resampling.BOX)) > 1e-6


def read_masks(index: pd.DataFrame, size: Sequence[int]) -> np.ndarray:
    """Return the masks (B, H, W) bool of an index; False everywhere for images without one."""
    return np.stack([read_mask(path, size=tuple(size)) for path in index["mask_path"]])


def header_size(path: str | Path) -> tuple[int, int]:
    """Return (H, W) in pixels after EXIF orientation, from the file's header only.

    Raises
    ------
    DataError when the header cannot be read.
    """
    return _read(path, _header)


class _Content(io.BytesIO):
    """The bytes of a file, which Pillow's messages name as they name the file."""

    def __init__(self, content: bytes, path: str | os.PathLike[str]) -> None:
        super().__init__(content)
        self.path: str = os.fspath(path)

    def __repr__(self) -> str:
        return repr(self.path)


def _read(
    path: str | os.PathLike[str],
    convert: Callable[[Image.Image], Result],
    content: _Content | None = None,
) -> Result:
    try:
        with Image.open(content or path) as picture:
            return convert(picture)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except MemoryError:  # of the machine: no image is to blame
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, bomb errors, ...
        if isinstance(error, OSError) and error.errno in SYSTEM_LIMITS:
            advice = f"{os.strerror(error.errno)}, no image is to blame"
            advice = f"{advice}. {SYSTEM_LIMITS[error.errno]}"
            raise OSError(error.errno, advice, os.fspath(path)) from error
        found = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: cannot be read as an image ({found})") from error


def _rgb(picture: Image.Image) -> np.ndarray:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        grey = (np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.mode in ("I", "F"):
        return np.repeat(_to_8_bit(np.asarray(picture))[..., None], 3, axis=2)
    if picture.mode in ALPHA or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.array(picture.convert("RGB"))


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Return 32-bit values (H, W) as uint8 if their range says what they are."""
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 65535 or (values.dtype.kind == "f" and high > 255):
        ranges = "[0, 1], [0, 255] or integers up to 65535"
        raise DataError(f"32-bit values from {low:g} to {high:g}; wanted {ranges}")
    if high > 255:
        return (values >> 8).astype(np.uint8)
    if values.dtype.kind == "f" and high <= 1:
        values = values * 255
    return np.round(values).astype(np.uint8)


def _mask(picture: Image.Image) -> np.ndarray:
    threshold = 127 if picture.format == "JPEG" else 0
    picture = ImageOps.exif_transpose(picture)
    values = np.asarray(picture)
    if values.ndim == 3:
        values = (values[..., :-1] if picture.mode in ALPHA else values).max(axis=2)
    return values > threshold


def _header(picture: Image.Image) -> tuple[int, int]:
    width, height = picture.size
    # getexif of a PNG without early EXIF chunk would read the whole file
    known = picture.format != "PNG" or "exif" in picture.info
    turned = known and picture.getexif().get(0x0112) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)
