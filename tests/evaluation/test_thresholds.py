"""The threshold keeps its promise and says when it cannot."""

import numpy as np
import pytest

from vlmad_utils.evaluation import conformal_threshold


def test_threshold_keeps_its_promise():
    rng, alarms = np.random.default_rng(0), []
    for _ in range(4000):
        threshold, guaranteed = conformal_threshold(rng.exponential(size=39), 0.1)
        alarms.append(rng.exponential() > threshold)
    assert guaranteed == pytest.approx(0.1) and np.mean(alarms) == pytest.approx(0.1, abs=0.02)


def test_threshold_is_the_known_order_statistic():
    assert conformal_threshold(np.arange(9), 0.1) == (8.0, pytest.approx(0.1))  # highest of nine
    assert conformal_threshold(np.arange(19), 0.1)[0] == 17.0
    assert conformal_threshold(np.arange(19), 0.05)[0] == 18.0


def test_p_values_and_threshold_agree():
    rng = np.random.default_rng(0)
    for n, rate in ((7, 0.2), (19, 0.05), (22, 0.1), (50, 0.1)):
        good, new = rng.normal(size=n), rng.normal(size=500)
        threshold, promised = conformal_threshold(good, rate)
        p = (1 + (good[:, None] >= new).sum(axis=0)) / (1 + n)
        assert promised <= rate + 1e-9 and ((new > threshold) == (p <= promised + 1e-9)).all()


def test_a_promise_that_cannot_be_kept_is_an_error():
    with pytest.raises(ValueError, match="Give at least 19"):
        conformal_threshold(np.arange(18), 0.05)
    for bad in (0, 1, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            conformal_threshold(np.arange(30), bad)
    with pytest.raises(ValueError, match="finite"):
        conformal_threshold([0.1, np.nan])
