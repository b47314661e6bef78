"""Compiling the ten packed kernels for the sizes of Qwen3-0.6B: from programs to kernels, and to
the plan for their shapes.

    python benchmarks/bench_compile.py [--json FILE] [--repeats N] [--model PRESET] [--seq N]

`build` makes the programs in Python, `parse` their text, `compile` makes kernels of them (every
kernel at once is one line), `plan` binds each for the first time: passes, fusion, layout. The
sum of compile and plan is what has to happen before a first run; the limit is 20 ms for all ten,
also from their text (3.7 MB, nearly all of it the tables of the rotary embedding and the mask).
"""

from __future__ import annotations

import common

import anetorch
from anetorch import Tensor
from anetorch.kernels import packed
from anetorch.mil import Program
from anetorch.nn.config import Config

LIMIT = 20e-3


def main() -> None:
    p = common.arguments(__doc__)
    p.add_argument("--model", default="qwen3-0.6b")
    p.add_argument("--seq", type=int, default=256)
    args = p.parse_args()
    config = Config.preset(args.model)
    report = common.Report("bench_compile", args.json)
    facts = {"model": args.model, "seq": args.seq, "kernels": len(packed.ALL)}
    programs = [make(config, args.seq) for make in packed.ALL.values()]
    texts = [program.text() for program in programs]
    # One surface each, made before anything is timed: their bytes are the engine's business.
    inputs = [Tensor(tuple(f.inputs[0].shape), "float16") for f in (q.functions["main"] for q in programs)]
    outputs = [Tensor(tuple(f.outputs[0].shape), "float16") for f in (q.functions["main"] for q in programs)]
    kernels: list[anetorch.Kernel] = []

    def compile_all() -> None:
        kernels[:] = [anetorch.compile(program) for program in programs]

    def plan_all() -> None:
        for k, x, y in zip(kernels, inputs, outputs, strict=True):
            k.bind(x, y)

    def both() -> None:
        compile_all()
        plan_all()

    def from_text() -> None:
        kernels[:] = [anetorch.compile(text) for text in texts]
        plan_all()

    times = {
        "build": common.measure(lambda: [make(config, args.seq) for make in packed.ALL.values()],
                                repeats=args.repeats),
        "parse": common.measure(lambda: [Program.parse(t) for t in texts], repeats=args.repeats),
        "compile": common.measure(compile_all, repeats=args.repeats),
        "plan": common.measure(plan_all, repeats=args.repeats, prepare=compile_all),
        "compile + plan": common.measure(both, repeats=args.repeats),
        "parse + compile + plan": common.measure(from_text, repeats=args.repeats),
    }
    for name, took in times.items():
        more = {"at_most_ms": LIMIT * 1e3} if name.endswith("compile + plan") else {}
        report.add(name, took, **facts, **more)


if __name__ == "__main__":
    main()
