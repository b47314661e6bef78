"""Convolution and pooling kernels of every table against float64, with the derived bound; and
as planned: fused, channels last between convolutions, the same bits for every thread count."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import tolerance
from test_kernels import TABLES, TYPES, Guarded, T, draw, value
from test_ops_conv import conv, geometry

import anetorch
import anetorch.mil as mil

U = tolerance.U["float32"]
RELU, NONE = (1, 0.0, math.inf), None


def laid_out(x: np.ndarray, layout: str) -> np.ndarray:
    """The same values channels first, channels last, or with gaps."""
    if layout == "first":
        return np.ascontiguousarray(x)
    if layout == "last":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    big = np.zeros((*x.shape[:-1], x.shape[-1] * 3), x.dtype)
    big[..., ::3] = x
    return big[..., ::3]


class Out(Guarded):
    """A guarded result of 5 dims, channels first or last."""

    def __init__(self, shape: tuple[int, ...], dtype: str, layout: str) -> None:
        if layout == "last":
            super().__init__((shape[0], *shape[2:], shape[1]), dtype)
            self.array = np.moveaxis(self.array, -1, 1)
        else:
            super().__init__(shape, dtype, "gaps" if layout == "gaps" else "rows")


def spread(x: np.ndarray, strides: list[int]) -> np.ndarray:
    """x with strides-1 zeros between its elements: what a transposed convolution slides over."""
    big = np.zeros((*x.shape[:2], *((n - 1) * s + 1 if n else 0
                                    for n, s in zip(x.shape[2:], strides))), np.float64)
    big[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = x
    return big


def transposed(x, w, strides, dilations, groups, before, out):
    """conv_transpose by its definition as a convolution: zeros between the elements of x, w
    flipped and its channels exchanged per group."""
    cin, per = w.shape[0] // groups, w.shape[1]
    flip = w.astype("f8").reshape(groups, cin, per, *w.shape[2:])
    flip = np.flip(np.swapaxes(flip, 1, 2), tuple(range(3, w.ndim + 1)))
    flip = flip.reshape(groups * per, cin, *w.shape[2:])
    big = spread(x, strides)
    pad = []
    for d in range(3):
        reach = (w.shape[d + 2] - 1) * dilations[d]
        pad += [reach - before[d], out[d] - big.shape[d + 2] + before[d]]
    keep = [slice(max(0, -p), None) for p in pad[::2]]
    ends = [slice(None, None if p >= 0 else p) for p in pad[1::2]]
    big = big[(slice(None), slice(None), *keep)][(slice(None), slice(None), *ends)]
    return conv(big, flip, [1] * 3, dilations, groups, "custom", [max(0, p) for p in pad])


# x [n, c, d, h, w], weight, strides, dilations, groups, pads before, pads after
CASES = {
    "one": ((1, 1, 1, 1, 1), (1, 1, 1, 1, 1), (1, 1, 1), (1, 1, 1), 1, (0, 0, 0), (0, 0, 0)),
    "first layer": ((1, 3, 1, 23, 19), (17, 3, 1, 7, 7), (1, 2, 2), (1, 1, 1), 1, (0, 3, 3), (0, 3, 3)),
    "3x3": ((2, 20, 1, 9, 11), (33, 20, 1, 3, 3), (1, 1, 1), (1, 1, 1), 1, (0, 1, 1), (0, 1, 1)),
    "1x1": ((1, 37, 1, 7, 14), (31, 37, 1, 1, 1), (1, 1, 1), (1, 1, 1), 1, (0, 0, 0), (0, 0, 0)),
    "1x1 far": ((1, 18, 1, 9, 40), (16, 18, 1, 1, 1), (1, 4, 39), (1, 1, 1), 1, (0, 0, 0), (0, 0, 0)),
    "long sums": ((1, 1100, 1, 3, 4), (13, 1100, 1, 2, 2), (1, 1, 1), (1, 1, 1), 1, (0, 1, 0), (0, 0, 1)),
    "dilated": ((1, 5, 1, 13, 12), (6, 5, 1, 3, 4), (1, 1, 2), (1, 3, 2), 1, (0, 2, 4), (0, 5, 0)),
    "groups": ((2, 12, 1, 6, 7), (9, 4, 1, 3, 2), (1, 2, 1), (1, 1, 1), 3, (0, 1, 0), (0, 0, 1)),
    "depthwise": ((2, 19, 1, 8, 13), (19, 1, 1, 3, 3), (1, 1, 1), (1, 1, 1), 19, (0, 1, 1), (0, 1, 1)),
    "depthwise s2": ((1, 40, 1, 15, 16), (40, 1, 1, 5, 3), (1, 2, 2), (1, 1, 1), 40, (0, 2, 0), (0, 2, 1)),
    "depthwise far": ((1, 3, 1, 4, 9), (3, 1, 1, 3, 3), (1, 1, 1), (1, 3, 3), 3, (0, 3, 4), (0, 4, 3)),
    "multiplier": ((1, 4, 1, 5, 6), (12, 1, 1, 3, 3), (1, 1, 1), (1, 1, 1), 4, (0, 1, 1), (0, 1, 1)),
    "3d": ((1, 6, 4, 5, 6), (7, 6, 2, 3, 2), (2, 1, 2), (1, 2, 1), 1, (1, 2, 0), (0, 1, 1)),
    "one row": ((3, 8, 1, 1, 97), (24, 8, 1, 1, 5), (1, 1, 3), (1, 1, 2), 1, (0, 0, 4), (0, 0, 2)),
    "padding only": ((1, 2, 1, 1, 1), (3, 2, 1, 2, 2), (1, 4, 4), (1, 1, 1), 1, (0, 5, 5), (0, 5, 5)),
    "no image": ((0, 4, 1, 5, 5), (3, 4, 1, 3, 3), (1, 1, 1), (1, 1, 1), 1, (0, 0, 0), (0, 0, 0)),
}
# Tiles and panels that are just full, one more and one less: positions x channels.
for p, c in itertools.product((1, 3, 4, 5, 6, 7, 11, 12, 13), (1, 4, 7, 8, 9, 15, 16, 17, 32, 33)):
    if (p * 7 + c) % 3 == 0:
        CASES[f"{p} by {c}"] = ((1, 5, 1, 1, p), (c, 5, 1, 1, 1), (1, 1, 1), (1, 1, 1), 1,
                                (0, 0, 0), (0, 0, 0))


def out_shape(case):
    xs, ws, strides, dilations, _, before, after = case
    return (xs[0], ws[0], *((xs[d + 2] + before[d] + after[d] - (ws[d + 2] - 1) * dilations[d] - 1)
                            // strides[d] + 1 for d in range(3)))


def padding(before, after):
    return [p for pair in zip(before, after) for p in pair]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", CASES)
def test_conv_of_every_layout_and_type(table: str, name: str) -> None:
    case = CASES[name]
    xs, ws, strides, dilations, groups, before, after = case
    rng = np.random.default_rng(len(name))
    ys, k = out_shape(case), int(np.prod(ws[1:]))
    for i, (lx, ly) in enumerate(itertools.product(("first", "last", "gaps"), repeat=2)):
        tx, tw, ty = TYPES[i % 3], TYPES[(i + 1) % 3], TYPES[(i // 2) % 3]
        if i in (4, 5):
            tx = ty = "float32"                 # the layout that tiles read and write
        x, w, res = draw(rng, xs, tx), draw(rng, ws, tw), draw(rng, ys, ty)
        scale, shift = (rng.standard_normal(ws[0]).astype(np.float32) for _ in range(2))
        out = Out(ys, ty, ly)
        plain = i % 2 == 0
        what = f"{table} {name} {tx} {lx} * {tw} -> {ty} {ly}"
        T.conv(table, laid_out(x, lx), w, out.array, strides, dilations, before, groups, 0,
               None if plain else scale, None if plain else shift, NONE if plain else RELU,
               NONE if plain else (1, -1.0, 2.5), None if plain else laid_out(res, "last"),
               int(i % 4 == 1))
        vx, vw = value(x), value(w)
        args = (strides, dilations, groups, "custom", padding(before, after))
        ref = conv(vx, vw, *args) if ys[0] else np.zeros(ys)
        s = conv(abs(vx), abs(vw), *args) if ys[0] else np.zeros(ys)
        bound = (k + 2) * U * s
        if not plain:
            sc, sh = (v.astype("f8").reshape(1, -1, 1, 1, 1) for v in (scale, shift))
            bound = bound * abs(sc) + U * (2 * abs(ref * sc) + abs(sh) + abs(ref * sc + sh))
            ref = np.maximum(ref * sc + sh, 0) + value(res)
            bound = bound + U * abs(ref)
            ref = np.clip(ref, -1, 2.5)
        tolerance.check(value(out.array), ref, bound + tolerance.rounding(ref, ty), what)
        out.check(what)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", [n for n in CASES if " by " not in n and n != "no image"])
def test_transposed(table: str, name: str) -> None:
    case = CASES[name]
    ys, ws, strides, dilations, groups, before, after = case
    xs = out_shape(case)                        # of the adjoint
    rng = np.random.default_rng(len(name) + 1)
    for i, (lx, ly) in enumerate(itertools.product(("first", "last"), repeat=2)):
        tx, ty = TYPES[i % 3], ("float32", "float32", "float16", "float32")[i]
        x, w = draw(rng, xs, tx), draw(rng, ws, "float32")
        out = Out(ys, ty, ly)
        what = f"{table} {name} {tx} {lx} -> {ty} {ly}"
        T.conv(table, laid_out(x, lx), w, out.array, strides, dilations, before, groups, 1, None,
               None, NONE, NONE, None, i % 2)
        args = (strides, dilations, groups, before, ys[2:])
        ref = transposed(value(x), value(w), *args)
        s = transposed(abs(value(x)), abs(value(w)), *args)
        k = int(np.prod(ws[2:])) * ws[0] // groups
        tolerance.check(value(out.array), ref, (k + 2) * U * s + tolerance.rounding(ref, ty), what)
        out.check(what)


ACTS = {2: (lambda x: 1 / (1 + np.exp(-x)), 0.25), 3: (lambda x: x / (1 + np.exp(-x)), 1.1),
        4: (np.tanh, 1.0)}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("name", ["3x3", "depthwise", "1x1"])
def test_activations(table: str, act: int, name: str) -> None:
    case = CASES[name]
    xs, ws, strides, dilations, groups, before, after = case
    fn, slope = ACTS[act]
    rng = np.random.default_rng(act)
    for ly, ty in (("last", "float32"), ("first", "float16")):
        x, w = draw(rng, xs, "float32"), draw(rng, ws, "float32") / np.float32(8)
        res = draw(rng, out_shape(case), ty)
        out = Out(out_shape(case), ty, ly)
        T.conv(table, laid_out(x, "last"), w, out.array, strides, dilations, before, groups, 0,
               None, None, (act, 0.0, 0.0), RELU, laid_out(res, "last"), 0)
        args = (strides, dilations, groups, "custom", padding(before, after))
        z = conv(x, w, *args)
        y = fn(z) + value(res)
        k = int(np.prod(ws[1:]))
        bound = slope * (k + 2) * U * conv(abs(x), abs(w), *args) + 8 * U * abs(fn(z)) + 2 * U * abs(y)
        ref = np.maximum(y, 0)
        tolerance.check(value(out.array), ref, bound + tolerance.rounding(ref, ty), f"{table} {act}")
        out.check(name)


@pytest.mark.parametrize("table", TABLES)
def test_not_a_number_stays_where_its_windows_are(table: str) -> None:
    x = np.zeros((1, 20, 1, 6, 6), np.float32)
    x[0, 3, 0, 0, 0], x[0, 4, 0, 5, 5] = np.nan, np.inf
    w = np.ones((18, 20, 1, 3, 3), np.float32)
    for layout in ("first", "last"):
        out = Out((1, 18, 1, 6, 6), "float32", layout)
        T.conv(table, laid_out(x, layout), w, out.array, (1, 1, 1), (1, 1, 1), (0, 1, 1), 1, 0,
               None, None, RELU, NONE, None, 0)
        y = out.array[0, :, 0]
        assert np.isnan(y[:, :2, :2]).all() and np.isposinf(y[:, 4:, 4:]).all()
        y[:, :2, :2] = y[:, 4:, 4:] = 0
        assert (y == 0).all()


POOLS = {   # x, kernel, strides, before, after
    "2x2": ((2, 5, 1, 8, 6), (1, 2, 2), (1, 2, 2), (0, 0, 0), (0, 0, 0)),
    "3x3 s2": ((1, 19, 1, 11, 12), (1, 3, 3), (1, 2, 2), (0, 1, 1), (0, 1, 1)),
    "global": ((1, 33, 1, 7, 7), (1, 7, 7), (1, 1, 1), (0, 0, 0), (0, 0, 0)),
    "3d": ((1, 4, 5, 4, 3), (2, 3, 2), (2, 1, 1), (1, 0, 1), (0, 2, 0)),
    "one": ((1, 1, 1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0), (0, 0, 0)),
    "huge strides": ((1, 3, 1, 30, 31), (1, 2, 3), (1, 29, 28), (0, 0, 0), (0, 0, 0)),
    "no image": ((0, 3, 1, 5, 5), (1, 2, 2), (1, 1, 1), (0, 0, 0), (0, 0, 0)),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_pool(table: str, name: str, kind: int) -> None:
    xs, kernel, strides, before, after = POOLS[name]
    rng = np.random.default_rng(kind)
    outs = [(xs[d + 2] + before[d] + after[d] - kernel[d]) // strides[d] + 1 for d in range(3)]
    for i, (lx, ly) in enumerate(itertools.product(("first", "last", "gaps"), repeat=2)):
        tx, exclude = TYPES[i % 3], i % 2 == 1
        x = draw(rng, xs, tx)
        out = Out((*xs[:2], *outs), tx, ly)
        T.pool(table, kind, int(exclude), laid_out(x, lx), out.array, kernel, strides, before, after)
        v, ref = value(x), np.zeros(out.array.shape)
        s = np.zeros(ref.shape)
        for at in itertools.product(*(range(o) for o in outs)):
            lo = [a * st - b for a, st, b in zip(at, strides, before)]
            take = tuple(slice(max(0, p), max(0, p + k)) for p, k in zip(lo, kernel))
            win = v[(slice(None), slice(None), *take)]
            win = win.reshape(*xs[:2], math.prod(win.shape[2:]))
            n = win.shape[-1] if exclude else math.prod(kernel)
            put = (slice(None), slice(None), *at)
            if kind == 0:
                ref[put] = win.max(-1, initial=-np.inf)
            elif kind == 1:
                ref[put], s[put] = win.sum(-1) / n, abs(win).sum(-1) / n
            else:
                ref[put] = np.sqrt((win * win).sum(-1))
                s[put] = ref[put]
        bound = (0 if kind == 0 else (math.prod(kernel) + 3) * U * s) + tolerance.rounding(ref, tx)
        what = f"{table} {name} {kind} {tx} {lx} {ly}"
        tolerance.check(value(out.array), ref, bound, what)
        out.check(what)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c[4] == 1])
def test_8_bit_sums_are_exact(table: str, name: str) -> None:
    """Every int32 sum that fp32 can hold, bit for bit; larger ones rounded once."""
    xs, ws, strides, dilations, groups, before, after = CASES[name]
    rng = np.random.default_rng(len(name))
    kinds = [np.int8, np.uint8]
    for i, (lx, ly) in enumerate(itertools.product(("first", "last", "gaps"), ("first", "last"))):
        kx, kw = kinds[i % 2], kinds[i // 3]
        draws = [rng.integers(np.iinfo(k).min, np.iinfo(k).max + 1, s).astype(k)
                 for k, s in ((kx, xs), (kw, ws))]
        if i == 0:              # the largest products of all: where saturating forms go wrong
            draws = [np.full_like(draws[0], -128), np.full_like(draws[1], -128)]
        zx, zw = (int(rng.integers(np.iinfo(k).min, np.iinfo(k).max + 1)) if i else 127 for k in (kx, kw))
        x, w = draws
        out = Out(out_shape(CASES[name]), "float32", ly)
        what = f"{table} {name} {kx.__name__} {lx} * {kw.__name__} -> {ly}"
        T.conv(table, laid_out(x, lx), w, out.array, strides, dilations, before, groups, 0, None,
               None, NONE, NONE, None, i % 2, zx, zw)
        ref = np.zeros(out.array.shape)
        if xs[0]:
            ref = conv(x.astype("f8") - zx, w.astype("f8") - zw, strides, dilations, groups, "custom",
                       padding(before, after))
        np.testing.assert_array_equal(out.array, ref.astype(np.float32), err_msg=what)
        out.check(what)


# ---------------------------------------------------------------- as planned

def block(dtype: str = "fp32"):
    """conv, batch norm, relu; 1x1 conv; depthwise conv; sigmoid; residual; pool; concat."""
    rng = np.random.default_rng(3)
    real = np.float32 if dtype == "fp32" else np.float16

    def w(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]) or 1)).astype(real)

    w1, w2, w3, w4 = w(24, 5, 3, 3), w(18, 24, 1, 1), w(18, 1, 3, 3), w(7, 18, 2, 2)
    gamma, beta, mean = (w(24) for _ in range(3))
    var = (w(24) ** 2 + real(0.5)).astype(real)
    arrays = dict(w1=w1, w2=w2, w3=w3, w4=w4, gamma=gamma, beta=beta, mean=mean, var=var)

    def body(x):
        o = mil.ops
        a = o.conv(x, w1, strides=[2, 2], pad_type="same")
        a = o.relu(o.batch_norm(a, mean=mean, variance=var, gamma=gamma, beta=beta))
        b = o.clip(o.conv(a, w2, bias=np.arange(18, dtype=real) / real(9)), alpha=real(-1), beta=real(1))
        c = o.add(o.sigmoid(o.conv(b, w3, pad_type="same", groups=18)), b)
        d = o.max_pool(o.relu(c), kernel_sizes=[2, 2], pad_type="same")
        e = o.concat(values=[d, b], axis=1)
        f = o.conv_transpose(d, w(18, 3, 2, 2), strides=[2, 2])
        return o.conv(d, w4), e, f

    return mil.build(body, {"x": mil.spec((2, 5, 17, 12), dtype)}), arrays


def layered(arrays: dict[str, np.ndarray], ref: np.ndarray, name: str) -> float:
    """Bound of the block's error: every value on the longest path rounds (u), every sum of up
    to 45 or 72 terms is off by that many u of fp32, and the convolutions in front of an output
    enlarge what they are given by at most the row sums of |w|: three of them, of which the
    first sees exact data."""
    gain = max(float(np.abs(w.astype("f8")).sum((1, 2, 3)).max())
               for n, w in arrays.items() if n[0] == "w")
    return 8 * gain**2 * (tolerance.U[name] + 74 * U) * max(1.0, float(np.abs(ref).max()))


def results(k, x):
    return [np.asarray(v) for v in k(x).values()]


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_block_of_layers(dtype: str) -> None:
    """Against the same program in double."""
    p, arrays = block(dtype)
    name = {"fp32": "float32", "fp16": "float16"}[dtype]
    x = np.random.default_rng(4).standard_normal((2, 5, 17, 12)).astype(name)
    exact = list(anetorch._core._testing.eval(p, {"x": x}, wide=True).values())
    for got, ref in zip(results(anetorch.compile(p), x), exact, strict=True):
        tolerance.check(got, ref, layered(arrays, ref, name), dtype)


def test_what_follows_is_in_the_store() -> None:
    p, _ = block()
    k = anetorch.compile(p)
    ran = [s["op"] for s in k.report()]
    assert ran[0] == "conv+batch_norm+relu" and "conv+clip" in ran, ran
    assert "conv+sigmoid+add+relu" in ran or "conv+sigmoid+add" in ran, ran
    kernels = {s["kernel"].split("__")[0].split("_")[0] for s in k.report()}
    assert {"conv", "depthwise", "pool"} <= kernels and "reference" not in kernels


@pytest.mark.parametrize("switch", [
    {"ANETORCH_NO_FUSE": "conv"}, {"ANETORCH_NO_KERNELS": "layout"},
    {"ANETORCH_NO_KERNELS": "product"}, {"ANETORCH_NO_KERNELS": "conv"},
    {"ANETORCH_NO_KERNELS": "pool"}, {"ANETORCH_NO_VIEWS": "1"}])
def test_each_optimisation_off(switch: dict[str, str], tmp_path) -> None:
    """Every switch alone changes nothing but rounding."""
    p, arrays = block()
    x = np.random.default_rng(4).standard_normal((2, 5, 17, 12)).astype(np.float32)
    exact = list(anetorch._core._testing.eval(p, {"x": x}, wide=True).values())
    code = ("import sys, numpy as np; sys.path.insert(0, sys.argv[1]); import test_conv as t\n"
            "import anetorch\n"
            "x = np.load(sys.argv[2]); k = anetorch.compile(t.block()[0])\n"
            "np.savez(sys.argv[3], *t.results(k, x))\n"
            "print(sorted({s['kernel'].split('_')[0] for s in k.report()}))")
    np.save(tmp_path / "x.npy", x)
    out = subprocess.run([sys.executable, "-c", code, os.path.dirname(__file__),
                          str(tmp_path / "x.npy"), str(tmp_path / "y.npz")],
                         env={**os.environ, **switch}, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    off = switch.get("ANETORCH_NO_KERNELS") in ("conv", "pool")
    assert ("reference" in out.stdout) == off, out.stdout
    with np.load(tmp_path / "y.npz") as got:
        for y, ref in zip((got[n] for n in got.files), exact, strict=True):
            tolerance.check(y, ref, layered(arrays, ref, "float32"), str(switch))


def test_the_same_bits_for_every_thread_count() -> None:
    p, _ = block()
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 5, 17, 12)).astype(np.float32)
    big = rng.standard_normal((1, 40, 1, 60, 61)).astype(np.float32)
    w = rng.standard_normal((70, 40, 1, 3, 3)).astype(np.float32)
    k = anetorch.compile(p)
    before = anetorch.num_threads()
    try:
        runs = []
        for n in (1, 2, 3, 5):
            anetorch.set_num_threads(n)
            y = np.zeros((1, 70, 1, 60, 61), np.float32)
            T.conv(TABLES[-1], big, w, y, (1, 1, 1), (1, 1, 1), (0, 1, 1), 1, 0, None, None,
                   NONE, NONE, None, 0)
            runs.append([*results(k, x), y])
    finally:
        anetorch.set_num_threads(before)
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("switch", ["", "layout"])
def test_runtime_weights_and_bias(switch: str) -> None:
    """Weights and bias that are inputs are packed at every run."""
    def body(x, w, b):
        return mil.ops.relu(mil.ops.conv(x, w, bias=b, pad_type="same"))

    xs, ws = (2, 6, 9, 8), (10, 6, 3, 3)
    p = mil.build(body, {"x": mil.spec(xs, "fp32"), "w": mil.spec(ws, "fp32"),
                         "b": mil.spec((10,), "fp32")})
    k = anetorch.compile(p)
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        x, w, b = (rng.standard_normal(s).astype(np.float32) for s in (xs, ws, (10,)))
        pads = [p for d in (0, 1) for p in geometry(xs[d + 2], 3, 1, 1, "same", None)[1:]]
        args = ([1, 1], [1, 1], 1, "custom", pads)
        ref = conv(x, w, *args) + b.reshape(-1, 1, 1).astype("f8")
        bound = 57 * U * (conv(abs(x), abs(w), *args) + abs(b).reshape(-1, 1, 1)) + U * abs(ref)
        tolerance.check(np.asarray(k(x, w, b)), np.maximum(ref, 0), bound, "runtime weights")


def test_a_1x1_convolution_of_channels_first(kernel: str = "f32_") -> None:
    """A product, or (`kernel` "") whatever else computes it."""
    w = np.random.default_rng(0).standard_normal((24, 16, 1, 1)).astype(np.float32)
    k = anetorch.compile(mil.build(lambda x: mil.ops.conv(x, w), {"x": mil.spec((1, 16, 1, 64), "fp32")}))
    x = np.random.default_rng(1).standard_normal((1, 16, 1, 64)).astype(np.float32)
    a, b = w[:, :, 0, 0].astype("f8"), x[0, :, 0].astype("f8")
    tolerance.check(np.asarray(k(x))[0, :, 0], a @ b, tolerance.matmul(a, b), "1x1")
    assert k.report()[0]["kernel"].startswith(kernel)
