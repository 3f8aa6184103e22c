"""Choose how many images go through a model at once, so that a GPU's memory holds them."""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, Literal, TypeVar

import torch

from ..models.backbone import Backbone
from ..models.compiling import as_they_are
from .kinds import request

Result = TypeVar("Result")

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
    if isinstance(batch_size, str) and batch_size == "auto":
        return
    number = isinstance(batch_size, Integral) and not isinstance(batch_size, bool)
    if not number or batch_size < 1:
        raise ValueError(
            f'batch_size is at least 1, a whole number, or "auto", found {batch_size!r}.'
        )


def expected(model: Backbone, batch_size: BatchSize) -> int:
    """Return how many images go through a model at once, at most, before anything is measured."""
    if batch_size != "auto":
        return batch_size
    return ON_CPU if torch.device(model.device).type == "cpu" else MOST


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
    """Return how many images the free memory of a GPU holds, from the peak of a few.

    The caller's peak statistics are reset only where an earlier peak hides that of the few.
    Nothing is compiled for them.
    """
    few = 4
    try:
        with as_they_are(model):
            pixels = torch.zeros(few, 3, *model.image_size, device=device)
            model.encode_image(pixels[:1], **request(kinds))  # libraries take memory of their own
            for reset in (False, True):
                torch.cuda.synchronize(device)
                before = torch.cuda.memory_allocated(device)
                if reset:
                    torch.cuda.reset_peak_memory_stats(device)
                earlier = torch.cuda.max_memory_allocated(device)
                model.encode_image(pixels, **request(kinds))
                torch.cuda.synchronize(device)
                peak = torch.cuda.max_memory_allocated(device)
                if peak > earlier:
                    break
    except RuntimeError as error:
        if not no_memory(error):
            raise
        return 1
    for_one = max(1, peak - before) / few
    # PyTorch keeps what it once had: that is free, too
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    room = torch.cuda.mem_get_info(device)[0] + kept
    return fitting(room, for_one)


def fitting(room: float, for_one: float) -> int:
    """Return the batch size for so many free bytes, 1 to 128, a multiple of 8 from 8 on."""
    found = int(max(1, min(MOST, SHARE * room / for_one)))
    return found - found % 8 if found >= 8 else found


def no_memory(error: Exception) -> bool:
    """Return whether an error says that a GPU has too little memory, its own or for cuBLAS."""
    return isinstance(error, torch.OutOfMemoryError) or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)


def within_memory(
    model: Backbone, function: Callable[[Any], Result], images: Any, what: Sequence[str]
) -> list[Result]:
    """Return ``[function(images)]``; of what is too large for memory, the results of its parts.

    The size that fits is remembered, so that no later batch fails again.

    Parameters
    ----------
    images : B of them, a tensor (B, ...) or a sequence
    what : kinds of features, or another name of what is computed

    Raises
    ------
    OutOfMemoryError, or the RuntimeError of cuBLAS, where not even one image fits.
    """
    found, start = [], 0
    size = min(len(images), model.batch_sizes.get(tuple(what), len(images)))
    while start < len(images):
        try:
            found.append(function(images[start : start + size]))
            start += size
            continue
        except RuntimeError as error:
            if size == 1 or not no_memory(error):
                raise
        torch.cuda.empty_cache()  # after the except block: what the traceback held is free by now
        size = -(-size // 2)
        model.batch_sizes[tuple(what)] = size
    return found
