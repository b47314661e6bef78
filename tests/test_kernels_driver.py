"""The kernels without Python: tests/run_kernels.sh builds the C driver for a sanitizer, for
AArch64 under qemu, or with the AVX-512 extensions in software, and runs it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("run_kernels.sh")
X86 = platform.machine().lower() in ("x86_64", "amd64")


def run(mode: str) -> str:
    done = subprocess.run(["sh", str(SCRIPT), mode], capture_output=True, text=True,
                          check=False, timeout=1800, env={**os.environ, "PYTHON": sys.executable})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " 0 failed" in done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not X86, reason="the script's native flags are those of x86-64")
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.parametrize("mode", ["native", "thread"])
def test_sanitizers(mode: str) -> None:
    run(mode)


@pytest.mark.slow
@pytest.mark.skipif(not X86, reason="emulates extensions of AVX-512")
@pytest.mark.skipif("avx512bw" not in (Path("/proc/cpuinfo").read_text()
                                       if Path("/proc/cpuinfo").exists() else ""),
                    reason="the emulation itself is AVX-512")
def test_avx512_extensions_in_software() -> None:
    out = run("emulated")
    assert "avx512bf16: available" in out and "avx512fp16: chosen" in out


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("qemu-aarch64"), reason="no qemu-aarch64")
@pytest.mark.skipif(find_spec("ziglang") is None, reason="no ziglang (pip install ziglang)")
def test_neon_under_qemu() -> None:
    out = run("neon")
    for table in ("neon", "neondot", "neonfhm", "neonbf16", "neonfp16"):
        assert f"{table}: available" in out or f"{table}: chosen" in out
