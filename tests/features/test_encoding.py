"""The feature store: incremental, rounding, damage, kills, two processes at once."""

import multiprocessing
import os
import pickle
import signal
import time
import warnings
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from fixtures import faults, tiny
from fixtures.counting import Tiny
from PIL import Image

from vlmad_utils import data, features
from vlmad_utils.features import encoding, reading
from vlmad_utils.models.dense import DPAM


@pytest.fixture
def index(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for i in range(9):
        path = tmp_path / "images" / f"picture {i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    return pd.DataFrame({"image_path": paths, "label": 0})


def everything(found):
    return [found.image, found.patches, found.tokens[2], found.tokens["final"], found.windows[2]]


ASKED = {"blocks": (2, "final"), "windows": (2,), "progress": False}


def test_shapes_and_units(index, tmp_path):
    found = features.encode(Tiny(), index, store=tmp_path / "store", **ASKED)
    assert [tuple(a.shape) for a in everything(found)] == [
        (9, 5),
        (9, 16, 5),
        (9, 16, 6),
        (9, 16, 6),
        (9, 9, 5),
    ]
    for unit in (found.image, found.patches, found.windows[2]):
        assert torch.allclose(unit.norm(dim=-1), torch.ones(1), atol=2e-3)
    assert (
        list(found.tokens) == [2, "final"] and "cls" not in found.tokens and len(found.windows) == 1
    )


def test_second_call_computes_nothing_and_more_computes_the_difference(index, tmp_path):
    model = Tiny()
    features.encode(model, index, store=tmp_path, progress=False, patches=False)
    assert sum(model.passes) == 9
    features.encode(model, index, store=tmp_path, progress=False, patches=False)
    assert sum(model.passes) == 9
    features.encode(model, index.iloc[:4], store=tmp_path, progress=False, windows=(2,))
    assert sum(model.passes) == 13
    features.encode(model, index, store=tmp_path, progress=False, windows=(2,))
    assert sum(model.passes) == 18


def test_store_and_memory_give_the_same_numbers(index, tmp_path):
    disk = features.encode(Tiny(), index, store=tmp_path, batch_size=2, **ASKED)
    memory = features.encode(Tiny(), index, store=None, batch_size=9, **ASKED)
    again = features.encode(Tiny(), index, store=tmp_path, **ASKED)
    for a, b, c in zip(everything(disk), everything(memory), everything(again)):
        assert torch.equal(a, c)
        assert torch.allclose(a, b, atol=1e-5)  # another batch size may change the last bit


def test_key_is_content_not_name(index, tmp_path):
    model = Tiny()
    features.encode(model, index, store=tmp_path / "s", **ASKED)
    os.rename(index.image_path[0], index.image_path[0] + ".moved.png")
    moved = index.assign(image_path=[index.image_path[0] + ".moved.png", *index.image_path[1:]])
    features.encode(model, moved, store=tmp_path / "s", **ASKED)
    assert sum(model.passes) == 9
    Image.new("RGB", (40, 48), "red").save(index.image_path[1])
    features.encode(model, moved, store=tmp_path / "s", **ASKED)
    assert sum(model.passes) == 10


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_no_worker_process_gets_the_model(index, tmp_path, backend):
    """A copy for each batch costs more than it saves; on a GPU each process opens a context."""

    class Resident(Tiny):
        def __reduce_ex__(self, protocol):
            raise AssertionError("the model was pickled")

    model = Resident()
    with joblib.parallel_config(backend=backend, n_jobs=2):
        found = features.encode(model, index, store=tmp_path, batch_size=2, progress=False)
    assert len(found) == 9 and model.passes == [2, 2, 2, 2, 1]


def test_another_model_never_meets_old_numbers(index, tmp_path):
    a = features.encode(Tiny(), index, store=tmp_path, **ASKED)
    b = features.encode(Tiny(offset=1.0), index, store=tmp_path, **ASKED)
    assert not torch.allclose(a.tokens[2], b.tokens[2])


def test_selection_is_lazy_and_follows_the_index(index, tmp_path):
    found = features.encode(Tiny(), index, store=tmp_path, **ASKED)
    mask = np.arange(9) % 2 == 1
    assert torch.equal(found[mask].image, found.image[mask])
    assert torch.equal(found[2:5].windows[2], found.windows[2][2:5])
    assert list(found[mask].index.image_path) == list(index.image_path[mask])
    assert torch.equal(found[np.array([3, 0])].image, found.image[[3, 0]])
    with pytest.raises(KeyError, match="windows-3.*blocks="):
        found.windows[3]


@pytest.mark.parametrize(
    "nothing", [[], (), np.array([]), np.zeros(9, bool), slice(0, 0)], ids=repr
)
def test_no_rows_give_empty_arrays_of_the_right_kind(index, tmp_path, nothing):
    found = features.encode(Tiny(), index, ("cls", *ASKED["blocks"]), (2,), store=tmp_path)
    held = features.Arrays(found.image, found.grid, found.patches, dict(found.tokens.items()))
    for none in (found[nothing], found[nothing][[]], held[nothing]):
        assert len(none) == 0 and none.image.shape == (0, 5) and none.patches.shape == (0, 16, 5)
        assert none.tokens["cls"].shape == (0, 1, 6) and none.tokens[2].shape == (0, 16, 6)
    assert (
        found[nothing].windows[2].shape == (0, 9, 5) and found[nothing].image.dtype == torch.float32
    )
    assert found[nothing].index.empty and list(found[nothing].index.columns) == [
        "image_path",
        "label",
    ]


def test_a_backbone_that_does_not_say_what_it_gives_is_named(index):
    model = Tiny()
    model.dim = 4
    with pytest.raises(ValueError, match=r"shape \(5,\), expected \(4,\).*attributes of the back"):
        features.encode(model, index, store=None, progress=False).image.sum()


def test_no_images_give_empty_features():
    assert features.encode(Tiny(), [], store=None).patches.shape == (0, 16, 5)


def test_arrays_instead_of_files(tmp_path):
    images = [np.full((20, 20, 3), v, np.uint8) for v in (0, 100, 100)]
    model = Tiny()
    found = features.encode(model, images, store=tmp_path, progress=False)
    assert len(found) == 3 and sum(model.passes) == 2  # equal pictures are encoded once
    assert torch.equal(found.image[1], found.image[2])


def test_one_image_where_a_list_is_expected(index):
    path, pixels = index.image_path[0], data.read_image(index.image_path[0])
    expected = features.encode(Tiny(), [path], store=None, progress=False).image
    for one in (path, Path(path), pixels, index.iloc[0]):
        found = features.encode(Tiny(), one, store=None, progress=False)
        assert torch.equal(found.image, expected)
    assert found.index.to_dict("records") == [dict(index.iloc[0])]  # a row of the table stays one
    assert features.keys(path) == features.keys([path]) != features.keys(pixels)


def test_an_array_of_paths_or_of_images_is_a_list(index):
    paths, images = index.image_path.to_numpy(), np.zeros((3, 9, 8, 3), np.uint8)
    assert features.keys(paths) == features.keys(list(paths)) == features.keys(index.image_path)
    assert len(features.encode(Tiny(), images, store=None, progress=False)) == 3


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((9, 8), np.uint8), r"1 of 1 images.*\n  image 0, array \(9, 8\).*\(H, W, 3\)"),
        ("none.png", r"1 of 1 images.*\n  none.png"),
        (b"P6 9 9", "images is bytes, the content of a file.*give its path"),
        (7, "images is a table of data.index, .* found int"),
        ([torch.zeros(3, 8, 8)], r"1 of 1 images.*\n  image 0, Tensor: .*a path or an array"),
        (pd.DataFrame({"path": ["a.png"]}), "no column image_path, found path"),
        (pd.Series({"path": "a.png"}), r"1 of 1 images.*\n  a.png"),
    ],
    ids=["grey", "no such file", "bytes", "a number", "a tensor", "no image_path", "paths by name"],
)
def test_what_is_no_image_is_named(images, said):
    with pytest.raises((ValueError, TypeError), match=said):
        features.encode(Tiny(), images, store=None, progress=False)


