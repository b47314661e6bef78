"""Runs single ops through the reference evaluator, and compares with float64 oracles."""

from __future__ import annotations

from typing import Any

import numpy as np

import anetorch.mil as mil
import tolerance
from anetorch import _core

MIL = {"float16": "fp16", "float32": "fp32", "int32": "int32", "bool": "bool", "int8": "int8",
       "uint8": "uint8", "int16": "int16", "uint16": "uint16"}
F = ["float16", "float32"]
FI = [*F, "int32"]
FIB = [*FI, "bool"]
A = [*FIB, "int8", "uint8", "int16", "uint16"]
SHAPES = [(), (1,), (7,), (0,), (3, 1), (2, 5), (1, 2, 3), (2, 3, 5, 7), (2, 1, 3, 2, 5), (4, 0, 3)]


def data(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0, low: float = -4,
         high: float = 4) -> np.ndarray:
    """Random values of a dtype; integers and floats in [low, high)."""
    rng = np.random.default_rng([seed, *shape])
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if np.issubdtype(np.dtype(dtype), np.integer):
        least = 0 if dtype.startswith("u") else int(low)
        return rng.integers(least, max(int(high), 1), shape).astype(dtype)
    return rng.uniform(low, high, shape).astype(dtype)


def build(op: str, inputs: dict[str, Any], opset: str = "ios18", shapes: dict | None = None,
          **consts: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """A program that is this op: inputs (arrays, or lists of arrays for tuples) are parameters,
    consts are constants. shapes: declared shapes of parameters, None for unknown dims."""
    specs: dict[str, Any] = {}
    values: dict[str, np.ndarray] = {}
    names: dict[str, Any] = {}
    for key, v in inputs.items():
        many = isinstance(v, list)
        keys = [f"{key}_{i}" if many else f"{key}_" for i in range(len(v) if many else 1)]
        names[key] = keys if many else keys[0]
        for k, a in zip(keys, v if many else [v], strict=True):
            a = np.asarray(a)
            specs[k] = mil.spec((shapes or {}).get(key, a.shape), MIL[a.dtype.name])
            values[k] = a

    def body(**params: Any) -> Any:
        args = {k: [params[n] for n in v] if isinstance(v, list) else params[v]
                for k, v in names.items()}
        return getattr(mil.ops, op)(**args, **consts)

    return mil.build(body, specs, opset=opset), values


def run(op: str, inputs: dict[str, Any], opset: str = "ios18", *, wide: bool = False,
        shapes: dict | None = None, seed: int = 0, **consts: Any) -> Any:
    """Results of one op: an array, or a list of them."""
    p, values = build(op, inputs, opset, shapes, **consts)
    out = list(_core._testing.eval(p, values, wide=wide, seed=seed).values())
    assert len(out) == len(p.block_info(p.functions()[0][2])["outputs"])
    return out[0] if len(out) == 1 else out


def rounded(got: Any, ref: Any, what: str, slack: float | np.ndarray = 0.0) -> None:
    """got is `ref` (float64) rounded once to got's float dtype; slack is the error that ref
    itself may have."""
    got, ref = np.asarray(got), np.asarray(ref, dtype=np.float64)
    with np.errstate(over="ignore"):
        target = ref.astype(got.dtype)
    ref = np.where(np.isinf(target), target.astype(np.float64), ref)
    bound = tolerance.rounding(np.where(np.isfinite(ref), ref, 0), got.dtype.name)
    # Two correct doubles may lie on either side of a rounding border.
    tolerance.check(got, ref, bound * (1 + 2.0**-20) + slack, what)


def same(got: Any, ref: Any, what: str = "") -> None:
    """Equal in shape, dtype and every bit that counts (NaN equals NaN)."""
    got, ref = np.asarray(got), np.asarray(ref)
    assert got.shape == ref.shape, f"{what}: shape {got.shape}, expected {ref.shape}"
    assert got.dtype == ref.dtype, f"{what}: dtype {got.dtype}, expected {ref.dtype}"
    np.testing.assert_array_equal(got, ref, err_msg=what)


HALVES = np.arange(65536, dtype=np.uint16).view(np.float16)
