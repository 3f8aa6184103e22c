"""What must hold for windows, harmonic means, memories and tiles, whatever the numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from vlmad_utils.features import Arrays
from vlmad_utils.methods import Scores, anomaly_probability, clip_ac, winclip
from vlmad_utils.models.windows import window_indices


def features(n=6, grid=(5, 4), seed=0, dim=8, width=12, windows=(2, 3)):
    """Random encoded images: any method must treat them consistently."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return F.normalize(torch.randn(*shape, generator=rng), dim=-1)

    patches = grid[0] * grid[1]
    return Arrays(
        draw(n, dim),
        grid,
        draw(n, patches, dim),
        {b: draw(n, patches, width) for b in (1, 2, "final")},
        {k: draw(n, (grid[0] - k + 1) * (grid[1] - k + 1), dim) for k in windows},
    )


TEXT = features(2, seed=9).image
METHODS = {
    "clip_ac": lambda f: clip_ac.zero_shot(f, TEXT),
    "one_class": lambda f: clip_ac.one_class(f, TEXT[:1]),
    "winclip": lambda f: winclip.zero_shot(f, TEXT),
    "winclip+": lambda f: winclip.few_shot(f, features(2, seed=1), TEXT),
    "winclip+ add": lambda f: winclip.few_shot(f, features(2, seed=1), TEXT, fusion="add", token=2),
    "winclip+ reciprocal": lambda f: winclip.few_shot(
        f, features(2, seed=1), TEXT, fusion="reciprocal", token=None
    ),
}


# ---- geometry --------------------------------------------------------------------------------------------------------
def test_window_counts_and_coverage_of_the_paper():
    for k, number, covered in ((2, 196, (1, 2, 4)), (3, 169, (1, 3, 9))):
        indices = window_indices((15, 15), k)
        assert indices.shape == (number, k * k)
        count = torch.bincount(indices.flatten(), minlength=225).reshape(15, 15)
        assert (count[0, 0], count[0, 7], count[7, 7]) == covered
        assert torch.equal(count, count.flip(0)) and torch.equal(count, count.T)


def test_harmonic_example_by_hand():
    scores = torch.tensor([[1, 0.75, 0.5, 0.25]])
    found = winclip.harmonic(scores, window_indices((3, 3), 2), (3, 3))
    expected = [[1, 0.857143, 0.75], [0.666667, 0.48, 0.375], [0.5, 0.333333, 0.25]]
    assert torch.allclose(found, torch.tensor([expected]), atol=1e-5)


grids = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=60, deadline=None)
@given(grids, st.integers(1, 7), st.integers(0, 10**6))
def test_harmonic_equals_a_loop_and_lies_between_its_windows(grid, k, seed):
    k = min(k, *grid)
    indices = window_indices(grid, k)
    scores = (
        torch.rand(2, len(indices), generator=torch.Generator().manual_seed(seed)) * 0.98 + 0.01
    )
    maps = {mean: winclip.spread(scores, indices, grid, mean).flatten(1) for mean in winclip.MEANS}
    for patch in range(grid[0] * grid[1]):
        mine = scores[:, [patch in row for row in indices.tolist()]]
        assert torch.allclose(
            maps["harmonic"][:, patch], mine.shape[1] / (1 / mine).sum(1), atol=1e-5
        )
        assert torch.allclose(maps["arithmetic"][:, patch], mine.mean(1), atol=1e-5)
        assert (maps["harmonic"][:, patch] >= mine.amin(1) - 1e-5).all()
        assert (maps["normality"][:, patch] <= mine.amax(1) + 1e-5).all()
    assert (maps["harmonic"] <= maps["arithmetic"] + 1e-5).all()  # low votes win
    assert (
        maps["arithmetic"] <= maps["normality"] + 1e-5
    ).all()  # the reversed rule: high votes win
    if k == 1:
        assert torch.allclose(maps["harmonic"], scores, atol=1e-6)


def test_zero_votes_win_and_negative_ones_are_refused():
    indices = window_indices((3, 3), 2)
    found = winclip.harmonic(torch.tensor([[0, 1, 1, 1.0]]), indices, (3, 3))[0]
    assert torch.equal(found == 0, torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 0]]).bool())
    assert torch.equal(winclip.harmonic(torch.zeros(1, 4), indices, (3, 3)), torch.zeros(1, 3, 3))
    with pytest.raises(ValueError, match="clamp"):
        winclip.harmonic(torch.tensor([[-1e-7, 1, 1, 1]]), indices, (3, 3))
    with pytest.raises(ValueError, match="harmonic"):
        winclip.spread(torch.ones(1, 4), indices, (3, 3), "median")


