"""Who is measured, one class each.

Nothing is imported before a provider's own `norm` is asked for, so that a missing package costs its
own row only.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.operators import NORMS, OPERATORS, Norm
from benchmarks.provider import EPS, Provider


class Tritonln(Provider):
    name = "tritonln"
    package = "triton"
    install = "pip install triton"
    operators = OPERATORS
    compiles = True

    def norm(self, operator: str) -> Norm:
        import tritonln

        function = getattr(tritonln, operator)
        if operator == "gated_residual":
            return lambda x, w, b, residual, gate: function(residual, x, gate)
        if operator == "qk_norm":
            return lambda x, w, b, k: function(x, k, w, w, EPS)
        if OPERATORS[operator].norm == "rms_norm":
            return lambda x, w, b, *others: function(x, *others, x.shape[-1:], w, EPS)
        return lambda x, w, b, *others: function(x, *others, x.shape[-1:], w, b, EPS)

    def configuration(self, case: Case) -> dict[str, Any] | None:
        from tritonln.configurations.tunable import operators
        from tritonln.device import kernels_on, triton_device_type
        from tritonln.ops.contract import arithmetic

        device = kernels_on(torch.device(triton_device_type() or "cpu"))
        if device is None:
            return None
        operator: Any = operators()[case.shape.operator]
        if not hasattr(operator, "kinds"):  # no row operator
            return None
        N, dtype, plans = case.shape.N, case.torch_dtype, []
        given = {"x", *case.operator.parameters, *case.operator.rows, *case.operator.batches}
        dtypes = tuple(dtype if name in given else None for name in operator.operands)
        x = dtype if case.operator.adds else None
        if case.direction != "backward":
            plans.append(operator.forward_plan(N, dtypes, dtype, x, case.direction != "no_grad", device))
        if case.gradients:
            twin, _ = operator.twin(dtypes, [d is not None for d in dtypes])
            needs, stats = tuple(d is not None and i != twin for i, d in enumerate(dtypes)), arithmetic(dtype)
            plans.append(operator.backward_plan(N, (dtype, x, x), stats, dtypes, needs, device).kernels[0])
        launches = [launch for p in plans for launch in getattr(p.launch, "launches", (p.launch,))]
        return {
            launch.name: {"constants": [c for c in launch.constants if isinstance(c, int)], **launch.options}
            for launch in launches
        }


class Eager(Provider):
    """torch's norm, and its elementwise operations around that where the operator has some."""

    name = "eager"
    operators = OPERATORS

    def norm(self, operator: str) -> Norm:
        composition = OPERATORS[operator]
        if composition.norm is None:
            return composition.of(None)
        if composition.norm == "layer_norm":
            return composition.of(lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b, EPS))
        return composition.of(lambda x, w, b: F.rms_norm(x, x.shape[-1:], w, EPS))


class Compile(Provider):
    """torch.compile of eager, anew for each case: a shape must not be measured with another one's kernel."""

    name = "compile"
    operators = OPERATORS

    def norm(self, operator: str) -> Norm:
        from torch._functorch import config

        config.donated_buffer = False  # else a graph can be run backward only once
        torch.compiler.reset()
        return torch.compile(PROVIDERS["eager"].norm(operator), fullgraph=True, dynamic=False)


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


class Liger(Provider):
    name = "liger"
    package = "liger_kernel"
    install = "pip install --no-deps liger-kernel"
    operators = *NORMS, "add_rms_norm"
    compiles = True

    def norm(self, operator: str) -> Norm:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction  # type: ignore[import-not-found]
            from liger_kernel.ops.layer_norm import LigerLayerNormFunction  # type: ignore[import-not-found]
            from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # type: ignore[import-not-found]

        if operator == "layer_norm":
            return lambda x, w, b: LigerLayerNormFunction.apply(x, w, b, self.eps)
        # "gemma" rounds once, as the others do; and dx must not be written over dy, which is used again.
        if operator == "add_rms_norm":
            return lambda x, w, b, r: LigerFusedAddRMSNormFunction.apply(x, r, w, self.eps, 0.0, "gemma", False)
        return lambda x, w, b: LigerRMSNormFunction.apply(x, w, self.eps, 0.0, "gemma", False)


class Fla(Provider):
    name = "fla"
    package = "fla"
    install = "pip install --no-deps fla-core einops"
    operators = *NORMS, "add_layer_norm", "add_rms_norm", "gated_rms_norm"
    compiles = True

    def unsupported(self, case: Case) -> str | None:
        if case.shape.N * case.torch_dtype.itemsize > 65_536:
            return "rows longer than 64 KiB"
        return super().unsupported(case)

    def norm(self, operator: str) -> Norm:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from fla.modules.norm import fused_norm_gate, layernorm  # type: ignore[import-not-found]

        if operator == "gated_rms_norm":
            return lambda x, w, b, g: fused_norm_gate.rms_norm_gated(x, g, w, b, eps=EPS)
        function = getattr(layernorm, operator.removeprefix("add_"))
        if operator.startswith("add_"):
            return lambda x, w, b, r: function(x, w, b, r, EPS, True)
        return lambda x, w, b: function(x, w, b, eps=EPS)


class Quack(Provider):
    name = "quack"
    package = "quack"
    install = "pip install quack-kernels"
    operators = *NORMS, "add_rms_norm"

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
        if operator == "add_rms_norm":
            return lambda x, w, b, r: rmsnorm.rmsnorm(x, w, residual=r, eps=EPS, prenorm=True)
        return lambda x, w, b: rmsnorm.rmsnorm(x, w, eps=EPS)


class FlashAttn(Provider):
    name = "flash_attn"
    package = "flash_attn"
    install = "pip install flash-attn --no-build-isolation"
    operators = *NORMS, "add_layer_norm", "add_rms_norm"

    def norm(self, operator: str) -> Norm:
        from flash_attn.ops.triton.layer_norm import layer_norm_fn, rms_norm_fn  # type: ignore[import-not-found]

        function = layer_norm_fn if operator.endswith("layer_norm") else rms_norm_fn
        if operator.startswith("add_"):
            return lambda x, w, b, r: function(x, w, b, residual=r, eps=EPS, prenorm=True)
        return lambda x, w, b: function(x, w, b, eps=EPS)


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


class Copy(Provider):
    """A device copy that moves the case's least bytes, half of them read: the limit of the memory."""

    name = "copy"

    def norm(self, operator: str) -> Norm:
        raise TypeError("copy is no norm: what is timed of it is benchmarks.problem.copy_call")


PROVIDERS: dict[str, Provider] = {
    provider.name: provider()
    for provider in (Tritonln, Eager, Compile, Cudnn, Liger, Fla, Quack, FlashAttn, Apex, TransformerEngine, Copy)
}
