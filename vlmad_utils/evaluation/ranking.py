"""One table from which all metrics follow: how many normal items score above each anomalous one.

The table needs a sort of values only: 65 million pixels take seconds and 1 GB, where scikit-learn
takes a minute and 4 GB for the same number. Keep `rank(maps, masks)` and give it to each metric.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage


class Ranking(NamedTuple):
    """Hold where anomalous items rank among normal ones: T distinct scores, highest first."""

    thresholds: np.ndarray  # (T,) dtype of the scores
    hits: np.ndarray  # (T,) int, anomalous items with this score
    above: np.ndarray  # (T,) int, normal items that score higher
    atleast: np.ndarray  # (T,) int, normal items that score as high or higher
    overlap: np.ndarray | None  # (T,) float64, sum of region weights; None unless asked for
    n_normal: int
    n_anomalous: int
    nan: int  # NaN among the scores; if not 0, the arrays are empty


def rank(
    scores: ArrayLike, labels: ArrayLike, regions: bool = False, connectivity: int = 8
) -> Ranking:
    """Return the table of all metrics: sort the normal and the anomalous scores once.

    Parameters
    ----------
    scores : (B,) or (B, H, W), any real dtype (float32 is not widened); inf is allowed
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
        none = np.empty(0)
        return Ranking(none, none, none, none, none, n_normal, n_anomalous, nan)
    normal = scores[~labels]
    normal.sort()
    overlap = None
    if regions:
        thresholds, place, hits = np.unique(scores[labels], return_inverse=True, return_counts=True)
        weights = region_weights(labels, connectivity)
        overlap = np.bincount(place, weights=weights, minlength=len(hits))[::-1]
    else:
        thresholds, hits = np.unique(scores[labels], return_counts=True)
    thresholds = thresholds[::-1]
    above = n_normal - np.searchsorted(normal, thresholds, side="right")
    atleast = n_normal - np.searchsorted(normal, thresholds, side="left")
    return Ranking(thresholds, hits[::-1], above, atleast, overlap, n_normal, n_anomalous, 0)


def region_weights(masks: np.ndarray, connectivity: int = 8) -> np.ndarray:
    """Return weights of anomalous pixels: every connected region has the same sum of weights.

    Parameters
    ----------
    masks : (B, H, W) bool; regions do not reach from one image to another
    connectivity : 8 or 4

    Returns
    -------
    (P,) float64 in the order of ``maps[masks]``, of sum 1; empty when no pixel is anomalous
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


def checked(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and labels (bool) as arrays of one shape.

    Raises
    ------
    ValueError when shapes differ, or labels hold anything but 0 and 1.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.shape != labels.shape:
        both_maps = scores.ndim == labels.ndim == 3
        hint = "; upsample the maps to the size of the masks first" if both_maps else ""
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
