"""The grid of the study: rows, resuming, keys, and the paradigms as the study runs them."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures import tiny, trees
from joblib import parallel_config
from safetensors.numpy import load_file

from embedded_model import evaluation as embedded
from vlmad_utils import data, evaluation, report, study
from vlmad_utils.methods import Scores, april_gan
from vlmad_utils.study import __main__ as command
from vlmad_utils.study import registry


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Two categories with masks: 3 references, 3 normal and 3 anomalous test images each."""
    root = trees.noise_set(tmp_path_factory.mktemp("set"), n=3, side=40)
    return data.index("folder", root=root)


@pytest.fixture(scope="module")
def methods():
    model = tiny.model()
    layers = april_gan.LinearLayers((2, 4), model.width, model.dim)
    return [
        registry.clip_ac_method(model),
        registry.clip_ac_method(model, "winclip", "CLIP-AC + ensemble"),
        registry.dense(model),
        registry.winclip_method(model),
        registry.april_gan_method(model, layers),
        registry.april_gan_method(model, layers, transductive=True),
        registry.april_gan_method(model, layers, image_from="map"),
        registry.anomalyclip_method(model, torch.eye(2, model.dim)),
        registry.memory_bank_method((2, 4)),
    ]


def grid(index, methods, store, **options):
    return study.run(
        tiny.model(),
        index,
        methods,
        **{
            "shots": (0, 1, 2),
            "seeds": (0, 1),
            "size": (40, 40),
            "draws": 20,
            "store": store,
            "progress": False,
            **options,
        },
    )


def test_a_row_for_every_cell_and_metric_and_the_same_a_second_time(index, methods, tmp_path):
    found = grid(index, methods, tmp_path)
    zero = 7  # CLIP-AC, ensemble, dense, WinCLIP, APRIL-GAN twice, AnomalyCLIP
    few = 5  # WinCLIP+, APRIL-GAN three times, memory bank
    cells = 2 * (zero + few * 2 * 2)
    assert len(found.rows) == cells * 7 and len(found.images) == cells * 6
    assert not found.rows.duplicated([*study.KEYS, "metric"]).any()
    assert set(found.rows["metric"]) == {
        "image_auroc",
        "image_ap",
        "image_f1max",
        "pixel_auroc",
        "pixel_ap",
        "pixel_f1max",
        "aupro",
    }
    assert found.rows[["value", "low", "high", "chance"]].notna().all().all()
    assert (found.rows["low"] <= found.rows["high"]).all()
    training = found.rows.groupby("method")["training"].unique().map(list)
    assert training["APRIL-GAN"] == ["trained elsewhere"]
    assert training["APRIL-GAN (transductive)"] == ["transductive"]
    again = grid(index, methods, tmp_path)
    pd.testing.assert_frame_equal(found.rows, again.rows)
    pd.testing.assert_frame_equal(found.images, again.images)
    alone = grid(index, methods, None)  # the store changes no number
    pd.testing.assert_frame_equal(found.rows, alone.rows)


def test_cells_are_read_without_features_and_features_need_not_be_kept(index, methods, tmp_path):
    def written(store):
        return [
            path
            for path in (tmp_path / store).glob("v*/**/*.safetensors")
            if path.parent.name != "text"
        ]

    found = grid(index, methods, tmp_path / "all")
    lean = grid(index, methods, tmp_path / "lean", keep_features=False)
    pd.testing.assert_frame_equal(found.rows, lean.rows)
    pd.testing.assert_frame_equal(found.images, lean.images)
    assert written("all") and not written("lean")
    for path in written("all"):
        path.unlink()
    again = grid(index, methods[::-1], tmp_path / "all")  # in another order; nothing is encoded
    assert not written("all") and len(again.rows) == len(found.rows)
    fewer = index[index["category"] == "bolt"]
    more = methods[2]  # one category and one method without its cell: only its images are encoded
    study.run(
        tiny.model(),
        fewer,
        [study.Method("new", more.score, "zero", more.ensemble, patches=True)],
        size=(40, 40),
        draws=0,
        store=tmp_path / "all",
        progress=False,
    )
    rows = [len(load_file(path)["x"]) for path in written("all")]
    assert rows == [6, 6]  # image embedding and patches of 6 images


def test_rows_agree_with_the_metrics_of_the_scores(index, methods, tmp_path):
    found = grid(index, methods[:1], tmp_path, shots=(0,))
    part = found.images[found.images["category"] == "bolt"]
    test = index[(index["split"] == "test")].reset_index(drop=True)
    assert (test.loc[part["image"], "label"].to_numpy() == part["label"].to_numpy()).all()
    row = found.rows.query("category == 'bolt' and metric == 'image_auroc'").iloc[0]
    assert row["value"] == evaluation.auroc(part["score"].to_numpy(), part["label"].to_numpy())
    assert row["chance"] == 0.5


