"""Encode images once, score them many times: features in a store that everything else reads."""

from .arrays import Arrays, Features
from .cluster import WorkerError, gpu_cluster
from .encoding import encode, keys
from .kinds import disk_need
from .reading import EncodingError
from .streaming import Scored, Scorer, stream

__all__ = ["Arrays", "EncodingError", "Features", "Scored", "Scorer", "disk_need", "encode", "keys"]
__all__ += ["WorkerError", "gpu_cluster", "stream"]
