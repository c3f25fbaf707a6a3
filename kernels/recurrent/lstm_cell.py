"""The arithmetic of one time step of a layer-normalized LSTM, forward and backward.

    gates = LN(p; gain_hh, bias_hh) + x     p = W_hh h, x = LN(W_ih x; w_ih) + both biases; or
                                      p = W_hh h + W_ih x and no x, where the sum is normalized
    raw   = sigmoid(f) c + sigmoid(i) tanh(g)          (i, f, g, o) = gates
    n     = LN(raw; gain_c, bias_c)
    h     = sigmoid(o) tanh(n)    c = raw, or n where CARRY

Arguments are tiles of whole rows, one for each gate, and pointers as in lstm_steps.py; parameters are tuples of tiles,
empty where they are None.
"""

import triton
import triton.language as tl

from ..row import at_columns, load_upcast
from .gates import (
    add,
    load_gates,
    load_groups,
    multiply,
    standardize,
    standardize_bwd,
    standardize_groups,
    standardize_groups_bwd,
    standardized_groups,
    store_groups,
    tanh,
    where,
)


@triton.jit
def cell(gates, c):
    """raw and the activated gates."""
    i, f, g, o = tl.sigmoid(gates[0]), tl.sigmoid(gates[1]), tanh(gates[2]), tl.sigmoid(gates[3])
    return f * c + i * g, i, f, g, o


@triton.jit
def norm_cell(raw, gain_c, bias_c, in_row, H, eps):
    """n, and raw_hat and rstd where there is a norm."""
    if len(gain_c) == 0:
        return raw, raw, raw
    else:
        raw_hat, mean, rstd = standardize((raw,), in_row, H, eps)
        n = add(multiply(raw_hat, gain_c), bias_c)
        return n[0], raw_hat[0], rstd


@triton.jit
def load_x(ptr, step, gate_row, inside, H):
    """No tiles where ptr is None."""
    if ptr is None:
        return ()
    else:
        return load_gates(ptr + step, gate_row, inside, H, 4)


@triton.jit
def load_gates_of(p_hat, x_ptr, gain_hh_ptr, bias_hh_ptr, step, gate_row, cols, inside, in_row, H):
    """p_hat gain_hh + bias_hh + x, a gate at a time: of wide rows all operands at once exceed the registers."""
    gates = ()
    for k in tl.static_range(len(p_hat)):
        gate = p_hat[k] * load_upcast(at_columns(gain_hh_ptr + k * H, cols, H), in_row)
        if bias_hh_ptr is not None:
            gate += load_upcast(at_columns(bias_hh_ptr + k * H, cols, H), in_row)
        if x_ptr is not None:
            gate += load_upcast(x_ptr + step + gate_row + k * H, inside)
        gates = gates + (gate,)
    return gates


@triton.jit
def running(lengths_ptr, t, row0, rows, B):
    return t < tl.load(lengths_ptr + row0 + rows, mask=rows < B - row0, other=0)


@triton.jit
def starting(starts_ptr, slot, row0, rows, B):
    """Nothing where no row ever starts anew."""
    if starts_ptr is None:
        return ()
    else:
        return (tl.load(starts_ptr + (slot * B + row0) + rows, mask=rows < B - row0, other=0) != 0,)


@triton.jit
def load_before(ptr, anew, previous, initial, row0, row, inside, B, H):
    """The state that a step goes on from, of every row."""
    slot = previous
    if len(anew) > 0:
        slot = tl.where(anew[0], initial, previous)
    return load_upcast(ptr + (slot * B + row0) * H + row, inside)


@triton.jit
def advance(
    p,
    x,
    c,
    gain_hh,
    bias_hh,
    gain_c,
    bias_c,
    stats_ptr,
    row0,
    t,
    in_row,
    B,
    H,
    eps,
    GROUP: tl.constexpr,
    CARRY: tl.constexpr,
):
    """A step forward of rows that run.  Returns (h, c)."""
    gates = p
    if len(gain_hh) > 0:
        p_hat, means, rstds = standardize_groups(p, in_row, H, eps, GROUP)
        gates = add(multiply(p_hat, gain_hh), bias_hh)
        store_groups(stats_ptr, means, rstds, row0, t, B, c.shape[0])
    raw, i, f, g, o = cell(add(gates, x), c)
    n, raw_hat, rstd_c = norm_cell(raw, gain_c, bias_c, in_row, H, eps)
    if CARRY:
        return o * tanh(n), n
    else:
        return o * tanh(n), raw


@triton.jit
def retreat(
    p,
    x,
    c,
    dh,
    dc,
    gain_hh,
    bias_hh,
    gain_c,
    bias_c,
    stats_ptr,
    t,
    row0,
    rows,
    runs,
    in_row,
    B,
    H,
    eps,
    GROUP: tl.constexpr,
    CARRY: tl.constexpr,
):
    """A step backward.  The gates are computed again from p and x.

    dh and dc are the gradients of this step's h and c.  Returns (dgates, p_hat, rstds, dc, dgain_c, dbias_c): what
    through_norm makes dp of, dc of the c before, and this step's terms of the last two; zero in rows that do not run,
    whose dc passes through.
    """
    gates, p_hat, rstds = p, p, ()
    if len(gain_hh) > 0:
        means, rstds = load_groups(stats_ptr, row0, rows, t, B, 4 // GROUP)
        p_hat = where(in_row, standardized_groups(p, means, rstds, GROUP))
        gates = add(multiply(p_hat, gain_hh), bias_hh)
    raw, i, f, g, o = cell(add(gates, x), c)
    n, raw_hat, rstd_c = norm_cell(raw, gain_c, bias_c, in_row, H, eps)

    d_raw = tl.where(runs, dc, 0.0)
    dh = tl.where(runs, dh, 0.0)
    tanh_n = tanh(n)
    dn = dh * o * (1.0 - tanh_n * tanh_n)
    if CARRY:
        dn += d_raw
        d_raw = tl.zeros_like(dn)
    if len(gain_c) > 0:
        d_raw_hat = standardize_bwd(multiply((dn,), gain_c), (raw_hat,), rstd_c, H)
        d_raw += tl.where(runs, d_raw_hat[0], 0.0)
    else:
        d_raw += dn

    dgates = (
        d_raw * g * i * (1.0 - i),
        d_raw * c * f * (1.0 - f),
        d_raw * i * (1.0 - g * g),
        dh * tanh_n * o * (1.0 - o),
    )
    return dgates, p_hat, rstds, tl.where(runs, d_raw * f, dc), dn * raw_hat, dn


@triton.jit
def through_norm(dgates, p_hat, rstds, gain_hh, H, GROUP: tl.constexpr):
    if len(gain_hh) == 0:
        return dgates
    else:
        return standardize_groups_bwd(multiply(dgates, gain_hh), p_hat, rstds, H, GROUP)
