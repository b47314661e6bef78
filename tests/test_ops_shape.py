"""Data movement against NumPy: exact for every dtype."""

from __future__ import annotations

import numpy as np
import pytest

import opcase
from opcase import A, FIB, run, same

IOS16 = {"opset": "ios16"}


@pytest.mark.parametrize("dtype", A)
def test_every_dtype_moves(dtype):
    """The ios17 widening, through one op of each kind."""
    x = opcase.data((2, 3, 4), dtype)
    same(run("reshape", {"x": x}, shape=[3, 8]), x.reshape(3, 8))
    same(run("transpose", {"x": x}, perm=[2, 0, 1]), x.transpose(2, 0, 1))
    same(run("expand_dims", {"x": x}, axes=[0, -1]), x[None, ..., None])
    same(run("slice_by_size", {"x": x}, begin=[0, 1, 2], size=[-1, 2, 1]), x[:, 1:3, 2:3])
    same(run("slice_by_index", {"x": x}, begin=[0, 2, 0], end=[2, 0, 4], stride=[1, -1, 2]),
         x[0:2, 2:0:-1, 0:4:2])
    same(run("reverse", {"x": x}, axes=[1]), x[:, ::-1])
    same(run("sliding_windows", {"x": x}, axis=2, size=3),
         np.lib.stride_tricks.sliding_window_view(x, 3, 2))
    if dtype not in FIB:
        for op, kw in (("reshape", {"shape": [24]}), ("transpose", {"perm": [0, 1, 2]}),
                       ("reverse", {})):
            with pytest.raises(TypeError, match=f"{op}.*x expects"):
                run(op, {"x": x}, **IOS16, **kw)


RESHAPE = [((2, 3, 4), [4, 6]), ((2, 3, 4), [-1]), ((2, 3, 4), [2, -1]), ((24,), [2, 3, 2, 2, 1]),
           ((1,), []), ((), [1, 1]), ((0, 3), [3, -1, 5]), ((2, 3), [0, -1]), ((2, 3), [0, 0])]


@pytest.mark.parametrize("shape, to", RESHAPE)
@pytest.mark.parametrize("opset", ["ios16", "ios17"])
def test_reshape(shape, to, opset):
    x = opcase.data(shape)
    dims = [shape[i] if d == 0 and i < len(shape) and x.size else d for i, d in enumerate(to)]
    same(run("reshape", {"x": x}, opset, shape=np.array(to, np.int32)), x.reshape(dims))
    same(run("reshape", {"x": x, "shape": np.array(to, np.int32)}, opset), x.reshape(dims))


def test_reshape_zero_counts_from_the_right_since_ios17():
    x = opcase.data((2, 50))
    same(run("reshape", {"x": x}, "ios17", shape=[1, 0, -1, 0]), x.reshape(1, 1, 2, 50))
    with pytest.raises(ValueError, match="reshape.*0 in 'shape' needs 2 entries.*got 4"):
        run("reshape", {"x": x}, "ios16", shape=[1, 0, -1, 0])


def test_reshape_symbols():
    x = opcase.data((5, 4, 1))
    p, _ = opcase.build("reshape", {"x": x}, shapes={"x": (None, 4, 1)}, shape=[-1, 2, 2])
    out = p.block_info(p.functions()[0][2])["outputs"][0]
    assert p.value_info(out)["type"][2][1:] == (2, 2)
    same(run("reshape", {"x": x}, shapes={"x": (None, 4, 1)}, shape=[-1, 2, 2]), x.reshape(5, 2, 2))


@pytest.mark.parametrize("to, message", [
    ([5, 5], r"24 elements.*25"), ([-1, -1], "more than one -1"), ([-2, 12], "-2"),
    ([-1, 7], "multiple of 7"), ([1] * 9, "at most 8 dimensions")])
def test_reshape_errors(to, message):
    x = opcase.data((2, 3, 4))
    with pytest.raises(ValueError, match=f"reshape.*{message}"):
        run("reshape", {"x": x}, shape=np.array(to, np.int32))


def test_reshape_like():
    x, a, b = opcase.data((6, 10)), opcase.data((4, 5)), opcase.data((3, 2, 2))
    got = run("reshape_like", {"x": x, "ref_tensors": [a, b]}, begins=(np.int32(1), np.int32(0)),
              ends=(np.int32(2), np.int32(1)), end_masks=(False, True))
    same(got, x.reshape(5, 3, 2, 2))
    with pytest.raises(ValueError, match="reshape_like.*60 elements.*15"):
        run("reshape_like", {"x": x, "ref_tensors": [a, b]}, begins=(np.int32(1), np.int32(0)),
            ends=(np.int32(2), np.int32(1)), end_masks=(False, False))


