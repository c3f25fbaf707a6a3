"""Layers from the weights of other implementations.

Each names its gates and lays out its matrices in its own way, and each is another function; the layer that
comes back is of the variant that computes the same:

| whose                | layer | options                                                                               |
|----------------------|-------|---------------------------------------------------------------------------------------|
| Ba et al.; haste     | LSTM  | none                                                                                  |
| fastrnns; NeMo       | LSTM  | cell_norm="carry"                                                                     |
| TensorFlow Addons    | LSTM  | cell_norm="carry", eps=1e-3                                                           |
| DI-engine            | LSTM  | cell_norm="none"                                                                      |
| torchaudio's RNN-T   | LSTM  | gate_norm="sum", cell_norm="carry", bias=False                                        |
| icefall              | LSTM  | gate_norm="sum", norm_groups="gates", cell_norm="carry"                               |
| torch.nn.LSTM        | LSTM  | gate_norm="none", cell_norm="none"                                                    |
| Ba et al.            | GRU   | none                                                                                  |
| haste                | GRU   | norm_groups="joint"                                                                   |
| NM512's and          | GRU   | gate_norm="sum", norm_groups="joint", reset="candidate", update_bias=-1.0, eps=1e-3,  |
| sheeprl's Dreamer    |       | bias=False                                                                            |
| icefall              | GRU   | gate_norm="sum", norm_groups="gates"                                                  |

The core of DreamerV3's own code is another function, :class:`tritonln.nn.DreamerV3Cell`: its matrices are 8 blocks on a
diagonal, RMS norms stand before the gates and none on them, and h reaches the gates through two layers.

The order of gates and what is transposed is the loaders' business: here gates are torch's i, f, g, o and r, z, n, and
z keeps the old state.
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
    return _of_products("load_fastrnns", weights, options)


def load_nemo_lstm(weights: Mapping[str, Tensor], **options: Any) -> LayerNormLSTM:
    """From the state_dict of NeMo's ``rnn(norm="layer")`` (ln_lstm, a StackedLSTM), or of one of its cells.

    The function and the names are fastrnns'; the bias of the forget gate is in that of the recurrent norm.
    """
    return _of_products("load_nemo_lstm", weights, options)


def _of_products(loader: str, weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> LayerNormLSTM:
    norms = [f"layernorm_{norm}.{kind}" for norm in "ihc" for kind in ("weight", "bias")]
    renamed = {
        name + suffix: cell[theirs]
        for suffix, cell in _cells(loader, weights, ["weight_ih", "weight_hh", *norms]).items()
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
    return _filled(LayerNormLSTM, renamed, {**options, "cell_norm": "carry"})


def load_torchaudio_lstm(weights: Mapping[str, Tensor], eps: float = 1e-5, **options: Any) -> LayerNormLSTM:
    """From the state_dict of torchaudio's ``_CustomLSTM(layer_norm=True)``, or of a predictor's ``lstm_layers``.

    The sum of the products is normalized, gates i, f, g, o; LN(c) is carried.  ``eps`` is their layer_norm_epsilon.
    """
    theirs = ["x2g.weight", "p2g.weight", "g_norm.weight", "g_norm.bias", "c_norm.weight", "c_norm.bias"]
    ours = ["weight_ih", "weight_hh", "ln_weight", "ln_bias", "ln_c_weight", "ln_c_bias"]
    cells = _cells("load_torchaudio_lstm", weights, theirs)
    renamed = {name + suffix: cell[k] for suffix, cell in cells.items() for name, k in zip(ours, theirs)}
    return _filled(LayerNormLSTM, renamed, {**options, "gate_norm": "sum", "cell_norm": "carry", "eps": eps})


def load_icefall_lstm(weights: Mapping[str, Tensor], **options: Any) -> LayerNormLSTM:
    """From the state_dict of icefall's LayerNormLSTM (librispeech, transducer/rnn.py), of its layer or its cell.

    Each gate of the sum has a norm of its own, i, f, g, o; LN(c) is carried.  Theirs is batch_first.
    """
    renamed = _of_gates("load_icefall_lstm", weights, ("i", "f", "cx", "o"), "cy")
    return _filled(
        LayerNormLSTM, renamed, {**options, "gate_norm": "sum", "norm_groups": "gates", "cell_norm": "carry"}
    )


def load_icefall_gru(weights: Mapping[str, Tensor], **options: Any) -> LayerNormGRU:
    """From the state_dict of icefall's LayerNormGRU (librispeech, transducer/rnn.py), of its layer or its cell.

    Each gate of the sum has a norm of its own, r, z, n, with r inside of that of n.  Theirs is batch_first.
    """
    renamed = _of_gates("load_icefall_gru", weights, ("r", "i", "n"))
    return _filled(LayerNormGRU, renamed, {**options, "gate_norm": "sum", "norm_groups": "gates"})


def _of_gates(
    loader: str, weights: Mapping[str, Tensor], gates: tuple[str, ...], cell_norm: str | None = None
) -> dict[str, Tensor]:
    norms = [*gates, cell_norm] if cell_norm else gates
    theirs = [f"layernorm_{norm}.{kind}" for norm in norms for kind in ("weight", "bias")]
    renamed: dict[str, Tensor] = {}
    for suffix, cell in _cells(loader, weights, ["weight_ih", "weight_hh", *theirs], ["bias_ih", "bias_hh"]).items():
        renamed |= {name + suffix: t for name, t in cell.items() if not name.startswith("layernorm")}
        for kind in ("weight", "bias"):
            renamed[f"ln_{kind}{suffix}"] = torch.cat([cell[f"layernorm_{gate}.{kind}"] for gate in gates])
            if cell_norm:
                renamed[f"ln_c_{kind}{suffix}"] = cell[f"layernorm_{cell_norm}.{kind}"]
    return renamed


def load_di_engine_lstm(weights: Mapping[str, Tensor], **options: Any) -> LayerNormLSTM:
    """From the state_dict of DI-engine's ``LSTM(norm_type="LN")``: wx, wh, norm, bias.

    Matrices are transposed, gates i, f, o, g, the bias comes on top of both norms'; c is not normalized.
    """
    layers = weights["bias"].shape[0] if "bias" in weights else 1
    names = ["bias", *(f"{kind}.{n}" for n in range(layers) for kind in ("wx", "wh"))]
    names += [f"norm.{n}.{kind}" for n in range(2 * layers) for kind in ("weight", "bias")]
    expect("load_di_engine_lstm", weights, names)
    renamed: dict[str, Tensor] = {}
    for n in range(layers):
        renamed |= {
            f"weight_ih_l{n}": weights[f"wx.{n}"].t(),
            f"weight_hh_l{n}": weights[f"wh.{n}"].t(),
            f"bias_ih_l{n}": weights[f"norm.{2 * n}.bias"] + weights["bias"][n],
            f"bias_hh_l{n}": weights[f"norm.{2 * n + 1}.bias"],
            f"ln_ih_weight_l{n}": weights[f"norm.{2 * n}.weight"],
            f"ln_hh_weight_l{n}": weights[f"norm.{2 * n + 1}.weight"],
        }
    renamed = {name: reordered(t, (0, 1, 3, 2)) for name, t in renamed.items()}
    return _filled(LayerNormLSTM, renamed, {**options, "cell_norm": "none"})


def load_dreamer_gru(weights: Mapping[str, Tensor], eps: float = 1e-3, **options: Any) -> LayerNormGRU:
    """From the state_dict of the GRUCell of NM512's dreamerv3-torch, one matrix for [x; h] and its norm.

    Gates r, n, z, all of the sum normalized together, r a factor of the whole candidate.  Where the next input is drawn
    from a state, as in Dreamer, it is called with sequences of one step.
    """
    matrix, gain, bias = "layers.GRU_linear.weight", "layers.GRU_norm.weight", "layers.GRU_norm.bias"
    expect("load_dreamer_gru", weights, [matrix, gain, bias])
    H = len(weights[gain]) // 3
    w_ih, w_hh = weights[matrix].split((weights[matrix].shape[1] - H, H), 1)
    return _dreamer(
        {"weight_ih": w_ih, "weight_hh": w_hh, "ln_weight": weights[gain], "ln_bias": weights[bias]}, eps, options
    )


def load_sheeprl_gru(weights: Mapping[str, Tensor], eps: float = 1e-3, **options: Any) -> LayerNormGRU:
    """From the state_dict of sheeprl's LayerNormGRUCell, one matrix for [h; x], its bias if it has one, and its norm.

    Else as :func:`load_dreamer_gru`.  ``eps`` is that of its layer_norm_kw.
    """
    matrix, gain, bias = "linear.weight", "layer_norm.weight", "layer_norm.bias"
    expect("load_sheeprl_gru", weights, [matrix, gain, bias], ["linear.bias"])
    H = len(weights[gain]) // 3
    w_hh, w_ih = weights[matrix].split((H, weights[matrix].shape[1] - H), 1)
    renamed = {"weight_ih": w_ih, "weight_hh": w_hh, "ln_weight": weights[gain], "ln_bias": weights[bias]}
    if "linear.bias" in weights:
        renamed |= {"bias_ih": weights["linear.bias"], "bias_hh": torch.zeros_like(weights["linear.bias"])}
    return _dreamer(renamed, eps, options)


def _dreamer(weights: Mapping[str, Tensor], eps: float, options: Mapping[str, Any]) -> LayerNormGRU:
    """Their update is 1 - z here: of z, gain and bias change their sign behind the norm."""
    renamed = {f"{name}_l0": reordered(t, (0, 2, 1)) for name, t in weights.items()}
    for name in ("ln_weight_l0", "ln_bias_l0"):
        r, z, n = renamed[name].chunk(3)
        renamed[name] = torch.cat([r, -z, n])
    variant = {"gate_norm": "sum", "norm_groups": "joint", "reset": "candidate", "update_bias": -1.0, "eps": eps}
    return _filled(LayerNormGRU, renamed, {**options, **variant})


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


def expect(loader: str, weights: Mapping[str, Tensor], names: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Raises for the first key that should not be there, and for those that should."""
    unknown = [name for name in weights if name not in (*names, *optional)]
    missing = [name for name in names if name not in weights]
    if unknown or missing:
        problem = f"got {unknown[0]!r}" if unknown else f"{', '.join(map(repr, missing))} missing"
        raise ValueError(f"{loader}: expected {', '.join(map(repr, names))}, but {problem}")


