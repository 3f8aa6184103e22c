"""Faults and bad input: the feature store. See fixtures/cases.py."""

import contextlib
import errno
import json
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import faults
from fixtures.cases import cases, encode, parts, posix, run
from fixtures.counting import Tiny
from PIL import Image

from vlmad_utils import store as stores
from vlmad_utils.store import DiskStore, StoreError


@pytest.fixture(scope="module")
def befallen(tmp_path_factory):
    """Return what a process saw whose children were killed and whose disk was full; its folder."""
    pytest.importorskip("resource", reason="POSIX processes and limits")
    folder = tmp_path_factory.mktemp("store")
    for name in ("kill", "limit", "disk"):
        (folder / name).mkdir()
    mount = f"mount -t tmpfs -o size=128k none '{folder / 'disk'}' && exec \"$@\""
    return faults.run(
        "store",
        folder,
        ["unshare", "-m", "sh", "-c", mount, "sh"] if faults.can_mount(folder / "disk") else (),
    ), folder


@pytest.mark.slow  # of the fixture's child processes
def test_no_kill_leaves_anything_wrong_or_loses_anything(befallen):
    """Look at 24 kills with signal 9 of real processes: at a step of a write, and at any moment."""
    seen = befallen[0]["kill"]
    assert seen["kills"] >= 20 and set(seen["steps"]) >= {"b", "w", "r", "?"}
    assert seen["damaged"] == 0 and seen["lost"] == 0 and seen["equal"]
    assert seen["parts"] > 0  # a write was indeed cut; such a rest is never read


@pytest.mark.slow
@cases(
    ("a disk of 128 KB", "disk", errno.ENOSPC),
    ("a limit on the size of a file", "limit", errno.EFBIG),
)
def test_a_full_disk_keeps_what_there_is_and_says_what_to_do(befallen, case):
    place, reason = case
    seen, folder = befallen[0][place], befallen[1]
    if seen is None:
        pytest.skip("no right to mount")
    for words in (
        f"the feature store {folder / place} cannot be written",
        os.strerror(reason),
        "what it holds is kept",
        "Make room",
        "VLMAD_STORE",
    ):
        assert words in seen["said"]
    assert seen["kept"] >= 1 and seen["parts"] == 0
    assert seen["equal"] and 0 < seen["encoded"] <= 12  # after that only what was missing


def test_a_file_in_the_place_of_the_store_is_an_error_that_says_what_to_do(tmp_path):
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(StoreError, match="store cannot be written.*VLMAD_STORE.*store=None"):
        encode([faults.noise()], tmp_path / "store")
    assert (tmp_path / "store").read_text() == "not a folder"


@posix
def test_a_read_only_store_is_read_and_refuses_more(tmp_path):
    paths = faults.pictures(tmp_path / "images", 3)
    expected = encode(paths[:2], tmp_path / "store").image
    damaged = next((tmp_path / "store").rglob("patches/*/*.safetensors"))
    faults.read_only(tmp_path / "store")

    def use():
        assert torch.equal(encode(paths[:2], tmp_path / "store").image, expected)
        with pytest.raises(
            StoreError, match=r"cannot be written \(.*Permission denied.*VLMAD_STORE"
        ):
            encode(paths, tmp_path / "store")
        assert torch.equal(encode(paths[:2], tmp_path / "store").image, expected)
        assert len(encode(paths, None)) == 3  # as the message says

    def mend():
        with (
            pytest.raises(StoreError, match="cannot be written"),
            pytest.warns(UserWarning, match="damaged"),
        ):
            encode(paths[:2], tmp_path / "store").patches.sum()

    try:
        faults.unprivileged(use)
        damaged.chmod(0o600)
        damaged.write_bytes(damaged.read_bytes()[:-1])
        faults.unprivileged(mend)
    finally:
        faults.writable(tmp_path / "store")


