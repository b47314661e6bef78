"""Quantization: what a tensor's integers stand for, and what views and copies make of it."""

import copy
import multiprocessing
import pickle
import re

import numpy as np
import pytest

import anetorch
from anetorch import Quantization, Tensor

RNG = np.random.default_rng(5)
INTS = ["int8", "uint8", "int16", "uint16", "int32", "uint32"]


def ints(dtype, shape):
    info = np.iinfo(dtype)
    x = RNG.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    x.flat[:2] = info.min, info.max
    return x


def meant(x, q):
    """The real numbers in float64: exact for 8 and 16 bits."""
    def along(v):
        if q.axis is None: return np.float64(v)
        shape = [1] * x.ndim
        shape[q.axis] = -1
        return np.array(v, np.float64).reshape(shape)
    return (x.astype(np.float64) - along(q.zero_point)) * along(q.scale)


def check(t, x):
    """t's integers are x's, and mean what the float64 formula says they do."""
    np.testing.assert_array_equal(t.numpy(), x)
    np.testing.assert_array_equal(t.dequantize("float64").numpy(), meant(x, t.quantization))


# ------------------------------------------------------------------ numbers

@pytest.mark.parametrize("dtype", INTS)
@pytest.mark.parametrize("out", ["float16", "float32", "float64"])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1])
def test_dequantize_is_numpys(dtype, out, axis):
    shape = (3, 70, 129)        # several jobs, no multiple of a block
    x, info = ints(dtype, shape), np.iinfo(dtype)
    if axis is None:
        q = Quantization(np.float32(2.0 ** -7 * 1.3), int(info.max // 3))
    else:
        n = shape[axis]
        q = Quantization(RNG.uniform(1e-4, 3, n).astype(np.float32),
                         RNG.integers(info.min, info.max, n, endpoint=True), axis)
    t = Tensor.from_numpy(x)
    t.quantization = q
    got, q = t.dequantize(out), t.quantization
    assert (got.shape, got.dtype, got.quantization, got.is_contiguous) == (shape, out, None, True)
    with np.errstate(over="ignore"):
        want = meant(x, q).astype(out)
    if np.dtype(dtype).itemsize < 4 or out == "float64":
        np.testing.assert_array_equal(got.numpy(), want)    # the exact product, rounded once
    else:       # rounded to double, then to out: at most the next number
        with np.errstate(over="ignore"):
            near = np.nextafter(want, np.array(np.inf, out)), np.nextafter(want, np.array(-np.inf, out))
        assert np.isin(got.numpy() == want, True).mean() > 0.999
        assert ((got.numpy() == want) | (got.numpy() == near[0]) | (got.numpy() == near[1])).all()


def test_dequantize_to_bfloat16():
    torch = pytest.importorskip("torch")
    x = ints("int16", (33, 5))
    t = Tensor.from_numpy(x)
    t.quantization = Quantization(0.37, -9)
    want = torch.from_numpy(meant(x, t.quantization).astype(np.float64))
    got = torch.from_dlpack(t.dequantize("bfloat16")).to(torch.float64)
    # The product has at most 17 + 24 bits; torch rounds to bf16 from float64 through float32.
    assert ((got - want).abs() <= want.abs() * 2.0 ** -8).all()


def test_it_is_what_mils_dequantize_computes():
    from anetorch import mil
    x = ints("int8", (8, 6))
    scale = RNG.uniform(0.01, 1, 8).astype(np.float32)
    zero = RNG.integers(-128, 128, 8).astype(np.int8)
    program = mil.build(lambda: mil.ops.dequantize(mil.const(x), scale=mil.const(scale),
                                               zero_point=mil.const(zero), axis=0), {},
                        opset="ios17")
    t = Tensor.from_numpy(x)
    t.quantization = Quantization(scale, zero, axis=0)
    np.testing.assert_array_equal(t.dequantize().numpy(), anetorch.compile(program)().numpy())


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0), (1,)])
def test_small_shapes(shape):
    t = Tensor(shape, "int8").fill_(4)
    t.quantization = Quantization(0.5, 2)
    np.testing.assert_array_equal(t.dequantize().numpy(), np.full(shape, 1, np.float32))
    for axis in range(len(shape)):
        t.quantization = Quantization([2.0] * shape[axis], axis=axis)
        np.testing.assert_array_equal(t.dequantize().numpy(), np.full(shape, 8, np.float32))


