"""LayerNorm and its family as hand-written Triton kernels for PyTorch."""

from tritonln import nn, tuning
from tritonln.ops.adaptive_norm import (
    adaptive_layer_norm,
    adaptive_rms_norm,
    add_adaptive_layer_norm,
    add_adaptive_rms_norm,
)
from tritonln.ops.add_norm import add_layer_norm, add_rms_norm
from tritonln.ops.gated_residual import gated_residual
from tritonln.ops.gated_rms_norm import gated_rms_norm
from tritonln.ops.layer_norm import layer_norm
from tritonln.ops.qk_norm import qk_norm
from tritonln.ops.quantized import quantized_layer_norm, quantized_rms_norm
from tritonln.ops.recurrent.gru import layer_norm_gru
from tritonln.ops.recurrent.lstm import layer_norm_lstm
from tritonln.ops.rms_norm import rms_norm
from tritonln.ops.row_operator import row_operator
from tritonln.version import __version__

__all__ = [
    "__version__",
    "adaptive_layer_norm",
    "adaptive_rms_norm",
    "add_adaptive_layer_norm",
    "add_adaptive_rms_norm",
    "add_layer_norm",
    "add_rms_norm",
    "gated_residual",
    "gated_rms_norm",
    "layer_norm",
    "layer_norm_gru",
    "layer_norm_lstm",
    "nn",
    "qk_norm",
    "quantized_layer_norm",
    "quantized_rms_norm",
    "rms_norm",
    "row_operator",
    "tuning",
]
