"""Gathering, scattering, sorting and generating against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

import opcase
from opcase import FI, run, rounded, same

AN = [d for d in opcase.A if d != "bool"]


def indices(shape, n, seed=0, low=0):
    return np.random.default_rng(seed).integers(low, max(n, 1), shape).astype(np.int32)


@pytest.mark.parametrize("shape, at, axis", [((5,), (), 0), ((5,), (3,), 0), ((4, 6, 3), (2,), 1),
                                             ((4, 6, 3), (2, 5), -1), ((4, 6, 3), (), 2), ((4, 6), (1, 2, 3), 0),
                                             ((4, 6), (0,), 1)])
@pytest.mark.parametrize("opset", ["ios15", "ios16", "ios17"])
def test_gather(shape, at, axis, opset):
    for dtype in FI:
        x = opcase.data(shape, dtype)
        k = indices(at, shape[axis], low=-shape[axis] if opset != "ios17" else 0)
        same(run("gather", {"x": x, "indices": k}, opset, axis=axis), np.take(x, k, axis))
        same(run("gather", {"x": x}, opset, indices=k, axis=axis), np.take(x, k, axis))


@pytest.mark.parametrize("dtype", AN)
@pytest.mark.parametrize("index", ["int8", "uint8", "int16", "uint16", "int32"])
def test_gather_dtypes(dtype, index):
    x, k = opcase.data((6, 3), dtype), indices((4,), 6).astype(index)
    same(run("gather", {"x": x, "indices": k}), x[k])
    same(run("gather_along_axis", {"x": x, "indices": np.stack([k] * 3, 1)}), x[k])
    same(run("gather_nd", {"x": x, "indices": k[:, None]}), x[k])


@pytest.mark.parametrize("axis", [1, 2])
def test_gather_batch_dims(axis):
    x, k = opcase.data((2, 5, 4)), indices((2, 3), 4)
    ref = np.stack([np.take(x[b], k[b], axis - 1) for b in range(2)])
    same(run("gather", {"x": x, "indices": k}, axis=axis, batch_dims=1), ref)
    with pytest.raises(IndexError, match="gather.*'batch_dims' is 2, more than 'axis' 1"):
        run("gather", {"x": x, "indices": indices((2, 5), 4)}, axis=1, batch_dims=2)
    with pytest.raises(ValueError, match="gather.*batch dimensions"):
        run("gather", {"x": x, "indices": indices((3, 3), 4)}, axis=1, batch_dims=1)


def test_indices_outside():
    x = opcase.data((3, 2))
    bad = np.int32([0, 7])
    for opset, kw in (("ios16", {}), ("ios17", {"validate_indices": True})):
        with pytest.raises(IndexError, match="gather.*index 7 is out of range for a dimension of 3"):
            run("gather", {"x": x, "indices": bad}, opset, **kw)
        with pytest.raises(IndexError, match="gather.*index 7"):
            run("gather", {"x": x}, opset, indices=bad, **kw)
    # Not validated: the nearest element is read, an update is left out. Nothing else is touched.
    same(run("gather", {"x": x, "indices": bad}), x[[0, 2]])
    same(run("gather", {"x": x, "indices": np.int32([-1, -9])}), x[[2, 0]])
    u = opcase.data((2, 2), seed=1)
    ref = x.copy()
    ref[0] = u[0]
    same(run("scatter", {"data": x, "indices": bad, "updates": u}, mode="update"), ref)
    same(run("scatter_nd", {"data": x, "indices": bad[:, None], "updates": u}, mode="update"), ref)
    with pytest.raises(IndexError, match="gather.*index -1"):
        run("gather", {"x": x, "indices": np.int32([-1])}, validate_indices=True)
    with pytest.raises(IndexError, match="scatter.*index 7"):
        run("scatter", {"data": x, "indices": bad, "updates": u}, mode="update", validate_indices=True)
    with pytest.raises(IndexError, match="gather.*dimension of 0"):
        run("gather", {"x": np.zeros((0, 2), "f4"), "indices": np.int32([0])})


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_along_axis(axis):
    x = opcase.data((4, 5, 3))
    n = [4, 5, 3]
    n[axis] = 7
    k = indices(tuple(n), x.shape[axis])
    same(run("gather_along_axis", {"x": x, "indices": k}, axis=axis), np.take_along_axis(x, k, axis))
    with pytest.raises(ValueError, match="gather_along_axis.*except along the axis"):
        run("gather_along_axis", {"x": x, "indices": k[:2, :2, :2]}, axis=axis)


@pytest.mark.parametrize("rows, k", [((3,), 1), ((3,), 2), ((2, 4), 3), ((), 2)])
def test_gather_nd(rows, k):
    x = opcase.data((4, 5, 3))
    at = np.stack([indices(rows, x.shape[i], i) for i in range(k)], -1)
    same(run("gather_nd", {"x": x, "indices": at}), x[tuple(np.moveaxis(at, -1, 0))])
    with pytest.raises(ValueError, match="gather_nd.*tuples of 4.*3 dimensions"):
        run("gather_nd", {"x": x, "indices": np.zeros((2, 4), np.int32)})


def test_gather_nd_batch_dims():
    x, at = opcase.data((2, 5, 3, 4)), np.stack([indices((2, 6), 5), indices((2, 6), 3, 1)], -1)
    ref = np.stack([x[b][at[b, :, 0], at[b, :, 1]] for b in range(2)])
    same(run("gather_nd", {"x": x, "indices": at}, batch_dims=1), ref)


MODES = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.true_divide,
         "max": np.maximum, "min": np.minimum, "update": lambda a, b: b}


def scattered(data, where, updates, mode):
    out = data.astype("f8")
    for at, u in zip(where, updates):
        out[at] = MODES[mode](out[at], u.astype("f8"))
    return out


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", FI)
def test_scatter(mode, axis, dtype):
    d = opcase.data((4, 5, 3), dtype)
    k = np.int32([2, 0, 2])                     # one twice: in order
    shape = [4, 5, 3]
    shape[axis] = 3
    u = opcase.data(tuple(shape), dtype, 1, 1, 4)
    ref = np.moveaxis(scattered(np.moveaxis(d, axis, 0), k, np.moveaxis(u, axis, 0), mode), 0, axis)
    got = run("scatter", {"data": d, "indices": k, "updates": u}, axis=axis, mode=mode)
    at = [np.indices(shape)[i] for i in range(3)]
    at[axis] = np.broadcast_to(k.reshape([-1 if i == axis % 3 else 1 for i in range(3)]), shape)
    if dtype != "int32":
        rounded(got, ref, "scatter", 2.0**-48)
    elif mode != "div":
        same(got, ref.astype(np.int32))
    along = run("scatter_along_axis", {"data": d, "indices": at[axis].astype(np.int32), "updates": u},
                axis=axis, mode=mode)
    nd = run("scatter_nd", {"data": d, "indices": np.stack(at, -1).astype(np.int32), "updates": u}, mode=mode)
    same(along, got)
    same(nd, got)


def test_scatter_int32():
    d, u = np.int32([2**31 - 1, 7, -7]), np.int32([1, 2, 2])
    k = np.int32([0, 1, 2])
    with np.errstate(over="ignore"):
        same(run("scatter", {"data": d, "indices": k, "updates": u}, mode="add"), d + u)
    same(run("scatter", {"data": d, "indices": k, "updates": u * 0}, mode="div"), d * 0)
    same(run("scatter", {"data": d, "indices": k, "updates": u}, mode="div"), np.int32([2**31 - 1, 3, -3]))


@pytest.mark.parametrize("op, k, u, message", [
    ("scatter", (2,), (3, 5), "axis replaced"), ("scatter_nd", (2, 1), (2, 4), r"indices\[:-1\]"),
    ("scatter_along_axis", (4, 2), (4, 3), "shape of 'indices'")])
def test_scatter_errors(op, k, u, message):
    kw = {"axis": 1} if op == "scatter_along_axis" else {}
    with pytest.raises(ValueError, match=f"{op}.*{message}"):
        run(op, {"data": np.zeros((4, 5), "f4"), "indices": np.zeros(k, np.int32),
                 "updates": np.zeros(u, "f4")}, mode="add", **kw)


def test_scatter_without_mode_adds_and_warns():
    v = {"data": np.ones(3, "f4"), "indices": np.int32([1]), "updates": np.float32([5])}
    same(run("scatter", v), np.float32([1, 6, 1]))
    assert any("mode" in str(w) for w in opcase.build("scatter", v)[0].warnings())
    with pytest.raises(ValueError, match='scatter.*\'mode\' must be one of add.*got "xor"'):
        run("scatter", v, mode="xor")


# ------------------------------------------------------------------ sorting


def order(x, axis, ascending):
    """Stable; NaN is the largest."""
    key = np.where(np.isnan(x), np.inf, x) if x.dtype.kind == "f" else x.astype("i8")
    return np.argsort(key if ascending else -key, axis, kind="stable")


@pytest.mark.parametrize("dtype", AN)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("ascending", [False, True])
def test_topk_and_argsort(dtype, axis, ascending):
    x = opcase.data((4, 7, 3), dtype, low=-3, high=3).round()    # ties
    o = order(x, axis, ascending)
    if dtype in FI:
        same(run("argsort", {"x": x}, axis=axis, ascending=ascending), o.astype(np.int32))
    for k in (1, 2, 0):
        top = np.take(o, range(k), axis)
        v, i = run("topk", {"x": x}, k=np.int32(k), axis=axis, ascending=ascending)
        same(v, np.take_along_axis(x, top, axis))
        same(i, top.astype(np.int32))
    v, i = run("topk", {"x": x}, k=np.int32(-1), axis=axis, ascending=ascending,
               output_indices_dtype="uint16")
    same(v, np.take_along_axis(x, o, axis))
    same(i, o.astype(np.uint16))
    same(run("topk", {"x": x}, k=np.int32(2), axis=axis, ascending=ascending, return_indices=False),
         np.take_along_axis(x, np.take(o, range(2), axis), axis))


def test_topk_older_forms_and_errors():
    x = opcase.data((3, 5))
    for opset in ("ios15", "ios16"):
        v, i = run("topk", {"x": x}, opset, k=np.int32(2))
        same(v, -np.sort(-x, -1)[:, :2])
        with pytest.raises(ValueError, match="topk.*'k' is -1"):
            run("topk", {"x": x}, opset, k=np.int32(-1))
    with pytest.raises(ValueError, match="topk.*'k' is 6, dimension 1 is 5"):
        run("topk", {"x": x}, k=np.int32(6))
    with pytest.raises(ValueError, match="topk.*sort needs ios16"):
        run("topk", {"x": x}, "ios15", k=np.int32(2), sort=True)


def test_nan_sorts_as_the_largest():
    x = np.float32([1, np.nan, -np.inf, np.inf])
    same(run("argsort", {"x": x}), np.int32([1, 3, 0, 2]))
    same(run("argsort", {"x": x}, ascending=True), np.int32([2, 0, 3, 1]))


def nms(boxes, scores, iou, most, least, per_class):
    """boxes [B, 4] centre and size, scores [B, K] of one image: kept indices."""
    best, label = scores.max(1), scores.argmax(1)
    kept = []
    for i in np.argsort(-best, kind="stable"):
        if len(kept) == most or best[i] < least:
            break
        ok = True
        for j in kept:
            if per_class and label[i] != label[j]:
                continue
            lo = np.maximum(boxes[i, :2] - boxes[i, 2:] / 2, boxes[j, :2] - boxes[j, 2:] / 2)
            hi = np.minimum(boxes[i, :2] + boxes[i, 2:] / 2, boxes[j, :2] + boxes[j, 2:] / 2)
            inter = np.prod(np.maximum(hi - lo, 0))
            union = np.prod(boxes[i, 2:]) + np.prod(boxes[j, 2:]) - inter
            ok = ok and (inter / union if union > 0 else 0) <= iou
        if ok:
            kept.append(i)
    return kept


@pytest.mark.parametrize("per_class", [False, True])
def test_non_maximum_suppression(per_class):
    rng = np.random.default_rng(3)
    boxes = np.concatenate([rng.uniform(0, 4, (2, 9, 2)), rng.uniform(1, 3, (2, 9, 2))], -1).astype("f4")
    scores = rng.random((2, 9, 3)).astype("f4")
    t = np.float32
    got = run("non_maximum_suppression", {"boxes": boxes, "scores": scores}, "ios16", iou_threshold=t(0.2),
              score_threshold=t(0.7), max_boxes=4, per_class_suppression=per_class)
    new = run("non_maximum_suppression",
              {"boxes": boxes.transpose(0, 2, 1).copy(), "scores": scores.transpose(0, 2, 1).copy()},
              "ios17", iou_threshold=t(0.2), max_boxes=4, per_class_suppression=per_class)
    for b in range(2):
        kept = nms(boxes[b].astype("f8"), scores[b], float(t(0.2)), 4, t(0.7), per_class)
        assert got[3][b] == len(kept)
        assert list(got[2][b]) == kept + [-1] * (4 - len(kept))
        np.testing.assert_array_equal(got[0][b, :len(kept)], boxes[b, kept])
        np.testing.assert_array_equal(got[1][b, :len(kept)], scores[b, kept])
        kept = nms(boxes[b].astype("f8"), scores[b], float(t(0.2)), 4, -np.inf, per_class)
        assert list(new[2][b]) == kept + [-1] * (4 - len(kept))
        np.testing.assert_array_equal(new[0][b][:, :len(kept)], boxes[b, kept].T)
        np.testing.assert_array_equal(new[1][b][:, :len(kept)], scores[b, kept].T)


# ------------------------------------------------------------------ generating


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_one_hot(axis):
    k = np.int32([[0, 3, 2], [4, -1, 5]])       # the last two are outside
    ref = np.moveaxis(k[..., None] == np.arange(5), -1, axis)
    same(run("one_hot", {"indices": k}, one_hot_vector_size=np.int32(5), axis=axis), ref.astype(np.int32))
    got = run("one_hot", {"indices": k, "one_hot_vector_size": np.int32(5)}, axis=axis,
              on_value=np.float16(2.5), off_value=np.float16(-1))
    same(got, np.where(ref, 2.5, -1).astype(np.float16))


def test_one_hot_errors():
    k = np.int32([0])
    with pytest.raises(ValueError, match="one_hot.*'one_hot_vector_size' is -1"):
        run("one_hot", {"indices": k}, one_hot_vector_size=np.int32(-1))
    with pytest.raises((ValueError, IndexError), match="one_hot.*axis.*2"):
        run("one_hot", {"indices": k}, one_hot_vector_size=np.int32(3), axis=2)


@pytest.mark.parametrize("start, end, step", [(0, 5, 1), (5, 0, -2), (3, 3, 1), (0, 5, -1), (-4, 9, 3)])
@pytest.mark.parametrize("dtype", FI)
def test_range_1d(start, end, step, dtype):
    t = np.dtype(dtype).type
    ref = np.arange(start, end, step).astype(dtype)
    same(run("range_1d", {"end": t(end)}, start=t(start), step=t(step)), ref)
    same(run("range_1d", {}, end=t(end), start=t(start), step=t(step)), ref)


def test_range_1d_is_bounded():
    with pytest.raises(ValueError, match="range_1d.*'step' is 0"):
        run("range_1d", {}, start=np.int32(0), end=np.int32(5), step=np.int32(0))
    with pytest.raises(ValueError, match="range_1d.*elements from 0 to inf"):
        run("range_1d", {"end": np.float32(np.inf)}, start=np.float32(0), step=np.float32(1))
    with pytest.raises((MemoryError, ValueError), match="range_1d"):
        run("range_1d", {"end": np.float32(3e11)}, start=np.float32(0), step=np.float32(1))


@pytest.mark.parametrize("value", [None, np.float16(2.5), np.int32(-7), np.bool_(True)])
@pytest.mark.parametrize("shape", [[], [3], [2, 0, 3], [1, 2, 3, 4, 5]])
def test_fill(value, shape):
    kw = {} if value is None else {"value": value}
    ref = np.full(shape, np.float32(0) if value is None else value)
    same(run("fill", {}, shape=np.array(shape, np.int32), **kw), ref)
    same(run("fill", {"shape": np.array(shape, np.int32)}, **kw), ref)
    same(run("fill_like", {"ref_tensor": np.zeros(shape, np.float16)}, **kw), ref)
    same(run("shape", {"x": np.zeros(shape, "f4")}), np.array(shape, np.int32))


@pytest.mark.parametrize("dtype", opcase.FIB)
def test_non_zero(dtype):
    x = opcase.data((3, 4, 5), dtype, low=-2, high=2).round() if dtype != "bool" else \
        opcase.data((3, 4, 5), dtype)
    same(run("non_zero", {"x": x}), np.argwhere(x).astype(np.int32))
    same(run("non_zero", {"x": x * x.dtype.type(0)}), np.zeros((0, 3), np.int32))


N = 20011


@pytest.mark.parametrize("op, kw, mean, var", [
    ("random_uniform", {"low": np.float32(-1), "high": np.float32(3)}, 1, 16 / 12),
    ("random_normal", {"mean": np.float32(2), "stddev": np.float32(3)}, 2, 9),
    ("random_bernoulli", {"prob": np.float32(0.25)}, 0.25, 0.25 * 0.75)])
def test_random(op, kw, mean, var):
    def numbers(run_seed, **extra):
        return run(op, {}, shape=[N], seed=run_seed, **kw, **extra)

    x = numbers(5)
    # Six standard errors: a right generator fails once in 5e8 runs, and this one is seeded.
    assert abs(x.mean() - mean) < 6 * np.sqrt(var / N)
    assert abs(x.var() - var) < 6 * var * np.sqrt(2 / N)        # excess kurtosis of all three is at most 0
    same(numbers(5), x)
    assert (numbers(6) != x).any()


def test_random_seed_of_the_op():
    from anetorch import _core
    p, v = opcase.build("random_uniform", {}, shape=[100], seed=np.int32(7))
    one, two = (next(iter(_core._testing.eval(p, v, seed=s).values())) for s in (1, 2))
    same(one, two)
    assert ((one >= 0) & (one < 1)).all()


def test_random_categorical():
    p = np.float32([[0.1, 0.2, 0.7], [0.5, 0.5, 0]])
    for mode, x in (("probs", p), ("logits", np.log(np.maximum(p, 1e-30)))):
        got = run("random_categorical", {"x": x}, mode=mode, size=N, seed=3)
        assert got.shape == (2, N) and got.dtype == np.float32
        for row in range(2):
            share = np.array([(got[row] == k).mean() for k in range(3)])
            assert (np.abs(share - p[row]) <= 6 * np.sqrt(p[row] * (1 - p[row]) / N)).all()
