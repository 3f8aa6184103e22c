"""Run the whole grid from a shell, for machines without a screen.

    python -m vlmad_utils.study --data mvtec visa --model ViT-B-16-plus-240 \\
        --pretrained laion400m_e31 --shots 0 1 4 --out rows.csv
    python -m vlmad_utils.study --data elpv --limit 120 --folder cookie=sets/cookie:cookie \\
        --methods "memory bank" --out rows.csv

A broken run resumes where it stopped. Methods that train do so on the procedural training families.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import joblib
import pandas as pd
import torch

from .. import data, models
from ..data.index import own_categories
from . import registry, run, summarise


def collect(
    names: Sequence[str], folders: Sequence[str] = (), limit: int | None = None, seed: int = 0
) -> pd.DataFrame:
    """Index several data sets and own folders in one table.

    Parameters
    ----------
    names : data sets of ``data.index``
    folders : texts CATEGORY=ROOT:OBJECT, MVTec-like folders of your own
    limit, seed : test images per data set, see ``data.index``

    Raises
    ------
    ValueError for a folder text of another form, a folder of several categories, or when nothing
    is named.
    """
    found = [data.index(name, limit=limit, seed=seed) for name in names]
    found += own_categories(folders, limit, seed)
    if not found:
        raise ValueError("no data were named: give --data or --folder")
    return pd.concat(found, ignore_index=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command: rows to a CSV, the summary to the screen."""
    parser = argparse.ArgumentParser(
        prog="python -m vlmad_utils.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", nargs="*", default=[], help="data sets, e.g. mvtec visa elpv")
    parser.add_argument(
        "--folder",
        action="append",
        default=[],
        metavar="CATEGORY=ROOT:OBJECT",
        help="an MVTec-like folder of your own",
    )
    parser.add_argument("--limit", type=int, help="test images per data set, at most")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--pretrained", help="weights of an open_clip model")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--device", default="auto", help="e.g. cuda:1, mps or cpu; default auto")
    parser.add_argument(
        "--precision", default="auto", help="auto (default), fp32, bf16 or fp16: of the blocks"
    )
    parser.add_argument(
        "--methods", nargs="*", help="names; default all: CLIP-AC, dense patches, WinCLIP, ..."
    )
    parser.add_argument("--shots", nargs="*", type=int, default=[0, 1, 4])
    parser.add_argument("--seeds", type=int, default=3, help="draws of references")
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes (on a GPU threads) that score"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="CSV of tidy rows; the summary goes to the screen"
    )
    options = parser.parse_args(arguments)
    index = collect(options.data, options.folder, options.limit)
    model = models.load(
        options.model,
        options.pretrained,
        options.image_size,
        device=options.device,
        precision=options.precision,
    )
    methods = registry.standard(model, options.methods)
    backend = "threading" if torch.device(model.device).type == "cuda" else "loky"
    with joblib.parallel_config(backend, n_jobs=options.jobs):
        found = run(model, index, list(methods.values()), options.shots, range(options.seeds))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found.rows.to_csv(options.out, index=False)
    for metric in ("image_auroc", "pixel_auroc", "aupro"):
        if (found.rows["metric"] == metric).any():
            print(f"\n{metric}\n{summarise(found.rows, metric).round(3).to_string(index=False)}")


if __name__ == "__main__":
    main()
