"""What a call costs: a tiny kernel from Python, beside NumPy's cheapest call.

    python benchmarks/bench_call.py [--json FILE] [--repeats N]

Sixteen floats, so that next to nothing is computed: a bound request, a request of four in a
Pipeline, k(x, out=y) with Tensors, with arrays and with other arrays each time, k(x), and np.add
with out=. All of them in turn, in rounds of 10,000 calls; medians over the rounds. The loop that
calls costs some 0.02 us, which is in every figure.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import common
import numpy as np

import anetorch
from anetorch import Pipeline, Tensor

CALLS = 10_000
TEXT = """program(1.3)
{ func main<ios18>(tensor<fp32, [16]> x) { tensor<fp32, [16]> y = relu(x = x); } -> (y); }"""
LIMITS = {"request.run()": 0.5e-6, "k(x, out=y), Tensors": 1.5e-6, "k(x, out=y), arrays": 1.5e-6}


def many(call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for _ in itertools.repeat(None, CALLS):
            call()
    return run


def main() -> None:
    args = common.arguments(__doc__).parse_args()
    k = anetorch.compile(TEXT)
    x, y, z = Tensor((16,)), Tensor((16,)), Tensor((16,))
    a, b = np.linspace(-1, 1, 16, dtype=np.float32), np.zeros(16, np.float32)
    x.copy_from(a)
    request = k.bind(x, y)
    four = Pipeline([k.bind(x, z)] * 4)
    again, rows = anetorch.compile(TEXT), anetorch.compile(TEXT)    # a kernel for each form of call
    pairs = itertools.cycle([(a.copy(), b.copy()) for _ in range(100)])

    def row(x: np.ndarray, y: np.ndarray) -> None:
        rows(x, out=y)

    calls: dict[str, Callable[[], object]] = {
        "request.run()": request.run,
        "Pipeline of four, run()": four.run,
        "k(x, out=y), Tensors": lambda: k(x, out=y),
        "k(x, out=y), arrays": lambda: again(a, out=b),
        "k(x, out=y), other arrays each time": lambda: row(*next(pairs)),
        "k(x), Tensors": lambda: k(x),
        "np.add(a, a, out=b)": lambda: np.add(a, a, out=b),
    }
    for name in ("request.run()", "k(x, out=y), Tensors", "k(x, out=y), arrays"):
        y.copy_from(np.zeros(16, np.float32))
        b[:] = 0
        calls[name]()
        got = b if "arrays" in name else y.numpy()
        assert (got == np.maximum(a, 0)).all(), name
    times = common.interleave({n: many(c) for n, c in calls.items()}, max(args.repeats, 15))
    report = common.Report("bench_call", args.json)
    for name, took in times.items():
        each = common.summary([t / CALLS for t in took])
        limit = LIMITS.get(name)
        facts = {"us": each["median"] * 1e6}
        if limit:
            facts["at_most_us"] = limit * 1e6
        report.add(name, each, **facts)


if __name__ == "__main__":
    main()
