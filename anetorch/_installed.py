"""Built files for a source tree that was not built.

``python -m pytest`` in a clone imports the clone's ``anetorch``, which has no compiled
``_core`` and no generated ``mil/ops.py``; the installed package has both. ``built`` lets a
package of the clone look there too, and complains when the two are of different versions.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

__all__ = ["built"]

_TOP = Path(__file__).resolve().parent


def _installed() -> Path | None:
    """The first other anetorch on the path that is built."""
    for entry in sys.path:
        other = Path(entry or ".").resolve() / "anetorch"
        if other != _TOP and any(other.glob("_core*.so")):
            return other
    return None


def _version_of(package: Path) -> str | None:
    """Version of an installed package, from the metadata beside it."""
    for meta in package.parent.glob("anetorch-*.dist-info"):
        return meta.name.removeprefix("anetorch-").removesuffix(".dist-info")
    return None


def built(path: list[str], wanted: str) -> list[str]:
    """``path`` (a package's ``__path__``), with the installed package's folder behind it when
    no file of the pattern ``wanted`` is in the first.

    Raises ImportError, in one line, where there is nothing to fall back to.

    >>> import anetorch
    >>> built(list(anetorch.__path__[:1]), "__init__.py") == list(anetorch.__path__[:1])
    True
    """
    here = Path(path[0]).resolve()
    if any(here.glob(wanted)):
        return path
    source = _TOP.parent
    remedy = f"run `pip install .` in {source}"
    other = _installed()
    if other is None and here != _TOP:
        return path                             # anetorch itself is built: nothing is missing
    if other is None:
        raise ImportError(f"anetorch in {source} is not built and no built one is installed: {remedy}")
    header = source / "csrc" / "ane.h"
    if header.exists():
        mine = re.search(r'#define ANE_VERSION "([^"]+)"', header.read_text(encoding="utf-8"))
        theirs = _version_of(other)
        if mine and theirs and mine[1] != theirs:
            raise ImportError(f"anetorch {mine[1]} in {source} is not built and the installed one "
                              f"is {theirs}: {remedy}")
    return [*path, str(other / here.relative_to(_TOP))]
