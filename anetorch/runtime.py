"""Compiling and running: devices, kernels, requests, pipelines, and where two runs differ.

    >>> k = anetorch.compile(text)                  # or a mil.Program
    >>> y = k(x)                                    # Tensor; a dict for several outputs
    >>> req = k.bind({"x": x}, {"y": y})            # the hot path: nothing is allocated
    >>> req.run()
    >>> anetorch.Pipeline([req, other]).run()       # one C call for all of them
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from anetorch import _core, engine
from anetorch.report import Memory, Report

__all__ = ["Difference", "Device", "EngineWarning", "Kernel", "Memory", "Pipeline", "Placement",
           "Port", "Report", "Request", "compare", "compile", "devices", "get_num_threads",
           "num_threads", "set_num_threads"]

num_threads = _core.num_threads
get_num_threads = _core.get_num_threads
set_num_threads = _core.set_num_threads


class EngineWarning(UserWarning):
    """A program compiled with ``numerics="ane"`` holds operations that the engine refuses.

    They are computed all the same, with fp16 where each begins and ends.
    `anetorch.lint` lists them with evidence and rewrites.

    >>> warnings.simplefilter("error", anetorch.EngineWarning)          # doctest: +SKIP
    """


class Device(NamedTuple):
    """A device of this machine: what it is, or why it is absent.

    >>> [d.name for d in anetorch.devices() if d.available]             # doctest: +SKIP
    ['cpu']
    """

    name: str
    available: bool
    detail: str


class Port(NamedTuple):
    """An input or output of a kernel. Unknown dimensions are None.

    >>> [(p.name, p.dtype, p.shape) for p in kernel.inputs]             # doctest: +SKIP
    [('x', 'float16', (1, 64, 1, 32))]
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    state: bool = False


class Placement(NamedTuple):
    """One operation and where it ran; see `Kernel.placement`.

    >>> kernel.placement()[0]                                           # doctest: +SKIP
    Placement(op='linear', name='y', device='cpu', kernel='f16f32_6x16__avx2')
    """

    op: str
    name: str
    device: str
    kernel: str


class Difference(NamedTuple):
    """The first value in which two kernels differ; see `compare`.

    >>> d = anetorch.compare(fused, plain, x)                           # doctest: +SKIP
    >>> d.name, d.index, d.max_abs                                      # doctest: +SKIP
    ('y', (0, 3, 0, 7), 0.00048828125)
    """

    name: str
    index: tuple[int, ...]
    a: float
    b: float
    max_abs: float


def devices() -> list[Device]:
    """What this machine has, best known first; the CPU is always there.

    >>> anetorch.devices()[0].name
    'cpu'
    """
    return [Device(*d) for d in _core.devices()]


# One pool for run_async: made at the first use, and anew in a forked child.
_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _submit(fn: Any) -> Future[None]:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 1),
                                       thread_name_prefix="anetorch")
        return _pool.submit(fn)


def _forget_pool() -> None:
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


class Request(_core.Request):
    """A kernel bound to its tensors; made by `Kernel.bind`.

    >>> request = kernel.bind({"x": x})                                 # doctest: +SKIP
    >>> request.run()                                                   # doctest: +SKIP
    >>> request.outputs["y"].numpy()                                    # doctest: +SKIP
    """

    def run_async(self) -> Future[None]:
        """Runs in a background thread. The future's result is None or what `run` raises."""
        return _submit(self.run)

    def nonfinite(self) -> tuple[str, tuple[int, ...]] | None:
        """Name and index of the first NaN or infinity among the outputs, or None."""
        return _first_nonfinite(self.outputs)


class Pipeline(_core.Pipeline):
    """Requests that run one after another in one C call.

    A surface that is one request's output and the next one's input is simply the same
    Tensor bound twice.

    >>> step = anetorch.Pipeline([forward, backward])
    >>> step.run()
    """

    def run_async(self) -> Future[None]:
        """Runs in a background thread. The future's result is None or what `run` raises."""
        return _submit(self.run)


