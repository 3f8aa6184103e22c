import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from vlmad_utils.evaluation import draws
from vlmad_utils.evaluation import intervals as b
from vlmad_utils.evaluation import metrics as m

PARITY = np.load(Path(__file__).parents[1] / "fixtures" / "metrics_a.npz")
METRICS = {
    "pixel_auroc": m.auroc,
    "pixel_ap": m.average_precision,
    "pixel_f1max": m.f1max,
    "aupro": m.aupro,
}


def sample(rng, size=60, shift=1.0):
    labels = np.repeat([0, 1], size // 2)
    return rng.standard_normal(size) + shift * labels, labels


def test_bootstrap_is_deterministic_and_contains_the_value():
    scores, labels = sample(np.random.default_rng(1))
    for metric in (m.auroc, m.average_precision, m.f1max):
        found = b.bootstrap(scores, labels, metric, n=300)
        assert found == b.bootstrap(scores, labels, metric, n=300)
        assert found != b.bootstrap(scores, labels, metric, n=300, seed=1)
        assert found.low < found.value < found.high and found.value == metric(scores, labels)
        narrow = b.bootstrap(scores, labels, metric, n=300, level=0.5)
        assert found.low < narrow.low < narrow.high < found.high


def test_vectorised_bootstrap_of_auroc_is_the_plain_one():
    scores, labels = sample(np.random.default_rng(2))
    scores = np.round(scores, 1)  # ties
    fast = b.bootstrap(scores, labels, n=4000)
    plain = b.bootstrap(scores, labels, lambda s, y: roc_auc_score(y, s), n=500)
    assert fast.value == pytest.approx(plain.value)
    assert fast[1:] == pytest.approx(plain[1:], abs=0.015)
    # The draws themselves: the same counts, given to scikit-learn as repeated images.
    normal, anomalous = np.sort(scores[labels == 0]), scores[labels == 1]
    values = draws.auroc_of_draws(normal, anomalous, 20, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    lows, highs = rng.integers(30, size=(20, 30)), rng.integers(30, size=(20, 30))
    for value, low, high in zip(values, lows, highs, strict=True):
        drawn = np.concatenate([normal[low], anomalous[high]])
        assert value == pytest.approx(roc_auc_score(labels, drawn))


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng, truth = np.random.default_rng(4), 0.7602  # Phi(1 / sqrt 2)
    intervals = [b.bootstrap(*sample(rng, 100), n=400) for _ in range(200)]
    covered = [low <= truth <= high for _, low, high in intervals]
    assert 0.88 <= np.mean(covered) <= 0.99


def test_bootstrap_of_pixels_draws_images():
    scores, masks = PARITY["smooth_scores"], PARITY["masks"]
    found = b.bootstrap(scores, masks, m.aupro, n=50)
    assert found.low < found.value < found.high and found.value == m.aupro(scores, masks)


def test_bootstrap_of_the_undefined_is_nan_with_one_warning():
    with pytest.warns(m.UndefinedMetricWarning) as caught:
        assert np.isnan(b.bootstrap(np.arange(5.0), np.zeros(5, int))).all()
    assert len(caught) == 1
    groups = {"a": sample(np.random.default_rng(0)), "b": (np.arange(5.0), np.zeros(5, int))}
    with pytest.warns(m.UndefinedMetricWarning):
        assert np.isnan(b.bootstrap_mean(groups)).all()
    with pytest.raises(ValueError, match="no category"):
        b.bootstrap_mean({})


def test_bootstrap_of_the_macro_mean():
    rng = np.random.default_rng(5)
    groups = {name: sample(rng, 60, shift) for name, shift in [("c", 0.2), ("a", 1.0), ("b", 2.0)]}
    found = b.bootstrap_mean(groups)
    assert found.value == pytest.approx(np.mean([m.auroc(*pair) for pair in groups.values()]))
    assert found == b.bootstrap_mean(dict(sorted(groups.items())))
    singles = [b.bootstrap(*pair) for pair in groups.values()]
    width = found.high - found.low
    expected = np.sqrt(sum((i.high - i.low) ** 2 for i in singles)) / 3  # independent categories
    assert width == pytest.approx(expected, rel=0.15)
    wide = b.bootstrap_mean(groups, over_categories=True)
    assert wide.high - wide.low > 1.5 * width


def pictures(seed=0, size=48, images=24, normal=8):
    """Noise with one to three brighter rectangles in each image but the first ones."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((images, size, size), bool)
    for mask in masks[normal:]:
        for _ in range(rng.integers(1, 4)):
            y, x, height, width = *rng.integers(0, size - 8, 2), *rng.integers(2, size // 4, 2)
            mask[y : y + height, x : x + width] = True
    maps = rng.standard_normal(masks.shape) + rng.standard_normal((images, 1, 1)) / 3 + 1.5 * masks
    return maps.astype(np.float32), masks


def quantised(maps, masks, bins, limit=0.3):
    """The metrics when every image is drawn once."""
    tails = draws.map_tails(
        maps, masks, draws.bin_edges(maps, masks, bins, np.random.default_rng(0))
    )
    return draws.metrics_of_maps(np.ones((1, len(maps))), tails, limit)[:, 0]


@pytest.mark.parametrize(
    "change",
    [lambda x: x, lambda x: gaussian_filter(x, (0, 2, 2)), lambda x: np.exp(4 * x), np.round],
    ids=["random", "smooth", "heavy", "ties"],
)
def test_metrics_of_histograms_are_the_exact_ones(change):
    maps, masks = pictures()
    maps = change(maps)
    exact = [metric(maps, masks) for metric in METRICS.values()]
    assert quantised(maps, masks, bins=2048) == pytest.approx(exact, abs=1e-3)
    assert quantised(maps, masks, bins=256) == pytest.approx(exact, abs=1e-2)
    all_bins = 3 * maps.size  # each score has its bin
    assert quantised(maps, masks, all_bins) == pytest.approx(exact, abs=1e-12)
    aupro = quantised(maps, masks, all_bins, limit=0.05)[3]
    assert aupro == pytest.approx(m.aupro(maps, masks, limit=0.05), abs=1e-12)


def test_many_pixels_are_subsampled(monkeypatch):
    maps, masks = pictures()
    monkeypatch.setattr(draws, "SAMPLE", 1000)
    exact = [metric(maps, masks) for metric in METRICS.values()]
    assert quantised(maps, masks, bins=1024) == pytest.approx(exact, abs=1e-2)


@pytest.mark.parametrize("name", METRICS)
def test_pixel_bootstrap_is_the_slow_one(name):
    for maps, masks in (pictures(), (PARITY["heavy_scores"], PARITY["masks"])):
        fast = b.pixel_bootstrap(maps, masks, n=100)[name]
        slow = b.bootstrap(maps, masks, METRICS[name], n=100)
        assert fast.value == slow.value and fast.low < fast.value < fast.high
        assert fast[1:] == pytest.approx(slow[1:], abs=1e-3)  # same draws: only the bins differ
        other = b.bootstrap(maps, masks, METRICS[name], n=100, seed=1)
        assert fast[1:] == pytest.approx(other[1:], abs=0.4 * (slow.high - slow.low))


def test_pixel_bootstrap_is_deterministic_and_follows_its_options():
    maps, masks = pictures()
    found = b.pixel_bootstrap(maps, masks, n=200)
    assert list(found) == list(METRICS)
    assert found == b.pixel_bootstrap(maps, masks.astype(np.uint8), n=200)
    options = [dict(seed=1), dict(level=0.5), dict(limit=0.05)]
    other, narrow, short = (b.pixel_bootstrap(maps, masks, n=200, **o) for o in options)
    for name in METRICS:
        assert other[name].value == found[name].value and other[name] != found[name]
        assert found[name].low < narrow[name].low < narrow[name].high < found[name].high
    assert short["aupro"].high < found["aupro"].low and short["pixel_ap"] == found["pixel_ap"]


@pytest.mark.parametrize("transform", [np.exp, np.cbrt, lambda x: 1e30 * x])
def test_increasing_transforms_change_no_interval(transform):
    maps, masks = pictures()
    maps = maps.round(3)  # stay distinct in float32
    for bins in (64, 2048):
        changed, plain = (
            b.pixel_bootstrap(x, masks, n=50, bins=bins)
            for x in (transform(maps).astype(np.float32), maps)
        )
        assert changed == plain


def test_order_of_images_changes_intervals_by_luck_only():
    maps, masks = pictures()
    order = np.random.default_rng(1).permutation(len(maps))
    found, other = b.pixel_bootstrap(maps, masks), b.pixel_bootstrap(maps[order], masks[order])
    for one, two in ((found[name], other[name]) for name in METRICS):
        assert one.value == pytest.approx(two.value, abs=1e-12)
        assert one[1:] == pytest.approx(two[1:], abs=0.15 * (one.high - one.low))


def test_pixel_bootstrap_of_a_constant_map():
    _, masks = pictures()
    found = b.pixel_bootstrap(np.full(masks.shape, 0.7, np.float32), masks, n=50)
    assert found["pixel_auroc"] == pytest.approx([0.5] * 3, abs=1e-12)
    assert found["aupro"] == pytest.approx([0.15] * 3, abs=1e-12)
    low, high = found["pixel_ap"][1:]  # the prevalence in the draw
    assert low < masks.mean() < high
    expected = [2 * p / (1 + p) for p in (low, high)]
    assert found["pixel_f1max"][1:] == pytest.approx(expected, rel=1e-3)


def test_pixel_bootstrap_of_perfect_and_infinite_maps():
    _, masks = pictures()
    for maps in (masks.astype(np.float32), np.where(masks, np.inf, -np.inf)):
        assert np.array(list(b.pixel_bootstrap(maps, masks, n=20).values())) == pytest.approx(1)


def test_regions_weigh_the_same_in_every_draw():
    masks = np.zeros((2, 10, 10), bool)
    masks[0, :8, :8], masks[1, 0, 0], masks[1, 5, 5], masks[1, 9, 9] = True, True, True, True
    maps = masks.astype(np.float32)
    maps[0] *= -1  # one large region is missed, three single pixels are found
    assert m.aupro(maps, masks) == pytest.approx(0.75)
    tails = draws.map_tails(maps, masks, draws.bin_edges(maps, masks, 16, np.random.default_rng(0)))
    drawn = draws.metrics_of_maps(np.array([[1, 1], [2, 0], [0, 2]]), tails, 0.3)
    assert drawn[3] == pytest.approx([0.75, 0, 1])


@pytest.mark.parametrize(
    "case, undefined",
    {
        "normal only": list(METRICS),
        "a NaN": list(METRICS),
        "anomalous only": ["pixel_auroc", "aupro"],
        "no normal image": [],
    }.items(),
)
def test_pixel_bootstrap_of_the_undefined_is_nan_with_one_warning_each(case, undefined):
    maps, masks = pictures(images=6, normal=2)
    if case == "normal only":
        masks[:] = False
    elif case == "a NaN":
        maps[0, 0, 0] = np.nan
    elif case == "anomalous only":
        masks[:] = True
    else:
        maps, masks = maps[2:], masks[2:]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = b.pixel_bootstrap(maps, masks, n=20)
    assert [name for name, interval in found.items() if np.isnan(interval).all()] == undefined
    assert [name for name, interval in found.items() if np.isnan(interval).any()] == undefined
    assert [w.category for w in caught] == [m.UndefinedMetricWarning] * len(undefined)


def test_wrong_input_is_an_error():
    maps, masks = pictures(images=4, normal=1)
    for change, message in [
        (dict(maps=maps[:, ::2]), "upsample"),
        (dict(masks=masks * 2), "mask > 0"),
        (dict(limit=30), "limit is 30"),
        (dict(maps=maps[:, 0], masks=masks[:, 0]), r"\(B, H, W\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            b.pixel_bootstrap(**dict(maps=maps, masks=masks) | change)


@pytest.mark.slow
def test_two_hundred_maps_take_seconds():
    maps, masks = pictures(size=256, images=200, normal=60)
    began = time.process_time()
    found = b.pixel_bootstrap(maps, masks)
    assert time.process_time() - began < 10
    values = [interval.value for interval in found.values()]
    assert quantised(maps, masks, 2048) == pytest.approx(values, abs=1e-3)


def test_image_metrics_have_exact_values_and_the_draws_of_a_loop():
    rng = np.random.default_rng(0)
    labels = rng.random(40) < 0.5
    scores = np.round(labels + rng.standard_normal(40), 1)  # with ties
    found = b.image_bootstrap(scores, labels, n=3000)
    for name, metric in (("auroc", m.auroc), ("ap", m.average_precision), ("f1max", m.f1max)):
        interval = found[f"image_{name}"]
        assert interval.value == metric(scores, labels)
        looped = b.bootstrap(scores, labels, lambda s, y, f=metric: f(s, y), n=3000, seed=1)
        assert interval[1:] == pytest.approx(looped[1:], abs=0.012)
    assert found == b.image_bootstrap(scores, labels, n=3000)
    assert found != b.image_bootstrap(scores, labels, n=3000, seed=1)
    turned = b.image_bootstrap(-scores, ~labels, n=3000)["image_auroc"].value
    assert turned == pytest.approx(found["image_auroc"].value)


def from_a_table(scores, labels, n, seed):
    """The same intervals from counts (n, B) times a table (B, K), as long as it fits in memory."""
    rng, counts = np.random.default_rng(seed), np.empty((n, len(scores)), int)
    for rows in draws.class_rows(labels):
        counts[:, rows] = draws.draw_counts(len(rows), n, rng)
    atleast = scores[:, None] >= np.unique(scores)[::-1]
    tails = np.stack([atleast & ~labels[:, None], *[atleast & labels[:, None]] * 2]).astype(float)
    blocks = [draws.metrics_of_maps(counts[i : i + 64], tails, 1.0) for i in range(0, n, 64)]
    return [b._interval(0, drawn, 0.95)[1:] for drawn in np.concatenate(blocks, axis=1)[:3]]


def test_image_intervals_are_bit_for_bit_those_of_a_table():
    rng = np.random.default_rng(0)
    for seed in range(60):
        labels = rng.permutation(np.arange(rng.integers(9, 120)) < rng.integers(1, 9))
        scores = np.round(labels + rng.standard_normal(len(labels)), rng.integers(0, 4))
        found = b.image_bootstrap(scores, labels, n=150, seed=seed)
        assert [tuple(i[1:]) for i in found.values()] == from_a_table(scores, labels, 150, seed)


@pytest.mark.parametrize("images", [4_000, 20_000])
def test_memory_of_image_intervals_is_linear(images):
    labels = np.arange(images) % 3 == 0
    scores = np.random.default_rng(0).standard_normal(images) + labels
    tracemalloc.start()
    b.image_bootstrap(scores, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_image_metrics_of_one_class_or_nan_are_undefined():
    for scores, labels in (
        (np.arange(5.0), np.zeros(5, int)),
        (np.array([0, np.nan, 1]), np.array([0, 1, 1])),
    ):
        assert np.isnan([*b.image_bootstrap(scores, labels, n=10).values()]).all()
    all_anomalous = b.image_bootstrap(np.arange(5.0), np.ones(5, int), n=10)
    assert np.isnan(all_anomalous["image_auroc"]).all() and all_anomalous["image_ap"] == (1, 1, 1)


def test_draws_without_a_normal_pixel_are_left_out_and_the_value_stays():
    """Two images of which one is all defect: a fourth of the draws have no normal pixel."""
    rng = np.random.default_rng(0)
    maps, masks = rng.random((2, 8, 8)), np.zeros((2, 8, 8), bool)
    masks[0], masks[1, :2, :2] = True, True
    found = b.pixel_bootstrap(maps, masks, n=200)
    for interval in found.values():
        assert np.isfinite(interval).all() and interval.low <= interval.high
    assert found["pixel_auroc"].value == pytest.approx(m.auroc(maps, masks))
