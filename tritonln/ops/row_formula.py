"""A row operator in elementary operations of torch, as the paper writes it.

What derivatives of derivatives, torch.func's transforms and forward mode run on: each of these operations is right to
any order and under any transform.  ATen's fused operators are not: the third derivative of F.layer_norm is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tritonln.ops.contract import arithmetic
from tritonln.ops.noise import noise
from tritonln.ops.operands import BATCHES, COLUMNS, GROUPS, NOISE, ROWS, Operand, Tensors
from tritonln.ops.rows import BackwardCall, RowOperator, Settings
from tritonln.ops.sizes import holds

Values = list[Tensor | float]
# (function, tensors, which of them have a gradient, the result's gradient) -> gradients
Pull = Callable[[Callable[..., Tensor], Tensors, Sequence[bool], Tensor], list[Tensor | None]]


def rows(t: Tensor, N: int) -> Tensor:
    return t.reshape(t.numel() // N if N else 0, N)


def normalized(x: Tensor, eps: float, centred: bool | None) -> tuple[Tensor, Tensor]:
    """x_hat of the rows of x, and their statistics."""
    if centred is None:
        return x, x[:, :0]
    mean = None
    if centred:
        mean = x.mean(1, keepdim=True)
        x = x - mean
        left = x.mean(1, keepdim=True)  # by the rounding of a large mean
        x, mean = x - left, mean + left
    rstd = (x.square().mean(1, keepdim=True) + eps).rsqrt()
    return x * rstd, rstd if mean is None else torch.cat([mean, rstd], 1)


def values(operands: Mapping[str, Operand], tensors: Sequence[Tensor | None], M: int, s: Settings) -> Values:
    """What a part is given, on rows (M, N), in the dtype of the arithmetic."""
    wide = arithmetic(s.dtype)
    found: Values = []
    for t, operand in zip(tensors, operands.values()):
        if t is None:
            assert operand.absent is not None
            found.append(operand.absent)
        elif operand.kind == ROWS:
            found.append(rows(t, s.N).to(wide))
        elif operand.kind == COLUMNS:
            found.append(t.reshape(s.N).to(wide))
        elif operand.kind == NOISE:
            found.append(noise(t, M, s.N, s.p).to(wide))
        elif operand.kind == GROUPS:
            G = t.shape[0]
            found.append(t.to(wide).expand(0 if holds(G == 0) else M // G, G, s.N).reshape(M, s.N))
        else:
            B = t.shape[0]
            wider = t.to(wide).reshape(B, 1, s.N if operand.kind == BATCHES else 1)
            found.append(wider.expand(B, 0 if holds(B == 0) else M // B, wider.shape[2]).reshape(M, wider.shape[2]))
    return found


def entered(operator: RowOperator, tensors: Tensors, s: Settings) -> Tensor:
    """x as rows, in the dtype of the arithmetic."""
    first = tensors[0]
    assert first is not None
    M = first.numel() // s.N if s.N else 0
    found = values(operator.entering, tensors[: len(operator.entering)], M, s)
    x = found[0] if operator.enter_formula is None else operator.enter_formula(*found)
    assert isinstance(x, Tensor)
    return x


def statistics(operator: RowOperator, x: Tensor, s: Settings) -> Tensor:
    """Of the rows of entered x."""
    return normalized(x.to(arithmetic(s.dtype)), s.eps, operator.centred)[1]


def no_statistics(y: Tensor, s: Settings) -> Tensor:
    """Of the rows of y, which are not normalized."""
    return y.new_empty((y.numel() // s.N if s.N else 0, 0), dtype=arithmetic(s.dtype))


def finished(operator: RowOperator, x: Tensor, finishing: Sequence[Tensor | None], s: Settings) -> Tensor:
    """y of entered x, as rows."""
    x_hat, _ = normalized(x.to(arithmetic(s.dtype)), s.eps, operator.centred)
    return _formula(operator)(x_hat, *values(operator.finishing, finishing, x.shape[0], s)).to(s.dtype)


def finish(operator: RowOperator, x_hat: Tensor, finishing: Sequence[Tensor | None], s: Settings) -> Tensor:
    """y of x_hat, which has its shape."""
    of_rows = rows(x_hat, s.N)
    y = _formula(operator)(of_rows, *values(operator.finishing, finishing, of_rows.shape[0], s))
    return y.to(s.dtype).reshape(x_hat.shape)


def _formula(operator: RowOperator) -> Callable[..., Tensor]:
    if operator.formula is None:
        raise RuntimeError(
            f"{operator.name} has no formula in torch: expected one for tensors that no kernel serves, transforms of "
            "torch.func, forward mode and second derivatives (the argument formula of row_operator)"
        )
    return operator.formula


def forward(operator: RowOperator, tensors: Tensors, s: Settings) -> tuple[Tensor, Tensor | None]:
    """(y, x), x where it is a result."""
    _formula(operator)  # is missed before anything is computed
    first = tensors[0]
    assert first is not None
    x = entered(operator, tensors, s)
    out = None if s.x_dtype is None else x.to(s.x_dtype)
    if out is not None and out.dtype != x.dtype:
        x = x + (out.to(x.dtype) - x).detach()  # as it is rounded; its gradient is not
    y = finished(operator, x, tensors[len(operator.entering) :], s).reshape(first.shape)
    return y, None if out is None else out.reshape(first.shape)


def backward(operator: RowOperator, call: BackwardCall, pull: Pull | None = None) -> list[Tensor | None]:
    """The gradients of the operands, each None unless needed; in grad mode with a graph of their own.

    Where x was a result, what is `entered` stands for itself, and operands that are not kept, in which enter is
    linear, may be of any values.
    """
    dy, dx, x, tensors, _, _, s, needs = call
    pull = by_autograd if pull is None else pull
    if x is None:
        return pull(lambda *t: forward(operator, t, s)[0], tensors, needs, dy)
    E, wide, M = len(operator.entering), arithmetic(s.dtype), x.numel() // s.N if s.N else 0

    def finish(source: Tensor, *finishing: Tensor | None) -> Tensor:
        return finished(operator, rows(source, s.N), finishing, s).reshape(dy.shape)

    def enter(*entering: Tensor | None) -> Tensor:
        return operator.enter_formula(*values(operator.entering, entering, M, s))  # type: ignore[misc]

    # x is widened first, so that nothing rounds its gradient.
    through, *rest = pull(finish, (x.to(wide), *tensors[E:]), (True, *needs[E:]), dy)
    assert through is not None
    total = through if dx is None else through + dx.to(wide)
    return [*pull(enter, tensors[:E], needs[:E], rows(total, s.N)), *rest]


def by_autograd(
    function: Callable[..., Tensor], tensors: Tensors, needs: Sequence[bool], dy: Tensor
) -> list[Tensor | None]:
    """The gradients of what is needed, from that of function(*tensors)."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        places = [_place(t) if needed and t is not None else t for t, needed in zip(tensors, needs)]
        asked = [t for t, needed in zip(places, needs) if needed and t is not None]
        found = iter(torch.autograd.grad([function(*places)], asked, [dy], create_graph=graph) if asked else ())
    return [next(found) if needed and t is not None else None for t, needed in zip(places, needs)]


def by_vjp(function: Callable[..., Tensor], tensors: Tensors, needs: Sequence[bool], dy: Tensor) -> list[Tensor | None]:
    """The same under torch.func's transforms, which know torch.autograd.grad not."""
    asked = [t for t, needed in zip(tensors, needs) if needed and t is not None]

    def of_asked(*changed: Tensor) -> Tensor:
        each = iter(changed)
        return function(*[next(each) if needed and t is not None else t for t, needed in zip(tensors, needs)])

    found = iter(torch.func.vjp(of_asked, *asked)[1](dy) if asked else ())
    return [next(found) if needed and t is not None else None for t, needed in zip(tensors, needs)]


def _place(t: Tensor) -> Tensor:
    """A tensor that stands in two places has a gradient in each; inside the custom op it may not require one."""
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
