"""The attention core, causal, against PyTorch's scaled_dot_product_attention.

    python benchmarks/bench_attention.py [--seq 256 1024 4096] [--heads 12] [--dim 64]
        [--dtype float32] [--threads N] [--repeats 9] [--no-peer] [--json OUT]

Ours is a program of plain ops (matmul, mul, add of a constant mask, softmax, matmul) and what
`kernels.backward` makes of it: the rows are the forward program, and the two programs one after
the other. `scratch` is what their plans need besides inputs and outputs; packed keys and values
and the scores of one block of queries, linear in the length, belong to the threads. Results are
compared before anything is timed.
"""

from __future__ import annotations

import os
import statistics

# Peers' idle workers must sleep, else they take the next candidate's cores.
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np  # noqa: E402
from common import Report, arguments, interleave, summary  # noqa: E402

import anetorch  # noqa: E402
from anetorch import _core, kernels, mil  # noqa: E402
from anetorch.mil import ops  # noqa: E402


def weights(q: mil.Value, k: mil.Value, mask: np.ndarray) -> mil.Value:
    scores = ops.mul(x=ops.matmul(x=q, y=k, transpose_y=True), y=q.shape[-1]**-0.5)
    return ops.softmax(x=ops.add(x=scores, y=mask), axis=-1)


def programs(heads: int, seq: int, dim: int, dtype: str) -> dict[str, mil.Program]:
    """Forward and backward of q, k, v [1, heads, seq, dim]."""
    low = {"float16": -65504.0, "float32": -1e30}[dtype]
    mask = np.where(np.tri(seq, dtype=bool), 0.0, low).astype(dtype)
    spec = mil.spec((1, heads, seq, dim), {"float16": "fp16", "float32": "fp32"}[dtype])

    def forward(q, k, v):  # noqa: ANN001, ANN202
        return {"o": ops.matmul(x=weights(q, k, mask), y=v)}

    one = mil.build(forward, dict.fromkeys("qkv", spec))
    return {"forward": one, "backward": kernels.backward(one, wrt=("q", "k", "v"))}


def main() -> None:
    p = arguments(__doc__)
    p.set_defaults(repeats=9)
    p.add_argument("--seq", type=int, nargs="+", default=[256, 1024, 4096])
    p.add_argument("--heads", type=int, default=12)
    p.add_argument("--dim", type=int, default=64)
    p.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    p.add_argument("--no-peer", action="store_true")
    args = p.parse_args()
    if args.threads:
        anetorch.set_num_threads(args.threads)
    report = Report("bench_attention", args.json)
    peak = _core._testing.peak(_core._testing.tables()[-1], 0.05)
    rng = np.random.default_rng(0)
    for seq in args.seq:
        x = {n: rng.standard_normal((1, args.heads, seq, args.dim)).astype(args.dtype)
             for n in ("q", "k", "v", "do")}
        requests, results = {}, {}
        for name, program in programs(args.heads, seq, args.dim, args.dtype).items():
            kernel = anetorch.compile(program)
            requests[name] = kernel.bind([x[v.name] for v in program.inputs])
            requests[name].run()
            results[name] = {n: t.numpy() for n, t in requests[name].outputs.items()}
            assert any(s["kernel"].startswith("attention") for s in kernel.report())
        def both(requests: dict = requests) -> None:
            requests["forward"].run()
            requests["backward"].run()

        runs = {"forward": requests["forward"].run, "forward + gradient": both}
        if not args.no_peer:
            import torch

            torch.set_num_threads(anetorch.num_threads())
            # Its fp16 is slow on most CPUs: the class of 16-bit operands is bfloat16 there.
            kind = torch.float32 if args.dtype == "float32" else torch.bfloat16
            q, k, v, do = (torch.from_numpy(a).to(kind) for a in x.values())
            wanted = [t.clone().requires_grad_() for t in (q, k, v)]
            attend = torch.nn.functional.scaled_dot_product_attention

            def peer_forward(q=q, k=k, v=v):  # noqa: ANN001, ANN202
                with torch.no_grad():
                    return attend(q, k, v, is_causal=True)

            def peer_both(wanted=wanted, do=do):  # noqa: ANN001, ANN202
                for t in wanted:
                    t.grad = None
                attend(*wanted, is_causal=True).backward(do)

            peer_both()
            theirs = {"o": peer_forward(), **{f"d{n}": t.grad for n, t in zip("qkv", wanted, strict=True)}}
            unit = 2.0**-20 if args.dtype == "float32" else 2.0**-6
            for name, t in theirs.items():
                made = results["forward" if name == "o" else "backward"][name]
                got, want = made.astype(np.float64), t.double().numpy()
                assert np.abs(got - want).max() <= unit * np.abs(want).max(), (seq, name)
            runs["PyTorch forward"], runs["PyTorch forward + gradient"] = peer_forward, peer_both
        times = interleave(runs, repeats=args.repeats if seq < 4096 else max(3, args.repeats // 2))
        pairs = args.heads * seq * (seq + 1) / 2
        work = {"forward": 4 * pairs * args.dim, "forward + gradient": 14 * pairs * args.dim}
        for name, took in times.items():
            one_way = name.endswith("forward")
            flops = work["forward" if one_way else "forward + gradient"]
            facts = {"seq": seq, "heads": args.heads, "dim": args.dim, "dtype": args.dtype,
                     "gflops": flops / statistics.median(took) / 1e9}
            facts["of_peak"] = facts["gflops"] / peak
            if name.startswith("PyTorch"):
                facts["peer"] = f"torch {torch.__version__} {kind}"
            else:
                used = ["forward"] if one_way else ["forward", "backward"]
                facts["scratch"] = max(requests[u].memory()["scratch"] for u in used)
                peer = times.get("PyTorch forward" if one_way else "PyTorch forward + gradient")
                if peer:
                    facts["ratio"] = statistics.median(t / o for t, o in zip(peer, took, strict=True))
            report.add(name, summary(took), **facts)


if __name__ == "__main__":
    main()
