"""MIL programs: text, graph, builder, gradients."""

# ruff: noqa: E402, I001
from anetorch._installed import built as _built

__path__ = _built(__path__, "ops.py")       # generated at build: a clone uses the installed one
