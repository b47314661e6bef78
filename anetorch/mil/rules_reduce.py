"""Derivatives of reductions and normalisations."""

from __future__ import annotations

import math

from anetorch.mil import ops
from anetorch.mil.builder import Value
from anetorch.mil.rules import rule, rule_of, stop

stop("reduce_argmax", "reduce_argmin", "argsort")


def _axes(op) -> list[int]:
    rank = len(op.shape("x"))
    axes = op.const("axes")
    return sorted(a % rank for a in (range(rank) if axes is None else axes))


def _keep(op, t: Value) -> Value:
    """A result (or its gradient) with its reduced dims back as 1; the walk repeats it
    along them where that is still needed."""
    axes = _axes(op)
    shape = [1 if i in axes else d for i, d in enumerate(op.shape("x"))]
    return t if list(t.shape) == shape else ops.reshape(x=t, shape=shape)


def _count(op) -> int:
    return math.prod(op.shape("x")[a] for a in _axes(op))


rule("reduce_sum", x=lambda op, dy: _keep(op, dy))
rule("reduce_mean", x=lambda op, dy: _keep(op, dy * (1 / _count(op))))
rule("reduce_sum_square", x=lambda op, dy: op.x * _keep(op, dy) * 2.0)
rule("reduce_l1_norm", x=lambda op, dy: ops.sign(x=op.x) * _keep(op, dy))
rule("reduce_l2_norm", x=lambda op, dy: op.x * _keep(op, dy / op.out))
rule("reduce_log_sum", x=lambda op, dy: _keep(op, dy * ops.exp(x=-op.out)))
rule("reduce_log_sum_exp", x=lambda op, dy: ops.exp(x=op.x - _keep(op, op.out)) * _keep(op, dy))
rule("reduce_prod", x=lambda op, dy: _keep(op, dy * op.out) / op.x)


def _extreme(op, dy):
    # Equal extremes share the gradient equally.
    hit = ops.cast(x=ops.equal(x=op.x, y=_keep(op, op.out)), dtype=op.x.dtype)
    share = hit / ops.reduce_sum(x=hit, axes=_axes(op), keep_dims=True)
    return share * _keep(op, dy)


rule("reduce_max", x=_extreme)
rule("reduce_min", x=_extreme)


def _mean(t: Value, axes: list[int]) -> Value:
    return ops.reduce_mean(x=t, axes=axes, keep_dims=True)


def _standardise(x: Value, axes: list[int], eps: float) -> tuple[Value, Value]:
    """(x - mean)/std and 1/std."""
    centred = x - _mean(x, axes)
    r = ops.rsqrt(x=_mean(centred * centred, axes), epsilon=eps)
    return centred * r, r


def _standardise_back(g: Value, hat: Value, r: Value, axes: list[int]) -> Value:
    return r * (g - _mean(g, axes) - hat * _mean(g * hat, axes))


def _scaled(op, dy, shape):
    """dy times gamma laid out as `shape`; gamma may be absent."""
    return dy if op.gamma is None else dy * ops.reshape(x=op.gamma, shape=shape)


def _norm_shape(op) -> list[int]:
    axes = _axes(op)
    return [d if i in axes else 1 for i, d in enumerate(op.shape("x"))]


def _others(op) -> list[int]:
    return [i for i in range(len(op.shape("x"))) if i not in _axes(op)]


def _over_others(op, t: Value, like: str) -> Value:
    axes = _others(op)
    t = ops.reduce_sum(x=t, axes=axes, keep_dims=False) if axes else t
    return ops.reshape(x=t, shape=op.shape(like))


@rule_of("layer_norm", "x")
def _layer_norm(op, dy):
    hat, r = _standardise(op.x, _axes(op), op.const("epsilon"))
    return _standardise_back(_scaled(op, dy, _norm_shape(op)), hat, r, _axes(op))


@rule_of("layer_norm", "gamma")
def _layer_norm_gamma(op, dy):
    hat, _ = _standardise(op.x, _axes(op), op.const("epsilon"))
    return _over_others(op, dy * hat, "gamma")


rule("layer_norm", beta=lambda op, dy: _over_others(op, dy, "beta"))


@rule_of("instance_norm", "x")
def _instance_norm(op, dy):
    rank = len(op.shape("x"))
    axes = list(range(2, rank))
    hat, r = _standardise(op.x, axes, op.const("epsilon"))
    return _standardise_back(_scaled(op, dy, [1, -1] + [1] * (rank - 2)), hat, r, axes)


@rule_of("batch_norm", "x")
def _batch_norm(op, dy):
    shape = [1, -1] + [1] * (len(op.shape("x")) - 2)
    r = ops.rsqrt(x=ops.reshape(x=op.variance, shape=shape), epsilon=op.const("epsilon"))
    return _scaled(op, dy, shape) * r


@rule_of("l2_norm", "x")
def _l2_norm(op, dy):
    axes = [-3, -2, -1]
    x, y = op.x, op.out
    r = ops.rsqrt(x=ops.reduce_sum(x=x * x, axes=axes, keep_dims=True), epsilon=op.const("epsilon"))
    return r * (dy - y * ops.reduce_sum(x=y * dy, axes=axes, keep_dims=True))
