"""layer_norm(x, weight, bias) of each Triton library that is installed, and eager's.

For processes without a GPU, on the stub driver or in the interpreter, where every library is to
believe in the same H100.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F

import tritonln
from tritonln.device import TARGETS, interpreting

Norm = Callable[[Any, Any, Any], Any]

EPS = 1e-5
MULTIPROCESSORS = TARGETS["sm_90"].multiprocessors


@functools.cache
def libraries() -> dict[str, Norm]:
    """Those installed, by name; tritonln is the first."""
    found: dict[str, Norm] = {"tritonln": ours}
    for name, load in (("liger", _liger), ("fla", _fla)):
        with warnings.catch_warnings(), contextlib.suppress(ImportError):
            warnings.simplefilter("ignore")
            found[name] = load()
    return found


def eager(x: Any, w: Any, b: Any) -> Any:
    return F.layer_norm(x, w.shape, w, b, EPS)


def ours(x: Any, w: Any, b: Any) -> Any:
    return tritonln.layer_norm(x, w.shape, w, b, EPS)


def _liger() -> Norm:
    liger: Any = importlib.import_module("liger_kernel.ops.layer_norm")
    eps: Any = EPS
    if interpreting():
        import numpy as np
        import triton.language as tl
        from triton.runtime.interpreter import TensorHandle

        # The interpreter has no libdevice and leaves floats Python's, where the compiler makes them fp32.
        liger.rsqrt = lambda value: tl.rsqrt(value)  # looked up late: tl is interpreted during launches only
        eps = tl.tensor(TensorHandle(np.array([EPS], np.float32), tl.float32), tl.float32)
        # Tensors on the CPU would get one program backward.
        _redefine(liger, "layer_norm_backward", "sm_count = 1", f"sm_count = {MULTIPROCESSORS}")
    return lambda x, w, b: liger.LigerLayerNormFunction.apply(x, w, b, eps)


def _fla() -> Norm:
    fla: Any = importlib.import_module("fla.modules.norm.layernorm")
    fla.get_multiprocessor_count = lambda *a, **k: MULTIPROCESSORS
    if interpreting():
        from triton.runtime.autotuner import Autotuner

        Autotuner._bench = lambda self, *args, **options: [1.0]  # all alike, as on the stub driver
    return lambda x, w, b: fla.layer_norm(x, w, b, eps=EPS)


def _redefine(module: Any, function: str, old: str, new: str) -> None:
    """Writes `new` for `old` in a function's source: for what it takes from no name that could be set."""
    source = inspect.getsource(getattr(module, function))
    if old not in source:
        raise RuntimeError(f"{module.__name__}.{function} of the installed version has no {old!r}")
    exec(source.replace(old, new), vars(module))
