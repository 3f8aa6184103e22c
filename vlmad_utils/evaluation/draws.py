"""The draws of the bootstrap: which images a draw holds, and the metrics of many draws at once.

A draw changes only how often each image counts, so ranks of all draws are cumulative sums. K is
the number of thresholds (distinct scores, or edges of bins), highest first.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from .metrics import area_below
from .ranking import region_weights

SAMPLE = 2**20  # pixels from which quantiles are taken


def class_rows(labels: np.ndarray) -> list[np.ndarray]:
    """Return the indices of the normal and of the anomalous images.

    labels : (B,) bool, or (B, H, W), where any anomalous pixel makes an image anomalous
    """
    anomalous = labels.reshape(len(labels), -1).any(axis=1)
    return [np.flatnonzero(~anomalous), np.flatnonzero(anomalous)]


def drawn_rows(
    groups: Iterable[np.ndarray], n: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield n times as many indices of each group as it has, drawn with replacement."""
    for _ in range(n):
        yield np.concatenate([g[rng.integers(len(g), size=len(g))] for g in groups if len(g)])


def draw_counts(size: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return (n, size) int: how often each of ``size`` images is in each of n draws of as many."""
    drawn = rng.integers(size, size=(n, size)) + np.arange(n)[:, None] * size
    return np.bincount(drawn.ravel(), minlength=n * size).reshape(n, size)


def auroc_of_draws(
    normal: np.ndarray, anomalous: np.ndarray, n: int, rng: np.random.Generator
) -> np.ndarray:
    """Return (n,) AUROC of draws from normal scores (Q,), sorted, and anomalous scores (P,)."""
    counts = draw_counts(len(normal), n, rng)
    below = np.concatenate([np.zeros((n, 1), int), np.cumsum(counts, axis=1)], axis=1)
    lower = np.searchsorted(normal, anomalous, side="left")
    upper = np.searchsorted(normal, anomalous, side="right")
    wins = (below[:, lower] + below[:, upper]) * draw_counts(len(anomalous), n, rng)
    return wins.sum(axis=1) / (2 * len(normal) * len(anomalous))


def score_tails(
    scores: np.ndarray, thresholds: np.ndarray, sizes: Iterable[int], rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield (size, K) float64 for each size: how many drawn images score as high as a threshold.

    scores : (B,) of the images of one class; thresholds : (K,)
    """
    order = np.argsort(scores)
    reached = len(scores) - np.searchsorted(scores, thresholds, sorter=order)
    for size in sizes:
        seen = np.zeros((size, len(scores) + 1))
        np.cumsum(draw_counts(len(scores), size, rng)[:, order[::-1]], axis=1, out=seen[:, 1:])
        yield np.take(seen, reached, axis=1)


def bin_edges(
    maps: np.ndarray, masks: np.ndarray, bins: int, rng: np.random.Generator
) -> np.ndarray:
    """Return (K,) lower ends of the bins, highest first; all are scores that occur.

    Half of them are quantiles of all pixels, half are quantiles of the anomalous ones. The last is
    the lowest score.
    """
    edges = [np.array([maps.min()])]
    for scores in (maps.ravel(), maps[masks]):
        if len(scores) > SAMPLE:
            scores = scores[rng.integers(len(scores), size=SAMPLE)]
        places = np.linspace(0, len(scores) - 1, (bins - 1) // 2).round().astype(int)
        edges.append(np.sort(scores)[places])
    return np.unique(np.concatenate(edges))[::-1]


def map_tails(maps: np.ndarray, masks: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return (3, B, K): what scores as high as an edge or higher, in each image.

    Rows are the number of normal pixels, the number of anomalous pixels, the share of regions.
    """
    tails = np.empty((3, len(maps), len(edges)))
    weights = np.split(region_weights(masks), np.cumsum(masks.sum(axis=(1, 2)))[:-1])
    for i, (scores, mask, weight) in enumerate(zip(maps, masks, weights)):
        normal, anomalous = np.sort(scores[~mask]), scores[mask]
        order = np.argsort(anomalous)
        found = len(anomalous) - np.searchsorted(anomalous[order], edges)
        covered = np.concatenate([[0], np.cumsum(weight[order[::-1]])])[found]
        tails[:, i] = len(normal) - np.searchsorted(normal, edges), found, covered
    return tails


def metrics_of_maps(counts: np.ndarray, tails: np.ndarray, limit: float) -> np.ndarray:
    """Return (4, n) AUROC, AP, F1-max and AU-PRO of n draws.

    counts : (n, B) int, how often a draw holds an image; tails : of `map_tails`; limit : of AU-PRO
    """
    atleast, found, covered = counts.astype(float) @ tails  # (n, K) each
    start, stop = _false_alarms(atleast)
    within = ~(start >= limit).all(axis=0)  # what lies beyond the limit in all draws adds nothing
    steps = _steps(covered)[:, within]
    pro = area_below(start[:, within], stop[:, within], steps, limit) / limit
    return np.stack([*metrics_of_tails(atleast, found), pro])


def metrics_of_tails(atleast: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return (3, n) AUROC, AP and F1-max of n draws; `metrics` defines them.

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
