"""Every layout and every trap of pairing, on tiny trees made here."""

import csv
import os
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
from fixtures.trees import GREY, HOLE, counts, mvtec_tree, save

from vlmad_utils import data
from vlmad_utils.data import DataError
from vlmad_utils.data.layouts import kit


def test_mvtec_columns_and_rows(tmp_path):
    index = data.index("mvtec", mvtec_tree(mvtec_tree(tmp_path), "metal_nut"))
    assert list(index.columns) == data.COLUMNS
    assert counts(index) == {
        (c, *row): 4
        for c in ("bottle", "metal_nut")
        for row in (("train", 0, "good"), ("test", 0, "good"), ("test", 1, "crack"))
    }
    assert set(index["object_name"]) == {"bottle", "metal nut"}
    assert index["label"].dtype.kind == "i"
    bad = index["label"] == 1
    assert index.loc[~bad, "mask_path"].map(lambda m: m is None).all()
    for row in index[bad].itertuples():
        assert Path(row.mask_path).name == Path(row.image_path).stem + "_mask.png"
        assert Path(row.image_path).is_absolute() and isinstance(row.image_path, str)
        assert data.read_mask(row.mask_path).sum() == 4
    assert index.attrs["skipped"] == []


def test_masks_are_paired_by_name_when_one_is_missing(tmp_path):
    root = mvtec_tree(tmp_path)
    (root / "bottle/ground_truth/crack/001_mask.png").unlink()
    with pytest.raises(DataError, match=r"crack.001\.png.*without mask.*001_mask\.png"):
        data.index("mvtec", root)
    with pytest.warns(UserWarning, match="001.png"):
        index = data.index("mvtec", root, on_error="skip")
    bad = index[index["label"] == 1]
    assert [Path(p).stem for p in bad["image_path"]] == ["000", "002", "003"]
    assert [Path(p).stem for p in bad["mask_path"]] == ["000_mask", "002_mask", "003_mask"]
    [(path, reason)] = index.attrs["skipped"]
    assert path.endswith("001.png") and "mask" in reason


def test_strange_names_and_extensions(tmp_path):
    names = [
        "a_b_1.PNG",
        "with space.JpEg",
        "ümläut 検査.tif",
        "dots.in.name.TIFF",
        "w.webp",
        "a_mask.png",
    ]
    names += ["new\nline.png", "quote'\".bmp"] if os.name == "posix" else []
    for name in names:
        for folder in ("train/good", "test/cut_inner"):
            save(tmp_path / "zip_per" / folder / name)
        save(tmp_path / "zip_per/ground_truth/cut_inner" / f"{Path(name).stem}_mask.PNG", HOLE)
    (tmp_path / "zip_per/test/cut_inner/._a_b_1.png").write_bytes(b"macOS")
    (tmp_path / "zip_per/test/cut_inner/Thumbs.db").write_bytes(b"x")
    index = data.index("mvtec", tmp_path)
    bad = index[index["label"] == 1]
    assert sorted(Path(p).name for p in bad["image_path"]) == sorted(names)
    assert all(
        Path(row.mask_path).stem == Path(row.image_path).stem + "_mask" for row in bad.itertuples()
    )
    assert [data.read_image(p).shape for p in index["image_path"]] == [(6, 9, 3)] * len(index)


def visa_raw(root):
    lines = [("object", "split", "label", "image", "mask")]
    for category in ("pcb1", "pipe_fryum"):
        for i in range(3):
            for split in ("train", "test"):
                image = f"{category}/Data/Images/Normal/{split}{i:04}.JPG"
                save(root / image)
                lines.append((category, split, "normal", image, ""))
            image, mask = (
                f"{category}/Data/Images/Anomaly/{i:03}.JPG",
                f"{category}/Data/Masks/Anomaly/{i:03}.png",
            )
            save(root / image)
            save(root / mask, HOLE * (i + 1))  # class ids 1, 2, 3
            lines.append((category, "test", "anomaly", image, mask))
    (root / "split_csv").mkdir()
    with open(root / "split_csv" / "1cls.csv", "w", newline="") as stream:
        csv.writer(stream).writerows(lines)
    return root


def test_visa_both_layouts_agree_and_class_ids_are_binarised(tmp_path):
    raw = data.index("visa", visa_raw(tmp_path / "raw"))
    for category in ("pcb1", "pipe_fryum"):
        mvtec_tree(
            tmp_path / "new" / "1cls", category, n=3, suffix="", kind="bad", extension=".JPG"
        )
    for root in (tmp_path / "new", tmp_path / "new" / "1cls"):
        assert counts(data.index("visa", root)) == counts(raw)
    assert counts(raw)["pcb1", "test", 1, "anomaly"] == 3
    assert set(raw["object_name"]) == {"printed circuit board", "pipe fryum"}
    assert [data.read_mask(m).sum() for m in raw["mask_path"].dropna()] == [4] * 6


