"""Whatever the names, a mask goes to its image or is missed, and no image is lost."""

import tempfile
import unicodedata
import warnings
from pathlib import Path

import numpy as np
from fixtures.cases import few_examples
from fixtures.properties import examples
from fixtures.trees import HOLE, save
from hypothesis import assume, given
from hypothesis import strategies as st

from vlmad_utils import data

letters = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
names = st.text(letters, min_size=1, max_size=12).filter(lambda name: name[0] != ".")
extensions = st.sampled_from([".png", ".PNG", ".bmp", ".tiff"])
files = st.tuples(extensions, st.sampled_from(["_mask", "", None]))


@few_examples
@given(st.dictionaries(names, files, min_size=1, max_size=6))
def test_whatever_the_names_a_mask_goes_to_its_image_or_is_missed(named):
    """None: the mask is missing. Some stems are those of other masks, which is the trap."""
    named = {**named, **{f"{stem}_mask": value for stem, value in list(named.items())[:2]}}
    plain = {unicodedata.normalize("NFC", stem).casefold(): stem for stem in named}
    # file systems that fold case keep one of them
    named = {stem: named[stem] for stem in plain.values()}
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


stems = ["a", "b", "a_mask", "a_mask_mask", "0", "00", "b 1", "ü", "a.b", "x'y", "A1"]
stems = st.sampled_from(stems)
pictures = st.dictionaries(stems, st.tuples(extensions, st.booleans()), max_size=5)
kinds = st.sampled_from(["bad", "scratch", "bad/hole", "scratch/deep"])
trees = {
    "good": st.sampled_from(["good", "OK", "normal"]),
    "truth": st.sampled_from(["ground_truth", "masks", None]),
    "suffix": st.sampled_from(["_mask", ""]),
    "normal": pictures,
    "kinds": st.dictionaries(kinds, pictures, min_size=1, max_size=3),
}


def plant(root, tree):
    """Write a folder of own images and return {path: number} and the paths with a mask.

    Image number n is of brightness n, and its mask has n pixels.
    """
    numbers, masked = {}, set()
    for place, files in [(tree["good"], tree["normal"]), *tree["kinds"].items()]:
        for stem, (extension, has_mask) in files.items():
            number = len(numbers) + 1
            path = save(root / place / f"{stem}{extension}", np.full((8, 8), number, np.uint8))
            numbers[str(path)] = number
            if place != tree["good"] and tree["truth"] and has_mask:
                mask = (np.arange(64) < number).reshape(8, 8)
                name = f"{stem}{tree['suffix']}.png"
                save(root / tree["truth"] / place / name, mask.astype(np.uint8) * 255)
                masked.add(str(path))
    return numbers, masked


@examples(40)
@given(st.fixed_dictionaries(trees))
def test_every_mask_goes_to_its_image_and_no_image_is_lost(tree):
    # a_mask.png is the mask of a.png, never of a_mask.png: with plain names that would be unclear
    clear = (f"{stem}_mask" not in files for files in tree["kinds"].values() for stem in files)
    assume(tree["suffix"] or all(clear))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(folder).resolve() / "parts"
        (root / tree["good"]).mkdir(parents=True)  # beside it every folder is a kind of defect
        numbers, masked = plant(root, tree)
        truth = bool(tree["truth"]) and (root / tree["truth"]).is_dir()
        try:
            index = data.index("folder", root, on_error="skip")
        except data.DataError as error:  # nothing is left to test
            assert not tree["normal"] and (not numbers or truth) and str(root) in str(error)
            return
        skipped = [path for path, _ in index.attrs["skipped"]]
        assert sorted([*index["image_path"], *skipped]) == sorted(numbers)  # each once
        for row in index.itertuples():
            kind = Path(row.image_path).parent.name
            good = kind == tree["good"]
            assert row.label == (not good) and row.defect == ("good" if good else kind)
            assert data.read_image(row.image_path)[0, 0, 0] == numbers[row.image_path]
            if good or not truth:
                assert row.mask_path is None
            else:
                assert data.read_mask(row.mask_path).sum() == numbers[row.image_path]
            assert row.split == "test" or good
        if truth:
            assert set(index.loc[index["label"] == 1, "image_path"]) == masked
        assert (index["split"] == "train").sum() == len(tree["normal"]) // 2
