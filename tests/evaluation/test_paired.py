import time

import numpy as np
import pytest

from vlmad_utils.evaluation import intervals as b
from vlmad_utils.evaluation import metrics as m


def two_methods(rng, images=40, shift=1.0, shared=1.5):
    """Scores, with ties, of two equally good methods that find the same images hard; labels."""
    labels = np.repeat([0, 1], images // 2)
    shared = shift * labels + shared * rng.standard_normal(images)
    a, c = (np.round(shared + rng.standard_normal(images), 1) for _ in range(2))
    return a, c, labels


def test_value_is_the_difference_of_the_metrics():
    a, c, labels = two_methods(np.random.default_rng(0))
    found = b.paired({"x": (a, c, labels)}, n=500)
    assert found.value == pytest.approx(m.auroc(a, labels) - m.auroc(c, labels), abs=1e-12)
    assert found == b.paired({"x": (a, c, labels)}, n=500)
    assert found != b.paired({"x": (a, c, labels)}, n=500, seed=1)
    narrow = b.paired({"x": (a, c, labels)}, n=500, level=0.5)
    assert found.low < narrow.low < narrow.high < found.high and found.p == narrow.p


def test_draws_are_those_of_a_loop_over_images():
    a, c, labels = two_methods(np.random.default_rng(1))
    rng, draws = np.random.default_rng(2), []
    for _ in range(2000):
        sides = (np.flatnonzero(labels == side) for side in (0, 1))
        drawn = np.concatenate([rng.choice(rows, len(rows)) for rows in sides])
        draws.append(m.auroc(a[drawn], labels[drawn]) - m.auroc(c[drawn], labels[drawn]))
    expected = np.quantile(draws, [0.025, 0.975])
    assert b.paired({"x": (a, c, labels)})[1:3] == pytest.approx(expected, abs=0.012)


def test_pairing_makes_the_interval_narrower():
    a, c, labels = two_methods(np.random.default_rng(3), shared=4)
    widths = [interval.high - interval.low for interval in (b.bootstrap(s, labels) for s in (a, c))]
    found = b.paired({"x": (a, c, labels)})
    assert found.high - found.low < 0.7 * np.hypot(*widths)


def test_swapping_methods_turns_the_sign():
    a, c, labels = two_methods(np.random.default_rng(4))
    one, other = b.paired({"x": (a, c, labels)}), b.paired({"x": (c, a, labels)})
    assert other == pytest.approx((-one.value, -one.high, -one.low, one.p))


def test_several_draws_of_references_are_averaged():
    rng = np.random.default_rng(5)
    a, c, labels = two_methods(rng)
    more = np.stack([a, a + rng.standard_normal(len(a))])
    found = b.paired({"x": (more, c, labels)})
    mean = np.mean([m.auroc(s, labels) for s in more])
    assert found.value == pytest.approx(mean - m.auroc(c, labels))
    same = b.paired({"x": (np.stack([a, a, a]), c, labels)})
    assert same == pytest.approx(b.paired({"x": (a, c, labels)}))


def test_macro_mean_and_order_of_categories():
    rng = np.random.default_rng(6)
    groups = {name: two_methods(rng, images) for name, images in (("x", 20), ("y", 60))}
    found = b.paired(groups)
    gaps = [m.auroc(a, y) - m.auroc(c, y) for a, c, y in groups.values()]
    assert found.value == pytest.approx(np.mean(gaps))
    assert found == b.paired(dict(reversed(groups.items())))


def test_equal_methods_differ_by_nothing():
    a, _, labels = two_methods(np.random.default_rng(7))
    assert b.paired({"x": (a, a, labels)}) == (0, 0, 0, 1)
    assert b.paired({"x": (a, 3 * a + 1, labels)}) == (0, 0, 0, 1)


def test_a_sure_difference_has_the_smallest_p():
    labels = np.repeat([0, 1], 30)
    good, bad = labels + np.linspace(0, 0.5, 60), np.random.default_rng(8).random(60)
    found = b.paired({"x": (good, bad, labels)}, n=999)
    assert found.p == pytest.approx(2 / 1000) and found.low > 0


def test_p_keeps_its_word_where_methods_are_alike():
    rng = np.random.default_rng(9)
    small = [b.paired({"x": two_methods(rng, 60)}, n=500).p < 0.05 for _ in range(300)]
    assert 0.01 < np.mean(small) < 0.1


def test_the_undefined_is_nan_and_wrong_input_an_error():
    assert np.isnan(b.paired({"x": (np.ones(4), np.ones(4), np.ones(4))})).all()
    labels = np.repeat([0, 1], 2)
    for groups in (
        {},
        {"x": (np.ones(3), np.ones(4), labels)},
        {"x": (np.ones(4), np.ones((2, 3)), labels)},
        {"x": (np.ones(4), np.ones(4), labels * 2)},
        {"x": (np.full(4, np.nan), np.ones(4), labels)},
    ):
        with pytest.raises(ValueError):
            b.paired(groups)


def test_hundred_comparisons_take_seconds():
    rng = np.random.default_rng(10)
    groups = {str(i): two_methods(rng, 20) for i in range(10)}
    began = time.process_time()
    for _ in range(10):
        b.paired(groups)
    assert time.process_time() - began < 5
