"""Large products by a foreign cblas_sgemm: every layout and epilogue against float64. The
library is a double of Accelerate's (blas_double.c); each case runs in a process of its own,
since the choice is made once."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from anetorch import _core

HERE = Path(__file__).parent
M, K, N = 150, 128, 131          # above the size from which it is asked


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cc = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not cc:
        pytest.skip("needs a C compiler")
    out = tmp_path_factory.mktemp("blas") / "libblas_double.so"
    subprocess.run([cc, "-shared", "-fPIC", "-O2", "-o", str(out), str(HERE / "blas_double.c")],
                   check=True)
    return out


def run(library: str, code: str) -> str:
    """Runs a body that sees np, mil, anetorch, T (tolerance), M, K, N and calls()."""
    head = (
        "import ctypes, os, sys\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        "import numpy as np, anetorch, tolerance as T\n"
        "from anetorch import _core, mil\n"
        f"M, K, N = {M}, {K}, {N}\n"
        "rng = np.random.default_rng(5)\n"
        "path = os.environ['ANETORCH_BLAS']\n"
        "calls = lambda: ctypes.c_int.in_dll(ctypes.CDLL(path), 'blas_calls').value\n"
    )
    env = {**os.environ, "ANETORCH_BLAS": library, "ANETORCH_LOG": "1"}
    done = subprocess.run([sys.executable, "-c", head + code], env=env, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


LAYOUTS = """
for dtype in ("fp32", "fp16"):
    np_type = {"fp32": np.float32, "fp16": np.float16}[dtype]
    for tx in (False, True):
        for ty in (False, True):
            for out_t in (False, True):
                sx, sy = ((K, M) if tx else (M, K)), ((N, K) if ty else (K, N))
                @mil.program(x=mil.spec(sx, dtype), y=mil.spec(sy, dtype))
                def product(x, y):
                    p = mil.ops.matmul(x=x, y=y, transpose_x=tx, transpose_y=ty)
                    return {"z": mil.ops.transpose(x=p, perm=[1, 0]) if out_t else p}
                a = rng.standard_normal(sx).astype(np_type)
                b = rng.standard_normal(sy).astype(np_type)
                before = calls()
                z = anetorch.compile(product)(a, b)
                assert calls() > before, (dtype, tx, ty, out_t)
                z = np.asarray(z).T if out_t else z
                a64, b64 = (a.T if tx else a).astype(float), (b.T if ty else b).astype(float)
                bound = T.matmul(a64, b64, "float16" if dtype == "fp16" else "float32")
                T.check(z, a64 @ b64, bound, f"{dtype} {tx} {ty} {out_t}")
"""


def test_every_layout(library: Path) -> None:
    run(str(library), LAYOUTS)


EPILOGUE = """
w = rng.standard_normal((N, K)).astype(np.float32)
bias = rng.standard_normal(N).astype(np.float32)
@mil.program(x=mil.spec((M, K), "fp32"), r=mil.spec((M, N), "fp32"))
def layer(x, r):
    y = mil.ops.linear(x=x, weight=w, bias=bias)
    return {"y": mil.ops.add(x=mil.ops.relu(x=y), y=r)}
x = rng.standard_normal((M, K)).astype(np.float32)
r = rng.standard_normal((M, N)).astype(np.float32)
k = anetorch.compile(layer)
y = k(x, r)
assert calls() >= 1
ref = np.maximum(x.astype(float) @ w.T.astype(float) + bias, 0) + r
# The product's bound, and one rounding each of the two additions.
bound = T.matmul(x.astype(float), w.T.astype(float), "float32") + 2.0 ** -23 * (
    np.abs(x.astype(float) @ w.T.astype(float)) + np.abs(bias) + np.abs(r))
T.check(y, ref, bound, "linear, relu, add")
print(k.report(x, r))

# dW + x' dy on the gradient itself.
@mil.program(g_in=mil.spec((K, N), "fp32"), x=mil.spec((M, K), "fp32"), d=mil.spec((M, N), "fp32"))
def grad(g_in, x, d):
    return {"g": mil.ops.add(x=g_in, y=mil.ops.matmul(x=x, y=d, transpose_x=True))}
g = anetorch.Tensor((K, N), "float32")
start = rng.standard_normal((K, N)).astype(np.float32)
g.copy_from(start)
before = calls()
anetorch.compile(grad).bind({"g_in": g, "x": anetorch.Tensor.from_numpy(x),
                             "d": anetorch.Tensor.from_numpy(r)}, {"g": g}).run()
assert calls() == before + 1
x64, r64 = x.T.astype(float), r.astype(float)
T.check(np.array(g), start + x64 @ r64,
        T.matmul(x64, r64, "float32") + 2.0 ** -23 * (np.abs(start) + np.abs(x64 @ r64)), "dW")
"""


def test_epilogues_and_accumulation(library: Path) -> None:
    assert "cblas_sgemm" in run(str(library), EPILOGUE)


SMALL = """
@mil.program(x=mil.spec((8, 8), "fp32"), y=mil.spec((8, 8), "fp32"))
def product(x, y):
    return {"z": mil.ops.matmul(x=x, y=y)}
a = rng.standard_normal((8, 8)).astype(np.float32)
z = anetorch.compile(product)(a, a)
T.check(z, a.astype(float) @ a.astype(float), T.matmul(a.astype(float), a.astype(float), "float32"), "small")
assert calls() == 0
"""


def test_small_products_stay_ours(library: Path) -> None:
    run(str(library), SMALL)


NAME = "print(_core.blas_kernel()); anetorch.compile"


def test_off_and_what_cannot_be_loaded(library: Path, tmp_path: Path) -> None:
    assert run(str(library), NAME).splitlines()[0] == "cblas_sgemm"
    assert run("off", NAME).splitlines()[0] == "None"
    out = run(str(tmp_path / "none.so"), NAME)
    assert "None" in out and "ANETORCH_BLAS: cannot use cblas_sgemm of" in out
    assert run(ctypes.util.find_library("c") or "libc.so.6", NAME).splitlines()[0] == "None"


@pytest.mark.skipif(sys.platform == "darwin" or "ANETORCH_BLAS" in os.environ,
                    reason="Accelerate is there, or another library is asked for")
def test_none_by_default() -> None:
    assert _core.blas_kernel() is None
