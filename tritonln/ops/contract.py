"""What the normalization operators ask of their arguments, in torch's own words where it has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HALF = (torch.bfloat16, torch.float16)


def check(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[int, float]:
    """Raises what F.layer_norm raises for arguments that do not fit.  Returns (row length, eps)."""
    try:
        dims = tuple(shape)
        fits = (
            len(dims) > 0
            and x.shape[-len(dims) :] == dims
            and x.dtype in DTYPES
            and (weight is None or _fits(x, dims, weight, "weight"))
            and (bias is None or _fits(x, dims, bias, "bias"))
            and float not in map(type, dims)  # equal to a size, but none
        )
        if fits and isinstance(eps, (float, int, Tensor)):
            return math.prod(dims), float(eps)
    except (AttributeError, TypeError):  # no tensor, no sequence
        pass
    _refuse(x, shape, weight, bias, eps)


def _fits(x: Tensor, dims: tuple[int, ...], parameter: Tensor, name: str) -> bool:
    if parameter.shape != dims or (parameter.dtype != x.dtype and not _mixes(x, parameter)):
        return False
    if parameter.device != x.device:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but got {name} is on {parameter.device}, "
            f"different from other tensors on {x.device} (when checking argument in method layer_norm)"
        )
    return True


def _mixes(x: Tensor, parameter: Tensor) -> bool:
    """fp32 parameters of a 16-bit x; all but fp64 where autocast would cast them to fp32 anyway."""
    if parameter.dtype == torch.float32 and x.dtype in HALF:
        return True
    return autocasts(x, x.device.type) and parameter.dtype in (torch.float32, *HALF)


def _refuse(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> NoReturn:
    F.layer_norm(x, shape, weight, bias, eps)  # type: ignore[arg-type]
    # torch took it, so it is a mixture of dtypes that only some of its backends know.
    dtypes = [getattr(t, "dtype", None) for t in (x, weight, bias)]
    raise RuntimeError(
        "layer_norm expects weight and bias in the dtype of x, or in float32 for a 16-bit x, "
        f"but got x, weight, bias of dtypes {dtypes}"
    )


def autocasts(x: Tensor, device_type: str) -> bool:
    """Whether autocast is on and runs layer_norm in fp32, as it does everywhere but on the CPU."""
    return torch.is_autocast_enabled(device_type) and device_type != "cpu" and x.dtype != torch.float64


def output_dtype(x: Tensor, device_type: str) -> torch.dtype:
    return torch.float32 if autocasts(x, device_type) else x.dtype


def needs_grad(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (
        x.requires_grad or (weight is not None and weight.requires_grad) or (bias is not None and bias.requires_grad)
    )


def special(t: Tensor | None) -> bool:
    """Whether a tensor is more than its storage: fake, of a subclass, lazily negated, or zero without a storage."""
    return t is not None and ((type(t) is not Tensor and type(t) is not Parameter) or t.is_neg() or t._is_zerotensor())


def traced(*tensors: Tensor | None) -> bool:
    """Whether torch looks on (compile, export, a dispatch mode such as make_fx's) or a tensor is special.

    Then the custom op is called: torch's dispatcher shows it to who looks on, and makes special tensors real.
    """
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or any(map(special, tensors))


def transformed() -> bool:
    """Whether forward mode, a torch.func transform (vmap, grad, ...) or jit.trace is at work: they know only ATen."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
    )


def batched(*gradients: Tensor | None) -> bool:
    """Whether they are many at once, as is_grads_batched=True makes them, which compiled code never sees."""
    return not torch.compiler.is_compiling() and any(
        g is not None and torch._C._functorch.is_legacy_batchedtensor(g) for g in gradients
    )


def refuse_tangents(operator: str) -> None:
    """For the inside of a custom op, which torch enters in forward mode too, and then drops the tangents."""
    if torch.autograd.forward_ad._current_level >= 0:
        raise RuntimeError(
            f"{operator} in a graph that was captured before has no forward-mode derivative: "
            f"call tritonln.{operator} itself under forward mode, or capture the graph there"
        )


def contiguous(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.contiguous()


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic on x of a dtype, and of mean, rstd and partial sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dtype_of(t: Tensor | None) -> torch.dtype | None:
    return None if t is None else t.dtype


def empty_like(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous and uninitialized, of t's shape."""
    if t.dtype == dtype and t.is_contiguous():
        return torch.empty_like(t)  # the cheapest of torch's ways to a tensor
    return torch.empty(t.shape, dtype=dtype, device=t.device)


def contiguous_rows(t: Tensor, N: int) -> tuple[Tensor, int | None]:
    """t as rows of N adjacent values, and the stride between rows (None where they are contiguous).

    Copies only where the values of a row are apart, or rows have no common stride.
    """
    if t.is_contiguous():
        return t, None
    rows = t.reshape(-1, N)
    if N > 1 and rows.stride(1) != 1:
        rows = rows.contiguous()
    return rows, None if rows.is_contiguous() else rows.stride(0)