def test_visa_names_missing_mask_image_and_column(tmp_path):
    root = visa_raw(tmp_path)
    (root / "pcb1/Data/Masks/Anomaly/001.png").unlink()
    with pytest.raises(DataError, match=r"Anomaly.001\.JPG.*Masks.Anomaly.001\.png"):
        data.index("visa", root)
    assert (
        len(data.index("visa", root, categories="pipe_fryum")) == 9
    )  # the other category is whole
    (root / "pipe_fryum/Data/Images/Anomaly/002.JPG").unlink()
    with pytest.raises(DataError, match=r"002\.JPG: there is no such file"):
        data.index("visa", root, categories="pipe_fryum")
    (root / "split_csv/1cls.csv").write_text("object,label\n")
    with pytest.raises(DataError, match="columns.*image.*missing"):
        data.index("visa", root)


def test_btad_and_mpdd(tmp_path):
    mvtec_tree(tmp_path / "b", "01", good="ok", kind="ko", suffix="", extension=".bmp")
    mvtec_tree(tmp_path / "b", "03", good="ok", kind="ko", suffix="")
    index = data.index("btad", tmp_path / "b")
    assert (
        counts(index)["01", "test", 1, "defective"] == 4
        and counts(index)["03", "train", 0, "good"] == 4
    )
    assert set(index["object_name"]) == {"industrial part"}
    index = data.index("mpdd", mvtec_tree(tmp_path / "m", "bracket_black"))
    assert len(index) == 12 and set(index["object_name"]) == {"black metal bracket"}


def test_kolektor_sdd_label_comes_from_the_mask(tmp_path):
    for part in range(8):
        save(tmp_path / f"kos{part // 4:02}/Part{part}.jpg")
        save(tmp_path / f"kos{part // 4:02}/Part{part}_label.bmp", HOLE * 255 * (part in (2, 5)))
    index = data.index("kolektor_sdd", tmp_path)
    assert counts(index) == {
        ("kolektor_sdd", "test", 0, "good"): 3,
        ("kolektor_sdd", "test", 1, "defective"): 2,
        ("kolektor_sdd", "train", 0, "good"): 3,
    }
    assert {Path(p).name for p in index.loc[index["label"] == 1, "image_path"]} == {
        "Part2.jpg",
        "Part5.jpg",
    }
    (tmp_path / "kos00/Part1_label.bmp").unlink()
    (tmp_path / "kos00/Part2_label.bmp").write_bytes(b"")
    with pytest.raises(DataError, match=r"Part1\.jpg.*\n.*Part2\.jpg.*Part2_label\.bmp"):
        data.index("kolektor_sdd", tmp_path)


def test_ksdd2(tmp_path):
    for split, bad in (("train", 1), ("test", 2)):
        for i in range(5):
            save(tmp_path / split / f"1000{i}.png", GREY)
            save(tmp_path / split / f"1000{i}_GT.png", HOLE * 255 * (i < bad))
    index = data.index("ksdd2", tmp_path)
    assert counts(index) == {
        ("ksdd2", "train", 0, "good"): 4,
        ("ksdd2", "train", 1, "defective"): 1,
        ("ksdd2", "test", 0, "good"): 3,
        ("ksdd2", "test", 1, "defective"): 2,
    }
    assert set(data.split_references(index, 4)["label"]) == {0}


@pytest.mark.parametrize("nested", [False, True])
def test_dagm(tmp_path, nested):
    for k in (1, 10):
        base = tmp_path / f"Class{k}" / (f"Class{k}" if nested else "")
        for split in ("Train", "Test"):
            for i in range(4):
                save(base / split / f"{i:04}.PNG")
            save(base / split / "Label" / "0002_label.PNG", HOLE * 255)
            listed = "1\n1\t0\t0001.PNG\t0\t0\n2\t1\t0002.PNG\t0\t0002_label.PNG\n"
            (base / split / "Label" / "Labels.txt").write_text(listed)
    index = data.index("dagm", tmp_path)
    assert counts(index) == {
        (f"Class{k}", split, label, defect): n
        for k in (1, 10)
        for split in ("train", "test")
        for label, defect, n in ((0, "good", 3), (1, "defective", 1))
    }
    assert set(index["object_name"]) == {"textured surface"}
    (tmp_path / "Class1" / ("Class1" if nested else "") / "Test/Label/0002_label.PNG").unlink()
    with pytest.raises(
        DataError, match=r"0002\.PNG.*0002_label"
    ):  # Labels.txt knows that it must be there
        data.index("dagm", tmp_path)


