"""Compare WinCLIP with anomalib's WinClip: the same weights and images, timed in turn.

    python -m venv ~/peer && ~/peer/bin/pip install "anomalib[cpu]==2.7.0" "open-clip-torch==2.24.0"
    python -m benchmarks.peers ~/peer/bin/python      writes data/results/bench_peers.csv, fifteen
                                                      minutes on two quiet cores

Each side runs in its own environment. Linux only (memory is read from /proc). Weights are random,
as only shapes matter here. That both give the same window embeddings is checked first.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from vlmad_utils import report
from vlmad_utils.features import Arrays
from vlmad_utils.methods import upsample, winclip
from vlmad_utils.models import Backbone, prompts
from vlmad_utils.models.onednn import has_instructions

from .encoding import tower
from .timing import PROCESSES, Row, in_fresh_process, in_turn, table_row

TOWER, SIZES, ROUNDS = "ViT-B-16-plus-240", (2, 3), 5
CASES = {  # images at once, references
    "zero-shot, batch 1": (1, 0),
    "1-shot, batch 1": (1, 1),
    "zero-shot, batch 8": (8, 0),
}
GOALS = {"zero-shot, batch 1": ">= 2.1", "zero-shot, batch 8": ">= 2.3"}
HALF_GOALS = {"zero-shot, batch 1": ">= 3.5", "zero-shot, batch 8": ">= 3.8"}
LINE = "{what:70.70} {median:9.3g} {unit:2} [{low:.3g}, {high:.3g}] {goal}"
Ask = Callable[..., dict[str, Any]]


@contextlib.contextmanager
def anomalib(python: str, weights: Path | str, device: str = "cpu") -> Iterator[Ask]:
    """Give a function that asks anomalib's process, as ``ask`` below.

    Parameters
    ----------
    python : interpreter of an environment with anomalib, or a folder of packages, which are added
        to those of this interpreter
    weights : safetensors of the tower
    device : "cpu" or "cuda"
    """
    site = Path(python).is_dir()
    script = str(Path(__file__).with_name("anomalib_winclip.py"))
    interpreter = sys.executable if site else python
    command = [interpreter, script, str(weights), str(torch.get_num_threads()), device]
    paths = [python, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)} if site else None
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        requests, answers = process.stdin, process.stdout
        assert requests and answers

        def ask(
            batch: int,
            shots: int,
            out: str | None = None,
            half: bool = False,
            memory: bool = False,
        ) -> dict[str, Any]:
            request = {"batch": batch, "shots": shots, "out": out, "half": half, "memory": memory}
            requests.write(json.dumps(request) + "\n")
            requests.flush()
            if answer := answers.readline():
                return json.loads(answer)
            raise RuntimeError(
                f"anomalib's process ended while it worked on {request} (its message is above)."
            )

        if not answers.readline():
            raise RuntimeError(
                f"{python} could not run anomalib's WinClip (its message is above): "
                "install it there as this module says."
            )
        try:
            yield ask
        finally:
            with contextlib.suppress(BrokenPipeError):
                requests.close()


def some_pixels(model: Backbone, batch: int) -> torch.Tensor:
    """Return random images (batch, 3, H, W), the same as anomalib's side makes."""
    return torch.randn(batch, 3, *model.image_size, generator=torch.Generator().manual_seed(0))


def encoded(model: Backbone, pixels: torch.Tensor) -> Arrays:
    """Encode images with all that WinCLIP reads."""
    out = model.encode_image(pixels, ("final",), SIZES)
    return Arrays(
        out["image"],
        model.grid,
        tokens={"final": out["tokens-final"]},
        windows={k: out[f"windows-{k}"] for k in SIZES},
    )


def winclip_pass(
    model: Backbone, pixels: torch.Tensor, shots: int = 0
) -> Callable[[], torch.Tensor]:
    """Return a call from pixels to maps: encode, score, maps at the size of the image, on the CPU.

    Parameters
    ----------
    pixels : (B, 3, H, W)
    shots : references; each is the first image
    """
    text = prompts.prototypes(model, "part", store=None)
    references = encoded(model, pixels[:1]) if shots else None

    def call() -> torch.Tensor:
        feats = encoded(model, pixels)
        if references is None:
            scores = winclip.zero_shot(feats, text)
        else:
            scores = winclip.few_shot(feats, references, text)
        return upsample(scores.maps, model.image_size).cpu()

    return call


