"""The arguments of a launch, as the compiled kernel takes them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

SCALARS = {
    **{"fp64": "<d", "fp32": "<f", "fp16": "<e", "i64": "<q", "u64": "<Q", "i32": "<i", "u32": "<I"},
    **{"i16": "<h", "u16": "<H", "i8": "<b", "u8": "<B", "i1": "<?", "u1": "<?"},
}


def flat(signature: Any, args: Any) -> Iterator[tuple[str, str, Any]]:
    """(name, kind, value) of every argument; those of a tuple one by one."""
    for (name, kind), value in zip(signature, args):
        if isinstance(kind, tuple):
            yield from flat([(f"{name}[{i}]", k) for i, k in enumerate(kind)], value)
        else:
            yield name, kind, value


def scalar(argument: str, kind: str, value: Any) -> bytes:
    if kind not in SCALARS:
        raise NotImplementedError(f"{argument}: the emulator passes no {kind}")
    try:
        return struct.pack(SCALARS[kind], value)
    except struct.error:
        raise TypeError(f"{argument}: expected a value of type {kind}, but got {value!r}") from None
