"""What once went wrong in the study: keys of cells, late refusals, hidden state between methods."""

import ast
import copy
import pickle
import threading
import time
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import tiny, trees
from joblib import parallel_config
from PIL import Image

import vlmad_utils
from vlmad_utils import data, study
from vlmad_utils.methods import neighbours
from vlmad_utils.models import prompts
from vlmad_utils.store import StoreError
from vlmad_utils.study import cells, registry
from vlmad_utils.study.method import Last, described

PACKAGE = Path(vlmad_utils.__file__).parent
FINDS_OR_KEEPS = {"__init__", "paths"}  # and store/, data/ but for images: the key holds contents


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Two categories: 3 references, 3 normal and 3 anomalous test images each."""
    return data.index("folder", root=trees.noise_set(tmp_path_factory.mktemp("set"), 3, 40))


def run(model, index, methods, store, **options):
    options = {"size": (40, 40), "draws": 0, "progress": False, **options}
    return study.run(model, index, methods, store=store, **options)


# ---- keys of cells ------------------------------------------------------------------------------
def moving_words():
    """The tiny model, but its text embeddings move in their last bits from call to call."""
    model, calls = copy.copy(tiny.model()), []
    encode_text = model.encode_text
    model.encode_text = lambda texts: (
        encode_text(texts) * (1 + 1e-6 * len(calls.append(1) or calls))
    )
    model.fingerprint = "moving words"
    return model


class Mean(Enum):
    """A choice of an option."""

    HARMONIC = 1
    ARITHMETIC = 2


@dataclass
class Options:
    """Options of a method."""

    top: float
    maps: np.ndarray


def changed(values):
    """The same values but one in the middle, which repr does not show."""
    values = copy.deepcopy(values)
    values[1000] += 1
    return values


LONG = np.arange(3000.0)
SETTINGS = [
    (LONG, changed(LONG)),
    (LONG, LONG.astype(np.float32)),
    (LONG, LONG.reshape(2, -1)),
    (torch.arange(3000), changed(torch.arange(3000))),
    (torch.arange(3000).bfloat16(), changed(torch.zeros(3000).bfloat16())),
    (torch.tensor(1.0), torch.tensor(2.0)),
    (np.float32(0.5), 0.5),
    ([1, 2], (1, 2)),
    (("a, b",), ("a", "b")),
    ({"a": 1, "b": {"c": LONG}}, {"a": 1, "b": {"c": changed(LONG)}}),
    (Mean.HARMONIC, Mean.ARITHMETIC),
    (Options(0.1, LONG), Options(0.1, changed(LONG))),
    (True, 1),
]


@pytest.mark.parametrize("one, other", SETTINGS)
def test_other_settings_have_other_keys_and_equal_ones_the_same(one, other):
    assert described((one, "x")) != described((other, "x"))
    assert described((one, "x")) == described((copy.deepcopy(one), "x"))


def test_the_order_of_options_in_a_dict_changes_no_key():
    assert described({"a": 1, "b": 2}) == described({"b": 2, "a": 1})


def test_cells_of_other_arrays_are_not_taken_for_these(index, tmp_path):
    """Rows of two methods whose settings look alike when they are printed."""
    method = registry.memory_bank_method((2,))
    one, other = (replace(method, settings=(values,)) for values in (LONG, changed(LONG)))
    keys = [
        {job.key for job in study.grid.build_jobs(tiny.model(), images, [m], [1], [0], (9, 9), 0)}
        for images in [study.grid.gather_images(index, [1], [0])]
        for m in (one, other)
    ]
    assert not keys[0] & keys[1]


@pytest.mark.parametrize(
    "unclear", [len, torch.nn.Linear(2, 2), object(), {1}, Mean, np.array([len])]
)
def test_settings_that_do_not_say_what_they_hold_are_refused(index, unclear):
    method = replace(registry.memory_bank_method((2,)), settings=(("option", unclear),))
    with pytest.raises(ValueError, match=r"settings of a Method hold .*study.digest\(module\)"):
        run(tiny.model(), index, [method], None, shots=(1,))


def test_cells_are_found_again_whatever_was_asked_before(index, tmp_path, monkeypatch):
    model = moving_words()
    method = registry.clip_ac_method(model)
    first = run(model, index, [method], tmp_path)
    words = list(tmp_path.glob(f"v*/{model.fingerprint}/text/*.safetensors"))
    assert words
    for path in words:
        path.unlink()
    prompts.embed(model, ["a photo of a bolt."], tmp_path)

    def never(*_):
        raise AssertionError("this cell was there")

    again = run(model, index, [replace(method, score=never)], tmp_path)
    assert again.rows.equals(first.rows)
    with pytest.raises(AssertionError, match="this cell was there"):  # other words, another cell
        run(model, index.assign(object_name="nut"), [replace(method, score=never)], tmp_path)


def imports(path):
    """Files of the package that a file of it imports, with the __init__ of their folders."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        names = [base, *(base / alias.name for alias in node.names)]
        found |= {name.with_suffix(".py") for name in names if name.with_suffix(".py").is_file()}
        found |= {name / "__init__.py" for name in names if (name / "__init__.py").is_file()}
    return found


