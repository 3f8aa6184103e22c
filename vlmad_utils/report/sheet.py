"""The inspection sheet of own images: one HTML file for the browser."""

import base64
import html
import io
from pathlib import Path

import numpy as np
from PIL import Image

from .figures import HEAT


def heat_over_image(image, heat, vmin, vmax, size=256):
    """One picture (size, size, 3) uint8: the image in grey with its map (h, w) over it, on the range vmin to vmax."""
    grey = np.asarray(Image.fromarray(np.asarray(image)).convert("L").resize((size, size)))[
        ..., None
    ].repeat(3, 2)
    large = Image.fromarray(np.asarray(heat, np.float32)).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    colour = HEAT(
        np.clip((np.asarray(large) - vmin) / ((vmax - vmin) or 1), 0, 1)
    )  # (size, size, 4) in [0, 1]
    return (grey * (1 - colour[..., 3:]) + 255 * colour[..., :3] * colour[..., 3:]).astype(np.uint8)


def contact_sheet_html(path, rows, title, note, size=256):
    """Write one HTML file, pictures inside, no script: it can be mailed and opened anywhere.

    Parameters
    ----------
    path : of the file
    rows : iterable of dicts: name (text), score (number), flagged (bool, or None where there is no threshold), image
        (H, W, 3) uint8, overlay uint8
    title, note : text; everything is escaped, as file names may hold anything
    size : of the pictures, pixels

    Returns
    -------
    Path
    """
    cells = []
    for row in rows:
        pictures = "".join(
            f'<img width="{size // 2}" height="{size // 2}" alt="" src="data:image/jpeg;base64,{_jpeg(row[key], size)}">'
            for key in ("image", "overlay")
        )
        mark = ' class="flagged"' if row["flagged"] else ""
        word = (
            ""
            if row["flagged"] is None
            else ", above the threshold"
            if row["flagged"]
            else ", not above the threshold"
        )
        caption = f"{html.escape(str(row['name']))}<br>score {row['score']:.3f}{word}"
        cells.append(f"<figure{mark}>{pictures}<figcaption>{caption}</figcaption></figure>")
    style = (
        "body{font-family:sans-serif;max-width:70em;margin:2em auto}figure{display:inline-block;margin:.4em;padding:.4em;"
        f"border:2px solid #ccc;width:{size + 4}px;vertical-align:top;overflow-wrap:anywhere}}"
        ".flagged{border-color:#DE8F05}figcaption{font-size:80%}"
    )
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>{style}</style></head>'
        f"<body><h1>{html.escape(title)}</h1><p>{html.escape(note)}</p>{''.join(cells)}</body></html>\n"
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", errors="replace")  # a file name need not be valid text
    return path


def _jpeg(image, size):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).resize((size, size)).save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
