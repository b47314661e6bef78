"""Reverse-mode differentiation over a Program's graph.

`grad` walks one function backwards and builds a new program out of the rules in rules_*.py.
Forward values that a rule asks for are, in this order: inputs of the forward function,
forward outputs given back as inputs (`saved`), or recomputed by emitting their ops again.
Only what is asked for is emitted, so nothing dead is left behind.

Gradients are values of the graph like any other: they have their operand's dtype, except
where fp32 is asked for (`accumulate`, `wgrad_dtype`); then the operands of the last product
are cast first, so that fp16 operands multiply exactly and sums are fp32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from anetorch.mil import ops
from anetorch.mil import rules_conv as _rules_conv  # noqa: F401  (registers)
from anetorch.mil import rules_elementwise as _rules_elementwise  # noqa: F401
from anetorch.mil import rules_matmul as _rules_matmul  # noqa: F401
from anetorch.mil import rules_reduce as _rules_reduce  # noqa: F401
from anetorch.mil import rules_shape as _rules_shape  # noqa: F401
from anetorch.mil.builder import Value, build, const, emit, spec
from anetorch.mil.graph import Op, Program
from anetorch.mil.rules import ELEMENTWISE, ONTO, RULES, STOPS, VIEWS, Slice, tile_to, zeros

__all__ = ["grad"]

_FLOATS = ("fp16", "fp32")


def grad(
    program: Program,
    wrt: Iterable[str] | None = None,
    seeds: Iterable[str] | None = None,
    saved: Iterable[str] | None = None,
    accumulate: Iterable[str] = (),
    function: str = "main",
    wgrad_dtype: str | None = None,
    values: Iterable[str] = (),
) -> Program:
    """The program that computes gradients of `program`'s inputs.

    Args:
        wrt: inputs to differentiate by; None: every float input that the seeds reach.
        seeds: outputs whose gradient is given, as input `d<output>`; None: every float
            output that depends on `wrt`.
        saved: forward outputs that may be used as inputs instead of being recomputed;
            None: all of them.
        accumulate: names in `wrt` whose gradient is fp32 and added to an extra fp32 input
            `d<name>_in`; bind that input and the output `d<name>` to one tensor.
        wgrad_dtype: dtype of the gradients of all of `wrt`, computed with operands cast to
            it; None: each has its input's.
        values: forward outputs that the new program returns too (one program for a loss
            and its gradient).

    Returns:
        A program with one function `main`. Inputs: those forward inputs and saved outputs
        that are needed, in the forward program's order, then seeds, then accumulators.
        Outputs: `values`, then `d<input>` in the order of `wrt`.

    Example:
        >>> p = mil.build(lambda x, w: {"y": mil.ops.matmul(x=w, y=x)},
        ...               {"x": mil.spec((8, 5), "fp32"), "w": mil.spec((3, 8), "fp32")})
        >>> [v.name for v in mil.grad(p, wrt=["w"]).functions["main"].inputs]
        ['x', 'dy']
    """
    plan = _Plan(program, wrt, seeds, saved, tuple(accumulate), function, wgrad_dtype, tuple(values))
    # A first build offers every candidate input and sees which are used; the second has
    # those alone.
    used: set[str] = set()
    candidates = plan.candidates()
    build(lambda **given: _Walk(plan, given, used).run(), candidates, opset=plan.opset)
    needed = {name: s for name, s in candidates.items() if name in used}
    return build(lambda **given: _Walk(plan, given, set()).run(), needed, opset=plan.opset)


def _is_float(v: Value) -> bool:
    kind = v.type
    return kind[0] == "tensor" and kind[1] in _FLOATS


class _Plan:
    """What to differentiate: names checked, values that carry a gradient marked."""

    def __init__(
        self,
        program: Program,
        wrt: Iterable[str] | None,
        seeds: Iterable[str] | None,
        saved: Iterable[str] | None,
        accumulate: tuple[str, ...],
        function: str,
        wgrad_dtype: str | None,
        values: tuple[str, ...],
    ) -> None:
        f = program.functions[function]
        for v in (*f.inputs, *(r for op in f.body.ops for r in op.results)):
            if v.type[0] != "tensor":
                raise NotImplementedError(f"[grad] {v.name!r} is a {v.type[0]}; only tensors are differentiated")
            if None in v.shape:
                raise ValueError(f"[grad] {v.name!r} has the open shape {list(v.shape)}; gradients need known dimensions")
        self.opset = f.opset
        self.ops: list[Op] = list(f.body.ops)
        self.inputs = {v.name: v for v in f.inputs}
        self.outputs = {v.name: v for v in f.outputs}
        self.accumulate, self.values = accumulate, values
        chosen = list(self.inputs) if wrt is None else list(wrt)
        for name in chosen:
            self._known(name, self.inputs, "input", "wrt")
            if wrt is not None and not _is_float(self.inputs[name]):
                raise TypeError(f"[grad] input {name!r} is {self.inputs[name].dtype}, not a float")
        self.wrt = [n for n in chosen if _is_float(self.inputs[n])]
        for name in accumulate:
            if name not in self.wrt:
                raise ValueError(f"[grad] accumulate names {name!r}, which is not in wrt ({', '.join(self.wrt)})")
        for name in values:
            self._known(name, self.outputs, "output", "values")
        self.saved = list(self.outputs if saved is None else saved)
        for name in self.saved:
            self._known(name, self.outputs, "output", "saved")
        self.saved = [n for n in self.saved if n not in self.inputs and n not in values]
        self._mark()
        wanted = list(self.outputs) if seeds is None else list(seeds)
        for name in wanted:
            self._known(name, self.outputs, "output", "seeds")
        self.seeds = [n for n in wanted if self.outputs[n].id in self.active]
        if seeds is not None and len(self.seeds) < len(wanted):
            lost = next(n for n in wanted if n not in self.seeds)
            raise ValueError(f"[grad] output {lost!r} does not depend on {', '.join(self.wrt) or 'any float input'}")
        if not self.seeds:
            raise ValueError(f"[grad] no output depends on {', '.join(self.wrt) or 'any float input'}")
        # Gradients kept in another dtype, and the views of those inputs.
        self.grad_dtype: dict[int, str] = {}
        for name in self.wrt:
            kind = "fp32" if name in accumulate else wgrad_dtype
            if kind is not None:
                self.grad_dtype[self.inputs[name].id] = kind
        for op in self.ops:
            kinds = {self.grad_dtype.get(v.id) for v in _float_args(op)}
            if op.type in VIEWS and len(kinds) == 1 and None not in kinds:
                for v in op.results:
                    self.grad_dtype[v.id] = kinds.copy().pop()

    @staticmethod
    def _known(name: str, table: dict[str, Value], what: str, param: str) -> None:
        if name not in table:
            raise KeyError(f"[grad] {param} names {name!r}; the function's {what}s are {', '.join(table)}")

    def _mark(self) -> None:
        self.active = {self.inputs[n].id for n in self.wrt}
        self.producer: dict[int, Op] = {}
        for op in self.ops:
            for v in op.results:
                self.producer[v.id] = op
            if op.type in STOPS:
                continue
            if any(v.id in self.active for v in _float_args(op)):
                self.active.update(v.id for v in op.results if _is_float(v))

    def candidates(self) -> dict[str, Any]:
        """Every input that the new program might need, by name."""
        specs: dict[str, Any] = {}

        def add(name: str, v: Value, dtype: str | None = None) -> None:
            if name in specs:
                raise ValueError(f"[grad] two inputs of the gradient would be called {name!r}; rename one")
            specs[name] = spec(v.shape, dtype or v.dtype)

        for name, v in self.inputs.items():
            add(name, v)
        for name in self.saved:
            add(name, self.outputs[name])
        for name in self.seeds:
            add(f"d{name}", self.outputs[name])
        for name in self.accumulate:
            add(f"d{name}_in", self.inputs[name], "fp32")
        return specs


def _float_args(op: Op) -> list[Value]:
    return [v for _, v in _flat_args(op) if _is_float(v)]


def _flat_args(op: Op) -> list[tuple[str, Value]]:
    """(parameter, value) for every value argument, tuples flattened."""
    flat = []
    for name, arg in op.args.items():
        for v in arg if isinstance(arg, (tuple, list)) else (arg,):
            flat.append((name, v))
    return flat


class _Walk:
    """One build of the backward program."""

    def __init__(self, plan: _Plan, given: dict[str, Value], used: set[str]) -> None:
        self.plan, self.given, self.used = plan, given, used
        self.made: dict[int, Value] = {}            # forward value -> value here
        self.casts: dict[tuple[int, str], Value] = {}
        self.parts: dict[int, list[Value | Slice]] = {}     # gradients so far
        self.reached: set[int] = set()              # values that got a contribution
        self.source = {v.id: n for n, v in plan.inputs.items()}
        self.source |= {plan.outputs[n].id: n for n in plan.saved}

    def run(self) -> dict[str, Value]:
        plan = self.plan
        for name in plan.accumulate:
            self.parts[plan.inputs[name].id] = [self.input(f"d{name}_in")]
        for name in plan.seeds:
            self.give(plan.outputs[name], self.input(f"d{name}"))
        for op in reversed(plan.ops):
            if any(v.id in self.parts for v in op.results):
                self.through(op)
        result = {name: self.value(plan.outputs[name]) for name in plan.values}
        for name in plan.wrt:
            v = plan.inputs[name]
            if v.id not in self.reached:
                raise ValueError(f"[grad] no gradient reaches input {name!r} from {', '.join(plan.seeds)}")
            result[f"d{name}"] = tile_to(self.total(v), v.shape)
        clash = set(result) & set(self.given)
        if clash:
            raise ValueError(f"[grad] {sorted(clash)[0]!r} would be input and output; rename one in the forward program")
        return result

    # -- forward values

    def input(self, name: str) -> Value:
        self.used.add(name)
        return self.given[name]

    def value(self, v: Value) -> Value:
        """The forward value v in the new program."""
        if v.id not in self.made:
            if _constant(v):
                self.made[v.id] = const(v.const, v.dtype)
            else:
                self.recompute(v)
        return self.made[v.id]

    def recompute(self, v: Value) -> None:
        """Emits whatever v needs, in forward order (a stack, not recursion: graphs are deep)."""
        wanted, stack, seen = set(), [v], set()
        while stack:
            u = stack.pop()
            if u.id in self.made or u.id in seen:
                continue
            seen.add(u.id)
            if u.id in self.source:
                self.made[u.id] = self.input(self.source[u.id])
                continue
            op = self.plan.producer[u.id]
            wanted.add(op.id)
            stack.extend(a for _, a in _flat_args(op) if not _constant(a))
        for op in self.plan.ops:
            if op.id in wanted:
                if op.blocks:
                    raise NotImplementedError(f"[grad] {op.type} with nested blocks cannot be recomputed; save its result")
                args = {name: self.operand(arg) for name, arg in op.args.items()}
                results = emit(op.type, args)
                results = results if isinstance(results, tuple) else (results,)
                for old, new in zip(op.results, results):
                    self.made.setdefault(old.id, new)

    def operand(self, arg: Any) -> Any:
        """An argument of a forward op: values from here, constants as they are."""
        if isinstance(arg, (tuple, list)):
            return tuple(self.operand(a) for a in arg)
        return arg.const if _constant(arg) else self.value(arg)

    def cast(self, v: Value, dtype: str) -> Value:
        if v.dtype == dtype or not _is_float(v):
            return v
        if (v.id, dtype) not in self.casts:
            self.casts[v.id, dtype] = ops.cast(x=v, dtype=dtype)
        return self.casts[v.id, dtype]

    # -- gradients

    def kind(self, v: Value) -> str:
        return self.plan.grad_dtype.get(v.id, v.dtype)

    def give(self, v: Value, part: Value | Slice) -> None:
        """Adds one contribution to the gradient of forward value v."""
        if isinstance(part, Slice):
            part = Slice(part.begin, self.cast(part.dy, self.kind(v)))
            if tuple(part.dy.shape) == tuple(v.shape):
                part = part.dy
        else:
            part = self.cast(_unbroadcast(part, v.shape), self.kind(v))
        self.parts.setdefault(v.id, []).append(part)
        self.reached.add(v.id)

    def total(self, v: Value) -> Value:
        """The sum of v's contributions, in the order they came."""
        parts = self.parts.pop(v.id)
        slices = [p for p in parts if isinstance(p, Slice)]
        if slices:
            parts = [p for p in parts if not isinstance(p, Slice)] + _join(slices, v.shape)
        total = parts[0]
        for p in parts[1:]:
            total = ops.add(x=total, y=p)
        self.parts[v.id] = [total]
        return total

    def through(self, op: Op) -> None:
        """Applies the op's rules to the gradients of its results."""
        args = [(i, p, v) for i, (p, v) in enumerate(_flat_args(op)) if v.id in self.plan.active]
        if op.type in STOPS or not args:
            return
        if op.type not in RULES:
            raise NotImplementedError(f"[grad] no derivative rule for {op.type} (result {op.results[0].name!r})")
        grads = tuple(self.total(v) if v.id in self.parts else None for v in op.results)
        if op.type not in ELEMENTWISE or any(v.shape != op.results[0].shape for _, _, v in args):
            grads = tuple(None if g is None else tile_to(g, v.shape) for g, v in zip(grads, op.results))
        shared: dict[str, _Operands] = {}
        for param in dict.fromkeys(p for _, p, _ in args):
            fn = RULES[op.type].get(param)
            if fn is None:
                raise NotImplementedError(f"[grad] {op.type} has no derivative rule for {param!r}")
            targets = op.args[param]
            many = isinstance(targets, (tuple, list))
            targets = list(targets) if many else [targets]
            # Elements of a tuple whose gradients have other dtypes are asked for apart.
            for kind in dict.fromkeys(self.kind(t) for t in targets if t.id in self.plan.active):
                view = shared.setdefault(kind, _Operands(self, op, grads, kind))
                dy = next(g for g in view.grads if g is not None)
                if fn in ONTO:
                    (v,) = targets
                    base = tile_to(self.total(v), v.shape) if v.id in self.parts else zeros(v.shape, kind)
                    self.parts[v.id] = [self.cast(fn(view, dy, base), kind)]
                    self.reached.add(v.id)
                    continue
                result = fn(view, dy)
                for t, g in zip(targets, result if many else [result]):
                    if g is not None and t.id in self.plan.active and self.kind(t) == kind:
                        self.give(t, g)


