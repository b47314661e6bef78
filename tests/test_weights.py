"""Weight files: reading without a copy, writing atomically, blobs."""

from __future__ import annotations

import gc
import json
import os
import stat
import struct
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

import numpy as np
import pytest

from anetorch import _core, weights
from anetorch._core import _testing
from anetorch.weights import WeightBuffer, WeightFile, WeightWriter, save_file

DTYPES = ["float16", "float32", "float64", "bfloat16", "bool", "int8", "int16", "int32",
          "int64", "uint8", "uint16", "uint32", "uint64"]


def some(rng, shape, dtype):
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if dtype.startswith(("int", "uint")):
        return rng.integers(0, 127, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def bytes_of(t):
    """A Tensor's bytes, whatever its dtype."""
    return np.array(t.view(0, (t.nbytes,), "uint8")).tobytes() if t.nbytes else b""


def header(path):
    data = Path(path).read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:8 + n]), data[8 + n:], 8 + n


# ---------------------------------------------------------------- safetensors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 0, 3), (1, 7, 1, 3, 2, 1, 1, 2)])
def test_round_trip(tmp_path, dtype, shape):
    rng = np.random.default_rng(len(shape))
    if dtype == "bfloat16":
        x = _core.Tensor(shape, dtype)
        want = b"\0" * x.nbytes
    else:
        x = some(rng, shape, dtype)
        want = np.asarray(x).tobytes()
    path = tmp_path / "x.safetensors"
    save_file({"x": x, "other": np.arange(3, dtype="uint8")}, path)
    with WeightFile.open(path) as w:
        t = w["x"]
        assert (t.shape, t.dtype, t.memory) == (shape, dtype, "external")
        assert bytes_of(t) == want
        assert bytes_of(w["other"]) == bytes(range(3))


def test_mapping_interface(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"b": np.zeros(2, "float16"), "a": np.ones((2, 3), "float32"), "é\n\"": np.int8([1])},
              path, {"k": "v", "é": "\u0001\"\\"})
    w = WeightFile.open(os.fspath(path))
    assert len(w) == 3 and list(w) == w.keys() == ["a", "b", "é\n\""]
    assert "a" in w and "c" not in w and 3 not in w and "\ud800" not in w and "a\0" not in w
    assert w.metadata == {"k": "v", "é": "\u0001\"\\"}
    assert w.format == "safetensors" and w.path == str(path) and not w.closed
    assert w.files == [(str(path), path.stat().st_size)]
    assert w.info("a") == {"dtype": "float32", "shape": (2, 3), "type": "F32", "file": 0,
                           "offset": 16384, "nbytes": 24, "bits": 0}
    assert repr(w) == f"<WeightFile {str(path)!r}: safetensors, 3 tensors>"
    with pytest.raises(KeyError, match="required tensor 'c' missing from weight file"):
        w["c"]
    with pytest.raises(TypeError, match="a name is a str"):
        w[3]
    w.close()
    w.close()
    assert w.closed and repr(w) == "<WeightFile closed>"
    for call in (lambda: w["a"], lambda: len(w), lambda: list(w), lambda: "a" in w,
                 lambda: w.metadata, lambda: w.__enter__(), lambda: WeightBuffer.wrap(w)):
        with pytest.raises(ValueError, match="the file is closed"):
            call()


