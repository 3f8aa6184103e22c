"""Matrix products in bfloat16 or float16: how far features move from float32.

Products in bfloat16 round each factor to 8 bits, which nothing can undo, those in float16 to 11.
All else is float32: patches, the residual stream, the norms, the heads, the unit vectors.
"""

import pytest
import torch
import torch.nn.functional as F
from fixtures import tiny

from vlmad_procedural import generate
from vlmad_utils import models, paths
from vlmad_utils.evaluation import auroc
from vlmad_utils.models import dense, prompts

ASKED = {"blocks": (1, "final", "cls"), "windows": (2, 3), "patches": True}
fetched = pytest.mark.skipif(
    not (paths.raw_dir() / "dinov2").exists(), reason="the towers are not fetched; run make data"
)


def encode(model, images, precision, monkeypatch, **asked):
    monkeypatch.setattr(model, "precision", precision)
    out = model.encode_image(images, **asked)
    monkeypatch.setattr(model, "precision", "fp32")
    return out


def distance(found, expected):
    """Root mean square length of the differences of unit vectors."""
    return (found - expected).norm(dim=-1).square().mean().sqrt().item()


def check_little_more(found, least, exact):
    for name in exact:
        assert distance(found[name], exact[name]) < 2 * distance(least[name], exact[name]), name


def probability(embedding, text, scale=100):
    """Of the second class; 100 is CLIP's trained scale."""
    return (scale * embedding @ text.T).softmax(dim=-1)[..., 1]


def prototypes(dim):
    """Two unit vectors 0.3 apart, as the prototypes of an ensemble are."""
    one, other = F.normalize(torch.randn(2, dim, generator=torch.Generator().manual_seed(1)))
    return torch.stack([one, F.normalize(one + 0.3 * other, dim=0)])


@pytest.fixture
def rounded(monkeypatch):
    """Context of a tiny CLIP whose image tower has weights of 8 bits and computes in float32."""
    model = tiny.model()
    kept = {name: weight.clone() for name, weight in model.visual.state_dict().items()}
    matrices = {n: w.bfloat16().float() if w.ndim == 2 else w for n, w in kept.items()}

    def switch(on):
        model.visual.load_state_dict(matrices if on else kept)

    yield switch
    switch(False)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_residual_stream_and_outputs_are_float32(precision, monkeypatch):
    model, images = tiny.model(), tiny.arrays("inputs")["test_images"]
    seen = set()
    norms = [n for b in model.visual.transformer.resblocks for n in (b.ln_1, b.ln_2)]
    hooks = [
        n.register_forward_pre_hook(lambda _, args: seen.add(args[0].dtype))
        for n in [*norms, model.visual.ln_pre, model.visual.ln_post]
    ]
    try:
        out = encode(model, images, precision, monkeypatch, **ASKED)
    finally:
        for hook in hooks:
            hook.remove()
    assert seen == {torch.float32}
    for name, values in out.items():  # and were not rounded to half on the way
        half = values.to(torch.bfloat16 if precision == "bf16" else torch.float16).float()
        assert (half != values).float().mean() > 0.5, name


def test_half_products_cost_little_more_than_half_weights(monkeypatch, rounded):
    """The tiny CLIP is ill-conditioned: 8 bits a weight alone move its embeddings by 0.007."""
    model, images = tiny.model(), tiny.arrays("inputs")["test_images"]
    asked = {"windows": (2, 3), "patches": True}
    exact = model.encode_image(images, **asked)
    found = encode(model, images, "bf16", monkeypatch, **asked)
    rounded(True)
    check_little_more(found, model.encode_image(images, **asked), exact)


def test_dense_features_cost_little_more_than_half_weights(monkeypatch, rounded):
    model, images = tiny.model(), tiny.arrays("inputs")["test_images"]
    backbone = models.DPAM(model, 2)

    def features():
        image, streams = dense.dpam(model.visual, images, 2, [1, 3, 4])
        return {
            "image": F.normalize(image.float(), dim=-1),
            **{f"stream {b}": F.normalize(x.float(), dim=-1) for b, x in streams.items()},
            "maskclip": dense.maskclip(model.visual, images),
            "maskclip, bare": dense.maskclip(model.visual, images, residual=False),
            "vv": dense.vv(model.visual, images),
        }

    asked = {"blocks": (3,), "patches": True}
    exact, exact_dpam = features(), backbone.encode_image(images, **asked)
    found_dpam = encode(backbone, images, "bf16", monkeypatch, **asked)
    with torch.autocast("cpu", torch.bfloat16):
        found = features()
    rounded(True)
    least, least_dpam = features(), backbone.encode_image(images, **asked)
    check_little_more(found, least, exact)
    check_little_more(found_dpam, least_dpam, exact_dpam)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_probabilities_of_winclips_tower(precision, monkeypatch):
    """At CLIP's scale, with random weights of ViT-B-16-plus-240's shapes."""
    model = models.load("ViT-B-16-plus-240", "random", device="cpu")
    images = torch.randn(1, 3, 240, 240, generator=torch.Generator().manual_seed(3))
    asked = {"windows": ("2s2", "3s3"), "patches": True}
    exact = model.encode_image(images, **asked)
    found = encode(model, images, precision, monkeypatch, **asked)
    text = prototypes(model.dim)
    for name in exact:
        gap = (probability(found[name], text) - probability(exact[name], text)).abs().max()
        assert gap < {"bf16": 5e-3, "fp16": 1e-3}[precision], f"{name}: {gap:.4f}"


@fetched
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_auroc_of_the_embedded_model(precision, monkeypatch):
    """Of zero-shot scores of 24 procedural images, whole images and the highest window of each."""
    model = models.load("embedded", image_size=112, device="cpu", precision="fp32")
    defects = ["good", "hole"] * 12
    drawn = [generate.sample("leather", defect, seed=i)[0] for i, defect in enumerate(defects)]
    images = torch.stack([model.preprocess(image) for image in drawn])
    labels = [defect != "good" for defect in defects]
    text = prompts.prototypes(model, "leather", "clip-ac", store=None)
    asked = {"windows": ("2s2", "3s2")}
    exact = model.encode_image(images, **asked)
    found = encode(model, images, precision, monkeypatch, **asked)
    for name in exact:
        scores = [
            probability(x, text, model.logit_scale).reshape(len(images), -1).amax(dim=1)
            for x in (found[name], exact[name])
        ]
        one, other = (auroc(values.numpy(), labels) for values in scores)
        # a step of AUROC is 1 / 144 here: two images may change places in bf16
        assert abs(one - other) <= (0.002 if precision == "fp16" else 2 / 144), name


@fetched
def test_probabilities_of_the_embedded_model(monkeypatch):
    """At its own scale of about 9. Most of what is left comes from DINOv2's attention in 8 bits."""
    model = models.load("embedded", device="cpu", precision="fp32")
    images = model.preprocess(generate.sample("leather", "hole", seed=3)[0])[None]
    asked = {"windows": ("3s3",), "patches": True}
    exact = model.encode_image(images, **asked)
    found = encode(model, images, "bf16", monkeypatch, **asked)
    text = prompts.prototypes(model, "leather", "clip-ac", store=None)
    for name, most in {"image": 0.004, "patches": 0.008, "windows-3s3": 0.012}.items():
        scale = model.patch_logit_scale if name == "patches" else model.logit_scale
        moved = probability(found[name], text, scale) - probability(exact[name], text, scale)
        assert distance(found[name], exact[name]) < most, name
        assert moved.abs().max() < 0.02, name
