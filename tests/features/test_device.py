"""Features and arrays on a device: the same numbers as on the CPU, wherever they are read."""

import pickle

import pytest
import torch
from fixtures import faults, tiny
from fixtures.cases import encode
from fixtures.pretend_gpu import on_gpu, pretend_gpu

from vlmad_utils import features


@pytest.mark.parametrize("on_disk", [True, False], ids=["disk", "memory"])
def test_features_are_read_to_their_device(tmp_path, on_disk):
    store = tmp_path if on_disk else None
    found = encode([faults.noise(i) for i in range(5)], store, tiny.model(), windows=(2,))
    assert found.device == torch.device("cpu") and found.to("cpu").patches.device == found.device
    with pretend_gpu() as gpu:
        moved = found.to(gpu)
        assert moved.device == gpu and moved[1:4].device == gpu and found.device.type == "cpu"
        assert moved.identity == found.identity  # banks of the same images are the same
        for kind in found.kinds:
            there = moved[[3, 1]].read(kind)
            assert on_gpu(there) and there.dtype == torch.float32
            assert torch.equal(there.cpu(), found.read(kind)[[3, 1]])
        assert on_gpu(moved[:0].image) and on_gpu(moved.windows[2])
        assert pickle.loads(pickle.dumps(moved)).device == gpu


def test_arrays_move_with_all_that_they_hold():
    found = encode([faults.noise(i) for i in range(3)], None, tiny.model(), blocks=2, windows=2)
    held = features.Arrays(
        found.image, found.grid, found.patches, dict(found.tokens), dict(found.windows)
    )
    assert held.device.type == "cpu" and held.to("cpu").image is held.image
    with pretend_gpu() as gpu:
        moved = held.to(gpu)
        arrays = [moved.image, moved.patches, moved.tokens[2], moved.windows[2]]
        assert on_gpu(arrays) and moved.device.type == "cuda" and len(moved[1:]) == 2
        assert torch.equal(moved.tokens[2].cpu(), held.tokens[2])
        assert features.Arrays(held.image, held.grid).to(gpu).patches is None
