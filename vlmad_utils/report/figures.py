"""Figures: heat maps over images, contact sheets, score strips, bars with intervals.

Each function takes arrays or a frame, draws one figure at print size in the package style and
returns it; `save_figure` writes it.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from .style import ANOMALOUS, COLUMN, FOOT, HEAT, METHODS, NORMAL, PAGE, in_style, write_licence

T = TypeVar("T")
Masks = np.ndarray | Sequence[np.ndarray | None]


@in_style
def overlay(
    images: ArrayLike,
    maps: Mapping[str, ArrayLike],
    masks: Masks | None = None,
    labels: Sequence[str] | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    licence: str | None = None,
    width: float = PAGE,
) -> Figure:
    """Draw rows of image | heat map over the image, one per method, with the defect's contour.

    All heat maps share one colour range and one colour bar, so the scores must be on one scale;
    nothing is stretched per image. Maps are interpolated bilinearly for display.

    Parameters
    ----------
    images : (R, H, W, 3) uint8
    maps : method -> (R, h, w) scores that cover the whole image
    masks : (R, H, W) bool or None
    labels : R texts to the left of the rows
    vmin, vmax : colour range; None takes the lowest and highest score of all maps
    licence : of the images, written at the foot
    width : of the figure, inches

    Raises
    ------
    ValueError when shapes do not fit, a score is not finite, or the colour range is empty.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(
            f"images are {images.dtype} of shape {images.shape}; wanted uint8 (R, H, W, 3)"
        )
    rows, height, across = images.shape[:3]
    arrays = _checked_maps(maps, rows)
    masks = _checked_masks(masks, images)
    low, high = min(m.min() for m in arrays.values()), max(m.max() for m in arrays.values())
    vmin, vmax = low if vmin is None else vmin, high if vmax is None else vmax
    if not vmin < vmax:
        raise ValueError(f"the colour range is {vmin} to {vmax}; wanted vmin below vmax")
    columns = 1 + len(arrays)
    side = (width - 0.75) / columns
    size = (width, rows * side * height / across + 0.3 + (FOOT if licence else 0))
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    colours = {"cmap": HEAT, "vmin": vmin, "vmax": vmax, "interpolation": "bilinear"}
    extent = (-0.5, across - 0.5, height - 0.5, -0.5)
    for i, row in enumerate(axes):
        row[0].imshow(images[i])
        for ax, m in zip(row[1:], arrays.values(), strict=True):
            ax.imshow(images[i] @ [0.299, 0.587, 0.114], cmap="gray", vmin=0, vmax=255)
            ax.imshow(m[i], extent=extent, **colours)
        for ax in row:
            _hide_axes(ax)
            _outline(ax, masks[i])
        if labels is not None:
            row[0].set_ylabel(labels[i])
    for ax, title in zip(axes[0], ["image", *arrays], strict=True):
        ax.set_title(title)
    ends = {(False, False): "neither", (True, False): "min", (False, True): "max"}
    beyond = ends.get((bool(low < vmin), bool(high > vmax)), "both")
    heat = axes[0, 1].images[-1]  # one of many with the same range
    bar = fig.colorbar(heat, ax=axes, aspect=12 * rows, fraction=0.05, pad=0.01, extend=beyond)
    bar.set_label("anomaly score, one range for all" if rows > 1 else "anomaly score")
    bar.outline.set_visible(False)
    assert bar.solids is not None
    bar.solids.set_rasterized(True)  # PDF viewers draw seams between see-through patches
    write_licence(fig, licence)
    return fig


@in_style
def contact_sheet(
    images: Sequence[np.ndarray] | np.ndarray,
    titles: Sequence[object] | None = None,
    masks: Masks | None = None,
    columns: int = 6,
    licence: str | None = None,
    width: float = PAGE,
) -> Figure:
    """Draw a sheet of images, each with its title above and its mask as a contour.

    Parameters
    ----------
    images : of (H, W, 3) uint8, sizes may differ
    titles : as many texts, or what is written as text
    masks : as many (H, W) bool or None
    columns : images in a row
    licence, width : as in `overlay`
    """
    if not len(images) or (titles is not None and len(titles) != len(images)):
        raise ValueError(f"there are {len(images)} images; wanted at least one, and as many titles")
    masks = _checked_masks(masks, images)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    shape = np.median([image.shape[0] / image.shape[1] for image in images])
    text = 0.04
    if titles is not None:
        text = 0.06 + 0.12 * (1 + max(str(title).count("\n") for title in titles))
    size = (width, rows * (width / columns * shape + text) + (FOOT if licence else 0))
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for i, ax in enumerate(axes.flat):
        if i >= len(images):
            ax.set_axis_off()
            continue
        ax.imshow(images[i])
        _hide_axes(ax)
        _outline(ax, masks[i])
        if titles is not None:
            ax.set_title(str(titles[i]), fontsize=7, pad=2)
    write_licence(fig, licence)
    return fig


