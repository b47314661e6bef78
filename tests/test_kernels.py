"""Kernel tables: every instruction set this machine runs, against float64 with the derived
bound, and against the scalar table bit for bit where products are exact."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import tolerance

from anetorch import _core

T = _core._testing
TABLES = T.tables()
UNARY, BINARY = T.vec_names()
GUARD = 0xA5


def bf16(x: np.ndarray) -> np.ndarray:
    """float -> bfloat16 bits (uint16), nearest even; NaN stays NaN."""
    u = np.asarray(x, np.float32).view(np.uint32)
    r = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
    nan = (u & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, ((u >> 16) | 0x40).astype(np.uint16), r)


def value(x: np.ndarray) -> np.ndarray:
    """float64 values of a float16, float32 or bfloat16 (uint16) array."""
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return x.astype(np.float64)


def draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    x = rng.standard_normal(shape)
    return bf16(x) if dtype == "bfloat16" else x.astype(dtype)


def laid_out(x: np.ndarray, layout: str) -> np.ndarray:
    """The same values in rows, in columns, with gaps, or backwards in memory."""
    if layout == "rows":
        return np.ascontiguousarray(x)
    if layout == "columns":
        return np.ascontiguousarray(np.swapaxes(x, -1, -2)).swapaxes(-1, -2)
    if layout == "gaps":
        big = np.zeros((*x.shape[:-2], x.shape[-2] * 2, x.shape[-1] * 3), x.dtype)
        big[..., ::2, ::3] = x
        return big[..., ::2, ::3]
    big = np.ascontiguousarray(x[..., ::-1, ::-1])
    return big[..., ::-1, ::-1]


class Guarded:
    """An output with guard bytes before and after it; gaps are part of the guard."""

    def __init__(self, shape: tuple[int, ...], dtype: str, layout: str = "rows") -> None:
        kind = np.dtype("uint16" if dtype == "bfloat16" else dtype)
        count = math.prod(shape) * (6 if layout == "gaps" else 1)
        self.raw = np.full(count * kind.itemsize + 256, GUARD, np.uint8)
        body = self.raw[128:128 + count * kind.itemsize].view(kind)
        if layout == "gaps":
            wide = (*shape[:-2], shape[-2] * 2, shape[-1] * 3)
            self.array = body.reshape(wide)[..., ::2, ::3]
        elif layout == "columns":
            self.array = body.reshape((*shape[:-2], shape[-1], shape[-2])).swapaxes(-1, -2)
        elif layout == "backwards":
            self.array = body.reshape(shape)[..., ::-1, ::-1]
        else:
            self.array = body.reshape(shape)

    def check(self, what: str) -> None:
        kept = self.array.copy()
        self.array[...] = np.frombuffer(bytes([GUARD] * 8), self.array.dtype)[0]
        assert (self.raw == GUARD).all(), f"{what}: wrote outside its output"
        self.array[...] = kept


def test_there_are_tables() -> None:
    assert TABLES[0] == "scalar"
    states = dict(_core.isa_tables())
    assert list(states.values()).count("chosen") == 1
    flags = open("/proc/cpuinfo").read() if os.path.exists("/proc/cpuinfo") else ""
    for table, flag in (("avx2", " avx2 "), ("avx512", " avx512bw ")):
        if flag in flags and states.get(table) != "not built":
            assert table in TABLES


# ---------------------------------------------------------------- products

SHAPES = [(1, 1, 1), (3, 5, 7), (11, 31, 13), (12, 32, 16), (13, 33, 17), (6, 16, 8),
          (7, 17, 9), (64, 64, 64), (1, 300, 70), (300, 1, 70), (2, 90, 33), (90, 2, 33),
          (37, 41, 513), (25, 70, 1100), (130, 67, 129), (17, 4, 1)]
TYPES = ["float16", "float32", "bfloat16"]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_product_of_every_layout_and_type(table: str, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    rng = np.random.default_rng(m * 7919 + n * 104729 + k)
    layouts = ["rows", "columns", "gaps", "backwards"]
    cases = list(itertools.product(layouts, layouts))
    for i, (la, lb) in enumerate(cases):
        ta, tb, tc = TYPES[i % 3], TYPES[(i // 3) % 3], TYPES[(i // 2) % 3]
        lc = layouts[(i * 7 // 3) % 4]
        a, b = draw(rng, (m, k), ta), draw(rng, (k, n), tb)
        out = Guarded((m, n), tc, lc)
        what = f"{table} {ta} {la} @ {tb} {lb} -> {tc} {lc}, {shape}"
        T.gemm(table, laid_out(a, la), laid_out(b, lb), out.array)
        va, vb = value(a), value(b)
        tolerance.check(value(out.array), va @ vb, tolerance.matmul(va, vb, tc), what)
        out.check(what)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("shape", [(130, 125, 9000), (125, 130, 9000)],
                         ids=lambda s: "x".join(map(str, s)))
def test_long_sums_run_in_parts(table: str, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    rng = np.random.default_rng(k)
    a, b = draw(rng, (m, k), "float16"), draw(rng, (k, n), "float16")
    c = draw(rng, (m, n), "float32")
    out = Guarded((m, n), "float32")
    out.array[...] = c
    T.gemm(table, a, b, out.array, residual=out.array)
    va, vb = value(a), value(b)
    tolerance.check(out.array, va @ vb + c, tolerance.matmul(va, vb) + 2.0**-23 * np.abs(c),
                    f"{table} {shape}")
    out.check(str(shape))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("shape", [(0, 4, 5), (4, 0, 5), (4, 5, 0), (1, 9, 0), (0, 0, 0)])
def test_product_of_nothing(table: str, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    out = Guarded((m, n), "float32")
    T.gemm(table, np.ones((m, k), np.float32), np.ones((k, n), np.float32), out.array)
    assert (out.array == 0).all()
    out.check(str(shape))


ACTS = {
    0: (lambda x: x, 1.0), 1: (lambda x: np.maximum(x, 0), 1.0),
    2: (lambda x: 1 / (1 + np.exp(-x)), 0.25), 3: (lambda x: x / (1 + np.exp(-x)), 1.1),
    4: (np.tanh, 1.0),
    5: (lambda x: x * np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)))(x), 1.13),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("shape", [(13, 33, 40), (1, 50, 20), (40, 3, 600), (30, 70, 1100)])
def test_epilogue(table: str, act: int, shape: tuple[int, int, int]) -> None:
    """C = act(alpha A B + bias) + beta R, bias along rows or columns, R elsewhere or C."""
    m, n, k = shape
    rng = np.random.default_rng(act * 31 + k)
    fn, slope = ACTS[act]
    u = tolerance.U["float32"]
    for case in range(6):
        tc = TYPES[case % 3]
        a, b = draw(rng, (m, k), "float16"), draw(rng, (k, n), "float32") / np.float32(4)
        along = case % 2
        bias = draw(rng, (m, 1) if along else (1, n), TYPES[(case + 1) % 3])
        wide = np.broadcast_to(bias, (m, n))
        out = Guarded((m, n), tc, ["rows", "columns", "gaps"][case // 2])
        old = draw(rng, (m, n), tc)
        alpha, beta = 0.5, [1.0, -2.0, 0.0][case // 2]
        same = case != 4
        if same:
            out.array[...] = old
            res = out.array
        else:
            res = np.full_like(old, np.nan) if tc != "bfloat16" else np.full_like(old, 0x7FC0)
        if beta == 0 and same:      # must not be read
            out.array[...] = 0x7FC0 if tc == "bfloat16" else np.nan
        what = f"{table} act {act} case {case} {shape}"
        T.gemm(table, a, b, out.array, alpha=alpha, beta=beta, bias=wide, act=act,
               residual=res)
        va, vb = value(a), value(b)
        z = alpha * (va @ vb) + value(wide)
        y = fn(z)
        ref = y + (beta * value(old) if beta else 0)
        before = alpha * tolerance.matmul(va, vb) + 2 * u * (np.abs(z) + np.abs(value(wide)))
        bound = (slope * before + 8 * u * np.abs(y) + 2 * u * np.abs(ref) +
                 tolerance.rounding(ref, tc))
        tolerance.check(value(out.array), ref, bound * (1 + 2.0**-7), what)
        out.check(what)


@pytest.mark.parametrize("table", TABLES)
def test_accumulation_onto_c(table: str) -> None:
    rng = np.random.default_rng(5)
    for m, n, k in [(24, 64, 100), (50, 70, 1300), (12, 32, 512)]:
        a, b = draw(rng, (m, k), "float16"), draw(rng, (k, n), "float16")
        c = (rng.standard_normal((m, n)) * 100).astype(np.float32)
        old = c.astype(np.float64)
        T.gemm(table, a, b, c, residual=c)
        va, vb = value(a), value(b)
        ref = old + va @ vb
        bound = tolerance.matmul(va, vb) + tolerance.U["float32"] * (np.abs(ref) + np.abs(old))
        tolerance.check(c, ref, bound, f"{table} {m}x{n}x{k}")


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("packed", [1, 2, 3])
def test_packed_once_gives_the_same_bits(table: str, packed: int) -> None:
    rng = np.random.default_rng(packed)
    for m, n, k in [(70, 90, 64), (13, 200, 1100), (200, 13, 40), (1, 65, 33), (65, 1, 33)]:
        a, b = draw(rng, (m, k), "float16"), draw(rng, (k, n), "float32")
        c, d = np.empty((m, n), np.float32), np.empty((m, n), np.float32)
        T.gemm(table, a, b, c)
        T.gemm(table, a, b, d, packed=packed)
        if min(m, n) > 1:
            assert (c == d).all(), f"{table} {m}x{n}x{k} packed={packed}"
        else:       # a matrix times a vector is summed in another order
            va, vb = value(a), value(b)
            tolerance.check(d, va @ vb, tolerance.matmul(va, vb), f"{table} {m}x{n}x{k}")


@pytest.mark.parametrize("table", TABLES)
def test_batches(table: str) -> None:
    rng = np.random.default_rng(11)
    for p, m, n, k in [(5, 64, 64, 64), (3, 1, 40, 30), (40, 7, 9, 5), (2, 200, 130, 300),
                       (1, 3, 3, 3), (0, 3, 3, 3)]:
        for share in (None, "a", "b"):
            a = draw(rng, (p, m, k), "float16")
            b = draw(rng, (p, k, n), "float16")
            if share == "a" and p:
                a = np.broadcast_to(a[:1], a.shape)
            if share == "b" and p:
                b = np.broadcast_to(b[:1], b.shape)
            out = Guarded((p, m, n), "float16")
            T.gemm(table, a, b, out.array)
            va, vb = value(a), value(b)
            for i in range(p):
                tolerance.check(out.array[i], va[i] @ vb[i],
                                tolerance.matmul(va[i], vb[i], "float16"),
                                f"{table} batch {i} of {p}, shared {share}")
            out.check("batch")


def test_tables_agree_bit_for_bit_where_products_are_exact() -> None:
    """fp16 times fp16 is exact in fp32 and every table adds in the same order."""
    rng = np.random.default_rng(3)
    for m, n, k in [(13, 33, 70), (40, 50, 1300), (1, 300, 700), (300, 1, 700), (3, 90, 520)]:
        a, b = draw(rng, (m, k), "float16"), draw(rng, (k, n), "float16")
        for la, lb in [("rows", "rows"), ("columns", "columns")]:
            got = []
            for table in TABLES:
                c = np.empty((m, n), np.float32)
                T.gemm(table, laid_out(a, la), laid_out(b, lb), c)
                got.append(c)
            for table, c in zip(TABLES, got, strict=True):
                assert (c.view(np.uint32) == got[0].view(np.uint32)).all(), (table, m, n, k)


@pytest.mark.parametrize("table", TABLES)
def test_product_keeps_infinities_and_nan_where_they_belong(table: str) -> None:
    a = np.ones((13, 20), np.float32)
    b = np.ones((20, 33), np.float32)
    a[3, 4], a[5, 6], b[7, 8] = np.inf, np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        ref = a.astype(np.float64) @ b.astype(np.float64)
    c = np.empty((13, 33), np.float32)
    T.gemm(table, a, b, c)
    tolerance.check(c, ref, 21 * 20 * 2.0**-24, table)


# ---------------------------------------------------------------- conversion

ALL_HALVES = np.arange(65536, dtype=np.uint16)


@pytest.mark.parametrize("table", TABLES)
def test_every_half_converts_up_exactly(table: str) -> None:
    out = np.empty(65536, np.float32)
    T.convert(table, out, ALL_HALVES.view(np.float16))
    ref = ALL_HALVES.view(np.float16).astype(np.float32)
    nan = np.isnan(ref)
    assert (out.view(np.uint32)[~nan] == ref.view(np.uint32)[~nan]).all()
    # NaN: sign and payload kept, quiet.
    want = (((ALL_HALVES.astype(np.uint32) & 0x8000) << 16) | 0x7FC00000 |
            ((ALL_HALVES.astype(np.uint32) & 0x3FF) << 13))
    assert (out.view(np.uint32)[nan] == want[nan]).all()
    back = np.empty(65536, np.float16)
    T.convert(table, back, out)
    assert (back.view(np.uint16)[~nan] == ALL_HALVES[~nan]).all()
    assert (back.view(np.uint16)[nan] == (ALL_HALVES[nan] | 0x200)).all()
    up = np.empty(65536, np.float32)
    T.convert(table, up, ALL_HALVES)
    assert (up.view(np.uint32) == ALL_HALVES.astype(np.uint32) << 16).all()


def interesting_floats() -> np.ndarray:
    """Every exponent with mantissas around every rounding boundary of both 16-bit types."""
    low = np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0x2000, 0x2FFF, 0x3000, 0x3001,
                    0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x10000, 0x17FFF, 0x18000, 0x18001,
                    0x3FFFFF, 0x400000, 0x400001, 0x7FEFFF, 0x7FF000, 0x7FFFFF], np.uint32)
    exponents = np.arange(512, dtype=np.uint32) << 23
    fixed = (exponents[:, None] | low[None, :]).ravel()
    some = np.random.default_rng(0).integers(0, 2**32, 300_000, dtype=np.uint32)
    return np.concatenate([fixed, some]).view(np.float32)


def check_down(table: str, x: np.ndarray) -> None:
    bits = x.view(np.uint32)
    nan = np.isnan(x)
    out = np.empty(x.size, np.float16)
    T.convert(table, out, x)
    with np.errstate(over="ignore", under="ignore"):
        ref = x.astype(np.float16).view(np.uint16)
    got = out.view(np.uint16)
    assert (got[~nan] == ref[~nan]).all(), f"{table}: fp32 -> fp16"
    want = ((bits >> 16) & 0x8000) | 0x7E00 | ((bits >> 13) & 0x3FF)
    assert (got[nan] == want[nan]).all(), f"{table}: NaN fp32 -> fp16"
    half = np.empty(x.size, np.uint16)
    T.convert(table, half, x)
    assert (half == bf16(x)).all(), f"{table}: fp32 -> bf16"


@pytest.mark.parametrize("table", TABLES)
def test_floats_round_to_nearest_even(table: str) -> None:
    check_down(table, interesting_floats())
    edges = np.array([65519.996, 65520.0, -65520.0, 2**-25, 2**-25 * 1.0000001, 2**-24],
                     np.float32)
    out = np.empty(6, np.float16)
    T.convert(table, out, edges)
    assert out[0] == 65504 and out[1] == np.inf and out[2] == -np.inf
    assert out[3] == 0 and out[4] == np.float16(2**-24) and out[5] == np.float16(2**-24)


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
def test_every_float(table: str) -> None:
    step = 1 << 24
    for start in range(0, 1 << 32, step):
        check_down(table, np.arange(start, start + step, dtype=np.uint64)
                   .astype(np.uint32).view(np.float32))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("pair", list(itertools.permutations(TYPES, 2)), ids="-".join)
def test_conversion_of_any_length_and_alignment(table: str, pair: tuple[str, str]) -> None:
    rng = np.random.default_rng(1)
    source, target = pair
    kind = {"float16": np.float16, "float32": np.float32, "bfloat16": np.uint16}
    size = np.dtype(kind[source]).itemsize
    for n in [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 200]:
        for shift_in, shift_out in [(0, 0), (1, 0), (0, 1), (2, 6), (3, 5)]:
            x = draw(rng, (n,), source)
            raw = np.zeros(n * size + 8, np.uint8)
            raw[shift_in:shift_in + n * size] = x.view(np.uint8)
            src = np.ndarray((n,), kind[source], raw.data, shift_in)
            out = np.full(n * np.dtype(kind[target]).itemsize + 64, GUARD, np.uint8)
            dst = np.ndarray((n,), kind[target], out.data, 32 + shift_out)
            T.convert(table, dst, src)
            v = value(x)
            want = bf16(v.astype(np.float32)) if target == "bfloat16" else v.astype(kind[target])
            assert (np.array(dst) == want).all()
            end = 32 + shift_out + n * np.dtype(kind[target]).itemsize
            assert (out[:32 + shift_out] == GUARD).all() and (out[end:] == GUARD).all()


@pytest.mark.parametrize("table", TABLES)
def test_conversion_of_a_big_array(table: str) -> None:
    """Threads, blocks and streaming stores, from an address that is not aligned to them."""
    n = (1 << 22) + 12345
    x = np.random.default_rng(2).standard_normal(n + 3).astype(np.float32)[3:]
    out = np.full(n + 7, 7, np.float16)
    T.convert(table, out[5:-2], x)
    assert (out[5:-2] == x.astype(np.float16)).all()
    assert (out[:5] == 7).all() and (out[-2:] == 7).all()
    up = np.full(n + 7, 7, np.float32)
    T.convert(table, up[3:-4], out[5:-2])
    assert (up[3:-4] == out[5:-2].astype(np.float32)).all()
    assert (up[:3] == 7).all() and (up[-4:] == 7).all()


# ---------------------------------------------------------------- vector primitives


def erfc(x: np.ndarray) -> np.ndarray:
    return np.array([math.erfc(v) for v in x])


def erf(x: np.ndarray) -> np.ndarray:
    return np.array([math.erf(v) for v in x])


def sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1 + e)


ORACLE = {
    "exp": np.exp, "log": np.log, "tanh": np.tanh, "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x), "gelu": lambda x: 0.5 * x * erfc(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    "gelu_sigmoid": lambda x: x * sigmoid(1.702 * x), "erf": erf,
    "relu": lambda x: np.where(np.isnan(x), x, np.maximum(x, 0)), "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x), "recip": lambda x: 1 / x, "abs": np.abs,
    "neg": np.negative, "square": np.square,
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
}
# Units in the last place of the exact result that the primitive may be off by.
ULPS = {"exp": 2, "log": 4, "tanh": 4, "sigmoid": 4, "silu": 4, "gelu": 16, "erf": 4,
        "softplus": 4, "rsqrt": 1.5}
# exp(u) of a computed u with relative error e is off by |u| e: the tails of these two.
CONDITION = {"gelu_tanh": lambda x: 2 * math.sqrt(2 / math.pi) * np.abs(x + 0.044715 * x**3),
             "gelu_sigmoid": lambda x: 1.702 * np.abs(x)}


def test_every_primitive_has_an_oracle() -> None:
    assert set(ORACLE) == set(UNARY)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", UNARY)
def test_unary(table: str, name: str) -> None:
    rng = np.random.default_rng(9)
    wide = np.exp(rng.uniform(-20, 5, 30_000)) * rng.choice([-1, 1], 30_000)
    x = np.concatenate([ALL_HALVES.view(np.float16).astype(np.float32),
                        wide.astype(np.float32)])
    y = np.empty_like(x)
    T.vec(table, name, y, x)
    with np.errstate(all="ignore"):
        v = x.astype(np.float64)
        ref = ORACLE[name](v)
        single = ref.astype(np.float32)
        ulp = np.spacing(np.abs(np.where(np.isfinite(single), single, 0)))
        bound = ULPS.get(name, 0.5) * ulp.astype(np.float64)
        if name in CONDITION:
            z = np.where(np.isfinite(v), CONDITION[name](np.where(np.isfinite(v), v, 0)), 0)
            bound = (8 + 4 * np.minimum(z, 110)) * ulp
    # x times a sigmoid (or erfc) that is subnormal: its last place is 2**-149 of 1.
    if name in ("silu", "gelu", "gelu_tanh", "gelu_sigmoid"):
        bound = bound + np.where(np.isfinite(v), np.abs(v), 0) * 2.0**-149
    # Overflow of the fp32 result is inf by rounding; -inf * 0 is NaN in IEEE's own terms.
    ref = np.where(np.isfinite(ref) & ~np.isfinite(single), single, ref)
    skip = np.isinf(v) & (v < 0) if name in ("silu", "gelu", "gelu_tanh", "gelu_sigmoid") else (
        np.zeros(x.size, bool))
    tolerance.check(y[~skip], ref[~skip], bound[~skip], f"{table} {name}")


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", BINARY)
def test_binary(table: str, name: str) -> None:
    fn = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
          "max": np.maximum, "min": np.minimum}[name]
    rng = np.random.default_rng(4)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42, 3e38, -1.5], np.float32)
    for n in [0, 1, 7, 16, 33, 64, 200]:
        a = rng.standard_normal(n).astype(np.float32)
        b = rng.standard_normal(n).astype(np.float32)
        a[rng.random(n) < 0.3] = rng.choice(special)
        b[rng.random(n) < 0.3] = rng.choice(special)
        s = np.float32(rng.choice(special))
        for got, want in (((a, b), (a, b)), ((a, None), (a, s)), (("r", a), (s, a))):
            y = np.full(n + 8, 9, np.float32)
            if got[0] is a:
                T.vec(table, name, y[:n], a, got[1], float(s))
            else:
                T.vec(table, "r" + name, y[:n], a, None, float(s))
            with np.errstate(all="ignore"):
                ref = fn(*want)
            assert np.array_equal(y[:n], ref, equal_nan=True), (table, name, n)
            assert (y[n:] == 9).all()


def larger(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The maximum; NaN where either is; of two zeros the first."""
    return np.where(np.isnan(a) | np.isnan(b), np.float32(np.nan), np.where(b > a, b, a))


