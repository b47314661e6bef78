"""Numbers with a proven error: a float64 value and a bound on how far the device's is off.

Running an oracle's formula over `Bounded` arrays gives its exact value and, step by step,
the bound that follows from the arithmetic: what the operands were off by, carried through
the operation, plus the operation's own rounding. No tolerance is chosen by hand.

    u     unit roundoff of the storage dtype (fp16 2^-11, fp32 2^-24)
    acc   unit roundoff of the accumulator, 2^-24: products and sums are fp32
    FN    relative error allowed to exp and its kin: 4 ulp of fp32, what the device states

Every operation is charged one rounding to the storage dtype, as if nothing were fused;
fusion rounds less often, so the bound holds either way.
"""

from __future__ import annotations

import numpy as np

ACC = 2.0**-24
FN = 4 * 2.0**-23


class Bounded:
    """value and error bound, elementwise; made by `Arith`."""

    def __init__(self, arith: Arith, v: np.ndarray, e: np.ndarray | float = 0.0) -> None:
        self.a = arith
        self.v = np.asarray(v, np.float64)
        self.e = np.broadcast_to(np.asarray(e, np.float64), self.v.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.v.shape

    @property
    def high(self) -> np.ndarray:
        """Largest magnitude that the device may hold here."""
        return np.abs(self.v) + self.e

    def __getitem__(self, i) -> Bounded:
        return Bounded(self.a, self.v[i], self.e[i])

    def reshape(self, *shape) -> Bounded:
        return Bounded(self.a, self.v.reshape(*shape), self.e.reshape(*shape))

    def transpose(self, *perm) -> Bounded:
        return Bounded(self.a, self.v.transpose(*perm), self.e.transpose(*perm))

    def __add__(self, y) -> Bounded:
        y = self.a.lift(y)
        return self.a.rounded(self.v + y.v, self.e + y.e)

    def __sub__(self, y) -> Bounded:
        y = self.a.lift(y)
        return self.a.rounded(self.v - y.v, self.e + y.e)

    def __mul__(self, y) -> Bounded:
        y = self.a.lift(y)
        return self.a.rounded(self.v * y.v, self.high * y.e + self.e * np.abs(y.v))

    def __matmul__(self, y) -> Bounded:
        return self.a.rounded(self.v @ y.v, self._product_error(y))

    def _product_error(self, y: Bounded) -> np.ndarray:
        k = self.shape[-1]
        return self.high @ y.e + self.e @ np.abs(y.v) + (k + 1) * ACC * (self.high @ y.high)

    def sum(self, axis: int) -> Bounded:
        """Keeps the dim; accumulated in fp32."""
        n = self.shape[axis]
        e = self.e.sum(axis, keepdims=True) + n * ACC * self.high.sum(axis, keepdims=True)
        return self.a.rounded(self.v.sum(axis, keepdims=True), e)

    @property
    def T(self) -> Bounded:  # noqa: N802
        return Bounded(self.a, np.swapaxes(self.v, -1, -2), np.swapaxes(self.e, -1, -2))


class Arith:
    """Arithmetic in one storage dtype, "fp16" or "fp32"."""

    def __init__(self, dtype: str) -> None:
        self.dtype = {"fp16": np.float16, "fp32": np.float32}[dtype]
        self.u = {"fp16": 2.0**-11, "fp32": 2.0**-24}[dtype]
        self.tiny = {"fp16": 2.0**-25, "fp32": 2.0**-150}[dtype]    # half a subnormal step

    def exact(self, x) -> Bounded:
        """x rounded to the storage dtype; that rounded value is the exact input."""
        return Bounded(self, np.asarray(x).astype(self.dtype))

    def lift(self, y) -> Bounded:
        return y if isinstance(y, Bounded) else self.exact(y)

    def rounded(self, v: np.ndarray, e: np.ndarray) -> Bounded:
        return Bounded(self, v, e + self.u * (np.abs(v) + e) + self.tiny)

    def concat(self, parts, axis: int) -> Bounded:
        return Bounded(self, np.concatenate([p.v for p in parts], axis), np.concatenate([p.e for p in parts], axis))

    def sigmoid(self, x: Bounded) -> Bounded:
        s = 1 / (1 + np.exp(-x.v))
        # |s'| <= 1/4, and s' = s (1 - s) <= s: small tails stay small.
        slope = np.minimum(0.25, s * np.exp(x.e))
        return self.rounded(s, slope * x.e + 2 * FN * s)

    def softmax(self, x: Bounded) -> Bounded:
        """Last axis. The maximum is subtracted exactly or cancels."""
        shift = x.v - x.v.max(-1, keepdims=True)
        w = np.exp(shift)
        p = w / w.sum(-1, keepdims=True)
        # Each weight is off by a factor of at most exp(+-(own error + fp32 rounding of the
        # difference)); numerator and denominator each once, plus the sum's roundings.
        seen = p > 0
        off = x.e + ACC * (np.abs(shift) + x.e) * 2
        worst = np.where(seen, off, 0).max(-1, keepdims=True)
        factor = np.expm1(np.where(seen, off, 0) + worst) + 2 * FN + (x.shape[-1] + 2) * ACC
        return self.rounded(p, p * factor)


def check(got: np.ndarray, want: Bounded, what: str) -> None:
    """Fails with the worst element where |got - want| exceeds the bound."""
    got = np.asarray(got, np.float64)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    error = np.abs(got - want.v)
    bad = ~(error <= want.e)
    if bad.any():
        ratio = np.where(bad, error / want.e, 0)
        i = np.unravel_index(np.argmax(np.where(np.isnan(ratio), np.inf, ratio)), got.shape)
        raise AssertionError(
            f"{what}: {bad.sum()} of {bad.size} outside the bound; worst at {tuple(map(int, i))}: "
            f"got {got[i]!r}, want {want.v[i]!r}, error/bound {error[i] / want.e[i]:.3g}"
        )
