"""Metrics of detection and segmentation: AUROC, AP, F1-max, AU-PRO, chance levels.

Everything is a function of two arrays of one shape: scores (higher is more anomalous), labels (1 anomalous).
Images have shape (B,), pixels (B, H, W); the same functions serve both. All metrics follow from one table, by
`rank`: for each distinct score of an anomalous item, how many normal items score higher, and how many as high
or higher. It takes a sort of values only: 65 million pixels need seconds and 1 GB, where scikit-learn needs a
minute and 4 GB for the same number. `rank(maps, masks)` may be kept and given to each metric.
Bootstrap intervals are in :mod:`.intervals`.

What cannot be defined (one class only, no region, NaN among the scores) is NaN with `UndefinedMetricWarning`.
"""

import warnings
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from sklearn.exceptions import UndefinedMetricWarning


class Ranking(NamedTuple):
    """Where the anomalous items stand among the normal ones; T distinct anomalous scores, highest first."""

    thresholds: np.ndarray  # (T,) dtype of the scores
    hits: np.ndarray  # (T,) int, anomalous items with this score
    above: np.ndarray  # (T,) int, normal items that score higher
    atleast: np.ndarray  # (T,) int, normal items that score as high or higher
    overlap: (
        np.ndarray | None
    )  # (T,) float64, sum of region weights of these items; None unless asked for
    n_normal: int
    n_anomalous: int
    nan: int  # NaN among the scores; if not 0, the arrays are empty


def rank(scores, labels, regions=False, connectivity=8):
    """The table from which all metrics follow: one sort of normal scores, one of anomalous scores.

    Parameters
    ----------
    scores : (B,) or (B, H, W) any real dtype (float32 is not widened); inf is allowed
    labels : same shape, bool or 0/1
    regions : also weigh each anomalous pixel by `region_weights`, as AU-PRO needs
    connectivity : 8 or 4, of the regions

    Raises
    ------
    ValueError when shapes differ, or labels hold anything but 0 and 1.
    """
    scores, labels = checked(scores, labels)
    nan = int(np.isnan(scores).sum()) if scores.dtype.kind == "f" else 0
    n_anomalous = int(labels.sum())
    n_normal = labels.size - n_anomalous
    if nan:
        return Ranking(*[np.empty(0)] * 5, n_normal, n_anomalous, nan)
    normal = scores[~labels]
    normal.sort()
    if regions:
        thresholds, place, hits = np.unique(scores[labels], return_inverse=True, return_counts=True)
        overlap = np.bincount(
            place, weights=region_weights(labels, connectivity), minlength=len(hits)
        )[::-1]
    else:
        thresholds, hits = np.unique(scores[labels], return_counts=True)
        overlap = None
    thresholds = thresholds[::-1]
    above = n_normal - np.searchsorted(normal, thresholds, side="right")
    atleast = n_normal - np.searchsorted(normal, thresholds, side="left")
    return Ranking(thresholds, hits[::-1], above, atleast, overlap, n_normal, n_anomalous, 0)


def region_weights(masks, connectivity=8):
    """Weights of the anomalous pixels that let every connected region count the same, whatever its size.

    masks : (B, H, W) bool; regions are taken in each image by itself. Returns (P,) float64 in the order of
    ``maps[masks]``, of sum 1 (empty when no pixel is anomalous).
    """
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity is {connectivity}; wanted 4 or 8")
    if masks.ndim != 3:
        raise ValueError(f"masks have shape {masks.shape}; regions need (B, H, W)")
    structure = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    weights, n_regions = [], 0
    for mask in masks[masks.any(axis=(1, 2))]:
        regions, number = ndimage.label(mask, structure)
        inside = regions[mask]
        weights.append(1 / np.bincount(inside)[inside])
        n_regions += number
    return np.concatenate(weights) / n_regions if weights else np.empty(0)


def auroc(scores, labels=None):
    """Area under the ROC curve; ties count one half. (B,) or (B, H, W), or a `Ranking` alone."""
    r = _ranking(scores, labels)
    if _undefined("AUROC", r, anomalous=True, normal=True):
        return float("nan")
    return (
        float(area_below(r.above / r.n_normal, r.atleast / r.n_normal, r.hits, limit=1.0))
        / r.n_anomalous
    )


def average_precision(scores, labels=None):
    """Average precision: sum over distinct thresholds of (step in recall) x precision; no interpolation."""
    r = _ranking(scores, labels)
    if _undefined("AP", r, anomalous=True):
        return float("nan")
    found = np.cumsum(r.hits)
    return float(np.sum(r.hits * (found / (found + r.atleast))) / r.n_anomalous)


def aupr_trapezoid(scores, labels=None):
    """Area under the precision-recall curve by trapezoids from (recall 0, precision 1).

    What the WinCLIP repositories call AUPR. Too kind where scores are tied; prefer `average_precision`.
    """
    r = _ranking(scores, labels)
    if _undefined("AUPR", r, anomalous=True):
        return float("nan")
    found = np.cumsum(r.hits)
    before = (
        found - r.hits
    )  # just above a threshold lie `before` anomalous and `above` normal items
    marked = before + r.above
    precision_before = np.divide(before, marked, out=np.ones(len(found)), where=marked > 0)
    return float(
        np.sum(r.hits * (precision_before + found / (found + r.atleast)) / 2) / r.n_anomalous
    )


