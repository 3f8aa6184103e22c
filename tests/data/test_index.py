"""Roots, errors, order, limits and draws of references, on tiny trees made here; and the real sets where they are fetched."""

import random
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fixtures.trees import GREY, HOLE, counts, mvtec_tree, save
from PIL import Image

from vlmad_utils import data, paths
from vlmad_utils.data import DataError, fetch, layouts

# ------------------------------------------------------------------------------------------ roots and errors


def test_roots(tmp_path, monkeypatch):
    monkeypatch.delenv("VLMAD_DATA", raising=False)
    with pytest.raises(DataError) as error:
        data.index("mvtec")
    for said in (
        "VLMAD_DATA",
        "https://www.mvtec.com",
        "CC BY-NC-SA 4.0",
        "ground_truth",
        "mvtec_anomaly_detection",
    ):
        assert said in str(error.value)
    mvtec_tree(tmp_path / "mvtec_ad")
    expected = data.index("mvtec", tmp_path / "mvtec_ad")
    pd.testing.assert_frame_equal(data.index("mvtec", tmp_path), expected)
    monkeypatch.setenv("VLMAD_DATA", str(tmp_path))
    pd.testing.assert_frame_equal(data.index("mvtec"), expected)
    monkeypatch.chdir(tmp_path)
    pd.testing.assert_frame_equal(data.index("mvtec", "mvtec_ad"), expected)
    table = data.available().set_index("name")
    assert table.loc["mvtec", "present"] and not table.loc["visa", "present"]
    with pytest.raises(DataError, match="no folder"):
        data.index("mvtec", tmp_path / "missing")
    with pytest.raises(DataError, match="unknown data set 'mvtek'"):
        data.index("mvtek")
    with pytest.raises(DataError, match="root="):
        data.index("folder")
    with pytest.raises(DataError, match="no category wood in .*bottle"):
        data.index("mvtec", categories=["bottle", "wood"])
    assert list(data.index("mvtec", categories=[]).columns) == data.COLUMNS
    with pytest.raises(ValueError, match="on_error"):
        data.index("mvtec", on_error="ignore")


@pytest.mark.parametrize(
    "name", [n for n in layouts.DATASETS if n not in ("elpv", "textile", "procedural", "folder")]
)
def test_a_missing_data_set_says_where_to_get_it(tmp_path, name):
    with pytest.raises(DataError) as error:
        data.index(name, tmp_path)
    about = layouts.DATASETS[name]
    for said in (about.title, about.home, about.licence, about.text.splitlines()[0], str(tmp_path)):
        assert said in str(error.value)


def test_the_licence_line_names_each_set_once():
    assert data.licences("elpv") == "elpv, CC BY-NC-SA 4.0"
    assert data.licences(["textile", "elpv", "textile"]) == "textile, MIT; elpv, CC BY-NC-SA 4.0"


def test_readme_names_every_data_set_and_licence():
    text = (paths.checkout() / "data" / "README.md").read_text(encoding="utf-8")
    for layout in layouts.DATASETS.values():
        assert f"`{layout.name}`" in text and layout.licence.split(" (")[0] in text


def test_empty_category(tmp_path):
    root = mvtec_tree(tmp_path)
    (root / "cable" / "test" / "good").mkdir(parents=True)
    with pytest.raises(DataError, match="cable.*empty category"):
        data.index("mvtec", root)
    with pytest.warns(UserWarning, match="cable"):
        index = data.index("mvtec", root, on_error="skip")
    assert set(index["category"]) == {"bottle"}


