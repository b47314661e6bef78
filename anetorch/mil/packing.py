"""A program of many ports as one of a single packed input and output.

Engines have been seen to refuse several inputs. Packed, parameters lie side by side along the
last axis of one surface `[1, R, 1, S]`, in declared order, so that weights which arrive as inputs
are written once and stay; results lie below one another along channels.

    packed = mil.pack(program)
    y = packed.split(anetorch.compile(packed.program)(packed.stage(x=x, w=w)))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from anetorch import _core
from anetorch.mil.graph import Program

__all__ = ["Packed", "Slot", "pack"]


@dataclass(frozen=True)
class Slot:
    """Where a port is in a packed surface: element k of it, row-major, is in row
    ``row + k // columns`` and column ``column + k % columns``.

    >>> packed.inputs[1]                                                # doctest: +SKIP
    Slot(name='w', dtype='float16', shape=(64, 128), row=0, column=32, rows=64, columns=128)
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    row: int
    column: int
    rows: int
    columns: int

    def put(self, surface: np.ndarray, value: Any) -> None:
        """Writes a port's value into the packed array ``[1, R, 1, S]``."""
        a = np.asarray(value)
        if a.shape != self.shape:
            raise ValueError(f"[pack] {self.name} has shape {self.shape}, got {a.shape}")
        flat = np.zeros(self.rows * self.columns, self.dtype)
        flat[:a.size] = a.reshape(-1)
        self._area(surface)[...] = flat.reshape(self.rows, self.columns)

    def get(self, surface: np.ndarray) -> np.ndarray:
        """The port's value, out of the packed array ``[1, R, 1, S]``."""
        flat = self._area(surface).reshape(-1)
        return flat[:int(np.prod(self.shape, dtype=np.int64))].reshape(self.shape)

    def _area(self, surface: np.ndarray) -> np.ndarray:
        return surface[0, self.row:self.row + self.rows, 0, self.column:self.column + self.columns]


@dataclass(frozen=True)
class Packed:
    """A packed program and its layout. A side that had one port is as it was; its slot then
    only names it.

    >>> packed = mil.pack(program)                                      # doctest: +SKIP
    >>> packed.shape, [s.name for s in packed.inputs]                   # doctest: +SKIP
    ((1, 64, 1, 160), ['x', 'w'])
    """

    program: Program
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    input: str | None
    output: str | None
    shape: tuple[int, int, int, int]        # of the packed input

    def stage(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """All inputs, in declared order or by name, as one array for the packed program."""
        given = dict(zip((s.name for s in self.inputs), args)) | kwargs
        names = {s.name for s in self.inputs}
        if given.keys() != names or len(args) > len(names):
            raise ValueError(f"[pack] expected {', '.join(sorted(names))}; got "
                             f"{', '.join(sorted(given)) or 'nothing'}")
        if self.input is None:
            return np.asarray(given[self.inputs[0].name])
        surface = np.zeros(self.shape, self.inputs[0].dtype)
        for slot in self.inputs:
            slot.put(surface, given[slot.name])
        return surface

    def split(self, result: Any) -> dict[str, np.ndarray]:
        """The original outputs by name, from what the packed program returned."""
        a = np.asarray(next(iter(result.values())) if isinstance(result, Mapping) else result)
        if self.output is None:
            return {self.outputs[0].name: a}
        return {slot.name: slot.get(a) for slot in self.outputs}


def pack(program: _core.Program, function: str | None = None) -> Packed:
    """The packed form of a function (``main``, or the only one) with many ports.

    Raises NotImplementedError where a side's ports differ in element type, have open shapes or
    are empty, and where there is nothing to pack; KeyError for an unknown function.

    >>> p = mil.build(lambda x, w: mil.ops.matmul(x=w, y=x),            # doctest: +SKIP
    ...               {"x": mil.spec((64, 32), "fp16"), "w": mil.spec((64, 64), "fp16")})
    >>> mil.pack(p).shape                                               # doctest: +SKIP
    (1, 64, 1, 96)
    """
    packed, (name, (rows, columns), inputs), (out, _, outputs) = program.pack(function)
    return Packed(packed, tuple(Slot(**s) for s in inputs), tuple(Slot(**s) for s in outputs),
                  name, out, (1, rows, 1, columns))
