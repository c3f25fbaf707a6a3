"""Other libraries' weights: the layers that come back compute what plain-torch loops of their formulas do."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tritonln

pytestmark = pytest.mark.usefixtures("aten")


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
    with pytest.raises(ValueError, match="for each layer, but got 'bias'"):
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


def norms(sizes: dict[str, int]) -> dict[str, Tensor]:
    both = [(name, size, start) for name, size in sizes.items() for start in (1, 0)]
    return {f"{name}.{'weight' if start else 'bias'}": start + scaled(size) for name, size, start in both}


def normed(w: dict[str, Tensor], name: str, t: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(t, t.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def zeros(H: int, count: int) -> list[Tensor]:
    return [torch.zeros(3, H, dtype=torch.float64)] * count


def test_torchaudio() -> None:
    """_CustomLSTM: one norm of the sum, no biases beside the norms', LN(c) in the place of c."""
    H = 5
    w = {"x2g.weight": scaled(4 * H, 4), "p2g.weight": scaled(4 * H, H)} | norms({"g_norm": 4 * H, "c_norm": H})
    x, (h, c) = scaled(6, 3, 4), zeros(H, 2)
    layer = tritonln.nn.load_torchaudio_lstm(w)
    y, _ = layer(x)
    for t in range(6):
        i, f, g, o = normed(w, "g_norm", x[t] @ w["x2g.weight"].T + h @ w["p2g.weight"].T).chunk(4, 1)
        c = normed(w, "c_norm", f.sigmoid() * c + i.sigmoid() * g.tanh())
        h = o.sigmoid() * c.tanh()
        torch.testing.assert_close(y[t], h)
    assert sum(p.numel() for p in layer.parameters()) == sum(t.numel() for t in w.values())
    predictor = {f"lstm_layers.0.{k}": t for k, t in w.items()}
    assert tritonln.nn.load_torchaudio_lstm(predictor)(x)[0].equal(y)
    with pytest.raises(ValueError, match=r"load_torchaudio_lstm, layer 0: expected .*, but 'g_norm.bias' missing"):
        tritonln.nn.load_torchaudio_lstm({k: t for k, t in w.items() if k != "g_norm.bias"})
    with pytest.raises(ValueError, match="load_torchaudio_lstm, layer 0: expected 'x2g.weight'.* missing"):
        tritonln.nn.load_torchaudio_lstm({})


@pytest.mark.parametrize("bias", [True, False])
def test_icefall_lstm(bias: bool) -> None:
    """A norm of the sum for each gate, biases inside of it, LN(c) in the place of c."""
    H = 5
    w = {"weight_ih": scaled(4 * H, 4), "weight_hh": scaled(4 * H, H)}
    w |= {"bias_ih": scaled(4 * H), "bias_hh": scaled(4 * H)} if bias else {}
    w |= norms({f"layernorm_{gate}": H for gate in ("i", "f", "cx", "cy", "o")})
    x, (h, c) = scaled(3, 6, 4), zeros(H, 2)
    y, _ = tritonln.nn.load_icefall_lstm({f"layers.0.cell.{k}": t for k, t in w.items()}, batch_first=True)(x)
    for t in range(6):
        sums = F.linear(x[:, t], w["weight_ih"], w.get("bias_ih")) + F.linear(h, w["weight_hh"], w.get("bias_hh"))
        names = [f"layernorm_{gate}" for gate in ("i", "f", "cx", "o")]
        i, f, g, o = (normed(w, name, gate) for name, gate in zip(names, sums.chunk(4, 1)))
        c = normed(w, "layernorm_cy", f.sigmoid() * c + i.sigmoid() * g.tanh())
        h = o.sigmoid() * c.tanh()
        torch.testing.assert_close(y[:, t], h)


@pytest.mark.parametrize("bias", [True, False])
def test_icefall_gru(bias: bool) -> None:
    """A norm of the sum for each gate, r inside of that of the candidate; two layers."""
    H = 5
    cells = []
    for size in (4, H):
        w = {"weight_ih": scaled(3 * H, size), "weight_hh": scaled(3 * H, H)}
        w |= {"bias_ih": scaled(3 * H), "bias_hh": scaled(3 * H)} if bias else {}
        cells.append(w | norms({f"layernorm_{gate}": H for gate in "rin"}))
    x, states = scaled(3, 6, 4), zeros(H, 2)
    stacked = {f"layers.{n}.cell.{k}": t for n, w in enumerate(cells) for k, t in w.items()}
    y, _ = tritonln.nn.load_icefall_gru(stacked, batch_first=True)(x)
    for t in range(6):
        value = x[:, t]
        for n, w in enumerate(cells):
            h = states[n]
            x_r, x_i, x_n = F.linear(value, w["weight_ih"], w.get("bias_ih")).chunk(3, 1)
            h_r, h_i, h_n = F.linear(h, w["weight_hh"], w.get("bias_hh")).chunk(3, 1)
            r, z = (normed(w, f"layernorm_{k}", s).sigmoid() for k, s in (("r", x_r + h_r), ("i", x_i + h_i)))
            candidate = normed(w, "layernorm_n", x_n + r * h_n).tanh()
            value = states[n] = candidate + z * (h - candidate)
        torch.testing.assert_close(y[:, t], value)
    with pytest.raises(ValueError, match="load_icefall_gru: expected .*, but got 'layers.0.cell.layernorm_o.bias'"):
        tritonln.nn.load_icefall_gru({**stacked, "layers.0.cell.layernorm_o.bias": x})


