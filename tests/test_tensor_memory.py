"""Memory kinds, zeroing, pools, validity, failing allocations, threads."""

import sys
import threading

import numpy as np
import pytest

from anetorch import Quantization, Tensor, TensorPool, _core


@pytest.mark.parametrize("mem", ["heap", "shm"])
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 4096, 65536, 65537, 1 << 20])
def test_fresh_memory_is_zero_even_when_recycled(mem, n):
    for _ in range(3):
        t = Tensor((n,), "uint8", mem=mem)
        assert t.memory == mem and not t.numpy().any()
        t.fill_(255)
        t.close()
    for _ in range(3):
        t = Tensor((n,), "uint8")
        assert not t.numpy().any()
        t.fill_(255)


def test_kinds():
    assert Tensor((2,)).memory == ("iosurface" if sys.platform == "darwin" else "shm")
    with pytest.raises(ValueError, match="'shm', 'heap', 'iosurface' or 'dma'"):
        Tensor((2,), mem="gpu")
    with pytest.raises(TypeError, match="mem is None or a str"):
        Tensor((2,), mem=3)


def test_buffer_ids_are_fresh():
    seen = set()
    for _ in range(1000):
        t = Tensor((4,))
        assert t.buffer_id not in seen
        seen.add(t.buffer_id)
        assert t[1:].buffer_id == t.buffer_id
        t.close()


# ---------------------------------------------------------------- pools

@pytest.mark.parametrize("mem", ["heap", "shm"])
def test_pool_recycles(mem):
    with TensorPool(mem) as pool:
        a = pool.empty((8, 64), "float16").fill_(3)
        ident, address = a.buffer_id, a.numpy().ctypes.data
        view = a[2:]
        a.close()
        b = pool.empty((8, 64), "float16")
        assert b.numpy().ctypes.data != address      # the view still holds it
        view.close()
        assert pool.held_bytes >= 1024
        c = pool.empty((510,), "float16")
        assert c.numpy().ctypes.data == address and c.buffer_id != ident and c.shape == (510,)
        assert c.capacity_bytes == 1020
        assert (pool.hits, pool.misses) == (1, 2)
        assert not pool.zeros((8, 64), dtype="float16").numpy().any()
        c.close()
        pool.clear()
        assert pool.held_bytes == 0
        d = pool.empty(7)
    d.fill_(1)      # outlives the pool
    d.close()
    with pytest.raises(ValueError, match="closed"):
        pool.empty(7)


def test_pool_limit_and_sharing():
    pool = TensorPool("shm", max_bytes=10_000)
    pool.empty((1 << 20,)).close()
    assert pool.held_bytes == 0
    t = pool.empty((16,))
    t.id                                    # now another process may look
    t.close()
    assert pool.held_bytes == 0
    for bad, error in [(((-1,),), ValueError), ((), TypeError), ((1, 2, 3), TypeError),
                       (((1 << 62,), "f8"), ValueError)]:
        with pytest.raises(error):
            pool.empty(*bad)
    with pytest.raises(TypeError, match="twice"):
        pool.empty((2,), shape=(3,))
    with pytest.raises(ValueError, match="negative"):
        TensorPool(max_bytes=-1)


@pytest.mark.parametrize("n", [0, 1, 64, 65, 72, 73, 127, 128, 129, 1000, 1024, 1025, 4095,
                               65536, 65537, 1 << 20, (1 << 20) + 1])
def test_pool_size_classes_fit(n):
    pool = TensorPool("heap")
    t = pool.empty((n,), "uint8").fill_(7)
    assert t.nbytes == n and t.capacity_bytes == n
    t.close()
    assert n <= pool.held_bytes <= max(64, n * 9 / 8 + 8)


def test_pool_threads():
    pool = TensorPool("heap")
    bad = []

    def work(k):
        rng = np.random.default_rng(k)
        for _ in range(500):
            t = pool.empty((int(rng.integers(1, 300)),), "int32").fill_(k)
            if not (t.numpy() == k).all():
                bad.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for th in threads:
        th.start()
    for th in threads:
        th.join()
    assert not bad


# ---------------------------------------------------------------- validity

def invalidate(t, lo, n, why="layer 3 failed"):
    _core._testing.invalidate(t, lo, n, why)


