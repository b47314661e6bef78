"""Bound weights of products of few rows are packed once per write: every way of writing to them
gives the new numbers at the next run, and runs without a write pack nothing."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anetorch
import anetorch.mil as mil
from anetorch import Tensor, _core, surface_io

T = _core._testing
o = mil.ops

M, K, N = 4, 96, 640


def matmul(m: int = M, transposed: bool = False, dtype: str = "fp32") -> mil.Program:
    shape = (N, K) if transposed else (K, N)
    return mil.build(lambda x, w: {"y": o.matmul(x=x, y=w, transpose_y=transposed)},
                     {"x": mil.spec((m, K), dtype), "w": mil.spec(shape, dtype)})


def draw(*shape: int, seed: int = 0, dtype: str = "f4") -> np.ndarray:
    """Small integers: every product is exact, whatever the order of its sums."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(dtype)


def new(a: np.ndarray, mem: str = "heap") -> Tensor:
    return Tensor(a.shape, a.dtype, mem).copy_from(a)


class Bound:
    """A request, and what its operands are to hold."""

    def __init__(self, mem: str = "heap", w: Tensor | None = None, dtype: str = "f4", transposed: bool = False,
                 **how: Any) -> None:
        self.kernel = anetorch.compile(matmul(transposed=transposed, dtype={"f4": "fp32", "f2": "fp16"}[dtype]), **how)
        shape = (N, K) if transposed else (K, N)
        self.have = draw(*shape, seed=1, dtype=dtype)
        self.transposed = transposed
        self.w = new(self.have, mem) if w is None else w
        self.xs = draw(M, K, seed=2, dtype=dtype)
        self.x, self.y = new(self.xs, mem), Tensor((M, N), dtype, mem)
        self.request = self.kernel.bind({"x": self.x, "w": self.w}, {"y": self.y})

    def run(self) -> int:
        """Runs, checks, and says how often it packed. Only y is looked at: looking at w through
        NumPy would be a time in which somebody may write."""
        before = T.kept_packs()
        self.request.run()
        w = self.have.T if self.transposed else self.have
        want = (self.xs.astype("f8") @ w.astype("f8")).astype(self.have.dtype)
        np.testing.assert_array_equal(self.y.numpy(), want)
        return T.kept_packs() - before

    def steady(self) -> "Bound":
        self.run()
        assert [self.run() for _ in range(3)] == [0, 0, 0] and self.request.memory()["kept"]
        return self


@pytest.mark.parametrize("mem", ["heap", "shm"])
@pytest.mark.parametrize("transposed", [False, True])
def test_packed_once(mem: str, transposed: bool) -> None:
    b = Bound(mem, transposed=transposed)
    assert [b.run() for _ in range(5)] == [1, 0, 0, 0, 0]
    assert b.request.profile()[0]["packed"] == "kept"
    for seed in range(3, 6):                    # activations change at every run, weights do not
        b.xs = draw(M, K, seed=seed)
        b.x.copy_from(b.xs)
        assert b.run() == 0
    b.have = draw(*b.have.shape, seed=9)
    b.w.copy_from(b.have)
    assert [b.run() for _ in range(3)] == [1, 0, 0]


def test_the_narrow_side_may_be_columns() -> None:
    """w x with few columns: w is the left operand."""
    k = anetorch.compile(mil.build(lambda w, x: {"y": o.matmul(x=w, y=x)},
                                   {"w": mil.spec((N, K), "fp32"), "x": mil.spec((K, M), "fp32")}))
    w, x, y = draw(N, K), draw(K, M, seed=1), Tensor((N, M), mem="heap")
    tw = new(w)
    r = k.bind({"w": tw, "x": new(x)}, {"y": y})
    before = T.kept_packs()
    for _ in range(3):
        r.run()
        np.testing.assert_array_equal(y.numpy(), w @ x)
    assert T.kept_packs() == before + 1
    tw.fill_(2)
    r.run()
    np.testing.assert_array_equal(y.numpy(), np.full_like(w, 2) @ x)


# ------------------------------------------------------------------ every way to write


def by_numpy(b: Bound) -> None:
    b.w.numpy()[3:5, 7] = b.have[3:5, 7] = 5


def by_asarray(b: Bound) -> None:
    np.asarray(b.w)[0] = b.have[0] = -3


