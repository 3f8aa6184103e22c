"""Faults and bad input: the feature store. See fixtures/cases.py."""

import contextlib
import errno
import io
import itertools
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
from vlmad_utils.store import DiskStore, StoreError, disk, shards


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
    assert seen["kills"] >= 20 and set(seen["steps"]) >= {"b", "w", "r", "u", "?"}
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
    damaged = next((tmp_path / "store").rglob("patches/*.safetensors"))
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

    monkeypatch.setattr(shards, "open", fail, raising=False)
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
def stored(tmp_path, monkeypatch):
    """Return the bytes of a shard of three rows, and what reads other bytes in its place.

    ``read`` returns the keys that are lost. It checks that the others hold what was written, that
    damage is named once, and that nothing is wrong any more after that. The file is so old that
    nobody is copying it.
    """
    monkeypatch.setattr(os, "fsync", lambda number: None)
    keys, rows = ["ab" * 20, "cd" * 20, "c0" * 20], np.float16([[1, -2.5], [0, 4], [7, 8]])
    store = DiskStore(tmp_path, "f")
    store.put_rows("patches", keys, rows)
    path = store.path("patches", keys[0])
    original = path.read_bytes()

    def look():
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            fresh, found = DiskStore(tmp_path, "f"), np.full(rows.shape, np.nan, np.float32)
            lost = fresh.read("patches", keys, found)
        right = np.delete(np.arange(3), lost)
        assert np.array_equal(found[right], rows[right])
        assert all(np.array_equal(fresh.get("patches", keys[i]), rows[i]) for i in right)
        assert fresh.lacking("patches", keys) == [keys[i] for i in lost]
        return lost, [str(warning.message) for warning in seen]

    def read(content):
        for left in path.parent.iterdir():
            left.unlink()
        path.write_bytes(content)
        os.utime(path, (0, time.time() - 2 * 3600))
        lost, said = look()
        assert content == original or (len(said) == 1 and "damaged" in said[0]), said
        assert look() == (lost, [])
        return lost

    assert read(original) == []
    return original, read


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


@pytest.mark.slow  # 2,240 damaged files
def test_every_flipped_bit_is_found(stored):
    content, read = stored
    lost = []
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        lost.append(len(read(damaged)))
    assert lost[-8 * 12 :] == [1] * 8 * 12  # in a row: that row only
    assert lost[: -8 * 12] == [3] * (len(lost) - 8 * 12)  # in the header: all


def test_every_length_to_which_a_file_is_cut_is_found(stored):
    content, read = stored
    for n in range(len(content)):
        assert read(content[:n]) == [0, 1, 2]
    assert read(content + b"\0") == [0, 1, 2] and read(content) == []


@cases(
    ("another type of the same size", b'"F16"', b'"I16"'),
    ("another shape of the same size", b"[3,2]", b"[3,1,2]"),
    ("another key", b"abab", b"acab"),
)
def test_nothing_that_a_wrong_header_says_is_used(stored, case):
    content, read = stored
    assert read(content.replace(*case)) == [0, 1, 2]
    with pytest.raises(shards.Damaged, match="not what was written"):
        shards.decoded(content.replace(*case)[:-12], "0" * 40, 12)


def test_a_header_is_read_whole_and_never_longer_than_any_is(tmp_path, monkeypatch):
    store, keys = DiskStore(tmp_path, "f"), [f"{i:040x}" for i in range(50)]
    store.put_rows("image", keys, np.ones((50, 2)))

    class Short(io.FileIO):
        """A drive that gives fewer bytes than it is asked for."""

        def read(self, size=-1):
            return super().read(min(size, 1000) if size > 0 else size)

        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:1000])

    def opened(path, mode, buffering=-1):
        return Short(path) if buffering == 0 else io.BufferedReader(Short(path))

    monkeypatch.setattr(shards, "open", opened, raising=False)
    assert DiskStore(tmp_path, "f").lacking("image", keys) == []
    monkeypatch.undo()
    monkeypatch.setattr(shards, "HEADER", 100)
    with pytest.raises(shards.Damaged, match="its header would be .* bytes long"):
        shards.look(store.path("image", keys[0]))


