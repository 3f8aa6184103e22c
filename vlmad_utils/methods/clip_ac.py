"""CLIP baselines: what plain CLIP gives before any paper adds to it. Nothing is trained.

CLIP-AC is the two-class softmax of the image embedding. Maps come from one of four dense
features, from bad to better: raw patch tokens (worse than chance in WinCLIP's table, because the
last block moves global content into background patches), the value path of the last block
(MaskCLIP), V-V attention (:func:`vv`), and windows (:mod:`.winclip`).
"""

import torch

from ..models.dense import maskclip, vv
from .scores import ArrayLike, Encoded, Scores, anomaly_probability, batches, beside, unit

__all__ = ["zero_shot", "one_class", "maskclip", "vv"]


def zero_shot(
    features: Encoded,
    prototypes: ArrayLike,
    temperature: float = 0.01,
    dense: ArrayLike | None = None,
    top: int = 0,
) -> Scores:
    """Score images with CLIP-AC, and map dense features against the text.

    Parameters
    ----------
    features : encoded images with ``image`` (B, D) and, unless ``dense`` is given, ``patches``
        (B, N, D)
    prototypes : (2, D), e.g. ``prompts.prototypes(model, name, "clip-ac")``
    temperature : 0.01 is about the trained one
    dense : None takes raw patch tokens; else (B, N, D), from :func:`maskclip` or :func:`vv`
    top : 0 scores an image by its embedding (CLIP-AC); 3 by the mean of the three highest patches
        of its map, which suits towers whose patches were aligned with text, such as the embedded
        model

    Returns
    -------
    Scores, training-free, in [0, 1]; maps on the patch grid

    Source: WinCLIP, its CLIP-AC baseline and ablation (raw patch tokens: 22.4 pixel AUROC on
    MVTec AD).
    """
    image = anomaly_probability(features.image, prototypes, temperature)
    parts = (
        [beside(dense, image)]
        if dense is not None
        else (part.patches for part in batches(features))
    )
    maps = torch.cat([anomaly_probability(part, prototypes, temperature) for part in parts])
    if top:
        image = maps.topk(min(top, maps.shape[1]), dim=1).values.mean(1)
    return Scores(
        image,
        maps.unflatten(1, tuple(features.grid)),
        "probability of the anomalous prompts",
        "training-free",
    )


def one_class(features: Encoded, prototypes: ArrayLike) -> Scores:
    """Score images by the negative cosine with the normal prompt alone.

    This is below chance in WinCLIP's table (34.2): a sanity test.

    Parameters
    ----------
    features : encoded images with ``image`` (B, D) and ``patches`` (B, N, D)
    prototypes : (1, D) or (2, D); only row 0 is read

    Returns
    -------
    Scores, training-free, in [-1, 1]; maps on the patch grid
    """
    image = unit(features.image)
    normal = unit(beside(prototypes, image))[0]
    maps = torch.cat([-(unit(part.patches) @ normal) for part in batches(features)])
    return Scores(
        -(image @ normal),
        maps.unflatten(1, tuple(features.grid)),
        "negative cosine with the normal prompt",
        "training-free",
        (-1.0, 1.0),
        (-1.0, 1.0),
    )
