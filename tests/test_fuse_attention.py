"""Attention written out in ops runs streamed: found in every spelling, right with the fusion on
and off, linear in memory, forward and backward."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from oracle import NP, analyse
from test_passes import check, outputs

import anetorch
from anetorch import _core, kernels, mil
from anetorch.mil import ops
from anetorch.nn import programs
from anetorch.nn.config import Config

LOW = {"fp16": -65504.0, "fp32": -3e38}


def causal(queries: int, keys: int, dtype: str, low: float) -> np.ndarray:
    see = np.arange(keys)[None] <= np.arange(queries)[:, None] + keys - queries
    return np.where(see, 0.0, low).astype(NP[dtype])


def mask_of(kind: str, queries: int, keys: int, dtype: str, rng: np.random.Generator):
    """A constant for this kind of mask."""
    if kind == "causal":
        return causal(queries, keys, dtype, LOW[dtype])
    if kind == "causal inf":
        return causal(queries, keys, dtype, -np.inf)
    if kind == "window":
        at = np.arange(queries)[:, None] + keys - queries - np.arange(keys)[None]
        return np.where((at >= 0) & (at < 5), 0.0, LOW[dtype]).astype(NP[dtype])
    if kind == "alibi":                 # something to add, and -inf above the diagonal
        return causal(queries, keys, dtype, -np.inf) + rng.standard_normal((queries, keys)).astype(NP[dtype])
    return (0.5 * rng.standard_normal((queries, keys))).astype(NP[dtype])


def spelled(rng: np.random.Generator):
    """A program in one of the many spellings, and inputs: (program, inputs)."""
    pick = rng.choice
    dtype = str(pick(["fp32", "fp16"]))
    n, h, r = int(pick([1, 2, 3])), int(pick([1, 2, 5])), int(pick([1, 1, 2, 3]))
    queries, keys = int(pick([1, 2, 7, 17, 40, 130])), int(pick([1, 5, 16, 33, 129, 150]))
    queries = min(queries, keys)
    d, dv = int(pick([1, 3, 8, 16])), int(pick([1, 5, 8, 24]))
    kind = str(pick(["none", "causal", "causal inf", "window", "alibi", "add", "input", "select",
                     "select input", "select not"]))
    keys_first, rank = bool(rng.random() < 0.3), int(pick([3, 4, 4, 5]))
    batch = {3: (n * h,), 4: (n, h), 5: (n, 1, h)}[rank]
    t = [bool(rng.random() < 0.5) for _ in range(4)]
    stack = r > 1 and rng.random() < 0.5        # the group's queries below each other
    before, after = (float(pick([1.0, 0.5, 2.0])) for _ in range(2))
    def build(**x):
        q, k, v = x["q"], x["k"], x["v"]

        def heads(a, rows, cols, count, swap):
            """[n, count*cols, rows] (channels first) -> [batch.., rows, cols] or swapped."""
            a = ops.reshape(x=a, shape=[n, count, cols, rows])
            if not swap:
                a = ops.transpose(x=a, perm=[0, 1, 3, 2])
            return a

        def fold(a, groups=1):
            lead = {3: [n * h * groups], 4: [n, h * groups], 5: [n, 1, h * groups]}[rank]
            return ops.reshape(x=a, shape=[*lead, *a.shape[2:]])

        groups = 1
        if stack:
            q = heads(q, queries, d, h * r, False)
            q = ops.reshape(x=q, shape=[n, h, r * queries, d])
            if t[0]:
                q = ops.transpose(x=q, perm=[0, 1, 3, 2])
            q = fold(q)
        else:
            q = fold(heads(q, queries, d, h * r, t[0]), r)
            groups = r
        k, v = heads(k, keys, d, h, t[1]), heads(v, keys, dv, h, t[2])
        if groups > 1:
            def repeat(a):
                a = ops.reshape(x=a, shape=[n, h, 1, *a.shape[2:]])
                if rng_form:
                    a = ops.concat(values=(a,) * r, axis=2, interleave=False)
                else:
                    a = ops.tile(x=a, reps=[1, 1, r, 1, 1])
                return ops.reshape(x=a, shape=[n, h * r, *a.shape[3:]])

            k, v = repeat(k), repeat(v)
        k, v = fold(k, groups), fold(v, groups)
        if before != 1 and not keys_first:
            q = ops.mul(x=q, y=before)
        if keys_first:
            s = ops.matmul(x=k, y=q, transpose_x=t[1], transpose_y=not t[0])
        else:
            s = ops.matmul(x=q, y=k, transpose_x=t[0], transpose_y=not t[1])
        s = ops.mul(x=s, y=d**-0.5) if rng_form else ops.real_div(x=s, y=d**0.5)
        if kind != "none":
            m = x.get("m")
            if m is None:
                m = mask_value
            if keys_first and not isinstance(m, np.ndarray):
                m = ops.transpose(x=m, perm=[1, 0])
            elif keys_first:
                m = np.ascontiguousarray(m.T)
            if kind == "select not":
                s = ops.select(cond=m, a=fill, b=s)
            elif kind.startswith("select"):
                s = ops.select(cond=m, a=s, b=fill)
            else:
                s = ops.add(x=s, y=m) if rng_form else ops.add(x=m, y=s)
        if after != 1 and kind in ("none", "add", "input"):
            s = ops.mul(x=s, y=after)
        p = ops.softmax(x=s, axis=-2 if keys_first else -1)
        tv = t[2]
        if t[3]:                        # the result channels first
            o = ops.matmul(x=v, y=p, transpose_x=not tv, transpose_y=not keys_first)
        else:
            o = ops.matmul(x=p, y=v, transpose_x=keys_first, transpose_y=tv)
        return {"o": o}

    rng_form = bool(rng.random() < 0.5)
    rows = r * queries if stack else queries
    fill = float(pick([LOW[dtype], -np.inf])) if kind != "select input" else LOW[dtype]
    mask_value = None
    specs = {"q": mil.spec((n, h * r * d, queries), dtype), "k": mil.spec((n, h * d, keys), dtype),
             "v": mil.spec((n, h * dv, keys), dtype)}
    if kind.startswith("select"):
        see = np.tile(causal(queries, keys, "fp32", -1.0) == 0, (r if stack else 1, 1))
        if kind == "select input":
            see = rng.random((rows, keys)) < 0.6
            specs["m"] = mil.spec(see.shape, "bool")
        mask_value = ~see if kind == "select not" else see
    elif kind != "none":
        mask_value = np.tile(mask_of(kind, queries, keys, dtype, rng), (r if stack else 1, 1))
        if kind == "input":
            specs["m"] = mil.spec(mask_value.shape, dtype)
    program = mil.build(build, specs)
    inputs = {name: rng.standard_normal(s.shape).astype(NP[dtype]) for name, s in specs.items() if name != "m"}
    if "m" in specs:
        inputs["m"] = mask_value
    return program, inputs


def sweep(first: int, last: int, fused: bool) -> None:
    for seed in range(first, last):
        rng = np.random.default_rng(seed)
        program, inputs = spelled(rng)
        back = kernels.backward(program, wrt=("q", "k", "v"))
        for p, what in ((program, "forward"), (back, "backward")):
            x = dict(inputs)
            for v in p.inputs:
                if v.name not in x:
                    x[v.name] = rng.standard_normal(v.shape).astype(NP[v.dtype])
            x = {v.name: x[v.name] for v in p.inputs}
            kernel = anetorch.compile(p)
            names = [s["kernel"] for s in kernel.report()]
            found = [n for n in names if n.startswith("attention")]
            assert bool(found) == fused, (seed, what, names)
            got = outputs(kernel, x)
            for name, want in analyse(p, x).items():
                check(got[name], want, f"seed {seed}, {what} {name}")


def test_every_spelling_is_found_and_right() -> None:
    sweep(0, 80, True)


def test_the_same_bounds_hold_without_the_fusion(root) -> None:
    code = "import test_fuse_attention; test_fuse_attention.sweep(80, 110, False)"
    env = os.environ | {"ANETORCH_NO_FUSE": "attention",
                        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.slow
def test_many_spellings() -> None:
    sweep(1000, 3000, True)


def written_out(dtype: str, queries: int, keys: int, mask, scale: float = 0.25, want=("o",),
                batch=(2, 2), d: int = 8) -> mil.Program:
    """Plain attention [*batch, T, d] with outputs among o (result), p (weights)."""
    def build(q, k, v):
        s = ops.mul(x=ops.matmul(x=q, y=k, transpose_y=True), y=scale)
        p = ops.softmax(x=s if mask is None else ops.add(x=s, y=mask), axis=-1)
        found = {"o": ops.matmul(x=p, y=v), "p": p}
        return {n: found[n] for n in want}

    return mil.build(build, {"q": mil.spec((*batch, queries, d), dtype),
                             "k": mil.spec((*batch, keys, d), dtype), "v": mil.spec((*batch, keys, d), dtype)})


def draw(program: mil.Program, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {v.name: rng.standard_normal(v.shape).astype(NP[v.dtype]) for v in program.inputs}


def is_streamed(kernel: anetorch.Kernel) -> int:
    return sum(s["kernel"].startswith("attention") for s in kernel.report())


def test_weights_that_are_returned_are_computed() -> None:
    program = written_out("fp32", 5, 9, None, want=("o", "p"))
    kernel = anetorch.compile(program)
    assert not is_streamed(kernel)
    x = draw(program)
    got = outputs(kernel, x)
    for name, want in analyse(program, x).items():
        check(got[name], want, name)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_forward_and_gradient_in_one_program(dtype: str) -> None:
    """Also where the gradient's start is made of the result."""
    mask = causal(40, 40, dtype, LOW[dtype])

    def grads(p, q, k, v, do):
        dv = ops.matmul(x=p, y=do, transpose_x=True)
        dp = ops.matmul(x=do, y=v, transpose_y=True)
        total = ops.reduce_sum(x=ops.mul(x=p, y=dp), axes=[-1], keep_dims=True)
        ds = ops.mul(x=ops.mul(x=p, y=ops.sub(x=dp, y=total)), y=0.25)
        return {"dv": dv, "dq": ops.matmul(x=ds, y=k), "dk": ops.matmul(x=ds, y=q, transpose_x=True)}

    def build(loss):
        def body(q, k, v, t):
            s = ops.add(x=ops.mul(x=ops.matmul(x=q, y=k, transpose_y=True), y=0.25), y=mask)
            p = ops.softmax(x=s, axis=-1)
            o = ops.matmul(x=p, y=v)
            return {"o": o, **grads(p, q, k, v, ops.sub(x=o, y=t) if loss else t)}

        return mil.build(body, {n: mil.spec((2, 40, 8), dtype) for n in "qkvt"})

    for loss in (False, True):
        program = build(loss)
        kernel = anetorch.compile(program)
        assert is_streamed(kernel) == (2 if loss else 1)
        x = draw(program)
        got = outputs(kernel, x)
        for name, want in analyse(program, x).items():
            check(got[name], want, f"{loss} {name}")


