"""The embedded model: exact conversion of the tower, heads, words, training steps."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from embedded_model import captions
from vlmad_procedural import generate
from vlmad_utils import models, paths
from vlmad_utils.models import dinov2, embedded, prompts

RAW = paths.raw_dir()
fetched = pytest.mark.skipif(
    not (RAW / "dinov2").exists(), reason="the towers are not fetched; run make data"
)


@pytest.fixture(scope="module")
def model():
    return models.load("embedded")


@pytest.mark.slow
@fetched
def test_conversion_is_exact_against_the_onnx_graph():
    """Same position table in, same tokens out.

    timm and the exporter interpolate positions differently, so the embedded positions of the graph
    are fed to timm's blocks, and the patch projection is compared by itself.
    """
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    graph = onnx.load(str(next((RAW / "dinov2").rglob("*.onnx"))))
    for name in (
        "/backbone/embeddings/Add_output_0",
        "/backbone/layernorm/Add_1_output_0",
        "/backbone/embeddings/patch_embeddings/Transpose_output_0",
    ):
        graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    pixels = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    _, start, last, patches = (
        torch.from_numpy(a)
        for a in runtime.InferenceSession(graph.SerializeToString()).run(
            None, {"input_image": pixels}
        )
    )
    tower = dinov2.load_tower()
    with torch.inference_mode():
        assert (tower.norm(tower.blocks(start)) - last).abs().max() < 1e-4
        assert (
            tower.patch_embed(torch.from_numpy(pixels)).flatten(1, 2) - patches
        ).abs().max() < 1e-4
        assert tower.pos_embed.shape == (1, 1 + 37 * 37, 384)
        whole = tower.forward_features(torch.from_numpy(pixels))
    assert F.cosine_similarity(whole, last, dim=-1).min() > 0.99


@fetched
def test_shapes_units_and_windows(model):
    image = generate.sample("leather", "hole", seed=3)[0]
    out = model.encode_image(
        model.preprocess(image)[None], blocks=(6, "final"), windows=(2, 3), patches=True
    )
    assert {k: tuple(v.shape) for k, v in out.items()} == {
        "image": (1, 256),
        "tokens-6": (1, 256, 384),
        "tokens-final": (1, 256, 384),
        "patches": (1, 256, 256),
        "windows-2": (1, 225, 256),
        "windows-3": (1, 196, 256),
    }
    for name in ("image", "patches", "windows-2", "windows-3"):
        assert torch.allclose(out[name].norm(dim=-1), torch.ones(1), atol=1e-4)
    assert out["windows-2"][0].std(0).max() > 1e-3 and not model.is_clip


@fetched
def test_size_is_a_multiple_of_the_patch():
    assert models.load("embedded", image_size=448).grid == (32, 32)
    assert (
        models.load("embedded", image_size=448).fingerprint != models.load("embedded").fingerprint
    )
    with pytest.raises(ValueError, match="multiple of 14.*224"):
        models.load("embedded", image_size=225)


@fetched
def test_prompts_matter_and_unseen_synonyms_point_the_same_way(model):
    winclip = prompts.prototypes(model, "leather", "winclip")
    unseen = prompts.prototypes(
        model, "leather", {side: list(s) for side, s in captions.HELD_OUT_SYNONYMS.items()}
    )
    assert F.cosine_similarity(winclip[1] - winclip[0], unseen[1] - unseen[0], dim=0) > 0.7
    image, mask = generate.sample("leather", "hole", seed=3, area=0.03, contrast=1.0)
    patches = model.encode_image(model.preprocess(image)[None], patches=True)["patches"][0]
    heat = patches @ (winclip[1] - winclip[0])
    inside = F.avg_pool2d(torch.from_numpy(mask).float()[None, None], 14).flatten() > 0.5
    assert heat[inside].mean() > heat[~inside].mean() + heat.std()


@fetched
def test_text_does_not_depend_on_the_batch(model):
    words = [
        "a photo of a leather.",
        "damaged leather",
        "a close-up photo of the very long described object in a scene",
    ]
    together = model.encode_text(words)
    alone = torch.cat([model.encode_text([w]) for w in words])
    assert torch.allclose(together, alone, atol=1e-5)


@fetched
def test_text_tower_for_learned_prompts(model):
    tower = model.text_tower()
    ids, mask = tower.tokenize(["damaged leather"])
    embeddings = tower.embed_tokens(ids).requires_grad_(True)
    out = tower.encode_embeddings(embeddings, ids, mask)
    assert torch.allclose(out.detach(), model.encode_text(["damaged leather"]), atol=1e-5)
    out.sum().backward()
    assert embeddings.grad.abs().sum() > 0


def test_shipped_heads_are_small_hashed_and_carded(tmp_path):
    heads, card = embedded.load_heads()
    weights = embedded.FOLDER / "heads.safetensors"
    assert weights.stat().st_size <= 8e6 and sum(card["recipe"]["images"].values()) > 0
    assert sum(p.numel() for p in heads.parameters()) < 4e6
    (tmp_path / "heads.safetensors").write_bytes(weights.read_bytes()[:-1] + b"x")
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="SHA-256"):
        embedded.load_heads(tmp_path)
    with pytest.raises(FileNotFoundError, match="make embedded"):
        embedded.load_heads(tmp_path / "none")


@fetched
def test_the_models_parameters_are_frozen_and_new_heads_learn(model):
    parts = (model.tower, model.heads, model.sentences.bert)
    assert not any(p.requires_grad for part in parts for p in part.parameters())
    tower = model.text_tower()
    ids, mask = tower.tokenize(["damaged leather"])
    embeddings = tower.embed_tokens(ids).requires_grad_(True)
    tower.encode_embeddings(embeddings, ids, mask).sum().backward()
    assert embeddings.grad.abs().sum() > 0 and model.heads.text.weight.grad is None
    assert all(p.requires_grad for p in embedded.Heads().parameters())


@fetched
def test_the_tower_is_read_from_and_written_to_the_folder_that_is_given(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        dinov2.fetch,
        "fetch",
        lambda names, root=None: asked.append(root) or {"dinov2": RAW / "dinov2"},
    )
    tower = dinov2.load_tower(tmp_path)
    assert asked == [tmp_path] and (tmp_path / f"{dinov2.TIMM_NAME}.safetensors").exists()
    before = torch.random.get_rng_state()
    again = dinov2.load_tower(tmp_path)
    assert asked == [tmp_path] and torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in tower.state_dict().items())


@fetched
@pytest.mark.parametrize("size", [224, 336])
def test_canary_tokens_are_those_of_timms_own_forward(size):
    """CLS, patches and positions are put together by hand; timm's ``_pos_embed`` is private."""
    model = models.load("embedded", image_size=size, device="cpu")
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    seen = []
    hook = model.tower.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            model.tower.forward_features(pixels)
            found = model.embed(pixels)
    finally:
        hook.remove()
    assert torch.equal(found, seen[0]), (
        "timm's VisionTransformer feeds other tokens to its blocks than Embedded.embed "
        "(patch_embed, cls_token, resample_abs_pos_embed, norm_pre): adapt it; the public way to "
        "tokens after blocks is forward_intermediates"
    )
