"""The IOSurface kind against a stand-in of the frameworks (standin_iosurface.c)."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    cc = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if sys.platform == "darwin" or not cc:
        pytest.skip("needs a C compiler, and no real IOSurface")
    lib = tmp_path_factory.mktemp("standin") / "libstandin.so"
    subprocess.run([cc, "-shared", "-fPIC", "-O1", "-o", str(lib),
                    str(HERE / "standin_iosurface.c")], check=True)
    return lib


def run(lib, code, **env):
    r = subprocess.run([sys.executable, "-c", "import ctypes, gc, numpy as np\nimport anetorch\n"
                        "from anetorch import Tensor\n"
                        f"live = ctypes.CDLL({str(lib)!r}).standin_live\n" + textwrap.dedent(code)],
                       text=True, capture_output=True, timeout=60,
                       env={**os.environ, "ANETORCH_APPLE_RUNTIME": str(lib), **env})
    assert r.returncode == 0, r.stderr
    return r.stdout


def test_life(stand_in):
    run(stand_in, """
        assert anetorch.is_iosurface_available()
        t = Tensor((3, 5), "float16", mem="iosurface", name="x")
        assert t.memory == "iosurface" and not t.numpy().any() and t.iosurface_id > 0
        t.copy_(np.arange(15).reshape(3, 5))
        assert live() == 1                          # descriptions are released
        with t.map("r") as a, t.map("rw") as b:
            b[0] = 9
            assert a[0] == 9
        del a, b                                    # maps keep the surface
        u = Tensor.from_iosurface(t.iosurface_ref, (4096,), "float16")
        assert u.iosurface_id == t.iosurface_id and u[0].item() == 9
        assert u.buffer_id != t.buffer_id
        v = Tensor.lookup(t[1:].id)
        assert v.tolist() == t[1:].tolist() and v.iosurface_id == t.iosurface_id
        ident = t.id
        t.close()
        u.close()
        assert live() == 1 and v[0, 0].item() == 5
        v.close()
        assert live() == 0
        for bad, error, text in [
            (lambda: Tensor.lookup(ident), KeyError, 'mem="shm"'),
            (lambda: Tensor.lookup("iosurface:x;float32;0;1;4"), ValueError, "no IOSurface id"),
            (lambda: Tensor.from_iosurface(0, (2,)), ValueError, "null"),
        ]:
            try: bad()
            except error as e: assert text in str(e), e
            else: raise SystemExit("no error")
        t = Tensor((3, 5), mem="iosurface")
        for bad, error, text in [
            (lambda: Tensor.from_iosurface(t.iosurface_ref, (4097,)), ValueError,
             "16388 bytes asked for, the surface has 16384"),
            (lambda: t.fileno(), NotImplementedError, 'mem="shm"'),
        ]:
            try: bad()
            except error as e: assert text in str(e), e
            else: raise SystemExit("no error")
        for _ in range(1000):
            Tensor((64, 64), mem="iosurface").close()
        t.close()
        assert live() == 0
    """)


def test_images(stand_in):
    run(stand_in, """
        for format in ("RGBA", "BGRA", "YUYV", "GREY"):
            t = Tensor.image(18, 4, format, mem="iosurface")
            assert t.strides[0] % 64 == 0 and t.memory == "iosurface"
            t.numpy()[...] = 1
        for format in ("RGB", "NV12"):
            try: Tensor.image(18, 4, format, mem="iosurface")
            except NotImplementedError as e: assert format in str(e)
            else: raise SystemExit("no error")
    """)


@pytest.mark.parametrize("step, error, text", [
    ("create", "MemoryError", "IOSurfaceCreate returned null"),
    ("lock", "RuntimeError", "IOSurfaceLock failed with code"),
    ("base", "RuntimeError", "base address is null"),
])
def test_failures(stand_in, step, error, text):
    run(stand_in, f"""
        try: Tensor((3, 5), mem="iosurface")
        except {error} as e: assert {text!r} in str(e), e
        else: raise SystemExit("no error")
        assert live() == 0
    """, ANE_STANDIN_FAIL=step)


def test_a_library_without_the_symbols_is_absent():
    r = subprocess.run([sys.executable, "-c", "import anetorch; "
                        "assert not anetorch.is_iosurface_available()"],
                       env={**os.environ, "ANETORCH_APPLE_RUNTIME": "libm.so.6"})
    assert r.returncode == 0
