"""Derivatives of the family to second order and under transforms, and what looks on symbolically, for each of them."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.family import FAMILY, UNLIKE, Tensors, call, check, operands, results, upstream_of
from tests.helpers.problems import BF16, F32, F64

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
each = pytest.mark.parametrize("name", FAMILY)
unlike = pytest.mark.parametrize("name", UNLIKE)
one_of_a_kind = pytest.mark.parametrize("name", ["add_rms_norm", "add_adaptive_layer_norm", "gated_rms_norm"])
CPU = torch.device("cpu")


def closed(name: str, given: Tensors) -> Callable[..., tuple[Tensor, ...]]:
    """As a function of the tensors alone."""
    return lambda *tensors: call(name, dict(zip(given, tensors)), next(iter(given.values())).shape[-1])


@pytest.fixture(params=["kernels", "formula"])
def way(request: pytest.FixtureRequest) -> str:
    if request.param == "formula":
        request.getfixturevalue("without_kernels")
    return str(request.param)


# ---- derivatives -------------------------------------------------------------------------------


@unlike
def test_gradcheck(name: str, way: str, device: torch.device) -> None:
    """Numerically, many at once by vmap, and the second derivative, of both results together."""
    given = operands(name, (2, 1, 4), F64, device)
    leaves = [t.requires_grad_() for t in given.values()]
    assert torch.autograd.gradcheck(closed(name, given), leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(closed(name, given), leaves, fast_mode=True)


def penalty(name: str, leaves: list[Tensor], outputs: tuple[Tensor, ...], which: slice) -> list[Tensor]:
    """The gradients of what the gradients of some of the results are."""
    loss = torch.stack([out.pow(3).sum() for out in outputs[which]]).sum()
    first = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
    total = torch.stack([(g * torch.arange(g.numel(), device=g.device).cos().reshape(g.shape)).sum() for g in first])
    return list(torch.autograd.grad(total.sum(), leaves, materialize_grads=True))


@unlike
def test_second_derivatives_of_each_result(name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """By kernels first, then wholly by torch's elementary operations."""
    given = operands(name, (2, 2, 5), F64, device)
    leaves = [t.requires_grad_() for t in given.values()]
    parts = (slice(0, 1), slice(1, 2), slice(0, 2)) if FAMILY[name].two else (slice(0, 1),)
    found = [penalty(name, leaves, closed(name, given)(*leaves), which) for which in parts]
    monkeypatch.setattr("tritonln.ops.row_autograd._has_kernels", lambda device_type: False)
    expected = [penalty(name, leaves, closed(name, given)(*leaves), which) for which in parts]
    for out, ref in zip(itertools.chain(*found), itertools.chain(*expected)):
        torch.testing.assert_close(out, ref, rtol=1e-10, atol=1e-10)


@unlike
def test_many_gradients_at_once(name: str, device: torch.device) -> None:
    given = operands(name, (2, 2, 5), F64, device)
    leaves = [t.requires_grad_() for t in given.values()]
    for y in closed(name, given)(*leaves):
        many = torch.randn(3, *y.shape, dtype=F64, device=device)
        options = {"retain_graph": True, "allow_unused": True}
        batched = torch.autograd.grad(y, leaves, many, is_grads_batched=True, **options)
        singly = zip(*(torch.autograd.grad(y, leaves, one, **options) for one in many))
        for out, ref in zip(batched, singly):
            assert (out is None) == (ref[0] is None)
            if out is not None:
                torch.testing.assert_close(out, torch.stack(ref))


@each
def test_transforms(name: str, device: torch.device) -> None:
    given = operands(name, (3, 2, 5), F64, device)
    leaves, function = tuple(given.values()), closed(name, given)
    outputs = function(*leaves)
    tangents = tuple(t.cos() for t in leaves)
    _, along = torch.func.jvp(function, leaves, tangents)
    reverse = torch.func.jacrev(lambda *t: function(*t)[0], argnums=tuple(range(len(leaves))))(*leaves)
    by_reverse = sum(torch.tensordot(j, t, t.dim()) for j, t in zip(reverse, tangents))
    torch.testing.assert_close(along[0], by_reverse)
    batched = tuple(None if word in ("weight", "bias") else 0 for word in given)
    singly = tuple(t if dim is None else t.unsqueeze(1) for t, dim in zip(leaves, batched))
    for out, ref in zip(torch.func.vmap(function, batched)(*singly), outputs):
        torch.testing.assert_close(out.squeeze(1), ref)


# ---- traced --------------------------------------------------------------------------------------


@unlike
def test_compiled(name: str, device: torch.device) -> None:
    """The bits of eager, whichever results are used."""
    given = operands(name, (2, 3, 24), F32, device)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    upstream = upstream_of(name, given["x"])
    uses = [upstream, (upstream[0], None), (None, upstream[1])] if FAMILY[name].two else [upstream]
    for use in uses:
        words = list(given) if use[0] is not None else [w for w in given if w in ("x", "residual", "gate")]
        eager, found = (results(name, given, use, words, by=by) for by in (call, compiled))
        assert all(t.equal(found[word]) for word, t in eager.items())


@one_of_a_kind
def test_inductor_in_mixed_dtypes(name: str, device: torch.device) -> None:
    given = operands(name, (2, 3, 24), BF16, device, F32, F32)
    compiled = torch.compile(call, fullgraph=True)
    check(name, given, by=compiled)
    if FAMILY[name].two:
        check(name, given, use=(True, False), by=compiled)
        check(name, given, ["x", "residual"], use=(False, True), by=compiled)


