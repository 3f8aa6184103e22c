"""Figures: heat maps over images, contact sheets, score strips, bars with intervals; saving with a caption.

Each function takes arrays or a frame, draws one figure at print size in the package style (`print.mplstyle`)
and returns it; `save_figure` writes it. Nothing here knows how scores were made. Normal is a blue circle, anomalous
an orange triangle; methods have other colours.
"""

import os
import re
import tempfile
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import yaml
from filelock import FileLock
from matplotlib.colors import ListedColormap

from .. import paths

STYLE = "vlmad_utils.report.print"
COLUMN, PAGE = 3.3, 6.9  # inches: one text column, the whole page
FOOT = 0.15  # inches, for the licence of pictures
NORMAL = {"color": "#0173B2", "marker": "o"}
ANOMALOUS = {"color": "#DE8F05", "marker": "^"}
METHODS = [
    "#029E73",
    "#CC78BC",
    "#56B4E9",
    "#CA9161",
    "#949494",
    "#ECE133",
]  # the rest of the style's cycle
# Low scores are nearly clear, so that the image is seen. The middle of cividis is grey, as the image is.
OPACITY = 0.25 + 0.6 * np.linspace(0, 1, 256) ** 0.7
HEAT = ListedColormap(
    np.c_[plt.get_cmap("inferno")(np.linspace(0.1, 1, 256))[:, :3], OPACITY], name="heat"
)
in_style = plt.style.context(STYLE)  # as a decorator: the style holds while the function runs


@in_style
def overlay(images, maps, masks=None, labels=None, vmin=None, vmax=None, licence=None, width=PAGE):
    """Rows of image | heat map over the image, one per method, with the ground truth as a contour.

    All heat maps share one colour range and one colour bar, so the scores must be on one scale; nothing is
    stretched per image. Maps are interpolated bilinearly for display.

    Parameters
    ----------
    images : (R, H, W, 3) uint8
    maps : dict of method -> (R, h, w) scores that cover the whole image
    masks : (R, H, W) bool or None
    labels : R texts to the left of the rows
    vmin, vmax : colour range; None takes the lowest and highest score of all maps
    licence : of the pictures, written at the foot; width : of the figure, inches

    Raises
    ------
    ValueError when shapes do not fit, a score is not finite, or the colour range is empty.
    """
    images, maps = np.asarray(images), {name: np.asarray(m) for name, m in maps.items()}
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(
            f"images are {images.dtype} of shape {images.shape}; wanted uint8 (R, H, W, 3)"
        )
    if not maps:
        raise ValueError("no maps were given; wanted a dict of method -> (R, h, w)")
    rows, height, across = images.shape[:3]
    for name, m in maps.items():
        if m.ndim != 3 or len(m) != rows:
            raise ValueError(
                f"maps of {name!r} have shape {m.shape}; wanted ({rows}, h, w), one per image"
            )
        if not np.isfinite(m).all():
            raise ValueError(f"maps of {name!r} hold NaN or infinite scores, which have no colour")
    masks = _fitting(masks, images)
    low, high = min(m.min() for m in maps.values()), max(m.max() for m in maps.values())
    vmin, vmax = low if vmin is None else vmin, high if vmax is None else vmax
    if not vmin < vmax:
        raise ValueError(f"the colour range is {vmin} to {vmax}; wanted vmin below vmax")
    side = (width - 0.75) / (1 + len(maps))
    size = (width, rows * side * height / across + 0.3 + (FOOT if licence else 0))
    fig, axes = plt.subplots(rows, 1 + len(maps), figsize=size, squeeze=False)
    place = {"extent": (-0.5, across - 0.5, height - 0.5, -0.5), "interpolation": "bilinear"}
    for i, line in enumerate(axes):
        line[0].imshow(images[i])
        for ax, m in zip(line[1:], maps.values(), strict=True):
            ax.imshow(images[i] @ [0.299, 0.587, 0.114], cmap="gray", vmin=0, vmax=255)
            heat = ax.imshow(m[i], cmap=HEAT, vmin=vmin, vmax=vmax, **place)
        for ax in line:
            _picture(ax, masks[i])
        if labels is not None:
            line[0].set_ylabel(labels[i])
    for ax, title in zip(axes[0], ["image", *maps], strict=True):
        ax.set_title(title)
    beyond = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[
        low < vmin, high > vmax
    ]
    bar = fig.colorbar(heat, ax=axes, aspect=12 * rows, fraction=0.05, pad=0.01, extend=beyond)
    bar.set_label("anomaly score, one range for all" if rows > 1 else "anomaly score")
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(True)  # PDF viewers draw seams between see-through patches
    _foot(fig, licence)
    return fig


