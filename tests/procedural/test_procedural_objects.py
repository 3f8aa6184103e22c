"""The object families draw valid, repeatable images whose fault masks tell the truth."""

import numpy as np
import pytest

from vlmad_procedural.objects import EVAL_OBJECTS, FAULTS, OBJECTS

PARTS = FAULTS[1:]


def draw(name, style, seed, size, fault=None):
    return OBJECTS[name](np.random.default_rng(style), np.random.default_rng(seed), size, fault)


def as_bytes(image):
    return np.round(image * 255).astype(np.uint8).tobytes()


def test_registry():
    assert set(EVAL_OBJECTS) < set(OBJECTS)
    assert len(OBJECTS) - len(EVAL_OBJECTS) >= 13
    assert all(name == family.name for name, family in OBJECTS.items())
    assert all(len(set(family.nouns)) == len(family.nouns) for family in OBJECTS.values())


@pytest.mark.parametrize("size", (96, 224))
@pytest.mark.parametrize("name", OBJECTS)
def test_image_support_and_mask(name, size):
    for seed in range(3):
        image, support, mask = draw(name, seed, seed + 7, size)
        assert image.shape == (size, size, 3) and image.dtype == np.float64
        assert np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1
        assert image.std() > 0.01
        assert support.shape == mask.shape == (size, size) and support.dtype == mask.dtype == bool
        assert support.mean() > 0.02 and not mask.any()


@pytest.mark.parametrize("fault", PARTS)
@pytest.mark.parametrize("name", OBJECTS)
def test_fault_changes_the_mask_only(name, fault):
    for seed in range(3):
        good, _, _ = draw(name, seed, seed, 96)
        bad, support, mask = draw(name, seed, seed, 96, fault)
        assert np.array_equal(good[~mask], bad[~mask])
        assert support.any()
        if mask.any():
            assert mask.mean() < 0.7
            assert np.abs(good - bad)[mask].max() > 0.04


@pytest.mark.parametrize("fault", PARTS)
def test_fault_is_nearly_always_visible(fault):
    seen = [draw(name, style, 3, 64, fault)[2].any() for name in OBJECTS for style in range(2)]
    assert np.mean(seen) >= 0.95


@pytest.mark.parametrize("name", OBJECTS)
def test_same_seeds_same_bytes(name):
    for fault in FAULTS:
        first, second = (draw(name, 1, 2, 96, fault) for _ in range(2))
        assert as_bytes(first[0]) == as_bytes(second[0])
        assert np.array_equal(first[1], second[1]) and np.array_equal(first[2], second[2])


def test_styles_and_poses_differ():
    for name in OBJECTS:
        base = draw(name, 0, 0, 64)[0]
        assert np.abs(base - draw(name, 1, 0, 64)[0]).mean() > 0.02
        assert np.abs(base - draw(name, 0, 1, 64)[0]).mean() > 0.002


def test_generators_advance_alike_with_and_without_fault():
    after = []
    for fault in FAULTS:
        style, rng = np.random.default_rng(0), np.random.default_rng(1)
        OBJECTS["gear"](style, rng, 96, fault)
        after.append((style.integers(2**62), rng.integers(2**62)))
    assert after[0] == after[1] == after[2]


def test_unknown_fault_is_refused():
    with pytest.raises(ValueError, match="missing_part"):
        draw("nut", 0, 0, 96, "scratch")
