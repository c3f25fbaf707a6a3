"""LayerNormLSTM and LayerNormGRU: torch's layers in constructor, call, results and errors."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from tritonln import reference_recurrent
from tritonln.nn import LayerNormGRU, LayerNormGRUCell, LayerNormLSTM, LayerNormLSTMCell

# The operators have tests of their own.
pytestmark = pytest.mark.usefixtures("aten")

LAYERS = [LayerNormLSTM, LayerNormGRU]
PAIRS = [(LayerNormLSTM, nn.LSTM), (LayerNormGRU, nn.GRU)]
PLAIN = {"gate_norm": "none", "cell_norm": "none"}


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


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("lengths", [[6, 4, 1], [2, 6, 4]], ids=str)
def test_states_of_packed_rows_without_layers(ours: Any, theirs: Any, lengths: list[int]) -> None:
    input = pack_padded_sequence(X, lengths, enforce_sorted=False)
    state = torch.randn(3, 5)
    hx = (state, state) if theirs is nn.LSTM else state
    with pytest.raises((RuntimeError, IndexError)) as expected:
        theirs(4, 5)(input, hx)
    with pytest.raises(expected.type) as found:
        ours(4, 5)(input, hx)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    ("ours", "theirs", "input"), [(LayerNormLSTM, nn.LSTM, X), (LayerNormLSTMCell, nn.LSTMCell, X[0])]
)
def test_an_lstm_has_two_states(ours: Any, theirs: Any, input: Tensor) -> None:
    hx = (torch.randn(*(1,) * (input.dim() - 2), 3, 5),) * 3
    with pytest.raises(RuntimeError) as expected:
        theirs(4, 5)(input, hx)
    with pytest.raises(RuntimeError) as found:
        ours(4, 5)(input, hx)
    assert str(found.value) == str(expected.value)


def test_a_gru_has_no_projection() -> None:
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM, not RNN or GRU"):
        LayerNormGRU(4, 5, proj_size=2)
    assert LayerNormGRU(4, 5, 1, True, False, 0.0, False, 0, "meta").weight_ih_l0.is_meta  # as torch counts them


def test_constructors_refuse() -> None:
    with pytest.raises(ValueError, match="cell_norm should be one of 'output', 'carry', 'none', got 'both'"):
        LayerNormLSTM(4, 5, cell_norm="both")
    with pytest.raises(ValueError, match="gate_norm='products' should be one of 'paper', 'joint', got 'gates'"):
        LayerNormGRUCell(4, 5, norm_groups="gates")
    with pytest.raises(ValueError, match="with .* reset='recurrent' should be one of 'paper', 'gates', got 'joint'"):
        LayerNormGRU(4, 5, gate_norm="sum", norm_groups="joint")
    with pytest.raises(ValueError, match="norm_groups with gate_norm='none' should be one of 'joint', got 'gates'"):
        LayerNormLSTM(4, 5, gate_norm="none", norm_groups="gates")
    with pytest.raises(ValueError, match="proj_size has to be smaller than hidden_size"):
        LayerNormLSTM(4, 5, proj_size=5)
    with pytest.raises(TypeError, match="hidden_size should be of type int"):
        LayerNormGRU(4, 5.0)
