"""AdamW, gradient norm, clipping and staging: the C functions of csrc/train."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import anetorch
from anetorch import _core

LENGTHS = [0, 1, 2, 15, 16, 17, 1023, 1024, 1025, 32 * 1024 - 1, 32 * 1024 + 5, 100_003]
U = 2.0**-24


def make(n, seed=0):
    rng = np.random.default_rng([n, seed])
    p = rng.standard_normal(n).astype(np.float32)
    g = (rng.standard_normal(n) * 10.0 ** rng.uniform(-6, 1, n)).astype(np.float32)
    m = (rng.standard_normal(n) * 0.1).astype(np.float32)
    v = (rng.random(n) * 0.01).astype(np.float32)
    return p, g, m, v


def oracle(p, g, m, v, *, lr, step, beta1, beta2, eps, weight_decay, scale, decay=None):
    """The update in float64, and a bound on the error of the fp32 one.

    With u = 2^-24 per operation and per constant rounded to fp32: m and v are sums of two
    products of rounded factors; the errors of m and v then go through m/(sqrt(v)*r + eps),
    whose own operations add six roundings, and the last line has two products and a
    difference. Terms of second order are covered by the factor 1.01.
    """
    p, g, m, v = (x.astype(np.float64) for x in (p, g, m, v))
    gs = g * scale
    m1 = beta1 * m + (1 - beta1) * gs
    v1 = beta2 * v + (1 - beta2) * gs * gs
    bc1, bc2 = 1 - beta1**step, 1 - beta2**step
    wd = np.full(p.shape, weight_decay)
    if decay is not None:
        wd[:] = 0
        for lo, hi in decay:
            wd[lo:hi] = weight_decay
    denom = np.sqrt(v1 / bc2) + eps
    q = m1 / bc1 / denom
    p1 = p - lr * (q + wd * p)
    # m: two constants, two products, scale and its product, one sum
    em = U * (3 * np.abs(beta1 * m) + 5 * np.abs((1 - beta1) * gs)) + 2.0**-149
    # v: every term is positive; g*g doubles the error of g
    ev = U * (3 * beta2 * v + 8 * (1 - beta2) * gs * gs) + 2.0**-149 * 2
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(v1)
        # sqrt'(v) dv, but where v is tiny, sqrt(v+e)-sqrt(v) <= sqrt(e)
        er = np.minimum(np.where(root > 0, ev / root, np.inf), np.sqrt(ev)) + U * root
    edenom = (er + 3 * U * root) / math.sqrt(bc2) + 2 * U * denom
    eq = em / bc1 / denom + np.abs(q) * (edenom / denom + 3 * U)
    ep = lr * eq + U * (3 * np.abs(p) + 2 * lr * np.abs(q)) + 2.0**-149
    return (p1, 1.01 * ep), (m1, 1.01 * em), (v1, 1.01 * ev)


def worst(name, got, want, bound):
    err = np.abs(got.astype(np.float64) - want)
    bad = np.flatnonzero(~(err <= bound))
    if bad.size:
        i = bad[np.argmax(err[bad] / bound[bad])]
        pytest.fail(f"{name}[{i}] = {got[i]!r}, want {want[i]!r}: error {err[i]:.3g} is "
                    f"{err[i] / bound[i]:.3g} times the bound")


HYPER = dict(lr=3e-4, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, scale=1 / 256)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_adamw_against_float64(n, step):
    p, g, m, v = make(n)
    if step == 1:
        m[:] = 0
        v[:] = 0
    want = oracle(p, g, m, v, step=step, **HYPER)
    keep = g.copy()
    _core.adamw_step(p, g, m, v, step=step, **HYPER)
    assert np.array_equal(keep, g)
    for name, got, (exact, bound) in zip("pmv", (p, m, v), want):
        worst(name, got, exact, bound)


@pytest.mark.parametrize("beta1, beta2, eps, wd, lr", [
    (0.0, 0.0, 1e-8, 0.0, 1e-3), (0.9, 0.999, 0.0, 0.0, 1e-3), (0.99, 0.5, 1e-2, 1.0, 0.5),
    (0.9, 0.999, 1e-8, 0.01, 0.0)])
def test_adamw_other_settings(beta1, beta2, eps, wd, lr):
    p, g, m, v = make(5000, seed=3)
    h = dict(lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=wd, scale=1.0, step=3)
    want = oracle(p, g, m, v, **h)
    _core.adamw_step(p, g, m, v, **h)
    for name, got, (exact, bound) in zip("pmv", (p, m, v), want):
        worst(name, got, exact, bound)


@pytest.mark.parametrize("decay", [
    [], [(0, 5)], [(3, 7), (7, 2000), (2001, 2001), (40_000, 70_001)], [(99_999, 100_003)],
    [(0, 100_003)]])
def test_decay_ranges(decay):
    p, g, m, v = make(100_003, seed=5)
    h = {**HYPER, "lr": 0.1, "step": 2}
    want = oracle(p, g, m, v, decay=decay, **h)
    _core.adamw_step(p, g, m, v, decay=decay, **h)
    worst("p", p, *want[0])
    # and the ranges are exact to the element: decay moves every |p| > 0 by 1 %
    p2, g, m, v = make(100_003, seed=5)
    _core.adamw_step(p2, g, m, v, **{**h, "weight_decay": 0.0})
    inside = np.zeros(p.size, bool)
    for lo, hi in decay:
        inside[lo:hi] = True
    assert np.array_equal(p != p2, inside & (np.abs(make(100_003, seed=5)[0]) > 0))


def bf16(x):
    u = x.view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


@pytest.mark.parametrize("n", LENGTHS)
def test_staged_copy_is_the_rounded_parameters(n):
    for dtype in (np.float16, np.float32):
        p, g, m, v = make(n)
        staged = np.zeros(n + 2, dtype)
        staged[n:] = 7
        _core.adamw_step(p, g, m, v, staged[:n], step=1, **HYPER)
        assert np.array_equal(staged[:n], p.astype(dtype))
        assert (staged[n:] == 7).all()


def test_stage_rounds_to_nearest_even():
    x = np.array([1 + 2**-11, 1 + 3 * 2**-11, 65519.9, 65520, -65520, 2**-25, 2**-24, -0.0,
                  np.inf, np.nan] * 300, np.float32)
    out = np.zeros(x.size, np.float16)
    with np.errstate(over="ignore"):
        want = x.astype(np.float16)
    _core.stage(out, x)
    assert np.array_equal(out.view(np.uint16), want.view(np.uint16))


@pytest.mark.parametrize("n", LENGTHS)
def test_norm(n):
    g = make(n)[1]
    norm, finite = _core.grad_norm(g)
    want = math.sqrt(math.fsum(float(x) ** 2 for x in g)) if n < 2000 else float(
        np.sqrt(np.sum(g.astype(np.longdouble) ** 2)))
    # every addition of positive terms and the root are within 2^-53 each
    assert abs(norm - want) <= (n / 16 + 300) * 2.0**-53 * want
    assert finite is True
    half, _ = _core.grad_norm(g, scale=-0.5)
    assert half == norm * 0.5


def test_norm_over_blocks_is_global():
    blocks = [make(n)[1] for n in (5, 0, 40_000, 17)]
    norm, _ = _core.grad_norm(blocks)
    whole, _ = _core.grad_norm(np.concatenate(blocks))
    assert norm == pytest.approx(whole, rel=1e-12)
    assert _core.grad_norm(tuple(blocks)) == _core.grad_norm(blocks)
    assert _core.grad_norm([]) == (0.0, True)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 16, 1023, 50_000, -1])
def test_norm_finds_what_is_not_finite(bad, at):
    g = np.full(70_001, 3e38, np.float32)
    norm, finite = _core.grad_norm(g)
    assert finite and norm == pytest.approx(3e38 * math.sqrt(70_001), rel=1e-6)
    g[at] = bad
    assert _core.grad_norm(g)[1] is False


def test_clip_factor():
    assert _core.clip_factor(4.0, 1.0) == 0.25
    assert _core.clip_factor(0.5, 1.0) == 1.0
    assert _core.clip_factor(4.0, 0.0) == 1.0


def test_same_bits_for_every_thread_count():
    before = anetorch.num_threads() if hasattr(anetorch, "num_threads") else _core.num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            _core.set_num_threads(threads)
            p, g, m, v = make(300_007, seed=9)
            half = np.zeros(p.size, np.float16)
            for step in (1, 2):
                _core.adamw_step(p, g, m, v, half, step=step, decay=[(5, 99_999)], **HYPER)
            results.append((p, m, v, half, _core.grad_norm([g, p])))
    finally:
        _core.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0][:4], other[:4]):
            assert np.array_equal(a.view(np.uint8), b.view(np.uint8))
        assert other[4] == results[0][4]


def test_messages():
    p, g, m, v = make(8)
    def step(*args, **kw):
        _core.adamw_step(*args, **{**dict(lr=0.1, step=1), **kw})
    with pytest.raises(ValueError, match=r"\[adamw_step\] m has 7 elements, params has 8"):
        step(p, g, m[:7], v)
    with pytest.raises(TypeError, match=r"\[adamw_step\] grads must be float32"):
        step(p, g.astype(np.float64), m, v)
    with pytest.raises(TypeError, match="step must be given"):
        _core.adamw_step(p, g, m, v, lr=0.1)
    with pytest.raises(TypeError, match="lr and step must be given"):
        _core.adamw_step(p, g, m, v, step=1)
    with pytest.raises(ValueError, match="step counts updates from 1, got 0"):
        step(p, g, m, v, step=0)
    with pytest.raises(ValueError, match="step counts updates from 1, got -1"):
        step(p, g, m, v, step=-1)
    with pytest.raises(ValueError, match="beta1 is 1, expected at least 0 and below 1"):
        step(p, g, m, v, beta1=1.0)
    with pytest.raises(ValueError, match="lr is nan"):
        step(p, g, m, v, lr=float("nan"))
    with pytest.raises(ValueError, match="scale is inf"):
        step(p, g, m, v, scale=float("inf"))
    with pytest.raises(ValueError, match="params and m share memory"):
        step(p, g, p, v)
    with pytest.raises(ValueError, match=r"decay range 1 is \[2, 4\)"):
        step(p, g, m, v, decay=[(0, 3), (2, 4)])
    with pytest.raises(ValueError, match=r"decay range 0 is \[2, 9\).*end at 8"):
        step(p, g, m, v, decay=[(2, 9)])
    with pytest.raises(ValueError, match="at least 0"):
        step(p, g, m, v, decay=[(-2, 9)])
    with pytest.raises((ValueError, BufferError), match=r"\[adamw_step\] params"):
        step(np.zeros(16, np.float32)[::2], g, m, v)
    frozen = p.copy()
    frozen.flags.writeable = False
    with pytest.raises((ValueError, BufferError), match=r"\[adamw_step\] params"):
        step(frozen, g, m, v)
    with pytest.raises(TypeError, match="staged must be float32, float16"):
        step(p, g, m, v, np.zeros(8, np.int16))
    with pytest.raises(ValueError, match=r"\[stage\] dst has 3 elements, src has 8"):
        _core.stage(np.zeros(3, np.float16), p)
    with pytest.raises(ValueError, match=r"\[stage\] source and copy share memory"):
        _core.stage(p, p)


@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")
def test_the_room_exports_the_optimizer_only():
    """No arithmetic of a step hides in C: csrc/train exports these and nothing else."""
    root = Path(__file__).resolve().parents[1]
    objects = sorted((root / "build").glob("temp*/csrc/train/*.o"))
    if not objects:
        pytest.skip("no object files: not run from a build tree")
    out = subprocess.run(["nm", "-g", "--defined-only", *map(str, objects)], check=True,
                         capture_output=True, text=True).stdout
    names = {line.split()[2] for line in out.splitlines() if len(line.split()) == 3}
    public = {n.lstrip("_") for n in names if "loops__" not in n}
    assert public == {"ane_adamw_step", "ane_grad_norm", "ane_clip_factor", "ane_stage",
                      # choosing the loops, not arithmetic:
                      "ane_train_table", "ane_train_at", "ane_train_force"}


def words(t):
    """A bfloat16 Tensor's bits."""
    return np.array(t.view(0, t.shape, "uint16"))


