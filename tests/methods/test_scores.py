"""What must hold for the scores of every method."""

import numpy as np
import pytest
import torch
from fixtures.tiny import arrays, model
from method_inputs import random_features

from vlmad_utils import features
from vlmad_utils.methods import Scores, anomalyclip, april_gan, clip_ac, winclip

TEXT, NORMAL = random_features(2, seed=9).image, random_features(2, seed=1)
METHODS = {
    "clip_ac": lambda f: clip_ac.zero_shot(f, TEXT),
    "one_class": lambda f: clip_ac.one_class(f, TEXT[:1]),
    "winclip": lambda f: winclip.zero_shot(f, TEXT),
    "winclip+": lambda f: winclip.few_shot(f, NORMAL, TEXT),
    "winclip+ add": lambda f: winclip.few_shot(f, NORMAL, TEXT, fusion="add", token=2),
    "winclip+ reciprocal": lambda f: winclip.few_shot(
        f, NORMAL, TEXT, token=None, fusion="reciprocal"
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_images_do_not_see_each_other(name):
    """Order, company and batch size change no score; ranges hold; inputs stay as they were."""
    some = random_features(20)
    before = some.image.clone()
    scores = METHODS[name](some)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    shuffled, alone = METHODS[name](some[order]), METHODS[name](some[[7]])
    for kind in ("image", "maps"):
        whole = getattr(scores, kind)
        assert torch.allclose(getattr(shuffled, kind), whole[order], atol=1e-5)
        assert torch.allclose(getattr(alone, kind)[0], whole[7], atol=1e-5)
        low, high = scores.image_range if kind == "image" else scores.map_range
        assert whole.min() >= low - 1e-6 and whole.max() <= high + 1e-6
    assert scores.maps.shape == (20, 5, 4)
    assert scores.image.dtype == scores.maps.dtype == torch.float32
    assert scores.training == "training-free" and torch.equal(before, some.image)


def test_scores_refuse_what_cannot_be_right():
    good = {"image": torch.zeros(2), "maps": torch.zeros(2, 3, 3)}
    good |= {"meaning": "m", "training": "training-free"}
    assert Scores(**good).range == "image 0 to 1, maps 0 to 1" and len(Scores(**good)) == 2
    for change, words in (
        ({"training": "zero-shot"}, "training is one of"),
        ({"image": torch.zeros(3)}, "want image"),
        ({"maps": torch.full((2, 3, 3), torch.nan)}, "not finite"),
        ({"maps": torch.zeros(2, 9)}, "want image"),
    ):
        with pytest.raises(ValueError, match=words):
            Scores(**{**good, **change})


def test_every_method_reads_the_feature_store():
    images = [np.random.default_rng(i).integers(0, 256, (70, 70, 3), np.uint8) for i in range(5)]
    text = arrays("inputs")["text_prototypes"]
    plain = features.encode(model(), images, (2, 4, "final"), (2, 3), store=None, progress=False)
    layers = april_gan.LinearLayers((2, 4), 64, 32)
    tower = anomalyclip.DPAM(model())
    streams = features.encode(tower, images, (2, 4), store=None, progress=False)
    made = [
        clip_ac.zero_shot(plain, text),
        winclip.zero_shot(plain, text),
        winclip.few_shot(plain, plain[:2], text),
        april_gan.zero_shot(plain, text, layers),
        april_gan.few_shot(plain, plain[[0, 1]], text, layers),
        anomalyclip.zero_shot(streams, text, blocks=(2, 4)),
        anomalyclip.zero_shot(streams, text, size=(48, 48)),
    ]
    assert all(len(s) == 5 and torch.isfinite(s.maps).all() for s in made)
    masks = torch.zeros(5, 12, 12, dtype=torch.bool)
    masks[3:, 4:8, 4:8] = True
    april_gan.train(plain, masks, text, (2, 4), epochs=1, progress=False)
    with pytest.raises(ValueError, match="plain backbone"):
        features.encode(tower, images, windows=(2,), store=None, progress=False)
