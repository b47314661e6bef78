"""Derivatives of products: matmul, linear, einsum, attention."""

from __future__ import annotations

import math

from anetorch.mil import ops
from anetorch.mil.builder import Value
from anetorch.mil.rules import rule, rule_of

# C = X' Y' with X' = X or its transpose. dX' = dC Y'^T, dY' = X'^T dC; where a flag is set
# the transposed gradient is computed directly, so no transposition is ever materialised.


def _as_matrices(op, dy):
    """dy with a rank-1 x as a row and a rank-1 y as a column, and the transpose flags."""
    if len(op.shape("y")) == 1:
        dy = ops.expand_dims(x=dy, axes=[-1])
    if len(op.shape("x")) == 1:
        dy = ops.expand_dims(x=dy, axes=[-2])
    return dy, op.const("transpose_x"), op.const("transpose_y")


@rule_of("matmul", "x")
def _matmul_x(op, dy):
    dc, tx, ty = _as_matrices(op, dy)
    y = op.y if op.y.rank > 1 else ops.expand_dims(x=op.y, axes=[1])
    if tx:
        return ops.matmul(x=y, y=dc, transpose_x=ty, transpose_y=True)
    dx = ops.matmul(x=dc, y=y, transpose_y=not ty)
    return ops.squeeze(x=dx, axes=[-2]) if len(op.shape("x")) == 1 else dx


@rule_of("matmul", "y")
def _matmul_y(op, dy):
    dc, tx, ty = _as_matrices(op, dy)
    x = op.x if op.x.rank > 1 else ops.expand_dims(x=op.x, axes=[0])
    if ty:
        return ops.matmul(x=dc, y=x, transpose_x=True, transpose_y=tx)
    d = ops.matmul(x=x, y=dc, transpose_x=not tx)
    return ops.squeeze(x=d, axes=[-1]) if len(op.shape("y")) == 1 else d


def _rows(t: Value) -> Value:
    return ops.reshape(x=t, shape=[-1, t.shape[-1]])


rule(
    "linear",
    x=lambda op, dy: ops.matmul(x=dy, y=op.weight),
    weight=lambda op, dy: ops.matmul(x=_rows(dy), y=_rows(op.x), transpose_x=True),
    bias=lambda op, dy: dy,
)


@rule_of("scaled_dot_product_attention", "query")
def _sdpa_query(op, dy):
    return ops.matmul(x=_sdpa_scores(op, dy), y=op.key)


@rule_of("scaled_dot_product_attention", "key")
def _sdpa_key(op, dy):
    return ops.matmul(x=_sdpa_scores(op, dy), y=op.query, transpose_x=True)


@rule_of("scaled_dot_product_attention", "value")
def _sdpa_value(op, dy):
    return ops.matmul(x=_sdpa_probs(op), y=dy, transpose_x=True)


def _sdpa_probs(op) -> Value:
    def make() -> Value:
        scores = ops.matmul(x=op.query, y=op.key, transpose_y=True) * _sdpa_scale(op)
        mask = op.attn_mask
        if mask is not None and mask.dtype == "bool":
            # -65504 behaves as minus infinity without making a NaN of a difference.
            scores = ops.select(cond=mask, a=scores, b=-65504.0)
        elif mask is not None:
            scores = scores + mask
        return ops.softmax(x=scores, axis=-1)

    return op.once("probabilities", make)


def _sdpa_scores(op, dy) -> Value:
    """Gradient of the scaled scores."""

    def make() -> Value:
        p = _sdpa_probs(op)
        dp = ops.matmul(x=dy, y=op.value, transpose_y=True)
        return p * (dp - ops.reduce_sum(x=p * dp, axes=[-1], keep_dims=True)) * _sdpa_scale(op)

    return op.once("scores", make)


def _sdpa_scale(op) -> float:
    return 1 / math.sqrt(op.shape("query")[-1])


# Only the two equations that MIL knows: the last dim of the first operand is contracted
# with the third last of the second, the batch and the dim between broadcast.


@rule_of("einsum", "values")
def _einsum(op, dy):
    a, b = op.values
    if len(op.shape("values")[0]) == 4:  # bchw, bwhv -> bchv
        da, db = "bchv,bvhw->bchw", "bwhc,bchv->bwhv"
        swap = [0, 3, 2, 1]
    else:  # chw, whv -> chv
        da, db = "chv,vhw->chw", "whc,chv->whv"
        swap = [2, 1, 0]
    return [
        ops.einsum(values=(dy, ops.transpose(x=b, perm=swap)), equation=da),
        ops.einsum(values=(ops.transpose(x=a, perm=swap), dy), equation=db),
    ]
