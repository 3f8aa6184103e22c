"""Limits and draws of references: balanced, nested, whatever the order of files and rows."""

import random
from pathlib import Path

import pandas as pd
import pytest
from fixtures.properties import examples
from fixtures.trees import counts, mvtec_tree, save
from hypothesis import given
from hypothesis import strategies as st

from vlmad_utils import data
from vlmad_utils.data import DataError


def test_file_system_order_does_not_matter(tmp_path, monkeypatch):
    mvtec_tree(mvtec_tree(tmp_path, n=12), "cable", n=12)
    first = data.index("mvtec", tmp_path, limit=9)
    iterdir = Path.iterdir

    def shuffled(self):
        entries = list(iterdir(self))
        random.Random(1).shuffle(entries)
        return iter(entries)

    monkeypatch.setattr(Path, "iterdir", shuffled)
    pd.testing.assert_frame_equal(data.index("mvtec", tmp_path, limit=9), first)


def test_limit_is_balanced_nested_and_keeps_references(tmp_path):
    for name in ("bottle", "cable", "grid"):
        mvtec_tree(tmp_path, name, n=10)
        mvtec_tree(tmp_path, name, n=10, kind="dent")
    full = data.index("mvtec", tmp_path)
    previous = set()
    for limit in (1, 3, 6, 12, 30, 60, 90, 1000):
        index = data.index("mvtec", tmp_path, limit=limit)
        test = index[index["split"] == "test"]
        assert len(test) == min(limit, 90) and (index["split"] == "train").sum() == 30
        assert index["category"].is_monotonic_increasing
        assert previous <= set(test["image_path"])
        previous = set(test["image_path"])
        if limit in (6, 12, 30, 60):
            assert set(test.groupby("category").size()) == {limit // 3}
            assert set(test.groupby(["category", "label"]).size()) == ({limit // 6})
    twelve = data.index("mvtec", tmp_path, limit=12)
    kinds = twelve.query("label == 1").groupby(["category", "defect"]).size()
    assert set(kinds) == {1} and len(kinds) == 6
    assert set(data.index("mvtec", tmp_path, limit=3).query("split == 'test'")["label"]) == {0, 1}
    assert not data.index("mvtec", tmp_path, limit=12, seed=1).equals(twelve)
    shuffled = full.sample(frac=1, random_state=0)
    assert set(data.subset(shuffled, 12)["image_path"]) == set(data.subset(full, 12)["image_path"])
    with pytest.raises(ValueError, match="limit=0"):
        data.subset(full, 0)


def test_split_references(tmp_path):
    index = data.index("mvtec", mvtec_tree(mvtec_tree(tmp_path, n=10), "cable", n=10))
    drawn = data.split_references(index, 4, seed=1)
    assert drawn.groupby("category").size().to_dict() == {"bottle": 4, "cable": 4}
    assert set(drawn["split"]) == {"train"} and set(drawn["label"]) == {0}
    assert drawn["image_path"].is_unique
    assert index.loc[drawn.index].equals(drawn)
    others = (
        index.sample(frac=1, random_state=3),
        index[::-1].reset_index(drop=True),
        index.set_index(index["label"]),
    )
    expected = list(drawn["image_path"])
    for other in others:
        assert list(data.split_references(other, 4, seed=1)["image_path"]) == expected
    one_category = data.split_references(index[index["category"] == "cable"], 4, seed=1)
    assert list(one_category["image_path"]) == expected[4:]
    two = data.split_references(index, 2, seed=1)
    assert list(two["image_path"][:2]) == expected[:2]  # fewer shots are a subset of more
    assert list(data.split_references(index, 4, seed=2)["image_path"]) != expected
    assert data.split_references(index, 0).empty
    with pytest.raises(DataError, match="mvtec/bottle: 11 references wanted, 10"):
        data.split_references(index, 11)


def test_reserved_references_are_fixed_and_disjoint(tmp_path):
    for i in range(300):
        save(tmp_path / "nominal" / f"textile_{i:04}.jpg")
    index = data.index("textile", tmp_path, pixels=False)
    assert counts(index) == {
        ("textile", "train", 0, "good"): 100,
        ("textile", "test", 0, "good"): 200,
    }
    assert index["image_path"].is_unique
    pd.testing.assert_frame_equal(index, data.index("textile", tmp_path, seed=7, pixels=False))


splits, kinds = st.sampled_from(["train", "test"]), st.sampled_from(["good", "x", "y"])
tables = st.lists(st.tuples(st.sampled_from("ab"), splits, kinds), min_size=1, max_size=25)


def table(rows):
    rows = [
        ("d", category, split, int(kind != "good"), kind, f"/{category}/{kind}/{i}.png", None, "")
        for i, (category, split, kind) in enumerate(rows)
    ]
    return pd.DataFrame(rows, columns=data.COLUMNS)


@examples(25)
@given(tables, st.integers(1, 12), st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_limit_takes_a_part_of_a_larger_one_whatever_the_order(rows, limit, seed, random):
    index = table(rows)
    found, more = (data.subset(index, n, seed) for n in (limit, limit + 1))
    full, chosen = (x[x["split"] == "test"].groupby("category").size() for x in (index, found))
    assert chosen.sum() == min(limit, full.sum())
    assert len(found) - chosen.sum() == len(index) - full.sum()
    assert set(found["image_path"]) <= set(more["image_path"]) <= set(index["image_path"])
    assert found["image_path"].is_unique
    mixed = index.iloc[random.sample(range(len(index)), len(index))]
    assert set(data.subset(mixed, limit, seed)["image_path"]) == set(found["image_path"])
    chosen = chosen.reindex(full.index, fill_value=0)
    if len(chosen) and chosen.max() - chosen.min() > 1:  # only where one category has no more
        assert chosen.min() == full[chosen.idxmin()]


@examples(25)
@given(tables, st.integers(0, 4), st.integers(0, 3), st.randoms(use_true_random=False))
def test_references_are_normal_train_images_and_fewer_are_a_part_of_more(rows, k, seed, random):
    index = table(rows)
    normal = index[(index["split"] == "train") & (index["label"] == 0)].groupby("category").size()
    if normal.reindex(index["category"].unique(), fill_value=0).min() < k:
        with pytest.raises(data.DataError, match=f"{k} references wanted"):
            data.split_references(index, k, seed)
        return
    found = data.split_references(index, k, seed)
    assert (found.groupby("category").size() == k).all()
    assert len(found) == k * index["category"].nunique()
    assert set(found["split"]) <= {"train"} and set(found["label"]) <= {0}
    mixed = index.iloc[random.sample(range(len(index)), len(index))]
    assert list(data.split_references(mixed, k, seed)["image_path"]) == list(found["image_path"])
    if k:
        fewer = data.split_references(index, k - 1, seed)
        assert set(fewer["image_path"]) <= set(found["image_path"])
