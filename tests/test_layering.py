"""Who may know whom: the include rules of csrc/ and the import rules of anetorch/.

Reads the sources; nothing is compiled or imported. The tables below are the rules.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC, PACKAGE = ROOT / "csrc", ROOT / "anetorch"

# Room -> level. A file includes its own room and rooms of a lower level; rooms of one level
# do not know each other.
LEVEL = {
    "ane.h": 0, "base": 1, "kernels": 2, "surface": 2, "weights": 3, "train": 3, "ir": 4,
    "mil": 5, "lint": 5, "pass": 5, "coreml": 6, "backend": 7, "program": 8, "bridge": 9,
}

# The files directly in csrc/ that stand behind ane.h are one room.
PROGRAM = {"program.c", "request.c", "kernel.h", "program.h", "shadow.c"}

# py/ sees the public headers, CPython and NumPy; py/testing*.c alone may include internal
# headers: they call internals through the exported table of csrc/testing.h.
PUBLIC = {"ane.h", "bridge/ane_bridge.h"}

# Headers of the C library's own standard and of POSIX; what else a core file may name in <>.
SYSTEM_DENIED = re.compile(r"Python\.h|numpy/|Foundation/|CoreFoundation/|IOSurface/|objc/")

# Python: groups from the bottom to the top; a module imports from groups above it in this
# list, and from its own group only what stands before it. A name ending in "." is a package.
ORDER = [
    ["_installed"],
    ["_core", "env", "dtypes", "config"],
    ["surface_io", "images", "sharing", "weights", "package"],
    ["mil.graph", "mil.builder", "mil.ops", "mil", "mil."],
    ["engine", "report", "runtime"],
    ["costs"],
    ["coreml.feature", "coreml.compiled", "coreml.files", "coreml.model", "coreml.plan",
     "coreml.seam", "coreml", "experiments"],
    ["lint"],
    ["kernels", "kernels."],
    ["nn.config", "nn.module", "nn.transformer", "nn", "nn."],
    ["optim", "data", "checkpoint"],
    ["rundir", "progress", "session"],
    ["generate"],
    ["train"],
    ["info", "tools"],
    ["selftest.cases", "selftest.cliffs", "selftest.worker", "selftest"],
    ["cli"],
    ["__main__", "__init__"],
]


def includes(path: Path) -> list[tuple[str, bool]]:
    """(name, quoted) of each #include line."""
    found = re.findall(r'^[ \t]*#[ \t]*include[ \t]*(["<])([^">]+)[">]', path.read_text(), re.M)
    return [(name, mark == '"') for mark, name in found]


def room_of(path: Path) -> str:
    room = path.relative_to(CSRC).parts[0]
    return "program" if room in PROGRAM else room


def c_files() -> list[Path]:
    return sorted(p for p in CSRC.rglob("*.[ch]"))


def complaint(path: Path) -> list[str]:
    """What is wrong with a C file's includes."""
    here, wrong = room_of(path), []
    for name, quoted in includes(path):
        if not quoted:
            if here != "py" and SYSTEM_DENIED.search(name):
                wrong.append(f"<{name}> in a file that is not in csrc/py")
            continue
        target = (path.parent / name).resolve()
        if not target.exists():
            if here == "py" and SYSTEM_DENIED.search(name):
                continue
            wrong.append(f'"{name}" is no file beside it')
            continue
        if CSRC not in target.parents:
            wrong.append(f'"{name}" is outside csrc/')
            continue
        there, short = room_of(target), target.relative_to(CSRC).as_posix()
        if here == there:
            continue
        if here == "testing.c":
            continue
        if here == "py":
            if short in PUBLIC:
                continue
            if path.name.startswith("testing"):
                continue
            wrong.append(f'"{name}": py/ sees only the public headers')
        elif here == "testing.h":
            if LEVEL.get(there, 99) > 1 and there != "ane.h":
                wrong.append(f'"{name}": testing.h describes internals by plain types')
        elif there not in LEVEL or here not in LEVEL:
            wrong.append(f'"{name}": {here} -> {there} is in no table of test_layering.py')
        elif LEVEL[there] >= LEVEL[here]:
            wrong.append(f'"{name}": {here} must not know {there}')
    return wrong


def test_there_are_c_files() -> None:
    assert len(c_files()) > 20


def test_includes_go_one_way() -> None:
    wrong = {p.relative_to(ROOT).as_posix(): w for p in c_files() if (w := complaint(p))}
    assert not wrong, "\n".join(f"{p}: {', '.join(w)}" for p, w in wrong.items())


def test_public_header_is_self_contained() -> None:
    standard = {"stdbool.h", "stddef.h", "stdint.h"}
    assert {n for n, _ in includes(CSRC / "ane.h")} <= standard