def test_tensor_is_a_view_that_outlives_the_file(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": np.arange(6, dtype="float32")}, path)
    w = WeightFile.open(path)
    a = np.asarray(w["a"])
    t = w["a"]
    assert not a.flags.writeable
    with pytest.raises(ValueError):
        a[0] = 1
    with pytest.raises((ValueError, BufferError, TypeError)):
        t.copy_from(np.zeros(6, "float32"))
    w.close()
    del w
    gc.collect()
    path.unlink()                   # a deleted file stays whole while it is mapped
    assert a.sum() == 15 and np.asarray(t)[5] == 5


def test_no_leak_of_descriptors_or_mappings(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": np.arange(6, dtype="float32")}, path)

    def state():
        maps = Path("/proc/self/maps").read_text().count("m.safetensors")
        return len(os.listdir("/proc/self/fd")), maps
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    before = state()
    for _ in range(300):
        w = WeightFile.open(path)
        b = WeightBuffer.wrap(w)
        x = np.asarray(w["a"])
        y = np.asarray(b.tensor("a"))
        del w, b, x, y
        with pytest.raises(ValueError):
            WeightFile.open(__file__)
        with pytest.raises(OSError):
            WeightFile.open(tmp_path)
    gc.collect()
    assert state() == before


@pytest.mark.oracle
def test_the_reference_reader_agrees(tmp_path):
    st = pytest.importorskip("safetensors.numpy", reason="the reference implementation")
    rng = np.random.default_rng(0)
    ours = {f"t{i}": some(rng, (i, 3), d) for i, d in enumerate(DTYPES) if d != "bfloat16"}
    save_file(ours, tmp_path / "a.safetensors", {"k": "v"})
    theirs = st.load_file(tmp_path / "a.safetensors")
    assert set(theirs) == set(ours)
    for k in ours:
        assert theirs[k].dtype == ours[k].dtype and np.array_equal(theirs[k], ours[k])
    st.save_file(ours, tmp_path / "b.safetensors", {"k": "v"})
    with WeightFile.open(tmp_path / "b.safetensors") as w:
        assert w.metadata == {"k": "v"}
        for k in ours:
            assert np.array_equal(np.asarray(w[k]), ours[k])


def test_misaligned_data_is_copied(tmp_path):
    """Old writers did not pad the header; a view would be misaligned."""
    head = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    assert len(head) % 4
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head + struct.pack("<2f", 1, 2))
    with WeightFile.open(path) as w:
        t = w["a"]
        assert t.memory == "heap" and np.asarray(t).tolist() == [1, 2]
        out = np.zeros(2, "float32")
        w.read_into("a", out)
        assert out.tolist() == [1, 2]
        with pytest.raises(NotImplementedError, match="no view; use WeightFile"):
            WeightBuffer.wrap(w).tensor("a")


def test_unsupported_types_do_not_hide_the_others(tmp_path):
    head = (b'{"c":{"dtype":"C64","shape":[1],"data_offsets":[0,8]},'
            b'"f":{"dtype":"F4","shape":[4],"data_offsets":[8,10]}} ')
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(10))
    with WeightFile.open(path) as w:
        assert w.info("c")["dtype"] is None and w.info("c")["type"] == "C64"
        with pytest.raises(NotImplementedError, match="tensor 'c' .*stored as C64"):
            w["c"]
        with pytest.raises(NotImplementedError, match="no view"):
            WeightBuffer.wrap(w).tensor("f")


# ---------------------------------------------------------------- writing


def test_layout_and_equal_bytes(tmp_path):
    a, b = np.arange(3, dtype="float16"), np.arange(4, dtype="float64")
    save_file({"a": a, "b": b}, tmp_path / "1", {"x": "1", "a": "2"})
    save_file({"b": b, "a": a}, tmp_path / "2", {"a": "2", "x": "1"})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    head, data, at = header(tmp_path / "1")
    assert at % 16384 == 0
    assert list(head) == ["__metadata__", "b", "a"]
    assert head["b"]["data_offsets"] == [0, 32] and head["a"]["data_offsets"] == [32, 38]
    assert data == b.tobytes() + a.tobytes()
    assert stat.S_IMODE((tmp_path / "1").stat().st_mode) == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_strided_and_foreign_arrays(tmp_path):
    x = np.arange(24, dtype=">f4").reshape(4, 6)
    arrays = {"t": x.T, "neg": x[::-1, ::2].astype("f4"), "be": x, "f": np.asfortranarray(x),
              "b": np.broadcast_to(np.float32(3), (5, 2)), "zero": np.zeros((0, 3), "f4")[:, ::2]}
    save_file(arrays, tmp_path / "x")
    with WeightFile.open(tmp_path / "x") as w:
        for k, v in arrays.items():
            assert np.array_equal(np.asarray(w[k]), v), k


def test_big_strided_array_is_streamed(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "PIECE", 100)
    x = np.random.default_rng(0).random((37, 50)).astype("f4")[:, ::2]
    save_file({"x": x}, tmp_path / "x")
    with WeightFile.open(tmp_path / "x") as w:
        assert np.array_equal(np.asarray(w["x"]), x)


def test_streaming_in_pieces_and_any_order(tmp_path):
    path = tmp_path / "x"
    with WeightWriter(path, {"a": ("float32", (4, 2)), "b": ("fp16", [3])}) as out:
        out.write("a", np.ones((1, 2), "f4"))
        out.write("b", np.arange(3, dtype="f2").tobytes())
        out.write("a", np.full((3, 2), 2, "f4"))
        assert not path.exists()
    with WeightFile.open(path) as w:
        assert np.asarray(w["a"])[:, 0].tolist() == [1, 2, 2, 2]


