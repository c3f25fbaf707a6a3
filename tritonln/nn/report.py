"""What became of the modules of a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch.nn import Module


@dataclass(frozen=True)
class Report:
    """By the names of modules: what each was and became, or why it was left."""

    swapped: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = (("swapped", self.swapped), ("left", self.left))
        return "\n".join(
            line
            for title, modules in parts
            for line in (
                f"{title}: {len(modules)}",
                *(f"  {name or '(the model)'}: {what}" for name, what in modules.items()),
            )
        )


def must_be_module(function: str, model: object) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"{function}: model should be a torch.nn.Module, got {type(model).__name__}")
