"""Towers on a pretend GPU: all that they return stays there, and numbers are those of a CPU.

The weights are those of the CPU's model, so all differences come from the path for CUDA: patches by
a product, windows in parts of one shape, packed attention.
"""

import pytest
import torch
from fixtures import tiny
from fixtures.pretend_gpu import on_gpu, pretend_gpu

from vlmad_utils import models, paths
from vlmad_utils.models import OpenClip, dense, embedded, prompts

fetched = pytest.mark.skipif(
    not (paths.raw_dir() / "dinov2").exists(), reason="the towers are not fetched; run make data"
)
ASKED = {"blocks": (1, "final", "cls"), "windows": (2, 3, "3s2"), "patches": True}


def on_card(precision="fp32", device="cuda"):
    """The tiny CLIP with tensors of its own, on a device."""
    model = tiny.model.__wrapped__()
    return OpenClip(model.model, model.tokenizer, name="tiny", device=device, precision=precision)


def check(found, expected, most):
    assert on_gpu(found) and found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        gap = (found[name].cpu() - value).abs().max()
        assert gap <= most * max(1, value.abs().max()), f"{name}: {gap}"


@pytest.mark.parametrize("precision, most", [("fp32", 1e-5), ("fp16", 5e-3), ("bf16", 4e-2)])
def test_all_features_stay_on_the_device_and_are_a_cpus(precision, most):
    images = tiny.arrays("inputs")["test_images"]
    expected = tiny.model().encode_image(images, **ASKED)
    with pretend_gpu():
        model = on_card(precision)
        check(model.encode_image(images, **ASKED), expected, most)
        made = dict(model.made)
        check(model.encode_image(images.to("cuda"), **ASKED), expected, most)
        assert all(model.made[name] is value for name, value in made.items())  # nothing made anew
        model.n_windows_per_pass = 7
        check(model.encode_image(images, **ASKED), expected, most)


def test_dense_features_too():
    images = tiny.arrays("inputs")["test_images"]
    expected = models.DPAM(tiny.model(), 2).encode_image(images, (1, 3), patches=True)
    plain = dense.maskclip(tiny.model().visual, images)
    with pretend_gpu():
        model = on_card()
        check(models.DPAM(model, 2).encode_image(images, (1, 3), patches=True), expected, 1e-5)
        assert on_gpu(dense.maskclip(model.visual, images.to("cuda")))
        assert (dense.maskclip(model.visual, images.to("cuda")).cpu() - plain).abs().max() < 1e-5


def test_words_come_back_to_the_host():
    expected = prompts.prototypes(tiny.model(), "screw", "clip-ac", store=None)
    with pretend_gpu():
        found = prompts.prototypes(on_card(), "screw", "clip-ac", store=None)
        assert found.device.type == "cpu"
    assert (found - expected).abs().max() < 1e-5


@fetched
@pytest.mark.slow
def test_the_embedded_model():
    model = models.load("embedded", image_size=56, device="cpu")
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    asked = {"blocks": (3, "final"), "windows": (2, "3s2"), "patches": True}
    expected, words = model.encode_image(images, **asked), model.encode_text(["a dog", "a hole"])
    parts = model.tower, model.sentences, model.heads
    with pretend_gpu():
        model.sentences.device = "cuda"
        model.sentences.bert.to("cuda")
        model = embedded.Embedded(*parts, image_size=56, device="cuda")
        check(model.encode_image(images, **asked), expected, 1e-5)
        assert (model.encode_text(["a dog", "a hole"]) - words).abs().max() < 1e-5
