"""anetorch: write, run, test and train with Apple Neural Engine programs, anywhere."""

from anetorch import _core
from anetorch._core import Tensor
from anetorch.runtime import (
    Device,
    Difference,
    Kernel,
    Pipeline,
    Port,
    Request,
    compare,
    compile,
    devices,
    num_threads,
    set_num_threads,
)

MILError = _core.MILError
__version__: str = _core.version()
