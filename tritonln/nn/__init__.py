"""Modules with torch's constructors and state, on tritonln's kernels."""

from tritonln.nn.norm import LayerNorm, RMSNorm
from tritonln.nn.rnn import LayerNormGRU, LayerNormLSTM
from tritonln.nn.rnn_cells import LayerNormGRUCell, LayerNormLSTMCell
from tritonln.nn.rnn_weights import load_fastrnns, load_haste_gru, load_haste_lstm, load_tf_addons

__all__ = [
    "LayerNorm",
    "LayerNormGRU",
    "LayerNormGRUCell",
    "LayerNormLSTM",
    "LayerNormLSTMCell",
    "RMSNorm",
    "load_fastrnns",
    "load_haste_gru",
    "load_haste_lstm",
    "load_tf_addons",
]
