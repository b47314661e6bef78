"""``anetorch selftest``: what a device of this machine does with every operation, the known cliffs
of the engine, the ten training kernels and 100 training steps, as a table and as JSON.

A recording made on hardware says what no machine without an engine can find out; `replay` holds it
against what this version computes.
"""

from __future__ import annotations

import json
import math
import os
import platform
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

import anetorch
from anetorch import _core
from anetorch.env import InputError
from anetorch.kernels import packed
from anetorch.selftest.cases import CASES, bounds
from anetorch.selftest.cliffs import CLIFFS, NOT_TRIED
from anetorch.selftest.worker import ANSWERS, MARK, TIMINGS, digest, unpack
from anetorch.tools import write_whole

__all__ = ["FORMAT", "SECONDS", "exit_code", "lines", "load", "record", "replay", "save"]

FORMAT = 1
SECONDS = 280.0                         # for everything
PATIENCE = 60.0                         # for one answer
COMPILES = 60                           # answers of one process on the engine, which stops at about 119

Say = Callable[[str], None]


# ---------------------------------------------------------------- asking

class _Worker:
    """The other process. `ask` gives its answer, or what became of it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.asked = 0

    def ask(self, section: str, name: str, device: str, seconds: float,
            env: dict[str, str] | None = None) -> dict[str, Any]:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "anetorch.selftest.worker"], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | self._path() | (env or {}))
            self.asked, self.rest = 0, b""
        self.asked += 1
        request = json.dumps({"section": section, "name": name, "device": device}) + "\n"
        try:
            self.process.stdin.write(request.encode())
            self.process.stdin.flush()
            line = self._line(time.monotonic() + seconds)
        except BrokenPipeError:
            line = b""
        if line:
            return json.loads(line[len(MARK):])
        hung = self.process.poll() is None and line is None
        code = self.stop()
        return {"name": name, "outcome": "hung" if hung else "crashed",
                "error": f"no answer in {seconds:.0f} s" if hung else _ending(code)}

    def _line(self, until: float) -> bytes | None:
        """The next answer; b"" when the process has ended, None when time is up."""
        fd = self.process.stdout.fileno()
        while True:
            while b"\n" in self.rest:
                line, _, self.rest = self.rest.partition(b"\n")
                if line.startswith(MARK.encode()):
                    return line
            ready, _, _ = select.select([fd], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            data = os.read(fd, 1 << 16)
            if not data:
                return b""
            self.rest += data

    @staticmethod
    def _path() -> dict[str, str]:
        """The other process imports this same package."""
        mine = str(Path(anetorch.__file__).resolve().parents[1])
        old = os.environ.get("PYTHONPATH")
        return {"PYTHONPATH": mine + (os.pathsep + old if old else "")}

    def stop(self) -> int:
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.stdin.close()
        try:
            code = process.wait(0.0 if process.poll() is None and self.asked == 0 else 5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        process.stdout.close()
        return code


def _ending(code: int) -> str:
    return f"the process ended with signal {-code}" if code < 0 else f"the process ended with exit code {code}"


MAC_FACTS = ("machdep.cpu.brand_string", "hw.model", "kern.osproductversion", "kern.osversion", "hw.memsize",
             "hw.pagesize", "hw.optional.arm64", "sysctl.proc_translated", "kern.hv_vmm_present")


def mac_facts(tool: str = "/usr/sbin/sysctl") -> dict[str, str]:
    """Chip, model, system, memory, Rosetta and VM, as a Mac's sysctl tells them; absent keys are
    left out.

    >>> mac_facts("/nowhere")
    {}
    """
    facts = {}
    for key in MAC_FACTS:
        try:
            done = subprocess.run([tool, "-n", key], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return facts
        if done.returncode == 0:
            facts[key] = done.stdout.strip()
    return facts


def hardware() -> dict[str, Any]:
    """What can be known about this machine without asking anybody who it belongs to.

    >>> sorted(hardware())
    ['cpu', 'devices', 'isa', 'mac', 'machine', 'numpy', 'python', 'system', 'threads']
    """
    from anetorch.info import cpu_name

    return {"machine": platform.machine(), "mac": mac_facts() if sys.platform == "darwin" else {}, "system": platform.platform(), "cpu": cpu_name(),
            "threads": _core.num_threads(), "python": platform.python_version(), "numpy": np.__version__,
            "isa": {name: state for name, state in _core.isa_tables()},
            "devices": {name: {"available": ok, "detail": detail} for name, ok, detail in _core.devices()}}


def _plan(sections: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    names = {"ops": list(CASES), "cliffs": list(CLIFFS), "kernels": list(packed.ALL), "training": [""],
             "timings": list(TIMINGS), "budget": [""]}
    for section in sections:
        for name in names[section]:
            yield section, name


def record(device: str | None = None, say: Say = print, seconds: float = SECONDS,
           sections: tuple[str, ...] = ("ops", "kernels", "training", "timings", "cliffs", "budget"),
           ) -> dict[str, Any]:
    """Tries everything on a device (None: the engine where there is one, else the CPU) and returns
    what a JSON file holds. Takes at most about `seconds`; what there was no time for says so.

    >>> made = record("cpu", say=lambda line: None, sections=("timings",))
    >>> [t["outcome"] for t in made["timings"]]
    ['ok', 'ok']
    """
    there = {d.name: d for d in anetorch.devices()}
    if device is None:
        device = "ane" if there["ane"].available else "cpu"
    if device not in there or not there[device].available:
        why = there[device].detail if device in there else f"there is no such device: {', '.join(there)}"
        raise InputError(f"[selftest] device {device!r}: {why}")
    began = time.monotonic()
    made: dict[str, Any] = {
        "format": FORMAT, "anetorch": anetorch.__version__, "device": device, "detail": there[device].detail,
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"), "hardware": hardware(),
        "not_tried": dict(NOT_TRIED), **{s: [] for s in ANSWERS}}
    if device == "cpu" and not there["ane"].available:
        say(f"the engine is absent ({there['ane'].detail}): this is the CPU device")
    say(f"device {device}: {there[device].detail}")
    plan, worker, shown = list(_plan(sections)), _Worker(), ""
    try:
        for i, (section, name) in enumerate(plan):
            left = seconds - (time.monotonic() - began)
            if left <= 0:
                result = {"name": name, "outcome": "no time"}
            else:
                if section != shown or i % 25 == 0:
                    say(f"[{i + 1:3}/{len(plan)}] {section} ({time.monotonic() - began:.0f} s)")
                    shown = section
                fresh = section == "budget" or (device != "cpu" and worker.asked >= COMPILES)
                if fresh:
                    worker.stop()
                # The limit is the engine's, not ours, where it is what is asked for.
                env = {"ANETORCH_COMPILE_BUDGET": "0"} if section == "budget" else None
                result = worker.ask(section, name, device, min(PATIENCE, left + 5.0), env)
                if section == "cliffs" and CLIFFS[name].damages:
                    worker.stop()
                if result.get("outcome") in ("crashed", "hung"):
                    say(f"    {name}: {result['error']}")
            made[section].append(result)
    finally:
        worker.stop()
    made["seconds"] = round(time.monotonic() - began, 1)
    return made


# ---------------------------------------------------------------- telling

def lines(made: dict[str, Any]) -> Iterator[str]:
    """The table of a recording."""
    yield f"anetorch {made['anetorch']} on {made['device']}: {made['detail']}"
    facts = made["hardware"]
    yield f"{facts['cpu']}, {facts['system']}, {made['when']}, {made.get('seconds', 0):.0f} s"
    if facts.get("mac"):
        yield ", ".join(f"{k.rpartition('.')[2]} {v}" for k, v in facts["mac"].items())
    counts: dict[str, int] = {}
    for r in made["ops"]:
        counts[r["outcome"]] = counts.get(r["outcome"], 0) + 1
    if made["ops"]:
        yield ""
        yield "operations: " + ", ".join(f"{n} {k}" for k, n in sorted(counts.items(), key=lambda c: -c[1]))
        for r in made["ops"]:
            if r["outcome"] != "ok":
                ratio = r.get("ratio")
                why = r.get("error") or (f"error is {ratio:.3g} times the bound" if ratio is not None
                                         else "a NaN, an infinity or a shape differs")
                yield f"  {r['name']:24} {r['outcome']:8} {why}"
    if made["kernels"]:
        yield ""
        yield f"{'kernel':14}{'outcome':>9}{'error':>11}{'CPU error':>11}{'us':>9}"
    for r in made["kernels"]:
        if "seconds" in r:
            error = math.nan if r["error"] is None else r["error"]
            yield f"{r['name']:14}{r['outcome']:>9}{error:11.2e}{r['cpu']:11.2e}{r['seconds'] * 1e6:9.1f}"
        else:
            yield f"{r['name']:14}{r['outcome']:>9}  {r.get('error', '')}"
    for r in made["training"]:
        yield ""
        if "losses" in r:
            yield (f"training, 100 steps: {r['outcome']}: loss {r['losses'][0]:.4f} to {r['last']:.4f} "
                   f"(CPU {r['cpu_last']:.4f}, batches differ by {r['spread']:.4f}), {r['seconds']:.1f} s "
                   f"(CPU {r['cpu_seconds']:.1f} s)")
        else:
            yield f"training, 100 steps: {r['outcome']}: {r.get('error', '')}"
    for r in made["timings"]:
        yield (f"{r['name']}: {r['seconds'] * 1e6:.1f} us" if "seconds" in r
               else f"{r['name']}: {r['outcome']}: {r.get('error', '')}")
    if made["cliffs"]:
        yield ""
        yield "cliffs (same: every bit as IEEE arithmetic with a rounding after each operation)"
    for r in made["cliffs"]:
        if "trials" not in r:
            yield f"{r['name']}: {CLIFFS[r['name']].question} {r['outcome']} {r.get('error', '')}"
            continue
        same = [t["label"] for t in r["trials"] if t["outcome"] == "same"]
        yield f"{r['name']}: {CLIFFS[r['name']].question}" + (f" Same: {', '.join(same)}" if same else "")
        for t in r["trials"]:
            if t["outcome"] == "same":
                continue
            more = t.get("error", "")
            if t["outcome"] == "differs":
                more = f"{t['got']}, not {t['expected']}" + (f", at {t['at']}" if "at" in t else "")
            yield f"    {t['label']:24} {t['outcome']:8} {more}"
    for r in made["budget"]:
        yield (f"ANE06: programs compiled by one process: {r.get('compiled', '?')}, {r['outcome']} "
               f"{r.get('error', '')}")
    if made["cliffs"]:
        for name, why in made["not_tried"].items():
            yield f"{name}: not tried: {why}"


def exit_code(made: dict[str, Any]) -> int:
    """1 where something computed a wrong value, or the CPU device could not do what it should; 0
    else. What an engine refuses, and how it behaves at a cliff, is a finding, no failure."""
    wrong = {"off", "crashed", "hung"} | ({"refused"} if made["device"] == "cpu" else set())
    return int(any(r["outcome"] in wrong for s in ("ops", "kernels", "training", "timings") for r in made[s]))


# ---------------------------------------------------------------- a recording

def save(made: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """As JSON, one result a line, so that two recordings can be compared line by line."""
    head = {k: v for k, v in made.items() if k not in ANSWERS}
    parts = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in head.items()]
    for s in ANSWERS:
        rows = ",\n".join("  " + json.dumps(r) for r in made[s])
        parts.append(f" {json.dumps(s)}: [" + (f"\n{rows}\n ]" if rows else "]"))
    write_whole(path, ("{\n" + ",\n".join(parts) + "\n}\n").encode())



def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A recording. InputError where the file is none."""
    try:
        made = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise InputError(f"[selftest] {path} is not JSON ({e})") from None
    if not isinstance(made, dict) or made.get("format") != FORMAT:
        raise InputError(f"[selftest] {path} is no recording of `anetorch selftest` of format {FORMAT}")
    for key, kind in (("anetorch", str), ("device", str), ("detail", str), ("hardware", dict),
                      *((s, list) for s in ANSWERS)):
        if not isinstance(made.get(key), kind):
            raise InputError(f"[selftest] {path}: {key!r} is missing or no {kind.__name__}")
    return made


