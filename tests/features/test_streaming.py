"""Scores of a stream are those out of a store; memory stays flat; failures are named."""

import itertools
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures import faults, tiny
from fixtures.counting import Tiny

from vlmad_utils import data, features
from vlmad_utils.features import streaming
from vlmad_utils.methods import april_gan, clip_ac, memory_bank, winclip
from vlmad_utils.models.dense import DPAM
from vlmad_utils.study import registry

TEXT = torch.eye(2, 32)


class Scoring:
    """A method as a stream wants it."""

    def __init__(self, function, blocks=(), windows=(), patches=False, backbone=None):
        self.function, self.backbone = function, backbone
        self.blocks, self.windows, self.patches = blocks, windows, patches

    def __call__(self, arrays):
        return self.function(arrays)


def first(arrays):
    return arrays.image[:, 0]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return faults.pictures(tmp_path_factory.mktemp("images"), 11)


def test_scores_are_those_of_the_same_batch_out_of_a_store_bit_for_bit(paths, tmp_path):
    model = tiny.model()
    references = features.encode(
        model, [faults.noise(90), faults.noise(91)], (2,), store=None, progress=False
    )
    layers = april_gan.LinearLayers((2, 4), model.width, model.dim)
    view = DPAM(model)
    methods = {
        "patches": Scoring(lambda f: clip_ac.zero_shot(f, TEXT, 0.07), patches=True),
        "V-V": Scoring(lambda f: clip_ac.zero_shot(f, TEXT, 0.07), (), (), True, view),
        "windows": Scoring(lambda f: winclip.zero_shot(f, TEXT, 0.07, (2, 3)), (), (2, 3)),
        "bank": Scoring(lambda f: memory_bank.few_shot(f, references, block=2), (2,)),
        "layers": Scoring(
            lambda f: april_gan.zero_shot(f, TEXT, layers, size=model.image_size), (2, 4)
        ),
    }
    asked = {"batch_size": 4, "progress": False}
    plain = features.encode(model, paths, (2, 4), (2, 3), store=tmp_path, **asked)
    viewed = features.encode(view, paths, store=tmp_path, **asked)
    rows = []
    for batch in features.stream(model, paths, methods, **asked):
        assert list(batch.scores) == list(methods) and batch.names == [paths[i] for i in batch.rows]
        rows += batch.rows
        for name, found in batch.scores.items():
            expected = methods[name]((viewed if name == "V-V" else plain)[batch.rows])
            assert torch.equal(found.image, expected.image), name
            assert torch.equal(found.maps, expected.maps), name
    assert rows == list(range(11))


def test_a_method_of_the_study_is_streamed_with_the_view_of_the_model_that_it_reads(paths):
    model = tiny.model()
    methods = {
        "AnomalyCLIP": registry.anomalyclip_method(model, TEXT).bound(TEXT),
        "WinCLIP": registry.winclip_method(model).bound(TEXT),
    }
    [batch] = features.stream(model, paths[:3], methods, progress=False)
    viewed = features.encode(DPAM(model), paths[:3], store=None, progress=False)
    plain = features.encode(
        model, paths[:3], ("final",), (2, 3), patches=False, store=None, progress=False
    )
    for name, found in (("AnomalyCLIP", viewed), ("WinCLIP", plain)):
        assert torch.equal(batch.scores[name].maps, methods[name](found).maps)


def test_methods_of_one_backbone_share_a_pass(paths):
    model = Tiny()
    methods = {"a": Scoring(first), "b": Scoring(lambda f: f.tokens[2].sum((1, 2)), (2,))}
    found = list(features.stream(model, paths, methods, batch_size=5, progress=False))
    assert model.passes == [5, 5, 1] and [len(batch.rows) for batch in found] == [5, 5, 1]


