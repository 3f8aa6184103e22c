"""The procedural generator: roles, masks, determinism, contrast, layout."""

import ast
import hashlib
import json
from collections.abc import MutableMapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vlmad_procedural
from vlmad_procedural import defects, generate, objects, tables, textures
from vlmad_procedural.generate import DEFECT_TYPES, FAMILIES, PART_FAULTS, defects_of, sample, write
from vlmad_utils.data import procedural
from vlmad_utils.data.procedural import sample_once

DRAWN = [d for d in DEFECT_TYPES if d not in PART_FAULTS]
# sha256 of the raw pixels at size 64, first 16 digits; no photographs, no lines of Pillow
GOLDEN = {
    ("knit", "burn", 0): "ebfa436e82a68fb6",
    ("stone", "pit", 1): "6972516d7a61df52",
    ("weave", "stain", 2): "f07c64efbe4f13fc",
    ("polycrystal", "dark_region", 3): "d63774e69f3d73a6",
    ("brushed_metal", "dent", 4): "ac2151a2fb3ee649",
    ("foam", "good", 5): "96b32a0872f73685",
    ("tile", "hole", 6): "a5f79cfe8455a65a",
    ("die_grid", "smear", 7): "824ebf5c7b6db2a3",
}


def digest(family, defect, seed):
    image, mask = sample(family, defect, seed=seed, style_seed=seed, size=64)
    return hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest()[:16]


def plain(defect, seed, **options):
    """Return the change by a defect on a regular texture without camera, and its mask."""
    family = "tile" if DEFECT_TYPES[defect].role == "eval" else "knit"
    image, mask = sample(family, defect, seed=seed, camera=0, size=128, **options)
    good, _ = sample(family, "good", seed=seed, camera=0, size=128)
    return np.abs(image.astype(float) - good).max(-1), mask