def test_writer_refuses(tmp_path):
    path = tmp_path / "x"
    w = WeightWriter(path, {"a": ("float32", (2,))})
    with pytest.raises(KeyError, match="'b' is not one of"):
        w.write("b", b"")
    with pytest.raises(ValueError, match="'a' is not complete: 0 of 8 bytes"):
        w.commit()
    w.write("a", bytes(4))
    with pytest.raises(ValueError, match="'a' has 8 bytes, 4 are written and 5 more"):
        w.write("a", bytes(5))
    w.write("a", bytes(4))
    w.commit()
    for call in (w.commit, lambda: w.write("a", b"")):
        with pytest.raises(ValueError, match="committed or aborted"):
            call()
    with pytest.raises(TypeError, match="unknown dtype 'q'"):
        WeightWriter(path, {"a": ("q", ())})
    with pytest.raises(TypeError, match="int4 cannot be stored"):
        WeightWriter(path, {"a": ("int4", (2,))})
    with pytest.raises(ValueError, match="the shape is not valid"):
        WeightWriter(path, {"a": ("float32", (2**40, 2**40))})
    with pytest.raises(ValueError, match="the shape is not valid"):
        WeightWriter(path, {"a": ("float32", (-1,))})
    with pytest.raises(ValueError, match="9 dimensions, at most 8"):
        WeightWriter(path, {"a": ("float32", (1,) * 9)})
    with pytest.raises(ValueError, match="'__metadata__' is no name"):
        WeightWriter(path, {"__metadata__": ("float32", ())})
    with pytest.raises(ValueError, match="contains NUL"):
        WeightWriter(path, {"a\0": ("float32", ())})
    with pytest.raises(UnicodeEncodeError):
        WeightWriter(path, {"\ud800": ("float32", ())})
    with pytest.raises(TypeError, match="a metadata value is a str"):
        WeightWriter(path, {}, {"a": 1})
    with pytest.raises(TypeError, match=r"\[save_file\] 'a': expected an array"):
        save_file({"a": [1, 2]}, path)
    with pytest.raises(ValueError, match="there twice"):
        _core.WeightWriter(path, [("a", "f32", ()), ("a", "f32", ())])
    with pytest.raises(OSError, match="cannot create"):
        WeightWriter(tmp_path / "no" / "x", {})
    with pytest.raises(ValueError, match="names no file"):
        WeightWriter(str(tmp_path) + "/", {})
    assert os.listdir(tmp_path) == ["x"]
    (tmp_path / "dir").mkdir()
    with pytest.raises(OSError, match="cannot move the finished file"):
        save_file({"a": np.ones(1, "f4")}, tmp_path / "dir")
    assert sorted(os.listdir(tmp_path)) == ["dir", "x"]


def test_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    save_file({"a": np.zeros(4, "f4")}, path)
    old = path.read_bytes()
    with pytest.raises(KeyError), WeightWriter(path, {"a": ("float32", (4,))}) as out:
        out.write("a", bytes(8))
        raise KeyError
    with pytest.raises(ValueError), WeightWriter(path, {"a": ("float32", (4,))}) as out:
        out.write("a", bytes(8))
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["x"]


def test_no_room_is_found_before_writing(tmp_path):
    with pytest.raises(OSError) as e:
        WeightWriter(tmp_path / "x", {"a": ("float32", (2**55,))})
    assert "x'" in str(e.value) and os.listdir(tmp_path) == []


def test_writer_and_chdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    with WeightWriter("x", {"a": ("float32", (1,))}) as out:
        monkeypatch.chdir(tmp_path / "sub")
        out.write("a", bytes(4))
    assert sorted(os.listdir(tmp_path)) == ["sub", "x"] and os.listdir(tmp_path / "sub") == []


