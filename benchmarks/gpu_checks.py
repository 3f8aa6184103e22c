"""Check that a device gives the numbers of the CPU: towers, half precision, methods, training."""

import copy
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlmad_utils import evaluation, features, models, paths
from vlmad_utils.features import Arrays
from vlmad_utils.methods import anomaly_probability, anomalyclip, april_gan, memory_bank, winclip
from vlmad_utils.models import DPAM, OpenClip, resize
from vlmad_utils.models.text_towers import text_tower

from .gpu_setup import cpu_tower, made_images, pixels_of, placed
from .scoring import all_methods
from .timing import Row, table_row

EXACT, HALF, AUROC, STORED, RESIZED = "<= 1e-4", "<= 5e-3", "<= 0.002", "<= 1e-3", "<= 1e-6"
WINDOWS, SCALE = (2, 3), 100  # WinCLIP's windows; CLIP's trained scale


def towers(o: Mapping[str, Any]) -> Iterator[Row]:
    """Compare embeddings of unit length and tokens, brought to unit length, in float32."""
    for name in o["checked"]:
        try:
            here = on_cpu(name)
        except FileNotFoundError as error:
            yield table_row("towers", f"{name}: skipped, {error}", float("nan"), "")
            continue
        there = on(here, o["device"], "fp32")
        both = [("", here, there)]
        if isinstance(here, OpenClip) and isinstance(there, OpenClip):
            both.append((" with V-V attention", DPAM(here), DPAM(there)))
        pixels = pixels_of(here, made_images(o["few"], here.image_size[0])[0])
        for view, mine, theirs in both:
            asked = request(mine)
            found = theirs.encode_image(pixels, **asked)
            for kind, values in mine.encode_image(pixels, **asked).items():
                what = f"{name}{view}: {kind}"
                yield gap_row("towers", what, unit(found[kind], o["device"]), unit(values))
        words = ["a photo of a flawless screw", "a broken thing"]
        text = unit(there.encode_text(words).to(o["device"]), o["device"])
        yield gap_row("towers", f"{name}: text", text, unit(here.encode_text(words)))


def halves(o: Mapping[str, Any]) -> Iterator[Row]:
    """Compare probabilities and AUROC in half precision with float32.

    At CLIP's trained scale of 100; the embedded model's at its own, a tenth of that. bfloat16 has
    an eighth of float16's digits and is not what a card runs by itself: its rows have no goals.
    """
    for name in o["checked"]:
        try:
            exact = on_cpu(name)
        except FileNotFoundError as error:
            yield table_row("halves", f"{name}: skipped, {error}", float("nan"), "")
            continue
        images, masks = made_images(o["many"], exact.image_size[0])
        pixels, text = pixels_of(exact, images), apart(exact.dim)
        wanted = judged(on(exact, o["device"], "fp32"), pixels, text, masks)
        for precision in ("fp16", "bf16"):
            if o["device"].type == "cpu" and precision == "fp16":
                continue  # slow there, and nobody's choice
            # a tiny tower has few numbers to average rounding over: its rows have no goals
            goals = (HALF, AUROC) if precision == "fp16" and name != "tiny" else ("", "")
            found = judged(on(exact, o["device"], precision), pixels, text, masks)
            for what, value in wanted.items():
                of_auroc = what.endswith("AUROC")
                gap = float(np.abs(found[what] - value).max())
                label = f"{name}: {precision} and float32, {what}"
                yield table_row("halves", label, gap, "", goals[of_auroc])


