"""Procedural samples that are drawn once and read afterwards."""

import hashlib
import json

import numpy as np
from PIL import Image

from vlmad_procedural.generate import VERSION, sample

from .. import paths


def sample_once(family, defect="good", seed=0, store="auto", **options):
    """:func:`sample`, drawn once: the next call reads it from the feature store.

    Parameters
    ----------
    family, defect, seed, options : as in :func:`sample`
    store : "auto", a folder, or None to draw it anyway

    Returns and raises as :func:`sample`; StoreError when the store cannot be written.
    """
    if store is None:
        return sample(family, defect, seed, **options)
    folder = paths.store_folder(store) / f"procedural-{VERSION}"
    made_of = json.dumps([family, defect, int(seed), sorted(options.items())], default=float)
    key = hashlib.sha256(made_of.encode()).hexdigest()[:40]
    path = folder / key[:2] / f"{key}.png"
    both = _read(path)
    if both is None:
        image, mask = sample(family, defect, seed, **options)
        both = np.dstack([image, mask * np.uint8(255)])
        with paths.atomic_write(path, "set VLMAD_STORE to another folder") as temporary:
            Image.fromarray(both).save(temporary, format="png", compress_level=1)
    return np.ascontiguousarray(both[..., :3]), both[..., 3] > 0


def _read(path):
    """(S, S, 4) uint8, the mask in the place of transparency; None when it is missing or damaged."""
    try:
        with Image.open(path) as picture:
            return np.array(picture)
    except (OSError, SyntaxError):
        return None
