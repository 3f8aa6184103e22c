"""What every method gives (:class:`Scores`), and the few steps that all of them share."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

TRAINING = ("training-free", "trained elsewhere", "transductive")


@dataclass(frozen=True)
class Scores:
    """What every method gives.

    Attributes
    ----------
    image : (B,) float32, one score per image
    maps : (B, h, w) float32, one score per patch, or per pixel where the method upsamples
    meaning : what the numbers are, in words
    training : "training-free"; "trained elsewhere" (on labelled images of other categories or data sets);
        "transductive" (a score depends on the other test images)
    image_range, map_range : (lowest, highest) possible value

    Raises
    ------
    ValueError for shapes that do not fit, values that are not finite, or an unknown ``training``.
    """

    image: torch.Tensor
    maps: torch.Tensor
    meaning: str
    training: str
    image_range: tuple = (0.0, 1.0)
    map_range: tuple = (0.0, 1.0)

    def __post_init__(self):
        object.__setattr__(self, "image", tensor(self.image))
        object.__setattr__(self, "maps", tensor(self.maps))
        if self.training not in TRAINING:
            raise ValueError(f"training is one of {TRAINING}, found {self.training!r}.")
        if self.image.ndim != 1 or self.maps.ndim != 3 or len(self.image) != len(self.maps):
            raise ValueError(
                f"Scores want image (B,) and maps (B, h, w), found {tuple(self.image.shape)} and "
                f"{tuple(self.maps.shape)}."
            )
        for name in ("image", "maps"):
            bad = ~torch.isfinite(getattr(self, name).reshape(len(self), -1)).all(dim=-1)
            if bad.any():
                raise ValueError(
                    f"{name} scores of images {bad.nonzero().flatten().tolist()[:10]} are not finite: "
                    "look for empty or constant images and for features that are not finite."
                )

    def __len__(self):
        return len(self.image)

    @property
    def range(self):
        """Both ranges as text."""
        return "image {:g} to {:g}, maps {:g} to {:g}".format(*self.image_range, *self.map_range)


def tensor(x):
    """Array or tensor as a float32 CPU tensor without gradient."""
    x = torch.as_tensor(x).detach().to("cpu", torch.float32)
    return (
        x.clone() if x.is_inference() and not torch.is_inference_mode_enabled() else x
    )  # else no training on it


def unit(x):
    """Divide vectors (..., D) by their length."""
    return F.normalize(tensor(x), dim=-1)


def batches(features, size=16):
    """Slices of ``size`` images, so that a large category never has all its tokens in memory at once."""
    for start in range(0, len(features), size):
        yield features[start : start + size]


def anomaly_probability(features, prototypes, temperature):
    """Two-class softmax of cosine similarity.

    Parameters
    ----------
    features : (..., D), any length
    prototypes : (2, D), any length
    temperature : divides the cosines; 0.07 is CLIP's initial value, 0.01 about its trained value

    Returns
    -------
    (...) float32 in [0, 1], the anomalous class

    Source: WinCLIP, ascore0. The order of images does not depend on the temperature, unless it is so low
    that float32 saturates (cosines more than 16 temperatures apart tie at 1); maps and sums do depend on it.
    """
    prototypes = unit(prototypes)
    if prototypes.shape[0] != 2:
        raise ValueError(
            f"prototypes are (2, D), normal then anomalous, found {tuple(prototypes.shape)}. One-class "
            "prompts go to clip_ac.one_class."
        )
    if temperature <= 0:
        raise ValueError(f"the temperature is above 0, found {temperature}.")
    return (unit(features) @ prototypes.T / temperature).softmax(dim=-1)[..., 1]


def upsample(maps, size, align_corners=False):
    """Bilinear resize of maps (B, h, w), or (B, channels, h, w), to ``size`` = (H, W)."""
    maps = tensor(maps)
    four = maps if maps.ndim == 4 else maps[:, None]
    four = F.interpolate(four, size=tuple(size), mode="bilinear", align_corners=align_corners)
    return four if maps.ndim == 4 else four[:, 0]


def smooth(maps, sigma):
    """Gaussian filter of maps (B, H, W); ``sigma`` in pixels, borders mirrored, cut at 4 sigma; 0 changes nothing."""
    return (
        tensor(gaussian_filter(tensor(maps).numpy(), (0, sigma, sigma))) if sigma else tensor(maps)
    )
