"""Lay out the cells of a grid before anything is computed: images, references, words, keys."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .. import data, features
from ..models import Backbone, prompts
from ..paths import content_hash
from .cells import cell_key
from .checks import ensemble_label
from .method import Method, described

KEYS = ["dataset", "category", "method", "backbone", "k_shot", "seed", "prompts"]


Name = tuple[str, str]  # data set and category


@dataclass(frozen=True)
class Images:
    """Test images, and the references that any draw takes.

    Attributes
    ----------
    test, pool : DataFrames with the columns of ``data.index``; each reference is once in ``pool``
    test_keys, pool_keys : (B,) and (K,) hash of the content of each image
    drawn : (number of references, seed) -> {(data set, category): rows in ``pool``}
    """

    test: pd.DataFrame
    pool: pd.DataFrame
    test_keys: np.ndarray
    pool_keys: np.ndarray
    drawn: Mapping[tuple[int, int], Mapping[Name, list[int]]]


@dataclass(frozen=True, eq=False)
class Job:
    """One cell to be.

    Attributes
    ----------
    base : its values of KEYS
    rows, references : of its images in ``Images.test`` and ``Images.pool``
    object_name : words for the object
    texts : (normal, anomalous) prompts, or None where no text takes part
    key : hash of all that makes it
    """

    base: dict[str, Any]
    method: Method
    rows: np.ndarray
    references: list[int]
    object_name: str
    texts: tuple[tuple[str, ...], ...] | None
    key: str

    @property
    def name(self) -> str:
        """Return the name of the cell for messages: data set and category, method, draw."""
        base = self.base
        draw = f"K = {base['k_shot']}, seed {base['seed']}"
        return f"{base['dataset']}/{base['category']}, {base['method']}, {draw}"


def gather_images(index: pd.DataFrame, shots: Sequence[int], seeds: Sequence[int]) -> Images:
    """Draw all references, and hash the content of all images.

    Raises
    ------
    DataError when images cannot be read.
    """
    index = index.reset_index(drop=True)
    test = index[index["split"] == "test"].reset_index(drop=True)
    tested = index.groupby(["dataset", "category"])["split"].transform(
        lambda x: (x == "test").any()
    )
    draws = {
        (k, seed): data.split_references(index[tested], k, seed)
        for k in shots
        if k
        for seed in seeds
    }
    pool = pd.concat([test[:0], *draws.values()]).drop_duplicates("image_path")
    pool = pool.reset_index(drop=True)
    place = {path: row for row, path in enumerate(pool["image_path"])}
    drawn = {
        draw: {
            name: [place[path] for path in part["image_path"]]
            for name, part in table.groupby(["dataset", "category"])
        }
        for draw, table in draws.items()
    }
    test_keys, pool_keys = (np.array(features.keys(table), object) for table in (test, pool))
    return Images(test, pool, test_keys, pool_keys, drawn)


def build_jobs(
    model: Backbone,
    images: Images,
    methods: Sequence[Method],
    shots: Sequence[int],
    seeds: Sequence[int],
    size: tuple[int, int],
    draws: int,
) -> list[Job]:
    """Lay out every cell: categories in the order of the index, then methods, shots, seeds.

    Raises
    ------
    ValueError for an ensemble that does not exist, or with wrong entries; for settings that do not
    say what they hold. DataError for a mask whose file cannot be read.
    """
    jobs = []
    names = list(zip(images.test["dataset"], images.test["category"], strict=True))
    for name in dict.fromkeys(names):
        rows = np.flatnonzero([other == name for other in names])
        part = images.test.iloc[rows]
        made_of = {
            "test": images.test_keys[rows].tolist(),
            "labels": part["label"].tolist(),
            "masks": [_mask_hash(path) for path in part["mask_path"]],
            "size": size,
            "draws": draws,
        }
        noun = part["object_name"].iloc[0]
        for method in methods:
            texts = None
            if method.ensemble is not None:
                normal, anomalous = prompts.compose(noun, method.ensemble)
                texts = (tuple(normal), tuple(anomalous))
            made_by = {
                **made_of,
                "method": (method.blocks, method.windows, described(method.settings)),
                "features": (method.backbone or model).fingerprint,
                "texts": texts and (model.fingerprint, *texts),
            }
            for k, seed in _draws(method, shots, seeds):
                references = images.drawn[k, seed][name] if k else []
                values = (*name, method.name, model.name, k, seed, ensemble_label(method.ensemble))
                base = dict(zip(KEYS, values, strict=True))
                of_references = images.pool_keys[references].tolist()
                key = cell_key(base=base, references=of_references, **made_by)
                jobs.append(Job(base, method, rows, references, noun, texts, key))
    return jobs


def _mask_hash(path: Any) -> str | None:
    """Return the content hash of a mask, or None for an image without one."""
    if path is None or pd.isna(path):
        return None
    try:
        return content_hash(path)
    except OSError as error:
        raise data.DataError(f"the mask {path} cannot be read ({error})") from error


def _draws(method: Method, shots: Sequence[int], seeds: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (number of references, seed) of each cell of a method."""
    for k in shots:
        if method.takes(k):
            yield from ((k, seed) for seed in (seeds if k else seeds[:1]))
