"""Float32 matrix products on a CPU by oneDNN, which PyTorch has for convolutions, in place of MKL, which it has for layers.

On an AMD EPYC with AVX-512 a linear layer took about twice as long by MKL, which seems to use half of the vector width there:
``make bench`` measures it. Sums differ in the order of their terms only, so results do in their last bits.
``torch.backends.mkldnn.enabled = False`` switches it off.
"""

import math
import platform

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import register_flop_formula

# what torch.compile calls for a layer on these processors; it has no public name, and was tried on no others
_ONEDNN = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if platform.machine() in ("x86_64", "AMD64")
    else None
)


def linear(x, weight, bias=None):
    """As ``torch.nn.functional.linear``: (..., C), (M, C), (M,) or None -> (..., M).

    By oneDNN for float32 on a CPU where no gradient is wanted, else by PyTorch's own product.
    """
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
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
    ):
        return _ONEDNN(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class OneDNN(TorchFunctionMode):
    """Context in which the linear layers of any module go through :func:`linear`; holds for the thread that enters it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return (linear if func is F.linear else func)(*args, **(kwargs or {}))


if _ONEDNN:

    @register_flop_formula(_ONEDNN)
    def _operations(
        x, weight, *args, out_shape=None, **kwargs
    ):  # else PyTorch's counter would count none
        return 2 * math.prod(x) * weight[0]
