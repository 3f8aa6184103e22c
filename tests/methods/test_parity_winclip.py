"""WinCLIP and WinCLIP+ against anomalib and Accurate-WinCLIP, array by array."""

import pytest
import torch
import torch.nn.functional as F
from fixtures.tiny import arrays, close, encoded, model

from vlmad_utils.methods import upsample, winclip
from vlmad_utils.models.windows import window_indices

R = arrays("winclip")
TEXT = {"": arrays("inputs")["text_prototypes"], "wide_": arrays("inputs")["text_prototypes_wide"]}
GRID = (6, 6)


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
    scores = winclip.zero_shot(encoded("test"), TEXT[wide])
    close(scores.image, R[f"{wide}zero_image_score"])
    close(scores.maps, R[f"{wide}zero_combined_map"])
    for k in (2, 3):
        window = winclip.anomaly_probability(R[f"window{k}_embeddings"], TEXT[wide], 0.07)
        close(window, R[f"{wide}zero_window{k}_score"])
        close(
            winclip.harmonic(window, window_indices(GRID, k), GRID), R[f"{wide}zero_window{k}_map"]
        )
        one = winclip.zero_shot(encoded("test"), TEXT[wide], windows=(k,), image_scale=False)
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
        close(
            winclip.association(encoded("test"), references(shots), k),
            R[f"{few}_window{k}_association"],
        )
        close(maps[k], R[f"{few}_window{k}_map"])
    close(maps["visual"], R[f"{few}_visual_map"])
    scores = winclip.few_shot(encoded("test"), references(shots), TEXT[""])
    close(scores.maps, R[f"{few}_combined_map"])
    close(scores.image, R[f"{few}_image_score"])
    close(upsample(scores.maps[1:2], (96, 96)), R[f"{few}_upsampled_map"])


@pytest.mark.parametrize("shots", [1, 3])
def test_few_shot_accurate(shots):
    few = f"accurate_few{shots}"
    maps = winclip.visual_maps(encoded("test"), references(shots), token=4)
    close(maps["patch"], R[f"{few}_patch_association"])
    close(maps["visual"], R[f"{few}_visual_map"])
    scores = winclip.few_shot(encoded("test"), references(shots), TEXT[""], token=4, fusion="add")
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
    score = winclip.few_shot(one, one, TEXT[""]).image
    close(score, R["self_few1_image_score"])
    close(score, winclip.zero_shot(one, TEXT[""]).image / 2)


@pytest.mark.parametrize(
    "options, name, moved",
    [
        (
            {"within": "arithmetic", "windows": (2,), "image_scale": False},
            "zero_window2_map",
            0.0737,
        ),
        ({"within": "normality", "windows": (2,), "image_scale": False}, "zero_window2_map", 0.133),
        ({"image_scale": False}, "zero_combined_map", 0.0804),
        ({"across": "arithmetic"}, "zero_combined_map", 0.0271),
    ],
)
def test_known_mistakes_move_the_map_as_recorded(options, name, moved):
    """The switches for the audit reproduce the sizes in the fixture's README, so each is the mistake it says it is."""
    assert gap(winclip.zero_shot(encoded("test"), TEXT[""], **options).maps, name) == pytest.approx(
        moved, rel=0.01
    )


def test_other_recorded_mistakes():
    scores = winclip.zero_shot(encoded("test"), TEXT[""], temperature=0.01)
    assert gap(scores.image, "zero_image_score") == pytest.approx(0.28, rel=0.01)
    maps = winclip.zero_shot(encoded("test"), TEXT[""]).maps
    corners = upsample(maps[:2], (96, 96), align_corners=True)
    assert gap(corners, "zero_upsampled_map") == pytest.approx(0.0398, rel=0.01)
    before = winclip.visual_maps(encoded("test"), references(1), token=4)["patch"]
    assert gap(before, "few1_patch_association") == pytest.approx(0.0509, rel=0.01)
    assert isinstance(before, torch.Tensor) and before.dtype == torch.float32
