"""The sample that the worked answers score."""

import numpy as np
import pandas as pd
import pytest
import torch
from by_category import Sample, as_text, over_categories

from vlmad_utils import data, evaluation
from vlmad_utils.methods import Scores


@pytest.fixture
def sample():
    rows = [
        ("made", c, split, y, "hole" if y else "good", f"{c}-{split}-{i}-{y}.png", None, c)
        for c in ("b", "a")
        for split in ("train", "test")
        for i in range(6)
        for y in ((0,) if split == "train" else (0, 1))
    ]
    return Sample(pd.DataFrame(rows, columns=data.COLUMNS), draws=200)


def test_each_category_is_scored_apart_and_put_back_in_order(sample):
    def score(rows, noun):
        assert set(sample.test["category"][rows]) == {noun}
        number = torch.tensor(rows).float()
        return Scores(
            number, number[:, None, None].expand(-1, 2, 2), "row", "training-free", (0, 99), (0, 99)
        )

    image, maps = sample.each(score)
    assert image.tolist() == list(range(len(sample.test))) and (maps[:, 0, 0] == image).all()


def test_auroc_is_the_mean_over_categories_and_gap_its_difference(sample):
    scores = np.random.default_rng(0).random((2, len(sample.test)))
    means = [
        np.mean([evaluation.auroc(s[rows], sample.labels[rows]) for rows in sample.groups.values()])
        for s in scores
    ]
    assert [sample.auroc(s, "made").value for s in scores] == pytest.approx(means)
    assert sample.gap(*scores, "made").value == pytest.approx(means[0] - means[1])
    rows = sample.groups["made", "a"]
    assert sample.auroc(scores[0], "made", ["a"]).value == pytest.approx(
        evaluation.auroc(scores[0][rows], sample.labels[rows])
    )


def test_table_has_chance_and_n_and_a_column_of_differences_only_when_asked(sample):
    scores = {"one": np.arange(len(sample.test)), "two": sample.labels.astype(float)}
    table = sample.table(scores, against="one")
    assert list(table) == ["made", "made, difference"]
    assert table["made"]["two"] == "1.00 [1.00, 1.00]"
    assert table["made"]["chance"] == "0.50"
    assert table["made"]["images (categories)"] == "24 (2)"
    assert table["made, difference"]["one"] == ""
    assert list(sample.table(scores)) == ["made"]


def test_no_masks_no_pixel_metrics(sample):
    assert sample.pixels(np.zeros((len(sample.test), 2, 2), np.float32)).empty


def test_interval_over_categories_holds_the_mean():
    found = over_categories([0.1, 0.2, 0.6])
    assert found.low < found.value == pytest.approx(0.3) and found.high > 0.3
    assert as_text(found, "+.1f").startswith("+0.3 [")
