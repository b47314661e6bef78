"""Reductions, cumsum and norms against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

import opcase
from opcase import F, FI, run, rounded, same

REDUCE = {
    "reduce_sum": np.sum, "reduce_mean": np.mean, "reduce_max": np.max, "reduce_min": np.min,
    "reduce_prod": np.prod, "reduce_sum_square": lambda v, **k: np.sum(v * v, **k),
    "reduce_l1_norm": lambda v, **k: np.sum(np.abs(v), **k),
    "reduce_l2_norm": lambda v, **k: np.sqrt(np.sum(v * v, **k)),
    "reduce_log_sum": lambda v, **k: np.log(np.sum(v, **k)),
    "reduce_log_sum_exp": lambda v, **k: np.log(np.sum(np.exp(v), **k)),
}
AXES = [((), None), ((1,), [0]), ((7,), None), ((7,), [-1]), ((3, 5), [0]), ((3, 5), [1]),
        ((2, 3, 5), [1]), ((2, 3, 5), [0, 2]), ((2, 3, 5), [-1, 0]), ((2, 3, 5), []),
        ((2, 3, 5), None), ((2, 1, 3, 2, 5), [1, 3]), ((2, 1, 3, 2, 5), [-4, 4, 0])]


@pytest.mark.parametrize("op", REDUCE)
@pytest.mark.parametrize("shape, axes", AXES)
@pytest.mark.parametrize("keep", [False, True])
def test_reduce(op, shape, axes, keep):
    for dtype in FI:
        low = 0.1 if op == "reduce_log_sum" else -3
        x = opcase.data(shape, dtype, low=low, high=3)
        if dtype == "int32" and op == "reduce_log_sum":
            x = np.abs(x) + 1
        axis = None if axes is None else tuple(axes)
        ref = REDUCE[op](x.astype("f8"), axis=axis, keepdims=keep)
        kw = {} if axes is None else {"axes": np.array(axes, np.int32)}
        got = run(op, {"x": x}, keep_dims=keep, **kw)
        if dtype == "int32":
            # The type stays int32: what is not whole is truncated.
            same(got, np.trunc(np.round(ref, 9)).astype(np.int32), f"{op} int32")
        else:
            rounded(got, ref, f"{op} {dtype}", 2.0**-44)


def test_int32_sums_wrap():
    x = np.int32([2**31 - 1, 1, 5])
    with np.errstate(over="ignore"):
        same(run("reduce_sum", {"x": x}), np.sum(x, dtype=np.int32))
        same(run("reduce_prod", {"x": np.int32([65536, 65536, 3])}), np.int32(0))
        same(run("cumsum", {"x": x}), np.cumsum(x, dtype=np.int32))


def test_nothing_to_reduce():
    x = np.zeros((3, 0), "f4")
    same(run("reduce_sum", {"x": x}, axes=[1]), np.zeros(3, "f4"))
    same(run("reduce_prod", {"x": x}, axes=[1]), np.ones(3, "f4"))
    assert np.isnan(run("reduce_mean", {"x": x}, axes=[1])).all()
    same(run("reduce_max", {"x": x}, axes=[0]), np.zeros(0, "f4"))
    for op in ("reduce_max", "reduce_min"):
        with pytest.raises(ValueError, match=f"{op}.*no element"):
            run(op, {"x": x}, axes=[1])
    for op in ("reduce_argmax", "reduce_argmin"):
        with pytest.raises(ValueError, match=f"{op}.*no element"):
            run(op, {"x": x}, axis=1)


def test_nan_and_infinities():
    x = np.float32([[1, np.nan, 3], [np.inf, 0, -np.inf], [-np.inf] * 3, [np.inf, 0, 1]])
    same(run("reduce_max", {"x": x}, axes=[1]), np.max(x, 1))
    same(run("reduce_min", {"x": x}, axes=[1]), np.min(x, 1))
    same(run("reduce_log_sum_exp", {"x": x}, axes=[1]),
         np.float32([np.nan, np.inf, -np.inf, np.inf]))
    same(run("reduce_argmax", {"x": x}, axis=1), np.int32([1, 0, 0, 0]))
    same(run("reduce_argmin", {"x": x}, axis=1), np.int32([1, 2, 0, 1]))


def test_log_sum_exp_does_not_overflow():
    x = np.float16([60000, 60000])
    rounded(run("reduce_log_sum_exp", {"x": x}), 60000 + np.log(2), "log_sum_exp")


def test_sum_does_not_round_on_the_way():
    x = np.full(4097, 1, np.float16)            # fp16 sums stop at 2048
    same(run("reduce_sum", {"x": x}), np.float16(4096))
    assert run("reduce_mean", {"x": np.full(300, 60000, np.float16)}) == 60000


@pytest.mark.parametrize("op, fn", [("reduce_argmax", np.argmax), ("reduce_argmin", np.argmin)])
@pytest.mark.parametrize("shape, axis", [((7,), -1), ((3, 5), 0), ((2, 3, 5), 1), ((2, 3, 5), -3)])
@pytest.mark.parametrize("dtype", FI)
def test_arg(op, fn, shape, axis, dtype):
    x = opcase.data(shape, dtype, low=-2, high=2).round()        # ties
    same(run(op, {"x": x}, axis=axis), fn(x, axis).astype(np.int32), op)
    same(run(op, {"x": x}, axis=axis, keep_dims=True),
         fn(x, axis, keepdims=True).astype(np.int32), op)
    same(run(op, {"x": x}, axis=axis, output_dtype="uint16"), fn(x, axis).astype(np.uint16), op)


@pytest.mark.parametrize("op, kw, message", [
    ("reduce_sum", {"axes": [2]}, "axes.*2"), ("reduce_sum", {"axes": [0, 0]}, "dimension 0 twice"),
    ("reduce_sum", {"axes": [0, -2]}, "dimension 0 twice"), ("reduce_argmax", {"axis": -3}, "axis.*-3"),
    ("reduce_argmax", {"axis": 0, "output_dtype": "int8"}, "int32.*uint16.*int8"),
    ("cumsum", {"axis": -2}, "-2.*-1 to 1")])
def test_errors(op, kw, message):
    with pytest.raises((ValueError, IndexError), match=f"{op}.*{message}"):
        run(op, {"x": np.zeros((3, 5), "f4")}, **kw)


@pytest.mark.parametrize("dtype", FI)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_cumsum(dtype, axis, exclusive, reverse):
    x = opcase.data((3, 5, 4), dtype)
    v = x.astype("f8")
    v = np.flip(v, axis) if reverse else v
    ref = np.cumsum(v, axis) - (v if exclusive else 0)
    ref = np.flip(ref, axis) if reverse else ref
    got = run("cumsum", {"x": x}, axis=axis, exclusive=exclusive, reverse=reverse)
    if dtype == "int32":
        same(got, ref.astype(np.int32))
    else:
        rounded(got, ref, "cumsum", 2.0**-46)


# ------------------------------------------------------------------ norms


def standardise(v, axes, eps):
    m, var = v.mean(axes, keepdims=True), v.var(axes, keepdims=True)
    return (v - m) / np.sqrt(var + eps)


@pytest.mark.parametrize("shape, axes", [((7,), [0]), ((3, 5), [1]), ((3, 5), [-2]), ((2, 3, 5), [2]),
                                         ((2, 3, 5), [1, 2]), ((2, 3, 5), [2, 0]), ((2, 3, 5), None),
                                         ((1, 4, 1, 6), [1]), ((2, 1, 3, 2, 5), [-1, 1])])
@pytest.mark.parametrize("dtype", F)
@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm(shape, axes, dtype, affine):
    x = opcase.data(shape, dtype)
    axis = tuple(range(len(shape))) if axes is None else tuple(sorted(a % len(shape) for a in axes))
    inner = tuple(shape[a] for a in axis)
    wide = tuple(d if i in axis else 1 for i, d in enumerate(shape))
    eps = np.dtype(dtype).type(1e-3)
    kw = {} if axes is None else {"axes": axes}
    ref = standardise(x.astype("f8"), axis, float(eps))
    if affine:
        kw["gamma"], kw["beta"] = opcase.data(inner, dtype, 1), opcase.data(inner, dtype, 2)
        ref = ref * kw["gamma"].astype("f8").reshape(wide) + kw["beta"].astype("f8").reshape(wide)
    rounded(run("layer_norm", {"x": x}, epsilon=eps, **kw), ref, "layer_norm", 2.0**-40)


def test_layer_norm_default_epsilon_is_of_the_type_of_x():
    x = np.float16([[0.0, 0.01]])
    ref = standardise(x.astype("f8"), (1,), float(np.float16(1e-5)))
    rounded(run("layer_norm", {"x": x}, axes=[1]), ref, "layer_norm", 2.0**-40)


def test_layer_norm_shapes_are_checked():
    with pytest.raises(ValueError, match=r"layer_norm.*'gamma'.*\[3, 5\].*\[5\]"):
        run("layer_norm", {"x": np.zeros((2, 3, 5), "f4")}, axes=[1, 2], gamma=np.ones(5, "f4"))


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (1, 3, 2, 1, 7)])
@pytest.mark.parametrize("dtype", F)
def test_batch_norm(shape, dtype):
    x = opcase.data(shape, dtype)
    m, g, b = (opcase.data((3,), dtype, i) for i in (1, 2, 3))
    v = opcase.data((3,), dtype, 4, 0.1, 2)
    c = (1, 3) + (1,) * (len(shape) - 2)
    t = [p.astype("f8").reshape(c) for p in (m, v, g, b)]
    eps = float(np.dtype(dtype).type(1e-5))
    ref = (x.astype("f8") - t[0]) / np.sqrt(t[1] + eps)
    rounded(run("batch_norm", {"x": x}, mean=m, variance=v), ref, "batch_norm", 2.0**-44)
    rounded(run("batch_norm", {"x": x}, mean=m, variance=v, gamma=g, beta=b),
            ref * t[2] + t[3], "batch_norm", 2.0**-44)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", F)
def test_instance_norm(shape, dtype):
    x, g, b = opcase.data(shape, dtype), opcase.data((3,), dtype, 1), opcase.data((3,), dtype, 2)
    c = (1, 3) + (1,) * (len(shape) - 2)
    eps = np.dtype(dtype).type(1e-2)
    ref = standardise(x.astype("f8"), tuple(range(2, len(shape))), float(eps))
    rounded(run("instance_norm", {"x": x}, epsilon=eps), ref, "instance_norm", 2.0**-40)
    rounded(run("instance_norm", {"x": x}, epsilon=eps, gamma=g, beta=b),
            ref * g.astype("f8").reshape(c) + b.astype("f8").reshape(c), "instance_norm", 2.0**-40)


@pytest.mark.parametrize("shape", [(2, 3, 5), (4, 2, 3, 5), (2, 3, 1, 2, 5)])
@pytest.mark.parametrize("dtype", F)
def test_l2_norm(shape, dtype):
    x = opcase.data(shape, dtype)
    eps = np.dtype(dtype).type(1e-3)
    v = x.astype("f8")
    ref = v / np.sqrt((v * v).sum((-1, -2, -3), keepdims=True) + float(eps))
    rounded(run("l2_norm", {"x": x}, epsilon=eps), ref, "l2_norm", 2.0**-46)


@pytest.mark.parametrize("shape", [(2, 7, 5), (2, 7, 3, 5)])
@pytest.mark.parametrize("size", [1, 3, 4, 9])
@pytest.mark.parametrize("dtype", F)
def test_local_response_norm(shape, size, dtype):
    x = opcase.data(shape, dtype)
    v = x.astype("f8")
    t = np.dtype(dtype).type
    alpha, beta, k = t(0.5), t(0.75), t(2)
    sq = np.stack([(v[:, max(0, c - size // 2):c - size // 2 + size] ** 2).sum(1)
                   for c in range(shape[1])], 1)
    ref = v / (float(k) + float(alpha) / size * sq) ** float(beta)
    rounded(run("local_response_norm", {"x": x}, size=size, alpha=alpha, beta=beta, k=k), ref,
            "local_response_norm", 2.0**-46)


@pytest.mark.oracle
@pytest.mark.parametrize("size", [3, 4, 5])
def test_local_response_norm_as_pytorch(size):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    x = opcase.data((2, 7, 3, 5))
    ref = torch.nn.functional.local_response_norm(torch.from_numpy(x).double(), size, 1e-2, 0.75, 1.0)
    rounded(run("local_response_norm", {"x": x}, size=size, alpha=np.float32(1e-2)),
            ref.numpy(), "local_response_norm", 1e-7)
