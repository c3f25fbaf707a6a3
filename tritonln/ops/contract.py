"""What the normalization operators ask of their arguments, in torch's own words where it has them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HALF = (torch.bfloat16, torch.float16)


def check(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[int, float]:
    """Raises what F.layer_norm raises for arguments that do not fit.  Returns (row length, eps)."""
    fits = (
        isinstance(x, Tensor)
        and isinstance(eps, (float, int, Tensor))
        and len(shape) > 0
        and not any(isinstance(n, float) for n in shape)
        and tuple(x.shape[-len(shape) :]) == tuple(shape)
        and x.dtype in DTYPES
    )
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is None or not fits:
            continue
        fits = isinstance(parameter, Tensor) and parameter.shape == tuple(shape) and _dtype_fits(x, parameter)
        if fits and parameter.device != x.device:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but got {name} is on {parameter.device}, "
                f"different from other tensors on {x.device} (when checking argument in method layer_norm)"
            )
    if not fits:
        _refuse(x, shape, weight, bias, eps)
    return math.prod(shape), float(eps)


def _dtype_fits(x: Tensor, parameter: Tensor) -> bool:
    if parameter.dtype == x.dtype or (parameter.dtype == torch.float32 and x.dtype in HALF):
        return True
    # Autocast would cast all of them to fp32; the kernels read them as they are.
    return autocasts(x) and parameter.dtype in (torch.float32, *HALF)


def _refuse(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    F.layer_norm(x, shape, weight, bias, eps)  # type: ignore[arg-type]
    # torch took it, so it is a mixture of dtypes that only some of its backends know.
    dtypes = [getattr(t, "dtype", None) for t in (x, weight, bias)]
    raise RuntimeError(
        "layer_norm expects weight and bias in the dtype of x, or in float32 for a 16-bit x, "
        f"but got x, weight, bias of dtypes {dtypes}"
    )


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on and runs layer_norm in fp32, as it does everywhere but on the CPU."""
    kind = x.device.type
    return kind not in ("cpu", "meta") and torch.is_autocast_enabled(kind) and x.dtype != torch.float64


def output_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if autocasts(x) else x.dtype


def needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def traced(x: Tensor) -> bool:
    """Whether torch looks on symbolically: compile, export, fake or other special tensors."""
    return torch.compiler.is_compiling() or (type(x) is not Tensor and type(x) is not Parameter)


def transformed() -> bool:
    """Whether forward mode or a torch.func transform (vmap, grad, ...) is at work: they know only ATen."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def contiguous(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.contiguous()


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
