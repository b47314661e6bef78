"""Derivatives of element-wise ops. Sums over broadcast dims are the walk's business."""

from __future__ import annotations

import math

from anetorch.mil import ops
from anetorch.mil.builder import Value
from anetorch.mil.rules import ELEMENTWISE, RULES, rule, rule_of, stop


def _where(cond: Value, a: Value | float, b: Value | float) -> Value:
    return ops.select(cond=cond, a=a, b=b)


# -- two operands; ties of maximum and minimum go to x

rule("add", x=lambda op, dy: dy, y=lambda op, dy: dy)
rule("sub", x=lambda op, dy: dy, y=lambda op, dy: -dy)
rule("mul", x=lambda op, dy: dy * op.y, y=lambda op, dy: dy * op.x)
rule("real_div", x=lambda op, dy: dy / op.y, y=lambda op, dy: -(dy * op.out / op.y))
rule(
    "pow",
    x=lambda op, dy: dy * op.y * ops.pow(x=op.x, y=op.y - 1.0),
    y=lambda op, dy: dy * op.out * ops.log(x=op.x),
)
rule("mod", x=lambda op, dy: dy, y=lambda op, dy: -(dy * ops.floor_div(x=op.x, y=op.y)))
rule(
    "maximum",
    x=lambda op, dy: _where(ops.greater_equal(x=op.x, y=op.y), dy, 0.0),
    y=lambda op, dy: _where(ops.greater_equal(x=op.x, y=op.y), 0.0, dy),
)
rule(
    "minimum",
    x=lambda op, dy: _where(ops.less_equal(x=op.x, y=op.y), dy, 0.0),
    y=lambda op, dy: _where(ops.less_equal(x=op.x, y=op.y), 0.0, dy),
)
rule("select", a=lambda op, dy: _where(op.cond, dy, 0.0), b=lambda op, dy: _where(op.cond, 0.0, dy))
stop("floor_div", "floor", "ceil", "round", "sign", "fill_like", "equal", "not_equal", "less")
stop("less_equal", "greater", "greater_equal", "logical_not", "shape", "one_hot")

# -- one operand

rule("identity", input=lambda op, dy: dy, x=lambda op, dy: dy)
rule("cast", x=lambda op, dy: dy)
rule("abs", x=lambda op, dy: dy * ops.sign(x=op.x))
rule("square", x=lambda op, dy: dy * op.x * 2.0)
rule("exp", x=lambda op, dy: dy * op.out)
rule("exp2", x=lambda op, dy: dy * op.out * math.log(2))
rule("sqrt", x=lambda op, dy: dy * 0.5 / op.out)
rule("rsqrt", x=lambda op, dy: dy * op.out * op.out * op.out * -0.5)
rule("inverse", x=lambda op, dy: -(dy * op.out * op.out))
rule("log", x=lambda op, dy: dy / (op.x + op.const("epsilon")))
rule("erf", x=lambda op, dy: dy * ops.exp(x=-(op.x * op.x)) * (2 / math.sqrt(math.pi)))
rule("sin", x=lambda op, dy: dy * ops.cos(x=op.x))
rule("cos", x=lambda op, dy: -(dy * ops.sin(x=op.x)))
rule("tan", x=lambda op, dy: dy * (op.out * op.out + 1.0))
rule("asin", x=lambda op, dy: dy / ops.sqrt(x=1.0 - op.x * op.x))
rule("acos", x=lambda op, dy: -(dy / ops.sqrt(x=1.0 - op.x * op.x)))
rule("atan", x=lambda op, dy: dy / (op.x * op.x + 1.0))
rule("sinh", x=lambda op, dy: dy * ops.cosh(x=op.x))
rule("cosh", x=lambda op, dy: dy * ops.sinh(x=op.x))
rule("tanh", x=lambda op, dy: dy * (1.0 - op.out * op.out))
rule("atanh", x=lambda op, dy: dy / (1.0 - op.x * op.x))
rule("threshold", x=lambda op, dy: _where(ops.greater(x=op.x, y=op.const("alpha")), dy, 0.0))


