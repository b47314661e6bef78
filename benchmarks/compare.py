"""Compares two files of benchmark results: python benchmarks/compare.py OLD NEW [--worse 0.15]

Results of the same benchmark, name and facts are put beside each other; the exit code is 1 when
one is slower by more than --worse. Files of different machines are compared with a warning.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from common import measured

def read(path: str) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """(last result of each thing measured, machines)."""
    results, machines = {}, set()
    with open(path, encoding="utf-8") as f:
        for line in map(json.loads, filter(str.strip, f)):
            results[measured(line)] = line
            machines.add(f"{line['machine']['cpu']}, {line['machine']['threads']} threads")
    return results, machines


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("old")
    p.add_argument("new")
    p.add_argument("--worse", type=float, default=0.15, metavar="X",
                   help="slower by more than this fails (default 0.15)")
    args = p.parse_args(argv)
    (old, old_machines), (new, new_machines) = read(args.old), read(args.new)
    if old_machines != new_machines:
        print(f"different machines: {sorted(old_machines)} and {sorted(new_machines)}",
              file=sys.stderr)
    both = [k for k in old if k in new]
    if not both:
        print(f"{args.old} and {args.new} have no result in common", file=sys.stderr)
        return 2
    slower = 0
    for k in both:
        before, after = old[k]["seconds"]["median"], new[k]["seconds"]["median"]
        facts = " ".join(str(v) for n, v in json.loads(k).items() if n not in ("bench", "name"))
        worse = after > before * (1 + args.worse)
        slower += worse
        print(f"{new[k]['name']:32} {before * 1e3:10.2f} -> {after * 1e3:10.2f} ms  "
              f"{before / after:5.2f}x  {'SLOWER  ' if worse else ''}{facts}")
    print(f"{len(both)} compared, {slower} slower by more than {args.worse:.0%}")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
