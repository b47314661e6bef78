"""Matrix products and attention against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

import opcase
from opcase import F, run, rounded, same

MATMUL = [((3, 5), (5, 7), 0, 0), ((5, 3), (5, 7), 1, 0), ((3, 5), (7, 5), 0, 1),
          ((5, 3), (7, 5), 1, 1), ((1, 1), (1, 1), 0, 0), ((5,), (5,), 0, 0), ((5,), (5, 7), 0, 0),
          ((3, 5), (5,), 0, 0), ((2, 1, 3, 5), (4, 5, 7), 0, 0), ((5,), (2, 3, 5, 7), 0, 0),
          ((2, 3, 4, 5), (5,), 0, 0), ((3, 0), (0, 2), 0, 0), ((0, 3), (3, 2), 0, 0),
          ((2, 3, 1, 5, 4), (3, 2, 7, 5), 1, 1), ((67, 131), (131, 521), 0, 0),
          ((2, 1, 3, 5), (1, 4, 7, 5), 0, 1), ((0, 2, 3), (3, 5), 0, 0)]


def slack(a, b):
    """Both sides sum in double in their own order."""
    return 2 * (a.shape[-1] + 1) * 2.0**-53 * (np.abs(a) @ np.abs(b))


@pytest.mark.parametrize("x, y, tx, ty", MATMUL)
@pytest.mark.parametrize("dtype", opcase.FI)
def test_matmul(x, y, tx, ty, dtype):
    x, y = opcase.data(x, dtype, 1), opcase.data(y, dtype, 2)
    a = (np.swapaxes(x, -1, -2) if tx else x).astype("f8")
    b = (np.swapaxes(y, -1, -2) if ty else y).astype("f8")
    got = run("matmul", {"x": x, "y": y}, transpose_x=bool(tx), transpose_y=bool(ty))
    if dtype == "int32":
        same(got, (a @ b).astype(np.int32))
    else:
        rounded(got, a @ b, "matmul", slack(a, b))


def test_matmul_int32_wraps():
    x = np.int32([[2**31 - 1, -2**31, 46341]])
    with np.errstate(over="ignore"):
        same(run("matmul", {"x": x, "y": x.T.copy()}), x @ x.T)


def test_matmul_two_dtypes():
    x, w = opcase.data((3, 5), "float16"), opcase.data((5, 7), "float32")
    a, b = x.astype("f8"), w.astype("f8")
    got = run("matmul", {"x": x}, opset="ios17", y=w)
    assert got.dtype == np.float16
    rounded(got, a @ b, "matmul", slack(a, b))
    with pytest.raises(TypeError, match="matmul.*x.*y"):
        run("matmul", {"x": x, "y": w}, opset="ios16")
    with pytest.raises(ValueError, match="matmul.*exactly one constant.*fp16.*fp32"):
        run("matmul", {"x": x, "y": w}, opset="ios17")


@pytest.mark.parametrize("x, y, kw, message", [
    ((3, 5), (4, 7), {}, r"matmul.*inner dimensions differ.*\[3, 5\].*\[4, 7\]"),
    ((2, 3, 5), (3, 5, 7), {}, r"matmul.*\[2, 3, 5\]|matmul.*broadcast"),
    ((5,), (5, 7), {"transpose_x": True}, "matmul.*rank 1 cannot be transposed"),
    ((), (5, 7), {}, "matmul.*scalar operand"),
])
def test_matmul_errors(x, y, kw, message):
    with pytest.raises(ValueError, match=message):
        run("matmul", {"x": np.zeros(x, "f4"), "y": np.zeros(y, "f4")}, **kw)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (1, 2, 3, 5), (0, 5)])
@pytest.mark.parametrize("dtype", opcase.FI)
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape, dtype, bias):
    x, w, b = opcase.data(shape, dtype), opcase.data((7, 5), dtype, 1), opcase.data((7,), dtype, 2)
    ref = x.astype("f8") @ w.T.astype("f8") + (b.astype("f8") if bias else 0)
    got = run("linear", {"x": x}, weight=w, **({"bias": b} if bias else {}))
    if dtype == "int32":
        same(got, ref.astype(np.int32))
    else:
        rounded(got, ref, "linear", 12 * 2.0**-53 * 4 * 4 * 6)


def test_linear_weights_of_another_dtype():
    x, w = opcase.data((3, 5), "float16"), opcase.data((7, 5), "float32", 1)
    got = run("linear", {"x": x}, opset="ios17", weight=w)
    rounded(got, x.astype("f8") @ w.T.astype("f8"), "linear", 2.0**-44)
    with pytest.raises(TypeError, match="linear.*weight"):
        run("linear", {"x": x}, opset="ios16", weight=w)


def test_linear_errors():
    x = np.zeros((3, 5), "f4")
    with pytest.raises(ValueError, match=r"linear.*\[3, 5\].*\[7, 4\]"):
        run("linear", {"x": x}, weight=np.zeros((7, 4), "f4"))
    with pytest.raises(ValueError, match="linear.*'bias' must have 7 elements, got 6"):
        run("linear", {"x": x}, weight=np.zeros((7, 5), "f4"), bias=np.zeros(6, "f4"))
    with pytest.raises(ValueError, match="linear.*weight must be a constant"):
        run("linear", {"x": x, "weight": np.zeros((7, 5), "f4")})


@pytest.mark.parametrize("x, y, equation", [
    ((2, 3, 5, 7), (2, 7, 5, 4), "bchw,bwhv->bchv"), ((1, 3, 5, 7), (2, 7, 1, 4), "nchw, nwhu -> nchu"),
    ((3, 1, 7), (7, 5, 4), "chw,whv->chv"), ((3, 5, 7), (7, 5, 4), "aBc,cBd->aBd")])
@pytest.mark.parametrize("dtype", F)
def test_einsum(x, y, equation, dtype):
    a, b = opcase.data(x, dtype), opcase.data(y, dtype, 1)
    n = len(x)
    full = [max(p, q) for p, q in zip(x, y)]
    xa = np.broadcast_to(a, (*([full[0]] if n == 4 else []), x[-3], full[-2], x[-1])).astype("f8")
    yb = np.broadcast_to(b, (*([full[0]] if n == 4 else []), y[-3], full[-2], y[-1])).astype("f8")
    rounded(run("einsum", {"values": [a, b]}, equation=equation),
            np.einsum(equation.replace(" ", ""), xa, yb), "einsum", 2.0**-44)


def test_einsum_errors():
    a = np.zeros((2, 3, 5, 7), "f4")
    with pytest.raises(NotImplementedError, match='einsum.*"ij,jk->ik".*only'):
        run("einsum", {"values": [a, a]}, equation="ij,jk->ik")
    with pytest.raises(ValueError, match="einsum.*does not fit"):
        run("einsum", {"values": [a, a]}, equation="nchw,nwhu->nchu")


def attention(q, k, v, mask=None):
    q, k, v = (t.astype("f8") for t in (q, k, v))
    s = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    if mask is not None:
        s = s + (np.where(mask, 0, -np.inf) if mask.dtype == bool else mask.astype("f8"))
    with np.errstate(invalid="ignore"):
        e = np.exp(s - s.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True) @ v


MASKS = [None, ((5, 7), "bool"), ((5, 7), None), ((2, 3, 5, 7), "bool"), ((1, 7), None),
         ((7,), None), ((3, 1, 7), "bool"), ((2, 1, 1, 7), None)]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", F)
def test_attention(mask, dtype):
    q, k, v = (opcase.data((2, 3, n, d), dtype, i) for i, (n, d) in
               enumerate([(5, 4), (7, 4), (7, 6)]))
    extra = {}
    if mask:
        extra["attn_mask"] = opcase.data(mask[0], mask[1] or dtype, 3)
        if mask[1]:
            extra["attn_mask"][..., 0] = True
    got = run("scaled_dot_product_attention", {"query": q, "key": k, "value": v, **extra})
    rounded(got, attention(q, k, v, extra.get("attn_mask")), "attention", 2.0**-46)


def test_attention_row_without_anything_to_attend_is_nan():
    q = opcase.data((1, 2, 3), "float32")
    got = run("scaled_dot_product_attention", {"query": q, "key": q, "value": q,
                                               "attn_mask": np.array([[True, False], [False, False]])})
    assert np.isnan(got[0, 1]).all() and not np.isnan(got[0, 0]).any()


@pytest.mark.parametrize("q, k, v, m, message", [
    ((2, 5, 4), (3, 7, 4), (3, 7, 6), None, "equal leading dimensions"),
    ((2, 5, 4), (2, 7, 3), (2, 7, 6), None, "wants query"),
    ((5, 4), (7, 4), (7, 6), None, "rank from 3"),
    ((2, 5, 4), (2, 7, 4), (2, 7, 6), (5, 1), "end in S = 7"),
])
def test_attention_errors(q, k, v, m, message):
    extra = {"attn_mask": np.zeros(m, "f4")} if m else {}
    with pytest.raises(ValueError, match=f"scaled_dot_product_attention.*{message}"):
        run("scaled_dot_product_attention", {"query": np.zeros(q, "f4"), "key": np.zeros(k, "f4"),
                                             "value": np.zeros(v, "f4"), **extra})


def test_attention_needs_ios18():
    q = np.zeros((1, 2, 3), "f4")
    with pytest.raises(ValueError, match="scaled_dot_product_attention.*needs ios18"):
        run("scaled_dot_product_attention", {"query": q, "key": q, "value": q}, opset="ios17")
