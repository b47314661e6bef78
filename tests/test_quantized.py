"""Quantised programs: 8-bit operands stay integers inside convolutions, linear and matmul.
Against float64, and equal to the reference evaluation where its arithmetic is exact too."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import opcase
import pytest
import tolerance

import anetorch
import anetorch.mil as mil
from anetorch import _core

U = tolerance.U["float32"]
KINDS = {"int8": np.int8, "uint8": np.uint8}


def bytes_of(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    info = np.iinfo(KINDS[kind])
    return rng.integers(info.min, info.max + 1, shape).astype(KINDS[kind])


def weights(o, w, scale, zero, axis, form):
    """The same compressed weights in each form there is."""
    if form == "affine":
        return o.constexpr_affine_dequantize(quantized_data=w, zero_point=np.array(zero, w.dtype),
                                             scale=scale, axis=np.int32(axis))
    if form == "blockwise":
        shape = [len(scale) if d == axis else 1 for d in range(w.ndim)]
        return o.constexpr_blockwise_shift_scale(
            data=w, scale=scale.reshape(shape), offset=np.full(shape, zero, w.dtype))
    return o.dequantize(input=w, scale=scale, zero_point=np.full(scale.shape, zero, w.dtype), axis=axis)


def program(op: str, kind: str, wkind: str, form: str, exact: bool, seed: int = 0):
    """x (floats) -> quantize -> dequantize -> op -> relu, and what it is made of."""
    rng = np.random.default_rng(seed)
    xs, ws, axis = {"conv": ((2, 7, 6, 5), (9, 7, 3, 3), 0), "linear": ((2, 3, 33), (10, 33), 0),
                    "matmul": ((3, 18), (18, 11), 1), "1x1": ((1, 20, 1, 13), (17, 20, 1, 1), 0),
                    "conv_transpose": ((1, 6, 4, 5), (6, 8, 3, 2), 1),
                    "depthwise": ((2, 43, 9, 11), (43, 1, 3, 3), 0),
                    "depthwise even": ((1, 8, 7, 6), (8, 1, 2, 3), 0)}[op]
    n = ws[axis]
    if form == "dequantize" and op in ("linear", "conv_transpose", "depthwise even"):
        form = "affine"         # their weights must be constants as the program stands
    w = bytes_of(rng, ws, wkind)
    scale = (2.0 ** rng.integers(-9, -5, n) if exact else rng.uniform(0.001, 0.02, n)).astype("f4")
    x_scale = np.float32(2**-6 if exact else 0.0171)
    zero_x, zero_w = (int(bytes_of(rng, (), k)) for k in (kind, wkind))
    bias = np.round(rng.standard_normal(n) * 64).astype("f4") / 64

    def body(x):
        o = mil.ops
        q = o.quantize(input=x, scale=x_scale, zero_point=KINDS[kind](zero_x), output_dtype=kind)
        d = o.dequantize(input=q, scale=x_scale, zero_point=KINDS[kind](zero_x))
        v = weights(o, w, scale, zero_w, axis, form)
        if op == "linear":
            y = o.linear(d, v, bias=bias)
        elif op == "matmul":
            y = o.matmul(d, v)
        elif op == "conv_transpose":
            y = o.conv_transpose(d, v, bias=bias, strides=[2, 1])
        elif op == "depthwise":
            y = o.conv(d, v, bias=bias, pad_type="same", strides=[1, 2], groups=n)
        elif op == "depthwise even":
            y = o.conv(d, v, bias=bias, pad_type="custom", pad=[4, 0, 1, 5], dilations=[3, 2], groups=n)
        else:
            y = o.conv(d, v, bias=bias, pad_type="same")
        return o.relu(y)

    p = mil.build(body, {"x": mil.spec(xs, "fp32")}, opset="ios18")
    x = (rng.standard_normal(xs) * 40 * x_scale).astype("f4")
    return p, x, int(np.prod(ws)) // n


@pytest.mark.parametrize("op, kind, wkind, form", [
    (o, *k, f) for (o, k), f in zip(
        itertools.product(["conv", "linear", "matmul", "1x1", "conv_transpose", "depthwise", "depthwise even"],
                          itertools.product(KINDS, KINDS)),
        itertools.cycle(["affine", "blockwise", "dequantize"]))])
def test_a_quantised_product(op: str, kind: str, wkind: str, form: str) -> None:
    for exact in (True, False):
        p, x, k = program(op, kind, wkind, form, exact)
        kernel = anetorch.compile(p)
        ran = {s["kernel"].split("_")[0] for s in kernel.report()}
        assert ran & {"int16", "int8"} and "reference" not in ran, kernel.report()
        assert not any(s["op"] == "dequantize" for s in kernel.report())
        got = np.asarray(kernel(x))
        wide = np.asarray(next(iter(_core._testing.eval(p, {"x": x}, wide=True).values())))
        if exact:       # every scale a power of two, every sum below 2**24: no rounding at all
            ref = next(iter(_core._testing.eval(p, {"x": x}).values()))
            np.testing.assert_array_equal(got, ref)
            np.testing.assert_array_equal(got, wide.astype(np.float32))
        else:           # the sum as a float, the scale, their product, the bias
            tolerance.check(got, wide, 6 * U * (abs(wide) + 0.0171 * 0.02 * k * 255**2), op)


@pytest.mark.parametrize("switch", [{"ANETORCH_NO_FUSE": "quant"}, {"ANETORCH_NO_FUSE": "conv"},
                                    {"ANETORCH_NO_KERNELS": "int8"}, {"ANETORCH_FUSION": "0"}])
def test_off(switch: dict[str, str], tmp_path) -> None:
    code = ("import sys, numpy as np; sys.path.insert(0, sys.argv[1]); import test_quantized as t\n"
            "import anetorch\n"
            "for op in ('conv', 'linear'):\n"
            "    p, x, _ = t.program(op, 'int8', 'int8', 'affine', True)\n"
            "    k = anetorch.compile(p)\n"
            "    assert not any(s['kernel'].startswith(('int16', 'int8')) for s in k.report())\n"
            "    np.save(sys.argv[2] + op, np.asarray(k(x)))")
    out = subprocess.run([sys.executable, "-c", code, os.path.dirname(__file__), f"{tmp_path}/"],
                         env={**os.environ, **switch}, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    for op in ("conv", "linear"):
        p, x, _ = program(op, "int8", "int8", "affine", True)
        np.testing.assert_array_equal(np.load(tmp_path / f"{op}.npy"), np.asarray(anetorch.compile(p)(x)))


def test_a_dequantised_value_with_other_users_stays() -> None:
    w = bytes_of(np.random.default_rng(0), (4, 4), "int8")

    def body(x):
        d = mil.ops.dequantize(input=x, scale=np.float32(0.5))
        v = mil.ops.constexpr_affine_dequantize(quantized_data=w, zero_point=np.int8(0),
                                                scale=np.float32(1), axis=np.int32(0))
        return mil.ops.add(mil.ops.linear(d, v), d)

    k = anetorch.compile(mil.build(body, {"x": mil.spec((3, 4), "int8")}, opset="ios18"))
    x = bytes_of(np.random.default_rng(1), (3, 4), "int8")
    np.testing.assert_array_equal(np.asarray(k(x)), x * 0.5 @ w.T.astype("f8") + x * 0.5)
    assert any(s["kernel"].startswith(("int16", "int8")) for s in k.report())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape, axis", [((7,), None), ((3, 5, 4), 1), ((2, 600), 1), ((4, 3), 0), ((0, 3), None)])
@pytest.mark.parametrize("dtype", opcase.F)
def test_quantize_and_dequantize(kind: str, shape, axis, dtype) -> None:
    """The device gives what the reference gives: halves to even, saturation, NaN to zero."""
    rng = np.random.default_rng(1)
    n = () if axis is None else (shape[axis],)
    scale = rng.uniform(0.01, 0.1, n).astype(dtype)
    zero = bytes_of(rng, n, kind)
    x = (rng.standard_normal(shape) * 8).astype(dtype)
    if x.size > 6:
        x.reshape(-1)[:6] = [np.nan, np.inf, -np.inf, 0, 1e4, -1e4]
    kw = {} if axis is None else {"axis": axis}

    def body(v):
        q = mil.ops.quantize(input=v, scale=scale, zero_point=zero, output_dtype=kind, **kw)
        return q, mil.ops.dequantize(input=q, scale=scale, zero_point=zero, **kw)

    p = mil.build(body, {"v": mil.spec(shape, opcase.MIL[dtype])}, opset="ios18")
    k = anetorch.compile(p)
    assert all(s["kernel"] == "quant" for s in k.report())
    ref = _core._testing.eval(p, {"v": x})
    for got, want in zip(k(x).values(), ref.values(), strict=True):
        opcase.same(np.asarray(got), want)


CASES = {       # x, weights, attributes of the convolution
    "3x3": ((2, 7, 6, 5), (9, 7, 3, 3), {"pad_type": "same"}),
    "1x1": ((1, 20, 7, 7), (33, 20, 1, 1), {}),
    "one": ((1, 3, 1, 1), (1, 3, 1, 1), {}),
    "strided": ((1, 5, 9, 11), (70, 5, 3, 2), {"strides": [2, 3], "pad_type": "same"}),
    "depthwise": ((2, 19, 9, 8), (19, 1, 3, 3), {"groups": 19, "pad_type": "same"}),
    "grouped": ((1, 6, 5, 5), (4, 3, 3, 3), {"groups": 2}),
    "1d": ((2, 6, 17), (5, 6, 3), {"pad_type": "same"}),
    "long": ((1, 600, 3, 5), (17, 600, 1, 3), {}),
    "transposed": ((1, 6, 4, 5), (6, 8, 3, 2), {"strides": [2, 1]}),
}


def quantised_by_numpy(y: np.ndarray, scale: np.generic, zero: int, kind: str) -> np.ndarray:
    info = np.iinfo(KINDS[kind])
    with np.errstate(invalid="ignore", over="ignore"):
        q = np.rint(y.astype("f8") / float(scale)) + zero
    return np.where(np.isnan(q), 0, np.clip(q, info.min, info.max)).astype(KINDS[kind])


def stored_as_bytes(case: str, dtype: str, kind: str, eight: bool, residual: bool, leaves: str):
    """conv, relu6, maybe a residual, quantize; `eight`: of 8-bit operands. `leaves`: the bytes
    alone, bytes and floats, or the floats (what the bytes are made of)."""
    rng = np.random.default_rng(len(case))
    xs, ws, attrs = CASES[case]
    f, o, transposed = np.dtype(dtype).type, mil.ops, case == "transposed"
    n = ws[1] if transposed else ws[0]
    w, zero = bytes_of(rng, ws, "int8"), int(bytes_of(rng, (), kind)) // 4
    scale, w_scale, bias = f(0.043), f(2.0**-7), rng.standard_normal(n).astype(f)
    terms = int(np.prod(ws)) // n

    def body(x, r=None):
        if eight:
            x = o.dequantize(input=o.quantize(input=x, scale=f(0.03), zero_point=np.int8(3),
                                              output_dtype="int8"), scale=f(0.03), zero_point=np.int8(3))
            v = o.constexpr_affine_dequantize(quantized_data=w, zero_point=np.int8(0), scale=w_scale,
                                              axis=np.int32(0))
        else:
            v = (w * w_scale).astype(f)
        y = (o.conv_transpose if transposed else o.conv)(x, v, bias=bias, **attrs)
        if r is not None:
            y = o.add(x=o.relu6(x=y), y=r)
        q = o.quantize(input=y, scale=scale, zero_point=KINDS[kind](zero), output_dtype=kind)
        return {"bytes": {"q": q}, "both": {"q": q, "y": y}, "floats": {"y": y}}[leaves]

    ports = {"x": mil.spec(xs, opcase.MIL[dtype])}
    inputs = {"x": (rng.standard_normal(xs) / terms**0.5).astype(f)}
    if residual:
        shape = anetorch.compile(stored_as_bytes(case, dtype, kind, eight, False, "floats")[0])(**inputs).shape
        ports["r"] = mil.spec(tuple(shape), opcase.MIL[dtype])
        inputs["r"] = rng.standard_normal(shape).astype(f)
    return mil.build(body, ports, opset="ios18"), inputs, scale, zero


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_store_of_a_convolution_quantises(case: str, kind: str, dtype: str) -> None:
    """Bit for bit what quantize makes of the floats, alone or beside them."""
    for eight, residual in itertools.product([False, True], repeat=2):
        args = (case, dtype, kind, eight, residual)
        p, inputs, scale, zero = stored_as_bytes(*args, "floats")
        y = np.asarray(anetorch.compile(p)(**inputs))
        want = quantised_by_numpy(y, scale, zero, kind)
        assert want.size < 20 or len(np.unique(want)) > 10
        for leaves in ("bytes", "both"):
            k = anetorch.compile(stored_as_bytes(*args, leaves)[0])
            assert any(s["op"].endswith("+quantize") for s in k.report()), k.report()
            got = k(**inputs)
            q = got["q"] if leaves == "both" else got
            np.testing.assert_array_equal(np.asarray(q), want, f"{eight} {residual} {leaves}")
            if leaves == "both":
                np.testing.assert_array_equal(np.asarray(got["y"]), y)


def test_a_store_quantises_nan_inf_and_ties() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.25, 0.75, -0.25, 63.75, 1e30, 0.2499999, 127.4], "f4")

    def body(v):
        y = mil.ops.conv(v, np.ones((1, 1, 1, 1), "f4"))
        return mil.ops.quantize(input=y, scale=np.float32(0.5), zero_point=np.int8(5), output_dtype="int8")

    k = anetorch.compile(mil.build(body, {"v": mil.spec((1, 1, 1, len(x)), "fp32")}, opset="ios18"))
    np.testing.assert_array_equal(np.asarray(k(x.reshape(1, 1, 1, -1))).ravel(),
                                  quantised_by_numpy(x, np.float32(0.5), 5, "int8"))


def test_a_quantize_that_is_not_the_first_user_is_a_step_of_its_own() -> None:
    def body(x):
        y = mil.ops.conv(x, np.ones((3, 2, 1, 1), "f4"))
        z = mil.ops.exp(x=y)
        return z, mil.ops.quantize(input=y, scale=np.float32(0.1), zero_point=np.int8(0), output_dtype="int8")

    k = anetorch.compile(mil.build(body, {"x": mil.spec((1, 2, 3, 3), "fp32")}, opset="ios18"))
    assert not any("+quantize" in s["op"] for s in k.report())
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 3)).astype("f4")
    got = [np.asarray(v) for v in k(x).values()]
    y = np.repeat(x.sum(1, keepdims=True), 3, 1)
    np.testing.assert_array_equal(got[1], quantised_by_numpy(y, np.float32(0.1), 0, "int8"))
