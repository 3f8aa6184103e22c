"""The grid of methods, data, shots and seeds to tidy rows; what each method is; the command."""

from .evaluate import evaluate, summarise
from .grid import Result, encode, run
from .jobs import KEYS
from .method import BoundMethod, Method, digest

__all__ = [
    "KEYS",
    "BoundMethod",
    "Method",
    "Result",
    "digest",
    "encode",
    "evaluate",
    "run",
    "summarise",
]
