"""Products by oneDNN are PyTorch's, wherever they take its place, and leave the rest to it."""

import importlib
import platform
import types

import pytest
import torch
import torch.nn.functional as F
from fixtures import tiny
from torch.utils.flop_counter import FlopCounterMode

from vlmad_utils.models import onednn

needed = pytest.mark.skipif(
    not (onednn._ONEDNN and torch.backends.mkldnn.is_available()),
    reason="this build of PyTorch has no oneDNN",
)


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def taken(monkeypatch):
    """Shapes that went to oneDNN."""
    seen, product = [], onednn._ONEDNN
    monkeypatch.setattr(
        onednn, "_ONEDNN", lambda x, *rest: seen.append(tuple(x.shape)) or product(x, *rest)
    )
    return seen


@needed
@pytest.mark.parametrize("shape", [(1, 8), (5, 8), (300, 384), (2, 7, 384), (2, 3, 4, 16), (4, 0)])
def test_linear_is_pytorchs_to_rounding(shape, taken):
    x, weight, bias = drawn(*shape), drawn(12, shape[-1]), drawn(12)
    for b in (bias, None):
        found, exact = (
            onednn.linear(x, weight, b),
            F.linear(x.double(), weight.double(), None if b is None else b.double()),
        )
        assert found.shape == exact.shape and found.is_contiguous()
        torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=1e-5)
    assert len(taken) == (2 if x.numel() else 0)
    turned = drawn(shape[-1], 6).T[:, : shape[-1]]  # strides as of a transposed matrix
    torch.testing.assert_close(
        onednn.linear(turned, weight), F.linear(turned, weight), atol=1e-4, rtol=1e-5
    )


@needed
def test_what_onednn_cannot_do_is_left_to_pytorch(taken, monkeypatch):
    x, weight = drawn(4, 8), torch.nn.Parameter(drawn(3, 8))
    onednn.linear(x, weight).sum().backward()
    assert torch.equal(weight.grad, x.sum(dim=0).expand(3, -1))
    assert onednn.linear(x.double(), weight.double()).dtype == torch.float64
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert onednn.linear(x, weight).dtype == torch.bfloat16
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    with torch.no_grad():
        assert torch.equal(onednn.linear(x, weight), F.linear(x, weight))
    assert taken == []


@needed
def test_a_row_does_not_depend_on_the_rows_beside_it():
    x, weight = drawn(500, 384), drawn(1536, 384)
    whole = onednn.linear(x, weight)
    assert all(
        torch.equal(onednn.linear(x[:n].clone(), weight), whole[:n]) for n in (2, 16, 33, 499)
    )


@needed
def test_towers_go_through_it(taken, monkeypatch):
    tower, images = tiny.model(), tiny.arrays("inputs")["test_images"]
    ours = tower.encode_image(images, (1, "final"), (2, 3), True)
    assert len(taken) >= 4 * tower.n_blocks  # projections in and out, and both layers of the MLP
    taken.clear()
    tower.encode_text(["a photo of a screw", "a photo"])
    assert taken
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    theirs = tower.encode_image(images, (1, "final"), (2, 3), True)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)


def test_a_plain_tower_is_run_as_open_clip_runs_it():
    tower, images = tiny.model(), tiny.arrays("inputs")["test_images"]
    with torch.inference_mode():
        start = tower.embed(images)
        last, taken = tower.run(start, (1, 3))
        expected, between = tower.visual.transformer.forward_intermediates(start, indices=[0, 2])
    assert tower.plain and sorted(taken) == [1, 3]
    for found, wanted in ((last, expected), (taken[1], between[0]), (taken[3], between[1])):
        assert torch.allclose(found, wanted, atol=1e-5)


@needed
def test_pytorchs_counter_counts_its_operations():
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        onednn.linear(drawn(2, 5, 8), drawn(3, 8), drawn(3))
    assert counter.get_total_flops() == 2 * 10 * 8 * 3


def test_the_module_can_be_reloaded():
    """As %autoreload does."""
    importlib.reload(onednn)
    importlib.reload(onednn)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="not used there")
def test_canary_the_product_of_onednn_is_as_we_call_it():
    """The operation is private to PyTorch."""
    say = (
        "torch.ops.mkldnn._linear_pointwise is not as onednn.linear calls it: F.linear is used, "
        "slower; adapt onednn._ARGUMENTS and the call, or remove the module"
    )
    assert onednn._ONEDNN is not None, say
    x, weight, bias = drawn(3, 8), drawn(5, 8), drawn(5)
    found = onednn._ONEDNN(x, weight, bias, "none", [], "")
    assert torch.allclose(found, F.linear(x, weight, bias), atol=1e-5), say


@pytest.mark.parametrize("state", ["gone", "other arguments"])
def test_without_the_operation_pytorch_multiplies(monkeypatch, state):
    if state == "gone":
        monkeypatch.setattr(torch.ops, "mkldnn", types.SimpleNamespace())
    else:
        monkeypatch.setattr(onednn, "_ARGUMENTS", ["X", "W"])
    assert onednn._operation() is None
    monkeypatch.setattr(onednn, "_ONEDNN", None)
    x, weight = drawn(3, 8), drawn(5, 8)
    with torch.no_grad():
        assert torch.equal(onednn.linear(x, weight), F.linear(x, weight))
