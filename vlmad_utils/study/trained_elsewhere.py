"""What APRIL-GAN and AnomalyCLIP learn elsewhere: on procedural training families, whose products and faults are in no test.

The weights for the embedded model are shipped in ``study/trained``; any other backbone, or another choice of families, is
trained on first use from cached tokens and kept in the feature store.

python -m vlmad_utils.study.trained_elsewhere   trains both anew and writes vlmad_utils/study/trained/ (needed when the embedded model changes)
"""

import argparse
import hashlib
import json
import time
import warnings
from pathlib import Path

import torch
from filelock import FileLock

from vlmad_procedural import FAMILIES

from .. import data, features, models
from ..methods import anomalyclip, april_gan
from ..methods.training import load_checkpoint
from ..models import prompts
from ..models.text_towers import text_tower
from ..paths import content_hash, store_folder

FOLDER = Path(__file__).parent / "trained"
SETTINGS = {
    "domain": "both",
    "limit": 1020,
    "data_seed": 0,
    "seed": 111,
    "batch_size": 8,
    "lr": 1e-3,
    "april_gan": {"blocks": "4 evenly spaced", "ensemble": "april-gan", "epochs": 10},
    "anomalyclip": {"n_vectors": 12, "depth": 9, "length": 4, "epochs": 5},
}
MODULES = {"april_gan": april_gan, "anomalyclip": anomalyclip}


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
    return data.index(
        "procedural", categories=families(domain), limit=limit, seed=seed, references=False
    )


def load_or_train(method, model, index=None, store="auto", progress=True, **changes):
    """Trained weights of a method for a backbone.

    Parameters
    ----------
    method : "april_gan" or "anomalyclip"
    model : Backbone (for AnomalyCLIP on open_clip: ``anomalyclip.DPAM(model)``)
    index : labelled images with masks to learn from, all rows of them; None takes the procedural training families of
        ``domain``. Never images that are tested later.
    store : where features and weights are kept: "auto", a folder, or None
    changes : of SETTINGS, e.g. domain="textures", limit=300, epochs=2

    Returns
    -------
    (LinearLayers or PromptLearner, card): the card is a dict that says what was trained, on what (``settings``, ``data``,
    ``images``), how many ``parameters``, the mean ``loss`` of each epoch, the ``seconds`` without encoding and on how
    many ``threads``

    Raises
    ------
    ValueError for an unknown method or setting, unknown labels, or anomalous images without a mask.
    """
    settings = _settings(method, model, changes)
    if index is not None:
        _check(index)
        settings |= {"domain": "own", "limit": len(index), "data_seed": None}
    facts = json.loads(
        json.dumps(
            {
                "backbone": model.name,
                "fingerprint": model.fingerprint,
                "settings": settings,
                "images": None if index is None else _content(index),
            }
        )
    )
    if _fits(FOLDER / f"{method}.safetensors", method, facts):
        return _read(method, FOLDER / f"{method}.safetensors", model)
    if store is None:
        learned, found = train(method, model, index, store, progress, settings)
        return learned, {**facts, **found}
    name = f"{method}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.safetensors"
    kept = store_folder(store) / "trained" / name
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):  # two notebooks may want the same weights at once
        if not _fits(kept, method, facts):
            learned, found = train(method, model, index, store, progress, settings)
            MODULES[method].save(learned, kept, **facts, **found)
    return _read(method, kept, model)


