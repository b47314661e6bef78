"""The gated feed-forward layer: down(silu(gate(x)) * up(x))."""

from __future__ import annotations

from anetorch.mil import Value, ops

__all__ = ["swiglu"]


def swiglu(h1: Value, h3: Value) -> Value:
    """silu(h1) * h3, with silu written as h1 * sigmoid(h1): the engine refuses some forms
    of `silu`.

    Shapes:
        h1 and h3 any one shape -> the same

    Example:
        >>> p = mil.build(swiglu, {"h1": mil.spec((1, 6, 1, 5), "fp16"), "h3": mil.spec((1, 6, 1, 5), "fp16")})
    """
    return ops.mul(x=ops.mul(x=h1, y=ops.sigmoid(x=h1)), y=h3)
