"""What the normalization operators ask of their arguments, in torch's own words where it has them."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _get_tracing_state, _len_torch_dispatch_stack
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad
from torch.nn import Parameter

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HALF = (torch.bfloat16, torch.float16)
NAMES = ("weight", "bias")
PLAIN = (Tensor, Parameter)


Parameters = tuple[Tensor | None, ...]


def check(
    function: Callable[..., Tensor],
    x: Tensor,
    shape: Sequence[int],
    parameters: Parameters,
    eps: float | None,
    mixing: bool = True,
) -> tuple[int, float]:
    """Raises what torch's function raises for arguments that do not fit.  Returns (row length, eps).

    `parameters` are its weight and, where it has one, its bias.  `mixing`: they may be of any dtype beside x, but for
    fp64 beside another; F.layer_norm knows only fp32 ones of a 16-bit x.
    """
    try:
        dims = tuple(shape)
        N = integer(math.prod(dims))  # a float may equal a size but is none
        dtype, device = x.dtype, x.device
        if len(dims) > 0 and tuple(x.shape)[-len(dims) :] == dims and dtype in DTYPES:
            for parameter, name in zip(parameters, NAMES):
                if parameter is None:
                    continue
                if parameter.shape != dims:
                    break
                if parameter.dtype is not dtype and not _mixes(parameter.dtype, dtype, mixing, device.type):
                    break
                if parameter.device != device:
                    check_device(function.__name__, name, parameter, device)
            else:
                return N, eps if type(eps) is float else _number(function, eps, x.dtype)
    except (AttributeError, TypeError):  # no tensor, no sequence
        pass
    except RuntimeError:
        if not x.is_nested:
            raise
        raise RuntimeError(
            f"{function.__name__}: expected input to be a dense tensor or a jagged nested one, "
            f"but got a nested tensor of layout {x.layout}"
        ) from None
    _refuse(function, x, shape, parameters, eps, mixing)


def _number(function: Callable[..., Tensor], eps: Any, dtype: torch.dtype) -> float:
    """float(eps) of what torch takes for a number; of rms_norm's None, the epsilon of the arithmetic."""
    if eps is None and function is F.rms_norm:
        return torch.finfo(arithmetic(dtype)).eps
    if not isinstance(eps, (float, int)):
        function(torch.empty(0, 1), (1,), eps=eps)
    return float(eps)


def integer(value: Any) -> Any:
    """Of numpy's integers too; those of traced code stay what they are."""
    return value if type(value) is int or isinstance(value, torch.SymInt) else operator.index(value)


def number(argument: str, value: Any) -> float:
    """float(value) of what torch takes for a number, such as numpy's and tensors without dimensions."""
    if not isinstance(value, (float, int)) and not hasattr(value, "__float__"):
        raise TypeError(f"{argument} must be float, not {type(value).__name__}")
    return float(value)


def check_device(function: str, name: str, t: Tensor, device: torch.device) -> None:
    if t.device != device:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but got {name} is on {t.device}, "
            f"different from other tensors on {device} (when checking argument in method {function})"
        )


def _mixes(parameter: torch.dtype, x: torch.dtype, mixing: bool, device_type: str) -> bool:
    """fp32 parameters of a 16-bit x; all but fp64 where they may differ, or autocast would cast them to fp32 anyway."""
    if parameter == torch.float32 and x in HALF:
        return True
    free = (mixing and x != torch.float64) or autocasts(x, device_type)
    return free and parameter in (torch.float32, *HALF)


def _refuse(
    function: Callable[..., Tensor],
    x: Tensor,
    shape: Sequence[int],
    parameters: Parameters,
    eps: float | None,
    mixing: bool,
) -> NoReturn:
    function(x, shape, *parameters, eps)
    # torch took it, so it is a mixture of dtypes that only some of its backends know, or no real number.
    names = NAMES[: len(parameters)]
    dtypes = [getattr(t, "dtype", None) for t in (x, *parameters)]
    beside = "float64 beside float64 and nothing else" if mixing else "the dtype of x, or in float32 for a 16-bit x"
    raise RuntimeError(
        f"{function.__name__} expects x in float32, bfloat16, float16 or float64, and {' and '.join(names)} in "
        f"{beside}, but got {', '.join(('x', *names))} of dtypes {dtypes}"
    )


