"""CLIP baselines and the dense features of their maps."""

import pytest
import torch
from fixtures.tiny import arrays, encoded, model
from method_inputs import random_features

from vlmad_utils.methods import anomalyclip, clip_ac, winclip
from vlmad_utils.models import dense

INPUTS = arrays("inputs")


def test_clip_ac_and_one_class():
    some, text = random_features(5), random_features(2, seed=9).image
    image = clip_ac.zero_shot(some, text, 0.07).image
    assert torch.allclose(image, winclip.zero_shot(some, text).image)
    one = clip_ac.one_class(some, text)
    assert torch.equal(one.image, clip_ac.one_class(some, text[:1]).image)
    assert torch.allclose(one.image, -(some.image @ text[0]), atol=1e-6)
    dense = clip_ac.zero_shot(some, text, dense=some.patches.flip(0))
    assert torch.allclose(dense.maps, clip_ac.zero_shot(some, text).maps.flip(0))
    with pytest.raises(ValueError, match="one_class"):
        clip_ac.zero_shot(some, text[:1])
    some.patches = None
    with pytest.raises(ValueError, match="patches=True"):
        clip_ac.zero_shot(some, text)


def test_value_attention_is_ordinary_attention_for_a_lone_token():
    block = model().visual.transformer.resblocks[0]
    x = torch.randn(3, 1, 64, generator=torch.Generator().manual_seed(0))
    for attend in ("vv", "self"):
        found = dense.value_attention(block, x, attend)
        assert torch.allclose(found, block.attention(x), atol=1e-5)


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
        assert x.shape == (4, 36, 32)
        assert torch.allclose(x.norm(dim=-1), torch.ones(4, 36), atol=1e-5)
        assert all((x - y).abs().max() > 0.01 for y in found[:i])
        scores = clip_ac.zero_shot(encoded("test"), INPUTS["text_prototypes"], dense=x)
        assert scores.maps.shape == (4, 6, 6)
    patches = anomalyclip.dpam(visual, pixels, 4, [3, 4])[1]
    with torch.no_grad():  # before its first block the V-V stream is the ordinary one
        ordinary = visual.ln_post(encoded("test").tokens[3]) @ visual.proj
    assert torch.allclose(patches[3][:, 1:], ordinary, atol=1e-4)
    with pytest.raises(ValueError, match="first_vv_block"):
        anomalyclip.dpam(visual, pixels, 5, [4])
