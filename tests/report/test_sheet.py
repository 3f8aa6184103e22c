"""Own images: the promise of the threshold, and a sheet that no file name can break."""

import numpy as np
import pytest

from vlmad_utils import evaluation, report


def test_threshold_keeps_its_promise_and_says_when_it_cannot():
    rng, alarms = np.random.default_rng(0), []
    for _ in range(4000):
        threshold, guaranteed = evaluation.conformal_threshold(rng.exponential(size=39), 0.1)
        alarms.append(rng.exponential() > threshold)
    assert guaranteed == pytest.approx(0.1) and np.mean(alarms) == pytest.approx(0.1, abs=0.02)
    assert evaluation.conformal_threshold(np.arange(9), 0.1) == (
        8.0,
        pytest.approx(0.1),
    )  # the highest of nine
    assert evaluation.conformal_threshold(np.arange(19), 0.1)[0] == 17.0
    with pytest.raises(ValueError, match="Give at least 19"):
        evaluation.conformal_threshold(np.arange(18), 0.05)
    assert evaluation.conformal_threshold(np.arange(19), 0.05)[0] == 18.0
    for bad in (0, 1, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            evaluation.conformal_threshold(np.arange(30), bad)
    with pytest.raises(ValueError, match="finite"):
        evaluation.conformal_threshold([0.1, np.nan])


def test_sheet_escapes_names_and_holds_its_pictures(tmp_path):
    image = np.full((20, 30, 3), 90, np.uint8)
    heat = report.heat_over_image(image, np.eye(4), 0, 1, size=64)
    assert (
        heat.shape == (64, 64, 3)
        and heat.dtype == np.uint8
        and heat[0, 0].tolist() != heat[-1, 0].tolist()
    )
    rows = [
        {
            "name": "<script>alert(1)</script>",
            "score": 0.9,
            "flagged": True,
            "image": image,
            "overlay": heat,
        },
        {"name": 'a "b" & c', "score": 0.1, "flagged": False, "image": image, "overlay": heat},
    ]
    text = report.contact_sheet_html(
        tmp_path / "new" / "sheet.html", rows, "T <1>", "note"
    ).read_text(encoding="utf-8")
    assert (
        "<script" not in text
        and "&lt;script&gt;" in text
        and "a &quot;b&quot; &amp; c" in text
        and "T &lt;1&gt;" in text
    )
    assert text.count(", above the threshold") == 1 and text.count(", not above the threshold") == 1
    assert (
        text.count("data:image/jpeg;base64,") == 4
        and text.count('class="flagged"') == 1
        and "http" not in text
    )


def test_sheet_without_threshold_and_with_a_name_that_is_no_text(tmp_path):
    image = np.full((20, 30, 3), 90, np.uint8)
    flat = report.heat_over_image(
        image, np.zeros((4, 4)), 0, 0, size=32
    )  # a constant map has no range
    rows = [
        {
            "name": b"caf\xe9.png".decode("utf-8", "surrogateescape"),
            "score": 0.5,
            "flagged": None,
            "image": image,
            "overlay": flat,
        }
    ]
    text = report.contact_sheet_html(tmp_path / "sheet.html", rows, "T", "note").read_text(
        encoding="utf-8"
    )
    assert "threshold" not in text and "caf?.png" in text and 'class="flagged"' not in text


def test_p_values_and_threshold_agree():
    rng = np.random.default_rng(0)
    for n, rate in ((7, 0.2), (19, 0.05), (22, 0.1), (50, 0.1)):
        good, new = rng.normal(size=n), rng.normal(size=500)
        threshold, promised = evaluation.conformal_threshold(good, rate)
        p = (1 + (good[:, None] >= new).sum(axis=0)) / (1 + n)
        assert promised <= rate + 1e-9 and ((new > threshold) == (p <= promised + 1e-9)).all()
