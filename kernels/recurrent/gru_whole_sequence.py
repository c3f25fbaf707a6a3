"""All time steps of a layer-normalized GRU in one launch, with W_hh on the chip.

    A step is that of gru_cell.py, with p = W_hh h computed here; where SUM, p = W_hh h + x.

    matrix_hh       (3H, H)  W_hh, in x's dtype
    p, dgates, dp   (T, B, 3H)  p None: not stored
    dy              (T + 1, B, H)  gradient of h; None: zero
    dh              (B, H)  gradient of the initial state, fp32, without that of W_hh in rows that start anew
    all others      as in gru_steps.py

The T steps start at `first` and `walk` 1 or -1; the state before step t is in slot t + before, the one after it
in t + 1 - before.  Program i owns rows i BLOCK_M .. (i + 1) BLOCK_M of the batch through all steps.  It reads
W_hh once and keeps it; the state, backward its gradient, stays in registers.  What a step has of its own is
read once, STAGES - 1 steps ahead, and written once.

Source: Diamos et al., Persistent RNNs: Stashing Recurrent Weights On-Chip (ICML 2016).
"""

import triton
import triton.language as tl

from ..row import load_upcast
from .gates import load_gates, own_tile, store_gates
from .gru_cell import advance, load_bias, load_x, retreat
from .lstm_cell import load_before, running, starting
from .matrix import load_blocks, products, sum_of_products


@triton.jit(do_not_specialize=["T", "B", "first", "walk", "before"])
def gru_persistent_fwd(
    x_rz_ptr,
    x_n_ptr,
    matrix_hh_ptr,
    gain_hh_ptr,
    bias_hh_ptr,
    lengths_ptr,
    starts_ptr,
    state_ptr,
    h_ptr,
    p_ptr,
    stats_ptr,
    T: tl.int64,
    B: tl.int64,
    first: tl.int64,
    walk: tl.int64,
    before: tl.int64,
    eps: tl.float64,
    H: tl.constexpr,
    RZ: tl.constexpr,
    N_ROW: tl.constexpr,
    GROUP: tl.constexpr,
    SUM: tl.constexpr,
    INNER: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    row0, rows, cols, in_row, inside = own_tile(B, H, BLOCK_M, BLOCK_H)
    col = tl.arange(0, BLOCK_H)[None, :]
    row = rows * H + cols
    gate_row = rows * (3 * H) + cols

    blocks = load_blocks(matrix_hh_ptr, 1, H, H, 3, BLOCK_H)
    gain_hh, bias_hh = load_gates(gain_hh_ptr, col, col < H, H, 3), load_bias(bias_hh_ptr, col, col < H, H, SUM, INNER)
    length = T
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + row0 + rows, mask=rows < B - row0, other=0)
    initial = ((first + before) * B + row0) * H + row
    h = load_upcast(state_ptr + initial, inside)
    rounded = h
    if h_ptr is not None:
        rounded = tl.load(h_ptr + initial, mask=inside, other=0.0)
    for step in tl.range(0, T, num_stages=STAGES):
        t = first + step * walk
        gates = (t * B + row0) * (3 * H)
        current = ((t + 1 - before) * B + row0) * H + row
        x = load_x(x_rz_ptr, x_n_ptr, t * B + row0, rows, cols, inside, H, RZ, N_ROW)
        anew = starting(starts_ptr, t + before, row0, rows, B)
        if len(anew) > 0:
            h = tl.where(anew[0], load_upcast(state_ptr + initial, inside), h)
            rounded = h.to(rounded.dtype)
        if SUM:
            p = products(rounded, blocks, x, PRECISION)
            x = ()
        else:
            p = products(rounded, blocks, (), PRECISION)
        if p_ptr is not None:
            store_gates(p_ptr + gates, gate_row, inside, H, p)
        new_h, s = advance(p, x, h, gain_hh, bias_hh, x_rz_ptr, stats_ptr, row0, t, in_row, B, H, eps, GROUP, INNER)
        if INNER and stats_ptr is not None:
            store_gates(x_rz_ptr + gates, gate_row, inside, H, s)
        h = tl.where(t < length, new_h, h)
        rounded = h.to(rounded.dtype)
        tl.store(state_ptr + current, h, mask=inside)
        if h_ptr is not None:
            tl.store(h_ptr + current, rounded, mask=inside)


@triton.jit(do_not_specialize=["T", "B", "first", "walk", "before"])
def gru_persistent_bwd(
    dy_ptr,
    x_rz_ptr,
    x_n_ptr,
    p_ptr,
    matrix_hh_ptr,
    gain_hh_ptr,
    bias_hh_ptr,
    lengths_ptr,
    starts_ptr,
    state_ptr,
    stats_ptr,
    dgates_ptr,
    dm_ptr,
    dp_ptr,
    dh_ptr,
    T: tl.int64,
    B: tl.int64,
    first: tl.int64,
    walk: tl.int64,
    before: tl.int64,
    H: tl.constexpr,
    RZ: tl.constexpr,
    N_ROW: tl.constexpr,
    GROUP: tl.constexpr,
    INNER: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    row0, rows, cols, in_row, inside = own_tile(B, H, BLOCK_M, BLOCK_H)
    col = tl.arange(0, BLOCK_H)[None, :]
    row = rows * H + cols
    gate_row = rows * (3 * H) + cols

    blocks = load_blocks(matrix_hh_ptr, H, 1, H, 3, BLOCK_H)
    dh = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    dh0 = dh
    for step in tl.range(0, T, num_stages=STAGES):
        t = first + step * walk
        gates = (t * B + row0) * (3 * H)
        current = ((t + 1 - before) * B + row0) * H + row
        p = load_gates(p_ptr + gates, gate_row, inside, H, 3)
        x = load_x(x_rz_ptr, x_n_ptr, t * B + row0, rows, cols, inside, H, RZ, N_ROW)
        anew = starting(starts_ptr, t + before, row0, rows, B)
        h = load_before(state_ptr, anew, t + before, before * T, row0, row, inside, B, H)
        # Again in every step: through all of them they would take registers that there are not.
        gain_hh = load_gates(gain_hh_ptr, col, col < H, H, 3)
        bias_hh = load_bias(bias_hh_ptr, col, col < H, H, x_rz_ptr is None, INNER)
        if dy_ptr is not None:
            dh += load_upcast(dy_ptr + current, inside)
        runs = inside
        if lengths_ptr is not None:
            runs = inside & running(lengths_ptr, t, row0, rows, B)
        dgates, dm, dp, kept = retreat(
            p, x, h, dh, gain_hh, bias_hh, stats_ptr, t, row0, rows, runs, in_row, B, H, GROUP, INNER
        )
        store_gates(dgates_ptr + gates, gate_row, inside, H, dgates)
        tl.store(dm_ptr + (t * B + row0) * H + row, dm, mask=inside)
        store_gates(dp_ptr + gates, gate_row, inside, H, dp)
        dh = kept + sum_of_products(dp, blocks, PRECISION)
        if len(anew) > 0:
            dh0 += tl.where(anew[0], kept, 0.0)
            dh = tl.where(anew[0], 0.0, dh)
    if starts_ptr is not None:
        dh += dh0
    tl.store(dh_ptr + row0 * H + row, dh, mask=inside)
