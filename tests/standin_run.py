"""The stand-in of Apple's run-time (tests/standin): how to build it, and how to run code in a
process that has it. Import the fixtures `stand_in` and `run` from here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import anetorch

HERE = Path(__file__).parent

PRELUDE = '''
import ctypes, gc, os
import numpy as np
import anetorch
from anetorch import Tensor, mil

lib = ctypes.CDLL(os.environ["ANETORCH_APPLE_RUNTIME"])
lib.standin_get.restype = lib.standin_method_number.restype = ctypes.c_long
lib.standin_set.argtypes = [ctypes.c_char_p, ctypes.c_long]
lib.standin_set.restype = lib.standin_reset.restype = None
def get(name): return lib.standin_get(name.encode())
def knobs(**values):
    for name, value in values.items(): lib.standin_set(name.encode(), value)
def left():
    gc.collect()
    return {**{n: get(n) for n in ("live_objects", "live_surfaces", "loaded", "pool_depth",
                                   "leaked_to_no_pool")},
            "folders": os.listdir(os.environ["STANDIN_TMPDIR"])}
NOTHING = {"live_objects": 0, "live_surfaces": 0, "loaded": 0, "pool_depth": 0,
           "leaked_to_no_pool": 0, "folders": []}

def cpu(program):
    """What the stand-in computes with: the arithmetic of the engine that it says it is."""
    return anetorch.compile(program, numerics="ane", target="m4")

rng = np.random.default_rng(7)
def data(*shape): return rng.standard_normal(shape).astype(np.float16)
def same(got, want):
    got, want = [list(r.values()) if isinstance(r, dict) else [r] for r in (got, want)]
    assert len(got) == len(want)
    for g, w in zip(got, want):
        np.testing.assert_array_equal(np.asarray(g), np.asarray(w))

def affine(shape=(1, 8, 2, 5), factor=2.0):
    @mil.program(z=mil.spec(shape, "fp16"), a=mil.spec(shape, "fp16"), opset="ios18")
    def program(z, a):
        return {"y": z - a * factor}
    return program
'''


def build(lib):
    """Compiles the stand-in against the library beside the package; returns lib."""
    cc = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    engine = next(Path(anetorch._core.__file__).parent.glob("libanetorch.so*"), None)
    if sys.platform != "linux" or not cc or not engine:
        pytest.skip("needs Linux, a C compiler and libanetorch beside the package")
    needs = subprocess.run(["ldd", str(engine)], capture_output=True, text=True).stdout
    # As the library was built; what the sanitizer preloads must not come into the compiler.
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if "asan" in needs else []
    subprocess.run([cc, "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-g", "-O1",
                    "-fPIC", "-shared", "-fvisibility=hidden", *sanitizers,
                    *map(str, sorted((HERE / "standin").glob("*.c"))), "-o", str(lib),
                    str(engine), "-lpthread"], check=True,
                   env={k: v for k, v in os.environ.items() if k != "LD_PRELOAD"})
    return lib


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    lib = tmp_path_factory.getbasetemp() / "standin.so"     # one for all test files
    return lib if lib.exists() else build(lib)


def environment(stand_in, tmp_path):
    """Of a process with the stand-in, its own temporary folder and its own cache."""
    for name in ("engine", "cache"): (tmp_path / name).mkdir(exist_ok=True)
    return {**os.environ, "ANETORCH_APPLE_RUNTIME": str(stand_in),
            "STANDIN_TMPDIR": str(tmp_path / "engine"),
            "ANETORCH_CACHE_DIR": str(tmp_path / "cache")}


@pytest.fixture
def run(stand_in, tmp_path):
    def call(code, **env):
        done = subprocess.run([sys.executable, "-c", PRELUDE + textwrap.dedent(code)], text=True,
                              capture_output=True, timeout=120,
                              env=environment(stand_in, tmp_path) | env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    return call
