"""Conversion, GQA and surface I/O against NumPy, and every refusal."""

import threading

import numpy as np
import pytest

import anetorch
from anetorch import Tensor, gqa_reduce, gqa_tile, surface_io, to_fp16, to_fp32


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---------------------------------------------------------------- fp16

def test_every_half_survives():
    h = np.arange(65536, dtype=np.uint16).view(np.float16)
    f = to_fp32(h)
    np.testing.assert_array_equal(f, h.astype(np.float32))
    back = to_fp16(f)
    nan = np.isnan(h)
    np.testing.assert_array_equal(back.view(np.uint16)[~nan], h.view(np.uint16)[~nan])
    assert np.isnan(back[nan]).all()


def test_rounding_edges():
    f = np.float32([65519.996, 65520, -65520, 1e30, 2**-25, np.nextafter(np.float32(2**-25), 1),
                    5.9604645e-08, -0.0, np.inf, 2049, 2051, 1 + 2**-11, 1 + 3 * 2**-11])
    want = np.float16([65504, np.inf, -np.inf, np.inf, 0, 2**-24, 2**-24, -0.0, np.inf, 2048,
                       2052, 1, 1 + 2**-9])
    got = to_fp16(f)
    assert got.tobytes() == want.tobytes()


def test_halfway_between_all_neighbours():
    h = np.arange(0, 0x7bff, dtype=np.uint16)
    lo, hi = h.view(np.float16).astype(np.float32), (h + 1).view(np.float16).astype(np.float32)
    mid = (lo + hi) / 2         # exact in float32
    even = np.where(h % 2 == 0, h, h + 1)
    np.testing.assert_array_equal(to_fp16(mid).view(np.uint16), even)
    np.testing.assert_array_equal(to_fp16(np.nextafter(mid, np.float32(0))).view(np.uint16), h)
    np.testing.assert_array_equal(to_fp16(np.nextafter(mid, np.float32(9e9))).view(np.uint16),
                                  h + 1)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 15, 16, 17, 31, 33, 1000, 300001])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_any_length_and_alignment(n, shift):
    x = normal(n + shift)[shift:] * 100
    np.testing.assert_array_equal(to_fp16(x), x.astype(np.float16))
    h = x.astype(np.float16)
    np.testing.assert_array_equal(to_fp32(h), h.astype(np.float32))
    raw = np.zeros(4 * n + 1, np.uint8)[1:].view(np.float32) if n else x
    raw[...] = x
    np.testing.assert_array_equal(to_fp16(raw), x.astype(np.float16))


def test_strided_out_and_kinds():
    x = normal(40, 50)
    out = np.zeros((50, 40), np.float16)
    assert to_fp16(x.T, out) is out
    np.testing.assert_array_equal(out, x.T.astype(np.float16))
    t = Tensor.from_numpy(x)
    got = to_fp16(t)
    assert isinstance(got, Tensor) and got.dtype == "float16"
    np.testing.assert_array_equal(got.numpy(), x.astype(np.float16))
    dst = Tensor((40, 50), "float16")
    assert to_fp16(x, out=dst) is dst
    np.testing.assert_array_equal(dst.numpy(), x.astype(np.float16))
    assert to_fp16([1.0, 2.0]).dtype == np.float16
    assert to_fp16(3.5).shape == ()


@pytest.mark.parametrize("out, error, match", [
    (np.zeros(3, np.float16), ValueError, r"out needs shape \(4,\), it has \(3,\)"),
    (np.zeros(4, np.float32), TypeError, "out needs dtype float16, it has float32"),
    ([0] * 4, TypeError, "out is an array or a Tensor"),
    (np.broadcast_to(np.float16(0), (4,)), ValueError, "read-only"),
])
def test_bad_out(out, error, match):
    with pytest.raises(error, match=match):
        to_fp16(np.zeros(4, np.float32), out)


def test_float64_rounds_once():
    x = np.float64(1 + 2**-11 + 2**-40)       # to fp32 first would land on the tie
    assert to_fp16(x) == np.float16(1 + 2**-10)


CASES = [0.0, 0.9, -0.9, 1.5, -1.5, 127.5, 200, -200, 3e9, -3e9, 1e19, -1e19, 1e30, -1e30,
         np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16",
                                   "uint32", "uint64"])
@pytest.mark.parametrize("source", ["float32", "float64"])
def test_float_to_integer_truncates_and_saturates(dtype, source):
    x = np.array(CASES, source)
    info = np.iinfo(dtype)
    want = [0 if v != v else max(info.min, min(info.max, int(np.trunc(np.clip(float(v), -1e25, 1e25)))))
            for v in x]
    assert Tensor((len(x),), dtype).copy_(x).tolist() == want


