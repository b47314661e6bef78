"""NumPy's __array__, DLPack with NumPy, PyTorch, JAX; ml_dtypes; rich; pickles."""

import copy
import pickle
import sys
import threading

import numpy as np
import pytest

from anetorch import Tensor


def iota(*shape, dtype="float32"):
    return Tensor.from_numpy(np.arange(np.prod(shape), dtype=dtype).reshape(shape))


# ---------------------------------------------------------------- __array__

def test_array_protocol():
    t = iota(2, 3)
    assert t.exports == 0
    a = np.array(t, copy=None)
    assert np.shares_memory(a, t.numpy())
    assert not np.shares_memory(np.array(t), a)
    assert np.asarray(t, dtype="float64").dtype == np.float64
    b = t.__array__(copy=True)
    assert b.base is None and (b == a).all()
    assert t.__array__(np.float32, copy=False).base is not None
    with pytest.raises(ValueError, match="copy=False"):
        t.__array__("float64", copy=False)
    with pytest.raises(ValueError, match="copy|Unable"):
        np.array(t, dtype="int8", copy=False)
    assert (t.numpy() + np.ones(3, np.float32)).shape == (2, 3)


def test_bfloat16_with_ml_dtypes():
    ml = pytest.importorskip("ml_dtypes", reason="NumPy's bfloat16 is ml_dtypes'")
    x = np.arange(6, dtype=np.float32).reshape(2, 3).astype(ml.bfloat16)
    t = Tensor.from_numpy(x.T)
    assert t.dtype == "bfloat16" and t.numpy().dtype == ml.bfloat16
    assert (t.numpy() == x.T).all() and (np.asarray(t) == x.T).all()
    assert Tensor((2,), ml.bfloat16).dtype == Tensor((2,), "bf16").dtype == "bfloat16"
    a = t.numpy()
    assert t.exports == 1
    with pytest.raises(BufferError):
        t.close()
    del a
    with pytest.raises(BufferError, match="bfloat16"):
        memoryview(t)
    t.close()


def test_bfloat16_without_ml_dtypes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    t = Tensor((2,), "bf16")
    with pytest.raises(TypeError, match="install ml_dtypes"):
        t.numpy()
    assert t.fill_(2).tolist() == [2, 2] and t.exports == 0


@pytest.mark.parametrize("dtype", [">f4", "complex64", "M8[s]", "U3", "O", "longdouble",
                                   [("a", "f4")]])
def test_unsupported_dtypes(dtype):
    with pytest.raises(TypeError, match="not supported"):
        Tensor((2,), np.dtype(dtype))
    if dtype == ">f4":      # values can be had in native order
        assert Tensor.from_numpy(np.ones(2, dtype)).tolist() == [1, 1]
    else:
        with pytest.raises(TypeError, match="not supported"):
            Tensor.from_numpy(np.zeros(2, dtype))


def test_bfloat16_rounding_is_to_nearest_even():
    f = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    bits = Tensor(f.shape, "bf16").copy_(f).view(0, f.shape, "uint16").numpy()
    u = f.view(np.uint32).astype(np.uint64)
    np.testing.assert_array_equal(bits, (u + 0x7fff + (u >> 16 & 1)) >> 16)


def test_wrap_shares_and_keeps_alive():
    x = np.arange(6, dtype=np.int32)
    t = Tensor.wrap(x[::-2])
    x[5] = 50
    assert t.tolist() == [50, 3, 1] and t.memory == "external"
    t.fill_(9)
    del x
    assert t.tolist() == [9, 9, 9]
    assert Tensor.wrap(bytearray(b"ab")).tolist() == [97, 98]
    assert Tensor.wrap(b"ab").readonly
    with pytest.raises(TypeError, match="buffer protocol"):
        Tensor.wrap([1, 2])
    misaligned = np.zeros(9, np.uint8)[1:].view(np.float32)
    with pytest.raises(ValueError, match="aligned"):
        Tensor.wrap(misaligned)
    np.testing.assert_array_equal(Tensor.from_numpy(misaligned).numpy(), 0)


# ---------------------------------------------------------------- DLPack

def test_dlpack_numpy_both_ways():
    t = iota(2, 3)
    a = np.from_dlpack(t)
    a[0, 0] = 42
    assert t[0, 0].item() == 42 and t.exports == 1
    with pytest.raises(BufferError):
        t.close()
    del a
    assert t.exports == 0 and t.__dlpack_device__() == (1, 0)
    x = np.arange(24).reshape(2, 3, 4)
    for view in (x, x[::-1, :, ::2], x.T, x[:, :0], x[0, 0, 0, ...]):
        u = Tensor.from_dlpack(view)
        np.testing.assert_array_equal(u.numpy(), view)
        assert u.shape == view.shape
    x[0, 0, 0] = 99
    assert Tensor.from_dlpack(x)[0, 0, 0].item() == 99


