"""The blocks of Llama and of diffusion transformers beside their twins in plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tritonln
from benchmarks import twins
from tests.helpers.problems import BF16, F32, rand
from tests.helpers.twins import alike, fill, results

B, T, E, H = 2, 5, 24, 4


class Blocks(nn.Module):
    """Some blocks: tritonln's hand a stream on, the twins tensors."""

    def __init__(self, blocks: list[nn.Module], stream: Any = lambda x: x) -> None:
        super().__init__()
        self.blocks, self.stream = nn.ModuleList(blocks), stream

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        x = self.stream(x)
        for block in self.blocks:
            x = block(x, *others)
        return x if isinstance(x, Tensor) else x.total()


def pair(name: str, device: torch.device, dtype: torch.dtype = F32, **options: Any) -> tuple[Blocks, Blocks]:
    """Two blocks of each kind, tritonln's in one stream."""
    size = (E, H, 40) if name == "LlamaBlock" else (E, H)
    stream = tritonln.nn.Stream if name == "LlamaBlock" else tritonln.nn.GatedStream
    ours, theirs = (
        Blocks([getattr(m, name)(*size, **options, device=device, dtype=dtype) for _ in range(2)], *rest)
        for m, *rest in ((tritonln.nn, stream), (twins,))
    )
    fill(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def table(device: torch.device, n: int = T, start: int = 0, head_dim: int = E // H) -> tuple[Tensor, Tensor]:
    return tritonln.nn.rotary_table(torch.arange(start, start + n, device=device), head_dim, 100.0)


LLAMA = [{}, {"kv_heads": 2}, {"kv_heads": 2, "qk_norm": True, "head_dim": 8}]


@pytest.mark.parametrize("options", LLAMA, ids=["plain", "gqa", "qwen"])
@pytest.mark.parametrize("kernels", [True, False])
def test_llama(options: dict[str, Any], kernels: bool, device: torch.device, request: pytest.FixtureRequest) -> None:
    """In a stream, and alone."""
    if not kernels:
        request.getfixturevalue("without_kernels")
    ours, theirs = pair("LlamaBlock", device, **options)
    x, cos_sin = rand(B, T, E, dtype=F32, device=device), table(device, head_dim=options.get("head_dim", E // H))
    for a, b in ((ours, theirs), (ours.blocks[0], theirs.blocks[0])):
        alike(a, b, x, lambda m, x: m(x, *cos_sin))


@pytest.mark.parametrize("kernels", [True, False])
def test_dit(kernels: bool, device: torch.device, request: pytest.FixtureRequest) -> None:
    """In a stream, and alone; the condition's gradient too."""
    if not kernels:
        request.getfixturevalue("without_kernels")
    ours, theirs = pair("DiTBlock", device)
    x, condition = (rand(*shape, dtype=F32, device=device, seed=7) for shape in ((B, T, E), (B, E)))
    for a, b in ((ours, theirs), (ours.blocks[0], theirs.blocks[0])):
        alike(a, b, x, lambda m, x: m(x, condition))
        alike(a, b, condition, lambda m, c: m(x, c))


def test_a_new_dit_block_is_the_identity(device: torch.device) -> None:
    block = tritonln.nn.DiTBlock(E, H, device=device)
    x = rand(B, T, E, dtype=F32, device=device)
    assert block(x, rand(B, E, dtype=F32, device=device)).equal(x)


def test_a_cache_gives_what_the_whole_sequence_does(device: torch.device) -> None:
    """A prompt at once, then tokens one by one, then two."""
    ours, _ = pair("LlamaBlock", device, kv_heads=2)
    block: Any = ours.blocks[0]
    x = rand(B, 8, E, dtype=F32, device=device)
    cache = tritonln.nn.KVCache(B, 2, 8, E // H, device=device)
    with torch.no_grad():
        whole = block(x, *table(device, 8))
        for start, stop in ((0, 3), (3, 4), (4, 5), (5, 7), (7, 8)):
            part = block(x[:, start:stop], *table(device, stop - start, start), cache)
            torch.testing.assert_close(part, whole[:, start:stop], atol=2e-5, rtol=2e-5)
        assert cache.length == 8
        with pytest.raises(RuntimeError, match=r"within \[2, 2, 0, 6\], got \[2, 2, 1, 6\]"):
            block(x[:, :1], *table(device, 1, 8), cache)
    with pytest.raises(RuntimeError, match="without gradients"):
        block(x[:, :1], *table(device, 1, 8), cache)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    block, x = tritonln.nn.LlamaBlock(E, H, 40, device=device), rand(B, T, E, dtype=F32, device=device)
    with pytest.raises(RuntimeError, match=r"expected cos of size \[5, 6\], got \[1, 6\]"):
        block(x, *table(device, 1))
    with pytest.raises(ValueError, match="multiple of kv_heads, got 4 and 3"):
        tritonln.nn.LlamaBlock(E, H, 40, 3)
    for make in (lambda: tritonln.nn.LlamaBlock(E + 1, H, 40), lambda: tritonln.nn.DiTBlock(E + 1, H)):
        with pytest.raises(ValueError, match="expected size to be a multiple of heads, got 25 and 4"):
            make()


@pytest.mark.parametrize("name", ["LlamaBlock", "DiTBlock"])
def test_compiled_in_bf16_and_hooked_into(name: str, device: torch.device) -> None:
    """Blocks are called as modules, in streams too."""
    ours, _ = pair(name, device, BF16)
    x = rand(B, T, E, dtype=BF16, device=device)
    others = table(device) if name == "LlamaBlock" else (rand(B, E, dtype=BF16, device=device, seed=7),)
    seen: list[Any] = []
    hook = ours.blocks[1].register_forward_hook(lambda module, args, y: seen.append(y))
    expected = results(ours, x, lambda m, x: m(x, *others))
    assert type(seen[0]) in (tritonln.nn.Stream, tritonln.nn.GatedStream)
    hook.remove()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    found = results(compiled, x, lambda m, x: m(x, *others))
    torch.testing.assert_close(list(found.values()), list(expected.values()), atol=0.1, rtol=0.05)
