"""The benchmarks' own tools."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
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
