"""The recurrent core of DreamerV3 as its authors published it, and its weights.

Other people's Dreamers have one layer-normalized GRU there: :func:`tritonln.nn.load_dreamer_gru`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, ModuleList, Parameter, init

from tritonln.nn.norm import RMSNorm
from tritonln.nn.rnn_weights import expect
from tritonln.ops.recurrent.contract import check_resets

BLOCKS, EPS = 8, 1e-4  # of the published code


class BlockLinear(torch.nn.Module):
    """A linear layer whose matrix is blocks on a diagonal: ``weight`` is ``(blocks, in, out)`` of each of them."""

    def __init__(
        self, in_features: int, out_features: int, blocks: int, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if in_features % blocks or out_features % blocks:
            raise ValueError(f"expected features divisible by {blocks} blocks, got {in_features} and {out_features}")
        sizes = blocks, in_features // blocks, out_features // blocks
        self.weight = Parameter(torch.empty(sizes, device=device, dtype=dtype))
        self.bias = Parameter(torch.empty(out_features, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """From (B, blocks, in of each) to (B, out of all)."""
        bias = self.bias.view(len(self.weight), 1, -1)
        return torch.baddbmm(bias, x.transpose(0, 1), self.weight).transpose(0, 1).flatten(1)

    def extra_repr(self) -> str:
        blocks, inputs, outputs = self.weight.shape
        return f"in_features={blocks * inputs}, out_features={blocks * outputs}, blocks={blocks}"


class DreamerV3Cell(torch.nn.Module):
    r"""A time step of DreamerV3's recurrent core, as its authors' code has it (danijar/dreamerv3, ``rssm.py``).

    .. math::
        x &= \mathrm{concat}_{v \in (h, s, a)} \, \phi(\mathrm{RMS}(W_v v + b_v)) \\
        u_k &= \phi(\mathrm{RMS}(U_k \, [h_k; x] + b_k)) \\
        (r_k, n_k, z_k) &= V_k u_k + c_k \\
        h' &= \sigma(z - 1) \tanh(\sigma(r) \, n) + (1 - \sigma(z - 1)) \, h

    k numbers the blocks that the H values of h and of u are divided into; RMS norms are over whole rows.  Each value of
    the action a is divided by its size where that is above 1.  The gates are not normalized, and h reaches them through
    two layers, so that no :class:`tritonln.nn.LayerNormGRU` is this function; and as s is drawn from what was made of
    h, there is no layer of whole sequences.  The norms are tritonln's kernels and all else is torch's, whose compiler
    puts what stands between the products into few kernels.

    Args:
        stoch_size, action_size: values of s, all classes of all its variables, and of a.
        deter_size: H.
        hidden_size: values of each of the three parts of x.
        blocks, layers: how many blocks, and how many layers make u.
        activation: phi; published configurations have silu.
        eps: added to each mean square.

    Source: Hafner, Pasukonis, Ba and Lillicrap, Mastering Diverse Domains through World Models (arXiv 2301.04104v2),
    and their code.
    """

    def __init__(
        self,
        stoch_size: int,
        action_size: int,
        deter_size: int,
        hidden_size: int,
        blocks: int = BLOCKS,
        layers: int = 1,
        activation: Callable[[Tensor], Tensor] = F.silu,
        eps: float = EPS,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        joined = deter_size + 3 * hidden_size * blocks  # each block has all of x
        sizes = [joined, *[deter_size] * (layers - 1)]
        self.blocks, self.activation = blocks, activation
        self.inputs = ModuleList(Linear(size, hidden_size, **where) for size in (deter_size, stoch_size, action_size))
        self.inputs_norm = ModuleList(RMSNorm(hidden_size, eps, **where) for _ in self.inputs)
        self.hidden = ModuleList(BlockLinear(size, deter_size, blocks, **where) for size in sizes)
        self.hidden_norm = ModuleList(RMSNorm(deter_size, eps, **where) for _ in self.hidden)
        self.gates = BlockLinear(deter_size, 3 * deter_size, blocks, **where)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: matrices normal with a variance of 1 / inputs, cut at two deviations; biases 0, gains 1."""
        for name, parameter in self.named_parameters():
            if "norm" in name or "bias" in name:
                init.constant_(parameter, float("norm" in name))
            else:
                inputs = parameter.shape[1] * (len(parameter) if parameter.dim() == 3 else 1)
                deviation = 1.1368 / math.sqrt(inputs)  # of the normal that is cut
                init.trunc_normal_(parameter, 0.0, deviation, -2 * deviation, 2 * deviation)

    def forward(self, deter: Tensor, stoch: Tensor, action: Tensor, resets: Tensor | None = None) -> Tensor:
        """The next state from h (B, H), s (B, ...) and a (B, A); all three count as zero where resets (B,) is true."""
        check_resets(type(self).__name__, resets, deter)
        stoch = stoch.flatten(1)
        if resets is not None:
            deter, stoch, action = (torch.where(resets[:, None], 0, v) for v in (deter, stoch, action))
        action = action / action.detach().abs().clamp(min=1)
        parts = zip(self.inputs, self.inputs_norm, (deter, stoch, action))
        x = torch.cat([self.activation(norm(linear(v))) for linear, norm, v in parts], -1)
        u = torch.cat([self.in_blocks(deter), x.unsqueeze(1).expand(-1, self.blocks, -1)], -1)
        for linear, norm in zip(self.hidden, self.hidden_norm):
            u = self.in_blocks(self.activation(norm(linear(u))))
        r, n, z = (gate.flatten(1) for gate in self.in_blocks(self.gates(u)).chunk(3, -1))
        update = torch.sigmoid(z - 1)
        return update * torch.tanh(torch.sigmoid(r) * n) + (1 - update) * deter

    def in_blocks(self, v: Tensor) -> Tensor:
        return v.unflatten(-1, (self.blocks, -1))


def load_dreamerv3(
    weights: Mapping[str, Any], activation: Callable[[Tensor], Tensor] = F.silu, eps: float = EPS
) -> DreamerV3Cell:
    """From the arrays or tensors of the core in a checkpoint of danijar/dreamerv3, such as ``dynin0/kernel``.

    They are named ``dyn/dynin0/kernel`` and so on in there: ``{k[4:]: v for k, v in all.items() if
    k.startswith("dyn/dyn")}``.
    """
    layers = sum(re.fullmatch(r"dynhid\d+/kernel", name) is not None for name in weights)
    names = {"dyngru/kernel": "gates.weight", "dyngru/bias": "gates.bias"}
    for theirs, ours, count in (("dynin", "inputs", 3), ("dynhid", "hidden", max(layers, 1))):
        for k in range(count):
            names |= {f"{theirs}{k}/kernel": f"{ours}.{k}.weight", f"{theirs}{k}/bias": f"{ours}.{k}.bias"}
            names |= {f"{theirs}{k}norm/scale": f"{ours}_norm.{k}.weight"}
    expect("load_dreamerv3", weights, list(names))
    renamed = {names[name]: torch.as_tensor(w) for name, w in weights.items()}
    for k in range(3):
        renamed[f"inputs.{k}.weight"] = renamed[f"inputs.{k}.weight"].t()
    (hidden, deter), (_, stoch), (_, action) = (renamed[f"inputs.{k}.weight"].shape for k in range(3))
    gates = renamed["gates.weight"]
    sizes = (stoch, action, deter, hidden, len(gates), layers)
    cell = DreamerV3Cell(*sizes, activation, eps, device=gates.device, dtype=gates.dtype)
    cell.load_state_dict(renamed)
    return cell
