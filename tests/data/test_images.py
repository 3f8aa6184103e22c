"""Every kind of image and mask that a user may have: read as RGB or bool, or refused by name."""

import errno
import os

import numpy as np
import pytest
from fixtures.trees import HOLE, mvtec_tree, save
from PIL import Image

from vlmad_utils import data
from vlmad_utils.data import DataError, images


def rgb(path):
    array = data.read_image(path)
    assert (
        array.dtype == np.uint8
        and array.ndim == 3
        and array.shape[2] == 3
        and array.flags["C_CONTIGUOUS"]
    )
    return array


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"]
)
def test_every_mode_is_read_as_rgb(tmp_path, mode):
    extension = {"CMYK": ".jpg", "YCbCr": ".jpg", "I": ".tif", "F": ".tif"}.get(mode, ".png")
    ramp = np.tile(np.arange(0, 256, 17, dtype=np.uint8), (8, 1))
    if mode == "I;16":
        picture = Image.fromarray(ramp.astype(np.uint16) * 257)
    elif mode in ("I", "F"):
        picture = Image.fromarray(ramp.astype({"I": np.int32, "F": np.float32}[mode]))
    else:
        grey = Image.fromarray(ramp)
        picture = (grey if mode in ("1", "P") else grey.convert("RGB")).convert(
            mode, dither=Image.Dither.NONE
        )
    assert picture.mode == mode
    picture.save(tmp_path / f"x{extension}")
    wanted = np.where(ramp > 127, 255, 0) if mode == "1" else ramp
    difference = np.abs(rgb(tmp_path / f"x{extension}").astype(int) - wanted[..., None])
    assert difference.max() <= (12 if extension == ".jpg" else 0)


def test_16_bit_keeps_the_high_byte_whatever_the_range(tmp_path):
    Image.fromarray(np.full((2, 2), 4095, dtype=np.uint16)).save(tmp_path / "dark.png")
    assert (
        rgb(tmp_path / "dark.png").max() == 15
    )  # not stretched: two images of one camera stay comparable
    Image.fromarray(np.array([[0, 256], [32768, 65535]], dtype=np.uint16)).save(tmp_path / "x.tif")
    assert rgb(tmp_path / "x.tif")[..., 0].tolist() == [[0, 1], [128, 255]]
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(np.array([[0, 65535]], dtype=np.uint16)).save(
        tmp_path / "turned.png", exif=exif
    )
    assert rgb(tmp_path / "turned.png")[..., 0].tolist() == [[255], [0]]


@pytest.mark.parametrize(
    "values,wanted",
    [
        (np.float32([[0, 0.5, 1]]), [0, 128, 255]),
        (np.float32([[0, 127.6, 255]]), [0, 128, 255]),
        (np.int32([[0, 256, 65535]]), [0, 1, 255]),
        (np.float32([[-1, 1]]), None),
        (np.float32([[0, 1e6]]), None),
        (np.float32([[np.nan, 1]]), None),
        (np.int32([[0, 70000]]), None),
    ],
)
def test_32_bit(tmp_path, values, wanted):
    Image.fromarray(values).save(tmp_path / "x.tif")
    if wanted is None:
        with pytest.raises(DataError, match=r"x\.tif: 32-bit values"):
            data.read_image(tmp_path / "x.tif")
    else:
        assert rgb(tmp_path / "x.tif")[0, :, 0].tolist() == wanted


