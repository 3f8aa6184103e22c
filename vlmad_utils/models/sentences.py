"""all-MiniLM-L6-v2, the frozen reader of sentences in the embedded model."""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F

from .. import paths


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
            .to(self.device)
        )

    @staticmethod
    def pool(hidden, mask):
        """Last hidden state (P, L, 384) and mask (P, L) bool -> (P, 384) unit norm."""
        weight = mask[..., None].to(hidden.dtype)
        return F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)

    @torch.inference_mode()
    def __call__(self, sentences, batch_size=256):
        sentences = list(sentences)
        order = sorted(
            range(len(sentences)), key=lambda i: len(sentences[i])
        )  # like lengths together: less padding
        out = torch.empty(len(sentences), self.bert.config.hidden_size)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = self.tokenizer(
                [sentences[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=128,
                return_tensors="pt",
            ).to(self.bert.device)
            hidden = self.bert(**batch).last_hidden_state
            out[chosen] = self.pool(hidden, batch["attention_mask"].bool()).float().cpu()
        return out
