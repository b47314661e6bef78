"""Random programs of exact arithmetic: plans against the reference evaluator, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from random_programs import BATCH, Case, random_program, spread

import anetorch
from anetorch import _core, mil

# Leaves: one rounding of what the evaluator rounds op by op, through functions of at most a few ulp.
LEAF = {"fp32": 2.0**-16, "fp16": 2.0**-8}


def expected(case: Case) -> tuple[dict, dict]:
    """What the evaluators give: rounding at every op, and never."""
    want = _core._testing.eval(case.program, case.inputs)
    wide = _core._testing.eval(case.program, case.inputs, wide=True)
    return {n: np.asarray(v) for n, v in want.items()}, {n: np.asarray(v, "f8") for n, v in wide.items()}


def compare(case: Case, got: dict, want: dict, wide: dict, what: str) -> int:
    """How many outputs were compared exactly."""
    exact = all(np.array_equal(want[n].astype("f8"), wide[n]) for n in case.exact)
    compared = 0
    for name, b in want.items():
        a = np.asarray(got[name])
        assert a.shape == b.shape and a.dtype == b.dtype, f"{what}, {name}: {a.dtype}{a.shape}"
        if not exact:                           # left the whole numbers: nothing to hold it to
            continue
        if name in case.exact:
            wrong = int((a != b).sum())
            assert not wrong, f"{what}, {name}: {wrong} of {a.size} elements are wrong"
            compared += 1
            continue
        tol = LEAF["fp16" if b.dtype == np.float16 else "fp32"]
        over = np.isinf(b)                      # beyond fp16: so must the kernel's be
        assert (a[over] == b[over]).all(), f"{what}, {name}"
        a, b, wide_b = a[~over], b[~over], wide[name][~over]
        # What rounding at every op cost the evaluator may be spared or spent by the kernel.
        error = np.abs(a.astype("f8") - wide_b) - 4 * np.abs(b.astype("f8") - wide_b)
        bound = tol * (np.abs(wide_b) + 2.0**-6 * np.abs(wide_b).max(initial=0)) + np.finfo(b.dtype).tiny
        assert (error <= bound).all(), f"{what}, {name}: off by {error.max()}"
    return compared


def results(kernel: anetorch.Kernel, arrays: dict, names: list[str], out: dict | None = None) -> dict:
    given = {} if out is None else {"out": out if len(out) > 1 else next(iter(out.values()))}
    got = kernel(*arrays.values(), **given)
    if isinstance(got, dict):
        return got
    return dict(zip(names, got if isinstance(got, tuple) else [got], strict=True))


def try_one(seed: int, folder, *, large: bool = False) -> int:
    case = random_program(seed, large=large)
    want, wide = expected(case)
    rng = np.random.default_rng([seed, 1])
    what = f"random_program({seed}, large={large})"
    program = case.program
    if seed % 3 == 1:
        program = mil.parse(str(program))
    types = [*case.inputs.values(), *want.values()]
    if seed % 3 == 2 and all(a.ndim and a.dtype != bool for a in types):
        program.save(folder / "m.mlpackage")
        program = anetorch.load(folder / "m.mlpackage").program
    kernel = anetorch.compile(program)
    names = list(want)
    compared = compare(case, results(kernel, case.inputs, names), want, wide, what)
    # Operands and results anywhere in memory.
    arrays = {n: spread(rng, a) for n, a in case.inputs.items()}
    out = {n: spread(rng, np.zeros(w.shape, w.dtype)) for n, w in want.items()}
    compare(case, results(kernel, arrays, names, out), want, wide, f"{what}, strided")
    # A result in an operand's own memory, whichever ops read that operand when.
    for n, w in want.items():
        like = [k for k, a in case.inputs.items() if a.shape == w.shape and a.dtype == w.dtype]
        if like:
            over = spread(rng, case.inputs[like[0]].copy())
            out = {k: np.zeros(v.shape, v.dtype) for k, v in want.items()} | {n: over}
            got = results(kernel, case.inputs | {like[0]: over}, names, out)
            compare(case, got, want, wide, f"{what}, {n} over {like[0]}")
            break
    return compared


def try_batches(seed: int) -> int:
    """One kernel, runs of several sizes of the unknown dimension, one of them twice."""
    case = random_program(seed, flexible=True)
    kernel, compared = anetorch.compile(case.program), 0
    for turn, batch in enumerate((3, 1, 8, 3)):
        rng = np.random.default_rng([seed, turn])
        arrays = {k: np.ascontiguousarray(a[rng.integers(0, BATCH, batch)]) if a.shape[:1] == (BATCH,) else a
                  for k, a in case.inputs.items()}
        this = case._replace(inputs=arrays)
        want, wide = expected(this)
        compared += compare(this, results(kernel, arrays, list(want)), want, wide,
                            f"random_program({seed}, flexible=True), {batch} rows")
    return compared


def sweep(seeds: range, folder, *, large: bool = False) -> None:
    compared = sum(try_one(seed, folder, large=large) for seed in seeds)
    assert compared > len(seeds)        # most programs stay within the whole numbers


def test_small_programs(tmp_path) -> None:
    sweep(range(300), tmp_path)


def test_large_programs(tmp_path) -> None:
    sweep(range(24), tmp_path, large=True)


def test_flexible_programs() -> None:
    assert sum(try_batches(seed) for seed in range(100)) > 400


@pytest.mark.slow
def test_many_programs(tmp_path) -> None:
    sweep(range(1000, 30000), tmp_path)


@pytest.mark.slow
def test_many_large_programs(tmp_path) -> None:
    sweep(range(1000, 2000), tmp_path, large=True)


@pytest.mark.slow
def test_many_flexible_programs() -> None:
    assert sum(try_batches(seed) for seed in range(1000, 6000)) > 20000
