"""Building programs from Python.

A function of values is called once with the program's inputs; the operations that it emits
(:mod:`anetorch.mil.ops`, operators of :class:`Value`) go into the program. Each is checked
and its result type inferred as it is made, so an error is raised at the line that made it.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from anetorch import _core
from anetorch.mil.graph import Block, Op, Program, Value

__all__ = ["Spec", "Value", "build", "const", "emit", "into", "program", "spec", "state"]

_NAMES = {"float16": "fp16", "float32": "fp32", "float64": "fp64", "bfloat16": "bf16",
          "f16": "fp16", "f32": "fp32", "f64": "fp64", "i8": "int8", "i16": "int16",
          "i32": "int32", "i64": "int64", "u8": "uint8", "u16": "uint16", "u32": "uint32",
          "u64": "uint64", "float8_e4m3fn": "fp8e4m3fn", "float8_e5m2": "fp8e5m2",
          "b1": "bool", "str": "string"}
_FLOATS = ("fp32", "fp16", "fp64", "bf16")
#: Words of the text that no value may be called.
_RESERVED = frozenset(
    "any bool program func tensor list dict tuple true false string bf16 fp16 fp32 fp64 int8 "
    "int16 int32 int64 uint8 uint16 uint32 uint64 state block inf nan BLOBFILE".split())


def _dtype(dtype: Any) -> str:
    """MIL's name of a dtype."""
    if not isinstance(dtype, str):
        dtype = np.dtype(dtype).name
    return _NAMES.get(dtype, dtype)


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of an input; None is a dimension left open. See :func:`spec`."""

    shape: tuple[int | None, ...]
    dtype: str = "fp32"
    is_state: bool = False

    @property
    def type(self) -> tuple[Any, ...]:
        t = ("tensor", self.dtype, self.shape)
        return ("state", t) if self.is_state else t


def spec(shape: Sequence[int | None] | int, dtype: Any = "fp32") -> Spec:
    """An input's shape and dtype.

    >>> spec((1, 8, None), "float16")
    Spec(shape=(1, 8, None), dtype='fp16', is_state=False)
    """
    dims = (shape,) if isinstance(shape, int) else tuple(shape)
    return Spec(tuple(None if d is None else operator.index(d) for d in dims), _dtype(dtype))


def state(shape: Sequence[int] | int, dtype: Any = "fp16") -> Spec:
    """A state input: read with ``ops.read_state``, written with ``ops.write_state`` (ios18)."""
    s = spec(shape, dtype)
    return Spec(s.shape, s.dtype, True)


# ------------------------------------------------------------------ where ops go


class _Place(NamedTuple):
    program: Program
    block: int
    before: int | None
    opset: int


_place: contextvars.ContextVar[_Place | None] = contextvars.ContextVar("anetorch.mil", default=None)


def _opset_number(tag: str) -> int:
    digits = tag.removeprefix("ios")
    return min(int(digits), 18) if digits.isdigit() else 18


def _place_in(program: Program, block: int, before: int | None = None) -> _Place:
    name = program.block_info(block)["function"]
    return _Place(program, block, before, _opset_number(program.functions[name].opset))


@contextmanager
def into(program: Program, block: int, before: Op | None = None) -> Iterator[None]:
    """Operations go to this block while the context lasts."""
    token = _place.set(_place_in(program, block, None if before is None else before.id))
    try:
        yield
    finally:
        _place.reset(token)


def _find_place(op: str, values: list[tuple[str, Value]]) -> _Place:
    """The current place; outside of any, the block of the first operand."""
    place = _place.get()
    if place is None:
        if not values:
            raise RuntimeError(f"[{op}] no program is being built; call it inside mil.build, "
                               "@mil.program or `with p.block(b):`")
        v = values[0][1]
        place = _place_in(v.program, v.program.value_info(v.id)["block"])
    for param, v in values:
        if v.program is not place.program:
            raise ValueError(f"[{op}] parameter {param}: {v!r} belongs to another program")
    return place


# ------------------------------------------------------------------ constants


class _Param(NamedTuple):
    name: str
    kind: str
    dtypes: list[str]
    var: int
    is_const: bool
    is_vector: bool
    is_tuple: bool
    optional: bool
    attribute: bool


@functools.cache
def _signature(op: str, opset: int) -> dict[str, _Param]:
    try:
        return {p[0]: _Param(*p) for p in _core.op_signature(op, opset)}
    except KeyError:
        return {}                               # add_op says what is wrong with it


def _kind(value: Any) -> str:
    """"bool", "int", "float", "str" of a plain Python value; "" for anything typed."""
    while isinstance(value, (list, tuple)):
        kinds = [_kind(v) for v in value]
        for kind in ("", "str", "float", "int", "bool"):
            if kind in kinds:
                return kind
        return "int"                            # empty: shapes and axes are what lists are for
    if isinstance(value, (bool, np.bool_)):
        return "bool"
    if isinstance(value, (np.ndarray, np.generic, _core.Tensor)):
        return ""
    if isinstance(value, int):
        return "int"
    if isinstance(value, float):
        return "float"
    return "str" if isinstance(value, str) else ""


def _choose(op: str, p: _Param, value: Any, bound: str | None) -> str | tuple[Any, ...] | None:
    """The dtype of a constant argument; None: the value's own."""
    kind = _kind(value)
    if p.kind == "list" and isinstance(value, (list, tuple)):
        element = {"str": "string", "float": "fp32", "bool": "bool"}.get(kind, "int64")
        return ("list", ("tensor", element, ()), len(value))
    if kind == "":
        own = _dtype(value.dtype) if hasattr(value, "dtype") else None
        # NumPy's own defaults are no statement about the element type.
        if own == "fp64" and "fp64" not in p.dtypes:
            kind = "float"
        elif own == "int64" and p.dtypes and "int64" not in p.dtypes:
            kind = "int"
        else:
            return None
    allowed = p.dtypes
    if kind in ("str", "bool"):
        choice = "string" if kind == "str" else "bool"
        if allowed and choice not in allowed:
            raise TypeError(f"[{op}] parameter {p.name} takes {', '.join(allowed)}, got {value!r}")
        return choice
    if bound is not None:
        choice = bound
    elif kind == "float":
        choice = next((d for d in _FLOATS if d in allowed), "fp32" if not allowed else allowed[0])
    else:
        choice = next((d for d in ("int32", *allowed) if d in allowed), "int32")
    if choice == "string" or (choice == "bool" and allowed):
        raise TypeError(f"[{op}] parameter {p.name} takes {', '.join(allowed)}, got {value!r}")
    if kind == "float" and choice not in _FLOATS:
        raise TypeError(f"[{op}] parameter {p.name} takes {', '.join(allowed)}, got the float {value!r}"
                        if bound is None else
                        f"[{op}] parameter {p.name} is {bound} like its other operand, got the float {value!r}")
    return choice


