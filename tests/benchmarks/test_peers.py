"""The comparison with anomalib: what is compared, and what is said where anomalib is missing.

Its times are never judged here.
"""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from benchmarks import encoding, peers, timing
from vlmad_utils import report


def test_both_sides_see_the_same_cases_and_ratios_are_theirs_over_ours(monkeypatch, tmp_path):
    model, asked = encoding.tower("tiny"), []

    @contextlib.contextmanager
    def slow(python, weights):
        assert load_file(weights).keys() == model.model.state_dict().keys()

        def ask(batch, shots, out=None, memory=False):
            asked.append((batch, shots))
            if out:
                windows = peers.encoded(model, peers.some_pixels(model, batch)).windows
                save_file({str(k): 3 * x for k, x in windows.items()}, out)  # of any length
            return {"memory": 100.0} if memory else {}

        yield ask

    monkeypatch.setenv("VLMAD_RESULTS", str(tmp_path))
    monkeypatch.setattr(peers, "anomalib", slow)
    monkeypatch.setattr(peers, "tower", lambda _, precision="fp32": model)

    def timed(rounds, **calls):
        for call in calls.values():
            call()
        return {name: np.full(rounds, 3.0 if name == "anomalib" else 1.0) for name in calls}

    def measured(task, *arguments):
        task(*arguments)()
        return 1.0, 50.0

    monkeypatch.setattr(peers, "has_instructions", lambda precision: precision == "bf16")
    monkeypatch.setattr(peers, "in_turn", timed)
    monkeypatch.setattr(peers, "in_fresh_process", measured)
    table = peers.main(["python"]).set_index("what")["median"]
    assert table["largest difference of window embeddings of unit length"] < 1e-6
    for name, (batch, shots) in peers.CASES.items():
        assert table[f"anomalib / package, {name}"] == 3
        assert table[f"anomalib / package in bf16, {name}"] == 3
        assert table[f"anomalib, {name}, s an image"] == pytest.approx(3 / batch, rel=1e-5)
        assert table[f"highest memory, package / anomalib, {name}"] == 0.5
        assert asked.count((batch, shots)) == 1 + timing.PROCESSES
    assert len(report.load_table("bench_peers")) == len(table)


def test_an_environment_without_anomalib_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="could not run anomalib's WinClip.*install it there"):
        with peers.anomalib("false", tmp_path / "none"):
            pass


def test_a_folder_of_packages_comes_before_those_of_this_interpreter(monkeypatch, tmp_path):
    """As anomalib's own open_clip must, in its process only."""
    script = tmp_path / "said.py"
    script.write_text(
        "import json, os, sys\n"
        "print('{}', flush=True)\n"
        "request = json.loads(input())\n"
        "print(json.dumps([request, sys.argv[3], os.environ['PYTHONPATH']]), flush=True)\n"
    )
    monkeypatch.setenv("PYTHONPATH", "before")
    monkeypatch.setattr(
        peers, "Path", lambda path: Path(path) if path != peers.__file__ else script
    )
    monkeypatch.setattr(Path, "with_name", lambda self, _: self)
    with peers.anomalib(str(tmp_path), "weights", "cuda") as ask:
        request, device, path = ask(8, 1, half=True)
        assert request == {"batch": 8, "shots": 1, "out": None, "half": True, "memory": False}
        assert device == "cuda" and path.startswith(f"{tmp_path}:before")
        with pytest.raises(RuntimeError, match="ended while it worked on.*'batch': 2"):
            ask(2, 0)
