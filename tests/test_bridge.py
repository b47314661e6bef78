"""The flat C bridge, driven by ctypes as existing clients do, and compiled against in C."""

import ctypes
import shutil
import subprocess
import textwrap
from ctypes import POINTER, byref, c_bool, c_char_p, c_float, c_int, c_size_t, c_void_p
from pathlib import Path

import numpy as np
import pytest

import anetorch
from standin_run import run, stand_in  # noqa: F401

LIBRARY = next(Path(anetorch._core.__file__).parent.glob("libanetorch.*"))
HEADERS = Path(__file__).resolve().parents[1] / "csrc" / "bridge"

# Exactly what the client in the field sets at load time.
SIGNATURES = {
    "init": (c_int, []),
    "get_compile_count": (c_int, []),
    "reset_compile_count": (None, []),
    "compile": (c_void_p, [c_char_p, c_size_t, c_void_p, c_size_t, c_int, POINTER(c_size_t),
                           c_int, POINTER(c_size_t)]),
    "compile_multi_weights": (c_void_p, [c_char_p, c_size_t, POINTER(c_char_p),
                                         POINTER(c_void_p), POINTER(c_size_t), c_int, c_int,
                                         POINTER(c_size_t), c_int, POINTER(c_size_t)]),
    "eval": (c_bool, [c_void_p]),
    "free": (None, [c_void_p]),
    "write_input": (None, [c_void_p, c_int, c_void_p, c_size_t]),
    "read_output": (None, [c_void_p, c_int, c_void_p, c_size_t]),
    # the others of the header
    "compile_dyn": (c_void_p, [c_char_p, c_size_t, c_int, POINTER(c_size_t), c_int,
                               POINTER(c_size_t), c_size_t]),
    "write_weight": (None, [c_void_p, c_int, c_void_p, c_size_t]),
    "write_weight_f32": (None, [c_void_p, c_int, c_void_p, c_size_t]),
    "copy_io": (None, [c_void_p, c_int, c_void_p, c_int]),
    "begin_realtime": (None, []),
    "end_realtime": (None, []),
    "build_weight_blob": (c_void_p, [c_void_p, c_int, c_int, POINTER(c_size_t)]),
    "build_weight_blob_transposed": (c_void_p, [c_void_p, c_int, c_int, POINTER(c_size_t)]),
    "free_blob": (None, [c_void_p]),
    "build_weight_blob_int8": (c_void_p, [c_void_p, c_int, c_int, POINTER(c_size_t)]),
    "build_weight_blob_quantized": (c_void_p, [c_void_p, c_int, c_int, POINTER(c_float),
                                               POINTER(c_size_t)]),
    "last_error": (c_char_p, []),
}


@pytest.fixture(scope="module")
def lib():
    library = ctypes.CDLL(str(LIBRARY))
    for name, (result, args) in SIGNATURES.items():
        fn = getattr(library, f"ane_bridge_{name}")
        fn.restype, fn.argtypes = result, args
    assert library.ane_bridge_init() == 0
    return library


def sizes(*n):
    return (c_size_t * len(n))(*n)


def error(lib):
    return lib.ane_bridge_last_error().decode()


def blob(lib, name, array, *more):
    n = c_size_t()
    p = getattr(lib, f"ane_bridge_build_weight_blob{name}")(
        array.ctypes.data, *array.shape, *more, byref(n))
    assert p, error(lib)
    data = ctypes.string_at(p, n.value)
    lib.ane_bridge_free_blob(p)
    return data


CONV = """program(1.3)
{
    func main<ios18>(tensor<fp32, [1, 64, 1, 16]> x) {
        string to16 = const()[name = string("to16"), val = string("fp16")];
        tensor<fp16, [1, 64, 1, 16]> h = cast(x = x, dtype = to16)[name = string("h")];
        tensor<fp16, [128, 64, 1, 1]> w = const()[name = string("w"), val = tensor<fp16, [128, 64, 1, 1]>(BLOBFILE(path = string("@model_path/weights/weight.bin"), offset = uint64(64)))];
        string valid = const()[name = string("valid"), val = string("valid")];
        tensor<fp16, [1, 128, 1, 16]> c = conv(x = h, weight = w, pad_type = valid)[name = string("c")];
        string to32 = const()[name = string("to32"), val = string("fp32")];
        tensor<fp32, [1, 128, 1, 16]> y = cast(x = c, dtype = to32)[name = string("y")];
    } -> (y);
}
"""

