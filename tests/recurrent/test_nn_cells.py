"""LayerNormLSTMCell and LayerNormGRUCell: a step of the layers, and torch's cells in their errors."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.recurrent import flat
from tritonln.nn import LayerNormGRU, LayerNormGRUCell, LayerNormLSTM, LayerNormLSTMCell

pytestmark = pytest.mark.usefixtures("aten")


@pytest.mark.parametrize(
    "variant",
    [
        *({}, {"cell_norm": "carry"}, {"cell_norm": "none"}, {"gate_norm": "none"}, {"bias": False}),
        {"gate_norm": "sum", "norm_groups": "gates", "bias": False},
    ],
)
def test_lstm_cell_is_a_step_of_the_layer(variant: dict[str, Any]) -> None:
    cell, layer = LayerNormLSTMCell(4, 5, **variant), LayerNormLSTM(4, 5, **variant)
    layer.load_state_dict({name + "_l0": t for name, t in cell.state_dict().items()})
    x, state = torch.randn(6, 3, 4), (torch.randn(3, 5), torch.randn(3, 5))
    y, (h_n, c_n) = layer(x, tuple(s[None] for s in state))
    for t in range(6):
        state = cell(x[t], state)
        torch.testing.assert_close(state[0], y[t])
    torch.testing.assert_close(state[1], c_n[0])
    one = cell(x[0, 0])
    assert one[0].shape == one[1].shape == (5,)
    torch.testing.assert_close(one[0], layer(x[:1])[0][0, 0])


@pytest.mark.parametrize(
    "variant",
    [
        {"norm_groups": "joint"},
        {"gate_norm": "sum", "norm_groups": "joint", "reset": "candidate", "update_bias": -1.0},
        {"gate_norm": "sum"},
    ],
)
def test_gru_cell_is_a_step_of_the_layer(variant: dict[str, Any]) -> None:
    cell, layer = LayerNormGRUCell(4, 5, **variant), LayerNormGRU(4, 5, **variant)
    layer.load_state_dict({name + "_l0": t for name, t in cell.state_dict().items()})
    x, h = torch.randn(6, 3, 4), torch.randn(3, 5)
    y, _ = layer(x, h[None])
    for t in range(6):
        h = cell(x[t], h)
        torch.testing.assert_close(h, y[t])
    assert cell(x[0, 0]).shape == (5,)
    options = ", ".join(f"{k}={v}" for k, v in variant.items())
    assert repr(cell) == f"LayerNormGRUCell(4, 5, {options})"


@pytest.mark.parametrize("input", [torch.randn(3, 4), torch.randn(4)])
@pytest.mark.parametrize(("ours", "theirs"), [(LayerNormLSTMCell, nn.LSTMCell), (LayerNormGRUCell, nn.GRUCell)])
def test_no_units(ours: Any, theirs: Any, input: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's: "Initializing zero-element tensors is a no-op"
        cells = ours(4, 0), theirs(4, 0)
    found, expected = (flat(cell(input)) for cell in cells)
    assert [t.shape for t in found] == [t.shape for t in expected]


@pytest.mark.parametrize(
    ("input", "hx"),
    [
        (torch.randn(1, 3, 4), None),
        (torch.randn(3, 5), None),
        (torch.randn(3, 4), torch.randn(2, 5)),
        (torch.randn(3, 4), torch.randn(3, 6)),
    ],
)
@pytest.mark.parametrize(("ours", "theirs"), [(LayerNormLSTMCell, nn.LSTMCell), (LayerNormGRUCell, nn.GRUCell)])
def test_misfits_of_cells(ours: Any, theirs: Any, input: Tensor, hx: Tensor | None) -> None:
    state = (hx, hx) if theirs is nn.LSTMCell and hx is not None else hx
    with pytest.raises((RuntimeError, ValueError)) as expected:
        theirs(4, 5)(input, state)
    with pytest.raises(expected.type) as found:
        ours(4, 5)(input, state)
    assert str(found.value) == str(expected.value)
