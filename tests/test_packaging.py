"""What an installed anetorch consists of, and how a clone finds it. Building wheel and
sdist takes longer and is .ci/run's business."""

from __future__ import annotations

import ast
import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import anetorch
from anetorch import _core

ROOT = Path(__file__).resolve().parents[1]
BUILT = Path(_core.__file__).parent         # where the compiled files are
PLAIN_ENV = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
GENERATED = (ROOT / "csrc" / "ir" / "gen_ops.py").exists()
SANITIZED = "LD_PRELOAD" in os.environ


def python(*args: str, path: Path | None = None, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = PLAIN_ENV | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run([sys.executable, *args], env=env, cwd=cwd, text=True, capture_output=True)


def test_built_files_are_there() -> None:
    assert (BUILT / "_core.abi3.so").exists()
    assert [p.name for p in BUILT.glob("libanetorch.*")] in (["libanetorch.so.0"],
                                                             ["libanetorch.0.dylib"])
    for header in ("ane.h", "bridge/ane_bridge.h"):
        built = BUILT / "include" / Path(header).name
        assert built.read_bytes() == (ROOT / "csrc" / header).read_bytes()
    assert (BUILT / "mil" / "ops.py").exists() or not GENERATED


def test_version_is_the_headers() -> None:
    assert f'#define ANE_VERSION "{anetorch.__version__}"' in (ROOT / "csrc" / "ane.h").read_text()
    assert f"## {anetorch.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_the_library_is_found_beside_the_module(tmp_path: Path) -> None:
    """Moved as a whole, the package still loads: no absolute path is inside."""
    shutil.copytree(BUILT, tmp_path / "anetorch")
    for path in (ROOT / "anetorch").rglob("*.py"):
        target = tmp_path / "anetorch" / path.relative_to(ROOT / "anetorch")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    done = python("-c", "import anetorch; print(anetorch._core.__file__)", path=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "anetorch" / "_core.abi3.so")


def test_numpy_is_all_that_is_imported(tmp_path: Path) -> None:
    """import anetorch brings in NumPy and nothing else; the command line brings tqdm."""
    code = ("import sys, sysconfig; before = set(sys.modules)\n"
            "import anetorch\n"
            "site = {sysconfig.get_path('purelib'), sysconfig.get_path('platlib')}\n"
            "found = {n.split('.')[0] for n, m in sys.modules.items() if n not in before\n"
            "         and any(str(getattr(m, '__file__', None) or '').startswith(s) for s in site)}\n"
            "print(sorted(found - {'anetorch'}))\n")
    done = python("-c", code, path=Path(anetorch.__file__).parents[1], cwd=tmp_path)
    assert done.stdout.strip() == "['numpy']", done.stdout + done.stderr


def test_the_stub_lists_the_whole_extension() -> None:
    """Every name and public member of _core, and none that is not there."""
    declared: dict[str, set[str]] = {}
    for node in ast.parse((ROOT / "anetorch" / "_core.pyi").read_text()).body:
        if isinstance(node, ast.ClassDef):
            declared[node.name] = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            declared[node.name] = set()
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            declared[node.target.id] = set()
    names = {n for n in vars(_core) if not n.startswith("__")}
    assert {n for n in declared if not n.startswith("_")} <= names
    assert names <= set(declared)
    for name in names:
        thing = getattr(_core, name)
        if isinstance(thing, type) and thing is not _core.MILError:
            members = {n for n in vars(thing) if not n.startswith("_")}
            assert members == {n for n in declared[name] if not n.startswith("_")}, name


# ---------------------------------------------------------------- a clone

def clone(to: Path) -> Path:
    """The Python files of the source tree, as a fresh clone has them: nothing built."""
    for name in ("anetorch", "csrc"):
        for path in (ROOT / name).rglob("*"):
            if path.suffix in (".py", ".h", ".pyi") and path.name not in ("ops.py", "ops.pyi") \
                    and "include" not in path.parts:
                target = to / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    return to


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A site folder with the built package and its metadata."""
    site = tmp_path / "site"
    shutil.copytree(BUILT, site / "anetorch")
    (site / f"anetorch-{anetorch.__version__}.dist-info").mkdir()
    return site


@pytest.mark.skipif(not GENERATED, reason="nothing is generated yet")
def test_a_clone_uses_the_installed_core(tmp_path: Path, installed: Path) -> None:
    here = clone(tmp_path / "clone")
    code = "import anetorch, anetorch.mil.ops as o; print(anetorch.__file__, anetorch._core.__file__, o.__file__)"
    done = python("-c", code, path=installed, cwd=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(here / "anetorch/__init__.py"),
                                   str(installed / "anetorch/_core.abi3.so"),
                                   str(installed / "anetorch/mil/ops.py")]


def test_a_clone_of_another_version_says_so(tmp_path: Path, installed: Path) -> None:
    here = clone(tmp_path / "clone")
    header = here / "csrc" / "ane.h"
    header.write_text(header.read_text().replace(f'ANE_VERSION "{anetorch.__version__}"',
                                                 'ANE_VERSION "99.0.0"'))
    done = python("-c", "import anetorch", path=installed, cwd=here)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: anetorch 99.0.0 in {here} is not built and the installed one is "
        f"{anetorch.__version__}: run `pip install .` in {here}")


def test_a_clone_alone_says_what_to_do(tmp_path: Path) -> None:
    here = clone(tmp_path / "clone")
    # -S: no site packages, so no installed anetorch; NumPy is not reached.
    done = python("-S", "-c", "import anetorch", cwd=here)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: anetorch in {here} is not built and no built one is installed: "
        f"run `pip install .` in {here}")


# ---------------------------------------------------------------- C callers

PROGRAM = r"""
#include <ane.h>
#include <stdio.h>
int main(void) {
    ane_error err;
    ane_surface *s = NULL;
    if (ane_surface_create(ANE_MEM_HEAP, 64, "from C", &s, &err)) return 1;
    printf("%s %zu\n", ane_version(), ane_surface_bytes(s));
    ane_surface_release(s);
    return 0;
}
"""


@pytest.mark.skipif(SANITIZED, reason="the compiler would run below the sanitizer")
@pytest.mark.parametrize("compiler, flags", [("cc", ["-std=c11"]), ("c++", ["-std=c++11"])])
def test_a_c_program_links_the_library(compiler: str, flags: list[str], tmp_path: Path) -> None:
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler} here")
    source = tmp_path / ("main.c" if compiler == "cc" else "main.cpp")
    source.write_text(PROGRAM)
    library = next(BUILT.glob("libanetorch.*"))
    subprocess.run([compiler, *flags, "-Wall", "-Wextra", "-pedantic", "-Werror",
                    f"-I{BUILT / 'include'}", str(source), str(library),
                    f"-Wl,-rpath,{BUILT}", "-o", str(tmp_path / "main")], check=True)
    done = subprocess.run([str(tmp_path / "main")], check=True, capture_output=True, text=True)
    assert done.stdout == f"{anetorch.__version__} 64\n"


# ---------------------------------------------------------------- a wheel, where CI has built one

def test_wheel() -> None:
    """.ci/run names the wheel it has built; elsewhere there is none to look at."""
    name = os.environ.get("ANETORCH_TEST_WHEEL")
    if not name:
        pytest.skip("ANETORCH_TEST_WHEEL names no wheel")
    path = Path(name)
    assert path.name.startswith(f"anetorch-{anetorch.__version__}-cp311-abi3-")
    names = set(zipfile.ZipFile(path).namelist())
    for wanted in ("_core.abi3.so", "_core.pyi", "py.typed", "include/ane.h", "include/ane_bridge.h",
                   "pkgconfig/anetorch.pc",
                   "mil/ops.py", "mil/ops.pyi", "__main__.py"):
        assert f"anetorch/{wanted}" in names, wanted
    assert sum(n.startswith("anetorch/libanetorch.") for n in names) == 1
    python_files = {p.relative_to(ROOT).as_posix() for p in (ROOT / "anetorch").rglob("*.py")}
    assert python_files <= names
    assert not [n for n in names if n.startswith(("tests/", "csrc/", "benchmarks/"))]
    assert np.__version__                   # the wheel was built on NumPy 2, and runs on this one


# ---------------------------------------------------------------- the stub

def test_the_stub_has_every_public_name() -> None:
    """_core.pyi against the module: functions, classes, their methods and attributes."""
    tree = ast.parse((ROOT / "anetorch" / "_core.pyi").read_text())
    top = {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    missing = [n for n in dir(_core) if not n.startswith("_") and n not in top]
    for name, node in top.items():
        if isinstance(node, ast.ClassDef) and isinstance(getattr(_core, name, None), type):
            have = {getattr(b, "name", None) or getattr(getattr(b, "target", None), "id", None)
                    for b in node.body}
            missing += [f"{name}.{m}" for m in vars(getattr(_core, name))
                        if not m.startswith("_") and m not in have]
    assert not missing