def test_integer_conversions():
    x = np.array([0, 1, -1, 127, 128, -129, 2**31, 2**53 + 1, -2**63, 2**63 - 1], np.int64)
    for dtype in ["int8", "uint8", "int16", "uint32", "int32", "uint64", "float32", "float64",
                  "bool"]:
        np.testing.assert_array_equal(Tensor(x.shape, dtype).copy_(x).numpy(), x.astype(dtype))
    u = np.array([2**64 - 1, 2**63, 2**53 + 1, 70000], np.uint64)
    for dtype in ["float32", "float64", "int64"]:
        np.testing.assert_array_equal(Tensor(u.shape, dtype).copy_(u).numpy(), u.astype(dtype))


def test_integers_round_once_to_bfloat16():
    # 2^54 + 2^46 is a tie of bfloat16 (8 bits); one more must round up.
    x = np.array([2**54 + 2**46, 2**54 + 2**46 + 1, -(2**54 + 2**46 + 1)], np.int64)
    bits = Tensor((3,), "bf16").copy_(x).view(0, (3,), "uint16").tolist()
    up = int(np.float32(2**54 + 2**47).view(np.uint32)) >> 16
    assert bits == [int(np.float32(2**54).view(np.uint32)) >> 16, up, up | 0x8000]


# ---------------------------------------------------------------- GQA

@pytest.mark.parametrize("heads, kv, dim, seq", [(1, 1, 1, 1), (6, 3, 5, 7), (6, 1, 4, 9),
                                                 (16, 8, 64, 129), (4, 2, 3, 0)])
