"""Images that are odd but can be read, and images that cannot be read."""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import faults
from fixtures.cases import cases, encode, few_examples, grey, posix
from fixtures.trees import HOLE, mvtec_tree, save
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlmad_utils import data
from vlmad_utils.data import DataError, images

# ---- odd images ----


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
    halves = np.kron(np.uint8([[0, 255]]), np.ones((16, 16), np.uint8))  # 16 x 32
    Image.fromarray(halves).save(path, exif=exif, quality=95)


def sixteen(path, colour, rows):
    path.write_bytes(faults.png(1, 1, 16, colour, rows))


BLACK, SHADE = [0, 0, 0], [120, 120, 120]
COLOUR, CLEAR = [b"\x78\xff" * 3], [b"\x78\xff" * 3 + b"\0\0"]  # one row of 16-bit pixels
READ = [  # name, file, how it is written, (H, W), pixel at the top left
    ("1 x 1", "x.png", lambda p: save(p, grey(1, 1)), (1, 1), SHADE),
    ("20,000 x 10", "x.png", lambda p: save(p, grey(10, 20000)), (10, 20000), SHADE),
    ("10 x 20,000", "x.jpg", lambda p: save(p, grey(20000, 10)), (20000, 10), SHADE),
    ("PNG called .jpg", "x.jpg", lambda p: save(p, grey(4, 5), format="png"), (4, 5), SHADE),
    ("GIF called .png", "x.png", lambda p: save(p, grey(4, 5), format="gif"), (4, 5), SHADE),
    ("capitals", "x.JPeG", lambda p: save(p, grey(4, 5), format="jpeg"), (4, 5), SHADE),
    ("16-bit RGB", "x.png", lambda p: sixteen(p, 2, COLOUR), (1, 1), SHADE),
    ("16-bit RGBA, clear", "x.png", lambda p: sixteen(p, 6, CLEAR), (1, 1), [255] * 3),
    ("CMYK TIFF", "x.tif", lambda p: Image.new("CMYK", (5, 4), "black").save(p), (4, 5), BLACK),
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
    assert np.array_equal(data.decode_image((tmp_path / name).read_bytes(), name), picture)
    assert data.read_mask(tmp_path / name, size=(8, 8)).shape == (8, 8)
    found = encode([tmp_path / name], windows=(2,))
    assert found.image.shape == (1, 32) and torch.isfinite(found.windows[2]).all()


def test_jpeg_mask_called_png_is_cut_at_half(tmp_path):
    large = np.kron(HOLE, np.ones((8, 8), np.uint8)) * 255
    save(tmp_path / "m.png", large, format="jpeg", quality=40)
    assert (data.read_mask(tmp_path / "m.png") == (large > 0)).all()


# ---- images that cannot be read: named, or left out and reported; the others are kept ----


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
    (
        "PDF called .jpg",
        "x.jpg",
        lambda p: p.write_bytes(b"%PDF-1.7\n" + b"x" * 500),
        "cannot identify",
    ),
    (
        "web page called .png",
        "x.png",
        lambda p: p.write_text("<!DOCTYPE html><title>404</title>"),
        "cannot identify",
    ),
    (
        "decompression bomb",
        "x.png",
        lambda p: p.write_bytes(faults.png(60000, 60000, 8, 2, [b""])),
        "DecompressionBomb",
    ),
    ("link to itself", "x.png", lambda p: p.symlink_to(p.name), "x.png", posix),
    ("link to nowhere", "x.png", lambda p: p.symlink_to("gone.png"), "no such file", posix),
    (
        "strange name",
        "a 'b' \"c\"\nd ü 検.png",
        lambda p: p.write_bytes(b""),
        "cannot identify",
        posix,
    ),
]


@cases(*REFUSED)
def test_bad_pictures_are_named_and_the_others_kept(tmp_path, case):
    name, write, words = case
    root = mvtec_tree(tmp_path / "set", n=2)
    for seed, path in enumerate(
        sorted(root.rglob("*.png"))
    ):  # all different, as equal pictures are stored once
        save(
            path,
            np.full((24, 32), 255, np.uint8) if path.stem.endswith("_mask") else faults.noise(seed),
        )
    whole = data.index("mvtec", root)
    bad = root / "bottle/test/good" / name
    write(bad)
    with pytest.raises(DataError, match=words) as error:
        data.read_image(bad)
    assert name in str(error.value)
    if bad.exists():  # not a link to nowhere
        with pytest.raises(DataError) as again:
            data.decode_image(bad.read_bytes(), bad)
        assert str(again.value) == str(error.value)
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
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*.safetensors")}
    assert stored and stored == after


@few_examples
@given(
    st.sampled_from(["png", "jpg", "webp", "tif", "bmp", "gif"]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 3000),
)
def test_any_damage_is_read_or_named(kind, changes, length):
    limit, Image.MAX_IMAGE_PIXELS = (
        Image.MAX_IMAGE_PIXELS,
        10_000,
    )  # a changed size must not fill the memory here
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