def f1max(scores, labels=None):
    """Largest F1 over all thresholds: an oracle, for the threshold is chosen on the test labels."""
    return _f1max(_ranking(scores, labels))[0]


def f1max_threshold(scores, labels=None):
    """The threshold of `f1max` (anomalous means score >= threshold), the highest if several reach it."""
    return _f1max(_ranking(scores, labels))[1]


def aupro(maps, masks=None, limit=0.3, connectivity=8):
    """Area under the per-region-overlap curve, exact: every distinct score is a threshold.

    The curve: false-positive rate over all defect-free pixels, mean over regions of the covered share; from
    (0, 0), linear in between and up to the limit. The area for FPR <= limit is divided by the limit.

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
    area = float(area_below(r.above / r.n_normal, r.atleast / r.n_normal, r.overlap, limit)) / limit
    return min(area, 1.0)  # the weights of the regions sum to 1 only up to rounding


def aupro_200(maps, masks, limit=0.3, steps=200):
    """AU-PRO as many repositories report it, for audits only: **another quantity** than `aupro`.

    Evenly spaced thresholds from the lowest score up, anomalous means score > threshold, only points with
    FPR < limit, their FPR stretched to [0, 1]. An increasing transform of the scores changes it.
    """
    maps, masks = checked(maps, masks)
    fpr = np.empty(0)
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


def evaluate_arrays(image_scores, labels, maps=None, masks=None, limit=0.3):
    """All metrics of one category: image_{auroc, ap, f1max}; with maps pixel_{auroc, ap, f1max} and aupro.

    Parameters
    ----------
    image_scores, labels : (B,) scores and 0/1
    maps, masks : (B, H, W) scores at the size of the masks, and bool or 0/1; both or neither

    Raises
    ------
    ValueError for shapes that do not fit, labels other than 0 and 1, a defect drawn in a normal image.
    """
    r = rank(image_scores, labels)
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
    wrong = np.flatnonzero(masks.any(axis=(1, 2)) & (np.asarray(labels) == 0))
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


def chance(metric, labels=None, limit=0.3):
    """What a constant score gets, the floor to print beside a result.

    metric : "auroc", "ap", "f1max" or "aupro", with or without the prefix image_ or pixel_
    labels : 0/1 of any shape; needed for ap (the prevalence p) and f1max (2p / (1 + p))
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
    prevalence = float(np.mean(labels))
    return prevalence if name == "ap" else 2 * prevalence / (1 + prevalence)


def checked(scores, labels):
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.shape != labels.shape:
        hint = (
            "; upsample the maps to the size of the masks first"
            if scores.ndim == labels.ndim == 3
            else ""
        )
        raise ValueError(
            f"scores have shape {scores.shape}, labels {labels.shape}; wanted the same{hint}"
        )
    if labels.dtype != bool:
        if not ((labels == 0) | (labels == 1)).all():
            raise ValueError(
                f"labels hold {np.unique(labels)[:5].tolist()}; wanted 0 and 1: leave out "
                "unknown images, make masks bool with mask > 0"
            )
        labels = labels.astype(bool)
    return scores, labels


def _ranking(scores, labels, regions=False, connectivity=8):
    if not isinstance(scores, Ranking):
        return rank(scores, labels, regions, connectivity)
    if regions and scores.overlap is None:
        raise ValueError(
            "this ranking has no regions; make it with rank(maps, masks, regions=True)"
        )
    return scores


def _undefined(name, r, anomalous=False, normal=False):
    reason = (
        f"{r.nan} scores are NaN"
        if r.nan
        else "nothing is anomalous"
        if anomalous and not r.n_anomalous
        else "nothing is normal"
        if normal and not r.n_normal
        else ""
    )
    if reason:
        warnings.warn(
            f"{name} is undefined and set to NaN: {reason}", UndefinedMetricWarning, stacklevel=3
        )
    return bool(reason)


def area_below(start, stop, weight, limit):
    # As the threshold passes one score, FPR goes from `start` to `stop` and the curve climbs by `weight` in a
    # straight line: the area up to the limit is a triangle within the ramp and a rectangle behind it.
    width = stop - start
    inside = np.clip(limit - start, 0, width)
    triangle = np.divide(inside**2, 2 * width, out=np.zeros(width.shape), where=width > 0)
    return np.sum(weight * (triangle + np.clip(limit - stop, 0, None)), axis=-1)


def _f1max(r):
    # The best threshold is always the score of an anomalous item: to lower it further only adds false alarms.
    if _undefined("F1-max", r, anomalous=True):
        return float("nan"), float("nan")
    found = np.cumsum(r.hits)
    f1 = 2 * found / (r.n_anomalous + found + r.atleast)
    best = int(np.argmax(f1))
    return float(f1[best]), float(r.thresholds[best])
