"""The adaptive norms: what only they have.  Their values are in test_family.py, too."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.family import ADAPTIVE, FAMILY, call, check, operands, results, upstream_of
from tests.helpers.problems import BF16, F32, F64, rand
from tritonln.launch import Launch

TWINS = "adaptive_layer_norm", "adaptive_rms_norm"  # of which the others have all
each = pytest.mark.parametrize("name", ["add_adaptive_layer_norm", "add_adaptive_rms_norm", *thorough(*TWINS)])
layer_norms = pytest.mark.parametrize("name", [name for name in ADAPTIVE if FAMILY[name].centred])


@pytest.fixture(params=["kernels", "formula"])
def way(request: pytest.FixtureRequest) -> str:
    if request.param == "formula":
        request.getfixturevalue("without_kernels")
    return str(request.param)


# ---- shapes ------------------------------------------------------------------------------------

# Of x without its rows' length, and of what modulates it.
SHAPES = [
    ((2, 3), (2,)),
    ((2, 3), (2, 1)),
    ((2, 3), (2, 3)),
    ((2, 3), ()),
    ((2, 3), (1,)),
    ((2, 3), (1, 1)),
    ((2, 3), (1, 3)),
    ((6,), (6,)),
    ((6,), (1,)),
    ((), ()),
    ((2, 3, 4), (2,)),
    ((2, 3, 4), (2, 1, 1)),
    ((2, 3, 4), (2, 3, 1)),
    ((2, 3, 4), (2, 1, 4)),
    ((1, 5), (1,)),
    ((5, 1), (5,)),
    ((1, 1), (1, 1)),
]


@layer_norms
@pytest.mark.parametrize(("outer", "given"), SHAPES, ids=str)
def test_shapes(name: str, outer: tuple[int, ...], given: tuple[int, ...], way: str, device: torch.device) -> None:
    check(name, operands(name, (*outer, 40), F32, device, batches=given))


@each
def test_each_of_a_shape_of_its_own(name: str, way: str, device: torch.device) -> None:
    given = operands(name, (2, 3, 40), F32, device)
    mixed = {"scale": rand(2, 3, 40, dtype=F32, device=device, seed=3), "shift": given["shift"].unsqueeze(1)}
    check(name, {**given, **mixed})
    check(name, {word: t for word, t in given.items() if word != "shift"})
    check(name, {word: t for word, t in given.items() if word != "scale"})
    check(name, {**given, "scale": given["scale"].to(BF16)})


@layer_norms
def test_several_dimensions_of_a_row(name: str, device: torch.device) -> None:
    given = operands(name, (2, 3, 40), F32, device)
    shaped = {word: t.reshape(*t.shape[:-1], 4, 10) for word, t in given.items()}
    for out, ref in zip(call(name, shaped, (4, 10)), call(name, given, 40)):
        assert out.equal(ref.reshape(2, 3, 4, 10))


def table(*shape: int, device: torch.device, dtype: torch.dtype = F32) -> dict[str, Tensor]:
    """Chunks of one table of six."""
    words = "gate", "scale", "shift", "gate2", "scale2", "shift2"
    return dict(zip(words, rand(*shape, dtype=dtype, device=device, seed=5).chunk(6, -1)))


@each
@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 4)], ids=str)
def test_chunks_are_read_where_they_lie(
    name: str, shape: tuple[int, ...], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels are given the addresses of the table, not of copies."""
    given = operands(name, (3, 4, 64), F32, device)
    given |= {word: t for word, t in table(*shape, 6 * 64, device=device).items() if word in given}
    seen: list[int] = []
    carry_out: Callable[..., None] = Launch.__call__

    def noting(launch: Launch, programs: int, *arguments: object) -> None:
        if "sum" not in launch.name:
            seen.append({t.data_ptr() for t in flat(arguments)})  # type: ignore[arg-type]
        carry_out(launch, programs, *arguments)

    def flat(value: object) -> list[Tensor]:
        if isinstance(value, tuple):
            return [t for each in value for t in flat(each)]
        return [value] if isinstance(value, Tensor) else []

    monkeypatch.setattr(Launch, "__call__", noting)
    check(name, given)
    # Backward reads no shift: the gradients do not depend on it.
    for words, addresses in zip((("scale", "shift", "gate"), ("scale", "gate")), seen, strict=True):
        assert {given[word].data_ptr() for word in words if word in given} <= addresses  # type: ignore[operator]


# ---- sums over the rows of a batch ---------------------------------------------------------------


