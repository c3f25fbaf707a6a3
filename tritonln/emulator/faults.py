"""What a kernel did that a GPU would not do, or not do reliably."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class EmulationError(Exception):
    """A faulty kernel: the message names it, what it did, the CTA and thread, the instruction and the source line."""


class Fault(Exception):
    """Raised where it is seen; the machine, which knows by whom, makes an EmulationError of it.

    `mask` (warps, lanes) are the threads at fault, None if it is nobody's in particular.
    """

    def __init__(self, what: str, mask: Array | None = None):
        super().__init__(what)
        self.what, self.mask = what, mask


def some(mask: Array) -> bool:
    """mask.any(), several times faster on small arrays."""
    return bool(np.count_nonzero(mask))
