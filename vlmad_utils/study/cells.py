"""One cell of the grid as a file: named by all that made it, written whole, checked when it is read."""

import functools
import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import torch

from .. import paths
from .evaluate import evaluate
from .method import digest

CODE = (
    "study/*",
    "evaluation/*",
    "models/windows",
    "data/images",
    "models/onednn",
    "methods/*",
)  # modules whose change makes rows anew


@functools.cache
def code_hash():
    """Hash of the modules of which a row depends."""
    here = Path(__file__).parents[1]
    files = sorted(path for name in CODE for path in here.glob(f"{name}.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]


def cell_key(base, method, fingerprint, test, labels, masks, references, prototypes, size, draws):
    text = None if prototypes is None else digest(prototypes)
    facts = [
        base,
        method.blocks,
        method.windows,
        repr(method.settings),
        fingerprint,
        test,
        labels,
        masks,
        references,
        text,
        size,
        draws,
        code_hash(),
        torch.__version__,
        np.__version__,
    ]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:40]


def cell_path(where, key):
    return where / key[:2] / f"{key}.json"


def score_cell(job, size, draws):
    method, feats, references, prototypes, path = (
        job  # one tuple: arrays by themselves would be spread, and lost with their worker
    )
    scores = method.score(feats, references, prototypes)
    index = feats.index
    cell = {
        "about": {
            "training": scores.training,
            "meaning": scores.meaning,
            "n_images": len(index),
            "n_anomalous": int(index["label"].sum()),
        },
        "rows": evaluate(index, scores, size, draws),
        "labels": index["label"].tolist(),
        "scores": scores.image.tolist(),
    }
    if path:
        with paths.atomic_write(
            path,
            "make room and get the right to write there, or set VLMAD_STORE (or store=) to another folder",
        ) as temporary:
            temporary.write_text(json.dumps({**cell, "sha256": _checksum(cell)}), encoding="utf-8")
    return cell


def read_cell(path):
    """The cell of a file; None when there is none, or it does not read as it was written: then it is made anew."""
    try:
        cell = json.loads(path.read_bytes())
        if cell.pop("sha256") == _checksum(cell):
            return cell
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        pass
    warnings.warn(
        f"{path.name} of the study in the store was damaged; this cell is computed again."
    )
    return None


def _checksum(cell):
    return hashlib.sha256(json.dumps(cell).encode()).hexdigest()