class Kernel(_core.Kernel):
    """A compiled function. Immutable; may be called from several threads at once.

    Call it with arrays or Tensors in declared order or by name. Arrays of another float
    dtype are converted, any other mismatch raises. One output comes back as a Tensor,
    several as a dict; `out=` gives Tensors or arrays to write into (None entries are made).

    >>> y = k(x)
    >>> k(x, out=y)
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    target: str | None

    def __new__(cls, program: Any, *, function: str | None = None, device: str | None = None,
                numerics: str | None = None, target: str | None = None,
                precision: str | None = None, prepack: bool = False,
                lowering: str | None = None, memory_limit: int | None = None,
                donor: Kernel | None = None, exchange: str | None = None) -> Kernel:
        self = super().__new__(cls, program, function=function, device=device,
                               numerics=numerics, target=target, precision=precision,
                               prepack=prepack, lowering=lowering, memory_limit=memory_limit,
                               donor=donor, exchange=exchange)
        if self.device == "ane":
            engine.warn_near_budget()
        self.inputs = tuple(Port(*p) for p in self._ports(False))
        self.outputs = tuple(Port(*p) for p in self._ports(True))
        # Editing the caller's program later must not change what trace() shows.
        self._program = program.clone()
        self._options = {"function": function, "device": device, "numerics": numerics,
                         "target": target, "precision": precision, "prepack": prepack,
                         "lowering": lowering, "memory_limit": memory_limit}
        self.target = target
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    @property
    def lowering(self) -> str:
        """"inputs", or "packed" into one surface a side. The first run may change it: see
        `lowering_reason`."""
        return self._lowered[0]

    @property
    def lowering_reason(self) -> str:
        """Why `lowering` is not the first choice: what refused that; else ""."""
        return self._lowered[1]

    def _relowered(self) -> None:
        warnings.warn(f"[run] packed into one surface, as {self.lowering_reason}",
                      EngineWarning, stacklevel=3)

    def __repr__(self) -> str:
        def ports(ps: tuple[Port, ...]) -> str:
            return ", ".join(f"{p.name}: {p.dtype}{_shape_text(p.shape)}" for p in ps)

        return (f"Kernel({ports(self.inputs)}) -> ({ports(self.outputs)}) on {self.device}"
                f"{self._arithmetic()}")

    def _arithmetic(self) -> str:
        """What is said where it is not the device's own."""
        if self.device != "cpu" or self.numerics == "ieee":
            return ""
        return f', numerics="ane" of {self.target or "any chip"}'

    def bind(self, inputs: Any, outputs: Any = None) -> Request:
        """A request over these tensors, used in place: dict by name, sequence in declared
        order, or the one Tensor. Outputs that are not given are made; see
        `Request.outputs`. The same Tensor may be input and output.

        >>> req = k.bind({"x": x})
        >>> req.run()
        >>> req.outputs["y"]
        """
        return Request(self, inputs, outputs)

    def trace(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Runs and returns every intermediate tensor by name, in program order.

        Every value is stored, so nothing is fused across it.
        """
        k = self._traced()
        out = k(*args, **kwargs)
        return out if isinstance(out, dict) else {k.outputs[0].name: out}

    def _traced(self) -> Kernel:
        if getattr(self, "_trace_kernel", None) is None:
            p = self._program.clone()
            body = self._body(p)
            ids: list[int] = []
            for op in p.block_info(body)["ops"]:
                for v in p.op_info(op)["results"]:
                    info = p.value_info(v)
                    if info["type"][0] == "tensor" and p.const_value(v) is None:
                        ids.append(v)
            have = set(ids)
            ids += [v for v in p.block_info(body)["outputs"] if v not in have]
            p.set_outputs(body, ids)
            self._trace_kernel = type(self)(p, **self._options)
        return self._trace_kernel

    def report(self, *args: Any, **kwargs: Any) -> Report:
        """What ran, step by step: kernel, instruction set, what was fused into it, time,
        GFLOP/s, GB/s and fractions of the peak, which is measured beside it. Prints as a
        table, in Jupyter too.

        Without arguments the inputs are zeros (all shapes must be known). The run that is
        shown is the fastest of three warm ones.

        >>> print(k.report(x))                                          # doctest: +SKIP
        """
        request = self._bound(args, kwargs)
        request.run()                   # packs constants, touches memory
        report = Report(min((request.profile() for _ in range(3)),
                            key=lambda steps: sum(s["seconds"] for s in steps)))
        report.title = f"on {self.device}{self._arithmetic()}"
        return report

    def placement(self, *args: Any, **kwargs: Any) -> list[Placement]:
        """What ran where, after a run with these inputs (zeros where none are given).

        On the CPU a row for each step of the plan, with the kernel that it chose; on the
        engine, which takes a program whole, a row for each operation, and one for each
        operand that had to be copied into or out of the engine's layout, on the CPU. A named
        device never falls back, so nothing else can have run.

        >>> for row in kernel.placement(): print(row)                   # doctest: +SKIP
        Placement(op='copy in', name='x', device='cpu', kernel='cpu')
        Placement(op='relu', name='y', device='ane', kernel='ane')
        """
        steps = self._bound(args, kwargs).profile()
        if self.device == "cpu":
            return [Placement(s["op"], s["name"], "cpu", s["kernel"]) for s in steps]
        rows = {op: [Placement(op, s["name"], "cpu", s["kernel"]) for s in steps if s["op"] == op]
                for op in ("copy in", "copy out")}
        where = next(s["kernel"] for s in steps if s["op"] == "evaluate")
        ran = [Placement(name, result, self.device, where) for name, result in self._operations()]
        return rows["copy in"] + ran + rows["copy out"]

    def _operations(self) -> list[tuple[str, str]]:
        """(op, first result) of every operation but constants, in program order."""
        p, body = self._program, self._body(self._program)
        found = []
        for op in p.block_info(body)["ops"]:
            info = p.op_info(op)
            if info["op"] != "const":
                found.append((info["op"], p.value_info(info["results"][0])["name"]))
        return found

    def _body(self, program: Any) -> int:
        """The block of the function that was compiled, in this copy of its program."""
        functions = program.functions()
        name = self._options["function"] or "main"
        return ([f for f in functions if f[0] == name] or functions)[0][2]

    def memory(self, *args: Any, **kwargs: Any) -> Memory:
        """Bytes that a run on inputs of these shapes needs, by purpose and buffer by buffer:
        see `Memory`. "total" is what `memory_limit` limits; "values" is what scratch would be
        without reuse. On the CPU nothing is allocated or run; beyond the limit it works, too.
        "threads" are the blocks of as many threads as there are now; "reference" is what shapes
        tell of values evaluated plainly, or the most that a run has held.

        >>> print(k.memory(x))                                          # doctest: +SKIP
        """
        if self.device != "cpu":        # only a binding knows its staging
            return Memory(self._bound(args, kwargs).memory(), [])
        given = dict(zip((p.name for p in self.inputs), args)) | dict(kwargs)
        shapes = []
        for p in self.inputs:
            if p.name not in given and None in p.shape:
                raise ValueError(f"[memory] input {p.name} has the open shape "
                                 f"{_shape_text(p.shape)}; pass the inputs")
            shapes.append(tuple(given[p.name].shape if hasattr(given[p.name], "shape")
                                else np.shape(given[p.name])) if p.name in given else p.shape)
        return Memory(*self._memory(tuple(shapes)))

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Request:
        given = dict(zip((p.name for p in self.inputs), args)) | dict(kwargs)
        full = {}
        for p in self.inputs:
            if p.name in given:
                full[p.name] = np.asarray(given[p.name]).astype(p.dtype, copy=True)
            elif None in p.shape:
                raise ValueError(f"[report] input {p.name} has the open shape "
                                 f"{_shape_text(p.shape)}; pass the inputs")
            else:
                full[p.name] = np.zeros(p.shape, p.dtype)
        return Request(self, full)


def _shape_text(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"


def _first_nonfinite(values: Mapping[str, Any]) -> tuple[str, tuple[int, ...]] | None:
    for name, t in values.items():
        a = np.asarray(t)
        if a.dtype.kind == "f":
            bad = ~np.isfinite(a)
            if bad.any():
                at = np.unravel_index(int(np.argmax(bad)), a.shape)
                return name, tuple(int(i) for i in at)
    return None


def compile(program: Any, weights: Any = None, device: str | None = None,
            numerics: str = "ieee", precision: str = "highest", function: str | None = None,
            prepack: bool = False, target: str | None = None,
            lowering: str | None = None, memory_limit: int | None = None) -> Kernel:
    """Compiles a program for a device.

    program: a `mil.Program` or MIL text. weights: where a text's weight files are, a folder
    or a mapping from path to bytes or Tensor. device: None or "cpu", or "ane"; a named
    device never falls back. precision speaks of matrix products: "highest" sums fp32 in
    fp32, "high" and "medium" allow faster kernels (see docs). function: None takes "main",
    or the only one. prepack: pack constant weights now instead of at the first run.
    memory_limit: bytes that one run may need in all (the total of `Kernel.memory`); a call or
    a binding beyond it raises MemoryError before anything of that size is allocated. None
    takes ANETORCH_MEMORY_LIMIT, or no limit. For the CPU.

    numerics="ane" computes as the engine is known to: fp16 where every operation begins and
    ends, and its cliffs (docs/numerics.md). target is its chip, "m1" to "m5" or "a14" to
    "a19"; None has the cliffs of every chip. Operations that the engine refuses are computed,
    with an EngineWarning.

    lowering is for device="ane": "inputs" binds every input and output as a surface of its own,
    "packed" puts them side by side into one each (see `mil.pack`); None takes inputs, and where
    the engine's compiler or a first run refuses those, packed, with an EngineWarning that says
    why.

    >>> k = anetorch.compile('''program(1.3) {
    ...   func main<ios18>(tensor<fp16, [1, 8, 1, 32]> x) {
    ...     tensor<fp16, [1, 8, 1, 32]> y = relu(x = x);
    ...   } -> (y);
    ... }''')
    >>> k(np.zeros((1, 8, 1, 32))).shape
    (1, 8, 1, 32)

    Raises MILError for a malformed text, NotImplementedError for an absent device, and
    ValueError for unknown names.
    """
    if isinstance(program, (str, bytes)):
        text = program.decode() if isinstance(program, bytes) else program
        program = _core.Program.parse(text, weights=weights)
    elif weights is not None:
        raise TypeError("[compile] weights= goes with a MIL text; a Program has its own")
    kernel = Kernel(program, function=function, device=device, numerics=numerics,
                    target=target, precision=precision, prepack=prepack, lowering=lowering,
                    memory_limit=memory_limit)
    if kernel.lowering_reason:
        warnings.warn(f"[compile] packed into one surface, as {kernel.lowering_reason}",
                      EngineWarning, stacklevel=2)
    if numerics == "ane" and (refused := _refused(program, target)):
        warnings.warn(f"[compile] the engine refuses {', '.join(refused)}; see anetorch.lint",
                      EngineWarning, stacklevel=2)
    return kernel


def _refused(program: Any, target: str | None) -> list[str]:
    """Names of the operations that were refused when tried."""
    found = [f["what"].split(" ")[0] for f in _core.lint(program, target)
             if f["rule"] in ("ANE12", "ANE33")]
    return sorted(set(found))


def _own_states(k: Kernel, given: Mapping[str, Any]) -> dict[str, Any]:
    states = {p.name for p in k.inputs if p.state}
    return {n: _core.Tensor.from_numpy(np.array(v)) if n in states else v
            for n, v in given.items()}


def compare(a: Kernel, b: Kernel, *args: Any, **kwargs: Any) -> Difference | None:
    """The first intermediate value, in program order, whose bits differ between two
    kernels on the same inputs, or None. Values are matched by name. States given by name
    are copied: both kernels begin with the same and the caller's stay as they are.

    >>> anetorch.compare(k1, k2, x)
    Difference(name='h', index=(0, 3, 0, 1), a=1.0, b=1.0009765625, max_abs=0.00195)
    """
    x, y = (k.trace(*args, **_own_states(k, kwargs)) for k in (a, b))
    for name, tx in x.items():
        if name not in y:
            continue
        u, v = np.asarray(tx), np.asarray(y[name])
        if u.shape != v.shape:
            return Difference(name, (), float("nan"), float("nan"), float("inf"))
        same = (u == v) | ((u != u) & (v != v))
        if same.all():
            continue
        gap = np.abs(u.astype(np.float64) - v.astype(np.float64))
        at = np.unravel_index(int(np.argmin(same)), u.shape)
        return Difference(name, tuple(int(i) for i in at), float(u[at]), float(v[at]),
                          float(np.nanmax(np.where(same, 0, gap))))
    return None
