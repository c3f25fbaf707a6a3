"""Torch's transformer layers and stacks of a model, made tritonln's in place."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Module

from tritonln.nn import transformer
from tritonln.nn.change_class import change_class
from tritonln.nn.report import Report, must_be_module

OURS: dict[type[Module], type[Module]] = {
    torch.nn.TransformerEncoderLayer: transformer.TransformerEncoderLayer,
    torch.nn.TransformerDecoderLayer: transformer.TransformerDecoderLayer,
    torch.nn.TransformerEncoder: transformer.TransformerEncoder,
    torch.nn.TransformerDecoder: transformer.TransformerDecoder,
}
THEIRS = {ours: theirs for theirs, ours in OURS.items()}


class TransformerReport(Report):
    """What :func:`replace_transformers` did, by the names of modules: what each was and became, or why it was left."""


def replace_transformers(model: Module, *, dry_run: bool = False) -> TransformerReport:
    """Makes torch's transformer layers and stacks in a model tritonln's, in place, and reports on each.

    That is :class:`torch.nn.TransformerEncoderLayer`, ``TransformerDecoderLayer``, ``TransformerEncoder`` and
    ``TransformerDecoder``, those of a :class:`torch.nn.Transformer` too.  A module is the same object with the same
    parameters, hooks, mode and attributes; only its class is another, a subclass of the one before.  So optimizers and
    their state, ``state_dict`` and ``isinstance`` see no difference.  Subclasses are left, as they may compute
    something else; wrap with ``fully_shard`` after it, not before.

    ``dry_run`` only reports.  Norms that stand outside of these layers are :func:`tritonln.nn.replace_norms`' work.

    Raises:
        TypeError: for a model that is no module.
    """
    must_be_module("replace_transformers", model)
    report = TransformerReport()
    for name, module in model.named_modules():
        cls: Any = type(module)
        was = cls.__name__
        if not isinstance(module, tuple(OURS)):
            continue
        if cls in THEIRS:
            report.left[name] = f"{was}: it is tritonln's already"
        elif cls not in OURS:
            report.left[name] = f"{was}: it is of a subclass"
        elif "forward" in vars(module):
            report.left[name] = f"{was}: its forward was set on the instance, as accelerate's hooks do it"
        else:
            report.swapped[name] = f"{was} -> tritonln.nn.{was}"
            if not dry_run:
                change_class(module, OURS[cls])
    return report


def restore_transformers(model: Module) -> list[str]:
    """Undoes :func:`replace_transformers`: tritonln's layers and stacks become torch's.  Returns their names.

    Raises:
        TypeError: for a model that is no module.
    """
    must_be_module("restore_transformers", model)
    names = [name for name, module in model.named_modules() if type(module) in THEIRS]
    for name in names:
        module = model.get_submodule(name)
        change_class(module, THEIRS[type(module)])
    return names
