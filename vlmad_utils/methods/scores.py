"""What every method returns (:class:`Scores`), and the few steps that all of them share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from ..features import Arrays, Features

TRAINING = ("training-free", "trained elsewhere", "transductive")
ArrayLike = torch.Tensor | np.ndarray
Encoded = Arrays | Features


@dataclass(frozen=True)
class Scores:
    """Hold the scores and maps that a method gives for B images.

    Attributes
    ----------
    image : (B,) float32, one score per image
    maps : (B, h, w) float32, one score per patch, or per pixel where the method upsamples
    meaning : what the numbers are, in words
    training : "training-free"; "trained elsewhere" (on labelled images of other categories or
        datasets); "transductive" (a score depends on the other test images)
    image_range, map_range : (lowest, highest) possible value

    Raises
    ------
    ValueError for shapes that do not fit, values that are not finite, or an unknown ``training``.
    """

    image: torch.Tensor
    maps: torch.Tensor
    meaning: str
    training: str
    image_range: tuple[float, float] = (0.0, 1.0)
    map_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", tensor(self.image))
        object.__setattr__(self, "maps", tensor(self.maps))
        if self.training not in TRAINING:
            raise ValueError(f"training is one of {TRAINING}, found {self.training!r}.")
        if self.image.ndim != 1 or self.maps.ndim != 3 or len(self.image) != len(self.maps):
            raise ValueError(
                f"Scores want image (B,) and maps (B, h, w), found {tuple(self.image.shape)} and "
                f"{tuple(self.maps.shape)}."
            )
        for name, values in (("image", self.image), ("maps", self.maps)):
            bad = ~torch.isfinite(values.reshape(len(self), -1)).all(dim=-1)
            if bad.any():
                raise ValueError(
                    f"{name} scores of images {bad.nonzero().flatten().tolist()[:10]} are not "
                    "finite: look for empty or constant images and for features that are not "
                    "finite."
                )

    def __len__(self) -> int:
        return len(self.image)

    @property
    def range(self) -> str:
        """Return both ranges as text."""
        return "image {:g} to {:g}, maps {:g} to {:g}".format(*self.image_range, *self.map_range)


def tensor(x: ArrayLike | None) -> torch.Tensor:
    """Return an array or tensor as a float32 CPU tensor without gradient.

    Raises
    ------
    ValueError for None, which features hold for patches that were not encoded.
    """
    if x is None:
        raise ValueError("Found None, expected an array: encode the images with patches=True.")
    x = torch.as_tensor(x).detach().to("cpu", torch.float32)
    # nothing can be trained on a tensor that was made in inference mode
    return x.clone() if x.is_inference() and not torch.is_inference_mode_enabled() else x


def unit(x: ArrayLike | None) -> torch.Tensor:
    """Divide vectors (..., D) by their length."""
    return F.normalize(tensor(x), dim=-1)


def batches(features: Encoded, size: int = 16) -> Iterator[Encoded]:
    """Yield slices of ``size`` images, so that only their tokens are in memory at once."""
    for start in range(0, len(features), size):
        yield features[start : start + size]


def anomaly_probability(
    features: ArrayLike | None, prototypes: ArrayLike, temperature: float
) -> torch.Tensor:
    """Return the softmax over the cosine similarities with two prototypes.

    Parameters
    ----------
    features : (..., D), any length
    prototypes : (2, D), any length
    temperature : divides the cosines; 0.07 is CLIP's initial value, 0.01 about its trained value

    Returns
    -------
    (...) float32 in [0, 1], the anomalous class

    Raises
    ------
    ValueError for prototypes of another shape, or a temperature that is not above 0.

    Notes
    -----
    The order of images does not depend on the temperature, unless it is so low that float32
    saturates (cosines more than 16 temperatures apart tie at 1). Maps and sums do depend on it.

    Source: WinCLIP, ascore0.
    """
    prototypes = unit(prototypes)
    if prototypes.shape[0] != 2:
        raise ValueError(
            f"prototypes are (2, D), normal then anomalous, found {tuple(prototypes.shape)}. "
            "One-class prompts go to clip_ac.one_class."
        )
    if temperature <= 0:
        raise ValueError(f"the temperature is above 0, found {temperature}.")
    return (unit(features) @ prototypes.T / temperature).softmax(dim=-1)[..., 1]


def upsample(maps: ArrayLike, size: Sequence[int], align_corners: bool = False) -> torch.Tensor:
    """Resize maps (B, h, w), or (B, channels, h, w), to ``size`` = (H, W), bilinearly."""
    maps = tensor(maps)
    four = maps if maps.ndim == 4 else maps[:, None]
    four = F.interpolate(four, size=tuple(size), mode="bilinear", align_corners=align_corners)
    return four if maps.ndim == 4 else four[:, 0]


def smooth(maps: ArrayLike, sigma: float) -> torch.Tensor:
    """Blur maps (B, H, W) with a Gaussian.

    Parameters
    ----------
    sigma : in pixels; borders are mirrored, and the filter ends at 4 sigma. 0 changes nothing
    """
    maps = tensor(maps)
    return tensor(gaussian_filter(maps.numpy(), (0, sigma, sigma))) if sigma else maps
