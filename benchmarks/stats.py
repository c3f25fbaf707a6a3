"""Medians, quartiles, and the interval of a ratio of two medians."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Summary:
    median: float
    q1: float
    q3: float

    @property
    def iqr(self) -> float:
        return self.q3 - self.q1


def summary(samples: Sequence[float]) -> Summary:
    q1, median, q3 = torch.tensor(samples, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    return Summary(float(median), float(q1), float(q3))


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Of two medians, with its bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def noise(self) -> bool:
        """Whether the interval holds 1: the two cannot be told apart."""
        return self.low <= 1 <= self.high

    def __str__(self) -> str:
        text = f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"
        return f"{text} inside the noise" if self.noise else text


def ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """median(a) / median(b), with the percentile bootstrap interval of CONFIDENCE; the same on every run."""
    generator = torch.Generator().manual_seed(0)
    medians = [_resampled_medians(s, generator) for s in (a, b)]
    tail = (1 - CONFIDENCE) / 2
    low, high = (medians[0] / medians[1]).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Ratio(summary(a).median / summary(b).median, low, high)


def _resampled_medians(samples: Sequence[float], generator: torch.Generator) -> Tensor:
    values = torch.tensor(samples, dtype=torch.float64)
    picked = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    return values[picked].quantile(0.5, dim=1)
