"""Bootstrap intervals of the metrics: which values other test images of the same kind might have given.

Images are drawn with replacement, normal and anomalous ones apart. `bootstrap` takes any metric and computes it anew
for each draw; `image_bootstrap` takes the three image metrics at once, `pixel_bootstrap` the four pixel metrics, from
histograms; `paired` compares two methods on the same draws.
"""

from typing import NamedTuple

import numpy as np

from .metrics import (
    area_below,
    aupro,
    auroc,
    average_precision,
    checked,
    f1max,
    rank,
    region_weights,
)

SAMPLE = 2**20  # pixels from which quantiles are taken
BLOCK = 64  # draws computed at once: 1 MB an array with 2,048 bins


class Interval(NamedTuple):
    """A value and its bootstrap interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A difference of two methods, its bootstrap interval and two-sided p-value."""

    value: float
    low: float
    high: float
    p: float


def bootstrap(scores, labels, metric=auroc, n=1000, seed=0, level=0.95):
    """Percentile interval over images, drawn with replacement within normal and within anomalous images.

    It shows the luck in the choice of test images, not that of references or of training. Where the classes
    are parted without error, AUROC is 1 in every draw and the interval has no width: that is not certainty.

    Parameters
    ----------
    scores, labels : (B,), or (B, H, W) for pixels (an image with any anomalous pixel is anomalous)
    metric : function of (scores, labels); `auroc` of images is computed for all draws at once
    n : number of draws; level : share of the draws inside the interval

    Returns Interval(value, low, high), NaN when the metric is undefined; draws in which it is are left out.
    """
    scores, labels = checked(scores, labels)
    value = float(metric(scores, labels))
    if np.isnan(value):
        return Interval(value, value, value)
    return _interval(value, _draws(scores, labels, metric, n, np.random.default_rng(seed)), level)


def bootstrap_mean(groups, metric=auroc, n=1000, seed=0, level=0.95, over_categories=False):
    """Interval of the macro mean over categories, images drawn within each category as in `bootstrap`.

    Parameters
    ----------
    groups : dict of category -> (scores, labels)
    over_categories : also draw the categories, as a sample of all possible ones (a wider interval); else they
        are taken as given, as in a benchmark
    """
    if not groups:
        raise ValueError("no category was given; wanted a dict of category -> (scores, labels)")
    rng = np.random.default_rng(seed)
    arrays = [
        checked(*groups[name]) for name in sorted(groups)
    ]  # the order of the dict does not matter
    value = float(np.mean([metric(*pair) for pair in arrays]))
    if np.isnan(value):
        return Interval(value, value, value)
    draws = np.stack([_draws(*pair, metric, n, rng) for pair in arrays])
    if over_categories:
        draws = np.take_along_axis(draws, rng.integers(len(draws), size=draws.shape), axis=0)
    return _interval(value, draws.mean(axis=0), level)


def paired(groups, n=10_000, seed=0, level=0.95):
    """Image AUROC of one method minus that of another on the same images, as macro mean over categories.

    Both methods find the same images hard, so two intervals that overlap may hide a sure difference. Here both see the same
    draws of images, within normal and within anomalous ones as in `bootstrap`.

    Parameters
    ----------
    groups : dict of category -> (scores a, scores b, labels (B,)); scores are (B,), or (S, B) from S draws of references,
        whose AUROCs are averaged: the luck of the references is then neither in the interval nor in p
    n : number of draws; p cannot be below 2 / (n + 1), which matters when it is corrected for many comparisons
    level : share of the draws inside the interval

    Returns Difference(value, low, high, p), NaN when a category lacks normal or anomalous images. p is twice the share of
    draws on the rarer side of 0 (on 0 counts for both), so it is below 1 - level about where the interval leaves 0 out;
    with few images (10 of a class) it is too small rather than too large.
    """
    if not groups:
        raise ValueError(
            "no category was given; wanted a dict of category -> (scores a, scores b, labels)"
        )
    rng, gaps = np.random.default_rng(seed), [_gap(*groups[name]) for name in sorted(groups)]
    if any(gap.size == 0 for gap in gaps):
        return Difference(*[np.nan] * 4)
    value = float(np.mean([gap.mean() for gap in gaps]))
    draws = np.zeros(n)
    for gap in gaps:
        normal, anomalous = _times(gap.shape[0], n, rng), _times(gap.shape[1], n, rng)
        draws += ((normal @ gap) * anomalous).sum(axis=1) / (gap.size * len(gaps))
    draws = draws.round(12)  # else 0 would be left on one side by rounding
    side = min((draws <= 0).sum(), (draws >= 0).sum())
    return Difference(*_interval(value, draws, level), min(1.0, 2 * (side + 1) / (n + 1)))


