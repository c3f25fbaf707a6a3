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
