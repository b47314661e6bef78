"""Normalisations as planned, against float64 with the bound derived from their two passes."""

from __future__ import annotations

import numpy as np
import opcase
import pytest
import tolerance

import anetorch
import anetorch.mil as mil

U = tolerance.U["float32"]


def run(op: str, x: np.ndarray, last: bool = False, **kw) -> np.ndarray:
    """op through the device; last: x is made channels last by a convolution in front, whose
    weights are the identity."""
    def body(x_):
        if last:
            eye = np.eye(x.shape[1], dtype=x.dtype).reshape(*[x.shape[1]] * 2, *[1] * (x.ndim - 2))
            edge = np.concatenate([np.zeros_like(eye), eye], axis=-1)
            x_ = mil.ops.conv(x_, edge, pad_type="custom", pad=[0] * (2 * (x.ndim - 2) - 2) + [1, 0])
        return getattr(mil.ops, op)(x_, **kw)

    kind = {"float32": "fp32", "float16": "fp16"}[x.dtype.name]
    k = anetorch.compile(mil.build(body, {"x_": mil.spec(x.shape, kind)}, opset="ios18"))
    assert all(s["kernel"] != "reference" for s in k.report()), op
    return np.asarray(k(x))


def standard(x, axes, eps, gamma, beta, dtype):
    """(reference, bound) of (x - mean) / sqrt(var + eps) * gamma + beta."""
    n = int(np.prod([x.shape[a] for a in axes]))
    kw = {"axis": tuple(axes), "keepdims": True}
    mean, var = x.mean(**kw), x.var(**kw)
    rstd, c = 1 / np.sqrt(var + eps), x - mean
    # One value's error behind the subtraction, that of the variance, and of the product.
    off = (n + 2) * U * abs(x).mean(**kw) + U * abs(c)
    wrong = (2 * (abs(c) * off).mean(**kw) + (off * off).mean(**kw)) / (2 * (var + eps))
    y = c * rstd
    bound = (rstd * off + abs(y) * (wrong + (n + 6) * U)) * abs(gamma)
    ref = y * gamma + beta
    return ref, bound + 2 * U * (abs(y * gamma) + abs(ref)) + tolerance.rounding(ref, dtype)


LAYERS = [((2, 5), [1]), ((3, 1, 7), [-1]), ((1, 96, 1, 33), [1]), ((2, 3, 300), [1, 2]),
          ((4, 6, 5, 3), [1, 3]), ((2, 70, 2, 9), [1]), ((7,), [0]), ((2, 3, 4), [2, 0]),
          ((1, 1500, 3), [1]), ((5, 1), [1])]


@pytest.mark.parametrize("dtype", opcase.F)
@pytest.mark.parametrize("shape, axes", LAYERS)
def test_layer_norm(shape, axes, dtype) -> None:
    x = opcase.data(shape, dtype, low=-3, high=5)
    order = sorted(a % len(shape) for a in axes)
    own = [shape[a] for a in order]
    wide = [n if d in order else 1 for d, n in enumerate(shape)]
    gamma, beta = opcase.data(tuple(own), dtype, 1), opcase.data(tuple(own), dtype, 2)
    g, b = (v.astype("f8").reshape(wide) for v in (gamma, beta))
    for kw, gg, bb in (({}, np.ones(wide), np.zeros(wide)), ({"gamma": gamma, "beta": beta}, g, b)):
        got = run("layer_norm", x, axes=axes, **kw)
        ref, bound = standard(x.astype("f8"), order, np.float64(np.dtype(dtype).type(1e-5)), gg, bb, dtype)
        tolerance.check(got, ref, bound, f"layer_norm {shape} {axes}")


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", opcase.F)
@pytest.mark.parametrize("shape", [(2, 3, 17), (1, 1, 4, 5), (2, 70, 3, 4), (3, 16, 1, 1), (1, 8, 31, 33)])
def test_instance_and_batch_norm(shape, dtype, last) -> None:
    x = opcase.data(shape, dtype, low=-3, high=5)
    c = (shape[1],)
    gamma, beta, mean = (opcase.data(c, dtype, i) for i in (1, 2, 3))
    wide = (1, -1, *[1] * (len(shape) - 2))
    g, b, m = (v.astype("f8").reshape(wide) for v in (gamma, beta, mean))
    eps = np.float64(np.dtype(dtype).type(1e-5))
    if len(shape) < 5:
        got = run("instance_norm", x, last, gamma=gamma, beta=beta)
        ref, bound = standard(x.astype("f8"), range(2, len(shape)), eps, g, b, dtype)
        tolerance.check(got, ref, bound, f"instance_norm {shape}")
    var = opcase.data(c, dtype, 4, low=0.1, high=3)
    got = run("batch_norm", x, last, mean=mean, variance=var, gamma=gamma, beta=beta)
    scale = g / np.sqrt(var.astype("f8").reshape(wide) + eps)
    ref = (x.astype("f8") - m) * scale + b
    # scale and shift are rounded, the product and the sum round.
    bound = U * (3 * abs(x * scale) + 2 * (abs(m * scale) + abs(b)) + abs(ref))
    tolerance.check(got, ref, bound + tolerance.rounding(ref, dtype), f"batch_norm {shape}")


@pytest.mark.parametrize("dtype", opcase.F)
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 1, 3, 70), (2, 2, 40, 1, 3)])
def test_l2_norm(shape, dtype) -> None:
    x = opcase.data(shape, dtype)
    v, n = x.astype("f8"), int(np.prod(shape[-3:]))
    ref = v / np.sqrt((v * v).sum((-3, -2, -1), keepdims=True) + np.float64(np.dtype(dtype).type(1e-6)))
    bound = (n + 6) * U * abs(ref) + tolerance.rounding(ref, dtype)
    tolerance.check(run("l2_norm", x), ref, bound, f"l2_norm {shape}")


def test_a_row_of_one_value_and_of_infinities() -> None:
    x = np.full((2, 64), 3, np.float32)
    x[1, 5] = np.inf
    y = run("layer_norm", x, axes=[1])
    assert (y[0] == 0).all() and np.isnan(y[1]).all()


@pytest.mark.parametrize("axes", [[1], [2, 3], [1, 2, 3], [3]])
def test_reductions_of_channels_last(axes) -> None:
    x = opcase.data((2, 37, 5, 6))
    n = int(np.prod([x.shape[a] for a in axes]))
    v = x.astype("f8")
    for op, ref in (("reduce_mean", v.mean(tuple(axes))), ("reduce_max", v.max(tuple(axes)))):
        bound = (n + 2) * U * abs(v).mean(tuple(axes)) + U * abs(ref)
        tolerance.check(run(op, x, True, axes=axes), ref, bound, f"{op} {axes}")
