"""Losses by hand."""

import numpy as np
import pytest
import torch

from vlmad_utils.methods import training


def test_losses_by_hand():
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, :2] = True  # 8 of 16 pixels; the second image has none
    perfect = torch.stack([~mask, mask], dim=1).float()
    assert training.dice_loss(perfect[:, 1], mask) == pytest.approx(0)
    assert training.dice_loss(1 - perfect[:, 1], mask) == pytest.approx(1 - 1 / 17, abs=1e-6)
    assert training.focal_loss(perfect, mask) == pytest.approx(0, abs=1e-6)
    half = torch.full((2, 2, 4, 4), 0.5)
    assert training.focal_loss(half, mask) == pytest.approx(0.25 * np.log(2), rel=1e-3)
    assert training.focal_loss(half, mask, gamma=0) == pytest.approx(np.log(2), rel=1e-3)
    wrong = training.focal_loss(1 - perfect, mask)
    assert torch.isfinite(wrong) and wrong > 5  # smoothing keeps log(0) away