def test_magnetic_tile(tmp_path):
    for kind in ("Blowhole", "Crack", "Free"):
        for i in range(4):
            save(tmp_path / f"MT_{kind}/Imgs/exp1_num_{i}.jpg")
            save(tmp_path / f"MT_{kind}/Imgs/exp1_num_{i}.png", HOLE * 255 * (kind != "Free"))
    index = data.index("magnetic_tile", tmp_path)
    assert counts(index) == {
        ("magnetic_tile", "test", 0, "good"): 2,
        ("magnetic_tile", "train", 0, "good"): 2,
        ("magnetic_tile", "test", 1, "blowhole"): 4,
        ("magnetic_tile", "test", 1, "crack"): 4,
    }
    assert all(p.endswith(".jpg") for p in index["image_path"])


def elpv_tree(root, n=12):
    lines = []
    for i in range(n):
        save(root / f"images/cell{i:04}.png")
        probability = ("0.0", "1.0", "0.3333333333333333", "0.6666666666666666")[i % 4]
        lines.append(f"images/cell{i:04}.png  {probability:20}  mono")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def test_elpv_probabilities(tmp_path):
    root = elpv_tree(tmp_path)
    assert counts(data.index("elpv", root)) == {
        ("mono", "train", 0, "good"): 1,
        ("mono", "test", 0, "good"): 2,
        ("mono", "test", 1, "defective"): 3,
    }
    index = data.index("elpv", root, probabilities=(0, 1 / 3, 2 / 3, 1))
    assert len(index) == 12 and list(index.columns) == data.COLUMNS
    assert counts(index)["mono", "test", -1, "uncertain 1/3"] == 3
    (root / "labels.csv").write_text("images/cell0000.png  2.0  mono\n")
    with pytest.raises(DataError, match=r"labels\.csv, line 1"):
        data.index("elpv", root)


def test_textile(tmp_path):
    for kind, n in (("nominal", 6), ("local", 2), ("global", 3)):
        for i in range(n):
            save(tmp_path / kind / f"textile_{i:04}.jpg")
    assert counts(data.index("textile", tmp_path)) == {
        ("textile", "train", 0, "good"): 3,
        ("textile", "test", 0, "good"): 3,
        ("textile", "test", 1, "local"): 2,
        ("textile", "test", 1, "global"): 3,
    }


def test_procedural_defaults_to_evaluation_families_and_draws_what_it_lists(tmp_path, monkeypatch):
    from vlmad_procedural import generate

    drawn = []

    def sample(family, defect, seed, style_seed, size):
        drawn.append(family)
        return np.full((size, size, 3), seed, np.uint8), np.eye(size, dtype=bool)

    roles = {
        role: sorted(name for name, family in generate.FAMILIES.items() if family.role == role)
        for role in ("eval", "train")
    }
    training = roles["train"][0]
    monkeypatch.setattr(generate, "sample", sample)
    monkeypatch.setenv("VLMAD_RAW", str(tmp_path))
    monkeypatch.delenv("VLMAD_DATA", raising=False)
    few = data.index("procedural", categories=[training], limit=4, seed=1)
    assert drawn == [training] * len(few) and (few["split"] == "test").sum() == 4
    assert set(few["object_name"]) == {generate.FAMILIES[training].nouns[0]}
    every = data.index("procedural", categories=[training])
    assert drawn == [training] * len(every) and data.subset(every, 4, 1).equals(few), (
        "a part of the whole, none drawn twice"
    )
    assert data.index("procedural", root=tmp_path / "procedural", categories=[training]).equals(
        every
    ), "as the files lie there"
    assert set(data.index("procedural", limit=1)["category"]) == set(roles["eval"])
    with pytest.raises(DataError, match="unknown famil"):
        data.index("procedural", categories="nonsense")


# ---- own images ----


@pytest.mark.parametrize(
    "good,bad", [("good", "bad"), ("OK", "NG"), ("normal", "scratched"), ("Normals", "defect")]
)
def test_folder_good_and_bad(tmp_path, good, bad):
    for i in range(4):
        save(tmp_path / "parts" / good / f"{i}.JPG")
        save(tmp_path / "parts" / bad / f"{i}.JPG")
    index = data.index("folder", tmp_path / "parts")
    assert counts(index) == {
        ("parts", "train", 0, "good"): 2,
        ("parts", "test", 0, "good"): 2,
        ("parts", "test", 1, bad): 4,
    }
    assert set(index["object_name"]) == {"object"} and index["mask_path"].isna().all()
    assert set(
        data.index("folder", tmp_path / "parts", object_names="gear wheel")["object_name"]
    ) == {"gear wheel"}


