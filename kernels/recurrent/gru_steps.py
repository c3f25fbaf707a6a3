"""One time step of a layer-normalized GRU.

    r, z = sigmoid(LN(p_rz; w_rz) + x_rz)        p = W_hh h, x = LN(W_ih x; w_ih) + biases
    m    = LN(p_n; w_n) + b_n                    x_rz holds the biases of both sides, x_n its own
    n    = tanh(x_n + r m)
    h    = (1 - z) n + z h

    p, dgates, dp   (T, B, 3H)  forward p may have one slot for all steps; dm (T, B, H)
    x_rz, x_n       rows of RZ and of N_ROW values, of which the first 2H and H are read
    state, h        (T + 1, B, H), the initial state first (last in reverse); state is fp32 (fp64) and
                    h is what it rounds to; None: state is that itself
    w_hh, b_hh      (3H,)  b_hh None: no bias; of b_hh only the part of n is read
    lengths         (B,)   row b runs at steps t < lengths[b] and carries its state else; None: always
    stats_rz, stats_n   (T, B, 2)  (mean, rstd) of p's groups, fp32 (fp64); None: not stored.  Where JOINT,
                    all 3H values of p are normalized together and stats_n is None

Program i owns rows i BLOCK_M .. (i + 1) BLOCK_M of the batch.  A tile holds one gate of whole rows;
everything is read once and written once.  `previous` and `current` are the slots of the states, and p_slot that of p.
In device functions x is the tiles of r, z and n, and b_n a tuple of one tile, empty where it is None.
"""

import triton
import triton.language as tl

from ..row import load_stats, load_upcast, store_stats
from .gates import load_gates, multiply, own_tile, standardize, standardize_bwd, standardized, store_gates, tanh, where
from .lstm_steps import running


@triton.jit
def load_x(x_rz_ptr, x_n_ptr, step, rows, cols, inside, H, RZ, N_ROW):
    """The tiles of r, z and n; `step` is the number of rows before the step."""
    x_rz = load_gates(x_rz_ptr + step * RZ, rows * RZ + cols, inside, H, 2)
    return x_rz + load_gates(x_n_ptr + step * N_ROW, rows * N_ROW + cols, inside, H, 1)


@triton.jit
def load_b_n(b_hh_ptr, cols, in_row, H):
    if b_hh_ptr is None:
        return ()
    else:
        return load_gates(b_hh_ptr, 2 * H + cols, in_row, H, 1)


@triton.jit
def cell(p_hat, x, w_hh, b_n):
    """r, z, n and m."""
    r, z, m = multiply(p_hat, w_hh)
    if len(b_n) > 0:
        m += b_n[0]
    r, z = tl.sigmoid(r + x[0]), tl.sigmoid(z + x[1])
    return r, z, tanh(x[2] + r * m), m


@triton.jit
def advance(p, x, h, w_hh, b_n, stats_rz_ptr, stats_n_ptr, row0, t, in_row, B, H, eps, JOINT: tl.constexpr):
    """h after a step of rows that run."""
    tile_rows = tl.arange(0, h.shape[0])[:, None]
    if JOINT:
        p_hat, mean, rstd = standardize(p, in_row, H, eps)
    else:
        rz_hat, mean, rstd = standardize((p[0], p[1]), in_row, H, eps)
        n_hat, mean_n, rstd_n = standardize((p[2],), in_row, H, eps)
        p_hat = rz_hat + n_hat
        if stats_n_ptr is not None:
            store_stats(stats_n_ptr + t * B * 2, row0, tile_rows, (mean_n, rstd_n), B)
    if stats_rz_ptr is not None:
        store_stats(stats_rz_ptr + t * B * 2, row0, tile_rows, (mean, rstd), B)
    r, z, n, m = cell(p_hat, x, w_hh, b_n)
    return n + z * (h - n)


@triton.jit
def retreat(p, x, h, dh, w_hh, b_n, stats_rz_ptr, stats_n_ptr, t, rows, runs, in_row, B, H, JOINT: tl.constexpr):
    """A step backward.  The gates are computed again from p and x; h is that before the step, dh the gradient of
    that after it.

    Returns (dgates, dm, dp, dh): of (r, z, n) before their activations, of m, of p, and the part of the gradient
    of the h before that does not go through p: all of it in rows that do not run, where all else is zero.
    """
    mean, rstd = load_stats(stats_rz_ptr, t * B, rows, rows < B, True)
    mean_n, rstd_n = mean, rstd
    if not JOINT:
        mean_n, rstd_n = load_stats(stats_n_ptr, t * B, rows, rows < B, True)
    p_hat = where(in_row, standardized((p[0], p[1]), mean, rstd) + standardized((p[2],), mean_n, rstd_n))
    r, z, n, m = cell(p_hat, x, w_hh, b_n)

    kept = tl.where(runs, dh * z, dh)
    dh = tl.where(runs, dh, 0.0)
    dz = dh * (h - n) * z * (1.0 - z)
    dn = dh * (1.0 - z) * (1.0 - n * n)
    dr = dn * m * r * (1.0 - r)
    dm = dn * r
    dp_hat = multiply((dr, dz, dm), w_hh)
    if JOINT:
        dp = standardize_bwd(dp_hat, p_hat, rstd, H)
    else:
        d_rz = standardize_bwd((dp_hat[0], dp_hat[1]), (p_hat[0], p_hat[1]), rstd, H)
        dp = d_rz + standardize_bwd((dp_hat[2],), (p_hat[2],), rstd_n, H)
    return (dr, dz, dn), dm, dp, kept


