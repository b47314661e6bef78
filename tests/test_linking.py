"""The C library without Python: found, linked and loaded from other languages."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import anetorch
from anetorch.config import install_bridge

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs" / "examples"
LIBRARY = Path(anetorch.get_library())
STRICT = ["-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror"]
ENV = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}

pytestmark = pytest.mark.skipif("LD_PRELOAD" in os.environ,
                                reason="a program that was not built for the sanitizer")


def tool(name: str) -> str:
    found = shutil.which(name)
    if not found:
        pytest.skip(f"no {name} here")
    return found


def config(*args: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from anetorch.config import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True,
                          env=ENV | {"PYTHONPATH": str(Path(anetorch.__file__).parents[1])})


def output(*command: str | Path, **kwargs: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=ENV,
                          **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---------------------------------------------------------------- finding it

def test_config_says_where_things_are() -> None:
    assert config("--version").stdout.strip() == anetorch.__version__
    assert config("--prefix").stdout.strip() == str(LIBRARY.parent)
    assert config("--library").stdout.strip() == str(LIBRARY)
    assert config("--includedir").stdout.strip() == anetorch.get_include()
    assert shlex.split(config("--libs", "--cflags").stdout) == [
        f"-I{anetorch.get_include()}", str(LIBRARY), f"-Wl,-rpath,{LIBRARY.parent}"]
    for header in ("ane.h", "ane_bridge.h"):
        assert (Path(anetorch.get_include()) / header).is_file()


@pytest.mark.parametrize("args", [[], ["--lib"], ["--libs", "more"]])
def test_config_refuses_what_it_does_not_know(args: list[str]) -> None:
    done = config(*args)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.splitlines()[-1].startswith("anetorch-config: error: ")


# ---------------------------------------------------------------- programs

def test_the_example_by_anetorch_config(tmp_path: Path) -> None:
    program = tmp_path / "run_mil"
    flags = shlex.split(config("--cflags", "--libs").stdout)
    output(tool("cc"), *STRICT, EXAMPLES / "run_mil.c", *flags, "-o", program)
    assert output(program) == f"{anetorch.__version__} on cpu: y = 4 0 10 0\n"
    done = subprocess.run([program, "tpu"], capture_output=True, text=True, env=ENV)
    assert done.returncode == 1 and "tpu" in done.stderr


def test_the_example_by_pkg_config_wherever_it_lies(tmp_path: Path) -> None:
    pkg_config = tool("pkg-config")
    package = tmp_path / "a b" / "anetorch"         # moved, and with a space in its path
    for part in ("include", "pkgconfig"):
        shutil.copytree(LIBRARY.parent / part, package / part)
    shutil.copy(LIBRARY, package)
    env = ENV | {"PKG_CONFIG_PATH": str(package / "pkgconfig")}
    flags = shlex.split(subprocess.run([pkg_config, "--cflags", "--libs", "anetorch"], env=env,
                                       check=True, capture_output=True, text=True).stdout)
    version = subprocess.run([pkg_config, "--modversion", "anetorch"], env=env, check=True,
                             capture_output=True, text=True).stdout
    assert version.strip() == anetorch.__version__
    output(tool("cc"), *STRICT, EXAMPLES / "run_mil.c", *flags, "-o", tmp_path / "run_mil")
    assert "y = 4 0 10 0" in output(tmp_path / "run_mil")
    if shutil.which("ldd"):
        assert re.search(r"libanetorch\S* => \S*.*a b/", output("ldd", tmp_path / "run_mil"))


def test_the_example_in_rust(tmp_path: Path) -> None:
    rustc = tool("rustc")
    if subprocess.run([rustc, "--version"], capture_output=True).returncode:
        pytest.skip("rustc does not run here")
    output(rustc, EXAMPLES / "bridge.rs", "-o", tmp_path / "bridge", "-C", f"link-arg={LIBRARY}",
           "-C", f"link-arg=-Wl,-rpath,{LIBRARY.parent}", cwd=tmp_path)
    assert output(tmp_path / "bridge") == "[1.0, 4.0, 9.0, 16.0]\n"


# ---------------------------------------------------------------- what the library shows and needs

def exported(library: Path) -> set[str]:
    table = output(tool("nm"), "-D", "--defined-only", library)
    return {line.split()[-1].partition("@")[0] for line in table.splitlines()}


def declared(header: str, text: str | None = None) -> set[str]:
    """Functions of an installed header, or of the text of one."""
    if text is None:
        text = (Path(anetorch.get_include()) / header).read_text()
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S)
    return set(re.findall(r"\b(ane_\w+)\s*\(", " ".join(
        re.findall(r"\bANE(?:_BRIDGE)?_API\b[^;{]*;", text))))


@pytest.mark.skipif(sys.platform != "linux", reason="ELF's tables")
def test_exactly_what_the_headers_declare_is_exported() -> None:
    names = exported(LIBRARY)
    assert declared("ane.h") and declared("ane_bridge.h")
    # The one door for tests is in no installed header.
    assert names == declared("ane.h") | declared("ane_bridge.h") | {"ane__testing"}


@pytest.mark.skipif(sys.platform != "linux", reason="ELF's tables")
def test_the_library_has_a_version_and_needs_no_python() -> None:
    dynamic = output(tool("readelf"), "-d", LIBRARY)
    assert re.search(r"SONAME.*\[(.*)\]", dynamic)[1] == LIBRARY.name == "libanetorch.so.0"
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    assert needed and all(re.match(r"(libc|libm|libdl|libpthread|ld-linux[-\w]*)\.so\.", n)
                          for n in needed), needed
    undefined = output(tool("nm"), "-D", "--undefined-only", LIBRARY)
    assert not re.search(r"\bPy\w+|\b_Py\w+", undefined)
    assert "RPATH" not in dynamic and "TEXTREL" not in dynamic


# ---------------------------------------------------------------- the flat bridge's link

def test_the_link_that_clients_look_for(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "bridge"
    done = config("--install-bridge", str(folder))
    assert done.stdout.strip() == str(folder / "libane_bridge.dylib"), done.stderr
    assert os.path.samefile(folder / "libane_bridge.dylib", LIBRARY)
    (folder / "libane_bridge.dylib").unlink()
    (folder / "libane_bridge.dylib").symlink_to("nowhere")      # of an environment that has gone
    assert os.path.samefile(install_bridge(folder), LIBRARY)
    assert [p.name for p in folder.iterdir()] == ["libane_bridge.dylib"]
    (folder / "libane_bridge.dylib").unlink()
    (folder / "libane_bridge.dylib").write_text("somebody's own")
    done = config("--install-bridge", str(folder))
    assert done.returncode == 2 and "move it away" in done.stderr
    assert (folder / "libane_bridge.dylib").read_text() == "somebody's own"


# The client as it is found in the field: the library by path, nine signatures at load time, a
# lazy init, and free also from __del__ - here of a kernel that lives until the interpreter ends.
CLIENT = """
    import ctypes, os, sys
    from ctypes import POINTER, c_bool, c_char_p, c_int, c_size_t, c_void_p
    {first}
    import numpy as np

    class Kernel:
        lib = None

        @classmethod
        def load(cls, path):
            lib = ctypes.CDLL(path)
            sizes = POINTER(c_size_t)
            for name, result, args in [
                ("init", c_int, []), ("get_compile_count", c_int, []),
                ("reset_compile_count", None, []),
                ("compile", c_void_p, [c_char_p, c_size_t, c_void_p, c_size_t, c_int, sizes, c_int,
                                       sizes]),
                ("compile_multi_weights", c_void_p,
                 [c_char_p, c_size_t, POINTER(c_char_p), POINTER(c_void_p), sizes, c_int, c_int,
                  sizes, c_int, sizes]),
                ("eval", c_bool, [c_void_p]), ("free", None, [c_void_p]),
                ("write_input", None, [c_void_p, c_int, c_void_p, c_size_t]),
                ("read_output", None, [c_void_p, c_int, c_void_p, c_size_t]),
            ]:
                function = getattr(lib, "ane_bridge_" + name)
                function.restype, function.argtypes = result, args
            if lib.ane_bridge_init() != 0:
                raise RuntimeError("ane_bridge_init failed")
            cls.lib = lib

        def __init__(self, text, in_bytes, out_bytes, weights=None):
            self.handle, n = None, len(text)
            ins, outs = (c_size_t * 1)(in_bytes), (c_size_t * 1)(out_bytes)
            data = weights.ctypes.data_as(c_void_p) if weights is not None else None
            self.handle = self.lib.ane_bridge_compile(
                text, n, data, weights.nbytes if weights is not None else 0, 1, ins, 1, outs)
            if not self.handle:
                raise RuntimeError("ANE compile failed")

        def __call__(self, x, shape):
            x, y = np.ascontiguousarray(x, np.float32), np.empty(shape, np.float32)
            self.lib.ane_bridge_write_input(self.handle, 0, x.ctypes.data_as(c_void_p), x.nbytes)
            if not self.lib.ane_bridge_eval(self.handle):
                raise RuntimeError("ANE eval failed")
            self.lib.ane_bridge_read_output(self.handle, 0, y.ctypes.data_as(c_void_p), y.nbytes)
            return y

        def free(self):
            if self.handle:
                self.lib.ane_bridge_free(self.handle)
                self.handle = None

        def __enter__(self): return self
        def __exit__(self, *a): self.free()
        def __del__(self): self.free()

    HEAD = 'program(1.3)\\n[buildInfo = dict<string, string>({{{{"coremlc-component-MIL", "3510.2.1"}}}})]\\n'
    to16 = 'string to16 = const()[name = string("to16"), val = string("fp16")];'
    to32 = 'string to32 = const()[name = string("to32"), val = string("fp32")];'

    def conv(cin, cout, s):
        return (HEAD + f'''{{{{
        func main<ios18>(tensor<fp32, [1, {{cin}}, 1, {{s}}]> x) {{{{
            {{to16}} {{to32}}
            tensor<fp16, [1, {{cin}}, 1, {{s}}]> h = cast(dtype = to16, x = x)[name = string("h")];
            string pt = const()[name = string("pt"), val = string("valid")];
            tensor<int32, [2]> st = const()[name = string("st"), val = tensor<int32, [2]>([1, 1])];
            tensor<int32, [4]> pd = const()[name = string("pd"), val = tensor<int32, [4]>([0, 0, 0, 0])];
            tensor<int32, [2]> dl = const()[name = string("dl"), val = tensor<int32, [2]>([1, 1])];
            int32 gr = const()[name = string("gr"), val = int32(1)];
            tensor<fp16, [{{cout}}, {{cin}}, 1, 1]> W = const()[name = string("W"), val = tensor<fp16, [{{cout}}, {{cin}}, 1, 1]>(BLOBFILE(path = string("@model_path/weights/weight.bin"), offset = uint64(64)))];
            tensor<fp16, [1, {{cout}}, 1, {{s}}]> c = conv(dilations = dl, groups = gr, pad = pd, pad_type = pt, strides = st, weight = W, x = h)[name = string("conv")];
            tensor<fp32, [1, {{cout}}, 1, {{s}}]> y = cast(dtype = to32, x = c)[name = string("cast_out")];
        }}}} -> (y);
    }}}}''').encode()

    def dynamic(cin, cout, s):
        return (HEAD + f'''{{{{
        func main<ios18>(tensor<fp32, [1, {{cin}}, 1, {{s + cout}}]> x) {{{{
            {{to16}} {{to32}}
            tensor<fp16, [1, {{cin}}, 1, {{s + cout}}]> h = cast(dtype = to16, x = x)[name = string("h")];
            tensor<int32, [4]> b0 = const()[name = string("b0"), val = tensor<int32, [4]>([0, 0, 0, 0])];
            tensor<int32, [4]> n0 = const()[name = string("n0"), val = tensor<int32, [4]>([1, {{cin}}, 1, {{s}}])];
            tensor<fp16, [1, {{cin}}, 1, {{s}}]> a = slice_by_size(x = h, begin = b0, size = n0)[name = string("a")];
            tensor<int32, [4]> b1 = const()[name = string("b1"), val = tensor<int32, [4]>([0, 0, 0, {{s}}])];
            tensor<int32, [4]> n1 = const()[name = string("n1"), val = tensor<int32, [4]>([1, {{cin}}, 1, {{cout}}])];
            tensor<fp16, [1, {{cin}}, 1, {{cout}}]> w = slice_by_size(x = h, begin = b1, size = n1)[name = string("w")];
            tensor<int32, [4]> ra = const()[name = string("ra"), val = tensor<int32, [4]>([1, 1, {{cin}}, {{s}}])];
            tensor<fp16, [1, 1, {{cin}}, {{s}}]> a2 = reshape(shape = ra, x = a)[name = string("a2")];
            tensor<int32, [4]> rw = const()[name = string("rw"), val = tensor<int32, [4]>([1, 1, {{cin}}, {{cout}}])];
            tensor<fp16, [1, 1, {{cin}}, {{cout}}]> w2 = reshape(shape = rw, x = w)[name = string("w2")];
            bool yes = const()[name = string("yes"), val = bool(true)];
            bool no = const()[name = string("no"), val = bool(false)];
            tensor<fp16, [1, 1, {{cout}}, {{s}}]> m = matmul(transpose_x = yes, transpose_y = no, x = w2, y = a2)[name = string("m")];
            tensor<int32, [4]> ro = const()[name = string("ro"), val = tensor<int32, [4]>([1, {{cout}}, 1, {{s}}])];
            tensor<fp16, [1, {{cout}}, 1, {{s}}]> o = reshape(shape = ro, x = m)[name = string("o")];
            tensor<fp32, [1, {{cout}}, 1, {{s}}]> y = cast(dtype = to32, x = o)[name = string("y")];
        }}}} -> (y);
    }}}}''').encode()

    def half(a): return a.astype(np.float16).astype(np.float64)
    def check(y, w, x):
        # w [out, in], x [in, S], rounded to fp16; sums of `in` products in fp32, fp16 results.
        exact, scale = half(w) @ half(x), np.abs(half(w)) @ np.abs(half(x))
        bound = (len(x) + 1) * 2.0**-24 * scale + 2.0**-11 * np.abs(exact) + 2.0**-25
        assert (np.abs(y - exact) <= bound).all(), np.abs(y - exact).max()

    Kernel.load(sys.argv[1])
    lib, rng = Kernel.lib, np.random.default_rng(5)
    lib.ane_bridge_reset_compile_count()

    cin, cout, s = 64, 128, 16
    w, x = rng.standard_normal((cout, cin)).astype(np.float32), rng.standard_normal((cin, s))
    blob = np.zeros(128 + 2 * w.size, np.uint8)
    blob[[0, 4, 64, 65, 66, 67, 68]] = [1, 2, 0xEF, 0xBE, 0xAD, 0xDE, 1]
    blob[72:76].view(np.uint32)[:] = 2 * w.size
    blob[80:84].view(np.uint32)[:] = 128
    blob[128:].view(np.float16)[:] = w.astype(np.float16).ravel()
    with Kernel(conv(cin, cout, s), cin * s * 4, cout * s * 4, blob) as k:
        check(k(x, (cout, s)), w, x.astype(np.float32))

    kept = []
    for cin, cout, s in [(64, 192, 32), (64, 64, 32), (96, 64, 32)]:
        k = Kernel(dynamic(cin, cout, s), cin * (s + cout) * 4, cout * s * 4)
        for _ in range(2):                      # the weights change, the program does not
            w, x = rng.standard_normal((cout, cin)), rng.standard_normal((cin, s))
            packed = np.concatenate([x, w.T], axis=1)
            check(k(packed, (cout, s)), w.astype(np.float32), x.astype(np.float32))
        kept.append(k)
    assert lib.ane_bridge_get_compile_count() == 4, lib.ane_bridge_get_compile_count()
    kept[0].free()
    kept[0].free()
    sys.kept = kept                             # freed by __del__ when the interpreter ends
    {last}
    print("done")