def _inside(op, dy, low, high):
    """dy where low < x < high."""
    inside = ops.logical_and(x=ops.greater(x=op.x, y=low), y=ops.less(x=op.x, y=high))
    return _where(inside, dy, 0.0)


rule("clip", x=lambda op, dy: _inside(op, dy, op.const("alpha"), op.const("beta")))

# -- activations


def _positive(op) -> Value:
    return ops.greater(x=op.x, y=0.0)


rule("relu", x=lambda op, dy: _where(_positive(op), dy, 0.0))
rule("relu6", x=lambda op, dy: _inside(op, dy, 0.0, 6.0))
rule("sigmoid", x=lambda op, dy: dy * op.out * (1.0 - op.out))
rule("softplus", x=lambda op, dy: dy * ops.sigmoid(x=op.x))
rule("elu", x=lambda op, dy: _where(_positive(op), dy, dy * (op.out + op.const("alpha"))))
rule("leaky_relu", x=lambda op, dy: _where(_positive(op), dy, dy * op.const("alpha")))
rule(
    "thresholded_relu",
    x=lambda op, dy: _where(ops.greater_equal(x=op.x, y=op.const("alpha")), dy, 0.0),
)
rule("linear_activation", x=lambda op, dy: dy * op.const("alpha"))


@rule_of("silu", "x")
def _silu(op, dy):
    s = ops.sigmoid(x=op.x)
    return dy * s * (op.x * (1.0 - s) + 1.0)


@rule_of("softsign", "x")
def _softsign(op, dy):
    d = ops.abs(x=op.x) + 1.0
    return dy / (d * d)


@rule_of("gelu", "x")
def _gelu(op, dy):
    x, mode = op.x, op.const("mode")
    if mode == "EXACT":
        phi = (ops.erf(x=x * math.sqrt(0.5)) + 1.0) * 0.5
        return dy * (phi + x * ops.exp(x=x * x * -0.5) * (1 / math.sqrt(2 * math.pi)))
    if mode == "TANH_APPROXIMATION":
        c, k = math.sqrt(2 / math.pi), 0.044715
        t = ops.tanh(x=(x + x * x * x * k) * c)
        return dy * ((t + 1.0) * 0.5 + x * (1.0 - t * t) * (x * x * (3 * k) + 1.0) * (c / 2))
    s = ops.sigmoid(x=x * 1.702)
    return dy * s * (x * (1.0 - s) * 1.702 + 1.0)


@rule_of("clamped_relu", "x")
def _clamped_relu(op, dy):
    alpha, beta = op.const("alpha"), op.const("beta")
    low = _where(ops.less(x=op.x * alpha, y=beta), dy * alpha, 0.0)
    return _where(_positive(op), _where(ops.less(x=op.x, y=beta), dy, 0.0), low)


@rule_of("scaled_tanh", "x")
def _scaled_tanh(op, dy):
    t = ops.tanh(x=op.x * op.const("beta"))
    return dy * (1.0 - t * t) * (op.const("alpha") * op.const("beta"))


@rule_of("sigmoid_hard", "x")
def _sigmoid_hard(op, dy):
    line = op.x * op.const("alpha") + op.const("beta")
    inside = ops.logical_and(x=ops.greater(x=line, y=0.0), y=ops.less(x=line, y=1.0))
    return _where(inside, dy * op.const("alpha"), 0.0)


def _per_channel(op, name):
    return ops.reshape(x=getattr(op, name), shape=[1, -1] + [1] * (len(op.shape("x")) - 2))


@rule_of("prelu", "x")
def _prelu(op, dy):
    return _where(_positive(op), dy, dy * _per_channel(op, "alpha"))


@rule_of("softplus_parametric", "x")
def _softplus_parametric(op, dy):
    alpha, beta = _per_channel(op, "alpha"), _per_channel(op, "beta")
    return dy * alpha * beta * ops.sigmoid(x=op.x * beta)


ELEMENTWISE.update(RULES)


@rule_of("softmax", "x")
def _softmax(op, dy):
    # p (dy - sum(p dy)): the sum is the part of dy that softmax cannot follow.
    p, axis = op.out, op.const("axis")
    return p * (dy - ops.reduce_sum(x=p * dy, axes=[axis], keep_dims=True))
