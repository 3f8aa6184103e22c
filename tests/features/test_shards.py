"""The store on disk: many rows in few files, bundled under readers, writers and kills."""

import errno
import math
import os
import pickle
import stat
import threading
import time
import warnings

import numpy as np
import pytest
from fixtures import faults
from fixtures.cases import posix
from safetensors.numpy import load_file

from vlmad_utils.store import DiskStore, MemoryStore
from vlmad_utils.store.index import Index, alone


def key(i):
    return f"{i:040x}"


def rows_of(numbers, shape=(3, 4), dtype=np.float16):
    """Return rows that tell which key they belong to."""
    rows = np.empty((len(numbers), *shape), dtype)
    rows[:] = np.asarray(numbers, np.float32).reshape(-1, *[1] * len(shape))
    return rows


def files(store, kind="patches"):
    return sorted(path.name for path in (store.folder / kind).iterdir())


def filled(folder, n, batch, kind="patches"):
    store = DiskStore(folder, "f")
    for i in range(0, n, batch):
        numbers = range(i, min(n, i + batch))
        store.put_rows(kind, [key(k) for k in numbers], rows_of(numbers))
    return store


def test_a_run_leaves_one_file_a_kind_that_any_reader_of_safetensors_opens(tmp_path):
    store = filled(tmp_path, 20, 3)
    assert len(files(store)) == 7
    store.seal()
    store.seal()  # nothing more to do
    [name] = files(store)
    content = load_file(store.folder / "patches" / name)["x"]
    # the last, smaller batch comes first; the others are in the order of writing
    assert np.array_equal(content, rows_of([18, 19, *range(18)]))


def test_what_a_killed_bundler_left_is_removed_and_what_a_killed_writer_left_is_bundled(tmp_path):
    store = filled(tmp_path, 6, 2)
    folder = store.folder / "patches"
    half = next(folder.iterdir()).read_bytes()[:200]
    (folder / f".{key(0)}.safetensors.{key(1)}.bundle.part").write_bytes(half)
    (folder / f".{key(0)}.safetensors.{key(2)}.part").write_bytes(half)  # another may be writing it
    old = folder / f".{key(0)}.safetensors.{key(3)}.part"
    old.write_bytes(half)
    os.utime(old, (0, time.time() - 2 * 86400))
    other = DiskStore(tmp_path, "f")
    assert other.lacking("patches", map(key, range(7))) == [key(6)]
    other.seal()
    [left] = folder.glob(".*")
    assert len(files(store)) == 2 and key(2) in left.name
    assert np.array_equal(store.get("patches", key(5)), rows_of([5])[0])


def test_a_key_of_two_files_is_bundled_once(tmp_path):
    store = DiskStore(tmp_path, "f")
    for numbers in ([0, 1], [1, 2], [2]):
        store.put_rows("patches", [key(i) for i in numbers], rows_of(numbers))
    store.seal()
    [name] = files(store)
    assert len(load_file(store.folder / "patches" / name)["x"]) == 3
    assert [store.get("patches", key(i))[0, 0] for i in range(3)] == [0, 1, 2]


def test_a_file_whose_rows_are_in_a_larger_one_goes_only_if_they_are_right_there(tmp_path):
    store = filled(tmp_path, 8, 2)
    small = {path: path.read_bytes() for path in (store.folder / "patches").iterdir()}
    store.seal()
    [whole] = (store.folder / "patches").iterdir()
    for path, content in small.items():  # as if the bundler had been killed
        path.write_bytes(content)
    content = bytearray(whole.read_bytes())
    content[-1] ^= 1  # of the last row
    whole.write_bytes(content)
    store = DiskStore(tmp_path, "f")
    with pytest.warns(UserWarning, match="1 of its 8 arrays"):
        store.lacking("patches", [])
        store.seal()
    store.seal()
    out = np.zeros((8, 3, 4), np.float32)
    assert store.read("patches", [key(i) for i in range(8)], out) == []
    assert np.array_equal(out, rows_of(range(8))) and len(files(store)) == 2


