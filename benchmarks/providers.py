"""Who is measured.  Each provider is one class: how it is installed, what it supports, how it is called.

Nothing is imported before a provider's own `norm` is asked for, so that a missing package costs its
own row only.
"""

from __future__ import annotations

import abc
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import Case

EPS = 1e-5

# (x, weight, bias) -> y, differentiable.  bias is None for rms_norm.
Norm = Callable[[Tensor, Tensor, Tensor | None], Any]

PROVIDERS: dict[str, Provider] = {}


def register(provider: type[Provider]) -> type[Provider]:
    PROVIDERS[provider.name] = provider()
    return provider


class Provider(abc.ABC):
    name: str
    package = "torch"  # the module that must be importable
    install = ""  # the command that brings it
    eps: Any = EPS
    compiles = False  # whether its kernels are Triton's and can be compiled without a GPU

    def missing(self) -> str | None:
        """Why it cannot be used here, with the command that would help; None where it can."""
        try:
            found = importlib.util.find_spec(self.package)
        except ModuleNotFoundError:  # not even the package around it
            found = None
        return None if found else f"not installed: {self.install}"

    def unsupported(self, case: Case) -> str | None:
        """Why it has no result for this case; None where it has one."""
        return None

    def parameter_dtype(self, case: Case) -> torch.dtype:
        return case.torch_dtype

    @abc.abstractmethod
    def norm(self, operator: str) -> Norm:
        """Its function of that name."""

    def configuration(self, case: Case) -> dict[str, Any] | None:
        """What its kernels are launched with, where it can be asked."""
        return None


@register
class Tritonln(Provider):
    name = "tritonln"
    package = "triton"
    install = "pip install triton"
    compiles = True

    def norm(self, operator: str) -> Norm:
        import tritonln

        if operator == "layer_norm":
            return lambda x, w, b: tritonln.layer_norm(x, w.shape, w, b, EPS)
        return lambda x, w, b: tritonln.rms_norm(x, w.shape, w, EPS)

    def configuration(self, case: Case) -> dict[str, Any] | None:
        from tritonln.device import kernels_on, triton_device_type
        from tritonln.ops.layer_norm import LAYER_NORM
        from tritonln.ops.rms_norm import RMS_NORM

        device = kernels_on(torch.device(triton_device_type() or "cpu"))
        if device is None:
            return None
        operator = {o.name: o for o in (LAYER_NORM, RMS_NORM)}[case.shape.operator]
        N, dtype, plans = case.shape.N, case.torch_dtype, []
        parameters = (dtype,) * len(operator.columns)
        if case.direction != "backward":
            plans.append(operator.forward_plan(N, (dtype,), parameters, dtype, case.direction != "no_grad", device))
        if case.gradients:
            needs = (True,) * (1 + len(parameters))
            plans.append(operator.backward_plan(N, dtype, (dtype,), parameters, needs, device).several)
        return {
            p.launch.name: {"constants": [c for c in p.launch.constants if isinstance(c, int)], **p.launch.options}
            for p in plans
        }


@register
class Eager(Provider):
    name = "eager"

    def norm(self, operator: str) -> Norm:
        if operator == "layer_norm":
            return lambda x, w, b: F.layer_norm(x, w.shape, w, b, EPS)
        return lambda x, w, b: F.rms_norm(x, w.shape, w, EPS)


@register
class Compile(Provider):
    """torch.compile of eager, anew for each case: a shape must not be measured with another one's kernel."""

    name = "compile"

    def norm(self, operator: str) -> Norm:
        from torch._functorch import config

        config.donated_buffer = False  # else a graph can be run backward only once
        torch.compiler.reset()
        return torch.compile(PROVIDERS["eager"].norm(operator), fullgraph=True, dynamic=False)


@register
class Cudnn(Provider):
    name = "cudnn"
    package = "cudnn"
    install = "pip install 'nvidia-cudnn-frontend>=1.32'"

    def missing(self) -> str | None:
        if (absent := super().missing()) is not None:
            return absent
        try:
            importlib.import_module("cudnn.ops.norm")
        except ImportError as error:  # an older one
            return f"{error}: {self.install}"
        return None

    def norm(self, operator: str) -> Norm:
        from cudnn.ops import norm  # type: ignore[import-not-found]

        if operator == "layer_norm":
            return lambda x, w, b: norm.layer_norm(x, tuple(w.shape), w, b, EPS)
        return lambda x, w, b: norm.rms_norm(x, w, eps=EPS)