def test_corrupt_files_and_mask_sizes(tmp_path):
    root = mvtec_tree(tmp_path)
    (root / "bottle/test/good/000.png").write_bytes(b"")
    (root / "bottle/test/good/001.png").write_bytes(b"not an image")
    save(root / "bottle/ground_truth/crack/002_mask.png", HOLE.T * 255)
    with pytest.raises(DataError) as error:
        data.index("mvtec", root)
    for said in ("000.png", "001.png", "002_mask.png", "9x6", "6x9", "3 problems"):
        assert said in str(error.value)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = save(root / "bottle/train/good/003.png", noise).read_bytes()
    (root / "bottle/train/good/003.png").write_bytes(
        whole[: len(whole) // 2]
    )  # header whole, pixels not
    with pytest.warns(UserWarning, match="4 problems") as record:
        index = data.index("mvtec", root, on_error="skip")
    assert len(record) == 1 and len(index.attrs["skipped"]) == 4 and len(index) == 8
    with pytest.raises(DataError, match=r"003\.png.*truncated"):
        data.read_image(root / "bottle/train/good/003.png")


def test_everything_broken_is_an_error_even_with_skip(tmp_path):
    for path in mvtec_tree(tmp_path).rglob("*.png"):
        path.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(DataError, match="no test image"):
        data.index("mvtec", tmp_path, on_error="skip")


def test_portrait_and_rotated_images_fit_their_masks(tmp_path):
    root = mvtec_tree(tmp_path, n=1)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees: 6x9 becomes 9x6
    Image.fromarray(GREY).save(root / "bottle/test/crack/001.jpg", exif=exif)
    save(root / "bottle/ground_truth/crack/001_mask.png", HOLE.T)
    save(root / "bottle/test/crack/002.png", np.ascontiguousarray(GREY.T))
    save(root / "bottle/ground_truth/crack/002_mask.png", np.ascontiguousarray(HOLE.T))
    for pixels in (False, True):
        assert len(data.index("mvtec", root, pixels=pixels)) == 5
    assert data.read_image(root / "bottle/test/crack/001.jpg").shape == (9, 6, 3)
    save(
        root / "bottle/ground_truth/crack/001_mask.png", HOLE
    )  # drawn on the file's own pixels: does not fit
    for pixels in (False, True):
        with pytest.raises(DataError, match="001_mask"):
            data.index("mvtec", root, pixels=pixels)


# ----------------------------------------------------------------------------------------- order, limit, draws


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
        assert (
            index["image_path"].is_monotonic_increasing or index["category"].is_monotonic_increasing
        )
        assert previous <= set(test["image_path"])
        previous = set(test["image_path"])
        if limit in (6, 12, 30, 60):
            assert set(test.groupby("category").size()) == {limit // 3}
            assert set(test.groupby(["category", "label"]).size()) == ({limit // 6})
    kinds = (
        data.index("mvtec", tmp_path, limit=12)
        .query("label == 1")
        .groupby(["category", "defect"])
        .size()
    )
    assert set(kinds) == {1} and len(kinds) == 6
    assert set(data.index("mvtec", tmp_path, limit=3).query("split == 'test'")["label"]) == {0, 1}
    assert not data.index("mvtec", tmp_path, limit=12, seed=1).equals(
        data.index("mvtec", tmp_path, limit=12)
    )
    shuffled = full.sample(frac=1, random_state=0)
    assert set(data.subset(shuffled, 12)["image_path"]) == set(data.subset(full, 12)["image_path"])
    with pytest.raises(ValueError, match="limit=0"):
        data.subset(full, 0)


def test_split_references(tmp_path):
    index = data.index("mvtec", mvtec_tree(mvtec_tree(tmp_path, n=10), "cable", n=10))
    drawn = data.split_references(index, 4, seed=1)
    assert drawn.groupby("category").size().to_dict() == {"bottle": 4, "cable": 4}
    assert (
        set(drawn["split"]) == {"train"}
        and set(drawn["label"]) == {0}
        and drawn["image_path"].is_unique
    )
    assert index.loc[drawn.index].equals(drawn)
    others = (
        index.sample(frac=1, random_state=3),
        index[::-1].reset_index(drop=True),
        index.set_index(index["label"]),
    )
    for other in others:
        assert list(data.split_references(other, 4, seed=1)["image_path"]) == list(
            drawn["image_path"]
        )
    one_category = data.split_references(index[index["category"] == "cable"], 4, seed=1)
    assert list(one_category["image_path"]) == list(drawn["image_path"][4:])
    two = data.split_references(index, 2, seed=1)
    assert list(two["image_path"][:2]) == list(
        drawn["image_path"][:2]
    )  # fewer shots are a part of more
    assert list(data.split_references(index, 4, seed=2)["image_path"]) != list(drawn["image_path"])
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


# -------------------------------------------------------------------------------------- the real thing, if there


fetched = pytest.mark.skipif(
    any(fetch.problem(name) for name in ("elpv", "textile")),
    reason="not fetched: python -m vlmad_utils.data.fetch",
)


@fetched
def test_real_counts(monkeypatch):
    monkeypatch.delenv("VLMAD_DATA", raising=False)
    everything = data.index("elpv", probabilities=(0, 1 / 3, 2 / 3, 1))
    assert len(everything) == 2624
    assert counts(data.index("elpv")) == {
        ("mono", "train", 0, "good"): 100,
        ("mono", "test", 0, "good"): 488,
        ("mono", "test", 1, "defective"): 313,
        ("poly", "train", 0, "good"): 100,
        ("poly", "test", 0, "good"): 820,
        ("poly", "test", 1, "defective"): 402,
    }
    assert counts(data.index("textile")) == {
        ("textile", "train", 0, "good"): 100,
        ("textile", "test", 0, "good"): 900,
        ("textile", "test", 1, "local"): 500,
        ("textile", "test", 1, "global"): 500,
    }


@fetched
def test_real_images_read(monkeypatch):
    monkeypatch.delenv("VLMAD_DATA", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, size in (("elpv", 300), ("textile", 250)):
            for path in data.index(name, limit=4).query("split == 'test'")["image_path"]:
                assert data.read_image(path).shape == (size, size, 3)