def _constant(place: _Place, op: str, p: _Param, value: Any, bound: str | None) -> int:
    dtype = _choose(op, p, value, bound)
    what = f"{op}: parameter {p.name}"
    if isinstance(value, (np.ndarray, np.generic)) and dtype is not None:
        value = _narrow(what, np.asarray(value), dtype)
    # What is an attribute has no name of its own to be referred to.
    small = p.attribute or not isinstance(value, (np.ndarray, _core.Tensor)) or value.nbytes <= 64
    try:
        return place.program.add_const(place.block, value, dtype=None if dtype == "string" else dtype, inline=small,
                                       before=place.before, what=what)
    except OverflowError:
        raise ValueError(f"[{what}] {value!r} does not fit {dtype}") from None


def _narrow(what: str, a: np.ndarray, dtype: str) -> np.ndarray:
    """NumPy's default dtypes to the one wanted; an integer that does not fit raises."""
    if a.dtype == np.int64 and dtype.startswith(("int", "uint")) and dtype[-1] in "26 8":
        to = np.dtype(dtype)
        if a.size and (a.min() < np.iinfo(to).min or a.max() > np.iinfo(to).max):
            raise ValueError(f"[{what}] a value does not fit {dtype}")
        return a.astype(to)
    if a.dtype == np.int64 and dtype in _FLOATS:
        return a.astype(np.float64)
    return a


def const(value: Any, dtype: Any = None, name: str | None = None) -> Value:
    """A named constant where ops go at the moment.

    value: number, bool, str, (nested) list or array; a contiguous array above 64 bytes is
    viewed, not copied, and must not be changed afterwards. dtype None: the array's own; fp32
    for Python floats, int32 for Python ints.
    """
    place = _find_place("const", [])
    want = None if dtype is None else _dtype(dtype)
    if want is None and isinstance(value, (np.ndarray, np.generic)):
        want = {"float64": "fp32", "int64": "int32"}.get(value.dtype.name)
    elif want is None:
        want = {"float": "fp32", "int": "int32", "bool": "bool"}.get(_kind(value))
    if isinstance(value, (np.ndarray, np.generic)) and want is not None:
        value = _narrow("const", np.asarray(value), want)
    _check_name("const", name)
    return Value(place.program, place.program.add_const(place.block, value, dtype=want, name=name,
                                                        before=place.before))