DYN = """program(1.3)
{
    func main<ios18>(tensor<fp16, [6, 5]> x, tensor<fp16, [5, 3]> w) {
        bool no = const()[name = string("no"), val = bool(false)];
        tensor<fp16, [6, 3]> y = matmul(x = x, y = w, transpose_x = no, transpose_y = no)[name = string("y")];
    } -> (y);
}
"""


def compile_conv(lib, weight):
    text = CONV.encode()
    data = blob(lib, "", weight)
    return lib.ane_bridge_compile(text, len(text), data, len(data), 1, sizes(64 * 16 * 4), 1,
                                  sizes(128 * 16 * 4))


def test_the_clients_own_test(lib):
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((128, 64)).astype(np.float32)
    x = rng.standard_normal((64, 16)).astype(np.float32)
    lib.ane_bridge_reset_compile_count()
    k = compile_conv(lib, weight)
    assert k, error(lib)
    assert lib.ane_bridge_get_compile_count() == 1
    lib.ane_bridge_write_input(k, 0, x.ctypes.data, x.nbytes)
    assert lib.ane_bridge_eval(k)
    y = np.empty((128, 16), np.float32)
    lib.ane_bridge_read_output(k, 0, y.ctypes.data, y.nbytes)
    w, h = (a.astype(np.float16).astype(np.float64) for a in (weight, x))
    exact, scale = w @ h, np.abs(w) @ np.abs(h)
    # 64 products summed in fp32, one rounding to fp16.
    assert (np.abs(y - exact) <= 65 * 2.0**-24 * scale + 2.0**-11 * np.abs(exact) + 2.0**-25).all()
    lib.ane_bridge_free(k)
    lib.ane_bridge_free(None)


def test_runtime_weights(lib):
    rng = np.random.default_rng(2)
    text = DYN.encode()
    k = lib.ane_bridge_compile_dyn(text, len(text), 1, sizes(60), 1, sizes(30), 36)
    assert k, error(lib)
    x = rng.standard_normal((6, 5)).astype(np.float16)
    lib.ane_bridge_write_input(k, 0, x.ctypes.data, x.nbytes)
    y = np.empty((6, 3), np.float16)
    for _ in range(2):
        w = rng.standard_normal((5, 3)).astype(np.float32)
        lib.ane_bridge_write_weight_f32(k, 0, w.ctypes.data, w.size)
        assert lib.ane_bridge_eval(k)
        lib.ane_bridge_read_output(k, 0, y.ctypes.data, y.nbytes)
        half = w.astype(np.float16)
        exact = x.astype(np.float64) @ half.astype(np.float64)
        scale = np.abs(x).astype(np.float64) @ np.abs(half).astype(np.float64)
        assert (np.abs(y - exact) <= 6 * 2.0**-24 * scale + 2.0**-11 * np.abs(exact)
                + 2.0**-25).all()
    w16 = np.ones((5, 3), np.float16)
    lib.ane_bridge_write_weight(k, 0, w16.ctypes.data, w16.nbytes)
    assert lib.ane_bridge_eval(k)
    first = y.copy()
    lib.ane_bridge_read_output(k, 0, y.ctypes.data, y.nbytes)
    assert (first != y).any()
    lib.ane_bridge_free(k)


def test_copy_between_kernels(lib):
    text = b"""program(1.3)
{
    func main<ios18>(tensor<fp16, [4, 4]> x) {
        tensor<fp16, [4, 4]> y = add(x = x, y = x)[name = string("y")];
    } -> (y);
}
"""
    a, b = (lib.ane_bridge_compile(text, len(text), None, 0, 1, sizes(32), 1, sizes(32))
            for _ in range(2))
    x = np.arange(16, dtype=np.float16).reshape(4, 4)
    lib.ane_bridge_write_input(a, 0, x.ctypes.data, 32)
    assert lib.ane_bridge_eval(a)
    lib.ane_bridge_copy_io(a, 0, b, 0)
    assert lib.ane_bridge_eval(b)
    y = np.empty((4, 4), np.float16)
    lib.ane_bridge_read_output(b, 0, y.ctypes.data, 32)
    np.testing.assert_array_equal(y, 4 * x)
    lib.ane_bridge_free(a)
    lib.ane_bridge_free(b)


