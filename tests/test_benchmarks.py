"""The benchmarks' own tools."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "benchmarks"))        # they import common
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return module


def result(name: str, seconds: float, **facts: object) -> str:
    return json.dumps({"bench": "b", "name": name, **facts, "gflops": 1 / seconds, "seconds":
                       {"median": seconds}, "machine": {"cpu": "x", "threads": 2}}) + "\n"


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare = load("compare")
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text(result("a", 1.0, seq=1) + result("a", 1.0, seq=2) + result("gone", 1.0))
    new.write_text(result("a", 1.1, seq=1) + result("a", 0.5, seq=2) + result("new", 9.0))
    assert compare.main([str(old), str(new)]) == 0
    assert "2 compared, 0 slower" in capsys.readouterr().out
    assert compare.main([str(old), str(new), "--worse", "0.05"]) == 1
    out = capsys.readouterr().out
    assert "SLOWER" in out and " 2.00x" in out
    new.write_text(result("other", 1.0))
    assert compare.main([str(old), str(new)]) == 2


def test_measure_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = load("common")
    calls = []
    times = common.measure(lambda: calls.append("run"), warmup=1, repeats=4,
                           prepare=lambda: calls.append("prepare"))
    assert calls == ["prepare", "run"] * 5
    assert 0 <= times["minimum"] <= times["median"]
    path = tmp_path / "r.jsonl"
    report = common.Report("bench", str(path))
    report.add("thing", times, seq=4)
    (line,) = map(json.loads, path.read_text().splitlines())
    assert line["seq"] == 4 and line["seconds"] == times
    assert {"cpu", "isa", "threads", "commit", "anetorch"} <= set(line["machine"])
    assert "thing" in capsys.readouterr().out


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = load("table")
    path = tmp_path / "r.jsonl"
    line = json.loads(result("a", 0.25, seq=4))
    path.write_text(json.dumps({**line, "x_torch": 3.0}) + "\n" +
                    json.dumps({**line, "x_torch": 1.5}) + "\n" + result("b", 2e-6))
    assert table.main([str(path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "### x, kernel table ?, 2 threads"
    assert "| a | seq 4 | 250 ms |  | gflops 4, x_torch 1.5 |" in out     # the later one
    assert sum(row.startswith("| b |") and "2 us" in row for row in out) == 1
    empty = tmp_path / "empty"
    empty.write_text("")
    assert table.main([str(empty)]) == 2
