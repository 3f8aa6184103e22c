"""What must hold for nearest neighbours, coresets, rotations and masks."""

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import numpy as np
import pytest
import torch
from fixtures import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from vlmad_utils import features
from vlmad_utils.features import Arrays
from vlmad_utils.methods import april_gan, memory_bank, winclip


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encoded(tokens, grid=(4, 5)):
    return Arrays(torch.zeros(len(tokens), 1), grid, tokens={1: tokens, "final": tokens})


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 5), st.sampled_from([1, 7, 2**24]))
def test_nearest_equals_scikit_learn_whatever_the_block(queries, size, k, budget):
    k = min(k, size)
    query, memory = draw(queries, 6, seed=queries), draw(size, 6, seed=size + 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_bank, "BUDGET", budget)
        distance, index = memory_bank.nearest(query, memory, k)
    expected, rows = NearestNeighbors(n_neighbors=k, metric="cosine").fit(memory).kneighbors(query)
    assert np.allclose(distance, expected, atol=1e-5)
    assert np.allclose(
        1 - torch.cosine_similarity(query[:, None], memory[index], dim=-1), expected, atol=1e-5
    )
    assert rows.shape == index.shape and (distance >= 0).all() and (distance <= 2 + 1e-6).all()


def test_identical_and_opposite_vectors():
    a = draw(4, 3)
    assert memory_bank.nearest(a, 7 * a)[0].max() < 1e-6
    assert torch.allclose(memory_bank.nearest(a[:1], -a[:1])[0], torch.tensor([[2.0]]))


@pytest.mark.parametrize(
    "k, memory, words",
    [(0, draw(3, 4), "k is 1 to 3"), (4, draw(3, 4), "k is 1 to 3"), (1, draw(3, 5), "width")],
)
def test_mistakes_are_named(k, memory, words):
    with pytest.raises(ValueError, match=words):
        memory_bank.nearest(draw(2, 4), memory, k)


def test_top_mean():
    assert (
        memory_bank.top_mean(torch.arange(99.0)[None]) == 98
    )  # fewer than 100 patches: the maximum
    assert memory_bank.top_mean(torch.arange(250.0)[None]) == (249 + 248) / 2
    assert memory_bank.top_mean(torch.arange(250.0)[None], fraction=1) == torch.arange(250.0).mean()


def test_a_reference_scores_lowest_and_order_does_not_matter():
    tokens = draw(40, 20, 8)
    scores = memory_bank.few_shot(encoded(tokens), encoded(tokens[:3]), block=1)
    assert scores.image[:3].max() < 1e-5 < 0.01 < scores.image[3:].min()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = memory_bank.few_shot(encoded(tokens[order]), encoded(tokens[:3].flip(0)), block=1)
    assert torch.allclose(shuffled.maps, scores.maps[order], atol=1e-6)
    more = memory_bank.few_shot(encoded(tokens), encoded(tokens[:6]), block=1)
    assert (more.maps <= scores.maps + 1e-6).all()
    assert scores.maps.shape == (40, 4, 5) and scores.training == "training-free"


def test_several_blocks_are_averaged():
    one, two, bank = (
        draw(3, 20, 8),
        draw(3, 20, 6, seed=1),
        (draw(2, 20, 8, seed=2), draw(2, 20, 6, seed=3)),
    )
    query = Arrays(torch.zeros(3, 1), (4, 5), tokens={1: one, 2: two})
    reference = Arrays(torch.zeros(2, 1), (4, 5), tokens=dict(zip((1, 2), bank, strict=True)))
    each = [memory_bank.few_shot(query, reference, block=b).maps for b in (1, 2)]
    assert torch.allclose(memory_bank.few_shot(query, reference, block=(1, 2)).maps, sum(each) / 2)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 80), st.integers(0, 5), st.sampled_from([None, 4, 128]))
def test_coreset_is_seeded_distinct_and_covers_better_than_chance(n, seed, width):
    memory = draw(60, 16)
    chosen = memory_bank.coreset(memory, n, seed, width)
    assert len(chosen) == len(set(chosen.tolist())) == min(n, 60)
    assert torch.equal(chosen, memory_bank.coreset(memory, n, seed, width))
    if (
        width is None and 5 <= n <= 30
    ):  # greedy k-centre is within twice the optimum, so it beats a random draw
        radius = memory_bank.nearest(memory, memory[chosen])[0].max()
        draws = [
            memory_bank.nearest(
                memory, memory[torch.randperm(60, generator=torch.Generator().manual_seed(i))[:n]]
            )[0].max()
            for i in range(20)
        ]
        assert radius <= sorted(draws)[10]


