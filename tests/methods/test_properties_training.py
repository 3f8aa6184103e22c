"""APRIL-GAN and AnomalyCLIP: losses by hand, what training changes and what it leaves, checkpoints, text towers."""

import json

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from fixtures.tiny import arrays, encoded, model
from torch import nn
from transformers import BertConfig, BertModel

from vlmad_utils import features as store
from vlmad_utils.features import Arrays
from vlmad_utils.methods import anomalyclip, april_gan, clip_ac, training, winclip
from vlmad_utils.models import dense
from vlmad_utils.models.text_towers import BertText, OpenClipText, overwritten, text_tower

INPUTS = arrays("inputs")
TEXT, MASKS, LABELS = INPUTS["text_prototypes"], INPUTS["test_masks"].bool(), INPUTS["test_labels"]


def planted(n=24, grid=(6, 6), width=10, dim=6, seed=0):
    """Encoded images in which defective patches carry a direction, and their masks and labels."""
    rng = torch.Generator().manual_seed(seed)
    text = F.normalize(torch.randn(2, dim, generator=rng), dim=-1)
    masks, labels = torch.zeros(n, *grid, dtype=torch.bool), torch.arange(n) % 2
    for i in range(1, n, 2):
        masks[i, i % 4 : i % 4 + 2, (i // 2) % 4 : (i // 2) % 4 + 2] = True
    sign = torch.randn(1, width, generator=torch.Generator().manual_seed(99))
    tokens = {
        b: torch.randn(n, 36, width, generator=rng) + 3 * masks.flatten(1)[..., None] * sign
        for b in (1, 2)
    }
    patches = F.normalize(
        torch.randn(n, 36, dim, generator=rng)
        + 4 * torch.where(masks.flatten(1)[..., None], text[1], text[0]),
        dim=-1,
    )
    image = torch.where(labels[:, None] == 1, text[1], text[0]) + 0.3 * torch.randn(
        n, dim, generator=rng
    )
    return Arrays(F.normalize(image, dim=-1), grid, patches, tokens), masks, labels, text


# ---- losses ----------------------------------------------------------------------------------------------------------
def test_losses_by_hand():
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, :2] = True  # 8 of 16 pixels; the second image has none
    perfect = torch.stack([~mask, mask], dim=1).float()
    assert training.dice_loss(perfect[:, 1], mask) == pytest.approx(0)
    assert training.dice_loss(1 - perfect[:, 1], mask) == pytest.approx(
        ((1 - 1 / 17) + (1 - 1 / 17)) / 2, abs=1e-6
    )
    assert training.focal_loss(perfect, mask) == pytest.approx(0, abs=1e-6)
    half = torch.full((2, 2, 4, 4), 0.5)
    assert training.focal_loss(half, mask) == pytest.approx(0.25 * np.log(2), rel=1e-3)
    assert training.focal_loss(half, mask, gamma=0) == pytest.approx(np.log(2), rel=1e-3)
    wrong = training.focal_loss(1 - perfect, mask)
    assert torch.isfinite(wrong) and wrong > 5  # smoothing keeps log(0) away


# ---- APRIL-GAN -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained():
    some, masks, _, text = planted()
    return april_gan.train(some, masks, text, (1, 2), epochs=12, lr=1e-2, progress=False)


def test_april_gan_learns_and_carries_over(trained):
    layers, history = trained
    assert history[-1] < 0.6 * history[0]
    other, masks, _, text = planted(seed=5)
    maps = april_gan.zero_shot(other, planted()[3], layers).maps
    assert maps[masks].mean() > maps[~masks].mean() + 1
    assert not any(p.requires_grad for p in layers.parameters()) and not layers.training


def test_april_gan_is_seeded(trained):
    some, masks, _, text = planted()
    again, history = april_gan.train(
        some, masks, text.expand(24, 2, 6), (1, 2), epochs=12, lr=1e-2, progress=False
    )
    assert np.allclose(
        history, trained[1], rtol=1e-4
    )  # one pair of prototypes per image is the same thing
    torch.manual_seed(5)
    state = torch.get_rng_state()
    april_gan.LinearLayers((1,), 3, 2)
    assert torch.equal(state, torch.get_rng_state())  # the caller's random numbers are untouched


def test_april_gan_trains_on_fresh_encodings_and_leaves_them():
    before = encoded("test").tokens[2].clone()
    layers, history = april_gan.train(
        encoded("test"), MASKS, TEXT, (2, 4), epochs=2, batch_size=3, progress=False
    )
    assert len(history) == 2 and torch.equal(before, encoded("test").tokens[2])


def test_default_few_shot_score_is_not_transductive(trained):
    layers = trained[0]
    some, _, _, text = planted()
    whole = april_gan.few_shot(some, some[:2], text, layers)
    alone = april_gan.few_shot(some[[5]], some[:2], text, layers)
    assert (
        torch.allclose(alone.image, whole.image[5:6], atol=1e-5)
        and whole.training == "trained elsewhere"
    )
    official = april_gan.few_shot(some, some[:2], text, layers, transductive=True)
    fewer = april_gan.few_shot(some[:6], some[:2], text, layers, transductive=True)
    assert (
        official.image[:6] - fewer.image
    ).abs().max() > 1e-3 and official.training == "transductive"
    assert torch.isfinite(
        april_gan.few_shot(some[[5]], some[:2], text, layers, transductive=True).image
    ).all()
    for scores in (whole, official):
        assert scores.maps.min() >= 0 and scores.maps.max() <= scores.map_range[1]
        assert scores.image.min() >= 0 and scores.image.max() <= scores.image_range[1]


def test_score_of_the_map_is_the_mean_of_its_top_per_cent(trained):
    layers, (some, _, _, text) = trained[0], planted()
    official = april_gan.zero_shot(some, text, layers)
    found = april_gan.zero_shot(some, text, layers, image_from="map")
    highest = found.maps.flatten(1).amax(1) / len(
        layers.blocks
    )  # fewer than 100 patches: 1 % is one
    assert (
        torch.allclose(found.image, highest)
        and torch.equal(found.maps, official.maps)
        and "map" in found.meaning
    )
    with pytest.raises(ValueError, match="found 'patches'"):
        april_gan.zero_shot(some, text, layers, image_from="patches")


def test_april_gan_checkpoints(trained, tmp_path):
    layers, path = trained[0], tmp_path / "layers.safetensors"
    april_gan.save(layers, path, backbone="tiny", trained_on="planted")
    loaded, card = april_gan.load(path)
    assert card["trained_on"] == "planted" and loaded.blocks == (1, 2)
    assert all(
        torch.equal(a, b) for a, b in zip(layers.parameters(), loaded.parameters(), strict=True)
    )
    path.with_suffix(".json").write_text(json.dumps({"method": "anomalyclip"}))
    with pytest.raises(ValueError, match="wanted 'april_gan'"):
        april_gan.load(path)
    with pytest.raises(ValueError, match="safetensors"):
        april_gan.save(layers, tmp_path / "layers.pth")
    torch.save({"trainable_linearlayer": layers.state_dict()}, tmp_path / "epoch_15.pth")
    official = april_gan.load_official(tmp_path / "epoch_15.pth", blocks=(1, 2))
    assert torch.equal(official.fc[1].weight, layers.fc[1].weight)
    with pytest.raises(ValueError, match="2 layers"):
        april_gan.load_official(tmp_path / "epoch_15.pth")
    torch.save({"model": 1}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="trainable_linearlayer"):
        april_gan.load_official(tmp_path / "other.pth")


def test_april_gan_names_mistakes(trained):
    some, masks, _, text = planted()
    with pytest.raises(ValueError, match="one mask|per image"):
        april_gan.train(some, masks[:3], text, (1, 2))
    with pytest.raises(ValueError, match="No mask holds a defect"):
        april_gan.train(some, torch.zeros_like(masks), text, (1, 2))
    with pytest.raises(ValueError, match="width 10"):
        april_gan.zero_shot(encoded("test"), text, trained[0])


@pytest.mark.parametrize("shape", [(20, 20), (21, 33)])
def test_mosaic(shape):
    images = [np.full((*shape, 3), v, np.uint8) for v in (10, 90, 170, 250)]
    masks = [np.full(shape, i == 3) for i in range(4)]
    made = [april_gan.mosaic(images, masks, np.random.default_rng(s)) for s in range(30)]
    for image, mask in made:
        assert image.shape == (*shape, 3) and image.dtype == np.uint8 and mask.dtype == bool
        assert np.array_equal(mask, (image == 250).all(-1))  # the mask moves with its image
    assert max(len(np.unique(image)) for image, _ in made) == 4
    again = april_gan.mosaic(images, masks, np.random.default_rng(0))
    assert np.array_equal(again[0], made[0][0])
    dot = np.zeros((200, 200), bool)
    dot[77, 33] = True
    assert (
        april_gan.mosaic([np.zeros((200, 200, 3), np.uint8)], [dot], np.random.default_rng(0))[
            1
        ].sum()
        == 4
    )


# ---- dense features --------------------------------------------------------------------------------------------------
def test_value_attention_is_ordinary_attention_for_a_lone_token():
    block = model().visual.transformer.resblocks[0]
    x = torch.randn(3, 1, 64, generator=torch.Generator().manual_seed(0))
    for attend in ("vv", "self"):
        assert torch.allclose(
            dense.value_attention(block, x, attend), block.attention(x), atol=1e-5
        )


def test_dense_features():
    visual, pixels = model().visual, INPUTS["test_images"]
    found = [
        dense.maskclip(visual, pixels),
        dense.maskclip(visual, pixels, residual=False),
        dense.vv(visual, pixels),
        dense.vv(visual, pixels, 4),
        encoded("test").patches,
    ]
    for i, x in enumerate(found):
        assert x.shape == (4, 36, 32) and torch.allclose(
            x.norm(dim=-1), torch.ones(4, 36), atol=1e-5
        )
        assert all((x - y).abs().max() > 0.01 for y in found[:i])
        assert clip_ac.zero_shot(encoded("test"), TEXT, dense=x).maps.shape == (4, 6, 6)
    patches = anomalyclip.dpam(visual, pixels, 4, [3, 4])[1]
    with torch.no_grad():  # before its first block the V-V stream is the ordinary one
        ordinary = visual.ln_post(encoded("test").tokens[3]) @ visual.proj
    assert torch.allclose(patches[3][:, 1:], ordinary, atol=1e-4)
    with pytest.raises(ValueError, match="first_vv_block"):
        anomalyclip.dpam(visual, pixels, 5, [4])


def test_every_method_reads_the_feature_store():
    pictures = [
        np.random.default_rng(i).integers(0, 256, (70, 70, 3), dtype=np.uint8) for i in range(5)
    ]
    plain = store.encode(model(), pictures, (2, 4, "final"), (2, 3), store=None, progress=False)
    layers = april_gan.LinearLayers((2, 4), 64, 32)
    tower = anomalyclip.DPAM(model())
    streams = store.encode(tower, pictures, (2, 4), store=None, progress=False)
    made = [
        clip_ac.zero_shot(plain, TEXT),
        winclip.zero_shot(plain, TEXT),
        winclip.few_shot(plain, plain[:2], TEXT),
        april_gan.zero_shot(plain, TEXT, layers),
        april_gan.few_shot(plain, plain[[0, 1]], TEXT, layers),
        anomalyclip.zero_shot(streams, TEXT, blocks=(2, 4)),
        anomalyclip.zero_shot(streams, TEXT, size=(48, 48)),
    ]
    assert all(len(s) == 5 and torch.isfinite(s.maps).all() for s in made)
    masks = torch.zeros(5, 12, 12, dtype=torch.bool)
    masks[3:, 4:8, 4:8] = True
    april_gan.train(plain, masks, TEXT, (2, 4), epochs=1, progress=False)
    with pytest.raises(ValueError, match="plain backbone"):
        store.encode(tower, pictures, windows=(2,), store=None, progress=False)


# ---- AnomalyCLIP: text towers ----------------------------------------------------------------------------------------
def bert(width=16, layers=3):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    head = nn.Linear(width, 6)

    def pooled(hidden, mask):
        return head((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))

    return BertText(BertModel(config).eval(), words, pooled)


class words(dict):  # noqa: N801 - stands for a tokenizer call
    """A toy tokenizer: one id per word, start 1, end 2, padding 0."""

    def __init__(self, prompts, padding=True, return_tensors="pt"):
        rows = [
            [1, *(3 + sum(map(ord, word)) % 37 for word in prompt.split()), 2] for prompt in prompts
        ]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        super().__init__(input_ids=ids, attention_mask=(ids > 0).long())

    def to(self, device):
        return self


@pytest.fixture(scope="module")
def custom_clip():
    torch.manual_seed(0)
    text = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3}
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    return open_clip.model.CustomTextCLIP(6, vision, text).eval()


