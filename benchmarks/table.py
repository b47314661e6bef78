"""Results as a table that a page can hold: one row a measurement, one heading a machine.

    python benchmarks/bench_gemm.py --json results.jsonl
    python benchmarks/table.py results.jsonl > table.md

Shown are the median, its spread, and the facts that compare: ratios to peers (``x_...``),
fractions (``of_...``) and rates. Of several results of one name and the same facts the last
counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from common import measured


def shown(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def rows(lines: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Markdown rows by machine."""
    last = {(json.dumps(line["machine"].get("cpu")), measured(line)): line for line in lines}
    tables: dict[str, list[str]] = {}
    for line in last.values():
        m = line["machine"]
        head = f"{m['cpu']}, kernel table {m.get('isa', '?')}, {m.get('threads', '?')} threads"
        facts = json.loads(measured(line))
        said = [f"{k} {v}" for k, v in facts.items() if k not in ("bench", "name")]
        found = [f"{k} {v:.3g}" for k, v in line.items()
                 if k not in facts and k not in ("seconds", "machine")]
        s = line["seconds"]
        spread = f"{s['spread']:.0%}" if "spread" in s else ""
        tables.setdefault(head, []).append(
            f"| {line['name']} | {', '.join(said)} | {shown(s['median'])} | {spread} | "
            f"{', '.join(found)} |")
    return tables


def main(argv: list[str]) -> int:
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("files", nargs="+", metavar="FILE", help="JSON lines of the benchmarks")
    lines = [json.loads(text) for f in p.parse_args(argv).files
             for text in Path(f).read_text().splitlines() if text.strip()]
    if not lines:
        print("no results in these files", file=sys.stderr)
        return 2
    for head, table in rows(lines).items():
        print(f"### {head}\n\n| what | on | median | spread | beside |\n| --- | --- | --- | --- | --- |")
        print("\n".join(table) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
