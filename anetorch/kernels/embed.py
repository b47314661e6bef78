"""Token ids to columns."""

from __future__ import annotations

from anetorch.mil import Value, ops

__all__ = ["embed"]


def embed(table: Value, ids: Value) -> Value:
    """Column n is row ids[n] of the table.

    Shapes:
        table `[V, C]`, ids `[N]` int32 -> `[1, C, 1, N]`

    Example:
        >>> p = mil.build(embed, {"table": mil.spec((10, 4), "fp32"), "ids": mil.spec((5,), "int32")})
    """
    rows = ops.gather(x=table, indices=ids, axis=0)
    return ops.reshape(x=ops.transpose(x=rows, perm=[1, 0]), shape=[1, table.shape[1], 1, ids.shape[0]])
