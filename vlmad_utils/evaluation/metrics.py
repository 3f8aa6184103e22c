"""Metrics of detection and segmentation: AUROC, AP, F1-max, AU-PRO, chance levels.

Each is a function of two arrays of one shape: scores (higher is more anomalous) and labels
(1 is anomalous). Images have shape (B,), pixels (B, H, W); the same functions serve both. Instead
of two arrays they take one `Ranking`, so that several metrics share one sort.

A metric that is not defined (one class only, no region, NaN among the scores) is NaN, with
`UndefinedMetricWarning`.
"""

import warnings

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import UndefinedMetricWarning

from .ranking import Ranking, checked, rank, region_weights


def auroc(scores: ArrayLike | Ranking, labels: ArrayLike | None = None) -> float:
    """Return the area under the ROC curve; ties count one half."""
    r = _ranking(scores, labels)
    if _undefined("AUROC", r, anomalous=True, normal=True):
        return float("nan")
    area = area_below(r.above / r.n_normal, r.atleast / r.n_normal, r.hits, limit=1.0)
    return float(area) / r.n_anomalous


def average_precision(scores: ArrayLike | Ranking, labels: ArrayLike | None = None) -> float:
    """Return the sum over distinct thresholds of (step in recall) x precision, not interpolated."""
    r = _ranking(scores, labels)
    if _undefined("AP", r, anomalous=True):
        return float("nan")
    found = np.cumsum(r.hits)
    return float(np.sum(r.hits * (found / (found + r.atleast))) / r.n_anomalous)


def aupr_trapezoid(scores: ArrayLike | Ranking, labels: ArrayLike | None = None) -> float:
    """Return the area under the precision-recall curve by trapezoids from (recall 0, precision 1).

    The WinCLIP repositories call this AUPR. It is too high where scores are tied; prefer
    `average_precision`.
    """
    r = _ranking(scores, labels)
    if _undefined("AUPR", r, anomalous=True):
        return float("nan")
    found = np.cumsum(r.hits)
    before = found - r.hits  # anomalous items above a threshold, as `above` are normal ones
    marked = before + r.above
    precision_before = np.divide(before, marked, out=np.ones(len(found)), where=marked > 0)
    precisions = precision_before + found / (found + r.atleast)
    return float(np.sum(r.hits * precisions / 2) / r.n_anomalous)


def f1max(scores: ArrayLike | Ranking, labels: ArrayLike | None = None) -> float:
    """Return the largest F1 over all thresholds: an oracle, since test labels choose it."""
    return _f1max(_ranking(scores, labels))[0]


def f1max_threshold(scores: ArrayLike | Ranking, labels: ArrayLike | None = None) -> float:
    """Return the threshold of `f1max` (score >= threshold is anomalous), the highest of equals."""
    return _f1max(_ranking(scores, labels))[1]


def aupro(
    maps: ArrayLike | Ranking,
    masks: ArrayLike | None = None,
    limit: float = 0.3,
    connectivity: int = 8,
) -> float:
    """Return the exact area under the per-region-overlap curve: each score is a threshold.

    The curve has the false-positive rate over all defect-free pixels on one axis, the mean over
    regions of the covered share on the other. It begins at (0, 0) and is linear in between and up
    to the limit. The area for FPR <= limit is divided by the limit.

    Parameters
    ----------
    maps : (B, H, W) scores, or a `Ranking` made with ``regions=True``
    masks : (B, H, W) bool or 0/1, normal images included (all zero)
    limit : largest false-positive rate, in (0, 1]
    connectivity : 8 as in the reference script of MVTec; 4 only for comparison

    Source
    ------
    Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 129 (2021), per-region overlap.
    """
    if not 0 < limit <= 1:
        raise ValueError(f"limit is {limit}; wanted a false-positive rate in (0, 1]")
    r = _ranking(maps, masks, regions=True, connectivity=connectivity)
    if _undefined("AU-PRO", r, anomalous=True, normal=True):
        return float("nan")
    assert r.overlap is not None
    area = float(area_below(r.above / r.n_normal, r.atleast / r.n_normal, r.overlap, limit)) / limit
    return min(area, 1.0)  # the weights of the regions sum to 1 only up to rounding


def aupro_200(maps: ArrayLike, masks: ArrayLike, limit: float = 0.3, steps: int = 200) -> float:
    """Return AU-PRO as many repositories report it: **not the quantity** of `aupro`. For audits.

    Thresholds are evenly spaced from the lowest score up, and score > threshold is anomalous. Only
    points with FPR < limit count, with their FPR stretched to [0, 1]. An increasing transform of
    the scores changes the result.
    """
    maps, masks = checked(maps, masks)
    fpr = pro = np.empty(0)
    if masks.any() and not masks.all() and 0 < np.ptp(maps) < np.inf:  # false with NaN, too
        normal, anomalous, weights = np.sort(maps[~masks]), maps[masks], region_weights(masks)
        order = np.argsort(anomalous)
        missed = np.concatenate([[0], np.cumsum(weights[order])])  # by the n lowest scores
        thresholds = np.arange(maps.min(), maps.max(), np.ptp(maps) / steps)
        fpr = 1 - np.searchsorted(normal, thresholds, side="right") / len(normal)
        pro = 1 - missed[np.searchsorted(anomalous[order], thresholds, side="right")]
        fpr, pro = fpr[fpr < limit], pro[fpr < limit]
    if len(fpr) < 2 or fpr.max() == fpr.min():
        warnings.warn(
            f"AU-PRO of {steps} thresholds is undefined and set to NaN: fewer than two have a "
            f"distinct FPR < {limit}",
            UndefinedMetricWarning,
            stacklevel=2,
        )
        return float("nan")
    return float(np.trapezoid(pro[::-1], (fpr[::-1] - fpr.min()) / (fpr.max() - fpr.min())))