def test_nemo() -> None:
    """fastrnns' function and names; the forget gate's bias lies in that of the recurrent norm."""
    H = 5
    w = {"weight_ih": scaled(4 * H, 4), "weight_hh": scaled(4 * H, H)}
    w |= norms({"layernorm_i": 4 * H, "layernorm_h": 4 * H, "layernorm_c": H})
    w["layernorm_h.bias"][H : 2 * H] += 1
    x, (h, c) = scaled(6, 3, 4), zeros(H, 2)
    y, _ = tritonln.nn.load_nemo_lstm({f"layers.0.cell.{k}": t for k, t in w.items()})(x)
    for t in range(6):
        gates = normed(w, "layernorm_i", x[t] @ w["weight_ih"].T) + normed(w, "layernorm_h", h @ w["weight_hh"].T)
        i, f, g, o = gates.chunk(4, 1)
        c = normed(w, "layernorm_c", f.sigmoid() * c + i.sigmoid() * g.tanh())
        h = o.sigmoid() * c.tanh()
        torch.testing.assert_close(y[t], h)
    with pytest.raises(ValueError, match="load_nemo_lstm, layer 0: .*'weight_hh' missing"):
        tritonln.nn.load_nemo_lstm({k: t for k, t in w.items() if k != "weight_hh"})


def test_di_engine() -> None:
    """Transposed, gates i, f, o, u, a bias beside the norms', c not normalized; two layers."""
    H = 5
    w = {"bias": scaled(2, 4 * H)} | norms({f"norm.{n}": 4 * H for n in range(4)})
    w |= {"wx.0": scaled(4, 4 * H), "wx.1": scaled(H, 4 * H), "wh.0": scaled(H, 4 * H), "wh.1": scaled(H, 4 * H)}
    x, hs, cs = scaled(6, 3, 4), zeros(H, 2), zeros(H, 2)
    y, _ = tritonln.nn.load_di_engine_lstm(w)(x)
    for t in range(6):
        value = x[t]
        for n in range(2):
            gates = normed(w, f"norm.{2 * n}", value @ w[f"wx.{n}"]) + w["bias"][n]
            i, f, o, u = (gates + normed(w, f"norm.{2 * n + 1}", hs[n] @ w[f"wh.{n}"])).chunk(4, 1)
            cs[n] = f.sigmoid() * cs[n] + i.sigmoid() * u.tanh()
            value = hs[n] = o.sigmoid() * cs[n].tanh()
        torch.testing.assert_close(y[t], value)
    with pytest.raises(ValueError, match=r"load_di_engine_lstm: .*'norm.3.bias' missing"):
        tritonln.nn.load_di_engine_lstm({k: t for k, t in w.items() if k != "norm.3.bias"})


@pytest.mark.parametrize("whose", ["dreamer", "sheeprl", "sheeprl with a bias"])
def test_dreamer(whose: str) -> None:
    """NM512's, sheeprl's: one matrix for [x; h] or [h; x], gates r, n, z, one norm of the sum, z - 1 the update's."""
    H = 5
    matrix, bias = scaled(3 * H, 4 + H), scaled(3 * H) if "bias" in whose else torch.zeros(3 * H, dtype=torch.float64)
    norm = norms({"norm": 3 * H})
    if whose == "dreamer":
        w = {"layers.GRU_linear.weight": matrix, "layers.GRU_norm.weight": norm["norm.weight"]}
        layer = tritonln.nn.load_dreamer_gru(w | {"layers.GRU_norm.bias": norm["norm.bias"]})
    else:
        w = {"linear.weight": matrix} | {f"layer_{k}": t for k, t in norm.items()}
        layer = tritonln.nn.load_sheeprl_gru(w | ({"linear.bias": bias} if "bias" in whose else {}))
    x, (h,) = scaled(6, 3, 4), zeros(H, 1)
    y, _ = layer(x)
    for t in range(6):
        pair = torch.cat([x[t], h] if whose == "dreamer" else [h, x[t]], -1)
        r, n, z = normed(norm, "norm", F.linear(pair, matrix, bias), 1e-3).chunk(3, 1)
        update = (z - 1).sigmoid()
        h = update * (r.sigmoid() * n).tanh() + (1 - update) * h
        torch.testing.assert_close(y[t], h)
    load = getattr(tritonln.nn, f"load_{whose.split()[0]}_gru")
    with pytest.raises(ValueError, match="norm.bias' missing"):
        load(w if whose == "dreamer" else {k: t for k, t in w.items() if k != "layer_norm.bias"})
