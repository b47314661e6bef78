"""What surrounds the process: environment switches, memory, and the one exception that
says "what you gave me cannot be used".

The variables that the C library reads are listed in csrc/base/env.h; docs/environment.md
has all of them. Python reads only ``ANETORCH_CACHE_DIR`` and ``ANETORCH_TRACEBACK``.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["InputError", "available_memory", "cache_dir", "check_memory", "gigabytes", "traceback_wanted"]


class InputError(ValueError):
    """Something the user gave cannot be used: the message says what, where and what to do.

    The command line prints it as one line and exits with 2; in a program it is a
    ``ValueError``.

    >>> try:
    ...     raise InputError("[train] notes.txt is empty: give a file with text")
    ... except ValueError as e:
    ...     print(e)
    [train] notes.txt is empty: give a file with text
    """


def cache_dir() -> Path:
    """Folder for what is expensive to make again; it need not exist.

    ``ANETORCH_CACHE_DIR``, else ``$XDG_CACHE_HOME/anetorch``, else the platform's place
    below the home folder.

    >>> cache_dir().name != ""
    True
    """
    if path := os.environ.get("ANETORCH_CACHE_DIR"):
        return Path(path)
    if path := os.environ.get("XDG_CACHE_HOME"):
        return Path(path) / "anetorch"
    home = Path(os.path.expanduser("~"))
    mac = home / "Library" / "Caches"
    return (mac if mac.is_dir() else home / ".cache") / "anetorch"


def traceback_wanted() -> bool:
    """True when ``ANETORCH_TRACEBACK=1``: the command line then shows Python's traceback
    instead of one line."""
    return os.environ.get("ANETORCH_TRACEBACK", "") not in ("", "0")


def _first_number(path: str) -> int | None:
    try:
        text = Path(path).read_text().strip()
        return int(text)
    except (OSError, ValueError):
        return None


def available_memory() -> int | None:
    """Bytes this process may still take, or None where the system does not say.

    The least of free memory (Linux ``MemAvailable``), the control group's rest and the
    process' address-space limit; on macOS the machine's memory.

    >>> n = available_memory()
    >>> n is None or n > 0
    True
    """
    limits: list[int] = []
    try:
        with open("/proc/meminfo") as f:
            limits += [int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable")]
    except OSError:
        try:
            limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        except (ValueError, OSError):
            pass
    for top, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes",
         "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        most, now = _first_number(top), _first_number(used)
        if most is not None and now is not None:
            limits.append(max(most - now, 0))
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limits.append(max(soft - pages * os.sysconf("SC_PAGE_SIZE"), 0))
    except (ImportError, OSError, ValueError):
        pass
    return min(limits) if limits else None


def gigabytes(n: int) -> str:
    """A size for people: MB below a gigabyte, GB (1e9 bytes) from there.

    >>> gigabytes(2_300_000_000), gigabytes(14_000_000)
    ('2.3 GB', '14.0 MB')
    """
    return f"{n / 1e9:,.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def check_memory(need: int, what: str, advice: str) -> None:
    """Raises InputError before anything is allocated when ``need`` bytes are not there.

    >>> check_memory(1, "[train] the model", "use a smaller one")
    """
    have = available_memory()
    if have is not None and need > have:
        raise InputError(f"{what} needs {gigabytes(need)} of memory and {gigabytes(have)} "
                         f"are free: {advice}")