def evaluate_arrays(
    image_scores: ArrayLike,
    labels: ArrayLike,
    maps: ArrayLike | None = None,
    masks: ArrayLike | None = None,
    limit: float = 0.3,
) -> dict[str, float]:
    """Return all metrics of one category by name.

    Parameters
    ----------
    image_scores, labels : (B,) scores and 0/1
    maps, masks : (B, H, W) scores at the size of the masks, and bool or 0/1; both or neither
    limit : of AU-PRO, in (0, 1]

    Returns
    -------
    image_{auroc, ap, f1max}; with maps also pixel_{auroc, ap, f1max} and aupro

    Raises
    ------
    ValueError for shapes that do not fit, labels other than 0 and 1, a defect drawn in a normal
    image.
    """
    labels, r = np.asarray(labels), rank(image_scores, labels)
    result = {"image_auroc": auroc(r), "image_ap": average_precision(r), "image_f1max": f1max(r)}
    if maps is None and masks is None:
        return result
    if maps is None or masks is None:
        raise ValueError(f"{'maps' if maps is None else 'masks'} are missing; give both or neither")
    maps, masks = checked(maps, masks)
    if maps.ndim != 3 or len(maps) != len(labels):
        raise ValueError(
            f"maps have shape {maps.shape}; wanted ({len(labels)}, H, W) as there are labels"
        )
    wrong = np.flatnonzero(masks.any(axis=(1, 2)) & (labels == 0))
    if len(wrong):
        raise ValueError(
            f"images {wrong[:5].tolist()} are labelled normal but their masks show a defect"
        )
    r = rank(maps, masks, regions=True)
    return result | {
        "pixel_auroc": auroc(r),
        "pixel_ap": average_precision(r),
        "pixel_f1max": f1max(r),
        "aupro": aupro(r, limit=limit),
    }


def chance(metric: str, labels: ArrayLike | None = None, limit: float = 0.3) -> float:
    """Return what a constant score gets: the level to print next to a result.

    Parameters
    ----------
    metric : "auroc", "ap", "f1max" or "aupro", with or without the prefix image_ or pixel_
    labels : 0/1 of any shape; needed for ap (the prevalence p) and f1max (2p / (1 + p))
    limit : of AU-PRO, in (0, 1]
    """
    name = metric.removeprefix("image_").removeprefix("pixel_")
    if name == "auroc":
        return 0.5
    if name == "aupro":
        return limit / 2
    if name not in ("ap", "f1max"):
        raise ValueError(
            f"no chance level is known for {metric!r}; wanted auroc, ap, f1max or aupro"
        )
    if labels is None:
        raise ValueError(f"the chance level of {metric} depends on the prevalence; give labels")
    prevalence = float(np.asarray(labels).mean())
    return prevalence if name == "ap" else 2 * prevalence / (1 + prevalence)


def area_below(
    start: np.ndarray, stop: np.ndarray, weight: np.ndarray, limit: float
) -> np.ndarray | np.float64:
    """Return the area below a curve of straight lines for FPR <= limit, over the last axis.

    As the threshold passes one score, FPR goes from ``start`` to ``stop`` and the curve climbs by
    ``weight``: the area up to the limit is a triangle within the ramp and a rectangle behind it.
    """
    width = stop - start
    inside = np.clip(limit - start, 0, width)
    triangle = np.divide(inside**2, 2 * width, out=np.zeros(width.shape), where=width > 0)
    return np.sum(weight * (triangle + np.clip(limit - stop, 0, None)), axis=-1)


def _ranking(
    scores: ArrayLike | Ranking,
    labels: ArrayLike | None,
    regions: bool = False,
    connectivity: int = 8,
) -> Ranking:
    if not isinstance(scores, Ranking):
        if labels is None:
            raise ValueError("labels are missing; give scores and labels, or one Ranking")
        return rank(scores, labels, regions, connectivity)
    if regions and scores.overlap is None:
        raise ValueError(
            "this ranking has no regions; make it with rank(maps, masks, regions=True)"
        )
    return scores


def _undefined(name: str, r: Ranking, anomalous: bool = False, normal: bool = False) -> bool:
    """Return whether a metric that needs these classes is undefined; warn the caller's caller."""
    if r.nan:
        reason = f"{r.nan} scores are NaN"
    elif anomalous and not r.n_anomalous:
        reason = "nothing is anomalous"
    elif normal and not r.n_normal:
        reason = "nothing is normal"
    else:
        return False
    message = f"{name} is undefined and set to NaN: {reason}"
    warnings.warn(message, UndefinedMetricWarning, stacklevel=3)
    return True


def _f1max(r: Ranking) -> tuple[float, float]:
    """Return F1-max and its threshold.

    The best threshold is always the score of an anomalous item: a lower one only adds false alarms.
    """
    if _undefined("F1-max", r, anomalous=True):
        return float("nan"), float("nan")
    found = np.cumsum(r.hits)
    f1 = 2 * found / (r.n_anomalous + found + r.atleast)
    best = int(np.argmax(f1))
    return float(f1[best]), float(r.thresholds[best])