def autocasts(x: torch.dtype, device_type: str) -> bool:
    """Whether autocast is on and runs these functions in fp32, as it does everywhere but on the CPU."""
    return device_type not in ("cpu", "meta") and torch.is_autocast_enabled(device_type) and x != torch.float64


def output_dtype(x: torch.dtype, device_type: str) -> torch.dtype:
    return torch.float32 if autocasts(x, device_type) else x


def shifted(weight: Tensor | None, offset: float, x: torch.dtype) -> Tensor | None:
    """weight + offset in the precision of the arithmetic; an absent weight stays a factor of 1."""
    offset = number("argument 'weight_offset'", offset)
    return weight if weight is None or offset == 0.0 else weight.to(arithmetic(x)) + offset


def needs_grad(*tensors: Tensor | None) -> bool:
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def traced(*tensors: Tensor | None) -> bool:
    """Whether torch looks on (compile, export, a dispatch mode such as make_fx's), or a tensor is more than its
    storage: of a subclass, fake, lazily negated, or zero without a storage.

    Then the custom op is called: torch's dispatcher shows it to who looks on, and makes such tensors real.
    """
    if torch.compiler.is_compiling() or _len_torch_dispatch_stack():
        return True
    for t in tensors:
        if t is not None and ((type(t) is not Parameter and type(t) is not Tensor) or t.is_neg() or t._is_zerotensor()):
            return True
    return False


def transformed() -> bool:
    """Whether forward mode, a torch.func transform (vmap, grad, ...) or jit.trace looks into a call."""
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0 or _get_tracing_state() is not None


def batched(*gradients: Tensor | None) -> bool:
    """Whether they are many at once, as is_grads_batched=True makes them, which compiled code never sees."""
    if not torch.compiler.is_compiling():
        for g in gradients:
            if g is not None and is_legacy_batchedtensor(g):
                return True
    return False


def beyond_numbers(*gradients: Tensor | None) -> bool:
    """Whether more is wanted of a backward pass than numbers: a graph of it, tangents, or many at once by vmap."""
    return torch.is_grad_enabled() or transformed() or batched(*gradients)


def only_numbers(*gradients: Tensor | None) -> bool:
    """Whether gradients are numbers and no more, neither `beyond_numbers` nor `traced`: nearly always."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or _len_torch_dispatch_stack() or transformed():
        return False
    for g in gradients:
        if g is not None and (type(g) not in PLAIN or is_legacy_batchedtensor(g) or g.is_neg() or g._is_zerotensor()):
            return False
    return True


def refuse_tangents(operator: str) -> None:
    """For the inside of a custom op, which torch enters in forward mode too, and then drops the tangents."""
    if forward_ad._current_level >= 0:
        raise RuntimeError(
            f"{operator} in a graph that was captured before has no forward-mode derivative: "
            f"call tritonln.{operator} itself under forward mode, or capture the graph there"
        )


@contextlib.contextmanager
def autograd_inside() -> Iterator[None]:
    """Autograd for the inside of a custom op, which torch may enter below autograd, as DTensor does."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradFunctionality)
    excluded = torch._C._dispatch_tls_local_exclude_set() - keys
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded):
        yield


def owned(t: Tensor) -> Tensor:
    """A result.  Over a view that was made without gradients torch writes nothing that has one, but over its twin.

    Not where torch looks on: a graph that is captured would lose the gradients of later calls there.
    """
    if t.requires_grad or traced(t) or transformed() or not t._is_view():
        return t
    return t.detach()


def contiguous(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.contiguous()


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic on x of a dtype, and of mean, rstd and partial sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dtype_of(t: Tensor | None) -> torch.dtype | None:
    return None if t is None else t.dtype


def empty_like(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous and uninitialized, of t's shape."""
    if t.is_contiguous():  # the cheapest of torch's ways to a tensor
        return torch.empty_like(t) if t.dtype is dtype else torch.empty_like(t, dtype=dtype)
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