@each
@pytest.mark.parametrize(
    ("shape", "programs", "sums"),
    [
        ((2, 60, 512), "several a batch", 2),
        ((1, 60, 512), "several a batch", 2),
        ((40, 2, 64), "one a batch", 1),
        ((1, 3, 64), "one", 0),
    ],
    ids=str,
)
def test_programs_of_batches(
    name: str, shape: tuple[int, ...], programs: str, sums: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[tuple[str, int]] = []
    carry_out: Callable[..., None] = Launch.__call__

    def noting(launch: Launch, count: int, *arguments: object) -> None:
        launched.append((launch.name, count))
        carry_out(launch, count, *arguments)

    monkeypatch.setattr(Launch, "__call__", noting)
    check(name, operands(name, shape, BF16, device, F32, F32))
    (_, (backward, P), *others), B = launched, shape[0]
    assert backward.endswith("bwd")
    assert P == 1 if programs == "one" else P == B > 1 if programs == "one a batch" else P > B
    assert [kernel for kernel, _ in others] == ["column_sum"] * sums


@layer_norms
def test_wide_rows_of_several_batches(name: str, device: torch.device) -> None:
    """Two groups of rows of each batch, the second not full."""
    check(name, operands(name, (2, 17, 4100), F32, device), ["x", "scale", "weight"])


@each
def test_a_batch_does_not_depend_on_the_others(name: str, device: torch.device) -> None:
    given = operands(name, (3, 60, 512), F32, device)
    upstream = upstream_of(name, given["x"])
    part = {word: t if word in ("weight", "bias") else t[1:2].contiguous() for word, t in given.items()}
    all_of_it, alone = results(name, given, upstream), results(name, part, tuple(d[1:2] for d in upstream))
    for word in ("y", "dx"):
        assert alone[word].equal(all_of_it[word][1:2])


# ---- a transformer ---------------------------------------------------------------------------------


def stack(x: Tensor, c: Tensor, mlps: list[Tensor], ours: bool) -> Tensor:
    """Two DiT blocks that share one table of modulations each, the sum of a sublayer beside the next one's norm."""
    N = x.shape[-1]

    def norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        if ours:
            return tritonln.adaptive_layer_norm(x, scale, shift, N, eps=1e-6)
        return F.layer_norm(x, (N,), eps=1e-6) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)

    def add_norm(x: Tensor, residual: Tensor, gate: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        if ours:
            return tritonln.add_adaptive_layer_norm(x, residual, gate, scale, shift, N, eps=1e-6)
        residual = residual + gate.unsqueeze(1) * x
        return norm(residual, scale, shift), residual

    gate, a = None, x
    for table, w in zip(c.chunk(2, -1), mlps):
        shift, scale, gate1, shift2, scale2, gate2 = table.chunk(6, -1)
        if gate is None:
            a, x = norm(x, scale, shift), x
        else:
            a, x = add_norm(a, x, gate, scale, shift)
        a, x = add_norm(torch.tanh(a @ w), x, gate1, scale2, shift2)
        a, gate = torch.tanh(a @ w.t()), gate2
    assert gate is not None
    return x + gate.unsqueeze(1) * a


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", ["eager", "inductor", *thorough("aot_eager")])
def test_two_blocks_of_one_table(mode: str, device: torch.device) -> None:
    N = 32
    x, c = rand(2, 5, N, dtype=F64, device=device), rand(2, 12 * N, dtype=F64, device=device, seed=1)
    mlps = [rand(N, N, dtype=F64, device=device, seed=s) / 6 for s in (2, 3)]
    leaves = [t.requires_grad_() for t in (x, c, *mlps)]
    run = stack if mode == "eager" else torch.compile(stack, fullgraph=True, backend=mode)
    dy = rand(2, 5, N, dtype=F64, device=device, seed=4)
    found, expected = (
        [(y := f(x, c, mlps, ours)), *torch.autograd.grad(y, leaves, dy)] for f, ours in ((run, True), (stack, False))
    )
    for out, ref in zip(found, expected):
        torch.testing.assert_close(out, ref)


# ---- what is refused ---------------------------------------------------------------------------

X, B = torch.zeros(2, 3, 8), torch.zeros(2, 8)
SIZES = r"size \[2, 8\], \[2, 1, 8\] or \[2, 3, 8\] beside x of \[2, 3, 8\], got "
WORDS = {
    "another row": (lambda word: {word: torch.zeros(2, 7)}, SIZES + r"\[2, 7\]"),
    "another batch": (lambda word: {word: torch.zeros(3, 8)}, SIZES + r"\[3, 8\]"),
    "too many dimensions": (lambda word: {word: torch.zeros(1, 2, 3, 8)}, SIZES + r"\[1, 2, 3, 8\]"),
    "no dimensions": (lambda word: {word: torch.zeros(())}, SIZES + r"\[\]"),
    "no tensor": (lambda word: {word: 1.0}, "argument 'WORD' must be Tensor, not float"),
    "integers": (lambda word: {word: B.int()}, "expected WORD of dtype float32, .*got torch.int32"),
    "fp64": (lambda word: {word: B.double()}, "expected WORD of dtype float32, .*got torch.float64"),
    "elsewhere": (lambda word: {word: B.to("meta")}, "same device, but got WORD is on meta"),
}


@each
@pytest.mark.parametrize("case", WORDS)
def test_refusals_name_the_argument(name: str, case: str) -> None:
    change, message = WORDS[case]
    plain = {"x": X, "scale": B, "shift": B, "normalized_shape": 8}
    plain |= {"residual": X, "gate": B} if FAMILY[name].two else {}
    for word in ("scale", "shift", "gate"):
        if word in plain:
            with pytest.raises((RuntimeError, TypeError), match=message.replace("WORD", word)) as raised:
                getattr(tritonln, name)(**{**plain, **change(word)})
            assert word in str(raised.value)


@each
def test_other_refusals(name: str) -> None:
    plain = {"x": X, "scale": B, "shift": B, "normalized_shape": 8}
    cases = [
        ({"normalized_shape": 7}, "expected input with shape|normalized_shape"),
        ({"weight": torch.ones(7)}, "weight"),
        ({"x": 3}, "input|x"),
    ]
    if FAMILY[name].two:
        plain |= {"residual": X, "gate": B}
        cases += [
            ({"residual": None}, "argument 'residual' must be Tensor, not NoneType"),
            ({"residual": X[:1]}, r"Expected residual size \[2, 3, 8\], got \[1, 3, 8\]"),
            ({"residual_dtype": torch.float64}, "expected residual_dtype of dtype"),
        ]
    for changed, message in cases:
        with pytest.raises((RuntimeError, TypeError), match=message):
            getattr(tritonln, name)(**{**plain, **changed})
