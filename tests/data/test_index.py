"""Roots and errors on tiny trees made here; the real sets where they are fetched."""

import warnings

import numpy as np
import pandas as pd
import pytest
from fixtures.trees import GREY, HOLE, counts, mvtec_tree, save
from PIL import Image

from vlmad_utils import data, paths
from vlmad_utils.data import DataError, fetch, layouts


def test_roots(tmp_path, monkeypatch):
    monkeypatch.delenv("VLMAD_DATA", raising=False)
    with pytest.raises(DataError) as error:
        data.index("mvtec")
    home = "https://www.mvtec.com"
    for said in ("VLMAD_DATA", home, "CC BY-NC-SA", "ground_truth", "mvtec_anomaly_detection"):
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
    # drawn on the file's own pixels: does not fit
    save(root / "bottle/ground_truth/crack/001_mask.png", HOLE)
    for pixels in (False, True):
        with pytest.raises(DataError, match="001_mask"):
            data.index("mvtec", root, pixels=pixels)


# ---- the real sets, where they are fetched ----


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
