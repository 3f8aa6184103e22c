"""Random and planted encodings that the tests of several methods share."""

import torch
import torch.nn.functional as F

from vlmad_utils.features import Arrays


def draw(*shape, seed=0):
    """Return random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_features(n=6, grid=(5, 4), seed=0, dim=8, width=12, windows=(2, 3)):
    """Return encoded images without meaning; any method must treat them consistently."""
    rng = torch.Generator().manual_seed(seed)

    def vectors(*shape):
        return F.normalize(torch.randn(*shape, generator=rng), dim=-1)

    patches = grid[0] * grid[1]
    return Arrays(
        vectors(n, dim),
        grid,
        vectors(n, patches, dim),
        {b: vectors(n, patches, width) for b in (1, 2, "final")},
        {k: vectors(n, (grid[0] - k + 1) * (grid[1] - k + 1), dim) for k in windows},
    )


def planted(n=24, grid=(6, 6), width=10, dim=6, seed=0):
    """Return encoded images with a direction in defective patches, masks, labels, prototypes."""
    rng = torch.Generator().manual_seed(seed)
    text = F.normalize(torch.randn(2, dim, generator=rng), dim=-1)
    masks, labels = torch.zeros(n, *grid, dtype=torch.bool), torch.arange(n) % 2
    for i in range(1, n, 2):
        masks[i, i % 4 : i % 4 + 2, (i // 2) % 4 : (i // 2) % 4 + 2] = True
    defect, sign = masks.flatten(1)[..., None], draw(1, width, seed=99)
    tokens = {b: torch.randn(n, 36, width, generator=rng) + 3 * defect * sign for b in (1, 2)}
    patches = torch.randn(n, 36, dim, generator=rng) + 4 * torch.where(defect, text[1], text[0])
    noise = 0.3 * torch.randn(n, dim, generator=rng)
    image = torch.where(labels[:, None] == 1, text[1], text[0]) + noise
    encoded = Arrays(F.normalize(image, dim=-1), grid, F.normalize(patches, dim=-1), tokens)
    return encoded, masks, labels, text