def test_memory_kind_subclass_and_readonly():
    class Mine(Tensor): pass
    t = Mine.from_numpy(np.arange(4, dtype=np.uint8))
    t.quantization = Quantization(2)
    assert t.dequantize(mem="heap").memory == "heap"
    fixed = np.arange(4, dtype=np.int8)
    fixed.flags.writeable = False
    w = Tensor.wrap(fixed)
    w.quantization = Quantization(3)        # metadata is not the memory
    assert w.dequantize().tolist() == [0, 3, 6, 9]
    with pytest.raises(TypeError, match="expected a float type, got int32"):
        t.dequantize("int32")
    t.quantization = None
    with pytest.raises(ValueError, match="the tensor has no quantization; set"):
        t.dequantize()


# ------------------------------------------------------------------ what is refused

@pytest.mark.parametrize("args, field, expected, got", [
    ((0.0,), "scale", "a finite fp32 number above 0", "0"),
    ((-1.5,), "scale", "a finite fp32 number above 0", "-1.5"),
    ((float("nan"),), "scale", "a finite fp32 number above 0", "nan"),
    ((1e300,), "scale", "a finite fp32 number above 0", "inf"),
    ((1e-300,), "scale", "a finite fp32 number above 0", "0"),
    (([1.0, -2.0], 0, 0), "scale[1]", "a finite fp32 number above 0", "-2"),
    (("x",), "scale", "numbers", "'x'"),
    ((None,), "scale", "numbers", "None"),
    (([1.0, 2.0],), "axis", "the axis that several scales go along", "none for 2 scales"),
    ((1.0, 0, 1), "scale", "one number for each index of the axis", "1.0"),
    (([1.0, 2.0], [1, 2, 3], 0), "zero_point", "one number or 2, as there are scales", "3"),
    ((1.0, 0.5), "zero_point", "integers of 64 bits", "0.5"),
    ((1.0, 2 ** 70), "zero_point", "integers of 64 bits", str(2 ** 70)),
    (([1.0], 0, "C"), "axis", "None or an axis of a tensor", "'C'"),
    (([1.0], 0, 8), "axis", "None or an axis of a tensor", "8"),
])
def test_values_that_no_tensor_could_have(args, field, expected, got):
    with pytest.raises(ValueError, match=re.escape(
            f"[quantization] {field}: expected {expected}, got {got}") + "$"):
        Quantization(*args)


@pytest.mark.parametrize("dtype, q, message", [
    ("float32", Quantization(1), "dtype: expected an integer of 8, 16 or 32 bits, got float32"),
    ("int64", Quantization(1), "dtype: expected an integer of 8, 16 or 32 bits, got int64"),
    ("bool", Quantization(1), "dtype: expected an integer of 8, 16 or 32 bits, got bool"),
    ("int8", Quantization(1, 128), "zero_point: expected a number of int8, -128 to 127, got 128"),
    ("uint8", Quantization(1, -1), "zero_point: expected a number of uint8, 0 to 255, got -1"),
    ("uint16", Quantization([1, 1, 1], [0, 1 << 16, 0], 1),
     "zero_point[1]: expected a number of uint16, 0 to 65535, got 65536"),
    ("int8", Quantization([1, 2], axis=1), "scale: expected 3 values, the length of axis 1, got 2"),
    ("int8", Quantization([1, 2], axis=2), "axis: expected an axis of a tensor of rank 2, got 2"),
    ("int8", Quantization([1, 2], axis=-3), "axis: expected an axis of a tensor of rank 2, got -3"),
])
def test_what_does_not_fit_the_tensor(dtype, q, message):
    t = Tensor((2, 3), dtype)
    with pytest.raises(ValueError, match=re.escape("[quantization] " + message) + "$"):
        t.quantization = q
    assert t.quantization is None


