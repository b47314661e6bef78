"""Sends tensors through :mod:`multiprocessing` without a copy.

Importing this module (``import anetorch`` does) teaches multiprocessing's pickler: a shared
memory tensor travels as a descriptor, whatever the start method, and both processes see the
same bytes from then on. Heap and external tensors, which have no descriptor, travel by value.
"""

from __future__ import annotations

import os
import weakref
from multiprocessing import context, reduction
from typing import Any

from anetorch._core import Tensor

__all__ = ["register"]


def _reduce(t: Tensor) -> tuple[Any, ...]:
    try:
        fd, *rest = t._share()
    except NotImplementedError:
        return t.__reduce__()
    popen = context.get_spawning_popen()
    if popen is not None:
        # A child that is being spawned inherits descriptors by number. Small tensors have
        # theirs in common, and each message closes its own: so each gets its own.
        fd = os.dup(fd)
        weakref.finalize(popen, os.close, fd)
    return _rebuild, (type(t), reduction.DupFd(fd), *rest)


def _rebuild(cls: type[Tensor], handle: Any, *rest: Any) -> Tensor:
    fd = handle.detach()
    try:
        return cls._from_share(fd, *rest)
    finally:
        os.close(fd)


def register(cls: type[Tensor]) -> None:
    """Lets a subclass travel like Tensor itself (else it travels by value)."""
    reduction.register(cls, _reduce)


register(Tensor)
