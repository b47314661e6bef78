"""What the engine is reported to refuse or get wrong, tried one by one.

A probe is one or more programs whose results are exact in fp16, so that "same" means every bit.
Identifiers ANE01 to ANE33 are the lint's rules (docs/lint.md); NUM... are about numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from anetorch import mil
from anetorch.mil import ops
from anetorch.selftest.cases import In

__all__ = ["CLIFFS", "NOT_TRIED", "Cliff", "Trial"]

F16 = np.float16


@dataclass(frozen=True)
class Trial:
    """One program of a probe, with its inputs by name."""

    label: str
    program: mil.Program
    values: dict[str, np.ndarray]


@dataclass(frozen=True)
class Cliff:
    """A probe: what is asked, and the programs that answer it. `damages`: the process is used for
    nothing else afterwards."""

    name: str
    question: str
    trials: Callable[[], Iterator[Trial]]
    damages: bool = False


# Rules that no program of ours can run into, and why.
NOT_TRIED = {
    "ANE08": "weights change without a compile only by experimental paths, which are off",
    "ANE09": "the parser refuses an offset that names no record",
    "ANE11": "texts are handed over as data and weights as a dictionary, always",
    "ANE15": "the verifier refuses undefined and repeated names",
    "ANE29": "texts are printed by anetorch, always with their buildInfo",
    "ANE30": "texts are printed by anetorch in one version",
}

CLIFFS: dict[str, Cliff] = {}


def _cliff(name: str, question: str, damages: bool = False) -> Callable[[Callable], Callable]:
    def add(trials: Callable[[], Iterator[Trial]]) -> Callable[[], Iterator[Trial]]:
        CLIFFS[name] = Cliff(name, question, trials, damages)
        return trials
    return add


def _whole(shape: tuple[int, ...], name: str = "x", span: int = 8) -> np.ndarray:
    """Small whole numbers, fp16."""
    return In(-span, span, shape, step=1.0).make(name)


def _trial(label: str, body: Callable[..., Any], dtypes: dict[str, str] | None = None,
           **values: np.ndarray) -> Trial:
    names = {"float16": "fp16", "float32": "fp32"}
    specs = {k: mil.spec(v.shape, names.get(v.dtype.name, v.dtype.name)) for k, v in values.items()}
    return Trial(label, mil.build(body, specs, opset="ios18"), dict(values))


X = (1, 32, 1, 64)


# ---------------------------------------------------------------- what is refused, by report

@_cliff("ANE01", "is concat refused?")
def _() -> Iterator[Trial]:
    yield _trial("channels", lambda x, y: ops.concat(values=(x, y), axis=1, interleave=False),
                 x=_whole(X), y=_whole(X, "y"))
    yield _trial("columns", lambda x, y: ops.concat(values=(x, y), axis=3, interleave=False),
                 x=_whole(X), y=_whole(X, "y"))


@_cliff("ANE02", "do several inputs of one size work?")
def _() -> Iterator[Trial]:
    for n in (1, 2, 3, 4):
        def body(**v: Any) -> Any:
            total = None
            for i, x in enumerate(v.values()):
                total = x * float(i + 1) if total is None else total + x * float(i + 1)
            return total
        yield _trial(f"{n} inputs", body, **{f"x{i}": _whole((1, 32, 1, 768), f"x{i}") for i in range(n)})


@_cliff("ANE03", "do inputs, or outputs, of different sizes work?")
def _() -> Iterator[Trial]:
    yield _trial("inputs", lambda x, y: ops.add(x=x, y=y), x=_whole((1, 32, 1, 768)), y=_whole((1, 32, 1, 1), "y"))
    yield _trial("outputs", lambda x: {"y": x * 2.0, "z": ops.reduce_max(x=x, axes=[1], keep_dims=True)},
                 x=_whole((1, 32, 1, 768)))


@_cliff("ANE04", "in which order are surfaces bound?")
def _() -> Iterator[Trial]:
    yield _trial("inputs z, a", lambda z, a: z - a * 2.0, z=_whole(X, "z"), a=_whole(X, "a"))
    yield _trial("outputs z, a", lambda x: {"z": x + 1.0, "a": x * 2.0}, x=_whole(X))


@_cliff("ANE05", "which is the smallest surface that works?")
def _() -> Iterator[Trial]:
    for columns in (1, 8, 16, 32, 256, 512, 768, 1024):
        yield _trial(f"{64 * columns} bytes", lambda x: ops.relu(x=x), x=_whole((1, 32, 1, columns)))


@_cliff("ANE07", "does attention ignore its mask?")
def _() -> Iterator[Trial]:
    mask = np.zeros((1, 1, 32, 32), F16)
    mask[..., 16:] = -30000
    zeros = np.zeros((1, 1, 32, 32), F16)       # scores of 0: a mean over what is not masked
    value = _whole((1, 1, 32, 32), "v")
    yield _trial("fused", lambda q, k, v, m: ops.scaled_dot_product_attention(
        query=q, key=k, value=v, attn_mask=m), k=zeros, m=mask, q=zeros, v=value)

    def written(k: Any, m: Any, q: Any, v: Any) -> Any:
        scores = ops.matmul(x=q, y=k, transpose_x=False, transpose_y=True)
        return ops.matmul(x=ops.softmax(x=scores + m, axis=-1), y=v, transpose_x=False, transpose_y=False)
    yield _trial("written out", written, k=zeros, m=mask, q=zeros, v=value)


@_cliff("ANE10", "may one program have several weights?")
def _() -> Iterator[Trial]:
    w = [_whole((32, 32, 1, 1), f"w{i}", 2) for i in range(3)]

    def body(x: Any, n: int) -> Any:
        for i in range(n):
            x = ops.conv(x=x, weight=w[i], pad_type="valid") if i else ops.conv(x=x, weight=w[0], pad_type="valid")
            x = ops.clip(x=x, alpha=-8.0, beta=8.0)
        return x
    for n in (1, 2, 3):
        yield _trial(f"{n}", lambda x, n=n: body(x, n), x=_whole(X, span=2))


@_cliff("ANE12", "is gelu refused?")
def _() -> Iterator[Trial]:
    big = np.where(_whole(X) < 0, F16(-100), F16(100))          # where it is the identity, or 0
    for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"):
        yield _trial(mode, lambda x, m=mode: ops.gelu(x=x, mode=m), x=big)


@_cliff("ANE13", "are product flags taken?")
def _() -> Iterator[Trial]:
    x, y = _whole((1, 1, 32, 32), span=4), _whole((1, 1, 32, 32), "y", 4)
    for a in (False, True):
        for b in (False, True):
            yield _trial(f"{a}, {b}", lambda x, y, a=a, b=b: ops.matmul(x=x, y=y, transpose_x=a, transpose_y=b),
                         x=x, y=y)


def _conv(label: str, x: tuple[int, ...], w: tuple[int, ...], **kw: Any) -> Trial:
    weight = _whole(w, "w", 2)
    return _trial(label, lambda x: ops.conv(x=x, weight=weight, pad_type="valid", **kw), x=_whole(x, span=2))


@_cliff("ANE14", "is a convolution's bias refused?")
def _() -> Iterator[Trial]:
    yield _conv("without", X, (32, 32, 1, 1))
    yield _conv("with", X, (32, 32, 1, 1), bias=_whole((32,), "b"))


@_cliff("ANE16", "does a convolution take a weight that is an input?")
def _() -> Iterator[Trial]:
    yield _trial("runtime weight", lambda w, x: ops.conv(x=x, weight=w, pad_type="valid"),
                 w=_whole((32, 32, 1, 1), "w", 2), x=_whole(X, span=2))


@_cliff("ANE17", "are convolution groups refused?")
def _() -> Iterator[Trial]:
    for groups in (1, 2, 32):
        yield _conv(f"{groups}", X, (32, 32 // groups, 1, 1), groups=groups)


@_cliff("ANE18", "are 32000 channels refused?")
def _() -> Iterator[Trial]:
    yield _conv("out", (1, 16, 1, 32), (32000, 16, 1, 1))
    ones = np.zeros((16, 32000, 1, 1), F16)
    ones[:, ::2000] = 1
    yield _trial("in", lambda x: ops.conv(x=x, weight=ones, pad_type="valid"), x=_whole((1, 32000, 1, 32), span=2))


@_cliff("ANE19", "is a dimension above 16384 refused?")
def _() -> Iterator[Trial]:
    for n in (16384, 16385, 32768):
        yield _trial(f"{n} columns", lambda x: x * 2.0, x=_whole((1, 4, 1, n)))
        yield _trial(f"{n} channels", lambda x: x * 2.0, x=_whole((1, n, 1, 4)))


@_cliff("ANE20", "which channel counts does a convolution take?")
def _() -> Iterator[Trial]:
    for n in (64, 192, 256, 384, 512, 768):
        yield _conv(f"{n}", (1, n, 1, 32), (n, n, 1, 1))


@_cliff("ANE21", "are rsqrt, log and inverse without an epsilon refused?")
def _() -> Iterator[Trial]:
    powers = 4.0 ** np.floor(_whole(X, span=2).astype(np.float64))
    yield _trial("rsqrt", lambda x: ops.rsqrt(x=x), x=powers.astype(F16))
    yield _trial("inverse", lambda x: ops.inverse(x=x, epsilon=0.0), x=powers.astype(F16))
    yield _trial("log", lambda x: ops.log(x=x), x=np.ones(X, F16))


@_cliff("ANE22", "is integer arithmetic refused?")
def _() -> Iterator[Trial]:
    yield _trial("int32 add", lambda x: ops.cast(x=ops.add(x=ops.cast(x=x, dtype="int32"), y=1), dtype="fp16"),
                 x=_whole(X))
    yield _trial("int32 cast", lambda x: ops.cast(x=ops.cast(x=x, dtype="int32"), dtype="fp16"), x=_whole(X))


@_cliff("ANE23", "which types may inputs and outputs have?")
def _() -> Iterator[Trial]:
    x = _whole(X)
    for dtype in ("float32", "int32", "int8", "uint8", "bool"):
        v = np.abs(x).astype(dtype)
        yield _trial(f"{dtype} in", lambda x: ops.cast(x=x, dtype="fp16"), x=v)
        name = {"float32": "fp32"}.get(dtype, dtype)
        yield _trial(f"{dtype} out", lambda x, n=name: ops.cast(x=x, dtype=n), x=np.abs(x))


@_cliff("ANE24", "are compressed constants refused?")
def _() -> Iterator[Trial]:
    q = In(-100, 100, (32, 32, 1, 1), "int8").make("q")
    weight = {
        "affine": lambda: ops.constexpr_affine_dequantize(quantized_data=q, zero_point=np.int8(0),
                                                          scale=F16(0.0625), axis=0),
        "blockwise": lambda: ops.constexpr_blockwise_shift_scale(data=q, scale=np.full((32, 1, 1, 1), 0.0625, F16)),
        "lut": lambda: ops.constexpr_lut_to_dense(
            indices=mil.const((np.arange(1024).reshape(32, 32, 1, 1) % 4).tolist(), "uint2"),
            lut=F16([-1, 0, 1, 2]).reshape(1, 1, 1, 1, 4, 1)),
    }
    for label, make in weight.items():
        yield _trial(label, lambda x, make=make: ops.conv(x=x, weight=make(), pad_type="valid"), x=_whole(X, span=2))


@_cliff("ANE25", "does tile damage what follows?", damages=True)
def _() -> Iterator[Trial]:
    yield _trial("before", lambda x: ops.relu(x=x), x=_whole(X))
    yield _trial("tile", lambda x: ops.tile(x=x, reps=[1, 2, 1, 1]), x=_whole(X))
    yield _trial("after", lambda x: ops.relu(x=x), x=_whole(X, "y"))
    yield _trial("after, another", lambda x: x * 2.0, x=_whole(X, "z"))


@_cliff("ANE26", "is a product that broadcasts the batch right?")
def _() -> Iterator[Trial]:
    yield _trial("mul", lambda x, y: ops.mul(x=x, y=y), x=_whole((4, 32, 1, 64)), y=_whole((1, 32, 1, 64), "y"))


@_cliff("ANE27", "is layer_norm refused?")
def _() -> Iterator[Trial]:
    signs = np.tile(F16([-1, 1]), 32).reshape(1, 1, 1, 64) * np.ones(X, F16)    # mean 0, variance 1
    yield _trial("columns", lambda x: ops.layer_norm(x=x, axes=[3], epsilon=0.0), x=signs)


@_cliff("ANE28", "which ranks and batches work?")
def _() -> Iterator[Trial]:
    for shape in ((2048,), (32, 64), (1, 32, 64), (1, 32, 1, 64), (1, 8, 4, 64), (2, 32, 1, 64), (1, 1, 32, 1, 64)):
        yield _trial(str(list(shape)), lambda x: x * 2.0, x=_whole(shape))


@_cliff("ANE32", "are unknown dimensions refused?")
def _() -> Iterator[Trial]:
    yield Trial("columns", mil.build(lambda x: x * 2.0, {"x": mil.spec((1, 32, 1, None), "fp16")}, opset="ios18"),
                {"x": _whole(X)})


# ---------------------------------------------------------------- numbers

def _row(*values: float) -> np.ndarray:
    """The values in the first row of `[1, 32, 1, 64]`, which is zero elsewhere."""
    x = np.zeros(X, F16)
    x[0, 0, 0, :len(values)] = values
    return x


EDGES = (2048, 4088, 4094, 4096, 4100, 8192, 16384, 30000, 32736, 32752, 32768, 40000, 65504)


@_cliff("NUM01", "above which value is a product's result infinite?")
def _() -> Iterator[Trial]:
    edges = _row(*EDGES, *(-v for v in EDGES))
    unit = np.eye(32, dtype=F16)
    yield _trial("matmul", lambda x: ops.matmul(x=unit.reshape(1, 1, 32, 32), y=ops.reshape(x=x, shape=[1, 1, 32, 64]),
                                                transpose_x=False, transpose_y=False), x=edges)
    yield _trial("conv", lambda x: ops.conv(x=x, weight=unit.reshape(32, 32, 1, 1), pad_type="valid"), x=edges)


@_cliff("NUM02", "above which value does a slice give infinity?")
def _() -> Iterator[Trial]:
    edges = _row(*EDGES, *(-v for v in EDGES))
    yield _trial("columns", lambda x: ops.slice_by_size(x=x, begin=[0, 0, 0, 0], size=[1, 32, 1, 48]), x=edges)
    yield _trial("channels", lambda x: ops.slice_by_size(x=x, begin=[0, 0, 0, 0], size=[1, 16, 1, 64]), x=edges)
    yield _trial("no slice", lambda x: x + 0.0, x=edges)


@_cliff("NUM03", "how wide are sums?")
def _() -> Iterator[Trial]:
    for n in (2048, 2050, 3000, 4096):
        yield _trial(f"{n} ones", lambda x: ops.reduce_sum(x=x, axes=[3], keep_dims=True), x=np.ones((1, 32, 1, n), F16))
    big = np.ones((1, 32, 1, 64), F16)
    big[..., 0] = 2048
    yield _trial("2048 and 63 ones", lambda x: ops.reduce_sum(x=x, axes=[3], keep_dims=True), x=big)
    ones = np.ones((1, 1, 64, 32), F16)
    yield _trial("the same as a product", lambda x: ops.matmul(
        x=ops.reshape(x=x, shape=[1, 1, 32, 64]), y=ones, transpose_x=False, transpose_y=False), x=big)


@_cliff("NUM04", "how does round round?")
def _() -> Iterator[Trial]:
    values = [0.5, 1.5, 2.5, 3.5, 0.25, 0.75, 511.5, 1023.5, 1024, 1025, 2047, 2049, 4095]
    yield _trial("round", lambda x: ops.round(x=x), x=_row(*values, *(-v for v in values)))


@_cliff("NUM05", "is the maximum subtracted?")
def _() -> Iterator[Trial]:
    high = np.full((1, 1, 1, 64), -100, F16)
    high[..., 0] = 20                           # one term: the result is 20
    yield _trial("reduce_log_sum_exp", lambda x: ops.reduce_log_sum_exp(x=x, axes=[3], keep_dims=True), x=high)
    yield _trial("softmax", lambda x: ops.softmax(x=x, axis=3), x=high)


@_cliff("NUM06", "what gives a row that is masked whole?")
def _() -> Iterator[Trial]:
    yield _trial("softmax", lambda x: ops.softmax(x=x + np.full((1, 1, 1, 64), -65504, F16), axis=3),
                 x=np.full(X, -100, F16))


@_cliff("NUM07", "are subnormals kept?")
def _() -> Iterator[Trial]:
    tiny = [2.0**-k for k in range(13, 25)]
    yield _trial("kept", lambda x: x + 0.0, x=_row(*tiny))
    yield _trial("made", lambda x: x * 2.0**-10, x=_row(*(2.0**-k for k in range(3, 15))))
    yield _trial("doubled", lambda x: x * 2.0, x=_row(*tiny))


@_cliff("NUM08", "what becomes of NaN and infinity?")
def _() -> Iterator[Trial]:
    x, y = _row(np.nan, np.inf, -np.inf, 1, np.nan, np.inf), _row(1, 1, 1, np.nan, np.nan, -np.inf)
    for name in ("add", "mul", "maximum", "minimum"):
        yield _trial(name, lambda x, y, n=name: getattr(ops, n)(x=x, y=y), x=x, y=y)
    for name in ("relu", "sigmoid", "tanh"):
        yield _trial(name, lambda x, n=name: getattr(ops, n)(x=x), x=x)


@_cliff("NUM09", "do casts saturate?")
def _() -> Iterator[Trial]:
    yield _trial("int8", lambda x: ops.cast(x=ops.cast(x=x, dtype="int8"), dtype="fp16"),
                 x=_row(1, -1, 127, 128, 129, 200, 1000, -128, -129, -1000))


@_cliff("NUM10", "is a square above 65504 infinite inside a sum?")
def _() -> Iterator[Trial]:
    yield _trial("sum of squares", lambda x: ops.reduce_sum_square(x=x, axes=[3], keep_dims=True), x=_row(300, 1))
    yield _trial("norm", lambda x: ops.reduce_l2_norm(x=x, axes=[3], keep_dims=True), x=_row(300))