def written(program: mil.Program, x: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Op by op, by the reference evaluator."""
    return {k: np.asarray(v) for k, v in _core._testing.eval(program, x).items()}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_rows_that_see_nothing_are_nan(dtype: str, backward: bool) -> None:
    mask = causal(20, 20, dtype, -np.inf)
    mask[3] = -np.inf
    program = written_out(dtype, 20, 20, mask)
    if backward:
        program = kernels.backward(program, wrt=("q", "k", "v"))
    x = draw(program)
    kernel = anetorch.compile(program)
    assert is_streamed(kernel)
    got, want = outputs(kernel, x), written(program, x)
    for name in got:
        np.testing.assert_array_equal(np.isnan(got[name]), np.isnan(want[name]), name)
    assert np.isnan(want["dv" if backward else "o"]).any()


def test_a_finite_mask_hides_what_it_outweighs_and_nothing_else() -> None:
    """Scores as large as the mask show through it, as they do op by op."""
    mask = causal(24, 24, "fp32", -65504.0)
    program = written_out("fp32", 24, 24, mask, 1.0, batch=(1, 1))
    x = draw(program)
    x["q"][:] = np.abs(x["q"]) * 300
    x["k"][..., :12, :] = -np.abs(x["k"][..., :12, :]) * 300
    x["k"][..., 12:, :] = np.abs(x["k"][..., 12:, :]) * 300
    kernel = anetorch.compile(program)
    assert is_streamed(kernel)
    got = outputs(kernel, x)["o"]
    s = x["q"].astype(np.float64) @ x["k"].swapaxes(-1, -2) + mask
    assert (s.argmax(-1) > np.arange(24)).any()         # some masked key wins
    top = np.take_along_axis(x["v"], s.argmax(-1)[..., None], -2)
    sharp = np.sort(s, -1)[..., -1] - np.sort(s, -1)[..., -2] > 30
    assert sharp.sum() > 12
    np.testing.assert_allclose(got[sharp], top[sharp], rtol=1e-6)


@pytest.mark.parametrize("where", ["k", "v"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_behind_a_mask_shows(where: str, bad: float) -> None:
    """0 * inf and NaN + mask are NaN, whatever a mask hides."""
    for low in (-np.inf, -65504.0):
        program = written_out("fp32", 30, 30, causal(30, 30, "fp32", low), batch=(1, 2))
        x = draw(program)
        x[where][0, 1, 25, 3] = bad
        got, want = outputs(anetorch.compile(program), x), written(program, x)
        np.testing.assert_array_equal(np.isnan(got["o"]), np.isnan(want["o"]))
        assert not np.isnan(got["o"][0, 0]).any()


@pytest.mark.parametrize("backward", [False, True])
def test_same_bits_for_every_thread_count(backward: bool) -> None:
    program = written_out("fp16", 150, 150, causal(150, 150, "fp16", -65504.0), batch=(3, 2))
    if backward:
        program = kernels.backward(program, wrt=("q", "k", "v"))
    x, kernel = draw(program), anetorch.compile(program)
    before, seen = _core.num_threads(), set()
    for threads in (1, 2, 3, 7):
        _core.set_num_threads(threads)
        seen.add(b"".join(a.tobytes() for a in outputs(kernel, x).values()))
    _core.set_num_threads(before)
    assert len(seen) == 1


def test_strided_operands_and_results() -> None:
    """Bound slices of larger tensors are read and written where they are."""
    program = written_out("fp32", 33, 33, causal(33, 33, "fp32", -np.inf), batch=(2, 3))
    kernel, rng = anetorch.compile(program), np.random.default_rng(0)
    x = {n: rng.standard_normal((2, 4, 70, 20)).astype(np.float32)[:, 1:, 2:68:2, 5:13] for n in "qkv"}
    y = np.zeros((2, 33, 3, 8), np.float32).transpose(0, 2, 1, 3)
    kernel.bind(list(x.values()), y).run()
    dense = {n: np.ascontiguousarray(t) for n, t in x.items()}
    np.testing.assert_array_equal(y, np.asarray(kernel(**dense)))


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("name", ["attend", "attend_back"])
def test_memory_is_linear_in_the_sequence(name: str, dtype: str) -> None:
    config = Config(vocab_size=10, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
                    num_attention_heads=8, num_key_value_heads=2, head_dim=16)
    sizes = {}
    for seq in (128, 256, 512):
        kernel = anetorch.compile(programs.make(name, programs.Sizes(config, 1, seq, dtype)))
        assert is_streamed(kernel) == 1
        sizes[seq] = kernel.memory()["scratch"]
    assert sizes[256] == 2 * sizes[128] and sizes[512] == 2 * sizes[256], sizes


@pytest.mark.parametrize("mask", [None, "keep", "add"])
def test_the_op_itself(mask: str | None) -> None:
    rng = np.random.default_rng(0)
    specs = {"q": mil.spec((2, 3, 20, 8), "fp16"), "k": mil.spec((2, 3, 31, 8), "fp16"),
             "v": mil.spec((2, 3, 31, 5), "fp16")}
    if mask:
        specs["m"] = mil.spec((3, 20, 31), "bool" if mask == "keep" else "fp16")

    def build(q, k, v, m=None):
        return {"y": ops.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=m)}

    program = mil.build(build, specs)
    x = {n: rng.standard_normal(s.shape).astype(np.float16) for n, s in specs.items()}
    if mask == "keep":
        x["m"] = rng.random((3, 20, 31)) < 0.5
    for p in (program, kernels.backward(program, wrt=("q", "k", "v"))):
        x = {**x, **{v.name: rng.standard_normal(v.shape).astype(np.float16)
                     for v in p.inputs if v.name not in x}}
        kernel = anetorch.compile(p)
        assert is_streamed(kernel) == 1
        mine = {v.name: x[v.name] for v in p.inputs}
        got = outputs(kernel, mine)
        for name, want in analyse(p, mine).items():
            check(got[name], want, name)


@pytest.mark.parametrize("form", ["band", "compare", "float band"])
def test_masks_that_are_computed_from_constants_hide_keys(form: str) -> None:
    n = 50
    at = np.arange(n, dtype=np.int32)

    def build(q, k, v):
        s = ops.mul(x=ops.matmul(x=q, y=k, transpose_y=True), y=0.25)
        if form == "compare":
            see = ops.less_equal(x=at.reshape(1, n), y=at.reshape(n, 1))
            s = ops.select(cond=see, a=s, b=-np.inf)
        elif form == "band":
            see = ops.band_part(x=np.ones((n, n), np.float32), lower=-1, upper=0)
            s = ops.select(cond=ops.cast(x=see, dtype="bool"), a=s, b=-1e30)
        else:
            see = ops.band_part(x=np.ones((n, n), np.float32), lower=-1, upper=0)
            s = ops.add(x=s, y=ops.mul(x=ops.sub(x=1.0, y=see), y=-30000.0))
        return {"o": ops.matmul(x=ops.softmax(x=s, axis=-1), y=v)}

    program = mil.build(build, {x: mil.spec((2, n, 8), "fp32") for x in "qkv"})
    kernel = anetorch.compile(program)
    assert [s["kernel"].split("__")[0] for s in kernel.report()] == ["attention_masked"]
    x = draw(program)
    plain = written_out("fp32", n, n, causal(n, n, "fp32", -np.inf), batch=(2,))
    check(outputs(kernel, x)["o"], analyse(plain, x)["o"], form)


# ---------------------------------------------------------------- masks of a run


def masks_of_a_run(queries: int, keys: int, dtype: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    see = causal(queries, keys, "fp32", -1.0) == 0
    window = see & ~np.tri(queries, keys, keys - queries - 7, dtype=bool)
    low = causal(queries, keys, dtype, LOW[dtype])
    signed = np.where(low == 0, -low, low)              # adds -0
    nan, deaf = low.copy(), causal(queries, keys, dtype, -np.inf)
    nan[queries // 2, 1] = np.nan
    deaf[queries // 3] = -np.inf                        # a query that sees nothing
    late = low.copy()
    late[queries - 1, keys // 2] = LOW[dtype]           # hidden in the middle
    return {"causal": low, "causal inf": causal(queries, keys, dtype, -np.inf), "minus zero": signed,
            "window": np.where(window, 0, LOW[dtype]).astype(NP[dtype]), "nan": nan, "deaf": deaf, "late": late,
            "alibi": mask_of("alibi", queries, keys, dtype, rng), "mild": causal(queries, keys, dtype, -10.0),
            "add": mask_of("add", queries, keys, dtype, rng), "see": see, "hide": ~see, "all": np.ones_like(see)}


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize(("queries", "keys"), [(32, 32), (45, 77), (130, 131)])
def test_a_mask_of_the_run_hides_as_a_constant_does(dtype: str, queries: int, keys: int) -> None:
    """The same bits as where the mask is known when planning, forward and backward, also where
    scores are so large that they show through a finite mask."""
    def build(mask: np.ndarray | None, keep: bool):
        def body(q, k, v, m=None):
            s, m = ops.mul(x=ops.matmul(x=q, y=k, transpose_y=True), y=0.25), mask if m is None else m
            if keep is None:
                s = ops.add(x=s, y=m)
            elif keep:
                s = ops.select(cond=m, a=s, b=NP[dtype](LOW[dtype]))
            else:
                s = ops.select(cond=m, a=NP[dtype](LOW[dtype]), b=s)
            return {"o": ops.matmul(x=ops.softmax(x=s, axis=-1), y=v)}
        return body

    for name, mask in masks_of_a_run(queries, keys, dtype).items():
        keep = None if mask.dtype != bool else name != "hide"
        specs = {n: mil.spec((2, 3, t, 8), dtype) for n, t in (("q", queries), ("k", keys), ("v", keys))}
        fixed = mil.build(build(mask, keep), specs)
        given = mil.build(build(None, keep), specs | {"m": mil.spec(mask.shape, "bool" if keep is not None else dtype)})
        x = draw(fixed, 1)
        for large in (False, True):
            if large:
                x["q"] = (x["q"] * 8000).astype(NP[dtype]) if dtype == "fp16" else x["q"] * np.float32(1e37)
            for a, b in ((fixed, given), (kernels.backward(fixed, wrt=("q", "k", "v")),
                                          kernels.backward(given, wrt=("q", "k", "v")))):
                have = dict(x)
                for v in a.inputs:
                    have.setdefault(v.name, np.random.default_rng(2).standard_normal(v.shape).astype(NP[v.dtype]))
                ka, kb = anetorch.compile(a), anetorch.compile(b)
                assert any("_scanned" in s["kernel"] for s in kb.report()), (name, kb.report())
                want = outputs(ka, {v.name: have[v.name] for v in a.inputs})
                have["m"] = mask
                got = outputs(kb, {v.name: have[v.name] for v in b.inputs})
                for o, w in want.items():
                    np.testing.assert_array_equal(got[o], w, err_msg=f"{name} {o} large={large}")


def test_a_large_causal_mask_written_out_in_ops() -> None:
    """Of more than a million elements, which are not folded: found when it runs."""
    n = 1100

    def body(q, k, v):
        at = ops.range_1d(start=np.int32(0), end=np.int32(n), step=np.int32(1))
        hide = ops.greater(x=ops.expand_dims(x=at, axes=[0]), y=ops.expand_dims(x=at, axes=[1]))
        m = ops.select(cond=hide, a=np.float32(-1e9), b=np.float32(0))
        s = ops.add(x=ops.mul(x=ops.matmul(x=q, y=k, transpose_y=True), y=0.25), y=m)
        return {"o": ops.matmul(x=ops.softmax(x=s, axis=-1), y=v)}

    program = mil.build(body, {x: mil.spec((1, 2, n, 16), "fp32") for x in "qkv"})
    kernel = anetorch.compile(program)
    assert any("_scanned" in s["kernel"] for s in kernel.report())
    x = draw(program)
    fixed = written_out("fp32", n, n, causal(n, n, "fp32", -1e9), batch=(1, 2), d=16)
    np.testing.assert_array_equal(outputs(kernel, x)["o"], outputs(anetorch.compile(fixed), x)["o"])
