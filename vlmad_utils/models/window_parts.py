"""The windows of a batch in parts that go through the tower one after the other."""

import torch
from torch import Tensor

from .attention import windows_in_a_tile
from .windows import Window, window_indices, window_spec

CPU_NUMBERS = 350_000  # of (windows, tokens, C): many enough for products, few enough for caches
GPU_TOKENS = 32_768  # products of more tokens are no faster
GPU_SHARE = 1 / 16  # of a card's memory, at most
BYTES = {"fp32": 72, "bf16": 40, "fp16": 40}  # of a token and channel: residual, MLP, all between


def windows_at_once(window: Window, width: int, device: torch.device, precision: str) -> int:
    """Return how many windows go through a tower together.

    Parameters
    ----------
    width : C
    """
    tokens = 1 + window_spec(window)[0] ** 2
    if device.type == "cpu":
        return max(1, CPU_NUMBERS // (tokens * width))
    fits = GPU_TOKENS
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(device).total_memory
        fits = int(memory * GPU_SHARE / (BYTES[precision] * width))
    return max(1, min(GPU_TOKENS, fits) // tokens)


def window_parts(
    grid: tuple[int, int],
    window: Window,
    images: int,
    at_once: int,
    workers: int,
    device: torch.device,
) -> list[tuple[Tensor, Tensor]]:
    """Return the windows of a batch in parts of about one size.

    On CUDA all parts have one shape, as compiled code and packed attention want it: the last window
    is repeated to fill them up.

    Parameters
    ----------
    at_once : windows of a part at most
    workers : among whom the parts are shared evenly

    Returns
    -------
    [(image (n, 1): numbers of the windows' images, rows (n, 1 + k * k): of their tokens, CLS
    first)], int64 on the device; in order, the first image's windows first
    """
    indices = window_indices(grid, window)  # (W, k * k)
    rows = torch.cat([indices.new_zeros(len(indices), 1), indices + 1], dim=1)
    total = images * len(rows)
    if device.type == "cuda":
        step = windows_in_a_tile(rows.shape[1])
        passes = -(-total // max(step, at_once // step * step))
        size = -(-total // (passes * step)) * step
        parts = torch.arange(passes * size).clamp(max=total - 1).split(size)
    else:
        passes = -(-total // at_once)
        parts = torch.arange(total).tensor_split(-(-passes // workers) * workers)
    return [
        ((part // len(rows))[:, None].to(device), rows[part % len(rows)].to(device))
        for part in parts
    ]