def test_coreset_in_few_shot():
    tokens, references = draw(3, 20, 8), draw(4, 20, 8, seed=1)
    full = memory_bank.few_shot(encoded(tokens), encoded(references), block=1)
    assert torch.equal(
        memory_bank.few_shot(encoded(tokens), encoded(references), 1, coreset_size=80).maps,
        full.maps,
    )
    small = memory_bank.few_shot(encoded(tokens), encoded(references), 1, coreset_size=10)
    assert (small.maps >= full.maps - 1e-6).all()
    with pytest.raises(ValueError, match="at least 1"):
        memory_bank.coreset(tokens[0], 0)


def test_rotations():
    image = np.random.default_rng(0).integers(0, 256, (21, 21, 3), dtype=np.uint8)
    turned = memory_bank.rotations(image, 4)
    assert len(turned) == 4 and all(t.shape == image.shape and t.dtype == np.uint8 for t in turned)
    assert np.array_equal(turned[0], image) and np.array_equal(turned[2], image[::-1, ::-1])
    assert all(
        (t == 90).all() for t in memory_bank.rotations(np.full((12, 18, 3), 90, np.uint8))
    )  # no black corners


@pytest.mark.parametrize("sign", [1, -1])
def test_foreground_finds_the_object_whatever_the_sign(sign):
    inside = np.zeros((12, 14), bool)
    inside[3:9, 4:11] = True
    tokens = draw(168, 10) * 0.1 + sign * 4 * torch.from_numpy(inside.reshape(-1, 1)) * draw(
        1, 10, seed=5
    )
    mask = memory_bank.foreground(tokens, (12, 14)).reshape(12, 14).numpy()
    assert (
        mask[inside].all() and not mask[0].any() and not mask[:, 0].any()
    )  # one patch more on each side, no further
    reference = encoded(draw(1, 168, 10, seed=8), (12, 14))
    scores = memory_bank.few_shot(encoded(tokens[None], (12, 14)), reference, mask=True)
    assert (scores.maps[0][~torch.from_numpy(mask)] == 0).all() and (
        scores.maps[0][torch.from_numpy(inside)] > 0
    ).all()


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
    search = memory_bank._nearest
    monkeypatch.setattr(
        memory_bank, "_nearest", lambda *two: (searched.append(len(two[0])), search(*two))[1]
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
            return Busy(some.store, some.keys, some.grid, some.kinds)

    busy = Busy(stored.store, stored.keys, stored.grid, stored.kinds)
    found = memory_bank.reference_distance(stored[:2], busy[2:4], 2, cache=cache)
    assert torch.equal(found, right) and len(cache) == 1


class Counted:
    """Encoded images that log how many images each reading of their tokens takes."""

    identity, grid = None, (4, 5)

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


def test_each_image_is_read_and_normalised_once(monkeypatch):
    """37 test images are three batches; the products stay those of one batch and one reference."""
    query, bank, log, normalised = draw(37, 20, 8), draw(5, 20, 8, seed=1), [], []
    expected = [
        torch.stack([memory_bank.nearest(part, one)[0][..., 0] for one in bank]).amin(dim=0)
        for part in query.split(16)
    ]
    unit = memory_bank.unit
    monkeypatch.setattr(
        memory_bank, "unit", lambda x: (normalised.append(x.numel() // 160), unit(x))[1]
    )
    found = memory_bank.reference_distance(Counted(query, []), Counted(bank, log), 1)
    assert torch.equal(found, torch.cat(expected))
    assert sum(log) == 5 and sum(normalised) == 37 + 5


def test_a_bank_is_built_and_normalised_once(monkeypatch):
    query, bank, log, normalised = draw(37, 20, 8), draw(5, 20, 8, seed=1), [], []
    unit = memory_bank.unit
    monkeypatch.setattr(
        memory_bank, "unit", lambda x: (normalised.append(x.numel() // 160), unit(x))[1]
    )
    memory_bank.few_shot(Counted(query, []), Counted(bank, log), block=1, k=2)
    assert sum(log) == 5 and sum(normalised) == 37 + 5
