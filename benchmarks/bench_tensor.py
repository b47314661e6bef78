"""Tensors: allocation and mapping per kind, copies beside NumPy's, sharing, the pool.

    python benchmarks/bench_tensor.py [--json FILE] [--repeats N]

memcpy is the C library's, called through ctypes on the same bytes; NumPy is np.copyto into an
array that exists. Every copy is checked before it is timed. Short calls are timed in batches.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import Report, arguments, measure, summary

import anetorch
from anetorch import Tensor, TensorPool

SIZES = {"4KB": 4 << 10, "4MB": 4 << 20, "32MB": 32 << 20}

memcpy = ctypes.CDLL(None).memcpy
memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def batch(run: Callable[[], object], n: int, repeats: int) -> dict[str, float]:
    """measure() of n calls, per call."""
    def many() -> None:
        for _ in range(n):
            run()
    times = measure(many, repeats=repeats)
    return {**times, "median": times["median"] / n, "minimum": times["minimum"] / n}


class Micro:
    """A report whose lines also show microseconds."""

    def __init__(self, path: str | None) -> None:
        self._report = Report("bench_tensor", path)

    def add(self, name: str, times: dict[str, float], **facts: Any) -> None:
        self._report.add(name, times, us=times["minimum"] * 1e6, **facts)


def allocation(report: Micro, repeats: int) -> None:
    for kind in ("heap", "shm", "iosurface", "dma"):
        if kind in ("iosurface", "dma") and not getattr(anetorch, f"is_{kind}_available")():
            print(f"{kind}: not available here", file=sys.stderr)
            continue
        for label, n in SIZES.items():
            report.add(f"alloc+close {kind} {label}",
                       batch(lambda: Tensor((n,), "uint8", mem=kind).close(), 200,
                             repeats=repeats))
            t = Tensor((n,), "uint8", mem=kind)
            report.add(f"map+unmap {kind} {label}", batch(lambda: t.map().unmap(), 1000,
                                                          repeats=repeats))
    report.add("alloc+close default 4KB", batch(lambda: Tensor((4096,), "uint8").close(), 1000,
                                                repeats=repeats))
    pool = TensorPool()
    report.add("pool empty+close 1KB", batch(lambda: pool.empty((8, 64), "float16").close(), 1000,
                                             repeats=repeats))


def copies(report: Micro, repeats: int) -> None:
    rng = np.random.default_rng(0)
    for label, n in SIZES.items():
        x, y = rng.integers(0, 255, n, dtype=np.uint8), np.zeros(n, np.uint8)
        t = Tensor((n,), "uint8").copy_from(x)
        assert (t.numpy() == x).all()
        source, target = x.ctypes.data, y.ctypes.data
        loops = max(1, (8 << 20) // n)
        # Taken in turn, so that a change of the machine's load meets both.
        a = batch(lambda: memcpy(target, source, n), loops, repeats=repeats)
        b = batch(lambda: t.copy_from(x), loops, repeats=repeats)
        report.add(f"memcpy {label}", a, bytes=n)
        report.add(f"copy_from {label}", b, bytes=n, of_memcpy=a["minimum"] / b["minimum"])

        def fresh() -> None:            # memcpy into memory that was never touched
            with mmap.mmap(-1, n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as m:
                memcpy(ctypes.addressof(ctypes.c_char.from_buffer(m)), source, n)

        a = batch(fresh, max(1, loops // 4), repeats=repeats)
        b = batch(lambda: Tensor.from_numpy(x, mem="heap").close(), max(1, loops // 4),
                  repeats=repeats)
        c = batch(lambda: Tensor.from_numpy(x).close(), max(1, loops // 4), repeats=repeats)
        report.add(f"memcpy to fresh memory {label}", a, bytes=n)
        report.add(f"from_numpy heap {label}", b, bytes=n, of_memcpy=a["minimum"] / b["minimum"])
        report.add(f"from_numpy shm {label}", c, bytes=n, of_memcpy=a["minimum"] / c["minimum"])
    base = rng.normal(size=(2048, 2048)).astype(np.float32)
    views = {"transposed": base.T, "step 2": base[:, ::2], "negative": base[::-1, ::-1],
             "rows": base[:, :1000], "permuted": base.reshape(64, 32, 512, 4).transpose(0, 2, 1, 3)}
    for label, v in views.items():
        for dtype in ("float32", "float16"):
            t, d = Tensor(v.shape, dtype), np.empty(v.shape, dtype)
            t.copy_(v)
            np.copyto(d, v)
            assert (t.numpy() == d).all()
            a = measure(lambda: np.copyto(d, v), repeats=repeats)
            b = measure(lambda: t.copy_(v), repeats=repeats)
            report.add(f"strided {label} -> {dtype}", b, numpy=a["minimum"],
                       of_numpy=a["minimum"] / b["minimum"])


# Answers with how long it took to open, write and close the tensor that it was told of; with
# 0 to an "echo".
CHILD = """
import os, struct, time
from anetorch import Tensor
while message := os.read(0, 4096):
    start = stop = 0
    if message != b"echo":
        start = time.perf_counter()
        t = Tensor.lookup(message.decode())
        t[0] = 1
        t.close()
        stop = time.perf_counter()
    os.write(1, struct.pack("d", stop - start))
"""


def sharing(report: Micro, repeats: int) -> None:
    t = Tensor((1024, 1024), "float16", mem="shm")
    report.add("id + lookup + close, same process 2MB",
               batch(lambda: Tensor.lookup(t.id).close(), 200, repeats=repeats))
    report.add("from_fd + close 2MB",
               batch(lambda: Tensor.from_fd(t.fileno(), t.shape, "float16").close(), 200,
                     repeats=repeats))
    small = Tensor((64,), "float32")
    report.add("id + lookup + close, same process 256B",
               batch(lambda: Tensor.lookup(small.id).close(), 200, repeats=repeats))
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, bufsize=0)
    there, back = child.stdin.fileno(), child.stdout.fileno()

    def ask(message: bytes) -> float:
        os.write(there, message)
        return struct.unpack("d", os.read(back, 8))[0]

    ask(t.id.encode())
    assert t[0, 0].item() == 1
    # In turn: the pipe alone there and back, and with the sharing. What it takes in both
    # processes is the id here and what the other process measured.
    whole, echo, share = [], [], []
    for _ in range(100 * repeats):
        start = time.perf_counter()
        ask(b"echo")
        turn = time.perf_counter()
        ident = t.id
        made = time.perf_counter()
        spent = ask(ident.encode())
        end = time.perf_counter()
        echo.append(turn - start)
        share.append(made - turn + spent)
        whole.append(end - turn)
    report.add("share with another process: id, lookup, write, close", summary(share))
    report.add("  the same with a pipe there and back", summary(whole))
    report.add("  that pipe alone", summary(echo))
    child.stdin.close()
    child.wait()


def main() -> None:
    args = arguments(__doc__).parse_args()
    if args.threads:
        anetorch.set_num_threads(args.threads)
    report = Micro(args.json)
    for part in (allocation, copies, sharing):
        part(report, args.repeats)


if __name__ == "__main__":
    main()
