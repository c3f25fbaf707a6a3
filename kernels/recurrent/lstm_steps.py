"""One time step of a layer-normalized LSTM.

    gates = LN(p; w_hh, b_hh) + x     p = W_hh h, x = LN(W_ih x; w_ih) + both biases; or
                                      p = W_hh h + W_ih x and no x, where the sum is normalized
    raw   = sigmoid(f) c + sigmoid(i) tanh(g)          (i, f, g, o) = gates
    n     = LN(raw; w_c, b_c)
    h     = sigmoid(o) tanh(n)    c = raw, or n where CARRY

    p, x, dgates, dp            (T, B, 4H)   forward p may have one slot for all steps
    h, c and their gradients    (T + 1, B, H), the initial state first (last in reverse); c is fp32 (fp64)
    w_hh, b_hh                  (4H,)  w_hh None: gates are not normalized; b_hh None: no bias
    w_c, b_c                    (H,)   None: n = raw; None: no bias
    lengths                     (B,)   row b runs at steps t < lengths[b] and carries its state else; None: always
    starts                      (T + 1, B)  where true, the step that would go on from a slot goes on from `initial`,
                                that of the initial states; None: nowhere
    stats                       (T, G, B, 2)  (mean, rstd) of p's groups of GROUP gates, fp32 (fp64); None: not stored

Program i owns rows i BLOCK_M .. (i + 1) BLOCK_M of the batch.  A tile holds one gate of whole rows;
everything is read once and written once.  `previous` and `current` are the slots of the states, and p_slot that of p.
In device functions parameters are tuples of tiles, empty where they are None.
"""

import triton
import triton.language as tl