def test_reading_invalid_ranges_raises():
    t = Tensor.from_numpy(np.arange(16, dtype=np.float32))
    invalidate(t, 16, 16)
    for use in (t.numpy, lambda: np.asarray(t), lambda: memoryview(t), t.tolist,
                lambda: t[5].item(), lambda: Tensor((16,)).copy_from(t), lambda: t.map("r"),
                lambda: t.map("rw"), t.__dlpack__, lambda: t[::2].contiguous(),
                lambda: t.__reduce__(), lambda: np.from_dlpack(t)):
        with pytest.raises(RuntimeError, match="bytes .* layer 3 failed"):
            use()
    assert t[:4].tolist() == [0, 1, 2, 3] and t[8:].numpy()[0] == 8
    t[4:6].fill_(1)                 # part of it is good again
    assert t[:6].tolist() == [0, 1, 2, 3, 1, 1]
    with pytest.raises(RuntimeError, match="bytes 24 to 32"):
        t.numpy()
    with t[6:8].map("w") as m:
        m[0] = m[1] = 2
    assert t.tolist()[4:8] == [1, 1, 2, 2]


def test_validity_against_a_model():
    rng = np.random.default_rng(0)
    t = Tensor((256,), "uint8")
    model = np.zeros(256, bool)
    for _ in range(2000):
        lo = int(rng.integers(0, 256))
        hi = int(rng.integers(lo, 257))
        kind = rng.integers(0, 3)
        if kind == 0:
            invalidate(t, lo, hi - lo)
            model[lo:hi] = True
        elif kind == 1 and hi > lo:
            t[lo:hi].fill_(0)
            model[lo:hi] = False
        else:
            try:
                t[lo:hi].tolist()
                ok = True
            except RuntimeError:
                ok = False
            assert ok == (not model[lo:hi].any()), (lo, hi)


def test_strided_write_does_not_validate():
    t = Tensor((8,), "uint8")
    invalidate(t, 0, 8)
    t[::2].fill_(1)
    with pytest.raises(RuntimeError):
        t.numpy()
    t.copy_from(np.zeros(8, np.uint8))
    assert t.tolist() == [0] * 8


# ---------------------------------------------------------------- failures, threads

def test_every_allocation_may_fail():
    def scenario():
        with TensorPool("heap") as pool:
            t = Tensor((300, 50), name="n")
            u = Tensor.from_numpy(np.ones((3, 4), np.float32)[::-1])
            u.copy_(np.zeros(4))
            u[1:].copy_(u[:-1])
            pool.empty((4,)).close()
            invalidate(t, 0, 10)
            invalidate(t, 100, 10)
            t.close()
            u.contiguous().close()
            q = Tensor((6, 4), "int8")
            q.quantization = Quantization([1, 2, 3, 4], 0, axis=-1)
            q[::2].dequantize().close()

    fail_after = _core._testing.fail_after
    fail_after(0)
    scenario()
    total = fail_after(0)
    assert total > 5
    failed = 0
    for n in range(1, total + 2):
        fail_after(n)
        try:
            scenario()
        except MemoryError:
            failed += 1
        finally:
            fail_after(0)
    assert failed >= 5
    scenario()


def test_close_races_with_copies():
    x = np.zeros((512, 512), np.float32)
    for _ in range(20):
        t = Tensor((512, 512))
        started = threading.Event()

        def work(t=t, started=started):
            started.set()
            try:
                for _ in range(5):
                    t.copy_from(x)
            except ValueError as e:
                assert "closed" in str(e)

        th = threading.Thread(target=work)
        th.start()
        started.wait()
        t.close()
        th.join()


def test_copies_release_the_lock():
    src = np.ones((3000, 3000), np.float64).T
    dst = Tensor((3000, 3000), "float32")
    ticks, stop = [0], threading.Event()

    def tick():
        while not stop.is_set():
            ticks[0] += 1

    old = sys.getswitchinterval()
    sys.setswitchinterval(0.5)         # no switch but where the lock is let go
    try:
        th = threading.Thread(target=tick, daemon=True)
        th.start()
        before = ticks[0]
        dst.copy_(src)
        moved = ticks[0] - before
        stop.set()
        th.join()
    finally:
        sys.setswitchinterval(old)
    assert moved > 0


def test_a_failure_is_remembered_without_memory():
    t = Tensor((4, 8), "float32")
    _core._testing.fail_after(1, True)          # every allocation fails
    try:
        invalidate(t, 16, 16)
        invalidate(t, 64, 32)                   # no room for a second range: one covers both
    finally:
        _core._testing.fail_after(0)
    for part in (t[0], t[2]):
        with pytest.raises(RuntimeError, match="layer 3 failed"):
            part.numpy()
    t[3].numpy()