def test_tables_single_images_and_generators_are_streamed(paths):
    model, methods = Tiny(), {"a": Scoring(first)}

    def scores(images):
        return torch.cat(
            [b.scores["a"] for b in features.stream(model, images, methods, progress=False)]
        )

    expected = scores(paths)
    assert torch.equal(scores(pd.DataFrame({"image_path": paths})), expected)
    assert torch.equal(scores(path for path in paths), expected)
    assert torch.allclose(scores(paths[0]), expected[:1], atol=1e-6)
    assert torch.equal(scores(data.read_image(p) for p in paths), expected)


def test_an_endless_generator_is_asked_for_few_images_more_than_were_scored():
    asked = []

    def endless():
        for i in itertools.count():
            asked.append(i)
            yield faults.noise(i, 16, 16)

    batches = features.stream(Tiny(), endless(), {"a": Scoring(first)}, 3, progress=False)
    for batch in itertools.islice(batches, 20):
        assert len(asked) <= batch.rows[-1] + 1 + 3 * 3
    batches.close()
    assert batch.rows == [57, 58, 59]


def test_memory_stays_flat_over_3000_images():
    model, peaks = Tiny(), []

    def images():
        for i in range(3000):
            yield np.full((32, 32, 3), i % 251, np.uint8)

    tracemalloc.start()
    try:
        n = 0
        for batch in features.stream(model, images(), {"a": Scoring(first)}, 16, progress=False):
            n += len(batch.rows)
            if n % 480 == 0:
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.reset_peak()
    finally:
        tracemalloc.stop()
    assert n == 3000 and len(peaks) == 6
    assert max(peaks[1:]) < peaks[0] + 100_000  # an image has 3 KB, 3,000 have 9 MB


def test_an_image_that_cannot_be_read_is_named_after_those_before_it_are_scored(paths, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = [*paths[:5], str(tmp_path / "broken.png"), *paths[5:]]
    methods, scored = {"a": Scoring(first)}, []
    with pytest.raises(data.DataError, match=r"image 5 could.*\n  .*broken.png: cannot.*\n.*skip"):
        for batch in features.stream(Tiny(), images, methods, 4, progress=False):
            scored += batch.rows
    assert scored == [0, 1, 2, 3, 4]
    with pytest.warns(UserWarning, match=r"image 5 was left out:\n  .*broken.png"):
        found = list(features.stream(Tiny(), images, methods, 4, "skip", progress=False))
    assert [row for batch in found for row in batch.rows] == [*range(5), *range(6, 12)]
    assert found[1].names == [images[4], *images[6:9]]


def test_an_image_of_which_the_model_gives_no_numbers_is_named(paths):
    class Sick(Tiny):
        def embed(self, pixels):
            tokens = super().embed(pixels)
            tokens[1:2] = float("nan")
            return tokens

    methods = {"a": Scoring(first), "b": Scoring(lambda f: f.patches.sum((1, 2)), patches=True)}
    scored = []
    with pytest.raises(
        data.DataError, match=r"image 1 could.*\n.*01.png: .*NaN.*\(image, patches\)"
    ):
        for batch in features.stream(Sick(), paths[:4], methods, 4, progress=False):
            scored.append(batch)
    assert [batch.rows for batch in scored] == [[0, 2, 3]] and len(scored[0].scores["b"]) == 3
    with pytest.warns(UserWarning, match="image 1 was left out"):
        [batch] = features.stream(Sick(), paths[:4], methods, 4, "skip", progress=False)
    assert batch.names == [paths[0], *paths[2:4]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"on_error": "ignore"}, "on_error is"),
        ({"batch_size": 0}, "batch_size is at least 1"),
        ({"methods": {}}, "methods holds nothing"),
        ({"methods": {"a": Scoring(first, (9,))}}, r"blocks 1\.\.3"),
        ({"methods": {"a": Scoring(first, (), (9,))}}, "grid"),
        ({"methods": {"a": Scoring(first, backbone=tiny.model())}}, "a reads tiny, which sees"),
    ],
    ids=["on_error", "batch_size", "no methods", "block", "window", "other pixels"],
)
def test_a_bad_request_is_refused_at_once(options, said):
    asked = {"methods": {"a": Scoring(first)}, "progress": False, **options}
    with pytest.raises(ValueError, match=said):
        features.stream(Tiny(), ["none.png"], **asked)


