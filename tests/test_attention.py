"""The streaming attention core and its gradient against float64, in every kernel table."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import tolerance

from anetorch import _core

T = _core._testing
TABLES = [t for t in T.tables() if t in ("scalar", "avx2", "avx512", "neon")]
U = tolerance.U["float32"]


def reference(q, k, v, scale, causal, mask):
    """out, lse and the weights, float64, [B, H, ...] with k, v repeated per group."""
    r = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, r, 1), np.repeat(v, r, 1)
    s = q @ k.swapaxes(-1, -2) * scale
    if mask is not None:
        s = np.where(mask, s, -np.inf) if mask.dtype == bool else s + mask
    if causal:
        t, n = s.shape[-2:]
        s = np.where(np.arange(n)[None, :] <= np.arange(t)[:, None] + n - t, s, -np.inf)
    with np.errstate(all="ignore"):
        m = s.max(-1, keepdims=True) if s.shape[-1] else np.full((*s.shape[:-1], 1), -np.inf)
        e = np.exp(s - m)
        total = e.sum(-1, keepdims=True)
        return e / total @ v, (m + np.log(total))[..., 0], e / total, k, v


def gradient(q, k, v, scale, causal, mask, dout):
    out, _, p, kk, vv = reference(q, k, v, scale, causal, mask)
    b, hk, n, d = k.shape
    r = q.shape[1] // hk
    dp = dout @ vv.swapaxes(-1, -2)
    ds = p * (dp - (dout * out).sum(-1, keepdims=True)) * scale
    dq = ds @ kk
    dk = (ds.swapaxes(-1, -2) @ q).reshape(b, hk, r, n, d).sum(2)
    dv = (p.swapaxes(-1, -2) @ dout).reshape(b, hk, r, n, -1).sum(2)
    return dq, dk, dv, p, ds


def strided(x: np.ndarray, layout: str) -> np.ndarray:
    """[B, H, T, C] as stored, or channels first, or positions first across heads."""
    if layout == "channels":
        return np.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3)
    if layout == "tokens":
        return np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)
    return np.ascontiguousarray(x)


#        B  H  KV  T    S    D   DV
CASES = [(1, 1, 1, 1, 1, 1, 1), (2, 4, 2, 33, 33, 16, 16), (1, 6, 2, 7, 300, 24, 40),
         (1, 2, 1, 260, 260, 64, 64), (2, 3, 3, 50, 131, 8, 72), (1, 4, 1, 129, 128, 13, 5),
         (2, 4, 2, 2, 77, 16, 24), (1, 3, 3, 1, 300, 64, 64), (1, 8, 1, 1, 131, 16, 40)]


def error_of(q, k, v, scale, p, lse_depth):
    """Relative error of a weight: the score's (d+1) u |q||k| scale and subtraction, exp, sum."""
    r = q.shape[1] // k.shape[1]
    kk = np.repeat(np.abs(k), r, 1)
    s = np.abs(q) @ kk.swapaxes(-1, -2) * abs(scale)
    return (q.shape[-1] + 4) * U * s + lse_depth * U + (k.shape[2] + 16) * U


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("case", CASES, ids=lambda c: "x".join(map(str, c)))
@pytest.mark.parametrize("kind", ["plain", "causal", "bias", "keep"])
def test_forward_and_gradient(table: str, case: tuple[int, ...], kind: str) -> None:
    b, h, hk, t, n, d, dv = case
    if kind == "causal" and t > n:
        pytest.skip("a query without keys has its own test")
    rng = np.random.default_rng(sum(case))
    layout = ["rows", "channels", "tokens"][(t + n) % 3]
    dtype = "float16" if kind in ("causal", "bias") else "float32"

    def draw(*shape):
        return strided(rng.standard_normal(shape).astype(dtype), layout)

    q, k, v, dout = draw(b, h, t, d), draw(b, hk, n, d), draw(b, hk, n, dv), draw(b, h, t, dv)
    scale = d**-0.5 if kind != "bias" else -0.3
    mask = None
    if kind == "bias":
        mask = np.broadcast_to(rng.standard_normal((1, h, 1, n)).astype(np.float32), (b, h, t, n))
    if kind == "keep":
        mask = rng.random((b, h, t, n)) < 0.7
        mask[..., 0] = True
    out = strided(np.full((b, h, t, dv), np.nan, "float32"), layout)
    T.attention(table, q, k, v, out, scale, mask, causal=kind == "causal")
    x = [a.astype(np.float64) for a in (q, k, v, dout)]
    wide = mask if mask is None or mask.dtype == bool else mask.astype(np.float64)
    ref, ref_lse, p, kk, vv = reference(*x[:3], scale, kind == "causal", wide)
    with np.errstate(all="ignore"):
        depth = np.nan_to_num(np.abs(ref_lse)[..., None] - np.log(np.maximum(p, 1e-300)))
    depth = np.where(p > 0, np.abs(depth), 0) + 4
    rel = error_of(*x[:3], scale, p, depth)
    # The relative error of a weight is also that of the sum it is divided by: twice.
    ep = p * rel + p * (p * rel).sum(-1, keepdims=True)
    bound = ep @ np.abs(vv) + (n + 4) * U * (p @ np.abs(vv)) + 2.0**-149
    what = f"{table} {case} {kind}"
    tolerance.check(out, ref, bound, what)

    dq, dk, dvv = (strided(np.full(s, np.nan, "float32"), layout) for s in
                   ((b, h, t, d), (b, hk, n, d), (b, hk, n, dv)))
    T.attention(table, q, k, v, out, scale, mask, (dout, dq, dk, dvv), kind == "causal")
    rq, rk, rv, _, ds = gradient(*x[:3], scale, kind == "causal", wide, x[3])
    # dS = P (dP - delta) scale: P's error, and the products' own.
    size = np.abs(x[3]) @ np.abs(vv).swapaxes(-1, -2)
    delta = np.abs(x[3] * ref).sum(-1, keepdims=True)
    eds = (ep * (size + delta) + p * ((dv + 8) * U * (size + delta) +
           (np.abs(x[3]) * bound).sum(-1, keepdims=True))) * abs(scale)
    m = np.abs(ds)
    r = h // hk

    def share(y):
        return y.reshape(b, hk, r, n, -1).sum(2)

    up = 1 + 2.0**-10
    tolerance.check(dq, rq, up * (eds @ np.abs(kk) + (n + 4) * U * (m @ np.abs(kk))) + 1e-30,
                    what + " dq")
    tolerance.check(dk, rk, up * share(eds.swapaxes(-1, -2) @ np.abs(x[0]) + (t * r + 8) * U *
                                       (m.swapaxes(-1, -2) @ np.abs(x[0]))) + 1e-30, what + " dk")
    tolerance.check(dvv, rv, up * share(ep.swapaxes(-1, -2) @ np.abs(x[3]) + (t * r + 8) * U *
                                        (p.swapaxes(-1, -2) @ np.abs(x[3]))) + 1e-30, what + " dv")


