"""The inspection sheet: complete in one file, and no file name can break it."""

import numpy as np

from vlmad_utils import report


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
