"""Corruptions: same every time, stronger with severity, references untouched."""

import numpy as np
import pandas as pd
import pytest
from fixtures.trees import save

import vlmad_procedural as procedural
from vlmad_utils import data


@pytest.fixture(scope="module")
def picture():
    return procedural.sample("wood", seed=3, size=96)[0]


@pytest.mark.parametrize("kind", data.CORRUPTIONS)
def test_severity_moves_a_picture_further_and_alike_each_time(picture, kind):
    made = [data.corrupt(picture, kind, severity) for severity in (1, 2, 3)]
    away = [np.abs(m.astype(float) - picture).mean() for m in made]
    assert 0 < away[0] < away[1] < away[2]
    assert all(m.shape == picture.shape and m.dtype == np.uint8 for m in made)
    assert (made[1] == data.corrupt(picture, kind, 2)).all()


def test_noise_has_the_stated_size_and_differs_between_pictures(picture):
    grey = np.full((96, 96, 3), 128, np.uint8)
    noise = data.corrupt(grey, "noise", 1).astype(float) - 128
    assert noise.std() / 255 == pytest.approx(data.CORRUPTIONS["noise"][0], rel=0.05)
    other = data.corrupt(grey + 1, "noise", 1).astype(float) - 129
    assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.05
    assert (data.corrupt(grey, "noise", 1, seed=1) != data.corrupt(grey, "noise", 1)).any()


@pytest.mark.parametrize(("kind", "severity"), [("fog", 1), ("noise", 0), ("noise", 4)])
def test_what_is_unknown_is_refused(picture, kind, severity):
    with pytest.raises(ValueError, match="severity 1, 2 or 3"):
        data.corrupt(picture, kind, severity)


def test_an_index_keeps_its_references_and_gets_new_test_pictures(tmp_path):
    procedural.write(tmp_path / "set", ["mesh"], n_train=2, n_good=1, n_defect=1, size=32)
    index = data.index("folder", root=tmp_path / "set")
    moved = data.corrupted(index, "brightness", 2, tmp_path / "moved")
    assert moved.drop(columns=["image_path", "mask_path"]).equals(
        index.drop(columns=["image_path", "mask_path"])
    )
    for before, after in zip(index.itertuples(), moved.itertuples()):
        if before.split == "train":
            assert after.image_path == before.image_path
        else:
            assert data.read_image(after.image_path) == pytest.approx(
                data.read_image(before.image_path) / 2, abs=0.6
            )
    assert moved["mask_path"].isna().all()


def test_support_is_where_the_object_is():
    image = procedural.sample("nut", seed=5, size=96, camera=0)[0]
    inside = procedural.support("nut", seed=5, size=96)
    faulty, mask = procedural.sample("nut", "stain", seed=5, size=96, area=0.2)
    assert inside.shape == image.shape[:2] and 0.1 < inside.mean() < 0.95
    assert not (mask & ~inside).any()


@pytest.mark.parametrize("differs", ["seed", "image"])
def test_corrupted_images_of_another_seed_or_image_stay(tmp_path, differs):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(2)]
    paths = [str(save(tmp_path / f"{i}.png", image)) for i, image in enumerate(images)]
    tables = [
        pd.DataFrame({"split": ["test"], "image_path": [p], "mask_path": [None]}) for p in paths
    ]
    cases = ((0, 0), (0, 1)) if differs == "seed" else ((0, 0), (1, 0))
    made = [data.corrupted(tables[i], "noise", 1, tmp_path / "made", seed) for i, seed in cases]
    for (i, seed), table in zip(cases, made):
        expected = data.corrupt(images[i], "noise", 1, seed)
        assert (data.read_image(table["image_path"][0]) == expected).all()
    again = data.corrupted(tables[0], "noise", 1, tmp_path / "made")
    assert again.equals(made[0]) and len(list((tmp_path / "made").iterdir())) == 2
