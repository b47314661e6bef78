"""Parsing, checking, planning, printing and copying MIL text: time per statement as texts grow.

    python benchmarks/bench_parse.py [--json FILE] [--repeats N]

A statement is about 110 bytes, as compiled programs have them: constants, reshapes and sums that
refer far back. The parse includes type inference and the structural check; plan is
anetorch.compile of a parsed program and bind, which plans for the shapes; "parse, verify, plan" is
all three from the text: 20 ms for 3,000 statements is the limit. The last lines give the growth of time per statement from 999 statements to
the largest text: 1 is linear.
"""

from __future__ import annotations

import common
import numpy as np

import anetorch
from anetorch.mil import Program

SIZES = (99, 999, 3000, 30_000, 99_999)


def text(statements: int) -> str:
    """A program of about so many statements (three per step)."""
    shape = "tensor<fp16, [1, 8, 4, 8]>"
    lines = []
    for i in range(statements // 3):
        lines += [
            f'            tensor<int32, [4]> shape_{i} = const()[name = string("shape_{i}"), val = tensor<int32, [4]>([1, 8, 4, 8])];',
            f'            {shape} r_{i} = reshape(shape = shape_{i}, x = v_{i})[name = string("r_{i}")];',
            f'            {shape} v_{i + 1} = add(x = r_{i}, y = v_{i // 2})[name = string("v_{i + 1}")];',
        ]
    body = "\n".join(lines)
    return f"program(1.3)\n{{\n    func main<ios18>({shape} v_0) {{\n{body}\n        }} -> (v_{statements // 3});\n}}\n"


X = np.ones((1, 8, 4, 8), np.float16)


def plan(program: Program) -> anetorch.Request:
    return anetorch.compile(program).bind({"v_0": X})


def everything(source: str) -> None:
    program = Program.parse(source)
    program.verify()
    plan(program)


def main() -> None:
    args = common.arguments(__doc__).parse_args()
    report = common.Report("bench_parse", args.json)
    per_statement = {}
    for n in SIZES:
        source = text(n)
        program = Program.parse(source)
        assert Program.parse(program.text()) == program
        assert len(program.function.body.info["ops"]) == n
        repeats = max(3, args.repeats * 10 if n < 10_000 else args.repeats)
        for name, call in {"parse": lambda s=source: Program.parse(s), "verify": program.verify,
                           "plan": lambda p=program: plan(p),
                           "parse, verify, plan": lambda s=source: everything(s),
                           "print": program.text, "clone": program.clone}.items():
            times = common.measure(call, repeats=repeats)
            facts = {"at_most_ms": 20} if n == 3000 and "," in name else {}
            report.add(name, times, statements=n, ns_per_statement=times["minimum"] / n * 1e9, **facts)
            per_statement.setdefault(name, []).append(times["minimum"] / n)
    for name, cost in per_statement.items():
        print(f"{name}: time per statement grows by {cost[-1] / cost[1]:.2f} from {SIZES[1]} to {SIZES[-1]} statements")


if __name__ == "__main__":
    main()
