"""Recurrent operators and layers in graphs: compiled, exported, traced, seen by a dispatch mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import compiled_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.forward_ad import dual_level, make_dual
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.problems import BF16, F32
from tests.helpers.recurrent import flat, gru_problem, lstm_problem
from tritonln.nn import LayerNormGRU, LayerNormGRUCell, LayerNormLSTM, LayerNormLSTMCell
from tritonln.ops import library

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own

LAYERS = [LayerNormLSTM, LayerNormGRU]
PROBLEMS: dict[str, Any] = {"layer_norm_lstm": lstm_problem, "layer_norm_gru": gru_problem}


VARIANTS = [("layer_norm_lstm", {}), ("layer_norm_lstm", {"P": 3}), ("layer_norm_lstm", {"gates": False})]
VARIANTS += [("layer_norm_lstm", {"summed": True}), ("layer_norm_gru", {}), ("layer_norm_gru", {"summed": True})]


class Net(nn.Module):
    """A layer between others, whose gradients have the strides of their inputs."""

    def __init__(self, layer: Any, **options: Any) -> None:
        super().__init__()
        self.first, self.rnn, self.last = nn.Linear(4, 4), layer(4, 5, **options), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.rnn(self.first(x))[0])
        return y.square().sum()


def gradients(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(module(x), list(module.parameters()))


def penalized(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    y, parameters = module(x), list(module.parameters())
    dw = torch.autograd.grad(y, parameters[0], create_graph=True)[0]
    return torch.autograd.grad(y + dw.pow(2).sum(), parameters)


def expect_close(found: Any, expected: Any) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# ---- what the custom ops return without values ---------------------------------------------------


def strided(t: Tensor | None) -> Tensor | None:
    """With the strides that batch_first gives a sequence, and those of a transposed matrix."""
    return t if t is None or t.dim() < 2 else t.transpose(0, 1).contiguous().transpose(0, 1)


def calls(name: str, dtype: torch.dtype, save: bool, variant: dict[str, Any]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    args = {k: strided(t) for k, t in PROBLEMS[name](3, 2, 4, 5, dtype, torch.device("cpu"), **variant).items()}
    lengths = torch.tensor([3, 1])
    if name == "layer_norm_lstm":
        order = ("x", "h0", "c0", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "ln_ih_weight", "ln_hh_weight")
        inputs = [args.get(k) for k in (*order, "ln_c_weight", "ln_c_bias", "weight_hr", "ln_weight", "ln_bias")]
        constants = (lengths, None, False, False, "joint", 1e-5, True)
    else:
        names = ("x", "h0", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "ln_ih_weight", "ln_hh_weight")
        inputs = [args.get(k) for k in (*names, "ln_weight", "ln_bias")]
        constants = (lengths, None, False, "joint" if variant else "paper", "candidate", 1e-5, True)
    op, backward = library.op(name), library.op(f"{name}_backward")
    yield op, (*inputs, *constants, save)
    h, *rest = op(*inputs, *constants, save)
    directions, saved = ([h, rest[0]], [h, *rest]) if name == "layer_norm_lstm" else ([h], [h, *rest])
    for parity in (0, 1):
        needs = [t is not None and k % 2 == parity for k, t in enumerate(inputs)]
        yield backward, (list(map(strided, directions)), inputs, saved, *constants, needs)


@pytest.fixture(params=["kernels", "aten"])
def either(request: pytest.FixtureRequest) -> None:
    if request.param == "aten":
        request.getfixturevalue("aten")


@pytest.mark.thorough
@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=str)
def test_fake_results_are_laid_out_as_real_ones(name: str, variant: Any, dtype: torch.dtype, save: bool) -> None:
    for op, args in calls(name, dtype, save, variant):
        real = op(*args)
        with FakeTensorMode() as mode:
            fake = op(*tree_map_only(Tensor, mode.from_tensor, args))
        for a, b in zip(real, fake, strict=True):
            assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


# ---- compiled ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("layer", LAYERS)
def test_compiled_between_others(layer: Any) -> None:
    torch._dynamo.reset()
    net, x = Net(layer, batch_first=True, bidirectional=False), torch.randn(3, 6, 4)
    expect_close(gradients(torch.compile(net, fullgraph=True, backend="aot_eager"), x), gradients(net, x))


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("layer", [LayerNormGRU, *thorough(LayerNormLSTM)])
def test_sequences_of_every_length_have_one_graph(layer: Any) -> None:
    """What the ops return is known without a walk through the time steps, which would make their number a constant."""
    torch._dynamo.reset()
    net, counter = Net(layer), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, backend=counter, dynamic=True)
    compiled(torch.randn(3, 2, 4))
    first = counter.frame_count
    for T, B in ((5, 3), (9, 4)):
        x = torch.randn(T, B, 4)
        expect_close(gradients(compiled, x), gradients(net, x))
    assert counter.frame_count == first


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("layer", [LayerNormGRU, *thorough(LayerNormLSTM)])
def test_lengths_that_only_values_tell(layer: Any) -> None:
    class OfTheChosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = layer(4, 5)

        def forward(self, x: Tensor, some: Tensor) -> Tensor:
            y: Tensor = self.rnn(x[some.nonzero()[:, 0]])[0]
            return y

    net, x = OfTheChosen(), torch.randn(4, 2, 4)
    exported = torch.export.export(net, (x, torch.tensor([1, 0, 1, 1]))).module()
    for some in ([1, 0, 1, 1], [0, 1, 0, 0]):
        assert exported(x, torch.tensor(some)).equal(net(x, torch.tensor(some)))


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("layer", LAYERS)
def test_compiled_code_refuses_second_derivatives(layer: Any) -> None:
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        penalized(torch.compile(Net(layer), backend="aot_eager"), torch.randn(6, 3, 4))


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("layer", LAYERS)
def test_compiled_autograd(layer: Any) -> None:
    torch._dynamo.reset()
    net, x = Net(layer), torch.randn(6, 3, 4)
    expected = gradients(net, x)
    with compiled_autograd._enable(torch.compile(backend="aot_eager")):
        net(x).backward()
    expect_close([p.grad for p in net.parameters()], expected)


# ---- captured ------------------------------------------------------------------------------------


@pytest.mark.parametrize("derive", [gradients, penalized])
@pytest.mark.parametrize("layer", LAYERS)
def test_captured_without_gradients_and_trained(layer: Any, derive: Any) -> None:
    """What the backward wants to know was not saved in the graph."""
    net, x = Net(layer), torch.randn(3, 2, 4)
    with torch.no_grad():
        exported = torch.export.export(net, (x,)).module()
    expect_close(derive(exported, x), derive(net, x))


@pytest.mark.parametrize("layer", LAYERS)
def test_captured_frozen_and_trained(layer: Any) -> None:
    net, x = Net(layer).requires_grad_(False), torch.randn(3, 2, 4)
    graph = make_fx(lambda weights, x: torch.func.functional_call(net, weights, (x,)))(dict(net.named_parameters()), x)
    leaves = {k: p.detach().clone().requires_grad_() for k, p in net.named_parameters()}
    found = torch.autograd.grad(graph(leaves, 2 * x), list(leaves.values()))
    expect_close(found, gradients(net.requires_grad_(), 2 * x))


@pytest.mark.parametrize("layer", LAYERS)
def test_make_fx_on_real_tensors(layer: Any) -> None:
    rnn, x = layer(4, 5), torch.randn(3, 2, 4)
    graph = make_fx(lambda x: rnn(x)[0])(x)
    op = torch.ops.tritonln.layer_norm_lstm if layer is LayerNormLSTM else torch.ops.tritonln.layer_norm_gru
    assert op.default in [n.target for n in graph.graph.nodes]
    torch.testing.assert_close(graph(2 * x), rnn(2 * x)[0])


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_dispatch_mode_sees_the_ops(name: str, device: torch.device) -> None:
    seen = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.name())
            return func(*args, **(kwargs or {}))

    args = PROBLEMS[name](3, 2, 4, 5, F32, device)
    x = args["x"].requires_grad_()
    with Watching():
        y = getattr(tritonln, name)(**args)[0]
        (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert {f"tritonln::{name}", f"tritonln::{name}_backward"} <= set(seen)
    y = getattr(tritonln, name)(**args)[0]
    assert dx.equal(torch.autograd.grad(y.square().sum(), x)[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("kind", [*LAYERS, LayerNormLSTMCell, LayerNormGRUCell])
def test_jit_trace(kind: Any, trained: bool) -> None:
    """The trace is played on other values, but not on sequences of another length, whose rest it would leave out."""
    module, x = kind(4, 5).requires_grad_(trained), torch.randn(3, 2, 4) if kind in LAYERS else torch.randn(2, 4)
    traced = torch.jit.trace(module, (x,))
    torch.testing.assert_close(flat(traced(2 * x)), flat(module(2 * x)))
    if kind in LAYERS:
        with pytest.raises(RuntimeError, match="Expected 3 elements in a list but found 4"):
            traced(torch.randn(4, 2, 4))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own
@pytest.mark.parametrize("layer", [LayerNormGRU, *thorough(LayerNormLSTM)])
def test_decomposition(layer: Any) -> None:
    """What torch.onnx asks for, and who else wants ATen's operators."""
    net, batch = layer(4, 5, bidirectional=True), torch.export.Dim("batch")
    program = torch.export.export(net, (torch.randn(3, 2, 4),), dynamic_shapes=({1: batch},))
    table = torch._decomp.decomposition_table
    program = program.run_decompositions({op: f for op, f in table.items() if "tritonln::" in str(op.name())})
    assert {n.target.namespace for n in program.graph.nodes if isinstance(n.target, torch._ops.OpOverload)} == {"aten"}
    x = torch.randn(3, 7, 4)
    torch.testing.assert_close(program.module()(x)[0], net(x)[0])


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("layer", LAYERS)
def test_captured_graphs_refuse_tangents(layer: Any) -> None:
    net, x = Net(layer).requires_grad_(False), torch.randn(3, 2, 4)
    exported = torch.export.export(net, (x,)).module()
    with dual_level(), pytest.raises(RuntimeError, match="has no forward-mode derivative"):
        exported(make_dual(x, x))


# ---- tensors that are more than their storage ----------------------------------------------------


@pytest.mark.parametrize("name", ["layer_norm_lstm", *thorough("layer_norm_gru")])
def test_lazily_negated_tensors(name: str, device: torch.device) -> None:
    """Each argument in turn, and the gradient of the result."""
    args = PROBLEMS[name](2, 1, 3, 4, F32, device)

    def derived(args: dict[str, Tensor], dy: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in args.values()]
        y = getattr(tritonln, name)(**dict(zip(args, leaves)))[0]
        return [y, *torch.autograd.grad(y, leaves, dy)]

    dy = torch.ones(2, 1, 4, device=device).cumsum(0)
    expected = derived(args, dy)
    for k in args:
        for found, known in zip(derived({**args, k: torch._neg_view(-args[k])}, dy), expected):
            assert found.equal(known), k
    for found, known in zip(derived(args, torch._neg_view(-dy)), expected):
        assert found.equal(known)
