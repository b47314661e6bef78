"""Programs and what is in them: functions, blocks, operations, values.

The graph lives in C. The classes here are handles of a program and a numeric id; they hold
no state, so they see every edit, and the handle of something removed raises KeyError.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from anetorch import _core
from anetorch.package import save_package, save_text

__all__ = ["Block", "Function", "Op", "Program", "Value"]

#: Type descriptor: ("tensor", "fp16", (1, 8, None)), ("state", <type>), ...
Type = tuple[Any, ...]


class _Handle:
    __slots__ = ("id", "program")

    def __init__(self, program: Program, id: int) -> None:
        self.program = program
        self.id = id

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.id == other.id and self.program is other.program

    def __hash__(self) -> int:
        return hash((id(self.program), self.id))


class Value(_Handle):
    """A value of a program: a parameter, a constant or the result of an operation.

    Operators emit operations where ops go at the moment (see :func:`anetorch.mil.build`)::

        + - * / // % ** @  -x  abs(x)  < <= > >=

    A Python number on the other side becomes a constant of this value's dtype. ``==`` and
    ``!=`` compare handles; use ``mil.ops.equal`` for elements.
    """

    __slots__ = ()
    __array_ufunc__ = None                      # ndarray + Value asks Value, once

    @property
    def name(self) -> str:
        """Identifier in the text; "" for a constant written in place."""
        return self.program.value_info(self.id)["name"]

    @name.setter
    def name(self, name: str) -> None:
        self.program.rename(self.id, name)

    @property
    def type(self) -> Type:
        """Descriptor, such as ``("tensor", "fp16", (1, 8, None))``."""
        return self.program.value_type(self.id)

    def _tensor(self) -> Type:
        t = self.type
        while t[0] == "state":
            t = t[1]
        if t[0] != "tensor":
            raise TypeError(f"[Value] {self.name!r} is a {t[0]}, not a tensor")
        return t

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Dimensions; None where one is unknown."""
        return self._tensor()[2]

    @property
    def dtype(self) -> str:
        """MIL's name of the element type, such as ``"fp16"``."""
        return self._tensor()[1]

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def op(self) -> Op | None:
        """The operation that defines it; None for a parameter."""
        id = self.program.value_info(self.id)["op"]
        return None if id is None else Op(self.program, id)

    @property
    def uses(self) -> list[Op]:
        """Operations that take it as an argument (a scan of the function)."""
        return [Op(self.program, i) for i in self.program.users(self.id)]

    @property
    def const(self) -> Any:
        """A known value: NumPy array or scalar, str, list or dict; None when computed."""
        return self.program.const_value(self.id)

    @property
    def is_const(self) -> bool:
        """Known before the run, even where a missing weight file keeps it from being read."""
        return self.program.value_info(self.id)["const"]

    def replace(self, other: Value) -> None:
        """Every use of this value becomes a use of `other`."""
        self.program.replace_value(self.id, other.id)

    def __repr__(self) -> str:
        try:
            info = self.program.value_info(self.id)
        except KeyError:
            return f"<Value {self.id}, removed>"
        return f"<Value {info['name'] or 'constant'}: {_type_text(info['type'])}>"

    def __bool__(self) -> bool:
        raise TypeError(f"[Value] {self!r} has no truth value before the program runs; "
                        "use mil.ops.select or mil.ops.cond")


def _type_text(t: Type) -> str:
    if t[0] == "tensor":
        return f"{t[1]}{list('?' if d is None else d for d in t[2])}".replace("'", "")
    return f"{t[0]}<{', '.join(_type_text(x) if isinstance(x, tuple) else str(x) for x in t[1:])}>"


def _operators() -> None:
    def binary(op: str, swap: bool = False) -> Any:
        def method(self: Value, other: Any) -> Any:
            from anetorch.mil.builder import emit

            if not isinstance(other, (Value, int, float, np.ndarray, np.generic)):
                return NotImplemented
            x, y = (other, self) if swap else (self, other)
            return emit(op, {"x": x, "y": y})

        return method

    def unary(op: str, **rest: Any) -> Any:
        def method(self: Value) -> Any:
            from anetorch.mil.builder import emit

            return emit(op, {"x": self, **rest})

        return method

    names = {"add": "add", "sub": "sub", "mul": "mul", "truediv": "real_div",
             "floordiv": "floor_div", "mod": "mod", "pow": "pow", "matmul": "matmul"}
    for python, mil in names.items():
        setattr(Value, f"__{python}__", binary(mil))
        setattr(Value, f"__r{python}__", binary(mil, swap=True))
    for python, mil in {"lt": "less", "le": "less_equal", "gt": "greater",
                        "ge": "greater_equal"}.items():
        setattr(Value, f"__{python}__", binary(mil))
    Value.__neg__ = unary("mul", y=-1)          # type: ignore[attr-defined]
    Value.__abs__ = unary("abs")                # type: ignore[attr-defined]


