"""The dropout of add_layer_norm and add_rms_norm: its noise, and that backward draws that of forward."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.family import call, check, operands, results, upstream_of
from tests.helpers.problems import BF16, F16, F32, F64
from tritonln.configurations import lookup
from tritonln.configurations.config import Config
from tritonln.configurations.tunable import Key, Tunable
from tritonln.device import Device
from tritonln.ops.noise import noise, seed_from

WIDE = 16_384 + 77
both = pytest.mark.parametrize("name", ["add_layer_norm", *thorough("add_rms_norm")])
forward_mode_warns = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own


def expected_noise(seed: int, M: int, N: int, p: float, device: torch.device) -> Tensor:
    """What the next call drops; the default generator is set so that it does."""
    torch.manual_seed(seed)
    drawn = noise(seed_from(None, device), M, N, p)
    torch.manual_seed(seed)
    return drawn


def drawn(N: int, M: int, p: float, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """The noise as the kernels draw it: of ones forward, and of a gradient of ones backward."""
    torch.manual_seed(seed)
    x = torch.ones(M, N, dtype=dtype, device=device, requires_grad=True)
    _, out = tritonln.add_rms_norm(x, None, N, dropout_p=p)
    (dx,) = torch.autograd.grad(out, x, torch.ones_like(out))
    return out.detach(), dx


# ---- the noise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_and_none_knows_of_another(p: float) -> None:
    """Within five standard deviations, of two million places: rows, columns, neighbours, seeds next to each other."""
    M, N = 2000, 1000
    seeds = [12345, 12346, 12345 + 2**32, 12345 ^ 2**62]
    kept = [(noise(torch.tensor([seed]), M, N, p) > 0).double() - (1 - p) for seed in seeds]
    spread, first = (p * (1 - p)) ** 0.5, kept[0]
    for each in kept:
        assert abs(float(each.mean())) < 5 * spread / (M * N) ** 0.5
    for dim, n in ((0, M), (1, N)):
        means = first.mean(dim) / (spread / n**0.5)  # of columns, of rows: each of variance one
        assert float(means.abs().max()) < 5.5
        assert abs(float(means.square().mean()) - 1) < 5 * (2 / means.numel()) ** 0.5
    pairs = [(first, other) for other in kept[1:]]
    pairs += [(first[:, :-lag], first[:, lag:]) for lag in (1, 2, 3, 4, 8, 64)]
    pairs += [(first[:-lag], first[lag:]) for lag in (1, 2, 4, 32)]
    pairs += [(first[:-1, :-1], first[1:, 1:])]
    for a, b in pairs:
        assert abs(float((a * b).mean())) < 5 * spread**2 / a.numel() ** 0.5


def test_the_generator_is_philox() -> None:
    """Against Python's integers: rows past 2^32, seeds of either sign."""

    def reference(seed: int, row: int, column: int) -> int:
        word, key = [column // 4, row % 2**32, row >> 32, 0], [seed % 2**32, (seed >> 32) % 2**32]
        for _ in range(7):
            a, c = word[0] * 0xD2511F53, word[2] * 0xCD9E8D57
            word = [(c >> 32) ^ word[1] ^ key[0], c % 2**32, (a >> 32) ^ word[3] ^ key[1], a % 2**32]
            key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
        return word[column % 4]

    for seed in (0, 5, 2**63 - 2, -7):
        found = noise(torch.tensor([seed]), 3, 11, 0.4)
        for row, column in itertools.product(range(3), range(11)):
            kept = torch.tensor((reference(seed, row, column) >> 8) * 2.0**-24) >= torch.tensor(0.4)
            assert float(found[row, column]) == (1 / 0.6 if kept else 0.0)


@pytest.mark.parametrize(
    ("N", "dtype"),
    [
        pytest.param(7, F32, marks=pytest.mark.interpreted),
        pytest.param(100, F64, marks=pytest.mark.interpreted),
        (1000, BF16),
        (4096, F16),
        (WIDE, F32),
    ],
    ids=str,
)
def test_kernels_draw_the_noise_of_the_formula_to_the_bit(N: int, dtype: torch.dtype, device: torch.device) -> None:
    for M, p, seed in ((70 if N <= 100 else 5, 0.3, 0), (3, 0.75, 2)):
        for found in drawn(N, M, p, dtype, device, seed):
            assert found.equal(expected_noise(seed, M, N, p, device).to(dtype))


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch, new_process: None) -> Iterator[Callable[[Config, Config], None]]:
    """Other configurations, forward and backward, for all kernels of add_rms_norm."""
    choose = lookup.config_for

    def fix(forward: Config, backward: Config) -> None:
        fixed = {"add_rms_norm_fwd": forward, "add_rms_norm_bwd": backward}

        def chosen(tunable: Tunable, key: Key, device: Device) -> Config:
            return fixed.get(tunable.name) or choose(tunable, key, device)

        monkeypatch.setattr("tritonln.ops.row_plans.config_for", chosen)
        lookup.look_again()

    return fix


