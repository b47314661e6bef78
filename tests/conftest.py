"""What all tests share: one cache folder, and a set-up that says what is being tested."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import anetorch

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
