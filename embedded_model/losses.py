"""What the heads are trained to do: the loss terms, and the style shift of their input."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmad_utils.models.embedded import Heads


def shift_style(x: Tensor, strength: float) -> Tensor:
    """Move all patches of an image by the difference of the mean patches of two images.

    The CLS token moves by the difference of their CLS tokens. So a defect is learnt as what departs
    from the rest of its image, not as a place in the feature space. Of each pair (rows 2 i and
    2 i + 1, one product line) both get the same shift; 3 pairs in 10 stay as they are.

    Parameters
    ----------
    x : (B, 1 + N, C), B even
    strength : the largest share of the difference

    Source: in the manner of MixStyle (arXiv 2104.02008), here on the mean alone.
    """
    pair = torch.arange(len(x)) // 2
    share = (strength * torch.rand(len(x) // 2) * (torch.rand(len(x) // 2) < 0.7))[pair, None, None]
    other = torch.randperm(len(x))[2 * pair]
    patches = x[:, 1:].mean(1, keepdim=True).expand(-1, x.shape[1] - 1, -1)
    mean = torch.cat([x[:, :1], patches], dim=1)
    return x + share * (mean[other] - mean)


def _patch_loss(logit: Tensor, positive: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the focal loss over patches (B, N), and their probabilities.

    Clear positives and clear negatives weigh alike whatever their number.
    """
    bce = F.binary_cross_entropy_with_logits(logit, positive.float(), reduction="none")
    p = torch.sigmoid(logit)
    focal = (1 - torch.where(positive, p, 1 - p)) ** 1.5 * bce * counted
    defective = 0.5 * focal[positive].sum() / positive.sum().clamp(min=1)
    return defective + 4 * focal[~positive].mean(), p


def _contrast(logits: Tensor, positive: Tensor) -> Tensor:
    """Return the symmetric InfoNCE with several positives a row."""

    def one(lg: Tensor, ps: Tensor) -> Tensor:
        return (torch.logsumexp(lg, 1) - torch.logsumexp(lg.masked_fill(~ps, -1e9), 1)).mean()

    return one(logits, positive) + one(logits.T, positive.T)


def losses(
    heads: Heads,
    x: Tensor,
    coverage: Tensor,
    label: Tensor,
    two_prompts: Tensor,
    caption: Tensor,
    same: Tensor,
) -> dict[str, Tensor]:
    """Return all terms of one batch by name.

    Parameters
    ----------
    x : (B, 1 + N, 3 C) tokens, CLS first
    coverage : (B, N) share of each patch that the mask covers
    label : (B,) 0 good, 1 defective
    two_prompts : (B, 2, P, 384) sentence embeddings of sampled normal and anomalous prompts
    caption : (B, 384) one caption an image
    same : (B, B) bool, captions that fit an image
    """
    hidden = heads.trunk(x[:, 1:])
    patches = F.normalize(heads.patch(hidden).float(), dim=-1)
    image = F.normalize(heads.image(hidden, x[:, 0]).float(), dim=-1)
    prompts = F.normalize(heads.text(two_prompts), dim=-1)
    prototypes = F.normalize(prompts.mean(2), dim=-1)  # (B, 2, D)
    logit = torch.einsum("bnd,bd->bn", patches, prototypes[:, 1] - prototypes[:, 0])
    logit = logit * heads.patch_scale.exp()
    positive = coverage > 0.15
    counted = positive | (coverage < 0.02)
    focal, p = _patch_loss(logit, positive, counted)
    saliency, _ = _patch_loss(heads.saliency(hidden)[..., 0].float(), positive, counted)
    dice = (1 - (2 * (p * coverage).sum(1) + 1) / (p.sum(1) + coverage.sum(1) + 1)).mean()
    top = F.binary_cross_entropy_with_logits(logit.topk(4, 1).values.mean(1), label.float())
    two_way = torch.einsum("bd,bcd->bc", image, prototypes) * heads.image_scale.exp()
    words = F.normalize(heads.text(caption), dim=-1)
    return {
        "patch_focal": focal,
        "patch_dice": dice,
        "saliency": saliency,
        "top_patches": top,
        "image": F.cross_entropy(two_way, label),
        "captions": _contrast(image @ words.T * heads.caption_scale.exp(), same),
    }
