"""Weight files that lie, files that change while they are mapped, and failing allocations."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys

import numpy as np
import pytest

import anetorch
from anetorch import _core, weights
from anetorch._core import _testing
from anetorch.weights import WeightBuffer, WeightFile, WeightWriter, save_file
from test_weights import gguf, q8, shards, write_manifest


def safetensors(head, data=b"", length=None):
    if not isinstance(head, bytes):
        head = json.dumps(head).encode()
    return struct.pack("<Q", len(head) if length is None else length) + head + data


def entry(dtype="F32", shape=(2,), at=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(at), **more}


def pairs(*items):
    """JSON with repeated keys."""
    return ("{" + ",".join(f"{json.dumps(k)}:{json.dumps(v)}" for k, v in items) + "}").encode()


E8 = b'"dtype":"F32","shape":[2],"data_offsets":[0,8]'
BIG = 2**63

SAFETENSORS = [
    (b"", "0 bytes, too short"), (b"1234567", "7 bytes, too short"),
    (bytes(8), "does not start with '{'"), (safetensors(b"[]"), "does not start with '{'"),
    (safetensors(b"{}", length=100_000_001) + bytes(9), "header of 100000001 bytes; at most"),
    (safetensors(b"{}", length=2**64 - 1), "header of 18446744073709551615 bytes"),
    (safetensors(b"{}", length=3), "needs 11 bytes, the file has 10"),
    (safetensors(b"{"), "the text ends"), (safetensors(b"{} x"), "expected the end"),
    (safetensors(b"\x7b\xff\x7d"), "expected a string"),
    (safetensors({"a": 3}), "expected an object"),
    (safetensors({"a": {}}), "tensor 'a' has no 'dtype'"),
    (safetensors({"a": {"dtype": "F32"}}), "tensor 'a' has no 'shape'"),
    (safetensors({"a": {"dtype": "F32", "shape": []}}), "tensor 'a' has no 'data_offsets'"),
    (safetensors({"a": entry(extra=1)}, bytes(8)), "tensor 'a' has the unknown field 'extra'"),
    (safetensors({"a": entry("Q7")}, bytes(8)), "tensor 'a' has the unknown dtype 'Q7'"),
    (safetensors({"a": entry(shape=(3,))}, bytes(8)), "tensor 'a' needs 12 bytes .* give 8"),
    (safetensors({"a": entry(at=(0, 9))}, bytes(9)), "tensor 'a' needs 8 bytes .* give 9"),
    (safetensors({"a": entry(at=(8, 0))}, bytes(8)), r"tensor 'a' is at \[8, 0\) of 8 bytes"),
    (safetensors({"a": entry(at=(0, 8))}, bytes(7)), r"tensor 'a' is at \[0, 8\) of 7 bytes"),
    (safetensors({"a": entry(at=(BIG, BIG + 8))}, bytes(8)), rf"is at \[{BIG}, {BIG + 8}\)"),
    (safetensors({"a": entry(at=(0, BIG))}, bytes(8)), rf"is at \[0, {BIG}\)"),
    (safetensors({"a": entry(at=(2**64, 1))}, bytes(8)), r"integer above 2\^64-1"),
    (safetensors({"a": entry(at=(-1, 7))}, bytes(8)), "an integer of at least 0"),
    (safetensors({"a": entry(at=(0.0, 8))}, bytes(8)), "no fraction"),
    (safetensors({"a": entry(at=(0,))}, bytes(8)), "needs two numbers"),
    (safetensors({"a": entry(at=(0, 8, 9))}, bytes(8)), "more than two numbers"),
    (safetensors({"a": entry(shape=(2**32, 2**32))}, bytes(8)), "shape of tensor 'a' overflows"),
    (safetensors({"a": entry(shape=(BIG,))}, bytes(8)), "shape of tensor 'a' overflows"),
    (safetensors({"a": entry(shape=(0, BIG), at=(0, 0))}), "shape of tensor 'a' overflows"),
    (safetensors({"a": entry(shape=(2**61,))}, bytes(8)), "overflows"),
    (safetensors({"a": entry(shape=(1,) * 9)}, bytes(8)), "more than 8 dimensions"),
    (safetensors({"a": entry(), "b": entry(at=(4, 12))}, bytes(12)),
     "tensors 'a' and 'b' overlap at byte 4"),
    (safetensors({"a": entry(), "b": entry()}, bytes(8)), "overlap at byte 0"),
    (safetensors({"a": entry(), "b": entry(at=(12, 20))}, bytes(20)),
     "a hole of 4 bytes at byte 8 .* before tensor 'b'"),
    (safetensors({"a": entry(at=(4, 12))}, bytes(12)), "a hole of 4 bytes at byte 0"),
    (safetensors({"a": entry()}, bytes(9)), "the tensors end at byte 8 .* the file has 9"),
    (safetensors({}, bytes(1)), "the tensors end at byte 0 .* the file has 1"),
    (safetensors(pairs(("a", entry()), ("a", entry(shape=(0,), at=(8, 8)))), bytes(8)),
     "the tensor name 'a' is there twice"),
    (safetensors(b'{"a":{"dtype":"F32",' + E8 + b"}}", bytes(8)), "tensor 'a' has 'dtype' twice"),
    (safetensors(b'{"a":{' + E8 + b',"shape":[2]}}', bytes(8)), "has 'shape' twice"),
    (safetensors(b'{"a":{' + E8 + b',"data_offsets":[0,8]}}', bytes(8)), "'data_offsets' twice"),
    (safetensors(pairs(("__metadata__", {}), ("__metadata__", {}))), "__metadata__ is there twice"),
    (safetensors({"__metadata__": {"a": 1}}), "expected a string"),
    (safetensors({"__metadata__": {"a": "\0"}}), "NUL in the metadata"),
    (safetensors({"__metadata__": []}), "expected an object"),
    (safetensors(b'{"\xff":{' + E8 + b"}}", bytes(8)), "not UTF-8"),
    (safetensors(b'{"\xed\xa0\x80":{' + E8 + b"}}", bytes(8)), "not UTF-8"),
    (safetensors(b'{"\\ud800":{' + E8 + b"}}", bytes(8)), "malformed escape"),
    (safetensors({"a\0": entry()}, bytes(8)), "a tensor name contains NUL"),
    (safetensors(b'{"a":' + b"[" * 70), "expected an object"),
    (safetensors(b'{"a":{"dtype":' + b"[" * 70), "expected a string"),
]


@pytest.mark.parametrize("data, message", SAFETENSORS)
def test_safetensors_that_lie(tmp_path, data, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises((ValueError, NotImplementedError), match=message) as e:
        WeightFile.open(path)
    assert "x.safetensors" in str(e.value)


def t(offset=0, size=8, shape=(2,), dtype="F32", **more):
    return {"offset": offset, "size": size, "shape": list(shape), "dtype": dtype, **more}


@pytest.mark.parametrize("tensors, message", [
    ({"a": t(offset=9)}, r"tensor 'a' is at \[9, 17\) of a file of 16 bytes"),
    ({"a": t(offset=BIG)}, r"tensor 'a' is at \[9223372036854775808"),
    ({"a": t(offset=2**64 - 4)}, rf"is at \[{2**64 - 4}, {2**64 - 1}\)"),
    ({"a": t(size=2**64 - 1)}, "of a file of 16 bytes"),
    ({"a": t(offset=2**64)}, r"above 2\^64-1"), ({"a": t(offset=-1)}, "at least 0"),
    ({"a": t(size=4)}, "needs 8 bytes .* its size is 4"),
    ({"a": t(shape=(BIG, 2))}, "overflows"), ({"a": t(dtype="F33")}, "unknown dtype 'F33'"),
    ({"a": t(dtype="U32", size=16, shape=(3,))}, "needs 12 bytes"),
    ({"a": t(dtype="U32", size=16, shape=(32,), bits=33)}, "needs 128 bytes"),
    ({"a": t(dtype="U32", size=16, shape=(8, 4))}, "needs 128 bytes"),
    ({"a": {"offset": 0}}, "tensor 'a' has no 'size'"), ({"a": {}}, "no 'offset'"),
    ({"a": {"offset": 0, "size": 0}}, "no 'shape'"),
    ({"a": {"offset": 0, "size": 0, "shape": []}}, "no 'dtype'"),
    ({"a": t(dtype="U32", bits=65)}, "values of 65 bits; at most 64"),
    ({"a": []}, "expected an object"), ({"a\0": t()}, "contains NUL"), ([], "expected an object"),
])
def test_manifests_that_lie(tmp_path, tensors, message):
    with pytest.raises((ValueError, NotImplementedError), match=message):
        WeightFile.open(*write_manifest(tmp_path, tensors, bytes(16)))


@pytest.mark.parametrize("text, message", [
    (b"{}", "the manifest has no 'tensors'"), (b"", "the text ends"),
    (b'{"tensors":{},"tensors":{}}', "'tensors' is there twice"),
    (pairs(("tensors", 0)).replace(b"0", pairs(("a", t()), ("a", t()))), "'a' is there twice"),
    (b'{"tensors":{"a":{"offset":0,"offset":0}}}', "has 'offset' twice"),
    (b'{"tensors":{"\xff":{}}}', "not UTF-8"), (b'{"x":' + b"[" * 100, "deeper than 64"),
    (b'{"tensors":{"a":{"x":' + b'{"y":' * 100, "deeper than 64"),
])
def test_manifest_texts_that_lie(tmp_path, text, message):
    bin_, man = write_manifest(tmp_path, {}, bytes(16))
    man.write_bytes(text)
    with pytest.raises(ValueError, match=message):
        WeightFile.open(bin_, man)


ONE = ("a", (2,), 0, bytes(8))
GOOD_GGUF = gguf([ONE])


def patched(data, at, fmt, *values):
    data = bytearray(data)
    struct.pack_into(fmt, data, at, *values)
    return bytes(data)


@pytest.mark.parametrize("data, message", [
    (GOOD_GGUF[:3] + b"X" * 80, "a header of .* at most"), (GOOD_GGUF[:6], "the header is cut"),
    (patched(GOOD_GGUF, 4, "<I", 1), "GGUF version 1"),
    (patched(GOOD_GGUF, 4, ">I", 3), r"big-endian file\?"),
    (patched(GOOD_GGUF, 8, "<Q", 2**64 - 1), "more pairs or tensors than the file has room"),
    (patched(GOOD_GGUF, 16, "<Q", 2**64 - 1), "more pairs or tensors"),
    (patched(GOOD_GGUF, 8, "<Q", 3), "file"),
    (patched(GOOD_GGUF, 24, "<Q", 2**63), "a string is longer than the file"),
    (gguf([("", (2,), 0, bytes(8))]), "name is empty"),
    (gguf([(b"\xff", (2,), 0, bytes(8))]), "not UTF-8"),
    (gguf([(b"a\0", (2,), 0, bytes(8))]), "not UTF-8"),
    (gguf([("a", (2,), 0, bytes(8)), ("a", (2,), 0, bytes(8))]), "'a' is there twice"),
    (gguf([("a", (1,) * 9, 0, bytes(4))]), "more than 8 dimensions"),
    (gguf([("a", (2**32, 2**32), 0, bytes(8))]), "overflows a size"),
    (gguf([("a", (2**63,), 0, bytes(8))]), "overflows a size"),
    (gguf([("a", (0, 2**62), 0, bytes(8))]), "overflows a size"),
    (gguf([("a", (3,), 0, bytes(8))]), r"tensor 'a' \(12 bytes at 64\) is outside"),
    (gguf([("a", (31,), 8, bytes(34))]), "not whole blocks"),
    (gguf([("a", (64,), 8, bytes(34))]), "is outside the file"),
    (gguf([("a", (), 8, bytes(34))]), "not whole blocks"),
    (patched(GOOD_GGUF, 24 + 9 + 4 + 8 + 4, "<Q", 8), "offset is not aligned"),
    (patched(GOOD_GGUF, 24 + 9 + 4 + 8 + 4, "<Q", 2**63), "is outside the file"),
    (patched(GOOD_GGUF, 24 + 9 + 4 + 8 + 4, "<Q", 2**64 - 32), "is outside the file"),
    (gguf([ONE], [("k", 99, b"")]), "unknown value type"),
    (gguf([ONE], [("", 4, bytes(4))]), "key is empty"),
    (gguf([ONE], [("k", 7, b"\2")]), "a bool is neither 0 nor 1"),
    (gguf([ONE], [("k", 9, struct.pack("<IQ", 9, 1))]), "a list of lists"),
    (gguf([ONE], [("k", 9, struct.pack("<IQ", 13, 1))]), "unknown value type"),
    (gguf([ONE], [("k", 9, struct.pack("<IQ", 10, 2**61))]), "a list is longer than the file"),
    (gguf([ONE], [("k", 9, struct.pack("<IQ", 8, 2**61))]), "a string is longer|is cut"),
    (gguf([ONE], [("general.alignment", 4, struct.pack("<I", 3))]), "not a power of two"),
    (gguf([ONE], [("general.alignment", 4, struct.pack("<I", 0))]), "not a power of two"),
    (gguf([ONE], [("general.alignment", 10, struct.pack("<Q", 2**63))]), "not a power of two"),
])
def test_gguf_that_lies(tmp_path, data, message):
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises((ValueError, NotImplementedError), match=message):
        WeightFile.open(path)


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_every_cut_and_many_flips(tmp_path, kind):
    """No cut and no flip of a good file does worse than an exception."""
    path = tmp_path / "x"
    if kind == "safetensors":
        good = safetensors({"__metadata__": {"k": "v"}, "a": entry(), "b": entry(
            "F16", (1, 3), (8, 14))}, bytes(range(14)))
    else:
        good = gguf([ONE, ("q", (32,), 8, bytes(34))], [("k", 8, struct.pack("<Q", 1) + b"v")])
    rng = random.Random(3)
    cases = [good[:n] for n in range(len(good))]
    for _ in range(1500):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            bad[rng.randrange(len(bad))] = rng.choice((0, 1, 255, rng.randrange(256)))
        cases.append(bytes(bad))
    opened = 0
    for data in cases:
        path.write_bytes(data)
        try:
            with WeightFile.open(path) as w:
                opened += 1
                for name in w:
                    try:
                        np.asarray(w[name]).tobytes()
                    except (NotImplementedError, BufferError, TypeError):
                        pass
        except (ValueError, NotImplementedError):
            pass
    assert opened > 10
    for n in range(len(good)):
        path.write_bytes(good[:n])
        with pytest.raises((ValueError, NotImplementedError)):
            WeightFile.open(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="cannot open '.*none'"):
        WeightFile.open(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        WeightFile.open(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        WeightFile.open(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        WeightFile.open("/dev/zero")
    with pytest.raises(ValueError, match="null"):
        WeightFile.open("a\0b")
    if os.geteuid():
        (tmp_path / "x").write_bytes(b"")
        (tmp_path / "x").chmod(0)
        with pytest.raises(PermissionError):
            WeightFile.open(tmp_path / "x")


# ---------------------------------------------------------------- changes while mapped


def mapped(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": np.arange(40_000, dtype="f4"), "b": np.ones(3, "f2")}, path)
    w = WeightFile.open(path)
    return path, w, WeightBuffer.wrap(w), w["a"]


def cut(path):
    os.truncate(path, 20_000)


def extend(path):
    os.truncate(path, path.stat().st_size + 1)


def replace(path):
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.replace(other, path)


def rewrite(path):
    data = path.read_bytes()
    with open(path, "r+b") as f:
        f.write(data)
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change, word", [
    (cut, "truncated"), (extend, "extended"), (replace, "replaced"), (rewrite, "written to")])
def test_every_entry_raises_after_a_change(tmp_path, change, word):
    path, w, b, tensor = mapped(tmp_path)
    k = anetorch.compile(
        "program(1.3) { func main<ios18>(tensor<fp32, [40000]> x) { tensor<fp32, [40000]> y ="
        " relu(x = x)[name = string(\"y\")]; } -> (y); }")
    request = k.bind({"x": tensor})
    request.run()
    np.asarray(tensor)
    change(path)
    named = rf"tensor 'a': the file '.*m\.safetensors' was {word} while it was mapped"
    out = np.zeros(40_000, "f4")
    for call in (lambda: w["a"], lambda: w.check("a"), lambda: w.read_into("a", out),
                 lambda: b.offset("a"), lambda: b.tensor("a"),
                 lambda: _core.Tensor((40_000,), "float32").copy_from(tensor),
                 lambda: tensor.numpy(), lambda: _core.stage(_core.Tensor((40_000,), "f2"), tensor),
                 request.run, lambda: k(tensor)):
        with pytest.raises(RuntimeError, match=named):
            call()
    with pytest.raises(RuntimeError, match=rf"the file '.*' was {word}"):
        WeightBuffer.wrap(w)
    # names, shapes and metadata were read when it was opened
    assert list(w) == ["a", "b"] and w.info("a")["shape"] == (40_000,)


def test_a_run_raises_when_its_constants_were_cut(tmp_path):
    path = tmp_path / "w.bin"
    path.write_bytes(weights.build_blob_fp16(np.ones(40_000, "f2")))
    k = anetorch.compile(
        "program(1.3) { func main<ios18>(tensor<fp16, [40000]> x) {"
        " tensor<fp16, [40000]> w = const()[name = string(\"w\"), val = tensor<fp16, [40000]>("
        "BLOBFILE(path = string(\"@model_path/w.bin\"), offset = uint64(64)))];"
        " tensor<fp16, [40000]> y = add(x = x, y = w)[name = string(\"y\")]; } -> (y); }",
        weights=str(tmp_path))
    x = np.ones(40_000, "f2")
    assert np.asarray(k(x))[-1] == 2
    os.truncate(path, 5000)
    with pytest.raises(RuntimeError, match=r"\[run\] constants: the file '.*w\.bin' was truncated"):
        k(x)


def test_deleting_or_moving_is_no_change(tmp_path):
    path, w, _, _ = mapped(tmp_path)
    path.rename(tmp_path / "moved")
    assert np.asarray(w["a"])[7] == 7
    (tmp_path / "moved").unlink()
    assert np.asarray(w["a"])[7] == 7


def test_relative_path_and_chdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"a": np.zeros(2, "f4")}, "m")
    w = WeightFile.open("m")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    save_file({"a": np.zeros(3, "f4")}, "m")
    assert w["a"].shape == (2,)         # another file of that name elsewhere is no replacement
    replace(tmp_path / "m")
    with pytest.raises(RuntimeError, match="replaced"):
        w["a"]


GUARD = r"""
import os, signal, sys
import numpy as np
from anetorch.weights import WeightFile, guard, save_file
path = sys.argv[1]
save_file({"a": np.ones(40_000, "f4")}, path)
w = WeightFile.open(path)
x = np.asarray(w["a"])
if sys.argv[2] != "off":
    guard(True)
    guard(True)
