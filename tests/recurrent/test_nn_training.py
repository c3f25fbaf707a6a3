"""What training relies on: initial values, torch.compile, autocast, 16-bit layers."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.nn.utils.rnn import pack_padded_sequence

from tests.helpers.recurrent import flat
from tritonln.nn import LayerNormGRU, LayerNormGRUCell, LayerNormLSTM, LayerNormLSTMCell

pytestmark = pytest.mark.usefixtures("aten")

LAYERS = [LayerNormLSTM, LayerNormGRU]


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_stay_flat_over_constant_rows(layer: Any) -> None:
    """Left padding: steps whose input is zero.  With biases that start at zero each of them multiplies the
    gradient by 1/sqrt(eps) and more, to overflow.
    """
    norms: dict[bool, list[float]] = {}
    for zero in (False, True):
        norms[zero] = []
        for padding in (0, 2, 4):
            torch.manual_seed(0)
            rnn = layer(8, 32)
            if zero:
                for name, p in rnn.named_parameters():
                    if "bias" in name:
                        nn.init.zeros_(p)
            x = torch.cat([torch.zeros(padding, 4, 8), torch.randn(10, 4, 8)])
            rnn(x)[0][-1].sum().backward()
            norms[zero].append(float(torch.stack([p.grad.norm() for p in rnn.parameters()]).norm()))
    uniform, zeros = norms[False], norms[True]
    assert max(uniform) <= 3 * min(uniform)
    assert zeros[2] >= 1e3 * zeros[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.parametrize("layer", LAYERS)
def test_compiled_without_a_graph_break(layer: Any) -> None:
    torch._dynamo.reset()
    rnn, x = layer(4, 5, num_layers=2, bidirectional=True), torch.randn(6, 3, 4)
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    expected = rnn(x)[0]
    found = compiled(x)[0]
    assert found.equal(expected)
    a, b = (torch.autograd.grad(y.square().sum(), list(rnn.parameters())) for y in (expected, found))
    assert all(p.equal(q) for p, q in zip(a, b))


def test_a_direction_is_one_op_of_the_graph() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keeping(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    torch.compile(LayerNormLSTM(4, 5), fullgraph=True, backend=keeping)(torch.randn(6, 3, 4))
    (graph,) = graphs
    ops = [str(n.target) for n in graph.graph.nodes if "tritonln" in str(n.target)]
    assert len(ops) == 1, ops


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_autocast(layer: Any, packed: bool) -> None:
    """h is in its dtype, and c in fp32 or in its dtype too, whatever of the three dtypes the others have."""
    kinds = torch.float32, torch.bfloat16, torch.float16
    for dtype, of_module, of_x, of_state in itertools.product(kinds[1:], kinds, kinds, [None, *kinds]):
        rnn, x = layer(4, 5, dtype=of_module), torch.randn(6, 3, 4).to(of_x)
        hx = None if of_state is None else torch.zeros(1, 3, 5, dtype=of_state)
        states = hx if hx is None or layer is LayerNormGRU else (hx, hx)
        sequence = pack_padded_sequence(x, torch.tensor([6, 4, 1])) if packed else x
        with torch.autocast("cpu", dtype):
            y, found = rnn(sequence, states)
        h, *c = flat(found)
        assert (y.data if packed else y).dtype == h.dtype == dtype
        assert all(t.dtype == (torch.float32 if (of_state or of_x) == torch.float32 else dtype) for t in c)
    h.float().sum().backward()
    assert all(p.grad.dtype == of_module for p in rnn.parameters())


@pytest.mark.parametrize(("layer", "dtype"), list(itertools.product(LAYERS, [torch.float16, torch.bfloat16])))
def test_16_bit_layers(layer: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)  # in one of thirty others a row varies so little that its norm enlarges the rounding
    rnn, x = layer(4, 5, dtype=dtype), torch.randn(6, 3, 4).to(dtype)
    y, state = rnn(x)
    assert all(t.dtype == dtype for t in flat((y, state)))
    torch.testing.assert_close(y.float(), rnn.float()(x.float())[0], rtol=0, atol=4 * torch.finfo(dtype).eps)


def of_each_sample(net: nn.Module, x: Any) -> list[Tensor]:
    """The gradients of its parameters."""
    found = call_for_per_sample_grads(net, batch_size=3)(x)
    torch.stack([t.pow(3).sum() for t in flat(found) if t.is_floating_point()]).sum().backward()
    return [p.grad_sample for p in net.parameters()]  # type: ignore[misc]


@pytest.mark.parametrize("make", [*LAYERS, LayerNormLSTMCell, LayerNormGRUCell])
def test_per_sample_gradients_of_layers(make: Any) -> None:
    layer = make in LAYERS
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True} if layer else {}
    net, x = make(4, 5, dtype=torch.float64, **options), torch.randn(3, *[6] * layer, 4, dtype=torch.float64)
    found = of_each_sample(net, x)
    for i in range(3):
        loss = torch.stack([t.pow(3).sum() for t in flat(net(x[i : i + 1]))]).sum()
        for g, ref in zip(found, torch.autograd.grad(loss, list(net.parameters()))):
            torch.testing.assert_close(g[i], ref)
    for p in net.parameters():
        p.grad_sample = None  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="input batch size of 2 with ExpandedWeight of batch size 3"):
        of_each_sample(net, x[:2])


def test_per_sample_gradients_of_packed_sequences_are_torch_s() -> None:
    lstm = nn.LSTM(4, 5, dtype=torch.float64)  # in fp32 torch has a kernel that it refuses here
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    packed = pack_padded_sequence(x, torch.tensor([2, 6, 4]), enforce_sorted=False)
    ours = LayerNormLSTM.from_lstm(lstm, gate_norm="none", cell_norm="none")
    for g, ref in zip(of_each_sample(ours, packed), of_each_sample(lstm, packed), strict=True):
        torch.testing.assert_close(g, ref)
