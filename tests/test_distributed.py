"""Norms on several devices: what tests/helpers/two_ranks.py checks on two, over gloo on the CPU, and what one can."""

import json
import os
import pathlib
import subprocess
import sys
import types

import pytest
import torch
import torch.distributed as dist

import tritonln

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

CHECKS = [
    "operators_stay_where_their_rows_are",
    "groups_of_a_row_stay_where_they_are",
    "heads_and_tokens_stay_where_they_are",
    "other_placements_are_redistributed",
    "several_dimensions_of_a_row",
    "dropout_of_a_sharded_sum",
    "compiled_on_sharded_tensors",
    "recurrent_layers_keep_their_batch",
    "split_rows",
    "ddp_trains_as_one_process",
    "fsdp_trains_as_one_process",
    "sequence_parallel_plan_trains_as_one_process",
]


def heard(world: int, store: pathlib.Path) -> list[dict[str, str]]:
    """What each rank says of each check: nothing, or what failed."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.two_ranks", str(store)],
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(world),
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
            cwd=pathlib.Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        said = [process.communicate(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(out for out, _ in said), [err[-2000:] for _, err in said]
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return heard(2, tmp_path_factory.mktemp("ranks") / "store")


@pytest.mark.parametrize("check", CHECKS)
def test_on_two_ranks(check: str, ranks: list[dict[str, str]]) -> None:
    said = [rank.get(check, "was not reached") for rank in ranks]
    assert not any(said), "\n".join(said)


@pytest.mark.thorough
def test_on_four_ranks(tmp_path: pathlib.Path) -> None:
    """The same; some of them have no rows at all."""
    for said in heard(4, tmp_path / "store"):
        assert not any(said.values()), "\n".join(said.values())
        assert set(said) == set(CHECKS)


def test_every_check_is_asked_for(ranks: list[dict[str, str]]) -> None:
    assert set(ranks[0]) == set(CHECKS)


@pytest.fixture
def four_ranks() -> object:
    """A process that believes to be one of four, whose collectives do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("four_ranks")
def test_shardings_over_two_dimensions_of_a_mesh() -> None:
    """Batches over one of them, tokens over the other, with an uneven cut; gradients of the weight are Partial."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2, 2))
    x = distribute_tensor(torch.randn(4, 5, 8), mesh, [Shard(0), Shard(1)]).requires_grad_()
    w = distribute_tensor(torch.ones(8), mesh, [Replicate(), Replicate()]).requires_grad_()
    scale = distribute_tensor(torch.ones(4, 8), mesh, [Shard(0), Replicate()]).requires_grad_()
    y = tritonln.adaptive_layer_norm(x, scale, None, 8, w)
    assert (y.placements, y.to_local().shape) == (x.placements, (2, 3, 8))  # type: ignore[attr-defined]
    dx, dw, dscale = torch.autograd.grad(y, (x, w, scale), torch.ones_like(y))
    assert dx.placements == x.placements  # type: ignore[attr-defined]
    assert dw.placements == (Partial(), Partial())  # type: ignore[attr-defined]
    assert dscale.placements == (Shard(0), Partial())  # type: ignore[attr-defined]


@pytest.mark.usefixtures("four_ranks")
def test_the_op_alone_in_a_graph() -> None:
    """As an exported graph calls it, whose author imported tritonln.distributed."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    import tritonln.distributed  # noqa: F401

    x = distribute_tensor(torch.randn(8, 4), init_device_mesh("cpu", (4,)), [Shard(0)])
    y, stats = torch.ops.tritonln.layer_norm.default(x, 4, None, None, 1e-5, torch.float32, True)
    assert y.placements == stats.placements == (Shard(0),)


@pytest.mark.usefixtures("four_ranks")
def test_split_rows_refuse_what_they_cannot_do() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    from tritonln import distributed

    x = torch.randn(2, 4, requires_grad=True)
    with pytest.raises(TypeError, match="expected this rank's part of a row in a plain tensor, but got DTensor"):
        distributed.layer_norm(distribute_tensor(x.detach(), init_device_mesh("cpu", (4,)), [Shard(1)]), 4)
    with pytest.raises(RuntimeError, match=r"expected input with shape \[\*5\]"):
        distributed.rms_norm(x, 5)
    (dx,) = torch.autograd.grad(distributed.layer_norm(x, 4).pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_split_rows_ask_for_a_group() -> None:
    from tritonln import distributed

    with pytest.raises(RuntimeError, match="expected init_process_group to have been called"):
        distributed.layer_norm(torch.randn(2, 4), 4)


@pytest.mark.parametrize("normalization", ["LayerNorm", "RMSNorm"])
def test_megatron_norm(normalization: str) -> None:
    from tritonln.distributed import MegatronNorm

    config = types.SimpleNamespace(
        normalization=normalization, sequence_parallel=True, layernorm_zero_centered_gamma=True
    )
    norm = MegatronNorm(config=config, hidden_size=8, eps=1e-6, persist_layer_norm=True)
    assert all(p.sequence_parallel for p in norm.parameters())
    assert norm.weight.eq(0).all()
    x = torch.randn(3, 8)
    ones = torch.ones(8)
    ref = {"LayerNorm": torch.layer_norm, "RMSNorm": torch.rms_norm}[normalization](x, (8,), ones, eps=1e-6)
    torch.testing.assert_close(norm(x), ref)
    with pytest.raises(ValueError, match="expected normalization to be 'LayerNorm' or 'RMSNorm', but got 'L2Norm'"):
        MegatronNorm(hidden_size=8, normalization="L2Norm")
