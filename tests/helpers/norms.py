"""Norms as other people write them."""

import torch
from torch import Tensor
from torch.nn import Module, Parameter


class Norm(Module):
    """What the others have in common: a weight, an eps, x_hat in fp32."""

    def __init__(self, size: int, eps: float = 1e-2) -> None:
        super().__init__()
        self.weight = Parameter(torch.linspace(-1, 2, size))
        self.eps = eps

    def x_hat(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class RoundsFirst(Norm):
    """Llama's: x_hat is rounded, the dtype of weight and x together decides the result's."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.weight * self.x_hat(hidden_states).to(hidden_states.dtype)


class AroundZero(Norm):
    """Gemma's: the weight is stored around zero."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.x_hat(x) * (1 + self.weight.float())).type_as(x)


class Centred(Norm):
    """Cohere's and DeBERTa's: the mean is taken off too; of no class of torch's."""

    def __init__(self, size: int, eps: float = 1e-2, bias: bool = True) -> None:
        super().__init__(size, eps)
        self.variance_epsilon = vars(self).pop("eps")
        self.bias = Parameter(torch.linspace(1, -1, size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        centred = x.float() - x.float().mean(-1, keepdim=True)
        x_hat = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.variance_epsilon)
        y = x_hat * self.weight.float() + (0 if self.bias is None else self.bias.float())
        return y.to(x.dtype)


class OwnForward(torch.nn.LayerNorm):
    """timm's: torch's LayerNorm with the same forward once more."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class OffsetLayerNorm(torch.nn.LayerNorm):
    """Nemotron's: a LayerNorm whose weight is stored around zero."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(input, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class Inherited(torch.nn.LayerNorm):
    """A name and no more."""


class Channels(torch.nn.LayerNorm):
    """ConvNeXt's: of images with their channels first."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.nn.functional.layer_norm(x.movedim(1, -1), self.normalized_shape, self.weight, self.bias, self.eps)
        return y.movedim(-1, 1)


class GatedNorm(Norm):
    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        y = self.weight * self.x_hat(x).to(x.dtype)
        return y if gate is None else y * torch.nn.functional.silu(gate)


class EpsOutside(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.square().mean(-1, keepdim=True).sqrt() + self.eps)


class Detached(Norm):
    """The right values, gradients without the statistics' part."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.detach().square().mean(-1, keepdim=True) + self.eps)


class WhenTraining(Norm):
    def forward(self, x: Tensor) -> Tensor:
        y = self.weight * self.x_hat(x).to(x.dtype)
        return y * 0.5 if self.training else y


class StaysWide(Norm):
    """fp32 whatever x is."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.float() * self.x_hat(x)


class UnitNorm(Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True)
