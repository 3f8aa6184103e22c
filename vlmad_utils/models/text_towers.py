"""Text towers for prompt learning: they take token embeddings instead of words, and gradients flow through them.

Each has ``width`` (of token embeddings), ``blocks`` (its transformer blocks) and

- ``tokenize(prompts) -> (ids (P, L) int64, mask (P, L) bool)``: True where there is text; 0 is the start token;
- ``embed_tokens(ids) -> (P, L, width)``, without positions;
- ``encode_embeddings(embeddings, ids, mask) -> (P, D)``, differentiable; ``ids`` only tell where the text ends.
"""

from contextlib import contextmanager

import torch
from open_clip.transformer import text_global_pool
from torch import nn


class OpenClipText:
    """Text tower of an open_clip model (CLIP or CustomTextCLIP)."""

    def __init__(self, model, tokenizer):
        self.text, self.tokenizer = getattr(model, "text", model), tokenizer
        self.text.requires_grad_(
            False
        )  # frozen: otherwise each step would also compute the gradients of all weights
        self.blocks, self.width = (
            self.text.transformer.resblocks,
            self.text.token_embedding.embedding_dim,
        )
        self.pool = getattr(self.text, "text_pool_type", None) or self.text.pool_type
        self.eos = getattr(self.text, "text_eos_id", None) or getattr(self.text, "eos_id", None)

    def tokenize(self, prompts):
        ids = self.tokenizer(list(prompts)).to(self.text.token_embedding.weight.device)
        return ids, ids != 0

    def embed_tokens(self, ids):
        return self.text.token_embedding(ids)

    def encode_embeddings(self, embeddings, ids, mask):
        text = self.text
        x = text.transformer(
            embeddings + text.positional_embedding[: embeddings.shape[1]], attn_mask=text.attn_mask
        )
        x = text_global_pool(text.ln_final(x), ids, self.pool, eos_token_id=self.eos)
        projection = text.text_projection
        return (
            x
            if projection is None
            else projection(x)
            if isinstance(projection, nn.Linear)
            else x @ projection
        )


class BertText:
    """A transformers BertModel as text tower (the embedded model's MiniLM).

    Parameters
    ----------
    bert : transformers.BertModel; tokenizer : gives ``input_ids`` and ``attention_mask``
    head : (last hidden state (P, L, width), mask (P, L) bool) -> (P, D), e.g. mean pooling and a projection
    """

    def __init__(self, bert, tokenizer, head):
        self.bert, self.tokenizer, self.head = bert.eval().requires_grad_(False), tokenizer, head
        self.blocks, self.width = bert.encoder.layer, bert.config.hidden_size

    def tokenize(self, prompts):
        batch = self.tokenizer(list(prompts), padding=True, return_tensors="pt").to(
            self.bert.device
        )
        return batch["input_ids"], batch["attention_mask"].bool()

    def embed_tokens(self, ids):
        return self.bert.embeddings.word_embeddings(ids)

    def encode_embeddings(self, embeddings, ids, mask):
        hidden = self.bert(inputs_embeds=embeddings, attention_mask=mask.long()).last_hidden_state
        return self.head(hidden, mask)


def text_tower(model):
    """The text tower of a backbone: its own ``text_tower()`` if it has one, else open_clip's."""
    return (
        model.text_tower()
        if hasattr(model, "text_tower")
        else OpenClipText(model.model, model.tokenizer)
    )


@contextmanager
def overwritten(blocks, tokens):
    """While active, block i + 2 (from 1) sees ``tokens[i]`` (n, width), not the n tokens after the start token."""

    def hook(value):
        def replace(module, args):
            x = args[0]
            return (
                torch.cat([x[:, :1], value.expand(len(x), -1, -1), x[:, 1 + len(value) :]], dim=1),
                *args[1:],
            )

        return replace

    handles = [
        block.register_forward_pre_hook(hook(value))
        for block, value in zip(blocks[1:], tokens, strict=False)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
