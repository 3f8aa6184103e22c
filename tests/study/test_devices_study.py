"""The study on the pretend GPU, methods without a study, and what a driver that fails leaves."""

import copy
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures import tiny, trees
from fixtures.pretend_gpu import on_gpu, pretend_gpu
from joblib import parallel_config

from vlmad_utils import data, features, study
from vlmad_utils.methods import april_gan
from vlmad_utils.study import registry, trained_elsewhere


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Two categories with masks: 3 references, 3 normal and 3 anomalous test images each."""
    return data.index("folder", root=trees.noise_set(tmp_path_factory.mktemp("set"), 3, 40))


def every_method(model):
    layers = april_gan.LinearLayers((2, 4), model.width, model.dim)
    return [
        registry.dense(model),
        registry.winclip_method(model),
        registry.april_gan_method(model, layers),
        registry.april_gan_method(model, layers, transductive=True),
        registry.anomalyclip_method(model, torch.eye(2, model.dim)),
        registry.memory_bank_method((2, 4)),
    ]


def tiny_on(gpu):
    """The tiny model that only says where it is: what it gives is in the store, or remembered."""
    model = copy.copy(tiny.model())
    model.device, model.text_rows = gpu, tiny.model().text_rows
    return model


def run(model, index, methods, store, **options):
    options = {"shots": (0, 1), "size": (40, 40), "draws": 0, "progress": False, **options}
    return study.run(model, index, methods, store=store, **options)


def test_a_study_of_a_model_on_a_gpu_scores_there_in_this_process(index, tmp_path):
    expected = run(tiny.model(), index, every_method(tiny.model()), tmp_path)
    shutil.rmtree(tmp_path / "study")
    seen = []

    def watched(method):
        def score(*given):
            scores = method.score(*given)
            prototypes, references = given[2], given[1]
            seen.append((prototypes is None or on_gpu(prototypes), on_gpu(scores.maps)))
            assert references is None or references.device.type == "cuda"
            return scores

        return replace(method, score=score)

    with pretend_gpu() as gpu, parallel_config(backend="loky", n_jobs=2):
        model = tiny_on(gpu)
        found = run(model, index, [watched(m) for m in every_method(model)], tmp_path)
    assert len(seen) == 2 * 8 and all(map(all, seen))
    pd.testing.assert_frame_equal(found.rows, expected.rows, atol=1e-5)
    np.testing.assert_allclose(found.images["score"], expected.images["score"], atol=1e-5)


def test_weights_go_to_the_device_of_the_model(index, tmp_path, monkeypatch):
    own, small = index[index["split"] == "test"], {"epochs": 1, "blocks": (2,)}
    learn = trained_elsewhere.load_or_train
    first, _ = learn("april_gan", tiny.model(), own, tmp_path, False, **small)
    trained = []
    fit = april_gan.train
    monkeypatch.setattr(
        april_gan, "train", lambda *a, **k: trained.append(a[0].device) or fit(*a, **k)
    )
    with pretend_gpu() as gpu:
        model = tiny_on(gpu)
        kept, _ = learn("april_gan", model, own, tmp_path, False, **small)
        assert on_gpu(list(kept.parameters())) and not trained  # the same weights serve
        anew, _ = learn("april_gan", model, own, tmp_path, False, seed=5, **small)
        assert on_gpu(list(anew.parameters())) and trained == [gpu]
    loaded, _ = learn("april_gan", tiny.model(), own, tmp_path, False, seed=5, **small)
    assert len(trained) == 1 and not on_gpu(list(loaded.parameters()))
    assert study.digest(first) == study.digest(kept) != study.digest(loaded) == study.digest(anew)


# ---- a method without a study --------------------------------------------------------------------
@pytest.mark.parametrize("few", [False, True])
def test_a_bound_method_gives_the_scores_of_the_method_on_any_device(few):
    text, model = tiny.arrays("inputs")["text_prototypes"], tiny.model()
    test, references = tiny.encoded("test"), tiny.encoded("reference") if few else None
    for method in every_method(model):
        if not method.takes(int(few)) or "transductive" in method.name:
            continue
        words = None if method.ensemble is None else text
        expected = method.score(test, references, words)
        bound = method.bound(words, references)
        wanted = (method.blocks, method.windows, method.patches)
        assert (bound.blocks, bound.windows, bound.patches) == wanted
        assert torch.equal(bound(test).maps, expected.maps)
        with pretend_gpu() as gpu:
            bound = method.bound(words, references, gpu)
            assert references is None or on_gpu(bound.references.image)
            found = bound(test.to(gpu))
            assert on_gpu(found.maps)
            assert torch.allclose(found.cpu().maps, expected.maps, atol=2e-6)


def test_a_bound_method_copies_what_it_holds_once_a_device():
    text, seen = tiny.arrays("inputs")["text_prototypes"], []
    test, references = tiny.encoded("test"), tiny.encoded("reference")
    method = registry.winclip_method(tiny.model())

    def score(*given):
        seen.append(given)
        return method.score(*given)

    bound = replace(method, score=score).bound(text, references)
    with pretend_gpu() as gpu:
        for feats in (test, test.to(gpu), test.to(gpu)):
            assert bound(feats).maps.device.type == feats.device.type
    here, first, second = seen
    assert here[1] is bound.references and here[2] is bound.prototypes
    assert first[1] is second[1] and first[2] is second[2]
    assert on_gpu([first[1].image, first[2]])
    assert pickle.loads(pickle.dumps(study.Method("none", len).bound()))._copies == {}


def test_a_bound_method_asks_for_what_it_needs():
    model, text = tiny.model(), tiny.arrays("inputs")["text_prototypes"]
    test, references = tiny.encoded("test"), tiny.encoded("reference")
    bank, words = registry.memory_bank_method((2, 4)), registry.dense(model)
    with pytest.raises(ValueError, match="memory bank takes 1 or more references, found 0"):
        bank.bound()
    with pytest.raises(ValueError, match="dense patches takes no references, found"):
        words.bound(text, references)
    with pytest.raises(ValueError, match=r"give prototypes, e.g. models.prototypes\(model, noun"):
        words.bound()
    layers = april_gan.LinearLayers((2, 4), model.width, model.dim)
    all_at_once = registry.april_gan_method(model, layers, transductive=True)
    with pytest.raises(ValueError, match="batches cannot be scored one by one: use study.run"):
        all_at_once.bound(text, references)(test)


def test_bound_methods_score_a_stream_of_images():
    """Each method reads what it needs of its view of the model; nothing is stored."""
    model, text = tiny.model(), tiny.arrays("inputs")["text_prototypes"]
    images = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8) for i in range(6)]
    options = {"store": None, "progress": False}
    plain = features.encode(model, images, (2, 4, "final"), (2, 3), **options)
    methods = [m for m in every_method(model) if "transductive" not in m.name]
    bound, expected = {}, {}
    for method in methods:
        words = None if method.ensemble is None else text
        references = plain[4:] if method.takes(2) else None
        feats = plain
        if method.backbone:
            feats = features.encode(method.backbone, images, **options)
        bound[method.name] = method.bound(words, references)
        expected[method.name] = method.score(feats[:4], references, words)
    assert bound["AnomalyCLIP"].backbone is not None
    (batch,) = features.stream(model, images[:4], bound, batch_size=4, progress=False)
    for name, scores in batch.scores.items():
        assert torch.allclose(scores.image, expected[name].image, atol=1e-5)
        assert torch.allclose(scores.maps, expected[name].maps, atol=1e-5)
    assert list(batch.scores) == [m.name for m in methods]


# ---- a driver that fails -------------------------------------------------------------------------
def fails_on_bolts(features, references, text):
    if features.index["category"].iloc[0] == "bolt":
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    return registry.memory_bank_method((2,)).score(features, references, text)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_driver_that_fails_takes_no_other_cell_with_it(index, tmp_path, jobs):
    bank = registry.memory_bank_method((2,))
    broken = replace(bank, score=fails_on_bolts)
    message = (
        r"2 of 4 cells failed; the other 2 are kept in the store, .* folder/bolt, memory bank, "
        r"K = 1, seed 0: AcceleratorError: CUDA error.* Also: folder/bolt, .* K = 2, seed 0\."
    )
    with (
        parallel_config(backend="loky", n_jobs=jobs),
        pytest.raises(RuntimeError, match=message) as e,
    ):
        run(tiny.model(), index, [broken], tmp_path, shots=(1, 2))
    assert "in fails_on_bolts" in e.value.__notes__[0]
    scored = []

    def counted(*given):
        scored.append(given[0].index["category"].iloc[0])
        return bank.score(*given)

    found = run(tiny.model(), index, [replace(bank, score=counted)], tmp_path, shots=(1, 2))
    assert scored == ["bolt"] * 2
    assert found.rows.equals(run(tiny.model(), index, [bank], None, shots=(1, 2)).rows)


def test_any_error_names_its_cell_and_without_a_store_the_first_ends_the_run(index, tmp_path):
    broken = replace(registry.memory_bank_method((2,)), score=fails_on_bolts)
    with pytest.raises(torch.AcceleratorError) as error:
        run(tiny.model(), index, [broken], None, shots=(1,))
    assert error.value.__notes__ == ["in the cell folder/bolt, memory bank, K = 1, seed 0"]
    wrong = replace(broken, score=lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError) as other:
        run(tiny.model(), index, [wrong], tmp_path, shots=(1,))
    assert other.value.__notes__ == error.value.__notes__
