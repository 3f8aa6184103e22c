"""WinCLIP and WinCLIP+: against anomalib and Accurate-WinCLIP array by array, and properties."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixtures.tiny import arrays, close, encoded, model
from hypothesis import given, settings
from hypothesis import strategies as st
from method_inputs import random_features
from sklearn.metrics import roc_auc_score

from vlmad_utils.features import Arrays
from vlmad_utils.methods import anomaly_probability, upsample, winclip
from vlmad_utils.models.windows import window_indices

R = arrays("winclip")
PROTOTYPES = {
    "": arrays("inputs")["text_prototypes"],
    "wide_": arrays("inputs")["text_prototypes_wide"],
}
TEXT = random_features(2, seed=9).image
GRID = (6, 6)


# ---- parity --------------------------------------------------------------------------------------
def references(shots):
    return encoded("reference")[:shots]


def gap(found, name):
    return (found - R[name]).abs().max().item()


def test_tower():
    tower, pixels = model(), arrays("inputs")["test_images"]
    start = tower.embed(pixels)
    last, taken = tower.run(start, ())
    close(tower.image_head(last, taken).detach(), R["image_embeddings"])
    close(tower.final_norm(last)[:, 1:].detach(), R["patch_tokens_after_ln_post"])
    close(last[:2, 1:].detach(), R["accurate_patch_tokens_before_ln_post"])
    close(encoded("test").tokens["final"], R["patch_tokens_after_ln_post"])
    for which in ("test", "reference"):
        expected = arrays("inputs")[f"open_clip_image_embedding_{which}"]
        close(encoded(which).image, F.normalize(expected, dim=-1))


@pytest.mark.parametrize("k", [2, 3])
def test_windows(k):
    close(window_indices(GRID, k), R[f"window{k}_patch_indices"])
    close(encoded("test").windows[k], F.normalize(R[f"window{k}_embeddings"], dim=-1))
    assert encoded("test").windows[k].std(dim=1).max() > 0.05  # windows differ


@pytest.mark.parametrize("wide", ["", "wide_"])
def test_zero_shot(wide):
    scores = winclip.zero_shot(encoded("test"), PROTOTYPES[wide])
    close(scores.image, R[f"{wide}zero_image_score"])
    close(scores.maps, R[f"{wide}zero_combined_map"])
    for k in (2, 3):
        window = winclip.anomaly_probability(R[f"window{k}_embeddings"], PROTOTYPES[wide], 0.07)
        close(window, R[f"{wide}zero_window{k}_score"])
        maps = winclip.harmonic(window, window_indices(GRID, k), GRID)
        close(maps, R[f"{wide}zero_window{k}_map"])
        one = winclip.zero_shot(encoded("test"), PROTOTYPES[wide], windows=(k,), image_scale=False)
        close(one.maps, R[f"{wide}zero_window{k}_map"])
    if not wide:
        close(scores.maps, R["accurate_zero_combined_map"])
        close(upsample(scores.maps[:2], (96, 96)), R["zero_upsampled_map"])


@pytest.mark.parametrize("shots", [1, 3])
def test_few_shot(shots):
    few = f"few{shots}"
    maps = winclip.visual_maps(encoded("test"), references(shots))
    close(maps["patch"], R[f"{few}_patch_association"])
    for k in (2, 3):
        association = winclip.association(encoded("test"), references(shots), k)
        close(association, R[f"{few}_window{k}_association"])
        close(maps[k], R[f"{few}_window{k}_map"])
    close(maps["visual"], R[f"{few}_visual_map"])
    scores = winclip.few_shot(encoded("test"), references(shots), PROTOTYPES[""])
    close(scores.maps, R[f"{few}_combined_map"])
    close(scores.image, R[f"{few}_image_score"])
    close(upsample(scores.maps[1:2], (96, 96)), R[f"{few}_upsampled_map"])


@pytest.mark.parametrize("shots", [1, 3])
def test_few_shot_accurate(shots):
    few = f"accurate_few{shots}"
    maps = winclip.visual_maps(encoded("test"), references(shots), token=4)
    close(maps["patch"], R[f"{few}_patch_association"])
    close(maps["visual"], R[f"{few}_visual_map"])
    scores = winclip.few_shot(
        encoded("test"), references(shots), PROTOTYPES[""], token=4, fusion="add"
    )
    close(scores.maps, R[f"{few}_combined_map"])
    close(scores.image, R[f"{few}_image_score"])


def test_reference_against_itself():
    one = encoded("reference")[:1]
    maps = winclip.visual_maps(one, one)
    for scale, name in (
        ("patch", "self_few1_patch_association"),
        (2, "self_few1_window2_association"),
        (3, "self_few1_window3_association"),
        ("visual", "self_few1_visual_map"),
    ):
        assert R[name].abs().max() < 1e-5
        assert maps[scale].abs().max() < 1e-5 and (maps[scale] >= 0).all()
    score = winclip.few_shot(one, one, PROTOTYPES[""]).image
    close(score, R["self_few1_image_score"])
    close(score, winclip.zero_shot(one, PROTOTYPES[""]).image / 2)


@pytest.mark.parametrize(
    "options, name, moved",
    [
        ({"within": "arithmetic", "windows": (2,)}, "zero_window2_map", 0.0737),
        ({"within": "normality", "windows": (2,)}, "zero_window2_map", 0.133),
        ({}, "zero_combined_map", 0.0804),
        ({"across": "arithmetic", "image_scale": True}, "zero_combined_map", 0.0271),
    ],
)
def test_known_mistakes_move_the_map_as_recorded(options, name, moved):
    """Each option is the mistake it says: it moves the map as the fixture's README records."""
    options = {"image_scale": False, **options}
    maps = winclip.zero_shot(encoded("test"), PROTOTYPES[""], **options).maps
    assert gap(maps, name) == pytest.approx(moved, rel=0.01)


