"""open_clip models with a ViT image tower behind :class:`.backbone.Backbone`."""

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer

from .backbone import Backbone
from .text_batches import encode_alike
from .windows import check_image_size


class OpenClip(Backbone):
    """An open_clip model with a ViT image tower.

    Parameters
    ----------
    model : open_clip.model.CLIP (or CustomTextCLIP) in eval mode
    tokenizer : open_clip tokenizer
    mean, std : input normalisation; default CLIP's
    """

    def __init__(
        self,
        model,
        tokenizer,
        name="open_clip",
        pretrained=None,
        mean=open_clip.OPENAI_DATASET_MEAN,
        std=open_clip.OPENAI_DATASET_STD,
        device="cpu",
        precision="fp32",
    ):
        visual = model.visual
        if not isinstance(visual, VisionTransformer) or visual.pool_type != "tok":
            raise ValueError(
                f"{name}: windows and tokens need a ViT image tower with a CLS token, found "
                f"{type(visual).__name__}. Choose e.g. ViT-B-16-plus-240 or ViT-L-14-336."
            )
        for size, patch in zip(visual.image_size, visual.patch_size, strict=True):
            check_image_size(name, size, patch)
        self.model, self.visual, self.tokenizer = (
            model.eval().requires_grad_(False).to(device),
            visual,
            tokenizer,
        )
        self.name, self.pretrained, self.device, self.precision = (
            name,
            pretrained,
            device,
            precision,
        )
        self.mean, self.std = tuple(mean), tuple(std)
        self.image_size, self.grid = tuple(visual.image_size), tuple(visual.grid_size)
        self.width, self.dim = visual.conv1.out_channels, visual.proj.shape[1]
        blocks = visual.transformer.resblocks
        self.n_blocks = len(blocks)
        # blocks of the usual build: run and run_windows take them apart; others run as open_clip runs them
        self.plain = visual.attn_pool is None and all(
            type(b) is open_clip.transformer.ResidualAttentionBlock for b in blocks
        )
        self.logit_scale = model.logit_scale.exp().item()
        activation = type(blocks[0].mlp.gelu).__name__
        self._set_fingerprint(
            [model.state_dict()],
            name=name,
            size=self.image_size,
            mean=self.mean,
            std=self.std,
            activation=activation,
            resize="squash-bicubic",
        )

    def embed(self, pixels):
        return embed_patches(self.visual, pixels)

    def run(self, tokens, blocks):
        if self.plain:
            taken = {}
            for number, block in enumerate(self.visual.transformer.resblocks, 1):
                tokens = _after_attention(block, tokens, *_qkv(block, tokens).chunk(3, dim=-1))
                if number in blocks:
                    taken[number] = tokens
            return tokens, taken
        order = sorted(blocks)
        last, taken = self.visual.transformer.forward_intermediates(
            tokens, indices=[b - 1 for b in order] or [0]
        )
        return last, dict(zip(order, taken))

    def final_norm(self, tokens):
        return self.visual.ln_post(tokens)

    def image_head(self, last, taken):
        if self.plain:
            return self.visual.ln_post(last)[:, 0] @ self.visual.proj
        return self.visual._pool(last)[0] @ self.visual.proj  # attention over tokens, e.g. CoCa's

    def shared_by_windows(self, start):
        """Tokens, and the first block's queries, keys and values (B, 1 + N, 3 C), which see one token each."""
        return (
            (start, _qkv(self.visual.transformer.resblocks[0], start))
            if self.plain and self.n_blocks > 1
            else (start,)
        )

    def run_windows(self, shared, image, rows):
        """As the tower does it, but for two things that change no number: the first block's projections are shared, and
        in the last block only CLS asks, for the head reads nothing else."""
        if len(shared) == 1:  # blocks of another build
            return super().run_windows(shared, image, rows)
        first, *middle, last = self.visual.transformer.resblocks
        x, qkv = (each[image, rows] for each in shared)
        x = _after_attention(first, x, *qkv.chunk(3, dim=-1))
        for block in middle:
            x = _after_attention(block, x, *_qkv(block, x).chunk(3, dim=-1))
        query, key, value = _qkv(last, x).chunk(3, dim=-1)
        return _after_attention(last, x[:, :1], query[:, :1], key, value), {}

    def patch_head(self, last, taken, grid):
        return self.visual.ln_post(last)[:, 1:] @ self.visual.proj

    def encode_text(self, prompts):
        ids = self.tokenizer(list(prompts))
        text = self.model
        if (
            type(text) is not open_clip.model.CLIP
            or text.attn_mask is None
            or text.text_pool_type != "argmax"
        ):
            return encode_alike(text.encode_text, ids.tolist(), self.device)
        # a token sees only those before it: padding behind the end changes no number, but costs
        ends = ids.argmax(dim=-1) + 1  # the end token has the highest number
        tokens = [row[:end].tolist() for row, end in zip(ids, ends)]
        return encode_alike(self._encode_ids, tokens, self.device)

    def _encode_ids(self, ids):
        """As the tower does it, for prompts (B, L) that all end with their last token."""
        text, n = self.model, ids.shape[1]
        x = text.token_embedding(ids) + text.positional_embedding[:n]
        x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask[:n, :n]))[:, -1]
        projection = text.text_projection
        return projection(x) if isinstance(projection, torch.nn.Linear) else x @ projection


def embed_patches(visual: VisionTransformer, pixels: torch.Tensor) -> torch.Tensor:
    """Return the tokens (B, 1 + N, C) that enter block 1, CLS first, in float32 under autocast, too.

    The same operations as open_clip's own ``_embeds``, which has no public name: patches, CLS,
    positions, then ``ln_pre``, each token by itself. (Dropout of patches is for training only.)
    """
    with torch.autocast(pixels.device.type, enabled=False):
        patches = visual.conv1(pixels).flatten(2).permute(0, 2, 1)
        cls = visual.class_embedding.expand(len(pixels), 1, -1)
        return visual.ln_pre(torch.cat([cls, patches], dim=1) + visual.positional_embedding)


def _qkv(block, x):
    """Queries, keys and values of an open_clip block: (..., C) -> (..., 3 C)."""
    return F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)


def _after_attention(block, x, query, key, value):
    """The rest of an open_clip block: attention, its projection, the MLP."""
    heads = (
        each.unflatten(-1, (block.attn.num_heads, -1)).transpose(-3, -2)
        for each in (query, key, value)
    )
    x = x + block.ls_1(
        block.attn.out_proj(F.scaled_dot_product_attention(*heads).transpose(-3, -2).flatten(-2))
    )
    return x + block.ls_2(block.mlp(block.ln_2(x)))
