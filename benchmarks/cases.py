"""What is measured: every shape with its name and its source."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch

from benchmarks.operators import OPERATORS, Operator
from tritonln.dtypes import DTYPES

SWEPT_DTYPES = ("bf16", "fp16", "fp32")

# `forward` saves for a backward, `no_grad` saves nothing, `both` is forward and backward.
PASSES = ("forward", "backward", "both", "no_grad")

SWEPT_BYTES = 128 << 20  # of x: 2.5 times the largest L2 of a listed GPU, so that DRAM serves every shape
HIDDEN = (64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 5120, 8192, 12288, 16384, 32768, 65536, 131072, 262144)
ROWS = tuple(4**i for i in range(11))  # 1 .. 1,048,576


@dataclasses.dataclass(frozen=True)
class Shape:
    """M rows of N values, in batches where the operator knows any.  `source` says who has such rows."""

    group: str
    operator: str  # of OPERATORS
    M: int
    N: int
    source: str
    batches: int = 1


@dataclasses.dataclass(frozen=True)
class Case:
    """A shape in one dtype, parameters too, and one pass."""

    shape: Shape
    dtype: str
    direction: str  # of PASSES

    @property
    def id(self) -> str:
        s = self.shape
        return f"{s.operator}-{self.direction}-{self.dtype}-{s.M}x{s.N}"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def gradients(self) -> bool:
        """Whether a backward pass is run."""
        return self.direction in ("backward", "both")

    @property
    def operator(self) -> Operator:
        return OPERATORS[self.shape.operator]

    @property
    def least_bytes(self) -> int:
        """What must move, as Operator.least_bytes says."""
        backward = {"forward": (False,), "no_grad": (False,), "backward": (True,), "both": (False, True)}
        s, size = self.shape, self.torch_dtype.itemsize
        return sum(self.operator.least_bytes(b, s.M, s.batches, s.N, size, size) for b in backward[self.direction])


def hidden(itemsize: int) -> Iterator[Shape]:
    """Row length swept while x keeps its bytes."""
    for N in HIDDEN:
        yield Shape("hidden", "layer_norm", max(1, SWEPT_BYTES // (N * itemsize)), N, "constant bytes")


def rows() -> Iterator[Shape]:
    """Rows swept at the row length of GPT-2 medium and ViT-L."""
    for M in ROWS:
        yield Shape("rows", "layer_norm", M, 1024, "constant row length")


# Row lengths are those of the papers and published configurations.  Token counts are ours where it says so.
REAL = (
    Shape("real", "layer_norm", 8 * 1024, 768, "GPT-2 small, batch 8 of 1,024 tokens (Radford et al. 2019)"),
    Shape("real", "layer_norm", 8 * 1024, 1600, "GPT-2 XL, batch 8 of 1,024 tokens (Radford et al. 2019)"),
    Shape("real", "layer_norm", 2048, 12288, "GPT-3, one sequence (Brown et al. 2020, arXiv 2005.14165)"),
    Shape("real", "rms_norm", 8192, 4096, "Llama 3 8B, one sequence (arXiv 2407.21783)"),
    Shape("real", "rms_norm", 8192, 8192, "Llama 3 70B, one sequence (arXiv 2407.21783)"),
    Shape("real", "rms_norm", 8192, 16384, "Llama 3 405B, one sequence (arXiv 2407.21783)"),
    Shape("real", "rms_norm", 8192, 2304, "Gemma 2 2B, one sequence (arXiv 2408.00118)"),
    Shape("real", "rms_norm", 8192, 3584, "Gemma 2 9B, one sequence (arXiv 2408.00118)"),
    Shape("real", "layer_norm", 256 * 197, 768, "ViT-B/16 at 224, batch 256 (arXiv 2010.11929)"),
    Shape("real", "layer_norm", 64 * 257, 1280, "ViT-H/14 at 224, batch 64 (arXiv 2010.11929)"),
    Shape("real", "layer_norm", 256 * 256, 1152, "DiT-XL/2 at 256, batch 256 (arXiv 2212.09748)"),
    Shape("real", "layer_norm", 32 * 1024, 1280, "ESM-2 650M, batch 32 of 1,024 residues (Lin et al. 2023)"),
    Shape("real", "layer_norm", 8 * 1024, 5120, "ESM-2 15B, batch 8 of 1,024 residues (Lin et al. 2023)"),
    Shape("real", "rms_norm", 4096 * 32, 128, "QK-norm, 32 heads of 128, 4,096 tokens (Qwen3, arXiv 2505.09388)"),
    Shape("real", "layer_norm", 4096 * 48, 128, "QK-norm, 48 heads of 128, 4,096 tokens (ViT-22B, arXiv 2302.05442)"),
    Shape("real", "layer_norm", 128, 4 * 1024, "gates of an LSTM of 1,024, batch 128, one step (Ba et al. 2016)"),
    Shape("real", "layer_norm", 64, 3 * 2400, "gates of a GRU of 2,400, batch 64, one step (Ba et al. 2016)"),
    Shape("real", "rms_norm", 1, 4096, "decoding, one sequence, Llama 3 8B"),
    Shape("real", "rms_norm", 64, 8192, "decoding, batch 64, Llama 3 70B"),
    Shape("real", "layer_norm", 16, 1600, "decoding, batch 16, GPT-2 XL"),
    Shape("real", "layer_norm", 256, 12288, "decoding, batch 256, GPT-3"),
)  # fmt: skip

FAMILY = (
    Shape("family", "add_rms_norm", 8192, 4096, "Llama 3 8B, one sequence (arXiv 2407.21783)"),
    Shape("family", "add_layer_norm", 8 * 1024, 1600, "GPT-2 XL, batch 8 of 1,024 tokens (Radford et al. 2019)"),
    Shape("family", "adaptive_layer_norm", 256 * 256, 1152, "DiT-XL/2 at 256, batch 256 (arXiv 2212.09748)", 256),
    Shape("family", "add_adaptive_layer_norm", 256 * 256, 1152, "DiT-XL/2 at 256, batch 256 (arXiv 2212.09748)", 256),
    Shape("family", "gated_residual", 256 * 256, 1152, "DiT-XL/2 at 256, batch 256 (arXiv 2212.09748)", 256),
    Shape("family", "adaptive_rms_norm", 256 * 256, 1152, "the same rows, with RMS norm", 256),
    Shape("family", "add_adaptive_rms_norm", 256 * 256, 1152, "the same rows, with RMS norm", 256),
    Shape("family", "qk_norm", 4096 * 32, 128, "32 heads of 128, 4,096 tokens (Qwen3, arXiv 2505.09388; as many of k)"),
    Shape("family", "quantized_rms_norm", 8192, 4096, "Llama 3 8B, one sequence (arXiv 2407.21783)"),
    Shape("family", "quantized_layer_norm", 8 * 1024, 1600, "GPT-2 XL, batch 8 of 1,024 tokens (Radford et al. 2019)"),
    Shape("family", "gated_rms_norm", 8192, 5120, "Mamba-2 2.7B, four sequences of 2,048 (arXiv 2405.21060)"),
)  # fmt: skip

GROUPS = ("hidden", "rows", "real", "family")


def cases(
    groups: Sequence[str] = GROUPS, dtypes: Sequence[str] = SWEPT_DTYPES, directions: Sequence[str] = PASSES
) -> list[Case]:
    """Every case asked for, once, in an order that makes the first part of an unfinished run worth most."""
    found: dict[str, Case] = {}
    for dtype in dtypes:
        shapes = {"hidden": list(hidden(DTYPES[dtype].itemsize)), "rows": list(rows())}
        shapes |= {"real": list(REAL), "family": list(FAMILY)}
        for group in groups:
            for direction in directions:
                for shape in shapes[group]:
                    case = Case(shape, dtype, direction)
                    if direction == "no_grad" or not case.operator.inference:
                        found.setdefault(case.id, case)
    return list(found.values())


def chosen(names: str, known: Sequence[str]) -> list[str]:
    """A comma-separated list of known names.  Raises ValueError for another."""
    found = names.split(",")
    for name in found:
        if name not in known:
            raise ValueError(f"unknown {name!r}: expected some of {', '.join(known)}")
    return found
