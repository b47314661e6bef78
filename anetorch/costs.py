"""What a program costs on paper: operations of arithmetic and bytes moved, from shapes alone.

FLOPs count a multiply-add as two and every other arithmetic step (a comparison, an
exponential) as one; moving, casting and decompressing count nothing. Bytes are those of an
operation's arguments and results, each once, as if nothing were fused or cached. The blocks of
``cond`` and ``while_loop`` count once, whichever branch runs and however often.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from anetorch.mil import Block, Function, Op, Value

__all__ = ["Cost", "costs", "table"]

# Steps per element of the result; what is not listed and not computed below counts nothing.
_PER_RESULT = {
    **dict.fromkeys(
        "abs acos add asin atan ceil clip cos equal erf exp exp2 floor floor_div greater "
        "greater_equal inverse less less_equal log logical_and logical_not logical_or "
        "logical_xor maximum minimum mod mul not_equal pow real_div relu round rsqrt select sign "
        "sin sqrt square sub tan tanh threshold cumsum".split(), 1),
    **dict.fromkeys("acosh asinh atanh cosh sinh leaky_relu prelu clamped_relu linear_activation "
                    "relu6 scaled_tanh thresholded_relu softsign".split(), 2),
    **dict.fromkeys("elu sigmoid sigmoid_hard".split(), 3),
    **dict.fromkeys("silu softplus softplus_parametric".split(), 4),
    "gelu": 8, "batch_norm": 2, "resize_bilinear": 7, "upsample_bilinear": 7, "crop_resize": 7,
    "resample": 7,
}
# Steps per element of x: reductions read more than they write.
_PER_INPUT = {
    **dict.fromkeys("reduce_sum reduce_max reduce_min reduce_prod reduce_mean reduce_argmax "
                    "reduce_argmin".split(), 1),
    **dict.fromkeys("reduce_l1_norm reduce_sum_square reduce_l2_norm reduce_log_sum".split(), 2),
    "reduce_log_sum_exp": 3, "softmax": 4, "layer_norm": 8, "instance_norm": 8, "l2_norm": 3,
    "local_response_norm": 5,
}
_GATES = {"rnn": 1, "gru": 3, "lstm": 4}


@dataclass(frozen=True)
class Cost:
    """One operation: ``flops`` and ``bytes``, None where a dimension is unknown."""

    op: Op
    name: str
    shape: str
    flops: int | None
    bytes: int | None


def _dims(v: Value | tuple[Value, ...]) -> tuple[int | None, ...]:
    t = (v[0] if isinstance(v, tuple) else v).type
    while t[0] == "state":
        t = t[1]
    return tuple(t[2]) if t[0] == "tensor" else ()


def _count(v: Value | tuple[Value, ...]) -> int:
    """Elements; TypeError with an unknown dimension."""
    return math.prod(_dims(v))      # type: ignore[arg-type]


def _bytes(v: Value) -> int:
    t = v.type
    while t[0] == "state":
        t = t[1]
    if t[0] != "tensor":
        return 0                    # a list's length, a dictionary: not known before the run
    bits = re.search(r"\d+$", t[1])
    n = _count(v) * (int(bits[0]) if bits else 8 if t[1] == "bool" else 0)
    return -(-n // 8)


def _flops(op: Op) -> int:
    kind, args, results = op.type, op.args, op.results
    if not results:
        return 0
    x = args.get("x")
    if kind in _PER_RESULT:
        return _PER_RESULT[kind] * _count(results[0])
    if kind in _PER_INPUT and x is not None:
        return _PER_INPUT[kind] * _count(x)
    if kind == "matmul":
        inner = _dims(x)[-2 if op.const("transpose_x") and len(_dims(x)) > 1 else -1]
        return 2 * _count(results[0]) * inner           # type: ignore[operator]
    if kind == "linear":
        bias = _count(results[0]) if "bias" in args else 0
        return 2 * _count(results[0]) * _dims(args["weight"])[1] + bias     # type: ignore
    if kind in ("conv", "conv_quantized", "conv_transpose"):
        # Weights [out, in/groups, *kernel], or [in, out/groups, *kernel] the other way round:
        # every element of the output, or of the input, meets all but the first dimension.
        seen = x if kind == "conv_transpose" else results[0]
        bias = _count(results[0]) if "bias" in args else 0
        return 2 * _count(seen) * math.prod(_dims(args["weight"])[1:]) + bias   # type: ignore
    if kind in ("avg_pool", "max_pool", "l2_pool"):
        steps = math.prod(op.const("kernel_sizes")) * (2 if kind == "l2_pool" else 1)
        return _count(results[0]) * steps
    if kind == "einsum":
        return _einsum(op)
    if kind == "scaled_dot_product_attention":
        q, k, v = (_dims(args[n]) for n in ("query", "key", "value"))
        scores = math.prod(q[:-1]) * k[-2]              # type: ignore
        masked = 1 if "attn_mask" in args else 0
        return scores * (2 * q[-1] + 2 * v[-1] + 5 + masked)    # type: ignore[operator]
    if kind in _GATES:
        h, i = _dims(args["weight_hh"])[1], _dims(args["weight_ih"])[1]
        steps, batch = _dims(x)[:2]
        ways = 2 if op.const("direction") == "bidirectional" else 1
        gates = _GATES[kind] * h                        # type: ignore[operator]
        return ways * steps * batch * (2 * gates * (i + h) + 8 * gates)     # type: ignore
    return 0


def _einsum(op: Op) -> int:
    """All labels' product, twice (a multiply-add each)."""
    labels: dict[str, int] = {}
    terms = op.const("equation").replace(" ", "").split("->")[0].split(",")
    for term, v in zip(terms, op.args["values"]):       # type: ignore[arg-type]
        labels |= dict(zip(term, _dims(v)))             # type: ignore[arg-type]
    return 2 * math.prod(labels.values())


