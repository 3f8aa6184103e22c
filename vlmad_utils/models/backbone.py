"""The interface of a vision-language tower, and what all towers share: preprocessing, encoding, the pass over windows.

A :class:`Backbone` turns images into the arrays that every method reads (image embedding, patch tokens after chosen
blocks, text-aligned patches, window embeddings) and prompts into text embeddings. It knows no data set and no method.
:mod:`.openclip` and :mod:`.embedded` hold the towers.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .onednn import OneDNN
from .windows import window_indices, window_spec

AFTER_NORM = (
    "final",
    "cls",
)  # what stands for a block's number: patch tokens, or CLS, after the last norm


P, R = TypeVar("P"), TypeVar("R")
ENCODING = 1  # raise it when a change of the encoding code changes features


class Backbone(ABC):
    """What a vision-language model must offer. Letters: B batch, N patches, C tower width, D joint embedding, W windows.

    Attributes
    ----------
    name, pretrained : str
    image_size : (int, int)        pixels (H, W) that the tower sees
    grid : (int, int)              patches (h, w)
    width, dim : int               C and D
    n_blocks : int                 transformer blocks; blocks are counted from 1 as in the papers
    logit_scale : float            the checkpoint's trained 1/temperature
    mean, std : tuple              of the input normalisation, RGB in [0, 1]
    identity : str                 hash of architecture, all weights, preprocessing and image size: keys what is trained
    fingerprint : str              hash of identity, precision and :data:`ENCODING`: keys the feature store
    is_clip : bool                 False for the embedded model, whose numbers must never be quoted as CLIP's
    """

    is_clip = True
    n_windows_per_pass = None  # bounds the memory of the window pass; None: arrays (windows, tokens, C) of 350,000 numbers on a
    # CPU, large enough for fast products and small enough for caches, and 32 times as many on a GPU

    # ---- what each tower provides -----------------------------------------------------------------------------
    @abstractmethod
    def embed(self, pixels):
        """(B, 3, H, W) -> tokens that enter block 1, positions added: (B, 1 + N, C), CLS first."""

    @abstractmethod
    def run(self, tokens, blocks):
        """Tokens through all blocks -> (last tokens (B, 1 + n, C), {block: tokens after it (B, 1 + n, C)})."""

    @abstractmethod
    def final_norm(self, tokens):
        """The norm after the last block (CLIP's ln_post)."""

    @abstractmethod
    def image_head(self, last, taken):
        """Joint embedding (B, D) of an image or a window from its tokens; not normalised."""

    @abstractmethod
    def patch_head(self, last, taken, grid):
        """Text-aligned patch embeddings (B, N, D), not normalised."""

    @abstractmethod
    def encode_text(self, prompts):
        """Text embeddings (P, D) float32 of a list of P strings, as the model gives them: **not** normalised."""

    head_blocks: tuple = ()  # blocks that the heads read besides the last

    # ---- shared ------------------------------------------------------------------------------------------------
    @property
    def token_width(self) -> int:
        """Return the width of the tokens that :meth:`encode_image` gives: C, unless they are projected."""
        return self.width

    def preprocess(self, image):
        """Squash an RGB image to the tower's size (bicubic, antialias) and normalise it.

        Parameters
        ----------
        image : (H, W, 3) uint8 array or PIL image, RGB

        Returns
        -------
        (3, H', W') float32 tensor

        Source: WinCLIP and APRIL-GAN code resize bicubic; square images are unchanged in shape, others are squashed
        (``tiles`` in :mod:`vlmad_utils.methods.winclip` is the alternative).
        """
        if not isinstance(image, Image.Image):
            image = np.asarray(image)
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise ValueError(
                    f"preprocess wants an RGB uint8 array (H, W, 3), found {image.dtype} {image.shape}; "
                    "read files with vlmad_utils.data.read_image."
                )
            image = Image.fromarray(image)
        height, width = self.image_size
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
        return ((pixels - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(2, 0, 1)

    @torch.inference_mode()
    def encode_image(self, pixels, blocks=(), windows=(), patches=False):
        """Encode a batch once, for every method.

        Parameters
        ----------
        pixels : (B, 3, H, W) float32, from :meth:`preprocess`
        blocks : blocks (1-based) whose residual stream is wanted, CLS removed; "final" is the last one after the
            final norm, "cls" the CLS token that goes with it
        windows : sizes k of the k x k patch windows whose embedding is wanted, with stride 1; or "<k>s<stride>", e.g. "3s2",
            stride <= k, for a part of them (faster, no longer the paper's)
        patches : also return text-aligned patch embeddings

        Returns
        -------
        dict of float32 CPU tensors: ``image`` (B, D) unit norm; ``tokens-<block>`` (B, N, C), or (B, 1, C) for "cls";
        ``patches`` (B, N, D) unit norm; ``windows-<k>`` (B, W, D) unit norm, windows row-major over their top-left corner

        Raises
        ------
        ValueError for a block or window that the tower does not have.
        """
        self.check_request(blocks, windows)
        wanted = sorted({b for b in blocks if b not in AFTER_NORM} | set(self.head_blocks))
        with OneDNN():
            start = self.embed(pixels.to(self.device, non_blocking=True))
            with self.half_products():
                last, taken = self.run(start, wanted)
            out = {"image": F.normalize(self.image_head(last, taken).float(), dim=-1)}
            for b in blocks:
                tokens = self.final_norm(last) if b in AFTER_NORM else taken[b]
                out[f"tokens-{b}"] = (tokens[:, :1] if b == "cls" else tokens[:, 1:]).float()
            if patches:
                out["patches"] = F.normalize(
                    self.patch_head(last, taken, self.grid).float(), dim=-1
                )
            for k in windows:
                out[f"windows-{k}"] = F.normalize(self._encode_windows(start, k).float(), dim=-1)
        return {name: value.cpu() for name, value in out.items()}

    def _encode_windows(self, start, k):
        """Embeddings (B, W, D) of all k x k windows: keep CLS and the window's tokens with their own positions, then
        run the whole tower on each short sequence. Source: WinCLIP section 4.2; facts 2.5 (not crop and resize)."""
        indices = window_indices(self.grid, k).to(start.device)  # (W, k * k)
        rows = torch.cat(
            [indices.new_zeros(len(indices), 1), indices + 1], dim=1
        )  # token numbers, CLS first
        with self.half_products():
            shared = self.shared_by_windows(start)

        def embed(windows):  # numbers of windows, those of the first image first
            image = (windows // len(rows))[:, None]
            with torch.inference_mode(), OneDNN():  # both are set per thread
                with self.half_products():
                    last, taken = self.run_windows(shared, image, rows[windows % len(rows)])
                return self.image_head(last, taken)

        n, cpu = len(start) * len(rows), start.device.type == "cpu"
        at_once = self.n_windows_per_pass or max(
            1, 350_000 * (1 if cpu else 32) // (rows.shape[1] * self.width)
        )
        passes = -(-n // at_once)
        workers = torch.get_num_threads() if cpu else 1
        parts = torch.arange(n, device=start.device).tensor_split(
            -(-passes // workers) * workers
        )  # as much work for each
        return torch.cat(on_all_cores(embed, parts, start.device)).unflatten(
            0, (len(start), len(rows))
        )

    def shared_by_windows(self, start):
        """What the windows of an image have in common, from its tokens (B, 1 + N, C): taken from it, not computed again."""
        return (start,)

    def run_windows(self, shared, image, rows):
        """:meth:`run` for n windows: token numbers ``rows`` (n, 1 + k * k) of the images ``image`` (n, 1)."""
        return self.run(shared[0][image, rows], self.head_blocks)

    def check_request(self, blocks, windows):
        """Raise ValueError for a block that this tower does not have, or windows that it cannot give."""
        for b in blocks:
            if b not in AFTER_NORM and (
                not isinstance(b, (int, np.integer)) or not 1 <= b <= self.n_blocks
            ):
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

    def half_products(self):
        """Context for the blocks: matrix products in the chosen precision, all that enters as float32 stays so."""
        if self.precision == "fp32":
            return nullcontext()
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        return torch.autocast(torch.device(self.device).type, half)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy in another process needs: it remembers no texts."""
        return {**self.__dict__, "text_rows": {}}

    def _set_fingerprint(self, states: Iterable[Mapping[str, torch.Tensor]], **facts: Any) -> None:
        """Set identity and fingerprint from the towers' weights and all else that makes the model.

        Parameters
        ----------
        states : state dicts
        facts : architecture and preprocessing, of types whose repr says all
        """
        digest = hashlib.sha256(repr(sorted(facts.items())).encode())
        for state in states:
            for key in sorted(state):
                value = state[key].detach().cpu().contiguous()
                digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
                digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
        self.text_rows: dict[str, torch.Tensor] = {}  # embeddings (D,) of prompts that were asked
        self.identity = digest.hexdigest()[:20]
        features = f"{self.identity} {self.precision} {ENCODING}"
        self.fingerprint = hashlib.sha256(features.encode()).hexdigest()[:20]


def on_all_cores(
    function: Callable[[P], R], parts: Sequence[P], device: torch.device, least: int = 2
) -> list[R]:
    """Return [function(part), ...]; on a CPU each core takes parts, since small products do not split well.

    Parameters
    ----------
    least : parts from which cores work by themselves; fewer are split by PyTorch
    """
    n = torch.get_num_threads()
    if device.type != "cpu" or n < 2 or len(parts) < least:
        return [function(part) for part in parts]
    try:
        with ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, parts))
    finally:
        torch.set_num_threads(n)  # the workers' setting would hold for later threads, too
