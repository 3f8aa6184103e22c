import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from vlmad_utils import paths, report
from vlmad_utils.report import style

plt.switch_backend("Agg")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
MAPS = {"WinCLIP": RNG.random((2, 4, 6)), "memory bank": RNG.random((2, 8, 12), dtype=np.float32)}
MASKS = np.zeros((2, 32, 48), bool)
MASKS[0, 20:, 30:] = True  # the second image is normal
GROUPS = {"cookie": (RNG.random(9), np.arange(9) % 2), "pcb": (RNG.random(5), np.zeros(5, int))}
ROWS = pd.DataFrame(
    [
        ("cookie", "WinCLIP", "image AUROC", 0.7, 0.6, 0.8),
        ("cookie", "memory bank", "image AUROC", 0.95, 0.85, 1),
        ("pcb", "memory bank", "image AUROC", 0.4, 0.3, 0.5),
    ],
    columns=["category", "method", "metric", "value", "low", "high"],
)
FIGURES = {
    "overlay": lambda: report.overlay(
        IMAGES, MAPS, MASKS, labels=["scratch", "good"], licence="MIT"
    ),
    "sheet": lambda: report.contact_sheet(
        [IMAGES[0], IMAGES[1][:20]], ["a", "b\nc"], [MASKS[0], None]
    ),
    "strip": lambda: report.score_strip(GROUPS, {"cookie": 0.5}, {"pcb": "AUROC undefined"}),
    "bars": lambda: report.metric_bars(ROWS, chance={"cookie": 0.5}),
}


@pytest.fixture(autouse=True)
def nothing_left_open():
    plt.close("all")
    yield
    plt.close("all")


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_byte_stable(name, tmp_path):
    for out in ("once", "twice"):
        fig = report.save_figure(FIGURES[name](), name, "A caption.", out=tmp_path / out)
        assert not plt.get_fignums(), "a saved figure is closed"
        assert fig.get_axes()
    for kind in ("pdf", "png"):
        first = (tmp_path / "once" / f"{name}.{kind}").read_bytes()
        assert first == (tmp_path / "twice" / f"{name}.{kind}").read_bytes()
        assert b"CreationDate" not in first and b"matplotlib" not in first.lower()
    written = {p.name for p in (tmp_path / "once").iterdir()}
    assert written == {"captions.yaml", f"{name}.pdf", f"{name}.png"}


