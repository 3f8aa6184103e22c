"""Check a GPU against the CPU, then measure it: one command, six minutes, no network.

    python -m benchmarks.gpu --out FOLDER       writes gpu.csv and gpu.log there, row by row
    python -m benchmarks.gpu --out FOLDER --append --only files study
                                                runs two parts again and keeps the other rows
    python -m benchmarks.gpu --out FOLDER --device cpu --tiny
                                                a rehearsal without a GPU, half a minute

A part that fails gives a row with the error, and the next part runs. A part for which the time
does not suffice gives a row that says so. The exit status is 1 where a check failed: a difference
above its goal, or an error in a check. Weights are random and images are made on the spot.
benchmarks/README.md says what to bring to a machine without network.
"""

import argparse
import faulthandler
import functools
import math
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from vlmad_utils.paths import atomic_write

from . import gpu_checks, gpu_speed
from .gpu_setup import FULL, TINY, card
from .timing import Row, table_row

LINE = "{part:26.26} {what:80.80} {median:9.3g} {unit:8} [{low:.3g}, {high:.3g}] {goal} {met}"
RESERVE = 20.0  # seconds before the end in which no further row is begun


@dataclass(frozen=True)
class Part:
    """A part of the run.

    Attributes
    ----------
    rows : from options to rows
    seconds : that it takes on an H100 with 16 cores, as estimated
    check : whether its failure is one of the run
    """

    rows: Callable[[Mapping[str, Any]], Iterator[Row]]
    seconds: float
    check: bool = False


def parts(o: Mapping[str, Any]) -> dict[str, Part]:
    """Return the parts in the order in which they run."""
    forwards, compiled = (
        [functools.partial(function, name=name) for name in o["batches"]]
        for function in (gpu_speed.forwards, gpu_speed.compiled)
    )
    return {
        "towers": Part(gpu_checks.towers, 25, True),
        "halves": Part(gpu_checks.halves, 15, True),
        "methods": Part(gpu_checks.methods, 20, True),
        "trainings": Part(gpu_checks.trainings, 10, True),
        "store": Part(gpu_checks.store, 15, True),
        "forwards-0": Part(forwards[0], 30),
        "anomalib": Part(gpu_speed.anomalib, 40),
        "files": Part(gpu_speed.files, 40),
        "study": Part(gpu_speed.study, 60),
        **{f"forwards-{i}": Part(run, 45) for i, run in enumerate(forwards[1:], 1)},
        "compiled": Part(compiled[0], 60),
    }


