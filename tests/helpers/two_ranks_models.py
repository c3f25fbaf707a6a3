"""Models that are trained by two ranks, on ATen, in which DDP and FSDP may use threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import tritonln
import tritonln.distributed
from tests.helpers.ranks import check, close


class Block(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm, self.up, self.down = norm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(Block(tritonln.nn.LayerNorm), Block(tritonln.nn.RMSNorm))
        self.norm, self.head = tritonln.nn.LayerNorm(16), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(x)))


def trained(model: nn.Module, parts: slice) -> list[Tensor]:
    """Parameters after three steps; each rank has its part of a batch, and gradients are means over ranks."""
    torch.manual_seed(1)
    x, target = torch.randn(4, 6, 16), torch.randint(12, (4, 6))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        y = model(x[parts])
        nn.functional.cross_entropy(y.float().flatten(0, 1), target[parts].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach() for p in model.parameters()]


def own_part() -> slice:
    size = 4 // dist.get_world_size()
    return slice(size * dist.get_rank(), size * dist.get_rank() + size)


@check
def ddp_trains_as_one_process(mesh: DeviceMesh) -> None:
    close(trained(DistributedDataParallel(Model()), own_part()), trained(Model(), slice(4)))


@check
def fsdp_trains_as_one_process(mesh: DeviceMesh) -> None:
    model = Model()
    for block in (*model.blocks, model):
        fully_shard(block, mesh=mesh)
    close(trained(model, own_part()), trained(Model(), slice(4)))
    mixed = Model()
    for block in (*mixed.blocks, mixed):
        fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    for out, ref in zip(trained(mixed, own_part()), trained(Model(), slice(4))):
        torch.testing.assert_close(out.full_tensor(), ref, rtol=0.02, atol=0.02)


@check
def sequence_parallel_plan_trains_as_one_process(mesh: DeviceMesh) -> None:
    """With the norms between column- and row-wise products, and the loss of sharded logits."""
    model = Model()
    plan: dict[str, Any] = {
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), use_local_output=False),
    }
    for i in range(2):
        plan[f"blocks.{i}.norm"] = SequenceParallel()
        plan[f"blocks.{i}.up"] = ColwiseParallel(input_layouts=Shard(1))
        plan[f"blocks.{i}.down"] = RowwiseParallel(output_layouts=Shard(1), use_local_output=False)
    parallelize_module(model, mesh, plan)
    torch.manual_seed(1)
    x, target = torch.randn(4, 6, 16), torch.randint(12, (4, 6))
    with loss_parallel():
        y = model(distribute_tensor(x, mesh, [Shard(1)]))
        loss = nn.functional.cross_entropy(y.flatten(0, 1), distribute_tensor(target.flatten(), mesh, [Replicate()]))
        loss.backward()
    plain = Model()
    expected = nn.functional.cross_entropy(plain(x).flatten(0, 1), target.flatten())
    expected.backward()
    close([loss], [expected.detach()])
    close([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])
