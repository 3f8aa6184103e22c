"""Resizing on a device gives the numbers of Pillow, whatever the sizes and the contrast."""

import numpy as np
import pytest
import torch
from fixtures import tiny
from fixtures.pretend_gpu import GPUTensor, pretend_gpu
from PIL import Image

from vlmad_utils.models import resize

SIZES = [  # (H, W) -> (H', W')
    ((256, 256), (60, 60)),
    ((120, 120), (60, 60)),  # every sum ends in a half somewhere
    ((32, 32), (60, 75)),
    ((240, 40), (20, 64)),  # Pillow 13 resizes the height first
    ((200, 90), (60, 60)),
    ((90, 200), (60, 60)),
    ((77, 113), (112, 98)),
    ((7, 9), (64, 80)),
    ((1, 5), (32, 32)),
    ((300, 1), (32, 32)),
    ((1, 1), (16, 16)),
    ((60, 31), (60, 60)),
    ((31, 60), (60, 60)),
    ((60, 60), (60, 60)),
]


def images(height, width):
    rng = np.random.default_rng(height * width)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    board = np.indices((height, width)).sum(0)[..., None] % 2 * np.ones(3)
    smooth = np.cumsum(rng.normal(size=(height, width, 3)), axis=1) * 5 + 128
    return [noise, (noise > 127) * np.uint8(255), np.uint8(board * 255), smooth.astype(np.uint8)]


def pillow(image, size):
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("before", "after"), SIZES, ids=str)
def test_every_number_is_that_of_pillow(before, after):
    for image in images(*before):
        found = resize.bicubic(torch.from_numpy(image)[None], after)[0].permute(1, 2, 0)
        assert np.array_equal(found.numpy(), pillow(image, after))


def test_sizes_drawn_at_random_give_the_numbers_of_pillow():
    rng = np.random.default_rng(0)
    for _ in range(60):
        (h, w), after = rng.integers(1, 150, 2), tuple(map(int, rng.integers(8, 90, 2)))
        image = images(h, w)[1]
        found = resize.bicubic(torch.from_numpy(image)[None], after)[0].permute(1, 2, 0)
        assert np.array_equal(found.numpy(), pillow(image, after)), (h, w, after)


def test_bytes_of_weights_are_exact_in_bfloat16_and_their_sums_in_float32():
    for before, after in ((1024, 240), (1000, 10), (30, 518)):
        parts = resize._bytes_of_weights(before, after, torch.device("cpu")).float()
        assert torch.equal(parts.bfloat16().float(), parts)
        assert 255 * parts.abs().sum(0).max() < 2**24
        high, middle, low = parts.double().chunk(3, dim=1)
        whole = (high * 65536 + middle * 256 + low).T.numpy()
        assert np.array_equal(whole, resize.weights(before, after))


def test_pixels_are_those_of_preprocess_for_a_batch_of_several_sizes():
    model = tiny.model()
    shapes = [(40, 50), (40, 50), model.image_size, (9, 70), (40, 50)]
    arrays = [image for shape in shapes for image in images(*shape)[:2]]
    raw = [resize.for_device(model.image_size, array) for array in arrays]
    found = resize.pixels(raw, model.image_size, model.mean, model.std, "cpu")
    assert torch.equal(found, torch.stack([model.preprocess(array) for array in arrays]))


def test_many_images_go_in_several_products(monkeypatch):
    raw = [torch.from_numpy(image) for image in images(40, 50)]
    whole = resize.pixels(raw, (24, 24), (0.5,) * 3, (0.5,) * 3, "cpu")
    monkeypatch.setattr(resize, "AT_ONCE", 40 * 50 + 1)
    assert torch.equal(resize.pixels(raw, (24, 24), (0.5,) * 3, (0.5,) * 3, "cpu"), whole)


@pytest.mark.parametrize("shape", [(2100, 2100), (3300, 20)], ids=["large", "long"])
def test_what_no_device_should_resize_is_resized_by_pillow(shape):
    image = images(*shape)[0]
    found = resize.for_device((32, 32), image)
    assert np.array_equal(found.numpy(), pillow(image, (32, 32)))


@pytest.mark.parametrize("image", [np.zeros((9, 8), np.uint8), np.zeros((9, 8, 3))], ids=str)
def test_what_is_no_image_is_refused_in_the_words_of_preprocess(image):
    with pytest.raises(ValueError, match=r"preprocess wants an RGB uint8 array \(H, W, 3\), found"):
        resize.for_device((32, 32), image)


def test_an_image_that_nobody_may_write_is_copied():
    image = images(20, 30)[0]
    image.setflags(write=False)
    assert np.array_equal(resize.for_device((32, 32), image[:, ::-1]).numpy(), image[:, ::-1])


def test_numbers_go_to_a_gpu_once_and_are_kept_for_the_stream_that_reads_them(monkeypatch):
    raw = [torch.from_numpy(image) for image in images(41, 53)]
    asked = ((24, 28), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    expected = resize.pixels(raw, *asked, "cpu")
    recorded, made = [], []
    tensor = torch.tensor
    with pretend_gpu() as device, monkeypatch.context() as patch:
        raw = [image.to(device) for image in raw]
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "current_stream", lambda device: str(device))
        patch.setattr(
            GPUTensor, "record_stream", lambda x, to: recorded.append((tuple(x.shape), to))
        )
        patch.setattr(torch, "tensor", lambda x, **k: (made.append(x), tensor(x, **k))[1])
        found = [resize.pixels(raw, *asked, device).cpu() for _ in range(3)]
    assert all(torch.equal(each, expected) for each in found)
    assert made == [255.0, *asked[1:]]
    shapes = [(53, 84), (41, 72), (1, 1, 1), (3, 1, 1), (3, 1, 1)]
    assert recorded == [(shape, "cuda:0") for shape in shapes] * 3