def test_a_shard_removes_no_other_file_of_its_name(tmp_path):
    store = filled(tmp_path, 2, 2)
    shard = store._found("patches", [key(0)])[0]
    (tmp_path / "other").write_bytes(shard.path.read_bytes())
    os.replace(tmp_path / "other", shard.path)
    shard.unlink()
    assert np.array_equal(DiskStore(tmp_path, "f").get("patches", key(1)), rows_of([1])[0])
    store._found("patches", [key(0)])
    assert store.read("patches", [key(1)], np.zeros((1, 3, 4), np.float32)) == []
    store._found("patches", [key(0)])[0].unlink()
    assert files(store) == []


def test_a_file_that_may_not_be_removed_makes_no_files_pile_up(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: None)
    kept = filled(tmp_path, 1, 1).path("patches", key(0)).name
    unlink, replace, written = os.unlink, os.replace, []

    def refuse(path, *args, **kwargs):
        if os.path.basename(path) == kept:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        unlink(path, *args, **kwargs)

    monkeypatch.setattr(os, "unlink", refuse)
    monkeypatch.setattr(
        os, "replace", lambda a, b: (written.append(os.stat(a).st_size), replace(a, b))
    )
    for i in range(1, 61):
        store = DiskStore(tmp_path, "f")
        store.put("patches", key(i), rows_of([i])[0])
        store.lacking("patches", [])
        store.seal()
        assert len(files(store)) <= 2 + math.log2(64)
    assert store.lacking("patches", map(key, range(61))) == [] and kept in files(store)
    held = sum(path.stat().st_size for path in (store.folder / "patches").iterdir())
    assert sum(written) < 10 * held
    before = files(store)
    DiskStore(tmp_path, "f").seal(), store.seal()
    assert files(store) == before


@posix
def test_one_process_bundles_and_a_child_does_not_keep_the_claim(tmp_path):
    read, write = os.pipe()
    with alone(tmp_path) as first, alone(tmp_path) as second:
        assert (first, second) == (True, False)
        child = os.fork()
        if not child:
            os.close(write)
            os.read(read, 1)  # until the test ends
            os._exit(0)
    with alone(tmp_path) as third:
        assert third
    os.close(write)
    os.waitpid(child, 0)


def test_names_are_on_the_disk_before_what_was_bundled_goes(tmp_path, monkeypatch):
    store, done = filled(tmp_path, 4, 2), []
    fsync, unlink = os.fsync, os.unlink

    def sync(number):
        done.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file")
        fsync(number)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "unlink", lambda path: (done.append(path.suffix), unlink(path)))
    store.seal()
    synced = ["file", "folder"] if os.name == "posix" else ["file"]
    assert [what for what in done if what != ".part"] == [*synced, ".safetensors", ".safetensors"]


def test_has_lists_a_folder_once_and_bundling_makes_no_table_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: None)
    looks, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (looks.append(path), scandir(path))[1])
    filled(tmp_path, 2, 2)
    store = DiskStore(tmp_path, "f")
    store.put("patches", key(5), rows_of([5])[0])
    looks.clear()
    assert [store.has("patches", key(i)) for i in range(7)] == [1, 1, 0, 0, 0, 1, 0]
    assert len(looks) <= 2
    filled(tmp_path, 4, 4)  # as another process
    assert store.lacking("patches", map(key, range(7))) == [key(4), key(6)]
    assert store.has("patches", key(3))

    class Sealed(dict):
        """A table in which a reader finds each row at any moment."""

        def __delitem__(self, name):
            raise AssertionError(name)

    index = store._kinds["patches"]
    table = index.where = Sealed(index.where)
    DiskStore(tmp_path, "f").lacking("patches", [])
    other = DiskStore(tmp_path, "f")
    other.lacking("patches", [])
    other.seal()  # under the first, which must find the new file
    out = np.zeros((5, 3, 4), np.float32)
    assert store.read("patches", [key(i) for i in (0, 1, 2, 3, 5)], out) == []
    store.put("patches", key(6), rows_of([6])[0])
    store.seal()
    assert index.where is table