def test_blob_bytes(lib):
    data = blob(lib, "", np.float32([[1.0, -2.0]]))
    assert len(data) == 132
    assert data[:8] == b"\1\0\0\0\2\0\0\0"
    assert data[64:69] == b"\xef\xbe\xad\xde\1"
    assert data[72:76] == b"\4\0\0\0" and data[80:84] == b"\x80\0\0\0"
    assert data[128:] == b"\x00\x3c\x00\xc0"
    assert sum(data) == sum(data[:1] + data[4:5] + data[64:69] + data[72:76] + data[80:84]
                            + data[128:])


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 65), (130, 7)])
def test_transposed_blob(lib, shape):
    a = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    data = blob(lib, "_transposed", a)
    got = np.frombuffer(data[128:], np.float16).reshape(shape[::-1])
    np.testing.assert_array_equal(got, a.T.astype(np.float16))


def test_int8_blobs(lib):
    q = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
    data = blob(lib, "_int8", q)
    assert data[:4] == b"\xef\xbe\xad\xde" and data[4] == 1 and data[10] == 8
    assert sum(data[:64]) == sum(data[:5]) + 8
    assert data[64:] == q.tobytes()
    scale = c_float()
    w = np.float32([[0.5, -1.27, 0.005], [0.015, 1.0, 0.0]])
    data = blob(lib, "_quantized", w, byref(scale))
    assert scale.value == np.float32(1.27) / np.float32(127)
    r = w / np.float32(scale.value)
    away = np.where(r < 0, np.ceil(r - 0.5), np.floor(r + 0.5))
    np.testing.assert_array_equal(np.frombuffer(data[64:], np.int8).reshape(2, 3),
                                  np.clip(away, -128, 127))
    blob(lib, "_quantized", np.zeros((1, 2), np.float32), byref(scale))
    assert scale.value == 1.0


def test_bad_calls_are_refused_and_named(lib):
    weight = np.ones((128, 64), np.float32)
    k = compile_conv(lib, weight)
    x = np.zeros((64, 17), np.float32)
    for call, text in [
        (lambda: lib.ane_bridge_write_input(k, 1, x.ctypes.data, 4), "index 1 is out of range"),
        (lambda: lib.ane_bridge_write_input(k, -1, x.ctypes.data, 4), "index -1"),
        (lambda: lib.ane_bridge_write_input(k, 0, x.ctypes.data, x.nbytes), "4352 bytes, the"),
        (lambda: lib.ane_bridge_write_input(k, 0, None, 8), "NULL data"),
        (lambda: lib.ane_bridge_write_input(None, 0, x.ctypes.data, 4), "NULL kernel"),
        (lambda: lib.ane_bridge_read_output(k, 7, x.ctypes.data, 4), "index 7"),
        (lambda: lib.ane_bridge_write_weight(k, 0, x.ctypes.data, 4), "constant weights"),
        (lambda: lib.ane_bridge_copy_io(k, 0, k, 3), "index 3"),
        (lambda: lib.ane_bridge_eval(None), "NULL kernel"),
    ]:
        call()
        assert text in error(lib), error(lib)
    lib.ane_bridge_free(k)
    text = CONV.encode()
    for args, message in [
        ((text, len(text), None, 0, 1, sizes(4096), 1, sizes(8192)), "was not given"),
        ((None, 0, None, 0, 1, sizes(4096), 1, sizes(8192)), "no program text"),
        ((text, 50, None, 0, 1, sizes(4096), 1, sizes(8192)), "model.mil:"),
        ((DYN.encode(), len(DYN), None, 0, 2, sizes(60, 29), 1, sizes(36)), "needs 30 bytes"),
        ((DYN.encode(), len(DYN), None, 0, 1, sizes(60), 1, sizes(36)), "has 2 inputs"),
        ((DYN.encode(), len(DYN), None, 0, 0, sizes(60), 1, sizes(36)), "at least one input"),
        ((DYN.encode(), len(DYN), None, 0, 2, sizes(60, 0), 1, sizes(36)), "needs 30 bytes"),
        ((DYN.encode(), len(DYN), None, 0, 2, None, 1, sizes(36)), "at least one input"),
        ((DYN.encode(), len(DYN), None, 0, 2, sizes(60, 30), -1, sizes(36)), "at least one input"),
    ]:
        before = lib.ane_bridge_get_compile_count()
        assert not lib.ane_bridge_compile(*args)
        assert message in error(lib), error(lib)
        assert lib.ane_bridge_get_compile_count() == before
    n = c_size_t()
    assert not lib.ane_bridge_build_weight_blob(weight.ctypes.data, 0, 4, byref(n))
    assert not lib.ane_bridge_build_weight_blob(weight.ctypes.data, 2**31 - 1, 4, byref(n))
    assert "4294967295" in error(lib)


