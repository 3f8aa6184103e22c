"""Give the parts of :mod:`benchmarks.gpu` what they share: sizes, towers, images, the device."""

import copy
import functools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlmad_utils.models import OpenClip
from vlmad_utils.models.backbone import Precision, fingerprint

from . import encoding

FULL: dict[str, Any] = {
    "tower": "ViT-B-16-plus-240",  # of checks, files, study; anomalib's
    "checked": ("tiny", "ViT-B-16-plus-240", "embedded"),
    "few": 4,  # images of a check of a tower
    "many": 64,  # images of a check of AUROC: one pair of them is 0.001
    "batches": {"ViT-B-16-plus-240": 64, "ViT-L-14-336@518": 8},
    "precisions": ("fp16", "bf16", "fp32"),
    "compiler": True,  # that of torch.compile; True is its own choice
    "rounds": 5,
    "product_rows": 2**16,
    "shapes": ((1024, 1024), (700, 1100), (1600, 200), (2048, 2048), (3000, 4000)),  # resized
    "files": 512,  # images that are made
    "repeats": 1,  # how often a pass reads them
    "pixels": 1024,  # side of these images
    "categories": 10,  # of the study
    "study": 1000,  # its test images
    "pool": 4,  # images of a category from which references are drawn
    "shots": (0, 1, 4),
}
TINY = FULL | {
    "tower": "tiny",
    "checked": ("tiny",),
    "few": 2,
    "many": 8,
    "batches": {"tiny": 2},
    "precisions": ("bf16", "fp32"),
    "compiler": "eager",
    "rounds": 1,
    "product_rows": 64,
    "shapes": ((128, 128), (70, 110), (300, 40)),
    "files": 4,
    "repeats": 2,
    "pixels": 128,
    "categories": 1,
    "study": 12,
    "pool": 2,
    "shots": (0, 1),
}


def made_images(n: int, side: int, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Return n images (side, side, 3) uint8 and masks (n, side, side).

    Smooth random textures; each second image has a square of another texture.
    """
    rng, masks = np.random.default_rng(seed), np.zeros((n, side, side), bool)
    images = [_texture(rng, side, 8) for _ in range(n)]
    for i in range(1, n, 2):
        edge = side // 3
        top, left = rng.integers(0, side - edge, 2)
        masks[i, top : top + edge, left : left + edge] = True
        images[i][masks[i]] = _texture(rng, side, side // 2)[masks[i]]
    return images, masks


def _texture(rng: np.random.Generator, side: int, cells: int) -> np.ndarray:
    coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    noise = rng.integers(-8, 9, smooth.shape, dtype=np.int16)
    return (smooth + noise).clip(0, 255).astype(np.uint8)


def pixels_of(model: Any, images: list[np.ndarray]) -> Tensor:
    """Return preprocessed images (B, 3, H, W) float32 on the CPU."""
    return torch.stack([model.preprocess(image) for image in images])


@functools.cache
def cpu_tower(name: str) -> OpenClip:
    """Return a tower with random weights on the CPU in float32, drawn once: leave it as it is."""
    return encoding.tower(name)


def placed(model: OpenClip, device: torch.device, precision: str = "fp32") -> OpenClip:
    """Return a copy of a tower on a device; its weights are neither drawn nor hashed again."""
    found = copy.copy(model)
    found.model = copy.deepcopy(model.model)
    found.visual, found.precision = found.model.visual, cast(Precision, precision)
    found.fingerprint = fingerprint(model.identity, found.precision)
    return found.to(device)


def waited(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """Return a call that ends when the device has finished, too."""
    if device.type != "cuda":
        return call

    def finished() -> Any:
        found = call()
        torch.cuda.synchronize()
        return found

    return finished


def card(device: torch.device) -> str:
    """Return the name of the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def highest_on_card(call: Callable[[], Any], device: torch.device) -> float:
    """Return the MB that a call takes of the card's memory, above what lies there; NaN on a CPU.

    The call before it, which does not count, makes what is made once.
    """
    call()
    if device.type != "cuda":
        return float("nan")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
