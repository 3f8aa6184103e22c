"""What a caller does outside changes no feature, and what a model cannot do is refused."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from fixtures import tiny
from open_clip.tokenizer import SimpleTokenizer

from vlmad_utils import models
from vlmad_utils.methods import anomalyclip, april_gan
from vlmad_utils.models import loading, onednn, prompts
from vlmad_utils.models.text_towers import text_tower
from vlmad_utils.models.windows import window_indices


def test_a_callers_autocast_changes_neither_images_nor_words(tmp_path):
    model, pixels = tiny.model(), tiny.arrays("inputs")["test_images"][:2]
    image = model.encode_image(pixels, (2,), (2,), patches=True)
    text = model.encode_text(["a dog"])
    with torch.autocast("cpu", torch.bfloat16):
        inside = model.encode_image(pixels, (2,), (2,), patches=True)
        assert all(torch.equal(inside[name], image[name]) for name in image)
        assert torch.equal(prompts.embed(model, ["a dog"], tmp_path), text)


@pytest.mark.parametrize("names", ["older", "newer"])
def test_a_callers_products_of_fewer_bits_change_nothing(names):
    """On a CPU with AVX-512 BF16 "medium" makes float32 products in bfloat16, on a GPU in TF32."""
    model, pixels = tiny.model(), tiny.arrays("inputs")["test_images"][:2]
    exact, words = model.encode_image(pixels, (2,), (2,)), model.encode_text(["a dog"])
    owners = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    if names == "newer" and not hasattr(owners[1], "fp32_precision"):
        pytest.skip("this PyTorch has the older names only")
    before = [owner.fp32_precision for owner in owners] if names == "newer" else []
    try:
        if names == "older":
            torch.set_float32_matmul_precision("medium")
        else:
            owners[0].fp32_precision, owners[1].fp32_precision = "tf32", "bf16"
        found, said = model.encode_image(pixels, (2,), (2,)), model.encode_text(["a dog"])
        if names == "older":
            assert torch.get_float32_matmul_precision() == "medium"
        else:
            assert [owner.fp32_precision for owner in owners] == ["tf32", "bf16"]
    finally:
        for owner, value in zip(owners, before):
            owner.fp32_precision = value
        if not before:
            torch.set_float32_matmul_precision("highest")
    assert torch.equal(said, words)
    assert all(torch.equal(found[name], exact[name]) for name in exact)


def test_pixels_of_another_size_are_refused():
    model = tiny.model()
    height, width = model.image_size
    with pytest.raises(ValueError, match="encodes pixels .* from preprocess, found"):
        model.encode_image(torch.zeros(1, 3, height * 2, width // 2))


def test_heads_and_tokenizer_belong_to_the_identity():
    def built(heads, tokenizer):
        vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 64 // heads}
        text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
        torch.manual_seed(0)
        clip = models.openclip.open_clip.model.CLIP(16, {**vision, "patch_size": 16}, text)
        return models.OpenClip(clip, tokenizer).identity

    plain = SimpleTokenizer()
    assert built(4, plain) == built(4, plain)
    assert len({built(4, plain), built(2, plain), built(4, lambda words: words)}) == 3


@pytest.mark.parametrize("options", [{"pretrained": "random"}, {"quick_gelu": True}])
def test_the_embedded_model_takes_no_other_weights(options):
    with pytest.raises(ValueError, match="one set of weights"):
        models.load("embedded", **options)


def test_seeds_leave_the_gpus_of_a_caller_alone(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    april_gan.LinearLayers((1,), 4, 4)
    models.load("ViT-B-32", "random", device="cpu")
    assert seeded == []


@pytest.mark.parametrize(
    "window, stride", [(3, None), ("1s2", None), (2, 0), (2, -1), (1, 2), (0, None)]
)
def test_windows_that_do_not_cover_the_grid_are_refused(window, stride):
    with pytest.raises(ValueError, match="window"):
        window_indices((2, 2), window, stride)


def test_a_network_error_without_a_message_is_still_explained(monkeypatch):
    def refuse(*_, **__):
        raise TimeoutError

    monkeypatch.setattr(loading.open_clip, "create_model", refuse)
    with pytest.raises(ConnectionError, match="TimeoutError: no message"):
        models.load("ViT-B-32", "openai", device="cpu")


@pytest.mark.parametrize("content", [b"abc", pickle.dumps(SimpleNamespace(a=1))])
def test_an_official_checkpoint_that_is_none_is_refused_in_our_words(tmp_path, content):
    (tmp_path / "epoch_15.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"epoch_15\.pth is damaged, or holds more than weights"):
        april_gan.load_official(tmp_path / "epoch_15.pth")


def test_deep_tokens_may_not_overwrite_the_words():
    with pytest.raises(ValueError, match="length <= n_vectors"):
        anomalyclip.PromptLearner(text_tower(tiny.model()), n_vectors=2, length=10)


def test_onednn_takes_pytorchs_names_and_leaves_gradients_to_it():
    x, weight, bias = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5, requires_grad=True)
    with onednn.OneDNN():
        torch.nn.functional.linear(input=x, weight=weight, bias=bias).sum().backward()
        with torch.no_grad():
            assert torch.nn.functional.linear(x, weight[0]).shape == (3,)
    assert torch.equal(bias.grad, torch.full((5,), 3.0))
