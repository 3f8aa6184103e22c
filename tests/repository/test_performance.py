"""The tables of docs/performance.md are those of data/results."""

import pandas as pd
import performance
import pytest


def test_the_tables_of_the_page_are_the_measured_ones():
    text = performance.PAGE.read_text(encoding="utf-8")
    assert performance.page() == text, "run python docs/performance.py"


@pytest.mark.parametrize(
    "goal, median, says",
    [
        (">= 2.1", 2.2, "met"),
        (">= 2.1", 2.05, "missed"),
        ("<= 0.65", 0.65, "met"),
        ("< 20 s", 21, "missed"),
        ("<= 1e-5", 2e-7, "met"),
        ("< 2 GB with the maps", 354, "met"),
    ],
)
def test_a_goal_is_judged(goal, median, says):
    assert says in performance.verdict(pd.Series({"goal": goal, "median": median}))


def test_a_row_without_goal_has_no_verdict_and_a_strange_goal_is_refused():
    assert performance.verdict(pd.Series({"goal": float("nan"), "median": 1.0})) == ""
    with pytest.raises(ValueError, match="found 'fast'"):
        performance.verdict(pd.Series({"goal": "fast", "median": 1.0}))


def test_the_table_of_a_gpu_names_the_card_and_leaves_out_what_was_skipped(monkeypatch, tmp_path):
    assert performance.gpu() == "Not measured yet." or "PyTorch" in performance.gpu()
    columns = "run,part,what,unit,median,low,high,rounds,goal,met,card,torch"
    rows = ["files,files,files / arrays,x,0.7,0.6,0.8,3,>= 0.6,yes,H100,2.11.0"]
    rows += ["study,study,skipped: 3 s are left,,nan,nan,nan,1,,,H100,2.11.0"]
    (tmp_path / "bench_gpu.csv").write_text("\n".join([columns, *rows]))
    monkeypatch.setattr(performance, "RESULTS", tmp_path)
    assert performance.gpu().splitlines() == [
        "H100, PyTorch 2.11.0.",
        "",
        "| what | median [lowest, highest] | goal |",
        "|---|---|---|",
        "| files: files / arrays | 0.7 [0.6, 0.8] | >= 0.6: met |",
    ]
