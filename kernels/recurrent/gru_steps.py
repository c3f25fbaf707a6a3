"""One time step of a layer-normalized GRU, whose formula is in gru_cell.py.

    p, dgates, dp   (T, B, 3H)  forward p may have one slot for all steps; dm (T, B, H)
    x_rz, x_n       rows of RZ and of N_ROW values, of which the first 2H and H are read; x_rz None: both absent; where
                    INNER and there are stats, s takes their place, which the backward reads
    state, h        (T + 1, B, H), the initial state first (last in reverse); state is fp32 (fp64) and
                    h is what it rounds to; None: state is that itself
    gain_hh         (3H,)
    bias_hh         (3H,)  None: no bias; only the part of n is read where there is an x; where INNER it is (4H,), b_rz,
                    b_n and b_p
    lengths         (B,)   row b runs at steps t < lengths[b] and carries its state else; None: always
    starts          (T + 1, B)  where true, the step that would go on from a slot goes on from `initial`, that of the
                    initial state; None: nowhere
    stats           (T, G, B, 2)  (mean, rstd) of p's groups, fp32 (fp64); None: not stored.  A group is GROUP gates:
                    3, 2 (and n alone), or 1

Program i owns rows i BLOCK_M .. (i + 1) BLOCK_M of the batch.  A tile holds one gate of whole rows;
everything is read once and written once.  `previous` and `current` are the slots of the states, and p_slot that of p.
"""

import triton
import triton.language as tl

from ..row import load_upcast
from .gates import (
    load_gates,
    own_tile,
    store_gates,
)
from .gru_cell import advance, load_bias, load_x, retreat
from .lstm_cell import load_before, running, starting


@triton.jit(do_not_specialize=["t", "previous", "current", "initial", "p_slot", "B"])
def gru_step_fwd(
    x_rz_ptr,
    x_n_ptr,
    p_ptr,
    gain_hh_ptr,
    bias_hh_ptr,
    lengths_ptr,
    starts_ptr,
    state_ptr,
    h_ptr,
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
    RZ: tl.constexpr,
    N_ROW: tl.constexpr,
    GROUP: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """
    multiplied  (B, H)  the h that the next step multiplies with W_hh, where some rows start anew; None: that of h
    """
    row0, rows, cols, in_row, inside = own_tile(B, H, BLOCK_M, BLOCK_H)
    row = rows * H + cols

    p = load_gates(p_ptr + (p_slot * B + row0) * (3 * H), rows * (3 * H) + cols, inside, H, 3)
    x = load_x(x_rz_ptr, x_n_ptr, t * B + row0, rows, cols, inside, H, RZ, N_ROW)
    anew = starting(starts_ptr, previous, row0, rows, B)
    h = load_before(state_ptr, anew, previous, initial, row0, row, inside, B, H)
    gain_hh = load_gates(gain_hh_ptr, cols, in_row, H, 3)
    bias_hh = load_bias(bias_hh_ptr, cols, in_row, H, x_rz_ptr is None, INNER)
    new_h, s = advance(p, x, h, gain_hh, bias_hh, x_rz_ptr, stats_ptr, row0, t, in_row, B, H, eps, GROUP, INNER)
    if INNER and stats_ptr is not None:
        store_gates(x_rz_ptr + (t * B + row0) * (3 * H), rows * (3 * H) + cols, inside, H, s)
    if lengths_ptr is not None:
        new_h = tl.where(running(lengths_ptr, t, row0, rows, B), new_h, h)
    tl.store(state_ptr + (current * B + row0) * H + row, new_h, mask=inside)
    if h_ptr is not None:
        tl.store(h_ptr + (current * B + row0) * H + row, new_h, mask=inside)
    if multiplied_ptr is not None:
        h0 = load_upcast(state_ptr + (initial * B + row0) * H + row, inside)
        begins = starting(starts_ptr, current, row0, rows, B)
        tl.store(multiplied_ptr + row0 * H + row, tl.where(begins[0], h0, new_h), mask=inside)


@triton.jit(do_not_specialize=["t", "previous", "current", "initial", "B"])
def gru_step_bwd(
    dy_ptr,
    dh_ptr,
    x_rz_ptr,
    x_n_ptr,
    p_ptr,
    gain_hh_ptr,
    bias_hh_ptr,
    lengths_ptr,
    starts_ptr,
    state_ptr,
    stats_ptr,
    kept_ptr,
    dh0_ptr,
    dgates_ptr,
    dm_ptr,
    dp_ptr,
    t: tl.int64,
    previous: tl.int64,
    current: tl.int64,
    initial: tl.int64,
    B: tl.int64,
    H: tl.constexpr,
    RZ: tl.constexpr,
    N_ROW: tl.constexpr,
    GROUP: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """
    dh, kept        (B, H)  gradients of h that come from the step after this in time: through W_hh, and
                            through z or because the row did not run; kept is replaced by this step's
    dh0             (B, H)  gradient of the initial h, but for that through W_hh, from rows that start anew; added to
    dy              gradient of the result h; None: zero
    dgates, dm, dp  of (r, z, n) before their activations, of m (where INNER of s_n) and of p
    """
    row0, rows, cols, in_row, inside = own_tile(B, H, BLOCK_M, BLOCK_H)
    row = rows * H + cols
    own = row0 * H + row
    gate_row = rows * (3 * H) + cols
    step = (t * B + row0) * (3 * H)

    p = load_gates(p_ptr + step, gate_row, inside, H, 3)
    x = load_x(x_rz_ptr, x_n_ptr, t * B + row0, rows, cols, inside, H, RZ, N_ROW)
    anew = starting(starts_ptr, previous, row0, rows, B)
    h = load_before(state_ptr, anew, previous, initial, row0, row, inside, B, H)
    gain_hh = load_gates(gain_hh_ptr, cols, in_row, H, 3)
    bias_hh = load_bias(bias_hh_ptr, cols, in_row, H, x_rz_ptr is None, INNER)
    dh = load_upcast(dh_ptr + own, inside)
    if starts_ptr is not None:  # what came through W_hh is the initial state's
        dh = tl.where(starting(starts_ptr, current, row0, rows, B)[0], 0.0, dh)
    dh += load_upcast(kept_ptr + own, inside)
    if dy_ptr is not None:
        dh += load_upcast(dy_ptr + (current * B + row0) * H + row, inside)
    runs = inside
    if lengths_ptr is not None:
        runs = inside & running(lengths_ptr, t, row0, rows, B)
    dgates, dm, dp, kept = retreat(
        p, x, h, dh, gain_hh, bias_hh, stats_ptr, t, row0, rows, runs, in_row, B, H, GROUP, INNER
    )
    if len(anew) > 0:
        tl.store(dh0_ptr + own, load_upcast(dh0_ptr + own, inside) + tl.where(anew[0], kept, 0.0), mask=inside)
        kept = tl.where(anew[0], 0.0, kept)
    tl.store(kept_ptr + own, kept, mask=inside)
    store_gates(dgates_ptr + step, gate_row, inside, H, dgates)
    tl.store(dm_ptr + (t * B + row0) * H + row, dm, mask=inside)
    store_gates(dp_ptr + step, gate_row, inside, H, dp)
