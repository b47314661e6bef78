"""Conversion between fp32 and the 16-bit floats: bytes read and written per second against
memcpy of as many bytes on the same threads and NumPy's astype, in every kernel table.

    python benchmarks/bench_convert.py [--threads N] [--millions 0.004 0.25 16 64] [--json OUT]
"""

from __future__ import annotations

import statistics

import numpy as np
from common import Report, arguments, interleave, summary

from anetorch import _core

T = _core._testing


def main() -> None:
    p = arguments(__doc__)
    p.add_argument("--millions", nargs="+", type=float, default=[0.004, 0.25, 16, 64],
                   help="elements; the largest should not fit any cache")
    args = p.parse_args()
    if args.threads:
        _core.set_num_threads(args.threads)
    report = Report("bench_convert", args.json)
    tables = [t for t in T.tables() if t != "scalar" and not t.startswith(("avx512b", "avx512f"))]
    for millions in args.millions:
        n = int(millions * 1e6)
        wide = np.random.default_rng(0).standard_normal(n, np.float32)
        half = wide.astype(np.float16)
        other, copy = np.empty_like(half), np.empty(n * 3 // 2, np.float32)
        for down in (True, False):
            # A copy that reads and writes as many bytes: 3n of 6n.
            words = copy[: n * 3 // 4], copy[n * 3 // 4 : n * 3 // 4 * 2]
            src, dst = (wide, other) if down else (half, np.empty_like(wide))
            inner = max(1, int(2e6 / n))

            def repeat(call):  # noqa: ANN001, ANN202
                return lambda: [call() for _ in range(inner)]

            candidates = {"copy": repeat(lambda w=words: T.convert("scalar", w[1], w[0])),
                          "numpy": repeat(lambda s=src, d=dst: np.copyto(d, s, casting="same_kind"))}
            for t in tables:
                candidates[t] = repeat(lambda t=t, s=src, d=dst: T.convert(t, d, s))
            times = interleave(candidates, args.repeats)
            for name in tables:
                took = summary([t / inner for t in times[name]])
                report.add(f"{'f32->f16' if down else 'f16->f32'} {name} {millions:g}M", took,
                           gbs=6 * n / took["median"] * 1e-9,
                           x_copy=statistics.median(
                               [c / t for c, t in zip(times["copy"], times[name], strict=True)]),
                           x_numpy=statistics.median(
                               [c / t for c, t in zip(times["numpy"], times[name], strict=True)]))


if __name__ == "__main__":
    main()
