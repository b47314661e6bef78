"""MIL programs: text, graph, builder, gradients.

>>> import anetorch.mil as mil
>>> p = mil.build(lambda x: {"y": x + 1.0}, {"x": mil.spec((2, 3), "fp16")})
>>> p.outputs
[<Value y: fp16[2, 3]>]
"""

# ruff: noqa: E402, I001
from anetorch._installed import built as _built

__path__ = _built(__path__, "ops.py")       # generated at build: a clone uses the installed one

from anetorch._core import MILError
from anetorch.mil.builder import Spec, build, const, emit, program, spec, state
from anetorch.mil.graph import Block, Function, Op, Program, Value
from anetorch.mil import ops
from anetorch.mil.grad import grad
from anetorch.mil.packing import Packed, Slot, pack

parse = Program.parse

__all__ = ["Block", "Function", "MILError", "Op", "Packed", "Program", "Slot", "Spec", "Value",
           "build", "const", "emit", "grad", "ops", "pack", "parse", "program", "spec", "state"]
