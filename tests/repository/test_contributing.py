"""CONTRIBUTING.md: its recipes, followed as far as a machine can."""

import inspect
import re
import types

import numpy as np
import pytest
import yaml
from fixtures import pages, tiny, trees

from vlmad_utils import data, methods, study
from vlmad_utils.data import layouts
from vlmad_utils.models import backbone
from vlmad_utils.study import registry

PAGE = "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    return trees.noise_set(tmp_path_factory.mktemp("set"), n=2, side=24)


def test_files_and_folders_that_it_names_are_there():
    text = (pages.ROOT / PAGE).read_text(encoding="utf-8")
    named = re.findall(r"`(?:python )?((?:vlmad_utils|tests|docs|data|notebooks)/[\w/.]*)`", text)
    named.remove("notebooks/NN_topic.ipynb")
    assert len(named) > 8
    assert not [name for name in named if not (pages.ROOT / name).exists()]


def test_names_of_the_code_that_it_mentions_are_there():
    for name in ("ENCODING", "standard"):
        assert f"`{name}`" in (pages.ROOT / PAGE).read_text(encoding="utf-8")
    assert isinstance(backbone.ENCODING, int) and callable(registry.standard)
    assert "    known: dict" in inspect.getsource(registry.standard)


def test_add_a_method_gives_rows_of_a_study(noise, monkeypatch):
    function, entry = pages.blocks(pages.section(PAGE, "Add a method"), "python")
    names = {}
    module = types.ModuleType("vlmad_utils.methods.mean_distance")
    exec(function, module.__dict__)
    monkeypatch.setattr(methods, "mean_distance", module, raising=False)
    exec(entry, names)
    found = study.run(
        tiny.model(),
        data.index("folder", root=noise),
        [names["mean_distance_method"]()],
        shots=(0, 1, 2),
        seeds=(0,),
        draws=0,
        store=None,
        progress=False,
    )
    assert set(found.rows["method"]) == {"mean distance"}
    assert set(found.rows["k_shot"]) == {1, 2} and found.rows["value"].between(0, 1).all()


def test_add_a_data_set_gives_an_index(tmp_path, monkeypatch):
    text = pages.section(PAGE, "Add a data set")
    (code,), (about,) = pages.blocks(text, "python"), pages.blocks(text, "yaml")
    looks = re.search(r"`(lambda root: .*?)`", text)[1]
    names = {}
    exec(code, names)
    (name, facts), *others = yaml.safe_load(about).items()
    layout = layouts.Layout(name, eval(looks, names), names[name], **facts)
    assert not others and name not in layouts.DATASETS
    monkeypatch.setitem(layouts.DATASETS, name, layout)
    rng = np.random.default_rng(0)
    for i in range(4):
        for kind in ("ok", "broken"):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            trees.save(tmp_path / "screws" / kind / f"{i}.png", pixels)
    index = data.index(name, root=tmp_path)  # found under its usual name
    assert trees.counts(index) == {
        ("screws", "train", 0, "good"): 2,
        ("screws", "test", 0, "good"): 2,
        ("screws", "test", 1, "broken"): 4,
    }
    assert set(index["object_name"]) == {"screw"}
    assert data.licences(name) == "screws, CC BY 4.0"


def test_add_a_notebook_names_what_the_tests_ask_for():
    text = pages.section(PAGE, "Add a notebook")
    wanted = ("You will learn", "You need", "> **Scope", "<!-- navigation -->", "Takeaways")
    assert not [part for part in (*wanted, "Exercises", "References") if part not in text]
