"""All time steps of a layer-normalized LSTM in one launch, with W_hh on the chip.

    A step is that of lstm_cell.py, with p = W_hh h computed here; where SUM, p = W_hh h + x.

    matrix_hh               (4H, H)  W_hh, in x's dtype
    x, p, dgates, dp        (T, B, 4H)   p None: not stored; dp None: gates are not normalized, dgates is dp
    h, c                    (T + 1, B, H)  the initial state first (last in reverse); c is fp32
    dy, dcells              (T + 1, B, H)  gradients of h and c; None: zero
    dh, dc                  (B, H)  gradients of the initial state, dh without that of W_hh in rows that start anew
    dgain_c, dbias_c partial  (programs, H)  fp32, row i written by program i
    all others              as in lstm_steps.py

The T steps start at `first` and `walk` 1 or -1; the state before step t is in slot t + before, the one after it
in t + 1 - before.  Program i owns rows i BLOCK_M .. (i + 1) BLOCK_M of the batch through all steps.  It reads
W_hh once and keeps it; h and c, backward their gradients and the sums of dgain_c and dbias_c, stay in registers.
What a step has of its own is read once, STAGES - 1 steps ahead, and written once.

Source: Diamos et al., Persistent RNNs: Stashing Recurrent Weights On-Chip (ICML 2016).
"""

import triton
import triton.language as tl

from ..row import load_upcast, sum_pieces
from .gates import load_gates, own_tile, store_gates
from .lstm_cell import advance, load_before, load_x, retreat, running, starting, through_norm
from .matrix import load_blocks, products, sum_of_products


@triton.jit(do_not_specialize=["T", "B", "first", "walk", "before"])
def lstm_persistent_fwd(
    x_ptr,
    matrix_hh_ptr,
    gain_hh_ptr,
    bias_hh_ptr,
    gain_c_ptr,
    bias_c_ptr,
    lengths_ptr,
    starts_ptr,
    h_ptr,
    c_ptr,
    p_ptr,
    stats_ptr,
    T: tl.int64,
    B: tl.int64,
    first: tl.int64,
    walk: tl.int64,
    before: tl.int64,
    eps: tl.float64,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    SUM: tl.constexpr,
    CARRY: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    row0, rows, cols, in_row, inside = own_tile(B, H, BLOCK_M, BLOCK_H)
    col = tl.arange(0, BLOCK_H)[None, :]
    row = rows * H + cols
    gate_row = rows * (4 * H) + cols

    blocks = load_blocks(matrix_hh_ptr, 1, H, H, 4, BLOCK_H)
    gain_hh, bias_hh = load_gates(gain_hh_ptr, col, col < H, H, 4), load_gates(bias_hh_ptr, col, col < H, H, 4)
    gain_c, bias_c = load_gates(gain_c_ptr, col, col < H, H, 1), load_gates(bias_c_ptr, col, col < H, H, 1)
    length = T
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + row0 + rows, mask=rows < B - row0, other=0)
    initial = ((first + before) * B + row0) * H + row
    h = tl.load(h_ptr + initial, mask=inside, other=0.0)
    c = load_upcast(c_ptr + initial, inside)
    for step in tl.range(0, T, num_stages=STAGES):
        t = first + step * walk
        gates = (t * B + row0) * (4 * H)
        current = ((t + 1 - before) * B + row0) * H + row
        x = load_x(x_ptr, gates, gate_row, inside, H)
        anew = starting(starts_ptr, t + before, row0, rows, B)
        if len(anew) > 0:
            h = tl.where(anew[0], tl.load(h_ptr + initial, mask=inside, other=0.0), h)
            c = tl.where(anew[0], load_upcast(c_ptr + initial, inside), c)
        if SUM:
            p = products(h, blocks, x, PRECISION)
            x = ()
        else:
            p = products(h, blocks, (), PRECISION)
        if p_ptr is not None:
            store_gates(p_ptr + gates, gate_row, inside, H, p)
        new_h, new_c = advance(
            p, x, c, gain_hh, bias_hh, gain_c, bias_c, stats_ptr, row0, t, in_row, B, H, eps, GROUP, CARRY
        )
        h = tl.where(t < length, new_h.to(h.dtype), h)
        c = tl.where(t < length, new_c, c)
        tl.store(h_ptr + current, h, mask=inside)
        tl.store(c_ptr + current, c, mask=inside)


