"""Loading takes what it needs and no more: a weight file of a gigabyte stays on the disk, and a
failing allocation, the first or any other, leaves an error and nothing else."""

from __future__ import annotations

import ctypes
import gc
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_package_errors import FP16, INT32, STRING, arg, entry, model, msg, name, num, op, tensor, value

import anetorch
from anetorch import _core

ROWS, COLUMNS = 1 << 17, 1 << 12           # of fp16: one GiB
TABLE = tensor(FP16, ROWS, COLUMNS)
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc or glibc's counters")


def constant(id: str, type: bytes, *content: bytes) -> bytes:
    return op("const", entry(5, "name", name(id)), entry(5, "val", msg(2, type), *content),
              msg(3, msg(1, id), msg(2, type)))


def gather_package(folder: Path) -> Path:
    """y = table[i]: the table in a sparse file, with a number in two of its rows."""
    data = folder / "big.mlpackage" / "Data"
    (data / "weights").mkdir(parents=True)
    size = ROWS * COLUMNS * 2
    with open(data / "weights" / "weight.bin", "wb") as f:
        f.write(struct.pack("<II56x", 1, 2))
        f.write(struct.pack("<IIQQQ32x", 0xDEADBEEF, 1, size, 128, 0))
        for row in (3, ROWS - 1):
            f.seek(128 + row * COLUMNS * 2)
            f.write(np.full(COLUMNS, row % 1000, np.float16).tobytes())
        f.truncate(128 + size)
    index = tensor(INT32, 1)
    row = tensor(FP16, 1, COLUMNS)
    spec = model(
        constant("table", TABLE, msg(5, msg(1, "@model_path/weights/weight.bin"), num(2, 64))),
        constant("axis", tensor(INT32), msg(3, msg(1, msg(2, msg(1, b"\0"))))),
        op("gather", arg("x", "table"), arg("indices", "i"), arg("axis", "axis"),
           msg(3, msg(1, "y"), msg(2, row))),
        params=msg(1, msg(1, "i"), msg(2, index)), opset="CoreML6", block="CoreML6",
        description=feature(1, "i", 131104, 1) + feature(10, "y", 65552, 1, COLUMNS))
    (data / "model.mlmodel").write_bytes(spec)
    (data.parent / "Manifest.json").write_text(json.dumps({
        "rootModelIdentifier": "m", "itemInfoEntries": {"m": {"path": "model.mlmodel"}}}))
    return data.parent


def feature(field: int, id: str, dtype: int, *shape: int) -> bytes:
    return msg(field, msg(1, id), msg(3, msg(5, *(num(1, n) for n in shape), num(2, dtype))))


