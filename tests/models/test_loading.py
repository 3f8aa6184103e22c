"""Choosing device, precision, activation and image size when a backbone is loaded."""

import torch

from vlmad_utils.models import loading


def test_bfloat16_is_chosen_only_where_the_card_has_it(monkeypatch):
    """A T4 or V100 only emulates bfloat16, which is slow: they get float16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    assert loading.choose_device() == ("cuda", "fp16")
    assert loading.choose_device("cuda:1", "bf16") == ("cuda:1", "bf16")
    assert loading.choose_device("cpu") == ("cpu", "fp32")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert loading.choose_device() == ("cuda", "bf16")
