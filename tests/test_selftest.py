"""``anetorch selftest``: its cases are complete and can fail, its other process may die, and a
recording is read again. The recording here was made on the stand-in (tests/standin)."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest

import anetorch
from anetorch import _core, selftest
from anetorch.cli import main
from anetorch.env import InputError
from anetorch.selftest import worker
from anetorch.selftest.cases import CASES, NO_CASE, In, bounds, measure
from anetorch.selftest.cliffs import CLIFFS, NOT_TRIED

RECORDING = Path(__file__).with_name("selftest_standin.json")


def outputs(case):
    program = case.program()
    out = _core._testing.eval(program, case.values())
    return [np.asarray(a) for a in out.values()][:len(program.block_info(program.functions()[0][2])["outputs"])]


# ---------------------------------------------------------------- the cases

def test_every_operation_has_a_case():
    names = {r["name"] for r in _core._testing.op_rows()}
    assert set(CASES) | set(NO_CASE) == names and not set(CASES) & set(NO_CASE)
    for name, case in CASES.items():
        program = case.program()
        kinds = {program.op_info(i)["op"] for i in program.block_info(program.functions()[0][2])["ops"]}
        assert name in kinds, name


@pytest.mark.parametrize("name", CASES)
def test_the_cpu_device_is_within_the_bound(name):
    found = worker.answer("ops", name, "cpu")
    assert found["outcome"] == "ok", found


def test_inputs_are_the_same_everywhere():
    """A recording from another machine was made with these very bits."""
    assert In(shape=(2, 3)).make("x").tobytes().hex() == "274348bbfe3ef242d8c38940"
    a, b = In(shape=(64,)).make("x"), In(shape=(64,)).make("y")
    assert (a != b).any() and (np.abs(a) <= 4).all()
    assert set(In(-2, 2, (99,), step=1.0).make("x").tolist()) == {-2, -1, 0, 1}


@pytest.mark.parametrize("rule", ["exact", "round", "sum", "scale", "range"])
def test_every_rule_can_fail(rule):
    """A change of one element by three bounds, or two units in the last place, is found."""
    of_rule = [c for c in CASES.values() if c.rule == rule]
    assert of_rule
    for case in of_rule:
        good = outputs(case)
        assert measure(case, good) <= 1, case.name
        bound, bad = bounds(case)[0][1], good[0].copy()
        if not bad.size:
            continue
        flat, i = bad.reshape(-1), bad.size // 2
        if rule == "range":
            flat[i] = case.high + 1
        elif bad.dtype.kind == "f":
            step = max(3 * float(bound.reshape(-1)[i]), 2 * abs(float(np.spacing(flat[i]))))
            flat[i] = flat[i] + bad.dtype.type(step) if flat[i] >= 0 else flat[i] - bad.dtype.type(step)
        else:
            flat[i] = not flat[i] if bad.dtype.kind == "b" else flat[i] + 1
        bad = [flat.reshape(good[0].shape), *good[1:]]
        assert measure(case, bad) > 1, case.name
        assert measure(case, [good[0].reshape(-1, 1, 1), *good[1:]]) == math.inf or good[0].ndim == 3


@pytest.mark.parametrize("name", CLIFFS)
def test_probes_are_exact(name):
    """Results of fp16's own: so "same" can mean every bit. One is known to part: what a fused sum
    does not overflow."""
    for t in worker.answer("cliffs", name, "cpu")["trials"]:
        assert t["outcome"] == ("differs" if name == "NUM06" else "same"), t


def test_every_rule_of_lint_is_probed_or_says_why_not():
    elsewhere = {"ANE06": "budget", "ANE31": "timings", "ANE33": "ops"}
    answered = {n for n in (*CLIFFS, *NOT_TRIED, *elsewhere) if n.startswith("ANE")}
    assert answered == {f"ANE{i:02}" for i in range(1, 34)}


def test_a_difference_is_located():
    want = [np.zeros((2, 3), np.float16)]
    got = [np.float16([[0, 0, 0], [0, 5, 0]])]
    found = worker.compare_trial(want, got)
    assert found == {"outcome": "differs", "output": 0, "at": [1, 1], "got": 5.0, "expected": 0.0, "count": 1}
    assert worker.compare_trial([np.float16([np.nan])], [np.float16([np.nan])])["outcome"] == "same"
    assert worker.compare_trial(want, [np.zeros((3, 2), np.float16)])["outcome"] == "differs"


# ---------------------------------------------------------------- the other process

def test_a_process_that_ends_costs_one_answer():
    w = selftest._Worker()
    try:
        assert w.ask("ops", "relu", "cpu", 60)["outcome"] == "ok"
        assert w.ask("ops", "no such operation", "cpu", 60)["outcome"] == "crashed"
        assert w.ask("ops", "relu", "cpu", 60)["outcome"] == "ok"
    finally:
        w.stop()


def test_a_process_that_hangs_costs_one_answer():
    w = selftest._Worker()
    try:
        began = time.monotonic()
        found = w.ask("training", "", "cpu", 0.05)
        assert found["outcome"] == "hung" and time.monotonic() - began < 30
        assert w.ask("ops", "relu", "cpu", 60)["outcome"] == "ok"
    finally:
        w.stop()


def test_time_is_limited():
    made = selftest.record("cpu", say=lambda line: None, seconds=0.0, sections=("ops",))
    assert {r["outcome"] for r in made["ops"]} == {"no time"}
    assert not selftest.exit_code(made)


def test_an_absent_device_says_why():
    if anetorch.devices()[1].available:
        pytest.skip("this machine has an engine")
    with pytest.raises(InputError, match="'ane': .*macOS"):
        selftest.record("ane", say=lambda line: None)
    with pytest.raises(InputError, match="no such device: cpu, ane"):
        selftest.record("gpu", say=lambda line: None)


def test_a_macs_facts(tmp_path):
    tool = tmp_path / "sysctl"
    tool.write_text('#!/bin/sh\ncase "$2" in\nhw.model) echo Mac15,14 ;;\n'
                    'kern.osversion) echo 25F84 ;;\n*) exit 1 ;;\nesac\n')
    tool.chmod(0o755)
    facts = selftest.mac_facts(str(tool))
    assert facts == {"hw.model": "Mac15,14", "kern.osversion": "25F84"}


# ---------------------------------------------------------------- the command

def test_a_short_recording_on_the_cpu(tmp_path, monkeypatch, capsys):
    full = selftest.record
    sections = ("kernels", "training", "timings", "budget")
    monkeypatch.setattr(selftest, "record", lambda device, say: full(device, say, sections=sections))
    path = tmp_path / "out.json"
    assert main(["selftest", "--device", "cpu", "--json", str(path)]) == 0
    text = capsys.readouterr().out
    assert "training, 100 steps: ok" in text and text.count(" ok ") >= 10
    made = json.loads(path.read_text())
    assert len(made["kernels"]) == 10 and made["hardware"]["cpu"]
    assert made["training"][0]["losses"] == made["training"][0]["cpu"]
    assert made["training"][0]["losses"][-1] < made["training"][0]["losses"][0] / 2
    assert made["budget"][0]["compiled"] == 150
    assert main(["selftest", "--replay", str(path)]) == 0


@pytest.mark.parametrize("target, expected", [
    ("no/out.json", r"no/out\.json: No such file or directory"), (".", r"\.: Is a directory"),
    ("text/out.json", r"text/out\.json: Not a directory"),
])
def test_a_place_for_the_recording_is_found_first(target, expected, tmp_path, monkeypatch, capsys):
    """Not after five minutes; and what is there stays as it was."""
    (tmp_path / "text").write_text("x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(selftest, "record", lambda *a, **k: pytest.fail("too late"))
    assert main(["selftest", "--device", "cpu", "--json", target]) == 2
    assert re.fullmatch(f"anetorch: {expected}\n", capsys.readouterr().err)
    assert [p.name for p in tmp_path.iterdir()] == ["text"]


@pytest.fixture
def recorded():
    return selftest.load(RECORDING)


def test_the_recording_of_the_stand_in(recorded, capsys):
    """It is no hardware, and says so; what it holds agrees with today's bounds."""
    assert recorded["device"] == "ane" and "stand-in, not hardware" in recorded["detail"]
    assert os.path.getsize(RECORDING) < 100_000
    assert main(["selftest", "--replay", str(RECORDING)]) == 0
    text = capsys.readouterr().out
    assert "contradiction" not in text
    checked, stale = (int(n) for n in re.search(
        r"(\d+) results checked, (\d+) of other inputs", text).groups())
    assert checked > 150 and stale == 0, "record it again: its inputs are no longer those of the cases"
    assert selftest.exit_code(recorded) == 0


