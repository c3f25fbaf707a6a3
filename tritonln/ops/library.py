"""Custom ops in torch's library.

torch knows the schema of an op and what it runs from the import on, which takes a fraction of a millisecond.  What
tracing asks for (fake tensors, autograd, a decomposition) takes several, so it is registered when
`torch.ops.tritonln.NAME` is first looked up: no trace has an op that was not.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import _OpNamespace

NAMESPACE = "tritonln"
_signatures: dict[str, str] = {}
_libraries: dict[str, torch.library.Library] = {}  # of each op, which lives as long as they
_waiting: dict[str, Callable[[], None]] = {}  # of each op that nobody has looked up


class _Ops(_OpNamespace):
    """torch.ops.tritonln"""

    __module__ = _OpNamespace.__module__  # by which torch.fx writes down where its ops are

    def __getattr__(self, name: str) -> Any:
        complete = _waiting.pop(name, None)
        packet = super().__getattr__(name)  # found without us from now on
        if complete is not None:
            complete()
        return packet


setattr(torch.ops, NAMESPACE, _Ops(NAMESPACE))


def define(
    name: str,
    signature: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    decomposition: Callable[..., Any] | None = None,
) -> None:
    """Makes tritonln::NAME known; an op that is defined again, as in a notebook, replaces the one before.

    Args:
        signature: what follows the name in torch's schema, `(Tensor x) -> Tensor`.
        implementation: what runs, on every device.
        fake, backward, setup_context: as torch.library's register_fake and register_autograd have them.
        decomposition: the op in torch's own operators, for exporters: torch.onnx asks for it, run_decompositions can be
            given it.
    """
    _waiting.pop(name, None)
    _signatures[name] = signature
    if name in _libraries:
        _libraries.pop(name)._destroy()
    library = _libraries[name] = torch.library.Library(NAMESPACE, "FRAGMENT")
    library.define(name + signature, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, implementation, "CompositeExplicitAutograd")

    def complete() -> None:
        described = _marked(fake if decomposition is None else _kept(name, fake))
        torch.library.register_fake(f"{NAMESPACE}::{name}", described, lib=library)
        if backward is not None:
            torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=library)
        if decomposition is not None:
            torch._decomp.register_decomposition(op(name))(decomposition)
            # Else torch walks through that to know what results look like where a size is symbolic: as many time
            # steps as there are, whose number is a constant from then on.
            torch._decomp.meta_table[op(name)] = described

    _waiting[name] = complete


def _kept(name: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """fake, which also has Inductor call the op as it is.

    Inductor calls ops that it does not know as they are.  But with CI in the environment it takes one that has a
    decomposition for a mistake of its own, and raises, unless the op has been given to it.  It is loaded only when
    it compiles, and what it compiles has been through fake by then.
    """

    @functools.wraps(fake)
    def described(*arguments: Any, **keywords: Any) -> Any:
        lowering = sys.modules.get("torch._inductor.lowering")
        if lowering is not None and op(name) not in lowering.lowerings:
            lowering.make_fallback(op(name), lowering.constrain_to_fake_tensors, warn=False)
        return fake(*arguments, **keywords)

    return described


def _marked(fake: Callable[..., Any]) -> Callable[..., Any]:
    """fake, which also has torch.compile's caches on disk know these ops from those of another version.

    torch finds a compiled backward by the code of the forward alone, which calls an op by its name.  Without the mark a
    backward that an earlier version of the package left there would be called with what this one saves.
    """

    @functools.wraps(fake)
    def described(*arguments: Any, **keywords: Any) -> Any:
        config = torch.compiler.config
        mark = _mark(tuple(sorted(_signatures.items())))
        if mark not in config.cache_key_tag:
            before = config.cache_key_tag.split(f" {NAMESPACE} ")[0]  # the user's, whose tag this is
            config.cache_key_tag = before + mark
        return fake(*arguments, **keywords)

    return described


@functools.cache
def _mark(signatures: tuple[tuple[str, str], ...]) -> str:
    digest = hashlib.sha256(repr(signatures).encode())
    for source in sorted(pathlib.Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    return f" {NAMESPACE} {digest.hexdigest()[:16]}"


def op(name: str) -> Any:
    return getattr(getattr(torch.ops, NAMESPACE), name).default
