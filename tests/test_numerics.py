"""numerics="ane": what the CPU device imitates of the engine. Expected values are those of the
published measurements (docs/numerics.md cites them), typed here once more: not from the table."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import anetorch
from anetorch import mil

CHIPS = [None, "m1", "m2", "m3", "m4", "m5"]
CLAMPED = {None, "m1", "m2"}            # slices: M1 and M2 clamp, M5 is exact
F16 = np.float16


def ane(program, target=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", anetorch.EngineWarning)
        return anetorch.compile(program, numerics="ane", target=target, **options)


def build(fn, opset="ios18", **shapes):
    specs = {k: mil.spec(*s) if isinstance(s[0], tuple) else mil.spec(s, "fp16")
             for k, s in shapes.items()}
    return mil.build(fn, specs, opset=opset)


def run(fn, target=None, opset="ios18", **arrays):
    dtype = {"float16": "fp16", "float32": "fp32", "int32": "int32", "bool": "bool"}
    arrays = {k: np.asarray(a) for k, a in arrays.items()}
    program = mil.build(fn, {k: mil.spec(a.shape, dtype[a.dtype.name])
                             for k, a in arrays.items()}, opset=opset)
    y = ane(program, target)(**arrays)
    return {k: np.asarray(v) for k, v in y.items()} if isinstance(y, dict) else np.asarray(y)


def walked(fn):
    """The same ops behind a cond: then the reference walker runs the function, not a plan."""
    def program(**values):
        yes = mil.ops.equal(x=mil.ops.identity(x=values["one"]), y=np.int32(1))
        del values["one"]
        return mil.ops.cond(pred=yes, true_fn=lambda: fn(**values),
                            false_fn=lambda: fn(**values))
    return program


# ------------------------------------------------------------------ fp16 at every boundary

EXACT = {       # ops whose fp32 result rounds to fp16 as the exact one does (24 >= 2 * 11 + 2)
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
    "real_div": lambda a, b: a / b, "maximum": np.maximum, "minimum": np.minimum,
}


@pytest.mark.parametrize("target", CHIPS)
def test_fp32_values_are_fp16_where_an_operation_begins_and_ends(target):
    """A chain typed fp32 end to end, constants included, against NumPy rounding each step."""
    rng = np.random.default_rng(1)
    a, b = (rng.uniform(-300, 300, (5, 67)).astype(np.float32) for _ in range(2))
    c, s = rng.standard_normal((67,)).astype(np.float32), np.float32(0.1)

    def program(a, b):
        o = mil.ops
        v = [o.add(x=a, y=b)]
        v.append(o.mul(x=v[-1], y=c))
        v.append(o.real_div(x=v[-1], y=a))
        v.append(o.sub(x=v[-1], y=s))
        v.append(o.mul(x=o.sqrt(x=o.abs(x=v[-1])), y=b))
        v.append(o.minimum(x=o.transpose(x=v[-1], perm=[1, 0]), y=np.float32(1 / 3)))
        return {f"v{i}": x for i, x in enumerate(v)}

    def half(x):
        with np.errstate(over="ignore"):
            return np.asarray(x, np.float64).astype(F16).astype(np.float64)

    ha, hb, hc, hs = half(a), half(b), half(c), half(s)
    want = [half(ha + hb)]
    want.append(half(want[-1] * hc))
    want.append(half(want[-1] / ha))
    want.append(half(want[-1] - hs))
    want.append(half(half(np.sqrt(np.abs(want[-1]))) * hb))
    want.append(np.minimum(want[-1].T, half(1 / 3)))
    got = run(program, target, a=a, b=b)
    for i, w in enumerate(want):
        assert got[f"v{i}"].dtype == np.float32
        np.testing.assert_array_equal(got[f"v{i}"], w.astype(np.float32), err_msg=f"v{i}")
    plain = anetorch.compile(mil.build(program, {"a": mil.spec(a.shape, "fp32"),
                                                 "b": mil.spec(b.shape, "fp32")}))(a=a, b=b)
    assert any((np.asarray(plain[k]) != got[k]).any() for k in got)     # the test can fail


def test_an_unfused_fp16_chain_rounds_each_step():
    """relu(x * 3) - x * 3 keeps 3x in fp32 when fused; the engine never does."""
    x = np.arange(0, 2048, dtype=F16) + F16(0.5)

    def program(x):
        return (x * 3.0 + 1.0) - x

    step = (x.astype(np.float64) * 3).astype(F16)
    step = (step.astype(np.float64) + 1).astype(F16)
    np.testing.assert_array_equal(run(program, x=x),
                                  (step.astype(np.float64) - x.astype(np.float64)).astype(F16))


def test_a_mask_and_a_score():
    """-65504 plus a score: -inf from -16 on, harmless unless a whole row is masked, then NaN."""
    scores = np.array([[0, -15, -16, -17, 3, 5]], F16)
    mask = np.array([[-65504, -65504, -65504, -65504, 0, 0]], F16)
    both = run(lambda s, m: {"sum": s + m, "soft": mil.ops.softmax(x=s + m, axis=-1)},
               s=scores, m=mask)
    np.testing.assert_array_equal(np.isinf(both["sum"]), [[0, 0, 1, 1, 0, 0]])
    e = np.exp(np.array([3.0, 5.0]) - 5)
    np.testing.assert_allclose(both["soft"][0, 4:], e / e.sum(), rtol=2.0**-10)
    assert (both["soft"][0, :4] == 0).all()
    row = run(lambda s, m: mil.ops.softmax(x=s + m, axis=-1),
              s=np.full((1, 6), -20, F16), m=np.full((1, 6), -65504, F16))
    assert np.isnan(row).all()


def test_norms_in_fp16():
    """1e-5 is subnormal and lost beside 1; a sum of squares overflows at 65504."""
    x = np.full((1, 8), 100, np.float32)
    y = run(lambda x: {"one": x * 0.01 + 1e-5, "sum": mil.ops.reduce_sum(x=x * x, axes=[1])}, x=x)
    assert (y["one"] == 1).all() and np.isinf(y["sum"]).all()


# ------------------------------------------------------------------ cliffs

@pytest.mark.parametrize("target", CHIPS)
@pytest.mark.parametrize("k", [1, 2, 7, 64, 513])
def test_products_beyond_32752_become_inf(target, k):
    """"A matmul result above about 32752 becomes inf, any inner length": 32752 is 2047 * 16, so
    the sums are made of multiples of 16, exact in fp16 and in any accumulator."""
    want = np.array([32736, 32752, 32768, 40000, -32752, -32768], np.float64)
    x = np.zeros((6, k), F16)
    x[:, 0] = want / 16
    half = (k - 1) // 2
    x[:, 1:1 + half], x[:, 1 + half:1 + 2 * half] = 1, -1
    y = np.full((k, 1), 16, F16)
    assert (x.astype(np.float64) @ y.astype(np.float64) == want[:, None]).all()
    cliff = np.where(np.abs(want) > 32752, np.copysign(np.inf, want), want)[:, None]
    np.testing.assert_array_equal(run(lambda x, y: mil.ops.matmul(x=x, y=y), target, x=x, y=y), cliff)
    np.testing.assert_array_equal(run(lambda x: mil.ops.linear(x=x, weight=y.T.copy()), target, x=x), cliff)
    conv = run(lambda x: mil.ops.conv(x=x, weight=np.ascontiguousarray(y.T[:, :, None, None])), target,
               x=np.ascontiguousarray(x.T[None, :, None, :]))
    np.testing.assert_array_equal(conv.reshape(6, 1), cliff)
    # a sum of the same size is no product
    np.testing.assert_array_equal(
        run(lambda a: mil.ops.reduce_sum(x=a, axes=[1]), target, a=np.full((1, 2), 20000, F16)), [40000])


@pytest.mark.parametrize("target", CHIPS)
def test_slices_of_the_last_axis(target):
    """|v| > 4094 becomes inf on M1 and M2, exact on M5; nobody reported it of M3 and M4."""
    v = np.array([4094, 4096, -4094, -4096, 60000, -60000, 1, 0], F16)
    x = np.tile(v, (2, 3, 1))
    clamp = np.where(np.abs(v.astype(np.float64)) > 4094, np.copysign(np.inf, v), v)
    want = clamp if target in CLAMPED else v.astype(np.float64)
    o = mil.ops
    y = run(lambda x: {
        "size": o.slice_by_size(x=x, begin=[0, 0, 1], size=[2, 3, 6]),
        "index": o.slice_by_index(x=x, begin=[0, 0, 0], end=[2, 3, 8], stride=[1, 1, 2]),
        "rows": o.slice_by_size(x=x, begin=[0, 1, 0], size=[2, 2, 8]),
        "whole": o.slice_by_size(x=x, begin=[0, 0, 0], size=[2, 3, 8]),
        "twice": o.slice_by_size(x=o.slice_by_size(x=x, begin=[0, 1, 0], size=[1, 1, 8]),
                                 begin=[0, 0, 4], size=[1, 1, 2]),
        "joined": o.concat(values=[o.slice_by_size(x=x, begin=[0, 0, 0], size=[2, 3, 4]), x],
                           axis=2, interleave=False),
    }, target, x=x)
    for name, part in [("size", want[1:7]), ("index", want[::2]), ("rows", v), ("whole", v)]:
        np.testing.assert_array_equal(y[name], np.broadcast_to(part, y[name].shape), err_msg=name)
    np.testing.assert_array_equal(y["twice"].ravel(), want[4:6])
    np.testing.assert_array_equal(y["joined"][0, 0], np.concatenate([want[:4], v]))


@pytest.mark.parametrize("dtype", [np.int32, F16, np.float32])
def test_integer_sums_are_exact_to_2048(dtype):
    x = np.ones((3, 2600), dtype)
    for n, exact in [(2047, True), (2048, True), (2049, False), (2599, False)]:
        got = run(lambda x: mil.ops.reduce_sum(x=x, axes=[1]), x=x[:, :n]).astype(np.int64)
        assert ((got == n).all()) == exact and (np.abs(got - n) <= 1).all(), (n, got)


def test_round_takes_halves_away_from_zero():
    """All fp16 values below 1024; from there on the engine is wrong in an unreported way, and
    every fp16 value is an integer, which stays what it is."""
    x = np.arange(65536, dtype=np.uint16).view(F16)
    x = x[np.isfinite(x)]
    got = run(lambda x: mil.ops.round(x=x), x=x)
    wide = x.astype(np.float64)
    np.testing.assert_array_equal(got, np.copysign(np.floor(np.abs(wide) + 0.5), wide))
    assert (got[x == 2.5] == 3).all() and (got[x == -0.5] == -1).all()
    plain = np.asarray(anetorch.compile(build(lambda x: mil.ops.round(x=x), x=x.shape))(x))
    np.testing.assert_array_equal(plain, np.rint(wide))


@pytest.mark.parametrize("c", [1, 16, 1000])
def test_log_sum_exp_overflows_unshifted(c):
    """Above ln(65504 / C), which a margin of three fp16 steps of x keeps clear of."""
    edge = np.log(65504 / c)
    step = 3 * 2.0**-7
    for x, over in [(edge - step, False), (edge + step, True)]:
        got = run(lambda x: mil.ops.reduce_log_sum_exp(x=x, axes=[1]), x=np.full((1, c), x, F16))
        assert np.isinf(got[0]) == over, (c, x, got)


def test_int8_saturates():
    x = np.array([127, 128, 300, -128, -129, -3000], F16)
    np.testing.assert_array_equal(run(lambda x: mil.ops.cast(x=x, dtype="int8"), x=x),
                                  [127, 127, 127, -128, -128, -128])


# ------------------------------------------------------------------ every way to run it

def everything(a, b, i):
    o = mil.ops
    s = o.slice_by_size(x=a, begin=[0, 0], size=[6, 5])
    m = o.matmul(x=a, y=b)
    r = o.round(x=a)
    f = o.cast(x=a, dtype="fp32") * 0.1
    n = o.reduce_sum(x=i, axes=[0], keep_dims=True)
    t = o.cast(x=f, dtype="fp16") + r
    return s, m, r, f, n, o.mul(x=t, y=0.3), o.cumsum(x=r, axis=0)


@pytest.mark.parametrize("target", CHIPS)
def test_plan_and_reference_walker_agree(target):
    """The fast plan and the evaluator in double share the table and nothing else; every op
    here is exact in fp32 or rounds alike, so they agree to the bit."""
    rng = np.random.default_rng(3)
    args = {"a": (rng.integers(-12000, 12000, (6, 8)) / 2).astype(F16),
            "b": rng.integers(-8, 8, (8, 4)).astype(F16),
            "i": rng.integers(0, 900, (7, 3)).astype(np.int32)}
    names = "smrfntc"
    fast = run(lambda **v: dict(zip(names, everything(**v))), target, **args)
    slow = run(lambda **v: dict(zip(names, walked(everything)(**v))), target, one=np.int32(1), **args)
    for k in names:
        np.testing.assert_array_equal(fast[k], slow[k], err_msg=k)
    assert np.isinf(fast["m"]).any() and np.isfinite(fast["m"]).any()
    assert np.isinf(fast["s"]).any() == (target in CLAMPED)


def test_trace_pipeline_and_compare():
    p = build(lambda x: mil.ops.round(x=mil.ops.slice_by_size(x=x * 2.0, begin=[0, 0], size=[4, 5])),
              x=(4, 8))
    x = (np.arange(32).reshape(4, 8) * 100 + 0.25).astype(F16)
    k = ane(p, "m1")
    values = k.trace(x)
    doubled = next(np.asarray(v) for n, v in values.items() if np.asarray(v).shape == (4, 8))
    np.testing.assert_array_equal(doubled, x * F16(2))
    out = np.asarray(values[k.outputs[0].name])
    assert np.isinf(out).any()
    r = k.bind([x])
    anetorch.Pipeline([r]).run()
    np.testing.assert_array_equal(np.asarray(r.outputs[k.outputs[0].name]), out)
    np.testing.assert_array_equal(np.asarray(k(x)), out)
    first = anetorch.compare(anetorch.compile(p), k, x)
    assert first is not None and np.isfinite(first.a) and np.isinf(first.b)     # the slice
    assert anetorch.compare(ane(p, "m5"), ane(p, "m4"), x) is None


def test_same_bits_for_every_number_of_threads():
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((70, 300)).astype(np.float32), rng.standard_normal((300, 90)).astype(np.float32)
    p = build(lambda x, w: mil.ops.softmax(x=mil.ops.matmul(x=x, y=w) * 0.3, axis=-1),
              x=(x.shape, "fp32"), w=(w.shape, "fp32"))
    k, before, seen = ane(p), anetorch.num_threads(), []
    try:
        for n in (1, 2, 5):
            anetorch.set_num_threads(n)
            seen.append(np.asarray(k(x, w)).tobytes())
    finally:
        anetorch.set_num_threads(before)
    assert len(set(seen)) == 1


def test_bound_in_place_and_constants_of_a_weight_file_stay_as_they_are():
    """Narrowing copies: neither the caller's fp32 input nor the program's constant changes."""
    w = np.float32(np.pi) * np.ones((8,), np.float32)
    p = build(lambda x: x * w, x=((4, 8), "fp32"))
    x = np.full((4, 8), np.float32(1.1))
    t = anetorch.Tensor.from_numpy(x)
    want = (np.float64(F16(1.1)) * np.float64(F16(np.pi))).astype(F16)
    assert (np.asarray(ane(p)(t)) == want).all()
    np.testing.assert_array_equal(t.numpy(), x)
    np.testing.assert_allclose(np.asarray(anetorch.compile(p)(t)), x * w, rtol=2e-7)
    r = ane(p).bind([t], [t])
    r.run()
    assert (t.numpy() == want).all()


def test_says_whose_arithmetic_it_is():
    p = build(lambda x: x + 1.0, x=(4,))
    k = ane(p, "a15")
    assert (k.numerics, k.target) == ("ane", "a15")
    assert 'numerics="ane" of a15' in repr(k)
    assert 'numerics="ane" of any chip' in str(ane(p).report())
    assert 'numerics=&quot;ane&quot; of a15' in k.report()._repr_html_()
    plain = anetorch.compile(p)
    assert (plain.numerics, plain.target) == ("ieee", None) and "numerics" not in repr(plain)


def test_refuses_and_warns():
    p = build(lambda x: mil.ops.sin(x=mil.ops.gelu(x=x, mode="EXACT")), x=(4,))
    with pytest.warns(anetorch.EngineWarning, match="refuses gelu, sin") as seen:
        k = anetorch.compile(p, numerics="ane", target="m4")
    assert seen[0].filename == __file__
    assert np.isfinite(np.asarray(k(np.ones(4, F16)))).all()    # computed all the same
    with pytest.raises(ValueError, match=r"\[compile\] unknown target 'm7'; expected m1 to m5"):
        anetorch.compile(p, numerics="ane", target="m7")
    with pytest.raises(ValueError, match='target "m1" goes with numerics="ane"'):
        anetorch.compile(p, target="m1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        anetorch.compile(build(lambda x: mil.ops.relu(x=x), x=(4,)), numerics="ane")


@pytest.mark.parametrize("make", [lambda: everything, lambda: walked(everything)], ids=["plan", "walk"])
def test_every_allocation_may_fail(make):
    fn = make()
    args = {"a": np.ones((6, 8), F16), "b": np.ones((8, 4), F16), "i": np.ones((7, 3), np.int32)}
    if fn is not everything:
        args["one"] = np.int32(1)
    kinds = {"float16": "fp16", "int32": "int32"}
    p = mil.build(lambda **v: dict(zip("smrfntc", fn(**v))),
                  {k: mil.spec(np.shape(v), kinds[np.asarray(v).dtype.name]) for k, v in args.items()})
    want = {k: np.asarray(v).copy() for k, v in ane(p)(**args).items()}
    failures = 0
    for n in range(1, 20000, 7):            # every seventh: each takes a whole compile
        k = ane(p)
        anetorch._core._testing.fail_after(n)
        try:
            got = k(**args)
        except MemoryError:
            failures += 1
            continue
        finally:
            anetorch._core._testing.fail_after(0)
        for name, w in want.items():
            np.testing.assert_array_equal(np.asarray(got[name]), w)
        break
    else:
        pytest.fail("no attempt came through")
    assert failures > 5


def test_a_model_keeps_its_host_arithmetic():
    """numerics="ane" is for what would run on the engine; norms, loss and the rest stay IEEE."""
    from anetorch.nn import programs
    from anetorch.nn.config import Config
    from anetorch.nn.transformer import Model

    config = Config.preset("tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("error", anetorch.EngineWarning)      # no kernel needs a refused op
        model = Model(config, batch=1, seq=16, numerics="ane", target="m5")
        plain = Model(config, batch=1, seq=16, params=model.params)
        ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, 17))
        losses = [m.step_forward_backward(ids[:, :-1], ids[:, 1:]) for m in (model, plain)]
    kinds = {name: {k.numerics for (n, _), k in model._kernels.items() if n == name}
             for name, _ in model._kernels}
    assert {n for n, k in kinds.items() if k == {"ieee"}} == set(kinds) & set(programs.HOST)
    assert {n for n, k in kinds.items() if k == {"ane"}} == set(kinds) - set(programs.HOST) != set()
    assert np.isfinite(losses).all() and losses[0] != losses[1] or losses[0] == pytest.approx(losses[1])


# ------------------------------------------------------------------ the table

ROOT = Path(__file__).parents[1]
ROW = re.compile(r'^(LIMIT|CLIFF|OPERATION)\((\w+)', re.M)


def test_every_row_is_known_to_the_documentation_and_cited():
    rows = ROW.findall((ROOT / "csrc/ir/target.def").read_text())
    cliffs = [name for kind, name in rows if kind == "CLIFF"]
    page = (ROOT / "docs/numerics.md").read_text()
    assert len(cliffs) >= 12 and not [c for c in cliffs if f"`{c}`" not in page]
    operations = [name for kind, name in rows if kind == "OPERATION"]
    assert len(operations) == len(set(operations)) > 70
    known = {op for op in mil.ops.__all__} | {"const"}
    assert not set(operations) - known
    for rule in anetorch.lint.rules().values():
        assert rule.evidence and rule.message and rule.numerics in ("", "modelled", "not modelled")


def test_lint_says_what_is_not_modelled():
    p = build(lambda x: mil.ops.round(x=x), x=(1, 64, 1, 512))
    found = {f.rule.name: f.rule.numerics for f in anetorch.lint(p)}
    assert found["round_half"] == "modelled" and found["round_wide"] == "not modelled"
    p = build(lambda x: mil.ops.softmax(x=mil.ops.matmul(x=x, y=x, transpose_y=True), axis=-1), x=(1, 4, 64, 512))
    found = {f.rule.name: f.rule.numerics for f in anetorch.lint(p)}
    assert found["product_overflow"] == "modelled"
    assert found["sum_width"] == found["function_accuracy"] == "not modelled"
    p = build(lambda x: mil.ops.resize_nearest_neighbor(x=x, target_size_height=4, target_size_width=8), x=(1, 4, 2, 4))
    assert "untried_op" in {f.rule.name for f in anetorch.lint(p)}
