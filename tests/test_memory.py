"""What a run takes of memory: stated before it, within a limit, and equal to what the allocator
hands out. memory_cases.py has the programs and measures them in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import memory_cases
import numpy as np
import pytest
from memory_cases import CASES, KEYS, PLAIN

import anetorch
import anetorch.mil as mil
from anetorch import Tensor, _core

T = _core._testing
o = mil.ops

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="cases run in forked children")


@cache
def measured(threads: int) -> dict[str, dict[str, Any]]:
    done = subprocess.run([sys.executable, str(Path(memory_cases.__file__))], capture_output=True, text=True,
                          env=os.environ | {"ANETORCH_NUM_THREADS": str(threads), "ANETORCH_BLAS": "off"})
    assert done.returncode == 0, done.stderr[-2000:]
    return {r["name"]: r for r in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(params=[(t, name) for t in (1, 2) for name in CASES], ids=lambda p: f"{p[0]}-{p[1]}")
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    threads, name = request.param
    record = measured(threads)[name]
    assert "error" not in record, record["error"]
    return {**record, "threads": threads}


def test_the_sum_is_what_the_allocator_hands_out(case: dict[str, Any]) -> None:
    """Every aligned block of a first run is in one class of memory(), to the byte, on any number
    of threads, whichever of them is fast; later runs take nothing. What bound tensors hold is
    their elements. Where everything runs on one thread, its blocks are filled to the last byte:
    nothing is stated that nobody needs (where an operand is kept packed, what it takes to do without
    is stated, too: somebody may begin to write to it)."""
    said = case["said"]
    assert said["total"] == sum(said[k] for k in KEYS)
    assert sum(said[k] for k in ("scratch", "packed", "kept", "threads", "rounding")) == case["most"] == case["later"]
    assert [said["inputs"], said["outputs"]] == case["bytes"] and case["rows"] == said["threads"]
    if case["threads"] == 1 and not said["kept"]:
        assert case["used"] == said["threads"]
    if case["name"] not in PLAIN:
        assert case["allocations"] == 0 and case["ran"] == said and said["reference"] == 0


def test_a_limit_of_the_sum_passes_and_one_byte_less_fails(case: dict[str, Any]) -> None:
    """At the binding, with one error and nothing allocated, where shapes tell everything."""
    limit = case["limit"]
    assert limit["fits"] == ""
    if not limit["total"]:
        return
    if case["name"] in PLAIN and case["ran"]["total"] > case["said"]["total"]:
        assert f"pass the memory limit of {limit['total'] - 1}: use smaller shapes" in limit["short"]
        return
    m, threads = case["least"], case["threads"]
    assert m["kept"] == 0
    assert limit["short took"] == 0
    assert limit["short"] == (
        f"[bind] main needs {m['total']} bytes for these shapes on {threads} thread{'s' * (threads > 1)} ({m['inputs']} "
        f"of inputs, {m['outputs']} of outputs, {m['constants']} of constants, {m['packed']} of packed weights, "
        f"{m['scratch']} of scratch, {m['threads']} of threads' blocks, {m['reference']} of reference evaluation, "
        f"{m['rounding']} of rounding) and the memory limit is {m['total'] - 1}: use smaller shapes or fewer threads, "
        f"or raise memory_limit or ANETORCH_MEMORY_LIMIT")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", sorted(PLAIN))
def test_what_evaluation_holds_is_counted(name: str, threads: int) -> None:
    """The doubles of plain evaluation come from malloc, with 16 bytes in front of each block, a
    record of at most 192 bytes for each value, and lists of pointers: 512 bytes per block are
    more than any of these. A request tells after a run what the run held; before it memory() has
    what shapes tell, which is never more."""
    r = measured(threads)[name]
    ran = r["ran"]
    assert r["said"]["reference"] <= ran["reference"] and ran["outputs"] == r["bytes"][1] + r["made"]
    assert 0 <= r["other"] - ran["reference"] <= r["made"] + 512 * r["blocks"]


@pytest.mark.parametrize(("name", "eight"), [("int8 conv", 40 * 24 * 9), ("int8 linear", 300 * 200)])
def test_constants_that_planning_computes_are_counted(name: str, eight: int) -> None:
    """8-bit weights, and the same widened: kept by the plan, in a block of their own with its 64
    bytes of alignment."""
    r = measured(1)[name]
    assert r["computed"] == 4 * eight + 64 and r["said"]["constants"] == 5 * eight


# ------------------------------------------------------------------ the number of threads


@pytest.fixture
def threads() -> Iterator[None]:
    before = anetorch.get_num_threads()
    anetorch.set_num_threads(1)
    yield
    anetorch.set_num_threads(before)


def product(m: int, k: int, n: int) -> mil.Program:
    return mil.build(lambda x, y: {"z": o.matmul(x=x, y=y)}, {"x": mil.spec((m, k), "fp32"), "y": mil.spec((k, n), "fp32")})


def test_more_threads_are_checked_before_they_allocate(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    p = product(400, 500, 600)
    total = anetorch.compile(p).memory()["total"]
    k = anetorch.compile(p, memory_limit=total)
    x, y, z = (Tensor(s.shape, mem="heap") for s in (*k.inputs, *k.outputs))
    x.copy_from(memory_cases.randoms((400, 500)))
    y.copy_from(memory_cases.randoms((500, 600)))
    r = k.bind({"x": x, "y": y}, {"z": z})
    r.run()
    first = z.numpy().copy()
    anetorch.set_num_threads(2)
    assert k.memory()["total"] > total
    T.mem_watch(True)
    try:
        with pytest.raises(MemoryError, match=rf"\[run\] main needs \d+ bytes for these shapes on 2 threads .* limit is {total}"):
            r.run()
        with pytest.raises(MemoryError, match=r"\[bind\] .* on 2 threads"):
            k.bind({"x": x, "y": y}, {"z": z})
        assert T.mem_watched()[0][1] == 0
    finally:
        T.mem_watch(False)
    anetorch.set_num_threads(1)
    r.run()
    np.testing.assert_array_equal(z.numpy(), first)


def test_a_run_keeps_the_threads_that_it_was_stated_for() -> None:
    """Another thread raises the number while products run: none of them takes more than what it
    stated when it began."""
    code = """if 1:
        import threading, numpy as np, anetorch, memory_cases as c
        from anetorch import _core
        anetorch.set_num_threads(1)
        k = anetorch.compile(c.CASES["matmul 256x768x768x1 fp32"]())
        said = {}
        for n in (1, 2, 3, 4):
            anetorch.set_num_threads(n)
            said[n] = max(b["bytes"] for b in k.memory().buffers if b["name"] == "caller")
        x = c.values(k)
        stop = threading.Event()
        def turn():
            n = 0
            while not stop.is_set():
                n += 1
                anetorch.set_num_threads(n % 4 + 1)
        t = threading.Thread(target=turn)
        t.start()
        r = k.bind(dict(zip("xy", x)))
        for _ in range(100): r.run()
        stop.set(); t.join()
        assert _core._testing.scratch_used() <= max(said.values()), (_core._testing.scratch_used(), said)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=os.environ | {"ANETORCH_BLAS": "off", "PYTHONPATH": str(Path(__file__).parent)})
    assert done.returncode == 0, done.stderr[-1500:]


