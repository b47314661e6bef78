"""Makes coremltools' own op tests predict, with anetorch in Core ML's place.

    python -m pytest -p predict_plugin --pyargs coremltools.converters.mil.mil.ops.tests \
        --ct-sample 400 --ct-seed 1

run from this folder (or with it on PYTHONPATH). Those tests compare against NumPy or PyTorch
and stop before prediction away from a Mac; here they go on, at their own tolerances. Counted
are the ML Program cases in which ``predict`` was entered. ``exceptions.txt`` lists each case
that may fail, with its reason; an unlisted failure fails the run, and so does a listed case
that passes.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

EXCEPTIONS = Path(__file__).with_name("exceptions.txt")
RATE = 0.98


def pytest_addoption(parser):
    group = parser.getgroup("coremltools")
    group.addoption("--ct-sample", type=int, default=0, help="run this many cases (0: all)")
    group.addoption("--ct-seed", type=int, default=0, help="seed of the sample")
    group.addoption("--ct-shard", default="0/1", help="K/N: every N-th case from the K-th on")
    group.addoption("--ct-log", default=None, help="write one line per case here")


def read_exceptions(text: str) -> dict[str, str]:
    """``nodeid  # reason`` lines; a case without a reason is an error of the list."""
    listed = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        case, mark, reason = line.partition("  # ")
        if not mark or not reason.strip():
            raise pytest.UsageError(f"{EXCEPTIONS.name}:{number}: no reason given")
        listed[case.strip()] = reason.strip()
    return listed


class Predicting:
    def __init__(self, config):
        self.config = config
        self.exceptions = read_exceptions(EXCEPTIONS.read_text() if EXCEPTIONS.exists() else "")
        self.entered: set[str] = set()
        self.outcome: dict[str, str] = {}
        self.current = ""
        self.verdict: list[str] = []

    def install(self):
        import importlib

        from anetorch import coreml

        coreml.install()
        # The tests hold names of their own, bound when their modules were imported.
        tools = importlib.import_module("coremltools.converters.mil.testing_utils")
        tools._IS_MACOS = True
        # Counted where coremltools' own predict begins: a model that anetorch could not even
        # load is a failed prediction, not a case that never got there.
        model = importlib.import_module("coremltools.models.model").MLModel
        predict = model.predict

        def counted(mlmodel, *args, **kwargs):
            if mlmodel._spec.WhichOneof("Type") != "mlProgram":
                pytest.skip("an old neural network, not an ML Program")
            self.entered.add(self.current)
            return predict(mlmodel, *args, **kwargs)

        model.predict = counted

    # -- hooks

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        keep = [i for i in items if "neuralnetwork" not in i.nodeid]
        n = config.getoption("--ct-sample")
        if n and n < len(keep):
            chosen = set(random.Random(config.getoption("--ct-seed")).sample(range(len(keep)), n))
            keep = [i for k, i in enumerate(keep) if k in chosen]
        k, n = (int(part) for part in config.getoption("--ct-shard").split("/"))
        keep = keep[k::n]
        dropped = set(items) - set(keep)
        config.hook.pytest_deselected(items=[i for i in items if i in dropped])
        items[:] = keep

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item):
        self.current = case(item.nodeid)

    def pytest_runtest_logreport(self, report):
        name = case(report.nodeid)
        if report.when == "call" or report.outcome != "passed":
            if self.outcome.get(name) != "failed":
                self.outcome[name] = report.outcome

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session, exitstatus):
        if exitstatus not in (0, 1):
            return
        ran = {c for c, o in self.outcome.items() if o != "skipped"}
        failed = {c for c in ran if self.outcome[c] == "failed"}
        passed = len(self.entered - failed)
        rate = passed / len(self.entered) if self.entered else 0.0
        self.verdict.append(
            f"predict entered in {len(self.entered)} cases, {passed} passed ({rate:.2%})"
        )
        # A failure without prediction is coremltools' own (a missing package, say).
        unlisted = sorted((failed & self.entered) - set(self.exceptions))
        healed = sorted(c for c in self.exceptions if c in ran and c not in failed)
        self.verdict += [f"not listed in {EXCEPTIONS.name}: {c}" for c in unlisted]
        self.verdict += [f"listed, but passes: {c}" for c in healed]
        if rate < RATE:
            self.verdict.append(f"below the required {RATE:.0%}")
        session.exitstatus = int(bool(unlisted or healed or rate < RATE))
        if log := self.config.getoption("--ct-log"):
            Path(log).write_text("".join(
                f"{o} {'predicted' if c in self.entered else '-'} {c}\n"
                for c, o in sorted(self.outcome.items())
            ))

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.section("coremltools predictions by anetorch")
        for line in self.verdict[:60]:
            terminalreporter.line(line)


def case(nodeid: str) -> str:
    """The id from the tests folder on: independent of where coremltools is installed."""
    _, _, tail = nodeid.rpartition("ops/tests/")
    return tail or nodeid


def pytest_configure(config):
    plugin = Predicting(config)
    plugin.install()
    config.pluginmanager.register(plugin, "anetorch-predicting")
