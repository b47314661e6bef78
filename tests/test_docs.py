"""Every example in a docstring is run, and every public name has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import pkgutil
import sys
from pathlib import Path

import numpy as np
import pytest

import anetorch

# Modules whose examples are run. Packages of generated code are tested by their generator.
MODULES = ["anetorch.env", "anetorch.costs", "anetorch.data", "anetorch.progress", "anetorch.rundir",
           "anetorch._installed", "anetorch.weights", "anetorch.checkpoint",
           "anetorch.optim", "anetorch.session", "anetorch.generate", "anetorch.dtypes",
           "anetorch.surface_io", "anetorch.config",
           "anetorch.selftest", "anetorch.selftest.worker"]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"anetorch": anetorch, "np": np, "os": os},
                             optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0 and result.attempted > 0


def test_the_list_has_real_modules() -> None:
    known = {m.name for m in pkgutil.walk_packages(anetorch.__path__, "anetorch.")}
    assert set(MODULES) <= known


@pytest.mark.parametrize("name", MODULES)
def test_public_names_have_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        thing = getattr(module, public)
        if inspect.isclass(thing) or inspect.isroutine(thing):
            assert inspect.getdoc(thing), f"{name}.{public} has no docstring"


@pytest.mark.parametrize("name", [n for n in dir(anetorch) if not n.startswith("_")])
def test_every_public_name_has_an_example(name: str, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of functions written in C are run here, others by their module."""
    thing = getattr(anetorch, name)
    if inspect.ismodule(thing):
        return
    text = inspect.getdoc(thing) or ""
    assert ">>>" in text or "\n    " in text, f"anetorch.{name} shows no example"
    if inspect.isbuiltin(thing) or name in ("MILError", "WeightFile"):
        monkeypatch.chdir(tmp_path)
        names = {n: getattr(anetorch, n) for n in dir(anetorch)}
        test = doctest.DocTestParser().get_doctest(text, names | {"anetorch": anetorch, "np": np,
                                                                  "sys": sys}, name, None, 0)
        assert doctest.DocTestRunner(verbose=False).run(test).failed == 0
