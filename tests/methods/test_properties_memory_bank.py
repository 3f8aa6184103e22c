"""What must hold for nearest neighbours, coresets, rotations and masks."""

import numpy as np
import pytest
import torch
from fixtures import faults, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from vlmad_utils import features
from vlmad_utils.features import Arrays
from vlmad_utils.methods import memory_bank


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


def test_single_references_give_what_all_at_once_give_and_are_searched_once(tmp_path, monkeypatch):
    """Memory of 3 references; a draw that shares two of them searches only the new one."""
    images = [
        np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8) for i in range(22)
    ]
    stored = features.encode(tiny.model(), images, blocks=(2,), store=tmp_path, progress=False)
    test, pool, searched = stored[:18], stored[18:], []
    right = memory_bank.nearest(test.tokens[2], pool[:3].tokens[2].flatten(0, 1))[0][..., 0]
    nearest = memory_bank._nearest
    monkeypatch.setattr(memory_bank, "_KNOWN", type(memory_bank._KNOWN)())
    monkeypatch.setattr(
        memory_bank,
        "_nearest",
        lambda query, bank: (searched.append(len(query)), nearest(query, bank))[1],
    )
    first = memory_bank.reference_distance(test, pool[:3], 2)
    assert torch.allclose(first, right, atol=1e-6) and searched == [16] * 3 + [2] * 3
    searched.clear()
    assert torch.equal(memory_bank.reference_distance(test, pool[:3], 2), first) and not searched
    other = memory_bank.reference_distance(test, pool[1:4], 2)
    assert searched == [16, 2] and not torch.equal(other, first)
    held = Arrays(test.image, test.grid, tokens={2: test.tokens[2]})
    assert (
        torch.equal(memory_bank.reference_distance(held, pool[1:4], 2), other)
        and len(searched) == 8
    )  # arrays: nothing is remembered
    in_memory = features.encode(tiny.model(), images[::-1], blocks=(2,), store=None, progress=False)
    assert (
        in_memory[:2].identity != test[:2].identity
        and in_memory[:2].identity == in_memory[[0, 1]].identity
    )


def test_what_is_remembered_of_references_is_bounded(tmp_path, monkeypatch):
    stored = features.encode(
        tiny.model(),
        [faults.noise(i) for i in range(8)],
        blocks=(2,),
        store=tmp_path,
        progress=False,
    )
    monkeypatch.setattr(memory_bank, "_KNOWN", type(memory_bank._KNOWN)())
    monkeypatch.setattr(
        memory_bank, "KEPT", 2 * 4 * 2 * stored.grid[0] * stored.grid[1]
    )  # two entries of two images
    found = memory_bank.reference_distance(stored[:2], stored[2:], 2)
    assert len(memory_bank._KNOWN) == 2
    assert torch.equal(memory_bank.reference_distance(stored[:2], stored[2:], 2), found)


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