def smaller(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(a) | np.isnan(b), np.float32(np.nan), np.where(b < a, b, a))


STEP_UNARY = {"relu": lambda x: larger(x, np.float32(0)),
              "sqrt": np.sqrt, "rsqrt": lambda x: np.float32(1) / np.sqrt(x),
              "recip": lambda x: np.float32(1) / x, "abs": np.abs, "neg": np.negative,
              "square": np.square}
STEP_BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
               "max": larger, "min": smaller}


def narrow(x: np.ndarray, dtype: str) -> np.ndarray:
    return bf16(x) if dtype == "bfloat16" else x.astype(dtype)


def widened(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x.astype(np.float32)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("seed", range(8))
def test_steps_round_once_at_the_end(table: str, seed: int) -> None:
    """Chains in registers are NumPy's float32 step by step, and one rounding: every function,
    operand, dtype and length, in place, streamed, with guards; zeros and NaN as well."""
    rng = np.random.default_rng(seed)
    dtypes = ["float16", "float32", "bfloat16"]
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 6e-8, 65504, -1.5], np.float32)
    seen = set()
    for case in range(60):
        n = int(rng.choice([0, 1, 3, 7, 8, 31, 63, 64, 65, 95, 96, 97, 128, 192, 255, 256, 300, 1000]))
        source, target = rng.choice(dtypes, 2)

        def row(dtype: str, n: int = n) -> np.ndarray:
            x = rng.standard_normal(n).astype(np.float32)
            x[rng.random(n) < 0.2] = rng.choice(special)
            return narrow(x, dtype)
        x = row(source)
        want, steps = widened(x), []
        with np.errstate(all="ignore"):
            for _ in range(int(rng.choice([0, 1, 2, 3, 6, 13, 32]))):
                if rng.random() < 0.3:
                    name = str(rng.choice(list(STEP_UNARY)))
                    steps.append((name, None, False))
                    want = STEP_UNARY[name](want)
                    seen.add(name)
                    continue
                name, left = str(rng.choice(list(STEP_BINARY))), bool(rng.random() < 0.4)
                if rng.random() < 0.6:
                    operand = float(rng.choice(special) if rng.random() < 0.3 else
                                    np.float32(rng.standard_normal()))
                    other = np.float32(operand)
                    seen.add((name, left, "scalar"))
                else:
                    dtype = str(rng.choice(dtypes))
                    operand, other = (r := row(dtype)), widened(r)
                    seen.add((name, left, dtype))
                steps.append((name, operand, left))
                a, b = (other, want) if left else (want, other)
                want = STEP_BINARY[name](a, b).astype(np.float32)
            want = narrow(want, target)
        size = want.itemsize
        room = np.full(n * size + 192, GUARD, np.uint8)
        at = int(-room.ctypes.data % 64 + 64 + rng.choice([0, size]))
        y = room[at:at + n * size].view(want.dtype)
        if case % 3 == 0 and x.dtype == y.dtype:
            y[:] = x
            x = y                       # in place
        T.steps(table, y, x, steps, bool(case % 2))
        got, want = widened(y), widened(want)
        assert np.array_equal(got, want, equal_nan=True), (n, source, target, steps)
        assert (np.signbit(got) == np.signbit(want))[~np.isnan(want)].all()
        assert (room[:at] == GUARD).all() and (room[at + n * size:] == GUARD).all()
    assert len(seen) > 40


