"""Every optimisation has its own off switch: with each one off, results stay inside the bound.

The switches come from the library's own lists, so a new one is in here without being named. A
gallery of programs, each with a bound derived from its arithmetic, must react to every switch:
one that changes no plan was not tested.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import opcase
import pytest
import test_conv
import test_fuse_attention
import test_norms
import test_passes
import test_quantized
import tolerance
from oracle import NP, analyse

import anetorch
from anetorch import _core, kernels, mil

SWITCHES = [tuple(s) for s in _core._testing.switches()]
# Variables of the library that turn no optimisation off, or are tested where they belong.
OTHERS = {"ISA", "NUM_THREADS", "DUMP", "MEMORY_LIMIT", "LOG", "BLAS", "APPLE_RUNTIME", "COMPILE_BUDGET",
          "UNIFORM_PORTS", "SURFACE_MIN", "EXPERIMENTS", "CACHE_DIR"}


def random_graphs() -> None:
    test_passes.sweep(200, 245)


def products_and_rows() -> None:
    """What joins a product, a softmax, a reduction, a chain; all inputs, so that nothing is folded."""
    def body(x, w, b, r, m):
        o = mil.ops
        y = o.add(x=r, y=o.relu(x=o.add(x=o.matmul(x=x, y=w), y=b)))
        p = o.softmax(x=o.add(x=o.mul(x=y, y=0.5), y=m), axis=-1)
        c = o.maximum(x=o.sub(x=o.mul(x=y, y=r), y=m), y=o.add(x=y, y=r))
        return {"y": y, "p": p, "c": c, "s": o.reduce_sum(x=o.mul(x=c, y=m), axes=[-1], keep_dims=False)}

    for dtype in ("fp32", "fp16"):
        shapes = {"x": (19, 40), "w": (40, 33), "b": (33,), "r": (19, 33), "m": (19, 33)}
        p = mil.build(body, {n: mil.spec(s, dtype) for n, s in shapes.items()})
        rng = np.random.default_rng(0)
        x = {n: rng.standard_normal(s).astype(NP[dtype]) for n, s in shapes.items()}
        got = test_passes.outputs(anetorch.compile(p), x)
        for name, want in analyse(p, x).items():
            test_passes.check(got[name], want, f"{dtype} {name}")


def few_rows() -> None:
    """Bound weights beside few rows, run twice: packed to be kept, and kept."""
    for dtype in ("fp32", "fp16"):
        p = mil.build(lambda x, w: {"y": mil.ops.relu(mil.ops.matmul(x=x, y=w))},
                      {"x": mil.spec((4, 96), dtype), "w": mil.spec((96, 640), dtype)})
        rng = np.random.default_rng(0)
        x = {n: rng.standard_normal(s).astype(NP[dtype]) for n, s in (("x", (4, 96)), ("w", (96, 640)))}
        request = anetorch.compile(p).bind({n: anetorch.Tensor(a.shape, a.dtype).copy_from(a) for n, a in x.items()})
        for _ in range(2):
            request.run()
            test_passes.check(request.outputs["y"].numpy(), analyse(p, x)["y"], f"few rows {dtype}")


def attention() -> None:
    """Forward and backward of softmax(QK' + mask)V with random scores to add; and a mask that is
    an input."""
    for dtype in ("fp32", "fp16"):
        rng = np.random.default_rng(0)
        mask = test_fuse_attention.mask_of("add", 17, 33, dtype, rng)
        forward = test_fuse_attention.written_out(dtype, 17, 33, mask)
        for p in (forward, kernels.backward(forward, wrt=("q", "k", "v"))):
            x = {v.name: rng.standard_normal(v.shape).astype(NP[v.dtype]) for v in p.inputs}
            kernel = anetorch.compile(p)
            got = test_passes.outputs(kernel, x)
            for name, want in analyse(p, x).items():
                test_passes.check(got[name], want, f"attention {dtype} {name}")

    def masked(q, k, v, m):
        o = mil.ops
        s = o.add(x=o.mul(x=o.matmul(x=q, y=k, transpose_y=True), y=0.25), y=m)
        return {"o": o.matmul(x=o.softmax(x=s, axis=-1), y=v)}

    p = mil.build(masked, {n: mil.spec((2, 40, 8), "fp32") for n in "qkv"} | {"m": mil.spec((40, 40), "fp32")})
    x = test_fuse_attention.draw(p) | {"m": test_fuse_attention.causal(40, 40, "fp32", -np.inf)}
    for name, want in analyse(p, x).items():
        test_passes.check(test_passes.outputs(anetorch.compile(p), x)[name], want, name)


def convolutions() -> None:
    """A block of layers: convolutions of three kinds, what follows them, pooling, a residual."""
    for dtype, name in (("fp32", "float32"), ("fp16", "float16")):
        p, arrays = test_conv.block(dtype)
        x = np.random.default_rng(4).standard_normal((2, 5, 17, 12)).astype(name)
        exact = _core._testing.eval(p, {"x": x}, wide=True).values()
        kernel = anetorch.compile(p)
        for got, ref in zip(test_conv.results(kernel, x), exact, strict=True):
            tolerance.check(got, ref, test_conv.layered(arrays, ref, name), f"block {dtype}")
    test_conv.test_a_1x1_convolution_of_channels_first(kernel="")


def quantised() -> None:
    """8-bit products whose scales are powers of two: exact however they are computed."""
    for op in ("conv", "linear", "matmul", "1x1"):
        p, x, _ = test_quantized.program(op, "int8", "int8", "affine", True)
        kernel = anetorch.compile(p)
        want = next(iter(_core._testing.eval(p, {"x": x}).values()))
        np.testing.assert_array_equal(np.asarray(kernel(x)), want)
    w = np.arange(-36, 36, dtype="f4").reshape(4, 2, 3, 3) / 8

    def stored(v):
        y = mil.ops.relu(x=mil.ops.conv(v, w, pad_type="same"))
        return y, mil.ops.quantize(input=y, scale=np.float32(0.25), zero_point=np.int8(-7), output_dtype="int8")

    p = mil.build(stored, {"v": mil.spec((1, 2, 5, 6), "fp32")}, opset="ios18")
    x = np.random.default_rng(0).integers(-9, 9, (1, 2, 5, 6)).astype("f4") / 4
    want = _core._testing.eval(p, {"v": x}).values()
    for got, ref in zip(test_passes.outputs(anetorch.compile(p), {"v": x}).values(), want, strict=True):
        np.testing.assert_array_equal(got, ref)


def normalisations() -> None:
    for dtype in opcase.F:
        x = opcase.data((2, 6, 5, 9), dtype, low=-3, high=5)
        gamma, beta = opcase.data((6,), dtype, 1), opcase.data((6,), dtype, 2)
        g, b = (v.astype("f8").reshape(1, 6, 1, 1) for v in (gamma, beta))
        eps = np.float64(np.dtype(dtype).type(1e-5))
        wide = x.astype("f8")
        length = np.sqrt((wide * wide).sum((1, 2, 3), keepdims=True) + np.float64(np.dtype(dtype).type(1e-6)))
        l2 = wide / length
        cases = {"layer_norm": ({"axes": [1], "gamma": gamma, "beta": beta},
                                test_norms.standard(wide, [1], eps, g, b, dtype)),
                 "instance_norm": ({"gamma": gamma, "beta": beta},
                                   test_norms.standard(wide, (2, 3), eps, g, b, dtype)),
                 "l2_norm": ({}, (l2, (6 * 45 + 6) * test_norms.U * abs(l2) + tolerance.rounding(l2, dtype)))}
        for op, (kw, (ref, bound)) in cases.items():
            kind = {"float32": "fp32", "float16": "fp16"}[np.dtype(dtype).name]
            p = mil.build(lambda x_, op=op, kw=kw: getattr(mil.ops, op)(x_, **kw), {"x_": mil.spec(x.shape, kind)})
            kernel = anetorch.compile(p)
            tolerance.check(np.asarray(kernel(x)), ref, bound, f"{op} {dtype}")


GALLERY = [random_graphs, products_and_rows, few_rows, attention, convolutions, quantised, normalisations]


def run(root, env: dict[str, str]) -> str:
    """Checks every result; the plans."""
    code = "import test_switches\nfor f in test_switches.GALLERY: f()"
    env = {k: v for k, v in os.environ.items() if k not in dict(SWITCHES)} | env | {"ANETORCH_DUMP": "plan"}
    env["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "tests")])
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "plan of main" in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def all_on(root) -> str:
    return run(root, {})


@pytest.mark.parametrize("switch", SWITCHES, ids="=".join)
def test_results_stay_inside_the_bound_with_each_one_off(switch: tuple[str, str], root, all_on: str) -> None:
    off = run(root, dict([switch]))
    if off == all_on:                   # not in the assertion: both are megabytes
        pytest.fail(f"no program of the gallery is planned otherwise with {'='.join(switch)}")


def test_every_variable_is_known_here() -> None:
    """A new variable is a switch, of the library's lists, or is named above."""
    names = {n.removeprefix("ANETORCH_") for n in _core._testing.variables()}
    assert names == OTHERS | {v.removeprefix("ANETORCH_") for v, _ in SWITCHES}


def test_every_switch_is_documented(root) -> None:
    rows = {m[1]: m[0] for m in re.finditer(r"^\| `(ANETORCH_\w+)` \|.*$", (root / "docs/environment.md").read_text(),
                                            re.MULTILINE)}
    assert set(_core._testing.variables()) <= set(rows)
    for variable, value in SWITCHES:
        assert f"`{value}`" in rows[variable], (variable, value)
