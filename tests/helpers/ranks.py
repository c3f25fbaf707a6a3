"""What checks of several ranks have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

CPU = torch.device("cpu")
CHECKS: dict[str, Callable[[DeviceMesh], None]] = {}


def check(function: Callable[[DeviceMesh], None]) -> Callable[[DeviceMesh], None]:
    CHECKS[function.__name__] = function
    return function


def close(found: Any, expected: Any) -> None:
    for out, ref in zip(found, expected, strict=True):
        torch.testing.assert_close(out.full_tensor() if isinstance(out, DTensor) else out, ref)
