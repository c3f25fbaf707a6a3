"""layer_norm: the public function, and what it is as a row operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from tritonln.device import kernels_on
from tritonln.ops import layer_norm_aten, row_autograd, row_op
from tritonln.ops.contract import check, output_dtype, shifted, traced, transformed
from tritonln.ops.known import described, known
from tritonln.ops.of_y import keeping, of_y, restored
from tritonln.ops.operands import COLUMNS, Operand
from tritonln.ops.overridden import jagged_in_graph, overridden
from tritonln.ops.row_declaration import Parts
from tritonln.ops.rows import RowOperator, Settings
from tritonln.ops.subclasses import knows_only_aten


def _parts() -> Parts:
    from tritonln.kernels.layer_norm import affine, affine_bwd

    return Parts(affine, affine_bwd)


LAYER_NORM = RowOperator(
    "layer_norm",
    _parts,
    finishing={"weight": Operand(COLUMNS, 1.0), "bias": Operand(COLUMNS, -0.0, reread=False)},
    formula=lambda x_hat, weight, bias: x_hat * weight + bias,
    aten=layer_norm_aten,
)
row_op.define(LAYER_NORM)


def _parts_of_y() -> Parts:
    from tritonln.kernels.layer_norm import affine_restore

    return _parts()._replace(restore=affine_restore)


LAYER_NORM_OF_Y = of_y(LAYER_NORM, _parts_of_y, restored)


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
    save: str = "x",
) -> Tensor:
    r"""Layer normalization over the trailing dimensions, as :func:`torch.nn.functional.layer_norm`.

    .. math:: y = \frac{x - \mathrm E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \, w + b

    with the mean and the biased variance of each row, a row being the ``N`` values of the trailing
    dimensions ``normalized_shape``.

    Args:
        input: x, ``(*, *normalized_shape)``; fp32, fp16, bf16 or fp64.  Rows may be strided; values that
            are not contiguous within a row are copied once.
        normalized_shape: the trailing dimensions, an int for one.
        weight, bias: of shape ``normalized_shape``, each optional; in ``x``'s dtype, or in fp32 for
            a 16-bit ``x``.
        eps: added to the variance.
        weight_offset: added to the weight, for weights that are stored around zero (Gemma's: 1).  torch adds it, in
            the precision of the arithmetic, so it costs a launch on N values; an absent weight stays a factor of 1.
        save: what is kept for backward beside the parameters.  ``"x"``: the input.  ``"y"``: the result instead, so
            that x is free where nobody else keeps it; where what follows keeps y anyway, as a linear layer does, y
            costs nothing.  See below for what it takes.

    Returns:
        A contiguous tensor of ``x``'s shape and dtype (fp32 under autocast wherever
        ``F.layer_norm`` gives fp32).  Statistics, products and the sums of the gradients are fp32,
        and fp64 for fp64 ``x``; each gradient has the dtype of its input.  Saved for backward: the
        arguments, or y in the place of ``x``, and 8 bytes a row (16 for fp64); nothing where no gradient is asked for.
        Where the variance overflows (deviations past 1e19 in fp32), y is 0.

    A row's result and its ``x`` gradient do not depend on the other rows, and the same inputs give
    the same bits on every run.  Derivatives are right to any order, in reverse and forward mode and under
    torch.func's transforms.  The first gradient runs kernels, under ``vmap``, ``grad``, ``vjp`` and ``jacrev`` too,
    where a batched dimension is only more rows; all else runs in elementary operations of torch: forward mode, higher
    derivatives, parameters that are batched and the gradients by sample of those that are not.  (The third derivative
    of ``F.layer_norm`` itself is wrong in torch 2.13.)  ``torch.jit.trace`` and ``torch.jit.script`` get ATen's
    operator.

    With ``save="y"`` backward restores x_hat = (y - b) / w, which is as right as y is rounded: to half a unit in the
    last place of \|x_hat\| + \|b\| / \|w\|.  Therefore x is kept after all, whatever ``save`` says, where some
    \|w\| is under 2^-17 or some \|b\| over 8 \|w\|: a step of training whose weight comes near zero takes more
    memory, and its gradients are right.  Weights and biases are looked at for that, those of all such norms together:
    a few launches on their values and one synchronization, at the first such norm after a backward pass, or after one
    of them has changed.  Where nobody can look x is kept too: in compiled, exported and traced code (whose partitioner
    decides what is kept), in the capture of a CUDA graph, under torch.func and forward mode, and of tensor subclasses
    such as DTensors.  Writing over y before backward raises autograd's error.  Values that were written past autograd
    (``weight.data``) between a look and backward give NaN where they are out of these bounds, no wrong number.  Higher
    derivatives run through a gradient of y, which 16-bit dtypes round.

    Raises:
        ValueError: for another ``save``.
        RuntimeError, TypeError, NotImplementedError: as ``F.layer_norm`` for shapes and dtypes that
            do not fit; RuntimeError for arguments on different devices, on a device that neither
            Triton nor the CPU serves, and for forward mode through a graph that was captured without it.

    Source: Ba, Kiros and Hinton, Layer Normalization (2016, arXiv 1607.06450), equations 3 and 4.
    """
    x, shape = input, (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
    keeps = None if save == "x" else keeping(save, LAYER_NORM_OF_Y, (x, weight, bias), weight_offset)
    description = None if weight_offset else described(LAYER_NORM, (x, weight, bias), shape, eps, weight_offset, keeps)
    if (forward := known(description)) is not None:
        return row_autograd.again(forward, (x, weight, bias))[0]
    if has_torch_function_variadic(input, weight, bias) or jagged_in_graph(input):
        return overridden(
            layer_norm,
            (input, weight, bias),
            input,
            normalized_shape,
            weight=weight,
            bias=bias,
            eps=eps,
            weight_offset=weight_offset,
            save=save,
        )
    if transformed():
        return _transformed(x, shape, weight, bias, eps, weight_offset)
    N, eps = check(F.layer_norm, x, shape, (weight, bias), eps, mixing=False)
    weight = shifted(weight, weight_offset, x.dtype)
    tensors, s = (x, weight, bias), Settings(N, eps, output_dtype(x.dtype, x.device.type))
    if traced(*tensors):
        if row_autograd.left_to_inductor(x) or knows_only_aten("layer_norm", *tensors):
            return layer_norm_aten.operator(x, shape, weight, bias, eps)
        return row_op.by_op(LAYER_NORM, tensors, s)[0]
    return row_autograd.directly(LAYER_NORM, tensors, s, kernels_on(x.device), description, keeps)[0]


def _transformed(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float, offset: float
) -> Tensor:
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        weight = shifted(weight, offset, x.dtype)
        return layer_norm_aten.operator(x, shape, weight, bias, eps)  # what TorchScript knows
    N, eps = check(F.layer_norm, x, shape, (weight, bias), eps, mixing=False)
    weight = shifted(weight, offset, x.dtype)
    s = Settings(N, eps, output_dtype(x.dtype, x.device.type))
    return row_autograd.looked_into(LAYER_NORM, (x, weight, bias), s)[0]
