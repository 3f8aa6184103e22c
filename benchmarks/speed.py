"""Benchmark that anyone can run: ratios within one run, their median, lowest and highest. Nothing passes or fails by its time.

    python -m benchmarks.speed            = make bench; writes data/results/bench.csv, about 20 minutes on two quiet cores
    python -m benchmarks.speed --quick    a tiny tower and small numbers, a minute; prints only
    python -m benchmarks.speed --only windows scoring

Alternatives are timed in turn, round after round, so that other work on the machine hits them alike; a ratio is formed in
each round. Weights are random, as only shapes matter here.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

from vlmad_procedural import generate
from vlmad_utils import data, evaluation, features, models, report, study
from vlmad_utils.features import Arrays
from vlmad_utils.methods import anomaly_probability, april_gan, clip_ac, memory_bank
from vlmad_utils.models import OpenClip, prompts, window_indices
from vlmad_utils.models.onednn import linear
from vlmad_utils.study import registry

from .timing import in_fresh_process, in_turn, table_row

SIZES, FAST = (
    (2, 3),
    (("2s2", "3s2"), ("3s2",), ("4s3",), ("3s3",)),
)  # WinCLIP's windows; a part of them
FULL = {
    "tower": "ViT-B-16-plus-240",
    "batches": (1, 8),
    "rounds": 5,
    "step": 36,
    "sets": 1000,
    "images": 500,
    "maps": 1000,
    "side": 256,
    "study": 48,
    "pool": 16,
    "grow": (100, 1000, 10_000),
}
TIMES = 3  # processes in which a memory is measured: what the system keeps for a process varies
QUICK = {
    "tower": "tiny",
    "batches": (1, 4),
    "rounds": 3,
    "step": 4,
    "sets": 50,
    "images": 50,
    "maps": 40,
    "side": 64,
    "study": 8,
    "pool": 10,
    "grow": (50, 200),
}


def tower(name):
    """The tower that is measured, with random weights; "tiny" is a 4-block ViT at 96 px."""
    if name != "tiny":
        return models.load(name, "random")
    vision = {"image_size": 96, "layers": 4, "width": 64, "head_width": 16, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return OpenClip(
            open_clip.model.CLIP(32, vision, text), open_clip.get_tokenizer("ViT-B-32"), name="tiny"
        )


def passes(model, batch, step):
    """{name: call}: windows by the package; one plain forward; through the unmodified tower, all windows of a size as one
    batch, and some windows of the plain loop, one position of all images after the other."""
    pixels = torch.randn(batch, 3, *model.image_size, generator=torch.Generator().manual_seed(0))

    def through_tower(groups):
        with torch.inference_mode():
            start = model.embed(pixels)
            for rows in groups:  # (n, 1 + k * k) token numbers of n windows, CLS first
                model.image_head(model.visual.transformer(start[:, rows].flatten(0, 1)), {})

    def without_onednn():
        torch.backends.mkldnn.enabled = False
        model.encode_image(pixels, windows=SIZES)
        torch.backends.mkldnn.enabled = True

    sizes = [F.pad(window_indices(model.grid, k) + 1, (1, 0)) for k in SIZES]
    some = [row[None] for rows in sizes for row in rows[::step]]
    return {
        "package": lambda: model.encode_image(pixels, windows=SIZES),
        "plain": lambda: model.encode_image(pixels),
        "without oneDNN": without_onednn,
        **{
            "+".join(fast): lambda fast=fast: model.encode_image(pixels, windows=fast)
            for fast in FAST
        },
        "batches": lambda: through_tower(sizes),
        "loop": lambda: through_tower(some),
    }


def one_pass(name, batch, step, which):
    return passes(tower(name), batch, step)[which]


def windows(o):
    """Window encoding against a plain loop, a plain forward and the rate of matrix products; highest memory."""
    model = tower(o["tower"])
    per_size = [len(window_indices(model.grid, k)) for k in SIZES]
    taken = sum(-(-n // o["step"]) for n in per_size)
    for batch in o["batches"]:
        calls = passes(model, batch, o["step"])
        tokens = batch * (
            sum(n * (1 + k * k) for k, n in zip(SIZES, per_size))
            + 1
            + model.grid[0] * model.grid[1]
        )
        a, b = (
            torch.randn(batch * 5 * per_size[0], model.width),
            torch.randn(4 * model.width, model.width),
        )
        products = {"gemm": lambda: linear(a, b), "mkl": lambda: F.linear(a, b)}  # noqa: B023 - called before the next batch
        s = in_turn(o["rounds"], **calls, **products)
        loop = s["plain"] + s["loop"] * sum(per_size) / taken  # scaled from a share of the windows
        batches = s["plain"] + s["batches"]
        rate = 2 * a.numel() * len(b) / s["gemm"]
        work = (
            24 * model.width**2 * model.n_blocks * tokens
        )  # of the plain algorithm: 12 C^2 products a token and block
        part = f"windows, batch {batch}"
        yield table_row(part, "package, s an image", s["package"] / batch)
        yield table_row(
            part, f"plain loop, s an image (from {taken} of {sum(per_size)} windows)", loop / batch
        )
        yield table_row(
            part,
            "all windows of a size as one batch, unmodified tower, s an image",
            batches / batch,
        )
        yield table_row(part, "plain forward, s an image", s["plain"] / batch)
        yield table_row(part, "plain loop / package", loop / s["package"], "x")
        yield table_row(
            part, "windows of a size as one batch / package", batches / s["package"], "x"
        )
        yield table_row(part, "package / plain forward", s["package"] / s["plain"], "x")
        yield table_row(
            part,
            "share of the rate of matrix products, as the package does them",
            work / s["package"] / rate,
            "x",
            ">= 0.85",
        )
        yield table_row(
            part,
            "a product as a layer of PyTorch does it / as the package does",
            s["mkl"] / s["gemm"],
            "x",
        )
        yield table_row(
            part, "package with PyTorch's layers / package", s["without oneDNN"] / s["package"], "x"
        )
        for fast in ("+".join(fast) for fast in FAST):
            yield table_row(
                part,
                f"package / its fast mode {fast}",
                s["package"] / s[fast],
                "x",
                ">= 4" if fast in ("4s3", "3s3") else "",
            )
        for which in ("package", "plain", "batches", "loop"):
            memory = [
                in_fresh_process(one_pass, o["tower"], batch, o["step"], which)[1]
                for _ in range(TIMES)
            ]
            yield table_row(part, f"highest memory, {which}", memory, "MB")


def unit_rows(rng, *shape):
    return F.normalize(torch.from_numpy(rng.standard_normal(shape, np.float32)), dim=-1)


def judged(n, side):
    """n maps and masks: a square defect in every second image, somewhat hotter."""
    maps, masks = (
        np.random.default_rng(0).standard_normal((n, side, side), np.float32),
        np.zeros((n, side, side), bool),
    )
    masks[::2, side // 4 : side // 2, side // 4 : side // 2] = True
    maps[masks] += 1
    return maps, masks


def exact_aupro(n, side):
    maps, masks = judged(n, side)
    return lambda: evaluation.aupro(maps, masks)


def map_bootstrap(n, side):
    maps, masks = judged(n, side)
    return lambda: evaluation.pixel_bootstrap(maps, masks)


def scoring(o):
    """Prompt sets, memory banks, AU-PRO, the bootstrap of maps; from made features of the tower's shapes."""
    rng, model, n, sets = np.random.default_rng(0), tower(o["tower"]), o["images"], o["sets"]
    patches, labels = model.grid[0] * model.grid[1], np.arange(n) % 2
    feats = Arrays(unit_rows(rng, n, model.dim), model.grid, unit_rows(rng, n, patches, model.dim))
    text, few = unit_rows(rng, sets, 2, model.dim), max(1, sets // 100)

    def images():
        for prototypes in text:
            evaluation.auroc(anomaly_probability(feats.image, prototypes, 0.07).numpy(), labels)

    def maps():
        for prototypes in text[:few]:
            clip_ac.zero_shot(feats, prototypes, 0.07)

    s = in_turn(o["rounds"], images=images, maps=maps)
    yield table_row("scoring", f"{sets} prompt sets on {n} images: scores and AUROC", s["images"])
    yield table_row(
        "scoring",
        f"{sets} prompt sets on {n} images: maps (from {few} sets)",
        s["maps"] * sets / few,
    )
    query, *filled = (
        Arrays(torch.zeros(k, 1), model.grid, tokens={1: unit_rows(rng, k, patches, model.width)})
        for k in (8, 1, 8, 64)
    )
    banks = dict(zip((1, 8, 64), filled))
    s = in_turn(
        o["rounds"],
        **{
            f"{k}": lambda bank=bank: memory_bank.few_shot(query, bank, block=1)
            for k, bank in banks.items()
        },
    )
    for k, seconds in s.items():
        yield table_row("scoring", f"memory bank of {k} references, s an image", seconds / 8)
    seconds, memory = in_fresh_process(exact_aupro, o["maps"], o["side"])
    name = f"{o['maps']} maps at {o['side']} px"
    yield table_row("scoring", f"exact AU-PRO of {name}", seconds, "s", "< 20 s")
    yield table_row(
        "scoring",
        f"exact AU-PRO of {name}: highest memory besides the maps",
        memory,
        "MB",
        "< 2 GB with the maps",
    )
    seconds, memory = in_fresh_process(map_bootstrap, o["maps"], o["side"])
    yield table_row(
        "scoring", f"bootstrap of the four pixel metrics of {name}, 1,000 draws", seconds
    )
    yield table_row(
        "scoring",
        f"bootstrap of the four pixel metrics of {name}: highest memory besides the maps",
        memory,
        "MB",
    )


def any_sets(n):
    """n prompt ensembles, drawn from APRIL-GAN's words: 3 + 3 states in 4 templates."""
    tables, rng = prompts.library(), np.random.default_rng(0)
    states, templates = tables["states"]["april-gan"], tables["templates"]["april-gan"]
    return [
        {
            **{side: list(rng.choice(states[side], 3, replace=False)) for side in states},
            "templates": list(rng.choice(templates, 4, replace=False)),
        }
        for _ in range(n)
    ]


def reuse(o):
    """All methods, many prompt sets, K = 0, 1, 2, 4, 8 and 5 seeds, against encoding the images once; then all of it again."""
    model = tower(o["tower"])
    blocks = tuple(range(1, model.n_blocks + 1))[-4:]
    layers = april_gan.LinearLayers(
        blocks, model.width, model.dim
    )  # not trained: the cost is the same
    methods = [
        registry.clip_ac_method(model),
        registry.clip_ac_method(model, "winclip", "CLIP-AC + ensemble"),
        registry.dense(model),
        registry.winclip_method(model),
        registry.april_gan_method(model, layers),
        registry.anomalyclip_method(model, torch.eye(2, model.dim)),
        registry.memory_bank_method(blocks[:2]),
    ]
    plain = [method for method in methods if method.backbone is None]
    shots, seeds = (0, 1, 2, 4, 8), range(5)
    with tempfile.TemporaryDirectory() as folder:
        generate.write(
            Path(folder) / "set",
            ["screw"],
            o["pool"],
            o["study"] // 2,
            max(1, o["study"] // 12),
            o["side"],
        )
        index = data.index("procedural", Path(folder) / "set")
        test = index[index["split"] == "test"].reset_index(drop=True)

        def whole():
            found = study.run(
                model, index, methods, shots, seeds, draws=0, store=folder, progress=False
            )
            image = study.encode(model, test, plain, folder, False).image
            text = prompts.prototype_table(
                model,
                {i: ("part", ensemble) for i, ensemble in enumerate(any_sets(o["sets"]))},
                store=folder,
            )
            for prototypes in text.values():
                evaluation.auroc(
                    anomaly_probability(image, prototypes, 0.07).numpy(), test["label"]
                )
            return found

        others = [method for method in methods if method.backbone is not None]
        marks, steps = (
            [time.perf_counter()],
            {
                "plain": lambda: study.encode(
                    model, index, plain, folder, False
                ),  # test images and references
                "V-V": lambda: [
                    study.encode(
                        method.backbone, index[index["split"] == "test"], [method], folder, False
                    )
                    for method in others
                ],
                "cold": whole,
                "warm": whole,
            },
        )
        for call in steps.values():
            found = call()
            marks.append(time.perf_counter())
        seconds = dict(zip(steps, np.diff(marks)))
        once = seconds["plain"] + seconds["V-V"]
    runs = len(found.rows.drop_duplicates(study.KEYS)) + o["sets"]
    part = f"study, {len(index)} images, {runs} runs"
    yield table_row(part, "encode all images once, with all that any method reads", once)
    yield table_row(part, "of it, AnomalyCLIP's V-V stream", seconds["V-V"])
    yield table_row(
        part,
        f"all methods, {o['sets']} prompt sets, K = 0 to 8, 5 seeds: cold",
        once + seconds["cold"],
    )
    yield table_row(part, "the same: warm", seconds["warm"])
    yield table_row(part, "cold / encode once", (once + seconds["cold"]) / once, "x", "<= 1.2")
    yield table_row(part, "warm / cold", seconds["warm"] / (once + seconds["cold"]), "x")
    yield table_row(
        part,
        "encode for every run / encode once, as peers do (computed: number of runs)",
        runs,
        "x",
    )


def growing(folder, n):
    model, paths = tower("tiny"), [str(Path(folder) / f"{i}.png") for i in range(n)]
    return lambda: features.encode(
        model, paths, windows=(2,), store=Path(folder) / f"store {n}", progress=False
    )


def growth(o):
    """Time and memory of encoding more and more images, with the tiny tower."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(max(o["grow"])):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
                Path(folder) / f"{i}.png"
            )
        for n in o["grow"]:
            seconds, memory = in_fresh_process(growing, folder, n)
            yield table_row(
                "growth, tiny tower", f"encode {n:,} images, ms an image", 1000 * seconds / n, "ms"
            )
            yield table_row(
                "growth, tiny tower", f"encode {n:,} images, highest memory", memory, "MB"
            )


PARTS = {"windows": windows, "scoring": scoring, "study": reuse, "growth": growth}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small numbers, to see that it works; nothing is written",
    )
    parser.add_argument(
        "--only",
        nargs="*",
        choices=PARTS,
        default=list(PARTS),
        help="parts; then nothing is written either",
    )
    options = parser.parse_args(arguments)
    rows = []
    for name in options.only:
        for row in PARTS[name](QUICK if options.quick else FULL):
            rows.append(row)
            print(
                "{part:34.34} {what:76.76} {median:9.3g} {unit:2} [{low:.3g}, {high:.3g}] {goal}".format(
                    **row
                ),
                flush=True,
            )
    table = pd.DataFrame(rows).assign(threads=torch.get_num_threads())
    return (
        table
        if options.quick or set(options.only) != set(PARTS)
        else report.save_table(table, "bench")
    )


if __name__ == "__main__":
    main()
