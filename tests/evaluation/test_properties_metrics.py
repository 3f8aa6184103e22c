"""Properties of metrics and bootstrap intervals that hold for any scores, maps and masks."""

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
    assert evaluation.average_precision(scores, labels) == pytest.approx(
        average_precision_score(labels, scores), abs=1e-12
    )
    assert area + evaluation.auroc(-scores, labels) == pytest.approx(
        1, abs=1e-12
    ) and area + evaluation.auroc(scores, ~labels) == pytest.approx(1)
    assert evaluation.chance("f1max", labels) - 1e-12 <= evaluation.f1max(scores, labels) <= 1
    ranks = np.unique(scores, return_inverse=True)[
        1
    ]  # any increasing transform: only the order matters
    for metric in (
        evaluation.auroc,
        evaluation.average_precision,
        evaluation.f1max,
        evaluation.aupr_trapezoid,
    ):
        value = metric(scores, labels)
        assert 0 <= value <= 1 and metric(ranks, labels) == metric(
            ranks * 1000.0 - 5, labels
        ) == pytest.approx(value, abs=1e-12)
        assert metric(np.tile(scores, 3), np.tile(labels, 3)) == pytest.approx(
            value, abs=1e-12
        )  # more of the same
    assert evaluation.auroc(scores * 0, labels) == 0.5 and evaluation.average_precision(
        scores * 0, labels
    ) == pytest.approx(labels.mean())


@examples(60)
@given(scored)
def test_the_best_threshold_gives_the_best_f1(pairs):
    scores, labels = parted(pairs)
    marked = scores >= evaluation.f1max_threshold(scores, labels)
    assert 2 * (marked & labels).sum() / (marked.sum() + labels.sum()) == pytest.approx(
        evaluation.f1max(scores, labels)
    )


levels = arrays(np.float32, (2, 5, 6), elements=st.integers(-4, 4).map(float))
drawings = arrays(bool, (2, 5, 6), elements=st.booleans()).filter(lambda y: y.any() and not y.all())


@examples(80)
@given(levels, drawings, st.floats(0.01, 1), st.data())
def test_pixel_metrics_are_bounded_and_never_fall_when_a_defect_gets_hotter(
    maps, masks, limit, draw
):
    rising = (
        evaluation.auroc,
        evaluation.f1max,
        lambda m, y: evaluation.aupro(m, y, limit=limit),
    )  # AP may fall: a new tie with a normal pixel
    everything = (*rising, evaluation.average_precision)
    before = [metric(maps, masks) for metric in everything]
    assert all(0 <= value <= 1 for value in before)
    flipped, turned = (
        maps[:, ::-1],
        masks[:, ::-1],
    )  # where a pixel lies does not matter, only what it touches
    assert [metric(flipped, turned) for metric in everything] == pytest.approx(before, abs=1e-12)
    hotter = maps.copy()
    hotter[tuple(draw.draw(st.sampled_from(np.argwhere(masks).tolist())))] += draw.draw(
        st.integers(1, 8)
    )
    assert all(metric(hotter, masks) >= value - 1e-12 for metric, value in zip(rising, before))
    assert evaluation.aupro(masks.astype(float), masks, limit=limit) == pytest.approx(1)
    assert evaluation.aupro(maps * 0, masks, limit=limit) == pytest.approx(
        evaluation.chance("aupro", limit=limit)
    )


@examples(40)
@given(
    levels,
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 2)),
        min_size=1,
        max_size=8,
        unique=True,
    ),
)
def test_aupro_of_single_pixels_is_auroc(maps, spots):
    masks = np.zeros(maps.shape, bool)
    for b, row, column in spots:
        masks[b, 2 * row, 2 * column] = True  # none touches another: each region is one pixel
    assert evaluation.aupro(maps, masks, limit=1) == pytest.approx(
        evaluation.auroc(maps, masks), abs=1e-12
    )


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
    one, other = (
        evaluation.paired({"x": (*both, labels)}, n=200, seed=seed) for both in ((a, b), (b, a))
    )
    assert one.value == pytest.approx(
        evaluation.auroc(a, labels) - evaluation.auroc(b, labels), abs=1e-12
    )
    assert (one.value, one.low, one.high, one.p) == pytest.approx(
        (-other.value, -other.high, -other.low, other.p), abs=1e-9
    )
    assert evaluation.paired({"x": (a, a, labels)}, n=50)[:] == (0, 0, 0, 1)
