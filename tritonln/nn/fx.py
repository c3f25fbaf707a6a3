"""torch.fx records the recurrent layers whole, as it does torch's own."""

from __future__ import annotations

from typing import Any

import torch


def leaf(module: torch.nn.Module, input: torch.fx.Proxy, *arguments: Any, **options: Any) -> torch.fx.Proxy:
    tracer: Any = input.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input, *arguments), options)
