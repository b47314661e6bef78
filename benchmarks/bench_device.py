"""The engine's device on the test suite's stand-in: what our own code costs. No engine and no
hardware is measured: whatever the stand-in spends inside an evaluation is taken off.

    python benchmarks/bench_device.py [--json FILE] [--repeats N]

evaluate: one run of a bound request, less the time inside evaluateWithQoS:..., for operands that
lie in IOSurfaces of the engine's layout (nothing is copied) and for ones of 16 KiB that are staged.
cache hit: anetorch.compile of the ten packed kernels of stories110m at 256 positions in a fresh
process, when the system has them compiled and the index knows it. Medians.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np

sys.path.insert(0, str(common.ROOT / "tests"))


def evaluate() -> dict[str, list[float]]:
    """Seconds of a run outside the engine, one for each batch of runs."""
    import anetorch
    from anetorch import mil

    lib = ctypes.CDLL(os.environ["ANETORCH_APPLE_RUNTIME"])
    lib.standin_get.restype = ctypes.c_long
    shape = (1, 64, 4, 32)

    @mil.program(z=mil.spec(shape, "fp16"), a=mil.spec(shape, "fp16"), opset="ios18")
    def program(z: mil.Value, a: mil.Value) -> dict[str, mil.Value]:
        return {"y": z - a}

    kernel, cpu = anetorch.compile(program, device="ane"), anetorch.compile(program, numerics="ane")
    rng = np.random.default_rng(1)
    x, w = (rng.standard_normal(shape).astype(np.float16) for _ in range(2))
    out = {}
    for name, memory in (("in place", "iosurface"), ("staged", "shm")):
        z, a, y = (anetorch.Tensor(shape, "float16", mem=memory) for _ in range(3))
        z.copy_(x)
        a.copy_(w)
        request = kernel.bind([z, a], [y])
        request.run()
        np.testing.assert_array_equal(y.numpy(), np.asarray(cpu(x, w)))
        out[name] = []
        for _ in range(41):
            n, inside, start = 200, lib.standin_get(b"engine_ns"), time.perf_counter()
            for _ in range(n):
                request.run()
            took = time.perf_counter() - start
            out[name].append((took - (lib.standin_get(b"engine_ns") - inside) * 1e-9) / n)
        del request
    return out


def ten_kernels() -> list[float]:
    """Seconds that compiling all ten took in this process, and hits of the cache: (s, hits)."""
    import anetorch
    from anetorch.kernels import packed
    from anetorch.nn.config import Config

    programs = [make(Config.preset("stories110m"), 256) for make in packed.ALL.values()]
    anetorch.devices()                  # the framework is loaded and probed once a process
    start = time.perf_counter()
    kernels = [anetorch.compile(p, device="ane") for p in programs]
    took = time.perf_counter() - start
    del kernels
    return [took, anetorch.cache_info().hits, anetorch.compile_budget().used]


def main() -> None:
    args = common.arguments(__doc__).parse_args()
    from standin_run import build, environment

    report = common.Report("bench_device", args.json)
    with tempfile.TemporaryDirectory() as folder:
        lib = build(Path(folder) / "standin.so")
        env = environment(lib, Path(folder)) | {"STANDIN_DAEMON": f"{folder}/daemon"}
        (Path(folder) / "daemon").mkdir()

        def child(what: str) -> object:
            done = subprocess.run([sys.executable, __file__, "--child", what], env=env, check=True,
                                  capture_output=True, text=True, cwd=common.ROOT)
            return json.loads(done.stdout)

        for name, times in child("evaluate").items():
            add(report, f"evaluate, {name}", times)
        child("ten_kernels")            # compiles them
        rounds = [child("ten_kernels") for _ in range(max(5, args.repeats))]
        # Two texts of the ten are another's, so eight programs are loaded.
        assert all(hits == 8 and compiles == 0 for _, hits, compiles in rounds), rounds
        add(report, "cache hit of ten kernels", [r[0] for r in rounds])


def add(report: common.Report, name: str, times: list[float]) -> None:
    low, median, high = statistics.quantiles(times, n=4)
    report.add(name, {"median": median, "minimum": min(times), "spread": (high - low) / median,
                      "repeats": len(times)}, us=median * 1e6)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps({"evaluate": evaluate, "ten_kernels": ten_kernels}[sys.argv[2]]()))
    else:
        main()
