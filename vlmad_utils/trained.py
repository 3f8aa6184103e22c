"""What APRIL-GAN and AnomalyCLIP learn elsewhere: on procedural training families, whose products and faults are in no test.

The weights for the embedded model are shipped in data/trained/; any other backbone, or another choice of families, is
trained on first use from cached tokens and kept in the feature store.

python -m vlmad_utils.trained   trains both anew and writes data/trained/ (needed when the embedded model changes)
"""

import argparse
import hashlib
import json
from pathlib import Path

import pandas as pd
import torch

from . import data, features, prompts, study
from .methods import anomalyclip, april_gan
from .methods.text_towers import text_tower
from .methods.training import load_checkpoint
from .procedural import FAMILIES

FOLDER = Path(__file__).resolve().parents[1] / "data" / "trained"
SETTINGS = {"domain": "both", "limit": 1020, "data_seed": 0, "seed": 111, "batch_size": 8, "lr": 1e-3,
            "april_gan": {"blocks": "4 evenly spaced", "ensemble": "april-gan", "epochs": 10},
            "anomalyclip": {"n_vectors": 12, "depth": 9, "length": 4, "epochs": 5}}


def families(domain="both"):
    """Names of the training families of a domain: "textures", "objects" or "both"."""
    names = [n for n, f in FAMILIES.items() if f.role == "train" and domain in ("both", f.domain)]
    if not names:
        raise ValueError(f"the domain is textures, objects or both, found {domain!r}.")
    return names


def default_blocks(model):
    """Four blocks, evenly spaced up to the last: 6, 12, 18, 24 of 24 in the paper."""
    return tuple(round(model.n_blocks * i / 4) for i in (1, 2, 3, 4))


def training_index(domain="both", limit=1020, seed=0):
    """Images with masks of the training families: as many normal as anomalous ones, families in turn."""
    index = data.index("procedural", categories=families(domain), limit=limit, seed=seed)
    return index[index["split"] == "test"].reset_index(drop=True)


def load_or_train(method, model, index=None, store="auto", progress=True, **changes):
    """Trained weights of a method for a backbone.

    Parameters
    ----------
    method : "april_gan" or "anomalyclip"
    model : Backbone (for AnomalyCLIP on open_clip: ``anomalyclip.DPAM(model)``)
    index : labelled images with masks to learn from; None takes the procedural training families of ``domain``
    store : where features and weights are kept: "auto", a folder, or None
    changes : of SETTINGS, e.g. domain="textures", limit=300, epochs=2

    Returns
    -------
    (LinearLayers or PromptLearner, card dict)

    Raises
    ------
    ValueError for an unknown method; errors of the training itself.
    """
    if method not in ("april_gan", "anomalyclip"):
        raise ValueError(f"the method is april_gan or anomalyclip, found {method!r}.")
    settings = {key: value for key, value in SETTINGS.items() if not isinstance(value, dict)} | SETTINGS[method] | changes
    if method == "april_gan" and isinstance(settings["blocks"], str):
        settings["blocks"] = default_blocks(model)
    if index is not None:
        settings |= {"domain": "own", "limit": len(index), "data_seed": None}
    facts = json.loads(json.dumps({"backbone": model.name, "fingerprint": model.fingerprint, "settings": settings,
                                   "images": None if index is None else _content(index)}))
    name = f"{method}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.safetensors"
    kept = None if store is None else Path(features.store_dir() if store == "auto" else store) / "trained" / name
    for path in (FOLDER / f"{method}.safetensors", kept):
        if path is not None and path.exists() and path.with_suffix(".json").exists():
            card = load_checkpoint(path, method)[1]
            if all(card.get(key) == value for key, value in facts.items()):
                return _read(method, path, model)
    learned, history = train(method, model, index, store, progress, settings)
    card = {**facts, "loss": [round(x, 4) for x in history], "licence": "MIT"}
    if kept is None:
        return learned, card
    kept.parent.mkdir(parents=True, exist_ok=True)
    _write(method, learned, kept, card)
    return _read(method, kept, model)


def train(method, model, index, store, progress, settings):
    """Encode the training images and fit; returns (module, losses)."""
    if index is None:
        index = training_index(settings["domain"], settings["limit"], settings["data_seed"])
    is_april = method == "april_gan"
    feats = features.encode(model, index, settings["blocks"] if is_april else (), patches=not is_april, store=store,
                            progress=progress)
    masks = torch.from_numpy(study.read_masks(index, model.image_size))
    fit = {"epochs": settings["epochs"], "batch_size": settings["batch_size"], "lr": settings["lr"], "seed": settings["seed"],
           "progress": progress}
    if is_april:
        nouns = sorted(set(index["object_name"]))
        table = prompts.many(model, {noun: (noun, settings["ensemble"]) for noun in nouns})
        text = torch.stack([table[noun] for noun in index["object_name"]])
        return april_gan.train(feats, masks, text, settings["blocks"], scale=model.logit_scale, **fit)
    words = {key: settings[key] for key in ("n_vectors", "depth", "length")}
    return anomalyclip.train(text_tower(model), feats, masks, index["label"].to_numpy(), **fit, **words)


def _content(index):
    return hashlib.sha256("".join(features.content_hash(p) for p in index["image_path"]).encode()).hexdigest()[:16]


def _read(method, path, model):
    if method == "april_gan":
        return april_gan.load(path)
    return anomalyclip.load(path, text_tower(model))


def _write(method, learned, path, card):
    (april_gan if method == "april_gan" else anomalyclip).save(learned, path, **card)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args(arguments)
    from . import backbones

    model = backbones.load("embedded")
    options.out.mkdir(parents=True, exist_ok=True)
    for method in ("april_gan", "anomalyclip"):
        learned, card = load_or_train(method, model)
        card = {key: value for key, value in card.items() if key in ("backbone", "fingerprint", "settings", "images", "loss", "licence")}
        _write(method, learned, options.out / f"{method}.safetensors", card)
        print(pd.Series(card["loss"], name=f"{method} loss").describe().to_string())


if __name__ == "__main__":
    main()