def forward(batch: int, shots: int, precision: str = "fp32") -> Callable[[], torch.Tensor]:
    """Return the package's call of a case on the CPU."""
    model = tower(TOWER, precision=precision)
    return winclip_pass(model, some_pixels(model, batch), shots)


def compare(python: str) -> Iterator[Row]:
    """Yield rows of the table: difference of embeddings, times, memory."""
    model = tower(TOWER)
    with tempfile.TemporaryDirectory() as folder:
        weights, out = Path(folder) / "weights.safetensors", Path(folder) / "windows.safetensors"
        state = model.model.state_dict()
        save_file({name: value.contiguous() for name, value in state.items()}, weights)
        with anomalib(python, weights) as ask:
            yield largest_gap(ask, model, str(out))
            for name in CASES:
                yield from _times(name, ask)
        yield from memory(python, weights)


def largest_gap(ask: Ask, model: Backbone, out: str, goal: str = "<= 1e-5") -> Row:
    """Return the row of the largest difference of window embeddings, which go to the file out."""
    ask(2, 0, out)
    theirs, ours = load_file(out), encoded(model, some_pixels(model, 2)).windows
    gaps = [(F.normalize(theirs[str(k)], dim=-1) - ours[k].cpu()).abs().max() for k in SIZES]
    what = "largest difference of window embeddings of unit length"
    return table_row("anomalib", what, max(gap.item() for gap in gaps), "", goal)


def _times(name: str, ask: Ask) -> Iterator[Row]:
    batch, shots = CASES[name]
    half = {"bf16": forward(batch, shots, "bf16")} if has_instructions("bf16") else {}
    calls = {"package": forward(batch, shots), "anomalib": lambda: ask(batch, shots), **half}
    s = in_turn(ROUNDS, **calls)
    ratio = s["anomalib"] / s["package"]
    yield table_row("anomalib", f"package, {name}, s an image", s["package"] / batch)
    yield table_row("anomalib", f"anomalib, {name}, s an image", s["anomalib"] / batch)
    yield table_row("anomalib", f"anomalib / package, {name}", ratio, "x", GOALS.get(name, ""))
    if half:
        what = f"anomalib / package in bf16, {name}"
        goal = HALF_GOALS.get(name, "")
        yield table_row("anomalib", what, s["anomalib"] / s["bf16"], "x", goal)


def memory(python: str, weights: Path) -> Iterator[Row]:
    """Yield rows of the highest memory in a forward pass, above what was there before it."""
    for name, (batch, shots) in CASES.items():
        ours, theirs = np.empty((2, PROCESSES))
        for i in range(PROCESSES):  # each in a process of its own
            with anomalib(python, weights) as ask:
                theirs[i] = ask(batch, shots, memory=True)["memory"]
            ours[i] = in_fresh_process(forward, batch, shots)[1]
        what, ratio = "highest memory, {}, " + name, ours / theirs
        yield table_row("anomalib", what.format("package"), ours, "MB")
        yield table_row("anomalib", what.format("anomalib"), theirs, "MB")
        yield table_row("anomalib", what.format("package / anomalib"), ratio, "x", "<= 0.65")


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Compare, print each row, and record the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("python", help="interpreter or folder of packages with anomalib")
    parser.add_argument(
        "--other-host",
        action="store_true",
        help="write bench_peers_other_host.csv, a second table on the page",
    )
    options, rows = parser.parse_args(arguments), []
    for row in compare(options.python):
        rows.append(row)
        print(LINE.format(**row), flush=True)
    table = pd.DataFrame(rows).assign(threads=torch.get_num_threads())
    if options.other_host:
        report.save_table(table, "bench_peers_other_host")
    else:
        report.save_table(table, "bench_peers")
    return table


if __name__ == "__main__":
    main()
