"""What all tests share: one cache folder, and a set-up that says what is being tested."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import anetorch
from command import MICRO, SMALL, TEXT
from command import anetorch as run_command

ROOT = Path(__file__).resolve().parents[1]


def pytest_report_header() -> str:
    return f"anetorch {anetorch.__version__} with {anetorch._core.__file__}"


@pytest.fixture(scope="session")
def root() -> Path:
    """The source tree that the tests belong to."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither use nor leave anything in the user's cache folder."""
    if "ANETORCH_CACHE_DIR" not in os.environ:
        os.environ["ANETORCH_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a text and a config that trains in a moment."""
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "micro.json").write_text(json.dumps(MICRO))
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of 6 steps in ``run``. Copy what a test changes."""
    work = tmp_path_factory.mktemp("trained")
    (work / "text.txt").write_text(TEXT)
    (work / "micro.json").write_text(json.dumps(MICRO))
    done = run_command("train", *SMALL, "--steps", "6", "--out", "run", "--save-every", "2", cwd=work)
    assert done.returncode == 0, done.stderr
    return work
