"""Experiments with the engine, off unless ``ANETORCH_EXPERIMENTS`` names them: other weights for
a compiled text without a compile. Public accounts contradict each other about both ways, so no
result is believed: each is compared with the CPU device before it is handed out, and where it
does not have the new weights, the program is compiled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from anetorch import mil, runtime

__all__ = ["WAYS", "with_weights"]

#: In the order in which they are tried. "patch" leaves the kernel as it is; "reload" takes it.
WAYS = ("patch", "reload")


def with_weights(kernel: runtime.Kernel, weights: Mapping[str, Any],
                 seed: int = 0) -> tuple[runtime.Kernel, str]:
    """A kernel of the same text with other weight files, and how it was made: "patch",
    "reload" or "compile".

    kernel: on device="ane", with its weights in files. weights: path ("@model_path/...") to
    bytes or Tensor, as for `anetorch.compile`; all that the text names. Without an experiment
    allowed this is a compile. After "reload", or its failure, ``kernel`` runs no more.

    A result is taken for right when, on random inputs, it is as near to the CPU device's answer
    for the new weights as ``kernel`` itself is to the one for the old weights (four times at
    most), and the old answer is further away than that.

    Raises ValueError for a kernel of another device.

    >>> new, how = with_weights(kernel, {"@model_path/weights/w.bin": blob})    # doctest: +SKIP
    >>> how                                                                     # doctest: +SKIP
    'compile'
    """
    if kernel.device != "ane":
        raise ValueError(f"[with_weights] the kernel runs on {kernel.device}; expected one with "
                         'device="ane"')
    allowed = {w.strip() for w in os.environ.get("ANETORCH_EXPERIMENTS", "").split(",")}
    ways = [w for w in WAYS if w in allowed or "all" in allowed]
    program = mil.Program.parse(kernel._program.text(), weights=weights)
    options = {"function": kernel._options["function"], "device": "ane"}
    if ways:
        probe = _Probe(kernel, program, seed)
        for way in ways:
            try:
                new = runtime.Kernel(program, **options, donor=kernel, exchange=way)
                if probe.believes(new):
                    return new, way
                del new
            except RuntimeError:        # refused, on the way or when it ran
                continue
    return runtime.Kernel(program, **options), "compile"


class _Probe:
    """Random inputs, and what the CPU device makes of them with the old and the new weights."""

    def __init__(self, kernel: runtime.Kernel, program: Any, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.inputs = [rng.standard_normal(p.shape).astype(p.dtype) for p in kernel.inputs]
        function = kernel._options["function"]
        self.old, self.new = (
            self._run(runtime.Kernel(p, function=function, numerics="ane"))
            for p in (kernel._program, program))
        self.error = _distances(self._run(kernel), self.old)

    def _run(self, kernel: runtime.Kernel) -> list[np.ndarray]:
        got = kernel(*self.inputs)
        return [np.array(a, np.float64) for a in (got.values() if isinstance(got, dict) else [got])]

    def believes(self, kernel: runtime.Kernel) -> bool:
        got = self._run(kernel)
        near, far = _distances(got, self.new), _distances(got, self.old)
        size, before = _distances(self.new, None), _distances(self.old, None)
        limits = [4 * e * max(1.0, s / b if b else 1.0) for e, s, b in zip(self.error, size, before)]
        close = all(n <= limit for n, limit in zip(near, limits))       # false for NaN
        return close and any(f > limit for f, limit in zip(far, limits))


def _distances(a: list[np.ndarray], b: list[np.ndarray] | None) -> list[float]:
    return [float(np.linalg.norm(x if b is None else x - y)) for x, y in zip(a, b or a)]
