"""Say how the study calls a paradigm."""

import dataclasses
import enum
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch

from ..features import Arrays
from ..methods import Scores
from ..methods.scores import Encoded, moved
from ..models import Backbone
from ..models.cores import exact

Value = TypeVar("Value")


@dataclass(frozen=True)
class Method:
    """How the study calls a paradigm.

    Attributes
    ----------
    name : as it is written in tables
    score : (features, references or None, prototypes (2, D) or None) -> Scores of one category
    shots : "zero" (K = 0 only), "few" (K >= 1 only) or "any"
    ensemble : name or dict of the prompts, see ``prompts.compose``; None when no text takes part
    blocks, windows, patches : what ``features.encode`` must give
    settings : must name whatever else decides the numbers, e.g. the options of ``score`` and the
        :func:`digest` of trained weights: the code of ``score`` is not looked at, so another
        function needs another name or settings, or its old cells are taken for the new. See
        :func:`described` for what they may hold
    backbone : None, or another view of the model whose features are read, e.g.
        ``anomalyclip.DPAM(model)``
    """

    name: str
    score: Callable[[Any, Any, Any], Scores]
    shots: Literal["zero", "few", "any"] = "any"
    ensemble: str | dict[str, Any] | None = None
    blocks: tuple[int | str, ...] = ()
    windows: tuple[int | str, ...] = ()
    patches: bool = False
    settings: tuple[Any, ...] = ()
    backbone: Backbone | None = None

    def takes(self, k_shot: int) -> bool:
        """Return whether the method is defined for K references."""
        return self.shots == "any" or (k_shot == 0) == (self.shots == "zero")

    def bound(
        self,
        prototypes: torch.Tensor | None = None,
        references: Encoded | None = None,
        device: str | torch.device | None = None,
    ) -> "BoundMethod":
        """Return the method as a function of features alone, for use without a study.

        Parameters
        ----------
        prototypes : (2, D) of the object, where text takes part
        references : encoded normal images; they are read now and held in memory
        device : where both are held: use the model's device. None leaves them where they are

        Raises
        ------
        ValueError when text or references are missing, or the method takes no references.
        """
        k = 0 if references is None else len(references)
        if not self.takes(k):
            wanted = "1 or more" if self.shots == "few" else "no"
            raise ValueError(f"{self.name} takes {wanted} references, found {k}.")
        if self.ensemble is not None and prototypes is None:
            raise ValueError(
                f"{self.name} compares with text: give prototypes, e.g. "
                f"models.prototypes(model, noun, {self.ensemble!r})."
            )
        if references is not None:
            references = self._held(references if device is None else references.to(device))
        if prototypes is not None and device is not None:
            prototypes = prototypes.to(device)
        return BoundMethod(self, prototypes, references if k else None)

    def _held(self, features: Encoded) -> Arrays:
        """Return what the method reads of some features, in memory."""
        return Arrays(
            features.image,
            features.grid,
            features.patches if self.patches else None,
            {b: features.tokens[b] for b in self.blocks},
            {w: features.windows[w] for w in self.windows},
        )


@dataclass(frozen=True)
class BoundMethod:
    """A method with its prototypes and references: call it with features to get their scores.

    Attributes
    ----------
    method, prototypes, references : see :meth:`Method.bound`
    """

    method: Method
    prototypes: torch.Tensor | None = None
    references: Encoded | None = None
    _copies: dict[torch.device, tuple[torch.Tensor | None, Encoded | None]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def blocks(self) -> tuple[int | str, ...]:
        """Return the blocks whose tokens are read."""
        return self.method.blocks

    @property
    def windows(self) -> tuple[int | str, ...]:
        """Return the windows that are read."""
        return self.method.windows

    @property
    def patches(self) -> bool:
        """Return whether text-aligned patches are read."""
        return self.method.patches

    @property
    def backbone(self) -> Backbone | None:
        """Return the view of the model whose features are read; None is the model itself."""
        return self.method.backbone

    def __call__(self, features: Encoded) -> Scores:
        """Score images; the scores stay on the device of the features.

        A device gets its copy of prototypes and references with its first features. Products are
        float32, whatever the caller chose: see :func:`.cores.exact`.

        Raises
        ------
        ValueError for a transductive method, whose scores would depend on the size of a batch.
        """
        device = torch.device(features.device)
        if device not in self._copies:
            text, references = self.prototypes, self.references
            self._copies[device] = (
                None if text is None else text.to(device),
                None if references is None else moved(references, device),
            )
        text, references = self._copies[device]
        with exact(device):
            scores = self.method.score(features, references, text)
        if scores.training == "transductive":
            raise ValueError(
                f"{self.method.name} compares all test images with each other, so batches cannot "
                "be scored one by one: use study.run, or its function on all of them."
            )
        return scores

    def __getstate__(self) -> dict[str, Any]:
        """Return what goes to another process: no copies on devices."""
        return {**self.__dict__, "_copies": {}}


class Last(Generic[Value]):
    """Remember the last value that was made; safe between threads, empty in another process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: tuple[Any, Value] | None = None

    def get(self, key: Any, make: Callable[[], Value]) -> Value:
        """Return the value of a key, made now unless it is the last one."""
        with self._lock:  # threads that ask for the same value wait for one of them to make it
            if self._known is None or self._known[0] != key:
                self._known = (key, make())
            return self._known[1]

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Last, ()


def described(settings: Any) -> str:
    """Return a text that differs when settings do, for the key of a cell.

    Parameters
    ----------
    settings : text, bytes, numbers, booleans, None, members of an enum; arrays and tensors (by
        their bytes); tuples, lists, dicts and dataclasses of these

    Raises
    ------
    ValueError for anything else, whose text may not say what it holds.
    """
    kind = f"{type(settings).__module__}.{type(settings).__qualname__}"
    if isinstance(settings, enum.Enum):
        return f"{kind}.{settings.name}"
    if settings is None or type(settings) in (bool, int, float, complex, str, bytes):
        return repr(settings)
    if isinstance(settings, torch.Tensor):
        array = settings.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return _of_bytes(settings.dtype, settings.shape, array)
    if isinstance(settings, (np.ndarray, np.generic)) and not settings.dtype.hasobject:
        return _of_bytes(settings.dtype, settings.shape, np.ascontiguousarray(settings))
    if isinstance(settings, (tuple, list)):
        return f"{kind}({', '.join(map(described, settings))})"
    if isinstance(settings, Mapping):
        items = sorted((described(key), described(value)) for key, value in settings.items())
        return f"{kind}({', '.join(map(': '.join, items))})"
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        found = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
        return f"{kind}{described(found)}"
    raise ValueError(
        f"the settings of a Method hold {settings!r:.80}, a {kind}, which does not say what it "
        "holds: give text, numbers, arrays, or tuples and dicts of these, e.g. "
        "study.digest(module) for weights and a name for a function."
    )


def _of_bytes(dtype: Any, shape: Sequence[int], array: np.ndarray) -> str:
    return f"{dtype}{tuple(shape)}:{hashlib.sha256(array.tobytes()).hexdigest()}"


def digest(*modules: torch.nn.Module | torch.Tensor) -> str:
    """Return a hash of the weights of modules (or of tensors), 16 hex digits, for ``settings``."""
    found = hashlib.sha256()
    for module in modules:
        state = module.state_dict() if isinstance(module, torch.nn.Module) else {"": module}
        for name, value in sorted(state.items()):
            found.update(f"{name}={described(value)};".encode())
        found.update(b"|")
    return found.hexdigest()[:16]