def ops_of(graph: torch.fx.Graph) -> list[str]:
    targets = [n.target for n in graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
    return [target.name() for target in targets if target.namespace == "tritonln"]


class Net(torch.nn.Module):
    def __init__(self, name: str, given: Tensors) -> None:
        super().__init__()
        self.name, self.words = name, list(given)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return call(self.name, dict(zip(self.words, tensors)), tensors[0].shape[-1])


@each
def test_exported_is_one_op(name: str) -> None:
    given = operands(name, (2, 3, 24), F32, CPU)
    exported = torch.export.export(Net(name, given), tuple(given.values()))
    assert len(ops_of(exported.graph)) == 1
    for out, ref in zip(exported.module()(*given.values()), call(name, given, 24)):
        assert out.equal(ref)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@each
def test_jit_trace(name: str, device: torch.device) -> None:
    """Notes down ATen's operators, also where kernels run."""
    given, others = (operands(name, (B, 3, 24), F32, device) for B in (2, 4))
    f = lambda *tensors: call(name, dict(zip(given, tensors)), 24)  # noqa: E731
    graph = torch.jit.trace(f, tuple(given.values()), check_trace=False)
    assert "tritonln::" not in str(graph.graph)
    for out, ref in zip(graph(*others.values()), f(*others.values()), strict=True):
        torch.testing.assert_close(out, ref)


def test_exported_with_unknown_sizes_of_batches_and_rows() -> None:
    """A scale of every row beside a shift of every batch: which operator serves them is told by symbolic sizes."""
    auto = torch.export.Dim.AUTO
    given, more = ((torch.randn(B, T, 24), torch.randn(B, T, 24), torch.randn(B, 24)) for B, T in ((3, 2), (4, 5)))
    net = Net("adaptive_rms_norm", dict.fromkeys(("x", "scale", "shift")))  # type: ignore[arg-type]
    dynamic = (({0: auto, 1: auto}, {0: auto, 1: auto}, {0: auto}),)
    exported = torch.export.export(net, given, dynamic_shapes=dynamic)
    for out, ref in zip(exported.module()(*more), net(*more), strict=True):
        assert out.equal(ref)


@each
def test_training_a_graph_that_was_captured_without_gradients(name: str) -> None:
    given = operands(name, (2, 3, 24), F32, CPU)
    graph = make_fx(closed(name, given))(*given.values())
    assert len(ops_of(graph.graph)) == 1
    by_graph = lambda name, tensors, shape: tuple(graph(*tensors.values()))  # noqa: E731
    check(name, given, by=by_graph)


def test_a_captured_graph_refuses_the_gradient_that_kernels_have_not() -> None:
    given = operands("add_rms_norm", (2, 3, 24), F32, CPU)
    scale = torch.ones(2)
    graph = make_fx(lambda s: tritonln.add_rms_norm(**given, normalized_shape=24, row_scale=s)[0])(scale)
    y = graph(scale.requires_grad_())
    with pytest.raises(RuntimeError, match="no gradient of row_scale: call tritonln.add_rms_norm itself"):
        y.sum().backward()


@unlike
def test_opcheck(name: str) -> None:
    """Of the ops as the functions call them, forward and backward."""
    given = operands(name, (2, 3, 24), BF16, CPU, F32, F32)
    seen: list[tuple[torch._ops.OpOverload, tuple[object, ...]]] = []

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func.namespace == "tritonln":
                seen.append((func, args))
            return func(*args, **(kwargs or {}))

    leaves = {word: t.detach().requires_grad_() for word, t in given.items()}
    with Watching():
        torch.autograd.backward(call(name, leaves, 24), upstream_of(name, given["x"], F32))
    (forward, arguments), (backward, others) = seen
    detached = tuple(t.detach().requires_grad_() if isinstance(t, Tensor) else t for t in arguments)
    assert set(torch.library.opcheck(forward, detached).values()) == {"SUCCESS"}
    plain = tuple(t.detach() if isinstance(t, Tensor) else t for t in arguments)
    assert set(torch.library.opcheck(forward, (*plain[:-1], False)).values()) == {"SUCCESS"}
    bare = tuple(t.detach() if isinstance(t, Tensor) else t for t in others)
    # Not test_schema, which knows no lists of dtypes.
    assert torch.library.opcheck(backward, bare, test_utils="test_faketensor") == {"test_faketensor": "SUCCESS"}


def of_the_chosen(x: Tensor, residual: Tensor, factors: Tensor, some: Tensor, others: Tensor) -> Tensor:
    """Batches whose number the values of two masks tell."""
    x = x[some.nonzero()[:, 0]]
    residual, factors = (t[others.nonzero()[:, 0]] for t in (residual, factors))
    y, residual = tritonln.add_adaptive_layer_norm(x, residual, factors, factors, None, 8)
    y, residual = tritonln.add_rms_norm(y, residual, 8, row_scale=factors[:, :1].detach())
    return tritonln.gated_residual(y, residual, factors)


@pytest.mark.parametrize("path", ["without_kernels", *thorough("device")])
def test_sizes_that_only_values_tell(path: str, device: torch.device, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(path)
    words = ("x", "residual", "gate")
    given = operands("add_adaptive_layer_norm", (6, 3, 8), F32, device)
    masks = [torch.tensor(mask, device=device) for mask in ([1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0])]
    compiled = torch.compile(of_the_chosen, fullgraph=True, backend="aot_eager")
    derived = []
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        for function in (of_the_chosen, compiled):
            leaves = [given[word].detach().requires_grad_() for word in words]
            y = function(*leaves, *masks[:2])
            derived.append([y, *torch.autograd.grad(y.pow(3).sum(), leaves)])
        with pytest.raises(RuntimeError, match="u0"):
            compiled(*leaves, masks[0], masks[2])
    for out, ref in zip(*derived):
        torch.testing.assert_close(out, ref)
