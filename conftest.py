"""Kernels are interpreted where no GPU is; set before anything imports Triton."""

import os

import torch

if not torch.accelerator.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
