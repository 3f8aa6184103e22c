"""Data sets that are damaged: masks, links, rights, names; each is named or left out."""

import os
from pathlib import Path

import numpy as np
import pytest
from fixtures import faults
from fixtures.cases import cases, encode, grey, posix
from fixtures.trees import HOLE, mvtec_tree, save

from vlmad_utils import data
from vlmad_utils.data import DataError


@pytest.fixture
def root(tmp_path):
    return mvtec_tree(tmp_path / "set", n=3)


TRUTH = "bottle/ground_truth/crack/001_mask.png"
BROKEN_SETS = [  # name, what breaks, what is left out, what the error says
    (
        "empty mask",
        lambda root: save(root / TRUTH, HOLE * 0),
        TRUTH,
        "001_mask.png: the mask is empty.*001.png is anomalous",
    ),
    (
        "mask is no picture",
        lambda root: (root / TRUTH).write_bytes(b""),
        TRUTH,
        "001_mask.png: cannot be read",
    ),
    (
        "mask is a link to nowhere",
        lambda root: ((root / TRUTH).unlink(), (root / TRUTH).symlink_to("gone.png")),
        TRUTH,
        "001_mask.png: there is no such file",
        posix,
    ),
    (
        "mask of 1 x 1",
        lambda root: save(root / TRUTH, grey(1, 1)),
        TRUTH,
        "001_mask.png: the mask has 1x1 pixels, its image .* 6x9",
    ),
    (
        "mask bears another's name",
        lambda root: (save(root / "bottle/test/crack/001_mask.png"), (root / TRUTH).touch()),
        "bottle/test/crack/001_mask.png",
        r"001_mask\.png: a defective image without mask: wanted .*001_mask_mask\.png",
    ),
]


@cases(*BROKEN_SETS)
def test_broken_masks_are_named_and_their_images_left_out(root, case):
    breaks, left_out, words = case
    breaks(root)
    with pytest.raises(DataError, match=words):
        data.check(data.index("mvtec", root))
    with pytest.warns(UserWarning, match=words):
        index = data.index("mvtec", root, on_error="skip")
    assert index.attrs["skipped"][0][0] == str(root / left_out)
    stems = {
        Path(row.image_path).stem: Path(row.mask_path).stem
        for row in index[index["label"] == 1].itertuples()
    }
    assert {s: m for s, m in stems.items() if s != "001"} == {"000": "000_mask", "002": "002_mask"}


def test_masks_of_many_values_are_defects_wherever_they_are_not_zero(root):
    values = HOLE.copy()
    values[2:4, 3:5] = [[1, 2], [128, 255]]
    save(root / TRUTH, values)
    index = data.check(data.index("mvtec", root))
    assert [int(data.read_mask(m).sum()) for m in index["mask_path"].dropna()] == [4, 4, 4]


@posix
def test_an_unreadable_folder_is_named_with_advice(root):
    def look():
        with pytest.raises(DataError, match=r"test.crack: no right to look into it.*chmod u\+rx"):
            data.index("mvtec", root)

    with faults.mode(root / "bottle/test/crack", 0):
        faults.unprivileged(look)
    assert len(data.index("mvtec", root)) == 9


@posix
def test_an_unreadable_picture_is_named_and_left_out(root):
    bad = root / "bottle/test/good/001.png"

    def look():
        with pytest.raises(DataError, match="good.001.png.*Permission denied"):
            data.index("mvtec", root)
        with pytest.warns(UserWarning, match="Permission denied"):
            assert len(data.index("mvtec", root, on_error="skip")) == 8
        with pytest.raises(DataError, match="good.001.png.*Permission denied"):
            encode([bad])

    with faults.mode(bad, 0):
        faults.unprivileged(look)


@posix
@pytest.mark.parametrize(
    "place,to",
    [
        ("bottle/test/up", ".."),
        ("bottle/test/crack/again", "../.."),
        ("again", "."),
        ("loop", "loop"),
    ],
)
def test_links_that_lead_back_show_no_image_twice(root, place, to):
    expected = data.index("mvtec", root)
    (root / place).symlink_to(to)
    assert data.index("mvtec", root).equals(expected)


@posix
def test_links_that_lead_back_make_no_good_part_bad(tmp_path):
    for kind in ("good", "bad"):
        for i in range(4):
            save(tmp_path / "parts" / kind / f"{i}.png")
    expected = data.index("folder", tmp_path / "parts")
    (tmp_path / "parts" / "bad" / "all").symlink_to("..")
    (tmp_path / "parts" / "all").symlink_to(".")
    assert data.index("folder", tmp_path / "parts").equals(expected)
    assert all(
        Path(p).parent.name == "good" for p in expected.loc[expected["label"] == 0, "image_path"]
    )
    assert len(expected) == 8


@posix
def test_names_that_are_no_text_pass_through_everything(root):
    for folder, end in (("test/crack", b""), ("ground_truth/crack", b"_mask")):
        old = os.fsencode(root / "bottle" / folder)
        try:
            os.rename(old + b"/001" + end + b".png", old + b"/\xff \n'\"" + end + b".png")
        except OSError:
            pytest.skip("this file system wants names that are text")
    index = data.index("mvtec", root, limit=6)
    assert len(index[index["label"] == 1]) == 3 and len(encode(index)) == 9
    assert len(data.split_references(index, 2)) == 2


@posix
def test_a_procedural_set_is_read_from_a_read_only_folder(tmp_path, monkeypatch):
    from vlmad_procedural import generate

    monkeypatch.setattr(
        generate,
        "sample",
        lambda *_, size, **options: (np.zeros((size, size, 3), np.uint8), np.eye(size, dtype=bool)),
    )
    monkeypatch.setenv("VLMAD_RAW", str(tmp_path))
    monkeypatch.delenv("VLMAD_DATA", raising=False)
    first, second = sorted(generate.FAMILIES)[:2]
    index = data.index("procedural", categories=first)
    faults.read_only(tmp_path)

    def use():
        assert data.index("procedural", categories=first).equals(index)
        with pytest.raises(
            DataError, match="procedural: cannot be written .*Permission denied.*VLMAD_RAW"
        ):
            data.index("procedural", categories=second)

    try:
        faults.unprivileged(use)
    finally:
        faults.writable(tmp_path)