def test_named_weights_stay_below_the_model(lib):
    text, data = CONV.encode(), blob(lib, "", np.ones((128, 64), np.float32))
    buffer = ctypes.create_string_buffer(data, len(data))

    def compile_with(name):
        return lib.ane_bridge_compile_multi_weights(
            text, len(text), (c_char_p * 1)(name),
            (c_void_p * 1)(ctypes.addressof(buffer)), sizes(len(data)), 1, 1, sizes(4096), 1,
            sizes(8192))

    k = compile_with(b"@model_path/weights/weight.bin")
    assert k, error(lib)
    lib.ane_bridge_free(k)
    k = compile_with(b"weights/weight.bin")         # a path in the folder, as it stands
    assert k, error(lib)
    lib.ane_bridge_free(k)
    for bad in (b"/etc/x", b"@model_path/../x", b"a/../../x", b"..", b"@model_path//x",
                b"@model_path/", b"", None):
        assert not compile_with(bad)
        assert "not a path below" in error(lib)
    assert not compile_with(b"@model_path/weights/other.bin")
    assert "was not given" in error(lib)
    assert not lib.ane_bridge_compile_multi_weights(
        text, len(text), (c_char_p * 2)(b"@model_path/w.bin", b"w.bin"),
        (c_void_p * 2)(*[ctypes.addressof(buffer)] * 2), sizes(len(data), len(data)), 2, 1,
        sizes(4096), 1, sizes(8192))
    assert "both named" in error(lib)


