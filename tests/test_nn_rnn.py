"""LayerNormLSTM, LayerNormGRU and their cells: torch's layers in constructor, call, results and errors."""

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import tritonln
from tritonln import reference_recurrent
from tritonln.nn import LayerNormGRU, LayerNormGRUCell, LayerNormLSTM, LayerNormLSTMCell
from tritonln.ops import layer_norm_gru_sequence, layer_norm_lstm_sequence

LAYERS = [LayerNormLSTM, LayerNormGRU]
PAIRS = [(LayerNormLSTM, nn.LSTM), (LayerNormGRU, nn.GRU)]
PLAIN = {"gate_norm": "none", "cell_norm": "none"}


@pytest.fixture(autouse=True)
def aten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators have tests of their own; here the fast path of a CPU serves."""
    for module in (layer_norm_lstm_sequence, layer_norm_gru_sequence):
        monkeypatch.setattr(module, "device_of", lambda x: None)


def tensors(results: Any) -> list[Tensor]:
    if isinstance(results, PackedSequence):
        return [t for t in results if t is not None]
    return [results] if isinstance(results, Tensor) else [t for r in results for t in tensors(r)]


# ---- torch's layers ----------------------------------------------------------------------------

OPTIONS = [
    {},
    {"num_layers": 2},
    {"bias": False},
    {"batch_first": True},
    {"bidirectional": True},
    {"proj_size": 3},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "proj_size": 2},
]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # of torch's
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["batched", "unbatched", "packed", "packed unsorted", "packed of one length"])
@pytest.mark.parametrize("given", [False, True])
def test_without_norms_it_is_torch_s_lstm(options: dict[str, Any], kind: str, given: bool) -> None:
    """Every way to call it, with results and gradients."""
    torch.manual_seed(0)
    theirs = nn.LSTM(4, 5, **options)
    ours = LayerNormLSTM.from_lstm(theirs, **PLAIN)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    first = options.get("batch_first", False)
    x = torch.randn(3, 6, 4) if first else torch.randn(6, 3, 4)
    rows = options.get("num_layers", 1) * (2 if "bidirectional" in options else 1)
    hx = (torch.randn(rows, 3, options.get("proj_size", 5)), torch.randn(rows, 3, 5)) if given else None
    input: Any = x
    if kind == "unbatched":
        input, hx = torch.randn(6, 4), None if hx is None else (hx[0][:, 0], hx[1][:, 0])
    elif kind != "batched":
        lengths = {"packed": [6, 4, 1], "packed unsorted": [2, 6, 4], "packed of one length": [6, 6, 6]}[kind]
        input = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=kind != "packed unsorted")
    found = [tensors(layer(input, hx)) for layer in (ours, theirs)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    gradients = [
        torch.autograd.grad(sum(t.float().square().sum() for t in out if t.requires_grad), list(layer.parameters()))
        for out, layer in zip(found, (ours, theirs))
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 3, "bias": False, "batch_first": True, "dropout": 0.5, "bidirectional": True}],
    ids=str,
)
def test_constructor_and_initial_values(ours: Any, theirs: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    a = ours(4, 5, **options)
    torch.manual_seed(0)
    b = theirs(4, 5, **options)
    assert isinstance(a, nn.RNNBase)
    assert a.extra_repr() == b.extra_repr()
    state = a.state_dict()
    for name, t in b.state_dict().items():
        assert state.pop(name).equal(t)
    assert all(name.startswith("ln_") for name in state)
    assert all(t.equal(torch.zeros_like(t) if "ln_c_bias" in name else torch.ones_like(t)) for name, t in state.items())
    assert sum(len(names) for names in a.all_weights) == len(list(a.parameters()))
    again = copy.deepcopy(a)
    again.reset_parameters()
    assert all(again.state_dict()[name].equal(t) for name, t in state.items())


def test_parameter_names_and_shapes() -> None:
    lstm = LayerNormLSTM(4, 5, bidirectional=True)
    shapes = {name: tuple(p.shape) for name, p in lstm.named_parameters()}
    assert shapes["ln_ih_weight_l0"] == shapes["ln_hh_weight_l0_reverse"] == shapes["bias_hh_l0"] == (20,)
    assert shapes["ln_c_weight_l0"] == shapes["ln_c_bias_l0_reverse"] == (5,)
    assert "ln_c_bias_l0" not in dict(LayerNormLSTM(4, 5, bias=False).named_parameters())
    assert dict(LayerNormGRU(4, 5).named_parameters())["ln_ih_weight_l0"].shape == (15,)
    plain = LayerNormLSTM(4, 5, gate_norm="none", eps=0.1)
    assert repr(plain) == "LayerNormLSTM(4, 5, gate_norm=none, eps=0.1)"
    assert repr(LayerNormGRU(4, 5, norm_groups="joint")) == "LayerNormGRU(4, 5, norm_groups=joint)"


@pytest.mark.parametrize("layer", LAYERS)
def test_device_dtype_copies_and_pickles(layer: Any, tmp_path: Any) -> None:
    assert all(
        p.is_meta and p.dtype == torch.bfloat16 for p in layer(4, 5, device="meta", dtype=torch.bfloat16).parameters()
    )
    rnn, x = layer(4, 5, num_layers=2), torch.randn(3, 2, 4)
    rnn.flatten_parameters()
    torch.save(rnn, tmp_path / "rnn.pt")
    loaded = layer(4, 5, num_layers=2)
    loaded.load_state_dict(rnn.state_dict())
    for other in (copy.deepcopy(rnn), torch.load(tmp_path / "rnn.pt", weights_only=False), loaded):
        assert other(x)[0].equal(rnn(x)[0])
    with pytest.raises(RuntimeError, match="Missing key.*ln_ih_weight_l0"):
        rnn.load_state_dict((nn.LSTM if layer is LayerNormLSTM else nn.GRU)(4, 5, num_layers=2).state_dict())
    rnn.to(torch.float64)
    assert rnn(x.double())[0].dtype == torch.float64


@pytest.mark.parametrize("layer", LAYERS)
def test_weights_replaced_from_outside(layer: Any) -> None:
    rnn, x = layer(4, 5), torch.randn(3, 2, 4)
    doubled = {name: p * 2 for name, p in rnn.named_parameters()}
    y, _ = torch.func.functional_call(rnn, doubled, (x,))
    with torch.no_grad():
        for p in rnn.parameters():
            p *= 2
    torch.testing.assert_close(rnn(x)[0], y)


# ---- layers and directions ---------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_stacked_and_bidirectional(layer: Any) -> None:
    """Two layers of two directions, put together by hand from the oracle."""
    torch.manual_seed(0)
    rnn = layer(4, 5, num_layers=2, bidirectional=True, dtype=torch.float64)
    x, lengths = torch.randn(6, 3, 4, dtype=torch.float64), torch.tensor([6, 3, 2])
    oracle = getattr(reference_recurrent, "layer_norm_lstm" if layer is LayerNormLSTM else "layer_norm_gru")
    inputs, finals = x, []
    for number in range(2):
        outputs = []
        for suffix in (f"_l{number}", f"_l{number}_reverse"):
            arguments = {k: getattr(rnn, k + suffix, None) for k in rnn.parameter_kinds}
            states = [torch.zeros(3, 5, dtype=torch.float64)] * (2 if layer is LayerNormLSTM else 1)
            y, final, *_ = oracle(inputs, *states, **arguments, lengths=lengths, reverse="reverse" in suffix)
            outputs.append(y)
            finals.append(final if isinstance(final, tuple) else (final,))
        inputs = torch.cat(outputs, -1)
    y, final = rnn(pack_padded_sequence(x, lengths))
    padded, _ = pad_packed_sequence(y)
    runs = (torch.arange(6)[:, None] < lengths)[..., None]
    torch.testing.assert_close(padded, inputs * runs)
    for ours, theirs in zip(final if isinstance(final, tuple) else (final,), zip(*finals)):
        torch.testing.assert_close(ours, torch.stack(theirs))


def test_dropout_is_between_layers() -> None:
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last recurrent layer"):
        LayerNormLSTM(4, 5, dropout=0.5)
    x = torch.randn(3, 2, 4)
    all_dropped = LayerNormLSTM(4, 5, num_layers=2, dropout=1.0)
    assert all_dropped(x)[0].equal(all_dropped(x + 1)[0])
    all_dropped.eval()
    assert not all_dropped(x)[0].equal(all_dropped(x + 1)[0])
    all_dropped(x.requires_grad_())[0].sum().backward()  # backward in eval mode
    assert x.grad is not None


@pytest.mark.parametrize("kind", ["batched", "batch first", "unbatched", "packed"])
def test_cells_of_every_step(kind: str) -> None:
    rnn = LayerNormLSTM(4, 5, num_layers=2, bidirectional=True, proj_size=3, batch_first=kind == "batch first")
    input: Any = torch.randn(6, 4) if kind == "unbatched" else torch.randn(6, 3, 4)
    if kind == "packed":
        input = pack_padded_sequence(input, [2, 6, 4], enforce_sorted=False)
    y, (h_n, c_n), cells = rnn(input, return_cells=True)
    assert len(cells) == 2
    last, y = (pad_packed_sequence(t)[0] if kind == "packed" else t for t in (cells[1], y))
    assert last.shape == (*y.shape[:-1], 10)
    if kind != "packed":
        steps = last.transpose(0, 1) if kind == "batch first" else last
        assert steps[-1, ..., :5].equal(c_n[2])
        assert steps[0, ..., 5:].equal(c_n[3])
    else:
        assert last[1, 0, :5].equal(c_n[2, 0])
        assert last[5, 1, :5].equal(c_n[2, 1])
        assert last[0, :, 5:].equal(c_n[3])


# ---- cells -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant", [{}, {"cell_norm": "carry"}, {"cell_norm": "none"}, {"gate_norm": "none"}, {"bias": False}]
)
def test_lstm_cell_is_a_step_of_the_layer(variant: dict[str, Any]) -> None:
    cell, layer = LayerNormLSTMCell(4, 5, **variant), LayerNormLSTM(4, 5, **variant)
    layer.load_state_dict({name + "_l0": t for name, t in cell.state_dict().items()})
    x, state = torch.randn(6, 3, 4), (torch.randn(3, 5), torch.randn(3, 5))
    y, (h_n, c_n) = layer(x, tuple(s[None] for s in state))
    for t in range(6):
        state = cell(x[t], state)
        torch.testing.assert_close(state[0], y[t])
    torch.testing.assert_close(state[1], c_n[0])
    one = cell(x[0, 0])
    assert one[0].shape == one[1].shape == (5,)
    torch.testing.assert_close(one[0], layer(x[:1])[0][0, 0])


def test_gru_cell_is_a_step_of_the_layer() -> None:
    cell, layer = LayerNormGRUCell(4, 5, norm_groups="joint"), LayerNormGRU(4, 5, norm_groups="joint")
    layer.load_state_dict({name + "_l0": t for name, t in cell.state_dict().items()})
    x, h = torch.randn(6, 3, 4), torch.randn(3, 5)
    y, _ = layer(x, h[None])
    for t in range(6):
        h = cell(x[t], h)
        torch.testing.assert_close(h, y[t])
    assert cell(x[0, 0]).shape == (5,)
    assert repr(cell) == "LayerNormGRUCell(4, 5, norm_groups=joint)"


# ---- torch's errors ----------------------------------------------------------------------------

X = torch.randn(6, 3, 4)
MISFITS = {
    "four dimensions": (torch.randn(1, 6, 3, 4), None),
    "features": (torch.randn(6, 3, 5), None),
    "dtype": (X.double(), None),
    "rows of hx": (X, (torch.randn(1, 2, 5), torch.randn(1, 2, 5))),
    "features of hx": (X, (torch.randn(1, 3, 5), torch.randn(1, 3, 6))),
    "hx without batch": (X, (torch.randn(1, 5), torch.randn(1, 5))),
    "hx with batch": (X[:, 0], (torch.randn(1, 3, 5), torch.randn(1, 3, 5))),
    "no steps": (X[:0], None),
}


@pytest.mark.parametrize("case", MISFITS)
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_misfits_are_refused_in_torch_s_words(ours: Any, theirs: Any, case: str) -> None:
    input, hx = MISFITS[case]
    if theirs is nn.GRU and hx is not None:
        hx = hx[1]
    with pytest.raises((RuntimeError, ValueError)) as expected:
        theirs(4, 5)(input, hx)
    with pytest.raises(expected.type) as found:
        ours(4, 5)(input, hx)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    ("input", "hx"),
    [
        (torch.randn(1, 3, 4), None),
        (torch.randn(3, 5), None),
        (torch.randn(3, 4), torch.randn(2, 5)),
        (torch.randn(3, 4), torch.randn(3, 6)),
    ],
)
@pytest.mark.parametrize(("ours", "theirs"), [(LayerNormLSTMCell, nn.LSTMCell), (LayerNormGRUCell, nn.GRUCell)])
def test_misfits_of_cells(ours: Any, theirs: Any, input: Tensor, hx: Tensor | None) -> None:
    state = (hx, hx) if theirs is nn.LSTMCell and hx is not None else hx
    with pytest.raises((RuntimeError, ValueError)) as expected:
        theirs(4, 5)(input, state)
    with pytest.raises(expected.type) as found:
        ours(4, 5)(input, state)
    assert str(found.value) == str(expected.value)


def test_constructors_refuse() -> None:
    with pytest.raises(ValueError, match="cell_norm should be one of 'output', 'carry', 'none', got 'both'"):
        LayerNormLSTM(4, 5, cell_norm="both")
    with pytest.raises(ValueError, match="norm_groups should be one of 'paper', 'joint', got 'own'"):
        LayerNormGRUCell(4, 5, norm_groups="own")
    with pytest.raises(ValueError, match="proj_size has to be smaller than hidden_size"):
        LayerNormLSTM(4, 5, proj_size=5)
    with pytest.raises(TypeError, match="hidden_size should be of type int"):
        LayerNormGRU(4, 5.0)


# ---- initial values, traced code, autocast --------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_stay_flat_over_constant_rows(layer: Any) -> None:
    """Left padding: steps whose input is zero.  With biases that start at zero each of them multiplies the
    gradient by 1/sqrt(eps) and more, to overflow.
    """
    norms: dict[bool, list[float]] = {}
    for zero in (False, True):
        norms[zero] = []
        for padding in (0, 2, 4):
            torch.manual_seed(0)
            rnn = layer(8, 32)
            if zero:
                for name, p in rnn.named_parameters():
                    if "bias" in name:
                        nn.init.zeros_(p)
            x = torch.cat([torch.zeros(padding, 4, 8), torch.randn(10, 4, 8)])
            rnn(x)[0][-1].sum().backward()
            norms[zero].append(float(torch.stack([p.grad.norm() for p in rnn.parameters()]).norm()))
    uniform, zeros = norms[False], norms[True]
    assert max(uniform) <= 3 * min(uniform)
    assert zeros[2] >= 1e3 * zeros[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.parametrize("layer", LAYERS)
def test_compiled_without_a_graph_break(layer: Any) -> None:
    torch._dynamo.reset()
    rnn, x = layer(4, 5, num_layers=2, bidirectional=True), torch.randn(6, 3, 4)
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    expected = rnn(x)[0]
    found = compiled(x)[0]
    assert found.equal(expected)
    a, b = (torch.autograd.grad(y.square().sum(), list(rnn.parameters())) for y in (expected, found))
    assert all(p.equal(q) for p, q in zip(a, b))


def test_a_direction_is_one_op_of_the_graph() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keeping(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    torch.compile(LayerNormLSTM(4, 5), fullgraph=True, backend=keeping)(torch.randn(6, 3, 4))
    (graph,) = graphs
    ops = [str(n.target) for n in graph.graph.nodes if "tritonln" in str(n.target)]
    assert len(ops) == 1, ops


@pytest.mark.parametrize("layer", LAYERS)
def test_autocast(layer: Any) -> None:
    rnn, x = layer(4, 5), torch.randn(6, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = rnn(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in rnn.parameters())


@pytest.mark.parametrize(("layer", "dtype"), list(itertools.product(LAYERS, [torch.float16, torch.bfloat16])))
def test_16_bit_layers(layer: Any, dtype: torch.dtype) -> None:
    rnn, x = layer(4, 5, dtype=dtype), torch.randn(6, 3, 4).to(dtype)
    y, state = rnn(x)
    assert all(t.dtype == dtype for t in tensors((y, state)))
    torch.testing.assert_close(y.float(), rnn.float()(x.float())[0], rtol=0, atol=4 * torch.finfo(dtype).eps)


# ---- other people's weights --------------------------------------------------------------------


def scaled(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64) / 3


def test_fastrnns() -> None:
    """benchmarks/fastrnns of PyTorch: gates i, f, g, o; LN(c) in the place of c."""
    H = 5
    w = {"weight_ih": scaled(4 * H, 4), "weight_hh": scaled(4 * H, H)}
    for norm, size in (("i", 4 * H), ("h", 4 * H), ("c", H)):
        w |= {f"layernorm_{norm}.weight": 1 + scaled(size), f"layernorm_{norm}.bias": scaled(size)}

    def norm(name: str, t: Tensor) -> Tensor:
        return F.layer_norm(t, t.shape[-1:], w[f"layernorm_{name}.weight"], w[f"layernorm_{name}.bias"])

    x, h, c = scaled(6, 3, 4), scaled(3, H) * 0, scaled(3, H) * 0
    layer = tritonln.nn.load_fastrnns(w)
    y, _ = layer(x)
    for t in range(6):
        i, f, g, o = (norm("i", x[t] @ w["weight_ih"].T) + norm("h", h @ w["weight_hh"].T)).chunk(4, 1)
        c = norm("c", f.sigmoid() * c + i.sigmoid() * g.tanh())
        h = o.sigmoid() * c.tanh()
        torch.testing.assert_close(y[t], h)
    stacked = {f"layers.0.directions.{d}.cell.{k}": t + d for d in (0, 1) for k, t in w.items()}
    assert torch.equal(tritonln.nn.load_fastrnns(stacked).weight_hh_l0_reverse, w["weight_hh"] + 1)
    assert tritonln.nn.load_fastrnns({f"layers.0.cell.{k}": t for k, t in w.items()})(x)[0].equal(y)
    with pytest.raises(ValueError, match="got 'bias'"):
        tritonln.nn.load_fastrnns({"bias": x})


def test_haste_lstm() -> None:
    """haste: transposed, gates i, g, f, o, one bias outside of the norms, c itself carried."""
    H = 5
    w = {"kernel": scaled(4, 4 * H), "recurrent_kernel": scaled(H, 4 * H), "bias": scaled(4 * H)}
    w |= {"gamma": 1 + scaled(2, 4 * H), "gamma_h": 1 + scaled(H), "beta_h": scaled(H)}
    x, h, c = scaled(6, 3, 4), scaled(3, H) * 0, scaled(3, H) * 0
    y, _ = tritonln.nn.load_haste_lstm(w)(x)
    for t in range(6):
        v = F.layer_norm(x[t] @ w["kernel"], (4 * H,), w["gamma"][0]) + w["bias"]
        v = v + F.layer_norm(h @ w["recurrent_kernel"], (4 * H,), w["gamma"][1])
        i, g, f, o = v.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * F.layer_norm(c, (H,), w["gamma_h"], w["beta_h"]).tanh()
        torch.testing.assert_close(y[t], h)


def test_haste_gru() -> None:
    """haste: transposed, gates z, r, n, all 3H normalized together."""
    H = 5
    w = {"kernel": scaled(4, 3 * H), "recurrent_kernel": scaled(H, 3 * H), "gamma": 1 + scaled(2, 3 * H)}
    w |= {"bias": scaled(3 * H), "recurrent_bias": scaled(3 * H)}
    x, h = scaled(6, 3, 4), scaled(3, H) * 0
    y, _ = tritonln.nn.load_haste_gru(w)(x)
    for t in range(6):
        xz, xr, xg = (F.layer_norm(x[t] @ w["kernel"], (3 * H,), w["gamma"][0]) + w["bias"]).chunk(3, 1)
        recurrent = F.layer_norm(h @ w["recurrent_kernel"], (3 * H,), w["gamma"][1]) + w["recurrent_bias"]
        hz, hr, hg = recurrent.chunk(3, 1)
        z, r = (xz + hz).sigmoid(), (xr + hr).sigmoid()
        h = z * h + (1 - z) * (xg + r * hg).tanh()
        torch.testing.assert_close(y[t], h)


@pytest.mark.parametrize("use_bias", [True, False])
def test_tf_addons(use_bias: bool) -> None:
    """TensorFlow Addons: transposed, gates i, f, c, o, a bias beside the norms', LN(c) in the place of c."""
    H = 5
    kernel, recurrent, bias = scaled(4, 4 * H), scaled(H, 4 * H), scaled(4 * H)
    norms = [1 + scaled(4 * H), scaled(4 * H), 1 + scaled(4 * H), scaled(4 * H), 1 + scaled(H), scaled(H)]
    weights = [kernel, recurrent, *([bias] if use_bias else []), *norms]
    x, h, c = scaled(6, 3, 4), scaled(3, H) * 0, scaled(3, H) * 0
    y, _ = tritonln.nn.load_tf_addons([w.numpy() for w in weights])(x)
    for t in range(6):
        z = F.layer_norm(x[t] @ kernel, (4 * H,), *norms[:2], 1e-3)
        z = z + F.layer_norm(h @ recurrent, (4 * H,), *norms[2:4], 1e-3) + bias * use_bias
        i, f, g, o = z.chunk(4, 1)
        c = F.layer_norm(f.sigmoid() * c + i.sigmoid() * g.tanh(), (H,), *norms[4:], 1e-3)
        h = o.sigmoid() * c.tanh()
        torch.testing.assert_close(y[t], h)
    with pytest.raises(ValueError, match="expected 8 or 9 arrays, got 7"):
        tritonln.nn.load_tf_addons(weights[-7:])