_operators()


class Op(_Handle):
    """An operation: ``type``, arguments by parameter, results, nested blocks."""

    __slots__ = ("_info", "_seen")

    def __init__(self, program: Program, id: int) -> None:
        super().__init__(program, id)
        self._seen = -1

    @property
    def info(self) -> dict[str, Any]:
        """Everything at once, as :meth:`anetorch._core.Program.op_info` gives it."""
        if self._seen != self.program.generation:
            self._info = self.program.op_info(self.id)
            self._seen = self.program.generation
        return self._info

    @property
    def type(self) -> str:
        """Name of the operation, such as ``"matmul"``."""
        return self.info["op"]

    @property
    def name(self) -> str | None:
        """The ``name`` attribute of the text; None: there is none."""
        return self.info["name"]

    @property
    def args(self) -> dict[str, Value | tuple[Value, ...]]:
        """Given arguments by parameter; a tuple where the parameter takes several values."""
        p = self.program
        return {name: tuple(Value(p, i) for i in arg) if isinstance(arg, tuple) else Value(p, arg)
                for name, arg in self.info["args"].items()}

    @property
    def inputs(self) -> list[Value]:
        """Every argument, tuples flattened."""
        return [v for a in self.args.values() for v in (a if isinstance(a, tuple) else (a,))]

    @property
    def results(self) -> list[Value]:
        """What it defines, in order."""
        return [Value(self.program, i) for i in self.info["results"]]

    @property
    def blocks(self) -> list[Block]:
        """Nested blocks: the branches of a cond, the condition and body of a loop."""
        return [Block(self.program, i) for i in self.info["blocks"]]

    @property
    def block(self) -> Block:
        """The block that holds it."""
        return Block(self.program, self.info["block"])

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes beyond ``name`` and a constant's ``val``."""
        return self.info["attrs"]

    @property
    def line(self) -> int:
        """Line of the statement in the text it came from; 0 when built."""
        return self.info["line"]

    def const(self, param: str) -> Any:
        """A constant argument, or its default, as Python number, bool, str or list.

        None: the parameter is absent and has no default. Raises ValueError when the argument
        is computed.
        """
        arg = self.info["args"].get(param)
        if arg is None:
            return _plain(self.info["defaults"].get(param))
        if isinstance(arg, tuple):
            return [self._known(param, i) for i in arg]
        return self._known(param, arg)

    def _known(self, param: str, id: int) -> Any:
        value = self.program.const_value(id)
        if value is None:
            raise ValueError(f"[Op] {self.type}: parameter {param} is not a constant")
        return _plain(value)

    def remove(self) -> None:
        """Takes it out; BufferError while a result is used."""
        self.program.remove_op(self.id)

    def __repr__(self) -> str:
        try:
            results = ", ".join(v.name for v in self.results)
            return f"<Op {self.type} -> ({results})>"
        except KeyError:
            return f"<Op {self.id}, removed>"


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


class Block(_Handle):
    """Operations in order, with parameters and outputs: a function's body or a nested block."""

    __slots__ = ()

    @property
    def info(self) -> dict[str, Any]:
        """The raw description from the C graph."""
        return self.program.block_info(self.id)

    @property
    def ops(self) -> list[Op]:
        """Operations in order, without the constants written in place."""
        ops = [Op(self.program, i) for i in self.info["ops"]]
        return [op for op in ops if not op.info["inlined"]]

    @property
    def params(self) -> list[Value]:
        """What the block is given when it runs."""
        return [Value(self.program, i) for i in self.info["params"]]

    @property
    def outputs(self) -> list[Value]:
        """What it gives back; assignable."""
        return [Value(self.program, i) for i in self.info["outputs"]]

    @outputs.setter
    def outputs(self, values: Any) -> None:
        self.program.set_outputs(self.id, [v.id for v in values])

    @property
    def owner(self) -> Op | None:
        """The operation it is nested in; None for a function's body."""
        id = self.info["owner"]
        return None if id is None else Op(self.program, id)

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops)

    def __repr__(self) -> str:
        return f"<Block {self.id} of {self.info['function']}>"


