"""One time step of a layer-normalized LSTM.

    gates = LN(p; w_hh) + x       p = W_hh h, x = LN(W_ih x; w_ih) + both biases
    raw   = sigmoid(f) c + sigmoid(i) tanh(g)          (i, f, g, o) = gates
    n     = LN(raw; w_c, b_c)
    h     = sigmoid(o) tanh(n)    c = raw, or n where CARRY

    p, x, dgates, dp            (T, B, 4H)   forward p may have one slot for all steps
    h, c and their gradients    (T + 1, B, H), the initial state first (last in reverse); c is fp32 (fp64)
    w_hh                        (4H,)  None: gates are not normalized
    w_c, b_c                    (H,)   None: n = raw; None: no bias
    lengths                     (B,)   row b runs at steps t < lengths[b] and carries its state else; None: always
    stats                       (T, B, 2)  (mean, rstd) of p, fp32 (fp64); None: not stored

Program i owns rows i BLOCK_M .. (i + 1) BLOCK_M of the batch.  A tile holds one gate of whole rows;
everything is read once and written once.  `previous` and `current` are the slots of the states, and p_slot that of p.
In device functions parameters are tuples of tiles, empty where they are None.
"""

import triton
import triton.language as tl

from ..row import load_stats, load_upcast, store_stats, sum_rows
from .gates import (
    add,
    load_gates,
    multiply,
    own_tile,
    standardize,
    standardize_bwd,
    standardized,
    store_gates,
    tanh,
    where,
)


@triton.jit
def cell(gates, c):
    """raw and the activated gates."""
    i, f, g, o = tl.sigmoid(gates[0]), tl.sigmoid(gates[1]), tanh(gates[2]), tl.sigmoid(gates[3])
    return f * c + i * g, i, f, g, o


@triton.jit
def norm_cell(raw, w_c, b_c, in_row, H, eps):
    """n, and raw_hat and rstd where there is a norm."""
    if len(w_c) == 0:
        return raw, raw, raw
    else:
        raw_hat, mean, rstd = standardize((raw,), in_row, H, eps)
        n = multiply(raw_hat, w_c)
        if len(b_c) > 0:
            n = add(n, b_c)
        return n[0], raw_hat[0], rstd


@triton.jit
def running(lengths_ptr, t, rows, B):
    return t < tl.load(lengths_ptr + rows, mask=rows < B, other=0)


@triton.jit
def advance(p, x, c, w_hh, w_c, b_c, stats_ptr, row0, t, in_row, B, H, eps, CARRY: tl.constexpr):
    """A step forward of rows that run.  Returns (h, c)."""
    gates = p
    if len(w_hh) > 0:
        p_hat, mean, rstd = standardize(p, in_row, H, eps)
        gates = multiply(p_hat, w_hh)
        if stats_ptr is not None:
            store_stats(stats_ptr + t * B * 2, row0, tl.arange(0, p[0].shape[0])[:, None], (mean, rstd), B)
    raw, i, f, g, o = cell(add(gates, x), c)
    n, raw_hat, rstd_c = norm_cell(raw, w_c, b_c, in_row, H, eps)
    if CARRY:
        return o * tanh(n), n
    else:
        return o * tanh(n), raw


@triton.jit
def retreat(p, x, c, dh, dc, w_hh, w_c, b_c, stats_ptr, t, rows, runs, in_row, B, H, eps, CARRY: tl.constexpr):
    """A step backward.  The gates are computed again from p and x.

    dh and dc are the gradients of this step's h and c.  Returns (dgates, dp, dc, dw_c, db_c): dc that of the c
    before, and the terms of the last two in this step; zero in rows that do not run, whose dc passes through.
    """
    gates, p_hat, rstd = p, p, p[0]
    if len(w_hh) > 0:
        mean, rstd = load_stats(stats_ptr, t * B, rows, rows < B, True)
        p_hat = where(in_row, standardized(p, mean, rstd))
        gates = multiply(p_hat, w_hh)
    raw, i, f, g, o = cell(add(gates, x), c)
    n, raw_hat, rstd_c = norm_cell(raw, w_c, b_c, in_row, H, eps)

    d_raw = tl.where(runs, dc, 0.0)
    dh = tl.where(runs, dh, 0.0)
    tanh_n = tanh(n)
    dn = dh * o * (1.0 - tanh_n * tanh_n)
    if CARRY:
        dn += d_raw
        d_raw = tl.zeros_like(dn)
    if len(w_c) > 0:
        d_raw_hat = standardize_bwd(multiply((dn,), w_c), (raw_hat,), rstd_c, H)
        d_raw += tl.where(runs, d_raw_hat[0], 0.0)
    else:
        d_raw += dn

    dgates = (
        d_raw * g * i * (1.0 - i),
        d_raw * c * f * (1.0 - f),
        d_raw * i * (1.0 - g * g),
        dh * tanh_n * o * (1.0 - o),
    )
    return dgates, p_hat, rstd, tl.where(runs, d_raw * f, dc), dn * raw_hat, dn


@triton.jit
def through_norm(dgates, p_hat, rstd, w_hh, H):
    if len(w_hh) == 0:
        return dgates
    else:
        return standardize_bwd(multiply(dgates, w_hh), p_hat, rstd, H)