def resized(o: Mapping[str, Any]) -> Iterator[Row]:
    """Compare pixels that were resized on the device with Pillow's."""
    model = cpu_tower(o["tower"])
    for height, width in o["shapes"]:
        rng = np.random.default_rng(height)
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image[: height // 2] = made_images(1, max(height, width))[0][0][: height // 2, :width]
        sent = resize.for_device(model.image_size, image)
        found = resize.pixels([sent], model.image_size, model.mean, model.std, o["device"])
        if found.device.type != o["device"].type:
            raise AssertionError(f"Expected pixels on {o['device']}, found {found.device}.")
        what = f"resize of {height} x {width} pixels on the device against Pillow"
        yield gap_row("resize", what, found[0].cpu(), model.preprocess(image), RESIZED)


def methods(o: Mapping[str, Any]) -> Iterator[Row]:
    """Compare scores and maps of every method, from the same features, as shares of their range."""
    model, device = cpu_tower(o["tower"]), o["device"]
    images, _ = made_images(2 * o["few"], model.image_size[0])
    text, plain, dense = apart(model.dim), encoded(model, images), encoded(DPAM(model), images)
    for method in all_methods(model):
        feats = plain if method.backbone is None else dense
        test, references = feats[o["few"] :], feats[: o["few"] // 2]
        if method.takes(0):
            theirs = method.score(test.to(device), None, text)
            wanted = method.score(test, None, text)
            yield from score_rows(f"{method.name}, zero-shot", theirs, wanted, device)
        if method.takes(1):
            theirs = method.score(test.to(device), references.to(device), text)
            wanted = method.score(test, references, text)
            yield from score_rows(f"{method.name}, few-shot", theirs, wanted, device)
    test, bank = plain[o["few"] :], plain[: o["few"]]
    for foreground in (False, True):
        theirs = memory_bank.few_shot(test.to(device), bank.to(device), k=2, mask=foreground)
        wanted = memory_bank.few_shot(test, bank, k=2, mask=foreground)
        what = f"memory bank, 2 neighbours{', foreground' * foreground}"
        yield from score_rows(what, theirs, wanted, device)


def trainings(o: Mapping[str, Any]) -> Iterator[Row]:
    """Compare the losses of both trainings, epoch by epoch."""
    model = cpu_tower("tiny")
    images, masks = made_images(8, model.image_size[0])
    labels = masks.any((1, 2)).astype(int)
    plain, dense = encoded(model, images), encoded(DPAM(model), images)
    blocks = tuple(range(1, model.n_blocks + 1))
    options = {"epochs": 3, "batch_size": 4, "progress": False}

    def april(device: torch.device) -> list[float]:
        return april_gan.train(plain.to(device), masks, apart(model.dim), blocks, **options)[1]

    def anomaly(device: torch.device) -> list[float]:
        words = text_tower(placed(model, device))
        return anomalyclip.train(words, dense.to(device), masks, labels, **options)[1]

    for name, train in {"APRIL-GAN": april, "AnomalyCLIP": anomaly}.items():
        mine, theirs = (torch.tensor(train(d)) for d in (torch.device("cpu"), o["device"]))
        what = f"{name}: loss of {len(mine)} epochs, largest difference as a share of it"
        yield table_row("trainings", what, ((theirs - mine).abs() / mine).max().item(), "", EXACT)


def store(o: Mapping[str, Any]) -> Iterator[Row]:
    """Write features on the device, and read them with a model on the CPU."""
    here = copy.copy(cpu_tower(o["tower"]))
    there = placed(here, o["device"])
    images, _ = made_images(o["few"], here.image_size[0])
    asked = {"blocks": (1, "final"), "windows": WINDOWS, "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        features.encode(there, images, store=folder, **asked)
        wanted = here.encode_image(pixels_of(here, images), (1, "final"), WINDOWS, True)

        def refuse(*_: Any, **__: Any) -> Any:
            raise AssertionError("the CPU's model found nothing in the store and encodes again")

        setattr(here, "encode_image", refuse)  # noqa: B010
        found = features.encode(here, images, store=folder, **asked)
        for kind, values in wanted.items():
            what = f"written on the device, read on the CPU: {kind}"
            yield gap_row("store", what, unit(found.read(kind)), unit(values), STORED)


# ---- what they share -----------------------------------------------------------------------------
def on_cpu(name: str) -> Any:
    """Return a tower on the CPU, in float32.

    Raises
    ------
    FileNotFoundError for the embedded model where its towers were not carried along.
    """
    if name != "embedded":
        return cpu_tower(name)
    for folder in ("dinov2", "minilm"):
        if not (paths.raw_dir() / folder).exists():
            raise FileNotFoundError(f"no {folder} in VLMAD_RAW")
    return models.load("embedded", None, None, "cpu", "fp32")


def on(model: Any, device: torch.device, precision: str) -> Any:
    """Return a copy of a model on a device."""
    if isinstance(model, OpenClip):
        return placed(model, device, precision)
    return models.load("embedded", device=str(device), precision=precision)


def request(model: Any) -> dict[str, Any]:
    """Return all that a tower can give, as arguments of ``encode_image``."""
    if isinstance(model, DPAM):
        return {"blocks": (1, model.n_blocks), "patches": True}
    return {"blocks": (1, model.n_blocks, "final", "cls"), "windows": WINDOWS, "patches": True}


def encoded(model: Any, images: list[np.ndarray]) -> Arrays:
    """Encode images on the CPU with all that the methods read."""
    asked = request(model) | {"blocks": tuple(range(1, model.n_blocks + 1))}
    if not isinstance(model, DPAM):
        asked["blocks"] += ("final",)
    out = model.encode_image(pixels_of(model, images), **asked)
    tokens = {block: out[f"tokens-{block}"] for block in asked["blocks"]}
    windows = {k: out[f"windows-{k}"] for k in asked.get("windows", ())}
    return Arrays(out["image"], model.grid, out["patches"], tokens, windows)


def apart(dim: int) -> Tensor:
    """Return two unit vectors (2, D) 0.3 apart, as the prototypes of an ensemble are."""
    one, other = F.normalize(torch.randn(2, dim, generator=torch.Generator().manual_seed(1)))
    return torch.stack([one, F.normalize(one + 0.3 * other, dim=0)])


def judged(model: Any, pixels: Tensor, text: Tensor, masks: np.ndarray) -> dict[str, np.ndarray]:
    """Return probabilities by kind, and AUROC of WinCLIP's scores and maps."""
    scale = SCALE if model.is_clip else model.logit_scale
    out = model.encode_image(pixels, windows=WINDOWS, patches=True)
    found = {
        f"probabilities of {kind}": anomaly_probability(x, text, 1 / scale).cpu().numpy()
        for kind, x in out.items()
    }
    windows: dict[int | str, Tensor] = {k: out[f"windows-{k}"] for k in WINDOWS}
    scores = winclip.zero_shot(
        Arrays(out["image"], model.grid, windows=windows), text, 1 / scale, image_from="map"
    )
    small = F.adaptive_max_pool2d(torch.from_numpy(masks).float()[:, None], model.grid)[:, 0]
    maps, defects = scores.maps.cpu().numpy(), small.numpy() > 0
    image = evaluation.auroc(scores.image.cpu().numpy(), masks.any((1, 2)))
    pixel = evaluation.auroc(maps.ravel(), defects.ravel())
    return {**found, "image AUROC": np.array(image), "patch AUROC": np.array(pixel)}


def unit(x: Tensor, device: torch.device | None = None) -> Tensor:
    """Return vectors of unit length on the CPU.

    Raises
    ------
    AssertionError where they do not lie on the device that is expected.
    """
    if device is not None and x.device.type != device.type:
        raise AssertionError(f"Expected a tensor on {device}, found one on {x.device}.")
    return F.normalize(x.cpu().float(), dim=-1)


def gap_row(part: str, what: str, found: Tensor, wanted: Tensor, goal: str = EXACT) -> Row:
    """Return the row of the largest difference."""
    return table_row(
        part, f"{what}, largest difference", (found - wanted).abs().max().item(), "", goal
    )


def score_rows(what: str, found: Any, wanted: Any, device: torch.device) -> Iterator[Row]:
    """Yield the largest differences of scores and maps, as shares of their range."""
    sides = {
        "image": (found.image, wanted.image, wanted.image_range),
        "maps": (found.maps, wanted.maps, wanted.map_range),
    }
    for side, (theirs, mine, (low, high)) in sides.items():
        if theirs.device.type != device.type:
            raise AssertionError(f"{what}: expected {side} on {device}, found {theirs.device}.")
        gap = (theirs.cpu() - mine).abs().max().item() / (high - low)
        yield table_row("methods", f"{what}: {side}, largest difference", gap, "", EXACT)
