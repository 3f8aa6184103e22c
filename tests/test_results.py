"""The recorded results: complete, in range, and within the bounds that a working collection keeps.

make test runs this once more after the notebooks, so that the bounds also hold for what they have just written.
"""

import re

import numpy as np
import pandas as pd
import pytest

from vlmad_utils import book, results

FOLDER = results.ROOT / "data" / "results"
TABLES = {path.stem: path for path in sorted(FOLDER.glob("*.csv"))}
UNIT = ("image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "aupro")


def test_each_table_comes_from_a_notebook_and_each_save_left_one():
    saved = {}
    for path in book.notebooks():
        for name in re.findall(r"results\.save\([^\n]*?[\"'](\d\d_\w+)[\"']\)", path.read_text(encoding="utf-8").replace('\\"', '"')):
            assert name[:2] == path.name[:2], f"{path.name} saves {name}: a table begins with its notebook's number"
            saved[name] = path.name
    assert set(saved) == set(TABLES), f"only saved: {set(saved) - set(TABLES)}; only there: {set(TABLES) - set(saved)}"


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