def test_steps_are_the_rows_bit_for_bit() -> None:
    """What a chain gives does not depend on whether it ran in registers: signs of zeros too."""
    x = np.array([0.0, -0.0, 1, -1, np.nan, np.inf, -np.inf, 0.5] * 9, np.float32)
    for table in TABLES:
        for name in STEP_BINARY:
            for s in (0.0, -0.0, 1.0, -1.0, math.inf, math.nan):
                for left in (False, True):
                    for more in ([], [("add", 0.25, False)]):
                        rows, regs = np.empty_like(x), np.empty_like(x)
                        T.vec(table, "r" * left + name, rows, x, None, s)
                        for n, v, _ in more:
                            T.vec(table, n, rows, rows, None, v)
                        T.steps(table, regs, x, [(name, s, left), *more])
                        same = rows.view(np.uint32) == regs.view(np.uint32)
                        assert (same | np.isnan(rows) & np.isnan(regs)).all(), (table, name, s, left)


@pytest.mark.parametrize("table", TABLES)
def test_steps_that_read_what_the_chain_began_with(table: str) -> None:
    """x as a row of its own chain, for every function and dtype and as another dtype's bits:
    what x holds where it is NaN, infinite or a zero of either sign, the chain's value being
    something else there or the same."""
    rng = np.random.default_rng(1)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1], np.float32)
    for dtype in ("float16", "float32", "bfloat16"):
        x = rng.standard_normal(700).astype(np.float32)
        x[:490] = np.tile(special, 70)
        x = narrow(x, dtype)
        for name in STEP_BINARY:
            for left in (False, True):
                for before in ([], [("mul", -1.0, False)], [("mul", 0.0, False)],
                               [("div", 0.5, True), ("mul", 0.0, False)]):
                    want = widened(x)
                    with np.errstate(all="ignore"):
                        for other, v, reverse in [*before, (name, widened(x), left)]:
                            v = np.float32(v)
                            a, b = (v, want) if reverse else (want, v)
                            want = STEP_BINARY[other](a, b)
                    y = np.empty(x.shape, np.float32)
                    T.steps(table, y, x, [*before, (name, x, left)])
                    case = (table, dtype, name, left, before)
                    assert np.array_equal(y, want, equal_nan=True), case
                    assert (np.signbit(y) == np.signbit(want))[~np.isnan(want)].all(), case
    # The same address as another dtype is another row.
    x = rng.standard_normal(300).astype(np.float16)
    x[::3] = np.nan
    bits = x.view(np.uint16)
    y = np.empty(300, np.float32)
    T.steps(table, y, x, [("max", bits, False)])
    assert np.array_equal(y, larger(widened(x), widened(bits)), equal_nan=True)


