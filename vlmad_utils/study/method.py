"""Say how the study calls a paradigm."""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch

from ..methods import Scores
from ..models import Backbone

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
    settings : whatever else decides the numbers, e.g. options and the :func:`digest` of trained
        weights
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


def digest(*modules: torch.nn.Module | torch.Tensor) -> str:
    """Return a hash of the weights of modules (or of tensors), 16 hex digits, for ``settings``."""
    found = hashlib.sha256()
    for module in modules:
        state = module.state_dict() if isinstance(module, torch.nn.Module) else {"": module}
        for name, value in sorted(state.items()):
            array = np.ascontiguousarray(value.detach().cpu().float().numpy())
            found.update(name.encode() + array.tobytes())
    return found.hexdigest()[:16]