def test_first_runs_at_once_wait_for_the_packing() -> None:
    """Constants are packed by whoever comes first; nobody runs unpacked meanwhile, which would
    take more than was stated."""
    k = anetorch.compile(memory_cases.CASES["linear long"]())
    x = memory_cases.randoms((200, 5000), "f2")
    most = max(b["bytes"] for b in k.memory().buffers if b["kind"] == "thread")
    found: list[tuple[int, np.ndarray]] = []

    def run() -> None:
        found.append((T.scratch_used(), k(x)))
        found[-1] = (T.scratch_used(), found[-1][1])

    crowd = [threading.Thread(target=run) for _ in range(6)]
    for t in crowd:
        t.start()
    for t in crowd:
        t.join()
    assert len(found) == 6 and all(used <= most for used, _ in found)
    for _, y in found:
        np.testing.assert_array_equal(y, found[0][1])


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs an interval timer")
@pytest.mark.parametrize("n", [1, 2])
def test_a_kernel_that_runs_inside_of_another_has_blocks_of_its_own(n: int, threads: None) -> None:
    """A signal's handler is called between the tasks of a running product, whose packed panels
    lie in this thread's blocks."""
    anetorch.set_num_threads(n)
    outer, inner = anetorch.compile(product(1500, 1500, 1500)), anetorch.compile(product(300, 2000, 900))
    x, y = memory_cases.randoms((1500, 1500)), memory_cases.randoms((1500, 1500)).T.copy()
    a, b = memory_cases.randoms((300, 2000)), memory_cases.randoms((2000, 900)) + 7
    want, other = outer(x, y), inner(a, b)
    calls = []

    def handler(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        calls.append(np.array_equal(inner(a, b), other))
        signal.setitimer(signal.ITIMER_REAL, 0.005)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.005)
    try:
        got = [outer(x, y) for _ in range(4)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(calls) > 4 and all(calls)
    for z in got:
        np.testing.assert_array_equal(z, want)


# ------------------------------------------------------------------ sizes that only a run knows


def test_a_result_beyond_the_limit_is_refused_when_its_size_is_known() -> None:
    """non_zero of zeros fits, of ones does not; afterwards the kernel runs again. x is 4 bytes an
    element, its doubles and those of the result are 8 each; the result itself comes when x's
    doubles are gone."""
    n = 20_000
    p = mil.build(lambda x: {"i": o.non_zero(x)}, {"x": mil.spec((n,), "fp32")})
    k = anetorch.compile(p, memory_limit=n * (4 + 8 + 8) - 1)
    r = k.bind({"x": (x := Tensor((n,), mem="heap"))})
    r.run()
    assert r.outputs["i"].shape == (0, 1)
    x.fill_(1)
    T.mem_watch(True)
    try:
        with pytest.raises(MemoryError, match=r"values whose size only the run knows, .* pass the memory limit of "
                                              rf"{n * 20 - 1}: use smaller shapes, or raise memory_limit"):
            r.run()
        assert T.mem_watched()[1][1] < 9 * n                    # x's doubles, and nothing of the result
    finally:
        T.mem_watch(False)
    x.fill_(0)
    r.run()
    roomy = anetorch.compile(p, memory_limit=n * (4 + 8 + 8))
    np.testing.assert_array_equal(roomy(np.ones(n, np.float32)), np.arange(n)[:, None])


def test_a_loop_that_grows_is_stopped() -> None:
    """A list that every turn makes longer: the error comes in the turn whose value would pass."""
    p = mil.build(lambda n, x: o.list_length(o.while_loop(
        loop_vars=(n, o.make_list(elem_shape=[1000], init_length=1, dynamic_length=True, dtype="fp32")),
        cond=lambda i, ls: o.greater(x=i, y=0),
        body=lambda i, ls: (o.sub(x=i, y=1), o.list_write(ls=ls, index=i, value=o.mul(x=x, y=o.cast(x=i, dtype="fp32")))))[1]),
        {"n": mil.spec((), "int32"), "x": mil.spec((1000,), "fp32")})
    k = anetorch.compile(p, memory_limit=300_000)
    x = np.ones(1000, np.float32)
    assert int(np.asarray(k(np.int32(10), x))) == 11
    with pytest.raises(MemoryError, match="pass the memory limit of 300000"):
        k(np.int32(1000), x)
    assert int(np.asarray(k(np.int32(10), x))) == 11


def test_allocations_of_a_run_may_fail() -> None:
    """Any block, of the caller or a worker, refused: an error, and the next run is right."""
    k = anetorch.compile(memory_cases.CASES["residual net"]())
    x = memory_cases.randoms((1, 3, 112, 112))
    want = anetorch.compile(memory_cases.CASES["residual net"]())(x)

    def fresh() -> None:                        # a thread has no blocks yet
        n = 1
        while n:
            T.fail_after(n)
            try:
                np.testing.assert_array_equal(anetorch.compile(memory_cases.CASES["linear long"]()).memory() and k(x), want)
                n = 0 if T.fail_after(0) < n else n + 1
            except MemoryError:
                T.fail_after(0)
                n += 17

    failed: list[BaseException] = []

    def run() -> None:
        try:
            fresh()
        except BaseException as e:
            failed.append(e)

    t = threading.Thread(target=run)
    t.start()
    t.join()
    assert not failed, failed