def test_a_report_has_ten_lines_and_the_number_of_further_images(tmp_path):
    gone = [str(tmp_path / f"{i}.png") for i in range(5000)]
    with pytest.raises(data.DataError) as error:
        features.encode(Tiny(), gone, store=None, progress=False)
    said = str(error.value).splitlines()
    assert len(said) == 13 and said[0].startswith("5000 of 5000") and "9.png" in said[10]
    assert said[11] == "  and 4990 more"


def test_one_block_or_window_where_a_list_is_expected(index):
    found = features.encode(Tiny(), index, "final", "2s2", store=None, progress=False)
    assert list(found.tokens) == ["final"] and list(found.windows) == ["2s2"]
    found = features.encode(Tiny(), index, np.int64(2), 2, store=None, progress=False)
    assert list(found.tokens) == [2] and list(found.windows) == [2]
    assert features.disk_need(Tiny(), 1, "final", 2) == features.disk_need(Tiny(), 1, [2], [2])


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "delete"])
def test_damaged_files_are_found_and_computed_again(index, tmp_path, damage):
    good = features.encode(Tiny(), index, store=tmp_path, **ASKED)
    expected = good.patches
    path = good.store.path("patches", good.keys[3])
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[:-7])
    elif damage == "flip":
        content[-5] ^= 0x10
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = features.encode(Tiny(), index, store=tmp_path, **ASKED).patches
    assert torch.equal(found, expected)
    assert damage == "delete" or any("damaged" in str(w.message) for w in seen)


