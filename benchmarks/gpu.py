"""Check a GPU against the CPU, then measure it: one command, six minutes, no network.

    python -m benchmarks.gpu --out FOLDER       writes gpu.csv and gpu.log there, row by row
    python -m benchmarks.gpu --out FOLDER --append --only files study
                                                runs two parts again and keeps the other rows
    python -m benchmarks.gpu --out FOLDER --device cpu --tiny
                                                a rehearsal without a GPU, half a minute

A part that fails gives a row with the error, and the next part runs. A part for which the time
does not suffice gives a row that says so. The exit status is 1 where a check failed (a difference
above its goal, or an error in a check) or was not run to its end. Weights are random and images are
made on the spot. benchmarks/README.md says what to bring to a machine without network.
"""

import argparse
import contextlib
import faulthandler
import functools
import gc
import math
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

from vlmad_utils.paths import atomic_write

from . import gpu_checks, gpu_speed
from .gpu_setup import FULL, TINY, card
from .timing import Row, table_row

LINE = "{part:26.26} {what:80.80} {median:9.3g} {unit:8} [{low:.3g}, {high:.3g}] {goal} {met}"
End = Literal["done", "failed", "cut"]
GRACE = 5.0  # seconds after it until a part that hangs ends the process
RESERVE = 20.0  # seconds before the end in which no further row is begun