@pytest.mark.parametrize("shape, perm", [((), []), ((5,), [0]), ((2, 3), [1, 0]), ((2, 3, 5), [1, 2, 0]),
                                         ((2, 3, 5, 7), [-1, 0, -2, 1]), ((2, 1, 3, 2, 5), [4, 2, 0, 1, 3]),
                                         ((3, 0, 2), [2, 0, 1])])
def test_transpose(shape, perm):
    x = opcase.data(shape)
    same(run("transpose", {"x": x}, perm=np.array(perm, np.int32)), np.transpose(x, perm))


@pytest.mark.parametrize("perm, message", [([0, 1], "3 elements, got 2"), ([0, 1, 1], "dimension 1 twice"),
                                           ([0, 1, 3], "perm.*3")])
def test_transpose_errors(perm, message):
    with pytest.raises((ValueError, IndexError), match=f"transpose.*{message}"):
        run("transpose", {"x": np.zeros((2, 3, 4), "f4")}, perm=perm)


@pytest.mark.parametrize("shape, axes", [((), [0]), ((), [0, 1]), ((3,), [1]), ((3, 4), [0, 2]),
                                         ((3, 4), [-1, 0]), ((3, 4), [1, 2, 4])])
def test_expand_dims(shape, axes):
    x = opcase.data(shape)
    same(run("expand_dims", {"x": x}, axes=axes), np.expand_dims(x, tuple(axes)))


@pytest.mark.parametrize("shape, axes, want", [
    ((1, 3, 1), None, (3,)), ((1, 3, 1), [0], (3, 1)), ((1, 3, 1), [-1, 1], (1, 3)), ((1,), None, ()),
    ((2, 3), [0], (2, 3)), ((2, 3), None, (2, 3))])
def test_squeeze(shape, axes, want):
    x = opcase.data(shape)
    kw = {} if axes is None else {"axes": axes}
    same(run("squeeze", {"x": x}, **kw), x.reshape(want))


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3, 3])
def test_flatten2d(axis):
    x = opcase.data((2, 3, 5))
    k = axis % 3 if axis < 0 else axis
    same(run("flatten2d", {"x": x}, axis=axis), x.reshape(int(np.prod(x.shape[:k])), -1))


SLICES = [([0, 0], [3, 5]), ([1, 2], [2, 5]), ([-2, 1], [-1, -1]), ([0, 0], [0, 5]), ([-9, 0], [9, 2])]


@pytest.mark.parametrize("begin, end", SLICES)
@pytest.mark.parametrize("stride", [None, [1, 1], [2, 3]])
def test_slice_by_index(begin, end, stride):
    x = opcase.data((3, 5))
    kw = {} if stride is None else {"stride": stride}
    s = stride or [1, 1]
    ref = x[tuple(slice(b, e, k) for b, e, k in zip(begin, end, s))]
    same(run("slice_by_index", {"x": x}, begin=begin, end=end, **kw), ref)
    same(run("slice_by_index", {"x": x, "begin": np.int32(begin), "end": np.int32(end)}, **kw), ref)


def test_slice_by_index_masks():
    x = opcase.data((4, 5, 6))
    m = {"begin": [1, 4, -2], "end": [3, 1, 0]}
    same(run("slice_by_index", {"x": x}, **m, stride=[1, -1, -2], begin_mask=[True, False, True],
             end_mask=[False, True, True]), x[:3, 4::-1, ::-2])
    same(run("slice_by_index", {"x": x}, **m, end_mask=[True] * 3, squeeze_mask=[False, True, True]),
         x[1:, 4, -2])
    same(run("slice_by_index", {"x": x}, **m, squeeze_mask=[True] * 3), x[1, 4, -2])
    same(run("slice_by_index", {"x": x}, begin=[0, 0, 5], end=[0, 0, 0], stride=[-1, 1, -1],
             begin_mask=[True] * 2 + [False], end_mask=[True] * 3), x[::-1, :, 5::-1])


def test_slice_by_index_unknown_dims():
    x = opcase.data((4, 5))
    for begin, end, want in (([0, 1], [4, 3], x[0:4, 1:3]), ([-2, 0], [-1, 5], x[-2:-1, 0:5])):
        same(run("slice_by_index", {"x": x}, shapes={"x": (None, 5)}, begin=begin, end=end), want)


