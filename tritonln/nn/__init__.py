"""Modules with torch's constructors and state, on tritonln's kernels."""

from tritonln.nn.norm import LayerNorm

__all__ = ["LayerNorm"]
