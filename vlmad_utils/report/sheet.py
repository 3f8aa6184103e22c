"""The inspection sheet of own images: one HTML file for the browser."""

import base64
import html
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from .style import HEAT

DOCUMENT = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    "<style>{style}</style></head><body><h1>{title}</h1><p>{note}</p>{cells}</body></html>\n"
)
CSS = (
    "body{font-family:sans-serif;max-width:70em;margin:2em auto}"
    "figure{display:inline-block;margin:.4em;padding:.4em;border:2px solid #ccc;"
    "width:WIDTHpx;vertical-align:top;overflow-wrap:anywhere}"
    ".flagged{border-color:#DE8F05}figcaption{font-size:80%}"
)
CELL = (
    "<figure{mark}>{images}<figcaption>{name}<br>score {score:.3f}{verdict}</figcaption></figure>"
)
IMAGE = '<img width="{side}" height="{side}" alt="" src="data:image/jpeg;base64,{jpeg}">'
VERDICTS = {None: "", True: ", above the threshold", False: ", not above the threshold"}


def heat_over_image(
    image: ArrayLike, heat: ArrayLike, vmin: float, vmax: float, size: int = 256
) -> np.ndarray:
    """Return the image in grey with its heat map over it, as (size, size, 3) uint8.

    Parameters
    ----------
    image : (H, W, 3) uint8
    heat : (h, w) scores that cover the whole image
    vmin, vmax : scores of the lowest and the highest colour
    size : of the result, pixels
    """
    grey = Image.fromarray(np.asarray(image)).convert("L").resize((size, size))
    scores = Image.fromarray(np.asarray(heat, np.float32))
    scores = np.asarray(scores.resize((size, size), Image.Resampling.BILINEAR))
    colour = HEAT(np.clip((scores - vmin) / ((vmax - vmin) or 1), 0, 1))  # RGBA in [0, 1]
    opacity = colour[..., 3:]
    ground = np.asarray(grey)[..., None].repeat(3, 2)
    return (ground * (1 - opacity) + 255 * colour[..., :3] * opacity).astype(np.uint8)


def contact_sheet_html(
    path: Path | str, rows: Iterable[Mapping[str, Any]], title: str, note: str, size: int = 256
) -> Path:
    """Write one HTML file that holds its images and no script; it opens anywhere, without a net.

    Parameters
    ----------
    path : of the file; its folder is made
    rows : mappings of name (text), score (number), flagged (bool, or None where there is no
        threshold), image (H, W, 3) uint8, overlay uint8
    title, note : text; everything is escaped, as file names may hold anything
    size : of the images, pixels

    Returns
    -------
    The path
    """
    page = DOCUMENT.format(
        title=html.escape(title),
        style=CSS.replace("WIDTH", str(size + 4)),
        note=html.escape(note),
        cells="".join(_cell(row, size) for row in rows),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", errors="replace")  # a file name need not be valid text
    return path


def _cell(row: Mapping[str, Any], size: int) -> str:
    images = (IMAGE.format(side=size // 2, jpeg=_jpeg(row[k], size)) for k in ("image", "overlay"))
    flagged = None if row["flagged"] is None else bool(row["flagged"])
    return CELL.format(
        mark=' class="flagged"' if flagged else "",
        images="".join(images),
        name=html.escape(str(row["name"])),
        score=row["score"],
        verdict=VERDICTS[flagged],
    )


def _jpeg(image: ArrayLike, size: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).resize((size, size)).save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
