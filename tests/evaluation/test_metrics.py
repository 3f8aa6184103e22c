import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from vlmad_utils.evaluation import metrics as m

PARITY = np.load(Path(__file__).parents[1] / "fixtures" / "metrics_a.npz")
ALL = (m.auroc, m.average_precision, m.aupr_trapezoid, m.f1max, m.aupro)
PIXEL = {
    "pixel_auroc": m.auroc,
    "pixel_ap": m.average_precision,
    "pixel_aupr_trapezoid": m.aupr_trapezoid,
    "pixel_f1max": m.f1max,
    "pixel_f1max_threshold": m.f1max_threshold,
    "aupro_exact_limit0.05": lambda s, y: m.aupro(s, y, limit=0.05),
    "aupro_exact_limit0.3": m.aupro,
    "aupro_exact_limit1.0": lambda s, y: m.aupro(s, y, limit=1),
    "aupro_exact_4connected_limit0.3": lambda s, y: m.aupro(s, y, connectivity=4),
    "aupro_200thresholds": m.aupro_200,
}
examples = settings(deadline=None, max_examples=60, derandomize=True)
# Few levels, so that there are ties; they stay distinct under the transforms below, in float32 too.
levels = arrays(np.float32, (3, 6, 5), elements=st.integers(-6, 6).map(float))
drawings = arrays(bool, (3, 6, 5), elements=st.booleans()).filter(lambda y: y.any() and not y.all())


def brute_force_aupro(maps, masks, limit):
    """Every threshold, every region, one by one; then trapezoids."""
    regions = []
    for i, mask in enumerate(masks):
        labelled, number = ndimage.label(mask, np.ones((3, 3)))
        regions += [(i, labelled == k) for k in range(1, number + 1)]
    fpr, pro = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        hot = maps >= threshold
        fpr.append(hot[~masks].mean())
        pro.append(np.mean([hot[i][region].mean() for i, region in regions]))
    fpr, pro = np.array(fpr), np.array(pro)
    inside = fpr <= limit
    end = np.flatnonzero(inside)[-1]
    x, y = list(fpr[inside]), list(pro[inside])
    if x[-1] < limit:
        share = (limit - fpr[end]) / (fpr[end + 1] - fpr[end])
        x.append(limit)
        y.append(pro[end] + share * (pro[end + 1] - pro[end]))
    return np.trapezoid(y, x) / limit


@pytest.mark.parametrize("name", PIXEL)
@pytest.mark.parametrize("case", ["smooth", "ties", "heavy"])
def test_pixel_parity(case, name):
    found = PIXEL[name](PARITY[f"{case}_scores"], PARITY["masks"])
    assert found == pytest.approx(float(PARITY[f"{case}_{name}_f64"]), abs=1e-9)


@pytest.mark.parametrize("case", ["smooth", "ties", "heavy"])
def test_exact_aupro_agrees_with_anomalib_and_mvtec_script(case):
    found = m.aupro(PARITY[f"{case}_scores"], PARITY["masks"])
    for program in ("anomalib", "mvtec"):  # float32 sums inside
        theirs = float(PARITY[f"{case}_aupro_{program}_limit0.3_f64"])
        assert found == pytest.approx(theirs, abs=1e-7)


def test_image_parity():
    scores, labels = PARITY["image_scores"], PARITY["image_labels"]
    for name, function in PIXEL.items():
        if name.startswith("pixel"):
            wanted = float(PARITY[f"{name.replace('pixel', 'image')}_f64"])
            assert function(scores, labels) == pytest.approx(wanted, abs=1e-9), name


def test_regions_of_the_fixture_are_counted_per_image():
    weights = m.region_weights(PARITY["masks"] > 0)
    assert round(sum(weights)) == 1 and len(weights) == PARITY["masks"].sum()
    single = weights.max()  # a single pixel is a whole region
    assert single == pytest.approx(1 / int(PARITY["smooth_regions"]))


