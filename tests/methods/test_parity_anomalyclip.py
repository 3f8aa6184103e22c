"""AnomalyCLIP against the official code, array by array, with exact GELU and with its own QuickGELU."""

import pytest
import torch
from fixtures.tiny import arrays, close, model

from vlmad_utils.features import Arrays
from vlmad_utils.methods import anomaly_probability, anomalyclip, smooth, upsample

R, INPUTS = arrays("anomalyclip"), arrays("inputs")
TEXT, SIZE, GRID, BLOCKS = INPUTS["text_prototypes"], (96, 96), (6, 6), R["blocks"].tolist()
FIRST = int(R["first_vv_block"])
SIGMA = 4 * 518 / 96  # the fixture smooths with 4 pixels at 96


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
    close(
        anomalyclip.zero_shot(features, TEXT, size=SIZE, sigma=0).maps[1:2],
        R["last_map_before_gaussian"],
    )
    close(
        anomalyclip.zero_shot(features, TEXT, blocks=BLOCKS, size=SIZE, sigma=0).maps[1:2],
        R["sum_map_before_gaussian"],
    )
    summed = anomalyclip.zero_shot(features, TEXT, blocks=BLOCKS, size=SIZE, sigma=SIGMA)
    close(summed.maps[1:2], R["sum_map"])
    close(summed.maps.amax((1, 2)), R["sum_map_max"])
    blurred_first = upsample(smooth(anomalyclip.zero_shot(features, TEXT).maps, 4), SIZE)
    assert (blurred_first[1:2] - R["last_map"]).abs().max() == pytest.approx(
        0.184, rel=0.01
    )  # a recorded mistake


def test_positions():
    found = anomalyclip.resize_positions(
        model().visual.positional_embedding, R["resized_grid"].tolist()
    )
    close(found, R["resized_positional_embedding_bilinear"])


def test_fixture_is_read_as_meant():
    assert (
        FIRST == len(BLOCKS) - int(R["dpam_layer"]) + 2
    )  # the official loop replaces the last dpam_layer - 1 blocks
    tower = anomalyclip.DPAM(model())
    assert tower.first_vv_block == 1 and tower.fingerprint != model().fingerprint
