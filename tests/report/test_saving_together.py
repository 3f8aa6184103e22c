"""Several processes save figures in one folder: every figure keeps its caption."""

import multiprocessing

import matplotlib.pyplot as plt
import yaml

from vlmad_utils import report

FIGURES = 8  # of each process


def save_many(process, out, barrier):
    plt.switch_backend("Agg")
    barrier.wait()
    for i in range(FIGURES):
        figure = plt.figure(figsize=(0.5, 0.5))
        report.save_figure(figure, f"p{process}_{i}", "A caption.", out=out)


def test_no_caption_is_lost_when_processes_save_at_once(tmp_path):
    barrier = multiprocessing.Barrier(3)
    jobs = [
        multiprocessing.Process(target=save_many, args=(i, tmp_path, barrier)) for i in range(3)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    names = {f"p{process}_{i}" for process in range(3) for i in range(FIGURES)}
    captions = yaml.safe_load((tmp_path / "captions.yaml").read_text(encoding="utf-8"))
    assert set(captions) == names == {path.stem for path in tmp_path.glob("*.pdf")}
    files = {path.name for path in tmp_path.iterdir()}  # no lock is left in the folder
    assert files == {"captions.yaml"} | {
        f"{name}.{kind}" for name in names for kind in ("pdf", "png")
    }
