"""Operators in graphs of torch: compiled, exported, packaged; rows of the README's table without a test elsewhere."""

from __future__ import annotations

import io
import pathlib

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import tritonln
from tests.helpers.operators import (
    CPU,
    FUNCTIONS,
    N,
    derived,
    same,
    some_norms,
    tensors_of,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own


@some_norms
def test_twenty_batch_sizes_compile_at_most_twice(name: str, device: torch.device) -> None:
    """Once for the first size, once for all; without graph breaks."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend=counter)
    tensors = tensors_of(name, device)
    for B in range(2, 22):
        sized = {word: t[:1].expand(B, *t.shape[1:]).contiguous() if t.dim() > 1 else t for word, t in tensors.items()}
        same(compiled(sized), FUNCTIONS[name](sized))
    assert counter.frame_count <= 2


@some_norms
def test_compiled_checkpointing(name: str, device: torch.device) -> None:
    tensors = tensors_of(name, device)
    of_tensors = lambda *v: FUNCTIONS[name](dict(zip(tensors, v)))  # noqa: E731
    compiled = torch.compile(
        lambda *v: checkpoint(of_tensors, *v, use_reentrant=False), backend="aot_eager", fullgraph=True
    )
    same(derived(lambda t: compiled(*t.values()), tensors), derived(FUNCTIONS[name], tensors))


class Net(nn.Module):
    def __init__(self, name: str, words: list[str]) -> None:
        super().__init__()
        self.name, self.words = name, words

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return FUNCTIONS[self.name](dict(zip(self.words, tensors)))


@some_norms
@pytest.mark.parametrize("strict", [True, False])
def test_export_round_trip(name: str, strict: bool) -> None:
    """Saved and loaded, on batches of another size."""
    tensors, batch = tensors_of(name, CPU), torch.export.Dim("batch")
    sizes = (tuple({0: batch} if t.dim() > 1 else None for t in tensors.values()),)
    net, file = Net(name, list(tensors)), io.BytesIO()
    torch.export.save(torch.export.export(net, tuple(tensors.values()), dynamic_shapes=sizes, strict=strict), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    more = [torch.cat([t, t]) if t.dim() > 1 else t for t in tensors.values()]
    same(loaded(*more), net(*more))


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("name", ["layer_norm", "add_adaptive_rms_norm"])
def test_compiled_on_the_cpu_is_fused_by_inductor(name: str) -> None:
    from torch._inductor.utils import run_and_get_code

    tensors = tensors_of(name, CPU)
    found, code = run_and_get_code(torch.compile(FUNCTIONS[name], fullgraph=True), tensors)
    assert "tritonln" not in "".join(code)
    for out, ref in zip(found, FUNCTIONS[name](tensors), strict=True):
        torch.testing.assert_close(out, ref)


@pytest.mark.thorough
@pytest.mark.usefixtures("without_kernels")
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec")
@pytest.mark.parametrize("decomposed", [False, True])
def test_packages_of_aot_inductor(decomposed: bool, tmp_path: pathlib.Path) -> None:
    """With the ops in it, which whoever loads it needs tritonln for, and decomposed; on batches of another size."""
    net, x = nn.Sequential(tritonln.nn.LayerNorm(N), tritonln.nn.AddRMSNorm(N)), torch.randn(4, N)
    with torch.no_grad():
        program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        if decomposed:
            ops = torch.ops.tritonln.layer_norm.default, torch.ops.tritonln.add_rms_norm.default
            program = program.run_decompositions({op: torch._decomp.decomposition_table[op] for op in ops})
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
        loaded, more = torch._inductor.aoti_load_package(package), torch.randn(7, N)
        for out, ref in zip(loaded(more), net(more), strict=True):
            torch.testing.assert_close(out, ref)
