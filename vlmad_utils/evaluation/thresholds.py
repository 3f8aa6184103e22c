"""Thresholds from scores of normal images, with the false-alarm rate that they promise."""

import math

import numpy as np
from numpy.typing import ArrayLike


def conformal_threshold(scores: ArrayLike, false_alarm: float = 0.05) -> tuple[float, float]:
    """Return a threshold from scores of normal images that had no other use (split conformal).

    Another normal image of the same kind scores **above** it with a probability of at most
    ``false_alarm``, whatever the distribution of scores, averaged over the choice of the
    calibration images.

    Parameters
    ----------
    scores : (n,) scores of normal images, higher is more anomalous; the images are no references
        and nothing was chosen on them
    false_alarm : highest rate to accept, in (0, 1)

    Returns
    -------
    (threshold, guaranteed) : float, and the rate that is guaranteed, at most ``false_alarm``

    Raises
    ------
    ValueError when there are too few images for the rate: it needs at least 1 / false_alarm - 1.

    Source
    ------
    Vovk et al., Algorithmic learning in a random world (2005): the ceil((n + 1)(1 - rate))
    smallest score.
    """
    scores = np.sort(np.asarray(scores, float))
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise ValueError(f"scores are finite and of shape (n,), found {scores.shape}")
    if not 0 < false_alarm < 1:
        raise ValueError(f"the false-alarm rate lies between 0 and 1, found {false_alarm}")
    n = len(scores)
    rank = math.ceil((n + 1) * (1 - false_alarm) - 1e-9)
    if rank > n:
        needed = math.ceil(1 / false_alarm - 1 - 1e-9)
        raise ValueError(
            f"{n} normal images cannot promise a false-alarm rate of {false_alarm:g}: the smallest "
            f"is 1 / (n + 1) = {1 / (n + 1):.3g}. Give at least {needed} images, or accept a "
            "larger rate."
        )
    return float(scores[rank - 1]), 1 - rank / (n + 1)
