"""The one tolerance of tests, of the tuner and of benchmarks.

    max|err| <= 2 eps(out) max|ref| + 4 eps(arithmetic) kappa sqrt(terms) rms(ref)

The first term is the rounding of the result.  The second is that of the arithmetic: `terms` numbers
are added into each result (1 for y and dx, whose row sums are means; the rows for dw and db), and
kappa = max(1, |mean| rstd) carries the conditioning of a large mean.  For dx, rms(ref) is replaced by
the rms of the terms whose difference it is: the difference itself vanishes for rows of two values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritonln.device import interpreting


def allowed(dtype: torch.dtype, peak: float, rms: float, terms: int = 1, kappa: float = 1.0) -> float:
    """The largest error of a result of this dtype whose reference has this maximum and root mean square."""
    eps = torch.finfo(dtype).eps
    arithmetic = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    # Triton's interpreter truncates fp32 to bf16 instead of rounding to nearest: one ulp more.
    units = 3 if dtype == torch.bfloat16 and interpreting() else 2
    return units * eps * peak + 4 * arithmetic * kappa * terms**0.5 * rms


def tolerance(out: Tensor, reference: Tensor, terms: int = 1, kappa: float = 1.0, scale: float = 0.0) -> float:
    rms = max(scale, float(reference.square().mean().sqrt()))
    return allowed(out.dtype, float(reference.abs().max()), rms, terms, kappa)


def error(out: Tensor, reference: Tensor) -> float:
    """The largest error; infinite where out is NaN and the reference is not."""
    return float((out.double() - reference).abs().nan_to_num(nan=float("inf")).max())
