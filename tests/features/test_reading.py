"""Images are read once and ahead, by threads or processes; what fails is named."""

import gc
import os
import signal
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
from fixtures import faults, tiny
from fixtures.counting import Tiny

from vlmad_utils import data, features, paths
from vlmad_utils.features import batches, reading
from vlmad_utils.models import resize
from vlmad_utils.store import DiskStore, MemoryStore

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes by fork")
RAW = partial(resize.for_device, (32, 32))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return [*faults.pictures(folder, 9), faults.noise(50), str(folder / "none.png")]


def alike(a, b):
    """Return whether two readings are the same; errors by their text."""
    if a[:2] != b[:2] or type(a.image) is not type(b.image):
        return False
    if isinstance(a.image, torch.Tensor):
        return torch.equal(a.image, b.image)
    return str(a.image) == str(b.image)


@linux
def test_processes_and_threads_give_the_same_in_the_same_order(images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = [*images, str(tmp_path / "broken.png"), 7]
    store = DiskStore(tmp_path, "f")
    store.put("image", paths.content_hash(images[2]), np.zeros(2, np.float32))
    read = partial(reading.read_and_hash, RAW, ("image", "patches"), store)
    state = torch.get_rng_state()
    threads = list(reading.in_threads(read, iter(images), 3, 2))
    processes = list(reading.in_processes(read, iter(images), 2))
    assert all(a is b is c for (a, _), (b, _), c in zip(threads, processes, images, strict=True))
    assert all(alike(a, b) for (_, a), (_, b) in zip(threads, processes))
    assert processes[2][1].lacks == ("patches",) and processes[0][1].lacks == ("image", "patches")
    assert [type(found.image).__name__ for _, found in processes[10:]] == [
        "FileNotFoundError",
        "DataError",
        "TypeError",
    ]
    assert torch.equal(torch.get_rng_state(), state)  # a DataLoader draws from it by itself


@linux
def test_processes_read_an_endless_generator_and_end_with_it(images):
    def endless():
        while True:
            yield from images[:9]

    found = reading.in_processes(partial(reading.read_only, RAW), endless(), 2)
    for _ in range(40):
        assert next(found)[1].image.shape == (24, 32, 3)
    children = torch.multiprocessing.active_children()
    assert len(children) == 2
    found.close()
    assert not any(child.is_alive() for child in children)


@linux
def test_a_process_that_is_killed_is_said_and_what_is_stored_stays(images, tmp_path, monkeypatch):
    me = os.getpid()

    def deadly(prepare, kinds, store, item):
        if os.getpid() != me and item == images[7]:
            time.sleep(0.5)  # until what was read before is encoded
            os.kill(os.getpid(), signal.SIGKILL)
        return read_and_hash(prepare, kinds, store, item)

    read_and_hash = reading.read_and_hash
    monkeypatch.setattr(reading, "read_and_hash", deadly)
    monkeypatch.setattr(reading, "processes_pay", lambda *_: True)
    monkeypatch.setattr(reading.joblib, "cpu_count", lambda: 2)
    model, asked = Tiny(), {"batch_size": 2, "progress": False}
    with pytest.raises(features.EncodingError, match="a process that reads images died"):
        features.encode(model, images[:9], store=tmp_path, **asked)
    encoded = sum(model.passes)
    assert 2 <= encoded <= 6
    monkeypatch.setattr(reading, "read_and_hash", read_and_hash)
    found = features.encode(model, images[:9], store=tmp_path, **asked)
    assert sum(model.passes) == 9 and len(found) == 9


class Broken(Tiny):
    """A tower that raises in its second pass."""

    def embed(self, pixels):
        if self.passes:
            raise ValueError("a bug")
        return super().embed(pixels)


class Odd(Exception):
    """An error that cannot be pickled."""

    def __init__(self, one, two):
        super().__init__(one + two)
        self.lock = threading.Lock()  # distributed, once imported, teaches pickle the rest


@linux
@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError(24, "Too many open files"), OSError), (MemoryError("no memory"), MemoryError)],
    ids=["files", "memory"],
)
def test_what_no_image_is_to_blame_for_is_raised_here_as_it_was_there(images, error, raised):
    def prepare(_):
        raise error

    for by in (
        lambda read: reading.in_processes(read, images[:3], 2),
        lambda read: reading.in_threads(read, images[:3], 2, 2),
    ):
        with pytest.raises(raised) as seen:
            list(by(partial(reading.read_only, prepare)))
        assert "Traceback" not in str(seen.value)


@linux
def test_an_error_that_no_process_can_send_is_told_by_its_text(images):
    def prepare(_):
        raise Odd("a", "b")

    [(_, found)] = reading.in_processes(partial(reading.read_only, prepare), images[:1], 2)
    assert isinstance(found.image, data.DataError) and str(found.image) == "Odd: ab"