def test_towers_agree_with_the_models_own_text_encoder(custom_clip):
    prompts = ["a photo of a damaged object.", "object", "X X X object."]
    tower = text_tower(model())
    ids, mask = tower.tokenize(prompts)
    found = tower.encode_embeddings(tower.embed_tokens(ids), ids, mask)
    assert torch.allclose(found, model().encode_text(prompts), atol=1e-5)
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=20)
    tower = OpenClipText(custom_clip, tokenizer)
    ids, mask = tower.tokenize(prompts)
    with torch.no_grad():
        expected = custom_clip.encode_text(tokenizer(prompts))
    assert torch.allclose(
        tower.encode_embeddings(tower.embed_tokens(ids), ids, mask), expected, atol=1e-5
    )
    tower = bert()
    ids, mask = tower.tokenize(prompts)
    hidden = tower.bert(ids, attention_mask=mask.long()).last_hidden_state
    found = tower.encode_embeddings(tower.embed_tokens(ids), ids, mask)
    assert torch.allclose(found, tower.head(hidden, mask), atol=1e-5)


def test_learner_with_the_placeholders_own_vectors_is_the_plain_prompt():
    tower = text_tower(model())
    learner = anomalyclip.PromptLearner(tower, n_vectors=5, depth=1)
    prompts = ["X X X X X object.", "X X X X X damaged object."]
    ids, _ = tower.tokenize(prompts)
    learner.vectors.data = tower.embed_tokens(ids)[:, 1:6].clone()
    assert torch.allclose(
        learner.prototypes(), F.normalize(model().encode_text(prompts), dim=-1), atol=1e-5
    )


