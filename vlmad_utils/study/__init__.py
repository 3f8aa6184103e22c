"""The grid of methods, data, shots and seeds to tidy rows; what each method is; the command."""

from .evaluate import evaluate, summarise
from .grid import KEYS, Result, encode, run
from .method import Method, digest

__all__ = ["KEYS", "Method", "Result", "digest", "encode", "evaluate", "run", "summarise"]
