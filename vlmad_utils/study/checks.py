"""Refuse what a grid cannot run to its end, before anything is encoded."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..data import DataError
from ..models import Backbone
from .method import Method


def check_run(
    model: Backbone,
    index: pd.DataFrame,
    methods: Sequence[Method],
    shots: Sequence[int],
    seeds: Sequence[int],
) -> None:
    """Check what :func:`.grid.run` is asked for.

    Raises
    ------
    ValueError when nothing is left to run, a label is unknown, two methods would write the same
    rows, a category has several object names or none, or a backbone cannot give a block or window;
    DataError when a category has too few references.
    """
    test = index[index["split"] == "test"]
    check_not_empty(test, methods, shots, seeds)
    check_labels(test["label"])
    check_names(methods, shots)
    check_object_names(test, any(method.ensemble is not None for method in methods))
    check_references(index, test, [k for k in shots if any(m.takes(k) for m in methods)])
    for method in methods:
        if any(method.takes(k) for k in shots):
            (method.backbone or model).check_request(method.blocks, method.windows)


def check_not_empty(
    test: pd.DataFrame, methods: Sequence[Method], shots: Sequence[int], seeds: Sequence[int]
) -> None:
    """Raise ValueError, with the reason, when no cell is left to run."""
    given = {"methods": methods, "shots": shots, "seeds": seeds}
    if missing := [name for name, values in given.items() if not len(values)]:
        raise ValueError(f"nothing is left to run: {' and '.join(missing)} hold nothing.")
    if test.empty:
        raise ValueError(
            "nothing is left to run: the index has no row with split 'test'. Only test images are "
            "scored; those of split 'train' serve as references."
        )
    if not any(method.takes(k) for method in methods for k in shots):
        needs = {"few": "1 or more references", "zero": "0 references"}
        found = "; ".join(f"{m.name} takes {needs[m.shots]}" for m in methods)
        raise ValueError(
            f"nothing is left to run with shots={tuple(shots)}: {found}. Add a number of "
            "references that a method takes, or a method that takes these."
        )


def check_labels(labels: pd.Series) -> None:
    """Raise ValueError for labels other than 0 and 1."""
    if not set(labels) <= {0, 1}:
        raise ValueError(
            f"Labels are 0 or 1, found {sorted(set(labels))}: leave out images whose label is "
            "unknown, e.g. index[index['label'] >= 0]."
        )


def ensemble_label(ensemble: str | Mapping[str, Any] | None) -> str:
    """Return the name of an ensemble in tables."""
    if ensemble is None or isinstance(ensemble, str):
        return ensemble or "none"
    return "own-" + hashlib.sha256(json.dumps(ensemble, sort_keys=True).encode()).hexdigest()[:8]


def check_names(methods: Sequence[Method], shots: Sequence[int]) -> None:
    """Raise ValueError for methods whose rows could not be told from each other."""
    rows = [
        (m.name, ensemble_label(m.ensemble), k) for m in methods for k in set(shots) if m.takes(k)
    ]
    if twice := [row for row, times in Counter(rows).items() if times > 1]:
        name, label, k = twice[0]
        raise ValueError(
            f"two methods are called {name!r} with prompts {label!r} at {k} references: their rows "
            "could not be told from each other. Give each a name of its own, e.g. "
            "dataclasses.replace(method, name=...)."
        )


def check_object_names(test: pd.DataFrame, with_text: bool) -> None:
    """Raise ValueError when a category has several object names, or, for text, none."""
    for name, part in test.groupby(["dataset", "category"], sort=False):
        if part["object_name"].nunique() > 1:
            raise ValueError(
                f"{name}: one category has several object names, "
                f"{sorted(set(part['object_name']))}. Give each a category of its own."
            )
        words = part["object_name"].iloc[0]
        if with_text and not (isinstance(words, str) and words.strip()):
            raise ValueError(
                f"{name}: prompts need words for the object in the column object_name, found "
                f"{words!r}. Give them as data.index(..., object_names=)."
            )


def check_references(index: pd.DataFrame, test: pd.DataFrame, shots: Sequence[int]) -> None:
    """Raise DataError when a tested category has fewer normal train images than are drawn."""
    if (least := min(shots)) < 0:
        raise ValueError(f"shots are numbers of references, 0 or more, found {least}.")
    normals = index[(index["split"] == "train") & (index["label"] == 0)]
    there = normals.groupby(["dataset", "category"]).size()
    tested = dict.fromkeys(zip(test["dataset"], test["category"]))
    few = {name: there.get(name, 0) for name in tested if there.get(name, 0) < max(shots)}
    if few:
        found = ", ".join(f"{'/'.join(name)} has {n}" for name, n in few.items())
        raise DataError(
            f"{max(shots)} references wanted, but {found} normal train images: ask for "
            f"at most {min(few.values())}, or add normal images to split 'train'."
        )
