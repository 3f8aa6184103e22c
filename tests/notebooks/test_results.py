"""The recorded results: complete, in range, and within the bounds of a working collection.

The bounds are on committed CSV files, not on code: they hold whatever the code does until the
notebooks run again. ``make test`` therefore runs this once more after the notebooks.
"""

import ast

import nbformat
import numpy as np
import pandas as pd
import publish as book
import pytest

from vlmad_utils import paths

FOLDER = paths.checkout() / "data" / "results"
TABLES = {path.stem: path for path in sorted(FOLDER.glob("*.csv"))}
UNIT = ("image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "aupro")


def saved_tables(code):
    """Names of the tables that a piece of Python saves."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    saves = [call for call in calls if ast.unparse(call.func) == "report.save_table"]
    return {call.args[1].value for call in saves if isinstance(call.args[1], ast.Constant)}


def test_each_table_comes_from_a_notebook_or_module_and_each_save_left_one():
    found = set()
    for path in book.notebooks():
        cells = nbformat.read(path, as_version=4).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        wrong = [name for name in saved_tables(code) if name[:2] != path.name[:2]]
        assert not wrong, f"{path.name} saves {wrong}: a table begins with its notebook's number"
        found |= saved_tables(code)
    for path in (paths.checkout() / "benchmarks").glob("*.py"):
        names = saved_tables(path.read_text(encoding="utf-8"))
        assert all(name.startswith("bench") for name in names), f"{path.name} saves {names}"
        found |= names & set(TABLES)  # these need not be there
    assert found == set(TABLES), f"saved, but not there, or the reverse: {found ^ set(TABLES)}"


@pytest.mark.parametrize("name", TABLES)
def test_numbers_are_in_range(name):
    table = pd.read_csv(TABLES[name])
    assert len(table) and not table.duplicated().any()
    if "metric" in table and "value" in table:
        part = table[table["metric"].isin(UNIT)]
        assert part["value"].between(0, 1).all() or "difference" in name
    if {"low", "high"} <= set(table):
        known = table[["low", "high"]].dropna()
        assert (known["low"] <= known["high"] + 1e-9).all()
    if "backbone" in table:
        assert table["backbone"].notna().all()
    numbers = table.select_dtypes("number").to_numpy(float)
    assert not np.isinf(numbers).any()


def rows(name, **where):
    """Rows of a recorded table; skipped unless it was made with the embedded model."""
    table = pd.read_csv(TABLES[name])
    if "backbone" in table and set(table["backbone"]) != {"embedded"}:
        found = ", ".join(sorted(set(table["backbone"])))
        pytest.skip(f"{name} was made with {found}: the bounds are the embedded model's")
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table), f"{name} has no row with {where}"
    return table


def mean(name, **where):
    return rows(name, **where)["value"].mean()


def test_baselines_find_unseen_products_and_beat_chance():
    for method in ("CLIP-AC", "full ensemble", "dense patches"):
        assert (
            mean("10_baselines", dataset="procedural", metric="image_auroc", method=method) > 0.85
        )
        assert mean("10_baselines", dataset="elpv", metric="image_auroc", method=method) > 0.62
    assert mean("10_baselines", dataset="procedural", metric="aupro", method="dense patches") > 0.75


def test_winclips_image_score_ignores_windows_and_its_maps_do_not():
    image = rows("11_winclip_variants", metric="image_auroc").pivot(
        index="category", columns="method", values="value"
    )
    untouched = [
        "windows 2",
        "windows 3",
        "windows 2+3",
        "no image scale",
        "arithmetic",
        "checkpoint's temperature",
    ]
    assert (image[untouched].sub(image["windows 2+3"], axis=0).abs() < 1e-9).all().all()
    maps = rows("11_winclip_variants", metric="aupro").pivot(
        index="category", columns="method", values="value"
    )
    assert (maps["windows 2"] - maps["windows 3"]).abs().max() > 0.005
    assert mean("11_winclip_variants", metric="pixel_auroc", method="windows 2+3") > 0.75


def test_training_elsewhere_helps_maps_and_is_marked():
    blocks = (
        rows("12_april_gan_blocks", metric="pixel_auroc")
        .groupby(["block", "training"])["value"]
        .mean()
    )
    assert blocks["sum", "after"] > max(0.85, blocks["sum", "before"] + 0.1)
    marks = rows("12_april_gan").groupby("method")["training"].unique().map(set)
    assert marks["APRIL-GAN"] == {"trained elsewhere"} and marks["APRIL-GAN (transductive)"] == {
        "transductive"
    }
    assert marks["memory bank"] == marks["dense patches"] == {"training-free"}
    assert set(rows("13_anomalyclip", method="AnomalyCLIP")["training"]) == {"trained elsewhere"}
    assert (
        mean("13_anomalyclip", method="AnomalyCLIP", dataset="procedural", metric="image_auroc")
        > 0.8
    )


def test_references_help_and_the_draw_matters_less_with_more():
    assert (
        mean(
            "14_memory_bank",
            method="memory bank",
            k_shot=4,
            dataset="procedural",
            metric="image_auroc",
        )
        > 0.8
    )
    bank = rows("22_shots", method="memory bank", metric="image_auroc")
    by_k = bank.groupby(["dataset", "k_shot"])["value"].mean()
    for dataset in ("elpv", "procedural"):
        assert by_k[dataset, 16] > by_k[dataset, 1] - 0.01
    spread = (
        bank.groupby(["category", "k_shot"])["value"].agg(np.ptp).groupby("k_shot").mean()
    )  # over draws
    assert spread[16] < spread[1]
    gaps = rows("22_shots_differences")
    assert (gaps["p (Holm)"] >= gaps["p"] - 1e-9).all() and gaps["difference"].abs().max() < 0.6


def test_prompts_matter_as_far_as_was_written():
    assert rows("20_prompt_importance")["difference"].abs().max() < 0.05
    ladder = rows("20_prompt_ladder", score="patches").set_index(["dataset", "method"])["value"]
    assert ladder["procedural", "+ templates"] > 0.85 and ladder["elpv", "two-class"] > 0.6
    assert rows("30_angles")["value"].median() < 80  # words point roughly where images differ


def test_audit_finds_what_must_hold_by_construction():
    image = rows("52_audit_difference", metric="image_auroc").set_index(["method", "dataset"])[
        "difference"
    ]
    for method in (
        "no image scale",
        "harmonic mean of normality",
        "arithmetic means",
        "checkpoint's temperature",
        "map stretched per image",
    ):
        assert image[method].abs().max() < 1e-9, f"{method} cannot touch WinCLIP's image score"
    metric = rows("52_audit_metric").set_index("judged")
    exact, bent = metric.loc["exact, all images"], metric.loc["exact, map to the 8th power"]
    assert (
        abs(exact["AU-PRO"] - bent["AU-PRO"]) < 1e-3
        and abs(exact["pixel AUROC"] - bent["pixel AUROC"]) < 1e-3
    )
    assert (
        abs(metric.loc["200 thresholds, map to the 8th power", "AU-PRO"] - exact["AU-PRO"]) > 0.01
    )
