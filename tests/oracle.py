"""Oracles in float64: graphs made at random, with the exact value of every result and a bound
on what rounding may do to it (running error analysis; see tests/tolerance.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from anetorch import _core

U32 = 2.0**-24
MIL = {"float16": "fp16", "float32": "fp32"}
NP = {"fp16": np.float16, "fp32": np.float32}


@dataclass
class Approx:
    """A value in double, and how far a device that rounds every op to `dtype` may be off.

    Each rule adds what its operands' errors become (a Lipschitz bound over the interval that
    the error leaves) and the op's own rounding: `ulps` of fp32 arithmetic, then one rounding
    to the storage type. Fused and unfused evaluation both stay inside.
    """

    v: np.ndarray
    e: np.ndarray
    dtype: str

    @classmethod
    def exact(cls, v: np.ndarray, dtype: str) -> Approx:
        v = np.asarray(v, np.float64)
        return cls(v, np.zeros_like(v), dtype)

    def made(self, v: np.ndarray, e: np.ndarray, ulps: float = 1.0) -> Approx:
        u = 2.0**-11 if self.dtype == "fp16" else U32
        tiny = 2.0**-25 if self.dtype == "fp16" else 2.0**-149
        e = e + 2 * ulps * U32 * (np.abs(v) + e)
        with np.errstate(invalid="ignore"):
            e = e + u * (np.abs(v) + e) + tiny
        return Approx(v, np.where(np.isinf(v), 0, e), self.dtype)     # infinities are exact

    def pick(self, fn: Any) -> Approx:
        """Ops that only move elements."""
        return Approx(fn(self.v), fn(self.e), self.dtype)

    def unary(self, op: str) -> Approx:
        x, e = self.v, self.e
        s = 1 / (1 + np.exp(-x))
        table: dict[str, tuple[Any, Any, float]] = {
            "relu": (np.maximum(x, 0), e, 0),
            "abs": (np.abs(x), e, 0),
            "square": (x * x, (2 * np.abs(x) + e) * e, 1),
            "sigmoid": (s, e / 4, 8),
            "tanh": (np.tanh(x), e, 8),
            "silu": (x * s, 1.1 * e, 16),
        }
        return self.made(*table[op])

    def binary(self, op: str, o: Approx) -> Approx:
        a, b, ea, eb = self.v, o.v, self.e, o.e
        if op == "add":
            return self.made(a + b, ea + eb)
        if op == "sub":
            return self.made(a - b, ea + eb)
        if op == "mul":
            return self.made(a * b, np.abs(a) * eb + np.abs(b) * ea + ea * eb)
        fn = {"maximum": np.maximum, "minimum": np.minimum}[op]
        return self.made(fn(a, b), np.maximum(ea + 0 * b, eb + 0 * a), 0)

    def matmul(self, o: Approx, tx: bool, ty: bool) -> Approx:
        def t(x: np.ndarray, on: bool) -> np.ndarray:
            return np.swapaxes(x, -1, -2) if on else x

        a, ea, b, eb = t(self.v, tx), t(self.e, tx), t(o.v, ty), t(o.e, ty)
        aa, ab = np.abs(a) + ea, np.abs(b) + eb
        e = np.abs(a) @ eb + ea @ np.abs(b) + ea @ eb + (a.shape[-1] + 1) * U32 * (aa @ ab)
        return self.made(a @ b, e)

    def reduce(self, op: str, axes: tuple[int, ...], keep: bool) -> Approx:
        x, e = self.v, self.e
        n = int(np.prod([x.shape[a] for a in axes]))
        if op in ("reduce_max", "reduce_min"):
            fn = np.max if op == "reduce_max" else np.min
            return self.made(fn(x, axis=axes, keepdims=keep), np.max(e, axis=axes, keepdims=keep), 0)
        mag = (np.abs(x) + e).sum(axis=axes, keepdims=keep)
        v, err = x.sum(axis=axes, keepdims=keep), e.sum(axis=axes, keepdims=keep)
        err = err + (n + 1) * U32 * mag
        if op == "reduce_mean":
            v, err = v / n, err / n
        return self.made(v, err)

    def softmax(self, axis: int) -> Approx:
        x = self.v
        top = x.max(axis=axis, keepdims=True)
        # What is this far below the largest is 0 whatever its error.
        live = x + self.e >= top - self.e.max(axis=axis, keepdims=True, where=x == top, initial=0) - 110
        e = np.where(live, self.e, 0)
        y = np.where(live, np.exp(x - top), 0)
        y /= y.sum(axis=axis, keepdims=True)
        # exp of a rounded difference: its argument is off by e + emax + u |x - max|.
        far = np.where(live, top - x + 1, 0) * U32
        rel = np.expm1(2 * (e + e.max(axis=axis, keepdims=True) + far.max(axis=axis, keepdims=True)))
        return self.made(y, y * (rel + (x.shape[axis] + 16) * U32), 4)


def analyse(program: Any, inputs: dict[str, np.ndarray]) -> dict[str, Approx]:
    """The outputs of a program of plain tensor ops (those of attention and its gradient)."""
    fn = program.functions["main"]
    known: dict[int, Approx] = {v.id: Approx.exact(inputs[v.name], v.dtype) for v in fn.inputs}

    def get(v: Any) -> Approx:
        return known[v.id] if v.id in known else Approx.exact(np.asarray(v.const), v.dtype)

    for op in fn.body.ops:
        out, args, kind = op.results[0], op.args, op.type
        if kind == "const":
            continue
        x = get(args["x"]) if "x" in args else None
        if kind in ("reshape", "expand_dims", "squeeze"):
            r = x.pick(lambda a, s=out.shape: a.reshape(s))
        elif kind == "transpose":
            r = x.pick(lambda a, p=tuple(op.const("perm")): a.transpose(p))
        elif kind == "tile":
            r = x.pick(lambda a, p=tuple(op.const("reps")): np.tile(a, p))
        elif kind == "slice_by_size":
            at = tuple(slice(b, b + s) for b, s in zip(op.const("begin"), out.shape))
            r = x.pick(lambda a, at=at: a[at])
        elif kind == "concat":
            parts, axis = [get(v) for v in args["values"]], int(op.const("axis"))
            r = Approx(np.concatenate([p.v for p in parts], axis),
                       np.concatenate([p.e for p in parts], axis), out.dtype)
        elif kind in ("add", "sub", "mul", "maximum", "minimum"):
            r = x.binary(kind, get(args["y"]))
        elif kind in ("relu", "abs", "square", "sigmoid", "tanh", "silu"):
            r = x.unary(kind)
        elif kind == "real_div":
            y = get(args["y"])
            assert not y.e.any()
            r = x.made(x.v / y.v, x.e / np.abs(y.v))
        elif kind == "select":
            a, b, cond = get(args["a"]), get(args["b"]), get(args["cond"]).v != 0
            r = Approx(np.where(cond, a.v, b.v), np.where(cond, a.e, b.e), out.dtype)
        elif kind == "cast":
            r = Approx(x.v, x.e, out.dtype).made(x.v, x.e, 0)
        elif kind == "softmax":
            r = x.softmax(int(op.const("axis")))
        elif kind == "reduce_sum":
            axes = tuple(int(a) % x.v.ndim for a in op.const("axes"))
            r = x.reduce(kind, axes, bool(op.const("keep_dims")))
        elif kind == "matmul":
            r = x.matmul(get(args["y"]), bool(op.const("transpose_x")), bool(op.const("transpose_y")))
        elif kind == "scaled_dot_product_attention":
            s = get(args["query"]).matmul(get(args["key"]), False, True)
            s = s.binary("mul", Approx.exact(1 / np.sqrt(args["query"].shape[-1]), s.dtype))
            mask = args.get("attn_mask")
            if mask is not None and mask.dtype == "bool":
                keep = get(mask).v != 0
                s = Approx(np.where(keep, s.v, -np.inf), np.where(keep, s.e, 0), s.dtype)
            elif mask is not None:
                s = s.binary("add", get(mask))
            r = s.softmax(-1).matmul(get(args["value"]), False, False)
        else:
            raise NotImplementedError(kind)
        known[out.id] = r
    return {v.name: get(v) for v in fn.body.outputs}


def random_graph(seed: int, dtype: str | None = None, ops: int = 20) -> tuple[Any, dict, dict]:
    """A program of random ops over small odd shapes: (Program, inputs, {name: Approx})."""
    rng = np.random.default_rng(seed)
    dtype = dtype or str(rng.choice(["fp32", "fp16"]))
    np_dtype = NP[dtype]
    p = _core.Program("1.3")
    shapes = [(2, 3, 4), (2, 3, 4), (3, 4), (4, 5), (1, 3, 1), (2, 4, 3), (4,), (2, 3, 1),
              (3, 70), (70, 5), (1, 6, 1, 17)]
    block, ids = p.add_function("main", "ios18", [
        (f"x{i}", ("tensor", dtype, s)) for i, s in enumerate(shapes)])
    inputs = {f"x{i}": rng.standard_normal(s).astype(np_dtype) for i, s in enumerate(shapes)}
    pool = [(i, Approx.exact(a, dtype)) for i, a in zip(ids, inputs.values())]
    made: list[tuple[int, Approx]] = []

    def const(value: Any) -> int:
        return p.add_const(block, value)

    def add(op: str, args: dict[str, Any]) -> list[int]:
        return p.add_op(block, op, args)[1]

    def ints(*v: int) -> int:
        return const(np.array(v, np.int32))

    for _ in range(ops):
        kind = str(rng.choice(["unary", "binary", "binary", "scalar", "reduce", "matmul", "reshape",
                               "transpose", "slice", "concat", "softmax", "split"]))
        (i, x), (j, y) = (pool[int(rng.integers(len(pool)))] for _ in range(2))
        shape = x.v.shape
        axis = int(rng.integers(len(shape))) if shape else 0
        out: list[tuple[int, Approx]] = []
        if kind == "unary":
            op = str(rng.choice(["relu", "abs", "square", "sigmoid", "tanh", "silu"]))
            out = [(add(op, {"x": i})[0], x.unary(op))]
        elif kind in ("binary", "scalar"):
            op = str(rng.choice(["add", "sub", "mul", "maximum", "minimum"]))
            if kind == "scalar":
                c = np_dtype(rng.standard_normal())
                j, y = const(c), Approx.exact(c, dtype)
                if rng.random() < 0.3:
                    i, j, x, y = j, i, y, x
            try:
                np.broadcast_shapes(x.v.shape, y.v.shape)
            except ValueError:
                continue
            out = [(add(op, {"x": i, "y": j})[0], x.binary(op, y))]
        elif not shape:
            continue
        elif kind == "reduce":
            axes = tuple(sorted({int(a) for a in rng.integers(0, len(shape), size=2)}))
            keep = bool(rng.random() < 0.5)
            op = str(rng.choice(["reduce_sum", "reduce_mean", "reduce_max", "reduce_min"]))
            out = [(add(op, {"x": i, "axes": ints(*axes), "keep_dims": const(keep)})[0],
                    x.reduce(op, axes, keep))]
        elif kind == "matmul":
            tx, ty = (bool(rng.random() < 0.4) for _ in range(2))
            if len(shape) < 2 or y.v.ndim < 2:
                continue
            try:
                value = x.matmul(y, tx, ty)
            except ValueError:
                continue
            out = [(add("matmul", {"x": i, "y": j, "transpose_x": const(tx), "transpose_y": const(ty)})[0],
                    value)]
        elif kind == "reshape":
            n = x.v.size
            d = int(rng.choice([d for d in (1, 2, 3, 4, 6, 12) if n % d == 0]))
            new = (d, n // d) if rng.random() < 0.5 else (1, n // d, 1, d)
            out = [(add("reshape", {"x": i, "shape": ints(*new)})[0],
                    x.pick(lambda a, new=new: a.reshape(new)))]
        elif kind == "transpose":
            perm = tuple(int(k) for k in rng.permutation(len(shape)))
            out = [(add("transpose", {"x": i, "perm": ints(*perm)})[0],
                    x.pick(lambda a, perm=perm: a.transpose(perm)))]
        elif kind == "slice":
            begin = [int(rng.integers(0, d)) for d in shape]
            size = [int(rng.integers(1, d - b + 1)) for d, b in zip(shape, begin)]
            at = tuple(slice(b, b + s) for b, s in zip(begin, size))
            out = [(add("slice_by_size", {"x": i, "begin": ints(*begin), "size": ints(*size)})[0],
                    x.pick(lambda a, at=at: a[at]))]
        elif kind == "concat":
            fits = [q for q in pool if q[1].v.ndim == len(shape) and all(
                a == b or k == axis for k, (a, b) in enumerate(zip(q[1].v.shape, shape)))]
            parts = [fits[int(k)] for k in rng.integers(len(fits), size=int(rng.integers(1, 4)))]
            out = [(add("concat", {"values": tuple(q[0] for q in parts), "axis": const(np.int32(axis)),
                                   "interleave": const(False)})[0],
                    Approx(np.concatenate([q[1].v for q in parts], axis),
                           np.concatenate([q[1].e for q in parts], axis), dtype))]
        elif kind == "softmax":
            out = [(add("softmax", {"x": i, "axis": const(np.int32(axis))})[0], x.softmax(axis))]
        elif kind == "split" and shape[axis] > 1:
            first = int(rng.integers(1, shape[axis]))
            r = add("split", {"x": i, "split_sizes": ints(first, shape[axis] - first),
                              "axis": const(np.int32(axis))})
            out = [(r[0], x.pick(lambda a, f=first, k=axis: np.split(a, [f], k)[0])),
                   (r[1], x.pick(lambda a, f=first, k=axis: np.split(a, [f], k)[1]))]
        limit = 1e3 if dtype == "fp16" else 1e12
        for q in out:
            made.append(q)
            # Values that grow out of the type end there: the analysis is for finite ones.
            if q[1].v.size <= 20000 and np.abs(q[1].v).max(initial=0) < limit:
                pool.append(q)
    good = [q for q in pool if q[0] not in ids]
    if not good:
        return random_graph(seed + 10**6, dtype, ops)
    pick = {int(k) for k in rng.integers(len(good), size=4)} | {len(good) - 1}
    chosen = {good[k][0]: good[k][1] for k in sorted(pick)}
    p.set_outputs(block, list(chosen))
    names = {p.value_info(v)["name"]: a for v, a in chosen.items()}
    return p, inputs, names
