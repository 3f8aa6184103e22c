"""Run a grid of (method, category, shots, seed): encode once, score each cell, evaluate, resume.

Every cell is written to the store as soon as it is done, under a name made of what made it: images,
references, masks, words, backbone, the code of this package, and the name and ``settings`` of the
method. So a broken run goes on where it stopped. Whatever else decides the numbers of a method of
your own, above all the code of its ``score``, must be named in its ``settings``: only then is an
old number never taken for a new one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from tqdm import tqdm

from .. import features
from ..features import Features
from ..models import Backbone, prompts
from ..paths import store_folder
from .cells import Cell, Failure, Task, cell_path, read_cell, score_cell
from .checks import check_run
from .jobs import Images, Job, build_jobs, gather_images
from .method import Method


@dataclass(frozen=True)
class Result:
    """What :func:`run` gives.

    Attributes
    ----------
    rows : DataFrame, one row per cell and metric: KEYS, training, meaning, metric, value, low,
        high, chance, n_images, n_anomalous, image_size, map_size
    images : DataFrame, one row per cell and image: KEYS, image (row number in the test part of
        the index), label, score
    """

    rows: pd.DataFrame
    images: pd.DataFrame


def run(
    model: Backbone,
    index: pd.DataFrame,
    methods: Sequence[Method],
    shots: Iterable[int] = (0,),
    seeds: Iterable[int] = (0,),
    size: tuple[int, int] = (224, 224),
    draws: int = 1000,
    store: Path | str | None = "auto",
    progress: bool = True,
    keep_features: bool = True,
) -> Result:
    """Score and evaluate every cell of the grid.

    Cells that were done before are read, and their images are not encoded again.

    Parameters
    ----------
    model : Backbone
    index : DataFrame of ``data.index``, or several of them concatenated; test rows are scored,
        references are drawn from the normal train rows of the same category
    methods : list of :class:`Method`
    shots : numbers K of references; 0 is zero-shot
    seeds : of the draw of references; K = 0 is run once, with the first seed
    size, draws : see :func:`evaluate`
    store : "auto", a folder, or None (nothing is kept)
    progress : show bars
    keep_features : False keeps the cells only, and the features in memory while they are scored
        (about 1 MB an image of the embedded model): for images that nothing else will read; not
        on a cluster, where they would go with each cell

    Returns
    -------
    Result

    Raises
    ------
    Before anything is encoded. ValueError when nothing is left to run, a label is unknown, two
    methods have the same name and prompts, a category has several object names, or the backbone
    cannot give a block or window; DataError when images cannot be read, or a category has too few
    references. At the end: RuntimeError with the names of cells that failed by a RuntimeError, such
    as that of a device or its driver; with a store all others are done and kept, so that the next
    run computes only these.

    Notes
    -----
    Cells run through joblib: ``with joblib.parallel_config(backend="loky", n_jobs=2)``, or
    ``backend="dask"`` on a cluster that shares the store and the images. Rows do not depend on it.

    With a model on a GPU the methods run there, and only scores and maps leave it. Processes would
    share the GPU badly, so the cells stay in this one: one at a time, or in threads with
    ``joblib.parallel_config(backend="threading", n_jobs=4)``.
    """
    methods = list(methods)
    shots, seeds = list(dict.fromkeys(shots)), list(dict.fromkeys(seeds))  # each once
    check_run(model, index, methods, shots, seeds)
    shots = [k for k in shots if any(method.takes(k) for method in methods)]
    images = gather_images(index, shots, seeds)
    jobs = build_jobs(model, images, methods, shots, seeds, size, draws)
    folder = None if store is None else store_folder(store) / "study"
    cells = _finished(jobs, folder)
    todo = [job for job in jobs if job.key not in cells]
    tasks = _prepared(model, images, todo, folder, store, keep_features, progress)
    cells |= _scored(todo, tasks, size, draws, progress)
    return _tidy(jobs, cells, {"image_size": model.image_size[0], "map_size": size[0]})


def encode(
    model: Backbone,
    index: pd.DataFrame,
    methods: Iterable[Method],
    store: Path | str | None = "auto",
    progress: bool = True,
) -> Features:
    """Encode images with all that the methods need, in one pass."""
    methods = list(methods)
    blocks = list(dict.fromkeys(b for m in methods for b in m.blocks))
    windows = sorted({w for m in methods for w in m.windows}, key=str)
    patches = any(m.patches for m in methods)
    return features.encode(model, index, blocks, windows, patches, store, progress=progress)


def _finished(jobs: Sequence[Job], folder: Path | None) -> dict[str, Cell]:
    """Read the cells that lie in the store."""
    if folder is None:
        return {}
    found = {job.key: read_cell(cell_path(folder, job.key)) for job in jobs}
    return {key: cell for key, cell in found.items() if cell is not None}


def _prepared(
    model: Backbone,
    images: Images,
    todo: Sequence[Job],
    folder: Path | None,
    store: Path | str | None,
    keep_features: bool,
    progress: bool,
) -> list[Task]:
    """Encode the words and images of the cells that are missing; return what each is made of."""
    requests = {
        job.texts: (job.object_name, job.method.ensemble)
        for job in todo
        if job.texts is not None and job.method.ensemble is not None
    }
    text = prompts.prototype_table(model, requests, store=store) if requests else {}
    kept = store if keep_features else None
    test = _encoded(model, images.test, {job: job.rows for job in todo}, kept, progress)
    bank = _encoded(model, images.pool, {job: job.references for job in todo}, kept, progress)
    return [
        Task(
            job.name,
            replace(job.method, backbone=None),
            test[job.key],
            bank.get(job.key),
            None if job.texts is None else text[job.texts].to(test[job.key].device),
            None if folder is None else cell_path(folder, job.key),
        )
        for job in todo
    ]


def _encoded(
    model: Backbone,
    table: pd.DataFrame,
    rows: Mapping[Job, Sequence[int] | np.ndarray],
    store: Path | str | None,
    progress: bool,
) -> dict[str, Features]:
    """Encode rows of a table in one pass a backbone; return the features of each cell by its key.

    They are read to the GPU of their backbone, where it has one. Nearly always there is one
    backbone, the one that was given.
    """
    by_backbone: dict[Backbone, list[Job]] = {}
    for job in rows:
        if len(rows[job]):
            by_backbone.setdefault(job.method.backbone or model, []).append(job)
    found = {}
    for backbone, jobs in by_backbone.items():
        needed = sorted({row for job in jobs for row in rows[job]})
        feats = encode(backbone, table.iloc[needed], [j.method for j in jobs], store, progress)
        if torch.device(backbone.device).type == "cuda":
            feats = feats.to(backbone.device)
        found |= {job.key: feats[np.searchsorted(needed, rows[job])] for job in jobs}
    return found


def _scored(
    todo: Sequence[Job], tasks: Sequence[Task], size: tuple[int, int], draws: int, progress: bool
) -> dict[str, Cell]:
    """Score and write the cells, wherever joblib runs them.

    Raises
    ------
    RuntimeError with the names of those that failed, when all others are done.
    """
    on_gpu = any(task.features.device.type == "cuda" for task in tasks)
    parallel = Parallel(return_as="generator", require="sharedmem" if on_gpu else None)
    made: Iterator[Cell | Failure] = parallel(
        delayed(score_cell)(task, size, draws) for task in tasks
    )
    # left out, TQDM_DISABLE decides
    quiet: dict[str, Any] = {} if progress and todo else {"disable": True}
    with tqdm(total=len(todo), desc="score", unit="cell", **quiet) as bar:
        found, failed = {}, []
        for job, cell in zip(todo, made, strict=True):
            if isinstance(cell, Failure):
                failed.append(cell)
            else:
                found[job.key] = cell
            bar.update()
    if failed:
        raise _failed(failed, len(todo))
    return found


def _failed(failures: Sequence[Failure], of: int) -> RuntimeError:
    """Return an error that names the cells that failed."""
    first, *others = failures
    more = f" Also: {'; '.join(x.name for x in others[:5])}" if others else ""
    more += f" and {len(others) - 5} more." if len(others) > 5 else "." if others else ""
    error = RuntimeError(
        f"{len(failures)} of {of} cells failed; the other {of - len(failures)} are kept in the "
        f"store, and the next run computes only what is missing. {first.name}: {first.error}.{more}"
    )
    error.add_note(first.trace)
    return error


def _tidy(jobs: Sequence[Job], cells: Mapping[str, Cell], facts: Mapping[str, int]) -> Result:
    """Put the cells of all jobs in two tables."""
    rows, images = [], []
    for job in jobs:
        cell = cells[job.key]
        rows += [{**job.base, **cell["about"], **row, **facts} for row in cell["rows"]]
        images += [
            {**job.base, "image": number, "label": label, "score": score}
            for number, label, score in zip(job.rows, cell["labels"], cell["scores"], strict=True)
        ]
    return Result(pd.DataFrame(rows), pd.DataFrame(images))
