"""Run anomalib's WinClip on the weights of a file; a script for anomalib's environment.

    python anomalib_winclip.py WEIGHTS THREADS DEVICE

Reads one JSON object a line, {"batch": images, "shots": K, "out": path or null, "half": bool,
"memory": bool}, runs a forward pass, and answers one line, {"memory": MB}, or {} where memory was
not asked, as in all that is timed. See :mod:`benchmarks.peers`.
"""

import ctypes
import functools
import json
import sys
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load_file, save_file

create = open_clip.create_model_and_transforms


def without_weights(name: str, pretrained: str) -> Any:
    """Create a model of random weights: the weights come from the file, not from a hub."""
    return create(name)


setattr(open_clip, "create_model_and_transforms", without_weights)  # noqa: B010
# pyrefly: ignore[missing-import] - in anomalib's environment only
from anomalib.models.image.winclip.torch_model import WinClipModel  # noqa: E402


def forget_memory(device: str) -> None:
    """Forget the highest memory so far, as benchmarks.timing.forget_memory does."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # Linux


def memory(device: str) -> float:
    """Return the MB that this process had at most: of the card, or of the machine."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


@functools.lru_cache(1)
def some_pixels(batch: int, device: str) -> torch.Tensor:
    """Return random images (batch, 3, 240, 240); kept, so that only the pass is timed."""
    seeded = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, 240, 240, generator=seeded).to(device)


def main(weights: str, threads: str, device: str) -> None:
    """Answer requests until there are no more."""
    torch.set_num_threads(int(threads))
    model = WinClipModel()
    model.clip.load_state_dict(load_file(weights))
    model = model.eval().to(device)
    model.setup("part")
    print("{}", flush=True)
    for request in map(json.loads, sys.stdin):
        pixels = some_pixels(request["batch"], device)
        if request["shots"] != model.k_shot:
            model.k_shot = 0
            if request["shots"]:
                model.setup(reference_images=pixels[:1].repeat(request["shots"], 1, 1, 1))
        before = 0.0
        if request["memory"]:
            forget_memory(device)
            before = memory(device)
        half = torch.float16 if device == "cuda" else torch.bfloat16
        with torch.autocast(device, half, enabled=request["half"]):
            found = model(pixels)
        found.anomaly_map.cpu()  # waits for the card
        answer = {"memory": memory(device) - before} if request["memory"] else {}
        if request["out"]:
            torch.backends.cudnn.allow_tf32 = False  # so that numbers can be compared
            with torch.no_grad():
                _, windows, _ = model.encode_image(pixels)
            save_file(
                {str(k): w.contiguous().cpu() for k, w in zip(model.scales, windows)},
                request["out"],
            )
            torch.backends.cudnn.allow_tf32 = True
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
