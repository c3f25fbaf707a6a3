"""The norms of a model, put on tritonln's kernels in place."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch.nn import Module

from tritonln.nn import norm
from tritonln.nn.change_class import change_class
from tritonln.nn.recognise import is_norm, recognised
from tritonln.nn.report import Report, must_be_module
from tritonln.nn.swapped import Swapped, swapped, unswapped

Choice = str | type[Module] | Iterable[str | type[Module]]


class NormReport(Report):
    """What :func:`replace_norms` did, by the names of modules: what each was and became, or why it was left."""


def replace_norms(
    model: Module, *, include: Choice | None = None, exclude: Choice | None = None, dry_run: bool = False
) -> NormReport:
    """Puts the LayerNorms and RMSNorms of a model on tritonln's kernels, in place, and reports on each.

    Args:
        model: any module, also one on the meta device, one that PEFT, DDP or FSDP has wrapped, or a norm itself.
        include: which norms: patterns of :mod:`fnmatch` for the qualified names, or classes; None for all.
        exclude: which not, of those.  A norm that stands in several places goes by its first name.
        dry_run: reports only; ``swapped`` are then those that would be.

    What is swapped:

    - :class:`torch.nn.LayerNorm`, :class:`torch.nn.RMSNorm`, and subclasses that have no forward of their own;
    - other modules with a vector ``weight``, perhaps a ``bias``, an ``eps``, ``variance_epsilon`` or ``epsilon``, and
      a forward of one tensor, such as the RMSNorms of transformers and timm: if their forward, tried on the CPU with
      random parameters, gives the values and gradients of :func:`tritonln.layer_norm` or :func:`tritonln.rms_norm`,
      with a ``weight_offset`` of 0 or 1 (Gemma's) and the ``cast`` that is seen in bf16.

    Other norms are left, and ``left`` says why.

    A swapped module is the same object with the same parameters, buffers, hooks, mode and attributes; only its class
    is another: a subclass of the one before, of the same name.  So optimizers, ``state_dict``, ``isinstance``, ``repr``
    and wrappers see no difference.  Copies and pickles are swapped too (a pickle then needs tritonln to load).
    ``torch.compile``, ``torch.export`` and ``torch.jit.trace`` work, and ``fully_shard`` before or after;
    ``torch.jit.script`` works for torch's two classes only.  FullyShardedDataParallel with ``use_orig_params=False``
    takes the parameters out of modules: swap before it.

    What differs: the last bits, by another order of adding.  Where the RMSNorm of a model rounds x_hat before it
    multiplies by the weight, ``cast="llama"`` does so too.  Where the two could differ in dtype (x and weight of
    different dtypes, 16-bit x under autocast), the forward of a class that is not torch's still runs.  What a forward
    does on a GPU only, the trial on the CPU does not see.

    Swapped norms refuse what tritonln's functions refuse: devices that neither Triton nor the CPU serves, and of
    ``nn.RMSNorm`` fp64 beside another dtype.

    Raises:
        TypeError: for a model that is no module, and for an include or exclude that is neither pattern nor class.
    """
    must_be_module("replace_norms", model)
    included, excluded = _choices("include", include), _choices("exclude", exclude)
    report = NormReport()
    for name, module in model.named_modules():
        if not is_norm(module):
            continue
        cls: Any = type(module)
        was = cls.__name__
        if isinstance(module, (norm.LayerNorm, norm.RMSNorm, Swapped)):
            report.left[name] = f"{was}: it is tritonln's already"
        elif included is not None and not _chosen(included, name, module):
            report.left[name] = f"{was}: it is not included"
        elif excluded is not None and _chosen(excluded, name, module):
            report.left[name] = f"{was}: it is excluded"
        elif isinstance(formula := recognised(module), str):
            report.left[name] = f"{was}: {formula}"
        else:
            report.swapped[name] = f"{was} -> {formula}"
            if not dry_run:
                change_class(module, swapped(cls, formula))
    return report


def restore_norms(model: Module) -> list[str]:
    """Undoes :func:`replace_norms`: every module that it swapped gets its class back.  Returns their names.

    Raises:
        TypeError: for a model that is no module.
    """
    must_be_module("restore_norms", model)
    names = []
    for name, module in model.named_modules():
        if isinstance(module, Swapped):
            change_class(module, unswapped(type(module)))
            names.append(name)
    return names


def _choices(argument: str, given: Choice | None) -> tuple[str | type[Module], ...] | None:
    if given is None:
        return None
    choices = (given,) if isinstance(given, (str, type)) else tuple(given)
    for choice in choices:
        if not isinstance(choice, (str, type)):
            raise TypeError(f"replace_norms: {argument} should be of patterns of names or classes, got {choice!r}")
    return choices


def _chosen(choices: tuple[str | type[Module], ...], name: str, module: Module) -> bool:
    return any(fnmatchcase(name, c) if isinstance(c, str) else isinstance(module, c) for c in choices)
