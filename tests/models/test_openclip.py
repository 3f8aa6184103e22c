"""The interface over open_clip towers, on the tiny seeded CLIP and on seeded real shapes."""

import numpy as np
import open_clip
import pytest
import torch
from fixtures import tiny
from PIL import Image

from vlmad_utils import models
from vlmad_utils.models import loading
from vlmad_utils.models.windows import window_indices


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(scope="module")
def images():
    return tiny.arrays("inputs")["test_images"]


def test_image_embedding_is_open_clips(model, images):
    expected = torch.nn.functional.normalize(
        tiny.arrays("inputs")["open_clip_image_embedding_test"], dim=-1
    )
    assert torch.allclose(model.encode_image(images)["image"], expected, atol=2e-5)


def test_cls_goes_with_the_final_patches(model, images):
    out = model.encode_image(images, blocks=("final", "cls", 1))
    assert (
        out["tokens-cls"].shape == (len(images), 1, model.width)
        and out["tokens-final"].shape[1] == model.grid[0] * model.grid[1]
    )
    joint = torch.nn.functional.normalize(
        out["tokens-cls"][:, 0] @ model.visual.proj.detach(), dim=-1
    )  # CLIP reads no more
    assert torch.allclose(joint, out["image"], atol=1e-5)
    with pytest.raises(ValueError, match="'final' and 'cls', found 'CLS'"):
        model.encode_image(images, blocks=("CLS",))


def test_windows_equal_the_plain_loop_and_differ(model, images):
    out = model.encode_image(images[:1], windows=(2,))["windows-2"][0]
    start = model.embed(images[:1])
    for w, patches in enumerate(window_indices(model.grid, 2)):
        tokens = torch.cat([start[:, :1], start[:, 1 + patches]], dim=1)
        last, _ = model.run(tokens, ())
        one = torch.nn.functional.normalize(model.image_head(last, {}), dim=-1)[0]
        assert torch.allclose(out[w], one, atol=1e-5)
    distances = torch.cdist(out, out) + torch.eye(len(out))
    assert distances.min() > 1e-3  # sequence-first feeding would make all of them equal


def test_batch_size_and_window_chunks_change_nothing(model, images):
    asked = {"blocks": (1, 4, "final"), "windows": (2, 3), "patches": True}
    whole = model.encode_image(images, **asked)
    single = [model.encode_image(image[None], **asked) for image in images]
    model.n_windows_per_pass = 7
    chunked = model.encode_image(images, **asked)
    del model.n_windows_per_pass
    for name, value in whole.items():
        assert torch.allclose(value, torch.cat([one[name] for one in single]), atol=1e-5), name
        assert torch.allclose(value, chunked[name], atol=1e-5), name


def test_preprocess_is_rgb_bicubic_and_normalised(model):
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    out = model.preprocess(picture)
    resized = np.asarray(Image.fromarray(picture).resize((96, 96), Image.Resampling.BICUBIC)) / 255
    expected = (resized - np.array(model.mean)) / np.array(model.std)
    assert out.shape == (3, 96, 96) and out.dtype == torch.float32
    assert np.allclose(out.permute(1, 2, 0), expected, atol=1e-5)
    with pytest.raises(ValueError, match="RGB uint8"):
        model.preprocess(picture[..., 0])


def test_fingerprint_follows_weights_activation_and_size():
    assert tiny.model().fingerprint != tiny.model(quick_gelu=True).fingerprint


def test_unknown_requests_name_what_exists(model, images):
    with pytest.raises(ValueError, match=r"blocks 1\.\.4"):
        model.encode_image(images, blocks=(5,))
    with pytest.raises(ValueError, match="windows of 1 to 6"):
        model.encode_image(images, windows=(7,))


def test_load_errors_say_what_to_do():
    with pytest.raises(ValueError, match="list_models"):
        models.load("ViT-Z-99")
    with pytest.raises(ValueError, match="ViT image tower"):
        models.load("RN50", "random")
    with pytest.raises(ValueError, match="pretrained="):
        models.load("ViT-B-32")
    with pytest.raises(ValueError, match="precision"):
        models.load("ViT-B-32", "random", precision="int8")


def test_failed_download_names_model_hub_and_offline_way(monkeypatch):
    def refuse(*_, **__):
        raise OSError("cannot reach") from ConnectionError("Name or service not known")

    monkeypatch.setattr(loading.open_clip, "create_model", refuse)
    with pytest.raises(
        ConnectionError, match=r"ViT-B-16/openai.*Hugging Face hub.*load\('embedded'\)"
    ):
        models.load("ViT-B-16", "openai")


@pytest.mark.slow
def test_real_shape_of_winclips_tower():
    model = models.load("ViT-B-16-plus-240", "random")
    assert (model.grid, model.width, model.dim, model.n_blocks) == ((15, 15), 896, 640, 12)
    out = model.encode_image(
        torch.randn(1, 3, 240, 240, generator=torch.Generator().manual_seed(0)),
        blocks=(12,),
        windows=(3,),
    )
    assert out["tokens-12"].shape == (1, 225, 896) and out["windows-3"].shape == (1, 169, 640)
    assert out["windows-3"][0].std(0).max() > 1e-4


def test_prompts_cost_their_own_length_and_give_the_towers_numbers():
    model, lengths = tiny.model(), []
    prompts = ["a", "a photo of a flawless part for visual inspection", "part"]
    hook = model.model.ln_final.register_forward_pre_hook(
        lambda _, args: lengths.append(args[0].shape[1])
    )
    try:
        found = model.encode_text(prompts)
    finally:
        hook.remove()
    with torch.inference_mode():
        expected = model.model.encode_text(model.tokenizer(prompts))
    assert (
        torch.allclose(found, expected, atol=1e-5)
        and lengths[0] < 20 < model.tokenizer(prompts).shape[1]
    )


def test_canary_tokens_and_image_are_those_of_open_clips_own_forward(model, images):
    """Patches, CLS and positions are put together by hand; open_clip's ``_embeds`` is private."""
    seen = []
    hook = model.visual.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            pooled = model.visual(images)
            found = model.embed(images)
    finally:
        hook.remove()
    assert torch.equal(found, seen[0]), (
        "open_clip's VisionTransformer.forward feeds other tokens to its blocks than "
        "openclip.embed_patches (conv1, class and positional embedding, ln_pre): adapt it"
    )
    with torch.inference_mode():
        last, taken = model.run(found, ())
        image = model.image_head(last, taken)
    assert torch.allclose(image, pooled, atol=2e-5), "VisionTransformer pools in another way"


def test_canary_towers_with_attention_over_tokens_are_pooled_by_open_clip():
    """CoCa: ``VisionTransformer._pool`` is private; by hand it is attn_pool, ln_post, CLS."""
    vision = {"layers": 2, "width": 64, "patch_size": 16, "image_size": 32}
    clip = open_clip.model.CLIP(
        embed_dim=32,
        vision_cfg={**vision, "attentional_pool": True, "attn_pooler_heads": 4},
        text_cfg={"width": 32, "heads": 2, "layers": 1},
    )
    coca = models.OpenClip(clip, tiny.model().tokenizer)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(coca.model.encode_image(pixels), dim=-1)
    found = coca.encode_image(pixels)["image"]
    assert torch.allclose(found, expected, atol=2e-5), "VisionTransformer._pool gives another"
