"""What every method returns (:class:`Scores`), and the few steps that all of them share."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from ..features import Arrays, Features

TRAINING = ("training-free", "trained elsewhere", "transductive")
ArrayLike = torch.Tensor | np.ndarray
Encoded = Arrays | Features


@dataclass(frozen=True)
class Scores:
    """Hold the scores and maps that a method gives for B images.

    Attributes
    ----------
    image : (B,) float32 or float64, one score per image
    maps : (B, h, w) the same, one score per patch, or per pixel where the method upsamples
    meaning : what the numbers are, in words
    training : "training-free"; "trained elsewhere" (on labelled images of other categories or
        datasets); "transductive" (a score depends on the other test images)
    image_range, map_range : (lowest, highest) possible value

    Raises
    ------
    ValueError for shapes that do not fit, values that are not finite, or an unknown ``training``.

    Notes
    -----
    They stay on the device on which they were computed. Values there are looked at when
    :meth:`cpu` brings them to the host: a look would make the host wait for the device.
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
            if values.device.type != "cpu":
                continue
            bad = ~torch.isfinite(values.reshape(len(self), -1)).all(dim=-1)
            if bad.any():
                raise ValueError(
                    f"{name} scores of images {bad.nonzero().flatten().tolist()[:10]} are not "
                    "finite: look for empty or constant images and for features that are not "
                    "finite."
                )

    def __len__(self) -> int:
        return len(self.image)

    def cpu(self) -> "Scores":
        """Return the scores on the CPU, where they are checked; those that are there as they are.

        Raises
        ------
        ValueError for values that are not finite.
        """
        if self.image.device.type == self.maps.device.type == "cpu":
            return self
        return replace(self, image=self.image.cpu(), maps=self.maps.cpu())

    @property
    def range(self) -> str:
        """Return both ranges as text."""
        return "image {:g} to {:g}, maps {:g} to {:g}".format(*self.image_range, *self.map_range)


def tensor(x: ArrayLike | None) -> torch.Tensor:
    """Return an array or tensor as a tensor without gradient, on the device where it is.

    float32 and float64 stay. All else becomes float32: a product of half-precision vectors rounds
    cosines near 1 by up to 0.0005, which is as large as the distances of normal patches.

    Raises
    ------
    ValueError for None, which features hold for patches that were not encoded.
    """
    if x is None:
        raise ValueError("Found None, expected an array: encode the images with patches=True.")
    x = torch.as_tensor(x).detach()
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    # nothing can be trained on a tensor that was made in inference mode
    return x.clone() if x.is_inference() and not torch.is_inference_mode_enabled() else x


def beside(x: ArrayLike | None, other: torch.Tensor) -> torch.Tensor:
    """Return an array or tensor on the device of another tensor, and of its type."""
    return tensor(x).to(other)


def moved(features: Encoded, device: str | torch.device) -> Encoded:
    """Return encoded images on a device; as they are, where they are there."""
    there = torch.device(features.device) == torch.device(device)
    return features if there else features.to(device)


def unit(x: ArrayLike | None) -> torch.Tensor:
    """Divide vectors (..., D) by their length."""
    return F.normalize(tensor(x), dim=-1)


def batches(features: Encoded, size: int | None = None) -> Iterator[Encoded]:
    """Yield slices of ``size`` images, so that only their tokens are in memory at once.

    None takes 16 on a CPU, and 64 on another device, which starts each slice anew.
    """
    size = size or (16 if torch.device(features.device).type == "cpu" else 64)
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
    (...) in [0, 1], the anomalous class, on the device of the features; float32, or float64 for
    float64 features

    Raises
    ------
    ValueError for prototypes of another shape, or a temperature that is not above 0.

    Notes
    -----
    The order of images does not depend on the temperature, unless it is so low that float32
    saturates (cosines more than 16 temperatures apart tie at 1). Maps and sums do depend on it.

    Source: WinCLIP, ascore0.
    """
    vectors = unit(features)
    prototypes = unit(beside(prototypes, vectors))
    if prototypes.shape[0] != 2:
        raise ValueError(
            f"prototypes are (2, D), normal then anomalous, found {tuple(prototypes.shape)}. "
            "One-class prompts go to clip_ac.one_class."
        )
    if temperature <= 0:
        raise ValueError(f"the temperature is above 0, found {temperature}.")
    return (vectors @ prototypes.T / temperature).softmax(dim=-1)[..., 1]


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

    Notes
    -----
    SciPy filters on a CPU. Another device multiplies by the matrix of the same filter, from both
    sides; results differ in the last bits.
    """
    maps = tensor(maps)
    if not sigma:
        return maps
    if maps.device.type == "cpu":
        return tensor(gaussian_filter(maps.numpy(), (0, sigma, sigma)))
    down, across = (_blur(side, sigma, maps.dtype, maps.device) for side in maps.shape[1:])
    return down @ maps @ across.T


@functools.lru_cache(maxsize=8)
def _blur(n: int, sigma: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the matrix (n, n) that blurs n pixels in a row, with SciPy's borders."""
    return torch.from_numpy(gaussian_filter1d(np.eye(n), sigma, axis=0)).to(dtype).to(device)
