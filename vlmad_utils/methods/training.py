"""What APRIL-GAN and AnomalyCLIP share when they train: two losses, one loop over cached features, checkpoints."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from .. import paths


def focal_loss(probabilities, masks, gamma=2.0, smooth=1e-5):
    """Focal loss of two-class probabilities (B, 2, H, W) against masks (B, H, W) in {0, 1}; mean over pixels.

    Source: Lin et al. 2017 without class weights. As in both official codes the target is clamped to
    [smooth, 1 - smooth], and smooth is added to the probability of the true class.
    """
    target = masks.to(probabilities.dtype).clamp(smooth, 1 - smooth)
    p = probabilities[:, 1] * target + probabilities[:, 0] * (1 - target) + smooth
    return -((1 - p) ** gamma * p.log()).mean()


def dice_loss(probability, masks, smooth=1.0):
    """1 - Dice overlap of a map (B, H, W) with masks (B, H, W), per image, averaged. Source: Milletari et al. 2016."""
    p, target = probability.flatten(1), masks.to(probability.dtype).flatten(1)
    return 1 - ((2 * (p * target).sum(1) + smooth) / (p.sum(1) + target.sum(1) + smooth)).mean()


def fit(module, n, loss_of, epochs, batch_size, lr, seed, label, progress):
    """Minimise ``loss_of(rows)`` over shuffled batches of n images. Adam, betas (0.5, 0.999), no schedule: both papers.

    Parameters
    ----------
    module : nn.Module; afterwards frozen and in eval mode
    loss_of : array of row numbers -> scalar tensor

    Returns
    -------
    list of the mean loss of each epoch
    """
    optimiser, rng = (
        torch.optim.Adam(module.parameters(), lr=lr, betas=(0.5, 0.999)),
        np.random.default_rng(seed),
    )
    history = []
    quiet = {} if progress else {"disable": True}  # left out, TQDM_DISABLE decides
    with torch.enable_grad(), tqdm(total=epochs, desc=label, unit="epoch", **quiet) as bar:
        for _ in range(epochs):
            total = 0.0
            for rows in np.split(rng.permutation(n), range(batch_size, n, batch_size)):
                loss = loss_of(rows)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += loss.item() * len(rows)
            history.append(total / n)
            bar.set_postfix(loss=f"{history[-1]:.3f}")
            bar.update()
    module.eval().requires_grad_(False)
    return history


def save_checkpoint(module, path, **card):
    """Write a module's weights as safetensors and beside them a JSON card (same name, suffix .json).

    Raises
    ------
    ValueError when ``path`` does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"A checkpoint's name ends in .safetensors, found {path.name}.")
    with paths.atomic_write(path) as temporary:
        save_file(
            {
                name: value.detach().cpu().contiguous()
                for name, value in module.state_dict().items()
            },
            temporary,
        )
    with paths.atomic_write(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def load_checkpoint(path, method):
    """(weights, card) written by :func:`save_checkpoint`.

    Raises
    ------
    FileNotFoundError without weights or card; ValueError when the card belongs to another method, a file is damaged, or
    the weights are not safetensors (a pickle is never opened).
    """
    path, card_path = Path(path), Path(path).with_suffix(".json")
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path.name} is no safetensors file: a pickled checkpoint can run any code when it is opened, so it is not. "
            "If you trust it, read it with torch.load(path, weights_only=True) and write it with save_checkpoint."
        )
    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
        weights = load_file(path)
    except (ValueError, SafetensorError) as error:
        raise ValueError(
            f"{path} or its card {card_path.name} is damaged ({error}): restore both, or train anew."
        ) from error
    if card.get("method") != method:
        raise ValueError(f"{card_path.name} describes {card.get('method')!r}, wanted {method!r}.")
    return weights, card