def test_learnable_values_are_the_papers():
    """2 x 12 x 768 + 8 x 4 x 768 = 43,008 with ViT-L's text width and 12 blocks."""
    tower = bert(width=768, layers=0)
    tower.blocks = [nn.Identity()] * 12
    learner = anomalyclip.PromptLearner(tower)
    assert sum(p.numel() for p in learner.parameters()) == 43_008
    values = torch.cat([p.flatten() for p in learner.parameters()])
    assert abs(values.std() - 0.02) < 0.001 and abs(values.mean()) < 0.001
    assert len(anomalyclip.PromptLearner(bert()).deep) == 2  # three blocks: 2 and 3 get tokens


def test_deep_tokens_overwrite_what_follows_the_start_token():
    blocks = nn.ModuleList([nn.Identity() for _ in range(3)])
    x, new = torch.arange(14.0).reshape(2, 7, 1), torch.full((3, 1), -1.0)
    with overwritten(blocks, [new]):
        assert torch.equal(blocks[0](x), x) and torch.equal(
            blocks[2](x), x
        )  # only block 2, counted from 1
        found = blocks[1](x)[..., 0]
    assert found.tolist() == [[0, -1, -1, -1, 4, 5, 6], [7, -1, -1, -1, 11, 12, 13]]
    assert torch.equal(blocks[1](x), x)
    with pytest.raises(RuntimeError), overwritten(blocks, [new]):
        raise RuntimeError
    assert torch.equal(blocks[1](x), x)  # hooks are gone after an error, too


