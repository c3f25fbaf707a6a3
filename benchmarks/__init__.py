"""Benchmarks.  Where there is no GPU the kernels are interpreted, settled before anything loads Triton."""

import os

import torch

if not torch.accelerator.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