class Function(_Handle):
    """One function of a program. ``id`` is its body's."""

    __slots__ = ("name", "opset")

    def __init__(self, program: Program, name: str, opset: str, body: int) -> None:
        super().__init__(program, body)
        self.name = name
        self.opset = opset

    @property
    def body(self) -> Block:
        """Its operations."""
        return Block(self.program, self.id)

    @property
    def inputs(self) -> list[Value]:
        """Parameters, in declared order."""
        return self.body.params

    @property
    def outputs(self) -> list[Value]:
        """What the body gives back."""
        return self.body.outputs

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the function, by name."""
        return self.program.attrs(self.name)

    def __repr__(self) -> str:
        def list_of(values: list[Value]) -> str:
            return ", ".join(f"{v.name}: {_type_text(v.type)}" for v in values)

        return f"<Function {self.name}<{self.opset}>({list_of(self.inputs)}) -> ({list_of(self.outputs)})>"


class _Functions(Mapping[str, Function]):
    """Functions by name, in order. Calling it gives the tuples of ``_core.Program``."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def __call__(self) -> list[tuple[str, str, int, list[int]]]:
        return _core.Program.functions(self._program)

    def __getitem__(self, name: str) -> Function:
        for found, opset, body, _ in self():
            if found == name:
                return Function(self._program, found, opset, body)
        raise KeyError(f"the program has no function {name!r}; it has {', '.join(self) or 'none'}")

    def __iter__(self) -> Iterator[str]:
        return iter([f[0] for f in self()])

    def __len__(self) -> int:
        return len(self())


class Program(_core.Program):
    """A MIL program. Made by :func:`anetorch.mil.build`, :meth:`parse` or a package reader.

    >>> import anetorch.mil as mil
    >>> p = mil.build(lambda x: {"y": x * 2.0}, {"x": mil.spec((2, 3), "fp16")})
    >>> p.functions["main"]
    <Function main<ios18>(x: fp16[2, 3]) -> (y: fp16[2, 3])>
    >>> [op.type for op in p.functions["main"].body.ops]
    ['mul']
    >>> mil.Program.parse(p.text()) == p
    True
    """

    @property
    def functions(self) -> _Functions:      # type: ignore[override]
        """Functions by name."""
        return _Functions(self)

    @property
    def function(self) -> Function:
        """``main``, or the only function."""
        functions = self.functions
        if "main" in functions or len(functions) != 1:
            return functions["main"]
        return functions[next(iter(functions))]

    @property
    def inputs(self) -> list[Value]:
        """Inputs of :attr:`function`."""
        return self.function.inputs

    @property
    def outputs(self) -> list[Value]:
        """Outputs of :attr:`function`."""
        return self.function.outputs

    def value(self, name: str, function: str | None = None) -> Value:
        """The value of this identifier, nested blocks included."""
        f = self.function if function is None else self.functions[function]
        blocks = [f.body]
        while blocks:
            block = blocks.pop()
            for v in block.params:
                if v.name == name:
                    return v
            for op in block:
                for v in op.results:
                    if v.name == name:
                        return v
                blocks += op.blocks
        raise KeyError(f"function {f.name} has no value {name!r}")

    def block(self, block: Block | int, before: Op | None = None) -> AbstractContextManager[None]:
        """``with p.block(b):`` operations go to the end of b, or in front of op `before`."""
        from anetorch.mil.builder import into

        return into(self, block if isinstance(block, int) else block.id, before)

    def specialize(
        self, shapes: Mapping[str, Sequence[int]], function: str | None = None
    ) -> Program:
        """A program of one function alone, with these shapes of its inputs by name, and every
        type behind them inferred anew. Known dimensions must stay as they are.

        Raises KeyError for an unknown function, ValueError for an unknown input or a shape
        that the input, or an operation behind it, does not take.

        >>> import anetorch.mil as mil
        >>> p = mil.build(lambda x: {"y": x @ x}, {"x": mil.spec((None, None), "fp16")})
        >>> p.specialize({"x": (4, 4)}).function
        <Function main<ios18>(x: fp16[4, 4]) -> (y: fp16[4, 4])>
        """
        f = self.function if function is None else self.functions[function]
        params = {v.name: v for v in f.inputs}
        types = []
        for name, shape in shapes.items():
            if name not in params:
                raise ValueError(f"[specialize] {f.name} has no input {name!r}; it takes "
                                 f"{', '.join(params) or 'none'}")
            v, dims = params[name], tuple(int(n) for n in shape)
            if len(dims) != v.rank or any(n < 0 or m not in (None, n)
                                          for n, m in zip(dims, v.shape)):
                raise ValueError(f"[specialize] {v!r} cannot have the shape {dims}")
            kind: Type = ("tensor", v.dtype, dims)
            types.append((name, ("state", kind) if v.type[0] == "state" else kind))
        return self._specialize(f.name, types)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a Core ML package or a text, as the name's ending says (``.mlpackage``,
        ``.mil``). Atomic: what was there is replaced only when the new one is complete.

        The text of constants that came from a weight file names that file; a package gets
        its own. Raises ValueError for another ending.

        >>> p.save("model.mlpackage")                                   # doctest: +SKIP
        """
        if os.fspath(path).endswith(".mlpackage"):
            save_package(self, path)
        else:
            save_text(self, path)

    def same_as(self, other: _core.Program) -> bool:
        """Equal statement for statement; the version and its spelling do not count."""
        return self == other

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<Program {', '.join(repr(f) for f in self.functions.values())}>"
