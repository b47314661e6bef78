"""Classifier and cross-entropy.

Logits are `[N, V]`: one row per column of the activations, so that the reductions over the
vocabulary run along memory.
"""

from __future__ import annotations

from anetorch.kernels.linear import columns
from anetorch.mil import Value, ops

__all__ = ["logits", "token_losses"]


def logits(x: Value, w: Value) -> Value:
    """x `[1, C, 1, N]`, classifier (or tied embedding) w `[V, C]` -> `[N, V]`.

    Example:
        >>> p = mil.build(logits, {"x": mil.spec((1, 8, 1, 5), "fp16"), "w": mil.spec((7, 8), "fp16")})
    """
    return ops.matmul(x=columns(x), y=w, transpose_x=True, transpose_y=True)


def token_losses(scores: Value, targets: Value) -> Value:
    """-log softmax(scores)[n, targets[n]], in nats; the maximum is subtracted inside
    `reduce_log_sum_exp`, so no score can overflow.

    Shapes:
        scores `[N, V]`, targets `[N]` int32 -> `[N]`

    Example:
        >>> p = mil.build(token_losses, {"scores": mil.spec((5, 7), "fp32"), "targets": mil.spec((5,), "int32")})
    """
    n = scores.shape[0]
    # In this order, so that backward subtracts at the targets in place of softmax.
    picked = ops.gather_along_axis(x=scores, indices=ops.reshape(x=targets, shape=[n, 1]), axis=1)
    total = ops.reduce_log_sum_exp(x=scores, axes=[1], keep_dims=True)
    return ops.reshape(x=ops.sub(x=total, y=picked), shape=[n])
