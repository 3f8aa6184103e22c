"""Properties of pairing, sampling and splitting that hold for any names and tables."""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fixtures.properties import examples
from fixtures.trees import save
from hypothesis import assume, given
from hypothesis import strategies as st

from vlmad_utils import data

stems = st.sampled_from(
    ["a", "b", "a_mask", "a_mask_mask", "0", "00", "b 1", "ü", "a.b", "x'y", "A1"]
)
pictures = st.dictionaries(
    stems, st.tuples(st.sampled_from([".png", ".bmp", ".PNG", ".tif"]), st.booleans()), max_size=5
)
trees = st.fixed_dictionaries(
    {
        "good": st.sampled_from(["good", "OK", "normal"]),
        "truth": st.sampled_from(["ground_truth", "masks", None]),
        "suffix": st.sampled_from(["_mask", ""]),
        "normal": pictures,
        "kinds": st.dictionaries(
            st.sampled_from(["bad", "scratch", "bad/hole", "scratch/deep"]),
            pictures,
            min_size=1,
            max_size=3,
        ),
    }
)


def plant(root, tree):
    """Write a folder of own images; picture number n is of brightness n, its mask has n pixels. {path: number}, those with mask."""
    numbers, masked = {}, set()
    for place, files in [(tree["good"], tree["normal"]), *tree["kinds"].items()]:
        for stem, (extension, has_mask) in files.items():
            number = len(numbers) + 1
            path = save(root / place / f"{stem}{extension}", np.full((8, 8), number, np.uint8))
            numbers[str(path)] = number
            if place != tree["good"] and tree["truth"] and has_mask:
                mask = (np.arange(64) < number).reshape(8, 8)
                save(
                    root / tree["truth"] / place / f"{stem}{tree['suffix']}.png",
                    mask.astype(np.uint8) * 255,
                )
                masked.add(str(path))
    return numbers, masked


@examples(60)
@given(trees)
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
            good = Path(row.image_path).parent.name == tree["good"]
            assert row.label == (not good) and row.defect == (
                "good" if good else Path(row.image_path).parent.name
            )
            assert data.read_image(row.image_path)[0, 0, 0] == numbers[row.image_path]
            if good or not truth:
                assert row.mask_path is None
            else:
                assert data.read_mask(row.mask_path).sum() == numbers[row.image_path]
            assert row.split == "test" or good
        if (
            truth and tree["suffix"] == "_mask"
        ):  # a plain name may be taken for another's mask, and is then reported
            assert {
                p for p in index["image_path"] if index.set_index("image_path")["label"][p]
            } == masked
        assert (index["split"] == "train").sum() == len(tree["normal"]) // 2


tables = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.sampled_from(["train", "test"]),
        st.sampled_from(["good", "x", "y"]),
    ),
    min_size=1,
    max_size=25,
)


def table(rows):
    return pd.DataFrame(
        [
            ("d", c, s, int(k != "good"), k, f"/{c}/{s}/{k}/{i}.png", None, c)
            for i, (c, s, k) in enumerate(rows)
        ],
        columns=data.COLUMNS,
    )


@examples(40)
@given(tables, st.integers(1, 12), st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_limit_takes_a_part_of_a_larger_one_whatever_the_order(rows, limit, seed, random):
    index = table(rows)
    found, more = (data.subset(index, n, seed) for n in (limit, limit + 1))
    assert (found["split"] == "test").sum() == min(limit, (index["split"] == "test").sum())
    assert (
        set(found["image_path"]) <= set(more["image_path"]) <= set(index["image_path"])
        and found["image_path"].is_unique
    )
    assert (found["split"] == "train").sum() == (index["split"] == "train").sum()
    mixed = index.iloc[random.sample(range(len(index)), len(index))]
    assert set(data.subset(mixed, limit, seed)["image_path"]) == set(found["image_path"])
    counts = found[found["split"] == "test"].groupby("category").size()
    if (
        len(set(index.loc[index["split"] == "test", "category"])) == 2
        and counts.max() - counts.get(counts.idxmin(), 0) > 1
    ):
        full = index[index["split"] == "test"].groupby("category").size()
        assert counts.min() == full[counts.idxmin()]  # uneven only where one category has no more


@examples(40)
@given(tables, st.integers(0, 4), st.integers(0, 3), st.randoms(use_true_random=False))
def test_references_are_normal_train_images_and_fewer_are_a_part_of_more(rows, k, seed, random):
    index = table(rows)
    normal = index[(index["split"] == "train") & (index["label"] == 0)].groupby("category").size()
    if normal.reindex(index["category"].unique(), fill_value=0).min() < k:
        with pytest.raises(data.DataError, match=f"{k} references wanted"):
            data.split_references(index, k, seed)
        return
    found = data.split_references(index, k, seed)
    assert (found.groupby("category").size() == k).all() and len(found) == k * index[
        "category"
    ].nunique()
    assert set(found["split"]) <= {"train"} and set(found["label"]) <= {0}
    mixed = index.iloc[random.sample(range(len(index)), len(index))]
    assert list(data.split_references(mixed, k, seed)["image_path"]) == list(found["image_path"])
    if k:
        assert set(data.split_references(index, k - 1, seed)["image_path"]) <= set(
            found["image_path"]
        )
