"""Element-wise ops, cast, clip and select against NumPy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

import opcase
from opcase import F, FI, FIB, HALVES, run, rounded, same

erf = np.vectorize(math.erf, otypes=[float])
UNARY = {
    "abs": np.abs, "sign": np.sign, "square": np.square, "exp2": np.exp2, "acos": np.arccos,
    "asin": np.arcsin, "atan": np.arctan, "atanh": np.arctanh, "ceil": np.ceil, "cos": np.cos,
    "cosh": np.cosh, "erf": erf, "exp": np.exp, "floor": np.floor, "round": np.rint,
    "sin": np.sin, "sinh": np.sinh, "sqrt": np.sqrt, "tan": np.tan, "tanh": np.tanh,
}


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("op", UNARY)
def test_unary_over_all_halves(op):
    x = HALVES[None, :]
    ref = UNARY[op](x.astype(np.float64))
    rounded(run(op, {"x": x}), ref, op)


@pytest.mark.parametrize("op", UNARY)
def test_unary_float32(op):
    x = np.concatenate([opcase.data((1009,), "float32", low=-100, high=100),
                        np.float32([0, -0.0, 1, -1, 0.5, 1e-40, 3e38, np.inf, -np.inf, np.nan])])
    ref = UNARY[op](x.astype(np.float64))
    rounded(run(op, {"x": x}), ref, op, slack=np.where(np.isfinite(ref), 2.0**-51 * np.abs(ref), 0))


@pytest.mark.parametrize("shape", opcase.SHAPES)
@pytest.mark.parametrize("dtype", FI)
def test_unary_shapes(shape, dtype):
    x = opcase.data(shape, dtype)
    same(run("square", {"x": x}), x * x, f"square {shape}")
    same(run("abs", {"x": x}), np.abs(x), f"abs {shape}")


def test_unary_int32_wraps():
    x = np.int32([-2**31, 2**31 - 1, 65536, -7, 0, 46341])
    same(run("square", {"x": x}), x * x)
    same(run("abs", {"x": x}), np.abs(x))
    same(run("sign", {"x": x}), np.sign(x))
    same(run("exp2", {"x": np.int32([0, 3, 30, -1])}), np.int32([1, 8, 2**30, 0]))


@pytest.mark.parametrize("op, fn", [
    ("rsqrt", lambda v: 1 / np.sqrt(v)), ("inverse", lambda v: 1 / v), ("log", np.log)])
@pytest.mark.parametrize("epsilon", [None, 1e-3, 0.0])
def test_epsilon_ops_over_all_halves(op, fn, epsilon):
    default = {"rsqrt": 1e-12, "inverse": 1e-4, "log": 1e-45}[op]
    # A default is of x's type: 1e-12 and 1e-45 are 0 in fp16.
    eps = np.float64(np.float16(default if epsilon is None else epsilon))
    x = HALVES[None, :]
    kw = {} if epsilon is None else {"epsilon": np.float16(epsilon)}
    rounded(run(op, {"x": x}, opset="ios16", **kw), fn(x.astype(np.float64) + eps), op)


@pytest.mark.parametrize("op", ["rsqrt", "inverse", "log"])
def test_epsilon_may_have_the_other_type_since_ios17(op):
    x = np.float16([0.0, 1.0, 4.0])
    run(op, {"x": x}, opset="ios17", epsilon=np.float32(1e-6))
    with pytest.raises(TypeError, match=f"{op}.*epsilon"):
        run(op, {"x": x}, opset="ios16", epsilon=np.float32(1e-6))


def test_log_default_is_the_least_subnormal_in_float32():
    got = run("log", {"x": np.float32([0.0, 1.0])})
    rounded(got, [np.log(np.float64(np.float32(1e-45))), 0.0], "log")
    assert run("log", {"x": np.float16([0.0])})[0] == -np.inf


BINARY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "maximum": np.maximum,
    "minimum": np.minimum, "real_div": np.true_divide, "floor_div": np.floor_divide,
    "mod": np.mod, "pow": np.power,
}
COMPARE = {"equal": np.equal, "not_equal": np.not_equal, "less": np.less,
           "less_equal": np.less_equal, "greater": np.greater, "greater_equal": np.greater_equal}
PAIRS = [((), ()), ((3,), ()), ((), (3, 1)), ((7,), (7,)), ((2, 1, 5), (3, 1)), ((1,), (2, 3)),
         ((2, 3, 1, 5), (3, 7, 1)), ((4, 1), (1, 0)), ((2, 3, 1, 2, 1), (1, 5, 1, 7)),
         ((5, 1), (5, 11))]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 3.0, -3.0, 1e-4, 65504.0, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("op", BINARY)
@pytest.mark.parametrize("dtype", F)
@pytest.mark.parametrize("shapes", PAIRS)
def test_binary_float(op, dtype, shapes):
    x, y = (opcase.data(s, dtype, seed=i) for i, s in enumerate(shapes))
    rounded(run(op, {"x": x, "y": y}), BINARY[op](x.astype("f8"), y.astype("f8")), op)


@pytest.mark.parametrize("op", BINARY)
@pytest.mark.parametrize("dtype", F)
def test_binary_special_values(op, dtype):
    x, y = np.array(SPECIAL, dtype)[:, None], np.array(SPECIAL, dtype)[None, :]
    ref = BINARY[op](x.astype("f8"), y.astype("f8"))
    got = run(op, {"x": x, "y": y})
    rounded(got, ref, op)
    if op != "pow":
        assert (np.signbit(got) == np.signbit(ref))[~np.isnan(ref) & (ref == 0)].all() or \
            op in ("maximum", "minimum")


@pytest.mark.parametrize("op", ["add", "sub", "mul", "maximum", "minimum", "floor_div", "mod"])
def test_binary_int32(op):
    v = np.int32([0, 1, -1, 7, -7, 3, -3, 2**31 - 1, -2**31, 65537, 46341])
    x, y = v[:, None], v[None, :]
    ref = BINARY[op](x, y)                      # NumPy: wraps, and x // 0 == x % 0 == 0
    same(run(op, {"x": x, "y": y}), ref.astype(np.int32), op)


def test_int32_division_truncates_and_warns():
    p, v = opcase.build("real_div", {"x": np.int32([7, -7, 1]), "y": np.int32([2, 2, 0])})
    from anetorch import _core
    same(next(iter(_core._testing.eval(p, v).values())), np.int32([3, -3, 0]))
    assert any("real_div" in str(w) for w in p.warnings())


def test_int32_pow():
    same(run("pow", {"x": np.int32([3, -2, 0, 2]), "y": np.int32([4, 3, 0, 31])}),
         np.int32([81, -8, 1, -2**31]))
    with pytest.raises(ValueError, match="pow.*exponent -1"):
        run("pow", {"x": np.int32([2])}, y=np.int32([-1]))
    with pytest.raises(ValueError, match="pow.*exponent -1"):
        run("pow", {"x": np.int32([2]), "y": np.int32([-1])})


@pytest.mark.parametrize("op", COMPARE)
@pytest.mark.parametrize("dtype", FI)
def test_compare(op, dtype):
    x, y = (opcase.data((3, 1, 5), dtype, low=-2, high=2), opcase.data((7, 1), dtype, 1, -2, 2))
    same(run(op, {"x": x, "y": y}), COMPARE[op](x, y), op)
    if dtype != "int32":
        x, y = np.array(SPECIAL, dtype)[:, None], np.array(SPECIAL, dtype)[None, :]
        same(run(op, {"x": x, "y": y}), COMPARE[op](x, y), op)


@pytest.mark.parametrize("op, fn", [("logical_and", np.logical_and), ("logical_or", np.logical_or),
                                    ("logical_xor", np.logical_xor)])
def test_logical(op, fn):
    x, y = opcase.data((3, 1, 5), "bool"), opcase.data((7, 1), "bool", 1)
    same(run(op, {"x": x, "y": y}), fn(x, y), op)
    same(run("logical_not", {"x": x}), ~x)


@pytest.mark.parametrize("dtype", FIB)
def test_select(dtype):
    c, a, b = (opcase.data((3, 1), "bool"), opcase.data((2, 1, 5), dtype, 1),
               opcase.data((3, 5), dtype, 2))
    same(run("select", {"cond": c, "a": a, "b": b}), np.where(c, a, b))
    same(run("select", {"cond": np.array(True), "a": a, "b": b}), np.broadcast_to(a, (2, 3, 5)))


def test_select_ignores_the_other_operand():
    got = run("select", {"cond": np.array([True, False]), "a": np.float16([1, np.nan]),
                         "b": np.float16([np.inf, 2])})
    same(got, np.float16([1, 2]))


@pytest.mark.parametrize("dtype", F)
def test_clip_and_threshold(dtype):
    x = np.array(SPECIAL, dtype)
    t = np.dtype(dtype).type
    same(run("clip", {"x": x}, alpha=t(-1.5), beta=t(2.5)), np.clip(x, t(-1.5), t(2.5)))
    same(run("clip", {"x": x}, alpha=t(0), beta=t(np.inf)), np.clip(x, t(0), None))
    same(run("threshold", {"x": x}, alpha=t(-1)), np.where(x < -1, t(-1), x))
    same(run("clip", {"x": x}, opset="ios16", alpha=t(1), beta=t(1))[:1], np.array([1], dtype))
    with pytest.raises(ValueError, match="clip.*'alpha' must be less than 'beta', got 1 and 1"):
        run("clip", {"x": x}, opset="ios17", alpha=t(1), beta=t(1))


CAST = {"fp16": np.float16, "fp32": np.float32, "int32": np.int32, "bool": np.bool_,
        "int8": np.int8, "uint8": np.uint8, "int16": np.int16, "uint16": np.uint16}


@pytest.mark.parametrize("to", CAST)
@pytest.mark.parametrize("dtype", opcase.A)
def test_cast(dtype, to):
    x = opcase.data((3, 17), dtype, low=-40, high=40)
    ref = x.astype(np.float64)
    if to == "bool":
        ref = ref != 0
    elif not to.startswith("fp"):
        info = np.iinfo(CAST[to])
        ref = np.clip(np.trunc(ref), info.min, info.max)
    same(run("cast", {"x": x}, dtype=to), ref.astype(CAST[to]), f"{dtype} to {to}")


def test_cast_rounds_once_saturates_and_ends_nan():
    x = np.float32([65519.996, 65520, -1e9, 1e-8, 2049.0, np.nan, np.inf, -np.inf, 127.9, -128.9])
    same(run("cast", {"x": x}, dtype="fp16"), x.astype(np.float16))
    same(run("cast", {"x": x}, dtype="int8"),
         np.int8([127, 127, -128, 0, 127, 0, 127, -128, 127, -128]))
    same(run("cast", {"x": x}, dtype="int32"),
         np.int32([65519, 65520, -10**9, 0, 2049, 0, 2**31 - 1, -2**31, 127, -128]))
    same(run("cast", {"x": x}, dtype="bool"), np.ones(10, bool))
    with pytest.raises(ValueError, match="cast.*'dtype' must be one of.*got \"int8\""):
        run("cast", {"x": x}, opset="ios16", dtype="int8")


def test_wide_keeps_doubles():
    x = np.float32([1 / 3])
    got = run("exp", {"x": x}, wide=True)
    assert got.dtype == np.float64
    assert got[0] == np.exp(np.float64(x[0]))


@pytest.mark.slow
@pytest.mark.parametrize("op", ["add", "sub", "mul", "real_div"])
def test_float32_is_correctly_rounded(op):
    """Double rounding of one fp32 operation is innocuous (53 >= 2 * 24 + 2): NumPy's fp32
    operation, rounded once, must give the same bits."""
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 2**32, (2, 1 << 20), dtype=np.uint32).view(np.float32)
    got = run(op, {"x": x, "y": y})
    same(got, BINARY[op](x, y), op)