def test_folder_kinds_with_masks(tmp_path):
    for kind in ("good", "dent", "bad/hole"):
        for i in range(2):
            save(tmp_path / kind / f"{i}.png")
            if kind != "good":
                save(tmp_path / "ground_truth" / kind / f"{i}.png", HOLE)
    index = data.index("folder", tmp_path)
    assert set(index["defect"]) == {"good", "dent", "hole"}
    assert index.loc[index["label"] == 1, "mask_path"].notna().all()
    (tmp_path / "ground_truth/dent/1.png").unlink()
    with pytest.raises(DataError, match=r"dent.1\.png"):
        data.index("folder", tmp_path)


def test_folder_flat_with_normals(tmp_path):
    for i in range(3):
        save(tmp_path / "new" / f"{i}.jpg")
        save(tmp_path / "new" / "normals" / f"n{i}.jpg")
        save(
            tmp_path / "new" / "results" / f"heat{i}.png"
        )  # somebody's output: not a kind of defect
    index = data.index("folder", tmp_path / "new", normals=tmp_path / "new" / "normals")
    assert counts(index) == {("new", "test", -1, "unknown"): 3, ("new", "train", 0, "good"): 3}
    assert len(data.split_references(index, 2)) == 2
    assert counts(data.index("folder", tmp_path / "new" / "results")) == {
        ("results", "test", -1, "unknown"): 3
    }
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="normals= holds no image"):
        data.index("folder", tmp_path / "new", normals=tmp_path / "none")
    with pytest.raises(DataError, match="no image of own images"):
        data.index("folder", tmp_path / "none")


def test_folder_in_mvtec_form_one_or_several_categories(tmp_path):
    several = data.index("folder", mvtec_tree(mvtec_tree(tmp_path), "ball_screw"))
    one = data.index("folder", tmp_path / "ball_screw")
    assert counts(one) == {k: v for k, v in counts(several).items() if k[0] == "ball_screw"}
    assert set(one["object_name"]) == {"ball screw"}
    for path in (tmp_path / "ball_screw/ground_truth/crack").iterdir():
        path.unlink()
    (tmp_path / "ball_screw/ground_truth/crack").rmdir()
    (tmp_path / "ball_screw/ground_truth").rmdir()
    assert (
        data.index("folder", tmp_path / "ball_screw")["mask_path"].isna().all()
    )  # no masks at all is fine here


NAMES = [
    "c.png",
    "B.png",
    "a.png",
    "D.png",
    "a b.png",
    "a-b.png",
    "Z/1.png",
    "a/1.png",
    "a/_.png",
    "é.png",
]


def test_the_order_and_the_split_are_the_same_on_windows():
    """Paths of Windows ignore case when they are compared; those of POSIX go by their parts."""
    split = {}
    for kind, root in ((PurePosixPath, "/set"), (PureWindowsPath, "C:/set")):
        found = [kind(root, name) for name in NAMES]
        rows = kit.reserve([kit.Row("cloth", "test", 0, "good", path) for path in found])
        split[kind] = [row.split for row in rows]
        names = [path.relative_to(root).as_posix() for path in sorted(found, key=kit.in_order)]
        assert names == sorted(NAMES, key=lambda name: name.split("/"))
    assert split[PurePosixPath] == split[PureWindowsPath]
    posix = [PurePosixPath("/set", name) for name in NAMES]
    assert sorted(posix, key=kit.in_order) == sorted(posix)


def test_the_usual_names_under_a_root_come_before_the_root(tmp_path):
    """Any folder of data sets looks like one in MVTec AD's form."""
    mvtec_tree(tmp_path, "cookie")  # next to the data sets
    mvtec_tree(tmp_path / "mvtec", "bottle")
    mvtec_tree(tmp_path / "MPDD", "tube")
    assert set(data.index("mvtec", root=tmp_path)["category"]) == {"bottle"}
    assert set(data.index("mpdd", root=tmp_path)["category"]) == {"tube"}
    assert set(data.index("mvtec", root=tmp_path / "mvtec")["category"]) == {"bottle"}
    where = data.available(tmp_path).set_index("name")["where"]
    assert where["mvtec"] == str(tmp_path / "mvtec")
