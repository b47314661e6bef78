"""Tensor: making, views, bounds, NumPy interchange, closing."""

import gc
import sys
import weakref

import numpy as np
import pytest

import anetorch
from anetorch import Tensor

DTYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
          "float16", "float32", "float64"]


def sample(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.startswith(("int", "uint")):
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    return rng.normal(size=shape).astype(dtype)


LAYOUTS = {
    "contiguous": lambda x: x,
    "negative": lambda x: x[::-1, :, ::-1],
    "stepped": lambda x: x[:, ::2, 1::3],
    "fortran": np.asfortranarray,
    "transposed": lambda x: x.T,
    "permuted": lambda x: x.transpose(1, 2, 0),
    "broadcast": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "empty": lambda x: x[:, :0],
    "one": lambda x: x[:1, :1, :1],
    "scalar": lambda x: x[0, 0, 0, ...],
    "rows": lambda x: x[..., :5],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_numpy_and_back(dtype, layout):
    x = LAYOUTS[layout](sample((6, 7, 11), dtype))
    t = Tensor.from_numpy(x)
    assert (t.shape, t.dtype, t.size, t.nbytes) == (x.shape, x.dtype.name, x.size, x.nbytes)
    a = t.numpy()
    assert a.dtype == x.dtype
    np.testing.assert_array_equal(a, x)
    np.testing.assert_array_equal(np.asarray(t), x)
    assert memoryview(t).itemsize == x.itemsize


def test_numpy_shares_memory():
    t = Tensor((4, 5), "float32")
    a, b = t.numpy(), np.asarray(t)
    a[2, 3] = 7
    assert b[2, 3] == 7 and t[2, 3].item() == 7 and np.shares_memory(a, b)


def test_close_refuses_while_exported():
    t = Tensor((4, 4))
    a = np.asarray(t)
    assert t.exports == 1
    with pytest.raises(BufferError, match=r"\[close\] 1 export"):
        t.close()
    del a
    assert t.exports == 0
    t.close()
    t.close()
    assert t.closed and repr(t) == "Tensor(closed)"
    for use in (lambda: t.shape, lambda: t.numpy(), lambda: t[0], lambda: t.reshape(16),
                lambda: np.asarray(t), lambda: t.copy_from(np.zeros((4, 4), np.float32)),
                lambda: t.__enter__()):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_views_outlive_their_parent():
    with Tensor((2, 3), "int32") as t:
        t.copy_from(np.arange(6, dtype=np.int32).reshape(2, 3))
        row, ident = t[1], t.buffer_id
    assert t.closed
    assert row.tolist() == [3, 4, 5] and row.buffer_id == ident


def test_index_that_closes():
    class Closer:
        def __init__(self, t):
            self.t = t

        def __index__(self):
            self.t.close()
            return 0

    for use in (lambda t: t[Closer(t)], lambda t: t[Closer(t):], lambda t: t.reshape(Closer(t)),
                lambda t: t.view(Closer(t), (1,)), lambda t: t.permute(Closer(t)),
                lambda t: t.batch(Closer(t)), lambda t: t.fill_(Closer(t))):
        t = Tensor((4,), "int32")
        with pytest.raises(ValueError, match="closed"):
            use(t)
    t = Tensor((4,), "int32")
    t[0] = Closer(t)        # the item's own view keeps the memory
    assert t.closed


INDICES = [
    0, -1, slice(None), slice(None, None, -1), slice(1, None, 2), slice(5, 1), slice(9, 20),
    (0, 1), (slice(None), 2), (Ellipsis, 1), (None, 0), (0, Ellipsis, None),
    (slice(None, None, 2), slice(None, None, -3), slice(1, 3)), (Ellipsis,),
    (slice(-3, None), None, 1), np.int64(2), (slice(0, 1, sys.maxsize),),
]


@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_basic_indexing_is_numpys(index):
    x = sample((4, 6, 5), "float32")
    t, want = Tensor.from_numpy(x), x[index]
    got = t[index]
    assert got.shape == np.shape(want) and got.buffer_id == t.buffer_id
    np.testing.assert_array_equal(got.numpy(), want)


@pytest.mark.parametrize("index, error", [
    (4, "index 4 is out of bounds for axis 0 with size 4"),
    (-5, "index -5 is out of bounds"),
    ((0, 0, 0, 0), "4 indices for a tensor of rank 3"),
    ((Ellipsis, Ellipsis), "one ellipsis"),
    ((None,) * 6, "more than 8"),
])
def test_index_errors(index, error):
    with pytest.raises(IndexError, match=error):
        Tensor((4, 6, 5))[index]


@pytest.mark.parametrize("index", [True, 1.5, "a", [0, 1], np.array([True, False])], ids=repr)
def test_other_indices_are_type_errors(index):
    with pytest.raises(TypeError, match="indexed by integers"):
        Tensor((2, 6))[index]


def test_reshape_views():
    x = sample((4, 6, 5), "int32")
    t = Tensor.from_numpy(x)
    for shape in [(24, 5), (120,), (4, -1), (2, 2, 3, 2, 5), (1, 120, 1)]:
        np.testing.assert_array_equal(t.reshape(shape).numpy(), x.reshape(shape))
        assert t.reshape(*shape).buffer_id == t.buffer_id
    strided, xs = t[:, ::2], x[:, ::2]
    np.testing.assert_array_equal(strided.reshape(2, 2, 3, 5).numpy(), xs.reshape(2, 2, 3, 5))
    with pytest.raises(ValueError, match="without a copy"):
        strided.reshape(60)
    with pytest.raises(ValueError, match=r"shape \(7,\) has 7 elements, \(4, 6, 5\) has 120"):
        t.reshape(7)
    with pytest.raises(ValueError, match="120 elements"):
        t.reshape(-1, 7)
    assert Tensor((0, 3)).reshape(3, 0, 5).shape == (3, 0, 5)


def test_view_permute_batch_t():
    x = sample((4, 6, 5), "float16")
    t = Tensor.from_numpy(x)
    np.testing.assert_array_equal(t.permute(2, 0, -2).numpy(), x.transpose(2, 0, 1))
    np.testing.assert_array_equal(t.t.numpy(), x.swapaxes(1, 2))
    np.testing.assert_array_equal(t.batch(3).numpy(), x[3])
    np.testing.assert_array_equal(t.view(60, (2, 5)).numpy(), x[1, :2])
    np.testing.assert_array_equal(t.view(0, t.shape, "uint16").numpy(), x.view(np.uint16))
    for bad, error in [((0, 0, 1), "named twice"), ((0, 1), "2 axes for a tensor of rank 3")]:
        with pytest.raises(ValueError, match=error):
            t.permute(bad)
    with pytest.raises(IndexError, match="4 is out of bounds for 4 batches"):
        t.batch(4)
    with pytest.raises(ValueError, match="not fit the capacity of 240 bytes"):
        t.view(232, (5,))
    with pytest.raises(ValueError, match="multiple of 2"):
        t.view(3, (1,))
    with pytest.raises(ValueError, match="overflows"):
        t.view(0, (1 << 40, 1 << 40))


def test_capacity():
    t = Tensor((2, 3), "float32", capacity=1000)
    assert t.capacity_bytes == 1000 and t.nbytes == 24
    assert t.view(24, (4, 61)).shape == (4, 61)
    assert t.view(24, (2,)).capacity_bytes == 976
    with pytest.raises(ValueError, match="insufficient capacity: the shape needs 24 bytes, capacity is 8"):
        Tensor((2, 3), capacity=8)
    with pytest.raises(ValueError, match="negative"):
        Tensor((2, 3), capacity=-8)


@pytest.mark.parametrize("shape, error, match", [
    ((-1,), ValueError, "negative"),
    ((1 << 40, 1 << 40), ValueError, "overflows"),
    ((1 << 46,), MemoryError, "in all"),
    ((1,) * 9, ValueError, "at most 8"),
    ((1.5,), TypeError, "integer"),
    ("ab", TypeError, "integer"),
    ((1 << 70,), OverflowError, "fit"),
])
def test_bad_shapes(shape, error, match):
    with pytest.raises(error, match=match):
        Tensor(shape)


def test_identity_semantics():
    t, u = Tensor((2, 2)), Tensor((2, 2))
    assert t != u and t == t and len({t, u, t}) == 2
    assert t.buffer_id != u.buffer_id
    ref = weakref.ref(t)
    del t
    gc.collect()
    assert ref() is None


def test_length_hash_and_what_a_tensor_is_not():
    t = Tensor((2, 3))
    assert len(t) == 2 and len(t[0]) == 3 and len(Tensor((0, 3))) == 0
    with pytest.raises(TypeError, match="rank 0 has no length"):
        len(Tensor(()))
    assert hash(t) == hash(t) and t != t[...] and {t: 1}[t] == 1 and t != 3 and t is not None
    for use in (lambda: iter(t), lambda: 0.0 in t, lambda: t + 1, lambda: t < t):
        with pytest.raises(TypeError):      # memory, not arithmetic: nothing is silently false
            use()
    with pytest.raises(AttributeError):
        t.spelled_wrong = 1
    with pytest.raises(ValueError, match="'external' is unknown; .* Tensor.wrap"):
        Tensor((2,), mem="external")


def test_copy_from_is_strict_and_copy_is_not():
    t = Tensor((2, 3), "float16")
    with pytest.raises(TypeError, match="float16, the source float64"):
        t.copy_from(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"destination is \[2, 3\], source is \[3\]"):
        t.copy_from(np.zeros(3, np.float16))
    assert t.copy_(np.arange(3)) is t
    assert t.tolist() == [[0, 1, 2], [0, 1, 2]]
    with pytest.raises(ValueError, match="does not broadcast"):
        t.copy_(np.zeros((2, 2)))


def test_overlapping_copies():
    t = Tensor.from_numpy(np.arange(10, dtype=np.int32))
    t[1:].copy_(t[:-1])
    assert t.tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    t[::-1].copy_(t)
    assert t.tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0, 0]
    t[::2].copy_from(t[1::2])
    assert t.tolist() == [7, 7, 5, 5, 3, 3, 1, 1, 0, 0]


def test_subclass():
    class Named(Tensor):
        pass

    t = Named((2, 3))
    t.extra = 5
    assert isinstance(t, Named) and repr(t).startswith("Named(shape=(2, 3)")
    assert type(Named.from_numpy(np.zeros(2))) is Named
    assert type(t[0]) is Tensor     # a view need not keep a subclass's promises


def test_public_name():
    assert anetorch.Tensor is Tensor


def test_scalars_convert_as_values_not_as_text():
    one = Tensor.from_numpy(np.frombuffer(b"7", "u1"))     # the bytes spell another number
    assert float(one) == 55.0 and int(one) == 55
    assert float(Tensor((), "bfloat16").fill_(1.5)) == 1.5 and int(Tensor(()).fill_(-2.9)) == -2
    assert int(Tensor((), "uint64").fill_(2**64 - 1)) == 2**64 - 1
    for kind in (float, int):
        with pytest.raises(ValueError, match="2 elements, not one"):
            kind(Tensor((2,)))
    assert not Tensor(()) and Tensor(()).fill_(3) and Tensor((2,)) and not Tensor((0, 3))
    closed = Tensor(())
    closed.close()
    for kind in (float, int, bool):
        with pytest.raises(ValueError, match="closed"):
            kind(closed)


def test_negative_offset_of_view_is_named_as_given():
    with pytest.raises(ValueError, match=r"byte offset -4 \(behind 16 of this tensor"):
        Tensor((8,))[4:].view(-4, (2,))
