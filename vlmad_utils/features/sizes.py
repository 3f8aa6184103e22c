"""Choose how many images go through a model at once, so that a GPU's memory holds them."""

from collections.abc import Sequence
from typing import Literal

import torch

from ..models.backbone import Backbone
from .kinds import request

BatchSize = int | Literal["auto"]
ON_CPU = 8  # more is not faster there
MOST = 128  # more is not faster on any GPU
SHARE = 0.5  # of the free memory: several batches wait to be stored, and other work needs some


def check(batch_size: BatchSize) -> None:
    """Check a number of images.

    Raises
    ------
    ValueError for what is no number from 1 on, nor "auto".
    """
    if batch_size != "auto" and (isinstance(batch_size, str) or batch_size < 1):
        raise ValueError(f'batch_size is at least 1, or "auto", found {batch_size!r}.')


def expected(model: Backbone, batch_size: BatchSize) -> int:
    """Return about how many images go through a model at once, before anything is measured."""
    if batch_size != "auto":
        return batch_size
    return ON_CPU if torch.device(model.device).type == "cpu" else MOST // 4


def chosen(model: Backbone, kinds: Sequence[str], batch_size: BatchSize) -> int:
    """Return a batch size: the number that was asked for, or what suits the device.

    On a GPU the first "auto" measures a small batch. The model remembers it for these kinds, as
    it remembers what memory could not hold.
    """
    if batch_size != "auto":
        return batch_size
    device = torch.device(model.device)
    if device.type != "cuda" or not torch.cuda.is_available():
        return ON_CPU
    known = model.batch_sizes
    if tuple(kinds) not in known:
        known[tuple(kinds)] = _measured(model, kinds, device)
    return known[tuple(kinds)]


def _measured(model: Backbone, kinds: Sequence[str], device: torch.device) -> int:
    """Return how many images the free memory of a GPU holds, from the peak of a few."""
    few = 4
    pixels = torch.zeros(few, 3, *model.image_size, device=device)
    try:
        model.encode_image(pixels[:1], **request(kinds))  # libraries take memory of their own
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        model.encode_image(pixels, **request(kinds))
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        return 1
    for_one = max(1, torch.cuda.max_memory_allocated(device) - before) / few
    # PyTorch keeps what it once had: that is free, too
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    room = torch.cuda.mem_get_info(device)[0] + kept
    return fitting(room, for_one)


def fitting(room: float, for_one: float) -> int:
    """Return the batch size for so many free bytes, 1 to 128, a multiple of 8 from 8 on."""
    found = int(max(1, min(MOST, SHARE * room / for_one)))
    return found - found % 8 if found >= 8 else found


def within_memory(
    model: Backbone, pixels: torch.Tensor, kinds: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Return what ``model.encode_image`` gives; a batch too large for memory goes in parts.

    The size that fits is remembered, so that no later batch of these kinds fails again.

    Parameters
    ----------
    pixels : (B, 3, H, W) float32

    Raises
    ------
    OutOfMemoryError where not even one image fits.
    """
    parts, start = [], 0
    size = min(len(pixels), model.batch_sizes.get(tuple(kinds), len(pixels)))
    while start < len(pixels):
        try:
            parts.append(model.encode_image(pixels[start : start + size], **request(kinds)))
            start += size
            continue
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        torch.cuda.empty_cache()  # after the except block: what the traceback held is free by now
        size = -(-size // 2)
        model.batch_sizes[tuple(kinds)] = size
    if len(parts) == 1:
        return parts[0]
    return {kind: torch.cat([part[kind] for part in parts]) for kind in parts[0]}
