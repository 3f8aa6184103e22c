"""What names a model (identity) and its features (fingerprint), and what each follows."""

import pickle
import shutil

import pytest
import torch
from fixtures import tiny
from safetensors.torch import load_file, save_file

from vlmad_utils import models, paths
from vlmad_utils.data import fetch
from vlmad_utils.models import OpenClip, backbone, dinov2, embedded
from vlmad_utils.models.sentences import MiniLM

fetched = pytest.mark.skipif(
    not (paths.raw_dir() / "dinov2").exists(), reason="the towers are not fetched; run make data"
)


def clip(**options):
    return OpenClip(tiny.model().model, tiny.model().tokenizer, name="tiny", **options)


def test_precision_names_other_features_of_the_same_model():
    one, half = clip(), clip(precision="bf16")
    assert one.identity == half.identity == tiny.model().identity
    assert one.fingerprint != half.fingerprint
    tower, of_half = models.DPAM(one, 2), models.DPAM(half, 2)
    assert tower.identity == of_half.identity != one.identity
    assert tower.fingerprint != of_half.fingerprint
    assert models.DPAM(one, 3).identity != tower.identity


def test_activation_normalisation_and_weights_name_another_model(monkeypatch):
    base = clip()
    assert tiny.model(quick_gelu=True).identity != base.identity
    assert clip(mean=(0.5, 0.5, 0.5)).identity != base.identity
    scale = base.model.logit_scale
    kept = scale.detach().clone()
    with torch.no_grad():
        scale += 1
    other = clip()
    with torch.no_grad():
        scale.copy_(kept)
    assert other.identity != base.identity == clip().identity


def test_a_change_of_the_encoding_code_names_other_features(monkeypatch):
    base = clip()
    monkeypatch.setattr(backbone, "ENCODING", backbone.ENCODING + 1)
    assert clip().identity == base.identity and clip().fingerprint != base.fingerprint


@fetched
def test_all_three_parts_of_the_embedded_model_name_it(tmp_path):
    tower, heads = dinov2.load_tower(), embedded.load_heads()[0]
    folder = fetch.fetch("minilm")["minilm"]

    def identity(folder=folder, size=None):
        return embedded.Embedded(tower, MiniLM(folder), heads, size).identity

    base = identity()
    assert base == models.load("embedded", precision="bf16", device="cpu").identity
    assert identity(size=448) != base
    copy = shutil.copytree(folder, tmp_path / "minilm")
    assert identity(copy) == base  # the folder does not count
    weights = load_file(copy / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, copy / "model.safetensors")
    assert identity(copy) != base
    for module in (tower.norm, heads.text):
        with torch.no_grad():
            module.bias += 1
        assert identity() != base
        with torch.no_grad():
            module.bias -= 1


@fetched
def test_sentences_are_not_loaded_for_the_identity():
    model = models.load("embedded", device="cpu")
    assert not {"bert", "tokenizer"} & set(vars(model.sentences))


def test_a_pickled_model_keeps_its_names():
    again = pickle.loads(pickle.dumps(tiny.model()))
    assert again.identity == tiny.model().identity
    assert again.fingerprint == tiny.model().fingerprint
