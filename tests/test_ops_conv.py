"""Convolution, its adjoint and pooling against loops over windows in NumPy, and PyTorch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import opcase
from opcase import F, run, rounded


def geometry(size, kernel, stride, dilation, pad_type, pad):
    """(out, before, after) of one spatial dim."""
    reach = (kernel - 1) * dilation + 1
    if pad_type.startswith("same"):
        out = -(-size // stride)
        total = max(0, (out - 1) * stride + reach - size)
        before = total - total // 2 if pad_type == "same_lower" else total // 2
        return out, before, total - before
    before, after = pad if pad_type == "custom" else (0, 0)
    return (size + before + after - reach) // stride + 1, before, after


def conv(x, w, strides, dilations, groups, pad_type, pad):
    n = x.ndim - 2
    dims = [geometry(x.shape[i + 2], w.shape[i + 2], strides[i], dilations[i], pad_type,
                     pad[2 * i:2 * i + 2]) for i in range(n)]
    xp = np.pad(x.astype("f8"), [(0, 0), (0, 0)] + [d[1:] for d in dims])
    out = np.zeros((x.shape[0], w.shape[0], *(d[0] for d in dims)))
    per, cin = w.shape[0] // groups, x.shape[1] // groups
    for at in itertools.product(*(range(d[0]) for d in dims)):
        take = tuple(slice(a * s, a * s + (k - 1) * dl + 1, dl)
                     for a, s, k, dl in zip(at, strides, w.shape[2:], dilations))
        window = xp[(slice(None), slice(None), *take)]
        for g in range(groups):
            out[(slice(None), slice(g * per, (g + 1) * per), *at)] = np.tensordot(
                window[:, g * cin:(g + 1) * cin], w[g * per:(g + 1) * per].astype("f8"),
                [range(1, n + 2)] * 2)
    return out


CASES = [  # x, weight, strides, dilations, groups, pad_type, pad
    ((2, 3, 9), (5, 3, 4), [1], [1], 1, "valid", [0, 0]),
    ((2, 4, 11), (6, 2, 3), [2], [2], 2, "custom", [1, 3]),
    ((1, 3, 8), (3, 1, 3), [3], [1], 3, "same", [9, 9]),
    ((1, 3, 7), (6, 1, 4), [2], [1], 3, "same_lower", [0, 0]),
    ((2, 3, 7, 5), (4, 3, 3, 2), [1, 1], [1, 1], 1, "valid", [0] * 4),
    ((1, 4, 9, 6), (6, 2, 3, 3), [2, 1], [1, 2], 2, "custom", [2, 0, 1, 3]),
    ((2, 2, 6, 7), (4, 1, 4, 3), [3, 2], [1, 1], 2, "same", [0] * 4),
    ((1, 2, 5, 6), (3, 2, 2, 3), [2, 2], [2, 1], 1, "same_lower", [0] * 4),
    ((1, 1, 1, 1), (1, 1, 1, 1), [1, 1], [1, 1], 1, "valid", [0] * 4),
    ((0, 2, 5, 5), (3, 2, 2, 2), [1, 1], [1, 1], 1, "valid", [0] * 4),
    ((1, 2, 4, 5, 6), (3, 2, 2, 3, 2), [1, 2, 1], [2, 1, 1], 1, "custom", [1, 0, 0, 1, 2, 2]),
    ((2, 2, 5, 3, 4), (4, 1, 3, 2, 1), [2, 1, 3], [1, 1, 1], 2, "same", [0] * 6),
    ((1, 2, 40, 41), (3, 2, 3, 3), [1, 1], [1, 1], 1, "same", [0] * 4),     # several blocks
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", F)
def test_conv(case, dtype):
    xs, ws, strides, dilations, groups, pad_type, pad = case
    x, w, b = opcase.data(xs, dtype), opcase.data(ws, dtype, 1), opcase.data(ws[:1], dtype, 2)
    kw = dict(strides=strides, dilations=dilations, groups=groups, pad_type=pad_type, pad=pad)
    ref = conv(x, w, strides, dilations, groups, pad_type, pad)
    slack = 16 * np.prod(ws[1:]) * 2.0**-53 * np.prod(ws[1:])
    rounded(run("conv", {"x": x}, weight=w, **kw), ref, "conv", slack)
    ref = ref + b.astype("f8").reshape(-1, *[1] * (len(xs) - 2))
    rounded(run("conv", {"x": x}, weight=w, bias=b, **kw), ref, "conv", slack)
    if max(dilations) == 1:
        rounded(run("conv", {"x": x, "weight": w, "bias": b}, **kw), ref, "conv", slack)


def test_conv_dtypes_may_differ_since_ios17():
    x, w = opcase.data((1, 2, 5), "float16"), opcase.data((3, 2, 2), "float32", 1)
    rounded(run("conv", {"x": x}, "ios17", weight=w), conv(x, w, [1], [1], 1, "valid", [0, 0]), "conv",
            2.0**-44)
    with pytest.raises(TypeError, match="conv.*weight"):
        run("conv", {"x": x}, "ios16", weight=w)


@pytest.mark.parametrize("x, w, kw, message", [
    ((1, 4, 5), (6, 4, 3), {"groups": 2}, r"\[Cout, Cin/groups, K..\] with 2 groups"),
    ((1, 3, 5), (6, 3, 3), {"groups": 2}, "with 2 groups"), ((1, 3, 5), (6, 3, 3, 1), {}, "'weight' must have rank 3"),
    ((1, 3), (6, 3), {}, "'x' must have rank 3 to 5"), ((1, 3, 5), (6, 3, 6), {}, "spatial dimension 0 is 5"),
    ((1, 3, 5), (6, 3, 3), {"strides": [1, 1]}, "'strides' must have 1 elements, got 2"),
    ((1, 3, 5), (6, 3, 3), {"strides": [0]}, r"strides\[0\] is 0"),
    ((1, 3, 5), (6, 3, 3), {"pad_type": "custom", "pad": [-1, 0]}, r"pad\[0\] is -1"),
    ((1, 3, 5), (6, 3, 3), {"pad_type": "full"}, 'got "full"'),
    ((1, 3, 5), (6, 3, 3), {"bias": np.zeros(5, "f4")}, "'bias' must have 6 elements, got 5")])
def test_conv_errors(x, w, kw, message):
    with pytest.raises(ValueError, match=f"conv.*{message}"):
        run("conv", {"x": np.zeros(x, "f4")}, weight=np.zeros(w, "f4"), **kw)


def test_conv_restrictions():
    x, w = np.zeros((1, 3, 9), "f4"), np.zeros((6, 3, 3), "f4")
    with pytest.raises(ValueError, match="conv.*not constant needs dilations of 1"):
        run("conv", {"x": x, "weight": w}, dilations=[2])
    with pytest.raises(ValueError, match="conv.*valid, same, custom, got \"same_lower\""):
        run("conv", {"x": x}, "ios15", weight=w, pad_type="same_lower")
    with pytest.raises(NotImplementedError, match="conv_quantized"):
        run("conv_quantized", {"x": x}, weight=w)


@pytest.mark.parametrize("case", CASES[:-1])
@pytest.mark.parametrize("dtype", F)
def test_conv_transpose_is_the_adjoint(case, dtype):
    """<conv(x), y> == <x, conv_transpose(y)> for every unit vector: the matrices are transposed."""
    xs, ws, strides, dilations, groups, pad_type, pad = case
    if xs[0] == 0:
        return
    out = conv(np.zeros(xs), np.zeros(ws), strides, dilations, groups, pad_type, pad).shape
    y, w = opcase.data(out, dtype), opcase.data(ws, dtype, 1)
    x = opcase.data(xs, "float64", 2)
    got = run("conv_transpose", {"x": y}, weight=w, strides=strides, dilations=dilations, groups=groups,
              pad_type=pad_type, pad=pad, output_shape=list(xs), wide=True)
    assert got.shape == xs
    left = (conv(x, w, strides, dilations, groups, pad_type, pad) * y.astype("f8")).sum()
    right = (x * got).sum()
    size = np.abs(x).sum() * np.abs(w.astype("f8")).max() * np.abs(y.astype("f8")).max()
    assert abs(left - right) <= 2.0**-44 * size


@pytest.mark.parametrize("pad_type, shape", [
    ("valid", (2, 4, 13, 9)), ("same", (2, 4, 10, 8)), ("custom", (2, 4, 10, 8))])
def test_conv_transpose_shapes(pad_type, shape):
    x, w = opcase.data((2, 3, 5, 8)), opcase.data((3, 4, 5, 2), seed=1)
    kw = {"pad": [1, 2, 0, 1]} if pad_type == "custom" else {}
    assert run("conv_transpose", {"x": x}, weight=w, strides=[2, 1], pad_type=pad_type, **kw).shape == shape


@pytest.mark.parametrize("kw, message", [
    ({"output_shape": [2, 4, 9]}, "'output_shape' must have 4 elements"),
    ({"output_shape": [1, 4, 9, 9]}, "must begin with the batch 2 and 4 channels, got 1 and 4"),
    ({"groups": 2}, r"\[Cin, Cout/groups, K..\]"), ({"bias": np.zeros(3, "f4")}, "'bias' must have 4")])
def test_conv_transpose_errors(kw, message):
    with pytest.raises(ValueError, match=f"conv_transpose.*{message}"):
        run("conv_transpose", {"x": np.zeros((2, 3, 5, 5), "f4")}, weight=np.zeros((3, 4, 2, 2), "f4"), **kw)


# ------------------------------------------------------------------ pooling


def pool(x, op, kernel, strides, pads, outs, exclude):
    n = len(kernel)
    out = np.zeros((*x.shape[:2], *outs))
    v = x.astype("f8")
    for at in itertools.product(*(range(d) for d in outs)):
        start = [a * s - p[0] for a, s, p in zip(at, strides, pads)]
        take = tuple(slice(max(0, b), max(0, b + k)) for b, k in zip(start, kernel))
        window = v[(slice(None), slice(None), *take)]
        volume = np.prod([min(b + k, x.shape[i + 2] + pads[i][1]) - b
                          for i, (b, k) in enumerate(zip(start, kernel))])
        axes = tuple(range(2, n + 2))
        if op == "max_pool":
            r = window.max(axes, initial=-np.inf)
        elif op == "l2_pool":
            r = np.sqrt((window**2).sum(axes))
        else:
            r = window.sum(axes) / (np.prod(window.shape[2:]) if exclude else volume)
        out[(slice(None), slice(None), *at)] = r
    return out


POOLS = [((2, 3, 9), [3], [2], "valid", [0, 0]), ((2, 3, 8), [3], [1], "custom", [1, 2]),
         ((2, 3, 8), [4], [3], "same", [0, 0]), ((2, 3, 7, 5), [3, 2], [1, 2], "valid", [0] * 4),
         ((1, 2, 7, 6), [2, 3], [2, 2], "custom", [1, 0, 0, 2]), ((1, 2, 7, 6), [2, 3], [2, 2], "same_lower", [0] * 4),
         ((1, 2, 4, 5, 6), [2, 3, 2], [1, 2, 3], "valid", [0] * 6)]


@pytest.mark.parametrize("case", POOLS)
@pytest.mark.parametrize("op", ["max_pool", "avg_pool", "l2_pool"])
@pytest.mark.parametrize("dtype", F)
def test_pool(case, op, dtype):
    shape, kernel, strides, pad_type, pad = case
    x = opcase.data(shape, dtype)
    if op == "l2_pool" and len(shape) == 5:
        with pytest.raises(ValueError, match="l2_pool.*rank 3 to 4"):
            run(op, {"x": x}, kernel_sizes=kernel, pad_type=pad_type)
        return
    dims = [geometry(shape[i + 2], kernel[i], strides[i], 1, pad_type, pad[2 * i:2 * i + 2])
            for i in range(len(kernel))]
    for exclude in [False, True] if op == "avg_pool" else [False]:
        kw = {"exclude_padding_from_average": exclude} if op == "avg_pool" else {}
        got = run(op, {"x": x}, kernel_sizes=kernel, strides=strides, pad_type=pad_type, pad=pad, **kw)
        rounded(got, pool(x, op, kernel, strides, [d[1:] for d in dims], [d[0] for d in dims], exclude), op,
                2.0**-46)


def test_pool_errors():
    x = np.zeros((1, 2, 5, 5), "f4")
    for kw, message in (({"kernel_sizes": [2, 2], "pad_type": "same", "ceil_mode": True}, "ceil_mode needs"),
                        ({"kernel_sizes": [2, 2], "pad_type": "custom", "pad": [1, 0, 0, 0],
                          "ceil_mode": True}, "equal pads"),
                        ({"kernel_sizes": [2], "pad_type": "valid"}, "'kernel_sizes' must have 2"),
                        ({"kernel_sizes": [6, 2], "pad_type": "valid"}, "a window of 6 does not fit")):
        with pytest.raises(ValueError, match=f"max_pool.*{message}"):
            run("max_pool", {"x": x}, **kw)
    with pytest.raises(TypeError, match="pad_type"):
        run("max_pool", {"x": x}, kernel_sizes=[2, 2])


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_conv_as_pytorch(case):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    xs, ws, strides, dilations, groups, pad_type, pad = case
    if pad_type != "valid":
        return
    x, w = opcase.data(xs), opcase.data(ws, seed=1)
    n = len(xs) - 2
    fn = [torch.conv1d, torch.conv2d, torch.conv3d][n - 1]
    ref = fn(torch.from_numpy(x).double(), torch.from_numpy(w).double(), None, strides, 0, dilations, groups)
    rounded(run("conv", {"x": x}, weight=w, strides=strides, dilations=dilations, groups=groups),
            ref.numpy(), "conv", 2.0**-40)


@pytest.mark.oracle
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_conv_transpose_as_pytorch(n, groups):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    x = opcase.data((2, 4, *(5, 4, 3)[:n]))
    w = opcase.data((4, 3, *(3, 2, 4)[:n]), seed=1)
    b = opcase.data((3 * groups,), seed=2)
    s, d, p = [2, 3, 1][:n], [2, 1, 1][:n], [1, 0, 2][:n]
    fn = [torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d][n - 1]
    t = [torch.from_numpy(a).double() for a in (x, w, b)]
    ref = fn(*t, stride=s, padding=p, groups=groups, dilation=d).numpy()
    pad = [v for k in p for v in (k, k)]
    got = run("conv_transpose", {"x": x}, weight=w, bias=b, strides=s, dilations=d, groups=groups,
              pad_type="custom", pad=pad)
    rounded(got, ref, "conv_transpose", 2.0**-40)
    ref = fn(*t, stride=s, padding=p, groups=groups, dilation=d,
             output_padding=[1 if k > 1 else 0 for k in s]).numpy()
    got = run("conv_transpose", {"x": x}, weight=w, bias=b, strides=s, dilations=d, groups=groups,
              pad_type="custom", pad=pad, output_shape=list(ref.shape))
    rounded(got, ref, "conv_transpose", 2.0**-40)


@pytest.mark.oracle
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("size", range(5, 12))
@pytest.mark.parametrize("kernel, stride, pad", [(3, 2, 1), (2, 3, 0), (3, 3, 1), (4, 3, 2), (1, 2, 0)])
def test_pool_as_pytorch(size, kernel, stride, pad, ceil):
    """Ceil mode above all: whether the last window exists, and what the average divides by."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    f = torch.nn.functional
    x = opcase.data((1, 2, size, size + 1))
    t = torch.from_numpy(x).double()
    kw = dict(kernel_sizes=[kernel] * 2, strides=[stride] * 2, pad_type="custom", pad=[pad] * 4, ceil_mode=ceil)
    outs = [(d - kernel + stride - 1) // stride + 1 for d in (size, size + 1)]
    if ceil and not pad and any((o - 1) * stride >= d for o, d in zip(outs, (size, size + 1))):
        # Core ML keeps a window that lies wholly behind the input, PyTorch drops it.
        assert run("avg_pool", {"x": x}, **kw).shape[2:] == tuple(outs)
        return
    rounded(run("max_pool", {"x": x}, **kw), f.max_pool2d(t, kernel, stride, pad, 1, ceil).numpy(), "max_pool")
    for count in (False, True):
        rounded(run("avg_pool", {"x": x}, exclude_padding_from_average=not count, **kw),
                f.avg_pool2d(t, kernel, stride, pad, ceil, count).numpy(), "avg_pool", 2.0**-46)