@pytest.mark.parametrize("table", TABLES)
def test_half_results(table: str) -> None:
    """fp16 results; the gradient needs nothing of the forward pass."""
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal((1, 2, 40, 16)).astype(np.float16) for _ in range(4))
    wide = [a.astype(np.float64) for a in (q, k, v, dout)]
    out, dq, dk, dv = (np.empty((1, 2, 40, 16), np.float16) for _ in range(4))
    T.attention(table, q, k, v, out, 0.25, None, causal=True)
    ref = reference(*wide[:3], 0.25, True, None)[0]
    tolerance.check(out, ref, 2.0**-10 * np.abs(ref) + 2.0**-14, table)
    out[...] = np.nan
    T.attention(table, q, k, v, out, 0.25, None, (dout, dq, dk, dv), True)
    for got, want in zip((dq, dk, dv), gradient(*wide[:3], 0.25, True, None, wide[3])[:3],
                         strict=True):
        # In fp32 all the way: its errors are far below one rounding to fp16.
        tolerance.check(got, want, 2.0**-10 * np.abs(want) + 2.0**-11 * np.abs(wide[3]).sum(-1)
                        .max() * np.abs(wide[0]).max(), table)


@pytest.mark.parametrize("table", TABLES)
def test_rows_without_keys_are_nan_and_hurt_nobody(table: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 1, n, 8)).astype(np.float32) for n in (70, 40, 40))
    out = np.zeros((1, 1, 70, 8), np.float32)
    T.attention(table, q, k, v, out, 1.0, None, causal=True)
    ref = reference(*(a.astype(np.float64) for a in (q, k, v)), 1.0, True, None)[0]
    assert np.isnan(out[0, 0, :30]).all()
    tolerance.check(out[0, 0, 30:], ref[0, 0, 30:], 1e-5 * np.abs(v).max(), table)
    keep = np.ones((1, 1, 70, 40), bool)
    keep[0, 0, 3] = False
    keep[0, 0, 5, :39] = False
    T.attention(table, q, k, v, out, 1.0, keep)
    assert np.isnan(out[0, 0, 3]).all() and not np.isnan(np.delete(out[0, 0], 3, 0)).any()
    assert np.allclose(out[0, 0, 5], v[0, 0, 39])


def test_same_bits_for_every_thread_count() -> None:
    rng = np.random.default_rng(1)
    q, k, v, dout = (rng.standard_normal((2, h, 150, 32)).astype(np.float16)
                     for h in (4, 2, 2, 4))
    before = _core.num_threads()
    seen = set()
    for threads in (1, 2, 5):
        _core.set_num_threads(threads)
        out = np.empty((2, 4, 150, 32), np.float32)
        dq, dk, dv = (np.empty((2, h, 150, 32), np.float32) for h in (4, 2, 2))
        T.attention(TABLES[-1], q, k, v, out, 0.2, None, causal=True)
        T.attention(TABLES[-1], q, k, v, out, 0.2, None, (dout, dq, dk, dv), True)
        seen.add(b"".join(a.tobytes() for a in (out, dq, dk, dv)))
    _core.set_num_threads(before)
    assert len(seen) == 1


def test_bad_arguments() -> None:
    q, k = np.zeros((1, 3, 4, 8), np.float32), np.zeros((1, 2, 4, 8), np.float32)
    with pytest.raises(ValueError, match="multiple of KV heads"):
        T.attention("scalar", q, k, k, q.copy(), 1.0, None)


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_memory_is_linear_in_the_sequence(root) -> None:
    """A matrix of queries by keys would be 256 MB, twice that in the gradient."""
    code = """if True:
        import resource, sys, numpy as np
        from anetorch import _core
        n = 8192
        a = [np.ones((1, 1, n, 8), np.float32) for _ in range(8)]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _core._testing.attention(sys.argv[1], *a[:4], 0.1, None, causal=True)
        _core._testing.attention(sys.argv[1], *a[:4], 0.1, None, tuple(a[4:]), True)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(grown * (1 if sys.platform == "darwin" else 1024))"""
    env = os.environ | {"PYTHONPATH": str(root), "ANETORCH_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, "-c", code, TABLES[-1]], env=env, capture_output=True,
                         text=True)
    assert run.returncode == 0, run.stderr
    # Scores of two threads' blocks, and panels: far below one matrix.
    assert int(run.stdout) < 48 << 20
