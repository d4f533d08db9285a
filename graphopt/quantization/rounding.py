"""Rounding weights with an eye on what they are multiplied with: least error of W x instead of least error of W.

With rows W (N, K) of a layer y = W x, and H = sum over inputs of x x^T, the error that counts is

    E(Q) = sum over rows of (w - q)^T H (w - q)

    codes = gptq(W, H, params)                           # closed form, one column after the other
    codes = coordinate_descent(W, H, params, codes)      # single codes to and fro, until none improves
    params = refit_scales(W, H, params, codes)           # the best scales for given codes
    params = search_scales(W, H, params)                 # the best multiples of given scales, before any rounding

Pure functions. Not here: where H comes from (moments.py), nor whether the result is kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from graphopt.quantization.affine import QParams, dequantize, quantize, storage

if TYPE_CHECKING:
    import numpy as np

    from graphopt.quantization.moments import PairSums

DAMPING = 0.01
FACTORS = tuple(i / 20 for i in range(8, 25))
"""Multiples of a scale that are tried."""
_STEADY = 1e-12
"""Inputs whose variance is less than this part of their mean square vary by float32's rounding, and tell nothing."""
_BLOCK = 128  # columns that are worked on before the rest is brought up to date


def output_error(rows: np.ndarray, moments: np.ndarray, other: np.ndarray) -> float:
    """E of other weights: sum over rows of (w - q)^T H (w - q), without numbers below zero from rounding."""
    import numpy as np

    gap = (rows - other).astype(np.float64)
    return max(0.0, float(np.einsum("nk,nk->", gap @ moments, gap)))


def gptq(rows: np.ndarray, moments: np.ndarray, params: QParams, damping: float = DAMPING) -> np.ndarray:
    """Round column by column, the largest second moment first; what a column errs, the later ones make up for.

    GPTQ (arXiv:2210.17323): with U upper triangular and U^T U = H^-1, column k leaves the error
    e = (w_k - q_k) / U_kk, and every later column j becomes w_j - e U_kj. Scales stay as given.

    Args:
        rows: W, float32 (N, K).
        moments: H, float64 (K, K), symmetric, positive semi-definite.
        params: quantizer along axis 1, per row or per group.
        damping: fraction of the mean of H's diagonal that is added to it.

    Returns:
        Codes (N, K) as `quantize` gives them.
    """
    import numpy as np

    order = np.argsort(-np.diag(moments), kind="stable")
    upper = _inverse_root(damped(moments, damping)[np.ix_(order, order)])
    scale, zero = (np.broadcast_to(item, rows.shape)[:, order].astype(np.float32) for item in params.spread(rows.shape))
    work = rows[:, order].astype(np.float32)
    codes = np.empty_like(work)
    for start in range(0, work.shape[1], _BLOCK):
        stop = min(start + _BLOCK, work.shape[1])
        errors = np.empty((len(work), stop - start), np.float32)
        for k in range(start, stop):
            column = work[:, k]
            codes[:, k] = np.clip(np.rint(column / scale[:, k]) + zero[:, k], params.type.qmin, params.type.qmax)
            error = (column - (codes[:, k] - zero[:, k]) * scale[:, k]) / upper[k, k]
            work[:, k + 1 : stop] -= error[:, None] * upper[k, k + 1 : stop]
            errors[:, k - start] = error
        work[:, stop:] -= errors @ upper[start:stop, stop:]
    result = np.empty_like(codes)
    result[:, order] = codes
    return result.astype(storage(params.type))


