"""The benchmark measures what it says; its numbers are never judged here."""

import functools
import math
import sys

import numpy as np
import pytest
import torch

from benchmarks import encoding, scoring, speed, timing
from vlmad_utils import report


def test_alternatives_are_timed_in_turn_and_the_first_round_does_not_count(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def call(name, seconds):
        order.append(name)
        now[0] += seconds * len(order)

    found = timing.in_turn(2, a=lambda: call("a", 1), b=lambda: call("b", 10))
    assert order == ["a", "b"] * 3
    assert found["a"].tolist() == [3, 5] and found["b"].tolist() == [40, 60]
    row = timing.table_row("p", "b / a", found["b"] / found["a"], "x")
    assert (row["median"], row["low"], row["high"], row["rounds"]) == (
        np.median([40 / 3, 12]),
        12,
        40 / 3,
        2,
    )


@pytest.mark.slow
def test_memory_is_what_comes_on_top_in_a_process_of_its_own():
    mine = np.ones(300 * 2**20, np.uint8)  # of the parent: must not count
    seconds, memory = timing.in_fresh_process(functools.partial, np.ones, 50 * 2**20, np.uint8)
    assert 45 < memory < 75 and seconds > 0 and mine[0]


SMALLEST = {
    "rounds": 1,
    "batches": (2,),
    "step": 20,
    "sets": 5,
    "images": 6,
    "maps": 6,
    "side": 32,
    "study": 4,
    "stored": 200,
    "read": 8,
    "grow": (3, 6),
}


@pytest.fixture
def here(monkeypatch, tmp_path):
    """No process is started for a memory; the table would go to an empty folder."""

    def measured(task, *arguments):
        task(*arguments)()
        return 1.0, 1.0

    for module in (encoding, scoring):
        monkeypatch.setattr(module, "in_fresh_process", measured)
    monkeypatch.setenv("VLMAD_RESULTS", str(tmp_path))
    monkeypatch.setattr(speed, "QUICK", speed.QUICK | SMALLEST)
    return tmp_path


@pytest.mark.slow
def test_every_part_gives_rows_that_can_be_told_apart(here, capsys):
    table = speed.main(["--quick"])
    assert set(table["part"].str.split(",").str[0]) == {
        "windows",
        "scoring",
        "study",
        "store",
        "growth",
    }
    assert not table.duplicated(["part", "what"]).any()
    assert (
        (table["low"] <= table["median"]).all()
        and (table["median"] <= table["high"]).all()
        and (table["low"] > 0).all()
    )
    assert len(capsys.readouterr().out.splitlines()) == len(table)
    assert not list(here.iterdir())  # quick numbers are never recorded


def test_a_full_run_is_recorded_and_a_part_is_not(here, monkeypatch):
    with pytest.raises(FileNotFoundError, match="run make bench first"):
        report.load_table("bench")
    monkeypatch.setattr(
        speed,
        "PARTS",
        {
            name: lambda o, name=name: [timing.table_row(name, "x", [1.0, 3.0], goal="< 2")]
            for name in "ab"
        },
    )
    speed.main(["--only", "a"])
    assert not list(here.iterdir())
    speed.main([])
    assert (
        report.load_table("bench")["median"].tolist() == [2, 2]
        and list(report.load_table("bench")["goal"]) == ["< 2"] * 2
    )


def test_the_alternatives_see_the_same_windows(monkeypatch):
    """Both go through the tower with CLS first; the package gives the same embeddings."""
    model, found = encoding.tower("tiny"), []
    expected = encoding.passes(model, 2, 1)["package"]()
    head = model.image_head
    monkeypatch.setattr(
        model,
        "image_head",
        lambda *a: (found.append(torch.nn.functional.normalize(head(*a), dim=-1)), found[-1])[1],
    )
    for way in ("batches", "loop"):
        found.clear()
        encoding.passes(model, 2, 1)[way]()
        first = [x.unflatten(0, (2, -1)) for x in found]
        joined = (
            first
            if way == "batches"
            else [torch.cat(first[:25], dim=1), torch.cat(first[25:], dim=1)]
        )
        for k, x in zip(encoding.SIZES, joined):
            assert torch.allclose(x, expected[f"windows-{k}"], atol=1e-5)


def test_onednn_is_switched_on_again_when_a_pass_fails(monkeypatch):
    model = encoding.tower("tiny")

    def fails(*_, **__):
        assert not torch.backends.mkldnn.enabled
        raise MemoryError

    monkeypatch.setattr(model, "encode_image", fails)
    assert torch.backends.mkldnn.enabled
    with pytest.raises(MemoryError):
        encoding.passes(model, 1, 50)["without oneDNN"]()
    assert torch.backends.mkldnn.enabled


def test_memory_is_unknown_on_windows(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # an import of it fails
    monkeypatch.setattr(timing.Path, "read_text", lambda *_: "")
    assert math.isnan(timing.highest_memory())