"""


@pytest.mark.parametrize("first, last", [
    ("", ""),                                               # no anetorch in this process
    ("import anetorch", "anetorch.compile('''program(1.3)\n{ func main<ios18>(tensor<fp32, [4]> x)"
                        " { tensor<fp32, [4]> y = relu(x = x); } -> (y); }''')"),
    ("import atexit", "atexit.register(kept[1].free)"),
], ids=["alone", "with anetorch", "freed at exit"])
def test_an_existing_client_runs_unmodified(first: str, last: str, tmp_path: Path) -> None:
    link = install_bridge(tmp_path)
    code = textwrap.dedent(CLIENT).format(first=first, last=last)
    done = subprocess.run([sys.executable, "-X", "dev", "-c", code, str(link)], cwd=tmp_path,
                          capture_output=True, text=True,
                          env=ENV | {"PYTHONPATH": str(Path(anetorch.__file__).parents[1])})
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert not re.search(r"(?i)error|exception|traceback", done.stderr), done.stderr


# ---------------------------------------------------------------- the flat bridge's header

# The declarations that clients carry, letter by letter.
PROTOTYPES = """
typedef struct ANEKernelHandle ANEKernelHandle;
int  ane_bridge_init(void);
ANEKernelHandle *ane_bridge_compile(const char *mil_text, size_t mil_len, const uint8_t *weight_data, size_t weight_len,
        int n_inputs, const size_t *input_sizes, int n_outputs, const size_t *output_sizes);
