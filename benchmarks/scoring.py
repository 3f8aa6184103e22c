"""Measure scoring: prompt sets, memory banks, metrics, and a whole study of encoded images."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from joblib import parallel_config

from vlmad_procedural import generate
from vlmad_utils import data, evaluation, study
from vlmad_utils.features import Arrays
from vlmad_utils.methods import anomaly_probability, april_gan, clip_ac, memory_bank
from vlmad_utils.methods.memory_bank import DistanceCache
from vlmad_utils.methods.neighbours import nearest_unit
from vlmad_utils.models import Backbone, prompts
from vlmad_utils.models.onednn import linear
from vlmad_utils.study import registry

from .encoding import tower
from .timing import Row, in_fresh_process, in_turn, table_row


def unit_rows(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """Return random vectors of unit length."""
    return F.normalize(torch.from_numpy(rng.standard_normal(shape, np.float32)), dim=-1)


def judged(n: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return n maps and masks: a square defect in every second image, somewhat hotter."""
    maps = np.random.default_rng(0).standard_normal((n, side, side), np.float32)
    masks = np.zeros((n, side, side), bool)
    masks[::2, side // 4 : side // 2, side // 4 : side // 2] = True
    maps[masks] += 1
    return maps, masks


def exact_aupro(n: int, side: int) -> Callable[[], Any]:
    """Return a call that computes AU-PRO of n maps."""
    maps, masks = judged(n, side)
    return lambda: evaluation.aupro(maps, masks)


def map_bootstrap(n: int, side: int) -> Callable[[], Any]:
    """Return a call that computes the bootstrap of the pixel metrics of n maps."""
    maps, masks = judged(n, side)
    return lambda: evaluation.pixel_bootstrap(maps, masks)


def scoring(o: Mapping[str, Any]) -> Iterator[Row]:
    """Time prompt sets, memory banks and metrics, from made features of the tower's shapes."""
    rng, model = np.random.default_rng(0), tower(o["tower"])
    yield from _prompt_sets(o, model, rng)
    yield from _memory_banks(o, model, rng)
    yield from _searches(o, model, rng)
    name = f"{o['maps']} maps at {o['side']} px"
    tasks = {
        f"exact AU-PRO of {name}": (exact_aupro, "", "< 20 s", "< 2 GB with the maps"),
        f"bootstrap of the four pixel metrics of {name}": (map_bootstrap, ", 1,000 draws", "", ""),
    }
    for what, (task, more, goal, memory_goal) in tasks.items():
        seconds, memory = in_fresh_process(task, o["maps"], o["side"])
        yield table_row("scoring", what + more, seconds, "s", goal)
        besides = f"{what}: highest memory besides the maps"
        yield table_row("scoring", besides, memory, "MB", memory_goal)


def _prompt_sets(o: Mapping[str, Any], model: Backbone, rng: np.random.Generator) -> Iterator[Row]:
    n, sets, patches = o["images"], o["sets"], model.grid[0] * model.grid[1]
    labels = np.arange(n) % 2
    feats = Arrays(unit_rows(rng, n, model.dim), model.grid, unit_rows(rng, n, patches, model.dim))
    text, few = unit_rows(rng, sets, 2, model.dim), max(1, sets // 100)

    def images() -> None:
        for prototypes in text:
            evaluation.auroc(anomaly_probability(feats.image, prototypes, 0.07).numpy(), labels)

    def maps() -> None:
        for prototypes in text[:few]:
            clip_ac.zero_shot(feats, prototypes, 0.07)

    s = in_turn(o["rounds"], images=images, maps=maps)
    what = f"{sets} prompt sets on {n} images"
    yield table_row("scoring", f"{what}: scores and AUROC", s["images"])
    yield table_row("scoring", f"{what}: maps (from {few} sets)", s["maps"] * sets / few)


def _memory_banks(o: Mapping[str, Any], model: Backbone, rng: np.random.Generator) -> Iterator[Row]:
    patches = model.grid[0] * model.grid[1]
    query, *filled = (
        Arrays(torch.zeros(k, 1), model.grid, tokens={1: unit_rows(rng, k, patches, model.width)})
        for k in (8, 1, 8, 64)
    )
    calls = {
        f"{len(bank)}": lambda bank=bank: memory_bank.few_shot(query, bank, block=1)
        for bank in filled
    }
    for k, seconds in in_turn(o["rounds"], **calls).items():
        yield table_row("scoring", f"memory bank of {k} references, s an image", seconds / 8)


def _searches(o: Mapping[str, Any], model: Backbone, rng: np.random.Generator) -> Iterator[Row]:
    """Time the search of one image's patches in large memories, and its products alone."""
    patches = model.grid[0] * model.grid[1]
    query = unit_rows(rng, patches, model.width)
    for n in o["search"]:
        memory = torch.empty(n, model.width)
        for some in memory.split(2**14):  # no second set in memory
            some.copy_(unit_rows(rng, *some.shape))
        s = in_turn(
            min(3, o["rounds"]),
            search=lambda memory=memory: nearest_unit(query, memory),
            products=lambda memory=memory: [linear(query, some) for some in memory.split(2**16)],
        )
        what = f"exact search in {n:,} vectors"
        yield table_row("scoring", f"{what}, s an image", s["search"])
        yield table_row("scoring", f"{what} / its products alone", s["search"] / s["products"], "x")


def any_sets(n: int) -> list[dict[str, Any]]:
    """Return n prompt ensembles of APRIL-GAN's words: 3 + 3 states in 4 templates."""
    tables, rng = prompts.library(), np.random.default_rng(0)
    states, templates = tables["states"]["april-gan"], tables["templates"]["april-gan"]
    return [
        {
            **{side: list(rng.choice(states[side], 3, replace=False)) for side in states},
            "templates": list(rng.choice(templates, 4, replace=False)),
        }
        for _ in range(n)
    ]


def all_methods(model: Backbone) -> list[study.Method]:
    """Return every method; layers are not trained, since the cost is the same."""
    blocks = tuple(range(1, model.n_blocks + 1))[-4:]
    layers, cache = april_gan.LinearLayers(blocks, model.width, model.dim), DistanceCache()
    return [
        registry.clip_ac_method(model),
        registry.clip_ac_method(model, "winclip", "CLIP-AC + ensemble"),
        registry.dense(model),
        registry.winclip_method(model, cache=cache),
        registry.april_gan_method(model, layers, cache=cache),
        registry.anomalyclip_method(model, torch.eye(2, model.dim)),
        registry.memory_bank_method(blocks[:2], cache=cache),
    ]


def reuse(o: Mapping[str, Any]) -> Iterator[Row]:
    """Time a study against encoding its images once; then all of it again.

    All methods and many prompt sets; K = 0, 1, 2, 4, 8 and 5 seeds unless ``o`` says otherwise. It
    also may hold ``model`` (the tower), ``families``, ``jobs`` (processes that draw the images) and
    ``start``: each view of the model encodes an image first, so that what a GPU does once in a
    process is not counted.
    """
    model = o["model"] if "model" in o else tower(o["tower"])
    methods = all_methods(model)
    plain = [method for method in methods if method.backbone is None]
    shots, seeds = o.get("shots", (0, 1, 2, 4, 8)), range(o.get("seeds", 5))
    families = o.get("families", ["screw"])
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        root, n = Path(folder) / "set", o["study"] // len(families)
        with parallel_config("loky"):  # Python draws, so threads would wait for each other
            generate.write(
                root, families, o["pool"], n // 2, max(1, n // 12), o["side"], jobs=o.get("jobs", 1)
            )
        index = data.index("procedural", root)
        test = index[index["split"] == "test"].reset_index(drop=True)

        def timed(name: str, call: Callable[[], Any]) -> Any:
            began = time.perf_counter()
            result = call()
            seconds[name] = time.perf_counter() - began
            return result

        def whole() -> study.Result:
            found = study.run(
                model, index, methods, shots, seeds, draws=0, store=folder, progress=False
            )
            image = study.encode(model, test, plain, folder, False).image
            requests = {i: ("part", words) for i, words in enumerate(any_sets(o["sets"]))}
            for prototypes in prompts.prototype_table(model, requests, store=folder).values():
                scores = anomaly_probability(image, prototypes, 0.07).cpu().numpy()
                evaluation.auroc(scores, test["label"].to_numpy())
            return found

        def other_views() -> None:
            for method in methods:
                if method.backbone is not None:
                    study.encode(method.backbone, test, [method], folder, False)

        if o.get("start"):
            first = Path(folder) / "first"
            study.encode(model, index[:1], plain, first, False)
            for method in methods:
                if method.backbone is not None:
                    study.encode(method.backbone, index[:1], [method], first, False)
        timed("plain", lambda: study.encode(model, index, plain, folder, False))  # with references
        timed("V-V", other_views)
        timed("cold", whole)
        found = timed("warm", whole)
    once = seconds["plain"] + seconds["V-V"]
    cold = once + seconds["cold"]
    runs = len(found.rows.drop_duplicates(study.KEYS)) + o["sets"]
    part = f"study, {len(index)} images, {runs} runs"
    runs_of = f"K = {min(shots)} to {max(shots)}, {len(seeds)} seeds"
    of_all = f"all methods, {o['sets']} prompt sets, {runs_of}: cold"
    peers = "encode for every run / encode once, as peers do (computed: number of runs)"
    yield table_row(part, "encode all images once, with all that any method reads", once)
    yield table_row(part, "of it, AnomalyCLIP's V-V stream", seconds["V-V"])
    yield table_row(part, of_all, cold)
    yield table_row(part, "the same: warm", seconds["warm"])
    yield table_row(part, "cold / encode once", cold / once, "x", o.get("goal", "<= 1.10"))
    yield table_row(part, "warm / cold", seconds["warm"] / cold, "x")
    yield table_row(part, peers, runs, "x")
