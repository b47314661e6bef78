"""Writes anetorch/mil/ops.py and ops.pyi from the op table.

    gen_ops.py ops.def OUTDIR [--markdown FILE]

One function per op. A function takes the parameters of all of the op's rows (the newest row's
first), because the opset is known only where the function runs; the graph says which of them
that opset has. What is not given is left to the table's default. --markdown writes the same
table as a document.
"""

from __future__ import annotations

import ast
import keyword
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

# Nested blocks of an op: what they are called in Python. They are callables.
BLOCKS = {"cond": ("true_fn", "false_fn"), "while_loop": ("cond", "body")}
# Made by the builder itself.
SKIP = {"const"}
SETS = {"F": "fp16, fp32", "FI": "fp16, fp32, int32", "FIB": "fp16, fp32, int32, bool",
        "A": "fp16, fp32, int8, int16, int32, uint8, uint16, bool",
        "AN": "fp16, fp32, int8, int16, int32, uint8, uint16",
        "IX": "int8, int16, int32, uint8, uint16", "any": "any value", "list": "list",
        "state": "state", "str": "string", "bool": "bool", "i32": "int32", "u32": "uint32",
        "i8": "int8", "i16": "int16", "u16": "uint16", "u8": "uint8", "i4": "int4",
        "u4": "uint4", "u1": "uint1", "u2": "uint2", "u3": "uint3", "u6": "uint6"}


@dataclass
class Param:
    name: str
    const: bool
    types: str                      # readable
    vector: bool
    tuple_: bool
    default: str | None             # literal
    optional: bool
    attribute: bool

    @property
    def note(self) -> str:
        text = ("constant " if self.const else "") + ("vector of " if self.vector else
                                                       "tuple of " if self.tuple_ else "")
        text += self.types
        if self.default is not None:
            text += f"; default {self.default}"
        elif self.optional:
            text += "; optional"
        return text


@dataclass
class Row:
    name: str
    opset: int
    params: list[Param]
    results: str
    doc: str


@dataclass
class Op:
    name: str
    rows: list[Row] = field(default_factory=list)

    @property
    def newest(self) -> Row:
        return self.rows[-1]

    def params(self) -> list[tuple[Param, list[int]]]:
        """(parameter as its newest row has it, opsets of the rows that have it), required
        ones first."""
        seen: dict[str, tuple[Param, list[int]]] = {}
        for row in reversed(self.rows):
            for p in row.params:
                seen.setdefault(p.name, (p, []))[1].append(row.opset)
        found = list(seen.values())
        return ([f for f in found if self.required(f)]
                + [f for f in found if not self.required(f)])

    def required(self, found: tuple[Param, list[int]]) -> bool:
        p, opsets = found
        return not p.optional and len(opsets) == len(self.rows)


def readable(types: str) -> str:
    names: list[str] = []
    for part in types.split("|"):
        names += [n for n in SETS.get(part, part).split(", ") if n not in names]
    return ", ".join(names)


def parse_param(text: str, variables: dict[str, str]) -> Param:
    name, _, rest = text.partition(":")
    attribute = name.startswith("@")
    const = rest.startswith("c ")
    rest = rest[2:] if const else rest
    rest, eq, default = rest.partition("=")
    optional = bool(eq) or rest.endswith("?")
    rest = rest.removesuffix("?")
    vector = rest.endswith("[]")
    rest = rest.removesuffix("[]")
    tuple_ = rest.endswith("...")
    rest = rest.removesuffix("...")
    if m := re.fullmatch(r"(\w+)<(.+)>", rest):
        variables[m[1]] = m[2]
        types = f"{m[1]} ({readable(m[2])})"
    elif rest in variables:
        types = rest
    else:
        types = readable(rest)
    return Param(name.lstrip("@"), const, types, vector, tuple_, default if eq else None,
                 optional, attribute)


TOKEN = re.compile(r'/\*.*?\*/|"(?:\\.|[^"\\])*"|\w+|[(),]', re.S)


def parse(text: str) -> list[Op]:
    tokens = [t for t in TOKEN.findall(text) if not t.startswith("/*")]
    ops: dict[str, Op] = {}
    at = 0
    while at < len(tokens):
        if tokens[at:at + 2] != ["OP", "("]:
            raise SystemExit(f"ops.def: expected OP( at {' '.join(tokens[at:at + 4])}")
        at += 2
        fields: list[str] = [""]
        while tokens[at] != ")":
            t = tokens[at]
            if t == ",":
                fields.append("")
            else:
                fields[-1] += ast.literal_eval(t) if t.startswith('"') else t
            at += 1
        at += 1
        name, opset, params, results, _infer, _evaluate, doc = fields
        variables: dict[str, str] = {}
        found = [parse_param(p, variables) for p in params.split(", ") if p]
        ops.setdefault(name, Op(name)).rows.append(Row(name, int(opset), found, results, doc))
    return list(ops.values())


def python_name(name: str) -> str:
    return name + "_" if keyword.iskeyword(name) else name


def result_type(op: Op) -> str:
    results = op.newest.results
    if results == "-":
        return "None"
    if "..." in results:
        return "Any"
    if "," in results:
        return f"tuple[{', '.join(['Value'] * len(results.split(',')))}]"
    return "Value"


