"""Short sequences packed into one with a mask are attended as if each were alone."""

import pytest
import torch
from fixtures import tiny
from fixtures.pretend_gpu import on_gpu, pretend_gpu

from vlmad_utils.models import attention, blocks
from vlmad_utils.models.attention import attend, packing_mask, windows_in_a_tile
from vlmad_utils.models.window_parts import window_parts


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("only_cls", [False, True])
def test_packed_attention_is_that_of_each_window(side, only_cls):
    n = 1 + side**2
    p = windows_in_a_tile(n)
    assert p * n <= attention.TILE < (p + 1) * n
    query, key, value = (drawn(3 * p, n, 32, seed=i) for i in range(3))
    query = query[:, :1] if only_cls else query
    expected = attend((query, key, value), heads=4)
    with pretend_gpu() as gpu:
        here = tuple(each.to(gpu) for each in (query, key, value))
        mask = packing_mask(3 * p, query.shape[1], n, gpu, query.dtype)
        assert mask.shape == (p * query.shape[1], p * n) and mask.stride(0) % 8 == 0
        found = attend(here, heads=4, mask=mask)
        assert on_gpu(found)
        found = found.cpu()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_where_attention_is_not_packed():
    with pretend_gpu() as gpu:
        assert packing_mask(12, 5, 5, torch.device("cpu"), torch.float32) is None
        assert packing_mask(13, 5, 5, gpu, torch.float32) is None  # 12 windows a tile
        assert packing_mask(8, 226, 226, gpu, torch.float32) is None  # a whole image


def test_parts_for_a_gpu_have_one_shape_and_every_window_once():
    with pretend_gpu() as gpu:
        parts = window_parts((7, 7), 3, images=3, at_once=20, workers=1, device=gpu)
        assert on_gpu(parts)
        parts = [(image.cpu(), rows.cpu()) for image, rows in parts]
    cpu = window_parts((7, 7), 3, images=3, at_once=20, workers=1, device=torch.device("cpu"))
    assert {rows.shape for _, rows in parts} == {(18, 10)}  # 6 windows a tile
    for packed, plain in zip(zip(*parts), zip(*cpu)):
        packed, plain = torch.cat(packed), torch.cat(plain)
        assert len(plain) == 3 * 25 and torch.equal(packed[: len(plain)], plain)
        assert (packed[len(plain) :] == plain[-1]).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_block_taken_apart_is_the_block(precision, quick_gelu):
    module = tiny.model(quick_gelu).visual.transformer.resblocks[1]
    x = drawn(6, 5, tiny.model().width)
    [block] = blocks.taken_apart([module], precision)
    with torch.inference_mode():
        expected, found = module(x), blocks.after_projection(block, x, blocks.project(block, x))
    assert found.dtype == torch.float32
    error = {"fp32": 1e-5, "fp16": 3e-3, "bf16": 3e-2}[precision]
    assert (found - expected).abs().max() < error * expected.abs().max()
