"""Run functions of a tower through torch.compile where its user wants that, and where it works."""

import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch


def fast(model: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``function(*arguments)``, compiled where ``model.compile`` says so.

    Each shape of arguments is compiled by itself, so batches should have few sizes: what is left
    for the last batch compiles once more. Where compiling fails, one warning says so, and PyTorch
    runs the function as it is from then on. So it does on a CPU, since the compiler does not take
    the products of :mod:`.onednn`.

    Parameters
    ----------
    model : a Backbone; its ``compile`` is False, True, or the name of a compiler's backend

    Raises
    ------
    torch.OutOfMemoryError, or cuBLAS's RuntimeError of too little memory: no failure of the
    compiler.
    """
    if not model.compile:
        return function(*arguments)
    backend = "inductor" if model.compile is True else model.compile
    compiled = model.kept(
        f"compiled {function.__name__} by {backend}",
        lambda: torch.compile(function, backend=backend, dynamic=False),
    )
    try:
        return compiled(*arguments)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of many types: of the compiler, of Triton, of C++
        if "CUBLAS_STATUS_ALLOC_FAILED" in str(error):
            raise
        model.compile = False
        message = " ".join(str(error).split())[:160]
        warnings.warn(
            f"{model.name} runs without torch.compile, which failed here "
            f"({type(error).__name__}: {message}). Its features are the same, it is slower; load "
            "it without compile=True, and there is no warning.",
            stacklevel=2,
        )
    return function(*arguments)


@contextmanager
def as_they_are(model: Any) -> Generator[None, None, None]:
    """Run a model's functions without the compiler, such as for batches whose size is a trial."""
    before, model.compile = model.compile, False
    try:
        yield
    finally:
        model.compile = before