def test_gqa(heads, kv, dim, seq):
    x = normal(kv * dim, seq)
    tiled = gqa_tile(x, heads, kv)
    want = np.repeat(x.reshape(kv, dim, seq), heads // kv, axis=0).reshape(heads * dim, seq)
    np.testing.assert_array_equal(tiled, want)
    y = normal(heads * dim, seq, seed=1)
    got = gqa_reduce(y, heads, kv)
    parts = y.reshape(kv, heads // kv, dim, seq)
    total = parts[:, 0].copy()
    for r in range(1, heads // kv):
        total += parts[:, r]
    np.testing.assert_array_equal(got, total.reshape(kv * dim, seq))
    # <tile(x), y> = <x, reduce(y)>, both sums exact enough in double
    a, b = np.sum(tiled * y.astype(np.float64)), np.sum(x * got.astype(np.float64))
    scale = np.sum(np.abs(tiled * y.astype(np.float64)))
    assert abs(a - b) <= heads // kv * 2.0**-24 * scale


def test_gqa_refusals():
    x = normal(6, 4)
    with pytest.raises(ValueError, match="4 query heads are not a positive multiple of 3"):
        gqa_tile(x, 4, 3)
    with pytest.raises(ValueError, match=r"\[4\*head_dim, seq\], got \(6, 4\)"):
        gqa_tile(x, 8, 4)
    with pytest.raises(TypeError, match="expected float32, got int64"):
        gqa_tile(np.zeros((6, 4), np.int64), 6, 3)
    with pytest.raises(ValueError, match="overlaps"):
        gqa_tile(x, 6, 6, out=x)
    with pytest.raises(ValueError, match="contiguous"):
        gqa_tile(x, 6, 3, out=np.zeros((4, 12), np.float32).T)
    t = gqa_tile(Tensor.from_numpy(x), 6, 3)
    assert isinstance(t, Tensor) and t.shape == (12, 4)
    np.testing.assert_array_equal(gqa_tile(x.T, 8, 2)[:2], x.T[:2])


# ---------------------------------------------------------------- surfaces

def test_write_read_at_channels():
    t = Tensor((1, 8, 1, 32), "float16")
    x = normal(3, 32)
    surface_io.write_at(t, 4, x)
    half = x.astype(np.float16)
    np.testing.assert_array_equal(t.numpy()[0, 4:7, 0], half)
    assert not t.numpy()[0, :4].any() and not t.numpy()[0, 7:].any()
    np.testing.assert_array_equal(surface_io.read(t, 4, 3), half.astype(np.float32))
    assert surface_io.read(t, 6).shape == (2, 32)
    out = np.empty((3, 32), np.float32)
    assert surface_io.read(t, 4, 3, out=out) is out
    surface_io.write(t, normal(1, 8, 1, 32))
    np.testing.assert_array_equal(surface_io.read(t), normal(8, 32).astype(np.float16))
    # another S than the tensor's own: flat elements
    surface_io.write(t, normal(4, 64))
    np.testing.assert_array_equal(surface_io.read(t, 1, 2, 64), normal(4, 64).astype(np.float16)[1:3])


def test_copy_between_and_inside():
    a, b = Tensor((1, 6, 1, 16), "float16"), Tensor((1, 4, 1, 16), "float16")
    x = normal(6, 16)
    surface_io.write(a, x)
    surface_io.copy(b, 1, a, 3, 3)
    np.testing.assert_array_equal(surface_io.read(b, 1, 3), x.astype(np.float16)[3:])
    surface_io.copy(a, 1, a, 0, 4)
    np.testing.assert_array_equal(surface_io.read(a, 1, 4), x.astype(np.float16)[:4])


def test_dynamic_pack():
    ic, s, oc = 5, 7, 3
    act, w = normal(ic, s), normal(ic, oc, seed=1)
    t = Tensor((1, ic, 1, s + oc), "float16")
    surface_io.write_dyn(t, act, w)
    np.testing.assert_array_equal(t.numpy()[0, :, 0], np.hstack([act, w]).astype(np.float16))
    np.testing.assert_array_equal(surface_io.read_dyn(t, ic, s + oc),
                                  np.hstack([act, w]).astype(np.float16))


@pytest.mark.parametrize("call, error, match", [
    (lambda t: surface_io.write_at(t, 7, normal(2, 32)), ValueError, "2 channels of 32 .* from element 224 .* 256 elements"),
    (lambda t: surface_io.write_at(t, -1, normal(2, 32)), ValueError, "channel is -1"),
    (lambda t: surface_io.write_at(t, 2**62, normal(2, 32)), ValueError, "overflow"),
    (lambda t: surface_io.write(t, normal(32)), ValueError, r"shape \[C, S\]"),
    (lambda t: surface_io.write(t, np.zeros((2, 32), int)), TypeError, "expected float32"),
    (lambda t: surface_io.read(t, 0, 9), ValueError, "do not fit"),
    (lambda t: surface_io.read(t, 8, 1), ValueError, "do not fit"),
    (lambda t: surface_io.read(t, 9), ValueError, "negative"),
    (lambda t: surface_io.read(t, 0, 2**40, 2**40), ValueError, "do not fit"),
    (lambda t: surface_io.copy(t, 0, t, 7, 2), ValueError, "do not fit"),
    (lambda t: surface_io.copy(t, 7, t, 0, 2), ValueError, "do not fit"),
    (lambda t: surface_io.write_dyn(t, normal(4, 3), normal(5, 3)), ValueError, "act has 4 rows and w 5"),
    (lambda t: surface_io.write_dyn(t, normal(40, 3), normal(40, 5)), ValueError, "do not fit"),
    (lambda t: surface_io.write(Tensor((8, 32)), normal(8, 32)), TypeError, "expected a float16 tensor, got float32"),
    (lambda t: surface_io.write(t[..., ::2], normal(8, 16)), ValueError, "contiguous"),
    (lambda t: surface_io.write(np.zeros((8, 32), np.float16), normal(8, 32)), TypeError, "expected a Tensor"),
    (lambda t: (t.close(), surface_io.write(t, normal(8, 32))), ValueError, "closed"),
])
def test_refusals(call, error, match):
    with pytest.raises(error, match=match):
        call(Tensor((1, 8, 1, 32), "float16"))


def test_opposite_copies_do_not_deadlock():
    a, b = Tensor((1, 64, 1, 64), "float16"), Tensor((1, 64, 1, 64), "float16")

    def work(dst, src):
        for _ in range(300):
            surface_io.copy(dst, 0, src, 0, 64)

    threads = [threading.Thread(target=work, args=p, daemon=True) for p in [(a, b), (b, a)]]
    for th in threads:
        th.start()
    for th in threads:
        th.join(60)
    assert not any(th.is_alive() for th in threads)


def test_public_names():
    assert anetorch.to_fp16 is to_fp16 and anetorch.gqa_reduce is gqa_reduce


# ---------------------------------------------------------------- any copy against NumPy

@pytest.mark.parametrize("seed", range(40))
def test_random_copies(seed):
    rng = np.random.default_rng(seed)
    names = ["bool", "int8", "uint8", "int16", "int32", "int64", "uint64", "float16", "float32",
             "float64"]
    for _ in range(12):
        rank = int(rng.integers(0, 6))
        shape = [int(n) for n in rng.choice([1, 2, 3, 4, 5, 8, 16, 33, 70], rank)]
        while np.prod(shape) > 60_000:
            shape[int(np.argmax(shape))] //= 2
        src_type, dst_type = rng.choice(names), rng.choice(names)
        if rng.integers(0, 3) == 0:
            dst_type = src_type

        def strided(dtype, values, shape=shape, rank=rank):
            """An array of this shape inside a larger one, axes shuffled, steps and signs random."""
            order, steps = rng.permutation(rank), rng.choice([1, 1, 2, 3, -1, -2], rank)
            room = [shape[a] * abs(int(steps[a])) + int(rng.integers(0, 3)) for a in order]
            base = np.empty(room, dtype)
            base[...] = values(room)

            def pick(x):
                view = x[(*(slice(None, None, int(steps[a])) for a in order), ...)]
                view = view.transpose(np.argsort(order)) if rank else view
                return view[(*(slice(0, n) for n in shape), ...)]

            inside = np.zeros(base.shape, bool)
            pick(inside)[...] = True
            return base, pick(base), inside

        _, src, _ = strided(src_type, lambda room: rng.integers(0, 100, room))
        base, dst, inside = strided(dst_type, lambda room: 7)
        before = base.copy()
        Tensor.wrap(dst).copy_(src)
        np.testing.assert_array_equal(dst, src.astype(dst_type))
        np.testing.assert_array_equal(base[~inside], before[~inside])
