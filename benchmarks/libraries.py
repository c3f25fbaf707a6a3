"""layer_norm(x, weight, bias) of each Triton library that is installed, and eager's.

For processes without a GPU, on the stub driver or in the interpreter, where every library is to
believe in the same H100.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any

from benchmarks.operators import Norm
from benchmarks.provider import EPS
from benchmarks.providers import PROVIDERS
from tritonln.device import TARGETS, interpreting

MULTIPROCESSORS = TARGETS["sm_90"].multiprocessors

eager = PROVIDERS["eager"].norm("layer_norm")


@functools.cache
def libraries() -> dict[str, Norm]:
    """Those installed, by name; tritonln is the first."""
    prepare = {"liger": _prepare_liger, "fla": _prepare_fla}
    found = {}
    for name, provider in PROVIDERS.items():
        if provider.compiles and provider.missing() is None:
            found[name] = provider.norm("layer_norm")
            if name in prepare:
                prepare[name]()
    return found


def _prepare_liger() -> None:
    if not interpreting():
        return
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    liger: Any = importlib.import_module("liger_kernel.ops.layer_norm")
    # The interpreter has no libdevice and leaves floats Python's, where the compiler makes them fp32.
    liger.rsqrt = lambda value: tl.rsqrt(value)  # looked up late: tl is interpreted during launches only
    PROVIDERS["liger"].eps = tl.tensor(TensorHandle(np.array([EPS], np.float32), tl.float32), tl.float32)
    spread_liger()


def spread_liger() -> None:
    """As many programs backward as on the H100; tensors on the CPU would get one."""
    liger = importlib.import_module("liger_kernel.ops.layer_norm")
    _redefine(liger, "layer_norm_backward", "sm_count = 1", f"sm_count = {MULTIPROCESSORS}")


def _prepare_fla() -> None:
    fla: Any = importlib.import_module("fla.modules.norm.layernorm")
    fla.get_multiprocessor_count = lambda *a, **k: MULTIPROCESSORS
    if interpreting():
        from triton.runtime.autotuner import Autotuner

        Autotuner._bench = lambda self, *args, **options: [1.0]  # all alike, as on the stub driver


def _redefine(module: Any, function: str, old: str, new: str) -> None:
    """Writes `new` for `old` in a function's source: for what it takes from no name that could be set."""
    source = inspect.getsource(getattr(module, function))
    if old not in source:
        raise RuntimeError(f"{module.__name__}.{function} of the installed version has no {old!r}")
    exec(source.replace(old, new), vars(module))