@pytest.mark.parametrize("kw, message", [
    ({"begin": [0], "end": [1, 2]}, "'begin' must have 2 elements, got 1"),
    ({"begin": [2, 0], "end": [1, 5]}, r"begin\[0\] is 2 and end\[0\] is 1"),
    ({"begin": [0, 0], "end": [3, 5], "stride": [1, 0]}, r"stride\[1\] is 0"),
    ({"begin": [3, 0], "end": [0, 5], "squeeze_mask": [True, False]}, r"begin\[0\] is 3, dimension 0 is 3")])
def test_slice_by_index_errors(kw, message):
    with pytest.raises((ValueError, IndexError), match=f"slice_by_index.*{message}"):
        run("slice_by_index", {"x": np.zeros((3, 5), "f4")}, **kw)


def test_slice_update():
    x, u = opcase.data((4, 5)), opcase.data((2, 3), seed=1)
    ref = x.copy()
    ref[1:3, 0:5:2] = u
    same(run("slice_update", {"x": x, "update": u}, begin=[1, 0], end=[3, 5], stride=[1, 2]), ref)
    ref = x.copy()
    ref[2] = u[0, 0] * np.ones(5, "f4")
    same(run("slice_update", {"x": x, "update": u[0, 0] * np.ones(5, "f4")}, begin=[2, 0], end=[0, 5],
             squeeze_mask=[True, False]), ref)
    with pytest.raises(ValueError, match=r"slice_update.*\[2, 5\].*\[2, 3\]"):
        run("slice_update", {"x": x, "update": u}, begin=[1, 0], end=[3, 5])


@pytest.mark.parametrize("begin, size, message", [
    ([0, 4], [1, 2], "2 elements from 4 on, dimension 1 has 5"), ([4, 0], [1, 1], r"begin\[0\] is 4"),
    ([0, 0], [-2, 1], r"size\[0\] is -2"), ([0], [1], "2 elements, got 1")])
def test_slice_by_size_errors(begin, size, message):
    with pytest.raises((ValueError, IndexError), match=f"slice_by_size.*{message}"):
        run("slice_by_size", {"x": np.zeros((3, 5), "f4")}, begin=begin, size=size)


def test_slice_by_size_variable_begin():
    x = opcase.data((3, 5))
    same(run("slice_by_size", {"x": x, "begin": np.int32([-2, 1])}, size=[2, -1]), x[1:3, 1:])
    with pytest.raises(IndexError, match="slice_by_size.*2 elements from 2 on"):
        run("slice_by_size", {"x": x, "begin": np.int32([2, 1])}, size=[2, -1])


@pytest.mark.parametrize("dtype", FIB)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat_and_stack(dtype, axis):
    parts = [opcase.data((2, 3, 4)[:i] + (n,) + (2, 3, 4)[i + 1:], dtype, n)
             for n in (1, 4, 0) for i in [axis % 3]]
    same(run("concat", {"values": parts}, axis=axis), np.concatenate(parts, axis))
    same(run("concat", {"values": parts[:1]}, axis=axis), parts[0])
    equal = [opcase.data((2, 3, 4), dtype, n) for n in range(3)]
    same(run("stack", {"values": equal}, axis=axis), np.stack(equal, axis))
    woven = np.stack(equal, axis % 3 + 1).reshape(
        *(d * 3 if i == axis % 3 else d for i, d in enumerate((2, 3, 4))))
    same(run("concat", {"values": equal}, axis=axis, interleave=True), woven)


def test_concat_scalars():
    same(run("concat", {"values": [np.int32(3), np.int32(5)]}, axis=0), np.int32([3, 5]))
    same(run("stack", {"values": [np.int32(3), np.int32(5)]}, axis=0), np.int32([3, 5]))


@pytest.mark.parametrize("shapes, kw, message", [
    (((2, 3), (2, 3, 4)), {"axis": 0}, "one rank"), (((2, 3), (2, 4)), {"axis": 0}, "dimension 1 differs"),
    (((2, 3), (4, 3)), {"axis": 0, "interleave": True}, "equal shapes"), (((2, 3),), {"axis": 2}, "axis.*2")])