def test_dlpack_read_only_is_honest():
    x = np.arange(3.0)
    x.flags.writeable = False
    t = Tensor.from_dlpack(x)
    assert t.readonly
    assert not np.from_dlpack(t).flags.writeable
    with pytest.raises(BufferError, match="read-only"):
        t.__dlpack__()
    assert Tensor.from_dlpack(t.__dlpack__(copy=True)).tolist() == [0, 1, 2]


def test_dlpack_capsules():
    t = iota(4)
    for kw, name in [({}, "dltensor"), ({"max_version": (1, 0)}, "dltensor_versioned"),
                     ({"max_version": (0, 8)}, "dltensor")]:
        c = t.__dlpack__(**kw)
        assert f'"{name}"' in repr(c) and t.exports == 1
        del c
        assert t.exports == 0
        c = t.__dlpack__(**kw)
        u = Tensor.from_dlpack(c)
        assert u.tolist() == [0, 1, 2, 3] and u.readonly == (name == "dltensor")
        with pytest.raises(TypeError, match="not consumed yet"):
            Tensor.from_dlpack(c)
        assert t.exports == 1
        u.close()
        assert t.exports == 0
    u = Tensor.from_dlpack(t.__dlpack__(copy=True, max_version=(1, 1)))
    assert u.buffer_id != t.buffer_id and t.exports == 0


def test_dlpack_refusals():
    t = iota(4)
    with pytest.raises(BufferError, match="stream"):
        t.__dlpack__(stream=1)
    with pytest.raises(BufferError, match=r"not on \(2, 0\)"):
        t.__dlpack__(dl_device=(2, 0))
    with pytest.raises(TypeError):
        t.__dlpack__(max_version=3)
    with pytest.raises(AttributeError):
        Tensor.from_dlpack(3)
    with pytest.raises(TypeError, match="not supported"):
        Tensor.from_dlpack(np.zeros(2, np.complex64))
    odd = Tensor((8,), "uint8").view(0, (2, 4), "uint8")
    assert np.from_dlpack(odd).shape == (2, 4)


def test_dlpack_old_producer():
    class Old:
        def __init__(self):
            self.t = iota(3)

        def __dlpack__(self, stream=None):
            return self.t.__dlpack__()

    assert Tensor.from_dlpack(Old()).tolist() == [0, 1, 2]


@pytest.mark.oracle
def test_torch_both_ways():
    torch = pytest.importorskip("torch", reason="PyTorch interchange")
    for name in ["float16", "float32", "float64", "bfloat16", "bool", "int8", "uint8", "int16",
                 "int32", "int64"]:
        t = Tensor((2, 3), name)
        p = torch.from_dlpack(t)
        assert str(p.dtype) == f"torch.{name}" and tuple(p.shape) == (2, 3)
        p[1, 2] = 1
        assert t[1, 2].item() == 1
        del p
        assert t.exports == 0
        u = Tensor.from_dlpack(torch.ones(3, 2, dtype=getattr(torch, name)).T)
        assert u.dtype == name and u.shape == (2, 3) and u[1, 1].item() == 1
    p = torch.arange(6.0).reshape(2, 3)
    u = Tensor.from_dlpack(p)
    u[0, 0] = 9
    assert p[0, 0] == 9 and not u.readonly
    del p
    assert u.tolist()[0] == [9, 1, 2]


@pytest.mark.oracle
def test_torch_releases_from_another_thread():
    torch = pytest.importorskip("torch", reason="PyTorch interchange")
    t = iota(1000)
    box = [torch.from_dlpack(t)]
    th = threading.Thread(target=box.clear)
    th.start()
    th.join()
    assert t.exports == 0


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["float16", "float32", "bfloat16", "int8", "uint8", "int16",
                                  "uint16", "int32", "uint32", "bool"])