def test_every_configuration_draws_the_same(configured: Callable[[Config, Config], None], device: torch.device) -> None:
    """One row a program and many, rows in pieces and in chunks, few warps and more."""
    N, M, p = 1000, 37, 0.4
    expected = expected_noise(3, M, N, p, device).to(F32)
    for forward, backward in (
        (Config(1, 1024, 4), Config(1, 1024, 4, programs=1)),
        (Config(8, 1024, 8), Config(2, 256, 4, num_stages=2, programs=1, pieces=4)),
        (Config(1, 512, 2), Config(8, 128, 4)),
        (Config(2, 1024, 1), Config(4, 1024, 8, num_stages=1, programs=2)),
    ):
        configured(forward, backward)
        for found in drawn(N, M, p, F32, device, 3):
            assert found.equal(expected), (forward, backward)


# ---- what is promised to a caller ----------------------------------------------------------------


@pytest.fixture(params=["kernels", "formula", "compiled"])
def way(request: pytest.FixtureRequest) -> Callable[..., tuple[Tensor, Tensor]]:
    if request.param == "formula":
        request.getfixturevalue("without_kernels")
    if request.param != "compiled":
        return call
    return torch.compile(call, fullgraph=True, backend="aot_eager")


@forward_mode_warns
@both
def test_values_and_gradients(name: str, way: Callable[..., tuple[Tensor, Tensor]], device: torch.device) -> None:
    for dtype, other, settings in (
        (F32, F32, {}),
        (BF16, F32, {"residual_dtype": BF16}),
        (F64, F64, {"row_scale": torch.tensor([0.5, 2.0], dtype=F64, device=device)}),
    ):
        given = operands(name, (2, 3, 100), dtype, device, other)
        drop = expected_noise(4, 6, 100, 0.25, device)
        scale = settings.pop("row_scale", None)
        if scale is not None:
            given["row_scale"] = scale
        words = [word for word in given if word != "row_scale"]
        found = check(name, given, words, drop=drop, by=way, dropout_p=0.25, **settings)
        dropped = (drop == 0).reshape(2, 3, 100)
        assert dropped.any()
        assert not found["dx"][dropped].any()
        assert found["dx"][~dropped].all()
        assert found["residual_out"][dropped].equal(given["residual"][dropped].to(found["residual_out"].dtype))


@both
def test_wide_rows(name: str, device: torch.device) -> None:
    given = operands(name, (1, 2, WIDE), F32, device)
    drop = expected_noise(4, 2, WIDE, 0.25, device)
    check(name, given, drop=drop, dropout_p=0.25)


@both
def test_the_gradient_of_row_scale_beside_dropout(name: str, device: torch.device) -> None:
    given = operands(name, (2, 3, 100), F32, device)
    given["row_scale"] = torch.tensor([0.5, 2.0], device=device)
    check(name, given, drop=expected_noise(4, 6, 100, 0.25, device), dropout_p=0.25)


@both
def test_nothing_and_all_of_it(name: str, way: Callable[..., tuple[Tensor, Tensor]], device: torch.device) -> None:
    given = operands(name, (2, 3, 100), F32, device)
    upstream = upstream_of(name, given["x"])
    plain = results(name, given, upstream, by=way)
    state = torch.get_rng_state()
    for settings in ({"dropout_p": 0.0}, {"dropout_p": 0.6, "training": False}, {"dropout_p": 0}):
        found = results(name, given, upstream, by=way, **settings)
        assert all(t.equal(plain[word]) for word, t in found.items())
    assert torch.get_rng_state().equal(state)
    for p in (1.0, 1):
        found = check(name, given, drop=torch.zeros(6, 100, dtype=F64, device=device), by=way, dropout_p=p)
        assert found["residual_out"].equal(given["residual"])
        assert not found["dx"].any()
    none = results(name, operands(name, (0, 3, 100), F32, device), [t[:0] for t in upstream], by=way, dropout_p=0.5)
    assert not none["dweight"].any()