@triton.jit(do_not_specialize=["T", "B", "first", "walk", "before"])
def lstm_persistent_bwd(
    dy_ptr,
    dcells_ptr,
    x_ptr,
    p_ptr,
    matrix_hh_ptr,
    gain_hh_ptr,
    bias_hh_ptr,
    gain_c_ptr,
    bias_c_ptr,
    lengths_ptr,
    starts_ptr,
    c_ptr,
    stats_ptr,
    dgates_ptr,
    dp_ptr,
    dh_ptr,
    dc_ptr,
    dgain_c_partial_ptr,
    dbias_c_partial_ptr,
    T: tl.int64,
    B: tl.int64,
    first: tl.int64,
    walk: tl.int64,
    before: tl.int64,
    eps: tl.float64,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    CARRY: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    row0, rows, cols, in_row, inside = own_tile(B, H, BLOCK_M, BLOCK_H)
    col = tl.arange(0, BLOCK_H)[None, :]
    row = rows * H + cols
    gate_row = rows * (4 * H) + cols

    blocks = load_blocks(matrix_hh_ptr, H, 1, H, 4, BLOCK_H)
    dh = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    dc, dc0, dgain_c = dh, dh, tl.zeros([BLOCK_M // 2, BLOCK_H], tl.float32)
    dbias_c = dgain_c
    for step in tl.range(0, T, num_stages=STAGES):
        t = first + step * walk
        gates = (t * B + row0) * (4 * H)
        current = ((t + 1 - before) * B + row0) * H + row
        p = load_gates(p_ptr + gates, gate_row, inside, H, 4)
        x = load_x(x_ptr, gates, gate_row, inside, H)
        anew = starting(starts_ptr, t + before, row0, rows, B)
        c = load_before(c_ptr, anew, t + before, before * T, row0, row, inside, B, H)
        # Again in every step: through all of them they would take registers that there are not.
        gain_hh, bias_hh = load_gates(gain_hh_ptr, col, col < H, H, 4), load_gates(bias_hh_ptr, col, col < H, H, 4)
        gain_c, bias_c = load_gates(gain_c_ptr, col, col < H, H, 1), load_gates(bias_c_ptr, col, col < H, H, 1)
        if dy_ptr is not None:
            dh += load_upcast(dy_ptr + current, inside)
        if dcells_ptr is not None:
            dc += load_upcast(dcells_ptr + current, inside)
        runs = inside
        if lengths_ptr is not None:
            runs = inside & running(lengths_ptr, t, row0, rows, B)
        dgates, p_hat, rstds, dc, dgain_c_step, dbias_c_step = retreat(
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
        dgain_c += sum_pieces(dgain_c_step, 2)
        dbias_c += sum_pieces(dbias_c_step, 2)
        store_gates(dgates_ptr + gates, gate_row, inside, H, dgates)
        gain_hh = load_gates(gain_hh_ptr, col, col < H, H, 4)  # once more: through the step there are too few registers
        dp = through_norm(dgates, p_hat, rstds, gain_hh, H, GROUP)
        if dp_ptr is not None:
            store_gates(dp_ptr + gates, gate_row, inside, H, dp)
        through = sum_of_products(dp, blocks, PRECISION)
        if len(anew) > 0:
            dc0 += tl.where(anew[0], dc, 0.0)
            dc, through = tl.where(anew[0], 0.0, dc), tl.where(anew[0], 0.0, through)
        dh = tl.where(runs, through, dh)
    tl.store(dh_ptr + row0 * H + row, dh, mask=inside)
    if starts_ptr is not None:
        dc += dc0
    tl.store(dc_ptr + row0 * H + row, dc, mask=inside)
    partial = tl.program_id(0).to(tl.int64) * H + tl.arange(0, BLOCK_H)
    if dgain_c_partial_ptr is not None:
        tl.store(dgain_c_partial_ptr + partial, tl.sum(dgain_c, axis=0), mask=tl.arange(0, BLOCK_H) < H)
    if dbias_c_partial_ptr is not None:
        tl.store(dbias_c_partial_ptr + partial, tl.sum(dbias_c, axis=0), mask=tl.arange(0, BLOCK_H) < H)
