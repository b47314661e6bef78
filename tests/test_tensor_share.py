"""Tensors between processes: ids, descriptors, names, multiprocessing; nothing leaks."""

import gc
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from anetorch import Tensor, TensorPool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd and /proc")


def fds():
    return len(os.listdir("/proc/self/fd"))


def rss():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(code, *args, **kw):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code), *args], text=True,
                          capture_output=True, timeout=60, **kw)


# ---------------------------------------------------------------- ids

@pytest.mark.parametrize("shape", [(3, 5), (300, 500)])
def test_two_processes_see_the_same_bytes(shape):
    t = Tensor(shape, "float32").fill_(1)
    view = t[1:, ::-2]
    r = run("""
        import sys, numpy as np
        from anetorch import Tensor
        t = Tensor.lookup(sys.argv[1])
        assert (t.numpy() == 1).all() and t.memory == "shm"
        t.copy_(np.arange(t.size).reshape(t.shape))
        print(t.shape, t.dtype)
    """, view.id)
    assert r.returncode == 0, r.stderr
    assert r.stdout.strip() == f"{view.shape} float32"
    np.testing.assert_array_equal(view.numpy(), np.arange(view.size).reshape(view.shape))
    assert (t[0].numpy() == 1).all()


def test_lookup_after_close_fails():
    t = Tensor((300, 500))
    ident = t.id
    assert Tensor.lookup(ident).shape == (300, 500)
    t.close()
    with pytest.raises(KeyError, match="closed"):
        Tensor.lookup(ident)


def test_closed_slot_is_not_reused_while_it_may_be_seen():
    t = Tensor((4,), "int32").fill_(7)
    other = Tensor.lookup(t.id)
    t.close()
    fresh = [Tensor((4,), "int32").fill_(1) for _ in range(600)]
    assert other.tolist() == [7] * 4 and fresh


@pytest.mark.parametrize("change, error, match", [
    (lambda i: "", ValueError, "no tensor id"),
    (lambda i: i + "9999", ValueError, "outside the surface"),
    (lambda i: i.replace(";float32", ";float99"), ValueError, "no tensor id"),
    (lambda i: i.rsplit(";", 2)[0] + ";3,3;4", ValueError, "no tensor id"),
    (lambda i: i.rsplit(";", 2)[0] + ";1,2,3,4,5,6,7,8,9;1,2,3,4,5,6,7,8,9", ValueError, "no tensor id"),
    (lambda i: i.rsplit(";", 2)[0] + f";{2**62};{2**62}", ValueError, "outside the surface"),
    (lambda i: i.rsplit(";", 2)[0] + ";-3;4", ValueError, "negative"),
    (lambda i: i.replace(str(os.getpid()), "4194303", 1), KeyError, "any more"),
    (lambda i: i.replace("ane:", "anx:"), ValueError, "no surface handle"),
    (lambda i: "x" * 3000, ValueError, "no tensor id"),
    (lambda i: i.split(":")[0] + ":" + i.split(":", 1)[1].replace(":0:12;", f":{2**63}:12;"), ValueError, "do not fit"),
])
def test_hostile_ids(change, error, match):
    t = Tensor((3,), mem="shm")
    with pytest.raises(error, match=match):
        Tensor.lookup(change(t.id))


def test_id_names_another_file():
    t = Tensor((3,), mem="shm")
    parts = t.id.split(":")
    parts[4] = str(int(parts[4]) + 1)
    with pytest.raises(KeyError, match="another file"):
        Tensor.lookup(":".join(parts))


def test_kinds_without_descriptor():
    for t in (Tensor((3,), mem="heap"), Tensor.wrap(np.zeros(3))):
        for use in (lambda: t.id, t.fileno):
            with pytest.raises(NotImplementedError, match='mem="shm"'):
                use()


# ---------------------------------------------------------------- descriptors

@pytest.mark.parametrize("shape", [(3, 5), (300, 500)])
@pytest.mark.parametrize("mem", [None, "shm"])
def test_fileno_and_from_fd(shape, mem):
    first = Tensor(shape, mem=mem)      # takes the segment's first slot
    t = Tensor(shape, mem=mem).copy_(np.arange(np.prod(shape)).reshape(shape))
    u = Tensor.from_fd(t.fileno(), shape)
    u[0, 0] = 42
    assert t[0, 0].item() == 42 and u.buffer_id != t.buffer_id and first[0, 0].item() == 0
    before = fds()
    fd = os.dup(t.fileno())
    t.close()
    v = Tensor.from_fd(fd, shape)
    os.close(fd)
    assert v[0, 0].item() == 42 and v[0, 1].item() == 1
    u.close()
    v.close()
    assert fds() <= before
    if mem:
        w = Tensor(shape, mem=mem)
        assert w.fd_offset == 0


