"""A grid of (method, category, shots, seed) to tidy rows: encode once, score each cell, evaluate, resume.

Every cell is written to the store as soon as it is done, under a name made of all that made it (images, references,
masks, words, weights, options, code), so a broken run goes on where it stopped and an old number is never taken for a
new one.
"""

import functools
import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from tqdm import tqdm

from . import data, features, files, metrics, prompts
from .methods import upsample

CODE = ("study", "metrics", "bootstrap", "windows", "images", "products", "methods/*")  # modules whose change makes rows anew
KEYS = ["dataset", "category", "method", "backbone", "k_shot", "seed", "prompts"]


@dataclass(frozen=True)
class Method:
    """How the study calls a paradigm.

    Attributes
    ----------
    name : as it stands in tables
    score : (features, references or None, prototypes (2, D) or None) -> Scores of one category
    shots : "zero" (K = 0 only), "few" (K >= 1 only) or "any"
    ensemble : name or dict of the prompts, see ``prompts.compose``; None when no text takes part
    blocks, windows, patches : what ``features.encode`` must give
    settings : whatever else decides the numbers, e.g. options and the :func:`digest` of trained weights
    backbone : None, or another view of the model whose features are wanted, e.g. ``anomalyclip.DPAM(model)``
    """

    name: str
    score: Callable
    shots: str = "any"
    ensemble: object = None
    blocks: tuple = ()
    windows: tuple = ()
    patches: bool = False
    settings: tuple = ()
    backbone: object = None

    def takes(self, k_shot):
        """Whether the method is defined for K references."""
        return self.shots == "any" or (k_shot == 0) == (self.shots == "zero")


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


def evaluate(index, scores, size=(224, 224), draws=1000, seed=0):
    """All metrics of one category as a list of dicts.

    Parameters
    ----------
    index : DataFrame of ``data.index``, B test images of one category, labels 0 and 1
    scores : Scores of the same images in the same order
    size : (H, W) at which maps (bilinear) and masks (binarised first) meet
    draws : of the bootstrap over images; 0 leaves the intervals NaN

    Returns
    -------
    list of dicts: metric, value, low, high (95 % interval), chance

    Raises
    ------
    ValueError when lengths differ, several categories are mixed, or a label is unknown.
    """
    if len(index) != len(scores):
        raise ValueError(f"The index has {len(index)} images, the scores {len(scores)}: give the scores of these images.")
    if index[["dataset", "category"]].drop_duplicates().shape[0] != 1:
        raise ValueError("evaluate takes one category at a time: scores of different categories are not comparable.")
    labels, image = index["label"].to_numpy(), scores.image.numpy()
    if not set(labels) <= {0, 1}:
        raise ValueError(f"Labels are 0 or 1, found {sorted(set(labels))}: leave out images whose label is unknown.")
    nothing = metrics.Interval(np.nan, np.nan, np.nan)
    if draws:
        found = metrics.image_bootstrap(image, labels, n=draws, seed=seed)
    else:
        found = {name: nothing._replace(value=value) for name, value in metrics.evaluate_arrays(image, labels).items()}
    has_masks = index["mask_path"].notna().to_numpy()
    if has_masks.any() and has_masks[labels == 1].all():
        maps, masks = upsample(scores.maps, size).numpy(), read_masks(index, size)
        if draws:
            found |= metrics.pixel_bootstrap(maps, masks, n=draws, seed=seed)
        else:
            exact = metrics.evaluate_arrays(image, labels, maps, masks)
            found |= {name: nothing._replace(value=value) for name, value in exact.items() if name not in found}
    return [{"metric": name, **interval._asdict(), "chance": metrics.chance(name, labels if name.startswith("image") else masks)}
            for name, interval in found.items()]


def read_masks(index, size):
    """Masks (B, H, W) bool of an index; False everywhere for images without one."""
    return np.stack([data.read_mask(path, size=tuple(size)) for path in index["mask_path"]])