@posix
def test_too_many_open_files_are_said_and_nothing_is_deleted_or_encoded_again(tmp_path):
    model, paths = Tiny(), faults.pictures(tmp_path / "images", 3)
    found = encode(paths[:2], tmp_path / "store", model)
    before = faults.contents(tmp_path)
    said = "cannot be read.*Too many open files.*nothing was deleted.*ulimit -n"
    with faults.no_more_files():
        with pytest.raises(StoreError, match=said):
            found.image.sum()
        for on_error in ("raise", "skip"):  # no image is to blame, so none is left out
            for store, name in ((tmp_path / "store", "store"), (None, "no image is to blame")):
                with pytest.raises(OSError, match=f"{name}.*ulimit -n"):
                    encode(paths, store, model, on_error=on_error)
        with pytest.raises(StoreError, match="cannot be written.*Too many open files.*ulimit -n"):
            found.store.put("image", "ab" * 20, np.zeros(2))
    assert sum(model.passes) == 2 and faults.contents(tmp_path) == before


@posix
def test_an_image_that_the_model_reads_with_too_many_open_files_is_not_left_out(tmp_path):
    paths = faults.pictures(tmp_path / "images", 9)

    class Greedy(Tiny):
        def embed(self, pixels):
            stack.enter_context(faults.no_more_files())
            return super().embed(pixels)

    with contextlib.ExitStack() as stack, pytest.raises(OSError, match="Too many open files"):
        encode(paths, None, Greedy(), batch_size=1, on_error="skip")


@cases(
    ("a disk that cannot be read", OSError(errno.EIO, os.strerror(errno.EIO))),
    ("no memory", OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))),
)
def test_what_is_no_damage_of_the_file_deletes_nothing(tmp_path, monkeypatch, case):
    model = Tiny()
    found = encode([faults.noise()], tmp_path, model)
    before = faults.contents(tmp_path)

    def fail(*_, **__):
        raise case[0]

    for reader in ("read_bytes", "open"):
        monkeypatch.setattr(Path, reader, fail)
    monkeypatch.setattr(stores, "safe_open", fail, raising=False)
    with pytest.raises(StoreError, match=f"cannot be read.*{case[0].strerror}.*nothing was del"):
        found.patches.sum()
    monkeypatch.undo()
    assert sum(model.passes) == 1 and faults.contents(tmp_path) == before


@posix
def test_a_file_without_the_right_to_read_it_is_kept(tmp_path):
    found = encode([faults.noise()], tmp_path)
    path, before = found.store.path("image", found.keys[0]), faults.contents(tmp_path)

    def use():
        with pytest.raises(StoreError, match="cannot be read.*Permission denied.*right to read"):
            found.image.sum()

    for locked in (path, path.parent):
        with faults.mode(locked, 0):
            faults.unprivileged(use)
    assert faults.contents(tmp_path) == before


@pytest.fixture
def stored(tmp_path):
    """Return the file of an array, and what writes and reads it and says whether that is right."""
    store, key, array = (
        DiskStore(tmp_path, "f"),
        "ab" * 20,
        np.random.default_rng(0).normal(size=(9, 8)).astype(np.float16),
    )
    store.put("patches", key, array)
    path = store.path("patches", key)

    def read(content):
        path.write_bytes(content)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            found = store.get("patches", key)
        if found is None:  # reported and removed, so that it is computed again
            return len(seen) == 1 and "damaged" in str(seen[0].message) and not path.exists()
        return found.dtype == array.dtype and np.array_equal(found, array) and not seen

    assert read(path.read_bytes())
    return path.read_bytes(), read


def test_a_file_that_another_process_holds_open_is_written_when_it_holds_the_same(
    tmp_path, monkeypatch
):
    """On Windows, os.replace refuses a file that somebody reads."""
    store, array = DiskStore(tmp_path, "f"), np.float32([1, 2, np.nan])
    store.put("image", "ab", array)

    def refused(*_):
        raise PermissionError(errno.EACCES, "Access is denied")

    monkeypatch.setattr(os, "replace", refused)
    store.put("image", "ab", array)
    others = [array.astype(np.float16), array[None], -array]
    for key, other in [("cd", array), *(("ab", other) for other in others)]:
        with pytest.raises(StoreError, match="cannot be written.*Access is denied"):
            store.put("image", key, other)
    assert store.get("image", "ab").tobytes() == array.tobytes()
    assert not list(tmp_path.rglob("*.part"))