def _check_name(op: str, name: str | None) -> None:
    if name is not None and name in _RESERVED:
        raise ValueError(f"[{op}] {name!r} is a reserved word of MIL; choose another name")


# ------------------------------------------------------------------ operations


def emit(op: str, args: Mapping[str, Any], name: str | None = None,
         blocks: Sequence[Callable[..., Any]] = ()) -> Any:
    """Adds an operation where ops go at the moment.

    args: parameter -> Value, or what becomes a constant: number, str, list, NumPy array. A
    number takes the dtype that its type variable has from the other operands. None: absent.
    blocks: functions that fill the nested blocks of `cond` and `while_loop`.

    Returns the result; a tuple of several; None where there is none.
    """
    given = {k: v for k, v in args.items() if v is not None}
    if "name" in given:
        name = given.pop("name")
    _check_name(op, name)
    values: list[tuple[str, Value]] = []
    for param, arg in given.items():
        if isinstance(arg, Value):
            values.append((param, arg))
        elif isinstance(arg, (list, tuple)):
            values += [(param, a) for a in arg if isinstance(a, Value)]
    place = _find_place(op, values)
    signature = _signature(op, place.opset)
    bound = _bound_dtypes(signature, values, given)
    ids: dict[str, Any] = {}
    made: list[int] = []

    def constant(p: _Param, arg: Any) -> int:
        made.append(_constant(place, op, p, arg, bound.get(p.var)))
        return made[-1]

    try:
        _arguments(signature, given, constant, ids)
        nested = [_nested(place, op, fn, i, given.get("loop_vars", ())) for i, fn in enumerate(blocks)]
        _, results = place.program.add_op(place.block, op, ids, name=name, before=place.before,
                                          blocks=nested)
    except BaseException:
        for id in made:                         # leave the program as it was
            place.program.remove_op(place.program.value_info(id)["op"])
        raise
    out = tuple(Value(place.program, i) for i in results)
    return None if not out else out[0] if len(out) == 1 else out


def _arguments(signature: dict[str, _Param], given: dict[str, Any],
               constant: Callable[[_Param, Any], int], ids: dict[str, Any]) -> None:
    """Value ids of every argument, constants made on the way."""
    for param, arg in given.items():
        p = signature.get(param) or _Param(param, "any", [], -1, False, False, False, True, False)
        if isinstance(arg, Value):
            ids[param] = (arg.id,) if p.is_tuple else arg.id
        elif p.is_tuple or (isinstance(arg, (list, tuple)) and any(isinstance(a, Value) for a in arg)):
            items = arg if isinstance(arg, (list, tuple)) else (arg,)
            ids[param] = tuple(a.id if isinstance(a, Value) else constant(p, a) for a in items)
        else:
            ids[param] = constant(p, arg)


def _bound_dtypes(signature: dict[str, _Param], values: list[tuple[str, Value]],
                  given: dict[str, Any]) -> dict[int, str]:
    """Type variable -> the dtype it has from values, else from typed arrays."""
    bound: dict[int, str] = {}
    for param, v in values:
        p = signature.get(param)
        if p and p.var >= 0:
            t = v.type
            if t[0] == "tensor":
                bound.setdefault(p.var, t[1])
    for param, arg in given.items():
        p = signature.get(param)
        if p and p.var >= 0 and isinstance(arg, (np.ndarray, np.generic, _core.Tensor)):
            dtype = _dtype(arg.dtype)
            if not p.dtypes or dtype in p.dtypes:
                bound.setdefault(p.var, dtype)
    if len(bound) < 8:                          # a float among plain numbers makes all floats
        for param, arg in given.items():
            p = signature.get(param)
            if p and p.var >= 0 and p.var not in bound and not isinstance(arg, Value) and _kind(arg) == "float":
                bound[p.var] = next((d for d in _FLOATS if d in p.dtypes), "fp32")
    return bound


def _nested(place: _Place, op: str, fn: Callable[..., Any], index: int, loop_vars: Any) -> int:
    """A block filled by fn: of `while_loop` with one parameter per loop variable."""
    p = place.program
    items = loop_vars if isinstance(loop_vars, (list, tuple)) else (loop_vars,)
    params = []
    mark = p.generation
    for k, v in enumerate(items):
        if not isinstance(v, Value):
            raise TypeError(f"[{op}] loop_vars must be values, got {v!r}; make it one with mil.const")
        params.append((f"{v.name or 'var'}_{index}_{k}_{mark}", v.type))
    block, ids = p.add_block(place.block, params)
    with into(p, block):
        result = fn(*(Value(p, i) for i in ids))
        outputs = result if isinstance(result, (list, tuple)) else (result,)
        named = [v if isinstance(v, Value) else const(v) for v in outputs]
    p.set_outputs(block, [v.id for v in named])
    return block


