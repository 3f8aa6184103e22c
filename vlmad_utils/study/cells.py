"""Keep one cell of the grid as a file: named by all that made it, checked when it is read."""

import functools
import hashlib
import json
import traceback
import warnings
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch

from .. import paths
from ..features import Features
from ..models.cores import exact
from ..store import SYSTEM_LIMITS, StoreError
from .evaluate import evaluate
from .method import Method

# Files whose change makes rows anew: all code but what only finds, names or keeps things. What the
# index says (images, masks, labels, words, references) is in the key of a cell by its content.
CODE = (
    "data/images.py",
    "evaluation/*.py",
    "features/*.py",
    "methods/*.py",
    "models/*.py",
    "models/prompts.yaml",
    "study/*.py",
)
ADVICE = (
    "make room and get the right to write there, or set VLMAD_STORE (or store=) to another folder"
)


class Cell(TypedDict):
    """Scores of one category by one method with one draw of references, and their metrics.

    Attributes
    ----------
    about : training, meaning, n_images, n_anomalous
    rows : see :func:`.evaluate.evaluate`
    labels, scores : of each image
    """

    about: dict[str, Any]
    rows: list[dict[str, Any]]
    labels: list[int]
    scores: list[float]


class Failure(NamedTuple):
    """What went wrong in a cell, as it comes from a worker: its name, the error, where it was."""

    name: str
    error: str
    trace: str


class Task(NamedTuple):
    """What a cell is made of, as it goes to a worker.

    One tuple, since joblib would spread arrays by themselves and lose them with their worker.
    """

    name: str
    method: Method
    features: Features
    references: Features | None
    prototypes: torch.Tensor | None
    path: Path | None


def code_files() -> list[Path]:
    """Return the files of code on which a row depends."""
    package = Path(__file__).parents[1]
    return sorted(path for pattern in CODE for path in package.glob(pattern))


@functools.cache
def code_hash() -> str:
    """Return the hash of the code on which a row depends."""
    content = b"\0".join(path.read_bytes() for path in code_files())
    return hashlib.sha256(content).hexdigest()[:16]


def cell_key(**facts: Any) -> str:
    """Return the name of a cell: hash of what made it, of the code, and of torch and NumPy."""
    made_by = {"code": code_hash(), "torch": torch.__version__, "numpy": np.__version__}
    text = json.dumps({**facts, **made_by}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def cell_path(folder: Path, key: str) -> Path:
    """Return where a cell lies."""
    return folder / key[:2] / f"{key}.json"


def score_cell(task: Task, size: tuple[int, int], draws: int) -> Cell | Failure:
    """Score and evaluate the images of a cell, and write it where it has a path.

    Returns
    -------
    Cell, or Failure for a RuntimeError, such as that of a device or its driver, where cells have a
    path: the others can be done and kept

    Raises
    ------
    Any other error, with the name of the cell in a note.
    """
    try:
        return _scored(task, size, draws)
    except Exception as error:
        error.add_note(f"in the cell {task.name}")
        if task.path and isinstance(error, RuntimeError):
            return Failure(task.name, f"{type(error).__name__}: {error}", traceback.format_exc())
        raise


def _scored(task: Task, size: tuple[int, int], draws: int) -> Cell:
    with exact(task.features.device):
        scores = task.method.score(task.features, task.references, task.prototypes).cpu()
    index = task.features.index
    assert index is not None
    cell: Cell = {
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
    if task.path:
        with paths.atomic_write(task.path, ADVICE) as temporary:
            temporary.write_text(json.dumps({**cell, "sha256": _checksum(cell)}), encoding="utf-8")
    return cell


def read_cell(path: Path) -> Cell | None:
    """Return the cell of a file; None without one, or (with a warning) where it is damaged.

    Raises
    ------
    StoreError where it cannot be read; it is kept.
    """
    try:
        cell = json.loads(path.read_bytes())
        if cell.pop("sha256") == _checksum(cell):
            return cell
    except FileNotFoundError:
        return None
    except OSError as error:  # not the file is to blame, so nothing is computed again
        advice = SYSTEM_LIMITS.get(error.errno or 0, f"Get the right to read it, or {ADVICE}")
        raise StoreError(f"{path} of the study cannot be read ({error}). {advice}.") from error
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    warnings.warn(
        f"{path.name} of the study in the store was damaged; this cell is computed again."
    )
    return None


def _checksum(cell: Cell) -> str:
    return hashlib.sha256(json.dumps(cell).encode()).hexdigest()
