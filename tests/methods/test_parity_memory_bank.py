"""Nearest neighbours against AnomalyDINO's functions and FAISS, array by array."""

import pytest
import torch
from fixtures.tiny import arrays, close, encoded

from vlmad_utils.features import Arrays
from vlmad_utils.methods import memory_bank, smooth, upsample

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


def test_neighbour_and_picture():
    distance, index = memory_bank.nearest(R["query_tokens"], MEMORY)
    assert torch.equal(index[..., 0], R["k1_nearest_index"].long())
    picture = smooth(upsample(distance[..., 0].unflatten(1, GRID), R["map_shape"].tolist()), 4)
    close(picture[1], R["k1_map_image1"])


@pytest.mark.parametrize("shots", [1, 3])
def test_tower(shots):
    references = encoded("reference")[:shots]
    close(references.tokens["final"], R["tower_reference_tokens_after_ln_post"][:shots])
    scores = memory_bank.few_shot(encoded("test"), references)
    close(scores.maps.flatten(1), R[f"tower_few{shots}_distance"])
    close(scores.image, R[f"tower_few{shots}_score"])
