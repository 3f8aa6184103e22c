"""Blocks of a vision transformer, taken apart, with weights in the chosen precision.

The residual stream (W, n, C) and the norms are float32 in any precision. In "bf16" and "fp16" the
layers have copies of their weights in half, made once beside the float32 ones, which cost half as
much memory again. Layers read and write half.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

from . import onednn
from .attention import attend, packing_mask

Precision = Literal["fp32", "bf16", "fp16"]
Step = Callable[[Tensor], Tensor]  # (..., C) -> (..., M)
Layer = tuple[Tensor, Tensor | None]  # weight (M, C), bias (M,)
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Block(NamedTuple):
    """The steps of one block, in their order; a scale is the identity where there is none."""

    heads: int
    norm: Step
    project: Step  # to queries, keys and values (..., 3 C)
    out: Step
    scale: Step
    mlp_norm: Step
    mlp: Step
    mlp_scale: Step


def taken_apart(modules: Iterable[nn.Module], precision: Precision) -> list[Block]:
    """Return a tower's blocks: open_clip's ResidualAttentionBlock, or timm's Block."""
    return [_block(module, precision) for module in modules]


def _block(module: Any, precision: Precision) -> Block:
    attention, mlp = module.attn, module.mlp
    if isinstance(module, TimmBlock):
        norms, scales = (module.norm1, module.norm2), (module.ls1, module.ls2)
        layers, activation = (attention.qkv, attention.proj, mlp.fc1, mlp.fc2), mlp.act
    else:
        norms, scales = (module.ln_1, module.ln_2), (module.ls_1, module.ls_2)
        layers, activation = (None, attention.out_proj, mlp.c_fc, mlp.c_proj), mlp.gelu
    project, out, up, down = (
        (each.weight, each.bias) if each else (attention.in_proj_weight, attention.in_proj_bias)
        for each in layers
    )
    if precision == "fp32":
        return Block(
            attention.num_heads,
            norms[0],
            lambda x: F.linear(x, *project),
            lambda x: F.linear(x, *out),
            scales[0],
            norms[1],
            _exact_mlp(up, down) if _is_exact_gelu(activation) else mlp,
            scales[1],
        )
    dtype = HALF[precision]
    return Block(
        attention.num_heads,
        norms[0],
        half_layer(project, dtype),
        half_layer(out, dtype),
        scales[0],
        norms[1],
        half_mlp(up, activation, down, dtype),
        scales[1],
    )


def half_layer(layer: Layer, dtype: torch.dtype, activation: str = "none") -> Step:
    """Return a linear layer with a copy of its weights in half; it reads any float, writes half.

    Parameters
    ----------
    activation : "none", "gelu" or "swish", which follows the layer
    """
    weight, bias = (None if each is None else each.detach().to(dtype) for each in layer)
    assert weight is not None
    if packed := onednn.packed(weight, bias, activation):
        return packed
    after = {"none": None, "gelu": torch.ops.aten.gelu_, "swish": torch.ops.aten.silu_}[activation]

    def step(x: Tensor) -> Tensor:
        y = F.linear(x.to(dtype), weight, bias)
        return after(y) if after else y

    return step


def half_mlp(up: Layer, activation: nn.Module, down: Layer, dtype: torch.dtype) -> Step:
    """Return the MLP of a block in half.

    QuickGELU, x sigmoid(1.702 x), is swish(1.702 x) / 1.702: one operation for three, with both
    factors in the weights.
    """
    name = "none"
    if isinstance(activation, QuickGELU):
        name, up = "swish", _times(1.702, up)
        down = down[0] / 1.702, down[1]
    elif _is_exact_gelu(activation):
        name = "gelu"
    rise, fall = half_layer(up, dtype, name), half_layer(down, dtype)
    if name != "none":
        return lambda x: fall(rise(x))
    return lambda x: fall(activation(rise(x)))


def _is_exact_gelu(activation: nn.Module) -> bool:
    return isinstance(activation, nn.GELU) and activation.approximate == "none"


def _exact_mlp(up: Layer, down: Layer) -> Step:
    """Return the MLP in float32, with GELU in place: its hidden layer is the largest array."""
    return lambda x: F.linear(torch.ops.aten.gelu_(F.linear(x, *up)), *down)


def _times(factor: float, layer: Layer) -> Layer:
    weight, bias = layer
    return weight * factor, None if bias is None else bias * factor


def project(block: Block, x: Tensor) -> Sequence[Tensor]:
    """Return queries, keys and values (..., C) of the residual stream (..., C)."""
    return block.project(block.norm(x)).chunk(3, dim=-1)


def after_projection(
    block: Block, x: Tensor, qkv: Sequence[Tensor], mask: Tensor | None = None
) -> Tensor:
    """Do the rest of a block: attention, its output, the MLP.

    Parameters
    ----------
    x : (W, m, C) float32, the tokens that ask
    qkv : queries (W, m, C), keys and values (W, n, C)
    mask : see :func:`.attention.packing_mask`
    """
    x = x + block.scale(block.out(attend(qkv, block.heads, mask)))
    return x + block.mlp_scale(block.mlp(block.mlp_norm(x)))


def run_blocks(
    blocks: Sequence[Block],
    x: Tensor,
    wanted: Collection[int] = (),
    causal: Tensor | None = None,
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run tokens (B, n, C) through all blocks.

    Parameters
    ----------
    causal : (n, n), added to the logits of attention: minus infinity where a token must not look

    Returns
    -------
    (last tokens, {block, counted from 1: tokens after it} of those that are wanted)
    """
    taken, mask = {}, causal
    for number, block in enumerate(blocks, 1):
        qkv = project(block, x)
        if number == 1 and causal is None:
            mask = packing_mask(len(x), x.shape[1], x.shape[1], x.device, qkv[0].dtype)
        x = after_projection(block, x, qkv, mask)
        if number in wanted:
            taken[number] = x
    return x, taken


def run_windows(
    blocks: Sequence[Block], x: Tensor, qkv: Tensor, image: Tensor, rows: Tensor
) -> Tensor:
    """Run windows through all blocks, but for two things that change no number.

    The first block's projections see one token each, so windows share them; and in the last block
    only CLS asks, since the head reads nothing else.

    Parameters
    ----------
    x : tokens (B, 1 + N, C) that enter block 1
    qkv : (B, 1 + N, 3 C), what the first block projects them to
    image, rows : (W, 1) and (W, n): images and tokens of W windows

    Returns
    -------
    (W, 1, C), CLS after the last block
    """
    first, *middle, last = blocks
    x, qkv = x[image, rows], qkv[image, rows]
    count, n = x.shape[:2]
    mask = packing_mask(count, n, n, x.device, qkv.dtype)
    x = after_projection(first, x, qkv.chunk(3, dim=-1), mask)
    for block in middle:
        x = after_projection(block, x, project(block, x), mask)
    query, key, value = project(last, x)
    mask = packing_mask(count, 1, n, x.device, query.dtype)
    return after_projection(last, x[:, :1], (query[:, :1], key, value), mask)