@pytest.mark.parametrize(
    "name, wanted",
    {
        "no_region": [np.nan] * 5,
        "all_anomalous": [np.nan, 1, 1, 1, np.nan],
        "constant_scores": [0.5, 1 / 18, 0.5 + 1 / 36, 2 / 19, 0.15],
        "perfect": [1, 1, 1, 1, 1],
        "inverted": [0, 1 / 18, 1 / 36, 2 / 19, 0],
        "one_nan": [np.nan] * 5,
    }.items(),
)
def test_degenerate_inputs(name, wanted):
    scores, masks = PARITY[f"degenerate_{name}_scores"], PARITY[f"degenerate_{name}_masks"]
    for function, value in zip(ALL, wanted, strict=True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = function(scores, masks)
        assert found == pytest.approx(value, abs=1e-12, nan_ok=True), function.__name__
        assert [w.category for w in caught] == [m.UndefinedMetricWarning] * bool(np.isnan(value))
        if function is not m.f1max:  # the warning points at the line that asked
            assert all(w.filename == __file__ for w in caught)
    with pytest.warns(m.UndefinedMetricWarning):
        assert np.isnan(m.aupro_200(scores, masks))


@examples
@given(levels, drawings)
def test_against_scikit_learn_and_brute_force(scores, masks):
    s, y = scores.ravel(), masks.ravel()
    precision, recall, thresholds = precision_recall_curve(y, s)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert m.auroc(scores, masks) == pytest.approx(roc_auc_score(y, s), abs=1e-12)
    ap = average_precision_score(y, s)
    assert m.average_precision(scores, masks) == pytest.approx(ap, abs=1e-12)
    assert m.aupr_trapezoid(scores, masks) == pytest.approx(auc(recall, precision), abs=1e-12)
    assert m.f1max(scores, masks) == pytest.approx(f1.max(), abs=1e-12)
    hot = s >= m.f1max_threshold(scores, masks)
    assert 2 * (hot & y).sum() / (hot.sum() + y.sum()) == pytest.approx(f1.max(), abs=1e-12)
    for limit in (0.01, 0.3, 1.0):
        wanted = brute_force_aupro(scores, masks, limit)
        assert m.aupro(scores, masks, limit) == pytest.approx(wanted, abs=1e-12)


@examples
@given(levels, drawings, st.sampled_from([np.exp, np.cbrt, np.arctan, lambda x: 1e30 * x]))
def test_increasing_transforms_change_nothing(scores, masks, transform):
    changed = transform(scores).astype(np.float32)
    for function in ALL:
        assert function(changed, masks) == pytest.approx(function(scores, masks), abs=1e-12)


@examples
@given(levels, drawings, st.randoms(use_true_random=False))
def test_order_of_images_changes_nothing(scores, masks, random):
    order = random.sample(range(3), 3)
    for function in ALL:
        moved = function(scores[order], masks[order])
        assert moved == pytest.approx(function(scores, masks), abs=1e-12)


@examples
@given(drawings)
def test_perfect_inverted_and_constant_maps(masks):
    assert m.aupro(masks.astype(np.float32), masks) == pytest.approx(1)
    assert m.aupro(-masks.astype(np.float32), masks) == pytest.approx(0, abs=1e-12)
    constant = np.full(masks.shape, 0.7, np.float32)
    names = {"auroc": m.auroc, "ap": m.average_precision, "f1max": m.f1max, "aupro": m.aupro}
    for name, function in names.items():
        assert function(constant, masks) == pytest.approx(m.chance(f"pixel_{name}", masks)), name


def test_no_metric_of_a_perfect_map_exceeds_one():
    rng = np.random.default_rng(0)
    for share in rng.random(200):  # the weights of many regions sum to 1 only up to rounding
        masks = rng.random((3, 12, 12)) < share
        masks[0, 0, :2] = False, True
        maps = masks + 0.5 * rng.random(masks.shape)
        assert [f(maps, masks) for f in ALL[:4]] == [1, 1, 1, 1]
        assert 1 - 1e-12 < m.aupro(maps, masks) <= 1


def test_200_thresholds_change_under_an_increasing_transform():
    scores, masks = PARITY["heavy_scores"].astype(np.float64), PARITY["masks"]
    tamed = np.arcsinh(scores)
    assert m.aupro(tamed, masks) == pytest.approx(m.aupro(scores, masks), abs=1e-12)
    assert m.aupro_200(tamed, masks) > 10 * m.aupro_200(scores, masks)


def test_corner_contact_is_one_region_under_8_connectivity():
    masks = np.zeros((1, 6, 6), bool)
    masks[0, :3, :3] = masks[0, 3, 3] = True  # a block and a pixel that touch at a corner
    scores = masks.astype(np.float32)
    scores[0, 3, 3] = -1  # the pixel is missed
    assert m.aupro(scores, masks) == pytest.approx(0.9)
    assert m.aupro(scores, masks, connectivity=4) == pytest.approx(0.5)


def test_regions_weigh_the_same_and_do_not_run_across_images():
    masks = np.zeros((2, 4, 4), bool)
    masks[0], masks[1, 3, 3], masks[1, 0, 0] = np.tri(4, dtype=bool), True, True
    weights = m.region_weights(masks)
    assert weights[:10].sum() == pytest.approx(1 / 3) and weights[10:] == pytest.approx(1 / 3)


def test_infinite_scores_are_ranked_like_any_other():
    scores, labels = np.array([-np.inf, 0.0, 1.0, np.inf]), np.array([0, 0, 1, 1])
    assert [f(scores, labels) for f in ALL[:4]] == [1, 1, 1, 1]


def test_a_ranking_serves_all_metrics():
    scores, masks = PARITY["ties_scores"], PARITY["masks"]
    r = m.rank(scores, masks, regions=True)
    assert [f(r) for f in ALL] == [f(scores, masks) for f in ALL]
    with pytest.raises(ValueError, match="regions=True"):
        m.aupro(m.rank(scores, masks))


def test_evaluate_arrays():
    maps, masks = PARITY["smooth_scores"], PARITY["masks"]
    labels, image_scores = masks.any(axis=(1, 2)).astype(int), maps.max(axis=(1, 2))
    found = m.evaluate_arrays(image_scores, labels, maps, masks)
    kinds = ["auroc", "ap", "f1max"]
    assert list(found) == [f"image_{k}" for k in kinds] + [f"pixel_{k}" for k in kinds] + ["aupro"]
    assert found["aupro"] == m.aupro(maps, masks)
    assert found["pixel_ap"] == m.average_precision(maps, masks)
    assert found["image_auroc"] == roc_auc_score(labels, image_scores)
    assert list(m.evaluate_arrays(image_scores, labels)) == list(found)[:3]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(labels=np.zeros(7, int)), "wanted the same"),
        (dict(labels=np.full(8, -1)), "leave out"),
        (dict(maps=np.zeros((8, 12, 12))), "upsample"),
        (dict(masks=None), "masks are missing"),
        (dict(masks=np.full((8, 48, 48), 255)), "mask > 0"),
        (dict(labels=np.eye(8, dtype=int)[7]), "labelled normal"),
        (dict(maps=np.zeros((3, 4, 4)), masks=np.zeros((3, 4, 4), bool)), "as there are labels"),
        (dict(maps=np.zeros(8), masks=np.zeros(8, bool)), r"\(8, H, W\)"),
    ],
)
def test_wrong_input_is_an_error(change, message):
    masks = PARITY["masks"]
    given_ = dict(
        image_scores=np.arange(8.0),
        labels=masks.any(axis=(1, 2)).astype(int),
        maps=PARITY["smooth_scores"],
        masks=masks,
    )
    with pytest.raises(ValueError, match=message):
        m.evaluate_arrays(**given_ | change)


