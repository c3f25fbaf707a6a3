"""What any Triton library launches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from triton.runtime.jit import JITFunction

# Called with a kernel, its arguments, its options by name, and what it was compiled to.
Note = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None]


@contextlib.contextmanager
def heard(note: Note) -> Iterator[None]:
    """Inside, `note` is told of every launch that goes through Triton's dispatch."""
    run = JITFunction.run

    def running(kernel: Any, *args: Any, **options: Any) -> Any:
        compiled = run(kernel, *args, **options)
        note(kernel, args, options, compiled)
        return compiled

    JITFunction.run = running
    try:
        yield
    finally:
        JITFunction.run = run