@in_style
def score_strip(
    groups: Mapping[str, tuple[ArrayLike, ArrayLike]],
    thresholds: float | Mapping[str, float] | None = None,
    notes: str | Mapping[str, str] | None = None,
    label: str = "image score",
    width: float = COLUMN,
) -> Figure:
    """Draw the scores of normal and anomalous images, one strip per category; bars are medians.

    Parameters
    ----------
    groups : category -> (scores (B,), labels (B,) 0/1)
    thresholds : one number, or category -> number; a dashed line
    notes : category -> text to the right, such as "AUROC 0.84 (chance 0.50)"
    label : of the score axis
    width : of the figure, inches
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
        if (threshold := _setting_for(name, thresholds)) is not None:
            ax.plot([threshold] * 2, [y - 0.45, y + 0.45], color="0.3", lw=0.8, ls="--")
        note = _setting_for(name, notes) or ""
        ax.text(1.02, y, note, transform=ax.get_yaxis_transform(), va="center", fontsize=7)
    ax.set_yticks(range(len(groups)), list(groups))
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(label if thresholds is None else f"{label} (dashed: threshold)")
    for text, side, look in (("● normal", "left", NORMAL), ("▲ anomalous", "right", ANOMALOUS)):
        ax.set_title(text, loc=side, color=look["color"], fontweight="bold", pad=3)
    return fig


@in_style
def metric_bars(
    rows: pd.DataFrame,
    by: str = "category",
    hue: str = "method",
    label: str | None = None,
    chance: float | Mapping[str, float] | None = None,
    width: float = COLUMN,
) -> Figure:
    """Draw bars with intervals: a group per category, a bar per method, chance as a dotted line.

    Parameters
    ----------
    rows : the columns `by`, `hue`, value in [0, 1] and, for intervals, low and high; one row for a
        category and method; both keep the order of the rows
    by, hue : columns that make groups and bars
    label : of the value axis; by default what the column "metric" says
    chance : one number, or category -> number
    width : of the figure, inches
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
        low, high = row.get("low", np.nan), row.get("high", np.nan)
        y = groups.index(row[by]) * step + i
        ax.barh(y, value, height=0.86, color=METHODS[i % len(METHODS)])
        ax.plot([low, high], [y, y], color="0.15", lw=0.9)
        text = f"{value:.2f}" if np.isfinite(value) else "undefined"
        if len(methods) > 1 and row[hue] not in named:  # direct labels, once, instead of a legend
            text, named = f"{text}  {row[hue]}", named | {row[hue]}
        end = np.nanmax([0, value, high])
        ax.annotate(text, (end, y), (3, 0), textcoords="offset points", va="center", fontsize=6)
    for j, group in enumerate(groups):
        if (level := _setting_for(group, chance)) is not None:
            ends = [j * step - 0.6, (j + 1) * step - 1]
            ax.plot([level] * 2, ends, color="black", lw=0.9, ls=":")
    ax.set_yticks([j * step + (len(methods) - 1) / 2 for j in range(len(groups))], groups)
    ax.set_ylim(len(groups) * step - 0.8, -0.8)
    ax.set_xlim(0, 1)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(label if chance is None else f"{label} (dotted: chance)")
    return fig


def _setting_for(name: str, setting: T | Mapping[str, T] | None) -> T | None:
    """Return the setting of one category: its entry in a mapping, or what holds for all."""
    return setting.get(name) if isinstance(setting, Mapping) else setting


def _checked_maps(maps: Mapping[str, ArrayLike], rows: int) -> dict[str, np.ndarray]:
    if not maps:
        raise ValueError("no maps were given; wanted a dict of method -> (R, h, w)")
    arrays = {name: np.asarray(m) for name, m in maps.items()}
    for name, m in arrays.items():
        if m.ndim != 3 or len(m) != rows:
            raise ValueError(
                f"maps of {name!r} have shape {m.shape}; wanted ({rows}, h, w), one per image"
            )
        if not np.isfinite(m).all():
            raise ValueError(f"maps of {name!r} hold NaN or infinite scores, which have no colour")
    return arrays


def _checked_masks(masks: Masks | None, images: Sequence[np.ndarray] | np.ndarray) -> Masks:
    """Return one mask or None for each image."""
    masks = [None] * len(images) if masks is None else masks
    if len(masks) != len(images):
        raise ValueError(f"there are {len(masks)} masks for {len(images)} images; wanted one each")
    for i, (mask, image) in enumerate(zip(masks, images, strict=True)):
        if mask is not None and mask.shape != image.shape[:2]:
            raise ValueError(
                f"mask {i} has shape {mask.shape}; wanted {image.shape[:2]}, that of its image"
            )
    return masks


def _hide_axes(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.grid(False)


def _outline(ax: Axes, mask: np.ndarray | None) -> None:
    """Draw the contour of a mask: white within black, to be seen on bright and on dark ground."""
    if mask is None or not mask.any():
        return
    padded = np.pad(mask > 0, 1).astype(float)  # the margin closes the contour at the border
    x, y = np.arange(-1, mask.shape[1] + 1), np.arange(-1, mask.shape[0] + 1)
    for color, width in (("black", 1.4), ("white", 0.7)):
        ax.contour(x, y, padded, [0.5], colors=color, linewidths=width)
    ax.set(xlim=(-0.5, mask.shape[1] - 0.5), ylim=(mask.shape[0] - 0.5, -0.5))