class Record:
    """Write rows and words to a folder as they come: gpu.csv whole each time, gpu.log at its end.

    Parameters
    ----------
    facts : columns that are the same in all rows
    rows : that are there already
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], rows: Sequence[Row] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.table, self.log = folder / "gpu.csv", folder / "gpu.log"
        self.facts, self.rows = facts, list(rows)

    def say(self, text: str) -> None:
        """Print a text and add it to the log."""
        print(text, flush=True)
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")

    def add(self, name: str, row: Row) -> None:
        """Write a row of a part of the run."""
        row = {"run": name, **row, "met": met(row), **self.facts}
        self.rows.append(row)
        with atomic_write(self.table) as temporary:
            pd.DataFrame(self.rows).to_csv(temporary, index=False, float_format="%.6g")
        self.say(LINE.format(**row))


def met(row: Mapping[str, Any]) -> str:
    """Return "yes" or "no" where a row has a goal, else nothing; an unknown number misses it."""
    found = re.fullmatch(r"(<=|>=) (\S+)", row["goal"])
    if found is None:
        return ""
    value, goal = row["median"], float(found[2])
    return "yes" if (value <= goal if found[1] == "<=" else value >= goal) else "no"


def run(
    name: str, part: Part, o: Mapping[str, Any], record: Record, deadline: float
) -> Exception | None:
    """Run one part until it ends, fails, or the time is up; return what it failed with."""
    left, note = deadline - time.monotonic(), functools.partial(table_row, name, unit="")
    if left < part.seconds:
        what = f"skipped: {max(left, 0):.0f} s are left, about {part.seconds:.0f} s are needed"
        record.add(name, note(what, values=math.nan))
        return None
    began = time.monotonic()
    try:
        for row in part.rows(o):
            record.add(name, row)
            if time.monotonic() > deadline:
                record.add(name, note("stopped: the time is up", values=math.nan))
                return None
    except Exception as error:
        record.say(traceback.format_exc())
        first = (str(error).splitlines() or [""])[0]
        record.add(name, note(f"error: {type(error).__name__}: {first}", values=math.nan))
        return error
    finally:
        record.say(f"{name}: {time.monotonic() - began:.1f} s")
    return None


def works(device: torch.device) -> bool:
    """Return whether the device still computes; after some errors CUDA does not, in a process."""
    try:
        return torch.ones(2, device=device).sum().item() == 2
    except RuntimeError:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; return 1 where a check failed, else 0."""
    began, options = time.monotonic(), _parser().parse_args(arguments)
    device, folder = torch.device(options.device), Path(options.out)
    o = (TINY if options.tiny else FULL) | {"device": device, "anomalib": options.anomalib}
    known = parts(o)
    names = options.only or list(known)
    if unknown := set(names) - set(known):
        raise SystemExit(f"no parts {sorted(unknown)}; the parts are {', '.join(known)}")
    facts = {"card": card(device), "torch": torch.__version__, "threads": torch.get_num_threads()}
    before: list[Row] = []
    if options.append and (folder / "gpu.csv").exists():
        table = pd.read_csv(folder / "gpu.csv", keep_default_na=False, na_values=["nan", ""])
        table = table[~table["run"].isin(names)].fillna({"unit": "", "goal": "", "met": ""})
        before = [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]
    record = Record(folder, facts, before)
    record.say(f"{facts['card']}, PyTorch {facts['torch']}, {facts['threads']} threads: {names}")
    end = began + 60 * options.minutes
    failed: list[str] = []
    with record.log.open("a", encoding="utf-8") as log:
        # where a part hangs: what it did is written, and the process ends
        faulthandler.dump_traceback_later(60 * options.minutes + 5, exit=True, file=log)
        try:
            for i, name in enumerate(names):
                rows = len(record.rows)
                error = run(name, known[name], o, record, end - RESERVE)
                missed = any(row["met"] == "no" for row in record.rows[rows:])
                if known[name].check and (error or missed):
                    failed.append(name)
                rest = names[i + 1 :]
                if error and rest and not works(device):
                    record.say("the device does not answer in this process: a new one goes on")
                    left = (end - time.monotonic()) / 60
                    code = _in_new_process(options, rest, left)
                    failed += ["what the new process did"] * bool(code)
                    break
        finally:
            faulthandler.cancel_dump_traceback_later()
    said = f"checks that failed: {', '.join(failed)}" if failed else "no check failed"
    record.say(f"{said}; {time.monotonic() - began:.0f} s")
    return int(bool(failed))


def _in_new_process(options: argparse.Namespace, names: Sequence[str], minutes: float) -> int:
    """Run parts in a new process, which adds to the table; return its exit status."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", options.out, "--append"]
    command += ["--device", options.device, "--minutes", f"{minutes:.3f}", "--only", *names]
    command += ["--anomalib", options.anomalib] if options.anomalib else []
    command += ["--tiny"] if options.tiny else []
    return subprocess.run(command).returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, help="folder of gpu.csv and gpu.log")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="default cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny tower and few images")
    parser.add_argument("--minutes", type=float, default=6.0, help="after which it ends; default 6")
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts that run, in this order")
    parser.add_argument("--append", action="store_true", help="keep the other parts' rows of --out")
    parser.add_argument(
        "--anomalib",
        metavar="PLACE",
        help="interpreter with anomalib, or a folder of packages that this interpreter lacks",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
