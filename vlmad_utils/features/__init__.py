"""Encode images once, score them many times: features in a store that everything else reads."""

from .arrays import Arrays, Features
from .encoding import encode, keys
from .kinds import disk_need

__all__ = ["Arrays", "Features", "disk_need", "encode", "keys"]
