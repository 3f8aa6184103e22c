"""Make the paradigms as the study runs them: options of their papers, fitted to the backbone.

A method does zero-shot and few-shot where its paper has both. One that trains takes what was
trained elsewhere (:mod:`.trained_elsewhere`). Each few-shot method remembers the distances between
images in a ``DistanceCache``, so that a draw of 8 references finds those of the 4 that it holds.
Give several methods the same one where they read the same tokens, or where memory is short.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch

from ..methods import Scores, anomalyclip, april_gan, clip_ac, memory_bank, winclip
from ..methods.memory_bank import DistanceCache
from ..methods.scores import Encoded
from ..models import Backbone, OpenClip
from . import trained_elsewhere
from .method import Last, Method, digest

Ensemble = str | dict[str, Any]


def temperatures(model: Backbone) -> tuple[float, float]:
    """Return the (image, patch) temperatures that the checkpoint was trained with."""
    return 1 / model.logit_scale, 1 / getattr(model, "patch_logit_scale", model.logit_scale)


def clip_ac_method(
    model: Backbone, ensemble: Ensemble = "clip-ac", name: str = "CLIP-AC"
) -> Method:
    """Compare the image embedding with two prompts, or an ensemble; map from aligned patches."""
    image, _ = temperatures(model)
    return Method(
        name,
        lambda f, r, t: clip_ac.zero_shot(f, t, image),
        "zero",
        ensemble,
        patches=True,
        settings=(image,),
    )


def dense(model: Backbone, ensemble: Ensemble = "winclip", top: int = 3) -> Method:
    """Compare text-aligned patches; the image score is the mean of the ``top`` highest."""
    _, patch = temperatures(model)
    return Method(
        "dense patches",
        lambda f, r, t: clip_ac.zero_shot(f, t, patch, top=top),
        "zero",
        ensemble,
        patches=True,
        settings=(patch, top),
    )


def winclip_method(
    model: Backbone,
    ensemble: Ensemble = "winclip",
    temperature: float = 0.07,
    windows: Sequence[int | str] = (2, 3),
    token: int | str = "final",
    cache: DistanceCache | None = None,
) -> Method:
    """Score by WinCLIP at K = 0, by WinCLIP+ with references."""
    cache = DistanceCache() if cache is None else cache

    def score(feats: Encoded, references: Encoded | None, text: torch.Tensor) -> Scores:
        if references is None:
            return winclip.zero_shot(feats, text, temperature, windows)
        return winclip.few_shot(feats, references, text, temperature, windows, token, cache=cache)

    return Method(
        "WinCLIP", score, "any", ensemble, (token,), tuple(windows), settings=(temperature, token)
    )


def april_gan_method(
    model: Backbone,
    layers: april_gan.LinearLayers,
    ensemble: Ensemble = "april-gan",
    transductive: bool = False,
    scale: float | None = None,
    image_from: Literal["image", "map"] = "image",
    cache: DistanceCache | None = None,
) -> Method:
    """Score by APRIL-GAN with trained layers.

    ``image_from="map"`` scores an image by its map, which the paper does not.
    """
    options = {
        "size": model.image_size,
        "scale": scale or model.logit_scale,
        "image_from": image_from,
    }
    cache = DistanceCache() if cache is None else cache
    zero_shots: Last[Scores] = Last()

    def score(feats: Encoded, references: Encoded | None, text: torch.Tensor) -> Scores:
        def make() -> Scores:
            return april_gan.zero_shot(feats, text, layers, **options)

        if feats.identity is None:
            zero = make()
        else:
            zero = zero_shots.get((feats.identity, str(feats.device), text.tolist()), make)
        if references is None:
            return zero
        return april_gan.few_shot(
            feats,
            references,
            text,
            layers,
            transductive=transductive,
            zero=zero,
            cache=cache,
            **options,
        )

    name = "APRIL-GAN"
    name += " (transductive)" if transductive else ""
    name += " (score of map)" if image_from == "map" else ""
    return Method(
        name,
        score,
        "few" if transductive else "any",
        ensemble,
        tuple(layers.blocks),
        settings=(digest(layers), transductive, options["scale"], image_from),
    )


def anomalyclip_method(
    model: Backbone, prototypes: torch.Tensor, temperature: float = 0.07
) -> Method:
    """Score by AnomalyCLIP with learned prompts.

    An open_clip model is read through its V-V stream, the embedded one as it is.
    """
    size = model.image_size  # the function must not hold the model
    there = Last[torch.Tensor]()  # a copy on the device of the features

    def score(feats: Encoded, references: None, text: None) -> Scores:
        device = torch.device(feats.device)
        learned = there.get(device, lambda: prototypes.to(device))
        return anomalyclip.zero_shot(feats, learned, temperature, size=size)

    return Method(
        "AnomalyCLIP",
        score,
        "zero",
        patches=True,
        settings=(digest(prototypes), temperature),
        backbone=_view(model) if model.is_clip else None,
    )


def memory_bank_method(
    block: int | str | Sequence[int | str] = 9,
    name: str = "memory bank",
    cache: DistanceCache | None = None,
    **options: Any,
) -> Method:
    """Search nearest neighbours on the tokens of one block, or of several; no text."""
    blocks = (block,) if isinstance(block, (int, str)) else tuple(block)
    cache = DistanceCache() if cache is None else cache
    return Method(
        name,
        lambda f, r, t: memory_bank.few_shot(f, r, block=blocks, cache=cache, **options),
        "few",
        blocks=blocks,
        settings=tuple(sorted(options.items())),
    )


def standard(model: Backbone, names: Iterable[str] | None = None) -> dict[str, Method]:
    """Return every paradigm with its paper's options, by name; load or train what is trained.

    Parameters
    ----------
    names : which of them; None takes all

    Raises
    ------
    ValueError for an unknown name.
    """
    cache = DistanceCache()

    def april(image_from: Literal["image", "map"] = "image") -> Method:
        layers, _ = trained_elsewhere.load_or_train("april_gan", model)
        return april_gan_method(model, layers, image_from=image_from, cache=cache)

    def anomaly() -> Method:
        learner, _ = trained_elsewhere.load_or_train("anomalyclip", _view(model))
        return anomalyclip_method(model, learner.prototypes())

    known: dict[str, Callable[[], Method]] = {
        "CLIP-AC": lambda: clip_ac_method(model),
        "CLIP-AC + ensemble": lambda: clip_ac_method(model, "winclip", "CLIP-AC + ensemble"),
        "dense patches": lambda: dense(model),
        "WinCLIP": lambda: winclip_method(model, cache=cache),
        "APRIL-GAN": april,
        "APRIL-GAN (score of map)": lambda: april("map"),
        "AnomalyCLIP": anomaly,
        "memory bank": lambda: memory_bank_method(bank_blocks(model), cache=cache),
    }
    chosen = list(known if names is None else names) or list(known)
    if unknown := set(chosen) - set(known):
        raise ValueError(f"unknown methods {sorted(unknown)}; known are {', '.join(known)}")
    return {name: make() for name, make in known.items() if name in chosen}


def bank_blocks(model: Backbone) -> tuple[int, ...]:
    """Return blocks of the memory bank: 9 of 12 for DINOv2-S, 2nd and 3rd quarter for CLIP."""
    return (9,) if model.name == "embedded" else trained_elsewhere.default_blocks(model)[1:3]


def _view(model: Backbone) -> Backbone:
    """Return the model as AnomalyCLIP reads it."""
    return anomalyclip.DPAM(model) if isinstance(model, OpenClip) else model
