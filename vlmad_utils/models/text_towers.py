"""Text towers for prompt learning: they take token embeddings instead of words.

Gradients flow through them; their own parameters are frozen.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from open_clip.transformer import text_global_pool
from torch import Tensor, nn


class TextTower(Protocol):
    """What prompt learning needs: the width of token embeddings, the blocks, three steps."""

    width: int
    blocks: Any

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return ids (P, L) int64, and mask (P, L) bool: True where there is text.

        The start token has position 0.
        """
        ...

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Return token embeddings (P, L, width), without positions."""
        ...

    def encode_embeddings(self, embeddings: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Return text embeddings (P, D), differentiable; ``ids`` only tell where the text ends."""
        ...


class OpenClipText:
    """Text tower of an open_clip model (CLIP or CustomTextCLIP)."""

    def __init__(self, model: nn.Module, tokenizer: Callable[[list[str]], Tensor]) -> None:
        text: Any = getattr(model, "text", model)
        # frozen: otherwise each step would also compute the gradients of all weights
        self.text, self.tokenizer = text.requires_grad_(False), tokenizer
        self.blocks = text.transformer.resblocks
        self.width: int = text.token_embedding.embedding_dim
        self.pool = getattr(text, "text_pool_type", None) or text.pool_type
        self.eos = getattr(text, "text_eos_id", None) or getattr(text, "eos_id", None)

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids = self.tokenizer(list(prompts)).to(self.text.token_embedding.weight.device)
        return ids, ids != 0

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return self.text.token_embedding(ids)

    def encode_embeddings(self, embeddings: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        text = self.text
        x = embeddings + text.positional_embedding[: embeddings.shape[1]]
        x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask))
        x = text_global_pool(x, ids, self.pool, eos_token_id=self.eos)
        projection = text.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection


class BertText:
    """A transformers BertModel as text tower (the embedded model's MiniLM).

    Parameters
    ----------
    bert : transformers.BertModel
    tokenizer : gives ``input_ids`` and ``attention_mask``
    head : (last hidden state (P, L, width), mask (P, L) bool) -> (P, D), e.g. mean pooling and a
        projection
    """

    def __init__(self, bert: Any, tokenizer: Any, head: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.bert, self.tokenizer, self.head = bert.eval().requires_grad_(False), tokenizer, head
        self.blocks = bert.encoder.layer
        self.width: int = bert.config.hidden_size

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        batch = self.tokenizer(list(prompts), padding=True, return_tensors="pt")
        batch = batch.to(self.bert.device)
        return batch["input_ids"], batch["attention_mask"].bool()

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return self.bert.embeddings.word_embeddings(ids)

    def encode_embeddings(self, embeddings: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.bert(inputs_embeds=embeddings, attention_mask=mask.long()).last_hidden_state
        return self.head(hidden, mask)


def text_tower(model: Any) -> TextTower:
    """Return a backbone's own ``text_tower()`` if it has one, else open_clip's."""
    own = getattr(model, "text_tower", None)
    return own() if own else OpenClipText(model.model, model.tokenizer)


@contextmanager
def overwritten(blocks: Any, tokens: Iterable[Tensor]) -> Generator[None, None, None]:
    """While active, block i + 2 (from 1) sees ``tokens[i]`` (n, width) after the start token.

    They replace the n tokens that are there.
    """

    def hook(value: Tensor) -> Callable:
        def replace(module: nn.Module, args: tuple) -> tuple:
            x, *rest = args
            new = value.expand(len(x), -1, -1)
            return torch.cat([x[:, :1], new, x[:, 1 + len(value) :]], dim=1), *rest

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
