"""all-MiniLM-L6-v2, the frozen reader of sentences in the embedded model."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .. import paths
from .text_batches import encode_alike


class MiniLM:
    """Frozen all-MiniLM-L6-v2: sentences -> (P, 384) unit norm, mean pooled over real tokens. Loaded with the first sentence:
    where the store has all prompts, it is never wanted."""

    def __init__(self, folder, device="cpu"):
        self.folder, self.device = next(Path(folder).rglob("model.safetensors")).parent, device

    @functools.cached_property
    def identity(self) -> str:
        """Hash of the files with weights, architecture and tokens; loads none of them."""
        names = ("model.safetensors", "config.json", "tokenizer.json")
        return " ".join(paths.sha256(self.folder / name) for name in names)

    @functools.cached_property
    def tokenizer(self):
        from transformers import AutoTokenizer  # slow to import, wanted only here

        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    @functools.cached_property
    def bert(self):
        from transformers import AutoModel, utils

        utils.logging.disable_progress_bar()  # "Loading weights" of a file that loads in a blink
        return (
            AutoModel.from_pretrained(self.folder, local_files_only=True, use_safetensors=True)
            .eval()
            .requires_grad_(False)
            .to(self.device)
        )

    @staticmethod
    def pool(hidden, mask):
        """Last hidden state (P, L, 384) and mask (P, L) bool -> (P, 384) unit norm."""
        weight = mask[..., None].to(hidden.dtype)
        return F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)

    def __call__(
        self,
        sentences: Iterable[str],
        head: Callable[[torch.Tensor], torch.Tensor] = nn.Identity(),  # noqa: B008 (has no state)
    ) -> torch.Tensor:
        """Return the embeddings (P, 384) of P sentences, unit norm, or what ``head`` makes of them.

        A row does not depend on the other sentences. Of a long one the first 128 tokens count.
        """

        def encode(ids: torch.Tensor) -> torch.Tensor:
            mask = torch.ones_like(ids)
            hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
            return head(self.pool(hidden, mask.bool()))

        tokens = self.tokenizer(list(sentences), truncation=True, max_length=128)["input_ids"]
        return encode_alike(encode, tokens, self.device)
