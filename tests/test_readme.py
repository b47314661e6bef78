"""What the documents show is run; what they name exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from anetorch.cli import parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def blocks(language: str) -> list[tuple[str, str]]:
    """(page:line, text) of every block of a language."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for m in BLOCK.finditer(text):
            if m[1] == language:
                found.append((f"{page.name}:{text.count(chr(10), 0, m.start()) + 1}", m[2]))
    return found


@pytest.mark.parametrize("where, code", blocks("python"), ids=[w for w, _ in blocks("python")])
def test_python_block_runs(where: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                           capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, where, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out, "an example shows something"


def test_the_examples_are_short() -> None:
    examples = [code for where, code in blocks("python") if where.startswith("README")]
    assert len(examples) >= 3
    for code in examples:
        assert len(code.splitlines()) <= 20


@pytest.mark.parametrize("where, text", blocks("sh"), ids=[w for w, _ in blocks("sh")])
def test_commands_parse(where: str, text: str) -> None:
    for line in text.splitlines():
        for command in line.split("&&"):
            words = shlex.split(command, comments=True)
            if words and words[0] == "anetorch":
                parser().parse_args(words[1:])


def test_the_two_commands_are_there() -> None:
    text = (ROOT / "README.md").read_text()
    assert "\npip install . && anetorch train\n" in text
    assert "\npip install '.[test]' && pytest\n" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_environment_variable_is_documented() -> None:
    page = (ROOT / "docs" / "environment.md").read_text()
    listed = set(re.findall(r"ANETORCH_[A-Z_]+[A-Z]", page))
    env_map = re.search(r"#define ANE_ENV_MAP\(X\)(.*?)\n\n", (ROOT / "csrc/base/env.h").read_text(), re.S)
    assert env_map
    used = {f"ANETORCH_{name}" for name in re.findall(r"X\((\w+),", env_map[1])}
    for path in (ROOT / "anetorch").rglob("*.py"):
        used |= set(re.findall(r"environ(?:\.get\(|\[)\"(ANETORCH_\w+)", path.read_text()))
    assert used and used <= listed, f"not in docs/environment.md: {sorted(used - listed)}"
