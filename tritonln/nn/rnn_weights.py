"""Layers from the weights of other implementations.

Each names its gates and lays out its matrices in its own way, and each is another function; the layer that
comes back is of the variant that computes the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tritonln.nn.rnn import LayerNormGRU, LayerNormLSTM


def load_fastrnns(weights: Mapping[str, Tensor], **options: Any) -> LayerNormLSTM:
    """From the state_dict of ``script_lnlstm`` of PyTorch's benchmarks/fastrnns, or of its LayerNormLSTMCell.

    Gates i, f, g, o; LN(c) is carried.  ``options`` are batch_first and cuda_graph.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for key, t in weights.items():
        found = re.fullmatch(r"(?:layers\.(\d+)\.)?(?:directions\.(\d)\.)?(?:cell\.)?((?:weight|layernorm)_.+)", key)
        if found is None:
            raise ValueError(f"load_fastrnns: expected the parameters of LayerNormLSTMCells, got {key!r}")
        suffix = f"_l{found[1] or 0}" + ("_reverse" if found[2] == "1" else "")
        layers.setdefault(suffix, {})[found[3]] = t
    renamed = {
        name + suffix: cell[theirs]
        for suffix, cell in layers.items()
        for name, theirs in (
            ("weight_ih", "weight_ih"),
            ("weight_hh", "weight_hh"),
            ("ln_ih_weight", "layernorm_i.weight"),
            ("bias_ih", "layernorm_i.bias"),
            ("ln_hh_weight", "layernorm_h.weight"),
            ("bias_hh", "layernorm_h.bias"),
            ("ln_c_weight", "layernorm_c.weight"),
            ("ln_c_bias", "layernorm_c.bias"),
        )
    }
    bidirectional = "_l0_reverse" in layers
    options |= {"num_layers": len(layers) // (1 + bidirectional), "bidirectional": bidirectional, "cell_norm": "carry"}
    return _filled(LayerNormLSTM, renamed, options)


def load_haste_lstm(weights: Mapping[str, Tensor], **options: Any) -> LayerNormLSTM:
    """From the state_dict of haste_pytorch's LayerNormLSTM: kernel, recurrent_kernel, bias, gamma, gamma_h, beta_h.

    Matrices are transposed, gates i, g, f, o, one bias for both norms; c itself is carried.  Zoneout is not
    done here: a layer that was built with it blends states, also when it evaluates.
    """
    w_ih, w_hh = weights["gamma"]
    renamed = {
        "weight_ih_l0": weights["kernel"].t(),
        "weight_hh_l0": weights["recurrent_kernel"].t(),
        "bias_ih_l0": weights["bias"],
        "bias_hh_l0": torch.zeros_like(weights["bias"]),
        "ln_ih_weight_l0": w_ih,
        "ln_hh_weight_l0": w_hh,
    }
    renamed = {name: reordered(t, (0, 2, 1, 3)) for name, t in renamed.items()}
    renamed |= {"ln_c_weight_l0": weights["gamma_h"], "ln_c_bias_l0": weights["beta_h"]}
    return _filled(LayerNormLSTM, renamed, options)


def load_haste_gru(weights: Mapping[str, Tensor], **options: Any) -> LayerNormGRU:
    """From the state_dict of haste_pytorch's LayerNormGRU: kernel, recurrent_kernel, bias, recurrent_bias, gamma.

    Matrices are transposed, gates z, r, n, all 3H values of a product normalized together.
    """
    w_ih, w_hh = weights["gamma"]
    renamed = {
        "weight_ih_l0": weights["kernel"].t(),
        "weight_hh_l0": weights["recurrent_kernel"].t(),
        "bias_ih_l0": weights["bias"],
        "bias_hh_l0": weights["recurrent_bias"],
        "ln_ih_weight_l0": w_ih,
        "ln_hh_weight_l0": w_hh,
    }
    renamed = {name: reordered(t, (1, 0, 2)) for name, t in renamed.items()}
    return _filled(LayerNormGRU, renamed, {**options, "norm_groups": "joint"})


def load_tf_addons(weights: Sequence[Any], eps: float = 1e-3, **options: Any) -> LayerNormLSTM:
    """From ``get_weights()`` of TensorFlow Addons' LayerNormLSTMCell, arrays or tensors.

    Their order: kernel, recurrent_kernel, bias (unless use_bias=False), then gamma and beta of kernel_norm,
    recurrent_norm and state_norm.  Matrices are transposed, gates i, f, c, o, LN(c) is carried, and the
    bias comes on top of both norms'.  ``eps`` is their norm_epsilon.
    """
    arrays = [torch.as_tensor(w) for w in weights]
    if len(arrays) not in (8, 9):
        raise ValueError(f"load_tf_addons: expected 8 or 9 arrays, got {len(arrays)}")
    kernel, recurrent_kernel, *bias = arrays[:-6]
    w_ih, b_ih, w_hh, b_hh, w_c, b_c = arrays[-6:]
    renamed = {
        "weight_ih_l0": kernel.t(),
        "weight_hh_l0": recurrent_kernel.t(),
        "bias_ih_l0": b_ih + bias[0] if bias else b_ih,
        "bias_hh_l0": b_hh,
        "ln_ih_weight_l0": w_ih,
        "ln_hh_weight_l0": w_hh,
        "ln_c_weight_l0": w_c,
        "ln_c_bias_l0": b_c,
    }
    return _filled(LayerNormLSTM, renamed, {**options, "cell_norm": "carry", "eps": eps})


def reordered(t: Tensor, gates: tuple[int, ...]) -> Tensor:
    """The gates, which are blocks of rows, in another order."""
    blocks = t.chunk(len(gates))
    return torch.cat([blocks[k] for k in gates])


def _filled(kind: Any, weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> Any:
    first = weights["weight_ih_l0"]
    hidden_size = weights["weight_hh_l0"].shape[1]
    layer = kind(first.shape[1], hidden_size, device=first.device, dtype=first.dtype, **options)
    layer.load_state_dict(weights)
    return layer
