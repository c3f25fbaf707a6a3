"""LayerNorm and its family as hand-written Triton kernels for PyTorch."""

from tritonln import nn, tuning
from tritonln.ops.layer_norm import layer_norm
from tritonln.ops.recurrent.gru import layer_norm_gru
from tritonln.ops.recurrent.lstm import layer_norm_lstm
from tritonln.ops.rms_norm import rms_norm
from tritonln.ops.row_operator import row_operator
from tritonln.version import __version__

__all__ = ["__version__", "layer_norm", "layer_norm_gru", "layer_norm_lstm", "nn", "rms_norm", "row_operator", "tuning"]