def test_jax_both_ways(name):
    jax = pytest.importorskip("jax", reason="JAX interchange")
    t = Tensor((2, 3), name)
    for i in range(6):
        t.reshape(6)[i] = i % 2 if name == "bool" else i
    x = jax.dlpack.from_dlpack(t)
    assert (x.shape, x.dtype.name) == ((2, 3), name)
    assert np.asarray(x).tolist() == t.tolist()
    # Surfaces are aligned as JAX wants it: no copy. JAX's arrays never change, ours may.
    address = t.view(0, (t.nbytes,), "uint8").numpy().ctypes.data
    assert x.unsafe_buffer_pointer() == address and t.exports >= 1
    with pytest.raises(BufferError):
        t.close()
    t[1, 2] = 0
    assert np.asarray(x)[1, 2] == 0
    del x
    assert t.exports == 0
    # And back: a view of JAX's memory, which nobody may write.
    y = jax.numpy.arange(6).reshape(2, 3).astype(name)
    u = Tensor.from_dlpack(y)
    assert (u.shape, u.dtype, u.memory, u.readonly) == ((2, 3), name, "external", True)
    assert u.tolist() == np.asarray(y).tolist()
    assert u.view(0, (u.nbytes,), "uint8").numpy().ctypes.data == y.unsafe_buffer_pointer()
    want = u.tolist()
    del y
    assert u.tolist() == want
    with pytest.raises(ValueError, match="read-only"):
        u.fill_(1)


@pytest.mark.oracle
def test_jax_takes_what_is_read_only_as_a_copy_or_not_at_all():
    jax = pytest.importorskip("jax", reason="JAX interchange")
    x = np.arange(3, dtype=np.float32)
    x.flags.writeable = False
    t = Tensor.from_dlpack(x)
    try:
        y = jax.dlpack.from_dlpack(t)
    except BufferError:                 # it asked without versions, and was told
        y = jax.numpy.asarray(t.numpy())
    assert np.asarray(y).tolist() == [0, 1, 2]


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["float16", "float32", "bfloat16", "int8", "uint8", "int16",
                                  "uint16", "int32", "uint32", "int64", "uint64"])
def test_mlx_both_ways(name):
    mx = pytest.importorskip("mlx.core", reason="MLX interchange")
    t = Tensor((2, 3), name)
    for i in range(6):
        t.reshape(6)[i] = i
    x = mx.from_dlpack(t) if name == "bfloat16" else mx.array(t)
    assert (x.shape, str(x.dtype)) == ((2, 3), f"mlx.core.{name}")
    assert x.tolist() == t.tolist()
    del x
    assert t.exports == 0               # MLX copied, or let go
    y = mx.arange(6).reshape(2, 3).astype(getattr(mx, name))
    u = Tensor.from_dlpack(y)
    assert (u.shape, u.dtype, u.memory) == ((2, 3), name, "external")
    assert u.tolist() == [[0, 1, 2], [3, 4, 5]]
    v = Tensor.from_dlpack(mx.transpose(y))
    assert v.tolist() == [[0, 3], [1, 4], [2, 5]]
    del y
    assert u.tolist() == [[0, 1, 2], [3, 4, 5]]
    if name != "bfloat16":              # the buffer protocol has no code for it
        assert Tensor.wrap(mx.arange(3).astype(getattr(mx, name))).tolist() == [0, 1, 2]


# ---------------------------------------------------------------- the rest

def test_rich_repr():
    t = Tensor((2, 3), "float16", name="scores")
    assert dict(t.__rich_repr__()) == {"shape": (2, 3), "dtype": "float16",
                                       "memory": t.memory, "nbytes": 12, "name": "scores"}
    assert dict(t.t.__rich_repr__())["strides"] == (2, 6)
    assert "name='scores'" in repr(t)
    t.close()
    assert dict(t.__rich_repr__()) == {"closed": True}


def test_pickle_and_copy_are_by_value():
    class_ = Tensor
    for t in (iota(4, 6)[::2, ::3], Tensor((), "int8").fill_(5), Tensor((0, 3)),
              Tensor((3,), "bf16", mem="heap").fill_(1.5)):
        for u in (pickle.loads(pickle.dumps(t)), copy.deepcopy(t), copy.copy(t)):
            assert type(u) is class_ and u.tolist() == t.tolist() and u.dtype == t.dtype
            assert u.shape == t.shape and u.buffer_id != t.buffer_id and u.is_contiguous
            assert u.memory == t.memory
    with pytest.raises(ValueError, match="bytes for a shape"):
        Tensor._from_value((3,), "float32", "heap", b"abc")


def test_sizeof_counts_what_it_made():
    t = Tensor((1000,), "float32")
    assert 4000 <= sys.getsizeof(t) < 20000
    assert sys.getsizeof(t[1:]) < 1000