def test_a_file_that_is_being_copied_into_a_store_stays(tmp_path):
    source, rows = DiskStore(tmp_path / "from", "f"), np.ones((8, 400))
    keys = [f"{i:040x}" for i in range(8)]
    source.put_rows("image", keys, rows)
    there = source.path("image", keys[0])
    content, store = there.read_bytes(), DiskStore(tmp_path / "to", "f")
    (store.folder / "image").mkdir(parents=True)
    with open(store.folder / "image" / there.name, "wb", buffering=0) as file:
        for n in (0, 300, 6000):  # empty, in its header, in its rows
            file.write(content[file.tell() : n])
            with pytest.warns(UserWarning, match="damaged .*computed when it is asked for"):
                assert store.lacking("image", keys) == keys
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # one store says it once
                assert store.lacking("image", keys) == keys and not store.has("image", keys[0])
                store.seal()
        file.write(content[6000:])
    assert store.lacking("image", keys) == []
    assert np.array_equal(store.get("image", keys[7]), rows[7])


def test_a_damaged_file_is_removed_when_nobody_can_be_copying_it_or_written_anew(tmp_path):
    store, rows = DiskStore(tmp_path, "f"), np.ones((2, 3))
    store.put_rows("image", ["a", "b"], rows)
    path = store.path("image", "a")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="damaged"):
        assert store.read("image", ["a", "b"], np.zeros((2, 3))) == [0, 1]
    assert path.exists()
    store.put_rows("image", ["a", "b"], rows)  # in the same file
    assert store.lacking("image", ["a", "b"]) == [] and np.array_equal(
        store.get("image", "b"), rows[1]
    )
    path.write_bytes(path.read_bytes()[:-1])
    os.utime(path, (0, time.time() - 4000))
    with pytest.warns(UserWarning, match="damaged"):
        assert DiskStore(tmp_path, "f").lacking("image", ["a"]) == ["a"]
    assert not path.exists()


def test_a_store_whose_files_change_for_ever_is_an_error(tmp_path, monkeypatch):
    store = DiskStore(tmp_path, "f")
    store.put("image", "a", np.ones(3))
    numbers = itertools.count()  # as a drive gives that has no numbers of files of its own
    monkeypatch.setattr(shards, "stamp_of", lambda about: (next(numbers),))
    with pytest.raises(StoreError, match=f"{tmp_path} changes while it is read.*VLMAD_STORE"):
        store.get("image", "a")


def test_what_is_mended_needs_no_claim(tmp_path, monkeypatch):
    """A bundler removes what other bundlers left; who mends may be at work then."""
    store, rows = DiskStore(tmp_path, "f"), np.arange(6, dtype=np.float32).reshape(3, 2)
    store.put_rows("image", ["a", "b", "c"], rows)
    path = store.path("image", "a")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    seen, fsync = [], os.fsync

    def sync(number):
        seen.extend(part.name for part in path.parent.glob(".*"))
        store._bundle("image") if len(seen) == 1 else None
        fsync(number)

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.warns(UserWarning, match="1 of its 3 arrays"):
        assert DiskStore(tmp_path, "f").read("image", ["a", "b", "c"], np.zeros((3, 2))) == [2]
    assert len(seen) >= 1 and not path.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert DiskStore(tmp_path, "f").read("image", ["a", "b"], np.zeros((2, 2))) == []