def test_a_broken_run_goes_on_and_only_new_cells_are_scored(index, methods, tmp_path):
    bank, calls = methods[-1], []

    def score(*arguments, fail_at=None):
        calls.append(1)
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        return bank.score(*arguments)

    def counting(fail_at=None, settings=bank.settings):
        return study.Method(
            bank.name,
            lambda *a: score(*a, fail_at=fail_at),
            "few",
            blocks=bank.blocks,
            settings=settings,
        )

    with pytest.raises(KeyboardInterrupt):
        grid(index, [counting(fail_at=4)], tmp_path)
    grid(index, [counting()], tmp_path)
    assert len(calls) == 4 + 5  # three of eight were kept
    grid(index, [counting()], tmp_path, shots=(0, 1, 2, 3), seeds=(0,))
    assert len(calls) == 9 + 2  # K = 3 for two categories
    grid(index, [counting(settings=("other",))], tmp_path)
    assert len(calls) == 11 + 8  # other settings are another method
    for path in tmp_path.rglob("study/*/*.json"):
        path.write_text(path.read_text()[:-9])  # cut off
    with pytest.warns(UserWarning, match="damaged; this cell is computed again"):
        grid(index, [counting()], tmp_path)
    assert len(calls) == 19 + 8


@pytest.mark.slow
def test_order_of_rows_categories_and_workers_changes_nothing(index, methods, tmp_path):
    def rows(images, store=None):
        found = grid(images, methods[-1:], store).rows
        return found.sort_values([*study.KEYS, "metric"]).reset_index(drop=True)

    found, mixed = rows(index), rows(index.sample(frac=1, random_state=1))
    numbers = ["value", "chance"]  # the draws of the bootstrap depend on the order
    np.testing.assert_allclose(mixed[numbers], found[numbers], atol=1e-6)
    with parallel_config(backend="loky", n_jobs=2):
        pd.testing.assert_frame_equal(rows(index, tmp_path), found)


def test_evaluate_refuses_what_it_cannot_judge(index):
    test = index[index["split"] == "test"]
    bolt = test[test["category"] == "bolt"].reset_index(drop=True)
    scores = Scores(torch.rand(6), torch.rand(6, 4, 4), "x", "training-free")
    with pytest.raises(ValueError, match="12 images, the scores 6"):
        study.evaluate(test, scores)
    with pytest.raises(ValueError, match="one category"):
        study.evaluate(pd.concat([bolt[:3], test[test["category"] == "cloth"][:3]]), scores)
    with pytest.raises(ValueError, match="unknown"):
        study.evaluate(bolt.assign(label=-1), scores)
    no_masks = study.evaluate(bolt.assign(mask_path=None), scores, draws=0)
    assert [row["metric"] for row in no_masks] == [
        "image_auroc",
        "image_ap",
        "image_f1max",
    ] and np.isnan(no_masks[0]["low"])


def test_methods_that_write_the_same_rows_are_refused(index, methods):
    clip, bank = methods[0], methods[-1]
    with pytest.raises(
        ValueError, match="two methods are called 'memory bank' with prompts 'none'"
    ):
        grid(index, [bank, replace(bank, settings=("other",))], None, shots=(1,))
    with pytest.raises(ValueError, match="'CLIP-AC' with prompts 'own-.* at 0 references"):
        grid(index, [replace(clip, ensemble={"normal": ["{}"], "anomalous": ["bad {}"]})] * 2, None)
    others = [replace(clip, name="bank"), replace(clip, name="bank", ensemble="winclip")]
    others += [replace(bank, name="bank"), bank]
    rows = grid(index, others, None, shots=(0, 1), seeds=(0,), draws=0).rows
    assert not rows.duplicated([*study.KEYS, "metric"]).any()
    assert len(rows) == len(others) * 2 * 7


def test_a_line_of_the_summary_mixes_no_backbones(index, methods):
    rows = grid(index, methods[:1], None, shots=(0,), draws=0).rows
    rows = pd.concat([rows, rows.assign(backbone="other")])
    with pytest.raises(ValueError, match="'CLIP-AC'.*backbones tiny, other: name 'backbone' in by"):
        study.summarise(rows, "image_auroc")
    by = ("dataset", "method", "backbone")
    assert len(study.summarise(rows, "image_auroc", by)) == 2
    assert len(study.summarise(rows.drop(columns="backbone"), "image_auroc")) == 1