@both
def test_seeds(name: str, way: Callable[..., tuple[Tensor, Tensor]], device: torch.device) -> None:
    given = operands(name, (2, 3, 100), F32, device)

    def dropped() -> Tensor:
        return way(name, given, 100, dropout_p=0.5)[1] == given["residual"]

    torch.manual_seed(1)
    first, second = dropped(), dropped()
    assert 0.3 < float((first == second).float().mean()) < 0.7
    torch.manual_seed(1)
    assert dropped().equal(first)
    assert dropped().equal(second)


@both
def test_a_generator_of_one_s_own(name: str, device: torch.device) -> None:
    given = operands(name, (2, 3, 100), F32, device)
    own, state = torch.Generator(device), torch.get_rng_state()
    found = [call(name, given, 100, dropout_p=0.5, generator=own.manual_seed(seed))[1] for seed in (7, 7, 8)]
    assert found[0].equal(found[1])
    assert not found[0].equal(found[2])
    assert torch.get_rng_state().equal(state)


@both
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(name: str, reentrant: bool, device: torch.device) -> None:
    given = operands(name, (2, 3, 100), F32, device)
    x, residual, *parameters = (t.requires_grad_() for t in given.values())

    def block(x: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
        x, residual = getattr(tritonln, name)(x * 2, residual, 100, *parameters, dropout_p=0.4)
        return getattr(tritonln, name)(torch.tanh(x), residual, 100, *parameters, dropout_p=0.4)

    found = []
    for run in (block, lambda *t: checkpoint(block, *t, use_reentrant=reentrant)):
        torch.manual_seed(5)
        outputs = run(x, residual)
        for t in (x, residual, *parameters):
            t.grad = None
        torch.autograd.backward(outputs, upstream_of(name, x))
        found.append([*outputs, *(t.grad for t in (x, residual, *parameters))])
    assert all(a.equal(b) for a, b in zip(*found))


@forward_mode_warns
@both
def test_inductor_s_backward_draws_what_its_forward_drew(name: str, device: torch.device) -> None:
    given = operands(name, (2, 3, 100), F32, device)
    x, residual, *parameters = (t.requires_grad_() for t in given.values())
    norm = torch.compile(getattr(tritonln, name), fullgraph=True)
    _, out = norm(x, residual, 100, *parameters, dropout_p=0.5)
    (dx,) = torch.autograd.grad(out, x, torch.ones_like(out))
    assert (dx == 0).equal(out == residual)
    assert dx[dx != 0].equal(torch.full_like(dx, 2.0)[dx != 0])
    assert 0.3 < float((dx == 0).float().mean()) < 0.7


@forward_mode_warns
@both
def test_derivatives(name: str, device: torch.device) -> None:
    given = operands(name, (1, 2, 4), F64, device)
    leaves = [t.requires_grad_() for t in given.values()]

    def norm(*tensors: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(6)
        return call(name, dict(zip(given, tensors)), 4, dropout_p=0.4)

    assert torch.autograd.gradcheck(norm, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(norm, leaves, fast_mode=True)


@forward_mode_warns
def test_vmap_asks_whether_noise_is_shared(device: torch.device) -> None:
    x = torch.ones(4, 3, 50, device=device)
    norm = lambda x: tritonln.add_rms_norm(x, None, 50, dropout_p=0.5)[1]  # noqa: E731
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(norm)(x)
    same = torch.func.vmap(norm, randomness="same")(x)
    other = torch.func.vmap(norm, randomness="different")(x)
    assert same[0].equal(same[1])
    assert not other[0].equal(other[1])
    assert set(other.unique().tolist()) == {0.0, 2.0}


@both
def test_refusals_are_those_of_torch_s_dropout(name: str) -> None:
    x = torch.zeros(2, 8)
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=".") as ours:
            getattr(tritonln, name)(x, None, 8, dropout_p=p)
        if p == p:
            with pytest.raises(ValueError, match=".") as theirs:
                F.dropout(x, p)
            assert str(ours.value) == str(theirs.value)
    with pytest.raises(TypeError, match="argument 'dropout_p' must be float, not str"):
        getattr(tritonln, name)(x, None, 8, dropout_p="0.5")