@triton.jit(do_not_specialize=["t", "previous", "current", "p_slot", "B"])
def lstm_step_fwd(
    x_ptr,
    p_ptr,
    w_hh_ptr,
    w_c_ptr,
    b_c_ptr,
    lengths_ptr,
    carried_ptr,
    h_ptr,
    c_ptr,
    stats_ptr,
    t: tl.int64,
    previous: tl.int64,
    current: tl.int64,
    p_slot: tl.int64,
    B: tl.int64,
    eps: tl.float64,
    H: tl.constexpr,
    CARRY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """h of a row that does not run is that of `carried`, or zero where `carried` is None."""
    row0, rows, cols, in_row, inside = own_tile(B, H, BLOCK_M, BLOCK_H)
    row = rows * H + cols
    gate_row = rows * (4 * H) + cols

    p = load_gates(p_ptr + p_slot * B * 4 * H, gate_row, inside, H, 4)
    x = load_gates(x_ptr + t * B * 4 * H, gate_row, inside, H, 4)
    c = load_upcast(c_ptr + previous * B * H + row, inside)
    w_hh = load_gates(w_hh_ptr, cols, in_row, H, 4)
    w_c, b_c = load_gates(w_c_ptr, cols, in_row, H, 1), load_gates(b_c_ptr, cols, in_row, H, 1)
    h, new_c = advance(p, x, c, w_hh, w_c, b_c, stats_ptr, row0, t, in_row, B, H, eps, CARRY)
    if lengths_ptr is not None:
        runs = running(lengths_ptr, t, rows, B)
        new_c = tl.where(runs, new_c, c)
        if carried_ptr is not None:
            h = tl.where(runs, h, load_upcast(carried_ptr + previous * B * H + row, inside))
        else:
            h = tl.where(runs, h, 0.0)
    tl.store(c_ptr + current * B * H + row, new_c, mask=inside)
    tl.store(h_ptr + current * B * H + row, h, mask=inside)


@triton.jit(do_not_specialize=["t", "previous", "current", "B"])
def lstm_step_bwd(
    dy_ptr,
    dh_ptr,
    dcells_ptr,
    x_ptr,
    p_ptr,
    w_hh_ptr,
    w_c_ptr,
    b_c_ptr,
    lengths_ptr,
    c_ptr,
    stats_ptr,
    kept_ptr,
    dc_ptr,
    dgates_ptr,
    dp_ptr,
    dw_c_partial_ptr,
    db_c_partial_ptr,
    t: tl.int64,
    previous: tl.int64,
    current: tl.int64,
    B: tl.int64,
    eps: tl.float64,
    H: tl.constexpr,
    CARRY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """
    dh, kept, dc    (B, H)  gradients that come from the step after this in time: of h through W_hh, of
                            h of rows that did not run, and of c; kept and dc are replaced by this step's
    dy, dcells      gradients of the results h and c; None: zero
    dgates, dp      (T, B, 4H)  of gates and of p; dp None: gates are not normalized, the two are one
    dw_c, db_c partial  (programs, H)  fp32 (fp64), added to: row i is program i's alone
    """
    row0, rows, cols, in_row, inside = own_tile(B, H, BLOCK_M, BLOCK_H)
    row = rows * H + cols
    gate_row = rows * (4 * H) + cols
    step = t * B * 4 * H

    p = load_gates(p_ptr + step, gate_row, inside, H, 4)
    x = load_gates(x_ptr + step, gate_row, inside, H, 4)
    c = load_upcast(c_ptr + previous * B * H + row, inside)
    w_hh = load_gates(w_hh_ptr, cols, in_row, H, 4)
    w_c, b_c = load_gates(w_c_ptr, cols, in_row, H, 1), load_gates(b_c_ptr, cols, in_row, H, 1)
    dh = load_upcast(dh_ptr + row, inside)
    if dy_ptr is not None:
        dh += load_upcast(dy_ptr + current * B * H + row, inside)
    if kept_ptr is not None:
        dh += load_upcast(kept_ptr + row, inside)
    dc = load_upcast(dc_ptr + row, inside)
    if dcells_ptr is not None:
        dc += load_upcast(dcells_ptr + current * B * H + row, inside)
    runs = inside
    if lengths_ptr is not None:
        runs = inside & running(lengths_ptr, t, rows, B)
        if kept_ptr is not None:
            tl.store(kept_ptr + row, tl.where(runs, 0.0, dh), mask=inside)

    dgates, p_hat, rstd, dc, dw_c, db_c = retreat(
        p, x, c, dh, dc, w_hh, w_c, b_c, stats_ptr, t, rows, runs, in_row, B, H, eps, CARRY
    )
    tl.store(dc_ptr + row, dc, mask=inside)
    store_gates(dgates_ptr + step, gate_row, inside, H, dgates)
    if dp_ptr is not None:
        store_gates(dp_ptr + step, gate_row, inside, H, through_norm(dgates, p_hat, rstd, w_hh, H))
    col = tl.arange(0, BLOCK_H)[None, :]
    partial = tl.program_id(0).to(tl.int64) * H + col
    if dw_c_partial_ptr is not None:
        before = tl.load(dw_c_partial_ptr + partial, mask=col < H, other=0.0)
        tl.store(dw_c_partial_ptr + partial, before + sum_rows(dw_c, 1), mask=col < H)
    if db_c_partial_ptr is not None:
        before = tl.load(db_c_partial_ptr + partial, mask=col < H, other=0.0)
        tl.store(db_c_partial_ptr + partial, before + sum_rows(db_c, 1), mask=col < H)
