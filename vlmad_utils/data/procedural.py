"""Draw a procedural sample once and read it afterwards."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from vlmad_procedural.generate import VERSION, sample

from .. import paths


def sample_once(
    family: str,
    defect: str = "good",
    seed: int | np.integer = 0,
    store: str | Path | None = "auto",
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what :func:`sample` draws; from the second call on, read it from the feature store.

    A stored image that is damaged is drawn again, with a warning.

    Parameters
    ----------
    family, defect, seed, options : as in :func:`sample`
    store : "auto", a folder, or None to draw it anyway

    Returns
    -------
    image (S, S, 3) uint8 and mask (S, S) bool

    Raises
    ------
    As :func:`sample`; OSError when the store cannot be written.
    """
    if store is None:
        return sample(family, defect, int(seed), **options)
    folder = paths.store_folder(store) / f"procedural-{VERSION}"
    made_of = json.dumps([family, defect, int(seed), sorted(options.items())], default=float)
    key = hashlib.sha256(made_of.encode()).hexdigest()[:40]
    path = folder / key[:2] / f"{key}.png"
    both = _read(path)
    if both is None:
        image, mask = sample(family, defect, int(seed), **options)
        both = np.dstack([image, mask * np.uint8(255)])
        about = PngImagePlugin.PngInfo()
        about.add_text("sha256", paths.content_hash(both))
        with paths.atomic_write(path, "set VLMAD_STORE to another folder") as temporary:
            picture = Image.fromarray(both)
            picture.save(temporary, format="png", compress_level=1, pnginfo=about)
    return np.ascontiguousarray(both[..., :3]), both[..., 3] > 0


def _read(path: Path) -> np.ndarray | None:
    """Return (S, S, 4) uint8 with the mask as transparency; None when missing or not as drawn."""
    try:
        with Image.open(path) as picture:
            both = np.array(picture)
            digest = picture.info.get("sha256")
            if digest is None:  # of an earlier version, or another image
                return None
            if digest != paths.content_hash(both):  # Pillow does not check the last pixels
                raise ValueError("its pixels changed")
            return both
    except FileNotFoundError:
        return None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, zlib.error, ...
        warnings.warn(f"{path} was damaged ({error}): drawn again", stacklevel=3)
        return None
