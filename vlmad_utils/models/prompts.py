"""Prompt ensembles and the two text prototypes that they make.

The lists are data in ``prompts.yaml``. A model only needs ``encode_text(list of P strings) -> (P,
D)``, whose rows may have any length (open_clip's are not unit vectors). With a ``fingerprint`` its
embeddings are kept on disk with those of images (``store`` as in ``features.encode``: "auto", a
folder, or None for no disk). A Backbone remembers them, too.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
import torch.nn.functional as F
import yaml
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

from ..paths import store_folder
from ..store import DiskStore

ClassNames = Literal["raw", "spaces", "promptad"]
Ensemble = str | Mapping[str, Sequence[str]]
K = TypeVar("K")


class TextModel(Protocol):
    """What prompts need of a model. With a ``fingerprint`` its embeddings are stored."""

    def encode_text(self, prompts: list[str], /) -> torch.Tensor:
        """Return the embeddings (P, D) of P prompts; their length is free."""
        ...


@functools.cache
def library() -> dict[str, Any]:
    """Return the contents of prompts.yaml: states, templates, ensembles, class_names."""
    tables = yaml.safe_load((Path(__file__).parent / "prompts.yaml").read_text(encoding="utf-8"))
    tables["templates"]["open_clip"] = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    return tables


def class_name(object_name: str, how: ClassNames = "raw") -> str:
    """Return the words for the object in a prompt.

    Parameters
    ----------
    how : "raw" as given (APRIL-GAN and most WinCLIP rebuilds feed ``metal_nut``); "spaces" for
        underscores (mala-lab); "promptad" maps MVTec and VisA folder names to words (``pcb1`` to
        printed circuit board), then "spaces"
    """
    if how == "raw":
        return object_name
    if how == "promptad":
        object_name = library()["class_names"]["promptad"].get(object_name, object_name)
    elif how != "spaces":
        raise ValueError(f"class_names is raw, spaces or promptad, found {how!r}.")
    return object_name.replace("_", " ")


def compose(
    object_name: str,
    ensemble: Ensemble = "winclip",
    class_names: ClassNames = "raw",
    extra_states: Mapping[str, Sequence[str]] | None = None,
) -> tuple[list[str], list[str]]:
    """Return all prompts of an ensemble.

    Parameters
    ----------
    object_name : words for the object, e.g. "metal nut"
    ensemble : a name in prompts.yaml, or one's own dict with lists ``normal`` and ``anomalous`` of
        states and optionally ``templates`` (default ["{}"]); "{}" marks where the object or the
        state goes
    class_names : see :func:`class_name`
    extra_states : dict with lists ``normal`` and/or ``anomalous``, added for one task, e.g. "{}
        with bad soldering"

    Returns
    -------
    (normal, anomalous) : lists of str; states outside, templates inside

    Raises
    ------
    ValueError for an unknown ensemble or key, or an entry without "{}".

    Source: WinCLIP, compositional prompt ensemble.
    """
    tables = library()
    if isinstance(ensemble, str):
        if ensemble not in tables["ensembles"]:
            raise ValueError(
                f"No prompt ensemble is called {ensemble!r}: wanted "
                f"{', '.join(tables['ensembles'])}, or a dict with lists 'normal' and 'anomalous'."
            )
        recipe = tables["ensembles"][ensemble]
        own = {
            **tables["states"][recipe["states"]],
            "templates": tables["templates"][recipe["templates"]],
        }
    else:
        own = {"normal": [], "anomalous": [], "templates": ["{}"], **ensemble}
    unknown = (set(own) | set(extra_states or {})) - {"normal", "anomalous", "templates"}
    if unknown or "templates" in (extra_states or {}):
        raise ValueError(
            "A prompt dict has lists 'normal' and 'anomalous' (states) and, for an ensemble, "
            f"'templates'; found {sorted(unknown) or ['templates in extra_states']}."
        )
    name = class_name(object_name, class_names)
    sides = {}
    for side in ("normal", "anomalous"):
        states = [*own[side], *(extra_states or {}).get(side, [])]
        for entry in [*states, *own["templates"]]:
            if not isinstance(entry, str) or entry.count("{}") != 1:
                raise ValueError(
                    f"Each state and template is a string with one '{{}}', found {entry!r}."
                )
        sides[side] = [
            template.replace("{}", state.replace("{}", name))
            for state in states
            for template in own["templates"]
        ]
    if not sides["normal"]:
        raise ValueError(
            "The ensemble has no normal prompts; give at least one normal state and one template."
        )
    return sides["normal"], sides["anomalous"]


def embed(
    model: TextModel, prompts: Sequence[str], store: Path | str | None = "auto"
) -> torch.Tensor:
    """Return text embeddings (P, D) float32 as the model gives them; unknown prompts are encoded.

    They are stored one row a prompt, so a row never depends on what else is asked for.

    Raises
    ------
    ValueError for no prompts, or one text in place of a list; for a model that gives another
    number of rows, or values that are not finite (nothing is stored then).
    """
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"embed takes a list of one or more prompts, found {prompts!r}.")
    fingerprint = getattr(model, "fingerprint", None)
    known = getattr(model, "text_rows", {})  # of this object; others remember in the store only
    rows = {prompt: known[prompt] for prompt in prompts if prompt in known}
    on_disk = store is not None and fingerprint
    where = DiskStore(store_folder(store), fingerprint) if on_disk else None
    asked = [prompt for prompt in dict.fromkeys(prompts) if prompt not in rows]
    if where:
        rows |= _stored(where, asked)
    if new := [prompt for prompt in asked if prompt not in rows]:
        encoded = torch.as_tensor(model.encode_text(new)).detach().to("cpu", torch.float32)
        if len(encoded) != len(new) or not encoded.isfinite().all():
            raise ValueError(
                f"the model gave rows {tuple(encoded.shape)} for {len(new)} prompts"
                f"{'' if encoded.isfinite().all() else ', some of them not finite'}: check its "
                "weights and its encode_text."
            )
        rows |= {prompt: row.clone() for prompt, row in zip(new, encoded, strict=True)}
        if where:
            where.put_rows("text", list(map(_key, new)), encoded.numpy())
            where.seal()
    if fingerprint:
        known.update(rows)
    return torch.stack([rows[prompt] for prompt in prompts])


def _stored(store: DiskStore, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the embeddings (D,) of those prompts that the store holds."""
    keys = {prompt: _key(prompt) for prompt in prompts}
    lacking = set(store.lacking("text", keys.values()))
    there = [prompt for prompt in prompts if keys[prompt] not in lacking]
    # the first that can be read tells the width of all
    first = next((row for p in there if (row := store.get("text", keys[p])) is not None), None)
    if first is None:
        return {}
    found = torch.empty((len(there), *first.shape), dtype=torch.float32, device="cpu")
    missing = set(store.read("text", [keys[prompt] for prompt in there], found.numpy()))
    return {prompt: found[i].clone() for i, prompt in enumerate(there) if i not in missing}


