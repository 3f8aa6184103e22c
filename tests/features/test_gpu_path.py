"""The path of a GPU on a pretend one: raw pixels, sizes of batches, memory, streams."""

import contextlib
import functools
import pickle
import threading

import numpy as np
import pytest
import torch
from fixtures import faults, tiny
from fixtures.counting import Tiny
from fixtures.pretend_gpu import on_gpu, pretend_gpu

from vlmad_utils import features
from vlmad_utils.features import batches, sizes
from vlmad_utils.features.writing import Writer
from vlmad_utils.models import resize
from vlmad_utils.store import MemoryStore

IMAGES = [faults.noise(i, 20 + 3 * (i // 2), 40 - i) for i in range(7)]


class OnGPU(Tiny):
    """A counting tower whose weights lie on the device."""

    def to_gpu(self, device):
        self.device = str(device)
        self.weight, self.head = self.weight.to(device), self.head.to(device)
        return self

    def embed(self, pixels):
        assert on_gpu(pixels) and pixels.dtype == torch.float32
        return super().embed(pixels)


def test_a_store_written_on_a_gpu_is_that_of_a_cpu(tmp_path):
    asked = {"blocks": (2,), "windows": (2,), "progress": False, "batch_size": 3}
    expected = features.encode(Tiny(), IMAGES, store=None, **asked)
    with pretend_gpu() as device:
        model = OnGPU().to_gpu(device)
        found = features.encode(model, IMAGES, store=tmp_path, **asked)
    for kind in expected.kinds:
        assert torch.allclose(found.read(kind), expected.read(kind), atol=1e-3), kind
    assert sum(model.passes) == 7


def test_scores_of_a_stream_are_computed_on_the_gpu_and_come_to_the_cpu():
    seen = []

    class Scoring:
        blocks, windows, patches = (2,), (), True

        def __call__(self, arrays):
            seen.append(on_gpu([arrays.image, arrays.patches, arrays.tokens[2]]))
            return arrays.patches.amax((1, 2)) + arrays.tokens[2].sum((1, 2))

    asked = {"batch_size": 3, "progress": False}
    expected = torch.cat(
        [b.scores["a"] for b in features.stream(Tiny(), IMAGES, {"a": Scoring()}, **asked)]
    )
    seen.clear()
    with pretend_gpu() as device:
        model = OnGPU().to_gpu(device)
        batches = list(features.stream(model, IMAGES, {"a": Scoring()}, **asked))
    found = [batch.scores["a"] for batch in batches]
    assert not any(map(on_gpu, found)) and seen == [True] * 3
    assert torch.allclose(torch.cat(found), expected, atol=1e-3)
    assert [batch.rows for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_stream_begins_the_next_batch_before_it_gives_the_last():
    class Scoring:
        blocks, windows, patches = (), (), False

        def __call__(self, arrays):
            return arrays.image[:, 0]

    with pretend_gpu() as device:
        model = OnGPU().to_gpu(device)
        batches = features.stream(model, IMAGES, {"a": Scoring()}, 2, progress=False)
        begun = [len(model.passes) for _ in batches]
    assert begun == [2, 3, 4, 4]


class Strict:
    """A method that raises for NaN, or for all."""

    blocks, windows, patches = (), (), False

    def __init__(self, refuse_all=False):
        self.refuse_all = refuse_all

    def __call__(self, arrays):
        if self.refuse_all or not bool(torch.isfinite(arrays.image).all()):
            raise ValueError("Input contains NaN")
        return arrays.image[:, 0]


def test_a_method_that_raises_for_nan_gets_the_good_images_only():
    class Sick(OnGPU):
        def embed(self, pixels):
            tokens = super().embed(pixels).clone()
            tokens[1] = float("nan")
            return tokens

    with pretend_gpu() as device:
        model = Sick().to_gpu(device)
        with pytest.warns(UserWarning, match="image 1 was left out"):
            [batch] = features.stream(model, IMAGES[:4], {"a": Strict()}, 4, "skip", progress=False)
    assert batch.rows == [0, 2, 3] and len(batch.scores["a"]) == 3


def test_what_a_method_raises_for_good_images_is_raised():
    with pretend_gpu() as device:
        model = OnGPU().to_gpu(device)
        with pytest.raises(ValueError, match="Input contains NaN"):
            list(features.stream(model, IMAGES, {"a": Strict(True)}, 4, "skip", progress=False))


class Small(Tiny):
    """A tower on which no more than some images fit."""

    def __init__(self, most):
        super().__init__()
        self.most, self.failures = most, []

    def encode_image(self, pixels, **asked):
        if len(pixels) > self.most:
            self.failures.append(len(pixels))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().encode_image(pixels, **asked)


def test_what_memory_cannot_hold_fails_once_and_is_remembered():
    images = [np.full((8, 8, 3), i, np.uint8) for i in range(64)]
    model = Small(9)
    asked = {"patches": False, "store": None, "batch_size": 16, "progress": False}
    found = features.encode(model, images, **asked)
    assert model.failures == [16] and model.passes == [8] * 8
    features.encode(model, images, **asked)
    assert model.failures == [16] and model.batch_sizes == {("image",): 8}
    features.encode(model, images, **{**asked, "windows": (2,)})  # more asks for more memory
    assert model.failures == [16, 16]
    assert not pickle.loads(pickle.dumps(tiny.model())).batch_sizes
    expected = features.encode(Tiny(), images, **asked)
    assert torch.allclose(found.image, expected.image, atol=1e-6)


@pytest.mark.parametrize(
    ("room", "for_one", "expected"),
    [(80e9, 50e6, 128), (10e9, 100e6, 48), (1e9, 100e6, 5), (1e9, 9e9, 1)],
    ids=str,
)
def test_a_batch_takes_half_of_the_free_memory(room, for_one, expected):
    assert sizes.fitting(room, for_one) == expected


@pytest.mark.parametrize("hidden", [False, True], ids=["peak", "earlier peak"])
def test_memory_is_measured_once_for_the_kinds_of_a_model(monkeypatch, hidden):
    """Let a driver say that four images took 4 GB, of 64 that are free."""
    model, zeros, resets = Tiny(), torch.zeros, []
    model.device, model.compile = "cuda", "a compiler"
    peak = [9e9 if hidden else 2e9]

    def reset(_):
        resets.append(peak)
        peak[0] = 1e9

    def encode_image(pixels, **_):
        assert not model.compile
        model.passes.append(len(pixels))
        peak[0] = max(peak[0], 1e9 + len(pixels) * 1e9)

    cuda = {
        "is_available": lambda: True,
        "synchronize": lambda _: None,
        "memory_allocated": lambda _: 1e9,
        "reset_peak_memory_stats": reset,
        "max_memory_allocated": lambda _: peak[0],
        "memory_reserved": lambda _: 3e9,
        "mem_get_info": lambda _: (62e9, 80e9),
    }
    for name, function in cuda.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(sizes.torch, "zeros", lambda *a, device: zeros(*a))
    monkeypatch.setattr(model, "encode_image", encode_image)
    for _ in range(2):
        assert sizes.chosen(model, ("image", "patches"), "auto") == 32
    assert model.passes == ([1, 4, 4] if hidden else [1, 4]) and len(resets) == hidden
    assert model.compile == "a compiler"
    assert sizes.chosen(model, ("image", "patches"), 500) == 500
    assert sizes.chosen(Tiny(), ("image",), "auto") == 8


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["own", "cublas"],
)
def test_images_that_memory_cannot_hold_are_resized_in_parts(monkeypatch, error):
    pixels, failures = resize.pixels, []

    def small(images, *asked):
        if len(images) > 3:
            failures.append(len(images))
            raise error
        return pixels(images, *asked)

    class Scoring:
        blocks, windows, patches = (), (), False

        def __call__(self, arrays):
            return arrays.image[:, 0]

    asked = {"batch_size": 7, "progress": False}
    expected = features.encode(Tiny(), IMAGES, store=None, **asked)
    monkeypatch.setattr(resize, "pixels", small)
    with pretend_gpu() as device:
        model = OnGPU().to_gpu(device)
        found = features.encode(model, IMAGES, store=None, **asked)
        [batch] = features.stream(model, IMAGES, {"a": Scoring()}, **asked)
        assert failures == [7, 4] and model.batch_sizes == {("pixels",): 2}
        monkeypatch.setattr(resize, "pixels", lambda *_: small(range(9)))
        with pytest.raises(type(error), match=str(error)[:20]):  # not even one fits
            features.encode(model, IMAGES[:1], store=None, **asked)
    assert model.passes == [7, 7] and torch.allclose(found.image, expected.image, atol=1e-6)
    assert torch.allclose(batch.scores["a"], expected.image[:, 0], atol=1e-6)


def test_all_loaders_of_a_gpu_share_a_stream(monkeypatch):
    monkeypatch.setattr(batches, "_stream_of", functools.cache(batches._stream_of.__wrapped__))
    made = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or object())
    model, streams = Tiny(), []
    for model.device in ("cuda", "cuda:1", torch.device("cuda:1"), "cuda:0", "cpu"):
        streams.append(batches.Loader(model)._stream)
    assert streams[0] is streams[1] is streams[2] and streams[3] is not streams[0]
    assert made == [1, 0] and streams[4] is None


def test_the_writers_thread_waits_for_the_gpu_and_the_model_does_not(monkeypatch):
    """Let the device compute until a batch was handed over, with a store in memory."""
    ready, waited = threading.Event(), []

    class Stream:
        def __init__(self, device):
            assert device.type == "cuda"

        def wait_event(self, event):
            waited.append((event, ready.wait(20), threading.current_thread().name))

        def synchronize(self):
            waited.append("copied")

    class Event:
        def record(self, stream):
            assert stream == "the model's"

    store = MemoryStore()
    with pretend_gpu() as device, monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "current_stream", lambda device: "the model's")
        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        with Writer(store) as writer:
            writer.put(["a", "b"], {"image": torch.tensor([[1.0], [torch.nan]]).to(device)})
            ready.set()  # only once put is over
    assert list(writer.failures) == ["b"] and store.get("image", "a").tolist() == [1.0]
    [(event, was_ready, thread), copied] = waited
    assert isinstance(event, Event) and was_ready and thread == "vlmad writer"
    assert copied == "copied"
