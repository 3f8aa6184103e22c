"""Faults and bad input: use in notebooks. See fixtures/cases.py."""

import os
import re
import shutil

import pytest
from fixtures import faults
from fixtures.cases import cases, encode, parts, posix, run
from fixtures.trees import mvtec_tree

from vlmad_utils import data, paths
from vlmad_utils import store as stores
from vlmad_utils.data import fetch


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """What a process saw that ran elsewhere, with a read-only checkout and without a home."""
    if os.name != "posix":
        pytest.skip("POSIX permissions")
    checkout, here = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("elsewhere")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("vlmad_utils", "vlmad_procedural"):
        shutil.copytree(faults.ROOT / name, checkout / name, ignore=ignore)
    (checkout / "data").mkdir()
    (checkout / "notebooks").mkdir()
    shutil.copy(faults.ROOT / "pyproject.toml", checkout)
    parts(here, 4, 3)
    faults.read_only(checkout)
    try:
        seen = faults.run(
            "notebook",
            here,
            PYTHONPATH=os.pathsep.join([str(checkout), str(faults.ROOT / "tests")]),
            HOME="/dev/null",
            TQDM_DISABLE="1",
            MPLBACKEND="Agg",
            DISPLAY=None,
            XDG_CACHE_HOME=None,
            XDG_CONFIG_HOME=None,
            PYTHONDONTWRITEBYTECODE="1",
        )
    finally:
        faults.writable(checkout)
    assert seen["package"].startswith(str(checkout))
    return seen


@pytest.mark.slow
def test_works_from_any_folder_without_home_and_display(used):
    assert used["rows"] == 7 and used["absolute"]
    assert used["after"]  # the index is good after another change of the folder
    assert used["backend"].lower() == "agg" and used["figure"] is None


@pytest.mark.slow
def test_opens_no_port_and_connects_to_nothing(used):
    assert used["opened"] == []


@pytest.mark.slow
@pytest.mark.parametrize("call", ["features.encode", "data.check", "training.fit", "study.run"])
def test_bars_are_off_when_tqdm_is_disabled(used, call):
    assert used["bars"][call] == ""


@pytest.mark.slow
@cases(
    (
        "the feature store",
        "StoreError: .*data/store cannot be written .*Permission denied.*VLMAD_STORE",
    ),
    (
        "fetched data",
        "SourceError: cannot write 'elpv' into .*data/raw .*Permission denied.*VLMAD_RAW",
    ),
    (
        "procedural data",
        "DataError: .*procedural: cannot be written .*Permission denied.*VLMAD_RAW",
    ),
    ("a table", "PermissionError: .*Permission denied.*data/results"),
    ("a figure", "PermissionError: .*Permission denied.*figures"),
    named=True,
)
def test_a_read_only_checkout_is_named(used, case):
    name, words = case
    assert re.search(words, used["locked"][name] or "nothing was raised")


@pytest.mark.slow
@cases(("a table", "VLMAD_RESULTS"), ("a figure", "out="), named=True)
def test_a_read_only_checkout_gives_advice_for_results(used, case):
    name, advice = case
    assert advice in used["locked"][name]


@pytest.mark.skipif(os.name == "nt", reason="there such paths are right")
@pytest.mark.parametrize(
    "path", ["C:\\data\\parts", "D:/parts", "..\\parts", "\\\\server\\share\\parts"]
)
@cases(
    ("data.index", lambda path, _: data.index("folder", path)),
    ("VLMAD_DATA", lambda path, env: (env("VLMAD_DATA", path), data.index("mvtec"))),
    ("data.available", lambda path, _: data.available(path)),
    ("fetch.fetch", lambda path, _: fetch.fetch("elpv", path)),
    ("VLMAD_RAW", lambda path, env: (env("VLMAD_RAW", path), paths.raw_dir())),
    ("features.encode", lambda path, _: encode([faults.noise()], path)),
    ("VLMAD_STORE", lambda path, env: (env("VLMAD_STORE", path), encode([faults.noise()], "auto"))),
)
def test_windows_paths_elsewhere_are_explained_and_make_no_strange_folder(
    tmp_path, monkeypatch, path, case
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VLMAD_DATA", raising=False)
    with pytest.raises(
        ValueError, match="is a Windows path, but this is no Windows: write it with /"
    ) as error:
        case[0](path, monkeypatch.setenv)
    assert path in str(error.value) and not list(tmp_path.iterdir())


@posix
def test_folders_may_have_backslashes_where_they_exist_and_tilde_is_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("VLMAD_RAW", "VLMAD_STORE"):
        monkeypatch.setenv(name, "~/x")
    assert paths.raw_dir() == paths.store_dir() == tmp_path / "x"
    index = parts(tmp_path, 4, 3)
    run(index, "~/x", (0,))
    assert {p.name for p in (tmp_path / "x").iterdir()} == {"study", f"v{stores.LAYOUT}"}
    odd = mvtec_tree(tmp_path / "a\\b")
    assert len(data.index("mvtec", str(odd))) == len(data.index("mvtec", "~/a\\b")) == 12
