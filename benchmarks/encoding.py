"""Measure the encoding of windows against plainer ways, and how encoding grows with the images."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from PIL import Image

from vlmad_utils import features, models
from vlmad_utils.models import OpenClip, window_indices
from vlmad_utils.models.onednn import has_instructions, linear

from .timing import PROCESSES, Row, in_fresh_process, in_turn, table_row

SIZES = (2, 3)  # WinCLIP's windows
FAST = (("2s2", "3s2"), ("3s2",), ("4s3",), ("3s3",))  # a part of them


def tower(name: str, **options: Any) -> OpenClip:
    """Return a tower with random weights; "tiny" is a 4-block ViT at 96 px.

    Parameters
    ----------
    name : of open_clip, with "@518" for another size in pixels, or "tiny"
    options : device and precision as in ``models.load``; default "cpu" and "fp32"
    """
    options = {"device": "cpu", "precision": "fp32", **options}
    if name != "tiny":
        name, _, size = name.partition("@")
        model = models.load(name, "random", int(size) if size else None, **options)
        assert isinstance(model, OpenClip)
        return model
    vision = CLIPVisionCfg(image_size=96, layers=4, width=64, head_width=16, patch_size=16)
    text = CLIPTextCfg(context_length=77, vocab_size=49408, width=64, heads=4, layers=2)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # manual_seed would reseed a caller's GPUs
        clip = open_clip.model.CLIP(32, vision, text)
    return OpenClip(clip, open_clip.get_tokenizer("ViT-B-32"), name="tiny", **options)


def passes(model: OpenClip, batch: int, step: int) -> dict[str, Callable[[], Any]]:
    """Return the calls that are compared, by name.

    Windows by the package; one plain forward; through the unmodified tower, all windows of a size
    as one batch ("batches"), and every ``step``-th window of the plain loop, one position of all
    images after the other ("loop").
    """
    pixels = torch.randn(batch, 3, *model.image_size, generator=torch.Generator().manual_seed(0))

    def through_tower(groups: Sequence[torch.Tensor]) -> None:
        with torch.inference_mode():
            start = model.embed(pixels)
            for rows in groups:  # (n, 1 + k * k) token numbers of n windows, CLS first
                model.image_head(model.visual.transformer(start[:, rows].flatten(0, 1)), {})

    def without_onednn() -> None:
        before = torch.backends.mkldnn.enabled
        setattr(torch.backends.mkldnn, "enabled", False)  # noqa: B010 - its type is a property
        try:
            model.encode_image(pixels, windows=SIZES)
        finally:
            setattr(torch.backends.mkldnn, "enabled", before)  # noqa: B010

    sizes = [F.pad(window_indices(model.grid, k) + 1, (1, 0)) for k in SIZES]
    some = [row[None] for rows in sizes for row in rows[::step]]
    fast_modes = {
        "+".join(fast): lambda fast=fast: model.encode_image(pixels, windows=fast) for fast in FAST
    }
    in_bf16 = {}
    if has_instructions("bf16"):
        half = OpenClip(model.model, model.tokenizer, model.name, precision="bf16")
        in_bf16["bf16"] = lambda: half.encode_image(pixels, windows=SIZES)
    return {
        "package": lambda: model.encode_image(pixels, windows=SIZES),
        **in_bf16,
        "plain": lambda: model.encode_image(pixels),
        "without oneDNN": without_onednn,
        **fast_modes,
        "batches": lambda: through_tower(sizes),
        "loop": lambda: through_tower(some),
    }


def one_pass(name: str, batch: int, step: int, which: str) -> Callable[[], Any]:
    """Return one call of :func:`passes`, for a process of its own."""
    return passes(tower(name), batch, step)[which]


def windows(o: Mapping[str, Any]) -> Iterator[Row]:
    """Time windows against a loop, a plain forward and matrix products; measure memory."""
    model = tower(o["tower"])
    for batch in o["batches"]:
        yield from _window_times(model, batch, o["step"], o["rounds"])
        for which in ("package", "plain", "batches", "loop"):
            memory = [
                in_fresh_process(one_pass, o["tower"], batch, o["step"], which)[1]
                for _ in range(PROCESSES)
            ]
            yield table_row(f"windows, batch {batch}", f"highest memory, {which}", memory, "MB")


def _window_times(model: OpenClip, batch: int, step: int, rounds: int) -> Iterator[Row]:
    per_size = [len(window_indices(model.grid, k)) for k in SIZES]
    taken, total = sum(-(-n // step) for n in per_size), sum(per_size)
    in_windows = sum(n * (1 + k * k) for k, n in zip(SIZES, per_size))
    tokens = batch * (in_windows + 1 + model.grid[0] * model.grid[1])
    a = torch.randn(batch * 5 * per_size[0], model.width)
    b = torch.randn(4 * model.width, model.width)
    products = {"gemm": lambda: linear(a, b), "mkl": lambda: F.linear(a, b)}
    s = in_turn(rounds, **passes(model, batch, step), **products)
    package, plain = s["package"], s["plain"]
    loop = plain + s["loop"] * total / taken  # scaled from a share of the windows
    batches = plain + s["batches"]
    rate = 2 * a.numel() * len(b) / s["gemm"]
    # of the plain algorithm: 12 C^2 products a token and block
    share = 24 * model.width**2 * model.n_blocks * tokens / package / rate
    part = f"windows, batch {batch}"
    one_batch = "all windows of a size as one batch, unmodified tower, s an image"
    of_products = "share of the rate of matrix products, as the package does them"
    layers = "a product as a layer of PyTorch does it / as the package does"
    for what, seconds in {
        "package, s an image": package,
        f"plain loop, s an image (from {taken} of {total} windows)": loop,
        one_batch: batches,
        "plain forward, s an image": plain,
    }.items():
        yield table_row(part, what, seconds / batch)
    yield table_row(part, "plain loop / package", loop / package, "x")
    yield table_row(part, "windows of a size as one batch / package", batches / package, "x")
    yield table_row(part, "package / plain forward", package / plain, "x")
    yield table_row(part, of_products, share, "x", ">= 0.85")
    yield table_row(part, layers, s["mkl"] / s["gemm"], "x")
    without = s["without oneDNN"] / package
    yield table_row(part, "package with PyTorch's layers / package", without, "x")
    if "bf16" in s:
        yield table_row(part, "package / package in bf16", package / s["bf16"], "x", ">= 1.6")
    for fast in ("+".join(fast) for fast in FAST):
        goal = ">= 4" if fast in ("4s3", "3s3") else ""
        yield table_row(part, f"package / its fast mode {fast}", package / s[fast], "x", goal)


def growing(folder: str, n: int) -> Callable[[], Any]:
    """Return a call that encodes n images of a folder with the tiny tower."""
    model, paths = tower("tiny"), [str(Path(folder) / f"{i}.png") for i in range(n)]
    store = Path(folder) / f"store {n}"
    return lambda: features.encode(model, paths, windows=(2,), store=store, progress=False)


def growth(o: Mapping[str, Any]) -> Iterator[Row]:
    """Measure time and memory of encoding more and more images, with the tiny tower."""
    rng, part = np.random.default_rng(0), "growth, tiny tower"
    with tempfile.TemporaryDirectory() as folder:
        for i in range(max(o["grow"])):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(folder) / f"{i}.png")
        for n in o["grow"]:
            seconds, memory = in_fresh_process(growing, folder, n)
            yield table_row(part, f"encode {n:,} images, ms an image", 1000 * seconds / n, "ms")
            yield table_row(part, f"encode {n:,} images, highest memory", memory, "MB")