def _key(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:40]


def prototype(embeddings: torch.Tensor, normalise_first: bool = True) -> torch.Tensor:
    """Make one unit vector (D,) for a class from its prompts' embeddings (P, D).

    Parameters
    ----------
    normalise_first : True gives each prompt the same weight (CLIP, APRIL-GAN, mala-lab); False
        takes the mean of the raw embeddings (anomalib, Accurate-WinCLIP). The WinCLIP paper may
        mean either.
    """
    rows = F.normalize(embeddings, dim=-1) if normalise_first else embeddings
    return F.normalize(rows.mean(dim=0), dim=0)


def prototypes(
    model: TextModel,
    object_name: str,
    ensemble: Ensemble = "winclip",
    normalise_first: bool = True,
    class_names: ClassNames = "raw",
    extra_states: Mapping[str, Sequence[str]] | None = None,
    store: Path | str | None = "auto",
) -> torch.Tensor:
    """Return the text prototypes of an object.

    Parameters
    ----------
    model : a Backbone, or anything else with ``encode_text``
    object_name, ensemble, class_names, extra_states : see :func:`compose`
    normalise_first : see :func:`prototype`

    Returns
    -------
    (2, D) float32, unit length; row 0 normal, row 1 anomalous. (1, D) for an ensemble without
    anomalous prompts ("one-class").
    """
    return prototype_table(
        model, {0: (object_name, ensemble)}, normalise_first, class_names, extra_states, store
    )[0]


def prototype_table(
    model: TextModel,
    requests: Mapping[K, tuple[str, Ensemble]],
    normalise_first: bool = True,
    class_names: ClassNames = "raw",
    extra_states: Mapping[str, Sequence[str]] | None = None,
    store: Path | str | None = "auto",
) -> dict[K, torch.Tensor]:
    """Make prototypes for many objects and ensembles, so that a shared prompt is encoded once.

    Parameters
    ----------
    requests : {key: (object_name, ensemble)}

    Returns
    -------
    {key: (2, D) as in :func:`prototypes`}
    """
    composed = {
        key: compose(name, ensemble, class_names, extra_states)
        for key, (name, ensemble) in requests.items()
    }
    distinct = dict.fromkeys(tuple(side) for sides in composed.values() for side in sides if side)
    texts = list(dict.fromkeys(prompt for side in distinct for prompt in side))
    rows = dict(zip(texts, embed(model, texts, store)))
    means = {
        side: prototype(torch.stack([rows[prompt] for prompt in side]), normalise_first)
        for side in distinct
    }
    return {
        key: torch.stack([means[tuple(side)] for side in sides if side])
        for key, sides in composed.items()
    }
