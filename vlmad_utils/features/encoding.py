"""Encode once, score many: features of images, kept where every notebook and method reads them (:mod:`vlmad_utils.store`).

Files are named by what makes them, so asking for more later computes only the difference, another model or another picture
never meets old numbers, and renamed or moved images are found again. A kill at any moment loses at most the batch in flight.
"""

import math
import os
import warnings
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed, parallel_config
from joblib.parallel import get_active_backend
from tqdm import tqdm

from .. import data
from ..models.windows import window_indices
from ..paths import content_hash, store_folder
from ..store import SYSTEM_LIMITS, DiskStore, MemoryStore
from .arrays import Features


def encode(
    model,
    images,
    blocks=(),
    windows=(),
    patches=True,
    store="auto",
    batch_size=8,
    progress=True,
    on_error="raise",
):
    """Encode images once; what the store already has is not computed again.

    Parameters
    ----------
    model : Backbone
    images : DataFrame with a column image_path (from ``data.index``), a row of it, a list of paths or of (H, W, 3) uint8
        arrays, or one path or array
    blocks, windows, patches : what is wanted, see ``Backbone.encode_image``
    store : "auto" (:func:`store_dir`), a folder, or None for memory only
    batch_size : images per forward pass; halved as often as the memory of a GPU asks for it
    progress : show a bar with rate and remaining time
    on_error : "raise", or "skip" to leave unreadable files out and report them

    Returns
    -------
    Features. Tokens, patches and windows are rounded to float16 (also without a store, so scores do not depend on it);
    the image embedding is float32.

    Notes
    -----
    Under ``joblib.parallel_config(backend="dask")`` batches spread over a cluster that shares the store and the images; the
    model is sent once. Without a store, and under joblib's other backends, whose processes would get a copy of the model with
    each batch, they run in this process. The numbers are the same. What another process stores meanwhile is not computed
    here, too.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is 'raise' or 'skip', found {on_error!r}.")
    if batch_size < 1:
        raise ValueError(f"batch_size is at least 1, found {batch_size!r}.")
    kinds = _kinds(blocks, windows, patches)
    request = _request(kinds)  # as the model will be asked, so that no batch can be refused
    model.check_request(request["blocks"], request["windows"])
    index = _table(images)
    items = _items(images if index is None else index)
    where = MemoryStore() if store is None else DiskStore(store_folder(store), model.fingerprint)

    keys = _hashes(items)
    bad = {i: key for i, key in enumerate(keys) if isinstance(key, Exception)}
    missing = {}  # key -> (item, kinds), each distinct picture once
    for i, (item, key) in enumerate(zip(items, keys)):
        wanted = [kind for kind in kinds if i not in bad and not where.has(kind, key)]
        if wanted:
            missing.setdefault(key, (item, wanted))

    def fill(todo, label):
        batches = [todo[i : i + batch_size] for i in range(0, len(todo), batch_size)]
        failures = {}
        if not todo:
            return failures
        # what a worker put into its own memory would be lost
        cluster = None if store is None else _cluster()
        if cluster is None:
            jobs = (_encode_batch(model, b, where, pixels) for b, pixels in _ahead(model, batches))
        else:
            with _sent_once(model, cluster):
                jobs = Parallel(return_as="generator")(
                    delayed(_encode_batch)(model, batch, where) for batch in batches
                )
        quiet = {} if progress else {"disable": True}  # left out, TQDM_DISABLE decides
        with tqdm(total=len(todo), desc=label, unit="image", **quiet) as bar:
            for batch, failed in zip(batches, jobs):
                failures.update(failed)
                bar.update(len(batch))
        return failures

    failures = fill([(key, *job) for key, job in missing.items()], f"encode with {model.name}")
    bad.update({i: failures[key] for i, key in enumerate(keys) if i not in bad and key in failures})
    if bad:
        report = "\n".join(f"  {_name(items[i])}: {error}" for i, error in sorted(bad.items()))
        if on_error == "raise":
            raise data.DataError(
                f"{len(bad)} of {len(items)} images could not be encoded (the others are stored):\n{report}\n"
                'Mend or remove them, or pass on_error="skip".'
            )
        warnings.warn(f"{len(bad)} of {len(items)} images were left out:\n{report}")
    good = [i for i in range(len(items)) if i not in bad]
    kept = index.iloc[good].reset_index(drop=True) if index is not None else None

    def recompute():
        now = _hashes([items[i] for i in good])  # a file may hold another image by now
        redo = {
            keys[i]: (keys[i], items[i], [k for k in kinds if not where.has(k, keys[i])])
            for i, key in zip(good, now)
            if key == keys[i]
        }
        fill([job for job in redo.values() if job[2]], "mend the store")

    return Features(
        where, [keys[i] for i in good], model.grid, _shapes(model, kinds), kept, recompute
    )


def keys(images):
    """What names each picture in the store, without encoding any: its content, so a copy has the same key.

    Parameters
    ----------
    images : as in :func:`encode`

    Returns list of str. Raises DataError that names the files that cannot be read.
    """
    table = _table(images)
    items = _items(images if table is None else table)
    found = _hashes(items)
    bad = [
        f"  {_name(item)}: {key}" for item, key in zip(items, found) if isinstance(key, Exception)
    ]
    if bad:
        raise data.DataError(
            f"{len(bad)} of {len(items)} images cannot be read:\n"
            + "\n".join(bad)
            + "\nMend or remove them."
        )
    return found


def _table(images):
    """Return the table of a request, numbered from 0, or None for images without one."""
    if isinstance(images, pd.Series) and "image_path" in images.index:  # a row of a table
        images = images.to_frame().T.infer_objects()
    return images.reset_index(drop=True) if isinstance(images, pd.DataFrame) else None


def _items(images):
    """Return the paths and arrays of a request as a list; one path or array is one image."""
    if isinstance(images, pd.DataFrame):
        if "image_path" not in images:
            columns = ", ".join(map(str, images.columns))
            raise ValueError(
                f"The table has no column image_path, found {columns}: see data.index."
            )
        return list(images["image_path"])
    one_array = isinstance(images, np.ndarray) and images.ndim in (2, 3)
    if one_array or isinstance(images, (str, os.PathLike)):
        return [images]
    if not isinstance(images, Iterable):
        raise TypeError(
            "images is a table of data.index, a list of paths or of arrays (H, W, 3), or one of "
            f"these, found {type(images).__name__}."
        )
    return list(images)


def _hash(item):
    if not isinstance(item, (str, os.PathLike, np.ndarray)):
        raise TypeError("an image is a path or an array (H, W, 3)")
    return content_hash(item)


def _hashes(items):
    """Content hash of each item, or the exception that reading it raised."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda item: _try(_hash, item), items))


