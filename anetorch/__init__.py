"""anetorch: write, run, test and train with Apple Neural Engine programs, anywhere."""

# ruff: noqa: E402, I001
from anetorch._installed import built as _built

__path__ = _built(__path__, "_core*.so")     # a clone uses the installed _core

from anetorch import _core
from anetorch import sharing as sharing  # noqa: PLC0414  (teaches multiprocessing)
from anetorch._core import (
    Quantization,
    Tensor,
    TensorMap,
    TensorPool,
    gqa_reduce,
    gqa_tile,
    is_dma_available,
    is_iosurface_available,
    is_shm_available,
    to_fp16,
    to_fp32,
)
from anetorch import coreml, lint
from anetorch.config import get_include, get_library
from anetorch.coreml import Model, load
from anetorch.engine import (
    CacheInfo,
    CompileBudget,
    cache_clear,
    cache_info,
    compile_budget,
    realtime,
)
from anetorch.lint import lint
from anetorch.runtime import (
    Device,
    Difference,
    EngineWarning,
    Kernel,
    Pipeline,
    Placement,
    Port,
    Request,
    compare,
    compile,
    devices,
    get_num_threads,
    num_threads,
    set_num_threads,
)
from anetorch.weights import WeightBuffer, WeightFile, save_file

MILError = _core.MILError
__version__: str = _core.version()