def test_wrong_options_are_errors():
    scores, masks = PARITY["ties_scores"], PARITY["masks"]
    with pytest.raises(ValueError, match="limit is 30"):
        m.aupro(scores, masks, limit=30)
    with pytest.raises(ValueError, match="4 or 8"):
        m.aupro(scores, masks, connectivity=6)
    with pytest.raises(ValueError, match="labels are missing"):
        m.auroc(scores)
    with pytest.raises(ValueError, match="chance level"):
        m.chance("accuracy", masks)
    with pytest.raises(ValueError, match="give labels"):
        m.chance("image_ap")


def test_chance_levels():
    labels = np.repeat([0, 1], [467, 1258])  # MVTec AD, all test images together
    assert m.chance("image_auroc") == 0.5
    assert m.chance("aupro") == 0.15 and m.chance("aupro", limit=1) == 0.5
    assert m.chance("image_ap", labels) == pytest.approx(1258 / 1725)
    assert m.chance("image_f1max", labels) == pytest.approx(2 * 1258 / (1725 + 1258))


def test_two_hundred_maps_fit_in_time_and_memory():
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((200, 256, 256), dtype=np.float32)
    masks = np.zeros(maps.shape, bool)
    masks[:140, 100:140, 90:150] = True
    maps[masks] += 1
    tracemalloc.start()
    began = time.process_time()
    assert 0.4 < m.aupro(maps, masks) < 0.8
    assert time.process_time() - began < 8
    assert tracemalloc.get_traced_memory()[1] < 0.3e9
    tracemalloc.stop()
