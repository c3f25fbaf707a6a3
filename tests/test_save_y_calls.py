"""When norms may keep y for backward, and what torch does with those that do."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.problems import BF16, F32, F64, rand
from tests.helpers.save_y import EPS, NORMS, kept_by, problem, run
from tritonln.ops import keep_y

# ---- when weights and biases are looked at -----------------------------------------------------


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """How often weights and biases were looked at."""
    noted: list[torch.device] = []
    look = keep_y._look

    def noting(device: torch.device) -> None:
        noted.append(device)
        look(device)

    monkeypatch.setattr(keep_y, "_look", noting)
    return noted


def test_weights_are_looked_at_together_and_once_a_pass(
    looks: list[torch.device], eager_without_kernels: None, device: torch.device
) -> None:
    norms = torch.nn.Sequential(*(tritonln.nn.LayerNorm(8, device=device, save="y") for _ in range(3)))
    x = rand(4, 8, dtype=F32, device=device).requires_grad_()
    for norm in norms:  # each is new
        norm(x)
    assert len(looks) == 3
    norms(norms(x)).sum().backward()
    assert len(looks) == 3
    optimizer = torch.optim.SGD(norms.parameters(), 0.1)
    for seen in (4, 5):
        optimizer.step()
        loss = norms(x).sum()
        with torch.no_grad():
            norms(x)
        assert len(looks) == seen
        loss.backward()
    with torch.no_grad():
        norms[1].weight[2] = 0.0  # of another version, without a pass
    for seen in (6, 6):
        results = [kept_by(lambda norm=norm: norm(x))[0] for norm in norms]
        nodes = [y.grad_fn.name() for y in results]
        assert nodes == ["_KeepingYBackward", "_RowsBackward", "_KeepingYBackward"]
        assert len(looks) == seen


def test_weights_that_are_written_behind_autograd(looks: list[torch.device], way: str, device: torch.device) -> None:
    """After a backward pass they are looked at again, whatever their versions say; in between, a gradient is NaN."""
    given, dy = problem("layer_norm", 5, 64, F32, device)
    leaves = [t.requires_grad_() for t in given.values()]
    tritonln.layer_norm(leaves[0], 64, *leaves[1:], save="y").backward(dy)
    leaves[1].data[5] = 0.0
    assert tritonln.layer_norm(leaves[0], 64, *leaves[1:], save="y").grad_fn.name() == "_RowsBackward"
    leaves[1].data[5] = 1.0
    y = tritonln.layer_norm(leaves[0] * 1, 64, *(t * 1 for t in leaves[1:]), save="y")
    weight = y.grad_fn.saved_tensors[1]
    weight.data[5] = 0.0
    y.backward(dy)
    assert len(looks) == 3
    assert leaves[1].grad is not None
    assert leaves[1].grad[5].isnan()


def test_checkpointing(looks: list[torch.device], way: str, device: torch.device) -> None:
    """What is computed again inside of a backward pass keeps what it kept, and nobody looks again."""
    given, dy = problem("layer_norm", 5, 64, F32, device)
    leaves = [t.requires_grad_() for t in given.values()]

    def twice(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return tritonln.layer_norm(tritonln.layer_norm(x, 64, w, b, save="y"), 64, w, b, save="y")

    expected = torch.autograd.grad(twice(*leaves), leaves, dy)
    seen = len(looks)
    y = torch.utils.checkpoint.checkpoint(twice, *leaves, use_reentrant=False)
    found = torch.autograd.grad(y, leaves, dy)
    assert len(looks) == seen + 1
    assert all(a.equal(b) for a, b in zip(found, expected))


# ---- what else torch does ----------------------------------------------------------------------


def _derived(y: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y.square().sum(), leaves, create_graph=True, materialize_grads=True)


@pytest.mark.parametrize("name", NORMS)
def test_derivatives(name: str, way_thoroughly: str, device: torch.device) -> None:
    """Through y and the statistics autograd reaches an x that nobody kept."""
    given, dy = problem(name, 3, 5, F64, device)
    leaves = [t.requires_grad_() for t in given.values()]
    norm = lambda x, *p: getattr(tritonln, name)(x, 5, *p, eps=EPS, save="y")  # noqa: E731
    assert norm(*leaves).grad_fn.name() == "_KeepingYBackward"
    assert torch.autograd.gradcheck(norm, leaves, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(norm, leaves, check_batched_grad=True)
    found, expected = norm(*leaves), getattr(tritonln, name)(leaves[0], 5, *leaves[1:], eps=EPS)
    for order in (3, 2, 2):
        found, expected = (sum(cubes.pow(order).sum() for cubes in _derived(y, leaves)) for y in (found, expected))
        torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["layer_norm", *thorough("rms_norm")])
def test_x_is_kept_where_values_cannot_be_looked_at(name: str, device: torch.device) -> None:
    given, dy = problem(name, 3, 8, F32, device)
    x, *parameters = given.values()
    keeping = lambda x: getattr(tritonln, name)(x, 8, *parameters, eps=EPS, save="y")  # noqa: E731
    plain = lambda x: getattr(tritonln, name)(x, 8, *parameters, eps=EPS)  # noqa: E731
    for transform in (
        lambda f: torch.compile(f, fullgraph=True, backend="aot_eager"),
        torch.func.vmap,
        torch.func.jacrev,
        lambda f: lambda x: torch.func.jvp(f, (x,), (dy,))[1],
        lambda f: torch.func.grad(lambda x: (f(x) * dy).sum()),
    ):
        assert transform(keeping)(x).equal(transform(plain)(x))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert keeping(mode.from_tensor(x).requires_grad_()).requires_grad


def test_jagged_nested_tensors(device: torch.device) -> None:
    given, _ = problem("layer_norm", 6, 64, F32, device)
    x, offsets = given["input"].requires_grad_(), torch.tensor([0, 2, 6], device=device)
    jagged = torch.nested.nested_tensor_from_jagged(x * 1, offsets)
    y = tritonln.layer_norm(jagged, 64, given["weight"], given["bias"], save="y")
    (dx,) = torch.autograd.grad(y.values().square().sum(), x)
    (same,) = torch.autograd.grad(
        tritonln.layer_norm(x, 64, given["weight"], given["bias"], save="y").square().sum(), x
    )
    assert dx.equal(same)


@pytest.mark.thorough
def test_llamas_cast_keeps_x(device: torch.device) -> None:
    given, dy = problem("rms_norm", 5, 64, BF16, device)
    assert not run("rms_norm", given, dy, cast="llama")[1]


def test_modules(device: torch.device) -> None:
    x = rand(4, 8, dtype=F32, device=device).requires_grad_()
    for cls in (tritonln.nn.LayerNorm, tritonln.nn.RMSNorm):
        norm = cls(8, device=device, save="y")
        assert norm(x).grad_fn.name() == "_KeepingYBackward"
        assert "save='y'" in repr(norm)
        assert "save" not in repr(cls(8))
        assert cls(8, device=device)(x).grad_fn.name() == "_RowsBackward"
        torch.jit.script(norm)
        with pytest.raises(ValueError, match="expected save to be one of 'x', 'y', but got 'both'"):
            cls(8, save="both")
    with pytest.raises(ValueError, match="expected save to be one of 'x', 'y', but got None"):
        tritonln.layer_norm(x, 8, save=None)  # type: ignore[arg-type]


def test_a_known_call_keeps_what_it_is_asked_to(device: torch.device) -> None:
    given, _ = problem("layer_norm", 3, 64, F32, device)
    leaves = [t.requires_grad_() for t in given.values()]
    for save in ("x", "y", "x", "y"):
        y = tritonln.layer_norm(leaves[0], 64, *leaves[1:], save=save)
        assert y.grad_fn.name() == ("_RowsBackward" if save == "x" else "_KeepingYBackward")