def image_bootstrap(scores, labels, n=1000, seed=0, level=0.95):
    """Intervals of image_{auroc, ap, f1max}, drawn as in `bootstrap`, all draws at once.

    Parameters
    ----------
    scores, labels : (B,) scores and 0/1
    n : number of draws; level : share of the draws inside the interval

    Returns dict of Interval(value, low, high), NaN when the metric is undefined.
    """
    scores, labels = checked(scores, labels)
    values = {
        "image_auroc": auroc(scores, labels),
        "image_ap": average_precision(scores, labels),
        "image_f1max": f1max(scores, labels),
    }
    if np.isnan(scores).any() or labels.all() or not labels.any():
        return {
            name: Interval(value, *[np.nan] * 2)
            if np.isnan(value)
            else bootstrap(scores, labels, metric, n, seed, level)
            for (name, value), metric in zip(values.items(), (auroc, average_precision, f1max))
        }
    normal, anomalous = (scores[rows] for rows in _classes(labels))
    thresholds = np.unique(scores)[::-1]  # each distinct score, so nothing is lost
    at_once = int(np.clip(2**20 // len(scores), 1, BLOCK))
    sizes = [min(at_once, n - begun) for begun in range(0, n, at_once)]
    rng, later = np.random.default_rng(seed), np.random.default_rng(seed)
    for size in sizes:  # all normal images are drawn before the first anomalous one
        later.integers(len(normal), size=(size, len(normal)))
    tails = zip(
        _drawn_tails(normal, thresholds, sizes, rng),
        _drawn_tails(anomalous, thresholds, sizes, later),
    )
    draws = np.concatenate([_drawn_metrics(*pair) for pair in tails], axis=1)
    return {
        name: _interval(value, drawn, level) for (name, value), drawn in zip(values.items(), draws)
    }


def pixel_bootstrap(maps, masks, n=1000, seed=0, level=0.95, limit=0.3, bins=2048):
    """Intervals of pixel_{auroc, ap, f1max} and aupro over images, drawn as in `bootstrap`, in seconds.

    The values are exact. The draws (those of `bootstrap` with the same seed) see the scores in bins, half of them
    between quantiles of all pixels, half between quantiles of the anomalous ones: a draw is then a sum of histograms of
    images. 2,048 bins moved no metric by 0.001 in tests; where each distinct score has its own bin, nothing is lost.

    Parameters
    ----------
    maps : (B, H, W) scores at the size of the masks
    masks : (B, H, W) bool or 0/1, normal images included (all zero)
    n : number of draws; level : share of the draws inside the interval
    limit : of AU-PRO, in (0, 1]
    bins : largest number of bins

    Returns dict of Interval(value, low, high), NaN when the metric is undefined; draws in which it is, since no image with
    a normal pixel was drawn, are left out.
    """
    maps, masks = checked(maps, masks)
    r = rank(maps, masks, regions=True)
    values = {
        "pixel_auroc": auroc(r),
        "pixel_ap": average_precision(r),
        "pixel_f1max": f1max(r),
        "aupro": aupro(r, limit=limit),
    }
    if np.isnan(list(values.values())).all():
        return {name: Interval(value, value, value) for name, value in values.items()}
    rng = np.random.default_rng(seed)
    counts = np.stack(
        [np.bincount(chosen, minlength=len(maps)) for chosen in _drawn(_classes(masks), n, rng)]
    )
    tails = _tails(maps, masks, _edges(maps, masks, bins, rng))
    draws = np.concatenate(
        [_binned_metrics(counts[i : i + BLOCK], tails, limit) for i in range(0, n, BLOCK)], axis=1
    )
    return {
        name: _interval(value, drawn, level) for (name, value), drawn in zip(values.items(), draws)
    }


def _draws(scores, labels, metric, n, rng):
    """(n,) values of the metric on images drawn within each class."""
    groups = _classes(labels)
    if metric is auroc and labels.ndim == 1:
        return _auroc_draws(np.sort(scores[groups[0]]), scores[groups[1]], n, rng)
    return np.array([metric(scores[chosen], labels[chosen]) for chosen in _drawn(groups, n, rng)])


def _classes(labels):
    """Indices of the normal and of the anomalous images."""
    anomalous = labels.reshape(len(labels), -1).any(axis=1)
    return [np.flatnonzero(~anomalous), np.flatnonzero(anomalous)]


def _drawn(groups, n, rng):
    """Yields n times the indices of a draw: as many images of each group as it has, with replacement."""
    for _ in range(n):
        yield np.concatenate([g[rng.integers(len(g), size=len(g))] for g in groups if len(g)])


def _auroc_draws(normal, anomalous, n, rng):
    # A draw only changes how often each image counts: counts (n, Q) and (n, P), ranks by a cumulative sum.
    below = np.concatenate(
        [np.zeros((n, 1), int), np.cumsum(_times(len(normal), n, rng), axis=1)], axis=1
    )
    lower, upper = (np.searchsorted(normal, anomalous, side=side) for side in ("left", "right"))
    wins = (below[:, lower] + below[:, upper]) * _times(len(anomalous), n, rng)
    return wins.sum(axis=1) / (2 * len(normal) * len(anomalous))


def _times(size, n, rng):
    """(n, size): how often each of `size` images is in each of n draws of as many."""
    drawn = rng.integers(size, size=(n, size)) + np.arange(n)[:, None] * size
    return np.bincount(drawn.ravel(), minlength=n * size).reshape(n, size)


def _gap(a, b, labels):
    """(Q, P): for each normal and anomalous image, how much more often a puts them in the right order than b."""
    wins = []
    for scores in (a, b):
        scores = np.atleast_2d(np.asarray(scores, float))
        if np.isnan(scores).any():
            raise ValueError("scores hold NaN, which is neither above nor below another score")
        for line in scores:
            checked(line, labels)
        positive = np.asarray(labels).astype(bool)
        normal, anomalous = scores[:, ~positive, None], scores[:, None, positive]
        wins.append(((normal < anomalous) + (normal == anomalous) / 2).mean(axis=0))
    return wins[0] - wins[1]


def _interval(value, draws, level):
    draws = draws[~np.isnan(draws)].round(
        12
    )  # without what is undefined; rounded, since sums differ in the last bit from run to run
    return Interval(
        value,
        *(
            np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]).tolist()
            if len(draws)
            else [np.nan] * 2
        ),
    )


