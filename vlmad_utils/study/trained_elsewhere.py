"""Load or train what APRIL-GAN and AnomalyCLIP learn elsewhere: on procedural training families.

Their products and defects are in no test. The weights for the embedded model are shipped in
``study/trained``. Any other backbone, or another choice of families, is trained on first use from
cached tokens and kept in the feature store. Weights belong to an ``identity`` of a backbone and to
a version of the generator: they serve whatever device and precision.

python -m vlmad_utils.study.trained_elsewhere   trains both anew and writes
vlmad_utils/study/trained/ (needed when the embedded model changes)
"""

import argparse
import hashlib
import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock

from vlmad_procedural import FAMILIES
from vlmad_procedural.generate import VERSION

from .. import data, features, models
from ..methods import anomalyclip, april_gan
from ..methods.training import load_checkpoint
from ..models import Backbone, prompts
from ..models.text_towers import text_tower
from ..paths import content_hash, store_folder

Learned = april_gan.LinearLayers | anomalyclip.PromptLearner
Card = dict[str, Any]
FOLDER = Path(__file__).parent / "trained"
SETTINGS: dict[str, Any] = {
    "domain": "both",
    "limit": 1020,
    "data_seed": 0,
    "seed": 111,
    "batch_size": 8,
    "lr": 1e-3,
    "april_gan": {"blocks": "4 evenly spaced", "ensemble": "april-gan", "epochs": 10},
    "anomalyclip": {"n_vectors": 12, "depth": 9, "length": 4, "epochs": 5},
}
MODULES: dict[str, Any] = {"april_gan": april_gan, "anomalyclip": anomalyclip}


def families(domain: str = "both") -> list[str]:
    """Return the training families of a domain: "textures", "objects" or "both"."""
    names = [n for n, f in FAMILIES.items() if f.role == "train" and domain in ("both", f.domain)]
    if not names:
        raise ValueError(f"the domain is textures, objects or both, found {domain!r}.")
    return names


def default_blocks(model: Backbone) -> tuple[int, ...]:
    """Return four blocks, evenly spaced up to the last: 6, 12, 18, 24 of 24 in the paper."""
    return tuple(round(model.n_blocks * i / 4) for i in (1, 2, 3, 4))


def training_index(domain: str = "both", limit: int = 1020, seed: int = 0) -> pd.DataFrame:
    """Index images with masks of the training families, in turn, half of them anomalous."""
    return data.index(
        "procedural", categories=families(domain), limit=limit, seed=seed, references=False
    )


def load_or_train(
    method: str,
    model: Backbone,
    index: pd.DataFrame | None = None,
    store: Path | str | None = "auto",
    progress: bool = True,
    **changes: Any,
) -> tuple[Any, Card]:
    """Return trained weights of a method, shipped, kept, or trained now, on a backbone's device.

    Parameters
    ----------
    method : "april_gan" or "anomalyclip"
    model : Backbone (for AnomalyCLIP on open_clip: ``anomalyclip.DPAM(model)``)
    index : labelled images with masks to learn from, all rows of them; None takes the procedural
        training families of ``domain``. Never images that are tested later.
    store : where features and weights are kept: "auto", a folder, or None
    changes : of SETTINGS, e.g. domain="textures", limit=300, epochs=2

    Returns
    -------
    (LinearLayers or PromptLearner, card): the card is a dict that says what was trained, on what
    (``settings``, ``data``, ``images``), how many ``parameters``, the mean ``loss`` of each epoch,
    the ``seconds`` without encoding and on how many ``threads``

    Raises
    ------
    ValueError for an unknown method or setting, unknown labels, or anomalous images without a mask.

    Warns
    -----
    UserWarning when weights are trained although neither other settings nor own images were asked
    for, and when weights are damaged.
    """
    settings = _settings(method, model, changes)
    usual = index is None and settings == _settings(method, model, {})
    if index is not None:
        _check(index)
        settings |= {"domain": "own", "limit": len(index), "data_seed": None}
    facts = json.loads(json.dumps(_facts(model, settings, index)))  # as a card gives them back
    shipped = FOLDER / f"{method}.safetensors"
    differs = _mismatch(shipped, method, facts)
    if differs is None:
        return _read(method, shipped, model)
    reason = f"the shipped ones {differs}"
    if store is None:
        if usual:
            _warn_of_training(method, model, settings, reason, "nowhere, as store=None")
        learned, found = train(method, model, index, store, progress, settings)
        return learned, {**facts, **found}
    name = f"{method}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.safetensors"
    kept = store_folder(store) / "trained" / name
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):  # two notebooks may ask for the same weights at once
        if differs := _mismatch(kept, method, facts):
            if usual:
                reason += f", those in the store {differs}"
                _warn_of_training(method, model, settings, reason, f"in {kept}")
            learned, found = train(method, model, index, store, progress, settings)
            MODULES[method].save(learned, kept, **facts, **found)
    return _read(method, kept, model)