def test_other_objects_and_closed_tensors():
    t = Tensor(3, "int8")
    with pytest.raises(TypeError, match="expected a Quantization or None, got 0.5"):
        t.quantization = 0.5
    q = Quantization(1)
    with pytest.raises(AttributeError):
        q.scale = 2
    t.close()
    for use in (lambda: t.quantization, lambda: setattr(t, "quantization", q), t.dequantize):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_the_object():
    a, b = Quantization((0.5, 0.1), 3, axis=1), Quantization([0.5, 0.1], [3, 3], 1)
    assert a == b and hash(a) == hash(b) and a != Quantization((0.5, 0.1), 4, 1) and a != 3
    assert pickle.loads(pickle.dumps(a)) == a
    assert (a.scale, a.zero_point, a.axis) == ((0.5, float(np.float32(0.1))), (3, 3), 1)
    one = Quantization(0.1, 7)
    assert (one.scale, one.zero_point, one.axis) == (float(np.float32(0.1)), 7, None)
    assert Quantization(1).zero_point == 0 and Quantization(1) == Quantization(1, 0)
    assert repr(one) == "Quantization(scale=0.1, zero_point=7)"
    assert repr(a) == "Quantization(scale=(0.5, 0.1), zero_point=(3, 3), axis=1)"
    assert repr(Quantization([1 / 3], axis=0)) == "Quantization(scale=(0.33333334,), axis=0)"
    assert eval(repr(a)) == a and eval(repr(one)) == one
    many = Quantization(np.ones(6), axis=-1)
    assert repr(many) == "Quantization(scale=(1, 1, 1, 1, ...), axis=-1)"
    t = Tensor((2, 6), "int8", "heap")
    t.quantization = many
    assert t.quantization.axis == 1
    assert repr(t).endswith("memory='heap', quantization=Quantization(scale=(1, 1, 1, 1, ...), axis=1))")
    assert ("quantization", t.quantization) in t.__rich_repr__()


# ------------------------------------------------------------------ views

def channels(axis=1):
    """Rectangular, each channel with another scale and zero point."""
    x = ints("int8", (2, 5, 3, 4))
    t = Tensor.from_numpy(x)
    n = x.shape[axis]
    t.quantization = Quantization(2.0 ** np.arange(n), np.arange(n) - 2, axis)
    return t, x


@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("key", [
    np.s_[1], np.s_[-1], np.s_[:, 2], np.s_[:, 1:4], np.s_[:, ::-1], np.s_[:, 4:0:-2], np.s_[:, 5:],
    np.s_[..., 1], np.s_[..., 1:3], np.s_[None], np.s_[:, None, 1:], np.s_[1, 2, 0], np.s_[1, 2, 0, 3],
    np.s_[:, :, None, ::-1, ...], np.s_[::2, ..., ::3],
], ids=str)
def test_indexing(axis, key):
    t, x = channels(axis)
    check(t[key], x[key])


def test_views_of_channels():
    t, x = channels()
    check(t.permute(3, 1, 0, 2), x.transpose(3, 1, 0, 2))
    check(t.permute(1, 0, 2, 3)[::2].t, x.transpose(1, 0, 2, 3)[::2].swapaxes(2, 3))
    check(t.t, x.swapaxes(2, 3))
    last, y = channels(3)
    check(last.t, y.swapaxes(2, 3))
    assert last.t.quantization.axis == 2
    check(t.batch(1), x[1])
    assert t[:, 2].quantization == Quantization(4.0, 0)     # one channel is a tensor of its own
    assert t.quantization.axis == 1 and t[0].quantization.axis == 0