READ_ONLY = r"""
import os, sys
folder = sys.argv[1]
import numpy as np
from anetorch.weights import WeightBuffer, WeightFile, save_file
if not os.geteuid():                    # root may write anywhere: be nobody
    os.setgid(65534)
    os.setuid(65534)
path = os.path.join(folder, "x")
assert not os.access(folder, os.W_OK) and not os.access(path, os.W_OK)
with WeightFile.open(path) as w:
    assert np.asarray(w["a"])[0] == 1 and np.asarray(WeightBuffer.wrap(w).tensor("a"))[0] == 1
try:
    save_file({"a": np.ones(1, "f4")}, os.path.join(folder, "y"))
except PermissionError as e:
    assert "cannot create" in str(e) and folder in str(e), e
    print("refused")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_reading_needs_no_write_access():
    with tempfile.TemporaryDirectory() as folder:
        save_file({"a": np.ones(1, "f4")}, Path(folder) / "x")
        (Path(folder) / "x").chmod(0o444)
        Path(folder).chmod(0o555)
        try:
            run = subprocess.run([sys.executable, "-c", READ_ONLY, folder], env=_env(),
                                 capture_output=True, text=True)
        finally:
            Path(folder).chmod(0o755)
        assert run.stdout == "refused\n", run.stderr
        assert os.listdir(folder) == ["x"]


STREAM = r"""
import resource, sys
import numpy as np
from anetorch.weights import WeightFile, WeightWriter, save_file
path, mib = sys.argv[1], int(sys.argv[2])
piece = np.ones((1 << 20) // 4, "f4")
strided = np.ones((2048, 2048), "f4").T     # 16 MiB, made contiguous in parts
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with WeightWriter(path, {"big": ("float32", (mib, piece.size)),
                         "turned": ("float32", strided.shape)}) as out:
    for i in range(mib):
        piece[0] = i
        out.write("big", piece)
    out.write("turned", strided)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
with WeightFile.open(path) as w:
    assert np.asarray(w["big"])[:, 0].tolist() == list(range(mib))
print(grown)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss in kilobytes")
def test_writing_needs_no_memory_for_the_file(tmp_path):
    run = subprocess.run([sys.executable, "-c", STREAM, str(tmp_path / "x"), "400"], env=_env(),
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    # One piece of a strided array, and what the allocator keeps of it; the file is 416 MiB.
    assert float(run.stdout) <= 2 * weights.PIECE / (1 << 20) + 8


def test_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    save_file({"a": np.zeros(4, "f4")}, path)
    old = path.read_bytes()
    code = ("import sys, os, signal\n"
            "from anetorch.weights import WeightWriter\n"
            "w = WeightWriter(sys.argv[1], {'a': ('float32', (4,))})\n"
            "w.write('a', bytes(16))\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n")
    subprocess.run([sys.executable, "-c", code, str(path)], env=_env())
    assert path.read_bytes() == old
    save_file({"a": np.ones(4, "f4")}, path)
    with WeightFile.open(path) as w:
        assert np.asarray(w["a"])[0] == 1


def _env():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


# ---------------------------------------------------------------- manifest, index


def write_manifest(tmp_path, tensors, data, name="w"):
    (tmp_path / f"{name}.bin").write_bytes(data)
    (tmp_path / f"{name}.json").write_text(json.dumps({"tensors": tensors, "extra": [1]}))
    return tmp_path / f"{name}.bin", tmp_path / f"{name}.json"


def test_manifest(tmp_path):
    f = np.arange(6, dtype="f4")
    q = np.arange(8, dtype="u4")
    data = bytes(16) + f.tobytes() + q.tobytes()
    bin_, man = write_manifest(tmp_path, {
        "f": {"offset": 16, "size": 24, "shape": [2, 3], "dtype": "F32"},
        "tied": {"offset": 16, "size": 24, "shape": [6], "dtype": "F32"},
        "b": {"offset": 0, "size": 4, "shape": [2], "dtype": "BF16"},
        "words": {"offset": 40, "size": 32, "shape": [2, 4], "dtype": "U32", "bits": 4},
        "packed": {"offset": 40, "size": 32, "shape": [2, 32], "dtype": "U32"},
        "eight": {"offset": 40, "size": 32, "shape": [2, 16], "dtype": "U32", "bits": 8},
        "end": {"offset": 72, "size": 0, "shape": [0], "dtype": "F32"}}, data)
    for w in (WeightFile.open(bin_, man), WeightFile.open(man)):
        assert w.format == "manifest" and len(w) == 7
        assert np.array_equal(np.asarray(w["f"]), f.reshape(2, 3))
        assert np.array_equal(np.asarray(w["tied"]), f)
        assert w["b"].dtype == "bfloat16"
        for name in ("words", "packed", "eight"):
            assert np.array_equal(np.asarray(w[name]), q.reshape(2, 4))
        assert [w.info(n)["bits"] for n in ("f", "words", "packed", "eight")] == [0, 4, 4, 8]
        assert w["end"].shape == (0,)


def test_empty_manifest_and_buffer(tmp_path):
    bin_, man = write_manifest(tmp_path, {}, b"")
    w = WeightFile.open(bin_, man)
    assert len(w) == 0 and list(w) == []
    b = WeightBuffer.wrap(w)
    assert (b.nbytes, b.file_bytes) == (16384, 0) and b.offset("x") is None
    assert not np.asarray(b.tensor()).any()


def shards(tmp_path, **extra):
    save_file({"a": np.zeros(2, "f4"), "shared": np.zeros(1, "f4")}, tmp_path / "m-1.safetensors")
    save_file({"b": np.ones(3, "f4"), "shared": np.ones(1, "f4")}, tmp_path / "m-2.safetensors")
    index = {"metadata": {"total_size": 24}, "weight_map": {
        "a": "m-1.safetensors", "b": "m-2.safetensors", "shared": "m-2.safetensors", **extra}}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path


def test_sharded_index(tmp_path):
    w = WeightFile.open(shards(tmp_path))
    assert sorted(w) == ["a", "b", "shared"]
    assert np.asarray(w["shared"])[0] == 1 and w.info("b")["file"] == 1
    assert [Path(p).name for p, _ in w.files] == ["m-1.safetensors", "m-2.safetensors"]
    first, second = WeightBuffer.wrap(w), WeightBuffer.wrap(w, 1)
    assert first.offset("a") == 16384 + 0 and first.offset("b") is None
    assert np.asarray(second.tensor("b")).tolist() == [1, 1, 1]
    with pytest.raises(IndexError, match="shard 2 of 2"):
        WeightBuffer.wrap(w, 2)


@pytest.mark.parametrize("extra, message", [
    ({"c": "m-1.safetensors"}, r"tensor 'c' is not in 'm-1\.safetensors'"),
    ({"c": "../m-1.safetensors"}, "not the plain name of a file beside the index"),
    ({"c": "/etc/passwd"}, "not the plain name"), ({"c": ""}, "not the plain name"),
    ({"c": ".."}, "not the plain name"), ({"c": "a\0b"}, "not the plain name"),
    ({"c\0": "m-1.safetensors"}, "contains NUL"), ({"c": 3}, "expected a string")])
def test_bad_index(tmp_path, extra, message):
    with pytest.raises(ValueError, match=message):
        WeightFile.open(shards(tmp_path, **extra))


def test_index_with_a_missing_shard(tmp_path):
    path = shards(tmp_path)
    (tmp_path / "m-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="m-2.safetensors"):
        WeightFile.open(path)


def test_json_that_is_neither(tmp_path):
    path = tmp_path / "x.json"
    for text, message in (('{"a": 1}', "with neither"),
                          ('{"tensors": {}, "weight_map": {}}', "with both"),
                          ("{", "the text ends"), ('{"weight_map": 3}', "expected an object"),
                          ('{"weight_map": {}, "weight_map": {}}', "'weight_map' is there twice"),
                          ('{"weight_map": {"a": "s", "a": "s"}}', "s'")):
        path.write_text(text)
        with pytest.raises((ValueError, OSError), match=message):
            WeightFile.open(path)


# ---------------------------------------------------------------- buffer


def test_buffer(tmp_path):
    path = tmp_path / "x"
    save_file({"a": np.arange(5000, dtype="f4"), "b": np.arange(3, dtype="f2")}, path)
    w = WeightFile.open(path)
    b = WeightBuffer.wrap(w)
    size = path.stat().st_size
    assert b.file_bytes == size and b.nbytes == -(-size // 16384) * 16384
    assert b.offset("a") == w.info("a")["offset"] and b.address
    assert b.offset("nope") is None
    with pytest.raises(KeyError, match="required tensor 'nope' missing from weight manifest"):
        b.offset("nope", required=True)
    with pytest.raises(KeyError, match="required tensor 'nope' missing from weight manifest"):
        b.tensor("nope")
    whole = np.asarray(b.tensor())
    assert whole.shape == (b.nbytes,) and not whole.flags.writeable
    assert whole[:size].tobytes() == path.read_bytes() and not whole[size:].any()
    assert b.tensor("a").buffer_id == b.tensor("b").buffer_id
    assert repr(b) == f"<WeightBuffer {str(path)!r}: {b.nbytes} bytes, 0.0 GB>"
    del w
    gc.collect()
    assert np.asarray(b.tensor("b"))[2] == 2
    t = b.tensor("a")
    del b
    gc.collect()
    assert np.asarray(t)[4999] == 4999
    with pytest.raises(TypeError):
        WeightBuffer.wrap(3)


# ---------------------------------------------------------------- GGUF


def gguf(tensors, pairs=(), version=3, align=32, extra=b""):
    """(name, dims fastest first, type, data) -> a file's bytes."""
    def s(x):
        x = x.encode() if isinstance(x, str) else x
        return struct.pack("<Q", len(x)) + x
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    for key, kind, value in pairs:
        out += s(key) + struct.pack("<I", kind) + value
    blob = b""
    for name, dims, kind, data in tensors:
        blob += bytes(-len(blob) % align)
        out += s(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        out += struct.pack("<IQ", kind, len(blob))
        blob += data
    out += extra
    return out + bytes(-len(out) % align) + blob


def q8(x):
    """Blocks of 32: float16 scale, int8 values; and what they stand for."""
    out, back = b"", []
    for b in x.reshape(-1, 32):
        d = np.float16(np.abs(b).max() / 127)
        q = np.clip(np.round(b / np.float32(d)), -127, 127).astype("i1")
        out += d.tobytes() + q.tobytes()
        back.append(np.float32(d) * q.astype("f4"))
    return out, np.concatenate(back)


def q4(x):
    out, back = b"", []
    for b in x.reshape(-1, 32):
        d = np.float16(np.abs(b).max() / -8)
        q = np.clip(np.round(b / np.float32(d)) + 8, 0, 15).astype("u1")
        out += d.tobytes() + (q[:16] | q[16:] << 4).tobytes()
        back.append(np.float32(d) * (q.astype("f4") - 8))
    return out, np.concatenate(back)


@pytest.mark.parametrize("version", [2, 3])
def test_gguf(tmp_path, version):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4, 64)).astype("f4")
    d8, w8 = q8(x)
    d4, w4 = q4(x)
    string = struct.pack("<Q", 5) + b"llama"
    strings = struct.pack("<IQ", 8, 2) + 2 * string
    pairs = [("general.architecture", 8, string), ("general.alignment", 4, struct.pack("<I", 64)),
             ("n", 10, struct.pack("<Q", 2**64 - 1)), ("neg", 5, struct.pack("<i", -3)),
             ("i8", 1, b"\xff"), ("eps", 6, struct.pack("<f", 1e-5)), ("yes", 7, b"\1"),
             ("d", 12, struct.pack("<d", 0.1)), ("tokens", 9, strings),
             ("scores", 9, struct.pack("<IQ3f", 6, 3, 1, 2, 3))]
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf([
        ("f32", (64, 4), 0, x.tobytes()), ("f16", (64, 4), 1, x.astype("f2").tobytes()),
        ("bf16", (4,), 30, bytes(8)), ("q8", (64, 4), 8, d8), ("q4", (64, 4), 2, d4),
        ("i32", (2,), 26, struct.pack("<2i", 1, -2)), ("k", (256, 2), 12, bytes(288)),
        ("new", (7,), 99, b"")], pairs, version, 64))
    w = WeightFile.open(path)
    assert w.format == "gguf" and len(w) == 8
    assert w.metadata == {"general.architecture": "llama", "general.alignment": "64",
                          "n": str(2**64 - 1), "neg": "-3", "i8": "-1", "eps": "9.99999975e-06",
                          "yes": "true", "d": "0.10000000000000001"}
    assert np.array_equal(np.asarray(w["f32"]), x) and w["f32"].memory == "external"
    assert np.array_equal(np.asarray(w["f16"]), x.astype("f2"))
    assert w["bf16"].dtype == "bfloat16"
    assert w.info("q8")["shape"] == (4, 64) and w.info("q8")["dtype"] == "float32"
    assert np.array_equal(np.asarray(w["q8"]), w8.reshape(4, 64))
    assert np.array_equal(np.asarray(w["q4"]), w4.reshape(4, 64))
    assert np.asarray(w["i32"]).tolist() == [1, -2]
    for name, kind in (("k", "Q4_K"), ("new", "type 99")):
        with pytest.raises(NotImplementedError, match=f"stored as {kind}"):
            w[name]
    with pytest.raises(NotImplementedError, match="no view"):
        WeightBuffer.wrap(w).tensor("q8")
    out = np.zeros((4, 64), "f4")
    w.read_into("q8", out)
    assert np.array_equal(out.ravel(), w8)


def test_gguf_dequantizes_long_tensors_the_same_on_threads(tmp_path):
    x = np.random.default_rng(2).standard_normal((70, 2048)).astype("f4")
    d, want = q8(x)
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf([("x", (2048, 70), 8, d)]))
    assert np.array_equal(np.asarray(WeightFile.open(path)["x"]).ravel(), want)


# ---------------------------------------------------------------- blobs


def test_blob_check_value():
    blob = weights.build_blob(np.array([[1.0, -2.0]], "f4"))
    assert len(blob) == 132
    want = bytearray(132)
    want[0], want[4], want[68] = 1, 2, 1
    want[64:68] = b"\xef\xbe\xad\xde"
    want[72], want[80] = 4, 128
    want[128:] = b"\x00\x3c\x00\xc0"
    assert blob == bytes(want)
    assert _testing.blob_find(blob, 64, "float16", 2) == (128, 4, "")


def test_blob_builders():
    x = np.random.default_rng(0).standard_normal((3, 5)).astype("f4")
    x[0, 0], x[1, 1] = 65520, np.nan
    with np.errstate(over="ignore"):
        h = x.astype("f2")
    assert weights.build_blob(x)[128:] == h.tobytes()
    assert weights.build_blob(x, transpose=True)[128:] == h.T.tobytes()
    assert weights.build_blob_fp16(h) == weights.build_blob(x)
    assert len(weights.build_blob(np.zeros((0, 4), "f4"))) == 128
    q = np.arange(-7, 8, dtype="i1").reshape(3, 5)
    blob = weights.build_blob_int8(q)
    assert blob[68] == 4 and blob[128:] == q.tobytes()
    assert _testing.blob_find(blob, 64, "int8", 15) == (128, 15, "")
    bare = weights.build_blob_int8(q, bare=True)
    assert bare[:64] == b"\xef\xbe\xad\xde\x01" + bytes(5) + b"\x08" + bytes(53)
    assert bare[64:] == q.tobytes()
    with pytest.raises(TypeError, match=r"\[build_blob\] expected float32, got elements of format 'e'"):
        weights.build_blob(h)
    with pytest.raises(ValueError, match="got 3 dimensions"):
        weights.build_blob(np.zeros((1, 1, 1), "f4"))


def test_quantize_int8():
    x = np.array([0.5, -1.0, 1.0, 0.25 / 127, 0.5 / 127, -0.5 / 127, np.nan], "f4")
    q, scale = weights.quantize_int8(x)
    assert scale == np.float32(1) / np.float32(127)
    got = np.frombuffer(q, "i1")
    ratio = (x / np.float32(scale)).astype("f4")
    want = np.sign(ratio) * np.floor(np.abs(ratio) + np.float32(0.5))
    assert np.array_equal(got[:-1], want[:-1].astype("i1")) and got[-1] == 0
    assert weights.quantize_int8(np.zeros(3, "f4")) == (bytearray(3), 1.0)
    assert weights.quantize_int8(np.zeros(0, "f4")) == (bytearray(), 1.0)


BLOB_TYPES = {"float16": 1, "float32": 2, "uint8": 3, "int8": 4, "bfloat16": 5, "int16": 6,
              "uint16": 7, "int4": 8, "uint1": 9, "uint2": 10, "uint4": 11, "uint3": 12,
              "uint6": 13, "int32": 14, "uint32": 15, "float8_e4m3fn": 16, "float8_e5m2": 17}
BITS = {"float32": 32, "int32": 32, "uint32": 32, "int4": 4, "uint1": 1, "uint2": 2, "uint4": 4,
        "uint3": 3, "uint6": 6, "uint8": 8, "int8": 8, "float8_e4m3fn": 8, "float8_e5m2": 8}


def test_blob_writer_follows_the_format():
    records = []
    for i, dtype in enumerate(BLOB_TYPES):
        count = 1027 * 640 if i == 0 else 5 + i
        n = -(-count * BITS.get(dtype, 16) // 8)
        records.append((dtype, count, bytes([i]) * n))
    pieces, offsets, size = _testing.blob_write(records)
    data = b"".join(pieces)
    assert len(data) == size and struct.unpack("<II", data[:8]) == (len(records), 2)
    assert offsets[0] == 64 and offsets[1] == 1314688
    for (dtype, count, payload), at in zip(records, offsets):
        assert at % 64 == 0
        marker, code, n, where, unused = struct.unpack("<IIQQQ", data[at:at + 32])
        assert (marker, code, n, where) == (0xDEADBEEF, BLOB_TYPES[dtype], len(payload), at + 64)
        assert unused == len(payload) * 8 - count * BITS.get(dtype, 16)
        assert data[where:where + n] == payload
        assert _testing.blob_find(data, at, dtype, count) == (where, n, "")
    assert _testing.blob_write([("float32", 500, bytes(2000)), ("int8", 0, b"")])[1] == [64, 2176]
    for dtype in ("bool", "int64", "uint64", "float64", "str"):
        with pytest.raises((ValueError, TypeError), match="cannot be in a blob"):
            _testing.blob_write([(dtype, 1, bytes(8))])


def put(data, at, fmt, *values):
    data = bytearray(data)
    struct.pack_into(fmt, data, at, *values)
    return bytes(data)


GOOD_BLOB = weights.build_blob_fp16(np.arange(6, dtype="f2"))
INT8_BLOB = put(put(GOOD_BLOB, 68, "<I", 1), 72, "<QQ", 12, 128)


@pytest.mark.parametrize("data, at, dtype, count, flags, want", [
    (put(GOOD_BLOB, 0, "<I", 0), 64, "float16", 6, 0, "no records"),
    (put(GOOD_BLOB, 72, "<QQ", 0, 0), 64, "float16", 6, 0, "not set"),
    (put(GOOD_BLOB, 72, "<Q", 0x100000), 64, "float16", 6, 0, "not set"),
    (put(GOOD_BLOB, 72, "<QQ", 0x080000, 0), 64, "float16", 6, 0, "not set"),
    (put(GOOD_BLOB, 72, "<QQ", 99, 0), 64, "float16", 6, 0, "not set"),
    (INT8_BLOB, 64, "int8", 12, 0, "marked as fp16"),
    (put(GOOD_BLOB, 96, "<4Q", 1, 2, 3, 4), 64, "float16", 6, 0, ""),
    (GOOD_BLOB[:64] + bytes(32) + put(GOOD_BLOB[64:], 16, "<Q", 160), 96, "float16", 6, 0,
     "multiple of 64"),
    (weights.build_blob_int8(np.zeros(7, "i1"), bare=True), 0, "int8", 7, 1, "no file header"),
])
def test_blob_deviations_that_are_read(data, at, dtype, count, flags, want):
    offset, n, text = _testing.blob_find(data, at, dtype, count, flags)
    assert offset == at + 64 and (want in text if want else text == "")


@pytest.mark.parametrize("data, at, dtype, count, message", [
    (b"", 64, "float16", 6, "0 bytes, shorter than a 64-byte header"),
    (GOOD_BLOB, 128, "float16", 6, "outside the file of 140 bytes"),
    (GOOD_BLOB + bytes(64), 128, "float16", 6, r"no record marker.*at offset 128, found 00 00 00 "
     r"3C; there is one at 64: offset names the record, not its data"),
    (GOOD_BLOB, 76, "float16", 6, "no record marker"),
    (GOOD_BLOB, 0, "float16", 6, "lies in the 64-byte file header; the first record is at 64"),
    (GOOD_BLOB, 32, "float16", 6, "lies in the 64-byte file header"),
    (GOOD_BLOB, 2**63, "float16", 6, "outside the file"),
    (GOOD_BLOB, 2**64 - 1, "float16", 6, "outside the file"),
    (put(GOOD_BLOB, 4, "<I", 3), 64, "float16", 6, "format version 3, expected 2"),
    (put(GOOD_BLOB, 4, "<I", 1), 64, "float16", 6, "Espresso"),
    (GOOD_BLOB, 64, "float32", 3, r"type code 1 \(fp16\), the text declares fp32"),
    (put(GOOD_BLOB, 68, "<I", 77), 64, "float16", 6, r"type code 77 \(no known type\)"),
    (GOOD_BLOB, 64, "float16", 5, r"holds 12 bytes, the declared type \(5 of fp16\) needs 10"),
    (GOOD_BLOB, 64, "float16", 2**63, "overflow a size"),
    (put(GOOD_BLOB, 80, "<Q", 2**63), 64, "float16", 6, "outside the file of 140 bytes"),
    (put(GOOD_BLOB, 80, "<Q", 2**64 - 4), 64, "float16", 6, "outside the file of 140 bytes"),
    (put(GOOD_BLOB, 80, "<Q", 130), 64, "float16", 6, "outside the file of 140 bytes"),
    (put(GOOD_BLOB, 80, "<Q", 60), 64, "float16", 6, "inside a header"),
    (put(GOOD_BLOB, 80, "<Q", 100), 64, "float16", 6, "inside a header"),
    (put(GOOD_BLOB, 72, "<QQ", 0, 130), 64, "float16", 6, "has size 0 and data offset 130"),
    (put(GOOD_BLOB, 72, "<QQ", 0, 0)[:139], 64, "float16", 6, "outside the file of 139 bytes"),
    (weights.build_blob_int8(np.zeros(70, "i1"), bare=True), 0, "int8", 70, "has no file header"),
    (weights.build_blob_int8(np.zeros(70, "i1"), bare=True), 64, "int8", 70,
     "marker at offset 0, where the file header belongs"),
    (GOOD_BLOB, 64, "bool", 12, "bool has no type code"),
])
def test_blobs_that_are_refused(data, at, dtype, count, message):
    with pytest.raises((ValueError, TypeError), match=message):
        _testing.blob_find(data, at, dtype, count)


def test_sub_byte_blob_checks_the_unused_bits():
    pieces, (at,), _ = _testing.blob_write([("uint3", 5, b"\0\0")])
    data = b"".join(pieces)
    with pytest.raises(ValueError, match="says 2 unused bits, 5 of uint3 leave 1"):
        _testing.blob_find(put(data, at + 24, "<Q", 2), at, "uint3", 5)


# ---------------------------------------------------------------- lifetime of objects


def test_types_are_collected_and_subclassable(tmp_path):
    path = tmp_path / "x"
    save_file({"a": np.zeros(1, "f4")}, path)

    class Mine(WeightFile):
        pass
    w = Mine.open(path)
    assert type(w) is Mine and len(w) == 1
    ref = weakref.ref(w)
    del w
    gc.collect()
    assert ref() is None
