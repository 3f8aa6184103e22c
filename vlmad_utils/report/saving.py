"""Save a figure: PDF and PNG with the same bytes each time, and its caption in `captions.yaml`."""

import os
import re
import tempfile
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import yaml
from filelock import FileLock
from matplotlib.figure import Figure

from .. import paths
from .style import FOOT, in_style, write_licence

DATED = {"pdf": ("CreationDate", "Creator", "Producer"), "png": ("Software",)}  # left out of files


@in_style
def save_figure(
    fig: Figure,
    name: str,
    caption: str,
    out: Path | str | None = None,
    notebook: str | None = None,
    licence: str | None = None,
) -> Figure:
    """Write a figure as PDF and PNG, put its caption into ``captions.yaml``, close the figure.

    The same figure gives the same bytes (no dates, no versions); a file appears whole or not at
    all. Several notebooks may save figures in one folder at once.

    Parameters
    ----------
    name : of the files; letters, digits, - and _
    caption : names data, n and uncertainty
    out : folder, by default figures/ of the repository, from wherever the notebook runs
    notebook : name of the notebook that makes it
    licence : of the images shown, written at their foot

    Returns
    -------
    The closed figure, so that a notebook cell that ends with this call shows it once

    Raises
    ------
    ValueError for another name or an empty caption; OSError, with advice, where out cannot be
    written.
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
        write_licence(fig, licence)
    for kind, dated in DATED.items():
        buffer = BytesIO()
        fig.savefig(buffer, format=kind, metadata=dict.fromkeys(dated))
        _write(out / f"{name}.{kind}", buffer.getvalue())
    entry = {"caption": caption, "notebook": notebook, "licence": licence}
    lines = {key: " ".join(text.split()) for key, text in entry.items() if text}
    _add_caption(out / "captions.yaml", name, lines)
    plt.close(fig)
    return fig


def _add_caption(path: Path, name: str, entry: dict[str, str]) -> None:
    """Set one caption in a file that several notebooks may change at once."""
    with _caption_lock():
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        captions = (yaml.safe_load(text) or {}) | {name: entry}
        _write(path, yaml.safe_dump(captions, allow_unicode=True, width=110).encode())  # sorted


def _caption_lock() -> FileLock:
    """Return one lock for all caption files of a user, in a place that git does not see."""
    user = os.getuid() if hasattr(os, "getuid") else "user"  # Windows: one temp folder a user
    return FileLock(Path(tempfile.gettempdir()) / f"vlmad-captions-{user}.lock")


def _write(path: Path, content: bytes) -> None:
    with paths.atomic_write(path, "pass out= with a folder that can be written") as temporary:
        temporary.write_bytes(content)