def _cells(
    loader: str, weights: Mapping[str, Tensor], names: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, dict[str, Tensor]]:
    """The parameters of each cell by the suffix of its layer and direction: of stacked layers, a layer or a cell."""
    cells: dict[str, dict[str, Tensor]] = {}
    for key, t in weights.items():
        found = re.fullmatch(r"(?:(?:lstm_)?layers\.(\d+)\.)?(?:directions\.(\d)\.)?(?:cell\.)?(.+)", key)
        if found is None or found[3] not in (*names, *optional):
            raise ValueError(f"{loader}: expected {', '.join(map(repr, names))}, for each layer, but got {key!r}")
        suffix = f"_l{found[1] or 0}" + ("_reverse" if found[2] == "1" else "")
        cells.setdefault(suffix, {})[found[3]] = t
    for suffix in cells or {"_l0": {}}:
        expect(f"{loader}, layer {suffix[2:]}", cells.get(suffix, {}), names, optional)
    return cells


def reordered(t: Tensor, gates: tuple[int, ...]) -> Tensor:
    """The gates, which are blocks of rows, in another order."""
    blocks = t.chunk(len(gates))
    return torch.cat([blocks[k] for k in gates])


def _filled(kind: Any, weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> Any:
    first, matrices = weights["weight_ih_l0"], [name for name in weights if name.startswith("weight_hh")]
    bidirectional = "weight_hh_l0_reverse" in matrices
    sizes = {
        "num_layers": len(matrices) // (1 + bidirectional),
        "bidirectional": bidirectional,
        "bias": "bias_ih_l0" in weights,
    }
    hidden_size = weights["weight_hh_l0"].shape[1]
    layer = kind(first.shape[1], hidden_size, **sizes, device=first.device, dtype=first.dtype, **options)
    layer.load_state_dict(weights)
    return layer
