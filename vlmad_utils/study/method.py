"""How the study calls a paradigm."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Method:
    """How the study calls a paradigm.

    Attributes
    ----------
    name : as it stands in tables
    score : (features, references or None, prototypes (2, D) or None) -> Scores of one category
    shots : "zero" (K = 0 only), "few" (K >= 1 only) or "any"
    ensemble : name or dict of the prompts, see ``prompts.compose``; None when no text takes part
    blocks, windows, patches : what ``features.encode`` must give
    settings : whatever else decides the numbers, e.g. options and the :func:`digest` of trained weights
    backbone : None, or another view of the model whose features are wanted, e.g. ``anomalyclip.DPAM(model)``
    """

    name: str
    score: Callable
    shots: str = "any"
    ensemble: object = None
    blocks: tuple = ()
    windows: tuple = ()
    patches: bool = False
    settings: tuple = ()
    backbone: object = None

    def takes(self, k_shot):
        """Whether the method is defined for K references."""
        return self.shots == "any" or (k_shot == 0) == (self.shots == "zero")


def digest(*modules):
    """Hash of the weights of torch modules (or of tensors), 16 hex digits, for ``Method.settings``."""
    found = hashlib.sha256()
    for module in modules:
        state = module.state_dict() if hasattr(module, "state_dict") else {"": module}
        for name, value in sorted(state.items()):
            found.update(
                name.encode() + np.ascontiguousarray(value.detach().cpu().float().numpy()).tobytes()
            )
    return found.hexdigest()[:16]