class _Operands:
    """What a rule sees as `op`; float operands and gradients in the gradient's dtype."""

    def __init__(self, walk: _Walk, op: Op, grads: Sequence[Value | None], kind: str) -> None:
        self._walk, self._op = walk, op
        # Fp16 operands are widened for an fp32 gradient, never the other way round.
        self._kind = kind if kind == "fp32" else None
        self._once: dict[str, Value] = {}
        self.name = op.type
        self.grads = tuple(None if g is None else self._wide(g) for g in grads)
        self.result_shapes = [tuple(v.shape) for v in op.results]

    def _wide(self, v: Value) -> Value:
        return v if self._kind is None else self._walk.cast(v, self._kind)

    def __getattr__(self, param: str) -> Any:
        arg = self._op.args.get(param)
        if arg is None:
            return None
        if isinstance(arg, (tuple, list)):
            return tuple(self._wide(self._walk.value(a)) for a in arg)
        return self._wide(self._walk.value(arg))

    @property
    def out(self) -> Value:
        return self._wide(self._walk.value(self._op.results[0]))

    @property
    def outs(self) -> tuple[Value, ...]:
        return tuple(self._wide(self._walk.value(v)) for v in self._op.results)

    def const(self, param: str) -> Any:
        """A constant parameter as a Python scalar, string or list; defaults included."""
        return self._op.const(param)

    def shape(self, param: str) -> Any:
        """Shape of an operand without asking for its value; a list for a tuple parameter."""
        arg = self._op.args[param]
        if isinstance(arg, (tuple, list)):
            return [tuple(a.shape) for a in arg]
        return tuple(arg.shape)

    def once(self, key: str, make: Callable[[], Value]) -> Value:
        if key not in self._once:
            self._once[key] = make()
        return self._once[key]


