"""A progress bar with the time left; plain lines where rich is not installed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """The items; `total` says how many where they have no length."""
    count = len(items) if isinstance(items, Sequence) else total or 0
    try:
        from rich.progress import track
    except ImportError:
        yield from _lines(items, title, count)
        return
    yield from track(items, title, count)


def _lines(items: Iterable[T], title: str, count: int) -> Iterator[T]:
    start = said = time.monotonic()
    for i, item in enumerate(items):
        yield item
        now = time.monotonic()
        if now - said > 10 or i + 1 == count:
            said = now
            left = (now - start) / (i + 1) * (count - i - 1)
            print(f"{title}: {i + 1} of {count}, {left:.0f} s left", file=sys.stderr, flush=True)
