"""The short names of dtypes, on command lines and in tables: Triton's words."""

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}
BY_NAME = {  # of operands too
    **DTYPES,
    "i64": torch.int64,
    "i8": torch.int8,
    "u8": torch.uint8,
    "i1": torch.bool,
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e5": torch.float8_e5m2,
    "fp8e8m0": torch.float8_e8m0fnu,  # torch's word: Triton has none
}
NAMES = {dtype: name for name, dtype in BY_NAME.items()}


def bytes_of(t: Tensor) -> Tensor:
    """What kernels take for 8-bit floats, which Triton refuses where a GPU cannot convert them."""
    return t.view(torch.uint8) if t.dtype.itemsize == 1 and t.dtype.is_floating_point else t
