"""Operators on DTensors, on the kernels of an emulated GPU, and rows that are split over ranks."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import tritonln
import tritonln.distributed
from tests.helpers.family import call, operands
from tests.helpers.problems import F32, F64, rand
from tests.helpers.ranks import CPU, check, close
from tests.helpers.recurrent import lstm_problem
from tritonln import reference
from tritonln.emulator import emulated_gpu

N = 8


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """No communication."""
    with CommDebugMode() as counted:
        yield
    assert counted.get_total_counts() == 0, counted.get_comm_counts()


def derived(
    function: Callable[..., tuple[Tensor, ...]], tensors: dict[str, Tensor], upstream: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    leaves = {word: t.detach().requires_grad_() for word, t in tensors.items()}
    outputs = function(leaves)
    return outputs, torch.autograd.grad(outputs, list(leaves.values()), [upstream] * len(outputs))


def placed(t: Tensor, like: Tensor, placement: Placement, mesh: DeviceMesh) -> Tensor:
    """Tensors of the shape of x as x, batches with its batches, all else whole."""
    of_batch = t.dim() == 2 and placement == Shard(0)
    return distribute_tensor(t, mesh, [placement if t.shape == like.shape or of_batch else Replicate()])


# ---- operators ---------------------------------------------------------------------------------

# Rules are by kind of operand: each kind is among these, with a result more and without.
SOME = "add_layer_norm", "adaptive_rms_norm", "add_adaptive_layer_norm", "gated_rms_norm", "gated_residual"
NORMS = {
    "layer_norm": lambda t: (tritonln.layer_norm(t["x"], N, t["weight"], t["bias"]),),
    "rms_norm": lambda t: (tritonln.rms_norm(t["x"], N, t["weight"]),),
    **{name: lambda t, name=name: call(name, t, N) for name in SOME},
    "by group": lambda t: call("gated_rms_norm", t, N, group_size=2),
    "adaptive, by row": lambda t: call("adaptive_rms_norm", t, N),
}


def of(name: str) -> dict[str, Tensor]:
    if name.endswith("by row"):
        return operands("adaptive_rms_norm", (4, 6, N), F32, CPU, batches=(4, 6))
    if name not in SOME:
        given = operands("add_layer_norm", (4, 6, N), F32, CPU)
        words = {"layer_norm": ("x", "weight", "bias"), "rms_norm": ("x", "weight")}
        return {w: given[w] for w in words[name]} if name in words else operands("gated_rms_norm", (4, 6, N), F32, CPU)
    return operands(name, (4, 6, N), F32, CPU)


@check
def operators_stay_where_their_rows_are(mesh: DeviceMesh) -> None:
    """Nothing is sent, forward or backward, and gradients of what is shared are Partial."""
    with emulated_gpu("sm_90", count=False):
        for name, function in NORMS.items():
            tensors = of(name)
            dy = rand(4, 6, N, dtype=F32, device=CPU, seed=20)
            outputs, gradients = derived(function, tensors, dy)
            for placement in (Shard(0), Shard(1), Replicate()):
                given = {word: placed(t, tensors["x"], placement, mesh) for word, t in tensors.items()}
                upstream = distribute_tensor(dy, mesh, [placement])
                with silent():
                    found, partial = derived(function, given, upstream)
                close((*found, *partial), (*outputs, *gradients))
                assert all(y.placements == (placement,) for y in found)  # type: ignore[attr-defined]
                for word, g in zip(given, partial):
                    whole = given[word].placements == (Replicate(),) != (placement,)  # type: ignore[attr-defined]
                    assert g.placements == (Partial() if whole else placement,), (name, word)  # type: ignore[attr-defined]


@check
def groups_of_a_row_stay_where_they_are(mesh: DeviceMesh) -> None:
    tensors, dy = of("by group"), rand(4, 6, N, dtype=F32, device=CPU, seed=20)
    expected = derived(NORMS["by group"], tensors, dy)
    given = {word: distribute_tensor(t, mesh, [Shard(t.dim() - 1)]) for word, t in tensors.items()}
    upstream = distribute_tensor(dy, mesh, [Shard(2)])
    with silent():
        found = derived(NORMS["by group"], given, upstream)
    close((*found[0], *found[1]), (*expected[0], *expected[1]))


@check
def heads_and_tokens_stay_where_they_are(mesh: DeviceMesh) -> None:
    words = ("q", "k", "q_weight", "k_weight", "cos", "sin")
    sizes = ((4, 4, 8, N), (4, 4, 4, N), (N,), (N,), (4, N), (4, N))
    tensors = {w: rand(*size, dtype=F32, device=CPU, seed=i) for i, (w, size) in enumerate(zip(words, sizes))}
    angles = {w: tensors.pop(w) for w in ("cos", "sin")}
    cotangents = [rand(*size, dtype=F32, device=CPU, seed=9) for size in sizes[:2]]

    def run(tensors: dict[str, Tensor], angles: dict[str, Tensor], upstream: list[Tensor]) -> list[Tensor]:
        leaves = {word: t.detach().requires_grad_() for word, t in tensors.items()}
        outputs = tritonln.qk_norm(**leaves, **angles)
        return [*outputs, *torch.autograd.grad(outputs, list(leaves.values()), upstream)]

    with emulated_gpu("sm_90", count=False):
        expected = run(tensors, angles, cotangents)
        for dim in range(3):
            given = {
                word: distribute_tensor(t, mesh, [Shard(dim) if t.dim() == 4 else Replicate()])
                for word, t in tensors.items()
            }
            turned = {w: distribute_tensor(t, mesh, [Shard(0) if dim == 1 else Replicate()]) for w, t in angles.items()}
            upstream = [distribute_tensor(t, mesh, [Shard(dim)]) for t in cotangents]
            with silent():
                found = run(given, turned, upstream)
            close(found, expected)


@check
def other_placements_are_redistributed(mesh: DeviceMesh) -> None:
    """Split rows, results used elsewhere, and sums that are still to be made."""
    tensors, dy = of("layer_norm"), rand(4, 6, N, dtype=F32, device=CPU, seed=20)
    outputs, gradients = derived(NORMS["layer_norm"], tensors, dy)
    upstream = {
        placement: DTensor.from_local(dy / mesh.size(), mesh, [placement])
        if placement == Partial()
        else distribute_tensor(dy, mesh, [placement])
        for placement in (Shard(0), Shard(1), Shard(2), Replicate(), Partial())
    }
    for x_as, dy_as in ((Shard(2), Shard(2)), (Shard(1), Shard(0)), (Shard(1), Replicate()), (Shard(0), Partial())):
        given = {word: placed(t, tensors["x"], x_as, mesh) for word, t in tensors.items()}
        found, partial = derived(NORMS["layer_norm"], given, upstream[dy_as])
        close((*found, *partial), (*outputs, *gradients))


@check
def several_dimensions_of_a_row(mesh: DeviceMesh) -> None:
    x, w = rand(4, 5, 2, N, dtype=F32, device=CPU, seed=0), rand(2, N, dtype=F32, device=CPU, seed=1)
    found = tritonln.layer_norm(
        distribute_tensor(x, mesh, [Shard(1)]), (2, N), distribute_tensor(w, mesh, [Replicate()])
    )
    close((found,), (tritonln.layer_norm(x, (2, N), w),))
    assert found.placements == (Shard(1),)  # type: ignore[attr-defined]


@check
def dropout_of_a_sharded_sum(mesh: DeviceMesh) -> None:
    x, residual = (distribute_tensor(torch.ones(4, 64), mesh, [Shard(0)]) for _ in range(2))
    y, out = tritonln.add_rms_norm(x, residual, 64, dropout_p=0.5)
    values = out.to_local()  # type: ignore[attr-defined]
    assert values.unique().tolist() == [1.0, 3.0]
    close((y,), (reference.rms_norm(out.full_tensor(), (64,), eps=torch.finfo(F32).eps),))  # type: ignore[attr-defined]


@check
def compiled_on_sharded_tensors(mesh: DeviceMesh) -> None:
    tensors, dy = of("layer_norm"), rand(4, 6, N, dtype=F32, device=CPU, seed=20)
    expected = derived(NORMS["layer_norm"], tensors, dy)
    given = {word: placed(t, tensors["x"], Shard(1), mesh) for word, t in tensors.items()}
    compiled = torch.compile(NORMS["layer_norm"], backend="aot_eager", fullgraph=True)
    found = derived(compiled, given, distribute_tensor(dy, mesh, [Shard(1)]))
    close((*found[0], *found[1]), (*expected[0], *expected[1]))


@check
def recurrent_layers_keep_their_batch(mesh: DeviceMesh) -> None:
    """Uneven, both directions, compiled too, with lengths: nothing is sent, and gradients of weights are Partial."""
    for kind in (tritonln.nn.LayerNormLSTM, tritonln.nn.LayerNormGRU):
        torch.manual_seed(0)
        plain = kind(4, 5, bidirectional=True)
        layer = distribute_module(copy.deepcopy(plain), mesh)
        x, dy = torch.randn(3, 3, 4), torch.randn(3, 3, 10)
        sharded, upstream = (distribute_tensor(t, mesh, [Shard(1)]) for t in (x, dy))
        y, _ = plain(x)
        expected = torch.autograd.grad(y, list(plain.parameters()), dy)
        out, _ = layer(sharded)
        found = torch.autograd.grad(out, list(layer.parameters()), upstream)
        assert out.placements == (Shard(1),)
        assert all(g.placements == (Partial(),) for g in found)
        close((out, *found), (y, *expected))
        compiled = torch.compile(lambda x, layer=layer: layer(x)[0], backend="aot_eager", fullgraph=True)
        out = compiled(sharded)
        found = torch.autograd.grad(out, list(layer.parameters()), upstream)
        close((out, *found), (y, *expected))
    args = lstm_problem(3, 3, 4, 5, F32, CPU)
    whole = [Replicate()]
    given = {word: distribute_tensor(t, mesh, whole) for word, t in args.items()}
    given |= {"x": distribute_tensor(args["x"], mesh, [Shard(1)])}
    lengths = torch.tensor([3, 1, 2])
    with silent():
        y, (h, c), cs = tritonln.layer_norm_lstm(**given, lengths=lengths)
    ref, states, ref_cs = tritonln.layer_norm_lstm(**args, lengths=lengths)
    close((y, h, c, cs), (ref, *states, ref_cs))


# ---- rows that are split -----------------------------------------------------------------------


@check
def split_rows(mesh: DeviceMesh) -> None:
    """Of parts of several sizes, far from zero, against the oracle of whole rows; one all-reduce each way."""
    bounds = {2: (0, 24, 64), 4: (0, 24, 40, 41, 64)}[mesh.size()]
    cut = slice(*bounds[dist.get_rank() : dist.get_rank() + 2])
    for dtype, mean in ((F32, 0.0), (F32, 1e3), (torch.bfloat16, 3.0), (F64, 1e3)):
        tolerance = {F32: 2e-6, F64: 1e-11}.get(dtype, 2**-7) * (1 + mean if dtype != torch.bfloat16 else 2)
        x = rand(3, 64, dtype=dtype, device=CPU, seed=0) + mean
        w, b, dy = (rand(*size, dtype=dtype, device=CPU, seed=i) for i, size in enumerate(((64,), (64,), (3, 64)), 1))
        for function, theirs, parameters in (
            (tritonln.distributed.layer_norm, reference.layer_norm, (w, b)),
            (tritonln.distributed.rms_norm, reference.rms_norm, (w,)),
        ):
            whole = [t.double().requires_grad_() for t in (x, *parameters)]
            y = theirs(whole[0], (64,), *whole[1:])
            expected = [y, *torch.autograd.grad(y, whole, dy.double())]
            parts = [t[..., cut].clone().requires_grad_() for t in (x, *parameters)]
            forward = 2 if dtype == F64 and len(parameters) == 2 else 1
            eps = {} if len(parameters) == 2 else {"eps": 1e-5}
            with CommDebugMode() as counted:
                part = function(parts[0], parts[0].shape[-1], *parts[1:], **eps)
            assert counted.get_total_counts() == forward
            with CommDebugMode() as counted:
                found = [part, *torch.autograd.grad(part, parts, dy[..., cut])]
            assert counted.get_total_counts() == 1
            for out, ref in zip(found, expected):
                assert out.dtype == dtype
                error = (out.double() - ref[..., cut]).abs().max() / ref.abs().max()
                assert float(error) <= tolerance, (dtype, mean, theirs.__name__, float(error))
    parts = [p.detach() for p in parts]
    compiled = torch.compile(tritonln.distributed.layer_norm, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(parts[0], parts[0].shape[-1]), tritonln.distributed.layer_norm(parts[0], parts[0].shape[-1])
    )
