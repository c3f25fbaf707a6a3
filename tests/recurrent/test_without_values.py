"""Recurrent layers and cells that somebody looks at without values: on the meta device, and in torch.fx."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.recurrent import flat
from tritonln.nn import LayerNormGRU, LayerNormGRUCell, LayerNormLSTM, LayerNormLSTMCell


@pytest.mark.parametrize(("ours", "theirs"), [(LayerNormLSTM, nn.LSTM), (LayerNormGRU, nn.GRU)])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}], ids=str)
def test_layers_on_the_meta_device(ours: Any, theirs: Any, options: dict[str, Any]) -> None:
    x = torch.randn(3, 6, 4, device="meta", requires_grad=True)
    found, expected = (flat(layer(4, 5, device="meta", **options)(x)) for layer in (ours, theirs))
    assert [t.shape for t in found] == [t.shape for t in expected]
    assert all(t.is_meta for t in found)
    (dx,) = torch.autograd.grad(found[0].sum(), x)
    assert dx.is_meta
    assert dx.shape == x.shape


@pytest.mark.parametrize(("ours", "theirs"), [(LayerNormLSTMCell, nn.LSTMCell), (LayerNormGRUCell, nn.GRUCell)])
def test_cells_on_the_meta_device(ours: Any, theirs: Any) -> None:
    x = torch.randn(3, 4, device="meta")
    found, expected = (flat(cell(4, 5, device="meta")(x)) for cell in (ours, theirs))
    assert [t.shape for t in found] == [t.shape for t in expected]
    assert all(t.is_meta for t in found)


@pytest.mark.parametrize("kind", [LayerNormLSTM, LayerNormGRU, LayerNormLSTMCell, LayerNormGRUCell])
def test_fx_records_a_layer_whole_as_torch_s(kind: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rnn = nn.Linear(5, 4), kind(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            found = self.rnn(self.first(x))
            return found if kind is LayerNormGRUCell else found[0]

    model, x = Model(), torch.randn(6, 5)
    graph = torch.fx.symbolic_trace(model)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["first", "rnn"]
    assert graph(x).equal(model(x))
