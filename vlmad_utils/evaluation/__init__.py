"""Metrics, chance levels, intervals, paired differences, thresholds: functions of two arrays."""

from .intervals import (
    Difference,
    Interval,
    bootstrap,
    bootstrap_mean,
    image_bootstrap,
    paired,
    pixel_bootstrap,
)
from .metrics import (
    aupr_trapezoid,
    aupro,
    aupro_200,
    auroc,
    average_precision,
    chance,
    evaluate_arrays,
    f1max,
    f1max_threshold,
)
from .ranking import Ranking, rank, region_weights
from .thresholds import conformal_threshold

__all__ = [
    "Difference",
    "Interval",
    "Ranking",
    "aupr_trapezoid",
    "aupro",
    "aupro_200",
    "auroc",
    "average_precision",
    "bootstrap",
    "bootstrap_mean",
    "chance",
    "conformal_threshold",
    "evaluate_arrays",
    "f1max",
    "f1max_threshold",
    "image_bootstrap",
    "paired",
    "pixel_bootstrap",
    "rank",
    "region_weights",
]