@in_style
def contact_sheet(images, titles=None, masks=None, columns=6, licence=None, width=PAGE):
    """A sheet of pictures, each with its title above and its mask as a contour.

    images : list of (H, W, 3) uint8, sizes may differ; titles : as many texts; masks : as many (H, W) bool or
    None; columns : pictures in a row; licence, width : as in `overlay`
    """
    if not len(images) or (titles is not None and len(titles) != len(images)):
        raise ValueError(f"there are {len(images)} images; wanted at least one, and as many titles")
    masks = _fitting(masks, images)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    shape = np.median([image.shape[0] / image.shape[1] for image in images])
    text = (
        0.04
        if titles is None
        else 0.06 + 0.12 * (1 + max(str(title).count("\n") for title in titles))
    )
    size = (width, rows * (width / columns * shape + text) + (FOOT if licence else 0))
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for i, ax in enumerate(axes.flat):
        if i >= len(images):
            ax.set_axis_off()
            continue
        ax.imshow(images[i])
        _picture(ax, masks[i])
        if titles is not None:
            ax.set_title(titles[i], fontsize=7, pad=2)
    _foot(fig, licence)
    return fig


@in_style
def score_strip(groups, thresholds=None, notes=None, label="image score", width=COLUMN):
    """The scores of normal and anomalous images, one strip per category; short bars are medians.

    groups : dict of category -> (scores (B,), labels (B,) 0/1); label : of the score axis
    thresholds : one number, or dict of category -> number; a dashed line
    notes : dict of category -> text to the right, such as "AUROC 0.84 (chance 0.50)"
    """
    if not groups:
        raise ValueError("no category was given; wanted a dict of category -> (scores, labels)")
    fig, ax = plt.subplots(figsize=(width, 0.55 + 0.42 * len(groups)))
    rng = np.random.default_rng(0)
    for y, (name, (scores, labels)) in enumerate(groups.items()):
        scores, labels = np.asarray(scores, float), np.asarray(labels)
        if scores.ndim != 1 or scores.shape != labels.shape:
            raise ValueError(
                f"{name!r} has scores {scores.shape}, labels {labels.shape}; wanted both (B,)"
            )
        for value, look, middle in ((0, NORMAL, y - 0.2), (1, ANOMALOUS, y + 0.2)):
            chosen = scores[labels == value]
            jitter = middle + rng.uniform(-0.13, 0.13, len(chosen))
            ax.scatter(chosen, jitter, s=7, alpha=0.55, linewidths=0, **look)
            if len(chosen):
                ax.plot([np.median(chosen)] * 2, [middle - 0.17, middle + 0.17], color="black")
        if (threshold := _of(thresholds, name)) is not None:
            ax.plot([threshold] * 2, [y - 0.45, y + 0.45], color="0.3", lw=0.8, ls="--")
        note = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 7}
        ax.text(1.02, y, _of(notes, name) or "", **note)
    ax.set_yticks(range(len(groups)), list(groups))
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(label if thresholds is None else f"{label} (dashed: threshold)")
    for text, side, look in (("● normal", "left", NORMAL), ("▲ anomalous", "right", ANOMALOUS)):
        ax.set_title(text, loc=side, color=look["color"], fontweight="bold", pad=3)
    return fig


@in_style
def metric_bars(rows, by="category", hue="method", label=None, chance=None, width=COLUMN):
    """Bars with intervals: a group for each category, a bar for each method, the chance level as a line.

    Parameters
    ----------
    rows : DataFrame with the columns `by`, `hue`, value in [0, 1] and, for intervals, low and high; one row
        for a category and method; both keep the order of the rows
    label : of the value axis; by default what the column "metric" says
    chance : one number, or dict of category -> number
    """
    if missing := {by, hue, "value"} - set(rows.columns):
        raise ValueError(
            f"rows have no column {sorted(missing)}; wanted {by}, {hue}, value (and low, high)"
        )
    if rows.empty or rows.duplicated([by, hue]).any():
        raise ValueError(f"rows are empty or repeat a pair; wanted one row for each {by} and {hue}")
    label = label or ", ".join(dict.fromkeys(rows.get("metric", ["value"])))
    groups, methods = list(dict.fromkeys(rows[by])), list(dict.fromkeys(rows[hue]))
    step = len(methods) + 0.6  # a bar takes 1, the gap between groups 0.6
    fig, ax = plt.subplots(figsize=(width, 0.5 + 0.14 * step * len(groups)))
    named = set()
    for row in rows.to_dict("records"):
        i, value = methods.index(row[hue]), row["value"]
        y = groups.index(row[by]) * step + i
        ax.barh(y, value, height=0.86, color=METHODS[i % len(METHODS)])
        ax.plot([row.get("low", np.nan), row.get("high", np.nan)], [y, y], color="0.15", lw=0.9)
        text = f"{value:.2f}" if np.isfinite(value) else "undefined"
        if len(methods) > 1 and row[hue] not in named:  # direct labels, once, in place of a legend
            text, named = f"{text}  {row[hue]}", named | {row[hue]}
        end = np.nanmax([0, value, row.get("high", np.nan)])
        ax.annotate(text, (end, y), (3, 0), textcoords="offset points", va="center", fontsize=6)
    for j, group in enumerate(groups):
        if (level := _of(chance, group)) is not None:
            ax.plot(
                [level] * 2, [j * step - 0.6, (j + 1) * step - 1], color="black", lw=0.9, ls=":"
            )
    ax.set_yticks([j * step + (len(methods) - 1) / 2 for j in range(len(groups))], groups)
    ax.set_ylim(len(groups) * step - 0.8, -0.8)
    ax.set_xlim(0, 1)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(label if chance is None else f"{label} (dotted: chance)")
    return fig


