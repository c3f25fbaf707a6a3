"""A progress bar with the time left; plain lines where rich is not installed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def progress(items: Sequence[T], title: str) -> Iterator[T]:
    try:
        from rich.progress import track
    except ImportError:
        yield from _lines(items, title)
        return
    yield from track(items, title)


def _lines(items: Sequence[T], title: str) -> Iterator[T]:
    start = said = time.monotonic()
    for i, item in enumerate(items):
        yield item
        now = time.monotonic()
        if now - said > 10 or i + 1 == len(items):
            said = now
            left = (now - start) / (i + 1) * (len(items) - i - 1)
            print(f"{title}: {i + 1} of {len(items)}, {left:.0f} s left", file=sys.stderr, flush=True)