def test_transparency_is_laid_over_white(tmp_path):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = (0, 128, 255)
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    assert rgb(tmp_path / "rgba.png")[0, :, 0].tolist() == [255, 127, 0]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode=None).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "p.png", transparency=0)
    assert rgb(tmp_path / "p.png")[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_first_frame_of_several(tmp_path):
    frames = [Image.fromarray(np.full((4, 4), v, np.uint8)) for v in (10, 200)]
    frames[0].save(tmp_path / "x.tif", save_all=True, append_images=frames[1:])
    assert rgb(tmp_path / "x.tif").max() == 10


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    half = np.zeros((16, 32), np.uint8)
    half[:, :16] = 255
    Image.fromarray(half).save(tmp_path / "x.png", exif=exif)
    array = rgb(tmp_path / "x.png")
    assert (
        array.shape[:2]
        == ((16, 32) if orientation < 5 else (32, 16))
        == images.header_size(tmp_path / "x.png")
    )
    corner = {
        1: "left",
        4: "left",
        2: "right",
        3: "right",
        5: "top",
        6: "top",
        7: "bottom",
        8: "bottom",
    }[orientation]
    side = {"left": array[:, :8], "right": array[:, -8:], "top": array[:8], "bottom": array[-8:]}[
        corner
    ]
    assert side.min() == 255


@pytest.mark.parametrize(
    "make",
    [
        lambda p: None,
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"GIF89a"),
        lambda p: p.write_text("hello"),
        lambda p: p.mkdir(),
        lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40),
    ],
)
def test_unreadable_files_are_named(tmp_path, make):
    path = tmp_path / "bad one.png"
    make(path)
    for read in (data.read_image, data.read_mask, images.header_size):
        with pytest.raises(DataError, match="bad one.png"):
            read(path)


def test_decompression_bomb_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "x.png", np.zeros((40, 40), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(DataError, match="x.png.*DecompressionBomb"):
        data.read_image(path)


def test_masks_binarise_before_resizing(tmp_path):
    ids = np.zeros((8, 8), np.uint8)
    ids[2:6, 2:6] = 1  # a class id of 1 would vanish at > 0.5 of 255
    path = save(tmp_path / "m.png", ids)
    assert data.read_mask(path).dtype == bool and data.read_mask(path).sum() == 16
    assert (
        data.read_mask(path, size=(4, 4)).sum() == 4
        and data.read_mask(path, size=(16, 24)).sum() == 8 * 12
    )
    assert data.read_mask(path, size=16).shape == (16, 16)
    thin = np.zeros((64, 64), np.uint8)
    thin[:, 1] = 255
    path = save(tmp_path / "thin.png", thin)
    assert (
        data.read_mask(path, size=8).sum() == 0
        and data.read_mask(path, size=8, how="any").sum() == 8
    )
    assert not data.read_mask(None, size=(3, 5)).any() and data.read_mask(
        None, size=(3, 5)
    ).shape == (3, 5)
    with pytest.raises(ValueError, match="size"):
        data.read_mask(None)
    with pytest.raises(ValueError, match="how"):
        data.read_mask(path, how="bilinear")


def test_mask_modes(tmp_path):
    palette = Image.fromarray(HOLE).convert("P")
    palette.putdata([int(v) for v in HOLE.ravel()])
    palette.putpalette(
        [255, 255, 255, 0, 0, 0]
    )  # background is white: the index counts, not the colour
    palette.save(tmp_path / "p.png")
    rgba = np.dstack([HOLE * 3, HOLE * 0, HOLE * 0, np.full_like(HOLE, 255)])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(HOLE.astype(bool)).save(tmp_path / "one.bmp")
    Image.fromarray(HOLE.astype(np.uint16)).save(tmp_path / "sixteen.png")
    Image.fromarray(np.kron(HOLE, np.ones((8, 8), np.uint8)) * 255).save(
        tmp_path / "x.jpg", quality=40
    )
    for name in ("p.png", "rgba.png", "one.bmp", "sixteen.png"):
        assert (data.read_mask(tmp_path / name) == (HOLE > 0)).all(), name
    large = np.kron(HOLE, np.ones((8, 8))) > 0
    assert (data.read_mask(tmp_path / "x.jpg") == large).all()
    assert (data.read_image(tmp_path / "x.jpg")[..., 0] > 0)[
        ~large
    ].any()  # the noise that > 0 would take for a defect


@pytest.mark.parametrize("reason", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_no_image_is_to_blame_for_the_machine(tmp_path, monkeypatch, reason):
    """With on_error="skip", a good image must not be left out for want of open files."""
    mvtec_tree(tmp_path)

    def fails(path):
        raise OSError(reason, os.strerror(reason), str(path))

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(OSError, match="no image is to blame. [A-Z]") as told:
        data.index("mvtec", root=tmp_path, on_error="skip")
    assert told.value.errno == reason and not isinstance(told.value, data.DataError)


def test_no_image_is_to_blame_for_want_of_memory(tmp_path, monkeypatch):
    mvtec_tree(tmp_path)

    def fails(path):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(MemoryError):
        data.index("mvtec", root=tmp_path, on_error="skip")
