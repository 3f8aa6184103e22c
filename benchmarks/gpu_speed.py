"""Measure a device: forwards, windows, files to scores, anomalib, a study; see :mod:`.gpu`."""

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from joblib import parallel_config
from PIL import Image
from safetensors.torch import save_file

from vlmad_procedural import FAMILIES
from vlmad_utils import features
from vlmad_utils.models import OpenClip, attention, prompts, window_indices
from vlmad_utils.models.loading import choose_device
from vlmad_utils.study import registry

from . import peers
from .encoding import SIZES
from .gpu_setup import cpu_tower, highest_on_card, made_images, placed, waited
from .scoring import reuse
from .timing import Row, in_turn, table_row

NONE = float("nan")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def forwards(o: Mapping[str, Any], name: str) -> Iterator[Row]:
    """Time plain forwards, exact WinCLIP and matrix products of a tower, in each precision.

    On a GPU attention of windows, too, in each way that is open to it.
    """
    base, device, part = cpu_tower(name), o["device"], f"forwards, {name}"
    models = {precision: placed(base, device, precision) for precision in o["precisions"]}
    products = {
        f"{precision}: products": window_products(base, o, precision) for precision in models
    }
    s = yield from _timed(o, part, base, models, products)
    default = choose_device(str(device))[1]
    for precision in o["precisions"]:
        rate = product_flops(base, o) / s[f"{precision}: products"]
        yield table_row(part, f"{precision}: products of these shapes", rate / 1e12, "TFLOP/s")
        if f"{precision}: WinCLIP" in s:
            seconds = s[f"{precision}: WinCLIP"] - s[f"{precision}: plain"]
            share = o["batches"][name] * window_flops(base) / seconds / rate
            what = f"{precision}: share of that rate in the window pass and the scores"
            yield table_row(part, what, share, "x", ">= 0.5" if precision == default else "")
    if device.type == "cuda":
        calls = window_attentions(base, o, DTYPES[default])
        timed = {what: waited(call, device) for what, call in calls.items()}
        for what, seconds in in_turn(o["rounds"], 1, **timed).items():
            yield table_row(part, f"{default}: {what}", 1000 * seconds, "ms")


def compiled(o: Mapping[str, Any], name: str) -> Iterator[Row]:
    """Time a tower through torch.compile against the same tower without it."""
    base, device, part = cpu_tower(name), o["device"], f"compiled, {name}"
    precision = choose_device(str(device))[1]
    plain, fast = placed(base, device, precision), placed(base, device, precision)
    fast.compile = o["compiler"]
    s = yield from _timed(o, part, base, {precision: plain, f"{precision}, compiled": fast})
    if not fast.compile:
        yield table_row(part, "it fell back to the tower without torch.compile", NONE, "")
    for what in ("plain", "WinCLIP"):
        both = f"{precision}: {what}", f"{precision}, compiled: {what}"
        if all(each in s for each in both):
            ratio = s[both[0]] / s[both[1]]
            yield table_row(part, f"{what}: without torch.compile / with it", ratio, "x")


def _timed(
    o: Mapping[str, Any],
    part: str,
    base: OpenClip,
    models: Mapping[str, OpenClip],
    more: Mapping[str, Callable[[], Any]] | None = None,
) -> Generator[Row, None, dict[str, np.ndarray]]:
    """Yield rows of memory and images a second; return the seconds of all calls by name."""
    device, batch = o["device"], o["batches"][part.split(", ")[1]]
    pixels, calls = peers.some_pixels(base, batch).to(device), {}
    for label, model in models.items():
        both = {
            f"{label}: plain": lambda model=model: model.encode_image(pixels),
            f"{label}: WinCLIP": peers.winclip_pass(model, pixels),
        }
        try:
            memory = {what: highest_on_card(call, device) for what, call in both.items()}
        except RuntimeError as error:  # the others go on
            yield table_row(part, f"{label}: error: {error!r:.200}", NONE, "")
            continue
        calls |= both
        for what, value in memory.items() if device.type == "cuda" else ():
            yield table_row(part, f"{what}, highest memory of the card", value, "MB")
    timed = {what: waited(call, device) for what, call in {**calls, **(more or {})}.items()}
    s = in_turn(o["rounds"], 1, **timed)
    for what in calls:
        yield table_row(part, f"{what}, batch {batch}", batch / s[what], "images/s")
    return s


