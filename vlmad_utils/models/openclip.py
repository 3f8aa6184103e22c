"""open_clip models with a ViT image tower behind :class:`.backbone.Backbone`."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from .backbone import Backbone
from .blocks import Block, Precision, run_blocks, run_windows, taken_apart
from .compiling import fast
from .cores import no_autocast
from .patches import embed_pixels
from .text_batches import encode_alike
from .windows import check_image_size


class OpenClip(Backbone):
    """An open_clip model with a ViT image tower; its parameters are frozen.

    Parameters
    ----------
    model : open_clip.model.CLIP (or CustomTextCLIP)
    tokenizer : open_clip tokenizer
    name, pretrained : architecture, weights
    mean, std : input normalisation; default CLIP's
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[[list[str]], Tensor],
        name: str = "open_clip",
        pretrained: str | None = None,
        mean: Sequence[float] = open_clip.OPENAI_DATASET_MEAN,
        std: Sequence[float] = open_clip.OPENAI_DATASET_STD,
        device: str | torch.device = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        visual: Any = model.visual
        if not isinstance(visual, VisionTransformer) or visual.pool_type != "tok":
            raise ValueError(
                f"{name}: windows and tokens need a ViT image tower with a CLS token, found "
                f"{type(visual).__name__}. Choose e.g. ViT-B-16-plus-240 or ViT-L-14-336."
            )
        for size, patch in zip(visual.image_size, visual.patch_size, strict=True):
            check_image_size(name, size, patch)
        self.model: Any = model.eval().requires_grad_(False).to(device)
        self.visual: Any = visual
        self.tokenizer = tokenizer
        self.name, self.pretrained = name, pretrained
        self.device, self.precision = device, precision
        self.mean, self.std = tuple(mean), tuple(std)
        self.image_size, self.grid = tuple(visual.image_size), tuple(visual.grid_size)
        self.width, self.dim = self.visual.conv1.out_channels, self.visual.proj.shape[1]
        blocks: Any = visual.transformer.resblocks
        self.n_blocks = len(blocks)
        # blocks of the usual build are taken apart; others run as open_clip runs them
        usual = all(type(block) is ResidualAttentionBlock for block in blocks)
        self.plain = usual and visual.attn_pool is None
        self.logit_scale = model.get_parameter("logit_scale").exp().item()
        self._set_fingerprint(
            [model.state_dict()],
            name=name,
            architecture=repr(model),
            heads=[getattr(block.attn, "num_heads", None) for block in blocks],
            tokenizer=type(tokenizer).__name__,
            size=self.image_size,
            mean=self.mean,
            std=self.std,
            activation=type(blocks[0].mlp.gelu).__name__,
            resize="squash-bicubic",
        )

    def embed(self, pixels: Tensor) -> Tensor:
        return embed_patches(self.visual, pixels)

    def run(self, tokens: Tensor, blocks: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        if self.plain:
            return fast(self, run_blocks, self._blocks(), tokens, tuple(blocks))
        order = sorted(blocks)
        indices = [block - 1 for block in order] or [0]
        with self.half_products():
            last, found = self.visual.transformer.forward_intermediates(tokens, indices=indices)
        return last, dict(zip(order, found))

    def _blocks(self) -> list[Block]:
        modules = self.visual.transformer.resblocks
        return self.kept(f"blocks {self.precision}", lambda: taken_apart(modules, self.precision))

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.visual.ln_post(tokens)

    def image_head(self, last: Tensor, taken: dict[int, Tensor]) -> Tensor:
        if self.plain:
            return self.visual.ln_post(last)[:, 0] @ self.visual.proj
        return self.visual._pool(last)[0] @ self.visual.proj  # attention over tokens, e.g. CoCa's

    def shared_by_windows(self, start: Tensor) -> tuple[Tensor, ...]:
        """Return tokens and the first block's queries, keys and values (B, 1 + N, 3 C).

        Each of these sees one token only.
        """
        if self.plain and self.n_blocks > 1:
            first = self._blocks()[0]
            return start, first.project(first.norm(start))
        return (start,)

    def run_windows(
        self, shared: tuple[Tensor, ...], image: Tensor, rows: Tensor
    ) -> tuple[Tensor, dict[int, Tensor]]:
        if len(shared) == 1:  # blocks of another build
            return super().run_windows(shared, image, rows)
        return fast(self, run_windows, self._blocks(), *shared, image, rows), {}

    def patch_head(self, last: Tensor, taken: dict[int, Tensor], grid: tuple[int, int]) -> Tensor:
        return self.visual.ln_post(last)[:, 1:] @ self.visual.proj

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        ids = self.tokenizer(list(prompts))
        text = self.model
        usual = type(text) is open_clip.model.CLIP and text.text_pool_type == "argmax"
        if not usual or text.attn_mask is None:
            return encode_alike(text.encode_text, ids.tolist(), self.device)
        # a token sees only those before it: padding behind the end changes no number, but costs
        ends = ids.argmax(dim=-1) + 1  # the end token has the highest number
        tokens = [row[:end].tolist() for row, end in zip(ids, ends)]
        return encode_alike(self._encode_ids, tokens, self.device)

    def _encode_ids(self, ids: Tensor) -> Tensor:
        """Encode prompts (P, L) as the tower does; each ends with its last token."""
        text, n = self.model, ids.shape[1]
        x = text.token_embedding(ids) + text.positional_embedding[:n]
        blocks = text.transformer.resblocks
        if all(type(block) is ResidualAttentionBlock for block in blocks):
            # PyTorch's own attention layer hides its products from oneDNN
            x, _ = run_blocks(taken_apart(blocks, "fp32"), x, causal=text.attn_mask[:n, :n])
        else:
            x = text.transformer(x, attn_mask=text.attn_mask[:n, :n])
        x = text.ln_final(x)[:, -1]
        projection = text.text_projection
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def embed_patches(visual: Any, pixels: Tensor) -> Tensor:
    """Return the tokens (B, 1 + N, C) that enter block 1, CLS first.

    They are float32 under autocast, too. The operations are those of open_clip's ``_embeds``, which
    is private: patches, CLS, positions, then ``ln_pre``, which sees one token each. (Dropout of
    patches is for training only.)

    Parameters
    ----------
    visual : open_clip VisionTransformer
    pixels : (B, 3, H, W) float32, preprocessed
    """
    with no_autocast(pixels.device):
        patches = embed_pixels(visual.conv1, pixels)
        cls = visual.class_embedding.expand(len(pixels), 1, -1)
        return visual.ln_pre(torch.cat([cls, patches], dim=1) + visual.positional_embedding)
