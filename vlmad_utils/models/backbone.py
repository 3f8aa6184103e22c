"""The interface of a vision-language tower, and what all towers share.

A :class:`Backbone` turns images into the arrays that every method reads (image embedding, patch
tokens after chosen blocks, text-aligned patches, window embeddings) and prompts into text
embeddings. It knows no data set and no method. :mod:`.openclip` and :mod:`.embedded` hold the
towers.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .cores import no_autocast, on_all_cores
from .onednn import OneDNN
from .resize import check_rgb
from .windows import Window, window_indices, window_spec

ENCODING = 1  # raise it when a change of the encoding code changes features
AFTER_NORM = ("final", "cls")  # instead of a block: patch tokens, or CLS, after the last norm

Block = int | str
Precision = Literal["fp32", "bf16", "fp16"]


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
    is_clip : False for the embedded model, whose numbers must never be quoted as CLIP's
    head_blocks : blocks that the heads read besides the last
    n_windows_per_pass : bounds the memory of the window pass. None takes arrays (windows, tokens,
        C) of 350,000 numbers on a CPU, large enough for fast products and small enough for caches,
        and 32 times as many on a GPU
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
    is_clip: bool = True
    head_blocks: tuple[int, ...] = ()
    n_windows_per_pass: int | None = None

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
        dict of float32 CPU tensors: ``image`` (B, D) unit norm; ``tokens-<block>`` (B, N, C), or
        (B, 1, C) for "cls"; ``patches`` (B, N, D) unit norm; ``windows-<k>`` (B, W, D) unit norm,
        windows row-major over their top-left corner

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
        with no_autocast(self.device), OneDNN():  # a caller's would change what is stored
            start = self.embed(pixels.to(self.device, non_blocking=True))
            with self.half_products():
                last, taken = self.run(start, sorted(needed))
            out = {"image": _unit(self.image_head(last, taken))}
            for b in blocks:
                tokens = taken[b] if isinstance(b, (int, np.integer)) else self.final_norm(last)
                out[f"tokens-{b}"] = (tokens[:, :1] if b == "cls" else tokens[:, 1:]).float()
            if patches:
                out["patches"] = _unit(self.patch_head(last, taken, self.grid))
            for k in windows:
                out[f"windows-{k}"] = _unit(self._encode_windows(start, k))
        return {name: value.cpu() for name, value in out.items()}

    def _encode_windows(self, start: Tensor, window: Window) -> Tensor:
        """Return the embeddings (B, W, D) of all windows of a size.

        Each window keeps CLS and its own tokens, with their positions in the whole image, and this
        short sequence runs through the whole tower. It is not an image that is cropped and resized.

        Source: WinCLIP section 4.2.
        """
        indices = window_indices(self.grid, window).to(start.device)  # (W, k * k)
        cls = indices.new_zeros(len(indices), 1)
        rows = torch.cat([cls, indices + 1], dim=1)  # token numbers, CLS first
        with self.half_products():
            shared = self.shared_by_windows(start)

        def embed(windows: Tensor) -> Tensor:  # their numbers, those of the first image first
            image = (windows // len(rows))[:, None]
            # all three are set per thread
            with torch.inference_mode(), no_autocast(self.device), OneDNN():
                with self.half_products():
                    last, taken = self.run_windows(shared, image, rows[windows % len(rows)])
                return self.image_head(last, taken)

        n, cpu = len(start) * len(rows), start.device.type == "cpu"
        numbers = 350_000 if cpu else 32 * 350_000
        at_once = self.n_windows_per_pass or max(1, numbers // (rows.shape[1] * self.width))
        passes, workers = -(-n // at_once), torch.get_num_threads() if cpu else 1
        as_much_for_each = -(-passes // workers) * workers
        parts = torch.arange(n, device=start.device).tensor_split(as_much_for_each)
        embeddings = torch.cat(on_all_cores(embed, parts, start.device))
        return embeddings.unflatten(0, (len(start), len(rows)))

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
        """Return the context of the blocks: products in the chosen precision.

        What enters as float32, as the residual stream does, stays so.
        """
        if self.precision == "fp32":
            return no_autocast(self.device)
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        return torch.autocast(torch.device(self.device).type, half)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy in another process needs: it remembers no texts."""
        return {**self.__dict__, "text_rows": {}}

    def _set_fingerprint(self, states: Iterable[Mapping[str, Tensor]], **facts: Any) -> None:
        """Set identity and fingerprint from the towers' weights and all else that makes the model.

        Parameters
        ----------
        states : state dicts
        facts : architecture and preprocessing, of types whose repr says all
        """
        self.text_rows = {}
        digest = hashlib.sha256(repr(sorted(facts.items())).encode())
        for state in states:
            for key in sorted(state):
                value = state[key].detach().cpu().contiguous()
                digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
                digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
        self.identity = digest.hexdigest()[:20]
        features = f"{self.identity} {self.precision} {ENCODING}"
        self.fingerprint = hashlib.sha256(features.encode()).hexdigest()[:20]


def _unit(x: Tensor) -> Tensor:
    """Return vectors (..., D) divided by their length, float32."""
    return F.normalize(x.float(), dim=-1)