@pytest.mark.parametrize("missing, told", [(1, 1), (3, 0), (0, 0)])
def test_an_anomalous_image_without_a_mask_is_named(index, missing, told):
    """It costs its category all pixel metrics, unless the category has no mask at all."""
    bolt = index[(index["split"] == "test") & (index["category"] == "bolt")].reset_index(drop=True)
    lost = bolt.index[bolt["label"] == 1][:missing]
    bolt.loc[lost, "mask_path"] = None
    scores = Scores(torch.rand(6), torch.rand(6, 4, 4), "x", "training-free")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = study.evaluate(bolt, scores, draws=0)
    assert len(found) == (7 if not missing else 3) and len(seen) == told
    for warning in seen:
        assert bolt["image_path"][lost[0]] in str(warning.message)
        assert "folder/bolt gets no pixel metrics: 1 anomalous" in str(warning.message)


def test_summary_is_the_macro_mean_with_errors_in_quadrature():
    base = {
        "dataset": "d",
        "method": "m",
        "k_shot": 1,
        "metric": "image_auroc",
        "chance": 0.5,
        "n_images": 10,
        "training": "training-free",
    }
    rows = pd.DataFrame(
        [
            {**base, "category": c, "seed": s, "value": v, "low": v - 0.03, "high": v + 0.04}
            for c, s, v in (("a", 0, 0.6), ("a", 1, 0.8), ("b", 0, 0.9), ("b", 1, 0.9))
        ]
    )
    line = study.summarise(rows, "image_auroc").iloc[0]
    assert line["value"] == pytest.approx(0.8) and line["seed_sd"] == pytest.approx(
        np.std([0.75, 0.85], ddof=1)
    )
    assert line["low"] == pytest.approx(0.8 - 0.03 * 2**0.5 / 2) and line["high"] == pytest.approx(
        0.8 + 0.04 * 2**0.5 / 2
    )
    assert (line["n_categories"], line["n_images"]) == (2, 20)
    with pytest.raises(ValueError, match="found image_auroc"):
        study.summarise(rows, "aupro")


def test_results_are_kept_whole_and_published_ones_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("VLMAD_RESULTS", str(tmp_path))
    frame = pd.DataFrame({"metric": ["image_auroc"], "value": [0.123456789]})
    report.save_table(frame, "99_test")
    assert report.load_table("99_test")["value"][0] == pytest.approx(0.123457) and [
        p.name for p in tmp_path.iterdir()
    ] == ["99_test.csv"]
    with pytest.raises(FileNotFoundError, match="begins with 98"):
        report.load_table("98_other")
    with pytest.raises(ValueError, match="empty"):
        report.save_table(frame[:0], "99_test")
    paper = report.published(
        method="WinCLIP", dataset="MVTec-AD", category="mean", metric="I-AUROC"
    )
    assert len(paper) and paper["source"].notna().all() and (paper["value"] > 1).all()
    with pytest.raises(ValueError, match="takes"):
        report.published(method="WinCLIP", metric="image_auroc")
    with pytest.raises(ValueError, match="no column"):
        report.published(backbone="x")


def test_the_shell_chooses_device_and_precision(index, monkeypatch):
    root = index["image_path"][0].split("/bolt/")[0] + "/bolt"
    given = []
    monkeypatch.setattr(command.models, "load", lambda *a, **o: given.append(o) or 1 / 0)
    for options in ([], ["--device", "cuda:1", "--precision", "fp32"]):
        with pytest.raises(ZeroDivisionError):  # nothing is loaded
            command.main(["--folder", f"part={root}:bolt", "--out", "rows.csv", *options])
    assert given == [
        {"device": "auto", "precision": "auto"},
        {"device": "cuda:1", "precision": "fp32"},
    ]


def test_the_shell_names_data_and_methods_or_says_what_is_wrong(index, capsys):
    root = index["image_path"][0].split("/bolt/")[0] + "/bolt"
    own = command.collect([], [f"part={root}:steel bolt"])
    assert set(own["category"]) == {"part"} and set(own["object_name"]) == {"steel bolt"}
    assert len(own) == 9
    with pytest.raises(ValueError, match="CATEGORY=ROOT:OBJECT"):
        command.collect([], [root])
    both = root.removesuffix("/bolt")
    with pytest.raises(ValueError, match=f"2 categories, bolt, cloth, .* bolt={both}/bolt:part"):
        command.collect([], [f"x={both}:part"])
    with pytest.raises(ValueError, match="'x' is named twice"):
        command.collect([], [f"x={root}:part", f"x={both}/cloth:part"])
    with pytest.raises(ValueError, match="2 categories"):
        embedded._sets([f"x={both}:part"])
    with pytest.raises(ValueError, match="no data"):
        command.collect([])
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    assert capsys.readouterr().out.startswith("usage: python -m vlmad_utils.study ")
    with pytest.raises(ValueError, match="known are CLIP-AC"):
        registry.standard(tiny.model(), ["WinClip"])
    assert list(registry.standard(tiny.model(), ["memory bank", "WinCLIP"])) == [
        "WinCLIP",
        "memory bank",
    ]
