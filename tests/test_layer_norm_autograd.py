"""layer_norm under autograd: what is computed and saved, that it repeats to the bit, and in how many launches."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

import tritonln
from tests.helpers.problems import BF16, F32, F64, WIDE, problem, run
from tests.helpers.tolerance import assert_close
from tritonln import reference
from tritonln.launch import recorded

# ---- autograd ----------------------------------------------------------------------------------


@pytest.mark.parametrize("N", [24, WIDE])
@pytest.mark.parametrize("needs", [n for n in itertools.product([True, False], repeat=3) if any(n)])
def test_gradients_only_of_what_requires_them(needs: tuple[bool, ...], N: int, device: torch.device) -> None:
    x, w, b, dy = problem(3, N, F32, device)
    leaves = [t.requires_grad_(n) for t, n in zip((x, w, b), needs)]
    tritonln.layer_norm(*leaves[:1], N, *leaves[1:]).backward(dy)
    ref = reference.layer_norm_gradients(x, (N,), w, b, 1e-5, dy)
    for name, t, needed in zip(("dx", "dw", "db"), leaves, needs):
        assert (t.grad is not None) == needed
        if t.grad is not None:
            assert_close(name, t.grad, ref[name], 3)


def test_no_grad_saves_nothing(device: torch.device) -> None:
    x, w, b, _ = (t.requires_grad_() for t in problem(3, 24, F32, device))
    with torch.no_grad():
        assert tritonln.layer_norm(x, 24, w, b).grad_fn is None
    assert tritonln.layer_norm(x.detach(), 24, w.detach(), b.detach()).grad_fn is None


def test_backward_twice_and_accumulation(device: torch.device) -> None:
    x, w, b, dy = (t.requires_grad_() for t in problem(3, 24, F32, device))
    y = tritonln.layer_norm(x, 24, w, b)
    first = torch.autograd.grad(y, (x, w, b), dy, retain_graph=True)
    again = torch.autograd.grad(y, (x, w, b), dy)
    assert all(p.equal(q) for p, q in zip(first, again))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, (x, w, b), dy)


def test_a_changed_input_is_noticed(device: torch.device) -> None:
    x, w, b, dy = problem(3, 24, F32, device)
    y = tritonln.layer_norm(x.requires_grad_() * 1, 24, w.requires_grad_(), b)
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(dy)


@pytest.mark.parametrize("affine", [True, False])
def test_gradcheck_and_gradgradcheck(affine: bool, device: torch.device) -> None:
    x, w, b, _ = (t.requires_grad_() for t in problem(2, 5, F64, device))
    parameters = (w, b) if affine else ()
    f = lambda x, *p: tritonln.layer_norm(x, (5,), *p)  # noqa: E731
    assert torch.autograd.gradcheck(f, (x, *parameters))
    assert torch.autograd.gradgradcheck(f, (x, *parameters))


def test_gradient_penalty_in_16_bit(device: torch.device) -> None:
    """A second derivative with fp32 parameters and 16-bit x."""
    x, w, b, dy = problem(3, 24, BF16, device, parameters=F32)
    leaves = x.requires_grad_(), w.requires_grad_(), b.requires_grad_()
    (dx,) = torch.autograd.grad(tritonln.layer_norm(x, 24, w, b), x, dy, create_graph=True)
    (dw,) = torch.autograd.grad(dx.float().square().sum(), w)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    (dx64,) = torch.autograd.grad(
        reference.layer_norm(wide[0], (24,), *wide[1:]), wide[0], dy.double(), create_graph=True
    )
    (dw64,) = torch.autograd.grad(dx64.square().sum(), wide[1])
    assert dw.dtype == F32
    assert float((dw - dw64).abs().max()) <= 3 * 2**-7 * float(dw64.abs().max())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, from its forward mode
def test_forward_mode_and_transforms(device: torch.device) -> None:
    x, w, b, dy = problem(3, 24, F32, device)
    f = lambda x: tritonln.layer_norm(x, 24, w, b)  # noqa: E731
    g = lambda x: F.layer_norm(x, (24,), w, b)  # noqa: E731
    for out, ref in zip(torch.func.jvp(f, (x,), (dy,)), torch.func.jvp(g, (x,), (dy,))):
        torch.testing.assert_close(out, ref)
    torch.testing.assert_close(torch.func.vmap(f)(x), g(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dual_numbers(device: torch.device) -> None:
    x, w, b, dx = problem(3, 24, F32, device)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, dx)
        tangents = [
            torch.autograd.forward_ad.unpack_dual(f(dual, (24,), w, b)).tangent
            for f in (tritonln.layer_norm, F.layer_norm)
        ]
    torch.testing.assert_close(*tangents)


# ---- the same bits -----------------------------------------------------------------------------


@pytest.mark.parametrize("N", [48, 1024, WIDE])
def test_repeatable_bitwise(N: int, device: torch.device) -> None:
    x, w, b, dy = problem(37, N, F32, device)
    one, two = run(x, (N,), w, b, dy), run(x, (N,), w, b, dy)
    assert all(one[k].equal(two[k]) for k in one)


@pytest.mark.parametrize("N", [48, 1024, WIDE])
def test_a_row_does_not_depend_on_the_batch(N: int, device: torch.device) -> None:
    x, w, b, dy = problem(37, N, F32, device)
    full, part = run(x, (N,), w, b, dy), run(x[30:31], (N,), w, b, dy[30:31])
    assert full["y"][30:31].equal(part["y"])
    assert full["dx"][30:31].equal(part["dx"])


def test_programs_follow_the_device_and_not_the_batch() -> None:
    from tritonln.device import TARGETS
    from tritonln.ops.layer_norm import LAYER_NORM

    forward = LAYER_NORM.forward_plan(1024, (BF16, F32, F32), BF16, None, True, TARGETS["sm_90"])
    dtypes, upstream, needs = (BF16, F32, F32), (BF16, None, None), (True, True, True)
    backward, wide = (
        LAYER_NORM.backward_plan(N, upstream, F32, dtypes, needs, TARGETS["sm_90"]).kernels[0] for N in (1024, 8192)
    )
    assert forward.count(10**6) * forward.rows_per_program == 10**6
    assert backward.count(10**6) == 132
    assert backward.count(1) == 1
    # Each leaves partial sums: as few as have six rows, or as many as the busiest, where 96 are left of 132.
    assert wide.rows_per_program == 1
    assert [wide.count(M) for M in (1, 60, 100, 400, 600, 793, 10**6)] == [1, 60, 96, 96, 100, 114, 132]


# ---- launches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("N", [24, 4096, WIDE])
def test_launches(N: int, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    from tritonln.launch import Launch

    launched: list[str] = []
    real = Launch.__call__

    def counting(self: Launch, *args: object) -> None:
        launched.append(self.name)
        real(self, *args)

    monkeypatch.setattr(Launch, "__call__", counting)
    x, w, b, dy = problem(640 // (1 + N // 24) + 17, N, BF16, device, parameters=F32)
    y = tritonln.layer_norm(x.requires_grad_(), N, w.requires_grad_(), b.requires_grad_())
    assert len(launched) == 1
    y.backward(dy)
    # Row and partial sums of wide rows are there before dx, where no cluster (Triton 3.9) holds such rows whole.
    backward = 1 if N < WIDE or "layer_norm_bwd" in launched else 2
    assert len(launched) == 3
    launched.clear()
    tritonln.layer_norm(x[:1], N, w, b).backward(dy[:1])
    assert len(launched) == 1 + backward  # one program's sums are the gradients
    launched.clear()
    tritonln.layer_norm(x, N, w.detach(), b.detach()).backward(dy)
    assert len(launched) == 1 + backward  # no column sum for frozen parameters
    launched.clear()
    tritonln.layer_norm(x.detach(), N, w, b).backward(dy)
    assert len(launched) == 3  # nothing needs row sums


def test_what_another_thread_launches_is_carried_out_while_one_records(device: torch.device) -> None:
    x = problem(3, 24, F32, device)[0]
    expected = tritonln.layer_norm(x, (24,))
    with recorded() as calls, ThreadPoolExecutor(1) as thread:
        found = thread.submit(tritonln.layer_norm, x, (24,)).result()
        assert calls == []
        tritonln.layer_norm(x, (24,))
    assert [call.launch.name for call in calls] == ["layer_norm_fwd"]
    assert found.equal(expected)