def _constant(v: Value) -> bool:
    return v.is_const


def _unbroadcast(g: Value, shape: Sequence[int]) -> Value:
    """Sums g over the dims along which its operand was broadcast. Dims of 1 where the
    operand has more stay: such a gradient is broadcast when it is used."""
    shape = tuple(shape)
    if g.shape == shape:
        return g
    lead = g.rank - len(shape)
    axes = [i for i in range(g.rank) if i < lead or (shape[i - lead] == 1 and g.shape[i] != 1)]
    if axes:
        g = ops.reduce_sum(x=g, axes=axes, keep_dims=True)
    g = ops.reshape(x=g, shape=list(g.shape[lead:])) if lead > 0 else g
    if g.rank != len(shape) or any(a not in (1, b) for a, b in zip(g.shape, shape)):
        raise AssertionError(f"[grad] a rule made shape {g.shape} for an operand of shape {shape}")
    return g


def _join(slices: list[Slice], shape: Sequence[int]) -> list[Value]:
    """Slices of a zero tensor as whole tensors: one concat if they tile it, else padded."""
    first = slices[0]
    cut = [i for i, (d, n) in enumerate(zip(shape, first.dy.shape)) if d != n]
    if len(cut) == 1:
        (axis,) = cut
        ordered = sorted(slices, key=lambda s: s.begin[axis])
        ends = itertools.accumulate((s.dy.shape[axis] for s in ordered), initial=0)
        same = all(s.dy.shape[i] == d for s in ordered for i, d in enumerate(shape) if i != axis)
        if same and [s.begin[axis] for s in ordered] + [shape[axis]] == list(ends):
            return [ops.concat(values=tuple(s.dy for s in ordered), axis=axis, interleave=False)]
    return [_padded(s, shape) for s in slices]


def _padded(s: Slice, shape: Sequence[int]) -> Value:
    pad = []
    for b, n, d in zip(s.begin, s.dy.shape, shape):
        pad += [b, d - b - n]
    return ops.pad(x=s.dy, pad=pad, mode="constant", constant_val=0.0)
