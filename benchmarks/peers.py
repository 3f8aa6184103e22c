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
import subprocess
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

from .encoding import tower
from .timing import PROCESSES, Row, in_fresh_process, in_turn, table_row

TOWER, SIZES, ROUNDS = "ViT-B-16-plus-240", (2, 3), 5
CASES = {  # images at once, references
    "zero-shot, batch 1": (1, 0),
    "1-shot, batch 1": (1, 1),
    "zero-shot, batch 8": (8, 0),
}
GOALS = {"zero-shot, batch 1": ">= 1.3", "zero-shot, batch 8": ">= 1.5"}
LINE = "{what:70.70} {median:9.3g} {unit:2} [{low:.3g}, {high:.3g}] {goal}"
Ask = Callable[..., dict[str, Any]]


@contextlib.contextmanager
def anomalib(python: str, weights: Path | str) -> Iterator[Ask]:
    """Give a function (batch, shots, out=None) -> answer of anomalib's process."""
    script = str(Path(__file__).with_name("anomalib_winclip.py"))
    command = [python, script, str(weights), str(torch.get_num_threads())]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        requests, answers = process.stdin, process.stdout
        assert requests and answers

        def ask(batch: int, shots: int, out: str | None = None) -> dict[str, Any]:
            requests.write(json.dumps({"batch": batch, "shots": shots, "out": out}) + "\n")
            requests.flush()
            return json.loads(answers.readline())

        if not answers.readline():
            raise RuntimeError(
                f"{python} could not run anomalib's WinClip (its message is above): "
                "install it there as this module says."
            )
        try:
            yield ask
        finally:
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


def forward(batch: int, shots: int) -> Callable[[], torch.Tensor]:
    """Return the package's call of a case: encode, score, maps at the size of the image."""
    model = tower(TOWER)
    text = prompts.prototypes(model, "part", store=None)
    pixels = some_pixels(model, batch)
    references = encoded(model, pixels[:1]) if shots else None

    def call() -> torch.Tensor:
        feats = encoded(model, pixels)
        if references is None:
            scores = winclip.zero_shot(feats, text)
        else:
            scores = winclip.few_shot(feats, references, text)
        return upsample(scores.maps, model.image_size)

    return call


def compare(python: str) -> Iterator[Row]:
    """Yield rows of the table: difference of embeddings, times, memory."""
    model = tower(TOWER)
    with tempfile.TemporaryDirectory() as folder:
        weights, out = Path(folder) / "weights.safetensors", Path(folder) / "windows.safetensors"
        state = model.model.state_dict()
        save_file({name: value.contiguous() for name, value in state.items()}, weights)
        with anomalib(python, weights) as ask:
            ask(2, 0, str(out))
            theirs, ours = load_file(out), encoded(model, some_pixels(model, 2)).windows
            gaps = [(F.normalize(theirs[str(k)], dim=-1) - ours[k]).abs().max() for k in SIZES]
            what = "largest difference of window embeddings of unit length"
            yield table_row("anomalib", what, max(gap.item() for gap in gaps), "", "<= 1e-5")
            for name in CASES:
                yield from _times(name, ask)
        yield from memory(python, weights)


def _times(name: str, ask: Ask) -> Iterator[Row]:
    batch, shots = CASES[name]
    s = in_turn(ROUNDS, package=forward(batch, shots), anomalib=lambda: ask(batch, shots))
    ratio = s["anomalib"] / s["package"]
    yield table_row("anomalib", f"package, {name}, s an image", s["package"] / batch)
    yield table_row("anomalib", f"anomalib, {name}, s an image", s["anomalib"] / batch)
    yield table_row("anomalib", f"anomalib / package, {name}", ratio, "x", GOALS.get(name, ""))


def memory(python: str, weights: Path) -> Iterator[Row]:
    """Yield rows of the highest memory in a forward pass, above what was there before it."""
    for name, (batch, shots) in CASES.items():
        ours, theirs = np.empty((2, PROCESSES))
        for i in range(PROCESSES):  # each in a process of its own
            with anomalib(python, weights) as ask:
                theirs[i] = ask(batch, shots)["memory"]
            ours[i] = in_fresh_process(forward, batch, shots)[1]
        what = "highest memory, {}, " + name
        yield table_row("anomalib", what.format("package"), ours, "MB")
        yield table_row("anomalib", what.format("anomalib"), theirs, "MB")
        yield table_row("anomalib", what.format("package / anomalib"), ours / theirs, "x", "<= 0.7")


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Compare, print each row, and record the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("python", help="interpreter of an environment with anomalib")
    rows = []
    for row in compare(parser.parse_args(arguments).python):
        rows.append(row)
        print(LINE.format(**row), flush=True)
    table = pd.DataFrame(rows).assign(threads=torch.get_num_threads())
    report.save_table(table, "bench_peers")
    return table


if __name__ == "__main__":
    main()
