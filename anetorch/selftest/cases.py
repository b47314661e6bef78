"""One small case for each operation of the op table, and the error each may have.

Most are fp16 tensors `[1, 32, 1, 32]`: what the public reports about the engine tried. Inputs are
made from the case's name alone, the same on every machine.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anetorch import _core, mil
from anetorch.mil import ops

__all__ = ["CASES", "NO_CASE", "Case", "In", "bounds", "measure"]

SHAPE = (1, 32, 1, 32)
NO_CASE = {"const": "not an operation that runs", "conv_quantized": "no compiler writes it",
           "classify": "gives a dictionary, which only a model's interface can return"}

U = {"float16": 2.0**-11, "float32": 2.0**-24}
HALF_SUBNORMAL = {"float16": 2.0**-25, "float32": 2.0**-150}


@dataclass(frozen=True)
class In:
    """An input's values: uniform in [low, high), or its multiples of `step` plus `shift`."""

    low: float = -4.0
    high: float = 4.0
    shape: tuple[int, ...] = SHAPE
    dtype: str = "float16"
    step: float = 0.0
    shift: float = 0.0
    state: bool = False
    magnitude: bool = True              # whether its size, not its sign, counts in a bound

    def make(self, name: str) -> np.ndarray:
        """The values, by a counter mixed as in SplitMix64: no library's generator is asked."""
        n = int(np.prod(self.shape, dtype=np.int64))
        z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(zlib.crc32(name.encode()) << 16)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        unit = ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        values = self.low + (self.high - self.low) * unit
        if self.dtype == "bool":
            return (unit < 0.5).reshape(self.shape)
        if np.issubdtype(np.dtype(self.dtype), np.integer):
            return np.floor(values).astype(self.dtype).reshape(self.shape)
        if self.step:
            values = np.floor(values / self.step) * self.step + self.shift
        return values.astype(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Case:
    """A program of one operation. Rules about |result - exact|, u being half an ulp of the
    result's type, M the largest of 1, the inputs and the results, and S what the operation gives
    for the magnitudes of its inputs:

    exact  no difference;
    round  u |exact| and (chain + 16) 2^-24 |exact|: a function in fp32, rounded once;
    sum    u |exact| and (chain + 2) 2^-24 S: chain products or terms, added in fp32;
    scale  u |exact| and chain 2^-24 M: chain fp32 steps, none of which is larger than M;
    range  between `low` and `high`: the operation is random.
    """

    name: str
    rule: str
    body: Callable[..., Any]
    inputs: Mapping[str, In]
    weights: Mapping[str, In] = field(default_factory=dict)
    chain: int = 1
    opset: str = "ios18"
    low: float = 0.0
    high: float = 0.0

    def values(self, magnitudes: bool = False) -> dict[str, np.ndarray]:
        return self._make(self.inputs, magnitudes)

    def _make(self, specs: Mapping[str, In], magnitudes: bool) -> dict[str, np.ndarray]:
        made = {k: s.make(f"{self.name}/{k}") for k, s in specs.items()}
        return {k: np.abs(v) if magnitudes and specs[k].magnitude and v.dtype.kind == "f" else v
                for k, v in made.items()}

    def program(self, magnitudes: bool = False) -> mil.Program:
        short = {"float16": "fp16", "float32": "fp32"}
        specs = {k: (mil.state if s.state else mil.spec)(s.shape, short.get(s.dtype, s.dtype))
                 for k, s in self.inputs.items()}
        weights = self._make(self.weights, magnitudes)
        return mil.build(lambda **v: self.body(**v, **weights), specs, opset=self.opset)


def bounds(case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    """(exact value, bound) of each output, from the double evaluation of the same program."""
    def run(magnitudes: bool, wide: bool = True) -> list[np.ndarray]:
        program = case.program(magnitudes)
        out = _core._testing.eval(program, case.values(magnitudes), wide=wide)
        count = len(program.block_info(program.functions()[0][2])["outputs"])
        return [np.asarray(a) for a in out.values()][:count]        # states come behind

    refs = [a.astype(np.float64) for a in run(False)]
    plain = run(False, wide=False)
    sums = run(True) if case.rule == "sum" else refs
    biggest = max(1.0, *(float(np.abs(v.astype(np.float64)).max(initial=0.0))
                         for v in (*case.values().values(), *refs)))
    result = []
    for ref, s, rounded in zip(refs, sums, plain):
        out = rounded.dtype.name
        if case.rule == "exact" or out not in U:
            bound = np.zeros(ref.shape)
        else:
            fp32 = {"round": (case.chain + 16) * np.abs(ref), "sum": (case.chain + 2) * s,
                    "scale": np.full(ref.shape, case.chain * biggest), "range": 0 * ref}[case.rule]
            bound = U[out] * np.abs(ref) + HALF_SUBNORMAL[out] + 2.0**-24 * fp32
        result.append((ref, bound))
    return result


def measure(case: Case, outputs: list[np.ndarray]) -> float:
    """The worst error as a multiple of its bound; 0 where all is exact, inf where a shape, a NaN
    or an infinity differs."""
    worst = 0.0
    for (ref, bound), got in zip(bounds(case), outputs, strict=True):
        got = np.asarray(got).astype(np.float64)
        if got.shape != ref.shape:
            return float("inf")
        if case.rule == "range":
            good = (got >= case.low) & (got <= case.high)
            worst = max(worst, 0.0 if good.all() else float("inf"))
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            error = np.where((got == ref) | (np.isnan(got) & np.isnan(ref)), 0.0, np.abs(got - ref))
            ratio = np.where(error == 0.0, 0.0, error / bound)
        worst = max(worst, float(np.where(np.isnan(ratio), np.inf, ratio).max(initial=0.0)))
    return worst


# ---------------------------------------------------------------- the list

_made: list[Case] = []
X = In()
POSITIVE = In(0.25, 4.0)
IMAGE = In(shape=(1, 8, 8, 8))


def _add(name: str, rule: str, body: Callable[..., Any], *, weights: Mapping[str, In] | None = None,
         chain: int = 1, opset: str = "ios18", low: float = 0.0, high: float = 0.0,
         **inputs: In) -> None:
    _made.append(Case(name, rule, body, inputs, weights or {}, chain, opset, low, high))


def _op(name: str, rule: str, spec: In = X, *, chain: int = 1, opset: str = "ios18",
        **consts: Any) -> None:
    """x is the one input; the rest are constants."""
    _add(name, rule, lambda x: getattr(ops, name)(x=x, **consts), chain=chain, opset=opset, x=spec)


def _elementwise() -> None:
    _op("identity", "exact")
    _add("select", "exact", lambda c, x, y: ops.select(cond=ops.greater(x=c, y=0.0), a=x, b=y),
         c=X, x=X, y=X)
    for name in ("add", "sub", "mul", "maximum", "minimum"):
        _add(name, "exact" if "imum" in name else "round", lambda x, y, n=name: getattr(ops, n)(x=x, y=y), x=X, y=X)
    _add("real_div", "round", lambda x, y: ops.real_div(x=x, y=y), x=X, y=POSITIVE)
    _op("floor_div", "exact", y=0.5)
    _op("mod", "round", y=0.75)
    _add("pow", "round", lambda x, y: ops.pow(x=x, y=y), x=POSITIVE, y=In(-2.0, 2.0))
    whole = In(step=1.0)                # with ties
    for name in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"):
        _add(name, "exact", lambda x, y, n=name: ops.cast(x=getattr(ops, n)(x=x, y=y), dtype="fp16"),
             x=whole, y=whole)
    for name in ("logical_and", "logical_or", "logical_xor"):
        _add(name, "exact", lambda x, y, n=name: ops.cast(x=getattr(ops, n)(
            x=ops.greater(x=x, y=0.0), y=ops.greater(x=y, y=0.0)), dtype="fp16"), x=X, y=X)
    _add("logical_not", "exact", lambda x: ops.cast(x=ops.logical_not(x=ops.greater(x=x, y=0.0)),
                                                    dtype="fp16"), x=X)
    for name in ("abs", "sign", "ceil", "floor", "relu", "relu6"):
        _op(name, "exact")
    _op("round", "exact", In(step=0.5, shift=0.125))            # without ties
    for name in ("square", "exp2", "atan", "cos", "cosh", "sin", "sinh", "erf", "exp", "tanh",
                 "sigmoid", "silu", "softsign", "softplus"):
        _op(name, "round")
    _op("tan", "round", In(-1.5, 1.5))
    for name in ("acos", "asin"):
        _op(name, "round", In(-1.0, 1.0))
    _op("atanh", "round", In(-0.99, 0.99))
    _op("sqrt", "round", POSITIVE)
    for name, epsilon in (("rsqrt", 2.0**-10), ("inverse", 2.0**-10), ("log", 2.0**-14)):
        _op(name, "scale", POSITIVE, chain=16, epsilon=epsilon)
    _op("threshold", "exact", alpha=0.5)
    _op("clip", "exact", alpha=-1.0, beta=2.0)
    _add("cast", "exact", lambda x: ops.cast(x=ops.cast(x=x, dtype="fp32"), dtype="fp16"), x=X)
    _op("gelu", "round", mode="EXACT")
    _op("elu", "round", alpha=0.75)
    for name, consts in (("leaky_relu", {"alpha": 0.25}), ("thresholded_relu", {"alpha": 0.5}),
                         ("clamped_relu", {"alpha": 0.25, "beta": 2.0})):
        _op(name, "exact", **consts)
    for name, alpha, beta in (("linear_activation", 2.0, 0.5), ("scaled_tanh", 2.0, 0.5),
                              ("sigmoid_hard", 0.25, 0.5)):
        _op(name, "scale", chain=16, alpha=alpha, beta=beta)
    channel = In(0.25, 2.0, (32,))
    _add("prelu", "round", lambda x, alpha: ops.prelu(x=x, alpha=alpha), weights={"alpha": channel}, x=X)
    _add("softplus_parametric", "scale", lambda x, alpha, beta: ops.softplus_parametric(
        x=x, alpha=alpha, beta=beta), weights={"alpha": channel, "beta": channel}, chain=32, x=X)
    _op("softmax", "round", chain=32, axis=1)


def _products() -> None:
    wide = In(shape=(1, 4, 32, 32))
    _add("matmul", "sum", lambda x, y: ops.matmul(x=x, y=y, transpose_x=False, transpose_y=True),
         chain=32, x=wide, y=wide)
    _add("linear", "sum", lambda x, weight, bias: ops.linear(x=x, weight=weight, bias=bias),
         weights={"weight": In(shape=(48, 32)), "bias": In(shape=(48,))}, chain=33, x=In(shape=(64, 32)))
    _add("einsum", "sum", lambda x, y: ops.einsum(values=(x, y), equation="nchw,nwhu->nchu"), chain=32,
         x=In(shape=(1, 8, 4, 32)), y=In(shape=(1, 32, 4, 8)))
    _add("conv", "sum", lambda x, weight: ops.conv(
        x=x, weight=weight, strides=[1, 1], pad_type="valid", pad=[0, 0, 0, 0], dilations=[1, 1],
        groups=1), weights={"weight": In(shape=(64, 32, 1, 1))}, chain=32, x=X)
    _add("conv_transpose", "sum", lambda x, weight: ops.conv_transpose(
        x=x, weight=weight, strides=[2, 2], pad_type="valid", pad=[0, 0, 0, 0], dilations=[1, 1],
        groups=1), weights={"weight": In(shape=(8, 4, 2, 2))}, chain=8, x=IMAGE)
    pool = {"kernel_sizes": [2, 2], "strides": [2, 2], "pad_type": "valid", "pad": [0, 0, 0, 0],
            "ceil_mode": False}
    _op("max_pool", "exact", IMAGE, **pool)
    _op("avg_pool", "sum", IMAGE, chain=4, exclude_padding_from_average=False, **pool)
    _op("l2_pool", "round", IMAGE, chain=4, **pool)
    _add("scaled_dot_product_attention", "scale", lambda q, k, v: ops.scaled_dot_product_attention(
        query=q, key=k, value=v), chain=256, q=wide, k=wide, v=wide)


def _reductions() -> None:
    over = {"axes": [1], "keep_dims": True}
    for name in ("reduce_sum", "reduce_mean", "reduce_l1_norm"):
        _op(name, "sum", chain=32, **over)
    for name in ("reduce_max", "reduce_min"):
        _op(name, "exact", **over)
    _op("reduce_prod", "round", In(0.75, 1.25), chain=32, **over)
    for name in ("reduce_sum_square", "reduce_l2_norm"):
        _op(name, "round", chain=32, **over)
    _op("reduce_log_sum", "scale", POSITIVE, chain=64, **over)
    _op("reduce_log_sum_exp", "scale", chain=64, **over)
    for name in ("reduce_argmax", "reduce_argmin"):
        _op(name, "exact", axis=1, keep_dims=True)
    channel, spread = In(shape=(32,)), In(0.5, 2.0, (32,))
    _add("layer_norm", "scale", lambda x, gamma, beta: ops.layer_norm(
        x=x, axes=[3], gamma=gamma, beta=beta, epsilon=2.0**-10), chain=256,
        weights={"gamma": channel, "beta": channel}, x=X)
    _add("batch_norm", "scale", lambda x, mean, variance, gamma, beta: ops.batch_norm(
        x=x, mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=2.0**-10), chain=64,
        weights={"mean": channel, "variance": spread, "gamma": channel, "beta": channel}, x=IMAGE32)
    _add("instance_norm", "scale", lambda x, gamma, beta: ops.instance_norm(
        x=x, gamma=gamma, beta=beta, epsilon=2.0**-10), chain=256,
        weights={"gamma": channel, "beta": channel}, x=IMAGE32)
    _op("l2_norm", "round", chain=1024, epsilon=2.0**-10)
    _op("local_response_norm", "round", chain=16, size=3, alpha=0.01, beta=0.75, k=1.0)
    _op("cumsum", "sum", chain=32, axis=1)


IMAGE32 = In(shape=(1, 32, 4, 8))


def _movement() -> None:
    _op("reshape", "exact", shape=[1, 8, 4, 32])
    _add("reshape_like", "exact", lambda x, y: ops.reshape_like(
        x=x, ref_tensors=(y,), begins=[0], ends=[4], end_masks=[False]), opset="ios16",
        x=X, y=In(shape=(1, 8, 4, 32)))
    _op("transpose", "exact", perm=[0, 3, 2, 1])
    _op("expand_dims", "exact", In(shape=(1, 32, 32)), axes=[2])
    _op("squeeze", "exact", axes=[2])
    _op("flatten2d", "exact", axis=2)
    _op("slice_by_size", "exact", begin=[0, 8, 0, 0], size=[1, 16, 1, 32])
    _op("slice_by_index", "exact", begin=[0, 0, 0, 4], end=[1, 32, 1, 28], stride=[1, 2, 1, 1])
    _add("slice_update", "exact", lambda x, y: ops.slice_update(
        x=x, update=y, begin=[0, 8, 0, 0], end=[1, 24, 1, 32]), x=X, y=In(shape=(1, 16, 1, 32)))
    _add("concat", "exact", lambda x, y: ops.concat(values=(x, y), axis=1, interleave=False), x=X, y=X)
    _add("stack", "exact", lambda x, y: ops.stack(values=(x, y), axis=2), x=In(shape=(1, 32, 32)),
         y=In(shape=(1, 32, 32)))
    _op("split", "exact", num_splits=2, axis=1)
    _op("tile", "exact", reps=[1, 2, 1, 1])
    _op("pad", "exact", pad=[0, 0, 0, 0, 0, 0, 2, 2], mode="constant", constant_val=0.5)
    _op("reverse", "exact", axes=[1])
    _op("reverse_sequence", "exact", In(shape=(4, 32, 8)), lengths=[3, 32, 17, 1], seq_axis=1, batch_axis=0)
    _op("band_part", "exact", In(shape=(1, 1, 32, 32)), lower=2, upper=3)
    _op("sliding_windows", "exact", axis=3, size=8, stride=4)
    for name, key in (("depth_to_space", "block_size"), ("pixel_shuffle", "upscale_factor"),
                      ("space_to_depth", "block_size")):
        _op(name, "exact", IMAGE, **{key: 2})
    _op("pixel_unshuffle", "exact", IMAGE, downscale_factor=np.uint32(2))
    _op("space_to_batch", "exact", IMAGE, block_shape=[2, 2], paddings=[[0, 0], [2, 2]])
    _op("batch_to_space", "exact", In(shape=(4, 8, 4, 4)), block_shape=[2, 2], crops=[[0, 0], [1, 1]])
    _op("crop", "exact", IMAGE, crop_height=[1, 1], crop_width=[2, 1])


def _indexing() -> None:
    rows = np.array([3, 0, 31, 7], np.int32)
    _op("gather", "exact", indices=rows, axis=1, batch_dims=0, validate_indices=False)
    _op("gather_along_axis", "exact", In(shape=(32, 4)), indices=np.stack([rows] * 4), axis=0,
        validate_indices=False)
    _op("gather_nd", "exact", In(shape=(32, 8)), indices=rows.reshape(2, 2) % 8, batch_dims=0,
        validate_indices=False)
    _add("scatter", "round", lambda x, y: ops.scatter(
        data=x, indices=rows, updates=y, axis=0, mode="add", validate_indices=False),
        x=In(shape=(32, 8)), y=In(shape=(4, 8)))
    _add("scatter_along_axis", "exact", lambda x, y: ops.scatter_along_axis(
        data=x, indices=np.stack([rows] * 4, 1), updates=y, axis=0, mode="update", validate_indices=False),
        x=In(shape=(32, 4)), y=In(shape=(4, 4)))
    _add("scatter_nd", "exact", lambda x, y: ops.scatter_nd(
        data=x, indices=rows.reshape(4, 1), updates=y, mode="update", validate_indices=False),
        x=In(shape=(32, 8)), y=In(shape=(4, 8)))
    _add("topk", "exact", lambda x: ops.topk(x=x, k=3, axis=1, ascending=False, sort=True,
                                             return_indices=True), x=X)
    _op("argsort", "exact", axis=1, ascending=True)
    _add("one_hot", "exact", lambda x: ops.one_hot(
        indices=x, one_hot_vector_size=8, axis=-1, on_value=np.float16(1), off_value=np.float16(0)),
        x=In(0, 8, (16,), "int32"))
    _op("shape", "exact")
    _op("non_zero", "exact", In(0, 2, (4, 8), step=1.0))
    _add("range_1d", "round", lambda x: ops.add(x=x, y=ops.range_1d(
        start=np.float16(0), end=np.float16(8), step=np.float16(0.25))), x=In(shape=(32,)))
    _add("fill", "round", lambda x: ops.add(x=x, y=ops.fill(shape=list(SHAPE), value=np.float16(0.5))), x=X)
    _add("fill_like", "exact", lambda x: ops.fill_like(ref_tensor=x, value=np.float16(0.5)), x=X)
    for name, low, high, consts in (
            ("random_uniform", 0.0, 1.0, {"low": np.float16(0), "high": np.float16(1)}),
            ("random_normal", -16.0, 16.0, {"mean": np.float16(0), "stddev": np.float16(1)}),
            ("random_bernoulli", 0.0, 1.0, {"prob": np.float16(0.5)})):
        _add(name, "range", lambda x, n=name, c=consts: ops.mul(
            x=ops.fill_like(ref_tensor=x, value=np.float16(1)),
            y=getattr(ops, n)(shape=[4, 8], seed=7, **c)), low=low, high=high, x=In(shape=(4, 8)))
    _add("random_categorical", "range", lambda x: ops.random_categorical(x=x, mode="logits", size=4, seed=7),
         low=0, high=7, x=In(shape=(4, 8)))
    _add("non_maximum_suppression", "exact", lambda b, s: ops.non_maximum_suppression(
        boxes=b, scores=s, iou_threshold=np.float16(0.5), max_boxes=4, per_class_suppression=False),
        b=In(0.25, 4.0, (1, 4, 8)), s=In(0.0, 1.0, (1, 2, 8)))


def _sampling() -> None:
    _op("resize_bilinear", "sum", IMAGE, chain=64, target_size_height=12, target_size_width=16,
        sampling_mode="DEFAULT")
    _op("resize_nearest_neighbor", "exact", IMAGE, target_size_height=16, target_size_width=16)
    _op("upsample_bilinear", "sum", IMAGE, chain=64, scale_factor_height=2, scale_factor_width=2,
        align_corners=False)
    _op("upsample_nearest_neighbor", "exact", IMAGE, scale_factor_height=2, scale_factor_width=2)
    _op("resize", "sum", IMAGE, chain=64, shape=[12, 16], resized_dims=np.uint32(2),
        interpolation_mode="LINEAR", sampling_mode="DEFAULT")
    _add("crop_resize", "sum", lambda x: ops.crop_resize(
        x=x, boxes=np.float16([[1, 1, 6, 5]]), box_indices=np.int32([0]), target_height=4, target_width=4,
        normalized_coordinates=False, spatial_scale=1.0, box_coordinate_mode="CORNERS_HEIGHT_FIRST",
        sampling_mode="DEFAULT"), chain=64, x=IMAGE)
    grid = {"sampling_mode": "bilinear", "padding_mode": "constant", "padding_value": np.float16(0),
            "coordinates_mode": "unnormalized", "align_corners": True}
    _add("resample", "sum", lambda x, c: ops.resample(x=x, coordinates=c, **grid), chain=64, x=IMAGE,
         c=In(0.0, 7.0, (1, 4, 4, 2), step=0.25, magnitude=False))
    _add("affine", "sum", lambda x, m: ops.affine(
        x=x, transform_matrix=m, output_height=4, output_width=4,
        **grid | {"coordinates_mode": "normalized_minus_one_to_one"}), chain=256, x=IMAGE,
        m=In(-0.5, 0.5, (1, 6), step=0.125, magnitude=False))


def _recurrent() -> None:
    seq, hidden = In(-1.0, 1.0, (3, 2, 8)), In(-1.0, 1.0, (2, 4))

    def weights(gates: int) -> dict[str, In]:
        return {"weight_ih": In(-1.0, 1.0, (gates * 4, 8)), "weight_hh": In(-1.0, 1.0, (gates * 4, 4)),
                "bias": In(-1.0, 1.0, (gates * 4,))}

    _add("lstm", "scale", lambda x, h, c, **w: ops.lstm(
        x=x, initial_h=h, initial_c=c, direction="forward", output_sequence=True, **w), chain=512,
        weights=weights(4), x=seq, h=hidden, c=hidden)
    _add("gru", "scale", lambda x, h, **w: ops.gru(
        x=x, initial_h=h, direction="forward", output_sequence=True, **w), chain=512,
        weights=weights(3), x=seq, h=hidden)
    _add("rnn", "scale", lambda x, h, **w: ops.rnn(
        x=x, initial_h=h, direction="forward", output_sequence=True, **w), chain=512,
        weights=weights(1), x=seq, h=hidden)


def _quantised() -> None:
    scale = np.float16(0.0625)
    _add("quantize", "exact", lambda x: ops.quantize(input=x, scale=scale, zero_point=np.int8(3),
                                                     output_dtype="int8"), x=In(step=0.0625, shift=0.015625))
    _add("dequantize", "exact", lambda x: ops.dequantize(
        input=ops.quantize(input=x, scale=scale, zero_point=np.int8(3), output_dtype="int8"), scale=scale,
        zero_point=np.int8(3)), x=In(step=0.0625, shift=0.015625))

    def stored(name: str, make: Callable[[], Any], rule: str = "round") -> None:
        """x plus a constant that is stored compressed, `[4, 8]`."""
        _add(name, rule, lambda x: ops.add(x=x, y=make()), x=In(shape=(4, 8)))

    q = In(-100, 100, (4, 8), "int8").make("q")
    mask = (np.arange(32).reshape(4, 8) % 3 == 0).astype(np.uint8)
    nonzero = In(shape=(int(mask.sum()),)).make("nonzero")
    half = In(0.25, 1.0, (4, 1), step=0.25).make("scale")       # products are exact
    stored("constexpr_affine_dequantize", lambda: ops.constexpr_affine_dequantize(
        quantized_data=q, zero_point=np.int8(1), scale=np.float16(0.0625), axis=0))
    _add("constexpr_cast", "exact", lambda x: ops.add(x=x, y=ops.constexpr_cast(    # in fp16, too
        source_val=In(shape=(4, 8), step=0.125).make("cast"), output_dtype="fp32")),
        x=In(shape=(4, 8), dtype="float32", step=0.125))
    lut = In(shape=(1, 1, 4, 1)).make("lut")
    stored("constexpr_lut_to_dense", lambda: ops.constexpr_lut_to_dense(
        indices=mil.const((np.arange(32).reshape(4, 8) % 4).tolist(), "uint2"), lut=lut))
    stored("constexpr_sparse_to_dense", lambda: ops.constexpr_sparse_to_dense(
        nonzero_data=nonzero, mask=mil.const(mask, "uint1")))
    stored("constexpr_blockwise_shift_scale", lambda: ops.constexpr_blockwise_shift_scale(
        data=q, scale=half, offset=np.full((4, 1), 2, np.int8)))
    def sparse(parts: Any) -> Any:
        return ops.constexpr_sparse_to_dense(nonzero_data=parts[1], mask=parts[0])

    stored("constexpr_lut_to_sparse", lambda: sparse(ops.constexpr_lut_to_sparse(
        indices_mask=mil.const(mask, "uint1"),
        indices_nonzero_data=mil.const((np.arange(int(mask.sum())) % 4).tolist(), "uint2"), lut=lut)))
    stored("constexpr_sparse_blockwise_shift_scale", lambda: sparse(
        ops.constexpr_sparse_blockwise_shift_scale(
            data_mask=mil.const(mask, "uint1"), nonzero_data=q.ravel()[:int(mask.sum())], scale=half,
            offset=np.full((4, 1), 2, np.int8))))


def _control() -> None:
    small = In(shape=(4, 8))
    _add("cond", "exact", lambda x: ops.cond(
        pred=ops.greater(x=ops.reduce_max(x=x, keep_dims=False), y=0.0),
        true_fn=lambda: ops.add(x=x, y=x), false_fn=lambda: ops.mul(x=x, y=x)), x=small)
    _add("while_loop", "exact", lambda x: ops.while_loop(
        cond=lambda i, v: ops.less(x=i, y=3), body=lambda i, v: (ops.add(x=i, y=1), ops.mul(x=v, y=0.5)),
        loop_vars=(ops.mul(x=ops.reduce_argmax(x=ops.reshape(x=x, shape=[32]), axis=0, keep_dims=False),
                           y=0), x))[1], x=small)

    def lists(x: Any, what: str) -> Any:
        made = ops.make_list(init_length=2, dynamic_length=True, elem_shape=(8,), dtype="fp16")
        rows = ops.split(x=x, num_splits=4, axis=0)
        for i in (0, 1):
            made = ops.list_write(ls=made, index=i, value=ops.squeeze(x=rows[i], axes=[0]))
        if what == "scatter":
            made = ops.list_scatter(ls=made, indices=[1, 0], value=ops.slice_by_size(
                x=x, begin=[2, 0], size=[2, 8]))
        if what == "length":
            return ops.list_length(ls=made)
        return ops.list_read(ls=made, index=1) if what == "read" else ops.list_gather(ls=made, indices=[1, 0])

    for name, what in (("make_list", "gather"), ("list_length", "length"), ("list_read", "read"),
                       ("list_write", "gather"), ("list_gather", "gather"), ("list_scatter", "scatter")):
        _add(name, "exact", lambda x, w=what: lists(x, w), x=small)
    state = In(state=True)
    _add("read_state", "round", lambda x, s: ops.add(x=x, y=ops.read_state(input=s)), x=X, s=state)

    def update(x: Any, s: Any, how: str) -> Any:
        value = ops.add(x=x, y=ops.read_state(input=s))
        if how == "write_state":
            ops.write_state(input=s, data=value)
        else:
            ops.coreml_update_state(state=s, value=value)
        return ops.read_state(input=s)

    for name in ("write_state", "coreml_update_state"):
        _add(name, "round", lambda x, s, n=name: update(x, s, n), x=X, s=state)


for _fill in (_elementwise, _products, _reductions, _movement, _indexing, _sampling, _recurrent, _quantised,
              _control):
    _fill()
CASES: dict[str, Case] = {c.name: c for c in _made}
