"""Nearest neighbours: against AnomalyDINO's functions and FAISS array by array, and properties."""

import numpy as np
import pytest
import torch
from fixtures import tiny
from fixtures.tiny import arrays, close
from hypothesis import given, settings
from hypothesis import strategies as st
from method_inputs import draw
from sklearn.neighbors import NearestNeighbors

from vlmad_utils.features import Arrays
from vlmad_utils.methods import memory_bank, neighbours, smooth, upsample

R = arrays("knn")
GRID, MEMORY = tuple(R["grid"].tolist()), R["reference_tokens"].flatten(0, 1)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("masked", ["", "masked_"])
def test_given_tokens(k, masked):
    foreground = R["query_foreground"] if masked else None
    distance = memory_bank.patch_distance(R["query_tokens"], MEMORY, k, foreground)
    close(distance.unflatten(1, GRID), R[f"k{k}_{masked}distance"])
    close(memory_bank.top_mean(distance), R[f"k{k}_{masked}score"])
    if not masked:
        query = Arrays(torch.zeros(3, 1), GRID, tokens={1: R["query_tokens"]})
        bank = Arrays(torch.zeros(2, 1), GRID, tokens={1: R["reference_tokens"]})
        scores = memory_bank.few_shot(query, bank, block=1, k=k)
        close(scores.maps, R[f"k{k}_distance"])
        close(scores.image, R[f"k{k}_score"])


def test_neighbour_and_map():
    distance, index = memory_bank.nearest(R["query_tokens"], MEMORY)
    assert torch.equal(index[..., 0], R["k1_nearest_index"].long())
    maps = smooth(upsample(distance[..., 0].unflatten(1, GRID), R["map_shape"].tolist()), 4)
    close(maps[1], R["k1_map_image1"])


@pytest.mark.parametrize("shots", [1, 3])
def test_tower(shots):
    references = tiny.encoded("reference")[:shots]
    close(references.tokens["final"], R["tower_reference_tokens_after_ln_post"][:shots])
    scores = memory_bank.few_shot(tiny.encoded("test"), references)
    close(scores.maps.flatten(1), R[f"tower_few{shots}_distance"])
    close(scores.image, R[f"tower_few{shots}_score"])


def encoded(tokens, grid=(4, 5)):
    return Arrays(torch.zeros(len(tokens), 1), grid, tokens={1: tokens, "final": tokens})


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 60),
    st.integers(1, 5),
    st.sampled_from([(1, 1), (7, 1), (60, 8), (2**24, 256)]),
)
def test_nearest_equals_scikit_learn_whatever_the_block(queries, size, k, block):
    k = min(k, size)
    query, memory = draw(queries, 6, seed=queries), draw(size, 6, seed=size + 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK_CPU", block)
        distance, index = memory_bank.nearest(query, memory, k)
    expected, rows = NearestNeighbors(n_neighbors=k, metric="cosine").fit(memory).kneighbors(query)
    assert np.allclose(distance, expected, atol=1e-5)
    found = 1 - torch.cosine_similarity(query[:, None], memory[index], dim=-1)
    assert np.allclose(found, expected, atol=1e-5)
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
    assert memory_bank.top_mean(torch.arange(99.0)[None]) == 98  # below 100 patches: the maximum
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
    query = Arrays(torch.zeros(3, 1), (4, 5), tokens={1: draw(3, 20, 8), 2: draw(3, 20, 6, seed=1)})
    reference = Arrays(
        torch.zeros(2, 1), (4, 5), tokens={1: draw(2, 20, 8, seed=2), 2: draw(2, 20, 6, seed=3)}
    )
    each = [memory_bank.few_shot(query, reference, block=b).maps for b in (1, 2)]
    assert torch.allclose(memory_bank.few_shot(query, reference, block=(1, 2)).maps, sum(each) / 2)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 80), st.integers(0, 5), st.sampled_from([None, 4, 128]))
def test_coreset_is_seeded_distinct_and_covers_better_than_chance(n, seed, width):
    memory = draw(60, 16)
    chosen = memory_bank.coreset(memory, n, seed, width)
    assert len(chosen) == len(set(chosen.tolist())) == min(n, 60)
    assert torch.equal(chosen, memory_bank.coreset(memory, n, seed, width))
    if width is None and 5 <= n <= 30:  # within twice the optimum, so it beats a random draw
        rng = torch.Generator().manual_seed(0)
        others = [torch.randperm(60, generator=rng)[:n] for _ in range(20)]
        radius = [memory_bank.nearest(memory, memory[x])[0].max() for x in (chosen, *others)]
        assert radius[0] <= sorted(radius[1:])[10]


def test_coreset_in_few_shot():
    tokens, references = draw(3, 20, 8), draw(4, 20, 8, seed=1)
    full = memory_bank.few_shot(encoded(tokens), encoded(references), block=1)
    whole = memory_bank.few_shot(encoded(tokens), encoded(references), 1, coreset_size=80)
    assert torch.equal(whole.maps, full.maps)
    small = memory_bank.few_shot(encoded(tokens), encoded(references), 1, coreset_size=10)
    assert (small.maps >= full.maps - 1e-6).all()
    with pytest.raises(ValueError, match="at least 1"):
        memory_bank.coreset(tokens[0], 0)


def test_rotations():
    image = np.random.default_rng(0).integers(0, 256, (21, 21, 3), dtype=np.uint8)
    turned = memory_bank.rotations(image, 4)
    assert len(turned) == 4 and all(t.shape == image.shape and t.dtype == np.uint8 for t in turned)
    assert np.array_equal(turned[0], image) and np.array_equal(turned[2], image[::-1, ::-1])
    plain = np.full((12, 18, 3), 90, np.uint8)
    assert all((t == 90).all() for t in memory_bank.rotations(plain))  # no black corners


@pytest.mark.parametrize("sign", [1, -1])
def test_foreground_finds_the_object_whatever_the_sign(sign):
    inside = np.zeros((12, 14), bool)
    inside[3:9, 4:11] = True
    object_tokens = sign * 4 * torch.from_numpy(inside.reshape(-1, 1)) * draw(1, 10, seed=5)
    tokens = draw(168, 10) * 0.1 + object_tokens
    mask = memory_bank.foreground(tokens, (12, 14)).reshape(12, 14).numpy()
    assert mask[inside].all()
    assert not mask[0].any() and not mask[:, 0].any()  # one patch more on each side, no further
    reference = encoded(draw(1, 168, 10, seed=8), (12, 14))
    maps = memory_bank.few_shot(encoded(tokens[None], (12, 14)), reference, mask=True).maps.numpy()
    assert (maps[0][~mask] == 0).all() and (maps[0][inside] > 0).all()