def _warn_of_training(
    method: str, model: Backbone, settings: Mapping[str, Any], reason: str, where: str
) -> None:
    """Say that weights are trained which nobody asked to train."""
    warnings.warn(
        f"{method} has no trained weights for {model.name} (identity {model.identity}): {reason}. "
        f"They are trained now on {settings['limit']:,} procedural images of the training families "
        f"({settings['epochs']} epochs), and kept {where}.",
        stacklevel=3,
    )


def train(
    method: str,
    model: Backbone,
    index: pd.DataFrame | None,
    store: Path | str | None,
    progress: bool,
    settings: Mapping[str, Any],
) -> tuple[Learned, Card]:
    """Encode the training images and fit.

    Returns
    -------
    (LinearLayers or PromptLearner, what a card should say besides the settings)
    """
    licence = "MIT" if index is None else "that of the images"
    if index is None:
        index = training_index(settings["domain"], settings["limit"], settings["data_seed"])
    blocks = settings["blocks"] if method == "april_gan" else ()
    feats = features.encode(model, index, blocks, store=store, progress=progress)
    if torch.device(model.device).type == "cuda":
        feats = feats.to(model.device)
    masks = torch.from_numpy(data.read_masks(index, model.image_size))
    fit = {key: settings[key] for key in ("epochs", "batch_size", "lr", "seed")}
    fit |= {"progress": progress}
    text = None
    if method == "april_gan":
        text = _prototypes(model, index, settings["ensemble"], store)
    began = time.monotonic()
    learned: Learned
    if text is not None:
        learned, history = april_gan.train(
            feats, masks, text, blocks, scale=model.logit_scale, **fit
        )
    else:
        words = {key: settings[key] for key in ("n_vectors", "depth", "length")}
        learned, history = anomalyclip.train(
            text_tower(model), feats, masks, index["label"].to_numpy(copy=True), **fit, **words
        )
    return learned, {
        "data": {
            "sets": sorted(set(index["dataset"])),
            "categories": sorted(set(index["category"])),
            "defects": sorted(set(index.loc[index["label"] == 1, "defect"])),
            "n_images": len(index),
            "n_anomalous": int(index["label"].sum()),
        },
        "parameters": sum(p.numel() for p in learned.parameters()),
        "loss": [round(x, 4) for x in history],
        "seconds": round(time.monotonic() - began),
        "threads": torch.get_num_threads(),
        "precision": model.precision,
        "licence": licence,
    }


def _prototypes(
    model: Backbone, index: pd.DataFrame, ensemble: str, store: Path | str | None
) -> torch.Tensor:
    """Return the prototypes (B, 2, D) of each image's object."""
    requests = {noun: (noun, ensemble) for noun in sorted(set(index["object_name"]))}
    table = prompts.prototype_table(model, requests, store=store)
    return torch.stack([table[noun] for noun in index["object_name"]])


