"""Whole samples: a product, a defect, a camera; and data sets of them in the MVTec layout.

The products (``FAMILIES``) and the defects (``DEFECT_TYPES``) are listed in ``tables``.
"""

import itertools
import json
import os
import re
import uuid
import zlib
from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from joblib import Parallel, delayed

from .aliases import Count, Mask, Rng
from .camera import camera as photograph
from .camera import is_grey
from .defects import DEFECTS
from .fields import grey
from .objects import OBJECTS
from .tables import DEFECT_TYPES, FAMILIES, PART_FAULTS, defects_of
from .textures import TEXTURES

# of the pixels: raise it when a change of the generator changes them, so that old data is made anew
VERSION = 2
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def _rng(*keys: str | Count) -> Rng:
    """Return a generator from words and numbers, the same on every machine."""
    return np.random.default_rng(
        [zlib.crc32(k.encode()) if isinstance(k, str) else int(k) for k in keys]
    )


def _check(
    family: str, defect: str, area: float | None, contrast: float | None, part: str | None
) -> None:
    if family not in FAMILIES:
        raise ValueError(f"family {family!r} is unknown; choose one of {', '.join(FAMILIES)}")
    if defect != "good" and defect not in DEFECT_TYPES:
        choices = ", ".join(DEFECT_TYPES)
        raise ValueError(f"defect {defect!r} is unknown; choose 'good' or one of {choices}")
    for name, value in (("area", area), ("contrast", contrast)):
        if value is not None and not 0 < value <= 1:
            raise ValueError(
                f"{name} must be above 0 and at most 1, got {value}; use None for a random one"
            )
    if part and family not in OBJECTS:
        raise ValueError(
            f"{part} needs an object; {family!r} is a texture, choose one of {', '.join(OBJECTS)}"
        )


def sample(
    family: str,
    defect: str = "good",
    seed: int = 0,
    style_seed: int = 0,
    size: int = 224,
    area: float | None = None,
    contrast: float | None = None,
    camera: float = 1.0,
) -> tuple[np.ndarray, Mask]:
    """Draw one image of a product, good or with a defect, and its exact mask.

    Parameters
    ----------
    family : a key of FAMILIES
    defect : "good" or a key of DEFECT_TYPES
    seed : of the image; the same seed shows the same piece with and without the defect
    style_seed : of the product line (colours, scale, pattern, rig)
    size : side S in pixels
    area : share of the image that the defect covers, reached approximately; None: usual for it
    contrast : visibility in (0, 1], None: random in 0.45..1; defects of parts ignore both
    camera : strength of light, lens and sensor effects; 0 switches them off

    Returns
    -------
    image : (S, S, 3) uint8 RGB
    mask : (S, S) bool, all False when good

    Raises
    ------
    ValueError for an unknown family or defect, an area or contrast out of range, a part defect on
    a texture.
    """
    part = defect if defect in PART_FAULTS else None
    _check(family, defect, area, contrast, part)
    style, rng = _rng(family, style_seed), _rng(family, style_seed, seed, "image")
    if family in OBJECTS:
        image, support, mask = OBJECTS[family](style, rng, size, part)
    else:
        image = TEXTURES[family](style, rng, size)
        support, mask = np.ones((size, size), bool), np.zeros((size, size), bool)
    monochrome, level = is_grey(image), image.mean()
    if defect != "good" and not part:
        rng = _rng(family, style_seed, seed, defect)
        low, high = DEFECT_TYPES[defect].area
        drawn = np.exp(rng.uniform(np.log(low), np.log(high)))
        drawn = drawn * np.clip(1.6 * support.mean(), 0.3, 1)
        chosen = rng.uniform(0.45, 1)
        chosen = chosen if contrast is None else contrast
        image, mask = DEFECTS[defect](image, support, rng, area or drawn, chosen)
        if monochrome:  # a monochrome camera shows every defect in grey
            image = np.repeat(grey(image)[..., None], 3, 2)
    rig, shot = _rng(family, style_seed, "rig"), _rng(family, style_seed, seed, "camera")
    image = photograph(image, rig, shot, camera, level)
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), mask


def support(family: str, seed: int = 0, style_seed: int = 0, size: int = 224) -> Mask:
    """Return where the object lies in the image of :func:`sample` for these arguments: (S, S)."""
    style, rng = _rng(family, style_seed), _rng(family, style_seed, seed, "image")
    return OBJECTS[family](style, rng, size)[1]


