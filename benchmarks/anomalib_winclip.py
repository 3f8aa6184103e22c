"""Run anomalib's WinClip on the weights of a file; a script for anomalib's environment.

Reads one JSON object a line, {"batch": images, "shots": K, "out": path or null}, runs a forward
pass, and answers one line. See :mod:`benchmarks.peers`.
"""

import ctypes
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


def memory() -> float:
    """Return the MB that this process had in memory at most."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def main(weights: str, threads: str) -> None:
    """Answer requests until there are no more."""
    torch.set_num_threads(int(threads))
    model = WinClipModel()
    model.clip.load_state_dict(load_file(weights))
    model.eval().setup("part")
    print("{}", flush=True)
    for request in map(json.loads, sys.stdin):
        seeded = torch.Generator().manual_seed(0)
        pixels = torch.randn(request["batch"], 3, 240, 240, generator=seeded)
        if request["shots"] != model.k_shot:
            model.k_shot = 0
            if request["shots"]:
                model.setup(reference_images=pixels[:1].repeat(request["shots"], 1, 1, 1))
        ctypes.CDLL(None).malloc_trim(0)  # as benchmarks.timing.forget_memory does
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the highest so far is forgotten
        before = memory()
        model(pixels)
        answer = {"memory": memory() - before}
        if request["out"]:
            with torch.no_grad():
                _, windows, _ = model.encode_image(pixels)
            save_file(
                {str(k): w.contiguous() for k, w in zip(model.scales, windows)}, request["out"]
            )
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
