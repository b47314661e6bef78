"""What a run costs through the flat bridge: ane_bridge_eval by ctypes, beside the same program
as a bound request, and beside ctypes' own cost.

    python benchmarks/bench_bridge.py [--json FILE] [--repeats N]

ctypes' cost is that of ane_bridge_free(NULL), which returns at once, called by eval's signature.
"added" is eval minus the request's run minus that.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from ctypes import c_bool, c_char_p, c_int, c_size_t, c_void_p

import common
import numpy as np

import anetorch

CALLS = 2000


def text(channels: int, columns: int) -> str:
    t = f"tensor<fp16, [1, {channels}, 1, {columns}]>"
    return (f"program(1.3)\n{{\n    func main<ios18>({t} x) {{\n"
            f"        {t} y = add(x = x, y = x)[name = string(\"y\")];\n    }} -> (y);\n}}\n")


def bridge() -> ctypes.CDLL:
    lib = ctypes.CDLL(anetorch.get_library())
    lib.ane_bridge_compile.restype = c_void_p
    lib.ane_bridge_compile.argtypes = [c_char_p, c_size_t, c_void_p, c_size_t, c_int, c_void_p, c_int, c_void_p]
    lib.ane_bridge_eval.restype, lib.ane_bridge_eval.argtypes = c_bool, [c_void_p]
    lib.ane_bridge_free.restype, lib.ane_bridge_free.argtypes = None, [c_void_p]
    assert lib.ane_bridge_init() == 0
    return lib


def per_call(run: object, argument: tuple) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        run(*argument)
    return (time.perf_counter() - start) / CALLS


def main() -> None:
    args = common.arguments(__doc__).parse_args()
    report = common.Report("bench_bridge", args.json)
    lib, empty = bridge(), ctypes.CDLL(anetorch.get_library()).ane_bridge_free
    empty.restype, empty.argtypes = c_bool, [c_void_p]
    for shape in ((1, 8, 1, 16), (1, 64, 1, 512)):
        source = text(shape[1], shape[3])
        size = c_size_t(2 * int(np.prod(shape)))
        handle = lib.ane_bridge_compile(source.encode(), len(source), None, 0, 1, ctypes.byref(size), 1,
                                        ctypes.byref(size))
        assert handle and lib.ane_bridge_eval(handle)
        request = anetorch.compile(source).bind({"x": anetorch.Tensor(shape, "float16")})
        times: dict[str, list[float]] = {"request.run": [], "ane_bridge_eval": [], "empty ctypes call": []}
        for i in range(-2, args.repeats * 5):
            for name, call, argument in (("request.run", request.run, ()),
                                         ("ane_bridge_eval", lib.ane_bridge_eval, (handle,)),
                                         ("empty ctypes call", empty, (None,))):
                took = per_call(call, argument)
                if i >= 0:
                    times[name].append(took)
        lib.ane_bridge_free(handle)
        for name, values in times.items():
            report.add(name, common.summary(values), shape=str(list(shape)), us=statistics.median(values) * 1e6)
        added = statistics.median(e - r - c for r, e, c in zip(*times.values()))
        print(f"added by the bridge at {list(shape)}: {added * 1e6:.3f} us")


if __name__ == "__main__":
    main()
