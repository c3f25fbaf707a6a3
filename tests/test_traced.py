"""torch.compile, torch.export, opcheck: what looks on symbolically sees one custom op; TorchScript sees ATen's."""

import itertools
import pathlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch._functorch.aot_autograd import make_boxed_func
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import tritonln
from tritonln.ops import library

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own


def leaves(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    N = shape[-1]
    return (
        torch.randn(shape, dtype=dtype).requires_grad_(),
        torch.randn(N, requires_grad=True),
        torch.randn(N, requires_grad=True),
    )


def results(f, x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:  # type: ignore[no-untyped-def]
    y = f(x, (x.shape[-1],), w, b)
    return [y, *torch.autograd.grad(y, (x, w, b), torch.ones_like(y).cumsum(-1))]


def test_lengths_of_rows_that_compiled_code_does_not_know() -> None:
    """Their numbers, such as the default offset of a weight, are symbolic too."""
    f = lambda x, w: tritonln.gated_rms_norm(tritonln.layer_norm(x, x.shape[-1], w), x, x.shape[-1], w, 1e-6)  # noqa: E731
    counter = CompileCounter()
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend=counter)
    for N in (24, 8):
        x, w, _ = leaves(5, N)
        assert compiled(x, w).equal(f(x, w))
    assert counter.frame_count == 1


@pytest.mark.interpreted
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_gives_the_bits_of_eager(backend: str) -> None:
    compiled = torch.compile(tritonln.layer_norm, fullgraph=True, backend=backend)
    for out, ref in zip(results(compiled, *leaves(5, 24)), results(tritonln.layer_norm, *leaves(5, 24))):
        assert out.equal(ref)


def test_compiled_code_of_another_version_is_not_found(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """torch's cache on disk knows a backward by the code of its forward, which may not change with it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def double(x: Tensor, *factor: object) -> Tensor:
        return x * 2

    for parameter, factor in (("float factor", 2.0), ("float[] factors", [2.0])):

        def backward(ctx: object, dy: Tensor, factor: object = factor) -> Tensor:
            return library.op("doubled_backward")(dy, factor)

        library.define("doubled", "(Tensor x) -> Tensor", double, double, backward=backward)
        library.define("doubled_backward", f"(Tensor dy, {parameter}) -> Tensor", double, double)
        torch._dynamo.reset()
        x = torch.ones(3, requires_grad=True)
        y = torch.compile(lambda x: library.op("doubled")(x), fullgraph=True)(x)
        assert torch.autograd.grad(y.sum(), x)[0].equal(x + 1)


def test_compiled_without_gradients_or_parameters() -> None:
    compiled = torch.compile(tritonln.layer_norm, fullgraph=True, backend="aot_eager")
    x = leaves(5, 24)[0].detach()
    assert compiled(x, 24).equal(tritonln.layer_norm(x, 24))
    with torch.no_grad():
        assert compiled(x.requires_grad_(), 24).equal(tritonln.layer_norm(x, 24))


def test_row_counts_do_not_recompile() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(lambda x, w: tritonln.layer_norm(x, 24, w), fullgraph=True, backend=counter, dynamic=True)
    for M in (5, 6, 9, 17):
        x, w, _ = leaves(M, 24)
        assert compiled(x, w).equal(tritonln.layer_norm(x, 24, w))
    assert counter.frame_count == 1


def test_graph_holds_one_op() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = tritonln.nn.LayerNorm(24)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x)

    x = torch.randn(5, 24)
    exported = torch.export.export(Net(), (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    ops = [n.target for n in exported.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
    assert ops == [torch.ops.tritonln.layer_norm.default]
    more = torch.randn(11, 24)
    torch.testing.assert_close(exported.module()(more), F.layer_norm(more, (24,)))


@pytest.mark.parametrize(
    ("dtype", "weight", "bias"), list(itertools.product([torch.float32, torch.bfloat16], [True, False], [True, False]))
)
def test_opcheck(dtype: torch.dtype, weight: bool, bias: bool) -> None:
    x, w, b = leaves(5, 24, dtype=dtype)
    p, q = (w if weight else None), (b if bias else None)
    torch.library.opcheck(torch.ops.tritonln.layer_norm.default, (x, 24, p, q, 1e-5, dtype, True))
    torch.library.opcheck(torch.ops.tritonln.layer_norm.default, (x.detach(), 24, p, q, 1e-5, dtype, False))
    stats = torch.stack([torch.zeros(5), torch.ones(5)], 1)
    args = (torch.randn(5, 24).to(dtype), x, 24, p, q, stats, [True, weight, bias])
    torch.library.opcheck(
        torch.ops.tritonln.layer_norm_backward.default, args, test_utils=("test_schema", "test_faketensor")
    )


def test_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(5, 24, dtype=torch.bfloat16, requires_grad=True)
        y = tritonln.layer_norm(x, 24, torch.ones(24))
        (dx,) = torch.autograd.grad(y.float().sum(), x)
    assert y.shape == dx.shape == x.shape
    assert y.dtype == dx.dtype == torch.bfloat16


def test_strided_and_frozen() -> None:
    compiled = torch.compile(tritonln.layer_norm, fullgraph=True, backend="aot_eager")
    x = torch.randn(24, 5).t().requires_grad_()
    w = torch.randn(24)
    y = compiled(x, 24, w)
    assert y.equal(tritonln.layer_norm(x, 24, w))
    assert torch.autograd.grad(y.square().sum(), x)[0].equal(
        torch.autograd.grad(tritonln.layer_norm(x, 24, w).square().sum(), x)[0]
    )


def test_the_errors_are_torch_s() -> None:
    compiled = torch.compile(tritonln.layer_norm, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="expected input with shape"):
        compiled(torch.randn(2, 4), 5)


def test_make_fx_on_real_tensors() -> None:
    """The graph is played on other values."""
    w = torch.randn(24)
    graph = make_fx(lambda x: tritonln.layer_norm(x, 24, w))(torch.randn(5, 24))
    assert torch.ops.tritonln.layer_norm.default in [n.target for n in graph.graph.nodes]
    x = torch.randn(5, 24)
    assert graph(x).equal(tritonln.layer_norm(x, 24, w))


def test_a_dispatch_mode_sees_the_op() -> None:
    seen = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func)
            return func(*args, **(kwargs or {}))

    x = torch.randn(5, 24)
    with Watching():
        y = tritonln.layer_norm(x, 24)
    assert y.equal(tritonln.layer_norm(x, 24))
    assert torch.ops.tritonln.layer_norm.default in seen


# ---- gradients of graphs that were captured without them -----------------------------------------------


@pytest.fixture(params=["kernels", "aten"])
def by_either_way(request: pytest.FixtureRequest) -> None:
    if request.param == "aten":
        request.getfixturevalue("eager_without_kernels")


def exported(net: torch.nn.Module, x: Tensor, strict: bool) -> Callable[[Tensor], Tensor]:
    with torch.no_grad():
        return torch.export.export(net, (x,), strict=strict).module()


CAPTURED = {
    "export": lambda net, x: exported(net, x, False),
    "strict export": lambda net, x: exported(net, x, True),
    "make_fx": lambda net, x: make_fx(net)(x),
    "symbolic make_fx": lambda net, x: make_fx(net, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x),
}


@pytest.mark.parametrize("capture", CAPTURED)
@pytest.mark.usefixtures("by_either_way")
def test_training_a_graph_that_was_captured_without_gradients(capture: str) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(24, 24), tritonln.nn.LayerNorm(24)).requires_grad_(False)
    graph = CAPTURED[capture](net, torch.randn(5, 24))
    net.requires_grad_(True)
    parameters = list(graph.parameters()) if "export" in capture else list(net.parameters())
    for p in parameters:
        p.requires_grad_(True)
    x = torch.randn(5, 24, requires_grad=True)
    found = torch.autograd.grad(graph(x).pow(3).sum(), [x, *parameters])
    for out, ref in zip(found, torch.autograd.grad(net(x).pow(3).sum(), [x, *net.parameters()])):
        assert out.equal(ref)


@pytest.mark.usefixtures("by_either_way")
def test_the_op_without_statistics_finds_them_again() -> None:
    x, w, b = leaves(5, 24, dtype=torch.bfloat16)
    y, stats = torch.ops.tritonln.layer_norm.default(x, 24, w, b, 1e-5, torch.bfloat16, False)
    assert stats.numel() == 0
    dy = torch.ones_like(y).cumsum(-1)
    for out, ref in zip(torch.autograd.grad(y, (x, w, b), dy), results(tritonln.layer_norm, x, w, b)[1:]):
        assert out.equal(ref)


def test_a_compiled_backward_holds_the_op() -> None:
    """And not the formula that derivatives of derivatives run on."""
    x, w, b = leaves(5, 24)
    ops = []

    def noting(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        ops.append([n.target for n in graph.graph.nodes if isinstance(n.target, torch._ops.OpOverload)])
        return make_boxed_func(graph)

    compiled = torch.compile(tritonln.layer_norm, backend=aot_autograd(fw_compiler=noting), fullgraph=True)
    results(compiled, x, w, b)
    assert ops == [[torch.ops.tritonln.layer_norm.default], [torch.ops.tritonln.layer_norm_backward.default]]


# ---- what knows ATen's operators only ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_jit_trace(dtype: torch.dtype) -> None:
    """Played on other values, with gradients, and loaded where nobody knows this package."""
    x, w, b = leaves(5, 24, dtype=dtype)
    f = lambda x, w, b: tritonln.layer_norm(x, 24, w, b)  # noqa: E731
    graph = torch.jit.trace(f, (torch.zeros_like(x), w, b), check_trace=False)  # which asks for the bits of eager
    assert "aten::layer_norm" in str(graph.graph)
    assert "tritonln" not in str(graph.graph).split("#")[0]
    for out, ref in zip(results(lambda x, _, w, b: graph(x, w, b), x, w, b), results(tritonln.layer_norm, x, w, b)):
        torch.testing.assert_close(out, ref, rtol=4 * torch.finfo(out.dtype).eps, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own
def test_decomposition() -> None:
    """What torch.onnx asks for, and who else wants ATen's operators."""
    net = tritonln.nn.LayerNorm(24)
    program = torch.export.export(net, (torch.randn(5, 24),), dynamic_shapes=({0: torch.export.Dim("rows")},))
    op = torch.ops.tritonln.layer_norm.default
    program = program.run_decompositions({op: torch._decomp.decomposition_table[op]})
    assert {n.target.namespace for n in program.graph.nodes if isinstance(n.target, torch._ops.OpOverload)} == {"aten"}
    x = torch.randn(7, 24)
    torch.testing.assert_close(program.module()(x), net(x))


def test_subclasses_with_a_dispatch_of_their_own() -> None:
    """As nested tensors and DTensor have it, which know no operators but ATen's."""
    norm = tritonln.nn.LayerNorm(24)
    parts = [torch.randn(n, 24) for n in (2, 5)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged, requires_grad=True)
    y = norm(nested)
    for out, x in zip(y.unbind(), parts):
        torch.testing.assert_close(out, norm(x))
    y.values().pow(3).sum().backward()
    assert nested.grad is not None
    x = torch.cat(parts).requires_grad_()
    norm(x).pow(3).sum().backward()
    torch.testing.assert_close(nested.grad.values(), x.grad)


def test_a_gradient_that_is_none() -> None:
    class Dropping(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):  # type: ignore[no-untyped-def]
            return y.clone()

        @staticmethod
        def backward(ctx, dy):  # type: ignore[no-untyped-def]
            return None

    x, w, b = leaves(5, 24)
    y, _ = torch.ops.tritonln.layer_norm.default(x, 24, w, b, 1e-5, torch.float32, True)
    (dx,) = torch.autograd.grad((Dropping.apply(y) + x).sum(), x)
    assert dx.equal(torch.ones_like(x))
