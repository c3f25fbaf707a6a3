"""What operators do with tensors that are more than their storage: rows of the README's table."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import tritonln
from tests.helpers.operators import (
    CPU,
    FUNCTIONS,
    Function,
    N,
    Tensors,
    derived,
    each,
    each_norm,
    each_norm_thoroughly,
    same,
    some,
    tensors_of,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own


@each_norm
def test_lazily_negated_tensors(name: str, device: torch.device) -> None:
    """Each argument in turn, which backward reads too."""
    tensors = tensors_of(name, device)
    expected = derived(FUNCTIONS[name], tensors)
    for word in tensors:
        same(derived(FUNCTIONS[name], {**tensors, word: torch._neg_view(-tensors[word])}), expected)


@each_norm
def test_unaligned_tensors(name: str, device: torch.device) -> None:
    """Parameters are views of a flat buffer; x is one too."""
    tensors = tensors_of(name, device)
    views = {}
    for word, t in tensors.items():
        views[word] = torch.cat([t.new_zeros(1), t.reshape(-1)])[1:].view(t.shape)
        assert views[word].data_ptr() % 16 == 4
    same(derived(FUNCTIONS[name], views), derived(FUNCTIONS[name], tensors))


@each
def test_meta_and_fake_tensors(name: str, device: torch.device) -> None:
    """All of them, and those beside x alone."""
    tensors = tensors_of(name, CPU)
    expected = derived(FUNCTIONS[name], tensors)
    found = derived(FUNCTIONS[name], {word: t.to("meta") for word, t in tensors.items()})
    assert all(t.is_meta and t.shape == ref.shape for t, ref in zip(found, expected, strict=True))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {word: mode.from_tensor(t) for word, t in tensors.items()}
    assert all(isinstance(t, FakeTensor) for t in derived(FUNCTIONS[name], fake))
    assert all(isinstance(y, FakeTensor) for y in FUNCTIONS[name]({**fake, "x": tensors["x"]}))


class Watching(Tensor):
    """Overrides functions, and does nothing else."""

    seen: list[Any] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


@each
def test_subclasses(name: str, device: torch.device) -> None:
    """By __torch_function__, and by __torch_dispatch__."""
    tensors = tensors_of(name, device)
    expected = derived(FUNCTIONS[name], tensors)
    outputs = FUNCTIONS[name]({word: t.as_subclass(Watching) for word, t in tensors.items()})
    assert all(type(y) is Watching for y in outputs)
    assert getattr(tritonln, "gated_rms_norm" if name == "gate_first" else name) in Watching.seen
    found = derived(FUNCTIONS[name], {word: TwoTensor(t, t) for word, t in tensors.items()})
    for out, ref in zip(found, expected, strict=True):
        torch.testing.assert_close(out.a, ref, rtol=1e-4, atol=1e-4)  # by the formula


def of_sequences(name: str, device: torch.device, function: Function) -> tuple[Tensors, Function, Function]:
    """Sequences of several lengths, with modulations by sequence: all at once by `function`, and one by one."""
    tensors, offsets = tensors_of(name, device), torch.tensor([0, 2, 7, 9], device=device)
    shape, spans = tensors["x"].shape, list(itertools.pairwise(offsets.tolist()))
    of_rows = {word: t.dim() == len(shape) for word, t in tensors.items()}
    flat = {word: t.flatten(0, 1)[:9] for word, t in tensors.items() if of_rows[word]}

    def nested(t: Tensors) -> tuple[Tensor, ...]:
        jagged = torch.nested.nested_tensor_from_jagged
        outputs = function({word: jagged(v, offsets) if of_rows[word] else v for word, v in t.items()})
        assert all(y.is_nested and y.offsets() is offsets for y in outputs)  # type: ignore[attr-defined]
        return tuple(y.values() for y in outputs)

    def singly(t: Tensors) -> tuple[Tensor, ...]:
        parts = []
        for i, (start, end) in enumerate(spans):
            shared = {word: v[i : i + 1] if v.dim() == 2 else v for word, v in t.items() if not of_rows[word]}
            parts.append(FUNCTIONS[name]({word: shared.get(word, v[start:end][None]) for word, v in t.items()}))
        return tuple(torch.cat([y[0] for y in outputs]) for outputs in zip(*parts))

    return {**tensors, **flat}, nested, singly


@each_norm
def test_jagged_nested_tensors(name: str, device: torch.device) -> None:
    tensors, nested, singly = of_sequences(name, device, FUNCTIONS[name])
    for out, ref in zip(derived(nested, tensors), derived(singly, tensors), strict=True):
        torch.testing.assert_close(out, ref)


@each_norm_thoroughly
def test_compiled_jagged_nested_tensors(name: str, device: torch.device) -> None:
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend="aot_eager")
    (tensors, nested, _), (_, eager, _) = (of_sequences(name, device, f) for f in (compiled, FUNCTIONS[name]))
    same(derived(nested, tensors), derived(eager, tensors))


def test_jagged_nested_tensors_that_do_not_fit() -> None:
    jagged = torch.nested.nested_tensor_from_jagged
    x, other = (jagged(torch.randn(5, N), torch.tensor([0, 2, 5])) for _ in range(2))
    with pytest.raises(RuntimeError, match="expected residual to have the offsets of x"):
        tritonln.add_rms_norm(x, other, N)
    with pytest.raises(RuntimeError, match=r"Expected scale size \[2, 8\] beside x"):
        tritonln.adaptive_rms_norm(x, torch.ones(3, N), None, N)
    gaps = jagged(torch.randn(5, N), torch.tensor([0, 2, 5]), torch.tensor([1, 2]))
    with pytest.raises(RuntimeError, match="expected input to be a jagged tensor without gaps"):
        tritonln.rms_norm(gaps, N)


@some
def test_another_default_device(name: str, device: torch.device) -> None:
    tensors = tensors_of(name, device)
    expected = derived(FUNCTIONS[name], tensors)
    with torch.device("meta"):
        found = FUNCTIONS[name](tensors)
        torch.manual_seed(0)
        out = tritonln.add_rms_norm(torch.ones(4, N, device=device), None, N, dropout_p=0.5)[1]
    same(found, expected[: len(found)])
    assert not out.is_meta
