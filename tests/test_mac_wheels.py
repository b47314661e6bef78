"""Wheels for other machines, built here by ziglang and read back: nothing of them is run.

.ci/run builds them and names their folder in ANETORCH_TEST_CROSS_WHEELS; elsewhere only the
reader (macho.py) is tested, on a file made by hand.
"""

from __future__ import annotations

import os
import re
import struct
import zipfile
from pathlib import Path

import pytest

import anetorch
import macho
from test_linking import declared

ROOT = Path(__file__).resolve().parents[1]
WHEELS = sorted(Path(os.environ.get("ANETORCH_TEST_CROSS_WHEELS") or os.devnull).glob("*.whl"))
SYSTEM = "/usr/lib/libSystem.B.dylib"
CORE, LIBRARY = "anetorch/_core.abi3.so", f"anetorch/libanetorch.{0}.dylib"

# What the library calls of the system: C99 and POSIX.1-2008 as macOS had them in 10.13 and
# before, and the compiler's own helpers. A new name is looked up before it is added: an older
# system that lacks it would refuse to load the package.
OLD = set("""
__DefaultRuneLocale ___bzero ___error ___maskrune ___memcpy_chk ___memmove_chk ___memset_chk
___snprintf_chk ___stack_chk_fail ___stack_chk_guard ___stderrp ___strcat_chk ___strcpy_chk
___strncpy_chk ___tolower ___toupper ___udivti3 ___umodti3 ___vsnprintf_chk __tlv_bootstrap _abort _acos _acosf _asin
_asinf _asinh _asinhf _acosh _acoshf _atan _atan2 _atan2f _atanf _atanh _atanhf _bsearch _bzero
_calloc _cbrt _ceil _ceilf _clock_gettime _close _closedir _confstr _cos _cosf _cosh _coshf _dladdr
_dirfd _dlerror _dlopen _dlsym _erf _erfc _erff _exp _exp2 _exp2f _expf _expm1 _expm1f _fchmod _fclose
_fcntl _fdopen _fdopendir _fgets _flock _floor _floorf _fmax _fmaxf _fmin _fminf _fmod _fmodf _fopen _fprintf _fputs _fread
_free _frexp _fscanf _fseek _fstat _fstatat _fsync _ftell _ftruncate _fwrite _getcwd _getenv
_geteuid _getpid _getuid _gettimeofday _ldexp _lgamma _log _log10 _log1p _log2 _logf _lseek _lstat
_mach_absolute_time _mach_timebase_info _madvise _malloc _memchr _memcmp _memcpy _memmove _memset
_memset_pattern16 _memset_pattern4 _memset_pattern8 _mkdir _mkdirat _mkdtemp _mkstemp _mlock _mmap
_mprotect _munmap _nanosleep _nearbyint _nearbyintf _open _openat _opendir _posix_memalign _pow _powf _pread
_pthread_atfork _pthread_attr_destroy _pthread_attr_init _pthread_attr_setdetachstate
_pthread_attr_setstacksize _pthread_cond_broadcast _pthread_cond_destroy _pthread_cond_init
_pthread_cond_signal _pthread_cond_timedwait _pthread_cond_wait _pthread_create _pthread_detach
_pthread_equal _pthread_getspecific _pthread_join _pthread_key_create _pthread_mutex_destroy
_pthread_mutex_init _pthread_mutex_lock _pthread_mutex_trylock _pthread_mutex_unlock _pthread_once
_pthread_self _pthread_setspecific _pthread_sigmask _pwrite _qsort _read _readdir _realloc
_realpath _rename _renameat _rewinddir _rint _rintf _rmdir _round _roundf _sched_yield _shm_open
_shm_unlink _sigaction _sigemptyset _sigfillset _sin _sinf _sinh _sinhf _snprintf _sqrt _sqrtf _sscanf _stat
_strcasecmp _strchr _strcmp _strcpy _strcspn _strdup _strerror _strerror_r _strlen _strncasecmp
_strncmp _strncpy _strnlen _strpbrk _strrchr _strspn _strstr _strtod _strtof _strtol _strtoll
_strtoul _strtoull _symlink _sysconf _sysctlbyname _tan _tanf _tanh _tanhf _time _tolower _toupper _trunc _truncf
_unlink _unlinkat _usleep _utimensat _utimes _vsnprintf _write dyld_stub_binder
""".split())


