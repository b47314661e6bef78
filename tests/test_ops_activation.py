"""Activations and softmax against NumPy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

import opcase
from opcase import F, HALVES, run, rounded

erfc = np.vectorize(math.erfc, otypes=[float])


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


PLAIN = {
    "relu": lambda v: np.maximum(v, 0), "relu6": lambda v: np.clip(v, 0, 6), "sigmoid": sigmoid,
    "silu": lambda v: v / (1 + np.exp(-v)), "softplus": lambda v: np.logaddexp(v, 0),
    "softsign": lambda v: np.where(np.isinf(v), np.sign(v), v / (1 + np.abs(v))),
}
A, B = 0.3125, -0.75            # exact in fp16
WITH = {
    "elu": (lambda v: np.where(v > 0, v, A * np.expm1(v)), {"alpha": A}),
    "leaky_relu": (lambda v: np.where(v > 0, v, A * v), {"alpha": A}),
    "thresholded_relu": (lambda v: np.where(v < A, 0, v), {"alpha": A}),
    "clamped_relu": (lambda v: np.where(v >= 0, np.minimum(1.5, v), np.minimum(1.5, A * v)),
                     {"alpha": A, "beta": 1.5}),
    "linear_activation": (lambda v: A * v + B, {"alpha": A, "beta": B}),
    "scaled_tanh": (lambda v: A * np.tanh(B * v), {"alpha": A, "beta": B}),
    "sigmoid_hard": (lambda v: np.clip(A * v + 0.5, 0, 1), {"alpha": A, "beta": 0.5}),
}
GELU = {
    "EXACT": lambda v: 0.5 * v * erfc(-v / np.sqrt(2)),
    "TANH_APPROXIMATION": lambda v: 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi)
                                                           * (v + 0.044715 * v**3))),
    "SIGMOID_APPROXIMATION": lambda v: v * sigmoid(1.702 * v),
}


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield


def check(op, x, ref, got):
    # The oracle's own cancellations (1 + tanh near -1) are below 2^-48 here.
    rounded(got, ref, op, slack=np.where(np.isfinite(ref), 2.0**-48 * (1 + np.abs(ref)), 0))


@pytest.mark.parametrize("op", PLAIN)
def test_plain_over_all_halves(op):
    x = HALVES[None, :]
    check(op, x, PLAIN[op](x.astype("f8")), run(op, {"x": x}))


@pytest.mark.parametrize("op", WITH)
def test_with_constants_over_all_halves(op):
    fn, consts = WITH[op]
    x = HALVES[None, :]
    ref = fn(x.astype("f8"))
    check(op, x, ref, run(op, {"x": x}, "ios16", **{k: np.float16(v) for k, v in consts.items()}))
    check(op, x, ref, run(op, {"x": x}, "ios17", **{k: np.float32(v) for k, v in consts.items()}))
    with pytest.raises(TypeError, match=f"{op}.*alpha"):
        run(op, {"x": x}, "ios16", **{k: np.float32(v) for k, v in consts.items()})


@pytest.mark.parametrize("op", [*PLAIN, *WITH])
@pytest.mark.parametrize("shape", opcase.SHAPES)
def test_shapes_float32(op, shape):
    x = opcase.data(shape)
    fn, consts = WITH.get(op) or (PLAIN[op], {})
    check(op, x, fn(x.astype("f8")), run(op, {"x": x}, **{k: np.float32(v) for k, v in consts.items()}))


@pytest.mark.parametrize("mode", GELU)
def test_gelu(mode):
    x = HALVES[None, :]
    check("gelu", x, GELU[mode](x.astype("f8")), run("gelu", {"x": x}, mode=mode))


def test_gelu_keeps_its_digits_far_below_zero():
    got = run("gelu", {"x": np.float32([-12.0])})[0]
    assert got != 0 and abs(got / (-6 * math.erfc(12 / math.sqrt(2))) - 1) < 2.0**-23


def test_gelu_mode_is_checked():
    with pytest.raises(ValueError, match='gelu.*\'mode\' must be one of EXACT.*got "FAST"'):
        run("gelu", {"x": np.float32([1])}, mode="FAST")


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 5, 4), (1, 3, 2, 1, 7)])
@pytest.mark.parametrize("dtype", F)
def test_per_channel(shape, dtype):
    x = opcase.data(shape, dtype)
    a, b = opcase.data((3,), dtype, 1, 0.5, 2), opcase.data((3,), dtype, 2, 0.5, 2)
    c = [1, 3] + [1] * (len(shape) - 2)
    v, av, bv = x.astype("f8"), a.astype("f8").reshape(c), b.astype("f8").reshape(c)
    check("softplus_parametric", x, av * np.logaddexp(bv * v, 0),
          run("softplus_parametric", {"x": x}, alpha=a, beta=b))
    if len(shape) != 4:
        with pytest.raises(ValueError, match="prelu.*all values of 'alpha' must be equal"):
            run("prelu", {"x": x}, alpha=a)
        a, av = np.repeat(a[:1], 3), av[:, :1]
    check("prelu", x, np.where(v > 0, v, av * v), run("prelu", {"x": x}, alpha=a))


def test_per_channel_lengths_are_checked():
    with pytest.raises(ValueError, match=r"prelu.*one element per channel \(3\), got 4"):
        run("prelu", {"x": np.zeros((2, 3, 4, 5), "f4")}, alpha=np.zeros(4, "f4"))


@pytest.mark.parametrize("shape, axis", [((7,), -1), ((1,), 0), ((2, 3, 5), 0), ((2, 3, 5), 1),
                                         ((2, 3, 5), -1), ((2, 1, 3, 2, 5), -3), ((3, 0), 0)])
@pytest.mark.parametrize("dtype", F)
def test_softmax(shape, axis, dtype):
    x = opcase.data(shape, dtype, low=-20, high=20)
    e = np.exp(x.astype("f8") - x.astype("f8").max(axis, keepdims=True)) if x.size else x
    check("softmax", x, e / e.sum(axis, keepdims=True) if x.size else x,
          run("softmax", {"x": x}, axis=axis))


def test_softmax_extremes():
    x = np.float16([[65504, 65504, -65504], [-np.inf, 0, 0], [np.nan, 0, 0],
                    [-np.inf, -np.inf, -np.inf]])
    got = run("softmax", {"x": x})
    np.testing.assert_array_equal(got, np.float16([[0.5, 0.5, 0], [0, 0.5, 0.5], [np.nan] * 3,
                                                   [np.nan] * 3]))


def test_softmax_axis_is_checked():
    with pytest.raises((ValueError, IndexError), match="softmax.*axis.*2"):
        run("softmax", {"x": np.zeros((2, 3), "f4")}, axis=2)
