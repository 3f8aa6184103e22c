"""Procedural samples that are drawn once: damage on the disk never becomes an image."""

import warnings

import numpy as np
import pytest
from PIL import Image

from vlmad_utils.data import procedural


def drawn(family, defect, seed, size=16):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    return image, rng.random((size, size)) < 0.5


@pytest.fixture
def stored(tmp_path, monkeypatch):
    monkeypatch.setattr(procedural, "sample", drawn)
    procedural.sample_once("wood", "hole", 1, tmp_path)
    return tmp_path, next(tmp_path.rglob("*.png"))


def is_right(folder):
    image, mask = procedural.sample_once("wood", "hole", 1, folder)
    expected = drawn("wood", "hole", 1)
    return (image == expected[0]).all() and (mask == expected[1]).all()


def test_every_flipped_bit_gives_the_right_image_again(stored):
    folder, path = stored
    whole = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for position in range(0, len(whole), 5):
            path.write_bytes(whole)
            with open(path, "r+b") as file:
                file.seek(position)
                file.write(bytes([whole[position] ^ 1 << position % 8]))
            assert is_right(folder), position


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40),
    ],
    ids=["cut off", "empty", "a header only"],
)
def test_damage_is_told_once_and_mended(stored, damage):
    folder, path = stored
    damage(path)
    with pytest.warns(UserWarning, match=f"{path.name} was damaged"):
        assert is_right(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_right(folder)


@pytest.mark.parametrize("shape", [(16, 16, 3), (16, 16, 4), (8, 8, 4), (16, 16)])
def test_another_image_at_its_place_is_never_used(stored, shape):
    folder, path = stored
    Image.fromarray(np.zeros(shape, np.uint8)).save(path)
    assert is_right(folder)
