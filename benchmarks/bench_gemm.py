"""Products of real models' shapes: fraction of the register peak measured in the same
repetition, and ratio to PyTorch (fp32, and bf16 for the tiers that compare with it).

    python benchmarks/bench_gemm.py [--shapes FILE ...] [--threads N] [--isa NAME]
        [--precision highest|high|medium] [--storage float16|float32] [--columns 256]
        [--mode warm|cold|prepacked] [--repeats 15] [--no-peers] [--json OUT]

Every weight [out, in] gives three products: fwd W x, dX = W' dy, dW += dy x'. Packing is
included except for `prepacked` weights. Peers get fp32 (or bf16) copies of the operands.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path

# Peers' idle workers must sleep, else they take the next candidate's cores.
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np  # noqa: E402
from common import Report, arguments, interleave, summary  # noqa: E402

from anetorch import _core  # noqa: E402

T = _core._testing
TIERS = {"highest": 0, "high": 1, "medium": 2}
COLD_BYTES = 160 << 20


def read_shapes(files: list[str]) -> list[tuple[str, int, int]]:
    """(model, out, in) of every line."""
    found = []
    for f in files:
        for line in Path(f).read_text().splitlines():
            line = line.split("#")[0].split()
            if line:
                found.append((Path(f).stem, int(line[0]), int(line[1])))
    return found


def cases(out: int, inner: int, columns: int, storage: str,
          rng: np.random.Generator) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray, bool]]:
    """(kind, A, B, C, accumulate): A is the weight, or the gradient for dW."""
    w = (rng.standard_normal((out, inner), np.float32) * 0.02).astype(storage)
    x = rng.standard_normal((inner, columns), np.float32).astype(storage)
    dy = rng.standard_normal((out, columns), np.float32).astype(storage)
    return [("fwd", w, x, np.zeros((out, columns), storage), False),
            ("dX", w.T, dy, np.zeros((inner, columns), storage), False),
            ("dW", dy, x.T, np.zeros((out, inner), np.float32), True)]


def copies(a: np.ndarray, bytes_wanted: int) -> list[np.ndarray]:
    n = max(1, min(400, bytes_wanted // max(a.nbytes, 1)))
    return [a.copy(order="K") for _ in range(n)]


def main() -> None:
    here = Path(__file__).parent / "shapes"
    p = arguments(__doc__)
    p.add_argument("--shapes", nargs="+", default=[str(here / "stories110m.txt"),
                                                   str(here / "qwen3-0.6b.txt")])
    p.add_argument("--isa", default=T.tables()[-1])
    p.add_argument("--precision", choices=TIERS, default="highest")
    p.add_argument("--storage", choices=["float16", "float32"], default="float32")
    p.add_argument("--columns", type=int, default=256)
    p.add_argument("--mode", choices=["warm", "cold", "prepacked"], default="warm")
    p.add_argument("--no-peers", action="store_true")
    args = p.parse_args()
    if args.threads:
        _core.set_num_threads(args.threads)
    torch = None
    if not args.no_peers:
        import torch

        torch.set_num_threads(_core.num_threads())
        peer_type = torch.float32 if args.precision == "highest" else torch.bfloat16
    report = Report("bench_gemm", args.json)
    facts = {"isa": args.isa, "precision": args.precision, "storage": args.storage,
             "mode": args.mode}
    rng = np.random.default_rng(0)
    tier = TIERS[args.precision]
    fractions, ratios = [], []
    for model, out, inner in read_shapes(args.shapes):
        for kind, a, b, c, add in cases(out, inner, args.columns, args.storage, rng):
            m, k = a.shape
            n = b.shape[1]
            flops = 2.0 * m * n * k
            # Correct before fast: a sample of rows against float64.
            rows = rng.integers(0, m, 8)
            T.gemm(args.isa, a, b, c, precision=tier)
            ref = a[rows].astype(np.float64) @ b.astype(np.float64)
            off = np.linalg.norm(c[rows] - ref) / np.linalg.norm(ref)
            assert off < (1e-3 if tier == 0 else 5e-3), f"{kind} {m}x{n}x{k} is wrong: {off}"
            pool = copies(c if add else a, COLD_BYTES) if args.mode == "cold" else [
                c if add else a]
            turn = [0]
            packed = T.pack(args.isa, a, b, c, 0, tier) if (
                args.mode == "prepacked" and not add) else None

            def ours() -> None:
                turn[0] = (turn[0] + 1) % len(pool)
                if add:
                    d = pool[turn[0]]
                    T.gemm(args.isa, a, b, d, residual=d, precision=tier)
                elif packed is not None:
                    T.gemm(args.isa, a, b, c, precision=tier, pa=packed)
                else:
                    T.gemm(args.isa, pool[turn[0]], b, c, precision=tier)

            peaks: list[float] = []
            candidates = {"peak": lambda: peaks.append(T.peak(args.isa, 1.5e-3)), "ours": ours}
            if torch is not None:
                ta, tb = (torch.from_numpy(np.ascontiguousarray(v.T if v.strides[0] == v.itemsize
                                                                else v)).to(peer_type)
                          for v in (a, b))
                ta = ta.T if a.strides[0] == a.itemsize else ta
                tb = tb.T if b.strides[0] == b.itemsize else tb
                tpool = [ta.clone() for _ in pool] if args.mode == "cold" and not add else [ta]
                tc = [torch.zeros(m, n, dtype=peer_type) for _ in
                      (pool if args.mode == "cold" and add else [0])]

                def peer() -> None:
                    i = turn[0]
                    if add:
                        tc[i % len(tc)].addmm_(ta, tb)
                    else:
                        torch.mm(tpool[i % len(tpool)], tb, out=tc[0])

                candidates["torch"] = peer
            times = interleave(candidates, args.repeats, warmup=2)
            ours_t = times["ours"]
            frac = statistics.median([flops / t * 1e-9 / q for t, q in
                                  zip(ours_t, peaks[2:], strict=True)])
            ratio = (statistics.median([t / o for t, o in zip(times["torch"], ours_t, strict=True)])
                     if torch is not None else None)
            fractions.append(frac)
            extra = {"x_torch": ratio} if ratio else {}
            if ratio:
                ratios.append(ratio)
            took = summary(ours_t)
            report.add(f"{model} {kind} {m}x{n}x{k}", took, **facts,
                       gflops=flops / took["median"] * 1e-9, of_peak=frac, **extra)
    print(f"# of peak: median {statistics.median(fractions):.3f}, least {min(fractions):.3f}" +
          (f"; x torch: geometric mean {np.exp(np.mean(np.log(ratios))):.2f}, least "
           f"{min(ratios):.2f}" if ratios else ""))


if __name__ == "__main__":
    main()
