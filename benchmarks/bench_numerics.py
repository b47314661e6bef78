"""What numerics="ane" costs: the ten packed kernels of a layer, beside the same with "ieee".

    python benchmarks/bench_numerics.py                     # stories110m, 256 columns
    python benchmarks/bench_numerics.py --dtype fp32 --json results.jsonl

All run in turn on the same inputs. m1 has every cliff of the table, so that slices of the last
axis are no longer views; m5 leaves that one out.
"""

from __future__ import annotations

import numpy as np
from common import Report, arguments, interleave, summary

import anetorch
from anetorch.kernels import packed
from anetorch.nn.config import Config

KERNELS = ["sdpa_fwd", "wo_fwd", "ffn_fused", "ffn_bwd_w2t", "ffn_bwd_w13t", "wot_bwd", "q_bwd",
           "kv_bwd", "sdpa_bwd1", "sdpa_bwd2"]

VARIANTS = {"ieee": {}, "ane m5": {"numerics": "ane", "target": "m5"},
            "ane m1": {"numerics": "ane", "target": "m1"}}


def main() -> None:
    p = arguments(__doc__)
    p.add_argument("--model", default="stories110m")
    p.add_argument("--seq", type=int, default=256)
    p.add_argument("--dtype", default="fp16", choices=["fp16", "fp32"])
    args = p.parse_args()
    if args.threads:
        anetorch.set_num_threads(args.threads)
    config, rng = Config.preset(args.model), np.random.default_rng(0)
    report = Report("bench_numerics", args.json)
    totals: dict[str, float] = {}
    for name in KERNELS:
        program = getattr(packed, name)(config, args.seq, dtype=args.dtype)
        requests = {}
        x = None
        for label, options in VARIANTS.items():
            k = anetorch.compile(program, **options)
            if x is None:
                x = (rng.standard_normal(k.inputs[0].shape) * 0.05).astype(k.inputs[0].dtype)
            r = requests[label] = k.bind([anetorch.Tensor.from_numpy(x)])
            r.run()
            assert all(np.isfinite(np.asarray(y)).all() for y in r.outputs.values()), (name, label)
        times = interleave({n: r.run for n, r in requests.items()}, args.repeats)
        for numerics, t in times.items():
            s = summary(t)
            totals[numerics] = totals.get(numerics, 0) + s["median"]
            report.add(name, s, numerics=numerics, dtype=args.dtype, seq=args.seq)
    for numerics, seconds in totals.items():
        print(f"{numerics}: {seconds * 1e3:.2f} ms for the ten, "
              f"{seconds / totals['ieee']:.2f} of ieee")


if __name__ == "__main__":
    main()