def reached(*start):
    """All files of the package that are imported from some, directly or not."""
    todo, found = set(start), set()
    while todo:
        path = todo.pop()
        found.add(path)
        todo |= imports(path) - found
    return found


def test_all_code_on_which_a_row_depends_is_in_its_key():
    used = reached(PACKAGE / "study" / "grid.py", PACKAGE / "study" / "registry.py")
    names = {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in used}
    assert {"models/sentences", "models/dinov2", "features/arrays", "evaluation/metrics"} <= names
    hashed = {path.relative_to(PACKAGE).as_posix() for path in cells.code_files()}
    assert {"data/images.py", "models/prompts.yaml"} <= hashed
    left_out = {name for name in names if f"{name}.py" not in hashed}
    assert {name for name in left_out if not name.startswith(("data/", "store/"))} <= FINDS_OR_KEEPS
    assert not any(name.startswith("report") for name in names)


# ---- refused before anything is encoded ---------------------------------------------------------
@pytest.fixture
def blind(monkeypatch):
    """A model that must not be asked for anything."""
    model = copy.copy(tiny.model())

    def never(*_, **__):
        raise AssertionError("encoded before it was refused")

    model.encode_image = model.encode_text = never
    model.fingerprint = "blind"
    return model


def test_images_of_unknown_label_are_refused_before_they_are_encoded(blind, index):
    labels = index["label"].where(index.index % 5 > 0, -1)
    with pytest.raises(ValueError, match=r"0 or 1, found \[-1, 0, 1\].*index\['label'\] >= 0"):
        run(blind, index.assign(label=labels), [registry.dense(blind)], None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nut", "bolt"] * 9, r"several object names, \['bolt', 'nut'\]"),
        (" ", "need words for the object .* found ' '.*object_names="),
        (None, "need words for the object .* found None"),
    ],
)
def test_object_names_are_checked_before_images_are_encoded(blind, index, names, message):
    with pytest.raises(ValueError, match=message):
        run(blind, index.assign(object_name=names), [registry.dense(blind)], None)


def test_more_references_than_there_are_are_refused_and_the_most_is_said(blind, index):
    bank, words = registry.memory_bank_method((2, 4)), registry.dense(blind)
    fewer = index.drop(index.query("category == 'cloth' and split == 'train'").index[0])
    most = "5 references wanted, but folder/bolt has 3, folder/cloth has 2 .*at most 2"
    with pytest.raises(data.DataError, match=most):
        run(blind, fewer, [bank], None, shots=(1, 5))
    with pytest.raises(ValueError, match="0 or more, found -1"):
        run(blind, index, [bank], None, shots=(-1,))
    with pytest.raises(AssertionError, match="encoded"):  # no method draws the five
        run(blind, index, [words], None, shots=(0, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"windows": (9,)}, "windows"), ({"windows": ("2s3",)}, "2s3"), ({"blocks": (7,)}, "blocks")],
)
def test_what_a_backbone_cannot_give_is_refused_before_images_are_encoded(
    blind, index, options, message
):
    with pytest.raises(ValueError, match=message):
        run(blind, index, [study.Method("m", lambda *_: None, **options)], None)


def test_an_empty_job_says_why_nothing_is_left_to_run(blind, index):
    bank = registry.memory_bank_method((2, 4))
    with pytest.raises(ValueError, match=r"shots=\(0,\): memory bank takes 1 or more references"):
        run(blind, index, [bank], None)
    with pytest.raises(ValueError, match="methods and seeds hold nothing"):
        run(blind, index, [], None, seeds=())
    with pytest.raises(ValueError, match="no row with split 'test'"):
        run(blind, index[index["split"] == "train"], [bank], None, shots=(1,))


# ---- what methods remember ----------------------------------------------------------------------
def test_a_method_remembers_distances_for_itself_and_no_module_does(index, tmp_path, monkeypatch):
    searches, nearest = [], neighbours.nearest_unit
    monkeypatch.setattr(neighbours, "nearest_unit", lambda *a: searches.append(1) or nearest(*a))

    def count(method, draws):
        searches.clear()
        run(tiny.model(), index, [method], tmp_path, shots=(1, 2), seeds=(0, 1), draws=draws)
        return len(searches)

    bank = registry.memory_bank_method((2, 4))
    first = count(bank, 5)
    assert first and count(bank, 6) == 0
    assert count(registry.memory_bank_method((2, 4)), 7) == first