# ---- scores ----------------------------------------------------------------------------------------------------------
def test_association_runs_from_zero_to_one():
    vectors = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))

    def association(query, memory):
        query, memory = (Arrays(x[:, 0], (1, x.shape[1]), windows={2: x}) for x in (query, memory))
        return winclip.association(query, memory, 2)

    assert torch.allclose(association(vectors, vectors * 3), torch.zeros(5), atol=1e-6)
    assert torch.allclose(association(vectors[:, :1], -vectors[:, :1]), torch.ones(1))
    assert (association(vectors, vectors) >= 0).all()
    assert torch.equal(
        association(vectors, torch.cat([-vectors, vectors])), association(vectors, vectors)
    )  # the nearest of both


def test_temperature_leaves_image_auroc_and_moves_maps():
    many, labels = features(40), np.arange(40) % 2
    near = torch.stack(
        [TEXT[0], TEXT[0] + 0.3 * TEXT[1]]
    )  # as close as CLIP's, so that nothing saturates to 1
    cold, warm = (winclip.zero_shot(many, near, temperature=t) for t in (0.02, 0.07))
    assert roc_auc_score(labels, cold.image) == roc_auc_score(labels, warm.image)
    assert (cold.maps - warm.maps).abs().max() > 0.05
    assert not torch.equal(cold.maps.flatten().argsort(), warm.maps.flatten().argsort())
    with pytest.raises(ValueError, match="temperature"):
        winclip.zero_shot(many, TEXT, temperature=0)


@pytest.mark.parametrize("name", METHODS)
def test_images_do_not_see_each_other(name):
    """Neither order, nor company, nor batch size changes a score; ranges hold; inputs stay as they were."""
    some = features(20)
    before = some.image.clone()
    scores = METHODS[name](some)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    shuffled, alone = METHODS[name](some[order]), METHODS[name](some[[7]])
    for kind in ("image", "maps"):
        whole = getattr(scores, kind)
        assert torch.allclose(getattr(shuffled, kind), whole[order], atol=1e-5)
        assert torch.allclose(getattr(alone, kind)[0], whole[7], atol=1e-5)
        low, high = scores.image_range if kind == "image" else scores.map_range
        assert whole.min() >= low - 1e-6 and whole.max() <= high + 1e-6
    assert (
        scores.maps.shape == (20, 5, 4) and scores.image.dtype == scores.maps.dtype == torch.float32
    )
    assert scores.training == "training-free" and torch.equal(before, some.image)


def test_numpy_arrays_and_any_length_are_accepted():
    some = features(3)
    plain = Arrays(
        5 * some.image.numpy(),
        some.grid,
        some.patches.numpy(),
        {},
        {k: 2 * x.numpy() for k, x in some.windows.items()},
    )
    assert torch.allclose(
        winclip.zero_shot(plain, TEXT.numpy()).maps, winclip.zero_shot(some, TEXT).maps, atol=1e-6
    )


def test_a_reference_has_the_lowest_visual_score_and_more_references_never_raise_it():
    some = features(12)
    visual = winclip.visual_maps(some, some[:3])["visual"].amax((1, 2))
    assert visual[:3].max() < 1e-5 and visual[3:].min() > 0.01
    fewer = winclip.visual_maps(some, some[:2])
    more = winclip.visual_maps(some, some[:5])
    assert all((more[scale] <= fewer[scale] + 1e-6).all() for scale in fewer)


@pytest.mark.parametrize("windows", [(1,), (4,), (1, 2, 3, 4), ()])
def test_any_windows(windows):
    some = features(3, windows=windows)
    assert winclip.zero_shot(some, TEXT, windows=windows).maps.shape == (3, 5, 4)
    assert winclip.few_shot(some, some[:1], TEXT, windows=windows).maps.shape == (3, 5, 4)
    if not windows:
        with pytest.raises(ValueError, match="at least one scale"):
            winclip.zero_shot(some, TEXT, windows=(), image_scale=False)
        with pytest.raises(ValueError, match="at least one memory"):
            winclip.visual_maps(some, some, windows=(), token=None)


def test_image_scale_only_gives_a_flat_map():
    scores = winclip.zero_shot(features(3), TEXT, windows=())
    assert torch.allclose(scores.maps, scores.image[:, None, None].expand(-1, 5, 4))


