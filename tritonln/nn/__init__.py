"""Modules with torch's constructors and state, on tritonln's kernels."""

from tritonln.nn.dit import DiTBlock, GatedStream
from tritonln.nn.dreamer import DreamerV3Cell, load_dreamerv3
from tritonln.nn.family import AdaptiveLayerNorm, AdaptiveRMSNorm, AddLayerNorm, AddRMSNorm, GatedRMSNorm
from tritonln.nn.llama import KVCache, LlamaBlock, rotary_table
from tritonln.nn.norm import LayerNorm, RMSNorm
from tritonln.nn.qk_norm import QKNorm
from tritonln.nn.replace import NormReport, replace_norms, restore_norms
from tritonln.nn.replace_transformers import TransformerReport, replace_transformers, restore_transformers
from tritonln.nn.rnn import LayerNormGRU, LayerNormLSTM
from tritonln.nn.rnn_cells import LayerNormGRUCell, LayerNormLSTMCell
from tritonln.nn.rnn_weights import (
    load_di_engine_lstm,
    load_dreamer_gru,
    load_fastrnns,
    load_haste_gru,
    load_haste_lstm,
    load_icefall_gru,
    load_icefall_lstm,
    load_nemo_lstm,
    load_sheeprl_gru,
    load_tf_addons,
    load_torchaudio_lstm,
)
from tritonln.nn.stream import Stream
from tritonln.nn.transformer import (
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)

__all__ = [
    "AdaptiveLayerNorm",
    "AdaptiveRMSNorm",
    "AddLayerNorm",
    "AddRMSNorm",
    "DiTBlock",
    "DreamerV3Cell",
    "GatedRMSNorm",
    "GatedStream",
    "KVCache",
    "LayerNorm",
    "LayerNormGRU",
    "LayerNormGRUCell",
    "LayerNormLSTM",
    "LayerNormLSTMCell",
    "LlamaBlock",
    "NormReport",
    "QKNorm",
    "RMSNorm",
    "Stream",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "TransformerReport",
    "load_di_engine_lstm",
    "load_dreamer_gru",
    "load_dreamerv3",
    "load_fastrnns",
    "load_haste_gru",
    "load_haste_lstm",
    "load_icefall_gru",
    "load_icefall_lstm",
    "load_nemo_lstm",
    "load_sheeprl_gru",
    "load_tf_addons",
    "load_torchaudio_lstm",
    "replace_norms",
    "replace_transformers",
    "restore_norms",
    "restore_transformers",
    "rotary_table",
]