ANEKernelHandle *ane_bridge_compile_multi_weights(const char *mil_text, size_t mil_len, const char **weight_names, const uint8_t **weight_datas,
        const size_t *weight_lens, int n_weights, int n_inputs, const size_t *input_sizes, int n_outputs, const size_t *output_sizes);
ANEKernelHandle *ane_bridge_compile_dyn(const char *mil_text, size_t mil_len, int n_inputs, const size_t *input_sizes,
        int n_weights, const size_t *weight_sizes, size_t output_size);
bool ane_bridge_eval(ANEKernelHandle *kernel);
void ane_bridge_write_input(ANEKernelHandle *kernel, int idx, const void *data, size_t bytes);
void ane_bridge_read_output(ANEKernelHandle *kernel, int idx, void *data, size_t bytes);
void ane_bridge_write_weight(ANEKernelHandle *kernel, int idx, const void *fp16_data, size_t bytes);
void ane_bridge_write_weight_f32(ANEKernelHandle *kernel, int idx, const float *fp32_data, size_t count);
void ane_bridge_copy_io(ANEKernelHandle *src, int src_out_idx, ANEKernelHandle *dst, int dst_in_idx);
void ane_bridge_begin_realtime(void);
void ane_bridge_end_realtime(void);
void ane_bridge_free(ANEKernelHandle *kernel);
int  ane_bridge_get_compile_count(void);
void ane_bridge_reset_compile_count(void);
uint8_t *ane_bridge_build_weight_blob(const float *src, int rows, int cols, size_t *out_len);
uint8_t *ane_bridge_build_weight_blob_transposed(const float *src, int rows, int cols, size_t *out_len);
void ane_bridge_free_blob(void *ptr);
uint8_t *ane_bridge_build_weight_blob_int8(const int8_t *src, int rows, int cols, size_t *out_len);
uint8_t *ane_bridge_build_weight_blob_quantized(const float *src, int rows, int cols, float *out_scale, size_t *out_len);
const char *ane_bridge_last_error(void);
"""


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_header_has_exactly_the_known_prototypes(compiler: str, tmp_path: Path) -> None:
    """A second declaration of another type is an error of the compiler."""
    source = tmp_path / "both.c"
    source.write_text(f"#include <ane_bridge.h>\n{PROTOTYPES}")
    flags = [*STRICT, f"-I{anetorch.get_include()}", "-c", str(source), "-o", str(tmp_path / "o")]
    output(tool(compiler), *flags)
    source.write_text(source.read_text().replace("size_t bytes);", "int bytes);", 1))
    assert subprocess.run([tool(compiler), *flags], capture_output=True).returncode
    known = set(re.findall(r"\b(ane_bridge_\w+)\(", PROTOTYPES))
    assert len(known) == 21 and known == declared("ane_bridge.h")


@pytest.mark.parametrize("harness", sorted((ROOT / "tests/fuzz").glob("fuzz_*.c")), ids=lambda p: p.stem)
def test_fuzz_harness_fits_the_library(harness):
    """They look into the library's structs, and are built in CI's last stage only."""
    done = subprocess.run([tool("cc"), "-std=c11", "-D_GNU_SOURCE", "-Werror", "-fsyntax-only", str(harness)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