def test_from_fd_refusals(tmp_path):
    t = Tensor((300, 500), mem="shm")
    with pytest.raises(ValueError, match="1200000 bytes at offset 4096 do not fit the 1200128|do not fit"):
        Tensor.from_fd(t.fileno(), (300, 500), offset=4096)
    with pytest.raises(ValueError, match="multiple of 4"):
        Tensor.from_fd(t.fileno(), (3,), offset=2)
    with pytest.raises(ValueError, match="negative"):
        Tensor.from_fd(-1, (3,))
    with pytest.raises(ValueError, match="negative"):
        Tensor.from_fd(t.fileno(), (3,), offset=-4)
    with pytest.raises(OSError):
        Tensor.from_fd(987654, (3,))
    path = tmp_path / "plain"
    path.write_bytes(bytes(100))
    with open(path, "r+b") as f:
        with pytest.raises(ValueError, match="sealed"):
            Tensor.from_fd(f.fileno(), (25,))
        u = Tensor.from_fd(f.fileno(), (25,), seal=False)
        u.fill_(1)
        with pytest.raises(ValueError, match="104 bytes at offset 0 do not fit the 100"):
            Tensor.from_fd(f.fileno(), (26,), seal=False)
    assert np.fromfile(path, np.float32).tolist() == [1] * 25
    with open(path, "rb") as f:
        assert Tensor.from_fd(f.fileno(), (25,), seal=False).readonly
    r, w = os.pipe()
    with pytest.raises(ValueError, match="neither"):
        Tensor.from_fd(r, (3,))
    os.close(r), os.close(w)


def test_memory_cannot_be_shrunk():
    t = Tensor((300, 500), mem="shm")
    with pytest.raises(OSError):
        os.ftruncate(t.fileno(), 10)
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 100)
    u = Tensor.from_fd(fd, (25,))
    with pytest.raises(OSError):
        os.ftruncate(fd, 10)
    assert u.tolist() == [0] * 25
    os.close(fd)


def test_named():
    name = f"/anetorch-test-{os.getpid()}"
    t = Tensor((3,), mem="shm", name=name)
    u = Tensor.open(name, (3,))
    u.fill_(5)
    assert t.tolist() == [5, 5, 5] and u.name == name
    with pytest.raises(FileExistsError, match="exists"):
        Tensor((3,), mem="shm", name=name)
    with pytest.raises(ValueError, match="do not fit"):
        Tensor.open(name, (1 << 20,))
    t.close()
    with pytest.raises(KeyError, match="there is no shared memory"):
        Tensor.open(name, (3,))
    assert u.tolist() == [5, 5, 5]
    with pytest.raises(KeyError):
        Tensor.unlink(name)
    with pytest.raises(ValueError, match="POSIX name"):
        Tensor.open("x/y", (3,))


# ---------------------------------------------------------------- multiprocessing

def child(tensors, queue, done):
    for t in tensors:
        t.numpy()[...] += 1
    queue.put(tensors[0])
    done.wait(30)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method):
    ctx = mp.get_context(method)
    queue, done = ctx.Queue(), ctx.Event()
    small, other, big = Tensor((3,)), Tensor((4,)), Tensor((200, 300))
    heap = Tensor((2,), mem="heap")
    p = ctx.Process(target=child, args=((small, other[::2], big, heap), queue, done))
    p.start()
    back = queue.get(timeout=60)
    assert small.tolist() == back.tolist() == [1, 1, 1]
    assert other.tolist() == [1, 0, 1, 0] and (big.numpy() == 1).all()
    assert heap.tolist() == [0, 0]          # by value
    back.fill_(9)
    assert small.tolist() == [9, 9, 9]      # what came back is the same memory
    done.set()
    p.join(60)
    assert p.exitcode == 0


def test_fork_does_not_share_new_tensors():
    keep = Tensor((4,), "int32")
    pool = TensorPool()
    pool.empty((4,), "int32").fill_(1).close()
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            mine = [Tensor((4,), "int32").fill_(5) for _ in range(20)]
            mine.append(pool.empty((4,), "int32").fill_(5))
            keep.fill_(6)                   # this one was there before: shared
            os.write(w, b"x")
            del mine
        finally:
            os._exit(0)
    mine = [Tensor((4,), "int32").fill_(3) for _ in range(20)]
    mine.append(pool.empty((4,), "int32").fill_(3))
    os.read(r, 1)
    os.waitpid(pid, 0)
    os.close(r), os.close(w)
    assert all(t.tolist() == [3] * 4 for t in mine)
    assert keep.tolist() == [6] * 4