def window_attentions(
    model: OpenClip, o: Mapping[str, Any], dtype: torch.dtype
) -> dict[str, Callable[[], Any]]:
    """Return calls of attention alone: windows one by one or packed, by each choice of kernel."""
    heads, calls = model.visual.transformer.resblocks[0].attn.num_heads, {}
    for n in (1 + k * k for k in SIZES):
        packs = {tile: attention.windows_in_a_tile(n, tile) for tile in (64, 128)}
        whole = math.lcm(*packs.values())
        count = max(1, o["product_rows"] // (n * whole)) * whole
        qkv = tuple(torch.randn(3, count, n, model.width, device=o["device"], dtype=dtype))
        masks = {
            f"packed to {tile}": attention.packing_mask(count, n, n, o["device"], dtype, tile)
            for tile in packs
        }
        for way, mask in {"one by one": None, **masks}.items():
            for pinned in (False, True) if mask is not None else (False,):
                choice = "the package's kernel" if pinned else "PyTorch's choice"

                def call(qkv: Any = qkv, mask: Any = mask, n: int = n, own: bool = pinned) -> None:
                    kernel = attention.kernel_of_windows(n, qkv[0].device)
                    with kernel if own else contextlib.nullcontext():
                        attention.attend(qkv, heads, mask)

                calls[f"attention of {count:,} windows of {n} tokens, {way}, {choice}"] = call
    return calls


def layers_of(model: OpenClip) -> list[tuple[int, int]]:
    """Return (in, out) of the four products of a block."""
    c = model.width
    return [(c, 3 * c), (c, c), (c, 4 * c), (4 * c, c)]


def window_products(model: OpenClip, o: Mapping[str, Any], precision: str) -> Callable[[], Any]:
    """Return a call that multiplies rows of tokens with the four matrices of a block."""
    kind: dict[str, Any] = {"device": o["device"], "dtype": DTYPES[precision]}
    pairs = [
        (torch.randn(o["product_rows"], n, **kind), torch.randn(m, n, **kind))
        for n, m in layers_of(model)
    ]

    def call() -> None:
        for rows, weight in pairs:
            F.linear(rows, weight)

    return call


def product_flops(model: OpenClip, o: Mapping[str, Any]) -> int:
    """Return the operations of :func:`window_products`."""
    return sum(2 * o["product_rows"] * n * m for n, m in layers_of(model))


def window_flops(model: OpenClip) -> int:
    """Return the operations of the products that the windows of an image need.

    The first block's queries, keys and values are those of the image's tokens; in the last block
    only CLS asks.
    """
    square, patches = 2 * model.width**2, 1 + model.grid[0] * model.grid[1]
    total = 0
    for k in SIZES:
        n = len(window_indices(model.grid, k))
        tokens = n * (1 + k * k)
        middle = 12 * tokens * (model.n_blocks - 2)
        total += square * (3 * patches + 9 * tokens + middle + 3 * tokens + 9 * n)
    return total


def files(o: Mapping[str, Any]) -> Iterator[Row]:
    """Time WinCLIP from PNG files to scores, from arrays, and from pixels on the device."""
    device, part = o["device"], "files"
    base = cpu_tower(o["tower"])
    model = placed(base, device, choose_device(str(device))[1])
    text = prompts.prototypes(model, "part", store=None)
    scorers = {"WinCLIP": registry.winclip_method(model).bound(text, device=device)}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pngs(Path(folder), o["files"], o["pixels"])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            arrays = list(pool.map(lambda path: np.asarray(Image.open(path)), paths))
        n = len(paths) * o["repeats"]

        def streamed(images: Sequence[Any]) -> None:
            found = features.stream(model, images * o["repeats"], scorers, progress=False)
            for scored in found:
                for scores in scored.scores.values():
                    scores.image.cpu(), scores.maps.cpu()

        batch = o["batches"].get(o["tower"], 8)
        from_pixels = peers.winclip_pass(model, peers.some_pixels(model, batch).to(device))
        calls = {
            "files": lambda: streamed(paths),
            "arrays": lambda: streamed(arrays),
            "pixels": from_pixels,
        }
        memory = highest_on_card(calls["files"], device)
        rounds = min(3, o["rounds"])
        s = in_turn(rounds, 1, **{name: waited(call, device) for name, call in calls.items()})
    rate = {"files": n / s["files"], "arrays": n / s["arrays"], "pixels": batch / s["pixels"]}
    size = f"{o['pixels']} x {o['pixels']} pixels"
    yield table_row(part, f"PNG files of {size} to WinCLIP's scores", rate["files"], "images/s")
    yield table_row(part, f"arrays of {size} to scores", rate["arrays"], "images/s")
    yield table_row(part, "pixels on the device to maps", rate["pixels"], "images/s")
    ratio = rate["files"] / rate["arrays"]
    yield table_row(part, "rate of files to scores / arrays to scores", ratio, "x", ">= 0.6")
    ratio = rate["files"] / rate["pixels"]
    yield table_row(part, "rate of files to scores / pixels to maps", ratio, "x")
    if device.type == "cuda":
        yield table_row(part, "files to scores, highest memory of the card", memory, "MB")


def write_pngs(folder: Path, n: int, side: int) -> list[str]:
    """Write n images that differ, in threads, and return their paths."""
    images, _ = made_images(min(n, 16), side)
    paths = [str(folder / f"{i}.png") for i in range(n)]

    def write(i: int) -> None:
        moved = np.roll(images[i % len(images)], (7 * i, 11 * i), axis=(0, 1))
        Image.fromarray(moved).save(paths[i], compress_level=1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(n)))
    return paths


