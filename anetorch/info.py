"""What this installation has and chose: the lines of ``anetorch info``."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from anetorch import _core, engine
from anetorch.env import available_memory, cache_dir, gigabytes

__all__ = ["cache_lines", "lines"]


def cpu_name() -> str:
    """The processor's name as the system tells it, or its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            for line in f:
                if line.startswith(("model name", "Model")):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def lines() -> Iterator[str]:
    """One fact a line: versions, CPU, threads, kernel tables, devices, folders.

    >>> next(lines()).split()[0]
    'anetorch'
    """
    yield f"anetorch {_core.version()} ({Path(_core.__file__).parent})"
    yield f"Python {platform.python_version()}, NumPy {np.__version__}, {platform.platform()}"
    memory = available_memory()
    yield (f"CPU: {cpu_name()}, {_core.num_threads()} threads"
           + (f", {gigabytes(memory)} of memory free" if memory else ""))
    for name, state in _core.isa_tables():
        yield f"kernel table {name}: {state}"
    if blas := _core.blas_kernel():
        yield f"large products: {blas}"
    for name, available, detail in _core.devices():
        yield f"device {name}: {'available' if available else 'absent'}: {detail}"
    budget = engine.compile_budget()
    yield f"compiles on the engine: {budget.used} of {budget.limit or 'any number'} a process"
    yield from cache_lines()
    yield f"cache folder: {cache_dir()}"
    for package in ("matplotlib", "torch", "transformers", "coremltools"):
        if package in sys.modules:
            yield f"{package} {getattr(sys.modules[package], '__version__', '?')}"


def cache_lines(clear: bool = False) -> Iterator[str]:
    """The compile cache in a line; ``clear`` empties it first and says how many went.

    >>> next(cache_lines()).split(":")[0]
    'compile cache'
    """
    if clear:
        yield f"forgot {engine.cache_clear()} entries"
    i = engine.cache_info()
    yield f"compile cache: {i.entries} of {i.limit} entries, {i.bytes:,} bytes, in {i.folder}"