@pytest.fixture(params=WHEELS or [None], ids=lambda p: p.name if p else "none")
def wheel(request: pytest.FixtureRequest) -> zipfile.ZipFile:
    if request.param is None:
        pytest.skip("ANETORCH_TEST_CROSS_WHEELS names no folder with wheels")
    return zipfile.ZipFile(request.param)


def tag(wheel: zipfile.ZipFile) -> str:
    return Path(wheel.filename).stem.split("-")[-1]


def images(wheel: zipfile.ZipFile) -> dict[str, macho.MachO]:
    if "macosx" not in tag(wheel):
        pytest.skip("not for macOS")
    return {n: macho.read(wheel.read(n)) for n in (CORE, LIBRARY)}


def test_all_targets_are_there() -> None:
    if not WHEELS:
        pytest.skip("ANETORCH_TEST_CROSS_WHEELS names no folder with wheels")
    tags = {w.stem.split("-")[-1] for w in WHEELS}
    text = (ROOT / "setup.py").read_text()
    assert tags == set(re.findall(r'\("[\w.-]+", "((?:macosx|manylinux)\w+)"\)', text))


def test_tags_and_contents(wheel: zipfile.ZipFile) -> None:
    stem, names = Path(wheel.filename).stem, set(wheel.namelist())
    assert stem == f"anetorch-{anetorch.__version__}-cp311-abi3-{tag(wheel)}"
    meta = wheel.read(f"anetorch-{anetorch.__version__}.dist-info/WHEEL").decode()
    assert re.findall(r"^Tag: (.*)$", meta, re.M) == [f"cp311-abi3-{tag(wheel)}"]
    assert "Root-Is-Purelib: false" in meta
    python = {p.relative_to(ROOT).as_posix() for p in (ROOT / "anetorch").rglob("*.py")}
    assert python <= names
    for wanted in ("include/ane.h", "include/ane_bridge.h", "mil/ops.py", "mil/ops.pyi", "py.typed"):
        assert f"anetorch/{wanted}" in names, wanted
    binaries = {n for n in names if re.search(r"\.(so|dylib)(\.\d+)?$", n)}
    mac = "macosx" in tag(wheel)
    assert binaries == ({CORE, LIBRARY} if mac else {CORE, "anetorch/libanetorch.so.0"})
    assert ("-lanetorch.0 " if mac else "-l:libanetorch.so.0 ") in wheel.read(
        "anetorch/pkgconfig/anetorch.pc").decode()


def test_architecture_and_oldest_system(wheel: zipfile.ZipFile) -> None:
    for name, image in images(wheel).items():
        major, minor, arch = re.fullmatch(r"macosx_(\d+)_(\d+)_(\w+)", tag(wheel)).groups()
        assert (image.arch, image.platform) == (arch, "macos"), name
        assert image.minimum == (int(major), int(minor)), name
        assert image.type == macho.DYLIB, name


def test_install_names(wheel: zipfile.ZipFile) -> None:
    """The module finds the library beside itself, and nothing else but the system's."""
    image = images(wheel)
    library = f"@rpath/{Path(LIBRARY).name}"
    assert image[LIBRARY].install_name == library
    assert image[LIBRARY].dylibs == [macho.Dylib(SYSTEM, False)]
    assert not image[LIBRARY].rpaths
    assert sorted(d.name for d in image[CORE].dylibs) == sorted([SYSTEM, library])
    assert image[CORE].rpaths == ["@loader_path"]


def test_undefined_symbols(wheel: zipfile.ZipFile) -> None:
    """The library needs libSystem, the module also Python's and the library's own names."""
    image = images(wheel)
    offered = {n for n in image[LIBRARY].exported if n.startswith("_ane_")}
    promised = {f"_{n}" for header in ("ane.h", "ane_bridge.h")
                for n in declared(header, wheel.read(f"anetorch/include/{header}").decode())}
    assert offered == promised | {"_ane__testing"}
    assert "_PyInit__core" in image[CORE].exported
    assert len(image[LIBRARY].undefined) > 50
    needed = {name: {(s.library, s.name) for s in i.undefined} for name, i in image.items()}
    for name, symbols in needed.items():
        # x86-64 names a function's variant behind a dollar sign.
        system = {n.partition("$")[0] for library, n in symbols if library == SYSTEM}
        assert system <= OLD, f"{name}: {sorted(system - OLD)}"
    assert {library for library, _ in needed[LIBRARY]} == {SYSTEM}
    rest = {(library, n) for library, n in needed[CORE] if library != SYSTEM}
    python = {n for library, n in rest if library == "dynamic lookup"}
    assert python and all(re.match(r"_(_?Py)", n) for n in python), python
    own = {n for library, n in rest if library == f"@rpath/{Path(LIBRARY).name}"}
    assert own and own <= offered
    assert len(rest) == len(python) + len(own), rest