@pytest.fixture
def loops():
    yield _core._testing.train_force
    _core._testing.train_force(None)


@pytest.mark.parametrize("table", [t for t in _core._testing.tables()
                                   if t in ("avx2", "avx512")] or ["scalar"])
@pytest.mark.parametrize("n", LENGTHS)
def test_every_table_gives_the_bits_of_the_scalar_one(loops, table, n):
    results = []
    for name in ("scalar", table):
        loops(name)
        p, g, m, v = make(n, seed=21)
        if n > 20:
            p[3], g[4], g[5], m[6], v[7], v[8] = np.inf, np.nan, np.inf, np.nan, np.inf, 1e-45
            g[9], m[9], v[9] = 1e-42, 1e-42, 0
        staged = [np.zeros(n, np.float16), np.zeros(n, np.float32),
                  _core.Tensor((n,), "bfloat16")]
        with np.errstate(all="ignore"):
            for step, s in enumerate(staged, 1):
                _core.adamw_step(p, g, m, v, s, step=step, decay=[(1, n)] if n else [], **HYPER)
        bits = [x.tobytes() for x in (p, m, v, *staged[:2])]
        results.append((bits, words(staged[2]).tobytes(),
                        _core.grad_norm(np.nan_to_num(g))))
    assert results[0] == results[1]


