"""APRIL-GAN: against the official code array by array, training and checkpoints."""

import json

import numpy as np
import pytest
import torch
from fixtures.tiny import arrays, close, encoded, model
from method_inputs import planted
from open_clip.model import resize_pos_embed

from vlmad_utils.methods import april_gan, upsample
from vlmad_utils.models.dense import resize_positions

R, INPUTS = arrays("aprilgan"), arrays("inputs")
TEXT, SIZE, GRID = INPUTS["text_prototypes"], (96, 96), (6, 6)
MASKS = INPUTS["test_masks"].bool()


@pytest.fixture(scope="module")
def layers():
    made = april_gan.LinearLayers(R["blocks"].tolist(), 64, 32)
    for i, layer in enumerate(made.fc):
        layer.weight.data = INPUTS["aprilgan_linear_weight"][i]
        layer.bias.data = INPUTS["aprilgan_linear_bias"][i]
    return made.eval().requires_grad_(False)


def test_tokens_and_projection(layers):
    tokens = torch.stack([encoded("test").tokens[b] for b in (1, 2, 3, 4)], dim=1)
    close(tokens[:2], R["patch_tokens"])
    close(torch.stack(layers(encoded("test").tokens), dim=1)[:2], R["projected_tokens"])
    last, taken = model().run(model().embed(INPUTS["test_images"]), ())
    close(model().image_head(last, taken).detach(), R["image_embeddings"])


def test_zero_shot(layers):
    logits = [april_gan.layer_logits(x, TEXT, GRID) for x in layers(encoded("test").tokens)]
    close(torch.stack(logits, dim=1), R["layer_logits"])
    maps = [april_gan.layer_map(x[1:2], SIZE)[:, 1] for x in logits]
    close(torch.stack(maps, dim=1), R["zero_layer_map"])
    scores = april_gan.zero_shot(encoded("test"), TEXT, layers, SIZE)
    close(scores.maps[:2], R["zero_map"])
    close(scores.maps.amax((1, 2)), R["zero_map_max"])
    close(scores.maps.mean((1, 2)), R["zero_map_mean"])
    close(scores.image, R["zero_image_score"])


@pytest.mark.parametrize("shots", [1, 3])
def test_few_shot(layers, shots):
    few, references = f"few{shots}", encoded("reference")[:shots]
    distance = [april_gan.layer_distance(encoded("test"), references, b) for b in (1, 2, 3, 4)]
    close(torch.stack(distance, dim=1), R[f"{few}_layer_distance"])
    scores = april_gan.few_shot(encoded("test"), references, TEXT, layers, SIZE, transductive=True)
    close(scores.maps[1:2], R[f"{few}_map"])
    close(scores.maps.amax((1, 2)), R[f"{few}_map_max"])
    close(scores.image, R[f"{few}_image_score_transductive"])
    assert scores.training == "transductive"


def test_positions():
    grid = tuple(R["resized_grid"].tolist())
    positions = model().visual.positional_embedding.detach()
    close(resize_positions(positions, grid, "bicubic"), R["resized_positional_embedding"])
    # open_clip, which models.load relies on, agrees
    state = {"visual.positional_embedding": positions}

    class Target:
        class visual:
            grid_size = grid

    resize_pos_embed(state, Target)
    close(state["visual.positional_embedding"], R["resized_positional_embedding"])


def test_recorded_mistakes(layers):
    projected = layers(encoded("test").tokens)
    grids = [april_gan.layer_map(april_gan.layer_logits(x[:2], TEXT, GRID)) for x in projected]
    early = sum(upsample(x[:, 1], SIZE, align_corners=True) for x in grids)  # softmax came first
    assert (early - R["zero_map"]).abs().max() == pytest.approx(1.17, rel=0.01)
    no_bias = [x - layer.bias for x, layer in zip(projected, layers.fc, strict=True)]
    logits = torch.stack([april_gan.layer_logits(x, TEXT, GRID) for x in no_bias], dim=1)
    assert (logits - R["layer_logits"]).abs().max() == pytest.approx(1.49, rel=0.01)


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
    text = text.expand(24, 2, 6)  # one pair of prototypes per image is the same thing
    _, history = april_gan.train(some, masks, text, (1, 2), epochs=12, lr=1e-2, progress=False)
    assert np.allclose(history, trained[1], rtol=1e-4)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    april_gan.LinearLayers((1,), 3, 2)
    assert torch.equal(state, torch.get_rng_state())  # the caller's random numbers are untouched


def test_april_gan_trains_on_fresh_encodings_and_leaves_them():
    before = encoded("test").tokens[2].clone()
    _, history = april_gan.train(
        encoded("test"), MASKS, TEXT, (2, 4), epochs=2, batch_size=3, progress=False
    )
    assert len(history) == 2 and torch.equal(before, encoded("test").tokens[2])


def test_default_few_shot_score_is_not_transductive(trained):
    layers = trained[0]
    some, _, _, text = planted()
    whole = april_gan.few_shot(some, some[:2], text, layers)
    alone = april_gan.few_shot(some[[5]], some[:2], text, layers)
    assert torch.allclose(alone.image, whole.image[5:6], atol=1e-5)
    assert whole.training == "trained elsewhere"
    official = april_gan.few_shot(some, some[:2], text, layers, transductive=True)
    fewer = april_gan.few_shot(some[:6], some[:2], text, layers, transductive=True)
    assert (official.image[:6] - fewer.image).abs().max() > 1e-3
    assert official.training == "transductive"
    one = april_gan.few_shot(some[[5]], some[:2], text, layers, transductive=True)
    assert torch.isfinite(one.image).all()
    for scores in (whole, official):
        assert scores.maps.min() >= 0 and scores.maps.max() <= scores.map_range[1]
        assert scores.image.min() >= 0 and scores.image.max() <= scores.image_range[1]


def test_score_of_the_map_is_the_mean_of_its_top_per_cent(trained):
    layers, (some, _, _, text) = trained[0], planted()
    official = april_gan.zero_shot(some, text, layers)
    found = april_gan.zero_shot(some, text, layers, image_from="map")
    highest = found.maps.amax((1, 2)) / len(layers.blocks)  # fewer than 100 patches: 1 % is one
    assert torch.allclose(found.image, highest)
    assert torch.equal(found.maps, official.maps) and "map" in found.meaning
    with pytest.raises(ValueError, match="found 'patches'"):
        april_gan.zero_shot(some, text, layers, image_from="patches")


def test_april_gan_checkpoints(trained, tmp_path):
    layers, path = trained[0], tmp_path / "layers.safetensors"
    april_gan.save(layers, path, backbone="tiny", trained_on="planted")
    loaded, card = april_gan.load(path)
    assert card["trained_on"] == "planted" and loaded.blocks == (1, 2)
    pairs = zip(layers.parameters(), loaded.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
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
    for other in ({"model": 1}, [1], {"trainable_linearlayer": {"other": torch.zeros(1)}}):
        torch.save(other, tmp_path / "other.pth")
        with pytest.raises(ValueError, match="trainable_linearlayer.*found"):
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
    black = np.zeros((200, 200, 3), np.uint8)
    _, mask = april_gan.mosaic([black], [dot], np.random.default_rng(0))
    assert mask.sum() == 4  # the small defect is in each quarter
