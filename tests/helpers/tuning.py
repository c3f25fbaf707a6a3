"""What the tests of the tuner share: injected clocks, keys and candidates."""

from collections.abc import Callable, Sequence

import torch

from tests.helpers.problems import F32
from tritonln.configurations.config import Config
from tritonln.configurations.tunable import Key, Tunable
from tritonln.device import Device
from tritonln.tuning import search

ROWS = 6


def clock(config: Config, launches: Sequence[Callable[[], object]]) -> float:
    """The more warps the better, whatever they do."""
    return 1.0 / (config.num_warps + config.num_stages / 8)


def never(config: Config, launches: Sequence[Callable[[], object]]) -> float:
    raise AssertionError("nothing may be timed here")


def key_of(tunable: Tunable, N: int = 64, dtype: torch.dtype = F32) -> Key:
    return next(iter(tunable.keys(N, dtype)))


def other_than_choice(tunable: Tunable, key: Key, device: Device) -> list[Config]:
    return search.nearest(tunable, key, device, 4)[1:]