def test_the_package_imports_nothing_of_the_library():
    for path in Path(vlmad_procedural.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level < 2, f"{path.name}: an import from above the package"
                names = [node.module] if not node.level else []
            else:
                continue
            used = {name.split(".")[0] for name in names if name}
            assert not used & {"vlmad_utils", "embedded_model", "benchmarks"}, path.name


@pytest.mark.parametrize(
    "table",
    [FAMILIES, DEFECT_TYPES, defects.DEFECTS, objects.OBJECTS, textures.TEXTURES, tables._WITHOUT],
)
def test_tables_are_read_only(table):
    assert table and not isinstance(table, MutableMapping)


def test_roles_are_disjoint_and_complete():
    for table in (FAMILIES, DEFECT_TYPES):
        roles = {entry.role for entry in table.values()}
        assert roles == {"train", "eval"}
    nouns = {
        role: {n for f in FAMILIES.values() if f.role == role for n in f.nouns}
        for role in ("train", "eval")
    }
    assert not nouns["train"] & nouns["eval"]
    for name, family in FAMILIES.items():
        assert 2 <= len(family.nouns) <= 4 and len(defects_of(name)) >= 3
        assert {DEFECT_TYPES[d].role for d in defects_of(name)} == {family.role}
    assert sum(f.role == "train" and f.domain == "textures" for f in FAMILIES.values()) >= 18


@pytest.mark.parametrize("family", FAMILIES)
def test_good_images_have_empty_masks(family):
    image, mask = sample(family, size=64, seed=1)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert mask.shape == (64, 64) and mask.dtype == bool and not mask.any()
    assert image.std() > 0.5, "an empty picture"


@pytest.mark.parametrize("family", FAMILIES)
def test_same_seed_same_bytes_and_other_seed_other_bytes(family):
    defect = defects_of(family)[0]
    first, again, other = (sample(family, defect, seed=s, size=64)[0].tobytes() for s in (3, 3, 4))
    assert first == again and first != other
    assert first != sample(family, defect, seed=3, style_seed=1, size=64)[0].tobytes()


@pytest.mark.parametrize("defect", DRAWN)
def test_mask_has_the_wished_area(defect):
    family = "cork" if DEFECT_TYPES[defect].role == "train" else "wood"
    for wished in (0.004, 0.015):
        got = [sample(family, defect, seed=s, size=128, area=wished)[1].mean() for s in range(7)]
        assert wished / 1.8 < np.median(got) < wished * 1.8, got


@pytest.mark.parametrize("defect", DRAWN)
def test_change_lies_in_the_mask(defect):
    for seed in range(4):
        change, mask = plain(defect, seed, contrast=1.0)
        assert mask.any()
        assert change[mask].mean() > 12
        assert change[~mask].mean() < 0.03 * change[mask].mean()


@pytest.mark.parametrize("defect", DRAWN)
def test_contrast_scales_the_change(defect):
    changes, masks = zip(*(plain(defect, 2, contrast=c) for c in (0.2, 0.5, 1.0)), strict=True)
    strengths = [c[masks[0]].mean() for c in changes]
    assert strengths[0] < strengths[1] < strengths[2]
    assert all((m == masks[0]).all() for m in masks)


@pytest.mark.parametrize("family", [n for n, f in FAMILIES.items() if f.domain == "objects"])
def test_part_faults_are_marked(family):
    _, mask = sample(family, defects_of(family)[-1], seed=5, size=128)
    assert 0 < mask.mean() < 0.7


def test_other_product_lines_differ_more_than_other_images():
    def mean(seed, style_seed):
        return sample("plastic", seed=seed, style_seed=style_seed, size=64, camera=0)[0].mean(
            (0, 1)
        )

    within = np.ptp([mean(s, 0) for s in range(5)], axis=0).mean()
    between = np.ptp([mean(0, s) for s in range(5)], axis=0).mean()
    assert between > 2 * within


def test_golden_bytes():
    assert {key: digest(*key) for key in GOLDEN} == GOLDEN


def test_layout_and_interrupted_writing(tmp_path, monkeypatch):
    options = dict(families=["weave", "nut"], n_train=2, n_good=2, n_defect=1, size=64)
    calls = []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return sample(*args, **kwargs)

    monkeypatch.setattr(generate, "sample", failing)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, **options)
    whole = list((tmp_path / "weave").rglob("[0-9]*.png"))
    assert whole and not list(tmp_path.rglob(".*.part"))
    write(tmp_path, **options)
    count = len(calls)
    assert count == 1 + sum(4 + len(defects_of(family)) for family in options["families"]), (
        "the one that broke is drawn again, no other"
    )
    write(tmp_path, **options)
    assert len(calls) == count, "what is whole is not made again"
    for family in options["families"]:
        folder = tmp_path / family
        assert json.loads((folder / "manifest.json").read_text())["family"] == family
        assert len(list((folder / "train" / "good").glob("*.png"))) == 2
        assert {p.name for p in (folder / "test").iterdir()} == {"good", *defects_of(family)}
        for defect in defects_of(family):
            (image,) = (folder / "test" / defect).glob("*.png")
            mask = np.asarray(
                Image.open(folder / "ground_truth" / defect / f"{image.stem}_mask.png")
            )
            assert set(np.unique(mask)) == {0, 255} and np.asarray(Image.open(image)).shape == (
                64,
                64,
                3,
            )


WEAVE = {"families": ["weave"], "n_train": 1, "n_good": 1, "size": 64}


def test_images_of_another_plan_are_replaced_and_others_kept(tmp_path):
    write(tmp_path, n_defect=2, **WEAVE)
    mine = [tmp_path / "weave" / name for name in ("test/good/mine.png", "notes/000.png")]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
    write(tmp_path, n_defect=1, **WEAVE)
    drawn = {p.name for p in (tmp_path / "weave" / "test").rglob("*.png")}
    assert drawn == {"000.png", "mine.png"}
    assert [path.read_bytes() for path in mine] == [b"mine"] * 2