def by_memoryview(b: Bound) -> None:
    with memoryview(b.w) as m:
        m[1, 2] = 6.0
    b.have[1, 2] = 6


def by_dlpack(b: Bound) -> None:
    np.from_dlpack(b.w)[:, 9] = b.have[:, 9] = 4


def by_torch(b: Bound) -> None:
    torch = pytest.importorskip("torch")
    torch.from_dlpack(b.w)[2].fill_(7)
    b.have[2] = 7


def by_copy(b: Bound) -> None:
    b.have = draw(K, N, seed=5)
    b.w.copy_from(b.have)


def by_copy_broadcast(b: Bound) -> None:
    b.w.copy_(draw(1, N, seed=6))
    b.have[:] = draw(1, N, seed=6)


def by_fill(b: Bound) -> None:
    b.w.fill_(3)
    b.have[:] = 3


def by_setitem(b: Bound) -> None:
    b.w[5] = draw(N, seed=7)
    b.have[5] = draw(N, seed=7)


def by_setitem_of_one(b: Bound) -> None:
    b.w[5, 6] = 8
    b.have[5, 6] = 8


def by_slice(b: Bound) -> None:
    b.w[10:20, 3].fill_(1)
    b.have[10:20, 3] = 1


def by_reshaped(b: Bound) -> None:
    b.w.reshape(-1)[100:200].fill_(2)
    b.have.reshape(-1)[100:200] = 2


def by_turned(b: Bound) -> None:
    b.w.t[4].fill_(-1)
    b.have.T[4] = -1


def by_retyped(b: Bound) -> None:
    b.w.view(0, (K * N,), "int32")[3:9].fill_(0)
    b.have.reshape(-1)[3:9] = 0


def by_map(b: Bound) -> None:
    with b.w.map("w") as m:
        m.numpy()[7] = 2
        b.have[7] = 2


def by_map_element(b: Bound) -> None:
    with b.w.map("rw") as m:
        m[11] = 5
    b.have.reshape(-1)[11] = 5


def by_kernel(b: Bound) -> None:
    k = anetorch.compile(mil.build(lambda a: {"b": o.mul(x=a, y=np.float32(2))}, {"a": mil.spec((K, N), "fp32")}))
    a = draw(K, N, seed=8)
    k.bind({"a": new(a)}, {"b": b.w}).run()
    b.have = 2 * a


def by_kernel_call(b: Bound) -> None:
    k = anetorch.compile(mil.build(lambda a: {"b": o.mul(x=a, y=np.float32(3))}, {"a": mil.spec((K, N), "fp32")}))
    a = draw(K, N, seed=8)
    k(a, out=b.w)
    b.have = 3 * a


def by_kernel_in_place(b: Bound) -> None:
    k = anetorch.compile(mil.build(lambda a: {"b": o.add(x=a, y=np.float32(1))}, {"a": mil.spec((K, N), "fp32")}))
    k(b.w, out=b.w)
    b.have = b.have + 1


def by_pipeline(b: Bound) -> None:
    k = anetorch.compile(mil.build(lambda a: {"b": o.add(x=a, y=np.float32(1))}, {"a": mil.spec((K, N), "fp32")}))
    anetorch.Pipeline([k.bind({"a": b.w}, {"b": b.w})]).run()
    b.have = b.have + 1


def by_state(b: Bound) -> None:
    def body(s: Any, a: Any) -> Any:
        v = o.read_state(s)
        return o.coreml_update_state(state=s, value=o.add(x=v, y=a))
    k = anetorch.compile(mil.build(body, {"s": mil.state((K, N), "fp32"), "a": mil.spec((K, N), "fp32")}))
    k.bind({"s": b.w, "a": new(np.ones((K, N), "f4"))}).run()
    b.have = b.have + 1


def by_adamw(b: Bound) -> None:
    g, m, v = (Tensor((K, N), mem="heap") for _ in range(3))
    g.fill_(1)
    _core.adamw_step(b.w, g, m, v, lr=1.0, step=1, weight_decay=0.0, eps=0.0)
    b.have = b.have - 1                         # m / sqrt(v) is 1 in the first step


def by_adamw_staging(b: Bound) -> None:
    p = new(draw(K, N, seed=11))
    g, m, v = (Tensor((K, N), mem="heap") for _ in range(3))
    g.fill_(1)
    _core.adamw_step(p, g, m, v, b.w, lr=1.0, step=1, weight_decay=0.0, eps=0.0)
    b.have = draw(K, N, seed=11) - 1


