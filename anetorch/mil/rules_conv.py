"""Derivatives of convolution and average pooling.

conv's gradient by x is conv_transpose with the same weights. Its gradient by the weights is
again a convolution, of x by dy, with stride and dilation exchanged; the dilated dy is
written out with zeros between, since a computed weight may not be dilated.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from anetorch.mil import ops
from anetorch.mil.builder import Value
from anetorch.mil.rules import Slice, rule, rule_of, zeros


class _Window(NamedTuple):
    """Geometry over the spatial dims."""

    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]


def _window(op, kernel: list[int], out: list[int]) -> _Window:
    """Strides, dilations and explicit padding of a conv or pool with these kernel sizes."""
    n, size = len(kernel), op.shape("x")[2:]
    strides = op.const("strides") or [1] * n
    dilations = (op.const("dilations") if op.name == "conv" else None) or [1] * n
    kind, pad = op.const("pad_type"), op.const("pad") or [0] * 2 * n
    if kind == "custom":
        return _Window(strides, dilations, list(pad[::2]), list(pad[1::2]))
    if kind == "valid":
        return _Window(strides, dilations, [0] * n, [0] * n)
    total = [
        max(0, (o - 1) * s + (k - 1) * d + 1 - x)
        for o, s, k, d, x in zip(out, strides, kernel, dilations, size)
    ]
    less, more = [t // 2 for t in total], [t - t // 2 for t in total]
    before, after = (less, more) if kind == "same" else (more, less)
    return _Window(strides, dilations, before, after)


def _pads(w: _Window) -> list[int]:
    return [p for pair in zip(w.before, w.after) for p in pair]


def _transposed(op, dy: Value, weight: Value | np.ndarray, kernel: list[int], w: _Window, groups: int) -> Slice:
    """The adjoint by x."""
    pad = []
    for k, s, d, b, size, out in zip(kernel, w.strides, w.dilations, w.before, op.shape("x")[2:], dy.shape[2:]):
        # The last window ends where it ends, whatever padding was asked for behind it. Short
        # of x's end, the rest of x was never read, and its gradient is zero.
        pad += [b, max(0, (out - 1) * s + (k - 1) * d + 1 - b - size)]
    dx = ops.conv_transpose(
        x=dy, weight=weight, strides=w.strides, dilations=w.dilations, groups=groups, pad_type="custom", pad=pad
    )
    return Slice([0] * dx.rank, dx)


@rule_of("conv", "x")
def _conv_x(op, dy):
    kernel = list(op.shape("weight")[2:])
    w = _window(op, kernel, list(dy.shape[2:]))
    return _transposed(op, dy, op.weight, kernel, w, op.const("groups"))


@rule_of("conv", "weight")
def _conv_weight(op, dy):
    groups, (out, part, *kernel) = op.const("groups"), op.shape("weight")
    w = _window(op, kernel, list(dy.shape[2:]))
    n, _, *size = op.shape("x")
    spatial = [*range(2, 2 + len(kernel))]
    for axis, s in zip(spatial, w.strides):
        if s > 1 and dy.shape[axis] > 1:
            shape = list(dy.shape)
            shape[axis] = (shape[axis] - 1) * s + 1
            places = np.arange(0, shape[axis], s, dtype=np.int32)
            dy = ops.scatter(data=zeros(shape, dy.dtype), indices=places, updates=dy, axis=axis, mode="add")
    # Channels of a group become the batch, and (group, sample) the channels.
    x = ops.reshape(x=op.x, shape=[n, groups, part, *size])
    x = ops.transpose(x=x, perm=[2, 1, 0, *(a + 1 for a in spatial)])
    x = ops.reshape(x=x, shape=[part, groups * n, *size])
    dw = ops.conv(
        x=x, weight=ops.transpose(x=dy, perm=[1, 0, *spatial]), strides=w.dilations, groups=groups,
        pad_type="custom", pad=_pads(w),
    )  # fmt: skip
    # With columns of x left unread, offsets beyond the kernel appear.
    dw = ops.slice_by_size(x=dw, begin=[0] * dw.rank, size=[part, out, *kernel])
    return ops.transpose(x=dw, perm=[1, 0, *spatial])


@rule_of("conv", "bias")
def _conv_bias(op, dy):
    return ops.reduce_sum(x=dy, axes=[0, *range(2, dy.rank)], keep_dims=False)


@rule_of("avg_pool", "x")
def _avg_pool(op, dy):
    if op.const("ceil_mode"):
        raise NotImplementedError("[grad] avg_pool with ceil_mode has no rule")
    kernel = list(op.const("kernel_sizes"))
    w = _window(op, kernel, list(dy.shape[2:]))
    channels = op.shape("x")[1]
    dy = dy * (1 / math.prod(kernel))
    if op.const("exclude_padding_from_average"):
        dy = dy * _coverage(op, kernel, w, dy)
    kind = {"fp16": np.float16, "fp32": np.float32}[dy.dtype]
    return _transposed(op, dy, np.ones((channels, 1, *kernel), kind), kernel, w, channels)


def _coverage(op, kernel: list[int], w: _Window, dy: Value) -> np.ndarray:
    """Kernel volume over the number of real elements under each window, `[1, 1, *out]`."""
    count = np.ones((1, 1))
    for k, s, b, size, out in zip(kernel, w.strides, w.before, op.shape("x")[2:], dy.shape[2:]):
        start = np.arange(out) * s - b
        real = np.minimum(start + k, size) - np.maximum(start, 0)
        count = count[..., None] * (k / real)
    return count.astype({"fp16": np.float16, "fp32": np.float32}[dy.dtype])


rule("crop", x=lambda op, dy: Slice([0] * (dy.rank - 2) + [op.const("crop_height")[0], op.const("crop_width")[0]], dy))
rule("pixel_shuffle", x=lambda op, dy: ops.pixel_unshuffle(x=dy, downscale_factor=op.const("upscale_factor")))
rule("pixel_unshuffle", x=lambda op, dy: ops.pixel_shuffle(x=dy, upscale_factor=op.const("downscale_factor")))
