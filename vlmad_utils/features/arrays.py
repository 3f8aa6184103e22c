"""Hold encoded images: :class:`Features` reads a store on use, :class:`Arrays` are in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from ..store import Store
from .kinds import parsed, stored_type

Rows = int | slice | Sequence[int] | Sequence[bool] | np.ndarray | torch.Tensor | pd.Series
Tokens = Mapping[int | str, torch.Tensor]  # by block, or by window


def _selection(rows: Rows) -> slice | np.ndarray:
    """Return a slice, or an array of positions or booleans; one number selects one row."""
    if isinstance(rows, slice):
        return rows
    rows = np.atleast_1d(np.asarray(rows.cpu() if isinstance(rows, torch.Tensor) else rows))
    return rows if rows.size else rows.astype(int)  # NumPy makes floats of an empty list


class Features:
    """Encoded images, read from the store on use.

    ``features[rows]`` selects by a boolean mask, slice or integer positions, and reads nothing.

    Attributes
    ----------
    image : (B, D) float32, unit norm
    patches : (B, N, D) float32, unit norm, text-aligned
    tokens : {block: (B, N, C) float32}, residual stream after a block
    windows : {k: (B, W, D) float32}, unit norm; sparse ones under "<k>s<stride>"
    grid : (h, w)
    index : DataFrame, row i describes image i (None when arrays were encoded)
    store, keys : where the arrays are, and the content hash of each image
    shapes : {kind: shape of the array of one image}
    device : where arrays are put when they are read; see :meth:`to`
    """

    def __init__(
        self,
        store: Store,
        keys: Sequence[str],
        grid: tuple[int, int],
        shapes: Mapping[str, tuple[int, ...]],
        index: pd.DataFrame | None = None,
        recompute: Callable[[], Mapping[str, str]] | None = None,
    ) -> None:
        self.store, self.keys, self.index = store, list(keys), index
        self.grid: tuple[int, int] = (grid[0], grid[1])
        self.shapes = dict(shapes)
        self.device = torch.device("cpu")
        self._recompute = recompute  # encodes again what the store has lost

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds that :meth:`read` knows."""
        return tuple(self.shapes)

    @property
    def identity(self) -> tuple[str, ...]:
        """Return what names the numbers: the store, with the backbone's fingerprint, and images."""
        return self.store.name, *self.keys

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what holds the model and all images: another process gets keys only."""
        return {**self.__dict__, "_recompute": None}

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: Rows) -> "Features":
        picked = np.arange(len(self))[_selection(rows)]
        keys = [self.keys[i] for i in picked]
        index = None if self.index is None else self.index.iloc[picked].reset_index(drop=True)
        found = Features(self.store, keys, self.grid, self.shapes, index, self._recompute)
        found.device = self.device
        return found

    def to(self, device: str | torch.device) -> "Features":
        """Return the same features, read as tensors on another device."""
        found = self[:]
        found.device = torch.device(device)
        return found

    def read(self, kind: str) -> torch.Tensor:
        """Return the arrays of one kind, stacked: (B, ...) float32 on ``device``.

        Raises
        ------
        KeyError for a kind that was not encoded; FileNotFoundError where the store has lost an
        image whose file is no longer there; StoreError where the store cannot be read.
        """
        if kind not in self.shapes:
            raise KeyError(
                f"{kind!r} was not encoded; found {', '.join(self.kinds)}. Call features.encode "
                "again with blocks=, windows= or patches=True: only the difference is computed."
            )
        # memory of torch is aligned: products give the same last bit wherever it lies. The rows
        # go straight to their place, so there is no second set in memory.
        shape, fast = (len(self), *self.shapes[kind]), self.device.type == "cuda"
        if not fast:
            rows = torch.empty(shape, dtype=torch.float32, device="cpu")  # whatever the defaults
            self._fill(kind, rows.numpy())
            return rows.to(self.device)
        # half of the bytes go to the GPU, out of memory that it can copy by itself
        host = torch.empty(
            shape,
            dtype=torch.float32 if stored_type(kind) == np.float32 else torch.float16,
            device="cpu",
            pin_memory=torch.cuda.is_available(),
        )
        self._fill(kind, host.numpy())
        return host.to(self.device, non_blocking=True).float()

    def _fill(self, kind: str, rows: np.ndarray) -> None:
        """Read the rows (B, ...) of a kind; what was damaged or deleted is encoded again."""
        why: Mapping[str, str] = {}
        try:
            missing = self.store.read(kind, self.keys, rows)
            if missing and self._recompute is not None:
                why = self._recompute()
                missing = self.store.read(kind, self.keys, rows)
        except ValueError as error:
            raise ValueError(
                f"{error}: the attributes of the backbone do not fit what it gives."
            ) from error
        if missing:
            key = self.keys[missing[0]]
            said = f" ({why[key]})" if key in why else ""
            raise FileNotFoundError(
                f"{kind} of image {key} is gone from the feature store{said}; "
                "call features.encode again."
            )

    @property
    def image(self) -> torch.Tensor:
        """Return the image embeddings (B, D)."""
        return self.read("image")

    @property
    def patches(self) -> torch.Tensor:
        """Return the text-aligned patch embeddings (B, N, D)."""
        return self.read("patches")

    @property
    def tokens(self) -> Tokens:
        """Return the patch tokens {block: (B, N, C)}, each read on use."""
        return _Lazy(self, "tokens")

    @property
    def windows(self) -> Tokens:
        """Return the window embeddings {k: (B, W, D)}, each read on use."""
        return _Lazy(self, "windows")


class _Lazy(Mapping[int | str, torch.Tensor]):
    """Read on use: ``tokens[9]`` is the kind "tokens-9"."""

    def __init__(self, features: Features, what: str) -> None:
        self.features, self.what = features, what

    def __getitem__(self, name: int | str) -> torch.Tensor:
        return self.features.read(f"{self.what}-{name}")

    def __contains__(self, name: object) -> bool:
        return f"{self.what}-{name}" in self.features.shapes

    def __iter__(self) -> Iterator[int | str]:
        pairs = [parsed(kind) for kind in self.features.kinds]
        return iter([name for what, name in pairs if what == self.what])

    def __len__(self) -> int:
        return len(list(iter(self)))


@dataclass
class Arrays:
    """Encoded images held in memory, with the attributes of :class:`Features`.

    Attributes
    ----------
    image (B, D), patches (B, N, D), tokens {block: (B, N, C)}, windows {k: (B, W, D)}, grid (h, w)

    Raises
    ------
    ValueError when they do not hold the same number of images.
    """

    image: torch.Tensor
    grid: tuple[int, int]
    patches: torch.Tensor | None = None
    tokens: Tokens = field(default_factory=dict)
    windows: Tokens = field(default_factory=dict)
    identity: ClassVar[None] = None  # arrays may change, so nothing made of them is remembered

    def __post_init__(self) -> None:
        found = {"image": self.image, "patches": self.patches}
        found |= {f"tokens[{block!r}]": x for block, x in self.tokens.items()}
        found |= {f"windows[{k!r}]": x for k, x in self.windows.items()}
        lengths = {name: len(x) for name, x in found.items() if x is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"One row per image is wanted in every array, found {lengths}.")

    def __len__(self) -> int:
        return len(self.image)

    @property
    def device(self) -> torch.device:
        """Return where the arrays are."""
        return self.image.device

    def to(self, device: str | torch.device) -> "Arrays":
        """Return the same arrays on another device; what is there already is not copied."""
        return Arrays(
            self.image.to(device),
            self.grid,
            None if self.patches is None else self.patches.to(device),
            {block: x.to(device) for block, x in self.tokens.items()},
            {k: x.to(device) for k, x in self.windows.items()},
        )

    def __getitem__(self, rows: Rows) -> "Arrays":
        picked = _selection(rows)
        return Arrays(
            self.image[picked],
            self.grid,
            None if self.patches is None else self.patches[picked],
            {block: x[picked] for block, x in self.tokens.items()},
            {k: x[picked] for k, x in self.windows.items()},
        )