def test_no_includes_in_a_circle() -> None:
    graph = {p.resolve(): [(p.parent / n).resolve() for n, q in includes(p) if q] for p in c_files()}
    done: set[Path] = set()

    def walk(path: Path, above: tuple[Path, ...]) -> None:
        assert path not in above, " -> ".join(p.name for p in (*above, path))
        if path not in done:
            for target in graph.get(path, []):
                walk(target, (*above, path))
            done.add(path)

    for path in graph:
        walk(path, ())


@pytest.mark.parametrize("text, expected", [
    ('#include "../ir/ir.h"\n', "base must not know ir"),
    ("#include <Python.h>\n", "<Python.h> in a file that is not in csrc/py"),
    ('#include "nowhere.h"\n', '"nowhere.h" is no file beside it'),
])
def test_a_wrong_include_is_found(text: str, expected: str, tmp_path: Path,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    for room in ("base", "ir"):
        (tmp_path / room).mkdir()
    (tmp_path / "ir" / "ir.h").touch()
    bad = tmp_path / "base" / "bad.c"
    bad.write_text(text)
    monkeypatch.setitem(globals(), "CSRC", tmp_path)
    assert expected in " ".join(complaint(bad))


# ---------------------------------------------------------------- Python

def rank(module: str) -> tuple[int, int] | None:
    """Place of a module (name below anetorch) in ORDER."""
    for i, group in enumerate(ORDER):
        for j, name in enumerate(group):
            if name == module or (name.endswith(".") and module.startswith(name)):
                return i, j
    return None


def imported(path: Path) -> set[str]:
    """Modules of anetorch that a file imports when it is imported (not inside functions)."""
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    inner = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))
             for n in ast.walk(f)}
    typing = {id(n) for i in ast.walk(tree) if isinstance(i, ast.If)
              and ast.unparse(i.test).endswith("TYPE_CHECKING") for n in ast.walk(i)}
    for node in ast.walk(tree):
        if id(node) in inner or id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names if a.name.split(".")[0] == "anetorch"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write `from anetorch...`"
            if node.module and node.module.split(".")[0] == "anetorch":
                for a in node.names:
                    full = f"{node.module}.{a.name}"
                    below = PACKAGE.joinpath(*full.split(".")[1:])
                    is_module = below.with_suffix(".py").exists() or below.is_dir() or a.name in (
                        "_core", "ops")
                    names.add(full if is_module else node.module)
    return {n.removeprefix("anetorch").lstrip(".") for n in names} - {""}


def python_files() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[-1] == "__init__" and len(parts) > 1:
        parts = parts[:-1]
    return ".".join(parts)


def test_every_module_has_a_place() -> None:
    lost = [m for p in python_files() if rank(m := module_name(p)) is None]
    assert not lost, f"not in ORDER of test_layering.py: {lost}"


def test_imports_go_one_way() -> None:
    wrong = []
    for path in python_files():
        me = rank(module_name(path))
        for name in imported(path):
            other = rank(name)
            if me is None or other is None:
                wrong.append(f"{module_name(path)} imports {name}, which has no place")
            elif other[0] > me[0]:
                wrong.append(f"{module_name(path)} must not import {name}")
    assert not wrong, "\n".join(wrong)


def test_no_python_module_imports_itself_in_a_circle() -> None:
    graph = {module_name(p): imported(p) for p in python_files()}
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for other in graph.get(name, ()):
                walk(other, (*above, name))
            done.add(name)

    for name in graph:
        walk(name, ())


def test_a_training_step_uses_no_numpy() -> None:
    """Trainer.train_step and what optim.py does: no np. name in the source."""
    tree = ast.parse((PACKAGE / "train.py").read_text())
    step = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)
                and n.name == "train_step")
    assert "np." not in ast.unparse(step)
    assert "numpy" not in (PACKAGE / "optim.py").read_text()
    assert len(ast.unparse(step).splitlines()) <= 40, "one step is readable on one screen"
    assert "numpy" not in (PACKAGE / "optim.py").read_text().lower().replace("numpy arithmetic", "")


def test_no_package_among_the_tests() -> None:
    """tests/__init__.py would make pytest put the clone on the path."""
    assert not (ROOT / "tests" / "__init__.py").exists()


def test_no_folder_of_tests_hides_a_package() -> None:
    """pytest puts tests/ on the path: a folder there that is named like a package would be
    found as an empty one wherever the real package is not installed, and
    importorskip("coremltools") would not skip."""
    names = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir()}
    assert not names & {"anetorch", "coremltools", "hypothesis", "jax", "matplotlib", "mlx", "numpy",
                        "PIL", "safetensors", "torch", "transformers"}