def test_other_recorded_mistakes():
    scores = winclip.zero_shot(encoded("test"), PROTOTYPES[""], temperature=0.01)
    assert gap(scores.image, "zero_image_score") == pytest.approx(0.28, rel=0.01)
    maps = winclip.zero_shot(encoded("test"), PROTOTYPES[""]).maps
    corners = upsample(maps[:2], (96, 96), align_corners=True)
    assert gap(corners, "zero_upsampled_map") == pytest.approx(0.0398, rel=0.01)
    before = winclip.visual_maps(encoded("test"), references(1), token=4)["patch"]
    assert gap(before, "few1_patch_association") == pytest.approx(0.0509, rel=0.01)


# ---- windows and means ---------------------------------------------------------------------------
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


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.integers(1, 7), st.integers(0, 10**6))
def test_harmonic_equals_a_loop_and_lies_between_its_windows(grid, k, seed):
    k = min(k, *grid)
    indices = window_indices(grid, k)
    rng = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, len(indices), generator=rng) * 0.98 + 0.01
    maps = {mean: winclip.spread(scores, indices, grid, mean).flatten(1) for mean in winclip.MEANS}
    for patch in range(grid[0] * grid[1]):
        mine = scores[:, [patch in row for row in indices.tolist()]]
        harmonic = mine.shape[1] / (1 / mine).sum(1)
        assert torch.allclose(maps["harmonic"][:, patch], harmonic, atol=1e-5)
        assert torch.allclose(maps["arithmetic"][:, patch], mine.mean(1), atol=1e-5)
        assert (maps["harmonic"][:, patch] >= mine.amin(1) - 1e-5).all()
        assert (maps["normality"][:, patch] <= mine.amax(1) + 1e-5).all()
    assert (maps["harmonic"] <= maps["arithmetic"] + 1e-5).all()  # low votes win
    assert (maps["arithmetic"] <= maps["normality"] + 1e-5).all()  # high votes win
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


