"""The worker pool: every task once, from any thread, nested, after fork; same bits for every
thread count; sizes from the environment."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from anetorch import _core

T = _core._testing


@pytest.fixture(autouse=True)
def _restore() -> None:
    before = _core.num_threads()
    yield
    _core.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_task_runs_once(threads: int) -> None:
    _core.set_num_threads(threads)
    for n in [0, 1, 2, 3, 100, 5000]:
        runs, top = T.parallel(n)
        assert (runs == 1).all() and runs.size == n
        assert top < threads


def test_nested_loops() -> None:
    _core.set_num_threads(4)
    for depth in (1, 2, 3):
        runs, _ = T.parallel(50, depth)
        assert (runs == 3**depth).all()


def test_loops_from_several_threads() -> None:
    _core.set_num_threads(4)
    wrong: list[int] = []

    def work() -> None:
        for _ in range(200):
            runs, _ = T.parallel(64)
            if not (runs == 1).all():
                wrong.append(1)

    crowd = [threading.Thread(target=work) for _ in range(6)]
    for t in crowd:
        t.start()
    for t in crowd:
        t.join()
    assert not wrong


def test_size_can_change_at_any_time() -> None:
    for n in [1, 5, 2, 9, 1, 3]:
        _core.set_num_threads(n)
        assert _core.num_threads() == n
        runs, top = T.parallel(200)
        assert (runs == 1).all() and top < n
    for bad in (0, -1, 4097, 1 << 40):
        with pytest.raises(ValueError, match="expected 1 to 4096"):
            _core.set_num_threads(bad)
    assert _core.num_threads() == 3


def test_same_bits_for_every_thread_count() -> None:
    rng = np.random.default_rng(0)
    for m, n, k in [(97, 131, 1100), (1, 1000, 300), (400, 3, 50), (64, 64, 64)]:
        a = rng.standard_normal((3, m, k)).astype(np.float32)
        b = rng.standard_normal((3, k, n)).astype(np.float16)
        got = []
        for threads in (1, 2, 3, 7):
            _core.set_num_threads(threads)
            c = np.empty((3, m, n), np.float32)
            T.gemm(T.tables()[-1], a, b, c)
            got.append(c.tobytes())
        assert len(set(got)) == 1, (m, n, k)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_gets_a_pool_of_its_own() -> None:
    code = """
import os, sys
from anetorch import _core
T = _core._testing
_core.set_num_threads(4)
assert (T.parallel(1000)[0] == 1).all()
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        ok = all((T.parallel(1000)[0] == 1).all() for _ in range(20))
        os._exit(0 if ok else 1)
    assert (T.parallel(1000)[0] == 1).all()
    assert os.waitpid(pid, 0)[1] == 0
print("fine")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                         timeout=60, check=False)
    assert run.stdout == "fine\n", run.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_while_another_thread_uses_the_pool() -> None:
    code = """
import os, threading
from anetorch import _core
T = _core._testing
_core.set_num_threads(3)
stop = False
def busy():
    while not stop: T.parallel(2000)
t = threading.Thread(target=busy); t.start()
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if (T.parallel(500)[0] == 1).all() else 1)
    assert os.waitpid(pid, 0)[1] == 0
stop = True; t.join()
print("fine")
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True,
                         text=True, timeout=60, check=False)
    assert run.stdout == "fine\n", run.stderr


@pytest.mark.parametrize(("value", "want"), [("3", 3), ("1", 1)])
def test_environment_sets_the_size(value: str, want: int) -> None:
    run = subprocess.run([sys.executable, "-c",
                          "from anetorch import _core; print(_core.num_threads())"],
                         env={**os.environ, "ANETORCH_NUM_THREADS": value},
                         capture_output=True, text=True, check=True)
    assert int(run.stdout) == want


@pytest.mark.parametrize("value", ["0", "many", "-2", "99999", "2x"])
def test_environment_nonsense_falls_back_to_the_cpus(value: str) -> None:
    code = "from anetorch import _core; print(_core.num_threads())"
    plain = {k: v for k, v in os.environ.items() if k != "ANETORCH_NUM_THREADS"}
    runs = [subprocess.run([sys.executable, "-c", code], env=env, capture_output=True,
                           text=True, check=True)
            for env in (plain, {**plain, "ANETORCH_NUM_THREADS": value})]
    assert runs[0].stdout == runs[1].stdout and not runs[0].stderr
    assert f"anetorch: ANETORCH_NUM_THREADS: expected 1 to 4096, got '{value}'" in runs[1].stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
def test_default_is_what_the_process_may_use() -> None:
    code = ("import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
            "from anetorch import _core; print(_core.num_threads())")
    env = {k: v for k, v in os.environ.items() if k != "ANETORCH_NUM_THREADS"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True,
                         check=True)
    assert run.stdout == "1\n"


def test_idle_workers_sleep() -> None:
    """A notebook that does nothing must cost nothing: no spinning between runs."""
    _core.set_num_threads(4)
    T.parallel(1000)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.05