@pytest.mark.parametrize("table", TABLES)
def test_every_step_in_every_place(table: str) -> None:
    """The frequent functions are decided four at a time: each at each place, between others."""
    rng = np.random.default_rng(2)
    x, row = (rng.standard_normal(300).astype(np.float32) for _ in range(2))
    frequent = [("mul", 1.25, False), ("add", 0.375, False), ("max", -0.5, False),
                ("min", 0.75, False), ("sub", 2.0, True)]
    others = [("add", row, False), ("mul", row, False), ("sub", row, False), ("max", row, False),
              ("min", row, True), ("div", row, True), ("abs", None, False), ("square", None, False)]
    for k in range(1, 10):
        for place in range(k):
            for one in frequent + others:
                steps = [frequent[int(i)] for i in rng.integers(len(frequent), size=k)]
                steps[place] = one
                want = x
                with np.errstate(all="ignore"):
                    for name, v, left in steps:
                        if v is None:
                            want = STEP_UNARY[name](want)
                            continue
                        a, b = (np.float32(v), want) if left else (want, np.float32(v))
                        want = STEP_BINARY[name](a, b)
                y = np.empty_like(x)
                T.steps(table, y, x, steps)
                assert np.array_equal(y, want, equal_nan=True), (steps, place)


@pytest.mark.parametrize("table", TABLES)
def test_reductions(table: str) -> None:
    rng = np.random.default_rng(8)
    u = 2.0**-24
    for n in [0, 1, 5, 15, 16, 63, 64, 65, 127, 300, 1000, 4097]:
        x = rng.standard_normal(n).astype(np.float32)
        b = rng.standard_normal(n).astype(np.float32)
        v, w = x.astype(np.float64), b.astype(np.float64)
        chain = n / 64 + 8          # 64 chains, then a tree of six levels
        for name, args, terms in [("sum", (), v), ("sumsq", (), v * v),
                                  ("dot", (b,), v * w)]:
            got = T.vec(table, name, None, x, *args)
            assert abs(got - terms.sum()) <= chain * u * np.abs(terms).sum(), (table, name, n)
        got = T.vec(table, "sumsq_about", None, x, None, 0.25)
        terms = (v - 0.25) ** 2
        assert abs(got - terms.sum()) <= (chain + 4) * u * terms.sum()
        assert T.vec(table, "rowmax", None, x) == (v.max() if n else -np.inf)
        assert T.vec(table, "rowmin", None, x) == (v.min() if n else np.inf)
        if n:
            x[rng.integers(n)] = np.nan
            assert math.isnan(T.vec(table, "rowmax", None, x))
            assert math.isnan(T.vec(table, "rowmin", None, x))


