"""Derivatives of ops that move data: each is the adjoint of the move."""

from __future__ import annotations

import math

import numpy as np

from anetorch.mil import ops
from anetorch.mil.builder import Value
from anetorch.mil.rules import Slice, onto, rule, rule_of, stop, zeros

stop("non_zero", "range_1d", "random_uniform", "random_normal", "random_bernoulli", "random_categorical")


def _back(op, dy):
    return ops.reshape(x=dy, shape=op.shape("x"))


for _name in ("reshape", "reshape_like", "expand_dims", "squeeze", "flatten2d"):
    rule(_name, x=_back)

# Only the shape of a reference matters.
rule("reshape_like", ref_tensors=lambda op, dy: [None] * len(op.shape("ref_tensors")))
rule("transpose", x=lambda op, dy: ops.transpose(x=dy, perm=_inverse(op)))


def _inverse(op) -> list[int]:
    perm = [p % len(op.shape("x")) for p in op.const("perm")]
    return [perm.index(i) for i in range(len(perm))]


# -- parts


@rule_of("slice_by_size", "x")
def _slice_by_size(op, dy):
    begin = [b % d if b < 0 else b for b, d in zip(op.const("begin"), op.shape("x"))]
    return Slice(begin, dy)


def _ranges(op) -> tuple[list[range], list[bool]]:
    """Indices that slice_by_index (or slice_update) takes of every dim, and which dims it
    drops."""
    shape = op.shape("x")
    rank = len(shape)

    def flags(name: str) -> list[bool]:
        value = op.const(name)
        return [False] * rank if value is None else list(value)

    stride = op.const("stride")
    stride = [1] * rank if stride is None else list(stride)
    taken = []
    for i, (d, b, e) in enumerate(zip(shape, op.const("begin"), op.const("end"))):
        if flags("squeeze_mask")[i]:
            b = b + d if b < 0 else b
            taken.append(range(b, b + 1))
            continue
        start = None if flags("begin_mask")[i] else b
        stop_ = None if flags("end_mask")[i] else e
        taken.append(range(d)[slice(start, stop_, stride[i])])
    return taken, flags("squeeze_mask")


@rule_of("slice_by_index", "x")
def _slice_by_index(op, dy):
    taken, _ = _ranges(op)
    dy = ops.reshape(x=dy, shape=[len(r) for r in taken])
    for axis, r in enumerate(taken):
        if r.step != 1 and len(r) > 1:
            # Spread one axis at a time: rows of dy go to the places they came from.
            shape = list(dy.shape)
            shape[axis] = op.shape("x")[axis]
            dy = ops.scatter(
                data=zeros(shape, dy.dtype), indices=np.array(r, np.int32), updates=dy, axis=axis, mode="add"
            )
    begin = [0 if r.step != 1 and len(r) > 1 else r.start for r in taken]
    return Slice(begin, dy)


@rule_of("slice_update", "x")
def _slice_update(op, dy):
    params = {k: op.const(k) for k in ("begin", "end", "stride", "begin_mask", "end_mask", "squeeze_mask")}
    params = {k: v for k, v in params.items() if v is not None}
    return ops.slice_update(x=dy, update=zeros(op.shape("update"), dy.dtype), **params)


@rule_of("slice_update", "update")
def _slice_update_update(op, dy):
    params = {k: op.const(k) for k in ("begin", "end", "stride", "begin_mask", "end_mask", "squeeze_mask")}
    return ops.slice_by_index(x=dy, **{k: v for k, v in params.items() if v is not None})


@rule_of("concat", "values")
def _concat(op, dy):
    shapes = op.shape("values")
    axis = op.const("axis") % max(1, len(dy.shape))
    if not shapes[0]:
        return [ops.reshape(x=_part(dy, 0, i, 1), shape=[]) for i in range(len(shapes))]
    if op.const("interleave"):
        n, d = len(shapes), shapes[0]
        whole = ops.reshape(x=dy, shape=[*d[: axis + 1], n, *d[axis + 1 :]])
        return [ops.reshape(x=_part(whole, axis + 1, i, 1), shape=d) for i in range(n)]
    ends = np.cumsum([s[axis] for s in shapes])
    return [_part(dy, axis, int(e) - s[axis], s[axis]) for e, s in zip(ends, shapes)]


def _part(x: Value, axis: int, begin: int, size: int) -> Value:
    shape = list(x.shape)
    shape[axis] = size
    return ops.slice_by_size(x=x, begin=[begin if i == axis else 0 for i in range(len(shape))], size=shape)


@rule_of("stack", "values")
def _stack(op, dy):
    shapes = op.shape("values")
    axis = op.const("axis") % len(dy.shape)
    return [ops.reshape(x=_part(dy, axis, i, 1), shape=s) for i, s in enumerate(shapes)]