@pytest.mark.parametrize("shape, axis", [
    ((2, 5, 12), 1), ((1, 2, 5, 3, 4), 2), ((2, 5, 3, 2, 2), 1), ((2, 5, -1), 1), ((2, 1, 5, 12), 2),
])
def test_reshape_that_keeps_the_channels(shape, axis):
    t, x = channels()
    check(t.reshape(shape), x.reshape(shape))
    assert t.reshape(shape).quantization.axis == axis


@pytest.mark.parametrize("shape", [(10, 12), (-1,), (5, 2, 12), (2, 15, 4), (4, 5, 6)])
def test_reshape_that_mixes_channels_raises(shape):
    t, x = channels()
    want = re.escape("[quantization] axis: expected a shape that keeps axis 1 with its 5 scales, got")
    with pytest.raises(ValueError, match=want):
        t.reshape(shape)
    t.quantization = Quantization(0.5, 1)       # one scale goes everywhere
    check(t.reshape(shape), x.reshape(shape))


def test_reshape_of_one_channel():
    t, x = channels()
    check(t[:, 3:4].contiguous().reshape(-1), x[:, 3:4].reshape(-1))


def test_view_of_bytes():
    t, x = channels()
    assert t.view(0, t.shape).quantization is None          # bytes from anywhere
    t.quantization = Quantization(0.5, 1)
    check(t.view(4, (3, 2)), x.reshape(-1)[4:10].reshape(3, 2))
    assert t.view(0, t.shape, "uint8").quantization is None


def test_views_have_their_own():
    t, _ = channels()
    v = t[0]
    v.quantization = None
    assert t.quantization is not None
    t.quantization = Quantization(1)
    assert v.quantization is None
    del t.quantization
    assert t.quantization is None


# ------------------------------------------------------------------ copies, other processes

def test_copies():
    t, x = channels()
    check(t.permute(3, 1, 0, 2).contiguous(), x.transpose(3, 1, 0, 2))
    check(pickle.loads(pickle.dumps(t)), x)
    check(copy.copy(t.t), x.swapaxes(2, 3))
    # Moves of stored integers, which leave both sides' metadata alone.
    u = Tensor(t.shape, "int8")
    u.copy_from(t)
    assert u.quantization is None
    u.quantization = Quantization(8)
    u.copy_(t)
    u[0] = 3
    u.fill_(1)
    assert u.quantization == Quantization(8)
    assert Tensor.from_numpy(t).quantization is None and Tensor.from_dlpack(t).quantization is None
    shared = Tensor(3, "int8", "shm")
    shared.quantization = Quantization(1)
    assert Tensor.lookup(shared.id).quantization is None        # an id names memory
    assert anetorch.TensorPool().empty(3, "int8").quantization is None


def receive(pipe):
    t = pipe.recv()
    pipe.send((t.quantization, t.dequantize().numpy()))
    t.fill_(9)
    pipe.send("written")


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("mem", ["shm", "heap"])
def test_another_process(method, mem):
    x = ints("int16", (4, 3))
    t = Tensor.from_numpy(x, mem)
    t.quantization = Quantization([1, 2, 4], axis=1)
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    child = context.Process(target=receive, args=(there,))
    child.start()
    here.send(t)
    q, values = here.recv()
    assert here.recv() == "written"
    child.join()
    assert q == t.quantization
    np.testing.assert_array_equal(values, meant(x, q).astype(np.float32))
    assert (t.numpy() == 9).all() == (mem == "shm")


def test_a_failed_runs_integers_do_not_dequantize():
    t = Tensor(4, "int8")
    t.quantization = Quantization(1)
    anetorch._core._testing.invalidate(t, 0, 4, "the run failed")
    with pytest.raises(RuntimeError, match="the run failed"):
        t.dequantize()
