"""Each operator's calls like an earlier one: what they launch and return is what they would if nothing was known.

Launches are noted, not carried out, so that every operand can be varied in every way.
"""

import contextlib
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.family import FAMILY, operands
from tests.helpers.operators import FUNCTIONS as OPERATORS
from tests.helpers.operators import derived, same, some_norms
from tests.helpers.operators import tensors_of as values_of
from tests.helpers.problems import BF16, F16, F32, F64, rand
from tritonln.launch import forget_driver, recorded
from tritonln.ops.known import KNOWN

pytestmark = [
    pytest.mark.interpreted,
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight"),  # torch's, once
]

N, SHAPE = 32, (2, 3, 32)
Tensors = dict[str, Any]
FUNCTIONS = {
    "layer_norm": ("x", "weight", "bias"),
    "rms_norm": ("x", "weight"),
    **{name: member.operands for name, member in FAMILY.items() if name != "gate_first"},
    "quantized_layer_norm": ("x", "weight", "bias", "residual"),
    "quantized_rms_norm": ("x", "weight", "scale"),
    "qk_norm": ("q", "k", "q_weight", "k_weight", "cos", "sin"),
}
LIKELY = ["layer_norm", "add_rms_norm", "add_adaptive_layer_norm", "quantized_layer_norm", "qk_norm"]
each = pytest.mark.parametrize("name", [*LIKELY, *thorough(*(name for name in FUNCTIONS if name not in LIKELY))])


def tensors_of(name: str, device: torch.device) -> Tensors:
    if name in FAMILY:
        return dict(operands(name, SHAPE, F32, device))
    sizes = {"q": (2, 3, 4, N), "k": (2, 3, 2, N), "cos": (3, N), "sin": (3, N), "x": SHAPE, "residual": SHAPE}
    sizes["scale"] = (1,)
    words = FUNCTIONS[name]
    return {word: rand(*sizes.get(word, (N,)), dtype=F32, device=device, seed=i) for i, word in enumerate(words)}


def called(name: str, t: Tensors, **settings: Any) -> Any:
    function = getattr(tritonln, name)
    parameters = inspect.signature(function).parameters
    given = {("input" if "input" in parameters and word == "x" else word): value for word, value in t.items()}
    if "normalized_shape" in parameters:
        given["normalized_shape"] = N
    return function(**{**given, **settings})


def outcome(name: str, t: Tensors, **settings: Any) -> Any:
    """What is launched, returned or raised, in comparable words; backward too where there is one."""
    words = {
        value.data_ptr(): word for word, value in t.items() if type(value) is Tensor and value.layout is torch.strided
    }

    def said(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(said(part) for part in value)
        if not isinstance(value, Tensor):
            return value
        if value.layout is not torch.strided:
            return value.layout, value.dtype, value.shape
        place = words.get(value.data_ptr()) if value.device.type != "meta" else None
        return place, type(value), value.dtype, value.shape, value.stride(), value.requires_grad, value.is_inference()

    with recorded() as calls:
        try:
            found = called(name, t, **settings)
            results = found if isinstance(found, tuple) else (found,)
            leaves = [value for value in t.values() if isinstance(value, Tensor) and value.requires_grad]
            ends = [y for y in results if y.requires_grad]
            for some in (ends, ends[-1:]) if leaves and ends else ():
                results += torch.autograd.grad(some, leaves, some, retain_graph=True, allow_unused=True)
        except Exception as error:
            return type(error), str(error)
    launches = [(of.name, of.constants, of.options, programs, said(args)) for of, programs, args in calls]
    return launches, said(results)


def hold(name: str, base: Tensors, varied: Tensors, settings: dict[str, Any] | None = None, within: Any = None) -> None:
    """A varied call after `base`, after itself, and where nothing is known."""
    around = contextlib.nullcontext if within is None else within
    KNOWN.clear()
    outcome(name, base)
    found = []
    for forgotten in (False, False, True):
        if forgotten:
            KNOWN.clear()
        with around():
            found.append(outcome(name, varied, **(settings or {})))
    assert found[0] == found[2]
    assert found[1] == found[2]


class Subclass(Tensor):
    pass


def inference(t: Tensor) -> Tensor:
    with torch.inference_mode():
        return t.clone()


def misaligned(t: Tensor) -> Tensor:
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


VARIED: dict[str, Callable[[Tensor], Any]] = {
    "less": lambda t: t[:1],
    "flat": lambda t: t.flatten(),
    "more dimensions": lambda t: t[None],
    "strided": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    "apart": lambda t: torch.stack([t, t], -1)[..., 0],
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "expanded": lambda t: t[:1].expand_as(t),
    "misaligned": misaligned,
    "bf16": lambda t: t.to(BF16),
    "fp16": lambda t: t.to(F16),
    "fp64": lambda t: t.to(F64),
    "int": lambda t: t.to(torch.int32),
    "parameter": torch.nn.Parameter,
    "leaf": lambda t: t.clone().requires_grad_(),
    "no leaf": lambda t: t.clone().requires_grad_() * 1,
    "negated": lambda t: t._neg_view(),
    "zero": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype, device=t.device),
    "meta": lambda t: t.to("meta"),
    "subclass": lambda t: t.as_subclass(Subclass),
    "inference": inference,
    "sparse": lambda t: t.to_sparse(),
    "absent": lambda t: None,
    "number": lambda t: 1.0,
    "list": lambda t: t.tolist(),
}