def test_c_client_compiles_and_runs(tmp_path):
    if not shutil.which("gcc"):
        pytest.skip("no C compiler")
    source = tmp_path / "client.c"
    source.write_text(r"""
#include "ane_bridge.h"
#include <stdio.h>
#include <string.h>
int main(void) {
    const char *mil = "program(1.3)\n{ func main<ios18>(tensor<fp32, [4]> x) {\n"
                      "tensor<fp32, [4]> y = add(x = x, y = x)[name = string(\"y\")]; } -> (y); }";
    size_t size = 16;
    float x[4] = {1, 2, 3, 4}, y[4];
    if (ane_bridge_init()) return 1;
    ANEKernelHandle *k = ane_bridge_compile(mil, strlen(mil), NULL, 0, 1, &size, 1, &size);
    if (!k) { puts(ane_bridge_last_error()); return 2; }
    ane_bridge_write_input(k, 0, x, sizeof x);
    if (!ane_bridge_eval(k)) { puts(ane_bridge_last_error()); return 3; }
    ane_bridge_read_output(k, 0, y, sizeof y);
    ane_bridge_free(k);
    printf("%g %g %g %g\n", y[0], y[1], y[2], y[3]);
    return 0;
}
""")
    program = tmp_path / "client"
    subprocess.run(["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{HEADERS}", source, "-o",
                    program, str(LIBRARY), f"-Wl,-rpath,{LIBRARY.parent}"], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.stdout == "2 4 6 8\n", done


def test_a_failed_eval_leaves_nothing_that_looks_new(lib):
    text = b"""program(1.3)
{
    func main<ios17>(tensor<fp32, [4]> x, tensor<int32, [2]> i) {
        int32 axis = const()[name = string("axis"), val = int32(0)];
        int32 batch = const()[name = string("batch"), val = int32(0)];
        bool check = const()[name = string("check"), val = bool(true)];
        tensor<fp32, [2]> y = gather(x = x, indices = i, axis = axis, batch_dims = batch, validate_indices = check)[name = string("y")];
    } -> (y);
}
"""
    k = lib.ane_bridge_compile(text, len(text), None, 0, 2, sizes(16, 8), 1, sizes(8))
    assert k, error(lib)
    x, y = np.float32([10, 11, 12, 13]), np.empty(2, np.float32)
    lib.ane_bridge_write_input(k, 0, x.ctypes.data, 16)
    for indices, expected in (([1, 3], [11, 13]), ([1, 9], [np.nan, np.nan]), ([0, 2], [10, 12])):
        i = np.int32(indices)
        lib.ane_bridge_write_input(k, 1, i.ctypes.data, 8)
        assert lib.ane_bridge_eval(k) != np.isnan(expected[0])
        lib.ane_bridge_read_output(k, 0, y.ctypes.data, 8)
        np.testing.assert_array_equal(y, expected)
        if np.isnan(expected[0]):
            assert "the last eval failed" in error(lib)
    lib.ane_bridge_free(k)


# ---------------------------------------------------------------- on the engine's stand-in

BRIDGE = """
from ctypes import c_bool, c_char_p, c_int, c_size_t, c_void_p
import anetorch

b = ctypes.CDLL(anetorch.get_library())
b.ane_bridge_compile.restype = c_void_p
b.ane_bridge_compile.argtypes = [c_char_p, c_size_t, c_void_p, c_size_t, c_int, c_void_p, c_int, c_void_p]
b.ane_bridge_eval.restype, b.ane_bridge_eval.argtypes = c_bool, [c_void_p]
b.ane_bridge_free.argtypes = [c_void_p]
for name in ("write_input", "read_output"):
    getattr(b, "ane_bridge_" + name).argtypes = [c_void_p, c_int, c_void_p, c_size_t]
b.ane_bridge_last_error.restype = c_char_p
def error(): return b.ane_bridge_last_error().decode()
def text(shape, factor=2.0):
    return affine(shape, factor).text().encode()
def bridge_compile(shape, factor=2.0, size=None):
    size = (c_size_t * 2)(*[size or 2 * int(np.prod(shape))] * 2)
    t = text(shape, factor)
    return b.ane_bridge_compile(t, len(t), None, 0, 2, size, 1, size)
assert b.ane_bridge_init() == 0
"""


def test_counts_real_compiles_only(run):
    """A second handle of a program that is loaded costs the engine no compile."""
    run(BRIDGE + textwrap.dedent("""
        count = b.ane_bridge_get_compile_count
        first = bridge_compile((1, 8, 2, 5))
        assert first, error()
        assert count() == 1
        second = bridge_compile((1, 8, 2, 5))
        assert second and count() == 1 and get("compiles") == 1
        assert not bridge_compile((1, 8, 2, 5), size=4)
        assert "needs 160 bytes, got 4" in error() and count() == 1 and get("compiles") == 1
        other = bridge_compile((1, 8, 2, 5), 3.0)
        assert other and count() == 2
        b.ane_bridge_reset_compile_count()
        assert count() == 0
        for k in (first, second, other): b.ane_bridge_free(k)
        b.ane_bridge_begin_realtime()
        assert "not granted by the system" in error()
        b.ane_bridge_end_realtime()
        assert left() == NOTHING, left()
    """))


def test_packed_data_and_failures_on_the_engine(run):
    """Rows that the engine pads: clients hand over packed data of the declared shape. Index 0 is
    the text's first parameter, though the engine binds by name."""
    run(BRIDGE + textwrap.dedent("""
        shape = (1, 8, 2, 5)
        k = bridge_compile(shape, size=4096)
        z, a, y = data(*shape), data(*shape), np.empty(shape, np.float16)
        b.ane_bridge_write_input(k, 0, z.ctypes.data, z.nbytes)
        b.ane_bridge_write_input(k, 1, a.ctypes.data, a.nbytes)
        def read():
            b.ane_bridge_read_output(k, 0, y.ctypes.data, y.nbytes)
            return y
        assert b.ane_bridge_eval(k), error()
        same(read(), cpu(affine(shape))(z, a))
        knobs(fail_evaluate=1)
        assert not b.ane_bridge_eval(k) and "[eval]" in error() and len(error()) > 20
        assert np.isnan(read()).all() and "the last eval failed" in error()
        knobs(fail_evaluate=0)
        assert b.ane_bridge_eval(k), error()
        same(read(), cpu(affine(shape))(z, a))
        b.ane_bridge_free(k)
        assert left() == NOTHING, left()
    """))
