"""Properties of metrics and bootstrap intervals that hold for any scores, maps and masks."""

import functools

import numpy as np
import pytest
from fixtures.properties import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, roc_auc_score

from vlmad_utils import evaluation

scored = st.lists(
    st.tuples(st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6)), st.booleans()),
    min_size=2,
    max_size=40,
)


def parted(pairs):
    scores, labels = np.array([s for s, _ in pairs]), np.array([y for _, y in pairs])
    assume(0 < labels.sum() < len(labels))
    return scores, labels


@examples(150)
@given(scored)
def test_image_metrics_equal_scikit_learns_and_keep_their_bounds(pairs):
    scores, labels = parted(pairs)
    area = evaluation.auroc(scores, labels)
    assert area == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    ap = average_precision_score(labels, scores)
    assert evaluation.average_precision(scores, labels) == pytest.approx(ap, abs=1e-12)
    assert area + evaluation.auroc(-scores, labels) == pytest.approx(1, abs=1e-12)
    assert area + evaluation.auroc(scores, ~labels) == pytest.approx(1)
    assert evaluation.chance("f1max", labels) - 1e-12 <= evaluation.f1max(scores, labels) <= 1
    ranks = np.unique(scores, return_inverse=True)[1]  # only the order matters
    for metric in (
        evaluation.auroc,
        evaluation.average_precision,
        evaluation.f1max,
        evaluation.aupr_trapezoid,
    ):
        value = metric(scores, labels)
        assert 0 <= value <= 1
        assert metric(ranks, labels) == pytest.approx(value, abs=1e-12)
        assert metric(ranks, labels) == metric(ranks * 1000.0 - 5, labels)
        thrice = metric(np.tile(scores, 3), np.tile(labels, 3))
        assert thrice == pytest.approx(value, abs=1e-12)
    constant = scores * 0
    assert evaluation.auroc(constant, labels) == 0.5
    assert evaluation.average_precision(constant, labels) == pytest.approx(labels.mean())


@examples(60)
@given(scored)
def test_the_best_threshold_gives_the_best_f1(pairs):
    scores, labels = parted(pairs)
    marked = scores >= evaluation.f1max_threshold(scores, labels)
    f1 = 2 * (marked & labels).sum() / (marked.sum() + labels.sum())
    assert f1 == pytest.approx(evaluation.f1max(scores, labels))


levels = arrays(np.float32, (2, 5, 6), elements=st.integers(-4, 4).map(float))
spots = st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 2))
drawings = arrays(bool, (2, 5, 6), elements=st.booleans()).filter(lambda y: y.any() and not y.all())


@examples(80)
@given(levels, drawings, st.floats(0.01, 1), st.data())
def test_pixel_metrics_are_bounded_and_never_fall_when_a_defect_gets_hotter(
    maps, masks, limit, draw
):
    aupro = functools.partial(evaluation.aupro, limit=limit)
    rising = (evaluation.auroc, evaluation.f1max, aupro)
    everything = (
        *rising,
        evaluation.average_precision,
    )  # which may fall: a tie with a normal pixel
    before = [metric(maps, masks) for metric in everything]
    assert all(0 <= value <= 1 for value in before)
    flipped = maps[:, ::-1], masks[:, ::-1]  # only which pixels touch matters, not where they lie
    assert [metric(*flipped) for metric in everything] == pytest.approx(before, abs=1e-12)
    hotter, spot = maps.copy(), draw.draw(st.sampled_from(np.argwhere(masks).tolist()))
    hotter[tuple(spot)] += draw.draw(st.integers(1, 8))
    assert all(metric(hotter, masks) >= value - 1e-12 for metric, value in zip(rising, before))
    assert aupro(masks.astype(float), masks) == pytest.approx(1)
    assert aupro(maps * 0, masks) == pytest.approx(evaluation.chance("aupro", limit=limit))


@examples(40)
@given(levels, st.lists(spots, min_size=1, max_size=8, unique=True))
def test_aupro_of_single_pixels_is_auroc(maps, places):
    masks = np.zeros(maps.shape, bool)
    for b, row, column in places:
        masks[b, 2 * row, 2 * column] = True  # none touches another: each region is one pixel
    area = evaluation.auroc(maps, masks)
    assert evaluation.aupro(maps, masks, limit=1) == pytest.approx(area, abs=1e-12)


@examples(25)
@given(levels, drawings, st.integers(0, 99))
def test_bootstrap_intervals_hold_their_order_and_the_exact_value(maps, masks, seed):
    assume(not masks.all(axis=(1, 2)).any())  # else a draw may be without normal pixels
    found = evaluation.pixel_bootstrap(maps, masks, n=20, seed=seed)
    assert found == evaluation.pixel_bootstrap(maps, masks, n=20, seed=seed)
    exact = {
        "pixel_auroc": evaluation.auroc,
        "pixel_ap": evaluation.average_precision,
        "pixel_f1max": evaluation.f1max,
        "aupro": evaluation.aupro,
    }
    for name, interval in found.items():
        assert interval.value == pytest.approx(exact[name](maps, masks), abs=1e-12)
        assert 0 <= interval.low <= interval.high <= 1


@examples(40)
@given(scored, st.integers(0, 99))
def test_a_paired_difference_turns_its_sign_with_the_methods(pairs, seed):
    a, labels = parted(pairs)
    b = np.random.default_rng(seed).permutation(a)
    one = evaluation.paired({"x": (a, b, labels)}, n=200, seed=seed)
    other = evaluation.paired({"x": (b, a, labels)}, n=200, seed=seed)
    gap = evaluation.auroc(a, labels) - evaluation.auroc(b, labels)
    assert one.value == pytest.approx(gap, abs=1e-12)
    assert one == pytest.approx((-other.value, -other.high, -other.low, other.p), abs=1e-9)
    assert evaluation.paired({"x": (a, a, labels)}, n=50)[:] == (0, 0, 0, 1)
