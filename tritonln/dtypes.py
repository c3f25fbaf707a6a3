"""The short names of dtypes, on command lines and in tables: Triton's words."""

import torch

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}
BY_NAME = {**DTYPES, "i64": torch.int64}  # of operands too
NAMES = {dtype: name for name, dtype in BY_NAME.items()}