if sys.argv[2] == "removed":
    guard(False)
os.truncate(path, 20_000)
print(x[0], x[-1], np.isfinite(x).all(), flush=True)
try:
    w["a"]
except RuntimeError as e:
    print(e)
guard(False)
assert signal.getsignal(signal.SIGBUS) == signal.SIG_DFL
"""


@pytest.mark.parametrize("mode, code", [("on", 0), ("off", -7), ("removed", -7)])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="SIGBUS is 7 on Linux")
def test_guard(tmp_path, mode, code):
    run = subprocess.run([sys.executable, "-c", GUARD, str(tmp_path / "m"), mode],
                         capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path),
                              "ASAN_OPTIONS": "handle_sigbus=0:detect_leaks=0"})
    assert run.returncode == code, run.stderr
    if mode == "on":
        assert run.stdout.splitlines()[0] == "1.0 0.0 True"
        assert "tensor 'a': the file" in run.stdout and "zeros were read" in run.stdout
    else:
        assert run.stdout == ""


def test_guard_leaves_other_faults_alone(tmp_path):
    code = ("import mmap, os, sys\n"
            "from anetorch.weights import guard\n"
            "guard(True)\n"
            "f = open(sys.argv[1], 'w+b'); f.truncate(8192)\n"
            "m = mmap.mmap(f.fileno(), 8192); f.truncate(0)\n"
            "m[5000]\n")
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")],
                         env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path),
                              "ASAN_OPTIONS": "handle_sigbus=0:detect_leaks=0"})
    assert run.returncode == -7 or not sys.platform.startswith("linux")


# ---------------------------------------------------------------- allocation failure


def each_failure(call, limit=400):
    """call() with its 1st, 2nd, ... allocation failing until it succeeds; how often it failed."""
    for n in range(1, limit):
        _testing.fail_after(n)
        try:
            result = call()
        except MemoryError:
            continue
        finally:
            _testing.fail_after(0)
        del result
        return n - 1
    raise AssertionError("it never succeeds")


def test_allocation_failure_everywhere(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({f"t{i}": np.zeros(i, "f4") for i in range(200)}, path, {"a": "b"})
    g = tmp_path / "m.gguf"
    g.write_bytes(gguf([ONE, ("q", (32,), 8, q8(np.ones(32, "f4"))[0])],
                       [("k", 8, struct.pack("<Q", 1) + b"v")]))
    bin_, man = write_manifest(tmp_path, {f"t{i}": t() for i in range(100)}, bytes(16))
    index = shards(tmp_path)
    open_ = WeightFile.open(path)
    fds = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0

    def write():
        with WeightWriter(tmp_path / "out", {"a": ("float32", (2,))}, {"k": "v"}) as w:
            w.write("a", bytes(8))

    counts = {name: each_failure(call) for name, call in {
        "safetensors": lambda: WeightFile.open(path), "gguf": lambda: WeightFile.open(g),
        "manifest": lambda: WeightFile.open(bin_, man), "json": lambda: WeightFile.open(man),
        "index": lambda: WeightFile.open(index), "tensor": lambda: open_["t3"],
        "dequantize": lambda: WeightFile.open(g)["q"], "buffer": lambda: WeightBuffer.wrap(open_),
        "write": write, "blob": lambda: weights.build_blob(np.zeros((2, 2), "f4")),
    }.items()}
    assert all(n > 0 for n in counts.values()), counts
    assert sorted(p.name for p in tmp_path.iterdir() if ".tmp" in p.name) == []
    if fds:
        assert len(os.listdir("/proc/self/fd")) == fds
