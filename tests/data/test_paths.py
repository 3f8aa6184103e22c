"""Where files lie, in a checkout and as installed; files that are written whole or not at all."""

import errno
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from vlmad_utils import paths

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = {"raw": "VLMAD_RAW", "store": "VLMAD_STORE", "results": "VLMAD_RESULTS"}
FOLDERS = {
    "raw": paths.raw_dir,
    "store": paths.store_dir,
    "results": paths.results_dir,
    "figures": paths.figures_dir,
}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """As in a wheel: no checkout around the package; the home and the working folder are empty."""
    monkeypatch.setattr(paths, "checkout", lambda: None)
    monkeypatch.setattr(paths.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def test_in_a_checkout_everything_lies_inside_it():
    assert paths.checkout() == ROOT
    found = {name: folder().relative_to(ROOT).as_posix() for name, folder in FOLDERS.items()}
    assert found == {
        "raw": "data/raw", "store": "data/store", "results": "data/results", "figures": "figures"
    }  # fmt: skip


@pytest.mark.parametrize("name", VARIABLES)
def test_a_relative_folder_does_not_follow_the_working_folder(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLES[name], "mine")
    assert FOLDERS[name]() == tmp_path / "mine"
    assert paths.store_folder("mine") == tmp_path / "mine"


def test_a_package_elsewhere_has_no_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages/vlmad_utils/paths.py"))
    assert paths.checkout() is None
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages/pyproject.toml").touch()  # of somebody else: no notebooks beside it
    assert paths.checkout() is None


def test_installed_caches_lie_in_the_users_folder_and_results_in_the_working_folder(installed):
    found = {name: folder().relative_to(installed).as_posix() for name, folder in FOLDERS.items()}
    assert found == {
        "raw": "vlmad/raw",
        "store": "vlmad/store",
        "results": "work/vlmad_results",
        "figures": "work/vlmad_figures",
    }
    assert not list((installed / "work").iterdir())  # to ask makes no folder


@pytest.mark.parametrize("where", ["checkout", "installed"])
@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_moves_a_folder(monkeypatch, tmp_path, request, name, where):
    if where == "installed":
        request.getfixturevalue("installed")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    default = FOLDERS[name]()
    for value, expected in (
        (str(tmp_path / "x"), tmp_path / "x"),
        ("~/x y", tmp_path / "x y"),
        ("x/y", Path.cwd() / "x/y"),
        ("", default),
    ):
        monkeypatch.setenv(VARIABLES[name], value)
        assert FOLDERS[name]() == expected


def test_a_checkout_may_lie_in_a_folder_with_a_backslash(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "checkout", lambda: tmp_path / "a\\b")
    assert paths.raw_dir() == tmp_path / "a\\b" / "data" / "raw"
    assert paths.results_dir() == tmp_path / "a\\b" / "data" / "results"


def test_the_argument_store_is_a_folder_or_auto(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert paths.store_folder("auto") == paths.store_dir()
    assert paths.store_folder(Path("auto")) == Path.cwd() / "auto"  # a folder of that name
    assert paths.store_folder("~/s") == tmp_path / "s"


@pytest.mark.skipif(os.name == "nt", reason="such paths are right there")
def test_user_folders_refuse_what_would_be_a_strange_name(tmp_path):
    for path in ("C:\\data", "D:/parts", "..\\parts", "\\\\server\\share"):
        with pytest.raises(ValueError, match="is a Windows path.*write it with /"):
            paths.user_folder(path)
    (tmp_path / "a\\b").mkdir()
    assert paths.user_folder(tmp_path / "a\\b") == tmp_path / "a\\b"  # it is there


def test_the_home_of_an_unknown_user_is_named():
    with pytest.raises(ValueError, match="~nobody-of-this-name/x.*home.*full path"):
        paths.user_folder("~nobody-of-this-name/x")


# ---- whole files -------------------------------------------------------------------------------


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_its_folder_is_made(tmp_path):
    path = tmp_path / "a" / "b.csv"
    with paths.atomic_write(str(path)) as temporary:
        temporary.write_text("1,2")
        assert temporary.parent == path.parent and not path.exists()
    assert path.read_text() == "1,2" and names(path.parent) == ["b.csv"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space"), KeyboardInterrupt(), ValueError("x")]
)
def test_what_cannot_be_finished_leaves_the_file_before_it(tmp_path, error):
    path = tmp_path / "x"
    path.write_text("before")
    with pytest.raises(type(error)), paths.atomic_write(path) as temporary:
        temporary.write_text("half of")
        raise error
    assert names(tmp_path) == ["x"] and path.read_text() == "before"


def test_the_error_keeps_its_kind_and_gains_path_and_advice(tmp_path):
    (tmp_path / "folder" / "x").mkdir(parents=True)  # where the file should go
    with (
        pytest.raises(OSError, match="take another name.*folder.x") as error,
        paths.atomic_write(tmp_path / "folder" / "x", "take another name") as temporary,
    ):
        temporary.write_text("1")
    assert type(error.value.__cause__) is type(error.value)
    assert names(tmp_path / "folder") == ["x"]
    (tmp_path / "file").touch()
    with (
        pytest.raises((FileExistsError, NotADirectoryError), match="make room"),
        paths.atomic_write(tmp_path / "file" / "x", "make room"),
    ):
        raise AssertionError("there is no folder to write to")


def test_an_error_without_a_number_passes_as_it_is(tmp_path):
    with (
        pytest.raises(OSError, match="^of Pillow$"),
        paths.atomic_write(tmp_path / "x", "make room"),
    ):
        raise OSError("of Pillow")


def test_hashes_of_files_and_arrays(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    expected = hashlib.sha256(b"abc").hexdigest()
    assert paths.sha256(tmp_path / "x") == expected
    assert paths.content_hash(str(tmp_path / "x")) == expected[:40]
    array = np.arange(6, dtype=np.uint8)
    assert paths.content_hash(array.reshape(2, 3)) != paths.content_hash(array.reshape(3, 2))
    assert paths.content_hash(array) != paths.content_hash(array.view(np.int8))
    assert paths.content_hash(array[::2]) == paths.content_hash(array[::2].copy())
