"""A training texture of crops of real photographs, from installed Python packages."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import PIL.Image

from .aliases import Image, Rng
from .fields import grey

PHOTOS = tuple(
    """
    brick.png grass.png gravel.png coins.png moon.png cell.png ihc.png coffee.png
    hubble_deep_field.jpg retina.jpg page.png chelsea.png motorcycle_left.png rocket.jpg
    camera.png astronaut.png china.jpg flower.jpg
    """.split()
)


@lru_cache(maxsize=32)
def _photograph(name: str) -> PIL.Image.Image | None:
    """Return a photograph inside the wheel of scikit-image or scikit-learn, None without it."""
    for package, folder in (("skimage", "data"), ("sklearn", "datasets/images")):
        spec = find_spec(package)  # finds the folder; importing them takes most of a second
        path = Path(spec.origin or "").parent / folder / name if spec else None
        if path and path.exists():
            return PIL.Image.open(path).convert("RGB")
    return None


def photo(style: Rng, rng: Rng, size: int) -> Image:
    """Crop a photograph and recolour it by product line."""
    found = [p for p in map(_photograph, PHOTOS) if p is not None]
    chosen = found[style.integers(len(found))]
    side = min(chosen.size) * style.uniform(0.3, 0.95)
    left, top = (rng.uniform(0, extent - side) for extent in chosen.size)
    square = (left, top, left + side, top + side)
    pixels = chosen.resize((size, size), PIL.Image.Resampling.BICUBIC, box=square)
    image = np.asarray(pixels, float) / 255
    gray = grey(image)[..., None]
    image = np.clip(gray + (image - gray) * style.uniform(0, 1.3), 0, 1)
    tint = 1 + style.uniform(0, 0.25) * style.uniform(-1, 1, 3)
    return np.clip((image * tint) ** style.uniform(0.7, 1.4) * style.uniform(0.7, 1.1), 0, 1)
