"""The paradigms as the study runs them: each with the options of its paper, fitted to the backbone at hand.

Zero-shot and few-shot forms stand side by side; a method that trains takes what was trained elsewhere
(:mod:`.trained_elsewhere`).
"""

from ..methods import anomalyclip, april_gan, clip_ac, memory_bank, winclip
from . import trained_elsewhere
from .method import Method, digest


def temperatures(model):
    """(image, patch) temperatures that the checkpoint was trained with."""
    return 1 / model.logit_scale, 1 / getattr(model, "patch_logit_scale", model.logit_scale)


def clip_ac_method(model, ensemble="clip-ac", name="CLIP-AC"):
    """CLIP-AC: the image embedding against two prompts, or an ensemble of them; map from text-aligned patches."""
    image, _ = temperatures(model)
    return Method(
        name,
        lambda f, r, t: clip_ac.zero_shot(f, t, image),
        "zero",
        ensemble,
        patches=True,
        settings=(image,),
    )


def dense(model, ensemble="winclip", top=3):
    """Text-aligned patches; the image score is the mean of the ``top`` highest."""
    _, patch = temperatures(model)
    return Method(
        "dense patches",
        lambda f, r, t: clip_ac.zero_shot(f, t, patch, top=top),
        "zero",
        ensemble,
        patches=True,
        settings=(patch, top),
    )


def winclip_method(model, ensemble="winclip", temperature=0.07, windows=(2, 3), token="final"):
    """WinCLIP at K = 0, WinCLIP+ with references."""

    def score(feats, references, text):
        if references is None:
            return winclip.zero_shot(feats, text, temperature, windows)
        return winclip.few_shot(feats, references, text, temperature, windows, token)

    return Method(
        "WinCLIP", score, "any", ensemble, (token,), windows, settings=(temperature, token)
    )


def april_gan_method(
    model, layers, ensemble="april-gan", transductive=False, scale=None, image_from="image"
):
    """APRIL-GAN with trained layers; ``image_from="map"`` scores an image by its map, which the paper does not."""
    options = {
        "size": model.image_size,
        "scale": scale or model.logit_scale,
        "image_from": image_from,
    }
    words = _Last()

    def score(feats, references, text):
        made_of = (feats.identity, text.tolist()) if feats.identity else object()
        zero = words.get(made_of, lambda: april_gan.zero_shot(feats, text, layers, **options))
        if references is None:
            return zero
        return april_gan.few_shot(
            feats, references, text, layers, transductive=transductive, zero=zero, **options
        )

    name = (
        "APRIL-GAN"
        + (" (transductive)" if transductive else "")
        + (" (score of map)" if image_from == "map" else "")
    )
    return Method(
        name,
        score,
        "few" if transductive else "any",
        ensemble,
        tuple(layers.blocks),
        settings=(digest(layers), transductive, options["scale"], image_from),
    )


class _Last:
    """The last value only, with what it was made of; goes empty to another process."""

    def __init__(self):
        self.known = (None, None)

    def get(self, key, make):
        known = self.known
        if known[0] != key:
            self.known = known = (key, make())
        return known[1]

    def __reduce__(self):
        return _Last, ()


def anomalyclip_method(model, prototypes, temperature=0.07):
    """AnomalyCLIP with learned prompts; an open_clip model is read through its V-V stream, the embedded one as it is."""
    view, size = (
        anomalyclip.DPAM(model) if model.is_clip else None,
        model.image_size,
    )  # the function must not hold the model
    return Method(
        "AnomalyCLIP",
        lambda f, r, t: anomalyclip.zero_shot(f, prototypes, temperature, size=size),
        "zero",
        patches=True,
        settings=(digest(prototypes), temperature),
        backbone=view,
    )


def memory_bank_method(block=9, name="memory bank", **options):
    """Nearest neighbours on the tokens of one block, or of several; no text."""
    blocks = (block,) if isinstance(block, (int, str)) else tuple(block)
    return Method(
        name,
        lambda f, r, t: memory_bank.few_shot(f, r, block=blocks, **options),
        "few",
        blocks=blocks,
        settings=tuple(sorted(options.items())),
    )


def standard(model, names=None):
    """{name: Method}: every paradigm with its paper's options; what must be trained is loaded or trained_elsewhere.

    Parameters
    ----------
    names : which of them; None takes all

    Raises
    ------
    ValueError for an unknown name.
    """

    def april(image_from="image"):
        return april_gan_method(
            model, trained_elsewhere.load_or_train("april_gan", model)[0], image_from=image_from
        )

    def anomaly():
        source = anomalyclip.DPAM(model) if model.is_clip else model
        return anomalyclip_method(
            model, trained_elsewhere.load_or_train("anomalyclip", source)[0].prototypes()
        )

    known = {
        "CLIP-AC": lambda: clip_ac_method(model),
        "CLIP-AC + ensemble": lambda: clip_ac_method(model, "winclip", "CLIP-AC + ensemble"),
        "dense patches": lambda: dense(model),
        "WinCLIP": lambda: winclip_method(model),
        "APRIL-GAN": april,
        "APRIL-GAN (score of map)": lambda: april("map"),
        "AnomalyCLIP": anomaly,
        "memory bank": lambda: memory_bank_method(bank_blocks(model)),
    }
    if unknown := set(names or ()) - set(known):
        raise ValueError(f"unknown methods {sorted(unknown)}; known are {', '.join(known)}")
    return {name: make() for name, make in known.items() if not names or name in names}


def bank_blocks(model):
    """Blocks of the memory bank: 9 of 12 for DINOv2-S, the 2nd and 3rd quarter for CLIP."""
    return (9,) if model.name == "embedded" else trained_elsewhere.default_blocks(model)[1:3]