def test_a_file_that_goes_leaves_its_keys_to_copies_in_others(tmp_path):
    store, index = filled(tmp_path, 4, 4), Index()
    [first] = store._kinds["patches"].shards.values()
    store.put_rows("patches", [key(3), key(4)], rows_of([3, 4]))
    second = store._found("patches", [key(4)])[0]
    index.add(first), index.add(second)
    index.drop([second])
    assert index.where == dict.fromkeys(map(key, range(4)), first)
    index.drop([first])
    assert index.where == {} == index.shards


@posix
def test_who_may_only_read_a_store_is_not_told_to_bundle_it(tmp_path):
    before = files(filled(tmp_path, 6, 2))
    faults.read_only(tmp_path)

    def use():
        store = DiskStore(tmp_path, "f")
        assert np.array_equal(store.get("patches", key(5)), rows_of([5])[0])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            store.seal()
        assert files(store) == before

    try:
        faults.unprivileged(use)
    finally:
        faults.writable(tmp_path)


@pytest.mark.parametrize("opened", ["one", "anew"])
def test_rows_are_read_in_any_order_type_and_place(tmp_path, opened):
    store = filled(tmp_path, 40, 8)
    store.seal()
    filled(tmp_path, 43, 1) if opened == "anew" else None  # more files, and rows that are twice
    store = store if opened == "one" else DiskStore(tmp_path, "f")
    order = [*range(5, 30), 3, 3, 39, 0, *range(12, 2, -2)]
    memory = MemoryStore()
    memory.put_rows("patches", [key(i) for i in range(40)], rows_of(range(40)))
    for dtype in (np.float32, np.float16):
        for out in (
            np.zeros((len(order), 3, 4), dtype),
            np.zeros((2 * len(order), 3, 4), dtype)[::2],
            np.zeros((len(order), 4, 3), dtype).swapaxes(1, 2),
        ):
            for each in (store, memory):
                out[:] = -1
                assert each.read("patches", [key(i) for i in order], out) == []
                assert np.array_equal(out, rows_of(order))
    out = np.full((3, 3, 4), -1, np.float32)
    assert store.read("patches", ["no", key(1), "none"], out) == [0, 2]
    assert np.array_equal(out[1], rows_of([1])[0]) and (out[[0, 2]] == -1).all()
    assert store.read("patches", [], out[:0]) == [] == store.read("tokens-2", [], out[:0])
    assert store.read("tokens-2", ["no"], out[:1]) == [0]
    with pytest.raises(ValueError, match=r"has shape \(3, 4\), expected \(4, 3\)"):
        store.read("patches", [key(1)], np.zeros((1, 4, 3)))


def test_a_large_read_is_shared_by_threads(tmp_path, monkeypatch):
    store = filled(tmp_path, 64, 8)
    store.seal()
    monkeypatch.setattr("vlmad_utils.store.reading.LARGE", 100)
    monkeypatch.setattr("vlmad_utils.store.reading.CHUNK", 50)
    monkeypatch.setattr("vlmad_utils.store.reading.ALONE", 7)
    [path] = (store.folder / "patches").iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    out = np.zeros((64, 3, 4), np.float32)
    with pytest.warns(UserWarning, match="1 of its 64 arrays are computed when"):
        assert store.read("patches", [key(i) for i in range(64)], out) == [63]
    assert np.array_equal(out[:63], rows_of(range(63)))


def test_rows_that_do_not_fit_are_refused(tmp_path):
    store = DiskStore(tmp_path, "f")
    with pytest.raises(ValueError, match="found 2 keys and 3 rows"):
        store.put_rows("image", ["a", "b"], np.zeros((3, 2)))
    with pytest.raises(ValueError, match="without blanks"):
        store.put_rows("image", ["a b"], np.zeros((1, 2)))
    with pytest.raises(TypeError, match="The store keeps float64.*found complex64"):
        store.put("image", "a", np.zeros(2, np.complex64))
    store.put_rows("image", [], np.zeros((0, 2)))
    assert not list(tmp_path.rglob("*.safetensors")) + list(tmp_path.rglob("*.part"))


