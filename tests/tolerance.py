"""Error bounds derived from the arithmetic (there is no hand-picked rtol), and the one
comparison that prints where and by how much a result is out of bounds.

u is half an ulp of 1: 2**-11 for float16, 2**-8 for bfloat16, 2**-24 for float32. A sum of k
terms in a format with unit u is off by at most (k+1) u S to first order, S being the sum of
the terms' magnitudes; rounding the result to the output type adds u_out |C|, and half of the
least subnormal where the result is tiny.
"""

from __future__ import annotations

import numpy as np

U = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
HALF_SUBNORMAL = {"float16": 2.0**-25, "bfloat16": 2.0**-134, "float32": 2.0**-150,
                  "float64": 0.0}


def rounding(ref: np.ndarray, out: str) -> np.ndarray:
    """Error of rounding `ref` once to the type named `out`."""
    return U[out] * np.abs(ref) + HALF_SUBNORMAL[out]


def matmul(a: np.ndarray, b: np.ndarray, out: str = "float32", chain: int | None = None,
           u_acc: float = U["float32"], operands: str | None = None) -> np.ndarray:
    """Bound per element of a @ b (float64 arrays of the exact operand values).

    chain: longest chain in the accumulator's format (default: all of k); its partial sums are
    then added in float32. operands="bfloat16": both were rounded to that on the way in.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        s = np.abs(a) @ np.abs(b)
        k = max(a.shape[-1], 1)
        c = min(chain or k, k)
        bound = (c + 1) * u_acc * s + (k / c + 1) * U["float32"] * s
        if operands is not None:
            bound += 2 * U[operands] * 1.01 * s
        return bound + rounding(a @ b, out)


def check(got: np.ndarray, ref: np.ndarray, bound: np.ndarray | float, what: str) -> None:
    """|got - ref| <= bound everywhere; infinities and NaN must agree exactly."""
    with np.errstate(invalid="ignore"):         # a signalling NaN becomes quiet
        got = np.asarray(got, dtype=np.float64)
    ref = np.asarray(ref, dtype=np.float64)
    bound = np.broadcast_to(np.asarray(bound, dtype=np.float64), ref.shape)
    assert got.shape == ref.shape, f"{what}: shape {got.shape}, expected {ref.shape}"
    if not ref.size:
        return
    odd = ~np.isfinite(ref)
    same = (got == ref) | (np.isnan(got) & np.isnan(ref))
    with np.errstate(invalid="ignore"):
        ratio = np.where(odd, np.where(same, 0.0, np.inf),
                         np.abs(got - ref) / np.maximum(bound, 1e-300))
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    at = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    assert ratio[at] <= 1, (
        f"{what}: worst at {tuple(map(int, at))}: got {got[at]!r}, expected {ref[at]!r}, "
        f"error/bound {ratio[at]:.3g}, {int((ratio > 1).sum())} of {ratio.size} out of bounds")