@each
def test_operands(name: str, device: torch.device) -> None:
    base = tensors_of(name, device)
    for word in base:
        for vary in VARIED.values():
            hold(name, base, {**base, word: vary(base[word])})
        for other in base.keys() - {word}:  # of two operands that are one
            one = {**base, word: base[other]}
            hold(name, base, one)
            for kind in ("less", "bf16", "strided"):
                hold(name, one, {**one, word: VARIED[kind](one[word])})
                hold(name, one, dict.fromkeys(base, VARIED[kind](one[word])))


@each
def test_operands_of_calls_with_gradients(name: str, device: torch.device) -> None:
    base = {word: t.requires_grad_() for word, t in tensors_of(name, device).items()}
    for word in base:
        for kind in ("less", "strided", "bf16", "absent", "parameter", "inference"):
            hold(name, base, {**base, word: VARIED[kind](base[word].detach())})
            hold(name, {**base, word: VARIED[kind](base[word].detach())}, base)


SETTINGS: dict[str, tuple[Any, ...]] = {
    "eps": (1e-3, 0.1, None, 1, True, "1", [1.0], torch.tensor(1e-5)),
    "normalized_shape": ((N,), [N], torch.Size([N]), float(N), (float(N),), 16, (3, N), None, "32"),
    "weight_offset": (1.0, 1, False, None, "1"),
    "residual_dtype": (BF16, F64, torch.int8, "float32"),
    "dropout_p": (0.5, 0, False, 2.0, torch.tensor(0.5), None),
    "training": (False, 0),
    "row_scale": (torch.ones(2, 1, 1), torch.ones(5)),
    "cast": ("llama", "other", None),
    "norm_before_gate": (False, 0),
    "group_size": (16, 5, N),
    "dtype": (torch.float8_e5m2, torch.int8, F32, None),
    "block_size": (32, 16, 0, True),
    "centred": (True, 1),
    "inplace": (True, 1),
}


@each
def test_settings(name: str, device: torch.device) -> None:
    base = tensors_of(name, device)
    for word in inspect.signature(getattr(tritonln, name)).parameters:
        for value in SETTINGS.get(word, ()):
            hold(name, base, base, {word: value})


class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class Refusing(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(tritonln, function.__name__, None) is function:
            raise RuntimeError("refused")
        return function(*args, **(kwargs or {}))


CONTEXTS: dict[str, Any] = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu"),
    "dispatch": Seen,
    "function": Refusing,
    "dual": torch.autograd.forward_ad.dual_level,
}


@each
@pytest.mark.parametrize("gradients", [False, True])
def test_contexts(name: str, gradients: bool, device: torch.device) -> None:
    base = {word: t.requires_grad_(gradients) for word, t in tensors_of(name, device).items()}
    for context in CONTEXTS.values():
        hold(name, base, base, within=context)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("gradients", [False, True])
def test_it_is_known(name: str, gradients: bool, device: torch.device) -> None:
    """Where rows lie apart, and where one tensor is given twice, too."""
    if gradients and "quantized" in name:
        return
    constants = "cos", "sin"
    base = {word: t.requires_grad_(gradients and word not in constants) for word, t in tensors_of(name, device).items()}
    rows = [word for word, t in base.items() if t.dim() > 1 and word not in constants]
    strided = {word: VARIED["strided"](t.detach()).requires_grad_(t.requires_grad) for word, t in base.items()}
    twice = next(({a: base[b]} for a in base for b in base if a != b and base[a].shape == base[b].shape), {})
    for t in (base, {**base, **{word: strided[word] for word in rows}}, {**base, **twice}):
        KNOWN.clear()
        for _ in range(2):
            outcome(name, t)
            assert sum(map(len, KNOWN.values())) == 1


def test_no_tensor_is_kept(device: torch.device) -> None:
    for name in FUNCTIONS:
        t = tensors_of(name, device)
        outcome(name, t)
        there = [weakref.ref(value) for value in t.values()]
        del t
        assert not any(ref() is not None for ref in there)


@some_norms
def test_results(name: str, device: torch.device) -> None:
    """Values and gradients, to the bit, of other values than those of the call before."""
    t = values_of(name, device)
    others = {word: value + 1 for word, value in t.items()}
    KNOWN.clear()
    derived(OPERATORS[name], t)
    found = derived(OPERATORS[name], others)
    KNOWN.clear()
    same(found, derived(OPERATORS[name], others))


def test_noise_is_drawn_anew(device: torch.device) -> None:
    x = rand(2, 3, N, dtype=F32, device=device)
    KNOWN.clear()

    def drawn() -> list[Tensor]:
        return [tritonln.add_rms_norm(x, x, N, dropout_p=0.5)[1] for _ in range(3)]

    torch.manual_seed(1)
    first = drawn()
    assert not torch.equal(first[1], first[2])
    torch.manual_seed(1)
    same(drawn(), first)
    assert torch.equal(tritonln.add_rms_norm(x, x, N, dropout_p=0.5, training=False)[1], x + x)


def test_another_operator_or_driver(device: torch.device) -> None:
    t = tensors_of("adaptive_rms_norm", device)
    KNOWN.clear()
    launched = [outcome(name, t, eps=1e-5) for name in ("adaptive_rms_norm", "adaptive_layer_norm")]
    assert launched[0] != launched[1]
    before = len(KNOWN)
    forget_driver()
    assert outcome("adaptive_rms_norm", t, eps=1e-5) == launched[0]
    assert len(KNOWN) == before + 1