def test_small_runs_do_not_pile_up_files_and_do_not_copy_all_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr("vlmad_utils.store.index.ROWS", 64)
    written = []
    replace = os.replace
    monkeypatch.setattr(
        os, "replace", lambda a, b: (written.append(os.stat(a).st_size), replace(a, b))
    )
    monkeypatch.setattr(os, "fsync", lambda number: None)
    for i in range(300):
        store = DiskStore(tmp_path, "f")
        store.put("patches", key(i), rows_of([i])[0])
        store.lacking("patches", [])
        store.seal()
        assert len(files(store)) <= 1 + i // 64 + math.log2(64)
    assert store.lacking("patches", map(key, range(300))) == []
    held = sum(path.stat().st_size for path in (store.folder / "patches").iterdir())
    assert sum(written) < 10 * held


def test_stores_that_are_sent_to_a_process_become_one(tmp_path):
    store = filled(tmp_path, 3, 1)
    first, second = (pickle.loads(pickle.dumps(store)) for _ in range(2))
    assert first is second and first.name == store.name
    assert np.array_equal(first.get("patches", key(2)), rows_of([2])[0])


@posix
def test_a_forked_process_does_not_wait_for_the_lock_of_a_thread(tmp_path):
    store = filled(tmp_path, 3, 1)
    with store._lock:
        child = os.fork()
        if not child:  # its copy of the lock is held by a thread that it has not
            held = threading.Thread(target=lambda: store.has("patches", key(2)) and os._exit(7))
            held.start()
            held.join(20)
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_reader_in_another_thread_misses_nothing_while_rows_are_bundled(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: None)
    monkeypatch.setattr("vlmad_utils.store.disk.ROWS", 5)
    monkeypatch.setattr("vlmad_utils.store.index.ROWS", 40)
    store, stop, seen, wrong = DiskStore(tmp_path, "f"), threading.Event(), [0], []
    done = 0  # rows that are surely there

    def look():
        rng = np.random.default_rng(0)
        while not stop.is_set() or seen[0] < 20:
            numbers = rng.permutation(done)[:50]
            out = np.zeros((len(numbers), 3, 4), np.float32)
            names = [key(i) for i in numbers]
            lost = store.lacking("patches", names), store.read("patches", names, out)
            if lost != ([], []) or not np.array_equal(out, rows_of(numbers)):
                wrong.append((lost, numbers))
            seen[0] += 1

    thread = threading.Thread(target=look)
    thread.start()
    for i in range(400):
        store.put("patches", key(i), rows_of([i])[0])
        done = i + 1
    store.seal()
    stop.set()
    thread.join()
    assert not wrong and seen[0] >= 20 and len(files(store)) < 25


@pytest.mark.slow  # processes that are killed and begin again for four seconds
def test_writers_bundlers_and_readers_of_many_processes_lose_nothing(tmp_path):
    seen = faults.run("crowd", tmp_path)
    assert seen["kills"] >= 5 and seen["bundles"] >= 5 and seen["reads"] >= 50
    assert seen["wrong"] == [] and seen["equal"] and seen["there"] >= 100
    assert seen["files"] <= seen["there"] // 8 + 4  # bundles of 8 rows


@pytest.mark.slow  # 150,000 rows
def test_150_000_images_take_few_files_and_are_found_in_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: None)
    n, kinds = 150_000, 9  # image, windows-2, windows-3, patches, tokens of final and 4 blocks
    store = DiskStore(tmp_path, "f")
    names = [key(i) for i in range(n)]
    rows = rows_of(range(n), (1,), np.float32)
    for i in range(0, n, 64):
        store.put_rows("image", names[i : i + 64], rows[i : i + 64])
    store.seal()
    assert kinds * len(files(store, "image")) <= 2000
    start = time.perf_counter()
    fresh = DiskStore(tmp_path, "f")
    assert fresh.lacking("image", names) == []
    out = np.zeros((n, 1), np.float32)
    assert fresh.read("image", names, out) == [] and np.array_equal(out, rows)
    assert time.perf_counter() - start < 20  # 2 s on a free core