@dataclass(frozen=True)
class Part:
    """A part of the run.

    Attributes
    ----------
    rows : from options to rows
    seconds : that it takes on an H100 with 16 cores, as estimated
    check : whether its failure, or that it was not run, is one of the run
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
        "towers": Part(gpu_checks.towers, 20, True),
        "resize": Part(gpu_checks.resized, 5, True),
        "halves": Part(gpu_checks.halves, 10, True),
        "methods": Part(gpu_checks.methods, 15, True),
        "trainings": Part(gpu_checks.trainings, 10, True),
        "store": Part(gpu_checks.store, 10, True),
        "anomalib": Part(gpu_speed.anomalib, 35, bool(o.get("anomalib"))),
        "forwards-0": Part(forwards[0], 30),
        "files": Part(gpu_speed.files, 25),
        "study": Part(gpu_speed.study, 60),
        "compiled": Part(compiled[0], 60),
        **{f"forwards-{i}": Part(run, 45) for i, run in enumerate(forwards[1:], 1)},
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


class Verdict:
    """What is known of the checks so far.

    Parameters
    ----------
    checks : names of the parts that check

    Attributes
    ----------
    failed, waiting : those that failed, and those that were not run to their end
    """

    def __init__(self, checks: Sequence[str]) -> None:
        self.failed: list[str] = []
        self.waiting = list(checks)

    def over(self, name: str, passed: bool) -> bool:
        """Note that a part has run; return whether it was the last of the checks."""
        if name not in self.waiting:
            return False
        self.waiting.remove(name)
        self.failed += [] if passed else [name]
        return not self.waiting

    def __str__(self) -> str:
        found = {"checks that failed": self.failed, "checks that were not run": self.waiting}
        said = [f"{what}: {', '.join(names)}" for what, names in found.items() if names]
        return "; ".join(said) or "no check failed"

    @property
    def status(self) -> int:
        """Return the exit status: 0 where all checks are met."""
        return int(bool(self.failed or self.waiting))


def met(row: Mapping[str, Any]) -> str:
    """Return "yes" or "no" where a row has a goal, else nothing; an unknown number misses it."""
    found = re.fullmatch(r"(<=|>=) (\S+)", row["goal"])
    if found is None:
        return ""
    value, goal = row["median"], float(found[2])
    return "yes" if (value <= goal if found[1] == "<=" else value >= goal) else "no"


def run(name: str, part: Part, o: Mapping[str, Any], record: Record, deadline: float) -> End:
    """Run one part until it ends, fails, or the time is up; say which."""
    left, note = deadline - time.monotonic(), functools.partial(table_row, name, unit="")
    if left < part.seconds:
        what = f"skipped: {max(left, 0):.0f} s are left, about {part.seconds:.0f} s are needed"
        record.add(name, note(what, values=math.nan))
        return "cut"
    began = time.monotonic()
    try:
        for row in part.rows(o):
            record.add(name, row)
            if time.monotonic() > deadline:
                record.add(name, note("stopped: the time is up", values=math.nan))
                return "cut"
    except Exception as error:
        record.say(traceback.format_exc())
        first = (str(error).splitlines() or [""])[0]
        record.add(name, note(f"error: {type(error).__name__}: {first}", values=math.nan))
        return "failed"  # not the error: its traceback would hold what lies on the card
    finally:
        record.say(f"{name}: {time.monotonic() - began:.1f} s")
    return "done"


def works(device: torch.device) -> bool:
    """Return whether the device still computes; after some errors CUDA does not, in a process."""
    try:
        return torch.ones(2, device=device).sum().item() == 2
    except (RuntimeError, AssertionError):  # AssertionError: PyTorch was built without CUDA
        return False


def tidy(device: torch.device) -> None:
    """Give back what a part left on the device."""
    gc.collect()
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # it may be broken
            torch.cuda.empty_cache()


@contextlib.contextmanager
def watched(record: Record, verdict: Verdict, seconds: float) -> Iterator[Callable[[], None]]:
    """End the process after some seconds, with the status of the checks; give what stops that."""
    with record.log.open("a", encoding="utf-8") as log:

        def end() -> None:
            faulthandler.dump_traceback(log)
            record.say(f"the time is up while a part runs (where: see gpu.log); {verdict}")
            os._exit(verdict.status)

        timer = threading.Timer(seconds, end)
        timer.daemon = True

        def stop() -> None:
            timer.cancel()
            faulthandler.cancel_dump_traceback_later()

        timer.start()
        # where not even a thread of Python gets a turn
        faulthandler.dump_traceback_later(seconds + 15, exit=True, file=log)
        try:
            yield stop
        finally:
            stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; return 0 where all checks are met, 2 without the device, else 1."""
    began, options = time.monotonic(), _parser().parse_args(arguments)
    device, folder = torch.device(options.device), Path(options.out)
    if not works(device):
        print(
            f"PyTorch {torch.__version__} finds no {device} that computes here: use a machine with "
            "an NVIDIA GPU and its driver, or rehearse with --device cpu --tiny.",
            file=sys.stderr,
        )
        return 2
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
    verdict = Verdict([name for name in names if known[name].check])
    with watched(record, verdict, 60 * options.minutes + GRACE) as stop:
        for i, name in enumerate(names):
            rows = len(record.rows)
            ended = run(name, known[name], o, record, end - RESERVE)
            tidy(device)
            passed = outcome(name, ended, record.rows[rows:])
            if passed is not None and verdict.over(name, passed):
                record.say(f"the checks are over: {verdict}")
            rest = names[i + 1 :]
            if ended == "failed" and rest and not works(device):
                record.say("the device does not answer in this process: a new one goes on")
                stop()  # the new process watches itself
                code = _in_new_process(options, rest, (end - time.monotonic()) / 60)
                verdict.waiting = [check for check in verdict.waiting if check not in rest]
                verdict.failed += ["what the new process did"] * bool(code)
                break
    record.say(f"{verdict}; {time.monotonic() - began:.0f} s")
    return verdict.status


def outcome(name: str, ended: End, rows: Sequence[Row]) -> bool | None:
    """Return whether a part meets its goals as a check; None where it was not run to its end."""
    if name == "anomalib":  # the gap is its check, not its speed
        rows = [row for row in rows if "difference" in row["what"]]
        ended = "done" if rows else ended
    if ended == "failed" or any(row["met"] == "no" for row in rows):
        return False
    return None if ended == "cut" else True


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
