"""Element-wise chains, some of them what models are made of: bytes read and written per second
against memcpy of as many bytes on the same threads, and against PyTorch where it is installed.

    python benchmarks/bench_ops.py [--threads N] [--millions 0.25 16] [--only TEXT]
                                   [--peers] [--json OUT]

memcpy is the C library's, one call a thread, so it has its own streaming stores for sizes beyond
the caches. Every chain is checked against NumPy's float32 before it is timed. With --peers set
OMP_WAIT_POLICY=passive and GOMP_SPINCOUNT=0: PyTorch's idle workers take the others' cores else.
"""

from __future__ import annotations

import ctypes
import math
import re
import statistics
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from common import Report, arguments, interleave, summary

import anetorch



class Chain(NamedTuple):
    """What one row runs. ``numpy`` and ``torch`` take the inputs and give the results in order;
    ``torch`` takes the module first."""

    inputs: str
    ops: list[str]
    results: str
    numpy: Callable[..., Any]
    torch: Callable[..., Any]
    dtype: str = "fp16"


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Of float32, without overflow."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def swiglu_gradient(x: np.ndarray, z: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of silu(x) * z: by x, by z."""
    s = sigmoid(x)
    return g * z * s * (1 + x * (1 - s)), g * x * s


def adamw(m: np.ndarray, v: np.ndarray, g: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, ...]:
    """Moments and parameter after one step."""
    a, b = m * 0.9 + g * 0.1, v * 0.999 + g * g * 0.001
    return a, b, p * 0.9999 - a * 0.001 / (np.sqrt(b) + 1e-6)


# The first two are judged against memcpy; the others compute more than the memory can feed, or
# are what models are made of.
CHAINS: dict[str, Chain] = {
    "6 ops, 1 input": Chain(
        "x", ["a = mul(x = x, y = 1.5)", "b = add(x = a, y = 0.25)", "c = relu(x = b)",
              "d = sub(x = c, y = 0.5)", "e = minimum(x = d, y = 3.0)",
              "f = mul(x = e, y = 0.75)"], "f",
        lambda x: np.minimum(np.maximum(x * 1.5 + 0.25, 0) - 0.5, 3) * 0.75,
        lambda t, x: t.clamp_max(t.relu(x * 1.5 + 0.25) - 0.5, 3.0) * 0.75),
    "6 ops, 2 inputs": Chain(
        "xz", ["a = mul(x = x, y = z)", "b = add(x = a, y = x)", "c = relu(x = b)",
               "d = sub(x = c, y = z)", "e = maximum(x = d, y = x)",
               "f = mul(x = e, y = 0.75)"], "f",
        lambda x, z: np.maximum(np.maximum(x * z + x, 0) - z, x) * 0.75,
        lambda t, x, z: t.maximum(t.relu(x * z + x) - z, x) * 0.75),
    "6 ops, silu and tanh": Chain(
        "x", ["a = mul(x = x, y = 1.5)", "b = silu(x = a)", "c = add(x = b, y = 0.25)",
              "d = tanh(x = c)", "e = mul(x = d, y = 0.75)", "f = sub(x = e, y = 0.5)"], "f",
        lambda x: np.tanh(x * 1.5 * sigmoid(1.5 * x) + 0.25) * .75 - .5,
        lambda t, x: t.tanh(t.nn.functional.silu(x * 1.5) + 0.25) * 0.75 - 0.5),
    "residual + scale": Chain(
        "xz", ["a = mul(x = z, y = 0.125)", "f = add(x = a, y = x)"], "f",
        lambda x, z: x + z * 0.125, lambda t, x, z: x + z * 0.125),
    "gelu, tanh": Chain(
        "x", ["f = gelu(x = x, mode = TANH)"], "f",
        lambda x: x * sigmoid(1.5957691 * x * (1 + 0.044715 * x * x)),
        lambda t, x: t.nn.functional.gelu(x, approximate="tanh")),
    "gelu, exact": Chain(
        "x", ["f = gelu(x = x, mode = EXACT)"], "f",
        lambda x: 0.5 * x * (1 + np.vectorize(math.erf, otypes="f")(x * math.sqrt(0.5))),
        lambda t, x: t.nn.functional.gelu(x)),
    "SwiGLU": Chain(
        "xz", ["a = silu(x = x)", "f = mul(x = a, y = z)"], "f",
        lambda x, z: x * sigmoid(x) * z, lambda t, x, z: t.nn.functional.silu(x) * z),
    "SwiGLU, gradient": Chain(
        "xzg", ["s = sigmoid(x = x)", "a = sub(x = 1.0, y = s)", "b = mul(x = a, y = x)",
                "c = add(x = b, y = 1.0)", "d = mul(x = c, y = s)", "e = mul(x = d, y = z)",
                "f = mul(x = e, y = g)", "h = mul(x = x, y = s)", "i = mul(x = h, y = g)"], "fi",
        swiglu_gradient,
        lambda t, x, z, g: (lambda s: (g * z * s * (1 + x * (1 - s)), g * x * s))(t.sigmoid(x))),
    "AdamW, fp32": Chain(
        "mvgp", ["a = mul(x = m, y = 0.9)", "b = mul(x = g, y = 0.1)", "c = add(x = a, y = b)",
                 "d = mul(x = v, y = 0.999)", "e = mul(x = g, y = g)",
                 "h = mul(x = e, y = 0.001)", "i = add(x = d, y = h)", "j = sqrt(x = i)",
                 "k = add(x = j, y = 0.000001)", "l = mul(x = c, y = 0.001)",
                 "n = real_div(x = l, y = k)", "o = mul(x = p, y = 0.9999)",
                 "q = sub(x = o, y = n)"], "ciq",
        adamw,
        lambda t, m, v, g, p: (lambda a, b: (a, b, p * 0.9999 - a * 0.001 / (t.sqrt(b) + 1e-6)))(
            m * 0.9 + g * 0.1, v * 0.999 + g * g * 0.001), "fp32"),
}