def train(method, model, index, store, progress, settings):
    """Encode the training images and fit.

    Returns
    -------
    (LinearLayers or PromptLearner, what a card should say besides the settings)
    """
    own = index is not None
    if not own:
        index = training_index(settings["domain"], settings["limit"], settings["data_seed"])
    is_april = method == "april_gan"
    feats = features.encode(
        model, index, settings["blocks"] if is_april else (), store=store, progress=progress
    )
    masks = torch.from_numpy(data.read_masks(index, model.image_size))
    fit = {
        "epochs": settings["epochs"],
        "batch_size": settings["batch_size"],
        "lr": settings["lr"],
        "seed": settings["seed"],
        "progress": progress,
    }
    if is_april:
        nouns = sorted(set(index["object_name"]))
        table = prompts.prototype_table(
            model, {noun: (noun, settings["ensemble"]) for noun in nouns}, store=store
        )
        text = torch.stack([table[noun] for noun in index["object_name"]])
    began = time.monotonic()
    if is_april:
        learned, history = april_gan.train(
            feats, masks, text, settings["blocks"], scale=model.logit_scale, **fit
        )
    else:
        words = {key: settings[key] for key in ("n_vectors", "depth", "length")}
        learned, history = anomalyclip.train(
            text_tower(model), feats, masks, index["label"].tolist(), **fit, **words
        )
    defects = sorted(set(index.loc[index["label"] == 1, "defect"]))
    return learned, {
        "data": {
            "sets": sorted(set(index["dataset"])),
            "categories": sorted(set(index["category"])),
            "defects": defects,
            "n_images": len(index),
            "n_anomalous": int(index["label"].sum()),
        },
        "parameters": sum(p.numel() for p in learned.parameters()),
        "loss": [round(x, 4) for x in history],
        "seconds": round(time.monotonic() - began),
        "threads": torch.get_num_threads(),
        "licence": "that of the images" if own else "MIT",
    }


def _settings(method, model, changes):
    """SETTINGS of one method with changes."""
    if method not in MODULES:
        raise ValueError(f"the method is april_gan or anomalyclip, found {method!r}.")
    settings = {
        key: value for key, value in SETTINGS.items() if not isinstance(value, dict)
    } | SETTINGS[method]
    if unknown := set(changes) - set(settings):
        raise ValueError(
            f"{method} has no setting {', '.join(sorted(unknown))}; it has {', '.join(settings)}."
        )
    settings |= changes
    if method == "april_gan":
        blocks = settings["blocks"]
        settings["blocks"] = (
            default_blocks(model) if isinstance(blocks, str) else tuple(int(b) for b in blocks)
        )
    return settings


def _check(index):
    """Refuse images from which a wrong lesson would be learned in silence."""
    if not set(index["label"]) <= {0, 1}:
        raise ValueError(f"training needs labels 0 and 1, found {sorted(set(index['label']))}.")
    if n := int((index["mask_path"].isna() & (index["label"] == 1)).sum()):
        raise ValueError(
            f"{n} anomalous images have no mask: they would be learned as normal. Leave them out, or train on "
            "a data set with masks."
        )


def _fits(path, method, facts):
    """Whether weights lie at a path that were made of just this."""
    if not path.exists() or not path.with_suffix(".json").exists():
        return False
    try:
        card = load_checkpoint(path, method)[1]
    except ValueError as error:
        warnings.warn(f"trained weights are not used, {method} is trained anew: {error}")
        return False
    return all(card.get(key) == value for key, value in facts.items())


def _content(index):
    """Hash of all that is learned from: pictures, masks, labels, words."""
    rows = [
        (
            *(
                content_hash(path) if isinstance(path, str) else None
                for path in (r.image_path, r.mask_path)
            ),
            int(r.label),
            r.object_name,
        )
        for r in index.itertuples()
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _read(method, path, model):
    return (
        april_gan.load(path) if method == "april_gan" else anomalyclip.load(path, text_tower(model))
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args(arguments)
    model = models.load("embedded")
    options.out.mkdir(parents=True, exist_ok=True)
    for method, module in MODULES.items():
        settings = _settings(method, model, {})
        learned, found = train(method, model, None, "auto", True, settings)
        module.save(
            learned,
            options.out / f"{method}.safetensors",
            backbone=model.name,
            fingerprint=model.fingerprint,
            settings=settings,
            images=None,
            **found,
        )
        print(
            f"{method}: {found['parameters']:,} numbers in {found['seconds']} s, loss {found['loss'][0]} to {found['loss'][-1]}"
        )


if __name__ == "__main__":
    main()