def test_what_is_lost_is_not_computed_from_another_image_under_its_name(index, tmp_path):
    found = features.encode(Tiny(), index, store=tmp_path / "store", **ASKED)
    expected = found.image
    for path in {found.store.path("image", key) for key in found.keys}:
        path.unlink()
    Image.new("RGB", (40, 48), "red").save(index.image_path[1])
    why = rf"{found.keys[1]}.*\(.*picture 1.png holds another.*call features.encode again"
    with pytest.raises(FileNotFoundError, match=why):
        found.image.sum()
    os.remove(index.image_path[0])
    for path in {found.store.path("image", key) for key in found.keys[2:]}:
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"\(.*picture 0.png: .*No such file"):
        found.image.sum()
    assert torch.equal(found[2:].image, expected[2:])


def test_unreadable_image_is_named_and_the_rest_is_kept(index, tmp_path):
    with open(index.image_path[4], "wb") as file:
        file.write(b"not an image")
    model = Tiny()
    with pytest.raises(data.DataError, match="picture 4.png"):
        features.encode(model, index, store=tmp_path, **ASKED)
    with pytest.warns(UserWarning, match="left out"):
        found = features.encode(model, index, store=tmp_path, on_error="skip", **ASKED)
    assert len(found) == 8 and len(found.index) == 8
    assert sum(model.passes) == 8  # nothing was encoded twice


@pytest.mark.parametrize(
    "asked",
    [{"blocks": [True]}, {"blocks": [2.0]}, {"blocks": ["last"]}, {"windows": ["2x2"]}]
    + [
        {"windows": [None]},
        {"windows": 9},
        *({"batch_size": n} for n in (0, "all", 2.5, 8.0, float("nan"), None, [4], True)),
        {"on_error": "ignore"},
    ],
    ids=str,
)
def test_a_bad_request_is_refused_before_anything_is_read(tmp_path, monkeypatch, asked):
    for part in ("read_only", "read_and_hash", "read_ahead"):
        monkeypatch.setattr(reading, part, lambda *_: pytest.fail("an image was read"))
    monkeypatch.setattr(encoding, "read_ahead", lambda *_: pytest.fail("an image was read"))
    with pytest.raises(ValueError, match="found"):
        features.encode(Tiny(), ["none.png"], store=tmp_path / "store", **asked)
    assert not list(tmp_path.iterdir())


def test_bad_requests_say_what_exists(index):
    with pytest.raises(ValueError, match="blocks 1..3"):
        features.encode(Tiny(), index, blocks=(4,), store=None)
    with pytest.raises(ValueError, match=r"\(4, 4\) grid"):
        features.encode(Tiny(), index, windows=(5,), store=None)


