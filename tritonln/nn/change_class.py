"""Another class for a module that stays the same object."""

from __future__ import annotations

from typing import Any


def change_class(module: Any, cls: Any) -> None:
    """Code that was compiled before sees it: torch 2.11 checks no guard of modules whose ``__dict__`` is as it was."""
    module.__class__ = cls
    vars(module)["_changed_class"] = None
    del vars(module)["_changed_class"]
