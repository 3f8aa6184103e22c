"""The comparison with anomalib: what is compared, and what is said where anomalib is missing. Its times are never judged here."""

import contextlib
import sys
import time

import pytest
from safetensors.torch import load_file, save_file

from benchmarks import peers, speed
from vlmad_utils import report


def test_both_sides_see_the_same_cases_and_ratios_are_theirs_over_ours(monkeypatch, tmp_path):
    model, asked = speed.tower("tiny"), []

    @contextlib.contextmanager
    def slow(python, weights):
        assert load_file(weights).keys() == model.model.state_dict().keys()

        def ask(batch, shots, out=None):
            asked.append((batch, shots))
            if out:
                save_file(
                    {str(k): 3 * x for k, x in peers.forward_windows(model, batch).items()}, out
                )  # length does not matter
            time.sleep(0.5)
            return {"memory": 100.0}

        yield ask

    monkeypatch.setenv("VLMAD_RESULTS", str(tmp_path))
    monkeypatch.setattr(peers, "anomalib", slow)
    monkeypatch.setattr(peers.models, "load", lambda *_: model)
    monkeypatch.setattr(peers, "ROUNDS", 2)
    monkeypatch.setattr(
        peers,
        "in_fresh_process",
        lambda task, *arguments: (task(*arguments)() is None or 1.0, 50.0),
    )
    table = peers.main(["python"]).set_index("what")["median"]
    assert table["largest difference of window embeddings of unit length"] < 1e-6
    for name, (batch, shots) in peers.CASES.items():
        assert (
            table[f"anomalib / package, {name}"] > 2
            and table[f"anomalib, {name}, s an image"] >= 0.5 / batch
        )
        assert (
            table[f"highest memory, package / anomalib, {name}"] == 0.5
            and asked.count((batch, shots)) == 3 + speed.TIMES
        )
    assert len(report.load_table("bench_peers")) == len(table)


def test_an_environment_without_anomalib_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="could not run anomalib's WinClip.*install it there"):
        with peers.anomalib(sys.executable, tmp_path / "none"):
            pass
