"""replace_norms swaps what tritonln computes the same, leaves the rest with a reason, and restore_norms undoes it."""

from typing import Any

import pytest
import torch
from torch import Tensor

import tritonln
from tests.helpers import norms
from tests.helpers.problems import BF16, F32, rand
from tests.helpers.tolerance import assert_close
from tritonln import reference
from tritonln.nn import replace_norms, restore_norms

SIZE = 24
SERVED: dict[str, Any] = {  # what they become, the weight_offset, and the cast where it is not the native one
    "torch's LayerNorm": (lambda: torch.nn.LayerNorm(SIZE), "layer_norm", 0.0),
    "torch's RMSNorm": (lambda: torch.nn.RMSNorm(SIZE), "rms_norm", 0.0),
    "inherited": (lambda: norms.Inherited(SIZE, bias=False), "layer_norm", 0.0),
    "Llama's": (lambda: norms.RoundsFirst(SIZE), "rms_norm", 0.0, "llama"),
    "Gemma's": (lambda: norms.AroundZero(SIZE), "rms_norm", 1.0),
    "DeBERTa's": (lambda: norms.Centred(SIZE), "layer_norm", 0.0),
    "Cohere's": (lambda: norms.Centred(SIZE, bias=False), "layer_norm", 0.0),
    "timm's": (lambda: norms.OwnForward(SIZE), "layer_norm", 0.0),
    "Nemotron's": (lambda: norms.OffsetLayerNorm(SIZE), "layer_norm", 1.0),
}


def eps_of(norm: Any) -> float:
    eps = getattr(norm, "variance_epsilon", None) or norm.eps
    return torch.finfo(F32).eps if eps is None else eps


@pytest.mark.parametrize("name", SERVED)
def test_values_and_gradients_are_the_oracle_s_after_the_swap(name: str, device: torch.device) -> None:
    make, function, offset, *cast = SERVED[name]
    norm: Any = make()
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    norm.to(device)
    report = replace_norms(norm)
    assert report.left == {}
    suffix = f", weight_offset={offset}" if offset else ', cast="llama"' if cast else ""
    assert report.swapped == {"": f"{type(norm).__name__} -> tritonln.{function}{suffix}"}
    x, dy = (rand(2, 5, SIZE, dtype=F32, device=device, mean=1.0, seed=s) for s in (2, 3))
    y = norm(x.requires_grad_())
    y.backward(dy)
    weight, eps = norm.weight.detach() + offset, eps_of(norm)
    bias = getattr(norm, "bias", None)
    if function == "rms_norm":
        ref = reference.rms_norm_gradients(x.detach(), (SIZE,), weight, eps, dy)
        assert y.equal(tritonln.rms_norm(x, SIZE, norm.weight, eps, weight_offset=offset))
    else:
        ref = reference.layer_norm_gradients(x.detach(), (SIZE,), weight, bias, eps, dy)
        assert y.equal(tritonln.layer_norm(x, SIZE, norm.weight, bias, eps, weight_offset=offset))
    kappa = 2.0  # of rows whose mean is as large as their deviation
    assert_close("y", y.detach(), ref["y"], kappa=kappa)
    assert_close("dx", x.grad, ref["dx"], kappa=kappa, scale=2.0)
    assert_close("dw", norm.weight.grad, ref["dw"], 10, kappa=kappa)
    if bias is not None:
        assert_close("db", bias.grad, ref["db"], 10)