def test_another_process_and_another_style_give_the_same_bytes(tmp_path):
    code = (
        "import sys, matplotlib; matplotlib.use('Agg'); matplotlib.rcParams['font.size'] = 20\n"
        "import numpy as np; from vlmad_utils import report\n"
        "groups = {'a': (np.arange(6.0), np.arange(6) % 2)}\n"
        "report.save_figure(report.score_strip(groups), 'strip', 'A caption.', out=sys.argv[1])\n"
    )
    root = Path(report.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "other")], check=True, cwd=root)
    groups = {"a": (np.arange(6.0), np.arange(6) % 2)}
    report.save_figure(report.score_strip(groups), "strip", "A caption.", out=tmp_path)
    for file in ("strip.pdf", "strip.png"):
        assert (tmp_path / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_print_sizes():
    widths = {name: make().get_figwidth() for name, make in FIGURES.items()}
    page, column = report.PAGE, report.COLUMN
    assert widths == {"overlay": page, "sheet": page, "strip": column, "bars": column}


def test_files_have_print_resolution(tmp_path):
    report.save_figure(report.score_strip(GROUPS), "strip", "A caption.", out=tmp_path)
    with Image.open(tmp_path / "strip.png") as image:
        assert image.width == round(report.COLUMN * 200)
        assert image.info["dpi"][0] == pytest.approx(200, abs=0.1)


def test_style_is_found_and_does_not_leak():
    before = plt.rcParams["axes.spines.top"], plt.rcParams["font.size"]
    FIGURES["bars"]()
    assert (plt.rcParams["axes.spines.top"], plt.rcParams["font.size"]) == before
    with plt.style.context(report.STYLE):
        cycle = plt.rcParams["axes.prop_cycle"].by_key()["color"]
        assert plt.rcParams["font.size"] == 8 and not plt.rcParams["axes.spines.top"]
    classes = [report.NORMAL["color"], report.ANOMALOUS["color"]]
    assert ["#" + c.lstrip("#") for c in cycle] == classes + report.METHODS[:-1]


def test_captions_are_added_updated_and_sorted(tmp_path):
    def one():
        return plt.figure(figsize=(0.5, 0.5))

    report.save_figure(one(), "b", "Old.", out=tmp_path)
    report.save_figure(one(), "c", "Third.", out=tmp_path)
    extra = {"notebook": "00_start_here", "licence": "MIT"}
    report.save_figure(one(), "a", "Scores of ü images,\n   n = 5.", out=tmp_path, **extra)
    report.save_figure(one(), "b", "New.", out=tmp_path)
    text = (tmp_path / "captions.yaml").read_text(encoding="utf-8")
    captions = yaml.safe_load(text)
    assert list(captions) == ["a", "b", "c"] and "ü" in text
    assert captions["a"] == {"caption": "Scores of ü images, n = 5."} | extra
    assert captions["b"] == {"caption": "New."}
    for kind in ("pdf", "png"):
        assert {p.stem for p in tmp_path.glob(f"*.{kind}")} == set(captions)


def test_pictures_are_saved_with_their_licence_once(tmp_path):
    for licence in (None, "MIT"):
        fig = report.contact_sheet(list(IMAGES), licence=licence)
        low = fig.get_figheight()
        report.save_figure(fig, "sheet", "Pictures.", out=tmp_path, licence="MIT")
        assert [t.get_text() for t in fig.texts] == ["Pictures: MIT"]
        assert fig.get_figheight() - low == pytest.approx(0 if licence else style.FOOT)
    fig = report.save_figure(report.contact_sheet(list(IMAGES)), "sheet", "Pictures.", out=tmp_path)
    assert not fig.texts


def test_all_heat_maps_share_one_colour_range():
    fig = report.overlay(IMAGES, MAPS)
    heat = [i for ax in fig.axes for i in ax.images if i.get_cmap() is report.HEAT]
    everything = np.concatenate([m.ravel() for m in MAPS.values()])
    assert len(heat) == 4
    assert {i.get_clim() for i in heat} == {(everything.min(), everything.max())}
    fixed = report.overlay(IMAGES, MAPS, vmin=0, vmax=2)
    heat = [i for ax in fixed.axes for i in ax.images if i.get_cmap() is report.HEAT]
    assert {i.get_clim() for i in heat} == {(0, 2)}


def test_heat_map_cells_lie_over_their_pixels():
    ax = report.overlay(IMAGES, MAPS).axes[1]
    assert {tuple(i.get_extent()) for i in ax.images} == {(-0.5, 47.5, 31.5, -0.5)}


def test_contour_only_where_there_is_a_defect():
    axes = report.overlay(IMAGES, {"WinCLIP": MAPS["WinCLIP"]}, MASKS).axes
    assert [len(ax.collections) for ax in axes[:4]] == [2, 2, 0, 0]


def test_bars_show_value_method_and_undefined():
    undefined = {"category": "pcb", "value": np.nan, "low": np.nan, "high": np.nan}
    rows = pd.concat([ROWS, ROWS.iloc[:1].assign(**undefined)])
    texts = [t.get_text() for t in report.metric_bars(rows).axes[0].texts]
    assert texts == ["0.70  WinCLIP", "0.95  memory bank", "0.40", "undefined"]
    plain = report.metric_bars(ROWS.drop(columns=["low", "high", "metric"]), chance=0.5).axes[0]
    assert plain.get_xlabel() == "value (dotted: chance)"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: report.overlay(IMAGES / 255, MAPS), "wanted uint8"),
        (lambda: report.overlay(IMAGES[..., 0], MAPS), "wanted uint8"),
        (lambda: report.overlay(IMAGES, {}), "no maps"),
        (lambda: report.overlay(IMAGES, {"a": MAPS["WinCLIP"][:1]}), r"wanted \(2, h, w\)"),
        (lambda: report.overlay(IMAGES, {"a": MAPS["WinCLIP"][0]}), r"wanted \(2, h, w\)"),
        (lambda: report.overlay(IMAGES, {"a": MAPS["WinCLIP"] * np.nan}), "NaN"),
        (lambda: report.overlay(IMAGES, {"a": np.ones((2, 4, 4))}), "vmin below vmax"),
        (lambda: report.overlay(IMAGES, MAPS, MASKS[:1]), "1 masks for 2 images"),
        (lambda: report.overlay(IMAGES, MAPS, MASKS[:, :8]), "mask 0 has shape"),
        (lambda: report.contact_sheet([]), "at least one"),
        (lambda: report.contact_sheet(IMAGES, titles=["a"]), "as many titles"),
        (lambda: report.contact_sheet(IMAGES, masks=[None, MASKS[0].T]), "mask 1 has shape"),
        (lambda: report.score_strip({}), "no category"),
        (lambda: report.metric_bars(ROWS.drop(columns="value")), "no column"),
        (lambda: report.metric_bars(pd.concat([ROWS, ROWS])), "repeat a pair"),
        (lambda: report.metric_bars(ROWS.iloc[:0]), "empty"),
    ],
)
def test_wrong_input_is_an_error_before_anything_is_drawn(make, message):
    with pytest.raises(ValueError, match=message):
        make()
    assert not plt.get_fignums()


def test_wrong_scores_name_the_category():
    with pytest.raises(ValueError, match="'cookie' has scores"):
        report.score_strip({"cookie": (np.zeros(3), np.zeros(4))})


@pytest.mark.parametrize(
    "name, caption, message", [("a/b", "Text.", "letters"), ("a", "  ", "no caption")]
)
def test_a_figure_needs_a_name_and_a_caption(name, caption, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        report.save_figure(report.score_strip(GROUPS), name, caption, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_figures_go_to_the_repository_by_default(tmp_path, monkeypatch):
    assert paths.figures_dir() == Path(__file__).resolve().parents[2] / "figures"
    monkeypatch.setattr(paths, "figures_dir", lambda: tmp_path)
    report.save_figure(report.score_strip(GROUPS), "here", "A caption.")
    assert (tmp_path / "here.pdf").exists()
