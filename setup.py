"""Builds libanetorch (the C library) and anetorch._core (its binding) with setuptools.

Switches, all environment variables: ANETORCH_DEBUG=1 (-O0 -g and internal checks),
ANETORCH_SANITIZE=address,undefined (or thread), ANETORCH_COVERAGE=1; for another machine
ANETORCH_TARGET_OS and ANETORCH_TARGET_ARCH (see TARGETS), and ANETORCH_TARGET_NUMPY, a folder
with that platform's NumPy headers. Python's limited API has no platform in it: this Python's
headers serve all.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
LIMITED_API = "0x030B0000"
PUBLIC_HEADERS = ["ane.h", "bridge/ane_bridge.h"]   # below csrc/; installed as anetorch/include/NAME

# Instruction-set files: suffix of the file name -> flags. A compiler that lacks a flag
# drops the file, and `anetorch info` says so. Higher sets are switched off so that no
# compiler feels free to use them.
X86_ISA = {
    "_avx2": ["-mavx2", "-mfma", "-mf16c", "-mprfchw", "-mno-avx512f"],
    "_avx512": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq",
                "-mavx512vl"],
    "_avx512vnni": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq",
                    "-mavx512vl", "-mavx512vnni"],
    "_avx512bf16": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq",
                    "-mavx512vl", "-mavx512bf16"],
    "_avx512fp16": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq",
                    "-mavx512vl", "-mavx512fp16"],
}
ARM_ISA = {
    "_neon": [],
    "_neonfp16": ["-march=armv8.2-a+fp16"],
    "_neonfhm": ["-march=armv8.2-a+fp16+fp16fml"],
    "_neonbf16": ["-march=armv8.2-a+fp16+bf16"],
    "_neondot": ["-march=armv8.2-a+dotprod"],
}
ZIG_ARM_ISA = {                         # the same, as `zig cc` spells them
    "_neon": [],
    "_neonfp16": ["-mcpu=generic+v8_2a+fullfp16"],
    "_neonfhm": ["-mcpu=generic+v8_2a+fullfp16+fp16fml"],
    "_neonbf16": ["-mcpu=generic+v8_2a+fullfp16+bf16"],
    "_neondot": ["-mcpu=generic+v8_2a+dotprod"],
}
# What PyPI's ziglang builds on any machine: (ANETORCH_TARGET_OS, ANETORCH_TARGET_ARCH) -> the
# compiler's target, which names the oldest system, and the wheel's tag, which says the same.
TARGETS = {
    ("darwin", "arm64"): ("aarch64-macos.11.0", "macosx_11_0_arm64"),
    ("darwin", "x86_64"): ("x86_64-macos.10.15", "macosx_10_15_x86_64"),
    ("linux", "aarch64"): ("aarch64-linux-gnu.2.28", "manylinux_2_28_aarch64"),
}
ALL_SUFFIXES = sorted([*X86_ISA, *ARM_ISA], key=len, reverse=True)


def version() -> str:
    text = (CSRC / "ane.h").read_text()
    return re.search(r'#define ANE_VERSION "([^"]+)"', text).group(1)


def target() -> tuple[str, str] | None:
    """Compiler target and wheel tag of a build for another machine."""
    system, arch = (os.environ.get(f"ANETORCH_TARGET_{n}") for n in ("OS", "ARCH"))
    if not system and not arch:
        return None
    if (system, arch) not in TARGETS:
        known = ", ".join(" ".join(t) for t in TARGETS)
        raise SystemExit(f"ANETORCH_TARGET_OS={system} ANETORCH_TARGET_ARCH={arch} is not known; "
                         f"expected one of: {known}")
    return TARGETS[system, arch]


def abi() -> str:
    return re.search(r"#define ANE_ABI_VERSION (\d+)", (CSRC / "ane.h").read_text()).group(1)


class BuildCore(build_ext):
    """Compiles csrc/ into libanetorch beside the package, then _core against it."""

    def run(self) -> None:
        self.core_compiler()
        super().run()
        package = Path(self.get_ext_fullpath("anetorch._core")).parent
        if self.inplace:
            built = Path(self.build_lib) / "anetorch" / self.lib_name()
            self.replace(built, package / built.name)
        include = package / "include"
        include.mkdir(parents=True, exist_ok=True)
        for header in PUBLIC_HEADERS:
            self.replace(CSRC / header, include / Path(header).name)
        self.write_pkgconfig(package / "pkgconfig" / "anetorch.pc")
        self.generate_python(package)

    # -- the C compiler, flags and targets

    def core_compiler(self) -> None:
        cc = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
        self.cc = shlex.split(cc)
        if cross := target():
            self.cc = [sys.executable, "-m", "ziglang", "cc", "-target", cross[0]]
        self.arm_isa = ZIG_ARM_ISA if cross else ARM_ISA
        host = os.environ.get("ANETORCH_TARGET_ARCH") or platform.machine()
        self.arm = host.lower() in ("arm64", "aarch64")
        self.x86 = host.lower() in ("x86_64", "amd64")
        self.mac = os.environ.get("ANETORCH_TARGET_OS", sys.platform) == "darwin"
        flags = ["-std=c11", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off",
                 "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wshadow", "-Wundef",
                 "-Wstrict-prototypes", "-Wmissing-prototypes"]
        link: list[str] = []
        if os.environ.get("ANETORCH_DEBUG") == "1":
            flags += ["-O0", "-g", "-DANE_DEBUG=1"]
        elif os.environ.get("ANETORCH_SANITIZE"):
            flags += ["-O1"]        # at -O2 the instrumented kernels take minutes to compile
        else:
            flags += ["-O2", "-g1"]
        if san := os.environ.get("ANETORCH_SANITIZE"):
            flags += [f"-fsanitize={san}", "-fno-omit-frame-pointer", "-g",
                      "-fno-sanitize-recover=all"]
            link += [f"-fsanitize={san}"]
        if os.environ.get("ANETORCH_COVERAGE") == "1":
            flags += ["--coverage"]
            link += ["--coverage"]
        self.flags = flags + shlex.split(os.environ.get("CFLAGS", ""))
        self.link = link + shlex.split(os.environ.get("LDFLAGS", ""))

    def accepts(self, flags: list[str]) -> bool:
        probe = Path(self.build_temp) / "probe"
        probe.mkdir(parents=True, exist_ok=True)
        src = probe / "probe.c"
        src.write_text("int main(void) { return 0; }\n")
        cmd = [*self.cc, *flags, "-c", str(src), "-o", str(probe / "probe.o")]
        return subprocess.run(cmd, capture_output=True).returncode == 0

    def isa_flags(self, name: str) -> tuple[str | None, list[str]]:
        stem = name[:-2]
        for suffix in ALL_SUFFIXES:
            if stem.endswith(suffix):
                return suffix, {**X86_ISA, **self.arm_isa}[suffix]
        return None, []

    def compile_all(self, sources: list[Path], out: Path, extra: list[str]) -> list[str]:
        table = X86_ISA if self.x86 else self.arm_isa if self.arm else {}
        built = [s for s, f in table.items() if self.accepts(f)]
        defines = [f"-DANE_BUILT{s.upper()}=1" for s in built]
        jobs = []
        for src in sources:
            suffix, flags = self.isa_flags(src.name)
            if suffix and suffix not in built:
                continue
            rel = src.relative_to(ROOT)
            obj = out / rel.with_suffix(".o")
            obj.parent.mkdir(parents=True, exist_ok=True)
            cmd = [*self.cc, *self.flags, *defines, *flags, *extra, "-MMD", "-MF",
                   str(obj.with_suffix(".d")), "-c", str(rel), "-o", str(obj)]
            jobs.append((cmd, obj))

        def work(job: tuple[list[str], Path]) -> tuple[list[str], subprocess.CompletedProcess]:
            cmd, obj = job
            stamp = obj.with_suffix(".cmd")
            key = hashlib.sha256(json.dumps(cmd).encode()).hexdigest()
            if self.fresh(obj, stamp, key):
                return cmd, subprocess.CompletedProcess(cmd, 0, "", "")
            run = subprocess.run(cmd, capture_output=True, text=True, cwd=ROOT)
            if run.returncode == 0:
                stamp.write_text(key)
            return cmd, run

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for cmd, run in pool.map(work, jobs):
                if run.stderr:
                    sys.stderr.write(run.stderr)
                if run.returncode:
                    raise SystemExit(f"compiling failed: {shlex.join(cmd)}")
        return [str(obj) for _, obj in jobs]

    @staticmethod
    def fresh(obj: Path, stamp: Path, key: str) -> bool:
        dep = obj.with_suffix(".d")
        if not (obj.exists() and dep.exists() and stamp.exists()):
            return False
        if stamp.read_text() != key:
            return False
        names = dep.read_text().replace("\\\n", " ").split(":", 1)[1].split()
        built = obj.stat().st_mtime_ns
        return all((ROOT / n).exists() and (ROOT / n).stat().st_mtime_ns <= built for n in names)

    # -- linking

    def lib_name(self) -> str:
        return f"libanetorch.{abi()}.dylib" if self.mac else f"libanetorch.so.{abi()}"

    def build_extension(self, ext: Extension) -> None:
        out = Path(self.build_temp)
        target = Path(self.get_ext_fullpath(ext.name)).parent
        target.mkdir(parents=True, exist_ok=True)
        lib = target / self.lib_name()
        core = sorted(p for p in CSRC.rglob("*.c") if "py" not in p.relative_to(CSRC).parts[:1])
        objects = self.compile_all(core, out, [])
        shared = ["-dynamiclib", f"-Wl,-install_name,@rpath/{lib.name}"] if self.mac else [
            "-shared", f"-Wl,-soname,{lib.name}", "-Wl,-z,noexecstack"]
        libs = [] if self.mac else ["-lpthread", "-ldl", "-lm"]
        self.spawn_link([*self.cc, *shared, *objects, *self.link, *libs, "-o", str(lib)], lib)

        import numpy

        headers = os.environ.get("ANETORCH_TARGET_NUMPY") or numpy.get_include()
        include = [f"-I{sysconfig.get_path('include')}", "-isystem", headers,
                   f"-DPy_LIMITED_API={LIMITED_API}", "-fno-strict-aliasing",
                   "-Wno-missing-field-initializers", "-Wno-cast-function-type"]
        objects = self.compile_all(sorted((CSRC / "py").glob("*.c")), out, include)
        module = Path(self.get_ext_fullpath(ext.name))
        if self.mac:
            # Not -bundle: Python loads a dylib as well, and ziglang's linker writes only that.
            args = ["-dynamiclib", f"-Wl,-install_name,@rpath/{module.name}",
                    "-undefined", "dynamic_lookup", "-Wl,-rpath,@loader_path"]
        else:
            args = ["-shared", "-Wl,-rpath,$ORIGIN"]
        self.spawn_link([*self.cc, *args, *objects, str(lib), *self.link, *libs, "-o", str(module)],
                        module)

    def spawn_link(self, cmd: list[str], product: Path) -> None:
        # Under its own name, which a signature holds, and moved: others may have it mapped.
        tmp = product.parent / "link.tmp" / product.name
        tmp.parent.mkdir(exist_ok=True)
        cmd = [*cmd[:-1], str(tmp)]
        run = subprocess.run(cmd, cwd=ROOT)
        if run.returncode:
            raise SystemExit(f"linking failed: {shlex.join(cmd)}")
        os.replace(tmp, product)
        tmp.parent.rmdir()

    @staticmethod
    def replace(src: Path, dst: Path) -> None:
        """Copies by rename, so that a process that has dst mapped keeps the old file."""
        tmp = dst.with_name(dst.name + ".tmp")
        shutil.copy2(src, tmp)
        os.replace(tmp, dst)

    def write_pkgconfig(self, path: Path) -> None:
        """For pkg-config, relative to where the package ends up."""
        name = f"anetorch.{abi()}" if self.mac else f":{self.lib_name()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("prefix=${pcfiledir}/..\n"
                        "includedir=${prefix}/include\n\n"
                        "Name: anetorch\n"
                        "Description: Apple Neural Engine programs on any machine\n"
                        f"Version: {version()}\n"
                        "Cflags: -I${includedir}\n"
                        f"Libs: -L${{prefix}} -l{name} -Wl,-rpath,${{prefix}}\n")

    @staticmethod
    def generate_python(package: Path) -> None:
        """anetorch/mil/ops.py and .pyi from the op table."""
        generator = CSRC / "ir" / "gen_ops.py"
        if not generator.exists():
            return
        (package / "mil").mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, str(generator), str(CSRC / "ir" / "ops.def"),
                        str(package / "mil")], check=True)

    def get_outputs(self) -> list[str]:
        package = Path(self.get_ext_fullpath("anetorch._core")).parent
        return [*super().get_outputs(), str(package / self.lib_name())]


setup(
    version=version(),
    ext_modules=[Extension("anetorch._core", ["csrc/py/module.c"], py_limited_api=True)],
    cmdclass={"build_ext": BuildCore},
    options={"bdist_wheel": {"py_limited_api": "cp311"}
             | ({"plat_name": cross[1]} if (cross := target()) else {})},
)