def test_threads_that_ask_for_one_value_share_it_and_never_get_another():
    last, made, found = Last(), [], {}

    def make(key):
        made.append(key)
        time.sleep(0.02)
        return key

    def ask(number, key):
        found[number] = (key, last.get(key, lambda: make(key)))

    for keys in (["a"] * 8, ["b", "c"] * 4):
        threads = [threading.Thread(target=ask, args=pair) for pair in enumerate(keys)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(key == value for key, value in found.values())
    assert made.count("a") == 1
    assert pickle.loads(pickle.dumps(last)).get("c", lambda: "anew") == "anew"


def test_threads_change_no_row(index):
    model = tiny.model()
    layers = registry.april_gan.LinearLayers((2, 4), model.width, model.dim)
    methods = [registry.april_gan_method(model, layers), registry.memory_bank_method((2, 4))]
    options = {"shots": (0, 1, 2), "seeds": (0, 1)}
    one = run(model, index, methods, None, **options)
    with parallel_config(backend="threading", n_jobs=4):
        assert run(model, index, methods, None, **options).rows.equals(one.rows)


# ---- what a second review found -----------------------------------------------------------------
def test_a_mask_given_as_a_path_object_is_part_of_the_key(tmp_path):
    index = data.index("folder", root=trees.noise_set(tmp_path / "set", 3, 40))
    index["mask_path"] = [Path(p) if isinstance(p, str) else p for p in index["mask_path"]]
    methods = [registry.dense(tiny.model())]
    before = run(tiny.model(), index, methods, tmp_path / "store").rows
    for path in index["mask_path"].dropna():
        other = np.zeros((40, 40), np.uint8)
        other[:4, :4] = 255
        Image.fromarray(other).save(path)
    after = run(tiny.model(), index, methods, tmp_path / "store").rows
    fresh = run(tiny.model(), index, methods, None).rows
    assert after.equals(fresh) and not after.equals(before)


def test_a_mask_that_is_gone_is_named(tmp_path):
    index = data.index("folder", root=trees.noise_set(tmp_path / "set", 3, 40))
    row = index["mask_path"].notna().idxmax()
    index.loc[row, "mask_path"] = str(tmp_path / "none.png")
    with pytest.raises(data.DataError, match=r"the mask .*none\.png cannot be read"):
        run(tiny.model(), index, [registry.dense(tiny.model())], None)


def test_shots_and_seeds_given_twice_make_each_row_once(index):
    methods = [registry.memory_bank_method(2)]
    once = run(tiny.model(), index, methods, None, shots=(1,), seeds=(0,)).rows
    twice = run(tiny.model(), index, methods, None, shots=(1, 1), seeds=(0, 0)).rows
    assert twice.equals(once)


@pytest.mark.parametrize(
    "one, other",
    [
        ((torch.arange(6.0).view(2, 3),), (torch.arange(6.0).view(3, 2),)),
        ((torch.arange(6.0),), (torch.arange(3.0), torch.arange(3.0, 6.0))),
        ((torch.ones(1).double(),), (torch.ones(1).double() + 1e-12,)),
        ((torch.tensor([2**24]),), (torch.tensor([2**24 + 1]),)),
    ],
    ids=["shape", "parts", "float64", "integers"],
)
def test_digests_of_other_weights_differ(one, other):
    assert study.digest(*one) != study.digest(*other)
    assert study.digest(*one) == study.digest(*(x.clone() for x in one))


def test_a_cell_that_cannot_be_read_is_kept(index, tmp_path, monkeypatch):
    methods = [registry.dense(tiny.model())]
    run(tiny.model(), index, methods, tmp_path)
    before = {p: p.read_bytes() for p in (tmp_path / "study").rglob("*.json")}

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(StoreError, match="of the study cannot be read"):
        run(tiny.model(), index, methods, tmp_path)
    monkeypatch.undo()
    assert before == {p: p.read_bytes() for p in (tmp_path / "study").rglob("*.json")}


def test_text_that_is_no_number_is_not_stored(tmp_path):
    model = copy.copy(tiny.model())
    model.text_rows, model.fingerprint = {}, "no numbers"
    model.encode_text = lambda texts: torch.full((len(texts), 4), torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        prompts.embed(model, ["a bolt"], tmp_path)
    model.encode_text = lambda texts: torch.ones(len(texts), 4)
    assert torch.equal(prompts.embed(model, ["a bolt"], tmp_path), torch.ones(1, 4))
    with pytest.raises(ValueError, match="list of one or more prompts"):
        prompts.embed(model, "a bolt", tmp_path)
