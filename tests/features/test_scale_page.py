"""The numbers of docs/scale.md that can be computed."""

import math
import re
import types

import pytest
from fixtures import pages

from vlmad_utils import features
from vlmad_utils.models.windows import window_indices
from vlmad_utils.store.index import ROWS

PAGE = (pages.ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
N = 150_000
# ViT-B-16-plus-240 at 240 px: what disk_need reads of a model
MODEL = types.SimpleNamespace(grid=(15, 15), dim=640, token_width=896)
ALL = {"blocks": (3, 6, 9, 12, "final"), "windows": (2, 3)}


def need(n, **asked):
    return features.disk_need(MODEL, n, **asked)


def test_bytes_are_those_of_disk_need():
    vv = need(1)  # its image embedding and patches
    winclip = need(1, blocks=("final",), windows=(2, 3), patches=False)
    found = re.search(
        r"takes ([\d.]+) MB per image for all methods .* and ([\d.]+) MB for the V-V stream; "
        r"WinCLIP alone takes ([\d.]+) MB",
        PAGE,
    )
    for said, computed in zip(found.groups(), (need(1, **ALL), vv, winclip), strict=True):
        assert float(said) == pytest.approx(computed / 1e6, abs=0.005)
    total = need(N, **ALL) + need(N)
    assert int(re.search(r"all methods need (\d+) GB", PAGE)[1]) == round(total / 1e9)
    assert int(re.search(r"WinCLIP alone needs (\d+) GB", PAGE)[1]) == round(N * winclip / 1e9)


def test_files_are_at_most_two_thousand():
    """11 kinds: 9 of the plain stream, 2 of the V-V stream; ten small shards of each may stay."""
    assert f"A shard holds {ROWS:,} images" in PAGE
    said = int(re.search(r"at most ([\d,]+) files", PAGE)[1].replace(",", ""))
    assert said == 11 * (math.ceil(N / ROWS) + 10) <= 2000


def test_minutes_follow_from_the_rate_and_the_bytes():
    tokens = sum(
        rows.numel() + len(rows) for rows in (window_indices(MODEL.grid, k) for k in (2, 3))
    )
    assert f"{tokens:,} tokens against 226" in PAGE
    windows = float(re.search(r"N \(1 \+ ([\d.]+) \+ 1\)", PAGE)[1])
    assert windows == round(tokens / 226, 1)
    passes = 1 + windows + 1
    rate = int(re.search(r"r = ([\d,]+) is an estimate", PAGE)[1].replace(",", ""))
    writing = (need(N, **ALL) + need(N)) / 1e9 / 60
    rows = re.findall(r"(?m)^\| (\d+) \| ([\d.]+) min \| ([\d.]+) min \| ([\d.]+) min", PAGE)
    assert len(rows) == 2
    for cards, encoding, written, longer in rows:
        computed = N * passes / (rate * int(cards)) / 60
        assert float(encoding) == pytest.approx(computed, abs=0.05)
        assert float(written) == pytest.approx(writing, abs=0.05)
        assert float(longer) == max(float(encoding), float(written))
    reading = re.search(r"about (\d+) ms of one CPU core, which is ([\d.]+) minutes", PAGE)
    assert float(reading[2]) == pytest.approx(N * int(reading[1]) / 16 / 60_000, abs=0.05)