def coordinate_descent(
    rows: np.ndarray, moments: np.ndarray, params: QParams, codes: np.ndarray, sweeps: int = 3, damping: float = DAMPING
) -> np.ndarray:
    """Move one code at a time to where E is least with all others fixed; each step lowers E or leaves it.

    With r = w - q and g = r H, column k moves by round(g_k / (H_kk s_k)) steps; g then follows by -step s_k H_k. As a
    quadratic over integers this is the QUBO of AdaRound's objective (arXiv:2004.10568) without its gradients.

    Args:
        rows, moments, params: as for `gptq`.
        codes: where to start.
        sweeps: passes over all columns at most; it ends early when no code moved.
        damping: as for `gptq`; keeps columns that the inputs never excite near their weights.

    Returns:
        Codes (N, K).
    """
    import numpy as np

    hessian = damped(moments, damping).astype(np.float32)
    scale, zero = (np.broadcast_to(item, rows.shape).astype(np.float32) for item in params.spread(rows.shape))
    low, high = params.type.qmin - zero, params.type.qmax - zero
    centred = codes.astype(np.float32) - zero
    for _ in range(sweeps):
        moved = False
        gradient = (rows - centred * scale) @ hessian
        for start in range(0, rows.shape[1], _BLOCK):
            stop = min(start + _BLOCK, rows.shape[1])
            steps = np.zeros((len(rows), stop - start), np.float32)
            inner = gradient[:, start:stop]
            for k in range(start, stop):
                wanted = centred[:, k] + inner[:, k - start] / (hessian[k, k] * scale[:, k])
                now = np.clip(np.rint(wanted), low[:, k], high[:, k])
                step = (now - centred[:, k]) * scale[:, k]
                if not step.any():
                    continue
                moved = True
                centred[:, k] = now
                inner -= step[:, None] * hessian[k, start:stop]
                steps[:, k - start] = step
            if stop < rows.shape[1] and steps.any():
                gradient[:, stop:] -= steps @ hessian[start:stop, stop:]
        if not moved:
            break
    return (centred + zero).astype(storage(params.type))


def refit_scales(
    rows: np.ndarray, moments: np.ndarray, params: QParams, codes: np.ndarray, damping: float = DAMPING
) -> QParams:
    """The scales with which given codes have the least E; a scale that would not be positive stays as it is.

    E is quadratic in the scales of a row: with u_g its codes less zero point in group g (zero elsewhere) they solve
    sum_h (u_g^T H u_h) s_h = u_g^T H w.
    """
    import numpy as np

    n, k = rows.shape
    group = params.group or k
    hessian = damped(moments, damping)
    _, zero = params.spread(rows.shape)
    units = codes.astype(np.float64) - zero
    starts = np.arange(0, k, group)
    right = np.add.reduceat(units * (rows @ hessian), starts, axis=1)
    left = np.empty((n, len(starts), len(starts)))
    for g, start in enumerate(starts):
        part = slice(start, start + group)
        left[:, g] = np.add.reduceat((units[:, part] @ hessian[part]) * units, starts, axis=1)
    left += np.eye(len(starts)) * (1e-9 * np.trace(left, axis1=1, axis2=2)[:, None, None] + 1e-30)
    solved = np.linalg.solve(left, right[..., None])[..., 0]
    # Far from where they were, scales tell of a badly conditioned system, not of a better fit.
    good = (solved > 0.5 * params.scale) & (solved < 2 * params.scale)
    fitted = replace(params, scale=np.where(good, solved, params.scale).astype(np.float32))
    better = _row_errors(rows, hessian, dequantize(codes, fitted)) < _row_errors(
        rows, hessian, dequantize(codes, params)
    )
    return replace(params, scale=np.where(better[:, None], fitted.scale, params.scale))


def search_scales(rows: np.ndarray, moments: np.ndarray, params: QParams, damping: float = DAMPING) -> QParams:
    """Per row, the multiple of its scale with which rounding to nearest has the least E.

    With few codes it pays to saturate the largest weights; how much depends on what they are multiplied with.

    Args:
        rows, moments: as for `gptq`.
        params: quantizer with a scale per row.
    """
    import numpy as np

    hessian = damped(moments, damping)
    best, least = params.scale, np.full(len(rows), np.inf)
    for factor in FACTORS:
        tried = replace(params, scale=(params.scale * factor).astype(np.float32))
        errors = _row_errors(rows, hessian, dequantize(quantize(rows, tried), tried))
        best = np.where((errors < least)[:, None], tried.scale, best)
        least = np.minimum(least, errors)
    return replace(params, scale=best)