def anomalib(o: Mapping[str, Any]) -> Iterator[Row]:
    """Time anomalib's WinCLIP on the same card and weights, as it is and under autocast."""
    part, device = "anomalib", o["device"]
    if not o["anomalib"]:
        yield table_row(part, "skipped: no --anomalib was given", NONE, "")
        return
    base, default = cpu_tower(peers.TOWER), choose_device(str(device))[1]
    batch = o["batches"].get(peers.TOWER, 1)
    ours = {
        precision: placed(base, device, precision) for precision in dict.fromkeys((default, "fp32"))
    }
    pixels = peers.some_pixels(base, batch).to(device)
    with tempfile.TemporaryDirectory() as folder:
        weights, out = Path(folder) / "weights.safetensors", Path(folder) / "windows.safetensors"
        state = base.model.state_dict()
        save_file({name: value.contiguous() for name, value in state.items()}, weights)
        with peers.anomalib(o["anomalib"], weights, device.type) as ask:
            yield peers.largest_gap(ask, ours["fp32"], str(out), "<= 1e-4")
            calls: dict[str, Callable[[], Any]] = {
                "anomalib": lambda: ask(batch, 0),
                "anomalib under autocast": lambda: ask(batch, 0, half=True),
            }
            for precision, model in ours.items():
                calls[precision] = peers.winclip_pass(model, pixels)
            timed = {name: waited(call, device) for name, call in calls.items()}
            s = in_turn(o["rounds"], 1, **timed)
            for name, half in (("anomalib", False), ("anomalib under autocast", True)):
                memory = ask(batch, 0, half=half, memory=True)["memory"]
                yield table_row(part, f"{name}, highest memory", memory, "MB")
    for name, seconds in s.items():
        label = name if name.startswith("anomalib") else f"package, {name}"
        yield table_row(part, f"{label}, batch {batch}", batch / seconds, "images/s")
    for name in ("anomalib", "anomalib under autocast"):
        for precision in ours:
            goal = ">= 5" if (name, precision) == ("anomalib", default) else ""
            ratio = s[name] / s[precision]
            yield table_row(part, f"time of {name} / package, {precision}", ratio, "x", goal)


def study(o: Mapping[str, Any]) -> Iterator[Row]:
    """Time a study of all methods; cells run in threads, on the one device."""
    names = [name for name, family in FAMILIES.items() if family.role == "eval"]
    cores, device = os.cpu_count() or 1, str(o["device"])
    options: dict[str, Any] = {
        "model": placed(cpu_tower(o["tower"]), o["device"], choose_device(device)[1]),
        "start": True,
        "families": names[: o["categories"]],
        "seeds": 1,
        "sets": 20,
        "side": 240,
        "jobs": cores if o["categories"] > 1 else 1,
        "goal": "",  # that is for a CPU, where encoding takes most of the time
    }
    with parallel_config("threading", n_jobs=min(8, cores)):
        yield from reuse({**o, **options})