def test_signature(wheel: zipfile.ZipFile) -> None:
    """Apple silicon starts no code without one; ad hoc is enough, and every page must match."""
    for name, image in images(wheel).items():
        if image.arch == "arm64":
            assert image.signature == macho.Signature(True, Path(name).name, True), name
        else:
            assert image.signature is None or image.signature.pages_match, name


def test_every_kernel_of_the_architecture_is_built(wheel: zipfile.ZipFile) -> None:
    """The compiler knew every instruction set: the tables' names are in the library."""
    name = next(n for n in wheel.namelist() if "/libanetorch." in n)
    data, arm = wheel.read(name), re.search("arm64|aarch64", tag(wheel))
    for table in (("neon", "neondot", "neonfp16", "neonfhm", "neonbf16") if arm
                  else ("avx2", "avx512", "avx512bf16", "avx512fp16")):
        assert re.search(rb"__%s\0" % table.encode(), data), table


# ---------------------------------------------------------------- the reader itself

def small_image() -> bytes:
    """A file with one of everything that the reader looks at."""
    def command(cmd: int, body: bytes) -> bytes:
        body += b"\0" * (-len(body) % 8)
        return struct.pack("<2I", cmd, 8 + len(body)) + body

    def dylib(cmd: int, name: bytes) -> bytes:
        return command(cmd, struct.pack("<4I", 24, 0, 0x10000, 0x10000) + name + b"\0")

    bind = (b"\x11\x40_one\0\x51\x72\x08\x90" b"\x3e\x41_two\0\x90" b"\x10\x40_three\0\x90\x00")
    lazy = b"\x72\x10\x11\x40_four\0\x90\x00"
    trie = b"\0\1_a\0\6" + b"\2\0\0\0"
    commands = [dylib(0xD, b"@rpath/x.dylib"), dylib(0xC, SYSTEM.encode()),
                command(0x8000001C, struct.pack("<I", 12) + b"@loader_path\0"),
                command(0x32, struct.pack("<4I", 1, 11 << 16, 11 << 16, 0))]
    size = sum(map(len, commands)) + 48
    at = 32 + size
    info = struct.pack("<10I", 0, 0, at, len(bind), 0, 0, at + len(bind), len(lazy),
                       at + len(bind) + len(lazy), len(trie))
    commands.append(command(0x80000022, info))
    header = struct.pack("<8I", 0xFEEDFACF, 0x0100000C, 0, 6, len(commands), size, 0x85, 0)
    return header + b"".join(commands) + bind + lazy + trie


def test_reading_a_file_made_by_hand() -> None:
    image = macho.read(small_image())
    assert (image.arch, image.type, image.install_name) == ("arm64", macho.DYLIB, "@rpath/x.dylib")
    assert image.dylibs == [macho.Dylib(SYSTEM, False)] and image.rpaths == ["@loader_path"]
    assert (image.platform, image.minimum, image.signature) == ("macos", (11, 0), None)
    assert image.undefined == {macho.Symbol("_one", SYSTEM, False), macho.Symbol("_three", "self", False),
                               macho.Symbol("_two", "dynamic lookup", True),
                               macho.Symbol("_four", SYSTEM, False)}
    assert image.exported == {"_a"}


def test_a_cut_file_is_refused_wherever_the_cut_is() -> None:
    data = small_image()
    for n in range(len(data)):
        with pytest.raises(macho.MachOError):
            macho.read(data[:n])


def test_a_changed_byte_gives_an_answer_or_the_error() -> None:
    data = small_image()
    refused = 0
    for i in range(len(data)):
        for value in (0, 1, 0x7F, 0xFF):
            try:
                macho.read(data[:i] + bytes([value]) + data[i + 1:])
            except macho.MachOError:
                refused += 1
    assert refused > 100
