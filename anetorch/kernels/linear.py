"""Matrix products on channel-first columns.

Everything outside attention is `[1, C, 1, N]`: C channels, N columns, where the B
sequences of a batch lie side by side (column b*T + t). A product is then one matrix
product over all columns, whatever the batch.
"""

from __future__ import annotations

from anetorch.mil import Value, ops

__all__ = ["columns", "linear"]


def columns(x: Value) -> Value:
    """`[1, C, 1, N]` -> `[C, N]`, a view."""
    return ops.reshape(x=x, shape=[x.shape[1], x.shape[3]])


def linear(x: Value, w: Value, layout: str = "oi") -> Value:
    """y = W x for every column.

    Shapes:
        x `[1, IC, 1, N]`; w `[OC, IC]` (layout "oi", as published files store it) or
        `[IC, OC]` ("io", as the packed kernels stage it) -> `[1, OC, 1, N]`

    Example:
        >>> p = mil.build(lambda x, w: linear(x, w),
        ...               {"x": mil.spec((1, 8, 1, 5), "fp16"), "w": mil.spec((3, 8), "fp16")})
    """
    y = ops.matmul(x=w, y=columns(x), transpose_x=layout == "io")
    return ops.reshape(x=y, shape=[1, y.shape[0], 1, y.shape[1]])