def test_killed_holder_leaves_nothing():
    before = set(os.listdir("/dev/shm"))
    p = subprocess.Popen([sys.executable, "-c", textwrap.dedent("""
        import time
        from anetorch import Tensor
        keep = [Tensor((300, 500)) for _ in range(5)] + [Tensor((3,)) for _ in range(50)]
        print(keep[0].id, flush=True)
        time.sleep(60)
    """)], stdout=subprocess.PIPE, text=True)
    ident = p.stdout.readline().strip()
    t = Tensor.lookup(ident)
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    p.stdout.close()
    assert t.fill_(2)[0, 0].item() == 2     # our mapping stays
    with pytest.raises(KeyError):
        Tensor.lookup(ident)
    assert set(os.listdir("/dev/shm")) == before


# ---------------------------------------------------------------- leaks

def cycle(n):
    pool = TensorPool(max_bytes=1 << 20)
    for i in range(n):
        t = Tensor((8, 8), "float16")
        if i % 10 == 0:
            Tensor.lookup(t.id).close()
            u = Tensor.from_fd(t.fileno(), (8, 8), "float16")
            np.asarray(u)[0] = 1
            u.close()
        if i % 50 == 0:
            Tensor((256, 256)).close()
            Tensor((256, 256), mem="heap").close()
        with t.map() as m:
            m[0] = 1
        np.from_dlpack(t)
        t[1:].reshape(-1).t.close()
        Tensor.wrap(t.numpy()).close()
        pool.empty((8, 8)).close()
        t.close()


def leak_check(n):
    cycle(2000)
    gc.collect()
    f, m = fds(), rss()
    cycle(n)
    gc.collect()
    # The allocator keeps one empty segment for each of its 9 size classes.
    assert fds() <= f + 9, "descriptors leak"
    if "libasan" in os.environ.get("LD_PRELOAD", ""):
        return      # freed memory stays in the sanitizer's quarantine
    grown = rss() - m
    assert grown < 2 << 20, f"{grown} bytes more after {n} cycles"


def test_no_leaks():
    leak_check(5000)


@pytest.mark.slow
def test_no_leaks_in_1e5_cycles():
    leak_check(100_000)


def test_error_paths_leak_nothing():
    def failures():
        t = Tensor((3, 4))
        for bad in (lambda: t.reshape(5), lambda: t[9], lambda: t.view(1, (2,)),
                    lambda: Tensor((1 << 50,)), lambda: t.copy_from(np.zeros(3)),
                    lambda: t.copy_(np.zeros((2, 2))), lambda: Tensor.from_numpy("abc"),
                    lambda: t.map("q"), lambda: Tensor.lookup("x"), lambda: t.fill_("a"),
                    lambda: Tensor.from_fd(t.fileno(), (10**6,)), lambda: Tensor((2,), "x"),
                    lambda: Tensor.from_dlpack(np.zeros(1, complex)),
                    lambda: t.__dlpack__(stream=3), lambda: Tensor((2,), mem="nope")):
            with pytest.raises(Exception):
                bad()

    for _ in range(20):
        failures()
    gc.collect()
    f, m = fds(), rss()
    for _ in range(300):
        failures()
    gc.collect()
    assert fds() <= f and rss() - m < 2 << 20


def test_many_small_tensors_share_descriptors():
    before = fds()
    keep = [Tensor((16,)) for _ in range(3000)]
    assert fds() - before < 20
    ids = {t.buffer_id for t in keep}
    assert len(ids) == 3000
    for i, t in enumerate(keep):
        t.fill_(i)
    assert all(t[3].item() == i for i, t in enumerate(keep))
    del t, keep


def test_out_of_descriptors_is_explained():
    r = run("""
        import resource
        from anetorch import Tensor
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        keep = []
        try:
            for _ in range(100): keep.append(Tensor((300, 500)))
        except OSError as e:
            assert e.errno == 24 and "ulimit -n" in str(e) and 'mem="heap"' in str(e), e
            keep.clear()
            Tensor((300, 500)).close()
            print("explained")
    """)
    assert r.stdout.strip() == "explained", r.stderr


def test_out_of_address_space_is_memory_error():
    r = run("""
        import resource
        from anetorch import Tensor
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        for mem in ("shm", "heap"):
            try: Tensor((3 << 28,), "float32", mem=mem)
            except MemoryError as e: print(mem)
    """)
    assert r.stdout.split() == ["shm", "heap"], r.stderr
