"""The registry of derivative rules, and the small helpers that rules share.

A rule gives the gradient of one parameter of one op, as a function of `op` and the
gradient `dy` of the op's (first) result. It calls only public builder functions.

    rule("exp", x=lambda op, dy: dy * op.out)
    rule("mul", x=lambda op, dy: dy * op.y, y=lambda op, dy: dy * op.x)

What a rule may use of `op`: `op.<parameter>` is the operand (recomputed or saved, a Value),
`op.out` and `op.outs` the results, `op.const("axis")` a constant parameter as a Python
value, `op.grads` the gradient of every result (None: not needed), `op.shape("x")`, and
`op.once(key, fn)`, which makes a value that several parameters' rules share only once. The walk around it (grad.py) sums over broadcast dims, casts, and adds up
contributions, so a rule never does. The rule of a tuple parameter returns a list, one
gradient per element. None says that there is none.

A float parameter without a rule raises when its gradient is asked for; `stop(op)` says that
an op's derivative is zero (or, like an index, of no use).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from anetorch.mil import ops
from anetorch.mil.builder import Value

__all__ = ["ELEMENTWISE", "ONTO", "RULES", "STOPS", "VIEWS", "Slice", "onto", "rule", "rule_of", "stop", "tile_to", "zeros"]

Rule = Callable[..., Any]

#: op -> parameter -> rule
RULES: dict[str, dict[str, Rule]] = {}
#: Ops through which no gradient flows.
STOPS: set[str] = set()
#: Ops that only move data: a gradient kept in fp32 stays in fp32 through them.
VIEWS: set[str] = {
    "identity", "reshape", "transpose", "expand_dims", "squeeze", "slice_by_size",
    "slice_by_index", "concat", "stack", "split", "reverse", "cast",
}  # fmt: skip
#: Element-wise ops: where their operands are not broadcast, their rules may be given a
#: gradient that has 1 in place of some dims, and multiply it up as they go.
ELEMENTWISE: set[str] = set()
#: Rules that add to the gradient so far instead of returning their part: fn(op, dy, base).
ONTO: set[Rule] = set()


def rule(name: str, **by_param: Rule) -> None:
    """Registers rules for an op's parameters."""
    mine = RULES.setdefault(name, {})
    for param, fn in by_param.items():
        if param in mine:
            raise ValueError(f"[rule] {name}.{param} already has a rule")
        mine[param] = fn


def rule_of(name: str, param: str) -> Callable[[Rule], Rule]:
    """Decorator form, for rules of several lines: `@rule_of("silu", "x")`."""

    def register(fn: Rule) -> Rule:
        rule(name, **{param: fn})
        return fn

    return register


def onto(fn: Rule) -> Rule:
    """Marks a rule `fn(op, dy, base)` that returns base plus its gradient: a scatter then
    adds to the gradient in place, where zeros plus add would touch the whole table."""
    ONTO.add(fn)
    return fn


def stop(*names: str) -> None:
    """Registers ops whose derivative is zero."""
    STOPS.update(names)


def tile_to(x: Value, shape: Sequence[int]) -> Value:
    """Repeats dims of size 1 up to `shape`."""
    if tuple(x.shape) == tuple(shape):
        return x
    return ops.tile(x=x, reps=[b // a for a, b in zip(x.shape, shape)])


def zeros(shape: Sequence[int], dtype: str) -> Value:
    """A zero tensor, made at run time."""
    return ops.fill(shape=list(shape), value={"fp16": np.float16, "fp32": np.float32}[dtype](0))


class Slice:
    """A gradient that is zero outside `begin .. begin + dy.shape`: what the rules of slicing
    ops return. The walk joins slices that tile their tensor by one concat, where padding
    each with zeros and adding would pass over it once per slice."""

    def __init__(self, begin: Sequence[int], dy: Value) -> None:
        self.begin, self.dy = tuple(begin), dy