from ..row import load_upcast, sum_rows
from .gates import (
    add,
    load_gates,
    load_groups,
    multiply,
    own_tile,
    standardize,
    standardize_bwd,
    standardize_groups,
    standardize_groups_bwd,
    standardized_groups,
    store_gates,
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
def norm_cell(raw, w_c, b_c, in_row, H, eps):
    """n, and raw_hat and rstd where there is a norm."""
    if len(w_c) == 0:
        return raw, raw, raw
    else:
        raw_hat, mean, rstd = standardize((raw,), in_row, H, eps)
        n = add(multiply(raw_hat, w_c), b_c)
        return n[0], raw_hat[0], rstd


@triton.jit
def load_x(ptr, step, gate_row, inside, H):
    """No tiles where ptr is None."""
    if ptr is None:
        return ()
    else:
        return load_gates(ptr + step, gate_row, inside, H, 4)


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
    p, x, c, w_hh, b_hh, w_c, b_c, stats_ptr, row0, t, in_row, B, H, eps, GROUP: tl.constexpr, CARRY: tl.constexpr
):
    """A step forward of rows that run.  Returns (h, c)."""
    gates = p
    if len(w_hh) > 0:
        p_hat, means, rstds = standardize_groups(p, in_row, H, eps, GROUP)
        gates = add(multiply(p_hat, w_hh), b_hh)
        store_groups(stats_ptr, means, rstds, row0, t, B, c.shape[0])
    raw, i, f, g, o = cell(add(gates, x), c)
    n, raw_hat, rstd_c = norm_cell(raw, w_c, b_c, in_row, H, eps)
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
    w_hh,
    b_hh,
    w_c,
    b_c,
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

    dh and dc are the gradients of this step's h and c.  Returns (dgates, dp, dc, dw_c, db_c): dc that of the c
    before, and the terms of the last two in this step; zero in rows that do not run, whose dc passes through.
    """
    gates, p_hat, rstds = p, p, ()
    if len(w_hh) > 0:
        means, rstds = load_groups(stats_ptr, row0, rows, t, B, 4 // GROUP)
        p_hat = where(in_row, standardized_groups(p, means, rstds, GROUP))
        gates = add(multiply(p_hat, w_hh), b_hh)
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
    return dgates, p_hat, rstds, tl.where(runs, d_raw * f, dc), dn * raw_hat, dn


@triton.jit
def through_norm(dgates, p_hat, rstds, w_hh, H, GROUP: tl.constexpr):
    if len(w_hh) == 0:
        return dgates
    else:
        return standardize_groups_bwd(multiply(dgates, w_hh), p_hat, rstds, H, GROUP)


@triton.jit(do_not_specialize=["t", "previous", "current", "initial", "p_slot", "B"])
def lstm_step_fwd(
    x_ptr,
    p_ptr,
    w_hh_ptr,
    b_hh_ptr,
    w_c_ptr,
    b_c_ptr,
    lengths_ptr,
    starts_ptr,
    carried_ptr,
    h_ptr,
    c_ptr,
    stats_ptr,
    multiplied_ptr,
    t: tl.int64,
    previous: tl.int64,
    current: tl.int64,
    initial: tl.int64,
    p_slot: tl.int64,
    B: tl.int64,
    eps: tl.float64,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    CARRY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """
    carried     h of a row that does not run is that of `carried`, or zero where `carried` is None
    multiplied  (B, H)  the h that the next step multiplies with W_hh, where some rows start anew; None: that of h
    """
    row0, rows, cols, in_row, inside = own_tile(B, H, BLOCK_M, BLOCK_H)
    row = rows * H + cols
    gate_row = rows * (4 * H) + cols

    p = load_gates(p_ptr + (p_slot * B + row0) * (4 * H), gate_row, inside, H, 4)
    x = load_x(x_ptr, (t * B + row0) * (4 * H), gate_row, inside, H)
    anew = starting(starts_ptr, previous, row0, rows, B)
    c = load_before(c_ptr, anew, previous, initial, row0, row, inside, B, H)
    w_hh = load_gates(w_hh_ptr, cols, in_row, H, 4)
    w_c, b_c = load_gates(w_c_ptr, cols, in_row, H, 1), load_gates(b_c_ptr, cols, in_row, H, 1)
    b_hh = load_gates(b_hh_ptr, cols, in_row, H, 4)
    h, new_c = advance(p, x, c, w_hh, b_hh, w_c, b_c, stats_ptr, row0, t, in_row, B, H, eps, GROUP, CARRY)
    if lengths_ptr is not None:
        runs = running(lengths_ptr, t, row0, rows, B)
        new_c = tl.where(runs, new_c, c)
        if carried_ptr is not None:
            h = tl.where(runs, h, load_upcast(carried_ptr + (previous * B + row0) * H + row, inside))
        else:
            h = tl.where(runs, h, 0.0)
    tl.store(c_ptr + (current * B + row0) * H + row, new_c, mask=inside)
    tl.store(h_ptr + (current * B + row0) * H + row, h, mask=inside)
    if multiplied_ptr is not None:
        h0 = load_upcast(h_ptr + (initial * B + row0) * H + row, inside)
        begins = starting(starts_ptr, current, row0, rows, B)
        tl.store(multiplied_ptr + row0 * H + row, tl.where(begins[0], h0, h), mask=inside)


@triton.jit(do_not_specialize=["t", "previous", "current", "initial", "B"])
def lstm_step_bwd(
    dy_ptr,
    dh_ptr,
    dcells_ptr,
    x_ptr,
    p_ptr,
    w_hh_ptr,
    b_hh_ptr,
    w_c_ptr,
    b_c_ptr,
    lengths_ptr,
    starts_ptr,
    ends_ptr,
    c_ptr,
    stats_ptr,
    kept_ptr,
    dc_ptr,
    dc0_ptr,
    dgates_ptr,
    dp_ptr,
    dw_c_partial_ptr,
    db_c_partial_ptr,
    t: tl.int64,
    previous: tl.int64,
    current: tl.int64,
    initial: tl.int64,
    B: tl.int64,
    eps: tl.float64,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    CARRY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """
    dh, kept, dc    (B, H)  gradients that come from the step after this in time: of h through W_hh, of
                            h of rows that did not run, and of c; kept and dc are replaced by this step's
    dc0             (B, H)  gradient of the initial c from rows that start anew, added to
    ends            as starts: of the rows whose next step starts anew, dh is no gradient; None: of no row
    dy, dcells      gradients of the results h and c; None: zero
    dgates, dp      (T, B, 4H)  of gates and of p; dp None: gates are not normalized, the two are one
    dw_c, db_c partial  (programs, H)  fp32 (fp64), added to: row i is program i's alone
    """
    row0, rows, cols, in_row, inside = own_tile(B, H, BLOCK_M, BLOCK_H)
    row = rows * H + cols
    own = row0 * H + row
    gate_row = rows * (4 * H) + cols
    step = (t * B + row0) * (4 * H)

    p = load_gates(p_ptr + step, gate_row, inside, H, 4)
    x = load_x(x_ptr, step, gate_row, inside, H)
    anew = starting(starts_ptr, previous, row0, rows, B)
    c = load_before(c_ptr, anew, previous, initial, row0, row, inside, B, H)
    w_hh = load_gates(w_hh_ptr, cols, in_row, H, 4)
    w_c, b_c = load_gates(w_c_ptr, cols, in_row, H, 1), load_gates(b_c_ptr, cols, in_row, H, 1)
    dh = load_upcast(dh_ptr + own, inside)
    if ends_ptr is not None:
        dh = tl.where(starting(ends_ptr, current, row0, rows, B)[0], 0.0, dh)
    if dy_ptr is not None:
        dh += load_upcast(dy_ptr + (current * B + row0) * H + row, inside)
    if kept_ptr is not None:
        dh += load_upcast(kept_ptr + own, inside)
    dc = load_upcast(dc_ptr + own, inside)
    if dcells_ptr is not None:
        dc += load_upcast(dcells_ptr + (current * B + row0) * H + row, inside)
    runs = inside
    if lengths_ptr is not None:
        runs = inside & running(lengths_ptr, t, row0, rows, B)
        if kept_ptr is not None:
            tl.store(kept_ptr + own, tl.where(runs, 0.0, dh), mask=inside)

    b_hh = load_gates(b_hh_ptr, cols, in_row, H, 4)
    dgates, p_hat, rstds, dc, dw_c, db_c = retreat(
        p, x, c, dh, dc, w_hh, b_hh, w_c, b_c, stats_ptr, t, row0, rows, runs, in_row, B, H, eps, GROUP, CARRY
    )
    if len(anew) > 0:
        tl.store(dc0_ptr + own, load_upcast(dc0_ptr + own, inside) + tl.where(anew[0], dc, 0.0), mask=inside)
        dc = tl.where(anew[0], 0.0, dc)
    tl.store(dc_ptr + own, dc, mask=inside)
    store_gates(dgates_ptr + step, gate_row, inside, H, dgates)
    col = tl.arange(0, BLOCK_H)[None, :]
    partial = tl.program_id(0).to(tl.int64) * H + col
    if dw_c_partial_ptr is not None:
        before = tl.load(dw_c_partial_ptr + partial, mask=col < H, other=0.0)
        tl.store(dw_c_partial_ptr + partial, before + sum_rows(dw_c, 1), mask=col < H)
    if db_c_partial_ptr is not None:
        before = tl.load(db_c_partial_ptr + partial, mask=col < H, other=0.0)
        tl.store(db_c_partial_ptr + partial, before + sum_rows(db_c, 1), mask=col < H)
    if dp_ptr is not None:
        if BLOCK_H > 2048:  # read once more: through all of the step there are too few registers
            w_hh, p = load_gates(w_hh_ptr, cols, in_row, H, 4), load_gates(p_ptr + step, gate_row, inside, H, 4)
            means, rstds = load_groups(stats_ptr, row0, rows, t, B, 4 // GROUP)
            p_hat = where(in_row, standardized_groups(p, means, rstds, GROUP))
        store_gates(dp_ptr + step, gate_row, inside, H, through_norm(dgates, p_hat, rstds, w_hh, H, GROUP))
