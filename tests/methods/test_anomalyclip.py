"""AnomalyCLIP: against the official code array by array, text towers, learning, checkpoints."""

import open_clip
import pytest
import torch
import torch.nn.functional as F
from fixtures.tiny import arrays, close, encoded, model
from method_inputs import planted
from torch import nn
from transformers import BertConfig, BertModel

from vlmad_utils.features import Arrays
from vlmad_utils.methods import anomaly_probability, anomalyclip, smooth, upsample
from vlmad_utils.models.text_towers import BertText, OpenClipText, overwritten, text_tower

R, INPUTS = arrays("anomalyclip"), arrays("inputs")
TEXT, SIZE, GRID, BLOCKS = INPUTS["text_prototypes"], (96, 96), (6, 6), R["blocks"].tolist()
MASKS, LABELS = INPUTS["test_masks"].bool(), INPUTS["test_labels"]
FIRST = int(R["first_vv_block"])
SIGMA = 4 * 518 / 96  # the fixture smooths with 4 pixels at 96


# ---- parity --------------------------------------------------------------------------------------
@pytest.mark.parametrize("quick", ["", "quickgelu_"])
def test_dpam(quick):
    visual, pixels = model(bool(quick)).visual, INPUTS["test_images"]
    image, patches = anomalyclip.dpam(visual, pixels, FIRST, BLOCKS)
    close(image, R[f"{quick}image_features"])
    close(torch.stack([patches[b][:2] for b in BLOCKS], dim=1), R[f"{quick}patch_features"])
    close(anomaly_probability(image, TEXT, 0.07), R[f"{quick}image_score"])
    grids = torch.stack([anomaly_probability(patches[b][:, 1:], TEXT, 0.07) for b in BLOCKS], dim=1)
    close(grids.unflatten(2, GRID), R[f"{quick}layer_probability_grid"])
    every_image, every = anomalyclip.dpam(visual, pixels, 1, [4])
    close(every[4][:2], R[f"{quick}all_vv_patch_features"])
    close(every_image, R[f"{quick}all_vv_image_features"])


@pytest.mark.parametrize("quick", ["", "quickgelu_"])
def test_maps_through_the_backbone(quick):
    tower = anomalyclip.DPAM(model(bool(quick)), FIRST)
    out = tower.encode_image(INPUTS["test_images"], blocks=BLOCKS, patches=True)
    features = Arrays(out["image"], GRID, out["patches"], {b: out[f"tokens-{b}"] for b in BLOCKS})
    last = anomalyclip.zero_shot(features, TEXT, size=SIZE, sigma=SIGMA)
    close(last.image, R[f"{quick}image_score"])
    close(last.maps[1:2], R[f"{quick}last_map"])
    if quick:
        return
    close(last.maps.amax((1, 2)), R["last_map_max"])
    sharp = anomalyclip.zero_shot(features, TEXT, size=SIZE, sigma=0)
    close(sharp.maps[1:2], R["last_map_before_gaussian"])
    sharp = anomalyclip.zero_shot(features, TEXT, blocks=BLOCKS, size=SIZE, sigma=0)
    close(sharp.maps[1:2], R["sum_map_before_gaussian"])
    summed = anomalyclip.zero_shot(features, TEXT, blocks=BLOCKS, size=SIZE, sigma=SIGMA)
    close(summed.maps[1:2], R["sum_map"])
    close(summed.maps.amax((1, 2)), R["sum_map_max"])
    blurred_first = upsample(smooth(anomalyclip.zero_shot(features, TEXT).maps, 4), SIZE)
    mistake = (blurred_first[1:2] - R["last_map"]).abs().max()
    assert mistake == pytest.approx(0.184, rel=0.01)  # as recorded


def test_positions():
    positions, grid = model().visual.positional_embedding, R["resized_grid"].tolist()
    found = anomalyclip.resize_positions(positions, grid)
    close(found, R["resized_positional_embedding_bilinear"])


def test_fixture_is_read_as_meant():
    # the official loop replaces the last dpam_layer - 1 blocks
    assert FIRST == len(BLOCKS) - int(R["dpam_layer"]) + 2
    tower = anomalyclip.DPAM(model())
    assert tower.first_vv_block == 1 and tower.fingerprint != model().fingerprint


# ---- text towers and prompts ---------------------------------------------------------------------
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

    return BertText(BertModel(config).eval(), Tokens, pooled)


class Tokens(dict):
    """What a toy tokenizer gives: one id per word, start 1, end 2, padding 0."""

    def __init__(self, prompts, padding=True, return_tensors="pt"):
        words = [[3 + sum(map(ord, word)) % 37 for word in prompt.split()] for prompt in prompts]
        rows = [[1, *ids, 2] for ids in words]
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
    found = tower.encode_embeddings(tower.embed_tokens(ids), ids, mask)
    assert torch.allclose(found, expected, atol=1e-5)
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
    expected = F.normalize(model().encode_text(prompts), dim=-1)
    assert torch.allclose(learner.prototypes(), expected, atol=1e-5)


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
        for i in (0, 2):
            assert torch.equal(blocks[i](x), x)  # only block 2, counted from 1
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


# ---- training ------------------------------------------------------------------------------------
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
    assert torch.equal(loaded.prototypes(), learner.prototypes())
    assert card["prompts"]["n_vectors"] == 4
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
    data = text_tower(model()), encoded("test"), MASKS, LABELS
    (learner, history), (again, _) = (
        anomalyclip.train(*data, epochs=3, batch_size=4, progress=False) for _ in range(2)
    )
    assert history[-1] < history[0] and learner.prototypes().shape == (2, 32)
    assert torch.allclose(again.prototypes(), learner.prototypes(), atol=1e-5)


def test_glocal_loss_adds_its_parts():
    some, masks, labels, text = planted()

    def loss(blocks, weight):
        patches = [some.patches] * blocks
        return anomalyclip.glocal_loss(
            some.image, patches, text, labels, masks, some.grid, weight=weight
        ).item()

    image = F.cross_entropy(some.image @ text.T / 0.07, labels).item()
    assert loss(1, 0) == pytest.approx(image, rel=1e-5)
    assert loss(2, 4) - loss(1, 0) == pytest.approx(8 * (loss(1, 1) - loss(1, 0)), rel=1e-4)
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
