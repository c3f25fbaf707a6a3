"""layer_norm(x, weight, bias) of each library that is installed, for use on the stub driver."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F

import tritonln

Norm = Callable[[Any, Any, Any], Any]


def libraries() -> Iterator[tuple[str, Norm]]:
    yield "eager", lambda x, w, b: F.layer_norm(x, w.shape, w, b)
    yield "tritonln", lambda x, w, b: tritonln.layer_norm(x, w.shape, w, b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from liger_kernel.ops.layer_norm import LigerLayerNormFunction  # type: ignore[import-not-found]

            yield "liger", lambda x, w, b: LigerLayerNormFunction.apply(x, w, b, 1e-5)
        except ImportError:
            pass
        try:
            from fla.modules.norm import layernorm as fla  # type: ignore[import-not-found]

            fla.get_multiprocessor_count = lambda *a, **k: 132
            yield "fla", lambda x, w, b: fla.layer_norm(x, w, b, eps=1e-5)
        except ImportError:
            pass
