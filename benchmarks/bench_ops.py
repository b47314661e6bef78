"""Element-wise chains of fp16 tensors: bytes read and written per second against memcpy of as
many bytes on the same threads, and against PyTorch where it is installed.

    python benchmarks/bench_ops.py [--threads N] [--millions 0.25 16] [--json OUT]

memcpy is the C library's, one call a thread, so it has its own streaming stores for sizes beyond
the caches. Every chain is checked against NumPy's float32 before it is timed.
"""

from __future__ import annotations

import ctypes
import re
import statistics
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from common import Report, arguments, interleave, summary

import anetorch

# name: (tensor inputs, ops in order as MIL, the same in NumPy). Only the first is judged: the
# others read more, or compute more than the memory can feed.
CHAINS: dict[str, tuple[int, list[str], Callable[..., Any]]] = {
    "6 ops, 1 input": (1, ["mul(x = x, y = 1.5)", "add(x = a0, y = 0.25)", "relu(x = a1)",
                           "sub(x = a2, y = 0.5)", "minimum(x = a3, y = 3.0)",
                           "mul(x = a4, y = 0.75)"],
                       lambda x: np.minimum(np.maximum(x * 1.5 + 0.25, 0) - 0.5, 3) * 0.75),
    "6 ops, 2 inputs": (2, ["mul(x = x, y = z)", "add(x = a0, y = x)", "relu(x = a1)",
                            "sub(x = a2, y = z)", "maximum(x = a3, y = x)",
                            "mul(x = a4, y = 0.75)"],
                        lambda x, z: np.maximum(np.maximum(x * z + x, 0) - z, x) * 0.75),
    "6 ops, silu and tanh": (1, ["mul(x = x, y = 1.5)", "silu(x = a0)", "add(x = a1, y = 0.25)",
                                 "tanh(x = a2)", "mul(x = a3, y = 0.75)", "sub(x = a4, y = 0.5)"],
                             lambda x: np.tanh(x * 1.5 / (1 + np.exp(-1.5 * x)) + 0.25) * .75 - .5),
}


def program(n: int, inputs: int, ops: list[str]) -> str:
    """MIL text of a chain over tensors of n fp16 elements."""
    t = f"tensor<fp16, [{n}]>"
    args = ", ".join(f"{t} {name}" for name in "xz"[:inputs])
    lines = []
    for i, op in enumerate(ops):
        op = re.sub(r"y = (\d[\d.]*)", r"y = fp16(\1)", op)
        lines.append(f'{t} a{i} = {op}[name = string("a{i}")];')
    return (f"program(1.3) {{ func main<ios18>({args}) {{ " + " ".join(lines)
            + f" }} -> (a{len(ops) - 1}); }}")


class Memcpy:
    """memcpy of `source` over `target`, split over threads that wait between the calls."""

    def __init__(self, source: np.ndarray, target: np.ndarray, threads: int) -> None:
        copy = ctypes.CDLL(None).memcpy
        copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        self._gate, self._done = (threading.Barrier(threads) for _ in range(2))
        each = -(-source.nbytes // threads // 4096) * 4096
        parts = [(target.ctypes.data + at, source.ctypes.data + at,
                  min(each, source.nbytes - at)) for at in range(0, source.nbytes, each)]
        self._own = lambda: copy(*parts[0])
        self._threads = threads
        self._keep = source, target

        def work(part: tuple[int, int, int]) -> None:
            while True:
                self._gate.wait()
                copy(*part)
                self._done.wait()
        for part in parts[1:]:
            threading.Thread(target=work, args=(part,), daemon=True).start()

    def __call__(self) -> None:
        if self._threads > 1:
            self._gate.wait()
        self._own()
        if self._threads > 1:
            self._done.wait()


def peer(arrays: list[np.ndarray], threads: int) -> dict[str, Callable[[], Any]]:
    """The first chain in PyTorch, eager and compiled, where it is installed."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(threads)
    x = torch.from_numpy(arrays[0])

    def chain(x: Any) -> Any:
        return torch.clamp_max(torch.relu(x * 1.5 + 0.25) - 0.5, 3.0) * 0.75
    made = {f"  torch {torch.__version__}": lambda: chain(x)}
    try:
        fast = torch.compile(chain)
        fast(x)
        made[f"  torch {torch.__version__} compiled"] = lambda: fast(x)
    except Exception as e:      # no C++ compiler, or none that it likes
        print(f"torch.compile: {type(e).__name__}")
    return made


def main() -> None:
    p = arguments(__doc__)
    p.add_argument("--millions", nargs="+", type=float, default=[0.25, 16],
                   help="elements; the largest should not fit any cache")
    p.add_argument("--peers", action="store_true", help="PyTorch beside the first chain")
    args = p.parse_args()
    if args.threads:
        anetorch.set_num_threads(args.threads)
    threads = anetorch.num_threads()
    report = Report("bench_ops", args.json)
    rng = np.random.default_rng(0)
    for millions in args.millions:
        n = int(millions * (1 << 20))
        inner = max(1, (1 << 20) // n)
        for label, (inputs, ops, numpy) in CHAINS.items():
            arrays = [rng.standard_normal(n, np.float32).astype(np.float16)
                      for _ in range(inputs)]
            tensors = [anetorch.Tensor.from_numpy(a, mem="heap") for a in arrays]
            out = anetorch.Tensor((n,), "float16", mem="heap")
            kernel = anetorch.compile(program(n, inputs, ops))
            request = kernel.bind(dict(zip("xz", tensors, strict=False)),
                                  {f"a{len(ops) - 1}": out})
            request.run()
            want = numpy(*(a.astype(np.float32) for a in arrays))
            # fp32 inside, at most 6 roundings and 4 ulp of each function; then one to fp16.
            slack = 2.0 ** -11 * np.abs(want) + 2.0 ** -24 + 2.0 ** -20 * (1 + np.abs(want))
            assert (np.abs(out.numpy() - want) <= slack).all(), label
            moved = 2 * n * (inputs + 1)
            # Of the same kind of memory (huge pages), so that only the work differs.
            src, dst = (anetorch.Tensor((moved // 2,), "uint8", mem="heap").fill_(k)
                        for k in (1, 0))
            memcpy = Memcpy(src.numpy(), dst.numpy(), threads)

            def repeat(call: Callable[[], Any], inner: int = inner) -> Callable[[], Any]:
                return call if inner == 1 else lambda: [call() for _ in range(inner)]
            runs = {"memcpy": repeat(memcpy), "ours": repeat(request.run)}
            if args.peers and label == next(iter(CHAINS)):
                runs |= {k: repeat(f) for k, f in peer(arrays, threads).items()}
            times = interleave(runs, args.repeats)
            for name, took in times.items():
                each = summary([t / inner for t in took])
                shown = f"{label} {millions:g}M" if name == "ours" else f"  {name.strip()}"
                report.add(shown, each, gbs=moved / each["median"] * 1e-9, x_memcpy=statistics
                           .median([c / t for c, t in zip(times["memcpy"], took, strict=True)]))


if __name__ == "__main__":
    main()