def _walk(block: Block) -> Iterator[Op]:
    for op in block:
        yield op
        for inner in op.blocks:
            yield from _walk(inner)


def _shape(v: Value) -> str:
    t = v.type
    while t[0] == "state":
        t = t[1]
    if t[0] != "tensor":
        return str(t[0])
    return f"{t[1]}[{', '.join('?' if n is None else str(n) for n in t[2])}]"


def _known(count: object, *args: object) -> int | None:
    try:
        return count(*args)         # type: ignore[operator]
    except (TypeError, ValueError):     # an unknown dimension, a computed parameter
        return None


def costs(function: Function) -> list[Cost]:
    """Cost of every operation of a function, nested blocks included, constants left out.

    >>> p = anetorch.mil.build(lambda x: {"y": x @ x}, {"x": anetorch.mil.spec((4, 4), "fp16")})
    >>> [(c.name, c.shape, c.flops, c.bytes) for c in costs(p.function)]
    [('y', 'fp16[4, 4]', 128, 64)]
    """
    found = []
    for op in _walk(function.body):
        if op.type == "const":
            continue
        # One operand used twice is read once; a weight counts where it is used.
        touched = {v.id: v for v in [*op.inputs, *op.results]}.values()
        found.append(Cost(
            op, ", ".join(v.name for v in op.results),
            ", ".join(_shape(v) for v in op.results),
            0 if op.blocks else _known(_flops, op),
            0 if op.blocks else _known(lambda: sum(map(_bytes, touched))),
        ))
    return found


def _number(n: int | None) -> str:
    return "?" if n is None else f"{n:,}"


def table(found: list[Cost]) -> list[str]:
    """Lines of a table, with the total; ``+`` after a total says that "?" is left out.

    >>> p = anetorch.mil.build(lambda x: {"y": x @ x}, {"x": anetorch.mil.spec((4, 4), "fp16")})
    >>> for line in table(costs(p.function)):
    ...     print(line)
    op      value  shape       FLOPs  bytes
    matmul  y      fp16[4, 4]    128     64
    total   1 op                 128     64
    """
    def total(values: list[int | None]) -> str:
        return _number(sum(v or 0 for v in values)) + ("+" if None in values else "")

    rows = [("op", "value", "shape", "FLOPs", "bytes")]
    rows += [(c.op.type, c.name, c.shape, _number(c.flops), _number(c.bytes)) for c in found]
    rows.append(("total", f"{len(found)} op{'s' * (len(found) != 1)}", "",
                 total([c.flops for c in found]), total([c.bytes for c in found])))
    width = [max(len(r[i]) for r in rows) for i in range(5)]
    return ["  ".join(c.ljust(w) if i < 3 else c.rjust(w)
                      for i, (c, w) in enumerate(zip(r, width))).rstrip() for r in rows]