def disk_need(model, n_images, blocks=(), windows=(), patches=True):
    """Bytes that :func:`encode` writes for so many different images, from the shapes alone; each file's header of about 120
    bytes and the file system's rounding come on top."""
    shapes = _shapes(model, _kinds(blocks, windows, patches))
    return n_images * sum(
        math.prod(shape) * _dtype(kind).itemsize for kind, shape in shapes.items()
    )


def _kinds(blocks, windows, patches):
    """Return the kinds of arrays that a request asks for, each once."""
    blocks, windows = (
        [names] if isinstance(names, str) or not isinstance(names, Iterable) else names
        for names in (blocks, windows)
    )
    asked = ["image", *(f"tokens-{b}" for b in blocks), *(f"windows-{k}" for k in windows)]
    return list(dict.fromkeys(asked + ["patches"] if patches else asked))


def _request(kinds):
    """Return the arguments of ``encode_image`` that make it give these kinds."""
    names = {"tokens": [], "windows": []}
    for kind in kinds:
        what, _, name = kind.partition("-")
        if name:
            names[what].append(int(name) if name.isdigit() else name)
    return {"blocks": names["tokens"], "windows": names["windows"], "patches": "patches" in kinds}


def _dtype(kind):
    """Return the type in which a kind is stored."""
    return np.dtype(np.float32 if kind == "image" else np.float16)


def _shapes(model, kinds):
    """Return {kind: shape of the array of one image}."""
    n = model.grid[0] * model.grid[1]
    shapes = {"image": (model.dim,), "patches": (n, model.dim)}
    for kind in kinds:
        what, _, name = kind.partition("-")
        if what == "tokens":
            shapes[kind] = (1 if name == "cls" else n, model.token_width)
        elif what == "windows":
            window = int(name) if name.isdigit() else name
            shapes[kind] = (len(window_indices(model.grid, window)), model.dim)
    return {kind: shapes[kind] for kind in kinds}


