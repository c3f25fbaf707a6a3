"""What a provider is: how it is installed, what it supports, how it is called."""

from __future__ import annotations

import abc
import importlib.util
from collections.abc import Collection
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.operators import NORMS, Norm

EPS = 1e-5


class Provider(abc.ABC):
    name: str
    package = "torch"  # the module that must be importable
    install = ""  # the command that brings it
    eps: Any = EPS
    operators: Collection[str] = NORMS
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
        if case.operator.inference and case.direction != "no_grad":
            return f"{case.shape.operator} is for inference"
        return None if case.shape.operator in self.operators else f"it has no {case.shape.operator}"

    def parameter_dtype(self, case: Case) -> torch.dtype:
        return case.torch_dtype

    @abc.abstractmethod
    def norm(self, operator: str) -> Norm:
        """Its function of that name."""

    def configuration(self, case: Case) -> dict[str, Any] | None:
        """What its kernels are launched with, where it can be asked."""
        return None
