"""anomalib's WinClip on the weights of a file; a script of its own, for anomalib's environment. See :mod:`benchmarks.peers`.

Reads one JSON object a line, {"batch": images, "shots": K, "out": path or null}, runs a forward pass, answers one line.
"""

import ctypes
import json
import sys
from pathlib import Path

import open_clip
import torch
from safetensors.torch import load_file, save_file

create = open_clip.create_model_and_transforms
open_clip.create_model_and_transforms = lambda name, pretrained: create(
    name
)  # the weights come from the file, not from a hub

from anomalib.models.image.winclip.torch_model import WinClipModel  # noqa: E402


def memory():  # MB, at most so far
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def main(weights, threads):
    torch.set_num_threads(int(threads))
    model = WinClipModel()
    model.clip.load_state_dict(load_file(weights))
    model.eval().setup("part")
    print("{}", flush=True)
    for request in map(json.loads, sys.stdin):
        pixels = torch.randn(
            request["batch"], 3, 240, 240, generator=torch.Generator().manual_seed(0)
        )
        if request["shots"] != model.k_shot:
            model.k_shot = 0
            if request["shots"]:
                model.setup(reference_images=pixels[:1].repeat(request["shots"], 1, 1, 1))
        ctypes.CDLL(None).malloc_trim(0)  # as benchmarks.timing.forget does
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
