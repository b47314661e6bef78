"""Products of real models' shapes: fraction of the register peak measured in the same
repetition, and ratio to the fastest peer of the tier's class (fp32 for `highest`, bf16 else).

    python benchmarks/bench_gemm.py [--shapes FILE ...] [--threads N] [--isa NAME]
        [--precision highest|high|medium] [--storage float16|float32] [--columns 256]
        [--mode warm|cold|prepacked] [--repeats 15] [--peers torch jax numpy] [--json OUT]

Every weight [out, in] gives three products: fwd W x, dX = W' dy, dW += dy x'. Packing is
included except for `prepacked` weights. Peers get fp32 (or bf16) copies of the operands.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from pathlib import Path

# Peers' idle workers must sleep, else they take the next candidate's cores.
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

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


Peer = Callable[[int], object]


def torch_peer(a: np.ndarray, b: np.ndarray, c: np.ndarray | None, fp32: bool,
               n: int) -> Peer | None:
    """Product i uses copy i % n of what `cold` rotates: the weight, or the gradient."""
    import torch

    kind = torch.float32 if fp32 else torch.bfloat16

    def copy(v: np.ndarray):  # noqa: ANN202
        flip = v.strides[0] == v.itemsize
        t = torch.from_numpy(np.ascontiguousarray(v.T if flip else v)).to(kind)
        return t.T if flip else t

    ta, tb = copy(a), copy(b)
    if c is not None:
        tc = [torch.zeros(c.shape, dtype=kind) for _ in range(n)]
        return lambda i: tc[i].addmm_(ta, tb)
    pool = [ta.clone() for _ in range(n)]
    out = torch.zeros(len(a), b.shape[1], dtype=kind)
    return lambda i: torch.mm(pool[i], tb, out=out)


def jax_peer(a: np.ndarray, b: np.ndarray, c: np.ndarray | None, fp32: bool,
             n: int) -> Peer | None:
    import jax
    import jax.numpy as jnp

    kind = jnp.float32 if fp32 else jnp.bfloat16
    flips = [v.strides[0] == v.itemsize for v in (a, b)]
    ja, jb = (jnp.asarray(np.ascontiguousarray(v.T if f else v), kind)
              for v, f in zip((a, b), flips, strict=True))

    def product(x, y):  # noqa: ANN001, ANN202
        return (x.T if flips[0] else x) @ (y.T if flips[1] else y)

    if c is None:
        pool = [ja + 0 for _ in range(n)]
        call = jax.jit(product)
        return lambda i: call(pool[i], jb).block_until_ready()
    sums = [jnp.zeros(c.shape, kind) for _ in range(n)]
    call = jax.jit(lambda x, y, z: z + product(x, y), donate_argnums=2)

    def add(i: int) -> None:
        sums[i] = call(ja, jb, sums[i])
        sums[i].block_until_ready()

    return add


def numpy_peer(a: np.ndarray, b: np.ndarray, c: np.ndarray | None, fp32: bool,
               n: int) -> Peer | None:
    """NumPy's BLAS: no bf16, no accumulation, and its own threads."""
    if c is not None or not fp32:
        return None
    pool = [a.astype(np.float32, order="K") for _ in range(n)]
    right, out = b.astype(np.float32, order="K"), np.empty((len(a), b.shape[1]), np.float32)
    return lambda i: np.matmul(pool[i], right, out=out)


PEERS = {"torch": torch_peer, "jax": jax_peer, "numpy": numpy_peer}


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
    p.add_argument("--peers", nargs="*", choices=list(PEERS), default=["torch", "jax"])
    args = p.parse_args()
    if args.threads:
        _core.set_num_threads(args.threads)
    if "torch" in args.peers:
        import torch

        torch.set_num_threads(_core.num_threads())
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
            candidates = {"peak": lambda: peaks.append(T.peak(args.isa, 4e-3)), "ours": ours}
            for peer in args.peers:
                call = PEERS[peer](a, b, c if add else None, args.precision == "highest",
                                   len(pool))
                if call:
                    candidates[peer] = lambda call=call: call(turn[0])
            times = interleave(candidates, args.repeats, warmup=2, pause=3e-3)
            ours_t = times["ours"]
            frac = statistics.median([flops / t * 1e-9 / q for t, q in
                                  zip(ours_t, peaks[2:], strict=True)])
            fractions.append(frac)
            extra = {f"x_{name}": statistics.median([t / o for t, o in
                                                     zip(times[name], ours_t, strict=True)])
                     for name in args.peers if name in times}
            if extra:
                ratios.append(min(extra.values()))
            took = summary(ours_t)
            report.add(f"{model} {kind} {m}x{n}x{k}", took, **facts,
                       gflops=flops / took["median"] * 1e-9, of_peak=frac, **extra)
    print(f"# of peak: median {statistics.median(fractions):.3f}, least {min(fractions):.3f}" +
          (f"; x fastest peer: geometric mean {np.exp(np.mean(np.log(ratios))):.2f}, least "
           f"{min(ratios):.2f}" if ratios else ""))


if __name__ == "__main__":
    main()
