"""The norms of more than one tensor as modules: torch's constructors and state, and the functions' values."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tritonln
from tests.helpers.problems import BF16, F32, F64, rand
from tests.helpers.tolerance import assert_close
from tritonln import reference

B, T, N = 3, 5, 24
EPS = 1e-3
SCALED = {"scale": (B, N), "shift": (B, 1, N)}
SUMMED = {"residual": (B, T, N), "row_scale": (B, 1, 1)}

# Of each module: what else its forward takes, and its results as the papers write them, of x, parameters and these.
MODULES: dict[str, tuple[dict[str, tuple[int, ...]], Callable[..., Any]]] = {
    "AddLayerNorm": (
        SUMMED,
        lambda x, p, residual, row_scale: (layer_norm(residual + row_scale * x, p), residual + row_scale * x),
    ),
    "AddRMSNorm": (
        SUMMED,
        lambda x, p, residual, row_scale: (rms_norm(residual + row_scale * x, p), residual + row_scale * x),
    ),
    "AdaptiveLayerNorm": (
        SCALED,
        lambda x, p, scale, shift: (layer_norm(x, p) * (1 + scale[:, None]) + shift,),
    ),
    "AdaptiveRMSNorm": (SCALED, lambda x, p, scale, shift: (rms_norm(x, p) * (1 + scale[:, None]) + shift,)),
    "GatedRMSNorm": ({"gate": (B, T, N)}, lambda x, p, gate: (rms_norm(x, p) * F.silu(gate),)),
}


def layer_norm(x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    return reference.layer_norm(x, (N,), parameters.get("weight"), parameters.get("bias"), EPS)


def rms_norm(x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    return reference.rms_norm(x, (N,), parameters.get("weight"), EPS)


def twin(name: str) -> type[nn.Module]:
    return nn.LayerNorm if name.endswith("LayerNorm") else nn.RMSNorm


def made(name: str, device: torch.device, **options: Any) -> tuple[Any, Tensor, dict[str, Tensor]]:
    """A module with random parameters, x, and what else its forward takes."""
    module = getattr(tritonln.nn, name)(N, EPS, True, **options).to(device)
    for seed, parameter in enumerate(module.parameters()):
        parameter.data.copy_(rand(N, dtype=F32, device=device, seed=seed))
    shapes = {"x": (B, T, N), **MODULES[name][0]}
    tensors = {n: rand(*shape, dtype=F32, device=device, seed=7 + i) for i, (n, shape) in enumerate(shapes.items())}
    return module, tensors.pop("x"), tensors


def results(module: nn.Module, x: Tensor, others: dict[str, Tensor]) -> tuple[Tensor, ...]:
    found = module(x, **others)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(
    "options", [{}, {"elementwise_affine": True}, {"elementwise_affine": False}, {"eps": EPS, "dtype": BF16}]
)
def test_state_goes_to_torch_s_twin_and_back(name: str, options: dict[str, Any]) -> None:
    ours = getattr(tritonln.nn, name)([3, 8], **options)
    affine = options.get("elementwise_affine", not name.startswith("Adaptive"))
    theirs = twin(name)([3, 8], **{**options, "elementwise_affine": affine})
    assert isinstance(ours, twin(name))
    assert ours.eps == theirs.eps
    assert [(k, t.dtype, t.shape) for k, t in ours.state_dict().items()] == [
        (k, t.dtype, t.shape) for k, t in theirs.state_dict().items()
    ]
    for source, target in ((theirs, ours), (ours, theirs)):
        for parameter in source.parameters():
            nn.init.normal_(parameter)
        target.load_state_dict(source.state_dict(), strict=True)
        for ours_now, theirs_now in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert ours_now.equal(theirs_now)
    ours.reset_parameters()
    theirs.reset_parameters()
    for ours_now, theirs_now in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert ours_now.equal(theirs_now)


@pytest.mark.parametrize("name", MODULES)
def test_made_on_meta_and_filled_later(name: str, device: torch.device) -> None:
    module = getattr(tritonln.nn, name)(N, elementwise_affine=True, device="meta", dtype=BF16)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", BF16)}
    module.to_empty(device=device)
    module.reset_parameters()
    assert module.weight.equal(torch.ones(N, dtype=BF16, device=device))


@pytest.mark.parametrize(
    ("module", "more"),
    [
        (tritonln.nn.AddLayerNorm(8), ""),
        (tritonln.nn.AddRMSNorm(8, dropout_p=0.1, residual_dtype=F32), ", dropout_p=0.1, residual_dtype=torch.float32"),
        (tritonln.nn.AdaptiveLayerNorm(8, elementwise_affine=True), ""),
        (tritonln.nn.AdaptiveRMSNorm(8, elementwise_affine=True), ""),
        (tritonln.nn.GatedRMSNorm(8), ""),
        (tritonln.nn.GatedRMSNorm(8, norm_before_gate=False), ", norm_before_gate=False"),
        (tritonln.nn.GatedRMSNorm(8, group_size=4), ", group_size=4"),
    ],
)
def test_repr_is_torch_s_and_what_differs(module: nn.Module, more: str) -> None:
    name = type(module).__name__
    assert repr(module) == f"{name}({twin(name)(8).extra_repr()}{more})"


@pytest.mark.parametrize("name", MODULES)
def test_values_and_gradients(name: str, device: torch.device) -> None:
    module, x, others = made(name, device)
    leaves = {"x": x, **{n: t for n, t in others.items() if n != "row_scale"}, **dict(module.named_parameters())}
    for t in leaves.values():
        t.requires_grad_()
    out = results(module, x, others)
    upstream = [rand(B, T, N, dtype=F32, device=device, seed=20 + i) for i in range(len(out))]
    found = torch.autograd.grad(out, list(leaves.values()), upstream)

    wide = {n: t.detach().double().requires_grad_() for n, t in {**leaves, **others}.items()}
    parameters = {n: wide[n] for n in ("weight", "bias") if n in wide}
    ref = MODULES[name][1](wide["x"], parameters, *(wide[n] for n in others))
    expected = torch.autograd.grad(ref, [wide[n] for n in leaves], [dy.double() for dy in upstream])
    kappa = reference.condition(ref[-1] if name.startswith("Add") else x, (N,), EPS)
    for i, (y, r) in enumerate(zip(out, ref, strict=True)):
        assert_close(f"result {i}", y.detach(), r.detach(), 1, kappa)
    for n, g, r in zip(leaves, found, expected, strict=True):
        assert_close(n, g, r, 1 if leaves[n].shape == x.shape else B * T, kappa)


@pytest.mark.parametrize("norm_before_gate", [True, False])
def test_groups_and_the_gate_first(norm_before_gate: bool, device: torch.device) -> None:
    module, x, others = made("GatedRMSNorm", device, norm_before_gate=norm_before_gate, group_size=8)
    y = module(x, others["gate"]).detach()
    gate = F.silu(others["gate"].double())
    groups = (x.double() if norm_before_gate else x.double() * gate).unflatten(-1, (3, 8))
    normed = reference.rms_norm(groups, (8,), None, EPS).flatten(-2) * module.weight.detach().double()
    assert_close("y", y, normed * gate if norm_before_gate else normed)


@pytest.mark.parametrize("name", ["AddLayerNorm", "AddRMSNorm"])
def test_only_training_drops(name: str, device: torch.device) -> None:
    module, x, others = made(name, device, dropout_p=0.5)
    torch.manual_seed(3)
    y, total = module(x, **others)
    torch.manual_seed(3)
    function = tritonln.add_layer_norm if name == "AddLayerNorm" else tritonln.add_rms_norm
    parameters = [p for p in (module.weight, getattr(module, "bias", None)) if p is not None]
    expected = function(x, others["residual"], N, *parameters, EPS, dropout_p=0.5, row_scale=others["row_scale"])
    assert y.equal(expected[0])
    assert total.equal(expected[1])
    dropped = (total == others["residual"]).float().mean().item()
    assert 0.4 < dropped < 0.6
    y, total = module.eval()(x, **others)
    kept = others["residual"].double() + others["row_scale"].double() * x.double()
    assert_close("r'", total.detach(), kept)
    with pytest.raises(ValueError, match=r"dropout probability has to be between 0 and 1, but got 1\.5"):
        getattr(tritonln.nn, name)(N, dropout_p=1.5)


def test_the_first_layer_has_no_residual(device: torch.device) -> None:
    norm = tritonln.nn.AddRMSNorm(N, EPS, residual_dtype=F32).to(device)
    x = rand(B, T, N, dtype=BF16, device=device)
    y, residual = norm(x)
    assert (y.dtype, residual.dtype) == (BF16, F32)
    assert residual.equal(x.float())
    assert_close("y", y.detach(), reference.rms_norm(x.double(), (N,), None, EPS))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.parametrize("name", MODULES)
def test_compiled_exported_copied_and_saved(name: str, device: torch.device) -> None:
    module, x, others = made(name, device)
    expected = results(module, x, others)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (
        torch.compile(module, fullgraph=True, backend="aot_eager"),
        torch.export.export(module, (x,), others).module(),
        torch.fx.symbolic_trace(module),
        copy.deepcopy(module),
        torch.load(file, weights_only=False),
    ):
        for y, r in zip(results(other, x, others), expected, strict=True):
            assert y.equal(r)


def test_replace_norms_leaves_them() -> None:
    model = nn.ModuleDict({name: getattr(tritonln.nn, name)(N) for name in MODULES})
    report = tritonln.nn.replace_norms(model)
    assert not report.swapped
    assert report.left == {name: f"{name}: it is tritonln's already" for name in MODULES}


class Sublayer(nn.Module):
    """A pre-norm transformer's: attention, then a feed-forward layer, without their norms."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        wide = 3 * N if kind == "attention" else 2 * N
        self.kind, self.inner, self.outer = kind, nn.Linear(N, wide), nn.Linear(N if wide == 3 * N else wide, N)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        if self.kind == "attention":
            q, k, v = x.unflatten(-1, (3, 2, N // 2)).transpose(1, 3).unbind(2)
            return self.outer(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.outer(F.gelu(x))


class PreNorm(nn.Module):
    """Two transformer blocks, with torch's norms or with those that take the sum before them too."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.sublayers = nn.ModuleList(Sublayer(kind) for kind in ("attention", "mlp") * 2)
        self.norms = nn.ModuleList(norm(N) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.norms[0], tritonln.nn.AddLayerNorm):
            residual = None
            for norm, sublayer in zip(self.norms, self.sublayers):
                x, residual = norm(x, residual)
                x = sublayer(x)
            return self.norms[-1](x, residual)[0]
        for norm, sublayer in zip(self.norms, self.sublayers):
            x = x + sublayer(norm(x))
        return self.norms[-1](x)


def test_a_pre_norm_transformer_trains_as_with_torch_s_norms(device: torch.device) -> None:
    torch.manual_seed(0)
    models = {norm: PreNorm(norm).double().to(device) for norm in (tritonln.nn.AddLayerNorm, nn.LayerNorm)}
    ours, theirs = models.values()
    ours.load_state_dict(theirs.state_dict())
    x, target = (rand(2, T, N, dtype=F64, device=device, seed=s) for s in (1, 2))
    losses = {}
    for norm, model in models.items():
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        losses[norm] = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), target)
            loss.backward()
            optimizer.step()
            losses[norm].append(loss.detach())
    out, ref = (torch.stack(found) for found in losses.values())
    assert ref[-1] < 0.9 * ref[0]
    assert_close("losses", out, ref, x.numel())
    for name, parameter in theirs.named_parameters():
        assert_close(name, ours.get_parameter(name).detach(), parameter.detach(), x.numel())


def test_a_diffusion_transformer_s_block(device: torch.device) -> None:
    """x + gate sublayer(modulate(norm(x))) twice, as section 3.2 of arXiv 2212.09748 has it, all from one table."""
    torch.manual_seed(0)
    norm, attention, mlp = tritonln.nn.AdaptiveLayerNorm(N, 1e-6), Sublayer("attention"), Sublayer("mlp")
    table_of = nn.Linear(N, 6 * N)
    modules = nn.ModuleList([attention, mlp, table_of]).double().to(device)
    x, condition, dy = (
        rand(*shape, dtype=F64, device=device, seed=i) for i, shape in enumerate(((B, T, N), (B, N), (B, T, N)))
    )
    leaves = (x.requires_grad_(), condition.requires_grad_(), *modules.parameters())

    def fused() -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = table_of(F.silu(condition)).chunk(6, 1)
        sublayer = attention(norm(x, scale, shift))
        y, residual = tritonln.add_adaptive_layer_norm(sublayer, x, gate, scale2, shift2, N, eps=1e-6)
        return residual + gate2[:, None] * mlp(y)

    def composed() -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = table_of(F.silu(condition))[:, None].chunk(6, 2)
        between = x + gate * attention(F.layer_norm(x, (N,), eps=1e-6) * (1 + scale) + shift)
        return between + gate2 * mlp(F.layer_norm(between, (N,), eps=1e-6) * (1 + scale2) + shift2)

    y, ref = fused(), composed()
    assert_close("y", y.detach(), ref.detach(), N)
    for i, (g, r) in enumerate(zip(torch.autograd.grad(y, leaves, dy), torch.autograd.grad(ref, leaves, dy))):
        assert_close(f"gradient {i}", g, r, B * T * N)
