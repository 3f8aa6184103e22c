"""Dense features of an open_clip ViT for maps: MaskCLIP, V-V attention, AnomalyCLIP's DPAM.

Raw patch tokens of CLIP's last block do not say what is where. Their value path does (MaskCLIP),
and attention between values (q = k = v) gathers similar patches instead of mixing in the global
content. All of it reads the frozen tower.
"""

from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .backbone import Block
from .openclip import OpenClip, embed_patches
from .windows import Window


def value_attention(block: Any, x: Tensor, attend: Literal["vv", "self"] = "vv") -> Tensor:
    """Compute the attention of one block of an open_clip tower from its value path only.

    Parameters
    ----------
    block : open_clip ResidualAttentionBlock
    x : (B, 1 + N, C), already through ``block.ln_1``
    attend : "vv" sets q = k = v (softmax of v v^T / sqrt(head width), times v); "self" lets each
        token see only itself

    Returns
    -------
    (B, 1 + N, C), after the block's output projection
    """
    attention = block.attn
    if not isinstance(attention, torch.nn.MultiheadAttention):
        raise ValueError(
            "V-V attention reads an nn.MultiheadAttention, found "
            f"{type(attention).__name__}: use an open_clip ViT with plain blocks, e.g. "
            "ViT-B-16-plus-240."
        )
    width = attention.embed_dim
    weight, bias = (p[2 * width :] for p in (attention.in_proj_weight, attention.in_proj_bias))
    value = F.linear(x, weight, bias)
    if attend == "vv":
        heads = value.unflatten(-1, (attention.num_heads, -1))
        heads = heads.transpose(1, 2)  # (B, heads, 1 + N, C / heads)
        value = F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
    return attention.out_proj(value)


def default_first_block(n_blocks: int) -> int:
    """Return the block from which attention is V-V: 6 of 24 as in the paper, else that share."""
    return max(1, round(n_blocks / 4))