@pytest.mark.parametrize("make", ["clip", "bert"])
def test_gradients_reach_every_free_vector_and_no_weight(make):
    tower = text_tower(model()) if make == "clip" else bert()
    learner = anomalyclip.PromptLearner(tower, n_vectors=6, length=3)
    (learner()[0] @ torch.arange(learner().shape[1]).float()).backward()
    assert learner.vectors.grad[0].abs().sum() > 0 and learner.vectors.grad[1].abs().sum() == 0
    assert all(p.grad.abs().sum() > 0 for p in learner.deep)
    weights = (tower.text if make == "clip" else tower.bert).parameters()
    assert all(p.grad is None for p in weights)


# ---- AnomalyCLIP: training -------------------------------------------------------------------------------------------
def test_anomalyclip_learns_and_leaves_the_towers(tmp_path):
    some, masks, labels, _ = planted()
    tower = bert()
    before = {k: v.clone() for k, v in tower.bert.state_dict().items()}
    learner, history = anomalyclip.train(
        tower, some, masks, labels, epochs=15, lr=2e-2, n_vectors=4, progress=False
    )
    assert history[-1] < 0.8 * history[0]
    scores = anomalyclip.zero_shot(some, learner.prototypes())
    assert scores.maps[masks].mean() > scores.maps[~masks].mean() + 0.1
    assert scores.image[labels == 1].mean() > scores.image[labels == 0].mean()
    assert scores.training == "trained elsewhere"
    assert all(torch.equal(before[k], v) for k, v in tower.bert.state_dict().items())
    anomalyclip.save(learner, tmp_path / "p.safetensors", trained_on="planted")
    loaded, card = anomalyclip.load(tmp_path / "p.safetensors", tower)
    assert (
        torch.equal(loaded.prototypes(), learner.prototypes()) and card["prompts"]["n_vectors"] == 4
    )
    state = {
        "ctx_pos": learner.vectors[:1, None],
        "ctx_neg": learner.vectors[1:, None],
        "token_prefix_pos": torch.zeros(1),
    }
    state |= {f"compound_prompts_text.{i}": p for i, p in enumerate(learner.deep)}
    torch.save({"prompt_learner": {k: v.data for k, v in state.items()}}, tmp_path / "epoch_15.pth")
    official = anomalyclip.load_official(tmp_path / "epoch_15.pth", tower)
    assert torch.equal(official.prototypes(), learner.prototypes())
    torch.save({"state": {}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="prompt_learner"):
        anomalyclip.load_official(tmp_path / "other.pth", tower)


def test_anomalyclip_trains_on_open_clip():
    learner, history = anomalyclip.train(
        text_tower(model()), encoded("test"), MASKS, LABELS, epochs=3, batch_size=4, progress=False
    )
    assert history[-1] < history[0] and learner.prototypes().shape == (2, 32)
    again, _ = anomalyclip.train(
        text_tower(model()), encoded("test"), MASKS, LABELS, epochs=3, batch_size=4, progress=False
    )
    assert torch.allclose(again.prototypes(), learner.prototypes(), atol=1e-5)


def test_glocal_loss_adds_its_parts():
    some, masks, labels, text = planted()
    parts = anomalyclip.glocal_loss(
        some.image, [some.patches], text, labels, masks, some.grid, weight=0
    )
    assert parts == pytest.approx(
        F.cross_entropy(some.image @ text.T / 0.07, labels).item(), rel=1e-5
    )
    one = (
        anomalyclip.glocal_loss(
            some.image, [some.patches], text, labels, masks, some.grid, weight=1
        )
        - parts
    )
    two = (
        anomalyclip.glocal_loss(
            some.image, [some.patches] * 2, text, labels, masks, some.grid, weight=4
        )
        - parts
    )
    assert two == pytest.approx(8 * one.item(), rel=1e-4)
    with pytest.raises(ValueError, match="found labels"):
        anomalyclip.train(bert(), some, masks, torch.zeros(24))
    with pytest.raises(ValueError, match="one each"):
        anomalyclip.train(bert(), some, masks, labels[:3])


def test_sigma_scales_with_the_map():
    some, _, _, text = planted()
    rough, fine = (
        anomalyclip.zero_shot(some, text, size=size, sigma=40) for size in ((64, 64), (128, 128))
    )
    assert (F.avg_pool2d(fine.maps, 2) - rough.maps).abs().max() < 0.02
    grids = [anomalyclip.zero_shot(some, text, sigma=sigma).maps for sigma in (0, 40)]
    assert torch.equal(*grids)  # the patch grid is never smoothed
