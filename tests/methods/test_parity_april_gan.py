"""APRIL-GAN against the official code, array by array."""

import pytest
import torch
from fixtures.tiny import arrays, close, encoded, model
from open_clip.model import resize_pos_embed

from vlmad_utils.methods import april_gan, upsample
from vlmad_utils.models.dense import resize_positions

R, INPUTS = arrays("aprilgan"), arrays("inputs")
TEXT, SIZE, GRID = INPUTS["text_prototypes"], (96, 96), (6, 6)


@pytest.fixture(scope="module")
def layers():
    made = april_gan.LinearLayers(R["blocks"].tolist(), 64, 32)
    for i, layer in enumerate(made.fc):
        layer.weight.data, layer.bias.data = (
            INPUTS["aprilgan_linear_weight"][i],
            INPUTS["aprilgan_linear_bias"][i],
        )
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
    close(
        torch.stack([april_gan.layer_map(x[1:2], SIZE)[:, 1] for x in logits], dim=1),
        R["zero_layer_map"],
    )
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
    grid, positions = (
        tuple(R["resized_grid"].tolist()),
        model().visual.positional_embedding.detach(),
    )
    close(resize_positions(positions, grid, "bicubic"), R["resized_positional_embedding"])
    state = {
        "visual.positional_embedding": positions
    }  # open_clip, which models.load relies on, agrees

    class Target:
        class visual:
            grid_size = grid

    resize_pos_embed(state, Target)
    close(state["visual.positional_embedding"], R["resized_positional_embedding"])


def test_recorded_mistakes(layers):
    projected = layers(encoded("test").tokens)
    early = sum(
        upsample(
            april_gan.layer_map(april_gan.layer_logits(x[:2], TEXT, GRID))[:, 1],
            SIZE,
            align_corners=True,
        )
        for x in projected
    )
    assert (early - R["zero_map"]).abs().max() == pytest.approx(
        1.17, rel=0.01
    )  # softmax before upsampling
    no_bias = torch.stack(
        [
            april_gan.layer_logits(x - layer.bias, TEXT, GRID)
            for x, layer in zip(projected, layers.fc, strict=True)
        ],
        dim=1,
    )
    assert (no_bias - R["layer_logits"]).abs().max() == pytest.approx(1.49, rel=0.01)
