"""What APRIL-GAN and AnomalyCLIP share when they train: losses, one loop, checkpoints."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from .. import paths
from ..models.cores import exact

Weights = dict[str, torch.Tensor]


def focal_loss(
    probabilities: torch.Tensor, masks: torch.Tensor, gamma: float = 2.0, smooth: float = 1e-5
) -> torch.Tensor:
    """Return the focal loss of two-class probabilities, averaged over pixels.

    Parameters
    ----------
    probabilities : (B, 2, H, W); masks : (B, H, W) in {0, 1}
    gamma : how much pixels that are already right are played down
    smooth : as in both official codes the target is clamped to [smooth, 1 - smooth], and smooth is
        added to the probability of the true class

    Source: Lin et al. 2017 (arXiv 1708.02002), equation 4, without class weights.
    """
    target = masks.to(probabilities.dtype).clamp(smooth, 1 - smooth)
    p = probabilities[:, 1] * target + probabilities[:, 0] * (1 - target) + smooth
    return -((1 - p) ** gamma * p.log()).mean()


def dice_loss(probability: torch.Tensor, masks: torch.Tensor, smooth: float = 1.0) -> torch.Tensor:
    """Return 1 - Dice overlap of maps (B, H, W) with masks (B, H, W), averaged over images.

    Source: Milletari et al. 2016 (arXiv 1606.04797).
    """
    p, target = probability.flatten(1), masks.to(probability.dtype).flatten(1)
    return 1 - ((2 * (p * target).sum(1) + smooth) / (p.sum(1) + target.sum(1) + smooth)).mean()


def fit(
    module: nn.Module,
    n: int,
    loss_of: Callable[[np.ndarray], torch.Tensor],
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    label: str,
    progress: bool,
) -> list[float]:
    """Minimise ``loss_of(rows)`` over shuffled batches of n images.

    Both papers use Adam with betas (0.5, 0.999) and no schedule. Products are float32, whatever the
    caller chose: see :func:`.cores.exact`.

    Parameters
    ----------
    module : what learns; afterwards frozen and in eval mode
    loss_of : from an array of row numbers to a scalar tensor
    seed : of the shuffling
    label : of the progress bar; progress : False hides it

    Returns
    -------
    list of the mean loss of each epoch
    """
    optimiser = torch.optim.Adam(module.parameters(), lr=lr, betas=(0.5, 0.999))
    rng, history = np.random.default_rng(seed), []
    quiet: dict[str, Any] = {} if progress else {"disable": True}  # {}: TQDM_DISABLE decides
    bar = tqdm(total=epochs, desc=label, unit="epoch", **quiet)
    with bar, torch.enable_grad(), exact(next(module.parameters()).device):
        for _ in range(epochs):
            losses = []
            for rows in np.split(rng.permutation(n), range(batch_size, n, batch_size)):
                loss = loss_of(rows)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append((loss.detach(), len(rows)))  # read once an epoch: a read waits
            history.append(sum(loss.item() * size for loss, size in losses) / n)
            bar.set_postfix(loss=f"{history[-1]:.3f}")
            bar.update()
    module.eval().requires_grad_(False)
    return history


def save_checkpoint(module: nn.Module, path: Path | str, **card: Any) -> None:
    """Write a module's weights as safetensors, and a JSON card of the same name next to them.

    Raises
    ------
    ValueError when ``path`` does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"A checkpoint's name ends in .safetensors, found {path.name}.")
    weights = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    with paths.atomic_write(path) as temporary:
        save_file(weights, temporary)
    with paths.atomic_write(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def load_checkpoint(path: Path | str, method: str) -> tuple[Weights, dict[str, Any]]:
    """Return (weights, card) written by :func:`save_checkpoint`.

    Raises
    ------
    FileNotFoundError without weights or card; ValueError when the card belongs to another method,
    a file is damaged, or the weights are not safetensors (a pickle is never opened).
    """
    path, card_path = Path(path), Path(path).with_suffix(".json")
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path.name} is no safetensors file: a pickled checkpoint can run any code when it is "
            "opened, so it is not. If you trust it, read it with "
            "torch.load(path, weights_only=True) and write it with save_checkpoint."
        )
    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
        weights = load_file(path)
    except (ValueError, SafetensorError) as error:
        raise ValueError(
            f"{path} or its card {card_path.name} is damaged ({error}): restore both, or train "
            "anew."
        ) from error
    if card.get("method") != method:
        raise ValueError(f"{card_path.name} describes {card.get('method')!r}, wanted {method!r}.")
    return weights, card


def official_weights(path: Path | str, method: str, key: str, member: str) -> Weights:
    """Return the weights under ``key`` in a checkpoint of a method's official code.

    Raises
    ------
    ValueError when the file is damaged or more than weights, or has no such key or ``member``.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, IndexError) as error:  # torch advises to open it
        raise ValueError(
            f"{Path(path).name} is damaged, or holds more than weights and could run any code: it "
            f"was not opened. Expected a checkpoint of {method}'s official code."
        ) from error
    weights = state.get(key) if isinstance(state, dict) else None
    if not isinstance(weights, dict) or member not in weights:
        found = ", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f"{Path(path).name} has no key {key!r} with {member!r}, found {found}: a checkpoint of "
            f"{method}'s official code is wanted (e.g. epoch_15.pth of its train.py)."
        )
    return weights
