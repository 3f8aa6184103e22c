"""A thread writes while the device computes; what it raises reaches the caller, nothing is lost."""

import errno
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from fixtures import faults
from fixtures.counting import Tiny

from vlmad_utils import data, features
from vlmad_utils.features.writing import WAITING, Writer
from vlmad_utils.store import DiskStore, MemoryStore, StoreError

ASKED = {"batch_size": 2, "progress": False}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return faults.pictures(tmp_path_factory.mktemp("images"), 12)


def batch(i):
    return [f"{i:02}" * 20], {"image": torch.full((1, 3), float(i))}


def test_the_model_goes_on_while_a_batch_is_written_but_not_far(paths, monkeypatch):
    """A store that takes no batch until the model has had as many as may wait."""
    model, went_on = Tiny(), threading.Event()
    put, seen = MemoryStore.put_rows, []

    def slow(self, kind, keys, rows):
        seen.append(went_on.wait(20))
        put(self, kind, keys, rows)

    embed = model.embed

    def watch(pixels):
        out = embed(pixels)
        if len(model.passes) == 1 + WAITING:
            went_on.set()
        return out

    monkeypatch.setattr(MemoryStore, "put_rows", slow)
    monkeypatch.setattr(model, "embed", watch)
    found = features.encode(model, paths, patches=False, store=None, **ASKED)
    assert seen == [True] * 6 and len(found) == 12


def test_at_most_so_many_batches_wait():
    store, go_on, taken = MemoryStore(), threading.Event(), []
    store.put_rows = lambda kind, keys, rows: (go_on.wait(20), taken.extend(keys))
    with Writer(store) as writer:
        for i in range(1 + WAITING):
            writer.put(*batch(i))
        fourth = threading.Thread(target=writer.put, args=batch(3))
        fourth.start()
        fourth.join(0.2)
        assert fourth.is_alive() and not taken
        go_on.set()
        fourth.join(20)
    assert taken == [batch(i)[0][0] for i in range(4)]  # in their order, all before the end


def test_an_error_of_the_writer_reaches_the_caller_and_later_batches_are_tried(tmp_path):
    store, sealed = DiskStore(tmp_path, "f"), []
    put, store.seal = store.put_rows, lambda: sealed.append(1)
    given = threading.Event()

    def full(kind, keys, rows):
        if keys == batch(1)[0]:
            assert given.wait(20)
            raise StoreError(errno.ENOSPC, "no room")
        put(kind, keys, rows)

    store.put_rows = full
    with pytest.raises(StoreError, match="no room"):
        with Writer(store) as writer:
            for i in range(2):
                writer.put(*batch(i))
            given.set()
            while writer._error is None:
                time.sleep(0.001)
            writer.put(*batch(2))
    there = [store.has("image", batch(i)[0][0]) for i in range(3)]
    assert there == [True, False, True]
    assert sealed == [1]


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C as a signal")
def test_a_second_interruption_leaves_no_thread(monkeypatch):
    """The first waits until a busy store has taken all; the second breaks that off."""
    store, go_on, taken = MemoryStore(), threading.Event(), []
    store.put_rows = lambda kind, keys, rows: (go_on.wait(20), taken.extend(keys))
    put_all = threading.Event()

    def twice():
        assert put_all.wait(20)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=twice).start()
    with pytest.raises(KeyboardInterrupt):
        with Writer(store) as writer:
            for i in range(1 + WAITING):
                writer.put(*batch(i))
            put_all.set()
            raise KeyboardInterrupt  # the first
    go_on.set()
    deadline = time.monotonic() + 5  # join() of Python 3.11 says nothing after an interruption
    while writer._thread in threading.enumerate() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert writer._thread not in threading.enumerate()
    assert taken == [batch(i)[0][0] for i in range(1 + WAITING)]


def test_what_was_computed_before_an_error_of_the_model_is_stored(paths, tmp_path):
    class Broken(Tiny):
        def embed(self, pixels):
            if len(self.passes) == 4:
                raise ValueError("a bug")
            return super().embed(pixels)

    with pytest.raises(ValueError, match="a bug"):
        features.encode(Broken(), paths, store=tmp_path, **ASKED)
    model = Tiny()
    features.encode(model, paths, store=tmp_path, **ASKED)
    assert sum(model.passes) == 12 - 4 * 2


@pytest.mark.parametrize("kind", ["AcceleratorError", "RuntimeError"])
@pytest.mark.parametrize("where", ["model", "writer"])
def test_a_gpu_that_fails_is_named_with_the_images_on_it_and_a_rerun_goes_on(
    paths, tmp_path, monkeypatch, kind, where
):
    class Failing(Tiny):
        def embed(self, pixels):
            if len(self.passes) == 3 and where == "model":
                raise fault
            return super().embed(pixels)

    class Fault(RuntimeError):
        pass

    if kind == "AcceleratorError":
        monkeypatch.setattr(torch, kind, Fault, raising=False)
        fault = Fault("an illegal memory access was encountered")
    else:
        fault = RuntimeError("CUDA error: unspecified launch failure")
    put, calls = DiskStore.put_rows, []

    def fails(self, *rows):
        calls.append(1)
        if len(calls) == 7 and where == "writer":  # in the third batch, as late errors do
            raise fault
        put(self, *rows)

    monkeypatch.setattr(DiskStore, "put_rows", fails)
    with pytest.raises(features.EncodingError) as error:
        features.encode(Failing(), paths, blocks=(2,), store=tmp_path, **ASKED)
    said = str(error.value)
    assert str(fault) in said and "is stored" in said and "run it again" in said
    assert paths[4] in said  # of the third batch
    monkeypatch.setattr(DiskStore, "put_rows", put)
    model = Tiny()
    found = features.encode(model, paths, blocks=(2,), store=tmp_path, **ASKED)
    assert len(found) == 12 and sum(model.passes) <= 8


def test_an_unreadable_image_among_a_thousand_is_named_and_the_others_are_stored(tmp_path):
    images = [np.full((4, 4, 3), (i % 256, i // 256, 7), np.uint8) for i in range(1000)]
    images[617] = np.zeros((4, 4), np.uint8)
    model, asked = Tiny(), {"patches": False, "batch_size": 64, "progress": False}
    with pytest.raises(data.DataError, match=r"1 of 1000 images.*\n  image 617, array \(4, 4\): "):
        features.encode(model, images, store=tmp_path, **asked)
    with pytest.warns(UserWarning, match="1 of 1000 images were left out"):
        found = features.encode(model, images, store=tmp_path, on_error="skip", **asked)
    assert len(found) == 999 and sum(model.passes) == 999


def test_a_file_that_is_another_image_by_now_is_never_stored_under_the_old_hash(
    paths, tmp_path, monkeypatch
):
    """On a cluster the hash is taken here and the pixels are read there."""
    from vlmad_utils.features import batches

    picture = tmp_path / "x.png"
    picture.write_bytes(open(paths[0], "rb").read())
    [key] = features.keys([str(picture)])
    job = batches.Job(key, str(picture), ("image",))
    picture.write_bytes(open(paths[1], "rb").read())
    store = DiskStore(tmp_path / "store", "f")
    failures = batches._run_on_worker(Tiny(), [job], store, 1)
    assert "the file changed" in str(failures[key]) and not store.has("image", key)