def replay(made: dict[str, Any], say: Say = print) -> list[str]:
    """Holds a recording against this version: every kept value of a case against the bound as it
    is derived today, every probe against ``numerics="ane"`` of today. Returns contradictions; what
    was recorded with other inputs is counted and skipped."""
    problems: list[str] = []
    checked = stale = 0
    for r in made["ops"]:
        case = CASES.get(r["name"])
        if case is None or "inputs" not in r or r["inputs"] != digest(case.values()):
            stale += case is None or "inputs" in r
            continue
        if "sample" not in r:
            continue
        checked += 1
        ref, bound = (a.reshape(-1) for a in bounds(case)[0])
        at, got = unpack(r["sample"])
        if list(r["sample"]["shape"]) != list(bounds(case)[0][0].shape):
            if r["outcome"] == "ok":
                problems.append(f"{r['name']}: shape {r['sample']['shape']} was called ok")
            continue
        if case.rule == "range":
            good = bool(((got >= case.low) & (got <= case.high)).all())
        else:
            with np.errstate(invalid="ignore"):
                error = np.abs(got.astype(np.float64) - ref[at])
                good = bool(((error <= bound[at]) | (got == ref[at]) | (np.isnan(got) & np.isnan(ref[at]))).all())
        if r["outcome"] == "ok" and not good:
            problems.append(f"{r['name']}: a value that was called ok is outside today's bound")
    trials = agreeing = 0
    for r in made["cliffs"]:
        if r["name"] not in CLIFFS or "trials" not in r:
            continue
        today = {t.label: t for t in CLIFFS[r["name"]].trials()}
        for t in r["trials"]:
            probe = today.get(t["label"])
            if probe is None or t["inputs"] != digest(probe.values):
                stale += 1
            elif "first" in t:
                trials += 1
                verdict = _model(probe, t["first"])
                agreeing += verdict is None
                if verdict and made["device"] == "ane":
                    say(f"    {r['name']} {t['label']}: {verdict}")
    for s in ("kernels", "training"):
        for r in made[s]:
            checked += 1
            if r["outcome"] == "ok" and s == "kernels" and not r["error"] <= r["bound"]:
                problems.append(f"{r['name']}: error {r['error']} was called ok against {r['bound']}")
    say(f"{checked} results checked, {stale} of other inputs skipped; {agreeing} of {trials} probes are as "
        f"numerics=\"ane\" predicts")
    return problems


def _model(probe: Any, first: list[Any]) -> str | None:
    """Where a recorded result is not what numerics="ane" gives, or None."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            kernel = anetorch.compile(probe.program, numerics="ane")
            out = kernel(**probe.values)
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as e:
            return f"is refused here: {e}"
    got = np.asarray(next(iter(out.values())) if isinstance(out, dict) else out).reshape(-1)[:26]
    for i, (a, b) in enumerate(zip(got.tolist(), first)):
        if float(a) != float(b) and not (math.isnan(float(a)) and math.isnan(float(b))):
            return f"element {i} is {b}, numerics=\"ane\" gives {a}"
    return None