def fit_rows(rows: np.ndarray, sums: PairSums, group: int, *, shifts: bool, damping: float = DAMPING) -> np.ndarray:
    """Weights V that make of the quantized model's inputs y what W makes of the float model's x.

    The ridge regression V = W + W (C - H) (H + d I)^-1 with C = sum x y^T and H = sum y y^T: where y is x it is W, and
    it stays near W where the inputs say little. What errors of earlier layers did to x, V makes up for.

    Args:
        rows: W, float32 (N, K).
        sums, group: of the layer, and which of its groups.
        shifts: a bias takes up the mean error: products of means are taken out of C and H.
        damping: d, as a fraction of the mean of H's diagonal.
    """
    import numpy as np

    if sums.xy is sums.yy:
        return rows
    gap, inner = sums.xy[group] - sums.yy[group], second_moments(sums, group, shifts=shifts)
    if shifts:
        gap = gap - np.outer(sums.x[group] - sums.y[group], sums.y[group]) / sums.count
        gap[:, ~inner.any(axis=0)] = 0.0
    moved = np.linalg.solve(damped(inner, damping), (rows @ gap).T).T
    fitted: np.ndarray = (rows + moved).astype(np.float32)
    return fitted


def second_moments(sums: PairSums, group: int, *, shifts: bool) -> np.ndarray:
    """H of the quantized model's inputs, less the product of their means where a bias takes up the mean error.

    Columns that are constant up to rounding are zero then, as if they had no input.
    """
    import numpy as np

    inner: np.ndarray = sums.yy[group]
    if not shifts:
        return inner
    centred = inner - np.outer(sums.y[group], sums.y[group]) / sums.count
    steady = np.diag(centred) <= _STEADY * np.diag(inner)
    centred[steady] = centred[:, steady] = 0.0
    return centred


def mean_shift(rows: np.ndarray, other: np.ndarray, sums: PairSums, group: int) -> np.ndarray:
    """What a bias has to add, (N,): the mean over the inputs of W x - Q y."""
    shift: np.ndarray = (rows @ sums.x[group] - other @ sums.y[group]) / sums.count
    return shift


def pair_error(
    rows: np.ndarray, other: np.ndarray, sums: PairSums, group: int, shift: np.ndarray | float = 0.0
) -> float:
    """Sum over the inputs and rows of (W x - Q y - shift)^2."""
    import numpy as np

    w, q = rows.astype(np.float64), other.astype(np.float64)
    squares = np.einsum("nk,nk->", w @ sums.xx[group], w) - 2 * np.einsum("nk,nk->", w @ sums.xy[group], q)
    squares += np.einsum("nk,nk->", q @ sums.yy[group], q)
    gap = w @ sums.x[group] - q @ sums.y[group]
    shifts = np.broadcast_to(shift, gap.shape)
    return max(0.0, float(squares - 2 * (shifts * gap).sum() + sums.count * np.square(shifts).sum()))


def _row_errors(rows: np.ndarray, hessian: np.ndarray, other: np.ndarray) -> np.ndarray:
    import numpy as np

    gap = (rows - other).astype(np.float64)
    errors: np.ndarray = np.einsum("nk,nk->n", gap @ hessian, gap)
    return errors


def damped(moments: np.ndarray, damping: float) -> np.ndarray:
    """H with its diagonal raised: columns without any input keep a weight of their own."""
    import numpy as np

    size = float(np.mean(np.diag(moments)))
    return moments + np.eye(len(moments)) * (damping * size if size > 0 else 1.0)


def _inverse_root(hessian: np.ndarray) -> np.ndarray:
    """U, float32 upper triangular with U^T U = H^-1; the Cholesky factor of H read backwards needs no inverse of H."""
    import numpy as np

    flipped = np.linalg.cholesky(hessian[::-1, ::-1])
    return np.linalg.solve(flipped, np.eye(len(hessian)))[::-1, ::-1].astype(np.float32)
