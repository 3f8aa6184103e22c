"""The inspection sheet: complete in one file, and no file name can break it."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from vlmad_utils import report

IMAGE = np.full((20, 30, 3), 90, np.uint8)
HEAT = report.heat_over_image(IMAGE, np.eye(4), 0, 1, size=64)


def row(name="a.png", score=0.5, flagged=None):
    return {"name": name, "score": score, "flagged": flagged, "image": IMAGE, "overlay": HEAT}


def sheet(path, *rows, title="Title", note="Note.", **options):
    found = report.contact_sheet_html(path, rows, title, note, **options)
    assert found == path
    return path.read_text(encoding="utf-8")


def test_heat_lies_over_the_grey_image():
    assert HEAT.shape == (64, 64, 3) and HEAT.dtype == np.uint8
    assert HEAT[0, 0].tolist() != HEAT[-1, 0].tolist()
    flat = report.heat_over_image(IMAGE, np.zeros((4, 4)), 0, 0, size=32)  # no range
    assert flat.shape == (32, 32, 3) and np.ptp(flat, axis=(0, 1)).tolist() == [0, 0, 0]
    beyond = report.heat_over_image(IMAGE, np.full((4, 4), 9.0), 0, 1)
    assert (beyond == report.heat_over_image(IMAGE, np.ones((4, 4)), 0, 1)).all()


def test_names_title_and_note_are_escaped(tmp_path):
    rows = [row("<script>alert(1)</script>", 0.9, True), row('a "b" & c', 0.1, False)]
    text = sheet(tmp_path / "new" / "sheet.html", *rows, title="T <1>", note="<b>{note}")
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "a &quot;b&quot; &amp; c" in text
    assert text.count("T &lt;1&gt;") == 2 and "&lt;b&gt;{note}" in text


def test_the_sheet_holds_its_images_and_needs_no_net(tmp_path):
    text = sheet(tmp_path / "sheet.html", row(), row("b.png"), size=48)
    images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert len(images) == 4 and "http" not in text
    for data in images:
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert image.format == "JPEG" and image.size == (48, 48)
    assert text.count('width="24" height="24"') == 4 and "width:52px" in text


@pytest.mark.parametrize("yes, no", [(True, False), (np.True_, np.False_)])
def test_verdicts_are_words_and_a_frame(tmp_path, yes, no):
    text = sheet(tmp_path / "sheet.html", row(score=0.9, flagged=yes), row(flagged=no), row())
    assert text.count(", above the threshold") == text.count(", not above the threshold") == 1
    assert text.count('class="flagged"') == 1 and "score 0.900" in text
    assert "threshold" not in sheet(tmp_path / "sheet.html", row())


def test_a_name_that_is_no_text_is_written_with_a_mark(tmp_path):
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    assert "caf?.png" in sheet(tmp_path / "sheet.html", row(name))
