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