@pytest.mark.parametrize("how", ["stream", "encode"])
def test_a_generator_may_fill_the_same_array_again(how):
    images = [faults.noise(i, 16, 16) for i in range(12)]

    def camera():
        frame = np.empty((16, 16, 3), np.uint8)
        for image in images:
            frame[:] = image
            yield frame

    def scores(images):
        if how == "encode":
            return features.encode(Tiny(), images, store=None, progress=False).image
        found = features.stream(Tiny(), images, {"a": Scoring(first)}, 3, progress=False)
        return torch.cat([batch.scores["a"] for batch in found])

    assert torch.equal(scores(camera()), scores(images))


@pytest.mark.parametrize(
    ("images", "n"),
    [
        (pd.Series(["a.png", "b.png"]), 2),
        (np.zeros((3, 8, 8, 3), np.uint8), 3),
        ({"a.png": 0, "b.png": 1}.keys(), 2),
        ("a.png", 1),
        (iter(["a.png"]), None),
    ],
    ids=["Series", "array", "keys", "path", "generator"],
)
def test_the_number_of_images_is_known_where_they_have_a_length(images, n, monkeypatch):
    seen = []
    monkeypatch.setattr(streaming, "_stream", lambda engine, items, n, *_: seen.append(n))
    features.stream(Tiny(), images, {"a": Scoring(first)})
    assert seen == [n]


def test_the_first_image_that_fails_is_named_though_a_later_one_was_found_before(paths):
    class Sick(Tiny):
        def embed(self, pixels):
            tokens = super().embed(pixels)
            tokens[1:2] = float("nan")
            return tokens

    scored, asked = [], {"batch_size": 4, "progress": False}
    with pytest.raises(data.DataError, match=r"image 1 could not be scored.*\n.*01.png: .*NaN"):
        for batch in features.stream(Sick(), [*paths[:3], "no"], {"a": Scoring(first)}, **asked):
            scored += batch.rows
    assert scored == [0, 2]


def test_what_a_generator_raises_comes_after_the_scores_of_what_it_gave():
    def camera():
        yield from (faults.noise(i, 16, 16) for i in range(10))
        raise OSError("the camera is gone")

    scored = []
    with pytest.raises(OSError, match="the camera is gone"):
        for batch in features.stream(Tiny(), camera(), {"a": Scoring(first)}, 4, progress=False):
            scored += batch.rows
    assert scored == list(range(10))


def test_a_single_block_or_window_needs_no_list(paths):
    methods = {
        "final": Scoring(lambda f: f.tokens["final"].sum((1, 2)), "final"),
        "2": Scoring(lambda f: f.tokens[2].sum((1, 2)) + f.windows["2s2"].sum((1, 2)), 2, "2s2"),
    }
    [batch] = features.stream(Tiny(), paths[:3], methods, progress=False)
    assert len(batch.scores["final"]) == len(batch.scores["2"]) == 3


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (torch.zeros(99), "b returned 99 scores for 3 images"),
        ([0.5], "b returned 1 scores for 3 images"),
        (torch.tensor(0.5), "b returned no row of scores for 3 images"),
        (np.zeros((3, 2)), ""),
        ({"a": 1}, ""),
        ((1, 2), ""),
        (0.5, ""),
    ],
    ids=["99", "1", "0-d", "array", "dict", "tuple", "number"],
)
def test_each_method_returns_as_many_scores_as_images(paths, result, said):
    methods = {"a": Scoring(first), "b": Scoring(lambda _: result)}
    found = features.stream(Tiny(), paths[:3], methods, progress=False)
    if not said:
        assert next(found).scores["b"] is result
        return
    with pytest.raises(ValueError, match=said):
        next(found)
