"""What the recurrent operators ask of their arguments, and in which dtypes and on which device they compute."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tritonln.device import Device, kernels_on
from tritonln.ops.contract import DTYPES, HALF
from tritonln.ops.sizes import agree, holds


def check(
    operator: str, x: Tensor, shapes: Mapping[str, tuple[Tensor | None, tuple[int, ...]]], products: Sequence[str]
) -> None:
    """Raises for an x that is no sequence, and for the first argument of a shape, dtype or device that does not fit.

    `products` names the arguments that are multiplied with x or h, which must be of their dtype; all
    others may be fp32 where x is 16-bit.
    """
    if x.dim() != 3:
        raise RuntimeError(f"input must have 3 dimensions, got {x.dim()}")
    if holds(x.shape[0] == 0):
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if x.dtype not in DTYPES:
        raise RuntimeError(f"{operator}: expected input of a floating dtype, got {x.dtype}")
    for name, (t, shape) in shapes.items():
        if t is None:
            continue
        if not agree(t.shape, shape):
            raise RuntimeError(f"{operator}: Expected {name} size {shape}, got {list(t.shape)}")
        if t.device != x.device:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but got {name} is on {t.device}, "
                f"different from other tensors on {x.device} (when checking argument in method {operator})"
            )
        if t.dtype != x.dtype and (name in products or t.dtype != torch.float32 or x.dtype not in HALF):
            raise RuntimeError(f"{operator}: expected {name} of dtype {x.dtype}, got {t.dtype}")


def check_norms(
    operator: str,
    ln_hh_weight: Tensor | None,
    ln_weight: Tensor | None,
    ln_bias: Tensor | None,
    norm_groups: str,
    known: tuple[str, ...],
) -> None:
    if ln_weight is not None and ln_hh_weight is not None:
        raise RuntimeError(f"{operator}: expected ln_weight or ln_ih_weight and ln_hh_weight, got all of them")
    if ln_bias is not None and ln_weight is None:
        raise RuntimeError(f"{operator}: expected ln_weight where there is an ln_bias")
    if norm_groups not in known:
        raise RuntimeError(f"{operator}: expected norm_groups one of {', '.join(known)}, got {norm_groups}")
    if norm_groups == "gates" and ln_weight is None:
        raise RuntimeError(f"{operator}: expected ln_weight where norm_groups is 'gates'")


def check_lengths(operator: str, lengths: Tensor | None, x: Tensor) -> None:
    if lengths is None:
        return
    if not agree(lengths.shape, x.shape[1:2]) or lengths.dtype != torch.int64 or lengths.device != x.device:
        raise RuntimeError(
            f"{operator}: expected lengths of shape ({x.shape[1]},), dtype torch.int64 on {x.device}, "
            f"got {tuple(lengths.shape)}, {lengths.dtype} on {lengths.device}"
        )


def check_resets(operator: str, resets: Tensor | None, x: Tensor) -> None:
    if resets is None:
        return
    if not agree(resets.shape, x.shape[:-1]) or resets.dtype != torch.bool or resets.device != x.device:
        raise RuntimeError(
            f"{operator}: expected resets of shape {tuple(x.shape[:-1])}, dtype torch.bool on {x.device}, "
            f"got {tuple(resets.shape)}, {resets.dtype} on {resets.device}"
        )


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast wants of the products; None where it is off."""
    return torch.get_autocast_dtype(x.device.type) if autocast_on(x) and x.dtype != torch.float64 else None


def autocast_on(x: Tensor) -> bool:
    kind = x.device.type
    return kind != "meta" and torch.is_autocast_enabled(kind)  # there is none for "meta"


def cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.to(dtype) for t in tensors]


def cast_halves(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    """For autocast to `dtype`: what may be in fp32 stays so, and 16 bits of another kind would fit to nothing."""
    return [None if t is None else t.to(dtype) if t.dtype in HALF else t for t in tensors]


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Inside, nothing is cast a second time."""
    return torch.autocast(x.device.type, enabled=False) if autocast_on(x) else contextlib.nullcontext()


def device_of(x: Tensor, state: Tensor) -> Device | None:
    """Where the kernels run; None where ATen does, which also serves batches of no rows and layers of no units."""
    return kernels_on(x.device) if x.numel() and state.numel() else None