# ---- scores --------------------------------------------------------------------------------------
def test_association_runs_from_zero_to_one():
    vectors = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))

    def association(query, memory):
        query, memory = (Arrays(x[:, 0], (1, x.shape[1]), windows={2: x}) for x in (query, memory))
        return winclip.association(query, memory, 2)

    assert torch.allclose(association(vectors, vectors * 3), torch.zeros(5), atol=1e-6)
    assert torch.allclose(association(vectors[:, :1], -vectors[:, :1]), torch.ones(1))
    assert (association(vectors, vectors) >= 0).all()
    both = torch.cat([-vectors, vectors])  # the nearest of both counts
    assert torch.equal(association(vectors, both), association(vectors, vectors))


def test_temperature_leaves_image_auroc_and_moves_maps():
    many, labels = random_features(40), np.arange(40) % 2
    # as close as CLIP's, so that nothing saturates to 1
    near = torch.stack([TEXT[0], TEXT[0] + 0.3 * TEXT[1]])
    cold, warm = (winclip.zero_shot(many, near, temperature=t) for t in (0.02, 0.07))
    assert roc_auc_score(labels, cold.image) == roc_auc_score(labels, warm.image)
    assert (cold.maps - warm.maps).abs().max() > 0.05
    assert not torch.equal(cold.maps.flatten().argsort(), warm.maps.flatten().argsort())
    with pytest.raises(ValueError, match="temperature"):
        winclip.zero_shot(many, TEXT, temperature=0)


def test_numpy_arrays_and_any_length_are_accepted():
    some = random_features(3)
    windows = {k: 2 * x.numpy() for k, x in some.windows.items()}
    plain = Arrays(5 * some.image.numpy(), some.grid, some.patches.numpy(), {}, windows)
    found, expected = winclip.zero_shot(plain, TEXT.numpy()), winclip.zero_shot(some, TEXT)
    assert torch.allclose(found.maps, expected.maps, atol=1e-6)


def test_a_reference_has_the_lowest_visual_score_and_more_references_never_raise_it():
    some = random_features(12)
    visual = winclip.visual_maps(some, some[:3])["visual"].amax((1, 2))
    assert visual[:3].max() < 1e-5 and visual[3:].min() > 0.01
    fewer = winclip.visual_maps(some, some[:2])
    more = winclip.visual_maps(some, some[:5])
    assert all((more[scale] <= fewer[scale] + 1e-6).all() for scale in fewer)


@pytest.mark.parametrize("windows", [(1,), (4,), (1, 2, 3, 4), ()])
def test_any_windows(windows):
    some = random_features(3, windows=windows)
    assert winclip.zero_shot(some, TEXT, windows=windows).maps.shape == (3, 5, 4)
    assert winclip.few_shot(some, some[:1], TEXT, windows=windows).maps.shape == (3, 5, 4)
    if not windows:
        with pytest.raises(ValueError, match="at least one scale"):
            winclip.zero_shot(some, TEXT, windows=(), image_scale=False)
        with pytest.raises(ValueError, match="at least one memory"):
            winclip.visual_maps(some, some, windows=(), token=None)


def test_image_scale_only_gives_a_flat_map():
    scores = winclip.zero_shot(random_features(3), TEXT, windows=())
    assert torch.allclose(scores.maps, scores.image[:, None, None].expand(-1, 5, 4))


def test_multi_crop_is_the_mean_over_views_and_leaves_the_map():
    some, crops = random_features(3), random_features(3).patches[:, :4]
    plain, multi = (winclip.zero_shot(some, TEXT, crops=views) for views in (None, crops))
    views = torch.cat([plain.image[:, None], anomaly_probability(crops, TEXT, 0.07)], dim=1)
    assert torch.allclose(multi.image, views.mean(1)) and torch.equal(multi.maps, plain.maps)


def test_unknown_options_are_refused():
    some = random_features(3)
    with pytest.raises(ValueError, match="found 'patches'"):
        winclip.zero_shot(some, TEXT, image_from="patches")
    with pytest.raises(ValueError, match="found 'maximum'"):
        winclip.few_shot(some, some[:1], TEXT, fusion="maximum")
    with pytest.raises(ValueError, match="Found 0 reference"):
        winclip.few_shot(some, some[:0], TEXT)
