"""One time step of a layer-normalized LSTM, whose formula is in lstm_cell.py.

    p, x, dgates, dp            (T, B, 4H)   forward p may have one slot for all steps
    h, c and their gradients    (T + 1, B, H), the initial state first (last in reverse); c is fp32 (fp64)
    gain_hh, bias_hh            (4H,)  gain_hh None: gates are not normalized; bias_hh None: no bias
    gain_c, bias_c              (H,)   None: n = raw; None: no bias
    lengths                     (B,)   row b runs at steps t < lengths[b] and carries its state else; None: always
    starts                      (T + 1, B)  where true, the step that would go on from a slot goes on from `initial`,
                                that of the initial states; None: nowhere
    stats                       (T, G, B, 2)  (mean, rstd) of p's groups of GROUP gates, fp32 (fp64); None: not stored

Program i owns rows i BLOCK_M .. (i + 1) BLOCK_M of the batch.  A tile holds one gate of whole rows;
everything is read once, of rows wider than 2,048 p and gain_hh twice backward, and written once.  `previous` and
`current` are the slots of the states, and p_slot that of p.
"""

import triton
import triton.language as tl

from ..row import load_upcast, sum_rows
from .gates import (
    load_gates,
    load_groups,
    own_tile,
    standardize_groups,
    standardized_groups,
    store_gates,
    store_groups,
    where,
)
from .lstm_cell import advance, load_before, load_gates_of, load_x, retreat, running, starting, through_norm


@triton.jit(do_not_specialize=["t", "previous", "current", "initial", "p_slot", "B"])
def lstm_step_fwd(
    x_ptr,
    p_ptr,
    gain_hh_ptr,
    bias_hh_ptr,
    gain_c_ptr,
    bias_c_ptr,
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
    step = (t * B + row0) * (4 * H)

    p = load_gates(p_ptr + (p_slot * B + row0) * (4 * H), gate_row, inside, H, 4)
    if BLOCK_H > 2048 and gain_hh_ptr is not None:
        p_hat, means, rstds = standardize_groups(p, in_row, H, eps, GROUP)
        store_groups(stats_ptr, means, rstds, row0, t, B, BLOCK_M)
        p = load_gates_of(p_hat, x_ptr, gain_hh_ptr, bias_hh_ptr, step, gate_row, cols, inside, in_row, H)
        x, gain_hh, bias_hh = (), (), ()
    else:
        x = load_x(x_ptr, step, gate_row, inside, H)
        gain_hh, bias_hh = load_gates(gain_hh_ptr, cols, in_row, H, 4), load_gates(bias_hh_ptr, cols, in_row, H, 4)
    anew = starting(starts_ptr, previous, row0, rows, B)
    c = load_before(c_ptr, anew, previous, initial, row0, row, inside, B, H)
    gain_c, bias_c = load_gates(gain_c_ptr, cols, in_row, H, 1), load_gates(bias_c_ptr, cols, in_row, H, 1)
    h, new_c = advance(p, x, c, gain_hh, bias_hh, gain_c, bias_c, stats_ptr, row0, t, in_row, B, H, eps, GROUP, CARRY)
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
    gain_hh_ptr,
    bias_hh_ptr,
    gain_c_ptr,
    bias_c_ptr,
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
    dgain_c_partial_ptr,
    dbias_c_partial_ptr,
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
    dgain_c, dbias_c partial  (programs, H)  fp32 (fp64), added to: row i is program i's alone
    """
    row0, rows, cols, in_row, inside = own_tile(B, H, BLOCK_M, BLOCK_H)
    row = rows * H + cols
    own = row0 * H + row
    gate_row = rows * (4 * H) + cols
    step = (t * B + row0) * (4 * H)

    p = load_gates(p_ptr + step, gate_row, inside, H, 4)
    if BLOCK_H > 2048 and gain_hh_ptr is not None:
        means, rstds = load_groups(stats_ptr, row0, rows, t, B, 4 // GROUP)
        p_hat = where(in_row, standardized_groups(p, means, rstds, GROUP))
        p = load_gates_of(p_hat, x_ptr, gain_hh_ptr, bias_hh_ptr, step, gate_row, cols, inside, in_row, H)
        x, gain_hh, bias_hh = (), (), ()
    else:
        x = load_x(x_ptr, step, gate_row, inside, H)
        gain_hh, bias_hh = load_gates(gain_hh_ptr, cols, in_row, H, 4), load_gates(bias_hh_ptr, cols, in_row, H, 4)
    anew = starting(starts_ptr, previous, row0, rows, B)
    c = load_before(c_ptr, anew, previous, initial, row0, row, inside, B, H)
    gain_c, bias_c = load_gates(gain_c_ptr, cols, in_row, H, 1), load_gates(bias_c_ptr, cols, in_row, H, 1)
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

    dgates, p_hat, rstds, dc, dgain_c, dbias_c = retreat(
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
        GROUP,
        CARRY,
    )
    if len(anew) > 0:
        tl.store(dc0_ptr + own, load_upcast(dc0_ptr + own, inside) + tl.where(anew[0], dc, 0.0), mask=inside)
        dc = tl.where(anew[0], 0.0, dc)
    tl.store(dc_ptr + own, dc, mask=inside)
    store_gates(dgates_ptr + step, gate_row, inside, H, dgates)
    col = tl.arange(0, BLOCK_H)[None, :]
    partial = tl.program_id(0).to(tl.int64) * H + col
    if dgain_c_partial_ptr is not None:
        before = tl.load(dgain_c_partial_ptr + partial, mask=col < H, other=0.0)
        tl.store(dgain_c_partial_ptr + partial, before + sum_rows(dgain_c, 1), mask=col < H)
    if dbias_c_partial_ptr is not None:
        before = tl.load(dbias_c_partial_ptr + partial, mask=col < H, other=0.0)
        tl.store(dbias_c_partial_ptr + partial, before + sum_rows(dbias_c, 1), mask=col < H)
    if dp_ptr is not None:
        if BLOCK_H > 2048:  # read once more: through all of the step there are too few registers
            gain_hh, p = load_gates(gain_hh_ptr, cols, in_row, H, 4), load_gates(p_ptr + step, gate_row, inside, H, 4)
            means, rstds = load_groups(stats_ptr, row0, rows, t, B, 4 // GROUP)
            p_hat = where(in_row, standardized_groups(p, means, rstds, GROUP))
        store_gates(dp_ptr + step, gate_row, inside, H, through_norm(dgates, p_hat, rstds, gain_hh, H, GROUP))
