"""WinCLIP against anomalib's WinClip: the same weights and images, each in its own environment, timed in turn.

    python -m venv ~/peer && ~/peer/bin/pip install "anomalib[cpu]==2.7.0" "open-clip-torch==2.24.0"
    python -m benchmarks.peers ~/peer/bin/python      writes data/results/bench_peers.csv, fifteen minutes on two quiet cores

Linux only (memory is read from /proc). Weights are random, as only shapes matter here; that both give the same window
embeddings is checked first.
"""

import argparse
import contextlib
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from vlmad_utils import models, report
from vlmad_utils.features import Arrays
from vlmad_utils.methods import upsample, winclip
from vlmad_utils.models import prompts

from .speed import TIMES
from .timing import in_fresh_process, in_turn, table_row

TOWER, SIZES, ROUNDS = "ViT-B-16-plus-240", (2, 3), 5
CASES = {
    "zero-shot, batch 1": (1, 0),
    "1-shot, batch 1": (1, 1),
    "zero-shot, batch 8": (8, 0),
}  # images at once, references
GOALS = {"zero-shot, batch 1": ">= 1.3", "zero-shot, batch 8": ">= 1.5"}


@contextlib.contextmanager
def anomalib(python, weights):
    """A function (batch, shots, out=None) -> answer of anomalib's process."""
    command = [
        python,
        str(Path(__file__).with_name("anomalib_winclip.py")),
        str(weights),
        str(torch.get_num_threads()),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def ask(batch, shots, out=None):
            process.stdin.write(json.dumps({"batch": batch, "shots": shots, "out": out}) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        if not process.stdout.readline():
            raise RuntimeError(
                f"{python} could not run anomalib's WinClip (its message is above): install it there as this module says."
            )
        try:
            yield ask
        finally:
            process.stdin.close()


def encoded(model, pixels):
    out = model.encode_image(pixels, ("final",), SIZES)
    return Arrays(
        out["image"],
        model.grid,
        tokens={"final": out["tokens-final"]},
        windows={k: out[f"windows-{k}"] for k in SIZES},
    )


def forward(batch, shots):
    """The package's call for a case: encode, score, maps at the size of the image."""
    model = models.load(TOWER, "random")
    text = prompts.prototypes(model, "part", store=None)
    pixels = torch.randn(batch, 3, *model.image_size, generator=torch.Generator().manual_seed(0))
    references = encoded(model, pixels[:1]) if shots else None

    def call():
        feats = encoded(model, pixels)
        scores = (
            winclip.few_shot(feats, references, text) if shots else winclip.zero_shot(feats, text)
        )
        return upsample(scores.maps, model.image_size)

    return call


def compare(python):
    """Yields rows of the table, see :func:`.timing.table_row`."""
    model = models.load(TOWER, "random")
    with tempfile.TemporaryDirectory() as folder:
        weights, out = Path(folder) / "weights.safetensors", Path(folder) / "windows.safetensors"
        save_file(
            {name: value.contiguous() for name, value in model.model.state_dict().items()}, weights
        )
        with anomalib(python, weights) as ask:
            ask(2, 0, str(out))
            theirs, ours = load_file(out), forward_windows(model, 2)
            yield table_row(
                "anomalib",
                "largest difference of window embeddings of unit length",
                max(
                    (F.normalize(theirs[str(k)], dim=-1) - ours[k]).abs().max().item()
                    for k in SIZES
                ),
                "",
                "<= 1e-5",
            )
            for name, (batch, shots) in CASES.items():
                s = in_turn(
                    ROUNDS, package=forward(batch, shots), anomalib=lambda: ask(batch, shots)
                )  # noqa: B023 - called at once
                yield table_row("anomalib", f"package, {name}, s an image", s["package"] / batch)
                yield table_row("anomalib", f"anomalib, {name}, s an image", s["anomalib"] / batch)
                yield table_row(
                    "anomalib",
                    f"anomalib / package, {name}",
                    s["anomalib"] / s["package"],
                    "x",
                    GOALS.get(name, ""),
                )
        yield from memory(python, weights)


def memory(python, weights):
    """Rows of the highest memory in a forward pass, above what was there before it, each in a process of its own."""
    for name, (batch, shots) in CASES.items():
        ours, theirs = np.empty((2, TIMES))
        for i in range(TIMES):
            with anomalib(python, weights) as ask:
                theirs[i] = ask(batch, shots)["memory"]
            ours[i] = in_fresh_process(forward, batch, shots)[1]
        yield table_row("anomalib", f"highest memory, package, {name}", ours, "MB")
        yield table_row("anomalib", f"highest memory, anomalib, {name}", theirs, "MB")
        yield table_row(
            "anomalib", f"highest memory, package / anomalib, {name}", ours / theirs, "x", "<= 0.7"
        )


def forward_windows(model, batch):
    pixels = torch.randn(batch, 3, *model.image_size, generator=torch.Generator().manual_seed(0))
    return encoded(model, pixels).windows


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("python", help="interpreter of an environment with anomalib")
    rows = []
    for row in compare(parser.parse_args(arguments).python):
        rows.append(row)
        print(
            "{what:70.70} {median:9.3g} {unit:2} [{low:.3g}, {high:.3g}] {goal}".format(**row),
            flush=True,
        )
    return report.save_table(
        pd.DataFrame(rows).assign(threads=torch.get_num_threads()), "bench_peers"
    )


if __name__ == "__main__":
    main()