def vv_run(
    visual: Any, x: Tensor, first_vv_block: int, blocks: Collection[int]
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run both streams through all blocks.

    The ordinary stream runs unchanged. The V-V stream starts as its copy before ``first_vv_block``;
    each block adds the V-V attention of the **ordinary** stream's normalised input, and no MLP.

    Parameters
    ----------
    visual : open_clip VisionTransformer
    x : (B, 1 + N, C), tokens that enter block 1
    first_vv_block : from 1
    blocks : whose tokens are returned

    Returns
    -------
    (last tokens of the ordinary stream, {block: V-V stream after it, or the ordinary stream where
    the V-V stream has not begun})
    """
    number = len(visual.transformer.resblocks)
    if not 1 <= first_vv_block <= number:
        raise ValueError(f"first_vv_block is 1 to {number}, found {first_vv_block}.")
    stream, taken = None, {}
    for i, block in enumerate(visual.transformer.resblocks, start=1):
        if i >= first_vv_block:
            added = block.ls_1(value_attention(block, block.ln_1(x)))
            stream = (x if stream is None else stream) + added
        x = block(x)
        if i in blocks:
            taken[i] = x if stream is None else stream
    return x, taken


@torch.no_grad()
def dpam(
    visual: Any, pixels: Tensor, first_vv_block: int, blocks: Collection[int]
) -> tuple[Tensor, dict[int, Tensor]]:
    """Compute AnomalyCLIP's features of a batch; they are not normalised.

    Parameters
    ----------
    visual : open_clip VisionTransformer
    pixels : (B, 3, H, W) float32, preprocessed
    first_vv_block : from 1
    blocks : whose features are returned

    Returns
    -------
    image : (B, D), CLS of the ordinary stream times the projection, **without** ln_post
    patches : {block: (B, 1 + N, D)}, V-V stream -> ln_post -> projection, CLS first
    """
    last, taken = vv_run(visual, embed_patches(visual, pixels), first_vv_block, blocks)
    with torch.autocast(pixels.device.type, enabled=False):
        return last[:, 0] @ visual.proj, {b: _joint(visual, x) for b, x in taken.items()}


class DPAM(OpenClip):
    """An open_clip backbone whose features are AnomalyCLIP's; ``features.encode`` stores them.

    ``image`` is the embedding without ln_post, ``patches`` the V-V features of the last block and
    ``tokens[b]`` those of block b (B, N, D), already in the joint space. Windows are not defined
    for it.

    Parameters
    ----------
    model : whose towers are read
    first_vv_block : from 1; None is a quarter of the depth
    """

    def __init__(self, model: OpenClip, first_vv_block: int | None = None) -> None:
        self.__dict__.update(model.__dict__)
        self.first_vv_block = first_vv_block or default_first_block(model.n_blocks)
        self.name = f"{model.name} with V-V attention from block {self.first_vv_block}"
        self._set_fingerprint([], base=model.identity, dpam=self.first_vv_block)

    @property
    def token_width(self) -> int:
        """Return D: tokens of the V-V stream are already in the joint space."""
        return self.dim

    def run(self, tokens: Tensor, blocks: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the ordinary stream's last tokens and the V-V streams (B, 1 + N, D), projected."""
        with self.half_products():
            wanted = {*blocks, self.n_blocks}
            last, taken = vv_run(self.visual, tokens, self.first_vv_block, wanted)
        return last, {b: _joint(self.visual, x) for b, x in taken.items()}

    def image_head(self, last: Tensor, taken: dict[int, Tensor]) -> Tensor:
        return last[:, 0] @ self.visual.proj

    def patch_head(self, last: Tensor, taken: dict[int, Tensor], grid: tuple[int, int]) -> Tensor:
        return taken[self.n_blocks][:, 1:]

    def check_request(self, blocks: Sequence[Block], windows: Sequence[Window]) -> None:
        if windows or {"final", "cls"} & set(blocks):
            raise ValueError(
                "AnomalyCLIP's features have no windows and no 'final' or 'cls' tokens: encode "
                "those with the plain backbone."
            )
        super().check_request(blocks, windows)


def resize_positions(
    positions: Tensor,
    grid: Sequence[int],
    mode: Literal["bilinear", "bicubic"] = "bilinear",
) -> Tensor:
    """Carry a position embedding of a square grid to another grid (h', w'); keep the CLS row.

    Parameters
    ----------
    positions : (1 + h * h, C)
    mode : "bilinear" (AnomalyCLIP), or "bicubic" with antialias (APRIL-GAN, and open_clip when it
        loads weights)

    Returns
    -------
    (1 + h' * w', C) float32 on the CPU
    """
    positions = positions.detach().float().cpu()
    side = int((len(positions) - 1) ** 0.5)
    if side * side != len(positions) - 1:
        raise ValueError(f"{len(positions) - 1} positions do not form a square grid.")
    table = positions[1:].T.reshape(1, -1, side, side)
    table = F.interpolate(
        table, size=tuple(grid), mode=mode, align_corners=False, antialias=mode == "bicubic"
    )
    return torch.cat([positions[:1], table[0].flatten(1).T])


@torch.no_grad()
def maskclip(visual: Any, pixels: Tensor, residual: bool = True) -> Tensor:
    """Compute MaskCLIP's dense features: in the last block each token attends only to itself.

    Parameters
    ----------
    visual : open_clip VisionTransformer (``model.visual`` of a backbone)
    pixels : (B, 3, H, W) float32, preprocessed
    residual : keep skip connection and MLP of the last block; False leaves the bare value path

    Returns
    -------
    (B, N, D) float32, unit length, CLS removed

    Source: MaskCLIP (Zhou et al., ECCV 2022, arXiv 2112.01071).
    """
    x = embed_patches(visual, pixels)
    *first, last = visual.transformer.resblocks
    for block in first:
        x = block(x)
    value = last.ls_1(value_attention(last, last.ln_1(x), attend="self"))
    if residual:
        x = x + value
        x = x + last.ls_2(last.mlp(last.ln_2(x)))
    else:
        x = value
    return _unit(_joint(visual, x)[:, 1:])


@torch.no_grad()
def vv(visual: Any, pixels: Tensor, first_block: int | None = None) -> Tensor:
    """Compute dense features (B, N, D), unit length, of the V-V stream from ``first_block`` on.

    None is a quarter of the depth.

    Source: CLIP Surgery (arXiv 2304.05653) and AnomalyCLIP's DPAM, without any training.
    """
    last = len(visual.transformer.resblocks)
    _, patches = dpam(visual, pixels, first_block or default_first_block(last), [last])
    return _unit(patches[last][:, 1:])


def _joint(visual: Any, tokens: Tensor) -> Tensor:
    """Apply last norm and projection to tokens (B, n, C), in float32 under autocast, too."""
    with torch.autocast(tokens.device.type, enabled=False):
        return visual.ln_post(tokens.float()) @ visual.proj


def _unit(x: Tensor) -> Tensor:
    """Return vectors (..., D) divided by their length, float32."""
    return F.normalize(x.detach().float(), dim=-1)
