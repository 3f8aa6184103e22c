"""Attention of transformer blocks: as PyTorch does it, and for short sequences on a GPU packed.

A GPU computes attention in tiles of 64 or 128 tokens for each sequence and head. A window has 5 or
10 tokens, so most of a tile would be empty. Packed, several windows form one sequence, and a mask
lets each token see its own window only: the numbers are the same, and tiles are full.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .cores import Shared

TILE = 64  # tokens of a packed sequence at most
_EFFICIENT = Shared(lambda: sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]))


def windows_in_a_tile(tokens: int, tile: int = TILE) -> int:
    """Return how many windows of so many tokens are packed into one sequence; 1 is unpacked."""
    return max(1, tile // tokens)


def kernel_of_windows(tokens: int, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which CUDA attends packed windows by its memory-efficient kernel.

    With a mask PyTorch would ask cuDNN first, whose tiles are twice as wide. The setting holds for
    the whole process, as in :class:`.cores.Shared`; elsewhere nothing is set.

    Parameters
    ----------
    tokens : of a window
    """
    packed = device.type == "cuda" and windows_in_a_tile(tokens) > 1
    return _EFFICIENT if packed else nullcontext()


def packing_mask(
    windows: int,
    queries: int,
    keys: int,
    device: torch.device,
    dtype: torch.dtype,
    tile: int = TILE,
) -> Tensor | None:
    """Return the mask with which windows are packed, or None where they are not.

    Parameters
    ----------
    windows, queries, keys : of all windows, and tokens of each that ask and are asked
    device, dtype : of the queries
    tile : tokens of a packed sequence at most

    Returns
    -------
    (p * queries, p * keys) of p windows: 0 within a window, minus infinity between windows. None
    off CUDA, for sequences that fill a tile, and where p does not divide the windows
    """
    p = windows_in_a_tile(keys, tile)
    if device.type != "cuda" or p == 1 or windows % p:
        return None
    asks = torch.arange(p * queries, device=device) // queries
    asked = torch.arange(-(-p * keys // 8) * 8, device=device) // keys  # kernels want rows of 8
    mask = torch.zeros(len(asks), len(asked), device=device, dtype=dtype)
    return mask.masked_fill_(asks[:, None] != asked, -torch.inf)[:, : p * keys]


def attend(qkv: Sequence[Tensor], heads: int, mask: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(head width)) v of each sequence and head.

    On a CPU half numbers are attended in float32, which is as fast there for windows.

    Parameters
    ----------
    qkv : queries (W, m, C), keys and values (W, n, C)
    mask : from :func:`packing_mask`

    Returns
    -------
    (W, m, C), type and device of the query
    """
    query, key, _ = parts = qkv
    if mask is not None:
        p = mask.shape[1] // key.shape[1]
        parts = [each.reshape(-1, p * each.shape[1], each.shape[2]) for each in parts]
    if query.device.type == "cpu":
        parts = [each.float() for each in parts]
    parts = [each.unflatten(-1, (heads, -1)).transpose(-3, -2) for each in parts]
    attended = F.scaled_dot_product_attention(*parts, attn_mask=mask).transpose(-3, -2)
    return attended.flatten(-2).to(query.dtype).view(query.shape)