def _facts(model: Backbone, settings: Mapping[str, Any], index: pd.DataFrame | None) -> Card:
    """Return what a card says of what weights are made of, and what must agree to use them."""
    about = {"backbone": model.name, "identity": model.identity, "settings": settings}
    if index is not None:
        return {**about, "images": _content(index)}
    return {**about, "images": None, "generator": VERSION}


def _settings(method: str, model: Backbone, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return SETTINGS of one method with changes."""
    if method not in MODULES:
        raise ValueError(f"the method is april_gan or anomalyclip, found {method!r}.")
    settings = {key: value for key, value in SETTINGS.items() if key not in MODULES}
    settings |= SETTINGS[method]
    if unknown := set(changes) - set(settings):
        raise ValueError(
            f"{method} has no setting {', '.join(sorted(unknown))}; it has {', '.join(settings)}."
        )
    settings |= changes
    if method == "april_gan":
        usual = isinstance(settings["blocks"], str)
        settings["blocks"] = tuple(default_blocks(model) if usual else map(int, settings["blocks"]))
    return settings


def _check(index: pd.DataFrame) -> None:
    """Refuse images from which something wrong would be learned in silence."""
    if not set(index["label"]) <= {0, 1}:
        raise ValueError(f"training needs labels 0 and 1, found {sorted(set(index['label']))}.")
    if n := (index["mask_path"].isna() & (index["label"] == 1)).sum():
        raise ValueError(
            f"{n} anomalous images have no mask: they would be learned as normal. "
            "Leave them out, or train on a data set with masks."
        )


def _mismatch(path: Path, method: str, facts: Mapping[str, Any]) -> str | None:
    """Return how weights at a path differ from what is asked for; None where they fit.

    Damaged ones are named in a warning, too.
    """
    if not path.exists() or not path.with_suffix(".json").exists():
        return "are not there"
    try:
        card = load_checkpoint(path, method)[1]
    except ValueError as error:
        warnings.warn(
            f"trained weights are not used, {method} is trained anew: {error}", stacklevel=3
        )
        return "are damaged"
    differs = []
    for key, value in facts.items():
        if key == "settings":
            found = card.get(key) or {}
            names = [name for name in value if found.get(name) != value[name]]
            differs += [f"{name} {found.get(name)}, not {value[name]}" for name in names]
        elif card.get(key) != value:
            differs.append(f"{key} {card.get(key)}, not {value}")
    return f"differ: {'; '.join(differs)}" if differs else None


def _content(index: pd.DataFrame) -> str:
    """Hash all that is learned from: images, masks, labels, words."""
    columns = [index[name] for name in ("image_path", "mask_path", "label", "object_name")]
    rows = [
        (
            content_hash(image),
            content_hash(mask) if isinstance(mask, str) else None,
            int(label),
            noun,
        )
        for image, mask, label, noun in zip(*columns, strict=True)
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _read(method: str, path: Path, model: Backbone) -> tuple[Learned, Card]:
    if method == "april_gan":
        return april_gan.load(path, model.device)
    return anomalyclip.load(path, text_tower(model))


def main(arguments: list[str] | None = None) -> None:
    """Train both methods for the embedded model and write weights and cards."""
    parser = argparse.ArgumentParser(
        prog="python -m vlmad_utils.study.trained_elsewhere",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args(arguments)
    model = models.load("embedded")
    options.out.mkdir(parents=True, exist_ok=True)
    for method, module in MODULES.items():
        settings = _settings(method, model, {})
        learned, found = train(method, model, None, "auto", True, settings)
        facts = _facts(model, settings, None)
        module.save(learned, options.out / f"{method}.safetensors", **facts, **found)
        print(
            f"{method}: {found['parameters']:,} numbers in {found['seconds']} s, "
            f"loss {found['loss'][0]} to {found['loss'][-1]}"
        )


if __name__ == "__main__":
    main()
