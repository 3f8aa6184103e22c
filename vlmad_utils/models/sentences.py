"""all-MiniLM-L6-v2, the frozen reader of sentences in the embedded model."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import paths
from .text_batches import encode_alike


class MiniLM:
    """Frozen all-MiniLM-L6-v2: sentences to (P, 384), unit norm, mean pooled over real tokens.

    It is loaded with the first sentence: never, where the store has all prompts.

    Parameters
    ----------
    folder : with ``model.safetensors`` somewhere below
    """

    def __init__(self, folder: Path | str, device: str | torch.device = "cpu") -> None:
        self.folder, self.device = next(Path(folder).rglob("model.safetensors")).parent, device

    @functools.cached_property
    def identity(self) -> str:
        """Hash of the files with weights, architecture and tokens; none of them is loaded."""
        names = ("model.safetensors", "config.json", "tokenizer.json")
        return " ".join(paths.sha256(self.folder / name) for name in names)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """Load transformers' tokenizer."""
        from transformers import AutoTokenizer  # slow to import, needed only here

        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    @functools.cached_property
    def bert(self) -> Any:
        """Load transformers' BertModel, frozen."""
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()  # "Loading weights" of a file that loads in a blink
        bert = AutoModel.from_pretrained(self.folder, local_files_only=True, use_safetensors=True)
        return bert.eval().requires_grad_(False).to(self.device)

    def to(self, device: str | torch.device) -> None:
        """Move to a device what is loaded, and load there what is not."""
        self.device = device
        if "bert" in vars(self):
            self.bert.to(device)

    @staticmethod
    def pool(hidden: Tensor, mask: Tensor) -> Tensor:
        """Pool the last hidden state (P, L, 384) over mask (P, L) bool to (P, 384), unit norm."""
        weight = mask[..., None].to(hidden.dtype)
        return F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)

    def __call__(
        self, sentences: Iterable[str], head: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return the embeddings (P, 384) of P sentences, unit norm, or what ``head`` makes of them.

        A row does not depend on the other sentences. Of a long one the first 128 tokens count.
        """

        def encode(ids: Tensor) -> Tensor:
            mask = torch.ones_like(ids)
            hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
            pooled = self.pool(hidden, mask.bool())
            return head(pooled) if head else pooled

        tokens = self.tokenizer(list(sentences), truncation=True, max_length=128)["input_ids"]
        return encode_alike(encode, tokens, self.device)
