"""Float32 matrix products on a CPU by oneDNN, as PyTorch's convolutions, instead of MKL.

On an AMD EPYC with AVX-512 a linear layer took about twice as long by MKL, which seems to use half
of the vector width there: ``make bench`` measures it. Sums differ in the order of their terms only,
so results do in their last bits. ``torch.backends.mkldnn.enabled = False`` switches it off.
"""

import math
import platform
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import flop_registry, register_flop_formula

_ARGUMENTS = ["X", "W", "B", "attr", "scalars", "algorithm"]


def _operation() -> Any:
    """Return what torch.compile calls for a layer on these processors, or None.

    It has no public name, so its arguments are checked; it was tried on no other processors.
    """
    found = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if found is None or platform.machine() not in ("x86_64", "AMD64"):
        return None
    names = [argument.name for argument in found.default._schema.arguments]
    return found if names == _ARGUMENTS else None


_ONEDNN = _operation()


def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Do what ``torch.nn.functional.linear`` does: (..., C), (M, C), (M,) or None -> (..., M).

    By oneDNN for float32 on a CPU where no gradient is needed, else by PyTorch's own product.
    """
    x = input  # PyTorch's name, since calls may use it
    given = (x, weight) if bias is None else (x, weight, bias)
    if (
        _ONEDNN
        and torch.backends.mkldnn.enabled
        and torch.backends.mkldnn.is_available()
        and type(x) is torch.Tensor
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel()
        and weight.numel()
        and not torch.is_autocast_enabled("cpu")
        and weight.ndim == 2
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in given))
    ):
        return _ONEDNN(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def packed(
    weight: torch.Tensor, bias: torch.Tensor | None, activation: str = "none"
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return a layer (..., C) float -> (..., M) bfloat16 with its weights laid out for oneDNN once.

    Laying them out costs up to 15 % of a product with a few hundred rows.

    Parameters
    ----------
    weight, bias : (M, C), (M,) or None, bfloat16
    activation : "none", "gelu" or "swish", done with the product

    Returns
    -------
    None where oneDNN has no products in bfloat16, for another type, or another device
    """
    pack = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
    here = weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    if not (here and _ONEDNN and pack and torch.backends.mkldnn.enabled and has_bf16_products()):
        return None
    laid_out = pack(weight, None)
    product = _ONEDNN
    return lambda x: product(x.bfloat16(), laid_out, bias, activation, [], "none")


def has_bf16_products() -> bool:
    """Return whether oneDNN multiplies bfloat16 on this processor, by instructions or without."""
    found = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(torch.backends.mkldnn.is_available() and found and found())


def has_instructions(precision: str) -> bool:
    """Return whether this processor multiplies "bf16" or "fp16" by instructions of its own.

    Others emulate it, slower than float32. True where PyTorch is too old to say.
    """
    names = {
        "bf16": ("avx512_bf16", "amx_bf16", "avx10_2", "bf16"),
        "fp16": ("avx512_fp16", "amx_fp16", "avx10_1", "fp16_arith"),
    }
    ask = getattr(torch.cpu, "get_capabilities", None)
    return ask is None or any(ask().get(name) for name in names[precision])


class OneDNN(TorchFunctionMode):
    """Context in which linear layers of any module go through :func:`linear`, in this thread."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return (linear if func is F.linear else func)(*args, **(kwargs or {}))


if _ONEDNN and _ONEDNN not in flop_registry:  # a reload finds it there

    @register_flop_formula(_ONEDNN)
    def _operations(x: Any, weight: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        """Count its operations for PyTorch's counter, which would count none."""
        return 2 * math.prod(x) * weight[0]