def test_each_file_is_opened_once(images, monkeypatch, tmp_path):
    opened, original = [], open
    monkeypatch.setattr(
        "builtins.open", lambda f, *a, **k: (opened.append(str(f)), original(f, *a, **k))[1]
    )
    features.encode(tiny.model(), images[:9], store=tmp_path, progress=False)
    assert sorted(name for name in opened if name in set(images[:9])) == sorted(images[:9])


def test_an_image_whose_kinds_are_all_stored_is_not_decoded(images, tmp_path, monkeypatch):
    features.encode(Tiny(), images[:9], store=tmp_path, progress=False)
    monkeypatch.setattr(data, "decode_image", lambda *_: pytest.fail("it was decoded"))
    assert len(features.encode(Tiny(), images[:9], store=tmp_path, progress=False)) == 9


def test_a_file_too_large_to_hold_gives_the_same(images, monkeypatch):
    read = partial(reading.read_and_hash, RAW, ("image",), MemoryStore())
    expected = read(images[0])
    monkeypatch.setattr(reading, "LARGE", 10)
    assert alike(read(images[0]), expected) and expected.key == paths.content_hash(images[0])


def test_a_large_file_that_changes_between_its_two_reads_is_refused(tmp_path, monkeypatch):
    [one] = faults.pictures(tmp_path, 1)

    def swap(pixels):  # after the hash was taken
        with open(one, "ab") as file:
            file.write(b"more")
        return RAW(pixels)

    monkeypatch.setattr(reading, "LARGE", 10)
    found = reading.read_and_hash(swap, ("image",), MemoryStore(), one)
    assert isinstance(found.image, data.DataError) and "changed while it was read" in str(
        found.image
    )


def test_processes_read_for_a_gpu_only_and_only_where_they_can(monkeypatch):
    monkeypatch.setattr(reading.joblib, "cpu_count", lambda: 8)
    room = type("Usage", (), {"free": 8 * 4 * 3 * resize.MOST_PIXELS})
    monkeypatch.setattr(reading.shutil, "disk_usage", lambda _: room)
    monkeypatch.setattr(reading.sys, "platform", "linux")
    monkeypatch.setattr(reading.os.path, "isdir", lambda _: True)
    assert reading.processes_pay("cuda", None) and reading.processes_pay("cuda:1", reading.FEW)
    assert not reading.processes_pay("cpu", None) and not reading.processes_pay(
        "cuda", reading.FEW - 1
    )
    room.free -= 1
    assert not reading.processes_pay("cuda", 10_000)
    room.free = 2**26  # what Docker gives by itself
    assert not reading.processes_pay("cuda", 10_000)
    room.free = 2**31
    monkeypatch.setattr(reading.sys, "platform", "win32")
    assert not reading.processes_pay("cuda", 10_000)


@linux
@pytest.mark.parametrize("by", ["threads", "processes"])
@pytest.mark.parametrize("where", ["here", "on a worker"])
def test_after_an_error_nobody_reads_though_it_is_held(images, tmp_path, monkeypatch, by, where):
    """The traceback of an error holds generators; a notebook holds the last traceback."""
    monkeypatch.setattr(reading, "processes_pay", lambda *_: by == "processes")
    monkeypatch.setattr(reading.joblib, "cpu_count", lambda: 2)
    with pytest.raises(ValueError, match="a bug") as held:
        if where == "here":
            features.encode(Broken(), images[:9], store=None, batch_size=1, progress=False)
        else:
            keys = features.keys(images[:9])
            part = [batches.Job(key, image, ("image",)) for key, image in zip(keys, images)]
            batches._run_on_worker(Broken(), part, MemoryStore(), 1)
    assert held.value.__traceback__ is not None
    assert not [each for each in threading.enumerate() if "ThreadPool" in each.name]
    assert not torch.multiprocessing.active_children()


def test_arrays_are_not_sent_to_processes(images, monkeypatch):
    monkeypatch.setattr(reading, "processes_pay", lambda *_: True)
    monkeypatch.setattr(reading, "in_processes", lambda read, items, n: iter(["processes"]))
    monkeypatch.setattr(reading, "in_threads", lambda read, items, ahead, n: iter(["threads"]))

    def by(items):
        return next(reading.read_ahead(partial(reading.read_only, RAW), items, "cuda", None, 2))

    arrays = [faults.noise(i) for i in range(3)]
    assert by(arrays) == "threads"
    assert by(images) == by([*arrays, images[0]]) == by(iter(arrays)) == "processes"


@linux
def test_a_caller_may_make_tensors_elsewhere_and_processes_share_what_was_here(images):
    def prepare(image):
        return torch.tensor([gc.get_freeze_count(), image.shape[0]])

    read, frozen = partial(reading.read_only, prepare), gc.get_freeze_count()
    torch.set_default_device("meta")
    try:
        [(_, found)] = reading.in_processes(read, images[:1], 2)
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)
    assert found.image[0] > 10_000 and found.image[1] == 24
    assert gc.get_freeze_count() == frozen
