"""Encode token sequences so that the row of a prompt depends on that prompt only, bit for bit.

Sums of a matrix product are ordered by the shapes that enter. So all products get shapes that
follow from the prompt alone: sequences without padding, in batches of one length and one size.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch

from .cores import on_all_cores, own_precision

BATCH = 8  # a batch with fewer sequences repeats the last one


def encode_alike(
    encode: Callable[[torch.Tensor], torch.Tensor],
    sequences: Sequence[Sequence[int]],
    device: torch.device | str,
) -> torch.Tensor:
    """Return the rows that ``encode`` makes of token sequences, each the same in any company.

    Parameters
    ----------
    encode : (:data:`BATCH`, L) int64 tokens on ``device`` -> (BATCH, D)
    sequences : P lists of tokens, start and end included, without padding

    Returns
    -------
    (P, D) float32 on the CPU
    """
    numbers = defaultdict(list)
    for number, tokens in enumerate(sequences):
        numbers[len(tokens)].append(number)
    parts = [
        alike[start : start + BATCH]
        for alike in numbers.values()
        for start in range(0, len(alike), BATCH)
    ]

    def run(part: list[int]) -> torch.Tensor:
        filled = [sequences[i] for i in part] + [sequences[part[-1]]] * (BATCH - len(part))
        with torch.inference_mode(), own_precision(device):  # set per thread
            return encode(torch.tensor(filled, device=device)).float().cpu()[: len(part)]

    rows = on_all_cores(run, parts, torch.device(device), least=1)
    order = torch.tensor([number for part in parts for number in part]).argsort()
    return torch.cat(rows)[order]
