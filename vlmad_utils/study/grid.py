"""A grid of (method, category, shots, seed) to tidy rows: encode once, score each cell, evaluate, resume.

Every cell is written to the store as soon as it is done, under a name made of all that made it (images, references,
masks, words, weights, options, code), so a broken run goes on where it stopped and an old number is never taken for a
new one.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from tqdm import tqdm

from .. import data, features
from ..models import prompts
from ..paths import content_hash, store_folder
from .cells import cell_key, cell_path, read_cell, score_cell
from .method import Method

KEYS = ["dataset", "category", "method", "backbone", "k_shot", "seed", "prompts"]


class _Job(NamedTuple):
    """One cell to be: its columns, the method, rows of its images and references in their tables, and what names it."""

    base: dict
    method: Method
    rows: np.ndarray
    references: list
    prototypes: torch.Tensor | None
    key: str


@dataclass(frozen=True)
class Result:
    """What :func:`run` gives.

    Attributes
    ----------
    rows : DataFrame, one row per cell and metric: KEYS, training, meaning, metric, value, low, high, chance, n_images,
        n_anomalous, image_size, map_size
    images : DataFrame, one row per cell and image: KEYS, image (row number in the test part of the index), label, score
    """

    rows: pd.DataFrame
    images: pd.DataFrame


def run(
    model,
    index,
    methods,
    shots=(0,),
    seeds=(0,),
    size=(224, 224),
    draws=1000,
    store="auto",
    progress=True,
    keep_features=True,
):
    """Score and evaluate every cell of the grid; cells done before are read, and their images are not encoded again.

    Parameters
    ----------
    model : Backbone
    index : DataFrame of ``data.index``, or several of them concatenated; test rows are scored, references are drawn
        from the normal train rows of the same category
    methods : list of :class:`Method`
    shots : numbers K of references; 0 is zero-shot
    seeds : of the draw of references; K = 0 is run once, with the first seed
    size, draws : see :func:`evaluate`
    store : "auto", a folder, or None (nothing is kept)
    progress : show bars
    keep_features : False keeps the cells only, and the features in memory while they are scored (about 1 MB an image of the
        embedded model): for pictures that nothing else will read; not on a cluster, where they would go with each cell

    Returns
    -------
    Result

    Raises
    ------
    DataError when images cannot be read, ValueError when a category has several object names.

    Notes
    -----
    Cells run through joblib: ``with joblib.parallel_config(backend="loky", n_jobs=2)``, or ``backend="dask"`` on a
    cluster that shares the store and the images. Rows do not depend on it.
    """
    index = index.reset_index(drop=True)
    test = index[index["split"] == "test"].reset_index(drop=True)
    draws_of = {(k, s): data.split_references(index, k, s) for k in shots if k for s in seeds}
    wanted = [m for m in methods if any(m.takes(k) for k in shots)]
    pool = (
        pd.concat(draws_of.values()).drop_duplicates("image_path").reset_index(drop=True)
        if draws_of
        else test[:0]
    )
    row_of = {path: i for i, path in enumerate(pool["image_path"])}
    hashes, of_pool = np.array(features.keys(test), object), np.array(features.keys(pool), object)
    groups = test.groupby(["dataset", "category"], sort=False).indices
    requests = {
        (i, noun): (noun, m.ensemble)
        for i, m in enumerate(wanted)
        if m.ensemble is not None
        for noun in dict.fromkeys(test["object_name"])
    }
    text = prompts.prototype_table(model, requests, store=store) if requests else {}
    jobs = []
    for name, rows in groups.items():
        part, masks = (
            test.iloc[rows].reset_index(drop=True),
            [p for p in test["mask_path"].iloc[rows] if p],
        )
        if part["object_name"].nunique() > 1:
            raise ValueError(
                f"{name}: one category has several object names, {sorted(set(part['object_name']))}."
            )
        made_of = [content_hash(path) for path in masks]
        for i, method in enumerate(wanted):
            prototypes, fingerprint = (
                text.get((i, part["object_name"][0])),
                (method.backbone or model).fingerprint,
            )
            for k in shots:
                for seed in seeds if k else list(seeds)[:1]:
                    if not method.takes(k):
                        continue
                    drawn = draws_of[k, seed] if k else pool[:0]
                    own = (drawn["dataset"] == name[0]) & (drawn["category"] == name[1])
                    references = [row_of[p] for p in drawn.loc[own, "image_path"]]
                    base = dict(
                        zip(
                            KEYS,
                            (*name, method.name, model.name, k, seed, _label(method.ensemble)),
                            strict=True,
                        )
                    )
                    key = cell_key(
                        base,
                        method,
                        fingerprint,
                        hashes[rows].tolist(),
                        part["label"].tolist(),
                        made_of,
                        of_pool[references].tolist() if k else None,
                        prototypes,
                        size,
                        draws,
                    )
                    jobs.append(_Job(base, method, rows, references, prototypes, key))
    where = None if store is None else store_folder(store) / "study"
    cells = {job.key: where and read_cell(cell_path(where, job.key)) for job in jobs}
    todo = [job for job in jobs if cells[job.key] is None]
    feats, bank = (
        _encoded(model, table, todo, what, store if keep_features else None, progress)
        for table, what in ((test, "rows"), (pool, "references"))
    )
    made = Parallel(return_as="generator")(
        delayed(score_cell)(
            (
                replace(job.method, backbone=None),
                feats[job.key],
                bank.get(job.key),
                job.prototypes,
                where and cell_path(where, job.key),
            ),
            size,
            draws,
        )
        for job in todo
    )
    quiet = {} if progress and todo else {"disable": True}  # left out, TQDM_DISABLE decides
    for job, cell in zip(
        todo, tqdm(made, total=len(todo), desc="score", unit="cell", **quiet), strict=True
    ):
        cells[job.key] = cell
    facts = {"image_size": model.image_size[0], "map_size": size[0]}
    rows = [
        {**job.base, **cells[job.key]["about"], **row, **facts}
        for job in jobs
        for row in cells[job.key]["rows"]
    ]
    images = [
        {**job.base, "image": number, "label": label, "score": score}
        for job in jobs
        for number, label, score in zip(
            job.rows, cells[job.key]["labels"], cells[job.key]["scores"], strict=True
        )
    ]
    return Result(pd.DataFrame(rows), pd.DataFrame(images))


def _encoded(model, table, jobs, what, store, progress):
    """{key of a cell: features of its rows ("rows" or "references") of the table}, encoded in one pass by each backbone, nearly
    always the one that was given."""
    found = {}
    for backbone in dict.fromkeys(job.method.backbone or model for job in jobs):
        own = [
            job
            for job in jobs
            if (job.method.backbone or model) is backbone and len(getattr(job, what))
        ]
        wanted = sorted({row for job in own for row in getattr(job, what)})
        if wanted:
            feats = encode(
                backbone, table.iloc[wanted], [job.method for job in own], store, progress
            )
            found |= {job.key: feats[np.searchsorted(wanted, getattr(job, what))] for job in own}
    return found


def encode(model, index, methods, store="auto", progress=True):
    """Features with all that the methods need, encoded in one pass."""
    blocks = list(dict.fromkeys(b for m in methods for b in m.blocks))
    windows = sorted({w for m in methods for w in m.windows}, key=str)
    return features.encode(
        model, index, blocks, windows, any(m.patches for m in methods), store, progress=progress
    )


def _label(ensemble):
    if ensemble is None or isinstance(ensemble, str):
        return ensemble or "none"
    return "own-" + hashlib.sha256(json.dumps(ensemble, sort_keys=True).encode()).hexdigest()[:8]
