"""Encode images once, score them many times: features in a store that everything else reads."""

from .arrays import Arrays, Features
from .encoding import encode, keys
from .kinds import disk_need
from .reading import EncodingError

__all__ = ["Arrays", "EncodingError", "Features", "disk_need", "encode", "keys"]
