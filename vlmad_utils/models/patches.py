"""The patches of an image as tokens: the first step of every tower."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def embed_pixels(layer: Any, pixels: Tensor) -> Tensor:
    """Return the embeddings (B, N, C) of all patches, row by row.

    Off the CPU as a matrix product: a convolution on a GPU computes in TF32, 10 bits of 23, unless
    a setting of the whole process forbids it.

    Parameters
    ----------
    layer : nn.Conv2d whose stride is its kernel, (p, p)
    pixels : (B, 3, H, W) float32
    """
    if pixels.device.type == "cpu":
        return layer(pixels).flatten(2).transpose(1, 2)
    height, width = layer.kernel_size
    cells = pixels.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # (B, 3, h, p, w, p)
    patches = cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N, 3 p p)
    return F.linear(patches, layer.weight.flatten(1), layer.bias)