def _drawn_tails(scores, thresholds, sizes, rng):
    """Yield (size, K) float64 for each size: how many drawn images score as high as a threshold."""
    order = np.argsort(scores)
    reached = len(scores) - np.searchsorted(scores, thresholds, sorter=order)
    for size in sizes:
        seen = np.zeros((size, len(scores) + 1))
        np.cumsum(_times(len(scores), size, rng)[:, order[::-1]], axis=1, out=seen[:, 1:])
        yield np.take(seen, reached, axis=1)


def _edges(maps, masks, bins, rng):
    """(K,) lower ends of the bins, highest first; the last is the lowest score. All are scores that occur."""
    edges = [[maps.min()]]
    for scores in (maps.ravel(), maps[masks]):
        if len(scores) > SAMPLE:
            scores = scores[rng.integers(len(scores), size=SAMPLE)]
        edges.append(
            np.sort(scores)[np.linspace(0, len(scores) - 1, (bins - 1) // 2).round().astype(int)]
        )
    return np.unique(np.concatenate(edges))[::-1]


def _tails(maps, masks, edges):
    """(3, B, K): how many normal and anomalous pixels, and what share of regions, score as high as an edge or higher."""
    tails = np.empty((3, len(maps), len(edges)))
    weights = np.split(region_weights(masks), np.cumsum(masks.sum(axis=(1, 2)))[:-1])
    for i, (scores, mask, weight) in enumerate(zip(maps, masks, weights)):
        normal, anomalous = np.sort(scores[~mask]), scores[mask]
        order = np.argsort(anomalous)
        found = len(anomalous) - np.searchsorted(anomalous[order], edges)
        covered = np.concatenate([[0], np.cumsum(weight[order[::-1]])])[found]
        tails[:, i] = len(normal) - np.searchsorted(normal, edges), found, covered
    return tails


def _binned_metrics(counts, tails, limit):
    """(4, n) AUROC, AP, F1-max and AU-PRO when image b counts counts[:, b] times."""
    atleast, found, covered = counts.astype(float) @ tails  # (n, K) each
    start, stop = _false_alarms(atleast)
    within = ~(start >= limit).all(axis=0)  # what lies beyond the limit in all draws adds nothing
    steps = _steps(covered)[:, within]
    pro = area_below(start[:, within], stop[:, within], steps, limit) / limit
    return np.stack([*_drawn_metrics(atleast, found), pro])


def _drawn_metrics(atleast, found):
    """(3, n) AUROC, AP and F1-max of n draws; see `metrics` for their definitions.

    atleast, found : (n, K) normal and anomalous items that score as high as a threshold or higher
    """
    hits, (start, stop) = _steps(found), _false_alarms(atleast)
    area = 1 - np.einsum("ij,ij->i", hits, start + stop) / 2
    ap = np.einsum("ij,ij->i", hits, found / np.maximum(found + atleast, 1))
    f1 = np.max(2 * found / (found[:, -1:] + found + atleast), axis=1)
    return np.stack([area, ap, f1])


def _steps(found):
    """(n, K) what each threshold adds, as a share of all."""
    return np.diff(found, axis=1, prepend=0) / found[:, -1:]


def _false_alarms(atleast):
    """(n, K) twice: false-positive rates just above each threshold and at it."""
    with np.errstate(invalid="ignore"):  # a draw without normal pixels is NaN
        stop = atleast / atleast[:, -1:]
    return np.pad(stop[:, :-1], ((0, 0), (1, 0))), stop
