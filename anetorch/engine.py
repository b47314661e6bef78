"""The engine as a whole: how often it may still compile, what it has compiled before, and
its real-time mode. Running programs on it is runtime.py's."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from anetorch import _core

__all__ = ["CacheInfo", "CompileBudget", "cache_clear", "cache_info", "compile_budget",
           "realtime"]


class CompileBudget(NamedTuple):
    """Calls of the engine's compiler by this process: made, allowed (0: no limit), and the
    count at which a warning comes.

    >>> anetorch.compile_budget().used
    0
    """

    used: int
    limit: int
    warn_at: int


class CacheInfo(NamedTuple):
    """The index of the compile cache: its folder, entries on disk with their limit and bytes,
    and what this process met: hits (loaded without a compile), misses, and entries that were
    stale, which cost one compile.

    >>> anetorch.cache_info().hits
    0
    """

    folder: Path
    entries: int
    limit: int
    bytes: int
    hits: int
    misses: int
    stale: int


def compile_budget() -> CompileBudget:
    """How many programs this process has let the engine compile, and how many it may.

    The engine is believed to stop at about 119 a process. Near that a RuntimeWarning comes,
    once; beyond it `compile` raises RuntimeError. ``ANETORCH_COMPILE_BUDGET`` sets another
    limit, 0 none. What loads from the cache costs nothing.

    >>> used, limit, warn_at = anetorch.compile_budget()
    >>> limit, warn_at
    (119, 100)
    """
    return CompileBudget(*_core.compiles())


def cache_info() -> CacheInfo:
    """State of the compile cache.

    Compiled code stays with the system; ours is an index of what was compiled from what, on
    which chip and system. Only what agrees with an entry in every byte is loaded without
    a compile.

    >>> anetorch.cache_info().entries <= anetorch.cache_info().limit
    True
    """
    folder, *numbers = _core.cache_info()
    return CacheInfo(Path(folder), *numbers)


def cache_clear() -> int:
    """Forgets every entry of the compile cache's index and returns how many there were: each
    program is compiled once more. Loaded kernels stay as they are.

    Raises OSError where an entry cannot be removed.

    >>> anetorch.cache_clear()                                          # doctest: +SKIP
    10
    """
    return _core.cache_clear()


_realtime_lock = threading.Lock()
_realtime_users = 0
_realtime_granted = False


@contextmanager
def realtime() -> Iterator[bool]:
    """Asks the system to treat the process' work on the engine as a real-time task.

    Gives whether it was granted. Everybody who published an answer got False, as the system
    wants an entitlement for it; what it would do is not known. May be nested: the first asks
    and the last ends it. Without an engine: False.

    >>> with anetorch.realtime() as granted:
    ...     print(granted)
    False
    """
    global _realtime_users, _realtime_granted
    with _realtime_lock:
        if _realtime_users == 0:
            try:
                _realtime_granted = _core.realtime(True)
            except NotImplementedError:         # no engine: nothing was granted
                _realtime_granted = False
        _realtime_users += 1
        granted = _realtime_granted
    try:
        yield granted
    finally:
        with _realtime_lock:
            _realtime_users -= 1
            if _realtime_users == 0 and _realtime_granted:
                _core.realtime(False)


_warned = False


def warn_near_budget() -> None:
    """A RuntimeWarning, once, when few compiles are left; runtime.py calls it after each."""
    global _warned
    used, limit, warn_at = _core.compiles()
    if not _warned and limit and used >= warn_at:
        _warned = True
        warnings.warn(f"[compile] {used} of the {limit} programs that this process may have the "
                      "engine compile are used up: make weights inputs so that kernels are "
                      "reused, or go on in a new process", RuntimeWarning, stacklevel=4)
