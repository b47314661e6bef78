"""Random programs whose arithmetic is exact: small whole numbers all the way, so that a kernel and
the reference evaluator must agree bit for bit however the work is ordered, fused or split.

Rounding functions hang off the exact values as leaves, and are compared within a tolerance that is
far above rounding and far below a wrong element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from anetorch import mil

o = mil.ops
FLOAT = {"fp32": np.float32, "fp16": np.float16}
BATCH = 97              # stands for a first dimension that is unknown until a run
SIZES = [1, 2, 3, 4, 5, 7, 8, 13, 16, 17]
# Where work is cut into blocks, tasks and threads.
LARGE = [(1, 100000), (70000,), (3, 40000), (200, 300), (16, 1, 4096), (1, 64, 28, 28), (2, 256, 7, 7),
         (1024, 33), (1, 1, 257, 515), (1, 24, 56, 56), (40000, 3), (2, 70000), (8, 1, 9000), (3, 65536),
         (1, 65537), (3, 100, 101), (5, 5, 5000), (150001,), (2, 2, 2, 2, 9000), (300, 700), (33, 1000, 4)]


class Value(NamedTuple):
    v: Any              # the builder's value
    shape: tuple[int, ...]
    kind: str           # f(loat), i(nteger), b(oolean)


class Case(NamedTuple):
    program: Any
    inputs: dict[str, np.ndarray]
    exact: set[str]     # outputs that must be equal; the rest are leaves


class Draw:
    """What the generators choose with: all from one seed."""

    def __init__(self, seed: int, dtype: str, large: bool):
        self.rng = np.random.default_rng(seed)
        self.dtype, self.large = dtype, large
        self.f = FLOAT[dtype]
        self.pool: list[Value] = []
        self.flexible = True                    # may what is drawn now be?

    def int(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    def coin(self, p: float = 0.5) -> bool:
        return bool(self.rng.random() < p)

    def one(self, of: Any) -> Any:
        return of[self.int(0, len(of))]

    def shape(self) -> tuple[int, ...]:
        if self.large:
            return self.one(LARGE)
        rank = self.one([1, 2, 3, 3, 4, 4, 4, 5])
        if rank == 4:
            return self.int(1, 4), self.one(SIZES), self.int(1, 15), self.int(1, 15)
        return tuple(self.one(SIZES) for _ in range(rank))

    def array(self, shape: tuple[int, ...], kind: str = "f", low: int = -2, high: int = 3) -> np.ndarray:
        if kind == "b":
            return np.asarray(self.rng.random(shape) < 0.5)
        return self.rng.integers(low, high, shape).astype(self.f if kind == "f" else np.int32)

    def of(self, kinds: str, fits: Callable[[tuple[int, ...]], bool] = lambda s: True) -> Value | None:
        """A value of one of these kinds and a shape that fits; rather a late one."""
        kind = self.one(kinds)
        found = [p for p in self.pool if p.kind == kind and fits(p.shape) and
                 (self.flexible or BATCH not in p.shape)]
        return found[max(self.int(0, len(found)), self.int(0, len(found)))] if found else None

    def small(self, x: Value, most: int = 15) -> Any:
        """x, kept small enough that a sum of its products stays whole."""
        if x.kind == "i":
            return o.minimum(x=o.maximum(x=x.v, y=np.int32(-most)), y=np.int32(most))
        return o.clip(x=x.v, alpha=self.f(-most), beta=self.f(most))

    def constant(self, kind: str, n: int) -> Any:
        return self.f(n) if kind == "f" else np.int32(n)


Op = Callable[[Draw], Any]
OPS: list[Op] = []
FLEXIBLE: set[Op] = set()       # take values of an unknown dimension


def op(weight: int = 1, *, flexible: bool = False) -> Callable[[Op], Op]:
    def register(fn: Op) -> Op:
        OPS.extend([fn] * weight)
        if flexible:
            FLEXIBLE.add(fn)
        return fn
    return register


def known_shape(v: Any) -> tuple[int, ...]:
    return tuple(BATCH if n is None else n for n in v.shape)


def broadcasts(*shapes: tuple[int, ...]) -> bool:
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        return False
    return True


def count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


@op(4, flexible=True)
def binary(d: Draw) -> Any:
    x = d.of("ffi")
    if not x:
        return None
    fn, way = d.one([o.add, o.sub, o.mul, o.maximum, o.minimum]), d.rng.random()
    left = x.v
    if way < 0.3:
        y = d.array((), x.kind)
    elif way < 0.45 and x.shape:
        y = d.array(tuple(n if d.coin() and n != BATCH else 1 for n in x.shape), x.kind)
    else:
        other = d.of(x.kind, lambda s: broadcasts(s, x.shape) and count(np.broadcast_shapes(s, x.shape)) < 10**6)
        if not other:
            return None
        y = other.v
        if fn is o.mul:
            left = d.small(x, 7)
    return fn(x=left, y=y) if d.coin(0.8) else fn(x=y, y=left)


@op(3, flexible=True)
def unary(d: Draw) -> Any:
    x = d.of("f")
    if not x:
        return None
    way = d.rng.random()
    if way < 0.2:
        return o.clip(x=x.v, alpha=d.f(-3), beta=d.f(4))
    if way < 0.3:
        return o.leaky_relu(x=o.mul(x=d.small(x), y=d.f(2)), alpha=d.f(0.5))
    if way < 0.4:
        return o.square(x=d.small(x, 9))
    return d.one([o.relu, o.abs, o.sign, o.floor, o.relu6, o.identity, o.ceil, o.round])(x=x.v)


@op(2, flexible=True)
def compare(d: Draw) -> Any:
    x = d.of("fi")
    if not x:
        return None
    fn = d.one([o.equal, o.not_equal, o.less, o.less_equal, o.greater, o.greater_equal])
    y = d.of(x.kind, lambda s: broadcasts(s, x.shape) and count(np.broadcast_shapes(s, x.shape)) < 10**6)
    return fn(x=x.v, y=y.v if y and d.coin() else d.array((), x.kind))


@op(flexible=True)
def logic(d: Draw) -> Any:
    x = d.of("b")
    if not x:
        return None
    if d.coin(0.3):
        return o.logical_not(x=x.v)
    return d.one([o.logical_and, o.logical_or, o.logical_xor])(x=x.v, y=d.of("b", lambda s: s == x.shape).v)


@op(2, flexible=True)
def select(d: Draw) -> Any:
    c = d.of("b")
    a = c and d.of("ffi", lambda s: s == c.shape)
    return a and o.select(cond=c.v, a=a.v, b=d.of(a.kind, lambda s: s == c.shape).v)


@op(2, flexible=True)
def cast(d: Draw) -> Any:
    x = d.of("fib")
    return x and o.cast(x=x.v, dtype=d.one(sorted({d.dtype, "int32", "bool"} - {x.v.dtype})))


@op(3, flexible=True)
def matmul(d: Draw) -> Any:
    x = d.of("f", lambda s: len(s) >= 2)
    if not x:
        return None
    tx, ty = d.coin(0.3), d.coin(0.3)
    k, kept = x.shape[-2:] if tx else x.shape[:-3:-1]
    if BATCH in (k, kept):
        return None
    n = d.one([1, 2, 3, 8, 16, 17])
    y = d.of("f", lambda s: len(s) >= 2 and BATCH not in s[-2:] and s[-1 if ty else -2] == k and broadcasts(s[:-2], x.shape[:-2]) and
             count(s) * count(x.shape) < 10**9)
    second = d.small(y, 2) if y and d.coin() else d.array((n, k) if ty else (k, n))
    r = o.matmul(x=d.small(x, 3), y=second, transpose_x=tx, transpose_y=ty)
    if d.coin(0.4):
        r = o.add(x=r, y=d.array((r.shape[-1],)))
    return o.relu(x=r) if d.coin(0.3) else r


@op(flexible=True)
def linear(d: Draw) -> Any:
    x = d.of("f", lambda s: 1 <= len(s) <= 3 and s[-1] != BATCH)
    n = d.one([1, 2, 3, 8, 16, 33])
    return x and o.linear(x=d.small(x, 3), weight=d.array((n, x.shape[-1])), bias=d.array((n,)))


@op(4, flexible=True)
def conv(d: Draw) -> Any:
    x = d.of("f", lambda s: len(s) == 4 and BATCH not in s[1:])
    if not x:
        return None
    c = x.shape[1]
    groups = d.one([1, 1, 1, c, 2 if c % 2 == 0 else 1])
    out = groups * d.one([1, 1, 2]) if groups > 1 else d.one([1, 2, 3, 8, 16, 17, 24])
    kernel = (1, 1) if d.coin(0.4) else (d.one([1, 1, 2, 3, 3, 5]), d.one([1, 1, 3, 3, 4]))
    how: dict[str, Any] = {
        "strides": [d.one([1, 1, 2, 3]), d.one([1, 1, 2])], "groups": groups,
        "dilations": [d.one([1, 1, 1, 2]), d.one([1, 1, 1, 2])],
        "pad_type": d.one(["valid", "same", "same_lower", "custom"])}
    if how["pad_type"] == "custom":
        how["pad"] = [d.int(0, 3) for _ in range(4)]
    if d.coin():
        how["bias"] = d.array((out,))
    r = o.conv(x=d.small(x, 3), weight=d.array((out, c // groups, *kernel)), **how)
    if d.coin(0.4):
        r = o.relu(x=r)
    y = d.of("f", lambda s: s == tuple(r.shape))
    return o.add(x=r, y=y.v) if y and d.coin(0.6) else r


@op()
def conv_transpose(d: Draw) -> Any:
    x = d.of("f", lambda s: len(s) == 4 and count(s) < 30000)
    if not x:
        return None
    weight = d.array((x.shape[1], d.one([1, 2, 5]), d.int(1, 4), d.int(1, 4)))
    return o.conv_transpose(x=d.small(x, 3), weight=weight, strides=[d.int(1, 3), d.int(1, 3)],
                            pad_type=d.one(["valid", "same"]))


@op(2, flexible=True)
def pooling(d: Draw) -> Any:
    x = d.of("f", lambda s: len(s) == 4 and BATCH not in s[2:])
    if not x:
        return None
    strides = [d.int(1, 3), d.int(1, 3)]
    if d.coin(0.7):
        return o.max_pool(x=x.v, kernel_sizes=[d.int(1, 4), d.int(1, 4)], strides=strides,
                          pad_type=d.one(["valid", "same"]))
    # Whole again: the mean of 2, 4 or 8 multiples of 8.
    return o.avg_pool(x=o.mul(x=d.small(x), y=d.f(8)), kernel_sizes=[2, d.one([1, 2, 4])], strides=strides,
                      pad_type="valid")


@op(3, flexible=True)
def reduce(d: Draw) -> Any:
    x = d.of("ffi", lambda s: len(s) > 0)
    if not x:
        return None
    axes = sorted({d.int(0, len(x.shape)) for _ in range(d.int(1, 3))})
    keep = d.coin()
    if d.coin(0.2):
        return d.one([o.reduce_argmax, o.reduce_argmin])(x=x.v, axis=axes[0], keep_dims=keep)
    fn = d.one([o.reduce_sum, o.reduce_max, o.reduce_min])
    return fn(x=d.small(x, 2) if fn is o.reduce_sum else x.v, axes=axes, keep_dims=keep)


@op(2, flexible=True)
def transpose(d: Draw) -> Any:
    x = d.of("ffib", lambda s: len(s) > 1)
    return x and o.transpose(x=x.v, perm=[int(i) for i in d.rng.permutation(len(x.shape))])


@op(2)
def reshape(d: Draw) -> Any:
    x = d.of("ffib")
    if not x:
        return None
    n = count(x.shape)
    k = d.one([k for k in range(1, 17) if n % k == 0])
    return o.reshape(x=x.v, shape=d.one([(k, n // k), (n,), (1, k, n // k), (1, n // k, 1, k), (k, -1)]))


@op(2)
def slices(d: Draw) -> Any:
    x = d.of("ffib", lambda s: len(s) > 0)
    if not x:
        return None
    begin = [d.int(0, n) for n in x.shape]
    end = [d.int(b + 1, n + 1) for b, n in zip(begin, x.shape, strict=True)]
    stride = [d.one([1, 1, 2]) for _ in x.shape]
    if d.coin(0.3):
        i = d.int(0, len(x.shape))
        begin[i], end[i], stride[i] = x.shape[i] - 1, 0, -1
        return o.slice_by_index(x=x.v, begin=begin, end=end, stride=stride,
                                end_mask=[k == i for k in range(len(x.shape))])
    return o.slice_by_index(x=x.v, begin=begin, end=end, stride=stride)


@op(2, flexible=True)
def concat(d: Draw) -> Any:
    x = d.of("ffib", lambda s: len(s) > 0)
    if not x:
        return None
    axis = d.int(0, len(x.shape))

    def fits(s: tuple[int, ...]) -> bool:
        return (len(s) == len(x.shape) and BATCH not in (s[axis], x.shape[axis]) and
                all(a == b or i == axis for i, (a, b) in enumerate(zip(s, x.shape))))

    if not fits(x.shape):
        return None
    return o.concat(values=[x.v, *(d.of(x.kind, fits).v for _ in range(d.int(1, 4)))], axis=axis)


@op()
def split(d: Draw) -> Any:
    x = d.of("ffib", lambda s: any(n > 1 for n in s))
    if not x:
        return None
    axis = d.one([i for i, n in enumerate(x.shape) if n > 1])
    first = d.int(1, x.shape[axis])
    return list(o.split(x=x.v, split_sizes=[first, x.shape[axis] - first], axis=axis))


@op(2)
def dims(d: Draw) -> Any:
    x = d.of("ffib", lambda s: len(s) < 5)
    if not x:
        return None
    ones = [i for i, n in enumerate(x.shape) if n == 1]
    way = d.int(0, 3)
    if way == 0 and x.kind != "b":
        return o.stack(values=[x.v, d.of(x.kind, lambda s: s == x.shape).v], axis=d.int(0, len(x.shape) + 1))
    if way == 1 and ones and len(x.shape) > 1:
        return o.squeeze(x=x.v, axes=[d.one(ones)])
    return o.expand_dims(x=x.v, axes=[d.int(0, len(x.shape) + 1)])


@op()
def tile(d: Draw) -> Any:
    x = d.of("ffib", lambda s: len(s) > 0 and count(s) < 3000)
    return x and o.tile(x=x.v, reps=[d.int(1, 4) for _ in x.shape])


@op()
def pad(d: Draw) -> Any:
    x = d.of("f", lambda s: 1 <= len(s) <= 4)
    if not x:
        return None
    mode = d.one(["constant", "reflect", "replicate"])
    n = len(x.shape) if mode == "constant" else min(2, len(x.shape))
    by = [d.int(0, 3) for _ in range(2 * n)]
    most = {"constant": 3, "reflect": -1, "replicate": 0}[mode]     # more than the dimension
    if any(b > s + most for b, s in zip(by, np.repeat(x.shape[-n:], 2))):
        return None
    return o.pad(x=x.v, pad=by, mode=mode, **({"constant_val": d.f(2)} if mode == "constant" else {}))


@op(2)
def order(d: Draw) -> Any:
    x = d.of("ffi", lambda s: len(s) > 0)
    if not x:
        return None
    axis, way = d.int(0, len(x.shape)), d.int(0, 4)
    if way == 0:
        return o.reverse(x=x.v, axes=[axis])
    if way == 1:
        return o.cumsum(x=d.small(x, 2), axis=axis, exclusive=d.coin(), reverse=d.coin())
    if x.kind == "i":
        return None
    if way == 2:
        return o.argsort(x=x.v, axis=axis, ascending=d.coin())
    k = d.int(1, x.shape[axis] + 1)
    return list(o.topk(x=x.v, k=k, axis=axis, ascending=d.coin(), sort=True, return_indices=True))


@op(2, flexible=True)
def gather(d: Draw) -> Any:
    x = d.of("ffi", lambda s: len(s) > 0)
    if not x:
        return None
    axis, way = d.int(0, len(x.shape)), d.rng.random()
    n = x.shape[axis]
    if BATCH in x.shape and (n == BATCH or way >= 0.5):
        return None
    if way < 0.5:
        return o.gather(x=x.v, indices=d.array(d.one([(3,), (2, 2), (5,)]), "i", -n, n), axis=axis)
    if way < 0.75:
        shape = (*x.shape[:axis], d.int(1, 5), *x.shape[axis + 1:])
        return o.gather_along_axis(x=x.v, indices=d.array(shape, "i", 0, n), axis=axis)
    along = x.shape[:d.int(1, len(x.shape) + 1)]
    return o.gather_nd(x=x.v, indices=np.stack([d.array((4,), "i", 0, s) for s in along], -1))


@op()
def scatter(d: Draw) -> Any:
    x = d.of("ffi", lambda s: len(s) > 0)
    if not x:
        return None
    axis = d.int(0, len(x.shape))
    n = d.int(1, min(x.shape[axis], 50) + 1)
    at = d.rng.permutation(x.shape[axis])[:n].astype(np.int32)
    updates = d.array((*x.shape[:axis], n, *x.shape[axis + 1:]), x.kind)
    return o.scatter(data=x.v, indices=at, updates=updates, axis=axis,
                     mode=d.one(["add", "update", "max", "min", "sub"]))


@op()
def band(d: Draw) -> Any:
    x = d.of("f", lambda s: len(s) >= 2)
    return x and o.band_part(x=x.v, lower=d.int(-1, 3), upper=d.int(-1, 3))


@op()
def whole_division(d: Draw) -> Any:
    x = d.of("i")
    if not x:
        return None
    if d.coin(0.3) and len(x.shape) < 4 and count(x.shape) < 2000:
        return o.one_hot(indices=o.mod(x=x.v, y=np.int32(5)), one_hot_vector_size=5, axis=-1, on_value=d.f(2),
                         off_value=d.f(-1))
    return d.one([o.floor_div, o.mod])(x=x.v, y=np.int32(d.one([2, 3, 7, -3])))


@op()
def blocks(d: Draw) -> Any:
    x = d.of("f", lambda s: len(s) == 4 and count(s) < 100000)
    if not x:
        return None
    if x.shape[1] % 4 == 0 and d.coin():
        return o.depth_to_space(x=x.v, block_size=2)
    if x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0 and d.coin():
        return o.space_to_depth(x=x.v, block_size=2)
    return o.upsample_nearest_neighbor(x=x.v, scale_factor_height=2, scale_factor_width=d.int(1, 3))


@op()
def branch(d: Draw) -> Any:
    c, x = d.of("b", lambda s: s and count(s) == 1), d.of("ffi")
    if not c or not x:
        return None
    one = d.constant(x.kind, 1)
    return o.cond(o.squeeze(x=c.v), lambda: o.add(x=x.v, y=one), lambda: o.sub(x=o.maximum(x=x.v, y=one), y=one))


def through_bytes(d: Draw, x: Any, most: int = 15) -> Any:
    """Quantised and back: exact, for steps that are powers of two."""
    kind = d.one(["int8", "uint8"])
    how = {"scale": d.f(d.one([0.5, 1, 2])), "zero_point": np.dtype(kind).type(d.one([0, 3, 100]))}
    q = o.quantize(input=o.clip(x=x, alpha=d.f(-most), beta=d.f(most)), output_dtype=kind, **how)
    return o.dequantize(input=q, **how)


@op(3, flexible=True)
def quantised(d: Draw) -> Any:
    """A layer as quantised models have it: bytes in, weights of bytes, often bytes out."""
    x = d.of("f", lambda s: len(s) in (2, 3, 4) and BATCH not in s[1:])
    if not x:
        return None
    y = through_bytes(d, x.v, 3)
    channels, kind = x.shape[1] if len(x.shape) == 4 else x.shape[-1], d.one([np.int8, np.uint8])
    groups = channels if len(x.shape) == 4 and d.coin(0.3) else 1
    out = groups if groups > 1 else d.one([1, 3, 8, 17, 24])
    zero = kind(d.one([0, 2, 128 if kind is np.uint8 else -7]))
    shape = (out, channels // groups)
    if len(x.shape) == 4:
        shape += (1, 1) if d.coin(0.4) else (d.one([1, 2, 3]), d.one([1, 3]))
    data = (d.array(shape, "i") + int(zero)).clip(0 if kind is np.uint8 else -128, 255).astype(kind)
    scale = d.rng.choice([1, 2], out).astype(d.f)
    weight = o.constexpr_affine_dequantize(quantized_data=data, zero_point=zero, scale=scale, axis=np.int32(0))
    bias = d.array((out,))
    if len(x.shape) == 4:
        y = o.conv(x=y, weight=weight, bias=bias, groups=groups, strides=[d.one([1, 1, 2]), d.one([1, 1, 2])],
                   pad_type=d.one(["valid", "same"]))
    else:
        y = o.linear(x=y, weight=weight, bias=bias)
    found = [y]
    if d.coin():
        y = d.one([o.relu, o.relu6])(x=y)
    same = d.of("f", lambda s: s == known_shape(y))
    if same and d.coin(0.3):
        y = o.add(x=y, y=through_bytes(d, same.v) if d.coin() else same.v)
    if d.coin(0.6):
        y = through_bytes(d, y)
    return [*found, y] if d.coin(0.3) else y


def leaves(d: Draw) -> list[Any]:
    """Functions that round, of an exact value."""
    x = d.of("f")
    if not x:
        return []
    y = d.one([o.sigmoid, o.tanh, o.silu, o.erf, o.softsign, o.gelu])(x=x.v)
    if d.coin():
        y = o.add(x=o.mul(x=y, y=d.f(0.5)), y=x.v)
    found = [y]
    if x.shape and d.coin():
        found.append(o.softmax(x=x.v, axis=d.int(0, len(x.shape))))
    if x.shape and d.coin():
        fn = d.one([o.reduce_mean, o.reduce_log_sum_exp, o.reduce_l2_norm, o.reduce_l1_norm, o.reduce_sum_square])
        found.append(fn(x=d.small(x, 2), axes=[d.int(0, len(x.shape))], keep_dims=d.coin()))
    if len(x.shape) == 4 and d.coin(0.3):
        found.append(o.instance_norm(x=d.small(x), epsilon=d.f(0.5)))
    if x.shape and x.shape[-1] > 2 and d.coin(0.3):
        found.append(o.layer_norm(x=x.v, axes=[len(x.shape) - 1], epsilon=d.f(0.5)))
    return found


def random_program(seed: int, *, large: bool = False, flexible: bool = False) -> Case:
    """One program, fp32 or fp16, with inputs for it.

    large: few ops on many elements. flexible: the first dimension of some inputs is unknown; the
    inputs given have BATCH there.
    """
    dtype = ("fp32", "fp16")[seed % 2]
    d = Draw(seed, dtype, large)
    names = {"f": dtype, "i": "int32", "b": "bool"}
    kinds = {v: k for k, v in names.items()}
    specs, inputs = {}, {}
    for i in range(d.int(1, 4) if large else d.int(2, 6)):
        kind = d.one("ffffib") if i else "f"
        shape = given = d.shape()
        if flexible and (not i or d.coin(0.7)):
            shape, given = (BATCH, *shape[1:]), (None, *shape[1:])
        inputs[f"x{i}"] = d.array(shape, kind, -3, 4)
        specs[f"x{i}"] = mil.spec(given, names[kind])
    exact: set[str] = set()

    def known(v: Any) -> Value:
        return Value(v, known_shape(v), kinds[v.dtype])

    def body(**given: Any) -> dict[str, Any]:
        d.pool = [known(v) for v in given.values()]
        made, rounding = [], []
        for _ in range(d.int(2, 9) if large else d.int(5, 36)):
            fn = d.one(OPS)
            d.flexible = fn in FLEXIBLE
            try:
                got = fn(d)
            except ValueError as e:             # a window that does not fit
                if "does not fit" not in str(e):
                    raise
                continue
            for v in [] if got is None else got if isinstance(got, list) else [got]:
                value = known(v)
                if count(value.shape) > (10**6 if large else 10**5):
                    continue
                d.pool.append(value)
                made.append(v)
            d.flexible = True
            if d.coin(0.15):
                rounding += leaves(d)
        made = made or [o.add(x=d.pool[0].v, y=d.pool[0].v)]
        kept = sorted({len(made) - 1} | {d.int(0, len(made)) for _ in range(d.int(1, 5))})
        outputs = {f"exact{k}": made[k] for k in kept}
        exact.update(outputs)
        return outputs | {f"leaf{k}": v for k, v in enumerate(rounding)}

    return Case(mil.build(body, specs), inputs, exact)


def spread(d: np.random.Generator, a: np.ndarray) -> np.ndarray:
    """The same numbers in memory that is not dense: backwards, every other element, columns first,
    the inside of a larger block."""
    way = int(d.integers(5))
    if way == 0 or not a.ndim:
        return a
    if way == 1:
        return np.ascontiguousarray(a[::-1])[::-1]
    if way == 2:
        b = np.zeros((*a.shape[:-1], a.shape[-1] * 2), a.dtype)[..., ::2]
    elif way == 3:
        return np.asfortranarray(a)
    else:
        b = np.zeros([n + 3 for n in a.shape], a.dtype)[tuple(slice(1, n + 1) for n in a.shape)]
    b[...] = a
    return b