def _cluster():
    """Return joblib's active backend if it can keep the model on its workers (Dask), else None."""
    backend = get_active_backend()[0]
    return backend if hasattr(backend, "data_futures") else None


def _sent_once(model, backend):
    """Bring the model to every worker of Dask before the first batch; joblib would send it with each."""
    if id(model) in backend.data_futures:
        return nullcontext()
    return parallel_config(
        backend="dask",
        client=backend.client,
        scatter=[model],
        wait_for_workers_timeout=backend.wait_for_workers_timeout,
        **backend.submit_kwargs,
    )


def _try(function, *args):
    try:
        return function(*args)
    except Exception as error:  # reported by name by the caller, never swallowed
        for found in (error, error.__cause__):  # read_image gives its reason as the cause
            if isinstance(found, OSError) and found.errno in SYSTEM_LIMITS:
                advice = f"{found.strerror}, no image is to blame. {SYSTEM_LIMITS[found.errno]}"
                raise OSError(found.errno, advice, found.filename) from error
        return error


def _name(item):
    if isinstance(item, np.ndarray):
        return f"array {item.shape}"
    return str(item) if isinstance(item, (str, os.PathLike)) else type(item).__name__


def _load(model, item):
    return model.preprocess(item if isinstance(item, np.ndarray) else data.read_image(item))


def _ahead(model, batches, n=2):
    """Yields (batch, futures of its pixels): up to n further batches are read by threads while the model works."""
    with ThreadPoolExecutor(4) as pool:
        read = deque()
        for batch in batches:
            read.append((batch, [pool.submit(_try, _load, model, item) for _, item, _ in batch]))
            if len(read) > n:
                yield read.popleft()
        yield from read


def _in_memory(model, pixels, **wanted):
    """``model.encode_image``; a batch that is too large for the memory of a GPU goes through it in halves."""
    try:
        return model.encode_image(pixels, **wanted)
    except torch.OutOfMemoryError:
        if len(pixels) == 1:
            raise
    torch.cuda.empty_cache()  # after the except block: what the traceback held is free by now
    halves = [_in_memory(model, half, **wanted) for half in pixels.tensor_split(2)]
    return {name: torch.cat([half[name] for half in halves]) for name in halves[0]}


def _encode_batch(model, batch, where, pixels=None):
    """Encode and store one batch [(key, item, kinds)]; returns {key: error} for images that could not be encoded. ``pixels``
    are futures of them, or None: then they are read here, as on another machine."""
    if pixels is None:
        with ThreadPoolExecutor(4) as pool:
            pixels = [pool.submit(_try, _load, model, job[1]) for job in batch]
    pixels = [future.result() for future in pixels]
    batch = [
        (key, item, [kind for kind in kinds if not where.has(kind, key)])
        for key, item, kinds in batch
    ]  # others may have been here
    failures = {job[0]: p for job, p in zip(batch, pixels) if isinstance(p, Exception)}
    ready = [(job, p) for job, p in zip(batch, pixels) if job[2] and job[0] not in failures]
    for wanted in sorted(
        {tuple(job[2]) for job, _ in ready}
    ):  # images of one batch may lack different kinds
        group = [(job, p) for job, p in ready if tuple(job[2]) == wanted]
        stacked = torch.stack([p for _, p in group])
        out = _in_memory(
            model,
            stacked.pin_memory()
            if torch.device(model.device).type == "cuda"
            else stacked,  # pinned: copied while the GPU works
            **_request(wanted),
        )
        with np.errstate(over="ignore"):  # what is beyond float16 is named below
            rounded = {kind: out[kind].numpy().astype(_dtype(kind)) for kind in wanted}
        for i, (job, _) in enumerate(group):
            if strange := [kind for kind in wanted if not np.isfinite(rounded[kind][i]).all()]:
                failures[job[0]] = data.DataError(
                    f"the model gave NaN or numbers beyond 65504 ({', '.join(strange)}): check its weights "
                    "and its precision"
                )
                continue
            for kind in wanted:
                where.put(kind, job[0], rounded[kind][i])
    return failures