def test_multi_crop_is_the_mean_over_views_and_leaves_the_map():
    some, crops = features(3), features(3).patches[:, :4]
    plain, multi = winclip.zero_shot(some, TEXT), winclip.zero_shot(some, TEXT, crops=crops)
    views = torch.cat([plain.image[:, None], anomaly_probability(crops, TEXT, 0.07)], dim=1)
    assert torch.allclose(multi.image, views.mean(1)) and torch.equal(multi.maps, plain.maps)


def test_image_score_from_the_map_is_its_maximum():
    scores = winclip.zero_shot(features(3), TEXT, image_from="map")
    assert torch.equal(scores.image, scores.maps.amax((1, 2)))


def test_clip_ac_and_one_class():
    some = features(5)
    assert torch.allclose(
        clip_ac.zero_shot(some, TEXT, 0.07).image, winclip.zero_shot(some, TEXT).image
    )
    one = clip_ac.one_class(some, TEXT)
    assert torch.equal(one.image, clip_ac.one_class(some, TEXT[:1]).image)
    assert torch.allclose(one.image, -(some.image @ TEXT[0]), atol=1e-6)
    dense = clip_ac.zero_shot(some, TEXT, dense=some.patches.flip(0))
    assert torch.allclose(dense.maps, clip_ac.zero_shot(some, TEXT).maps.flip(0))
    with pytest.raises(ValueError, match="one_class"):
        clip_ac.zero_shot(some, TEXT[:1])


def test_scores_refuse_what_cannot_be_right():
    good = {
        "image": torch.zeros(2),
        "maps": torch.zeros(2, 3, 3),
        "meaning": "m",
        "training": "training-free",
    }
    assert Scores(**good).range == "image 0 to 1, maps 0 to 1" and len(Scores(**good)) == 2
    for change, words in (
        ({"training": "zero-shot"}, "training is one of"),
        ({"image": torch.zeros(3)}, "want image"),
        ({"maps": torch.full((2, 3, 3), torch.nan)}, "not finite"),
        ({"maps": torch.zeros(2, 9)}, "want image"),
    ):
        with pytest.raises(ValueError, match=words):
            Scores(**{**good, **change})


# ---- tiles -----------------------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(st.integers(8, 60), st.integers(8, 60), st.floats(0.3, 1.0), st.floats(0, 1))
def test_tiles_cover_and_merge(height, width, stride, value):
    boxes = winclip.tiles(height, width, stride)
    side = min(height, width)
    assert len(set(boxes)) == len(boxes)
    assert all(
        b - t == r - left == side and 0 <= t and 0 <= left and b <= height and r <= width
        for t, left, b, r in boxes
    )
    constant = Scores(
        torch.full((len(boxes),), value),
        torch.full((len(boxes), 3, 3), value),
        "m",
        "training-free",
    )
    image, merged = winclip.merge_tiles(constant, boxes, (height, width))
    assert merged.shape == (height, width) and torch.allclose(
        merged, torch.full_like(merged, value), atol=1e-5
    )
    assert image == pytest.approx(value, abs=1e-5)
    if height == width:
        assert boxes == [(0, 0, side, side)]


def test_tiles_put_each_map_in_its_place():
    boxes = winclip.tiles(10, 20, stride=1)
    scores = Scores(
        [0.0, 1.0], torch.stack([torch.zeros(2, 2), torch.ones(2, 2)]), "m", "training-free"
    )
    image, merged = winclip.merge_tiles(scores, boxes, (10, 20))
    assert (
        image == 0.5
        and (merged[:, :10] == 0).all()
        and torch.allclose(merged[:, 10:], torch.ones(10, 10))
    )
    assert torch.allclose(
        winclip.merge_tiles(scores, winclip.tiles(20, 10, 1), (20, 10))[1], merged.T
    )
    with pytest.raises(ValueError, match="boxes"):
        winclip.merge_tiles(scores, boxes[:1], (10, 20))
    with pytest.raises(ValueError, match="no tile"):
        winclip.merge_tiles(scores, boxes, (10, 30))


def test_five_crops():
    image = np.arange(10 * 20 * 3).reshape(10, 20, 3)
    crops = winclip.five_crops(image)
    assert len(crops) == 5 and all(c.shape == (8, 16, 3) for c in crops)
    assert crops[0][0, 0, 0] == image[0, 0, 0] and crops[3][-1, -1, 0] == image[-1, -1, 0]
    assert np.array_equal(crops[4], image[1:9, 2:18])
    assert all(np.array_equal(c, image) for c in winclip.five_crops(image, share=1))
