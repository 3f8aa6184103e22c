"""Bootstrap intervals of the metrics: the range of values that other test images might give.

Images are drawn with replacement, normal and anomalous ones apart. `bootstrap` takes any metric
and computes it for each draw. `image_bootstrap` takes the three image metrics at once,
`pixel_bootstrap` the four pixel metrics, from histograms. `paired` compares two methods on the
same draws.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .draws import (
    auroc_of_draws,
    bin_edges,
    class_rows,
    draw_counts,
    drawn_rows,
    map_tails,
    metrics_of_maps,
    metrics_of_tails,
    score_tails,
)
from .metrics import aupro, auroc, average_precision, f1max
from .ranking import checked, rank

BLOCK = 64  # draws computed at once: 1 MB an array with 2,048 bins
Metric = Callable[[np.ndarray, np.ndarray], float]


class Interval(NamedTuple):
    """Hold a value and its bootstrap interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """Hold a difference of two methods, its bootstrap interval and two-sided p-value."""

    value: float
    low: float
    high: float
    p: float


def bootstrap(
    scores: ArrayLike,
    labels: ArrayLike,
    metric: Metric = auroc,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the percentile interval over images, drawn within the normal and the anomalous ones.

    It shows the luck in the choice of test images, not that of references or of training. Where
    the scores separate the classes without error, AUROC is 1 in every draw and the interval has no
    width: that is not certainty.

    Parameters
    ----------
    scores, labels : (B,), or (B, H, W) for pixels (any anomalous pixel makes an image anomalous)
    metric : function of (scores, labels); `auroc` of images is computed for all draws at once
    n : number of draws
    seed : of the draws
    level : share of the draws inside the interval

    Returns
    -------
    Interval, NaN when the metric is undefined; draws in which it is undefined are left out
    """
    scores, labels = checked(scores, labels)
    value = float(metric(scores, labels))
    if np.isnan(value):
        return Interval(value, value, value)
    return _interval(value, _draws(scores, labels, metric, n, np.random.default_rng(seed)), level)


def bootstrap_mean(
    groups: Mapping[str, tuple[ArrayLike, ArrayLike]],
    metric: Metric = auroc,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    over_categories: bool = False,
) -> Interval:
    """Return the interval of the macro mean over categories.

    Images are drawn within each category as in `bootstrap`. The order of the groups does not
    matter.

    Parameters
    ----------
    groups : category -> (scores, labels)
    metric, n, seed, level : as in `bootstrap`
    over_categories : also draw the categories, as a sample of all possible ones (a wider
        interval); else they are taken as given, as in a benchmark
    """
    if not groups:
        raise ValueError("no category was given; wanted a dict of category -> (scores, labels)")
    rng = np.random.default_rng(seed)
    arrays = [checked(*groups[name]) for name in sorted(groups)]
    value = float(np.mean([metric(*pair) for pair in arrays]))
    if np.isnan(value):
        return Interval(value, value, value)
    draws = np.stack([_draws(*pair, metric, n, rng) for pair in arrays])
    if over_categories:
        draws = np.take_along_axis(draws, rng.integers(len(draws), size=draws.shape), axis=0)
    return _interval(value, draws.mean(axis=0), level)


def paired(
    groups: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    n: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Return image AUROC of one method minus that of another, as macro mean over categories.

    Both methods find the same images hard, so two intervals that overlap may hide a sure
    difference. Here both see the same draws of images, drawn as in `bootstrap`.

    Parameters
    ----------
    groups : category -> (scores a, scores b, labels (B,)); scores are (B,), or (S, B) from S draws
        of references, whose AUROCs are averaged: the luck of the references is then neither in the
        interval nor in p
    n : number of draws; p is at least 2 / (n + 1), which matters when it is corrected for many
        comparisons
    seed : of the draws
    level : share of the draws inside the interval

    Returns
    -------
    Difference, NaN when a category lacks normal or anomalous images. p is twice the share of draws
    on the rarer side of 0 (a draw on 0 counts for both), so it is below 1 - level about where the
    interval leaves 0 out; with few images (10 of a class) it is too small rather than too large.
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
        normal, anomalous = (draw_counts(size, n, rng) for size in gap.shape)
        draws += ((normal @ gap) * anomalous).sum(axis=1) / (gap.size * len(gaps))
    draws = draws.round(12)  # else rounding would leave 0 on one side
    side = min((draws <= 0).sum(), (draws >= 0).sum())
    return Difference(*_interval(value, draws, level), min(1.0, 2 * (side + 1) / (n + 1)))


def image_bootstrap(
    scores: ArrayLike, labels: ArrayLike, n: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """Return the intervals of image_{auroc, ap, f1max}, drawn as in `bootstrap`.

    Memory and time grow with the number of images: 20,000 images need 80 MB and one second.

    Parameters
    ----------
    scores, labels : (B,) scores and 0/1
    n : number of draws
    seed : of the draws
    level : share of the draws inside the interval

    Returns
    -------
    name -> Interval, NaN when the metric is undefined
    """
    scores, labels = checked(scores, labels)
    metrics = {"image_auroc": auroc, "image_ap": average_precision, "image_f1max": f1max}
    if np.isnan(scores).any() or labels.all() or not labels.any():
        return {
            name: bootstrap(scores, labels, metric, n, seed, level)
            for name, metric in metrics.items()
        }
    normal, anomalous = (scores[rows] for rows in class_rows(labels))
    thresholds = np.unique(scores)[::-1]  # each distinct score, so nothing is lost
    at_once = int(np.clip(2**20 // len(scores), 1, BLOCK))
    sizes = [min(at_once, n - begun) for begun in range(0, n, at_once)]
    rng, later = np.random.default_rng(seed), np.random.default_rng(seed)
    for size in sizes:  # all normal images are drawn before the first anomalous one
        later.integers(len(normal), size=(size, len(normal)))
    tails = zip(
        score_tails(normal, thresholds, sizes, rng),
        score_tails(anomalous, thresholds, sizes, later),
    )
    draws = np.concatenate([metrics_of_tails(*pair) for pair in tails], axis=1)
    return {
        name: _interval(metric(scores, labels), drawn, level)
        for (name, metric), drawn in zip(metrics.items(), draws)
    }


def pixel_bootstrap(
    maps: ArrayLike,
    masks: ArrayLike,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    limit: float = 0.3,
    bins: int = 2048,
) -> dict[str, Interval]:
    """Return the intervals of pixel_{auroc, ap, f1max} and aupro over images, within seconds.

    The values are exact. The draws (those of `bootstrap` with the same seed) see the scores in
    bins, half of them between quantiles of all pixels, half between quantiles of the anomalous
    ones: a draw is then a sum of histograms of images. 2,048 bins moved no metric by 0.001 in
    tests; where each distinct score has its own bin, nothing is lost.

    Parameters
    ----------
    maps : (B, H, W) scores at the size of the masks
    masks : (B, H, W) bool or 0/1, normal images included (all zero)
    n : number of draws
    seed : of the draws
    level : share of the draws inside the interval
    limit : of AU-PRO, in (0, 1]
    bins : largest number of bins

    Returns
    -------
    name -> Interval, NaN when the metric is undefined. Draws without a normal pixel, in which it
    is undefined, are left out.
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
    rows = drawn_rows(class_rows(masks), n, rng)
    counts = np.stack([np.bincount(chosen, minlength=len(maps)) for chosen in rows])
    tails = map_tails(maps, masks, bin_edges(maps, masks, bins, rng))
    blocks = [metrics_of_maps(counts[i : i + BLOCK], tails, limit) for i in range(0, n, BLOCK)]
    return {
        name: _interval(value, drawn, level)
        for (name, value), drawn in zip(values.items(), np.concatenate(blocks, axis=1))
    }


def _draws(
    scores: np.ndarray, labels: np.ndarray, metric: Metric, n: int, rng: np.random.Generator
) -> np.ndarray:
    """(n,) values of the metric on images drawn within each class."""
    normal, anomalous = groups = class_rows(labels)
    if metric is auroc and labels.ndim == 1:
        return auroc_of_draws(np.sort(scores[normal]), scores[anomalous], n, rng)
    return np.array([metric(scores[rows], labels[rows]) for rows in drawn_rows(groups, n, rng)])


def _gap(a: ArrayLike, b: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """(Q, P): how much more often a than b orders each normal and anomalous image correctly."""
    wins = []
    for scores in (a, b):
        scores = np.atleast_2d(np.asarray(scores, float))
        if np.isnan(scores).any():
            raise ValueError("scores hold NaN, which is neither above nor below another score")
        for row in scores:
            checked(row, labels)
        positive = np.asarray(labels).astype(bool)
        normal, anomalous = scores[:, ~positive, None], scores[:, None, positive]
        wins.append(((normal < anomalous) + (normal == anomalous) / 2).mean(axis=0))
    return wins[0] - wins[1]


def _interval(value: float, draws: np.ndarray, level: float) -> Interval:
    """Percentiles of the defined draws, rounded since sums differ in the last bit between runs."""
    draws = draws[~np.isnan(draws)].round(12)
    if not len(draws):
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Interval(value, low, high)
