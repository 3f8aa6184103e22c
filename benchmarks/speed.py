"""Run a benchmark that anyone can run: ratios within one run, their median, lowest and highest.

    python -m benchmarks.speed            = make bench; writes data/results/bench.csv, about
                                          20 minutes on two quiet cores
    python -m benchmarks.speed --quick    a tiny tower and small numbers, a minute; prints only
    python -m benchmarks.speed --only windows scoring

Nothing passes or fails by its time. Alternatives are timed in turn, round after round, so that
other work on the machine hits them alike; a ratio is formed in each round. Weights are random, as
only shapes matter here.
"""

import argparse
from collections.abc import Sequence

import pandas as pd
import torch

from vlmad_utils import report

from .encoding import growth, windows
from .scoring import reuse, scoring
from .storing import storing

FULL = {
    "tower": "ViT-B-16-plus-240",
    "batches": (1, 8),
    "rounds": 5,
    "step": 36,
    "sets": 1000,
    "images": 500,
    "search": (100_000, 1_000_000),
    "maps": 1000,
    "side": 256,
    "study": 48,
    "pool": 16,
    "stored": 150_000,
    "read": 1024,
    "grow": (100, 1000, 10_000),
}
QUICK = {
    "tower": "tiny",
    "batches": (1, 4),
    "rounds": 3,
    "step": 4,
    "sets": 50,
    "images": 50,
    "search": (1000, 70_000),
    "maps": 40,
    "side": 64,
    "study": 8,
    "pool": 10,
    "stored": 3000,
    "read": 64,
    "grow": (50, 200),
}
PARTS = {"windows": windows, "scoring": scoring, "study": reuse, "store": storing, "growth": growth}
LINE = "{part:34.34} {what:76.76} {median:9.3g} {unit:2} [{low:.3g}, {high:.3g}] {goal}"


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Run the parts, print each row, and record the table of a full run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small numbers, to see that it works; nothing is written",
    )
    parser.add_argument(
        "--only",
        nargs="*",
        choices=PARTS,
        default=list(PARTS),
        help="parts; then nothing is written either",
    )
    options = parser.parse_args(arguments)
    rows = []
    for name in options.only:
        for row in PARTS[name](QUICK if options.quick else FULL):
            rows.append(row)
            print(LINE.format(**row), flush=True)
    table = pd.DataFrame(rows).assign(threads=torch.get_num_threads())
    if options.quick or set(options.only) != set(PARTS):
        return table
    report.save_table(table, "bench")
    return table


if __name__ == "__main__":
    main()