@in_style
def save_figure(fig, name, caption, out=None, notebook=None, licence=None):
    """Write ``<name>.pdf`` and ``<name>.png``, put the caption into ``captions.yaml``, close the figure.

    The same figure gives the same bytes (no dates, no versions); a file appears whole or not at all. The
    closed figure is returned, so that a notebook cell that ends with this call shows it once.

    name : letters, digits, - and _; caption : names data, n and uncertainty
    out : folder, by default figures/ of the repository, from wherever the notebook runs
    notebook : the notebook that makes it; licence : of the pictures shown, written at their foot
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(
            f"the name of the figure is {name!r}; wanted letters, digits, - and _ only"
        )
    if not caption.strip():
        raise ValueError(
            f"figure {name!r} has no caption; wanted one that names data, n and uncertainty"
        )
    out = Path(paths.figures_dir() if out is None else out)
    if licence and not fig.get_supxlabel():
        fig.set_figheight(fig.get_figheight() + FOOT)
        _foot(fig, licence)
    for kind, without in (("pdf", ("CreationDate", "Creator", "Producer")), ("png", ("Software",))):
        buffer = BytesIO()
        fig.savefig(buffer, format=kind, metadata=dict.fromkeys(without))
        _write(out / f"{name}.{kind}", buffer.getvalue())
    entry = {"caption": caption, "notebook": notebook, "licence": licence}
    _add_caption(
        out / "captions.yaml", name, {k: " ".join(v.split()) for k, v in entry.items() if v}
    )
    plt.close(fig)
    return fig


def _add_caption(path, name, entry):
    """Set one caption in a file that several notebooks may change at once."""
    with _caption_lock():
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        captions = (yaml.safe_load(text) or {}) | {name: entry}
        _write(path, yaml.safe_dump(captions, allow_unicode=True, width=110).encode())  # sorted


def _caption_lock():
    """Return one lock for all caption files of a user, in a place that git does not see."""
    user = os.getuid() if hasattr(os, "getuid") else "user"  # Windows: one temp folder a user
    return FileLock(Path(tempfile.gettempdir()) / f"vlmad-captions-{user}.lock")


def _of(setting, name):
    return setting.get(name) if isinstance(setting, dict) else setting


def _fitting(masks, images):
    masks = [None] * len(images) if masks is None else masks
    if len(masks) != len(images):
        raise ValueError(f"there are {len(masks)} masks for {len(images)} images; wanted one each")
    for i, (mask, image) in enumerate(zip(masks, images, strict=True)):
        if mask is not None and mask.shape != image.shape[:2]:
            raise ValueError(
                f"mask {i} has shape {mask.shape}; wanted {image.shape[:2]}, that of its image"
            )
    return masks


def _picture(ax, mask):
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.grid(False)
    if mask is None or not mask.any():
        return
    # A margin closes the contour at the border; two lines are seen on bright and on dark ground.
    x, y = np.arange(-1, mask.shape[1] + 1), np.arange(-1, mask.shape[0] + 1)
    for color, width in (("black", 1.4), ("white", 0.7)):
        ax.contour(x, y, np.pad(mask > 0, 1).astype(float), [0.5], colors=color, linewidths=width)
    ax.set(xlim=(-0.5, mask.shape[1] - 0.5), ylim=(mask.shape[0] - 0.5, -0.5))


def _foot(fig, licence):
    if licence:
        fig.supxlabel(f"Pictures: {licence}", fontsize=5.5, color="0.35", x=0.01, ha="left")


def _write(path, content):
    with paths.atomic_write(path, "pass out= with a folder that can be written") as temporary:
        temporary.write_bytes(content)