def test_reductions_are_the_same_in_every_table() -> None:
    rng = np.random.default_rng(8)
    for n in [1, 64, 100, 777, 4096]:
        x = rng.standard_normal(n).astype(np.float32)
        for name in ("sum", "rowmax", "rowmin"):
            got = {T.vec(t, name, None, x) for t in TABLES}
            assert len(got) == 1, (name, n, got)


@pytest.mark.parametrize("table", TABLES)
def test_softmax_and_its_pieces(table: str) -> None:
    rng = np.random.default_rng(6)
    for n in [1, 3, 16, 65, 500]:
        x = (rng.standard_normal(n) * 10).astype(np.float32)
        x[rng.random(n) < 0.2] = -np.inf
        x[0] = 3
        y = np.empty(n, np.float32)
        T.vec(table, "softmax", y, x)
        v = x.astype(np.float64)
        e = np.exp(v - v.max())
        ref = e / e.sum()
        # |x - max| u from the subtraction, 2 ulp of exp, the sum, two roundings
        depth = np.where(np.isfinite(v), v.max() - v, 0)
        bound = (depth + n / 64 + 16) * 2.0**-23 * ref + 2.0**-149
        tolerance.check(y, ref, bound, f"{table} softmax {n}")
        z = np.empty(n, np.float32)
        s = T.vec(table, "exp_sum", z, x, None, 0.5, 1.5)
        f = np.exp(v * 0.5 - 1.5)
        tolerance.check(z, f, (np.abs(depth) + 30) * 2.0**-23 * f + 2.0**-149, "exp_sum")
        assert abs(s - z.astype(np.float64).sum()) <= (n / 64 + 8) * 2.0**-24 * z.sum()
    y = np.empty(5, np.float32)
    T.vec(table, "softmax", y, np.full(5, -np.inf, np.float32))
    assert np.isnan(y).all()