def test_a_changed_recording_is_contradicted(recorded):
    changed = copy.deepcopy(recorded)
    row = next(r for r in changed["ops"] if r["name"] == "sigmoid")
    at, values = worker.unpack(row["sample"])
    values = values.copy()
    values[3] += np.float16(0.01)
    row["sample"]["bits"] = values.tobytes().hex()
    assert [p.split(":")[0] for p in selftest.replay(changed, lambda line: None)] == ["sigmoid"]
    changed |= {"ops": [row], "cliffs": []}
    row["outcome"] = "off"              # what was called so may be so
    assert not selftest.replay(changed, lambda line: None)
    changed["kernels"][0]["error"] = 1.0
    assert len(selftest.replay(changed, lambda line: None)) == 1


def test_other_inputs_are_not_compared(recorded):
    changed = copy.deepcopy(recorded)
    row = next(r for r in changed["ops"] if r["name"] == "sigmoid")
    row["inputs"] += 1
    row["sample"]["bits"] = "00" * (len(row["sample"]["bits"]) // 2)
    said = []
    assert not selftest.replay(changed, said.append)
    assert ", 1 of other inputs skipped" in said[-1]


@pytest.mark.parametrize("text, expected", [
    ("{", "is not JSON"), ("[]", "no recording"), ('{"format": 99}', "no recording"),
    ('{"format": 1, "anetorch": "0"}', "'device' is missing"), ("[" * 100000, "is not JSON"),
])
def test_what_is_no_recording_is_refused(text, expected, tmp_path, capsys):
    path = tmp_path / "x.json"
    path.write_text(text)
    assert main(["selftest", "--replay", str(path)]) == 2
    assert expected in capsys.readouterr().err


def test_saving_keeps_everything(recorded, tmp_path):
    (tmp_path / "again.json").write_text("before")
    selftest.save(recorded, tmp_path / "again.json")
    assert [p.name for p in tmp_path.iterdir()] == ["again.json"]
    assert json.loads((tmp_path / "again.json").read_text()) == recorded
    assert max(map(len, (tmp_path / "again.json").read_text().splitlines())) < 3000
