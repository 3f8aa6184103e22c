"""Faults and bad input: data sets, windows, too few images, numbers that are none. See fixtures/cases.py."""

import os
import tempfile
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import faults, tiny
from fixtures.cases import cases, encode, few_examples, grey, parts, posix, run
from fixtures.trees import HOLE, mvtec_tree, save
from hypothesis import given
from hypothesis import strategies as st

from vlmad_utils import data
from vlmad_utils.data import DataError
from vlmad_utils.features import Arrays
from vlmad_utils.methods import april_gan
from vlmad_utils.models.windows import window_indices
from vlmad_utils.study import registry

# ---- data sets -----------------------------------------------------------------------------------------------------------


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


@few_examples
@given(
    st.dictionaries(
        st.text(
            st.characters(exclude_characters="/\0", exclude_categories=["Cs"]),
            min_size=1,
            max_size=12,
        ).filter(lambda s: s[0] != "."),
        st.tuples(
            st.sampled_from([".png", ".PNG", ".bmp", ".tiff"]), st.sampled_from(["_mask", "", None])
        ),
        min_size=1,
        max_size=6,
    )
)
def test_whatever_the_names_a_mask_goes_to_its_image_or_is_missed(named):
    """None: the mask is missing. Some stems are those of other masks, which is the trap."""
    named = {**named, **{f"{stem}_mask": value for stem, value in list(named.items())[:2]}}
    plain = {unicodedata.normalize("NFC", stem).casefold(): stem for stem in named}
    named = {
        stem: named[stem] for stem in plain.values()
    }  # file systems that fold case keep one of them
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save(root / "c/test/good/000.png")
        for stem, (extension, suffix) in named.items():
            save(root / "c/test/crack" / f"{stem}{extension}")
            if suffix is not None:
                save(root / "c/ground_truth/crack" / f"{stem}{suffix}.png", HOLE)
        there = {p.stem for p in (root / "c/ground_truth/crack").glob("*")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            index = data.index("mvtec", root, on_error="skip")
        found = {
            Path(r.image_path).stem: Path(r.mask_path).stem
            for r in index[index["label"] == 1].itertuples()
        }
        missed = {Path(path).stem for path, _ in index.attrs["skipped"]}
    for stem in named:
        own = f"{stem}_mask"
        plain = stem in there and stem.removesuffix("_mask") not in set(named) - {stem}
        wanted = own if own in there else stem if plain else None
        assert found.get(stem) == wanted and (stem in missed) == (wanted is None)
    assert len(set(found.values())) == len(found)  # no mask serves two images


# ---- windows -------------------------------------------------------------------------------------------------------------


@few_examples
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_window_indices_equal_a_loop(height, width, k, stride):
    k = min(k, height, width)
    tops, lefts = (
        sorted({*range(0, side - k + 1, stride), side - k}) for side in (height, width)
    )  # the last lies at the border
    wanted = [
        [(top + dy) * width + left + dx for dy in range(k) for dx in range(k)]
        for top in tops
        for left in lefts
    ]
    assert window_indices((height, width), k, stride).tolist() == wanted


# ---- too few images, one class, numbers that are none --------------------------------------------------------------------


@cases(
    (
        "no normal image at all",
        0,
        4,
        (1,),
        DataError,
        "folder/parts: 1 references wanted, 0 normal train images there",
    ),
    (
        "k_shot larger than there is",
        4,
        2,
        (0, 8),
        DataError,
        "folder/parts: 8 references wanted, 2 normal train images there",
    ),
    ("k_shot below 0", 4, 2, (-1,), ValueError, "k_shot=-1: wanted 0 or more"),
)
def test_references_that_are_not_there_stop_a_study_before_it_encodes(tmp_path, case):
    good, bad, shots, kind, words = case
    with pytest.raises(kind, match=words):
        run(parts(tmp_path, good, bad), tmp_path / "store", shots)
    assert not (tmp_path / "store").exists()


def test_one_class_only_is_nan_with_a_warning_and_is_never_a_number(tmp_path):
    index = parts(tmp_path, 0, 4)
    with pytest.warns(UserWarning, match="AUROC is undefined.*nothing is normal"):
        rows = run(index, None, (0,)).rows.set_index("metric")
    assert np.isnan(rows.loc["image_auroc", "value"]) and rows.loc["image_ap", "chance"] == 1
    normal = parts(tmp_path / "n", 4, 0)
    with pytest.warns(UserWarning, match="nothing is anomalous"):
        assert (
            run(normal, None, (0,))
            .rows.set_index("metric")
            .loc[["image_auroc", "image_ap"], "value"]
            .isna()
            .all()
        )


@cases(("NaN", float("nan")), ("infinite", float("inf")), ("beyond float16", 1e5))
def test_a_model_that_gives_no_numbers_for_an_image_is_reported(tmp_path, monkeypatch, case):
    paths, model = faults.pictures(tmp_path / "images", 3), tiny.model()
    right = encode(paths, blocks=(2,))
    original = model.encode_image

    def sick(pixels, **asked):
        out = original(pixels, **asked)
        for i, one in enumerate(pixels):
            if torch.equal(one, model.preprocess(data.read_image(paths[1]))):
                out["tokens-2"] = out["tokens-2"].clone()
                out["tokens-2"][i, 0, 0] = case[0]
        return out

    monkeypatch.setattr(model, "encode_image", sick)
    with pytest.raises(
        DataError,
        match=r"01\.png: the model gave NaN or numbers beyond 65504 \(tokens-2\): check its weights",
    ):
        encode(paths, tmp_path / "store", blocks=(2,))
    with pytest.warns(UserWarning, match=r"01\.png"):
        found = encode(paths, tmp_path / "store", blocks=(2,), on_error="skip")
    assert torch.allclose(found.tokens[2], right.tokens[2][[0, 2]], atol=1e-3)
    monkeypatch.undo()  # with the model mended the image is encoded, the others are not encoded again
    assert torch.allclose(
        encode(paths, tmp_path / "store", blocks=(2,)).tokens[2], right.tokens[2], atol=1e-3
    )


def test_arrays_of_different_lengths_are_named():
    with pytest.raises(ValueError, match=r"One row per image.*'image': 1, 'tokens\[2\]': 3"):
        Arrays(torch.zeros(1, 4), (2, 2), tokens={2: torch.zeros(3, 4, 5)})
    assert len(Arrays(torch.zeros(3, 4), (2, 2), tokens={2: torch.zeros(3, 4, 5)})[1:]) == 2


METHODS = {
    "CLIP-AC": lambda m: registry.clip_ac_method(m),
    "dense patches": lambda m: registry.dense(m),
    "WinCLIP": lambda m: registry.winclip_method(m),
    "memory bank": lambda m: registry.memory_bank_method((2, 4)),
    "APRIL-GAN": lambda m: registry.april_gan_method(
        m, april_gan.LinearLayers((2, 4), m.width, m.dim)
    ),
    "AnomalyCLIP": lambda m: registry.anomalyclip_method(m, torch.eye(2, m.dim)),
}


@pytest.mark.parametrize("where", ["test", "reference"])
@pytest.mark.parametrize("name", METHODS)
def test_nan_in_features_never_becomes_a_score(name, where):
    method = METHODS[name](tiny.model())
    if where == "reference" and not method.takes(1):
        where = "test"
    sick = tiny.encoded(where)
    sick = Arrays(
        *(x.clone() if torch.is_tensor(x) else x for x in (sick.image, sick.grid, sick.patches)),
        {b: x.clone() for b, x in sick.tokens.items()},
        {k: x.clone() for k, x in sick.windows.items()},
    )
    for values in (sick.image, sick.patches, *sick.tokens.values(), *sick.windows.values()):
        values[0, ..., 0] = torch.nan
    test, reference = (
        sick if where == kind else tiny.encoded(kind) for kind in ("test", "reference")
    )
    text = torch.eye(2, tiny.model().dim)
    for k in (0, 1):
        if method.takes(k) and (k or where == "test"):
            with pytest.raises(ValueError, match="not finite"):
                method.score(test, reference if k else None, text)