def test_disk_need_is_that_of_the_files_but_for_their_headers(index, tmp_path):
    dpam = DPAM(tiny.model())  # its tokens are projected: (N, D), not (N, C)
    for model, asked in (
        (Tiny(), {"blocks": (2, "final", "cls"), "windows": (2, 3)}),
        (dpam, {"blocks": (2, 4)}),
    ):
        store = tmp_path / model.name
        found = features.encode(model, index, store=store, progress=False, **asked)
        files = list(store.rglob("*.safetensors"))
        over = sum(path.stat().st_size for path in files)
        over -= features.disk_need(model, len(index), **asked)
        rows = len(found.kinds) * len(index)
        assert len(files) <= rows and 0 < over < 300 * len(files) + 50 * rows


def _fill(index, folder, pause):
    torch.set_num_threads(1)
    model = Tiny()
    embed = model.embed
    model.embed = lambda pixels: (time.sleep(pause), embed(pixels))[1]
    features.encode(model, index, store=folder, batch_size=1, **ASKED)


@pytest.mark.slow  # three processes import the package
def test_two_processes_fill_it_at_once_and_a_kill_leaves_nothing_wrong(index, tmp_path):
    expected = everything(features.encode(Tiny(), index, store=None, batch_size=1, **ASKED))
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill, args=(index, tmp_path / "s", 0.05)) for _ in range(2)]
    for worker in workers:
        worker.start()
    killed = context.Process(target=_fill, args=(index, tmp_path / "s", 0.2))
    killed.start()
    deadline = time.monotonic() + 120
    while not list((tmp_path / "s").rglob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    for worker in (*workers, killed):
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    found = features.encode(Tiny(), index, store=tmp_path / "s", batch_size=1, **ASKED)
    assert all(torch.equal(a, b) for a, b in zip(everything(found), expected))


def test_what_another_process_stores_meanwhile_is_not_encoded_again(index, tmp_path):
    class Slow(
        Tiny
    ):  # while its first batch is in the tower, another process stores all that is wanted
        def embed(self, pixels):
            if not self.passes:
                other.append(
                    features.encode(Tiny(), index, store=tmp_path / "store", progress=False)
                )
            return super().embed(pixels)

    model, other = Slow(), []
    found = features.encode(model, index, store=tmp_path / "store", batch_size=2, progress=False)
    assert len(index) > 2 and model.passes == [2] and torch.equal(found.image, other[0].image)


def test_a_batch_too_large_for_memory_goes_in_halves():
    class Small(Tiny):
        def encode_image(self, pixels, **wanted):
            if len(pixels) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().encode_image(pixels, **wanted)

    images = [np.full((32, 32, 3), i, np.uint8) for i in range(7)]
    small, roomy = (
        features.encode(model, images, windows=(2,), store=None, batch_size=7, progress=False)
        for model in (Small(), Tiny())
    )
    assert torch.equal(small.windows[2], roomy.windows[2]) and torch.equal(small.image, roomy.image)

    class Full(Tiny):
        def encode_image(self, pixels, **wanted):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        features.encode(Full(), images, store=None, progress=False)


def test_pictures_are_read_ahead_but_not_all_of_them(monkeypatch):
    read, seen = [], []
    load = reading.read_and_hash
    monkeypatch.setattr(reading, "read_and_hash", lambda *a: (read.append(1), load(*a))[1])

    class Watching(Tiny):
        def encode_image(self, pixels, **wanted):
            seen.append(len(read))
            return super().encode_image(pixels, **wanted)

    images = [np.full((32, 32, 3), i, np.uint8) for i in range(20)]
    ahead = features.encode(Watching(), images, store=None, batch_size=2, progress=False)
    assert len(read) == 20 and len(seen) == 10 and all(n <= 2 * (i + 3) for i, n in enumerate(seen))
    one_by_one = features.encode(Tiny(), images, store=None, batch_size=20, progress=False)
    assert torch.allclose(ahead.image, one_by_one.image, atol=1e-6)


def test_features_of_arrays_do_not_take_their_images_along(tmp_path):
    images = [faults.noise(i, 300, 300) for i in range(4)]
    found = features.encode(tiny.model(), images, store=tmp_path, progress=False)
    sent = pickle.dumps(found)
    assert len(sent) < 5_000 and torch.equal(pickle.loads(sent).patches, found.patches)


def test_the_users_default_dtype_changes_nothing(index, tmp_path):
    found = features.encode(Tiny(), index, store=tmp_path / "store", **ASKED)
    torch.set_default_dtype(torch.float64)
    try:
        assert found.image.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