LEFT = {
    "gated": (lambda: norms.GatedNorm(SIZE), "its forward takes (x: "),
    "eps outside of the root": (lambda: norms.EpsOutside(SIZE, 1e-6), "its forward computes something else"),
    "statistics without gradients": (lambda: norms.Detached(SIZE), "its forward computes something else"),
    "another in training": (lambda: norms.WhenTraining(SIZE).eval(), "its forward computes something else"),
    "always fp32": (lambda: norms.StaysWide(SIZE), "its forward gives torch.float32 for torch.float64"),
    "no weight": (lambda: norms.UnitNorm(), "its parameters are none, where weight"),
    "channels first": (lambda: norms.Channels(SIZE), "its forward, tried on a CPU tensor of shape (2, 3, 24)"),
    "BatchNorm": (lambda: torch.nn.BatchNorm1d(SIZE), "its forward is torch's"),
    "GroupNorm": (lambda: torch.nn.GroupNorm(4, SIZE), "its forward is torch's"),
    "complex": (lambda: torch.nn.LayerNorm(SIZE, dtype=torch.complex64), "its weight is of torch.complex64"),
    "ours": (lambda: tritonln.nn.RMSNorm(SIZE), "it is tritonln's already"),
    "parametrized": (
        lambda: torch.nn.utils.parametrize.register_parametrization(
            torch.nn.LayerNorm(SIZE), "weight", torch.nn.Softplus()
        ),
        "it holds other modules",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_something_else_is_left_and_the_report_says_why(name: str) -> None:
    make, reason = LEFT[name]
    model = torch.nn.Sequential(make())
    was = type(model[0])
    report = replace_norms(model)
    assert report.swapped == {}
    assert list(report.left) == ["0"]
    assert report.left["0"].startswith(f"{was.__name__}: {reason}")
    assert type(model[0]) is was


def test_a_forward_that_was_set_on_the_instance_stays() -> None:
    norm = torch.nn.LayerNorm(SIZE)
    norm.forward = lambda x: x  # type: ignore[method-assign]
    assert replace_norms(norm).left[""].startswith("LayerNorm: its forward was set on the instance")


def test_other_modules_are_not_in_the_report() -> None:
    scripted = torch.nn.Sequential(torch.nn.Linear(SIZE, SIZE), torch.nn.Dropout(), torch.nn.Embedding(3, SIZE))
    report = replace_norms(scripted)
    assert report.swapped == report.left == {}


def block(kind: Any = norms.RoundsFirst) -> torch.nn.Module:
    return torch.nn.ModuleDict(
        {"first": kind(SIZE), "mlp": torch.nn.Linear(SIZE, SIZE), "second": torch.nn.LayerNorm(SIZE)}
    )


@pytest.mark.parametrize(
    ("options", "swapped"),
    [
        ({}, {"0.first", "0.second", "1.first", "1.second"}),
        ({"include": "1.*"}, {"1.first", "1.second"}),
        ({"include": ["0.first", "1.second"]}, {"0.first", "1.second"}),
        ({"include": torch.nn.LayerNorm}, {"0.second", "1.second"}),
        ({"exclude": ("*.first", torch.nn.RMSNorm)}, {"0.second", "1.second"}),
        ({"include": "0.*", "exclude": [torch.nn.LayerNorm]}, {"0.first"}),
        ({"include": ()}, set()),
    ],
)
def test_include_and_exclude_choose_by_name_or_class(options: Any, swapped: set[str]) -> None:
    model = torch.nn.Sequential(block(), block())
    rehearsed = replace_norms(model, **options, dry_run=True)
    assert restore_norms(model) == []
    report = replace_norms(model, **options)
    assert report == rehearsed
    assert report.swapped.keys() == swapped
    assert report.left.keys() == {"0.first", "0.second", "1.first", "1.second"} - swapped
    assert all(reason.endswith(("it is not included", "it is excluded")) for reason in report.left.values())
    assert set(restore_norms(model)) == swapped


def test_the_report_reads_as_a_list() -> None:
    model = torch.nn.ModuleDict({"norm": torch.nn.LayerNorm(SIZE), "bn": torch.nn.BatchNorm1d(SIZE)})
    assert str(replace_norms(model)) == (
        "swapped: 1\n  norm: LayerNorm -> tritonln.layer_norm\n"
        "left: 1\n  bn: BatchNorm1d: its forward is torch's, and neither LayerNorm's nor RMSNorm's"
    )


def test_a_norm_in_two_places_is_swapped_once() -> None:
    shared = torch.nn.LayerNorm(SIZE)
    model = torch.nn.Sequential(shared, shared)
    assert list(replace_norms(model).swapped) == ["0"]
    assert replace_norms(model).left == {"0": "LayerNorm: it is tritonln's already"}
    assert restore_norms(model) == ["0"]
    assert type(shared) is torch.nn.LayerNorm


def test_arguments_of_another_kind_are_refused() -> None:
    with pytest.raises(TypeError, match=r"replace_norms: model should be a torch.nn.Module, got list"):
        replace_norms([])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"restore_norms: model should be a torch.nn.Module, got NoneType"):
        restore_norms(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"replace_norms: exclude should be of patterns of names or classes, got 3"):
        replace_norms(block(), exclude=[3])  # type: ignore[list-item]


@pytest.mark.parametrize("kind", [norms.RoundsFirst, norms.AroundZero])
def test_mixed_dtypes_give_the_dtype_of_the_class(kind: Any, device: torch.device) -> None:
    norm = kind(SIZE).to(device)
    x = rand(4, SIZE, dtype=BF16, device=device)
    before = norm(x)
    replace_norms(norm)
    assert norm(x).dtype == before.dtype
    assert norm(x).equal(before)


def test_16_bits_are_rounded_where_the_class_rounds(device: torch.device) -> None:
    norm = norms.RoundsFirst(SIZE).to(device, BF16)
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    x = rand(400, SIZE, dtype=BF16, device=device)
    before = norm(x)
    replace_norms(norm)
    y = norm(hidden_states=x)  # by name too
    once = tritonln.rms_norm(x, SIZE, norm.weight, norm.eps)
    assert (y != before).sum() <= 2  # where another order of adding changes the last bit of x_hat
    assert (once != before).sum() > 1000


def test_autocast_that_widens_our_result_gets_the_forward_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = norms.RoundsFirst(SIZE).to(BF16)
    x = rand(4, SIZE, dtype=BF16, device=torch.device("cpu"))
    before = norm(x)
    replace_norms(norm)
    monkeypatch.setattr("tritonln.nn.swapped.output_dtype", lambda dtype, device_type: F32)  # what a GPU's does
    assert norm(x).equal(before)


def test_parameters_of_which_nothing_is_here_are_tried_with_others() -> None:
    model = torch.nn.Sequential(norms.AroundZero(SIZE), norms.RoundsFirst(SIZE)).to("meta")
    model[1].weight = torch.nn.Parameter(torch.empty(0))  # as FSDP leaves it on some ranks
    generator = torch.get_rng_state()
    assert replace_norms(model).swapped == {
        "0": "AroundZero -> tritonln.rms_norm, weight_offset=1.0",
        "1": 'RoundsFirst -> tritonln.rms_norm, cast="llama"',
    }
    assert model[0].weight.is_meta
    assert torch.get_rng_state().equal(generator)


def hooked(model: torch.nn.Module) -> list[Tensor]:
    seen: list[Tensor] = []
    model.register_forward_hook(lambda module, args, y: seen.append(y))
    model.register_full_backward_hook(lambda module, dx, dy: seen.append(dy[0]))
    return seen


@pytest.mark.parametrize("kind", [norms.RoundsFirst, torch.nn.LayerNorm])
def test_everything_but_the_class_stays_and_restore_norms_undoes_that(kind: Any, device: torch.device) -> None:
    model = block(kind).to(device).eval()
    norm = model["first"]  # type: ignore[index]
    norm.mark = object()
    seen = hooked(norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state, attributes, text = model.state_dict(keep_vars=True), dict(vars(norm)), repr(model)
    x = rand(3, SIZE, dtype=F32, device=device).requires_grad_()
    before = norm(x)

    replace_norms(model)
    assert isinstance(norm, kind)
    assert type(norm) is not kind
    assert (vars(norm), repr(model)) == (attributes, text)
    assert all(state[name] is t for name, t in model.state_dict(keep_vars=True).items())
    assert {id(p) for p in model.parameters()} == {id(p) for p in optimizer.param_groups[0]["params"]}
    seen.clear()
    norm(x).sum().backward()
    assert len(seen) == 2
    weight = norm.weight.detach().clone()
    optimizer.step()
    assert not norm.weight.equal(weight)
    norm.load_state_dict({**norm.state_dict(), "weight": weight})

    assert restore_norms(model) == ["first", "second"]
    assert type(norm) is kind
    assert vars(norm) == attributes
    if kind is norms.RoundsFirst:  # the step moved the bias of the other
        assert norm(x).equal(before)
