"""The short names of dtypes, on command lines and in tables: Triton's words."""

import torch

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}
NAMES = {dtype: name for name, dtype in DTYPES.items()} | {torch.int64: "i64"}