def readable_results(row: Row) -> str:
    if row.results == "-":
        return "none"
    many = row.results.endswith("...")
    parts = [SETS.get(r, r) for r in row.results.removesuffix("...").split(", ")]
    return ", ".join(parts).replace("any value", "by inference") + (", as many as the op says"
                                                                     if many else "")


def annotation(p: Param) -> str:
    return "Sequence[Operand]" if p.tuple_ else "str" if p.types == "string" else "Operand"


def signature(op: Op, stub: bool) -> str:
    parts = []
    for found in op.params():
        p = found[0]
        if op.required(found):
            parts.append(f"{python_name(p.name)}: {annotation(p)}")
        else:
            parts.append(f"{python_name(p.name)}: {annotation(p)} | None = "
                         + ("..." if stub else "None"))
    for b in BLOCKS.get(op.name, ()):
        at = next((i for i, s in enumerate(parts) if " = " in s), len(parts))
        parts.insert(at, f"{b}: Callable[..., Any]")
    parts.append("name: str | None = " + ("..." if stub else "None"))
    return f"def {python_name(op.name)}({', '.join(parts)}) -> {result_type(op)}:"


def docstring(op: Op) -> str:
    lines = [op.newest.doc, ""]
    opsets = ", ".join(f"ios{r.opset}" for r in op.rows)
    if op.params():
        lines.append("Parameters:")
        for p, found in op.params():
            missing = [r.opset for r in op.rows if r.opset not in found]
            only = f" (only {', '.join(f'ios{o}' for o in sorted(found))})" if missing else ""
            lines.append(f"    {p.name}: {p.note}{only}")
    for b in BLOCKS.get(op.name, ()):
        lines.append(f"    {b}: callable that builds a nested block")
    lines += [f"Result: {readable_results(op.newest)}. Since {opsets}."]
    return "\n    ".join(lines).replace("    \n", "\n")


HEAD = '''"""One function per MIL op. Generated from csrc/ir/ops.def by gen_ops.py: do not edit.

Called inside a program that is being built (see :func:`anetorch.mil.build`); operands are
values of it, or Python numbers, strings, lists and NumPy arrays, which become constants.

    >>> import anetorch.mil as mil
    >>> p = mil.build(lambda x: mil.ops.add(x=x, y=1.0), {"x": mil.spec((2, 3), "fp16")})
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Union
'''


def module(ops: list[Op]) -> str:
    out = [HEAD, "from anetorch.mil.builder import emit\n",
           "if TYPE_CHECKING:\n    import numpy as np\n\n"
           "    from anetorch.mil.graph import Value\n\n"
           "    Operand = Union[Value, bool, int, float, str, Sequence[Any], np.ndarray]\n",
           "__all__ = [\n" + "".join(f'    "{python_name(o.name)}",\n' for o in ops) + "]\n"]
    for op in ops:
        given = ", ".join(f'"{p.name}": {python_name(p.name)}' for p, _ in op.params())
        given += (", " if given else "") + '"name": name'
        blocks = BLOCKS.get(op.name, ())
        tail = f", blocks=({', '.join(blocks)})" if blocks else ""
        out.append(f'\n{signature(op, False)}\n    """{docstring(op)}\n    """\n'
                   f'    return emit("{op.name}", {{{given}}}{tail})\n')
    return "\n".join(out)


def stub(ops: list[Op]) -> str:
    out = ["# Generated from csrc/ir/ops.def by gen_ops.py: do not edit.",
           "from collections.abc import Callable, Sequence",
           "from typing import Any, Union", "", "import numpy as np", "",
           "from anetorch.mil.graph import Value", "",
           "Operand = Union[Value, bool, int, float, str, Sequence[Any], np.ndarray]", ""]
    out += [f"{signature(op, True)} ..." for op in ops]
    return "\n".join(out) + "\n"


def markdown(ops: list[Op]) -> str:
    out = ["# Operations", "",
           "Generated from `csrc/ir/ops.def` by `gen_ops.py`. A function's opset decides which "
           "row applies: the newest one not newer than it. `T` and `U` are type variables: one "
           "dtype for all operands that show the same letter.", ""]
    for op in ops:
        out += [f"## {op.name}", ""]
        for row in op.rows:
            out += [f"**ios{row.opset}** {row.doc}", ""]
            out += [f"- `{p.name}`: {p.note}" for p in row.params]
            out += [f"- result: {readable_results(row)}", ""]
    return "\n".join(out).rstrip() + "\n"


def write(path: Path, text: str) -> None:
    """Only when it differs: an unchanged file keeps its time."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def main(argv: list[str]) -> None:
    ops = parse(Path(argv[0]).read_text())
    shown = [o for o in ops if o.name not in SKIP]
    write(Path(argv[1]) / "ops.py", module(shown))
    write(Path(argv[1]) / "ops.pyi", stub(shown))
    if "--markdown" in argv:
        write(Path(argv[argv.index("--markdown") + 1]), markdown(shown))


if __name__ == "__main__":
    main(sys.argv[1:])
