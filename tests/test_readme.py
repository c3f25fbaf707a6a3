"""Every Python block of the README runs, on smaller tensors and with what it leaves to the reader."""

import pathlib
import re
import runpy

import pytest
import torch

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
IMPORTS = "import torch, tritonln\n"

# What the reader has: by some words of a block, the lines before it.
GIVEN = {
    "gemma_weight": "gemma_weight, llama_weight = torch.zeros(1024), torch.ones(1024)",
    "replace_norms(model": "model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))",
    "LlamaBlock(": "x = torch.randn(1, 3, 512)",
    "LayerNormLSTM(": """
sequences = [torch.randn(n, 8) for n in (3, 2)]
hx = torch.zeros(4, 2, 16), torch.zeros(4, 2, 16)
steps, is_init = torch.randn(3, 2, 8), torch.tensor([[True, True], [False, True], [False, False]])
trained_gru = torch.nn.GRU(8, 16)
haste = {"kernel": (4, 20), "recurrent_kernel": (5, 20), "bias": (20,), "gamma": (2, 20)}
haste |= {"gamma_h": (5,), "beta_h": (5,)}
torch.save({name: torch.ones(shape) for name, shape in haste.items()}, "haste.pt")
""",
    "layer_norm_gelu(x": "x, weight, bias = torch.randn(3, 64), torch.ones(64), torch.zeros(64)",
    "your_kernel[grid]": """
import triton, triton.language as tl


@triton.jit
def your_kernel(x, y, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    tl.store(y + columns, tl.load(x + columns))


x, y, grid = torch.randn(1024), torch.empty(1024), (1,)
""",
    "tuning.warmup(model": "model = torch.nn.Linear(1024, 8)",  # without a norm, as nothing here can be measured
}
# What would take an emulated GPU long.
SMALLER = {"8, 2048, 1024": "2, 3, 1024", "LayerNormLSTM(64, 256": "LayerNormLSTM(8, 16", '"cuda"': '"{device}"'}
ELSEWHERE = {"from tritonln import distributed": "it needs ranks: tests of tritonln.distributed run it"}


def test_the_readme_has_blocks() -> None:
    assert len(BLOCKS) >= 10
    assert all(sum(words in block for block in BLOCKS) == 1 for words in (*GIVEN, *ELSEWHERE))


@pytest.mark.usefixtures("aten")  # kernels of recurrent layers take long to compile, and are tested elsewhere
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[0][:40] for block in BLOCKS])
def test_a_block_runs(
    block: str, device: torch.device, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, why in ELSEWHERE.items():
        if words in block:
            pytest.skip(why)
    monkeypatch.chdir(tmp_path)
    for words, smaller in SMALLER.items():
        block = block.replace(words, smaller.format(device=device.type))
    given = "".join(lines for words, lines in GIVEN.items() if words in block)
    file = tmp_path / "block.py"
    file.write_text(f"{IMPORTS}{given}\n{block}")
    runpy.run_path(str(file))
