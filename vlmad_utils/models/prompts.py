"""Prompt ensembles and the two text prototypes that they make.

The lists are data in ``prompts.yaml``. A model only needs ``encode_text(list of P strings) -> (P, D)``, whose rows may
have any length (open_clip's are not unit vectors); with a ``fingerprint`` its embeddings are kept: for the process, and on disk
beside those of images (``store`` as in ``features.encode``: "auto", a folder, or None for the process only).
"""

import functools
import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

from ..paths import store_folder
from ..store import DiskStore, MemoryStore

_CACHE = {}  # (model fingerprint, prompt) -> (D,), float32


@functools.cache
def library():
    """Contents of prompts.yaml: states, templates, ensembles, class_names."""
    tables = yaml.safe_load((Path(__file__).parent / "prompts.yaml").read_text(encoding="utf-8"))
    tables["templates"]["open_clip"] = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    return tables


def class_name(object_name, how="raw"):
    """The words that stand for the object in a prompt.

    Parameters
    ----------
    how : "raw" as given (APRIL-GAN and most WinCLIP rebuilds feed ``metal_nut``); "spaces" for underscores (mala-lab);
        "promptad" maps MVTec and VisA folder names to words (``pcb1`` to printed circuit board), then "spaces"
    """
    if how == "raw":
        return object_name
    if how == "promptad":
        object_name = library()["class_names"]["promptad"].get(object_name, object_name)
    elif how != "spaces":
        raise ValueError(f"class_names is raw, spaces or promptad, found {how!r}.")
    return object_name.replace("_", " ")


def compose(object_name, ensemble="winclip", class_names="raw", extra_states=None):
    """All prompts of an ensemble.

    Parameters
    ----------
    object_name : words for the object, e.g. "metal nut"
    ensemble : a name in prompts.yaml, or one's own dict with lists ``normal`` and ``anomalous`` of states and
        optionally ``templates`` (default ["{}"]); "{}" marks where the object or the state goes
    class_names : see :func:`class_name`
    extra_states : dict with lists ``normal`` and/or ``anomalous``, added for one task (e.g. "{} with bad soldering")

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
                f"No prompt ensemble is called {ensemble!r}: wanted {', '.join(tables['ensembles'])}, or "
                "a dict with lists 'normal' and 'anomalous'."
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
            f"A prompt dict has lists 'normal' and 'anomalous' (states) and, for an ensemble, "
            f"'templates'; found {sorted(unknown) or ['templates in extra_states']}."
        )
    name = class_name(object_name, class_names)
    sides = []
    for side in ("normal", "anomalous"):
        states = [*own[side], *(extra_states or {}).get(side, [])]
        for entry in [*states, *own["templates"]]:
            if not isinstance(entry, str) or entry.count("{}") != 1:
                raise ValueError(
                    f"Each state and template is a string with one '{{}}', found {entry!r}."
                )
        sides.append(
            [
                template.replace("{}", state.replace("{}", name))
                for state in states
                for template in own["templates"]
            ]
        )
    if not sides[0]:
        raise ValueError(
            "The ensemble has no normal prompts; give at least one normal state and one template."
        )
    return tuple(sides)


def embed(model, prompts, store="auto"):
    """Text embeddings (P, D) float32 as the model gives them; each distinct prompt goes through the model once."""
    return _embed(model, prompts, store, _known(model))


def _known(model):
    """{prompt: embedding (D,)} of what this process has encoded with the model."""
    fingerprint = getattr(model, "fingerprint", None)
    return _CACHE.setdefault(fingerprint, {}) if fingerprint else {}


def _embed(model, prompts, store, known):
    new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
    if new:
        stored = store is not None and getattr(model, "fingerprint", None)
        where = DiskStore(store_folder(store), model.fingerprint) if stored else MemoryStore()
        key = hashlib.sha256("\0".join(new).encode()).hexdigest()[:40]
        rows = where.get("text", key)
        if rows is None:
            rows = torch.as_tensor(model.encode_text(new)).detach().to("cpu", torch.float32).numpy()
            where.put("text", key, rows)
        known.update(zip(new, torch.from_numpy(rows), strict=True))
    return torch.stack([known[prompt] for prompt in prompts])


def prototype(embeddings, normalise_first=True):
    """One unit vector (D,) for a class from its prompts' embeddings (P, D).

    Parameters
    ----------
    normalise_first : True gives each prompt the same weight (CLIP, APRIL-GAN, mala-lab); False takes the mean of the
        raw embeddings (anomalib, Accurate-WinCLIP). The WinCLIP paper may mean either.
    """
    rows = F.normalize(embeddings, dim=-1) if normalise_first else embeddings
    return F.normalize(rows.mean(dim=0), dim=0)


def prototypes(
    model,
    object_name,
    ensemble="winclip",
    normalise_first=True,
    class_names="raw",
    extra_states=None,
    store="auto",
):
    """Text prototypes of an object.

    Parameters
    ----------
    model : has ``encode_text(list of P str) -> (P, D)``; a Backbone, or anything else
    object_name, ensemble, class_names, extra_states : see :func:`compose`
    normalise_first : see :func:`prototype`

    Returns
    -------
    (2, D) float32, unit length; row 0 normal, row 1 anomalous. (1, D) for an ensemble without anomalous prompts
    ("one-class").
    """
    return prototype_table(
        model, {0: (object_name, ensemble)}, normalise_first, class_names, extra_states, store
    )[0]


def prototype_table(model, requests, normalise_first=True, class_names="raw", extra_states=None, store="auto"):
    """Prototypes for many objects and ensembles in one go, so that a shared prompt is encoded once.

    Parameters
    ----------
    requests : dict key -> (object_name, ensemble)

    Returns
    -------
    dict key -> (2, D) as in :func:`prototypes`
    """
    composed = {
        key: compose(name, ensemble, class_names, extra_states)
        for key, (name, ensemble) in requests.items()
    }
    distinct = dict.fromkeys(tuple(side) for sides in composed.values() for side in sides if side)
    known = _known(model)
    means = {
        side: prototype(_embed(model, side, store, known), normalise_first) for side in distinct
    }
    return {
        key: torch.stack([means[tuple(side)] for side in sides if side])
        for key, sides in composed.items()
    }
