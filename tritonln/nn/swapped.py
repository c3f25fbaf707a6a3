"""The class that a module gets in the place of its own: a subclass of it, with another forward."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module

from tritonln.nn import norm
from tritonln.nn.recognise import Formula
from tritonln.ops.contract import output_dtype
from tritonln.ops.layer_norm import layer_norm
from tritonln.ops.rms_norm import rms_norm


class Swapped:
    """What all such classes have, and no other."""

    tritonln_original: ClassVar[type]
    tritonln_formula: ClassVar[Formula]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled and copied by way of the original class, as this one has no name to be found by."""
        cls = type(self)
        if "tritonln_original" not in vars(cls):  # of a wrapper that made a class of this one
            return super().__reduce_ex__(protocol)
        return _empty, (cls.tritonln_original, cls.tritonln_formula), self.__getstate__()  # type: ignore[attr-defined]


def _empty(original: type, formula: Formula) -> Any:
    return object.__new__(swapped(original, formula))


@functools.cache
def swapped(original: Any, formula: Formula) -> Any:
    """One class for each, so that compiled code serves all modules of it."""
    if original.forward is torch.nn.LayerNorm.forward:
        forward: Any = norm.LayerNorm.forward
    elif original.forward is torch.nn.RMSNorm.forward:
        forward = norm.RMSNorm.forward
    else:
        forward = _forward(original, formula)
    namespace = {"forward": forward, "tritonln_original": original, "tritonln_formula": formula, "__module__": __name__}
    return type(original.__name__, (Swapped, original), {**namespace, "__qualname__": original.__qualname__})


def unswapped(cls: Any) -> type:
    """The class of before; what a wrapper such as fully_shard has derived since, derived from that."""
    if "tritonln_original" in vars(cls):
        return cls.tritonln_original
    bases = tuple(unswapped(base) if issubclass(base, Swapped) else base for base in cls.__bases__)
    namespace = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(cls)(cls.__name__, bases, namespace)


def _forward(original: Any, formula: Formula) -> Any:
    centred, offset = formula.function == "layer_norm", formula.weight_offset

    @functools.wraps(original.forward)
    def forward(self: Module, *args: Tensor, **kwargs: Tensor) -> Tensor:
        (x,) = (*args, *kwargs.values())
        weight: Any = self.weight
        bias: Any = getattr(self, "bias", None)
        # Classes differ in the dtype that they give for mixed ones, and under autocast.
        same = x.dtype is weight.dtype and (bias is None or bias.dtype is x.dtype)
        if not same or output_dtype(x.dtype, x.device.type) is not x.dtype:
            return original.forward(self, *args, **kwargs)
        eps: Any = getattr(self, formula.eps)
        if centred:
            return layer_norm(x, weight.shape, weight, bias, eps, weight_offset=offset)
        return rms_norm(x, weight.shape, weight, eps, weight_offset=offset, cast=formula.cast)

    return forward