def test_a_damaged_row_leaves_its_shard_and_is_stored_anew(tmp_path):
    keys, rows = [f"{i:040x}" for i in range(9)], np.arange(18, dtype=np.float32).reshape(9, 2)
    writer, reader = DiskStore(tmp_path, "f"), DiskStore(tmp_path, "f")
    for i in range(0, 9, 3):
        writer.put_rows("image", keys[i : i + 3], rows[i : i + 3])
    assert reader.lacking("image", keys) == []
    writer.seal()  # under the reader
    [path] = (writer.folder / "image").iterdir()
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    found = np.zeros_like(rows)
    with pytest.warns(UserWarning, match="damaged .a checksum is wrong.; 1 of its 9 arrays are"):
        assert reader.read("image", keys, found) == [8]
    assert np.array_equal(found[:8], rows[:8])
    reader.put_rows("image", keys[8:], rows[8:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for store in (reader, writer, DiskStore(tmp_path, "f")):
            assert store.read("image", keys, found) == [] and np.array_equal(found, rows)


def test_a_bundle_takes_no_damaged_row_along(tmp_path):
    store, rows = DiskStore(tmp_path, "f"), np.arange(8, dtype=np.float32).reshape(4, 2)
    keys = [f"{i:040x}" for i in range(4)]
    store.put_rows("image", keys[:2], rows[:2])
    path = store.path("image", keys[0])
    store.put_rows("image", keys[2:], rows[2:])
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    store = DiskStore(tmp_path, "f")
    assert store.lacking("image", keys) == []  # no row is read for that
    with pytest.warns(UserWarning, match="damaged .*1 of its 2 arrays are computed when"):
        store.seal()
    store.seal()
    assert store.lacking("image", keys) == [keys[1]] and not list(tmp_path.rglob("*.part"))
    assert len(list((store.folder / "image").iterdir())) == 1


def test_a_file_that_is_removed_by_hand_while_it_is_in_use_is_computed_again(tmp_path):
    model, images = Tiny(), [faults.noise(i) for i in range(3)]
    found = encode(images, tmp_path, model)
    expected = found.patches
    for path in (found.store.folder / "patches").iterdir():
        path.unlink()
    assert torch.equal(found.patches, expected) and sum(model.passes) == 6
    assert torch.equal(encode(images, tmp_path, model).patches, expected) and len(model.passes) == 2


def test_files_of_another_make_are_named_and_left_alone(tmp_path, monkeypatch):
    store = DiskStore(tmp_path, "f")
    with monkeypatch.context() as patch:
        patch.setattr("vlmad_utils.store.header.LAYOUT", "3")
        store.put("image", "ab", np.ones(3))
    kind = store.folder / "image"
    (kind / "mine.safetensors").write_text("what a user put here")
    (kind / "notes.txt").write_text("said nothing about")
    before = faults.contents(tmp_path)
    store = DiskStore(tmp_path, "f")
    with pytest.warns(UserWarning) as seen:
        assert store.lacking("image", ["ab"]) == ["ab"]
    said = sorted(str(warning.message) for warning in seen)
    assert len(said) == 2 and all("left alone and not used" in text for text in said)
    assert "its layout is 3, not 2" in " ".join(said) and "mine.safetensors" in " ".join(said)
    store.put("image", "ab", np.zeros(3))
    store.put("image", "cd", np.zeros(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one store says it once
        store.seal()
        assert not store.get("image", "ab").any()
    assert before.items() <= faults.contents(tmp_path).items()


def test_what_cannot_be_bundled_is_said_and_stays(tmp_path, monkeypatch):
    store, rows = DiskStore(tmp_path, "f"), np.arange(8, dtype=np.float32).reshape(4, 2)
    for i in range(4):
        store.put("image", f"{i:040x}", rows[i])
    before = faults.contents(tmp_path)

    for number, advice in ((errno.ENOSPC, "Make room there"), (errno.EMFILE, "ulimit -n")):

        def fail(_, number=number):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            said = f"not be bundled .*{os.strerror(number)}.*{advice}.*: the next run"
            with pytest.warns(UserWarning, match=said):
                store.seal()
    assert faults.contents(tmp_path) == before
    store.seal()
    assert len(faults.contents(tmp_path)) == 1
    assert np.array_equal(store.get("image", f"{2:040x}"), rows[2])


def test_another_layout_is_left_alone_and_its_numbers_are_not_used(tmp_path, monkeypatch):
    pixels = [faults.noise()]
    monkeypatch.setattr(disk, "LAYOUT", "0")
    encode(pixels, tmp_path)
    old = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    for path in old:
        path.write_bytes(b"of another version")
    monkeypatch.undo()
    with pytest.warns(
        UserWarning,
        match="also holds v0, written by another version.*reads v2 only.*remove the other folders",
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
    paths, model = faults.pictures(tmp_path / "images", 3), Tiny()
    encode(paths[:2], tmp_path / "store", model)
    for path in tmp_path.rglob("*"):
        os.utime(path, (clock, clock))
    Image.fromarray(faults.noise(9)).save(
        paths[1]
    )  # another picture, as old as the first by its date
    os.utime(paths[1], (clock, clock))
    found = encode(paths, tmp_path / "store", model)
    assert torch.allclose(found.image, encode(paths, None, Tiny()).image, atol=1e-6)
    assert sum(model.passes) == 4  # the other picture and the third


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
