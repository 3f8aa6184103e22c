"""Resize images on a GPU to the very numbers that Pillow gives.

Pillow resizes 8-bit images with whole numbers: weights of 22 binary digits, one pass across and
one down, each rounded to 0..255. Products of small whole numbers are exact in every precision of
a GPU, so matrix products of the weights' three bytes give the same sums.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .cores import no_autocast

DIGITS = 22  # binary digits of Pillow's weights (PRECISION_BITS)
LARGEST_SHRINK = 100  # above it sums of float32 could lose digits
MOST_PIXELS = 4 * 2**20  # larger images are quicker resized where they are read
AT_ONCE = 2**24  # pixels in one product, which bounds its memory to about 1 GB


def check_rgb(image: np.ndarray) -> None:
    """Check that an array is an image (H, W, 3) uint8.

    Raises
    ------
    ValueError for anything else.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            "preprocess wants an RGB uint8 array (H, W, 3), found "
            f"{image.dtype} {image.shape}; read files with vlmad_utils.data.read_image."
        )


def for_device(size: tuple[int, int], image: np.ndarray) -> Tensor:
    """Return an image (H, W, 3) uint8 as it goes to a device: as it is, where that can resize it.

    Pillow resizes others to ``size`` = (H', W').

    Raises
    ------
    ValueError for what is no RGB image.
    """
    image = np.asarray(image)
    check_rgb(image)
    height, width = image.shape[:2]
    shrink = max(height / size[0], width / size[1])
    if 0 < height * width <= MOST_PIXELS and shrink <= LARGEST_SHRINK:
        # torch wants memory that may be written
        return torch.from_numpy(np.require(image, requirements=["C", "W"]))
    picture = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture))


def pixels(
    images: Sequence[Tensor],
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
) -> Tensor:
    """Bring images to a device, and do there what ``Backbone.preprocess`` does on the CPU.

    Parameters
    ----------
    images : (H, W, 3) uint8 each, RGB, of any sizes; pinned ones are copied while the device works
    size : (H', W') pixels of the tower
    mean, std : of the input normalisation, RGB in [0, 1]

    Returns
    -------
    (B, 3, H', W') float32 on the device
    """
    resized, start = [], 0
    while start < len(images):
        shape, end = images[start].shape, start + 1
        most = max(1, AT_ONCE // (shape[0] * shape[1]))
        while end < len(images) and images[end].shape == shape and end - start < most:
            end += 1
        alike = [image.to(device, non_blocking=True) for image in images[start:end]]
        resized.append(bicubic(torch.stack(alike), size))
        start = end
    x = torch.cat(resized).float()
    most, middle, spread = map(_used_here, _numbers(tuple(mean), tuple(std), x.device))
    return (x / most - middle) / spread


@functools.lru_cache(16)
def _numbers(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, ...]:
    """Return 255, mean and std as (1 or 3, 1, 1) float32 on the device.

    By a number of the CPU, CUDA would not divide: it multiplies with the inverse.
    """
    numbers = [torch.tensor(x, dtype=torch.float32) for x in (255.0, mean, std)]
    return tuple(x.reshape(-1, 1, 1).to(device) for x in numbers)


def _used_here(kept: Tensor) -> Tensor:
    """Return a tensor that a cache may drop while the stream of this thread still reads it."""
    if kept.is_cuda and torch.cuda.is_available():
        kept.record_stream(torch.cuda.current_stream(kept.device))
    return kept


def bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images (B, H, W, 3) uint8 like Pillow's BICUBIC, with antialias.

    Returns
    -------
    (B, 3, H', W') uint8 on the device of the images

    Source: Pillow, src/libImaging/Resample.c.
    """
    before = (images.shape[1], images.shape[2])
    x = images.permute(0, 3, 1, 2)  # (B, 3, H, W)
    for side in (0, 1) if _down_first(before, size) else (1, 0):
        if before[side] != size[side]:
            across = x if side else x.transpose(2, 3)
            across = _pass(across, size[side])
            x = across if side else across.transpose(2, 3)
    return x


def _down_first(before: tuple[int, int], after: tuple[int, int]) -> bool:
    """Return whether Pillow resizes the height first; what is clipped depends on it."""
    higher, wider = before[0] - after[0], before[1] - after[1]
    return higher > max(0, 2 * wider) and _pillow_can_go_down_first()


@functools.cache
def _pillow_can_go_down_first() -> bool:
    """Return whether this Pillow chooses the order, as 13 does; 12 always goes across first."""
    rows = np.random.default_rng(0).integers(0, 2, (40, 5, 3), dtype=np.uint8) * 255
    found = np.asarray(Image.fromarray(rows).resize((4, 9), Image.Resampling.BICUBIC))
    across = _pass(torch.from_numpy(rows).permute(2, 0, 1), 4)
    expected = _pass(across.transpose(1, 2), 9).permute(2, 1, 0).numpy()
    return not np.array_equal(found, expected)


def _pass(x: Tensor, n: int) -> Tensor:
    """Resize the last side of (..., L) uint8 to n."""
    with no_autocast(x.device):
        sums = x.float() @ _used_here(_bytes_of_weights(x.shape[-1], n, x.device)).float()
    high, middle, low = sums.int().chunk(3, dim=-1)
    total = (high << 16) + (middle << 8) + low + (1 << (DIGITS - 1))
    return (total >> DIGITS).clamp(0, 255).to(torch.uint8)


@functools.lru_cache(256)  # of images of many sizes
def _bytes_of_weights(before: int, after: int, device: torch.device) -> Tensor:
    """Return the weights' bytes from -128 to 127 as (before, 3 after) int8, the highest first.

    So small whole numbers are exact in TF32 and bfloat16, too, and so are their sums in float32.
    """
    whole = weights(before, after)
    low = (whole + 128) % 256 - 128
    rest = (whole - low) // 256
    middle = (rest + 128) % 256 - 128
    parts = [(rest - middle) // 256, middle, low]
    return torch.from_numpy(np.concatenate(parts).T.astype(np.int8)).to(device)


def weights(before: int, after: int) -> np.ndarray:
    """Return Pillow's bicubic weights (after, before) int64, in units of 2 ** -22.

    Source: Pillow, src/libImaging/Resample.c, precompute_coeffs and normalize_coeffs_8bpc.
    """
    scale = before / after
    wide = max(scale, 1.0)
    support = 2.0 * wide
    centre = ((np.arange(after) + 0.5) * scale)[:, None]
    first = np.maximum((centre - support + 0.5).astype(int), 0)
    end = np.minimum((centre + support + 0.5).astype(int), before)
    place = np.arange(before)
    x = np.abs((place - centre + 0.5) * (1.0 / wide))
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    curve = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    curve[(place < first) | (place >= end)] = 0.0
    curve /= np.cumsum(curve, axis=1)[:, -1:]  # one after the other, as Pillow adds them
    return np.trunc(curve * (1 << DIGITS) + np.where(curve < 0, -0.5, 0.5)).astype(np.int64)
