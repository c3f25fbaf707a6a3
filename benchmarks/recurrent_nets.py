"""The recurrent layers of real nets, and who computes them: each net by its shapes and source, each provider by a call.

The loops are the formula step by step, with the product of the input hoisted out of them as tritonln has it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tritonln.nn import LayerNormGRU, LayerNormLSTM

Step = Callable[[Tensor, Tensor, Tensor, list[Tensor], float], tuple[Tensor, Tensor]]
Call = Callable[[], Tensor]


def step_of_products(x: Tensor, h: Tensor, c: Tensor, w: list[Tensor], eps: float) -> tuple[Tensor, Tensor]:
    w_hh, g_hh, g_c, b_c = w
    gates = F.layer_norm(torch.mm(h, w_hh.t()), g_hh.shape, g_hh, None, eps) + x
    i, f, g, o = gates.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(F.layer_norm(c, g_c.shape, g_c, b_c, eps)), c


def step_of_torchaudio(x: Tensor, h: Tensor, c: Tensor, w: list[Tensor], eps: float) -> tuple[Tensor, Tensor]:
    w_hh, g, b, g_c, b_c = w
    gates = F.layer_norm(x + torch.mm(h, w_hh.t()), g.shape, g, b, eps)
    i, f, n, o = gates.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(n)
    c = F.layer_norm(c, g_c.shape, g_c, b_c, eps)
    return torch.sigmoid(o) * torch.tanh(c), c


def step_of_dreamer(x: Tensor, h: Tensor, c: Tensor, w: list[Tensor], eps: float) -> tuple[Tensor, Tensor]:
    w_hh, g, b = w
    r, z, n = F.layer_norm(x + torch.mm(h, w_hh.t()), g.shape, g, b, eps).chunk(3, 1)
    n = torch.tanh(torch.sigmoid(r) * n)
    return torch.lerp(n, h, torch.sigmoid(z + 1.0)), c


@dataclasses.dataclass(frozen=True)
class Net:
    """T steps of B sequences, I inputs, H units; `options` make the layer, `step` is its formula on `weights`."""

    name: str
    source: str
    layer: Callable[..., Any]
    T: int
    B: int
    I: int
    H: int
    step: Step
    weights: tuple[str, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def shape(self) -> str:
        return f"T = {self.T}, B = {self.B}, I = {self.I}, H = {self.H}"


OF_PRODUCTS = ("weight_hh", "ln_hh_weight", "ln_c_weight", "ln_c_bias")
NETS = {
    net.name: net
    for net in (
        Net("vowels", "JapaneseVowels (Kudo, Toyama and Shimbo 1999), benchmarks.japanese_vowels",
            LayerNormLSTM, 29, 32, 12, 64, step_of_products, OF_PRODUCTS),
        Net("rnnt", "prediction net of torchaudio's emformer_rnnt_base: a layer of 512, 100 labels",
            LayerNormLSTM, 100, 16, 512, 512, step_of_torchaudio,
            ("weight_hh", "ln_weight", "ln_bias", "ln_c_weight", "ln_c_bias"),
            {"gate_norm": "sum", "cell_norm": "carry", "bias": False}),
        Net("dreamer", "RSSM of DreamerV3 (arXiv 2301.04104), 16 sequences of 64 steps, as NM512 has its GRU",
            LayerNormGRU, 64, 16, 512, 512, step_of_dreamer, ("weight_hh", "ln_weight", "ln_bias"),
            {"gate_norm": "sum", "norm_groups": "joint", "reset": "candidate", "update_bias": -1.0, "eps": 1e-3,
             "bias": False}),
        Net("r2d2", "R2D2 (Kapturowski et al. 2019): 40 steps of burn-in and 80, batch 64, an LSTM of 512",
            LayerNormLSTM, 120, 64, 512, 512, step_of_products, OF_PRODUCTS),
    )
}  # fmt: skip


class Problem:
    """A net's layer with its input, and the gradient that comes back."""

    def __init__(self, net: Net, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.net, self.device, self.dtype = net, device, dtype
        self.layer = net.layer(net.I, net.H, device=device, dtype=dtype, **net.options)
        draw = {"device": device, "dtype": dtype}
        self.x = torch.randn(net.T, net.B, net.I, **draw, requires_grad=True)  # type: ignore[call-overload]
        self.dy = torch.randn(net.T, net.B, net.H, **draw)  # type: ignore[call-overload]
        self.state = torch.zeros(net.B, net.H, **draw)  # type: ignore[call-overload]

    def parameter(self, kind: str) -> Tensor:
        return getattr(self.layer, kind + "_l0")

    def hoisted(self) -> Tensor:
        product = F.linear(self.x, self.parameter("weight_ih"))
        if self.net.step is not step_of_products:
            return product
        gain, bias = self.parameter("ln_ih_weight"), self.parameter("bias_ih") + self.parameter("bias_hh")
        return F.layer_norm(product, gain.shape, gain, bias, self.layer.eps)  # type: ignore[arg-type]

    def training(self, call: Call, parameters: list[nn.Parameter] | None = None) -> Callable[[], object]:
        """A forward and a backward pass with the gradients of the input and of all parameters."""
        leaves = [self.x, *(self.layer.parameters() if parameters is None else parameters)]
        return lambda: torch.autograd.grad(call(), leaves, self.dy)


def looped(step: Step) -> Callable[..., Tensor]:
    def whole(x: Tensor, h: Tensor, c: Tensor, weights: list[Tensor], eps: float) -> Tensor:
        outputs = []
        for row in x.unbind(0):
            h, c = step(row, h, c, weights, eps)
            outputs.append(h)
        return torch.stack(outputs)

    return whole


def scripted(step: Step) -> Callable[..., Tensor]:
    script = torch.jit.script(step)

    def whole(x: Tensor, h: Tensor, c: Tensor, weights: list[Tensor], eps: float) -> Tensor:
        outputs: list[Tensor] = []
        for row in x.unbind(0):
            h, c = script(row, h, c, weights, eps)
            outputs.append(h)
        return torch.stack(outputs)

    return torch.jit.script(whole)


def by_loop(run: Callable[..., Tensor], p: Problem) -> Callable[[], object]:
    weights, eps = [p.parameter(kind) for kind in p.net.weights], p.layer.eps
    return p.training(lambda: run(p.hoisted(), p.state, p.state, weights, eps))


def by_layer(layer: nn.Module, p: Problem) -> Callable[[], object]:
    layer = layer.to(p.device, p.dtype)
    return p.training(lambda: layer(p.x)[0], list(layer.parameters()))


def tritonln(p: Problem) -> Callable[[], object]:
    return by_layer(p.layer, p)


def eager(p: Problem) -> Callable[[], object]:
    return by_loop(looped(p.net.step), p)


def script(p: Problem) -> Callable[[], object]:
    return by_loop(scripted(p.net.step), p)


def compiled(p: Problem) -> Callable[[], object]:
    return by_loop(looped(torch.compile(p.net.step, dynamic=False)), p)


def floor(p: Problem) -> Callable[[], object]:
    """torch's layer of the same sizes, cuDNN's on NVIDIA's GPUs: not normalized."""
    kind: Any = nn.LSTM if p.net.layer is LayerNormLSTM else nn.GRU
    return by_layer(kind(p.net.I, p.net.H), p)


def torchaudio(p: Problem) -> Callable[[], object]:
    from torchaudio.models.rnnt import _CustomLSTM  # type: ignore[import-not-found]

    layer = torch.jit.script(_CustomLSTM(p.net.I, p.net.H, layer_norm=True)).to(p.device, p.dtype)
    return p.training(lambda: layer(p.x, None)[0], list(layer.parameters()))


def haste(p: Problem) -> Callable[[], object]:
    import haste_pytorch  # type: ignore[import-not-found]

    kind = "LayerNormLSTM" if p.net.layer is LayerNormLSTM else "LayerNormGRU"
    return by_layer(getattr(haste_pytorch, kind)(p.net.I, p.net.H), p)


def torchrl(p: Problem) -> Callable[[], object]:
    """Not normalized."""
    from torchrl import modules  # type: ignore[import-not-found]

    kind = "LSTM" if p.net.layer is LayerNormLSTM else "GRU"
    layer = getattr(modules, kind)(p.net.I, p.net.H, batch_first=True).to(p.device, p.dtype)
    return p.training(lambda: layer(p.x.transpose(0, 1))[0].transpose(0, 1), list(layer.parameters()))


@dataclasses.dataclass(frozen=True)
class Provider:
    name: str
    call: Callable[[Problem], Callable[[], object]]
    package: str = "torch"
    install: str = ""
    nets: tuple[str, ...] = tuple(NETS)
    needs_gpu: bool = False

    def unsupported(self, net: Net, device: torch.device) -> str | None:
        """Why it has no time for this net; None where it has one."""
        if net.name not in self.nets:
            return "another function"
        if importlib.util.find_spec(self.package) is None:
            return f"not installed: {self.install}"
        return "runs on a GPU only" if self.needs_gpu and device.type == "cpu" else None


PROVIDERS = (
    Provider("tritonln", tritonln),
    Provider("eager loop", eager),
    Provider("scripted loop", script),
    Provider("compiled loop", compiled),
    Provider("torchaudio", torchaudio, "torchaudio", "pip install torchaudio", ("rnnt",)),
    Provider("haste", haste, "haste_pytorch", "pip install haste-pytorch", ("vowels", "r2d2"), needs_gpu=True),
    Provider("torch.nn", floor),
    Provider("torchrl", torchrl, "torchrl", "pip install torchrl"),
)
NOT_NORMALIZED = ("torch.nn", "torchrl")
