"""Thresholds from scores of normal images, with the false-alarm rate that they promise."""

import math

import numpy as np


def conformal_threshold(scores, false_alarm=0.05):
    """Threshold from scores of normal images that took no part in anything else (split conformal).

    A further normal image of the same kind scores **above** it with a probability of at most ``false_alarm``, whatever
    the distribution of scores, averaged over the choice of the calibration images.

    Parameters
    ----------
    scores : (n,) scores of normal images, higher is more anomalous; not references, not used to choose anything
    false_alarm : wanted rate, in (0, 1)

    Returns
    -------
    (threshold, guaranteed) : float, and the rate that is guaranteed, at most ``false_alarm``

    Raises
    ------
    ValueError when there are too few images for the rate: at least 1 / false_alarm - 1 are needed.

    Source: Vovk et al., Algorithmic learning in a random world (2005); the ceil((n + 1)(1 - rate)) smallest score.
    """
    scores = np.sort(np.asarray(scores, float))
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise ValueError(f"scores are finite and of shape (n,), found {scores.shape}")
    if not 0 < false_alarm < 1:
        raise ValueError(f"the false-alarm rate lies between 0 and 1, found {false_alarm}")
    n = len(scores)
    rank = math.ceil((n + 1) * (1 - false_alarm) - 1e-9)
    if rank > n:
        raise ValueError(
            f"{n} normal images cannot promise a false-alarm rate of {false_alarm:g}: the smallest is 1 / (n + 1) = "
            f"{1 / (n + 1):.3g}. Give at least {math.ceil(1 / false_alarm - 1 - 1e-9)} images, or accept a larger rate."
        )
    return float(scores[rank - 1]), 1 - rank / (n + 1)
