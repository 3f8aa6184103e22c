"""Weights learned elsewhere: kept and found again, and made anew when what made them changes."""

import json
import re
import warnings

import pandas as pd
import pytest
import torch
from fixtures import tiny, trees

from vlmad_procedural import DEFECT_TYPES, FAMILIES
from vlmad_utils import data, models, study
from vlmad_utils.methods import anomalyclip
from vlmad_utils.study import registry, trained_elsewhere

QUICK = {
    "april_gan": {"epochs": 1, "blocks": (2, 4)},
    "anomalyclip": {"epochs": 1, "n_vectors": 2, "depth": 2, "length": 1},
}
PACKED = trained_elsewhere.FOLDER
METHODS = pytest.mark.parametrize("method", QUICK)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Two categories, 2 normal and 2 anomalous images each, with masks."""
    root = trees.noise_set(tmp_path_factory.mktemp("set"), n=2, side=32)
    return data.index("folder", root=root).query("split == 'test'").reset_index(drop=True)


@pytest.fixture
def quick(monkeypatch, tmp_path, index):
    """load_or_train on the small set, nothing shipped; counts the trainings."""
    calls, real = [], trained_elsewhere.train
    monkeypatch.setattr(trained_elsewhere, "FOLDER", tmp_path / "shipped")
    monkeypatch.setattr(trained_elsewhere, "train", lambda *a: calls.append(1) or real(*a))

    def get(method, index=index, store=tmp_path / "store", model=None, **changes):
        model = model or tiny.model()
        return trained_elsewhere.load_or_train(
            method, model, index, store, progress=False, **QUICK[method] | changes
        )

    get.calls, get.shipped, get.store = calls, tmp_path / "shipped", tmp_path / "store"
    return get


@METHODS
def test_what_was_trained_is_loaded_again(quick, method):
    first, card = quick(method)
    again, other = quick(method)
    assert len(quick.calls) == 1 and card == other
    assert study.digest(first) == study.digest(again) and not any(
        p.requires_grad for p in again.parameters()
    )
    assert (
        card["parameters"] == sum(p.numel() for p in first.parameters()) and len(card["loss"]) == 1
    )
    assert (
        card["settings"]["domain"] == "own"
        and card["settings"]["limit"] == 8
        and card["licence"] != "MIT"
    )
    assert card["data"] == {
        "sets": ["folder"],
        "categories": ["bolt", "cloth"],
        "defects": ["hole"],
        "n_images": 8,
        "n_anomalous": 4,
    }


@METHODS
def test_without_a_store_the_same_weights_come_out_and_nothing_is_written(quick, method):
    kept, card = quick(method)
    loose, other = quick(method, store=None)
    assert len(quick.calls) == 2 and study.digest(kept) == study.digest(loose)
    assert {**card, "seconds": 0} == {**card, **other, "seconds": 0} and not quick.shipped.exists()


@METHODS
@pytest.mark.parametrize("changes", [{"seed": 5}, {"lr": 1e-2}, {"epochs": 2}])
def test_other_settings_train_anew(quick, method, changes):
    first, other = quick(method)[0], quick(method, **changes)[0]
    assert len(quick.calls) == 2 and study.digest(first) != study.digest(other)
    quick(method)  # and the first are still there
    assert len(quick.calls) == 2


@METHODS
def test_other_images_masks_labels_or_words_train_anew(quick, method, index):
    quick(method)
    others = [
        index[:-1],
        index.iloc[::-1],
        index.assign(object_name="nut"),
        index.assign(mask_path=index["mask_path"].iloc[-1]),
        index.assign(
            label=index["label"].where(index.index > 0, 1), mask_path=index["mask_path"].iloc[-1]
        ),
    ]
    for number, other in enumerate(others, 2):
        quick(method, other.reset_index(drop=True))
        assert len(quick.calls) == number


@METHODS
def test_shipped_weights_serve_only_what_they_were_made_for(quick, method, tmp_path):
    learned, card = quick(method)
    quick.shipped.mkdir()
    trained_elsewhere.MODULES[method].save(
        learned,
        quick.shipped / f"{method}.safetensors",
        **{
            key: value
            for key, value in card.items()
            if key not in ("method", "blocks", "width", "dim", "prompts")
        },
    )
    found, _ = quick(method, store=tmp_path / "empty")
    assert (
        len(quick.calls) == 1
        and study.digest(found) == study.digest(learned)
        and not (tmp_path / "empty").exists()
    )
    path = quick.shipped / f"{method}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "identity": "another model"}))
    quick(method, store=tmp_path / "empty")
    assert len(quick.calls) == 2


@METHODS
def test_another_precision_uses_the_same_weights_and_trains_nothing(quick, method):
    model = tiny.model()
    lower = models.OpenClip(model.model, model.tokenizer, name="tiny", precision="bf16")
    assert lower.fingerprint != model.fingerprint
    first, card = quick(method)
    again, other = quick(method, model=lower)
    assert len(quick.calls) == 1 and study.digest(first) == study.digest(again)
    assert card == other and card["precision"] == "fp32"


@METHODS
def test_nothing_is_trained_in_silence(quick, method, index, monkeypatch):
    """Unasked training is named with what was found, what differs, and where the weights go."""
    small = {**trained_elsewhere.SETTINGS, "limit": 8}
    small[method] = small[method] | {"epochs": 1}
    monkeypatch.setattr(trained_elsewhere, "SETTINGS", small)
    monkeypatch.setattr(trained_elsewhere, "training_index", lambda *_: index)
    identity = tiny.model().identity

    def get(store=quick.store, **changes):
        return trained_elsewhere.load_or_train(
            method, tiny.model(), store=store, progress=False, **changes
        )

    with pytest.warns(UserWarning) as told:
        learned, card = get()
    [text] = [str(warning.message) for warning in told]
    for part in (
        f"{method} has no trained weights for tiny \\(identity {identity}\\): ",
        "the shipped ones are not there, those in the store are not there",
        r"trained now on 8 procedural images of the training families \(1 epochs\)",
        f"kept in {quick.store / 'trained' / method}-",
    ):
        assert re.search(part, text), text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get()  # kept
        get(seed=5)  # asked for
        quick(method)
    quick.shipped.mkdir()
    card = {key: card[key] for key in ("backbone", "settings", "images")}
    card["settings"] = card["settings"] | {"lr": 0.5}
    trained_elsewhere.MODULES[method].save(
        learned, quick.shipped / f"{method}.safetensors", identity="another", **card
    )
    differs = f"shipped ones differ: identity another, not {identity}; lr 0.5, not 0.001"
    with pytest.warns(UserWarning, match=f"{differs}.*kept nowhere, as store=None"):
        get(store=None)


@METHODS
def test_weights_of_another_generator_are_not_used(quick, method, index, monkeypatch):
    monkeypatch.setattr(trained_elsewhere, "training_index", lambda *_: index)

    def get():
        return quick(method, None)[1]

    now = get()["generator"]
    monkeypatch.setattr(trained_elsewhere, "VERSION", now + 1)
    assert get()["generator"] == now + 1 and len(quick.calls) == 2
    assert "generator" not in quick(method)[1]  # own images do not depend on it
    monkeypatch.setattr(trained_elsewhere, "FOLDER", PACKED)
    card = json.loads((PACKED / f"{method}.json").read_text(encoding="utf-8"))
    differs = trained_elsewhere._mismatch(PACKED / f"{method}.safetensors", method, card)
    assert differs is None and card["generator"] == now


@METHODS
@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_damaged_weights_are_trained_anew_with_a_warning(quick, method, suffix):
    first, _ = quick(method)
    [path] = (quick.store / "trained").glob(f"*{suffix}")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match=f"{method} is trained anew: .*damaged"):
        again, _ = quick(method)
    assert len(quick.calls) == 2 and study.digest(first) == study.digest(again)
    quick(method)
    assert len(quick.calls) == 2


def test_refusals_say_what_is_wanted(index):
    model = tiny.model()
    with pytest.raises(ValueError, match="april_gan or anomalyclip, found 'winclip'"):
        trained_elsewhere.load_or_train("winclip", model)
    with pytest.raises(ValueError, match="no setting epoch; it has domain, .*epochs"):
        trained_elsewhere.load_or_train("april_gan", model, epoch=3)
    with pytest.raises(ValueError, match="no setting n_vectors"):
        trained_elsewhere.load_or_train("april_gan", model, n_vectors=3)
    with pytest.raises(ValueError, match="2 anomalous images have no mask"):
        trained_elsewhere.load_or_train(
            "anomalyclip",
            model,
            index.assign(mask_path=index["mask_path"].where(index["category"] == "bolt")),
        )
    with pytest.raises(ValueError, match="labels 0 and 1, found .*-1"):
        trained_elsewhere.load_or_train("april_gan", model, index.assign(label=-1))
    with pytest.raises(ValueError, match="textures, objects or both, found 'metals'"):
        trained_elsewhere.families("metals")


def test_training_families_share_no_product_with_a_test():
    textures, objects, both = (
        set(trained_elsewhere.families(domain)) for domain in ("textures", "objects", "both")
    )
    assert textures and objects and not textures & objects and textures | objects == both
    assert {FAMILIES[name].role for name in both} == {"train"}


def test_training_index_holds_images_of_training_families_and_defects_only(monkeypatch, tmp_path):
    monkeypatch.setenv("VLMAD_RAW", str(tmp_path))
    monkeypatch.setenv("VLMAD_DATA", "")
    monkeypatch.setattr(
        trained_elsewhere,
        "families",
        lambda domain: {"both": ["felt", "plaster"], "textures": ["felt"]}[domain],
    )
    found = trained_elsewhere.training_index(limit=16)
    assert (
        len(found) == 16
        and set(found["category"]) == {"felt", "plaster"}
        and set(found["split"]) == {"test"}
    )
    assert not [
        path for path in tmp_path.rglob("*.png") if "train" in path.parts
    ]  # references are not drawn for nothing
    assert (
        found["label"].mean() == 0.5 and found.loc[found["label"] == 1, "mask_path"].notna().all()
    )
    assert {DEFECT_TYPES[kind].role for kind in set(found["defect"]) - {"good"}} == {"train"}
    assert set(trained_elsewhere.training_index("textures", limit=4)["category"]) == {"felt"}
    pd.testing.assert_frame_equal(found, trained_elsewhere.training_index(limit=16))
    layers, card = trained_elsewhere.load_or_train(
        "april_gan", tiny.model(), store=tmp_path, progress=False, limit=8, epochs=1
    )
    assert layers.blocks == trained_elsewhere.default_blocks(tiny.model()) == (1, 2, 3, 4)
    assert card["data"]["n_images"] == 8 and card["images"] is None and card["licence"] == "MIT"


def test_trained_weights_serve_the_study(quick, index):
    model = tiny.model()
    layers, learner = quick("april_gan")[0], quick("anomalyclip")[0]
    methods = [
        registry.april_gan_method(model, layers),
        registry.anomalyclip_method(model, learner.prototypes()),
    ]
    found = study.run(
        model, index, methods, draws=0, size=(32, 32), store=None, progress=False
    ).rows
    assert set(found["training"]) == {"trained elsewhere"} and len(found) == 2 * 2 * 7
    view = anomalyclip.DPAM(model)  # for open_clip the prompts are learned from the V-V stream
    assert torch.isfinite(
        trained_elsewhere.load_or_train(
            "anomalyclip", view, index, None, False, **QUICK["anomalyclip"]
        )[0].prototypes()
    ).all()


@METHODS
def test_shipped_cards_say_what_is_trained_and_on_what(method):
    path = trained_elsewhere.FOLDER / f"{method}.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    weights, _ = trained_elsewhere.load_checkpoint(path.with_suffix(".safetensors"), method)
    assert card["backbone"] == "embedded" and card["licence"] == "MIT"
    assert card["loss"][-1] < card["loss"][0]
    assert card["parameters"] == sum(w.numel() for w in weights.values())
    assert set(card["data"]["categories"]) <= set(trained_elsewhere.families())  # they still train


@METHODS
def test_shipped_weights_fit_the_embedded_model_at_any_precision(method):
    """Where this fails, heads or towers have changed: run vlmad_utils.study.trained_elsewhere."""
    model = models.load("embedded", device="cpu", precision="bf16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, card = trained_elsewhere.load_or_train(method, model, store=None)
    assert card["identity"] == model.identity