@rule_of("split", "x")
def _split(op, dy):
    parts = [zeros(s, dy.dtype) if g is None else g for g, s in zip(op.grads, op.result_shapes)]
    return ops.concat(values=tuple(parts), axis=op.const("axis"), interleave=False)


# -- repetition, padding, order


@rule_of("tile", "x")
def _tile(op, dy):
    shape = op.shape("x")
    for axis, (d, rep) in enumerate(zip(shape, op.const("reps"))):
        if rep > 1:
            rest = dy.shape[axis + 1 :]
            split = ops.reshape(x=dy, shape=[math.prod(dy.shape[:axis]), rep, d, math.prod(rest)])
            dy = ops.reduce_sum(x=split, axes=[1], keep_dims=False)
            dy = ops.reshape(x=dy, shape=[*shape[: axis + 1], *rest])
    return dy


@rule_of("pad", "x")
def _pad(op, dy):
    if op.const("mode") != "constant":
        raise NotImplementedError(f"[grad] pad with mode {op.const('mode')!r} has no rule")
    shape, pads = op.shape("x"), op.const("pad")
    begin = [0] * (len(shape) - len(pads) // 2) + list(pads[::2])
    return ops.slice_by_size(x=dy, begin=begin, size=list(shape))


rule(
    "reverse",
    x=lambda op, dy: ops.reverse(x=dy, axes=_or_all(op.const("axes"), dy.rank)),
)
rule(
    "band_part",
    x=lambda op, dy: ops.band_part(x=dy, lower=op.const("lower"), upper=op.const("upper")),
)
rule(
    "cumsum",
    x=lambda op, dy: ops.cumsum(
        x=dy, axis=op.const("axis"), exclusive=op.const("exclusive"), reverse=not op.const("reverse")
    ),
)


def _or_all(axes, rank: int) -> list[int]:
    return list(range(rank)) if axes is None else list(axes)


rule("depth_to_space", x=lambda op, dy: ops.space_to_depth(x=dy, block_size=op.const("block_size")))
rule("space_to_depth", x=lambda op, dy: ops.depth_to_space(x=dy, block_size=op.const("block_size")))

# -- gather and scatter: a table's gradient is added to in place


def _unbatched(op) -> int:
    if op.const("batch_dims"):
        raise NotImplementedError(f"[grad] {op.name} with batch_dims has no rule")
    return op.const("axis") % len(op.shape("x"))


@rule_of("gather", "x")
@onto
def _gather(op, dy, base):
    axis = _unbatched(op)
    shape = op.shape("x")
    updates = ops.reshape(x=dy, shape=[*shape[:axis], math.prod(op.shape("indices")), *shape[axis + 1 :]])
    flat = ops.reshape(x=op.indices, shape=[-1])
    return ops.scatter(data=base, indices=flat, updates=updates, axis=axis, mode="add")


@rule_of("gather_along_axis", "x")
@onto
def _gather_along_axis(op, dy, base):
    return ops.scatter_along_axis(data=base, indices=op.indices, updates=dy, axis=op.const("axis"), mode="add")


@rule_of("gather_nd", "x")
@onto
def _gather_nd(op, dy, base):
    if op.const("batch_dims"):
        raise NotImplementedError("[grad] gather_nd with batch_dims has no rule")
    return ops.scatter_nd(data=base, indices=op.indices, updates=dy, mode="add")


@rule_of("topk", "x")
@onto
def _topk(op, dy, base):
    return ops.scatter_along_axis(data=base, indices=op.outs[1], updates=dy, axis=op.const("axis"), mode="add")


def _scatter_mode(op) -> str:
    mode = op.const("mode")
    if mode not in ("add", "update"):
        raise NotImplementedError(f"[grad] {op.name} with mode {mode!r} has no rule")
    return mode


@rule_of("scatter", "data")
def _scatter_data(op, dy):
    if _scatter_mode(op) == "add":
        return dy
    none = zeros(op.shape("updates"), dy.dtype)
    return ops.scatter(data=dy, indices=op.indices, updates=none, axis=op.const("axis"), mode="update")


@rule_of("scatter", "updates")
def _scatter_updates(op, dy):
    _scatter_mode(op)
    return ops.gather(x=dy, indices=op.indices, axis=op.const("axis"))


@rule_of("scatter_along_axis", "data")
def _scatter_along_data(op, dy):
    if _scatter_mode(op) == "add":
        return dy
    none = zeros(op.shape("updates"), dy.dtype)
    return ops.scatter_along_axis(data=dy, indices=op.indices, updates=none, axis=op.const("axis"), mode="update")


@rule_of("scatter_along_axis", "updates")
def _scatter_along_updates(op, dy):
    _scatter_mode(op)
    return ops.gather_along_axis(x=dy, indices=op.indices, axis=op.const("axis"))
