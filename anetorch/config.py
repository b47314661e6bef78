"""Linking the C library from other languages: where it is, and the command ``anetorch-config``.

The library carries its ABI's number in its name and needs no Python. Whoever links it by these
flags finds it at run time in the package's own folder.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from anetorch import _core

__all__ = ["cflags", "get_include", "get_library", "get_pkgconfig", "install_bridge", "libs", "main"]

BRIDGE_NAME = "libane_bridge.dylib"     # what existing clients look for, on every platform


def _folder() -> Path:
    return Path(_core.__file__).resolve().parent


def get_library() -> str:
    """Path of the shared C library, ``libanetorch``: for ctypes, or to link by path.

    >>> import ctypes
    >>> library = ctypes.CDLL(anetorch.get_library())
    >>> library.ane_bridge_init()
    0
    """
    found = sorted(_folder().glob("libanetorch.*"))
    if not found:
        raise FileNotFoundError(f"[get_library] no libanetorch in {_folder()}: install anetorch again")
    return str(found[0])


def get_include() -> str:
    """Folder of ``ane.h`` and ``ane_bridge.h``, for a compiler's ``-I``.

    >>> sorted(os.listdir(anetorch.get_include()))
    ['ane.h', 'ane_bridge.h']
    """
    return str(_folder() / "include")


def get_pkgconfig() -> str:
    """Folder of ``anetorch.pc``, for ``PKG_CONFIG_PATH``.

    >>> os.listdir(get_pkgconfig())
    ['anetorch.pc']
    """
    return str(_folder() / "pkgconfig")


def cflags() -> list[str]:
    """What a C compiler needs to find the headers.

    >>> cflags() == [f"-I{anetorch.get_include()}"]
    True
    """
    return [f"-I{get_include()}"]


def libs() -> list[str]:
    """What a linker needs, the run-time search path included.

    >>> libs()[0] == anetorch.get_library()
    True
    """
    return [get_library(), f"-Wl,-rpath,{_folder()}"]


def install_bridge(folder: str | os.PathLike[str]) -> Path:
    """Puts a link to the library into ``folder`` (made if absent) under the name that clients of
    the flat bridge look for, ``libane_bridge.dylib``, and returns its path. On Linux, too: ctypes
    loads by path, whatever the name.

    An earlier link is replaced; a file that is no link is another's: FileExistsError.

    >>> install_bridge("bridge").name
    'libane_bridge.dylib'
    """
    target = Path(folder) / BRIDGE_NAME
    if target.exists() and not target.is_symlink():
        raise FileExistsError(f"[install_bridge] {target} exists and is no link: move it away first")
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{BRIDGE_NAME}.{os.getpid()}")
    fresh.symlink_to(get_library())
    fresh.replace(target)               # at once: whoever loads it meanwhile finds one or the other
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``anetorch-config``; returns its exit code.

    >>> main(["--library"])
    /...libanetorch...
    0
    """
    p = argparse.ArgumentParser(prog="anetorch-config", allow_abbrev=False,
                                description="Flags for programs that use the C library, printed "
                                            "on one line in the order of this list.")
    facts = {
        "cflags": ("compiler flags", lambda: shlex.join(cflags())),
        "libs": ("linker flags", lambda: shlex.join(libs())),
        "version": ("version of the library", _core.version),
        "prefix": ("folder of the library", lambda: str(_folder())),
        "includedir": ("folder of the headers", get_include),
        "library": ("path of the library", get_library),
        "pkgconfigdir": ("folder of anetorch.pc, for PKG_CONFIG_PATH", get_pkgconfig),
    }
    for name, (text, _) in facts.items():
        p.add_argument(f"--{name}", action="store_true", help=text)
    p.add_argument("--install-bridge", metavar="DIR",
                   help=f"put a link named {BRIDGE_NAME} into DIR and print its path")
    args = p.parse_args(argv)
    wanted = [f for name, (_, f) in facts.items() if getattr(args, name)]
    if not wanted and args.install_bridge is None:
        p.error("expected one of the options of --help")
    try:
        words = [f() for f in wanted]
        if args.install_bridge is not None:
            words.append(str(install_bridge(args.install_bridge)))
    except OSError as e:
        sys.stderr.write(f"anetorch-config: {e}\n")
        return 2
    print(" ".join(words))
    return 0