def run(model, index, methods, shots=(0,), seeds=(0,), size=(224, 224), draws=1000, store="auto", progress=True, keep_features=True):
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
    pool = pd.concat(draws_of.values()).drop_duplicates("image_path").reset_index(drop=True) if draws_of else test[:0]
    row_of = {path: i for i, path in enumerate(pool["image_path"])}
    hashes, of_pool = np.array(features.keys(test), object), np.array(features.keys(pool), object)
    groups = test.groupby(["dataset", "category"], sort=False).indices
    requests = {(i, noun): (noun, m.ensemble) for i, m in enumerate(wanted) if m.ensemble is not None
                for noun in dict.fromkeys(test["object_name"])}
    text = prompts.many(model, requests, store=store) if requests else {}
    jobs = []
    for name, rows in groups.items():
        part, masks = test.iloc[rows].reset_index(drop=True), [p for p in test["mask_path"].iloc[rows] if p]
        if part["object_name"].nunique() > 1:
            raise ValueError(f"{name}: one category has several object names, {sorted(set(part['object_name']))}.")
        made_of = [features.content_hash(path) for path in masks]
        for i, method in enumerate(wanted):
            prototypes, fingerprint = text.get((i, part["object_name"][0])), (method.backbone or model).fingerprint
            for k in shots:
                for seed in seeds if k else list(seeds)[:1]:
                    if not method.takes(k):
                        continue
                    drawn = draws_of[k, seed] if k else pool[:0]
                    own = (drawn["dataset"] == name[0]) & (drawn["category"] == name[1])
                    references = [row_of[p] for p in drawn.loc[own, "image_path"]]
                    base = dict(zip(KEYS, (*name, method.name, model.name, k, seed, _label(method.ensemble)), strict=True))
                    key = _key(base, method, fingerprint, hashes[rows].tolist(), part["label"].tolist(), made_of,
                               of_pool[references].tolist() if k else None, prototypes, size, draws)
                    jobs.append(_Job(base, method, rows, references, prototypes, key))
    where = None if store is None else features.store_folder(store) / "study"
    cells = {job.key: where and _kept(_path(where, job.key)) for job in jobs}
    todo = [job for job in jobs if cells[job.key] is None]
    feats, bank = (_encoded(model, table, todo, what, store if keep_features else None, progress)
                   for table, what in ((test, "rows"), (pool, "references")))
    made = Parallel(return_as="generator")(delayed(_cell)(
        (replace(job.method, backbone=None), feats[job.key], bank.get(job.key), job.prototypes, where and _path(where, job.key)), size, draws)
        for job in todo)
    quiet = {} if progress and todo else {"disable": True}  # left out, TQDM_DISABLE decides
    for job, cell in zip(todo, tqdm(made, total=len(todo), desc="score", unit="cell", **quiet), strict=True):
        cells[job.key] = cell
    facts = {"image_size": model.image_size[0], "map_size": size[0]}
    rows = [{**job.base, **cells[job.key]["about"], **row, **facts} for job in jobs for row in cells[job.key]["rows"]]
    images = [{**job.base, "image": number, "label": label, "score": score} for job in jobs
              for number, label, score in zip(job.rows, cells[job.key]["labels"], cells[job.key]["scores"], strict=True)]
    return Result(pd.DataFrame(rows), pd.DataFrame(images))


def _encoded(model, table, jobs, what, store, progress):
    """{key of a cell: features of its rows ("rows" or "references") of the table}, encoded in one pass by each backbone, nearly
    always the one that was given."""
    found = {}
    for backbone in dict.fromkeys(job.method.backbone or model for job in jobs):
        own = [job for job in jobs if (job.method.backbone or model) is backbone and len(getattr(job, what))]
        wanted = sorted({row for job in own for row in getattr(job, what)})
        if wanted:
            feats = encode(backbone, table.iloc[wanted], [job.method for job in own], store, progress)
            found |= {job.key: feats[np.searchsorted(wanted, getattr(job, what))] for job in own}
    return found


def encode(model, index, methods, store="auto", progress=True):
    """Features with all that the methods need, encoded in one pass."""
    blocks = list(dict.fromkeys(b for m in methods for b in m.blocks))
    windows = sorted({w for m in methods for w in m.windows}, key=str)
    return features.encode(model, index, blocks, windows, any(m.patches for m in methods), store, progress=progress)