def resident() -> int:
    """Bytes of this process in memory, pages of files among them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


@linux
def test_a_gigabyte_of_weights_is_mapped_not_read(tmp_path: Path) -> None:
    path = gather_package(tmp_path)
    anetorch.load(path).predict({"i": [0]})             # what the first model of a process costs
    before = resident()
    loaded = anetorch.load(path)
    assert resident() - before < 4 << 20
    for row in (3, ROWS - 1, 17):
        y = loaded.predict({"i": [row]})["y"]
        np.testing.assert_array_equal(y, np.full((1, COLUMNS), row % 1000 if row != 17 else 0))
    # A row is 8 kB; the kernel may map some megabytes around each.
    assert resident() - before < 32 << 20
    program, _ = anetorch.coreml.read(path)
    assert "BLOBFILE" in program.text() and resident() - before < 32 << 20


# ------------------------------------------------------------------ memory for a text

def function(body: str, params: str = "fp16 x", outputs: str = "") -> str:
    return f"program(1.3) {{ func main<ios18>({params}) {{\n{body}\n}} -> ({outputs}); }}"


def repeated(line: str, n: int = 60_000) -> str:
    return "".join(line.replace("#", str(i)) for i in range(n))


def many(item: str, n: int = 400_000) -> str:
    return ",".join([item] * n)


PAIR = "{\"a\",true}"

# Texts that say as much as they can in a byte: what else would need memory.
GREEDY = {
    "constants": function(repeated("bool c#=const()[val=bool(true)];")),
    "statements": function(repeated("fp16 a#=relu(x=x);")),
    "constants in place": function(repeated("fp16 a#=add(x=x,y=fp16(1));")),
    "a tuple": function(f"tensor<fp16,[400000]> y=concat(values=({many('x')}),axis=int32(0),"
                        "interleave=bool(false));", outputs="y"),
    "attributes": function(repeated("fp16 a#=relu(x=x)[a=bool(true),b=bool(true)];", 30_000)),
    "a dictionary": function("dict<string,bool> d=const()[val=dict<string,bool>"
                             f"({{{many(PAIR)}}})];"),
    "strings": function(f'tensor<string,[?]> d=const()[val=tensor<string,[?]>([{many(chr(34) * 2)}])];'),
    "integers": function(f"tensor<int64,[?]> d=const()[val=tensor<int64,[?]>([{many('1')}])];"),
    "a list": function(f"list<bool,?> d=const()[val=list<bool,?>([{many('true')}])];"),
    "functions": "program(1.3){" + repeated("func f#<ios18>(){}->();", 4096) + "}",
    "warnings": function(repeated('fp16 a#=relu(x=x)[name=string("q")];')),
    "an open string": 'program(1.3) "' + "x" * 1_000_000,
    "brackets": function("int32 c=const()[val=int32(" + "[" * 500_000),
}
PER_BYTE = 64


@linux
@pytest.mark.parametrize("kind", GREEDY)
def test_memory_is_bounded_by_the_text(kind: str) -> None:
    """At most PER_BYTE bytes for each of the text, all that is held on the way included."""
    text = GREEDY[kind].encode()
    for _ in range(2):                                  # the first fills pools
        Path("/proc/self/clear_refs").write_text("5")   # the peak begins anew
        before = resident()
        try:
            program = anetorch.mil.Program.parse(text)
        except anetorch.MILError:
            assert kind in ("a tuple", "an open string", "brackets")
            program = None
        peak = next(int(line.split()[1]) * 1024
                    for line in Path("/proc/self/status").read_text().splitlines()
                    if line.startswith("VmHWM:"))
        del program
    assert peak - before <= PER_BYTE * len(text) + (1 << 20), (peak - before) / len(text)


# ------------------------------------------------------------------ allocation failure

TEXT = """program(1.3)
{
    func main<ios18>(tensor<fp32, [4, 8]> x, state<tensor<fp16, [4]>> s) {
        tensor<fp32, [8, 8]> w = const()[val = tensor<fp32, [8, 8]>([%s])];
        tensor<fp32, [4, 8]> a = matmul(x = x, y = w, transpose_x = bool(false), transpose_y = bool(true));
        tensor<fp32, [4, 8]> b = softmax(x = a, axis = int32(-1))[name = string("b")];
        tensor<fp32, [4, 8]> y = gelu(x = b, mode = string("EXACT"));
    } -> (y);
}
""" % ", ".join(str(i) for i in range(64))


def every_failure(call: Callable[[], object], sticky: bool) -> int:
    """How many allocations failed, one at a time, before the call succeeded."""
    n = 0
    while True:
        n += 1
        _core._testing.fail_after(n, sticky)
        try:
            call()
            return n - 1
        except MemoryError:
            pass
        except RuntimeError as e:                       # a run that could not start
            assert "memory" in str(e), e
        finally:
            _core._testing.fail_after(0)
        assert n < 20_000


def in_use() -> int | None:
    """Bytes that malloc has given away; None where glibc does not say."""
    class Info(ctypes.Structure):
        _fields_ = [(f, ctypes.c_size_t) for f in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost")]

    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return None
    mallinfo2.restype = Info
    gc.collect()
    info = mallinfo2()
    return info.uordblks + info.hblkhd


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("what", ["text", "package", "written", "load and predict", "lint"])
def test_every_allocation_may_fail_and_nothing_leaks(what: str, sticky: bool, tmp_path: Path) -> None:
    program = anetorch.mil.Program.parse(TEXT)
    program.save(str(tmp_path / "m.mlpackage"))
    spec = next(tmp_path.glob("m.mlpackage/Data/*/model.mlmodel"))
    data, weights = spec.read_bytes(), str(spec.parent)
    (tmp_path / "m.mil").write_text(TEXT)
    x = np.ones((4, 8), np.float32)
    exact = anetorch.load(tmp_path / "m.mil")
    expected = exact.predict({"x": x}, exact.make_state())["y"]

    def predict() -> None:
        loaded = anetorch.load(tmp_path / "m.mlpackage")
        np.testing.assert_array_equal(loaded.predict({"x": x}, loaded.make_state())["y"], expected)

    call: Callable[[], object] = {
        "text": lambda: anetorch.mil.Program.parse(TEXT),
        "package": lambda: _core.coreml_read(data, weights=weights),
        "written": lambda: program.save(str(tmp_path / "again.mlpackage")),
        "load and predict": predict,
        "lint": lambda: _core.lint(program),
    }[what]
    failures = every_failure(call, sticky)
    assert failures >= {"text": 10, "written": 3, "lint": 4}.get(what, 15)
    every_failure(call, sticky)                         # caches and pools are full now
    before = in_use()
    if before is None:
        return
    for _ in range(3):
        every_failure(call, sticky)
    grown = in_use() - before
    # The smallest arena is 4 kB: one lost per failure would be a thousand times this.
    assert grown < 4096 + 4 * 3 * failures, f"{grown} bytes more after {3 * failures} failures"