def test_tensors_are_operands():
    p, g, m, v = make(3000)
    t = [_core.Tensor.from_numpy(x) for x in (p, g, m, v)]
    half = _core.Tensor((3000,), "float16")
    brain = _core.Tensor((3000,), "bfloat16")
    _core.adamw_step(p, g, m, v, step=1, **HYPER)
    _core.adamw_step(*t, half, step=1, **HYPER)
    for a, b in zip((p, g, m, v), t):
        assert np.array_equal(a, np.asarray(b))
    assert np.array_equal(np.asarray(half), p.astype(np.float16))
    assert _core.grad_norm(t[1]) == _core.grad_norm(g)
    _core.stage(brain, t[0])
    assert np.array_equal(words(brain), bf16(p))
    with pytest.raises(ValueError, match=r"\[stage\] dst must be contiguous"):
        _core.stage(_core.Tensor((6000,), "float16")[::2], t[0])
    with pytest.raises(TypeError, match=r"\[adamw_step\] grads must be float32, got float16"):
        _core.adamw_step(t[0], half, t[2], t[3], step=1, **HYPER)
    t[2].close()
    with pytest.raises(ValueError, match="closed"):
        _core.adamw_step(*t, half, step=1, **HYPER)


@pytest.mark.oracle
@pytest.mark.parametrize("fused", [False, True])
def test_ten_steps_against_torch(fused):
    torch = pytest.importorskip("torch", reason="torch.optim.AdamW is the oracle")
    rng = np.random.default_rng(11)
    p = rng.standard_normal(1003).astype(np.float32)
    m, v = np.zeros_like(p), np.zeros_like(p)
    ref = torch.nn.Parameter(torch.from_numpy(p.astype(np.float64)))
    ours32 = torch.nn.Parameter(torch.from_numpy(p.copy()))
    opt = torch.optim.AdamW([ref], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    opt32 = torch.optim.AdamW([ours32], lr=1e-2, betas=(0.9, 0.95), eps=1e-8,
                              weight_decay=0.1, fused=fused)
    for step in range(1, 11):
        g = rng.standard_normal(p.size).astype(np.float32)
        ref.grad = torch.from_numpy(g.astype(np.float64))
        ours32.grad = torch.from_numpy(g.copy())
        opt.step()
        opt32.step()
        _core.adamw_step(p, g, m, v, lr=1e-2, beta2=0.95, weight_decay=0.1, step=step)
    exact = ref.detach().numpy()
    ours = np.abs(p - exact).max()
    theirs = np.abs(ours32.detach().numpy() - exact).max()
    assert ours <= 2 * theirs, (ours, theirs)
