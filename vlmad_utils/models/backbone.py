"""The interface of a vision-language tower, and what all towers share.

A :class:`Backbone` turns images into the arrays that every method reads (image embedding, patch
tokens after chosen blocks, text-aligned patches, window embeddings) and prompts into text
embeddings. It knows no data set and no method. :mod:`.openclip` and :mod:`.embedded` hold the
towers.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .attention import kernel_of_windows
from .blocks import HALF, Precision
from .cores import no_autocast, on_all_cores, own_precision
from .resize import check_rgb
from .window_parts import window_parts, windows_at_once
from .windows import Window, window_indices, window_spec

ENCODING = 1  # raise it when a change of the encoding code changes features
HALF_ENCODING = 2  # the same for features in bf16 and fp16 only
TABLES = 8  # of windows that are kept: those of two batch sizes, such as whole ones and the rest
AFTER_NORM = ("final", "cls")  # instead of a block: patch tokens, or CLS, after the last norm

Block = int | str
T = TypeVar("T")


class Backbone(ABC):
    """What a vision-language model must offer.

    Letters: B batch, N patches, C tower width, D joint embedding, W windows.

    Attributes
    ----------
    name, pretrained : architecture, weights
    image_size : (H, W) pixels that the tower sees
    grid : (h, w) patches
    width, dim : C and D
    n_blocks : transformer blocks; blocks are counted from 1 as in the papers
    logit_scale : the checkpoint's trained 1/temperature
    mean, std : of the input normalisation, RGB in [0, 1]
    precision : of matrix products in the blocks; all else is float32
    identity : hash of architecture, all weights, preprocessing and image size: keys what is trained
    fingerprint : hash of identity, precision and :data:`ENCODING`: keys the feature store
    text_rows : embeddings (D,) of the prompts that were asked of this object
    made : what :meth:`kept` keeps
    batch_sizes : {kinds of features: images that the memory of the device holds at once}
    is_clip : False for the embedded model, whose numbers must never be quoted as CLIP's
    head_blocks : blocks that the heads read besides the last
    n_windows_per_pass : bounds the memory of the window pass; None is
        :func:`.window_parts.windows_at_once`
    compile : whether blocks go through torch.compile, see :func:`.compiling.fast`
    """

    name: str
    pretrained: str | None
    image_size: tuple[int, int]
    grid: tuple[int, int]
    width: int
    dim: int
    n_blocks: int
    logit_scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: str | torch.device
    precision: Precision
    identity: str
    fingerprint: str
    text_rows: dict[str, Tensor]
    made: dict[str, Any]
    batch_sizes: dict[tuple[str, ...], int]
    is_clip: bool = True
    head_blocks: tuple[int, ...] = ()
    n_windows_per_pass: int | None = None
    compile: bool | str = False

    # ---- what each tower provides -----------------------------------------------------------
    @abstractmethod
    def embed(self, pixels: Tensor) -> Tensor:
        """Turn pixels (B, 3, H, W) into the tokens (B, 1 + N, C) that enter block 1, CLS first."""

    @abstractmethod
    def run(self, tokens: Tensor, blocks: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """Run tokens (B, 1 + n, C) through all blocks.

        Returns
        -------
        (last tokens (B, 1 + n, C), {block: tokens after it (B, 1 + n, C)})
        """

    @abstractmethod
    def final_norm(self, tokens: Tensor) -> Tensor:
        """Apply the norm after the last block (CLIP's ln_post)."""

    @abstractmethod
    def image_head(self, last: Tensor, taken: dict[int, Tensor]) -> Tensor:
        """Return the joint embedding (B, D) of images or windows from tokens; not normalised."""

    @abstractmethod
    def patch_head(self, last: Tensor, taken: dict[int, Tensor], grid: tuple[int, int]) -> Tensor:
        """Return text-aligned patch embeddings (B, N, D), not normalised."""

    @abstractmethod
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Return text embeddings (P, D) float32 of P strings as the model gives them.

        They are **not** normalised. A row depends on its own prompt only, bit for bit.
        """

    # ---- shared -----------------------------------------------------------------------------
    @property
    def token_width(self) -> int:
        """Return the width of the tokens that are encoded: C, unless the tower projects them."""
        return self.width

    def preprocess(self, image: np.ndarray | Image.Image) -> Tensor:
        """Squash an RGB image to the tower's size (bicubic, antialias) and normalise it.

        Parameters
        ----------
        image : (H, W, 3) uint8 array or PIL image, RGB

        Returns
        -------
        (3, H', W') float32 tensor

        Source: WinCLIP and APRIL-GAN code resize bicubic. Square images keep their shape, others
        are squashed (``tiles`` in :mod:`vlmad_utils.methods.winclip` is the alternative).
        """
        if not isinstance(image, Image.Image):
            image = np.asarray(image)
            check_rgb(image)
            image = Image.fromarray(image)
        height, width = self.image_size
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
        return ((pixels - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(2, 0, 1)

    @torch.inference_mode()
    def encode_image(
        self,
        pixels: Tensor,
        blocks: Sequence[Block] = (),
        windows: Sequence[Window] = (),
        patches: bool = False,
    ) -> dict[str, Tensor]:
        """Encode a batch once, for every method.

        Parameters
        ----------
        pixels : (B, 3, H, W) float32, from :meth:`preprocess`
        blocks : blocks (1-based) whose residual stream is returned, CLS removed; "final" is the
            last one after the final norm, "cls" the CLS token that goes with it
        windows : sides k of windows of k x k patches whose embedding is returned, with stride 1;
            or "<k>s<stride>", e.g. "3s2", stride <= k, for a part of them (faster, no longer the
            paper's)
        patches : also return text-aligned patch embeddings

        Returns
        -------
        dict of float32 tensors on the model's device: ``image`` (B, D) unit norm;
        ``tokens-<block>`` (B, N, C), or (B, 1, C) for "cls"; ``patches`` (B, N, D) unit norm;
        ``windows-<k>`` (B, W, D) unit norm, windows row-major over their top-left corner

        Raises
        ------
        ValueError for a block or window that the tower does not have.
        """
        self.check_request(blocks, windows)
        needed = {b for b in blocks if isinstance(b, (int, np.integer))} | set(self.head_blocks)
        expected = (3, *self.image_size)
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != expected:
            raise ValueError(
                f"{self.name} encodes pixels (B, {', '.join(map(str, expected))}) from preprocess, "
                f"found {tuple(pixels.shape)}."
            )
        with own_precision(self.device):  # a caller's would change what is stored
            start = self.embed(pixels.to(self.device, non_blocking=True))
            last, taken = self.run(start, sorted(needed))
            out = {"image": _unit(self.image_head(last, taken))}
            for b in blocks:
                tokens = taken[b] if isinstance(b, (int, np.integer)) else self.final_norm(last)
                out[f"tokens-{b}"] = (tokens[:, :1] if b == "cls" else tokens[:, 1:]).float()
            if patches:
                out["patches"] = _unit(self.patch_head(last, taken, self.grid))
            for k in windows:
                out[f"windows-{k}"] = _unit(self._encode_windows(start, k))
        return out

    def _encode_windows(self, start: Tensor, window: Window) -> Tensor:
        """Return the embeddings (B, W, D) of all windows of a size.

        Each window keeps CLS and its own tokens, with their positions in the whole image, and this
        short sequence runs through the whole tower. It is not an image that is cropped and resized.

        Source: WinCLIP section 4.2.
        """
        n, cpu = len(start), start.device.type == "cpu"
        workers = torch.get_num_threads() if cpu else 1
        at_once = self.n_windows_per_pass or windows_at_once(
            window, self.width, start.device, self.precision
        )
        parts = self.kept(
            f"windows {window} of {n} images, {at_once} at once by {workers}",
            lambda: window_parts(self.grid, window, n, at_once, workers, start.device),
        )
        tables = [name for name in list(self.made) if name.startswith("windows ")]
        for name in tables[:-TABLES]:
            self.made.pop(name, None)
        kernel = kernel_of_windows(1 + window_spec(window)[0] ** 2, start.device)
        shared = self.shared_by_windows(start)

        def embed(part: tuple[Tensor, Tensor]) -> Tensor:
            with torch.inference_mode(), own_precision(self.device):  # set per thread
                return self.image_head(*self.run_windows(shared, *part))

        with kernel:
            embeddings = torch.cat(on_all_cores(embed, parts, start.device))
        n_windows = len(window_indices(self.grid, window))
        return embeddings[: n * n_windows].unflatten(0, (n, n_windows))  # without what fills up

    def shared_by_windows(self, start: Tensor) -> tuple[Tensor, ...]:
        """Compute from an image's tokens (B, 1 + N, C) once what its windows have in common."""
        return (start,)

    def run_windows(
        self, shared: tuple[Tensor, ...], image: Tensor, rows: Tensor
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Do what :meth:`run` does for n windows.

        Parameters
        ----------
        shared : from :meth:`shared_by_windows`
        image : (n, 1) numbers of the windows' images
        rows : (n, 1 + k * k) numbers of their tokens
        """
        return self.run(shared[0][image, rows], self.head_blocks)

    def check_request(self, blocks: Sequence[Block], windows: Sequence[Window]) -> None:
        """Check blocks and windows before anything is encoded.

        Raises
        ------
        ValueError for a block that the tower does not have, or windows that it cannot give.
        """
        for b in blocks:
            number = isinstance(b, (int, np.integer)) and 1 <= b <= self.n_blocks
            if not number and b not in AFTER_NORM:
                raise ValueError(
                    f"{self.name} has blocks 1..{self.n_blocks}, 'final' and 'cls', found {b!r}."
                )
        for window in windows:
            side, stride = window_spec(window)
            if side > min(self.grid):
                raise ValueError(
                    f"{self.name} at {self.image_size} has a {self.grid} grid: windows of 1 to "
                    f"{min(self.grid)} patches, found {window!r}."
                )
            if stride > side:
                raise ValueError(
                    f"Windows {window!r}: a stride above the side leaves patches out, which then "
                    f"have no score. The nearest that covers all is '{side}s{side}'."
                )

    def half_products(self) -> AbstractContextManager[Any]:
        """Return the context of blocks that are not taken apart: products in the precision.

        What enters as float32, as the residual stream does, stays so.
        """
        if self.precision == "fp32":
            return no_autocast(self.device)
        return torch.autocast(torch.device(self.device).type, HALF[self.precision])

    def kept(self, name: str, make: Callable[[], T]) -> T:
        """Return what ``make`` makes, made once for this object: weights in half, indices."""
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    def to(self, device: str | torch.device) -> Self:
        """Move all weights to a device, in place, and return the backbone.

        What was made on the old device is made again. A backbone that shares towers with another
        (:class:`.dense.DPAM`) takes them along.
        """
        for part in vars(self).values():
            if isinstance(part, torch.nn.Module):
                part.to(device)
        self.device, self.text_rows, self.made, self.batch_sizes = device, {}, {}, {}
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy in another process needs: nothing that is made again there."""
        return {**self.__dict__, "text_rows": {}, "made": {}, "batch_sizes": {}}

    def _set_fingerprint(self, states: Iterable[Mapping[str, Tensor]], **facts: Any) -> None:
        """Set identity and fingerprint from the towers' weights and all else that makes the model.

        Parameters
        ----------
        states : state dicts
        facts : architecture and preprocessing, of types whose repr says all
        """
        self.text_rows, self.made, self.batch_sizes = {}, {}, {}
        digest = hashlib.sha256(repr(sorted(facts.items())).encode())
        for state in states:
            for key in sorted(state):
                value = state[key].detach().cpu().contiguous()
                digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
                digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
        self.identity = digest.hexdigest()[:20]
        self.fingerprint = fingerprint(self.identity, self.precision)


def fingerprint(identity: str, precision: Precision) -> str:
    """Return the fingerprint of a model with this identity."""
    features = f"{identity} {precision} {ENCODING}"
    features += f" {HALF_ENCODING}" if precision in HALF else ""
    return hashlib.sha256(features.encode()).hexdigest()[:20]


def _unit(x: Tensor) -> Tensor:
    """Return vectors (..., D) divided by their length, float32."""
    return F.normalize(x.float(), dim=-1)
