"""anetorch: write, run, test and train with Apple Neural Engine programs, anywhere."""

from anetorch import _core

__version__: str = _core.version()