# ------------------------------------------------------------------ programs


def build(fn: Callable[..., Any], inputs: Mapping[str, Spec] | None = None, *, opset: str = "ios18",
          name: str = "main", program: Program | None = None, version: str = "1.3") -> Program:
    """A program with one function made by calling ``fn(**inputs)``.

    inputs: name -> :func:`spec` or :func:`state`. fn returns a Value, a tuple, or a dict that
    names the outputs. With `program`, the function is added to it.

    >>> p = build(lambda x, w: {"y": w @ x}, {"x": spec((8, 5), "fp16"), "w": spec((3, 8), "fp16")})
    >>> print(p.text())                                         # doctest: +ELLIPSIS
    program(1.3)
    {
        func main<ios18>(tensor<fp16, [8, 5]> x, tensor<fp16, [3, 8]> w) {
            tensor<fp16, [3, 5]> y = matmul(x = w, y = x);
        } -> (y);
    }
    <BLANKLINE>
    """
    inputs = dict(inputs or {})
    for key, s in inputs.items():
        if not isinstance(s, Spec):
            raise TypeError(f"[build] input {key!r}: expected mil.spec(shape, dtype), got {s!r}")
        _check_name("build", key)
    p = Program(version) if program is None else program
    block, ids = p.add_function(name, opset, [(k, s.type) for k, s in inputs.items()])
    params = {k: Value(p, i) for k, i in zip(inputs, ids, strict=True)}
    with into(p, block):
        result = fn(**params)
        outputs = _outputs(p, Block(p, block), result)
    p.set_outputs(block, [v.id for v in outputs])
    return p


def _outputs(p: Program, block: Block, result: Any) -> list[Value]:
    """The output values of what a building function returned, named."""
    if result is None:
        raise TypeError("[build] the function returned None; return its outputs")
    if isinstance(result, Mapping):
        return [_named(p, key, v) for key, v in _unique(block, result)]
    values = list(result) if isinstance(result, (list, tuple)) else [result]
    for v in values:
        if not isinstance(v, Value):
            raise TypeError(f"[build] expected a Value as output, got {v!r}")
    return values


def _unique(block: Block, result: Mapping[str, Any]) -> list[tuple[str, Value]]:
    """Output names and values; a parameter, a constant in place or a value under a second
    name becomes a copy, so that every name can be given."""
    params = {v.id: v.name for v in block.params}
    pairs, seen = [], set()
    for key, v in result.items():
        if not isinstance(v, Value):
            raise TypeError(f"[build] output {key!r}: expected a Value, got {v!r}")
        _check_name("build", key)
        nested = v.program.value_info(v.id)["block"] != block.id
        if (v.id in params and params[v.id] != key) or v.id in seen or not v.name or nested:
            v = emit("identity", {"x": v})
        seen.add(v.id)
        pairs.append((key, v))
    return pairs


def _named(p: Program, key: str, v: Value) -> Value:
    if v.name != key:
        try:
            v.name = key
        except ValueError:
            other = p.value(key, p.block_info(p.value_info(v.id)["block"])["function"])
            if other.op is None:
                raise ValueError(f"[build] output {key!r} has the name of an input") from None
            # An inner value that happens to be called so gives the name up.
            other.name = f"{key}_{other.id}"
            v.name = key
    return v


def program(opset: str = "ios18", name: str = "main", version: str = "1.3",
            **inputs: Spec) -> Callable[[Callable[..., Any]], Program]:
    """Decorator form of :func:`build`: the decorated function becomes a Program.

    >>> @program(x=spec((8, 32), "fp16"), w=spec((4, 8), "fp16"))
    ... def prog(x, w):
    ...     return {"y": w @ x}
    >>> prog.outputs[0].shape
    (4, 32)
    """

    def make(fn: Callable[..., Any]) -> Program:
        missing = [k for k, q in inspect.signature(fn).parameters.items()
                   if q.default is q.empty and q.kind in (q.POSITIONAL_OR_KEYWORD, q.KEYWORD_ONLY)
                   and k not in inputs]
        if missing:
            raise TypeError(f"[program] {fn.__name__} takes {missing[0]!r}, which has no spec")
        return build(fn, inputs, opset=opset, name=name, version=version)

    return make