@pytest.mark.parametrize("manifest", [None, "{}", '{"defects": ["../good"], "n_train": 1}', "[1]"])
def test_a_folder_of_somebody_elses_images_is_refused(tmp_path, manifest):
    folder = tmp_path / "weave"
    theirs = [folder / "train/good/000.png", folder / "test/cut/001.JPG"]
    for path in theirs:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"a photograph")
    if manifest:
        (folder / "manifest.json").write_text(manifest)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"{folder} holds images that were not drawn here"):
        write(tmp_path, n_defect=1, **WEAVE)
    assert sorted(tmp_path.rglob("*")) == before
    assert all(path.read_bytes() == b"a photograph" for path in theirs)


def test_an_image_of_the_user_is_not_taken_for_a_drawn_one(tmp_path):
    write(tmp_path, n_defect=1, **WEAVE)
    (mine := tmp_path / "weave/test/good/001.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match="not drawn here, e.g. .*001.png"):
        write(tmp_path, n_defect=1, **WEAVE | {"n_good": 2})
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize("content", [b"", b'{"family": "we', b"\xff\xfe"])
def test_a_damaged_manifest_costs_only_what_a_plan_could_have_written(tmp_path, content):
    write(tmp_path, n_defect=2, **WEAVE)
    folder = tmp_path / "weave"
    (folder / "manifest.json").write_bytes(content)
    (stale := folder / "test/good/000.png").write_bytes(b"left over")
    mine = [folder / name for name in ("test/good/x.png", "test/mine/000.png", "000.png")]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
    write(tmp_path, n_defect=1, **WEAVE)
    assert np.asarray(Image.open(stale)).shape == (64, 64, 3)
    assert not list(folder.rglob("001*.png"))
    assert [path.read_bytes() for path in mine] == [b"mine"] * 3


def test_only_what_is_asked_for_is_drawn_and_it_is_the_same(tmp_path):
    options = dict(n_train=2, n_good=2, n_defect=1)
    write(tmp_path / "all", ["nut"], size=64, **options)
    wanted = generate.pictures(tmp_path / "some", "nut", **options)
    some = {p.path for p in wanted[1::3]}
    write(tmp_path / "some", ["nut"], size=64, only=some, **options)
    drawn = {p for p in (tmp_path / "some").rglob("*.png") if "ground_truth" not in p.parts}
    assert drawn == some
    for picture in wanted[1::3]:
        for path in {picture.path, picture.mask} - {None}:
            assert (
                path.read_bytes()
                == (tmp_path / "all" / path.relative_to(tmp_path / "some")).read_bytes()
            )
    write(tmp_path / "some", ["nut"], size=64, **options)
    assert all(p.path.exists() and (p.mask is None or p.mask.exists()) for p in wanted)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="unknown"):
        sample("velvet")
    with pytest.raises(ValueError, match="unknown"):
        sample("carpet", "curse")
    with pytest.raises(ValueError, match="needs an object"):
        sample("carpet", "missing_part")
    with pytest.raises(ValueError, match="unknown"):
        write(tmp_path, families=["velvet"])
    with pytest.raises(ValueError, match="at most 1"):
        sample("carpet", "burn", contrast=1.5)


def test_kept_is_drawn_once_and_the_same(tmp_path, monkeypatch):
    options = {"size": 64, "area": 0.05, "contrast": 0.7}
    image, mask = sample("leather", "scratch", 3, **options)
    for _ in range(2):
        again = sample_once("leather", "scratch", np.int64(3), tmp_path, **options)
        assert (
            (again[0] == image).all()
            and (again[1] == mask).all()
            and again[1].dtype == bool
            and again[0].flags.c_contiguous
        )
        monkeypatch.setattr(procedural, "sample", None)  # the second time nothing is drawn
    with pytest.raises(TypeError):
        sample_once("leather", "scratch", 4, tmp_path, **options)
    monkeypatch.undo()
    path = next(tmp_path.rglob("*.png"))
    path.write_bytes(path.read_bytes()[:-100])
    assert (sample_once("leather", "scratch", 3, tmp_path, **options)[0] == image).all()
    assert (sample_once("leather", "scratch", 3, None, **options)[1] == mask).all()