def program(n: int, chain: Chain) -> str:
    """MIL text of a chain over tensors of n elements."""
    t = f"tensor<{chain.dtype}, [{n}]>"
    args = ", ".join(f"{t} {name}" for name in chain.inputs)
    lines = []
    for line in chain.ops:
        name, op = line.split(" = ", 1)
        op = re.sub(r"([xy]) = (\d[\d.]*)", rf"\1 = {chain.dtype}(\2)", op)
        op = op.replace("TANH", 'string("TANH_APPROXIMATION")').replace("EXACT", 'string("EXACT")')
        lines.append(f'{t} {name} = {op}[name = string("{name}")];')
    return (f"program(1.3) {{ func main<ios18>({args}) {{ " + " ".join(lines)
            + f" }} -> ({', '.join(chain.results)}); }}")


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


def peers(chain: Chain, arrays: list[np.ndarray], threads: int) -> dict[str, Callable[[], Any]]:
    """The chain in PyTorch, eager and compiled, where it is installed."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(threads)
    torch._dynamo.reset()       # each chain is a function of its own
    inputs = [torch.from_numpy(a) for a in arrays]

    def run(*x: Any) -> Any:
        return chain.torch(torch, *x)
    made = {f"  torch {torch.__version__}": lambda: run(*inputs)}
    try:
        fast = torch.compile(run)
        fast(*inputs)
        made[f"  torch {torch.__version__} compiled"] = lambda: fast(*inputs)
    except Exception as e:      # no C++ compiler, or none that it likes
        print(f"torch.compile: {type(e).__name__}")
    return made


def main() -> None:
    p = arguments(__doc__)
    p.add_argument("--millions", nargs="+", type=float, default=[0.25, 16],
                   help="elements; the largest should not fit any cache")
    p.add_argument("--only", metavar="TEXT", default="", help="chains whose name has it")
    p.add_argument("--peers", action="store_true", help="PyTorch beside every chain")
    args = p.parse_args()
    if args.threads:
        anetorch.set_num_threads(args.threads)
    threads = anetorch.num_threads()
    report = Report("bench_ops", args.json)
    rng = np.random.default_rng(0)
    for millions in args.millions:
        n = int(millions * (1 << 20))
        inner = max(1, (1 << 20) // n)
        for label, chain in CHAINS.items():
            if args.only not in label:
                continue
            dtype = "float16" if chain.dtype == "fp16" else "float32"
            arrays = [rng.standard_normal(n, np.float32).astype(dtype) for _ in chain.inputs]
            if "v" in chain.inputs:
                arrays[chain.inputs.index("v")] **= 2
            tensors = [anetorch.Tensor.from_numpy(a, mem="heap") for a in arrays]
            outs = {r: anetorch.Tensor((n,), dtype, mem="heap") for r in chain.results}
            request = anetorch.compile(program(n, chain)).bind(
                dict(zip(chain.inputs, tensors, strict=True)), outs)
            request.run()
            # The first elements, beyond any block and task: fp32 inside, a dozen roundings at
            # most, 4 ulp of each function; then one to the dtype.
            part = [a[:200_000].astype(np.float32) for a in arrays]
            want = chain.numpy(*part)
            for w, out in zip(want if isinstance(want, tuple) else (want,), outs.values(),
                              strict=True):
                slack = (2.0 ** -11 * np.abs(w) + 2.0 ** -24) * (dtype == "float16")
                slack = slack + 2.0 ** -20 * (1 + np.abs(w))
                assert (np.abs(out.numpy()[:200_000] - w) <= slack).all(), label
            moved = sum(a.nbytes for a in arrays) + sum(t.nbytes for t in outs.values())
            # Of the same kind of memory (huge pages), so that only the work differs.
            src, dst = (anetorch.Tensor((moved // 2,), "uint8", mem="heap").fill_(k)
                        for k in (1, 0))
            memcpy = Memcpy(src.numpy(), dst.numpy(), threads)

            def repeat(call: Callable[[], Any], inner: int = inner) -> Callable[[], Any]:
                return call if inner == 1 else lambda: [call() for _ in range(inner)]
            runs = {"memcpy": repeat(memcpy), "ours": repeat(request.run)}
            if args.peers:
                runs |= {k: repeat(f) for k, f in peers(chain, arrays, threads).items()}
            times = interleave(runs, args.repeats)
            for name, took in times.items():
                each = summary([t / inner for t in took])
                shown = f"{label} {millions:g}M" if name == "ours" else f"  {name.strip()}"
                facts = {"gbs": moved / each["median"] * 1e-9, "x_memcpy": statistics.median(
                    [c / t for c, t in zip(times["memcpy"], took, strict=True)])}
                if "torch" in name:
                    facts["x_ours"] = statistics.median(
                        [t / c for c, t in zip(times["ours"], took, strict=True)])
                report.add(shown, each, **facts)


if __name__ == "__main__":
    main()
