"""Models whose norms were swapped, under what torch does with models: copies, pickles, compilers, FSDP."""

import copy
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

import tritonln
from tests.helpers import norms
from tests.helpers.problems import F32, rand
from tritonln.nn import replace_norms, restore_norms

SIZE = 24
KINDS = [torch.nn.LayerNorm, torch.nn.RMSNorm, norms.RoundsFirst, norms.AroundZero, norms.Centred]


def swapped(device: torch.device) -> torch.nn.Sequential:
    """One norm of each kind."""
    model = torch.nn.Sequential(*(kind(SIZE) for kind in KINDS)).to(device)
    assert len(replace_norms(model).swapped) == len(KINDS)
    return model


@pytest.fixture
def x(device: torch.device) -> torch.Tensor:
    return rand(4, SIZE, dtype=F32, device=device)


def test_copies_and_pickles_are_swapped_too(device: torch.device, x: torch.Tensor, tmp_path: pathlib.Path) -> None:
    model = swapped(device)
    torch.save(model, tmp_path / "model.pt")
    for other in (
        copy.deepcopy(model),
        torch.load(tmp_path / "model.pt", weights_only=False),
        torch.nn.Sequential(*map(copy.copy, model)),
    ):
        assert [type(norm) for norm in other] == [type(norm) for norm in model]
        assert other(x).equal(model(x))
        restore_norms(other)
        assert [type(norm) for norm in other] == KINDS
    assert not {type(norm) for norm in model} & set(KINDS)


def test_compiled_whole_before_the_swap_and_after(device: torch.device, x: torch.Tensor) -> None:
    model = torch.nn.Sequential(*(kind(SIZE) for kind in KINDS)).to(device)
    operators: list[str] = []

    def noting(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        operators.extend(str(node.target) for node in graph.graph.nodes if "norm" in str(node.target))
        return graph

    compiled = torch.compile(model, fullgraph=True, backend=noting)
    y = compiled(x)
    assert not any("tritonln" in name for name in operators)
    replace_norms(compiled)
    operators.clear()
    torch.testing.assert_close(compiled(x), y)
    assert sum("tritonln" in name for name in operators) == len(KINDS)
    restore_norms(compiled)
    assert compiled(x).equal(y)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of inductor's imports
def test_compiled_by_inductor(device: torch.device, x: torch.Tensor) -> None:
    model = swapped(device)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))


def test_exported(device: torch.device, x: torch.Tensor) -> None:
    model = swapped(device)
    program = torch.export.export(model, (x,))
    assert sum("tritonln" in str(node.target) for node in program.graph.nodes) == len(KINDS)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TorchScript
def test_torchscript(device: torch.device, x: torch.Tensor) -> None:
    model = swapped(device)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))
    torchs = model[:2]
    scripted = torch.jit.script(torchs)
    torch.testing.assert_close(scripted(x), torchs(x))
    assert replace_norms(scripted).swapped == {}


def test_fx(device: torch.device, x: torch.Tensor) -> None:
    model = swapped(device)
    graph = torch.fx.symbolic_trace(model)
    targets = [node.target for node in graph.graph.nodes]
    assert tritonln.layer_norm in targets  # torch's classes; of the others fx sees the forward of before
    assert tritonln.rms_norm in targets
    torch.testing.assert_close(graph(x), model(x))


def test_parametrized_after_the_swap(device: torch.device, x: torch.Tensor) -> None:
    model = torch.nn.Sequential(torch.nn.LayerNorm(SIZE)).to(device)
    replace_norms(model)
    was = type(model[0])
    torch.nn.utils.parametrize.register_parametrization(model[0], "weight", torch.nn.Softplus())
    assert model(x).equal(tritonln.layer_norm(x, SIZE, model[0].weight, model[0].bias))
    torch.nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is was


@pytest.fixture
def mesh(tmp_path: pathlib.Path) -> Iterator[Any]:
    """A process group of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", [torch.nn.LayerNorm, norms.AroundZero])
@pytest.mark.parametrize("order", ["fully_shard first", "swapped first"])
def test_fully_shard(order: str, kind: Any, mesh: Any) -> None:
    x = torch.randn(4, SIZE)
    plain = torch.nn.Sequential(kind(SIZE), torch.nn.Linear(SIZE, SIZE))
    y = plain(x)
    y.square().sum().backward()
    model = copy.deepcopy(plain)
    norm = model[0]
    if order == "swapped first":
        replace_norms(model)
    for module in (norm, model):
        fully_shard(module, mesh=mesh)
    sharded = type(norm)
    if order == "fully_shard first":
        assert replace_norms(model).left == {}
    assert isinstance(norm, FSDPModule)
    assert isinstance(norm, kind)
    for replaced in (["0"], []):
        model.zero_grad()
        z: Any = model(x)
        torch.testing.assert_close(z, y)
        z.square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad.full_tensor(), plain.get_parameter(name).grad)  # type: ignore
        assert restore_norms(model) == replaced
    assert type(norm).__name__ == f"FSDP{kind.__name__}"
    assert type(norm).__mro__[1:3] == (FSDPModule, kind)
    assert (type(norm) is sharded) == (order == "fully_shard first")