def by_stage(b: Bound) -> None:
    b.have = draw(K, N, seed=12)
    _core.stage(b.w, b.have)


def by_gqa(b: Bound) -> None:
    a = draw(K // 2, N, seed=13)
    t = b.w.reshape(2, K // 2, N)
    _core.gqa_tile(a, 2, 1, b.w)
    b.have = np.concatenate([a, a])
    assert t.shape == (2, K // 2, N)


WAYS = [by_numpy, by_asarray, by_memoryview, by_dlpack, by_torch, by_copy, by_copy_broadcast, by_fill, by_setitem,
        by_setitem_of_one, by_slice, by_reshaped, by_turned, by_retyped, by_map, by_map_element, by_kernel,
        by_kernel_call, by_kernel_in_place, by_pipeline, by_state, by_adamw, by_adamw_staging, by_stage, by_gqa]


@pytest.mark.parametrize("mem", ["heap", "shm"])
@pytest.mark.parametrize("write", WAYS, ids=lambda f: f.__name__)
def test_a_write_is_seen(write: Callable[[Bound], None], mem: str) -> None:
    """Twice, as the second time finds a panel that was made after a write."""
    b = Bound(mem).steady()
    for _ in range(2):
        write(b)
        gc.collect()                            # arrays and capsules that are gone
        assert [b.run() for _ in range(3)] == [1, 0, 0]


def test_functions_that_fill_an_engines_surfaces() -> None:
    """They write fp16 [1, C, 1, S], here over the weights' fp32: the halves of 2.0 are 0 and 2.0 in
    fp16, those of 3.0 are 0 and 2.125."""
    b = Bound().steady()
    halves = b.w.view(0, (1, K, 1, 2 * N), "float16")
    two, three = (np.tile(np.float32([0, v]), (K, N)) for v in (2, 2.125))
    surface_io.write(halves, two)
    b.have[:] = 2
    assert [b.run() for _ in range(2)] == [1, 0]
    surface_io.write_at(halves, 3, three[:2])
    b.have[3:5] = 3
    assert [b.run() for _ in range(2)] == [1, 0]
    other = Tensor((1, K, 1, 2 * N), "float16", "heap")
    surface_io.write(other, three)
    _core.io_copy(halves, 7, other, 0, 2, 2 * N)
    b.have[7:9] = 3
    assert [b.run() for _ in range(2)] == [1, 0]
    _core.io_write_dyn(halves, three[:, :N], two[:, N:])
    b.have[:, :N // 2], b.have[:, N // 2:] = 3, 2
    assert [b.run() for _ in range(2)] == [1, 0]


def test_half_precision() -> None:
    """Kept where its panels are of half precision, too; right in any case."""
    b = Bound(dtype="f2")
    assert sum(b.run() for _ in range(3)) == (b.kernel.memory()["kept"] > 0)
    b.w.fill_(3)
    b.have[:] = 3
    assert sum(b.run() for _ in range(3)) == (b.kernel.memory()["kept"] > 0)


# ------------------------------------------------------------------ when nothing is kept


def test_a_live_view_may_write_at_any_time() -> None:
    b = Bound().steady()
    a = b.w.numpy()
    for i in range(4):
        a[i] = b.have[i] = i
        assert b.run() == 0                     # packed by the product itself
    del a
    assert [b.run() for _ in range(2)] == [1, 0]


def test_read_locks_and_looks_do_not_throw_it_away() -> None:
    b = Bound().steady()
    with b.w.map("r") as m:
        assert m[0] == b.have[0, 0]
        assert b.run() == 0
    assert b.w[1, 2].item() == b.have[1, 2] and b.w.tolist()[0][0] == b.have[0, 0]
    np.testing.assert_array_equal(Tensor((K, N)).copy_from(b.w).numpy(), b.have)
    assert b.run() == 0


def test_what_the_library_cannot_see_is_packed_each_run() -> None:
    a = draw(K, N, seed=1)
    for w in (Tensor.wrap(a), Tensor.from_dlpack(a)):
        b = Bound(w=w)
        for i in range(3):
            a[i] = i
            b.have = a.copy()
            assert b.run() == 0
        assert b.request.memory()["kept"] == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="descriptors of shared memory")
def test_memory_that_others_may_have_is_packed_each_run() -> None:
    for share in (lambda t: t.fileno(), lambda t: t.id):
        b = Bound("shm").steady()
        share(b.w)
        assert [b.run() for _ in range(2)] == [0, 0]
    name = f"/anetorch-kept-{os.getpid()}"
    try:
        w = Tensor((K, N), "float32", "shm", name)
        b = Bound(w=w)
        w.copy_from(b.have)
        assert [b.run() for _ in range(2)] == [0, 0]
        other = Tensor.open(name, (K, N))
        other.fill_(2)
        b.have[:] = 2
        assert b.run() == 0
    finally:
        Tensor.unlink(name)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_writes_shared_memory_and_not_the_heap() -> None:
    code = """if 1:
        import os, test_kept as t
        for mem in ("shm", "heap"):
            b = t.Bound(mem).steady()
            pid = os.fork()
            if not pid:
                b.w.fill_(3)
                b.have[:] = 3
                b.run(), b.run()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            if mem == "shm": b.have[:] = 3
            assert [b.run() for _ in range(2)] == [0, 0], mem"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)})
    assert done.returncode == 0, done.stderr[-1500:]


def test_an_operand_that_is_written_at_every_run_is_left_alone() -> None:
    """Packed for a while, then no longer, and its memory goes; once it stays, it is kept again."""
    b = Bound()
    packed = []
    for i in range(6):
        b.w.fill_(i)
        b.have[:] = i
        packed.append(b.run())
    assert packed == [1, 1, 0, 0, 0, 0] and b.request.memory()["kept"] == 0
    assert [b.run() for _ in range(3)] == [1, 0, 0]


def test_many_rows_and_small_weights_are_not_kept() -> None:
    for m, k, n in ((33, 96, 640), (4, 10, 12), (1, 96, 640)):
        kernel = anetorch.compile(mil.build(lambda x, w: {"y": o.matmul(x=x, y=w)},
                                            {"x": mil.spec((m, k), "fp32"), "w": mil.spec((k, n), "fp32")}))
        assert kernel.memory()["kept"] == 0


# ------------------------------------------------------------------ aliases, lives, threads


def test_activations_and_weights_on_one_surface() -> None:
    """The packed form of an engine: columns of x beside columns of w in each row. Staging new
    activations leaves the weights' panel, writing through the whole does not."""
    both = Tensor((1, K, 1, M + N), mem="heap")
    x, w = both[:, :, :, :M], both[:, :, :, M:]
    k = anetorch.compile(mil.build(lambda x, w: {"y": o.matmul(x=o.squeeze(x, axes=[0, 2]), y=o.squeeze(w, axes=[0, 2]),
                                                               transpose_x=True)},
                                   {"x": mil.spec((1, K, 1, M), "fp32"), "w": mil.spec((1, K, 1, N), "fp32")}))
    y = Tensor((M, N), mem="heap")
    r = k.bind({"x": x, "w": w}, {"y": y})
    xs, ws = draw(K, M, seed=1), draw(K, N, seed=2)

    def run() -> int:
        before = T.kept_packs()
        r.run()
        np.testing.assert_array_equal(y.numpy(), xs.T @ ws)
        return T.kept_packs() - before

    w.copy_from(ws.reshape(1, K, 1, N))
    x.copy_from(xs.reshape(1, K, 1, M))
    assert [run() for _ in range(2)] == [1, 0]
    for seed in range(3, 6):
        xs = draw(K, M, seed=seed)
        x.copy_from(xs.reshape(1, K, 1, M))
        assert run() == 0
    both.fill_(1)
    xs, ws = np.ones_like(xs), np.ones_like(ws)
    assert run() == 1


def test_two_requests_and_two_kernels_on_one_tensor() -> None:
    b = Bound().steady()
    same = Bound(w=b.w).steady()
    turned = anetorch.compile(mil.build(lambda x, w: {"y": o.matmul(x=x, y=w, transpose_y=True)},
                                        {"x": mil.spec((M, N), "fp32"), "w": mil.spec((K, N), "fp32")}))
    xs, y = draw(M, N, seed=4), Tensor((M, K), mem="heap")
    back = turned.bind({"x": new(xs), "w": b.w}, {"y": y})
    for i in range(3):
        b.w[i].fill_(i)
        b.have[i] = same.have[i] = i
        assert [b.run(), same.run()] == [1, 1]
        back.run()
        np.testing.assert_array_equal(y.numpy(), xs @ b.have.T)
        assert [b.run(), same.run()] == [0, 0]


def test_freed_blocks_come_back_at_their_address() -> None:
    for seed in range(20):
        b = Bound()
        b.have = draw(K, N, seed=seed)
        b.w.copy_from(b.have)
        assert [b.run(), b.run()] == [1, 0]
        del b
        gc.collect()


def test_a_call_keeps_nothing_for_another() -> None:
    b = Bound()
    before = T.kept_packs()
    for i in range(4):
        b.w.fill_(i)
        np.testing.assert_array_equal(b.kernel(b.x, b.w, out=b.y).numpy(), b.xs @ np.full((K, N), i, "f4"))
    assert T.kept_packs() == before


def test_writers_and_runs_in_several_threads() -> None:
    """Each thread has its x and y; one of them writes w between barriers, all run after it."""
    n, turns = 4, 20
    w = new(draw(K, N, seed=1))
    crowd = [Bound(w=w) for _ in range(n)]
    barrier, failed = threading.Barrier(n), []

    def work(i: int) -> None:
        try:
            for turn in range(turns):
                barrier.wait()
                if turn % n == i:
                    w[turn].fill_(turn)
                barrier.wait()
                crowd[i].have[turn] = turn
                crowd[i].run()
                crowd[i].run()
        except BaseException as e:
            failed.append(e)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed, failed[0]


def test_a_write_during_runs_is_seen_afterwards() -> None:
    """What a run reads while somebody writes is anybody's guess; the next one is right."""
    b = Bound()
    stop = threading.Event()

    def runs() -> None:
        while not stop.is_set():
            b.request.run()

    t = threading.Thread(target=runs)
    t.start()
    for i in range(300):
        b.w[i % K].fill_(i % 7)
        b.have[i % K] = i % 7
    stop.set()
    t.join()
    b.run()
    b.run()
    assert b.run() == 0


# ------------------------------------------------------------------ memory


def test_what_is_kept_is_counted_and_gives_way_to_the_limit() -> None:
    b = Bound()
    m = b.kernel.memory()
    assert m["kept"] > 4 * K * N and [r["name"] for r in m.buffers if r["kind"] == "kept"] == ["w"]
    assert b.request.memory()["kept"] == 0
    b.steady()
    assert b.request.memory()["kept"] == m["kept"] and b.request.memory()["total"] == m["total"]
    fits, tight = Bound(memory_limit=m["total"]), Bound(memory_limit=m["total"] - 1)
    assert [fits.run() for _ in range(2)] == [1, 0] and tight.kernel.memory()["kept"] == 0
    assert [tight.run() for _ in range(3)] == [0, 0, 0] and tight.request.memory()["kept"] == 0


def test_allocations_may_fail() -> None:
    """Without memory for it, the product packs as it goes."""
    for n in range(1, 4):
        b = Bound()
        b.request.run()
        b.w.fill_(1)
        b.have[:] = 1
        b.run()
        b = Bound()
        T.fail_after(n)
        try:
            b.request.run()
        except MemoryError:
            pass
        finally:
            T.fail_after(0)
        b.run()
        assert b.run() == 0


def test_the_switch() -> None:
    code = """if 1:
        import test_kept as t
        b = t.Bound()
        assert [b.run() for _ in range(3)] == [0, 0, 0] and b.kernel.memory()["kept"] == 0
        assert b.request.profile()[0]["packed"] == "" """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "ANETORCH_NO_KERNELS": "keep"})
    assert done.returncode == 0, done.stderr[-1500:]


def test_a_process_that_was_spawned_writes() -> None:
    """Sent through multiprocessing: from then on it is memory that others have."""
    if not sys.platform.startswith("linux"):
        pytest.skip("descriptors of shared memory")
    b = Bound("shm").steady()
    p = multiprocessing.get_context("spawn").Process(target=fill, args=(b.w,))
    p.start()
    p.join()
    assert p.exitcode == 0
    b.have[:] = 5
    assert [b.run() for _ in range(2)] == [0, 0]


def fill(t: Tensor) -> None:
    t.fill_(5)
