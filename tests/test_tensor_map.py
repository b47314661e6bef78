"""Maps: modes, counted locks, flat access, refusals."""

import gc
import threading
import weakref

import numpy as np
import pytest

from anetorch import Tensor


def iota(*shape, dtype="float32"):
    return Tensor.from_numpy(np.arange(np.prod(shape), dtype=dtype).reshape(shape))


@pytest.mark.parametrize("dtype, code", [
    ("bool", "?"), ("int8", "b"), ("uint8", "B"), ("int16", "h"), ("uint16", "H"),
    ("int32", "i"), ("uint32", "I"), ("int64", "q"), ("uint64", "Q"), ("float16", "e"),
    ("float32", "f"), ("float64", "d")])
def test_buffer_format(dtype, code):
    t = Tensor((2, 3), dtype)
    for exporter in (t, t.map("r")):
        with memoryview(exporter) as v:
            assert (v.format, v.ndim, v.shape, v.itemsize) == (code, 2, (2, 3), t.itemsize)
            assert v.readonly == (exporter is not t)
        with pytest.raises(ValueError, match="released"):
            v.tolist()


def test_modes():
    t = iota(2, 3)
    with t.map("r") as m:
        assert m.mode == "r" and not m.numpy().flags.writeable and m[4] == 4
        with pytest.raises(TypeError, match="mode 'r'"):
            m[0] = 1
        assert memoryview(m).readonly
    with t.map() as m:
        assert m.mode == "rw" and len(m) == 6
        m[-1] = 50
        m.numpy()[0, 0] = 7
    with t.map("w") as m:
        m[1] = 9
    assert t.tolist() == [[7, 9, 2], [3, 4, 50]]
    with pytest.raises(ValueError, match="none of 'r', 'w', 'rw'"):
        t.map("x")


def test_flat_access_is_logical_order():
    x = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    for view in (lambda a: a, lambda a: a[::-1, 1:3, ::2], lambda a: a[1]):
        t, want = view(Tensor.from_numpy(x)), view(x)
        with t.map("r") as m:
            assert [m[i] for i in range(len(m))] == want.ravel().tolist()
            for bad in (len(m), -len(m) - 1):
                with pytest.raises(IndexError, match=f"{bad} is out of bounds for {len(m)}"):
                    m[bad]
            with pytest.raises(TypeError, match="flat integer"):
                m[0:1]


def test_use_after_exit():
    t = iota(4)
    with t.map() as m:
        pass
    m.unmap()
    for use in (lambda: m[0], lambda: m.__setitem__(0, 1), lambda: m.numpy(),
                lambda: memoryview(m), lambda: m.__enter__()):
        with pytest.raises(BufferError, match="left"):
            use()
    assert not m.mapped and "unmapped" in repr(m)


def test_unmap_refuses_while_exported_and_finishes_later():
    t = iota(4)
    with pytest.raises(BufferError, match="1 export"):
        with t.map() as m:
            a = m.numpy()
    assert m.mapped                 # still locked for a's sake
    with pytest.raises(BufferError, match="left"):
        m[0]                        # but nothing new starts
    a[0] = 5
    del a
    assert not m.mapped and t[0].item() == 5


def test_map_outlives_tensor():
    t = iota(4)
    m = t.map()
    ref = weakref.ref(t)
    t.close()
    del t
    gc.collect()
    assert ref() is None and m[3] == 3
    a = m.numpy()
    del m
    assert a.tolist() == [0, 1, 2, 3]


def test_nested_and_concurrent():
    t = iota(1000)
    with t.map("r") as a, t.map("r") as b, t.map() as c:
        c[5] = 77
        assert a[5] == b[5] == 77
    errors = []

    def work(k):
        try:
            for i in range(200):
                with t.map("rw" if k % 2 else "r") as m:
                    if k % 2:
                        m[k] = i
                    else:
                        m[k]
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for th in threads:
        th.start()
    for th in threads:
        th.join()
    assert not errors and t[3].item() == 199


def test_read_only_memory():
    x = np.arange(3.0)
    x.flags.writeable = False
    t = Tensor.wrap(x)
    assert t.readonly and not t.numpy().flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        t.map("rw")
    with t.map("r") as m:
        assert m[2] == 2
    for write in (lambda: t.fill_(1), lambda: t.copy_from(x), lambda: t.copy_(1.0),
                  lambda: t.__setitem__(0, 1)):
        with pytest.raises(ValueError, match="read-only"):
            write()
    assert memoryview(t).readonly


@pytest.mark.parametrize("dtype, value, error", [
    ("int8", 128, OverflowError), ("uint8", -1, OverflowError), ("uint64", -1, OverflowError),
    ("uint64", 2**64, OverflowError), ("int64", 2**63, OverflowError), ("int32", 1.5, TypeError),
    ("float32", "a", TypeError), ("bool", None, TypeError)])
def test_bad_values(dtype, value, error):
    with Tensor((2,), dtype).map() as m, pytest.raises(error):
        m[0] = value


@pytest.mark.parametrize("dtype, value", [
    ("int8", -128), ("uint64", 2**64 - 1), ("int64", -2**63), ("float16", 1.5), ("bf16", 1.5),
    ("bool", True), ("float64", 1e300), ("uint32", 2**32 - 1)])
def test_values_survive(dtype, value):
    with Tensor((2,), dtype).map() as m:
        m[1] = value
        assert m[1] == value and type(m[1]) is type(value) and m[0] == 0


def test_value_that_unmaps():
    m = Tensor((2,), "int32").map()

    class Unmapper:
        def __index__(self):
            m.unmap()
            return 1

    with pytest.raises(BufferError):
        m[0] = Unmapper()
    with pytest.raises(BufferError):
        m[Unmapper()]
