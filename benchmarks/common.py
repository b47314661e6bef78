"""What every benchmark shares: timing, the record of the machine, JSON lines.

A result is one JSON object a line: what was measured, the times in seconds (median, minimum,
spread), and the machine: CPU, kernel table, threads, versions, commit. compare.py reads two
such files.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import anetorch
from anetorch import _core
from anetorch.info import cpu_name

ROOT = Path(__file__).resolve().parents[1]


def machine() -> dict[str, Any]:
    """The record that makes a number worth keeping."""
    def output(*command: str) -> str:
        try:
            return subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                                  check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    return {
        "cpu": cpu_name(), "system": platform.platform(), "threads": anetorch.num_threads(),
        "isa": next((name for name, state in _core.isa_tables() if state == "chosen"), ""),
        "anetorch": anetorch.__version__, "commit": output("git", "rev-parse", "--short", "HEAD"),
        "dirty": bool(output("git", "status", "--porcelain")), "python": platform.python_version(),
        "numpy": np.__version__,
    }


def measure(run: Callable[[], object], warmup: int = 2, repeats: int = 7,
            prepare: Callable[[], object] = lambda: None) -> dict[str, float]:
    """Seconds that ``run`` takes: median, minimum, and spread ((75th - 25th percentile) over
    the median) of ``repeats`` after ``warmup``; ``prepare`` runs before each, untimed."""
    times = []
    for i in range(warmup + repeats):
        prepare()
        start = time.perf_counter()
        run()
        took = time.perf_counter() - start
        if i >= warmup:
            times.append(took)
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
    median = statistics.median(times)
    return {"median": median, "minimum": min(times), "spread": (high - low) / median,
            "repeats": repeats}


def interleave(candidates: dict[str, Callable[[], object]], repeats: int, warmup: int = 2,
               prepare: dict[str, Callable[[], object]] | None = None,
               pause: float = 0.0) -> dict[str, list[float]]:
    """Seconds of every call: ``repeats`` rounds of all candidates in turn, so that a change of
    clock or a busy neighbour meets all of them alike; compare within a round. ``prepare``
    runs before a candidate, untimed. Peers' idle workers must sleep, else they take the next
    candidate's cores: run with KMP_BLOCKTIME=0 and OPENBLAS_THREAD_TIMEOUT=4, and ``pause``
    seconds give those of others time to."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for i in range(-warmup, repeats):
        for name, call in candidates.items():
            if prepare and name in prepare:
                prepare[name]()
            if pause:
                time.sleep(pause)
            start = time.perf_counter()
            call()
            if i >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def summary(times: list[float]) -> dict[str, float]:
    """What ``measure`` gives, of times taken elsewhere."""
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
    median = statistics.median(times)
    return {"median": median, "minimum": min(times), "spread": (high - low) / median,
            "repeats": len(times)}


class Report:
    """Prints results as they come, and writes them as JSON lines where ``--json`` says.

    >>> report = Report("bench_step", None)                     # doctest: +SKIP
    >>> report.add("step", {"median": 0.5, "minimum": 0.5, "spread": 0.0}, model="tiny")
    """

    def __init__(self, bench: str, path: str | None) -> None:
        self._bench, self._machine = bench, machine()
        self._file = open(path, "a", encoding="utf-8") if path else None    # noqa: SIM115
        m = self._machine
        print(f"{bench}: {m['cpu']}, {m['isa']}, {m['threads']} threads, {m['anetorch']} "
              f"{m['commit']}{'+' if m['dirty'] else ''}", file=sys.stderr)

    def add(self, name: str, times: dict[str, float], **facts: Any) -> None:
        """One result; ``facts`` are what it was measured on, and derived figures."""
        line = {"bench": self._bench, "name": name, **facts, "seconds": times,
                "machine": self._machine}
        shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                          for k, v in facts.items())
        print(f"{name:32} {times['median'] * 1e3:10.2f} ms  (min {times['minimum'] * 1e3:.2f}, "
              f"spread {times['spread']:.1%})  {shown}", flush=True)
        if self._file:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


#: Figures of a result, which differ from run to run; so do ratios (x_...) and fractions (of_...).
FIGURES = {"seconds", "machine", "gflops", "gb_s", "gbytes", "tokens_per_s", "ratio"}


def measured(line: dict[str, Any]) -> str:
    """What a line of results is about, its figures left out, as a text."""
    return json.dumps({k: v for k, v in line.items() if k not in FIGURES
                       and not k.startswith(("x_", "of_"))}, sort_keys=True)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with what all benchmarks understand."""
    p = argparse.ArgumentParser(description=description,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", metavar="FILE", help="append results as JSON lines")
    p.add_argument("--repeats", type=int, default=7, metavar="N")
    p.add_argument("--threads", type=int, metavar="N", help="default: the CPUs of this process")
    return p