def summarise(rows, metric, by=("dataset", "method", "k_shot")):
    """Macro mean over categories.

    Parameters
    ----------
    rows : ``Result.rows``
    metric : e.g. "image_auroc"
    by : columns that make one line

    Returns
    -------
    DataFrame: by, value (mean over categories of the mean over seeds), low, high, seed_sd (standard deviation of that
    mean over seeds, NaN with one), chance, n_categories, n_images, training

    Notes
    -----
    low and high: the categories' bootstrap distances to their value, averaged over seeds, added in quadrature and divided
    by the number of categories, since images of different categories are drawn independently. The categories are taken
    as given, and the luck of the references is not in it: that is seed_sd.
    """
    by, part = list(by), rows[rows["metric"] == metric]
    if part.empty:
        raise ValueError(f"No row has metric {metric!r}; found {', '.join(sorted(rows['metric'].unique()))}.")
    lines = []
    for name, group in part.groupby(by, sort=False):
        per = group.groupby(["dataset", "category"])[["value", "low", "high", "chance", "n_images"]].mean()
        below, above = (np.sqrt((side**2).sum()) / len(per) for side in (per["value"] - per["low"], per["high"] - per["value"]))
        seeds = group.groupby("seed")["value"].mean()
        mean = per["value"].mean()
        unknown = per["low"].isna().any()
        lines.append({**dict(zip(by, name if isinstance(name, tuple) else (name,), strict=True)), "value": mean,
                      "low": np.nan if unknown else mean - below, "high": np.nan if unknown else mean + above,
                      "seed_sd": seeds.std() if len(seeds) > 1 else np.nan, "chance": per["chance"].mean(),
                      "n_categories": len(per), "n_images": int(per["n_images"].sum()),
                      "training": " / ".join(sorted(group["training"].unique()))})
    return pd.DataFrame(lines)


def digest(*modules):
    """Hash of the weights of torch modules (or of tensors), 16 hex digits, for ``Method.settings``."""
    found = hashlib.sha256()
    for module in modules:
        state = module.state_dict() if hasattr(module, "state_dict") else {"": module}
        for name, value in sorted(state.items()):
            found.update(name.encode() + np.ascontiguousarray(value.detach().cpu().float().numpy()).tobytes())
    return found.hexdigest()[:16]


@functools.cache
def code_hash():
    """Hash of the modules of which a row depends."""
    here = Path(__file__).parent
    files = sorted(path for name in CODE for path in here.glob(f"{name}.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]


def _label(ensemble):
    if ensemble is None or isinstance(ensemble, str):
        return ensemble or "none"
    return "own-" + hashlib.sha256(json.dumps(ensemble, sort_keys=True).encode()).hexdigest()[:8]


def _key(base, method, fingerprint, test, labels, masks, references, prototypes, size, draws):
    text = None if prototypes is None else digest(prototypes)
    facts = [base, method.blocks, method.windows, repr(method.settings), fingerprint, test, labels, masks, references, text, size,
             draws, code_hash(), torch.__version__, np.__version__]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:40]


def _path(where, key):
    return where / key[:2] / f"{key}.json"


def _cell(job, size, draws):
    method, feats, references, prototypes, path = job  # one tuple: arrays by themselves would be spread, and lost with their worker
    scores = method.score(feats, references, prototypes)
    index = feats.index
    cell = {"about": {"training": scores.training, "meaning": scores.meaning, "n_images": len(index),
                      "n_anomalous": int(index["label"].sum())},
            "rows": evaluate(index, scores, size, draws), "labels": index["label"].tolist(), "scores": scores.image.tolist()}
    if path:
        with files.whole(path, "make room and get the right to write there, or set VLMAD_STORE (or store=) to another folder") as temporary:
            temporary.write_text(json.dumps({**cell, "sha256": _checksum(cell)}), encoding="utf-8")
    return cell


def _kept(path):
    """The cell of a file; None when there is none, or it does not read as it was written: then it is made anew."""
    try:
        cell = json.loads(path.read_bytes())
        if cell.pop("sha256") == _checksum(cell):
            return cell
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        pass
    warnings.warn(f"{path.name} of the study in the store was damaged; this cell is computed again.")
    return None


def _checksum(cell):
    return hashlib.sha256(json.dumps(cell).encode()).hexdigest()