@triton.jit(do_not_specialize=["t", "previous", "current", "p_slot", "B"])
def gru_step_fwd(
    x_rz_ptr,
    x_n_ptr,
    p_ptr,
    w_hh_ptr,
    b_hh_ptr,
    lengths_ptr,
    state_ptr,
    h_ptr,
    stats_rz_ptr,
    stats_n_ptr,
    t: tl.int64,
    previous: tl.int64,
    current: tl.int64,
    p_slot: tl.int64,
    B: tl.int64,
    eps: tl.float64,
    H: tl.constexpr,
    RZ: tl.constexpr,
    N_ROW: tl.constexpr,
    JOINT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    row0, rows, cols, in_row, inside = own_tile(B, H, BLOCK_M, BLOCK_H)
    row = rows * H + cols

    p = load_gates(p_ptr, (p_slot * B + rows) * (3 * H) + cols, inside, H, 3)
    x = load_x(x_rz_ptr, x_n_ptr, t * B, rows, cols, inside, H, RZ, N_ROW)
    h = load_upcast(state_ptr + previous * B * H + row, inside)
    w_hh, b_n = load_gates(w_hh_ptr, cols, in_row, H, 3), load_b_n(b_hh_ptr, cols, in_row, H)
    new_h = advance(p, x, h, w_hh, b_n, stats_rz_ptr, stats_n_ptr, row0, t, in_row, B, H, eps, JOINT)
    if lengths_ptr is not None:
        new_h = tl.where(running(lengths_ptr, t, rows, B), new_h, h)
    tl.store(state_ptr + current * B * H + row, new_h, mask=inside)
    if h_ptr is not None:
        tl.store(h_ptr + current * B * H + row, new_h, mask=inside)


@triton.jit(do_not_specialize=["t", "previous", "current", "B"])
def gru_step_bwd(
    dy_ptr,
    dh_ptr,
    x_rz_ptr,
    x_n_ptr,
    p_ptr,
    w_hh_ptr,
    b_hh_ptr,
    lengths_ptr,
    state_ptr,
    stats_rz_ptr,
    stats_n_ptr,
    kept_ptr,
    dgates_ptr,
    dm_ptr,
    dp_ptr,
    t: tl.int64,
    previous: tl.int64,
    current: tl.int64,
    B: tl.int64,
    H: tl.constexpr,
    RZ: tl.constexpr,
    N_ROW: tl.constexpr,
    JOINT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """
    dh, kept        (B, H)  gradients of h that come from the step after this in time: through W_hh, and
                            through z or because the row did not run; kept is replaced by this step's
    dy              gradient of the result h; None: zero
    dgates, dm, dp  of (r, z, n) before their activations, of m and of p
    """
    row0, rows, cols, in_row, inside = own_tile(B, H, BLOCK_M, BLOCK_H)
    row = rows * H + cols
    gate_row = (t * B + rows) * (3 * H) + cols

    p = load_gates(p_ptr, gate_row, inside, H, 3)
    x = load_x(x_rz_ptr, x_n_ptr, t * B, rows, cols, inside, H, RZ, N_ROW)
    h = load_upcast(state_ptr + previous * B * H + row, inside)
    w_hh, b_n = load_gates(w_hh_ptr, cols, in_row, H, 3), load_b_n(b_hh_ptr, cols, in_row, H)
    dh = load_upcast(dh_ptr + row, inside) + load_upcast(kept_ptr + row, inside)
    if dy_ptr is not None:
        dh += load_upcast(dy_ptr + current * B * H + row, inside)
    runs = inside
    if lengths_ptr is not None:
        runs = inside & running(lengths_ptr, t, rows, B)
    dgates, dm, dp, kept = retreat(
        p, x, h, dh, w_hh, b_n, stats_rz_ptr, stats_n_ptr, t, rows, runs, in_row, B, H, JOINT
    )
    tl.store(kept_ptr + row, kept, mask=inside)
    store_gates(dgates_ptr, gate_row, inside, H, dgates)
    tl.store(dm_ptr + t * B * H + row, dm, mask=inside)
    store_gates(dp_ptr, gate_row, inside, H, dp)
