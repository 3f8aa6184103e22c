"""Every method runs on the papers' models with seeded random weights.

A first run on a GPU meets no error of shapes.
"""

import numpy as np
import pytest
import torch

from vlmad_utils import models
from vlmad_utils.features import Arrays
from vlmad_utils.methods import anomalyclip, april_gan, clip_ac, memory_bank, winclip
from vlmad_utils.models import prompts
from vlmad_utils.models.text_towers import text_tower

IMAGE = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)


def encode(model, **wanted):
    out = model.encode_image(model.preprocess(IMAGE)[None], **wanted)
    picked = {
        kind: {
            int(n) if n.isdigit() else n: x
            for key, x in out.items()
            for name, _, n in [key.partition("-")]
            if name == kind and n
        }
        for kind in ("tokens", "windows")
    }
    return Arrays(out["image"], model.grid, out.get("patches"), picked["tokens"], picked["windows"])


def check(scores, shape):
    assert (
        scores.image.shape == (1,)
        and scores.maps.shape == (1, *shape)
        and torch.isfinite(scores.maps).all()
    )


@pytest.mark.slow
def test_vit_b_16_plus_240():
    model = models.load("ViT-B-16-plus-240", "random", device="cpu")
    some = encode(model, blocks=("final", 12), windows=(2, 3), patches=True)
    assert {k: x.shape for k, x in some.windows.items()} == {2: (1, 196, 640), 3: (1, 169, 640)}
    assert some.tokens["final"].shape == (1, 225, 896)
    assert some.windows[2].std(dim=1).max() > 0  # windows differ
    text = prompts.prototypes(model, "metal nut", "clip-ac")
    check(clip_ac.zero_shot(some, text), (15, 15))
    check(winclip.zero_shot(some, text), (15, 15))
    check(winclip.few_shot(some, some, text, token=12), (15, 15))
    check(memory_bank.few_shot(some, some), (15, 15))


@pytest.mark.slow
def test_vit_l_14_336_at_518():
    model = models.load("ViT-L-14-336", "random", image_size=518, device="cpu", quick_gelu=True)
    plain = encode(model, blocks=april_gan.OFFICIAL_BLOCKS)
    assert plain.tokens[6].shape == (1, 1369, 1024) and plain.image.shape == (1, 768)
    text = prompts.prototypes(model, "metal nut", "clip-ac")
    layers = april_gan.LinearLayers(april_gan.OFFICIAL_BLOCKS, model.width, model.dim)
    assert sum(p.numel() for p in layers.parameters()) == 3_148_800
    check(april_gan.few_shot(plain, plain, text, layers, (518, 518)), (518, 518))
    tower = anomalyclip.DPAM(model)
    assert tower.first_vv_block == 6
    streams = encode(tower, patches=True)
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    learner = anomalyclip.PromptLearner(text_tower(model))
    assert sum(p.numel() for p in learner.parameters()) == 43_008
    check(anomalyclip.zero_shot(streams, learner.prototypes(), size=(518, 518)), (518, 518))
    loss = anomalyclip.glocal_loss(
        streams.image, [streams.patches], learner(), torch.zeros(1).long(), mask, model.grid
    )
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in learner.parameters())
