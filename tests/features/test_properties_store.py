"""Properties of the feature store that hold for any order of writing, damaging and reading."""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from fixtures import tiny
from fixtures.properties import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vlmad_utils import features
from vlmad_utils.store import DiskStore, MemoryStore

numbers = st.one_of(
    arrays(np.float16, array_shapes(max_dims=3, max_side=5), elements=st.floats(width=16)),
    arrays(
        np.float32, array_shapes(max_dims=2, min_side=0, max_side=5), elements=st.floats(width=32)
    ),
)
names = st.tuples(
    st.sampled_from(["image", "patches", "tokens-2"]),
    st.sampled_from(["ab" * 20, "ab" + "c" * 38, "0" * 40]),
)


class Store(RuleBasedStateMachine):
    """Write, delete and damage in any order: a store on disk gives what a dict would, or None."""

    @initialize()
    def begin(self):
        self.folder = tempfile.TemporaryDirectory()
        self.memory, self.wanted = MemoryStore(), {}

    def opened(self):
        return DiskStore(
            self.folder.name, "fingerprint"
        )  # anew each time, as another process would

    @rule(name=names, array=numbers, turned=st.booleans())
    def put(self, name, array, turned):
        array = array.T if turned else array
        self.opened().put(*name, array)
        self.memory.put(*name, array)
        self.wanted[name] = array

    @rule(name=names)
    def delete(self, name):
        self.opened().path(*name).unlink(missing_ok=True)
        self.wanted.pop(name, None)

    @rule(name=names, position=st.integers(0, 10**6), bit=st.integers(0, 7))
    def damage(self, name, position, bit):
        path = self.opened().path(*name)
        if name in self.wanted:
            content = bytearray(path.read_bytes())
            content[position % len(content)] ^= 1 << bit
            path.write_bytes(content)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = self.opened().get(*name)
            if found is None:  # else the bit said nothing: a blank in the header
                assert not self.opened().has(*name)
                del self.wanted[name]

    @invariant()
    def holds_what_was_written(self):
        for name in [
            (kind, key)
            for kind in ("image", "patches", "tokens-2")
            for key in ("ab" * 20, "ab" + "c" * 38, "0" * 40)
        ]:
            found, wanted = self.opened().get(*name), self.wanted.get(name)
            assert (found is None) == (wanted is None) and self.opened().has(*name) == (
                wanted is not None
            )
            for other in [] if wanted is None else [found, self.memory.get(*name)]:
                assert (
                    other.dtype == wanted.dtype
                    and other.shape == wanted.shape
                    and other.tobytes() == wanted.tobytes()
                )

    def teardown(self):
        if hasattr(self, "folder"):
            left = [
                path
                for path in Path(self.folder.name).rglob("*")
                if path.is_file() and path.suffix != ".safetensors"
            ]
            self.folder.cleanup()
            assert not left


TestStore = Store.TestCase
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