def test_concat_errors(shapes, kw, message):
    with pytest.raises((ValueError, IndexError), match=f"concat.*{message}"):
        run("concat", {"values": [np.zeros(s, "f4") for s in shapes]}, **kw)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_split(axis):
    x = opcase.data((4, 6, 8))
    for got, ref in zip(run("split", {"x": x}, num_splits=2, axis=axis), np.split(x, 2, axis)):
        same(got, ref)
    n = x.shape[axis]
    for got, ref in zip(run("split", {"x": x}, split_sizes=[1, n - 1], axis=axis), np.split(x, [1], axis)):
        same(got, ref)
    same(run("split", {"x": x}, num_splits=1, axis=axis), x)


@pytest.mark.parametrize("kw, message", [
    ({}, "needs 'num_splits' or 'split_sizes'"), ({"num_splits": 5}, "is 6, which 5 parts do not divide"),
    ({"split_sizes": [1, 2]}, "add up to 3.*is 6"), ({"split_sizes": [7, -1]}, r"split_sizes\[1\] is -1"),
    ({"num_splits": 3, "split_sizes": [3, 3]}, "is 3, 'split_sizes' has 2"), ({"num_splits": 0}, "0 results")])
def test_split_errors(kw, message):
    with pytest.raises(ValueError, match=f"split.*{message}"):
        run("split", {"x": np.zeros((6, 2), "f4")}, axis=0, **kw)


@pytest.mark.parametrize("shape, reps", [((3,), [1]), ((3,), [4]), ((2, 3), [3, 2]), ((2, 1, 3), [1, 5, 2]),
                                         ((2, 3, 2, 2, 3), [2, 1, 3, 1, 2]), ((0, 3), [2, 2])])
def test_tile(shape, reps):
    x = opcase.data(shape)
    same(run("tile", {"x": x}, reps=reps), np.tile(x, reps))
    same(run("tile", {"x": x, "reps": np.int32(reps)}), np.tile(x, reps))


@pytest.mark.parametrize("reps, message", [([2], "2 elements, got 1"), ([2, 0], r"reps\[1\] is 0")])
def test_tile_errors(reps, message):
    with pytest.raises(ValueError, match=f"tile.*{message}"):
        run("tile", {"x": np.zeros((2, 3), "f4")}, reps=reps)


@pytest.mark.parametrize("mode, numpy_mode", [("constant", "constant"), ("reflect", "reflect"),
                                              ("replicate", "edge")])
@pytest.mark.parametrize("dtype", opcase.F)
def test_pad(mode, numpy_mode, dtype):
    x = opcase.data((2, 3, 4, 5), dtype)
    t = np.dtype(dtype).type
    for pad in ([1, 2], [2, 0, 1, 4], [0, 1, 2, 2, 3, 1], [1, 0, 0, 2, 3, 0, 1, 1]):
        pairs = np.array(pad).reshape(-1, 2)
        full = np.concatenate([np.zeros((4 - len(pairs), 2), int), pairs])
        kw = {"constant_values": t(1.5)} if mode == "constant" else {}
        extra = {"constant_val": t(1.5)} if mode == "constant" else {}
        ref = np.pad(x, full, numpy_mode, **kw)
        same(run("pad", {"x": x}, pad=pad, mode=mode, **extra), ref)
        if len(pad) == 8:
            same(run("pad", {"x": x, "pad": np.int32(pad)}, mode=mode, **extra), ref)
    same(run("pad", {"x": x}, pad=[1, 1]), np.pad(x, [(0, 0)] * 3 + [(1, 1)]))


@pytest.mark.parametrize("pad, mode, message", [
    ([1], "constant", "pair"), ([1, -1], "constant", "must not be negative"),
    ([3, 0], "reflect", "at most 2 for dimension 1"), ([0, 4], "replicate", "at most 3"),
    ([1, 1], "wrap", 'must be one of constant, reflect, replicate, got "wrap"'), ([0] * 6, "constant", "at most 4")])
def test_pad_errors(pad, mode, message):
    with pytest.raises(ValueError, match=f"pad.*{message}"):
        run("pad", {"x": np.zeros((2, 3), "f4")}, pad=pad, mode=mode)


def test_reverse():
    x = opcase.data((2, 3, 4))
    same(run("reverse", {"x": x}), x[::-1, ::-1, ::-1])
    same(run("reverse", {"x": x}, axes=[-1, 0]), x[::-1, :, ::-1])


