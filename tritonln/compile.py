"""From a noted launch to a compiled kernel, for a GPU that need not be there."""

from __future__ import annotations

from typing import Any

import torch

from tritonln.device import Device
from tritonln.dtypes import NAMES
from tritonln.launch import Recorded


def compile_launch(call: Recorded, device: Device) -> Any:
    """Triton's CompiledKernel of a noted launch, for pointers aligned to 16 bytes."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, values = call.launch.kernel, (*call.args, *call.launch.constants)
    signature: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    aligned: dict[tuple[int, ...], list[list[Any]]] = {}

    def kind(value: Any, annotation: str, path: tuple[int, ...]) -> Any:
        if isinstance(value, tuple):
            return tuple(kind(v, annotation, (*path, i)) for i, v in enumerate(value))
        if isinstance(value, torch.Tensor):
            aligned[path] = [["tt.divisibility", 16]]
            return "*" + NAMES[value.dtype]
        return annotation or "i64"

    for i, (parameter, value) in enumerate(zip(kernel.params, values, strict=True)):
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            signature[parameter.name] = kind(value, parameter.annotation_type, (i,))
    with knobs.runtime.scope():
        knobs.runtime.add_stages_inspection_hook = None  # an emulated GPU's, which leaves machine code out
        return triton.compile(
            ASTSource(kernel, signature, constexprs=constants, attrs=aligned),
            target=GPUTarget(device.backend, device.arch, device.warp_size),
            options=dict(call.launch.options),
        )