@pytest.mark.parametrize("table", TABLES)
def test_multiply_and_add(table: str) -> None:
    rng = np.random.default_rng(7)
    for n in [0, 1, 17, 100]:
        x, b, y = (rng.standard_normal(n).astype(np.float32) for _ in range(3))
        v, w, z = (t.astype(np.float64) for t in (x, b, y))
        out = np.empty(n, np.float32)
        T.vec(table, "affine", out, x, None, 1.25, -0.75)
        ref = v * 1.25 - 0.75
        tolerance.check(out, ref, 2.0**-24 * (np.abs(ref) + np.abs(v * 1.25)), "affine")
        out = y.copy()
        T.vec(table, "axpy", out, x, None, 1.25)
        tolerance.check(out, z + 1.25 * v, 2.0**-23 * (np.abs(z) + np.abs(1.25 * v)), "axpy")
        out = y.copy()
        T.vec(table, "muladd", out, x, b)
        tolerance.check(out, z + v * w, 2.0**-23 * (np.abs(z) + np.abs(v * w)), "muladd")


# ---------------------------------------------------------------- choosing a table


def run_with(isa: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "ANETORCH_ISA": isa}, check=False)


@pytest.mark.parametrize("table", TABLES)
def test_isa_can_be_forced(table: str) -> None:
    code = "from anetorch import _core; print(dict(_core.isa_tables()))"
    run = run_with(table, code)
    assert run.returncode == 0, run.stderr
    assert eval(run.stdout)[table] == "chosen"


def test_unknown_isa_is_an_error_that_lists_what_exists() -> None:
    run = run_with("sse9", "from anetorch import _core; _core.isa_tables()")
    assert run.returncode == 1
    assert "ANETORCH_ISA='sse9'" in run.stderr and "scalar" in run.stderr