@pytest.mark.parametrize("seq, batch", [(0, 1), (1, 0), (2, 1), (-1, 0)])
def test_reverse_sequence(seq, batch):
    x = opcase.data((3, 4, 5))
    n = x.shape[seq]
    lengths = np.arange(x.shape[batch], dtype=np.int32) % (n + 1)
    lengths[-1] = n
    ref = x.copy()
    for b, k in enumerate(lengths):
        at = [slice(None)] * 3
        at[batch] = b
        take = list(at)
        take[seq] = slice(0, k)
        ref[tuple(take)] = np.flip(x[tuple(take)], (seq % 3) - (batch < seq % 3))
    same(run("reverse_sequence", {"x": x, "lengths": lengths}, seq_axis=seq, batch_axis=batch), ref)
    with pytest.raises(IndexError, match=r"reverse_sequence.*lengths\[0\] is 9"):
        run("reverse_sequence", {"x": x, "lengths": lengths * 0 + 9}, seq_axis=seq, batch_axis=batch)


@pytest.mark.parametrize("lower, upper", [(-1, -1), (0, 0), (1, 2), (-1, 0), (0, -1), (9, 1)])
@pytest.mark.parametrize("dtype", FIB)
def test_band_part(lower, upper, dtype):
    x = opcase.data((2, 3, 5), dtype)
    m, n = np.indices((3, 5))
    keep = ((lower < 0) | (m - n <= lower)) & ((upper < 0) | (n - m <= upper))
    same(run("band_part", {"x": x}, lower=lower, upper=upper), np.where(keep, x, x.dtype.type(0)))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("size, stride", [(1, 1), (3, 1), (2, 2), (4, 3)])
def test_sliding_windows(axis, size, stride):
    x = opcase.data((4, 6, 5))
    a = axis % 3
    ref = np.stack([np.take(x, range(i, i + size), a) for i in range(0, x.shape[a] - size + 1, stride)], a)
    same(run("sliding_windows", {"x": x}, axis=axis, size=size, stride=stride), ref)
    with pytest.raises(ValueError, match="sliding_windows.*windows of 9"):
        run("sliding_windows", {"x": x}, axis=axis, size=9)


def test_depth_and_space():
    x, b = opcase.data((2, 12, 3, 5)), 2
    y = x.reshape(2, b, b, 3, 3, 5).transpose(0, 3, 4, 1, 5, 2).reshape(2, 3, 6, 10)
    same(run("depth_to_space", {"x": x}, block_size=b), y)
    same(run("space_to_depth", {"x": y}, block_size=b), x)
    y = x.reshape(2, 3, b, b, 3, 5).transpose(0, 1, 4, 2, 5, 3).reshape(2, 3, 6, 10)
    same(run("pixel_shuffle", {"x": x}, upscale_factor=b), y)
    same(run("pixel_unshuffle", {"x": y}, downscale_factor=np.uint32(b)), x)
    with pytest.raises(ValueError, match="pixel_shuffle.*channel count 12 is not a multiple of 25"):
        run("pixel_shuffle", {"x": x}, upscale_factor=5)
    with pytest.raises(ValueError, match="space_to_depth.*height 3 is not a multiple of 2"):
        run("space_to_depth", {"x": x}, block_size=2)
    with pytest.raises(ValueError, match="depth_to_space.*rank 4"):
        run("depth_to_space", {"x": x[0]}, block_size=2)


def test_space_and_batch():
    x = opcase.data((2, 3, 5, 4))
    b, p = [2, 3], [[1, 0], [1, 1]]
    y = np.pad(x, [(0, 0), (0, 0), *map(tuple, p)])
    n, c, h, w = y.shape
    y = y.reshape(n, c, h // 2, 2, w // 3, 3).transpose(3, 5, 0, 1, 2, 4).reshape(-1, c, h // 2, w // 3)
    same(run("space_to_batch", {"x": x}, block_shape=b, paddings=np.int32(p)), y)
    same(run("batch_to_space", {"x": y}, block_shape=b, crops=np.int32(p)), x)
    with pytest.raises(ValueError, match="batch_to_space.*batch 2 is not a multiple of 6"):
        run("batch_to_space", {"x": x}, block_shape=b, crops=np.int32(p))


def test_crop():
    x = opcase.data((2, 3, 6, 7))
    same(run("crop", {"x": x}, crop_height=[1, 2], crop_width=[0, 3]), x[:, :, 1:4, 0:4])
    with pytest.raises(ValueError, match="crop.*'crop_height' takes 4 and 3 of 6"):
        run("crop", {"x": x}, crop_height=[4, 3], crop_width=[0, 0])


def test_identity():
    x = opcase.data((2, 3), "float16")
    same(run("identity", {"x": x}), x)