@contextmanager
def _atomic(path: Path) -> Generator[Path, None, None]:
    """Give a name to write to, which takes the place of ``path`` at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _save(pixels: np.ndarray, path: Path) -> None:
    """Write a PNG at ``path``, whole or not at all."""
    with _atomic(path) as temporary:
        PIL.Image.fromarray(pixels).save(temporary, format="png", compress_level=4)


class Picture(NamedTuple):
    """An image of a data set: where it and its mask lie, and what draws it.

    path : of the image
    mask : path of the mask, None for a good image
    defect : "good" or a key of DEFECT_TYPES
    number : within the category, the seed of :func:`sample`
    """

    path: Path
    mask: Path | None
    defect: str
    number: int


def pictures(
    root: Path | str, family: str, n_train: int = 16, n_good: int = 20, n_defect: int = 5
) -> list[Picture]:
    """List the images of a category as :func:`write` lays them out, drawn or not."""
    return _laid_out(Path(root) / family, defects_of(family), n_train, n_good, n_defect)


def _laid_out(
    folder: Path, defects: Iterable[str], n_train: int, n_good: int, n_defect: int
) -> list[Picture]:
    number = itertools.count()
    groups = [("train/good", "good", n_train), ("test/good", "good", n_good)]
    groups += [(f"test/{d}", d, n_defect) for d in defects]
    found = []
    for place, defect, count in groups:
        masks = folder / "ground_truth" / defect
        for i in range(count):
            mask = None if defect == "good" else masks / f"{i:03d}_mask.png"
            found.append(Picture(folder / place / f"{i:03d}.png", mask, defect, next(number)))
    return found


def _files(made: Iterable[Picture]) -> set[Path]:
    return {path for picture in made for path in (picture.path, picture.mask) if path}


def _plan_in(folder: Path) -> Any:
    """Return what the manifest of a folder says; {} without one, None of a damaged one."""
    try:
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:  # no JSON, or no text at all
        return None


def _written_before(folder: Path, plan: Any) -> set[Path] | None:
    """Return the files that a plan says were written, None where it is none of ours.

    Of a damaged one: what any plan could have written, by its name.
    """
    if plan is None:
        kinds = "|".join(DEFECT_TYPES)
        ours = rf"(train/good|test/(good|{kinds}))/\d{{3,}}\.png|"
        ours += rf"ground_truth/({kinds})/\d{{3,}}_mask\.png"
        there = folder.rglob("*.png")
        return {p for p in there if re.fullmatch(ours, p.relative_to(folder).as_posix())}
    try:
        counts = [int(plan[name]) for name in ("n_train", "n_good", "n_defect")]
        if all(re.fullmatch(r"\w+", defect) for defect in plan["defects"]):  # no way out of folder
            return _files(_laid_out(folder, plan["defects"], *counts))
    except (KeyError, TypeError, ValueError):
        pass
    return None


def _make_room(folder: Path, old: Any, new: set[Path]) -> None:
    """Remove the images of another plan, and nothing else.

    Raises
    ------
    ValueError where images lie in the folder, or where new ones should go, that no plan wrote.
    """
    before = _written_before(folder, old)
    there = {path for path in folder.rglob("*") if path.suffix.lower() in IMAGES}
    foreign = there if before is None else (there - before) & new
    if foreign:
        raise ValueError(
            f"{folder} holds images that were not drawn here, e.g. {min(foreign)}: nothing was "
            "written or removed. Choose another folder, or move these images away."
        )
    for path in before or ():
        path.unlink(missing_ok=True)


def _category(
    root: Path | str,
    family: str,
    counts: dict[str, int],
    size: int,
    seed: int,
    only: Collection[Path] | None,
) -> Path:
    """Write one category; its manifest, written first, says of what plan its images are."""
    folder = Path(root) / family
    plan = {"family": family, **counts, "size": size, "seed": seed}
    plan |= {"defects": list(defects_of(family)), "version": VERSION}
    manifest = folder / "manifest.json"
    made, old = pictures(root, family, **counts), _plan_in(folder)
    if old != plan:
        _make_room(folder, old, _files(made))
        with _atomic(manifest) as temporary:
            temporary.write_text(json.dumps(plan, indent=1))
    for picture in made:
        if picture.path.exists() or only is not None and picture.path not in only:
            continue
        image, mask = sample(family, picture.defect, picture.number, style_seed=seed, size=size)
        if picture.mask:  # before its image: what has an image has its mask
            _save(mask.astype(np.uint8) * 255, picture.mask)
        _save(image, picture.path)
    return folder


def write(
    root: Path | str,
    families: Iterable[str] | None = None,
    n_train: int = 16,
    n_good: int = 20,
    n_defect: int = 5,
    size: int = 224,
    seed: int = 0,
    jobs: int = 1,
    only: Collection[Path] | None = None,
) -> list[Path]:
    """Write a data set in the MVTec layout: a category per family, defects of the family's role.

    ``<root>/<family>/train/good``, ``test/good``, ``test/<defect>`` and
    ``ground_truth/<defect>/<stem>_mask.png``. The ``manifest.json`` of a category says what it is
    made of; what was drawn with the same arguments is not drawn again.

    Parameters
    ----------
    root : folder of the data set
    families : names; None: all of role "eval"
    n_train, n_good, n_defect : images per category in train, good test and each defect
    size : side in pixels
    seed : of the product lines
    jobs : processes
    only : paths of :func:`pictures`; the others wait until they are asked for

    Returns
    -------
    the category folders

    Raises
    ------
    ValueError for unknown families, and where images lie in the folder of a family that were not
    drawn here. Those of another plan are replaced.
    """
    if families is None:
        families = (n for n, f in FAMILIES.items() if f.role == "eval")
    families = list(families)
    unknown = [n for n in families if n not in FAMILIES]
    if unknown:
        raise ValueError(f"families {unknown} are unknown; choose from {', '.join(FAMILIES)}")
    counts = {"n_train": n_train, "n_good": n_good, "n_defect": n_defect}
    tasks = (delayed(_category)(root, name, counts, size, seed, only) for name in families)
    return list(Parallel(n_jobs=jobs)(tasks))
