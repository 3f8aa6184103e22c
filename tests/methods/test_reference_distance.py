"""Distances to references: what is read, and what a cache remembers."""

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import numpy as np
import pytest
import torch
from fixtures import tiny
from method_inputs import draw

from vlmad_utils import features
from vlmad_utils.features import Arrays
from vlmad_utils.methods import april_gan, memory_bank, neighbours, winclip


class Counted:
    """Encoded images that log how many images each reading of their tokens takes."""

    identity, grid, device = None, (4, 5), torch.device("cpu")

    def __init__(self, array, log):
        self.array, self.log = array, log

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        return Counted(self.array[[rows] if isinstance(rows, int) else rows], self.log)

    @property
    def tokens(self):
        self.log.append(len(self.array))
        return {1: self.array}


def test_each_image_is_read_and_normalised_once(normalised):
    """37 test images are three batches; the products stay those of one batch and one reference."""
    query, bank, log = draw(37, 20, 8), draw(5, 20, 8, seed=1), []
    expected = [
        torch.stack([memory_bank.nearest(part, one)[0][..., 0] for one in bank]).amin(dim=0)
        for part in query.split(16)
    ]
    normalised.clear()
    found = memory_bank.reference_distance(Counted(query, []), Counted(bank, log), 1)
    assert torch.equal(found, torch.cat(expected))
    assert sum(log) == 5 and sum(normalised) == 37 + 5


def test_a_bank_is_built_and_normalised_once(normalised):
    query, bank, log = draw(37, 20, 8), draw(5, 20, 8, seed=1), []
    memory_bank.few_shot(Counted(query, []), Counted(bank, log), block=1, k=2)
    assert sum(log) == 5 and sum(normalised) == 37 + 5


@pytest.fixture
def normalised(monkeypatch):
    """How many images each call of unit() normalises."""
    log, unit = [], neighbours.unit

    def counting(x):
        log.append(x.numel() // 160)
        return unit(x)

    for module in (neighbours, memory_bank):
        monkeypatch.setattr(module, "unit", counting)
    return log


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """22 images in a feature store, so that they have an identity."""
    images = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8) for i in range(22)]
    where = tmp_path_factory.mktemp("store")
    return features.encode(tiny.model(), images, (2, "final"), (2, 3), store=where, progress=False)


def test_a_cache_searches_each_reference_once_and_changes_no_bit(stored, monkeypatch):
    """A draw that shares two of three references searches only the new one."""
    test, pool, searched, cache = stored[:18], stored[18:], [], memory_bank.DistanceCache()
    right = memory_bank.nearest(test.tokens[2], pool[:3].tokens[2].flatten(0, 1))[0][..., 0]
    search = neighbours.nearest_unit
    monkeypatch.setattr(
        neighbours, "nearest_unit", lambda *two: (searched.append(len(two[0])), search(*two))[1]
    )

    def distance(rows, test=test, cache=cache):
        searched.clear()
        return memory_bank.reference_distance(test, pool[rows], 2, cache=cache)

    first = distance(slice(3))
    assert torch.allclose(first, right, atol=1e-6) and searched == [16] * 3 + [2] * 3
    assert torch.equal(distance(slice(3)), first) and not searched
    other = distance(slice(1, 4))
    assert searched == [16, 2] and not torch.equal(other, first)
    assert torch.equal(distance(slice(1, 4), cache=None), other) and len(searched) == 6
    held = Arrays(test.image, test.grid, tokens={2: test.tokens[2]})  # may change: not remembered
    size = len(cache)
    assert torch.equal(distance(slice(1, 4), held), other) and len(searched) == 6
    assert len(cache) == size == 8


@pytest.mark.parametrize("method", ["winclip", "april_gan", "memory_bank"])
def test_few_shot_scores_are_bit_equal_with_a_cache(stored, method):
    text, cache = tiny.arrays("inputs")["text_prototypes"], memory_bank.DistanceCache()
    layers = april_gan.LinearLayers((2,), 64, 32)
    few_shot = {
        "winclip": lambda *two, **kept: winclip.few_shot(*two, text, **kept),
        "april_gan": lambda *two, **kept: april_gan.few_shot(*two, text, layers, **kept),
        "memory_bank": lambda *two, **kept: memory_bank.few_shot(*two, block=(2, "final"), **kept),
    }[method]
    plain = few_shot(stored[:18], stored[18:20])
    for _ in range(2):  # the second time from the cache
        found = few_shot(stored[:18], stored[18:20], cache=cache)
        assert torch.equal(found.maps, plain.maps) and torch.equal(found.image, plain.image)
    kinds = {"winclip": 3, "april_gan": 1, "memory_bank": 2}[method]
    assert len(cache) == kinds * 2 * 2  # two references, two batches


def test_a_cache_is_bounded_and_goes_empty_to_another_process(stored):
    cache = memory_bank.DistanceCache(2 * 2 * 4 * 36)  # two entries of two images
    found = memory_bank.reference_distance(stored[:2], stored[2:8], 2, cache=cache)
    assert len(cache) == 2 and cache.nbytes == cache.max_bytes
    assert torch.equal(
        memory_bank.reference_distance(stored[:2], stored[2:8], 2, cache=cache), found
    )
    sent = pickle.loads(pickle.dumps(cache))
    assert len(sent) == sent.nbytes == 0 and sent.max_bytes == cache.max_bytes


def test_threads_share_a_cache():
    """Each pushes out what the others know; without a lock this raises, or loses count of bytes."""
    cache, values = memory_bank.DistanceCache(3 * 4), [torch.full((1,), float(i)) for i in range(5)]

    def work(thread):
        for i in range(thread, thread + 4000):
            key = (i % 5,)
            found = cache.get(key)
            assert found is None or found == i % 5
            cache.put(key, values[i % 5])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
    finally:
        sys.setswitchinterval(interval)
    assert len(cache) == 3 and cache.nbytes == cache.max_bytes


def test_what_is_known_may_go_while_a_reference_is_read(stored):
    """Another thread fills the cache between the question and the answer."""
    cache = memory_bank.DistanceCache(2 * 4 * 36)  # one entry of two images
    right = memory_bank.reference_distance(stored[:2], stored[2:4], 2)
    memory_bank.reference_distance(stored[:2], stored[2:3], 2, cache=cache)

    class Busy(features.Features):
        def read(self, kind):
            ask = memory_bank.reference_distance
            other = Thread(target=ask, args=(stored[:2], stored[4:6], 2), kwargs={"cache": cache})
            other.start()
            other.join()
            return super().read(kind)

        def __getitem__(self, rows):
            some = super().__getitem__(rows)
            return Busy(some.store, some.keys, some.grid, some.shapes)

    busy = Busy(stored.store, stored.keys, stored.grid, stored.shapes)
    found = memory_bank.reference_distance(stored[:2], busy[2:4], 2, cache=cache)
    assert torch.equal(found, right) and len(cache) == 1
