"""The arithmetic of one time step of a layer-normalized GRU, forward and backward.

    r, z = sigmoid(LN(p_rz; w_rz) + x_rz)        p = W_hh h, x = LN(W_ih x; w_ih) + biases
    m    = LN(p_n; w_n) + b_n                    x_rz holds the biases of both sides, x_n its own
    n    = tanh(x_n + r m)
    h    = (1 - z) n + z h

Where the sum is normalized p = W_hh h + W_ih x, x is absent (zero), and b_rz is added to r and z as b_n to m.
Where INNER the reset is inside of the candidate's norm, and x = W_ih x + biases:

    r, z = sigmoid(LN(s_rz; w_rz, b_rz))         s_rz = p_rz + x_rz
    n    = tanh(LN(s_n; w_n, b_n))               s_n  = x_n + r (p_n + b_p)

Arguments are tiles of whole rows, one for each gate, and pointers as in gru_steps.py; x is the tiles of r, z and n, or
empty, and bias_hh those of all there are or of n, or empty.
"""

import triton
import triton.language as tl

from .gates import (
    add,
    load_gates,
    load_groups,
    multiply,
    part,
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
def load_x(x_rz_ptr, x_n_ptr, step, rows, cols, inside, H, RZ, N_ROW):
    """The tiles of r, z and n; `step` is the number of rows before the step."""
    if x_rz_ptr is None:
        return ()
    else:
        x_rz = load_gates(x_rz_ptr + step * RZ, rows * RZ + cols, inside, H, 2)
        return x_rz + load_gates(x_n_ptr + step * N_ROW, rows * N_ROW + cols, inside, H, 1)


@triton.jit
def load_bias(bias_hh_ptr, cols, in_row, H, SUM: tl.constexpr, INNER: tl.constexpr):
    if INNER:
        return load_gates(bias_hh_ptr, cols, in_row, H, 4)
    elif SUM or bias_hh_ptr is None:
        return load_gates(bias_hh_ptr, cols, in_row, H, 3)
    else:
        return load_gates(bias_hh_ptr, 2 * H + cols, in_row, H, 1)


@triton.jit
def cell(p_hat, x, gain_hh, bias_hh):
    """r, z, n and m."""
    gates = multiply(p_hat, gain_hh)
    if len(bias_hh) == 3:
        gates = add(gates, bias_hh)
    r, z, m = gates
    if len(bias_hh) == 1:
        m += bias_hh[0]
    if len(x) == 0:
        r, z = tl.sigmoid(r), tl.sigmoid(z)
        return r, z, tanh(r * m), m
    else:
        r, z = tl.sigmoid(r + x[0]), tl.sigmoid(z + x[1])
        return r, z, tanh(x[2] + r * m), m


@triton.jit
def rounded_to(ptr, tiles):
    """The tiles as they are where ptr points."""
    rounded = ()
    for k in tl.static_range(len(tiles)):
        rounded = rounded + (tiles[k].to(ptr.dtype.element_ty).to(tiles[k].dtype),)
    return rounded


@triton.jit
def advance_inner(p, x, h, gain_hh, bias_hh, x_ptr, stats_ptr, row0, t, in_row, B, H, eps, GROUP: tl.constexpr):
    """advance where INNER."""
    s_rz = rounded_to(x_ptr, add(part(x, 0, 2), part(p, 0, 2)))
    hats, means, rstds = standardize_groups(s_rz, in_row, H, eps, GROUP)
    r, z = add(multiply(hats, part(gain_hh, 0, 2)), part(bias_hh, 0, 2))
    r, z = tl.sigmoid(r), tl.sigmoid(z)
    m = add(part(p, 2, 1), part(bias_hh, 3, 1))
    s_n = rounded_to(x_ptr, (x[2] + r * m[0],))
    n_hat, mean, rstd = standardize(s_n, in_row, H, eps)
    n = add(multiply(n_hat, part(gain_hh, 2, 1)), part(bias_hh, 2, 1))
    store_groups(stats_ptr, means + (mean,), rstds + (rstd,), row0, t, B, h.shape[0])
    n = tanh(n[0])
    return n + z * (h - n), s_rz + s_n


@triton.jit
def retreat_inner(p, s, h, dh, gain_hh, bias_hh, stats_ptr, t, row0, rows, runs, in_row, B, H, GROUP: tl.constexpr):
    """retreat where INNER, from the sums s: dgates are of what the norms return, and dm is of s_n."""
    means, rstds = load_groups(stats_ptr, row0, rows, t, B, (2 + GROUP) // GROUP)
    s_hat = where(in_row, standardized_groups(s, means, rstds, GROUP))
    r, z, n = add(multiply(s_hat, gain_hh), part(bias_hh, 0, 3))
    r, z, n = tl.sigmoid(r), tl.sigmoid(z), tanh(n)

    kept = tl.where(runs, dh * z, dh)
    dh = tl.where(runs, dh, 0.0)
    dz = dh * (h - n) * z * (1.0 - z)
    dn = dh * (1.0 - z) * (1.0 - n * n)
    ds_n = standardize_bwd((dn * gain_hh[2],), part(s_hat, 2, 1), rstds[len(rstds) - 1], H)
    m = add(part(p, 2, 1), part(bias_hh, 3, 1))
    dr = ds_n[0] * m[0] * r * (1.0 - r)
    of_rz = multiply((dr, dz), part(gain_hh, 0, 2))
    ds_rz = standardize_groups_bwd(of_rz, part(s_hat, 0, 2), part(rstds, 0, 2 // GROUP), H, GROUP)
    return (dr, dz, dn), ds_n[0], ds_rz + (ds_n[0] * r,), kept


@triton.jit
def advance(
    p, x, h, gain_hh, bias_hh, x_ptr, stats_ptr, row0, t, in_row, B, H, eps, GROUP: tl.constexpr, INNER: tl.constexpr
):
    """h after a step of rows that run, and where INNER the sums that were normalized, rounded as where x_ptr points."""
    if INNER:
        return advance_inner(p, x, h, gain_hh, bias_hh, x_ptr, stats_ptr, row0, t, in_row, B, H, eps, GROUP)
    else:
        p_hat, means, rstds = standardize_groups(p, in_row, H, eps, GROUP)
        store_groups(stats_ptr, means, rstds, row0, t, B, h.shape[0])
        r, z, n, m = cell(p_hat, x, gain_hh, bias_hh)
        return n + z * (h - n), ()


@triton.jit
def retreat(
    p,
    x,
    h,
    dh,
    gain_hh,
    bias_hh,
    stats_ptr,
    t,
    row0,
    rows,
    runs,
    in_row,
    B,
    H,
    GROUP: tl.constexpr,
    INNER: tl.constexpr,
):
    """A step backward.  The gates are computed again from p and x; h is that before the step, dh the gradient of
    that after it.

    Returns (dgates, dm, dp, dh): of (r, z, n) before their activations, of m, of p, and the part of the gradient
    of the h before that does not go through p: all of it in rows that do not run, where all else is zero.
    """
    if INNER:
        return retreat_inner(p, x, h, dh, gain_hh, bias_hh, stats_ptr, t, row0, rows, runs, in_row, B, H, GROUP)
    else:
        means, rstds = load_groups(stats_ptr, row0, rows, t, B, (2 + GROUP) // GROUP)
        p_hat = where(in_row, standardized_groups(p, means, rstds, GROUP))
        r, z, n, m = cell(p_hat, x, gain_hh, bias_hh)

        kept = tl.where(runs, dh * z, dh)
        dh = tl.where(runs, dh, 0.0)
        dz = dh * (h - n) * z * (1.0 - z)
        dn = dh * (1.0 - z) * (1.0 - n * n)
        dr = dn * m * r * (1.0 - r)
        dm = dn * r
        dp = standardize_groups_bwd(multiply((dr, dz, dm), gain_hh), p_hat, rstds, H, GROUP)
        return (dr, dz, dn), dm, dp, kept
