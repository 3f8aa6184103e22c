"""Properties of the feature store that hold for any order of writing, damaging and reading."""

import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import tiny
from fixtures.properties import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vlmad_utils import features
from vlmad_utils.store import DiskStore, MemoryStore

KINDS, KEYS = ("image", "patches", "tokens-2"), ("ab" * 20, "ab" + "c" * 38, "0" * 40)
NAMES = [(kind, key) for kind in KINDS for key in KEYS]
names = st.sampled_from(NAMES)


class Store(RuleBasedStateMachine):
    """Write, bundle, delete and damage in any order: a store gives what was written, or None.

    Each name has one array: equal keys hold equal bytes. One store is open all the time, and must
    see what others do.
    """

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed):
        self.folder = tempfile.TemporaryDirectory()
        self.open, self.memory = self.opened(), MemoryStore()
        rng = np.random.default_rng(seed)
        self.kept, self.there = {name: numbers(rng) for name in NAMES}, set()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("vlmad_utils.store.disk.ROWS", 2)
        self.patch.setattr("vlmad_utils.store.index.ROWS", 4)
        self.patch.setattr(os, "fsync", lambda number: None)

    def opened(self):
        return DiskStore(self.folder.name, "fingerprint")  # as another process would

    @rule(name=names, turned=st.booleans(), here=st.booleans())
    def put(self, name, turned, here):
        array = self.kept[name]
        if turned and array.ndim > 1:
            array = np.asfortranarray(array)
        (self.open if here else self.opened()).put(*name, array)
        self.memory.put(*name, array)
        self.there.add(name)

    @rule(kind=st.sampled_from(KINDS), n=st.integers(1, 4))
    def put_rows(self, kind, n):
        rows = np.repeat(self.kept[kind, KEYS[0]][None], n, axis=0)
        keys = [KEYS[0], *(f"{i:040x}" for i in range(1, n))]
        self.open.put_rows(kind, keys, rows)
        self.memory.put_rows(kind, keys, rows)
        self.there.add((kind, KEYS[0]))

    @rule(here=st.booleans())
    def seal(self, here):
        store = self.open if here else self.opened()
        for kind in KINDS:
            store.lacking(kind, [])
        store.seal()

    @rule(name=names)
    def delete(self, name):
        if name in self.there:
            path = self.opened().path(*name)
            with_it = right_keys(path, self.kept)
            path.unlink()
            self.lose(name[0], with_it)

    @rule(name=names, position=st.integers(0, 10**6), bit=st.integers(0, 7))
    def damage(self, name, position, bit):
        if name in self.there:
            path = self.opened().path(*name)
            with_it, content = right_keys(path, self.kept), bytearray(path.read_bytes())
            content[position % len(content)] ^= 1 << bit
            path.write_bytes(content)
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # in the same tick of the clock
            self.lose(name[0], with_it - right_keys(path, self.kept))

    def lose(self, kind, keys):
        """Take out of what is expected what is lost with a file, unless another file holds it."""
        for path in (self.open.folder / kind).glob("*.safetensors"):
            keys = keys - right_keys(path, self.kept)
        self.there -= {(kind, key) for key in keys}

    @invariant()
    def holds_what_was_written(self):
        fresh = self.opened()
        for name in NAMES:
            wanted = self.kept[name]
            for store in (fresh, self.open):
                found = store.get(*name)
                assert store.has(*name) == (found is not None) == (name in self.there)
                if found is not None:
                    assert same(found, wanted) and same(self.memory.get(*name), wanted)
                    for other in (store, self.memory):
                        rows = np.empty((2, *wanted.shape), np.float32)
                        assert other.read(name[0], [name[1], "none"], rows) == [1]
                        assert np.array_equal(rows[0], wanted, equal_nan=True)

    def teardown(self):
        if hasattr(self, "folder"):
            self.patch.undo()
            left = [
                path
                for path in Path(self.folder.name).rglob("*")
                if path.is_file() and path.suffix != ".safetensors"
            ]
            self.folder.cleanup()
            assert not left


def right_keys(path, kept):
    """Return the keys that a file holds as they were written, read without the store."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    if hashlib.sha256(content[:start]).hexdigest()[:40] != path.stem:
        return set()
    said = json.loads(content[8:start])
    keys, size = said["__metadata__"]["keys"].split(" "), said["x"]["data_offsets"][1]
    n = size // len(keys)
    rows = {key: content[start + i * n :][:n] for i, key in enumerate(keys)}
    kind = path.parent.name
    return {key for key in set(KEYS) & rows.keys() if rows[key] == kept[kind, key].tobytes()}


def numbers(rng):
    """Draw an array: few shapes, so that some share a file; with infinity, NaN and nothing."""
    shape = ((3, 2), (3, 2), (4,), (0,), ())[rng.integers(5)]
    drawn = rng.normal(size=shape) * rng.choice([1, 1e-6, np.nan, np.inf, -0.0], shape)
    return np.asarray(drawn, (np.float16, np.float32)[rng.integers(2)])


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


TestStore = pytest.mark.filterwarnings("ignore:.*damaged")(Store.TestCase)
TestStore.settings = settings(
    max_examples=15, stateful_step_count=12, deadline=None, derandomize=True
)

IMAGES = [np.random.default_rng(i).integers(0, 256, (12, 9, 3), dtype=np.uint8) for i in range(4)]


@examples(12)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(1, 4), st.booleans())
def test_features_do_not_depend_on_order_repetition_batches_or_store(order, batch_size, on_disk):
    alone = features.encode(
        tiny.model(), IMAGES, store=None, windows=(2,), batch_size=1, progress=False
    )
    with tempfile.TemporaryDirectory() as folder:
        found = features.encode(
            tiny.model(),
            [IMAGES[i] for i in order],
            store=folder if on_disk else None,
            windows=(2,),
            batch_size=batch_size,
            progress=False,
        )
        for kind in found.kinds:
            assert torch.allclose(
                found.read(kind), alone.read(kind)[order], atol=2e-3
            )  # float16; batches differ in the last bit
        some = found[[len(order) - 1, 0]]
        assert torch.equal(some.patches, found.patches[[len(order) - 1, 0]])