def test_a_relative_store_stays_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = DiskStore("store", "f")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.put("image", "ab", np.ones(3))
    assert (tmp_path / "store").is_dir() and not list((tmp_path / "elsewhere").iterdir())


def test_every_flipped_bit_is_found(stored):
    content, read = stored
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        assert read(damaged), f"bit {bit} of {content}"


def test_every_length_to_which_a_file_is_cut_is_found(stored):
    content, read = stored
    assert (
        all(read(content[:n]) for n in range(len(content)))
        and read(content + b"\0")
        and read(content)
    )


def test_another_layout_is_left_alone_and_its_numbers_are_not_used(tmp_path, monkeypatch):
    pixels = [faults.noise()]
    monkeypatch.setattr(stores, "LAYOUT", "0")
    encode(pixels, tmp_path)
    old = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    for path in old:
        path.write_bytes(b"of another version")
    monkeypatch.undo()
    with pytest.warns(
        UserWarning,
        match="also holds v0, written by another version.*reads v1 only.*remove the other folders",
    ):
        found = encode(pixels, tmp_path)
    for action, times in (("default", 1), ("always", 2)):  # Python's filter says how often
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter(action)
            encode(pixels, tmp_path), encode(pixels, tmp_path)
        assert len(seen) == times
    assert torch.equal(found.image, encode(pixels).image)
    assert {path.read_bytes() for path in old} == {b"of another version"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v0", f"v{stores.LAYOUT}"]


@pytest.mark.parametrize(
    "clock", [0, 1, time.time() + 10 * 365 * 86400], ids=["1970", "1970 and 1 s", "ten years ahead"]
)
def test_no_clock_decides_anything(tmp_path, clock):
    paths = faults.pictures(tmp_path / "images", 3)
    encode(paths[:2], tmp_path / "store")
    for path in tmp_path.rglob("*"):
        os.utime(path, (clock, clock))
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.safetensors")}
    Image.fromarray(faults.noise(9)).save(
        paths[1]
    )  # another picture, as old as the first by its date
    os.utime(paths[1], (clock, clock))
    found = encode(paths, tmp_path / "store")
    assert torch.allclose(found.image, encode(paths).image, atol=1e-6)
    assert stored == {path: path.stat().st_mtime_ns for path in stored}


def test_a_flipped_digit_in_a_cell_of_the_study_is_found(tmp_path):
    index = parts(tmp_path, 4, 3)
    rows = run(index, tmp_path / "store", (0,)).rows
    [path] = (tmp_path / "store" / "study").rglob("*.json")
    cell = json.loads(path.read_text())
    cell["rows"][0]["value"] = 0.123
    path.write_text(json.dumps(cell))
    with pytest.warns(UserWarning, match=f"{path.name} of the study in the store was damaged"):
        assert run(index, tmp_path / "store", (0,)).rows.equals(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(index, tmp_path / "store", (0,)).rows.equals(rows)


def test_a_file_that_cannot_be_finished_leaves_the_one_before_it_and_no_rest(tmp_path):
    from vlmad_utils import paths

    (tmp_path / "x").write_text("before")
    for fault in (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()):
        with (
            pytest.raises(type(fault)) as error,
            paths.atomic_write(tmp_path / "x", "make room") as temporary,
        ):
            temporary.write_text("half of")
            raise fault
        assert [path.name for path in tmp_path.iterdir()] == ["x"] and (
            tmp_path / "x"
        ).read_text() == "before"
        if isinstance(fault, OSError):
            assert (
                str(error.value)
                == f"[Errno 28] {os.strerror(errno.ENOSPC)}: make room: '{tmp_path / 'x'}'"
            )


def test_a_study_on_a_full_disk_keeps_its_cells_and_says_what_to_do(tmp_path, monkeypatch):
    index = parts(tmp_path, 4, 3)
    run(index, tmp_path / "store", (0,))
    kept = {path: path.read_bytes() for path in (tmp_path / "store" / "study").rglob("*.json")}

    def full(path, *_, **__):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left.*make room.*VLMAD_STORE.*study"):
            run(index, tmp_path / "store", (0, 1))
    assert kept and kept == {
        path: path.read_bytes()
        for path in (tmp_path / "store" / "study").rglob("*")
        if path.is_file()
    }