@register
class Liger(Provider):
    name = "liger"
    package = "liger_kernel"
    install = "pip install --no-deps liger-kernel"
    compiles = True

    def norm(self, operator: str) -> Norm:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from liger_kernel.ops.layer_norm import LigerLayerNormFunction  # type: ignore[import-not-found]
            from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # type: ignore[import-not-found]

        if operator == "layer_norm":
            return lambda x, w, b: LigerLayerNormFunction.apply(x, w, b, self.eps)
        # "gemma" rounds once, as the others do; and dx must not be written over dy, which is used again.
        return lambda x, w, b: LigerRMSNormFunction.apply(x, w, self.eps, 0.0, "gemma", False)


@register
class Fla(Provider):
    name = "fla"
    package = "fla"
    install = "pip install --no-deps fla-core einops"
    compiles = True

    def unsupported(self, case: Case) -> str | None:
        if case.shape.N * case.torch_dtype.itemsize > 65_536:
            return "rows longer than 64 KiB"
        return super().unsupported(case)

    def norm(self, operator: str) -> Norm:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from fla.modules.norm import layernorm  # type: ignore[import-not-found]

        function = getattr(layernorm, operator)
        return lambda x, w, b: function(x, w, b, eps=EPS)


@register
class Quack(Provider):
    name = "quack"
    package = "quack"
    install = "pip install quack-kernels"

    def unsupported(self, case: Case) -> str | None:
        if case.shape.operator == "layer_norm" and case.direction != "no_grad":
            return "its layer_norm has no backward"
        return super().unsupported(case)

    def parameter_dtype(self, case: Case) -> torch.dtype:
        return torch.float32 if case.shape.operator == "layer_norm" else case.torch_dtype

    def norm(self, operator: str) -> Norm:
        from quack import rmsnorm  # type: ignore[import-not-found]

        if operator == "layer_norm":
            return lambda x, w, b: rmsnorm.layernorm_fwd(x, w, b, eps=EPS)
        return lambda x, w, b: rmsnorm.rmsnorm(x, w, eps=EPS)


@register
class FlashAttn(Provider):
    name = "flash_attn"
    package = "flash_attn"
    install = "pip install flash-attn --no-build-isolation"

    def norm(self, operator: str) -> Norm:
        from flash_attn.ops.triton.layer_norm import layer_norm_fn, rms_norm_fn  # type: ignore[import-not-found]

        function = layer_norm_fn if operator == "layer_norm" else rms_norm_fn
        return lambda x, w, b: function(x, w, b, eps=EPS)


@register
class Apex(Provider):
    name = "apex"
    package = "apex.normalization"  # PyPI's `apex` is another project
    install = (
        "git clone https://github.com/NVIDIA/apex && "
        "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation ./apex"
    )

    def norm(self, operator: str) -> Norm:
        from apex.normalization import fused_layer_norm as fused  # type: ignore[import-not-found]

        if operator == "layer_norm":
            return lambda x, w, b: fused.fused_layer_norm_affine(x, w, b, w.shape, EPS)
        return lambda x, w, b: fused.fused_rms_norm_affine(x, w, w.shape, EPS)


@register
class TransformerEngine(Provider):
    """Its modules, called on the parameters given: this adds host time, none on the device."""

    name = "transformer_engine"
    package = "transformer_engine"
    install = "pip install --no-build-isolation 'transformer_engine[pytorch]'"

    def norm(self, operator: str) -> Norm:
        import transformer_engine.pytorch as te  # type: ignore[import-not-found]

        modules: dict[int, torch.nn.Module] = {}

        def call(x: Tensor, w: Tensor, b: Tensor | None) -> Any:
            module = modules.get(w.numel())
            if module is None:
                kind = te.LayerNorm if operator == "layer_norm" else te.RMSNorm
                module = modules[w.numel()] = kind(w.numel(), eps=EPS)
            parameters = {"weight": w} if b is None else {"weight": w, "bias": b}
            return torch.func.functional_call(module, parameters, (x,))

        return call


@register
class Copy(Provider):
    """A device copy that moves the case's least bytes, half of them read: the limit of the memory."""

    name = "copy"

    def norm(self, operator: str) -> Norm:
        raise TypeError("copy is no norm: what is timed of it is benchmarks.problem.copy_call")
