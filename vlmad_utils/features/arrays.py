"""Encoded images: read from a store when asked for (:class:`Features`), or held in memory (:class:`Arrays`)."""

from dataclasses import dataclass, field

import numpy as np
import torch


def _selection(rows):
    """Return a slice, or an array of positions or booleans; one number selects one row."""
    if isinstance(rows, slice):
        return rows
    rows = rows.cpu() if isinstance(rows, torch.Tensor) else rows
    rows = np.atleast_1d(np.asarray(rows))
    return rows if rows.size else rows.astype(int)  # NumPy makes floats of an empty list


class Features:
    """Encoded images, read from the store when asked for.

    Attributes
    ----------
    image : (B, D) float32, unit norm
    patches : (B, N, D) float32, unit norm, text-aligned
    tokens : {block: (B, N, C) float32}, residual stream after a block
    windows : {k: (B, W, D) float32}, unit norm; sparse ones under "<k>s<stride>"
    grid : (h, w)
    index : DataFrame, row i describes image i (None when arrays were encoded)

    ``features[rows]`` selects by a boolean mask, slice or integer positions; nothing is read before it is used.
    """

    def __init__(self, store, keys, grid, shapes, index=None, recompute=None):
        self.store, self.keys, self.grid, self.index = store, list(keys), tuple(grid), index
        self.shapes = dict(shapes)
        self._recompute = recompute

    @property
    def kinds(self):
        """Return the kinds of arrays that :meth:`read` knows."""
        return tuple(self.shapes)

    @property
    def identity(self):
        """What names the numbers: images and where they are kept (with its fingerprint of the backbone)."""
        return self.store.name, *self.keys

    def __getstate__(self):
        return {
            **self.__dict__,
            "_recompute": None,
        }  # else the model and all images went with it to another process

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, rows):
        picked = np.arange(len(self.keys))[_selection(rows)]
        index = None if self.index is None else self.index.iloc[picked].reset_index(drop=True)
        return Features(
            self.store,
            [self.keys[i] for i in picked],
            self.grid,
            self.shapes,
            index,
            self._recompute,
        )

    def read(self, kind):
        """All images' arrays of one kind, stacked: float32 tensor (B, ...)."""
        if kind not in self.kinds:
            raise KeyError(
                f"{kind!r} was not encoded; found {', '.join(self.kinds)}. Call features.encode again with "
                "blocks=, windows= or patches=True: only the difference is computed."
            )
        stacked = None
        for i, key in enumerate(
            self.keys
        ):  # each array straight to its place: one copy, and no second set in memory
            array = self._array(kind, key)
            if (
                stacked is None
            ):  # torch's memory is aligned: products give the same last bit wherever it lies
                stacked = torch.empty(len(self.keys), *array.shape)
            stacked.numpy()[i] = array
        return torch.empty(0, *self.shapes[kind]) if stacked is None else stacked

    def _array(self, kind, key):
        array = self.store.get(kind, key)
        if array is None and self._recompute is not None:  # damaged or deleted since it was encoded
            self._recompute()
            array = self.store.get(kind, key)
        if array is None:
            raise FileNotFoundError(
                f"{kind} of image {key} is gone from the feature store; call features.encode again."
            )
        return array

    @property
    def image(self):
        return self.read("image")

    @property
    def patches(self):
        return self.read("patches")

    @property
    def tokens(self):
        return _Lazy(self, "tokens-")

    @property
    def windows(self):
        return _Lazy(self, "windows-")


class _Lazy:
    """Dict-like view: ``tokens[9]`` reads kind "tokens-9"."""

    def __init__(self, features, prefix):
        self.features, self.prefix = features, prefix

    def __getitem__(self, name):
        return self.features.read(f"{self.prefix}{name}")

    def __iter__(self):
        names = [
            kind.removeprefix(self.prefix)
            for kind in self.features.kinds
            if kind.startswith(self.prefix)
        ]
        return iter([int(name) if name.isdigit() else name for name in names])

    def __len__(self):
        return len(list(iter(self)))

    def keys(self):
        return list(iter(self))

    def items(self):
        return [(name, self[name]) for name in self]


@dataclass
class Arrays:
    """Encoded images held in memory, with the same attributes as :class:`Features`.

    Attributes
    ----------
    image (B, D), patches (B, N, D), tokens {block: (B, N, C)}, windows {k: (B, W, D)}, grid (h, w)

    Raises
    ------
    ValueError when they do not hold the same number of images.
    """

    image: torch.Tensor
    grid: tuple
    patches: torch.Tensor = None
    tokens: dict = field(default_factory=dict)
    windows: dict = field(default_factory=dict)
    identity = None  # arrays may change, so nothing made of them is remembered

    def __post_init__(self):
        found = {
            "image": self.image,
            "patches": self.patches,
            **{f"tokens[{b!r}]": x for b, x in self.tokens.items()},
            **{f"windows[{k!r}]": x for k, x in self.windows.items()},
        }
        lengths = {name: len(x) for name, x in found.items() if x is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"One row per image is wanted in every array, found {lengths}.")

    def __len__(self):
        return len(self.image)

    def __getitem__(self, rows):
        rows = _selection(rows)
        return Arrays(
            self.image[rows],
            self.grid,
            None if self.patches is None else self.patches[rows],
            {b: x[rows] for b, x in self.tokens.items()},
            {k: x[rows] for k, x in self.windows.items()},
        )
