"""What the engine's device shares with other processes and keeps between them: the folder of
a program, the budget of compiles, the index of the compile cache. On the stand-in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from standin_run import PRELUDE, environment, run, stand_in  # noqa: F401

from anetorch.env import cache_dir


@pytest.fixture
def start(stand_in, tmp_path):  # noqa: F811
    """Starts a process that prints a line when it is ready and then waits for one."""
    living = []

    def go(code, **env):
        p = subprocess.Popen([sys.executable, "-c", PRELUDE + textwrap.dedent(code)], text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             env=environment(stand_in, tmp_path) | env)
        living.append(p)
        return p

    yield go
    for p in living:
        p.kill()
        p.wait()


def line(p):
    text = p.stdout.readline()
    assert text, p.communicate()
    return text.strip()


def finish(p):
    out, _ = p.communicate("\n", timeout=60)
    assert p.returncode == 0, out
    return out


HOLDER = """
x = data(1, 8, 2, 5)
want = cpu(affine())(x, x)
k = anetorch.compile(affine(), device="ane")
same(k(x, x), want)
print("ready", flush=True)
input()
same(k(x, x), want)
del k
print(*left()["folders"])
"""


def engine_files(tmp_path):
    return sorted(os.listdir(tmp_path / "engine"))


def test_processes_share_a_folder(start, run, tmp_path):  # noqa: F811
    """An unload of one process, which removes the folder in the framework, does not take it
    from the other; the last one leaves nothing."""
    a = start(HOLDER)
    assert line(a) == "ready"
    (folder,) = (f for f in engine_files(tmp_path) if "." not in f)
    before = sorted(p.name for p in (tmp_path / "engine" / folder).iterdir())
    assert {"model.mil", "net.plist"} <= set(before)
    run("""
        x = data(1, 8, 2, 5)
        for i in range(3):
            k = anetorch.compile(affine(), device="ane")
            same(k(x, x), cpu(affine())(x, x))
            del k
            assert get("unloads") == i + 1
    """)
    assert sorted(p.name for p in (tmp_path / "engine" / folder).iterdir()) == before
    b = start(HOLDER)
    assert line(b) == "ready"
    assert folder in finish(a)              # b's
    assert finish(b).strip() == ""          # nobody's
    assert engine_files(tmp_path) == []


@pytest.mark.parametrize("when", ["while it has the model", "while it compiles"])
def test_a_killed_process_wedges_nobody(start, run, tmp_path, when):  # noqa: F811
    """kill -9: its locks are gone with it, its folder goes with the next user."""
    p = start(HOLDER if when == "while it has the model" else """
        knobs(hang_in_compile=1)        # with every lock held
        print("ready", flush=True)
        anetorch.compile(affine(), device="ane")
    """)
    assert line(p) == "ready"
    while not any("." not in f for f in engine_files(tmp_path)): time.sleep(0.01)
    p.send_signal(signal.SIGKILL)
    p.wait()
    begin = time.monotonic()
    run("""
        x = data(1, 8, 2, 5)
        same(anetorch.compile(affine(), device="ane")(x, x), cpu(affine())(x, x))
        assert left() == NOTHING, left()
    """)
    assert time.monotonic() - begin < 30


def test_a_hidden_folder_of_a_dead_process_is_put_back(run, tmp_path):  # noqa: F811
    """It died while its unload had the folder out of the way."""
    run("""
        k = anetorch.compile(affine(), device="ane")
        root = os.environ["STANDIN_TMPDIR"]
        (folder,) = (f for f in os.listdir(root) if "." not in f)
        os.rename(os.path.join(root, folder), os.path.join(root, folder + ".kept"))
        del k
        anetorch.compile(affine(), device="ane")
        assert left() == NOTHING, left()
    """)


def test_many_processes_at_once(start, tmp_path):
    """Eight processes compile, run and drop the same two programs, over and over."""
    code = """
        x = data(1, 8, 2, 5)
        want = [cpu(affine(factor=f))(x, x) for f in (1.0, 2.0)]
        print("ready", flush=True)
        input()
        for i in range(12):
            k = anetorch.compile(affine(factor=1.0 + i % 2), device="ane")
            same(k(x, x), want[i % 2])
            del k
        gc.collect()
        assert get("live_objects") == get("loaded") == 0
    """
    processes = [start(code, STANDIN_DAEMON=str(tmp_path / "cache")) for _ in range(4)]
    assert [line(p) for p in processes] == ["ready"] * 4
    for p in processes:
        p.stdin.write("\n")
        p.stdin.flush()
    for p in processes:
        assert p.wait(timeout=100) == 0, p.stdout.read()
    assert engine_files(tmp_path) == []


def test_a_forked_child_leaves_the_parent_s_model_alone(run):  # noqa: F811
    run("""
        x = data(1, 8, 2, 5)
        want = cpu(affine())(x, x)
        k = anetorch.compile(affine(), device="ane")
        files = left()["folders"]
        pid = os.fork()
        if not pid:
            del k
            gc.collect()
            os._exit(0 if get("loaded") == 1 and get("unloads") == 0 else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert left()["folders"] == files and len(files) == 3
        same(k(x, x), want)
        del k
        assert left() == NOTHING, left()
    """)


# ---------------------------------------------------------------- budget

def test_budget(run):  # noqa: F811
    out = run("""
        import warnings
        assert anetorch.compile_budget() == (0, 6, 5)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for i in range(6):
                k = anetorch.compile(affine(factor=1.0 + i), device="ane")
                assert anetorch.compile_budget().used == i + 1 == get("compiles")
                assert len(seen) == (i >= 4), (i, seen)         # once, at the fifth
        assert seen[0].category is RuntimeWarning and "5 of the 6" in str(seen[0].message)
        assert seen[0].filename == "<string>", seen[0]          # the caller's line
        try: anetorch.compile(affine(factor=9.0), device="ane")
        except RuntimeError as e:
            assert "budget of 6 compiles" in str(e) and "ANETORCH_COMPILE_BUDGET" in str(e), e
        else: raise AssertionError
        assert get("compiles") == 6
        anetorch.compile(affine(factor=1.0), device="ane")      # the system has it: costs nothing
        assert anetorch.compile_budget().used == 6
        del k
        assert left() == NOTHING
        from anetorch.info import lines
        print(*lines(), sep="\\n")
    """, ANETORCH_COMPILE_BUDGET="6")
    assert "compiles on the engine: 6 of 6 a process" in out


def test_budget_of_the_engine_is_hit_only_by_choice(run):  # noqa: F811
    """By default the 120th compile is refused before the engine sees it; with the switch it is
    asked, and the error has both its text and the count."""
    code = """
        import warnings
        warnings.simplefilter("ignore")
        for i in range(119): anetorch.compile(affine(factor=1.0 + i), device="ane")
        try: anetorch.compile(affine(factor=500.0), device="ane")
        except RuntimeError as e: print(e)
        print(get("compiles"), anetorch.compile_budget().used)
    """
    mine = run(code)
    assert "budget of 119 compiles" in mine and mine.endswith("119 119\n")
    theirs = run(code, ANETORCH_COMPILE_BUDGET="0")
    assert "ANECCompile() FAILED" in theirs and "compile 120 of this process" in theirs
    assert theirs.endswith("119 120\n")


@pytest.mark.parametrize("text", ["many", "-1", "12x", "99999999999"])
def test_budget_that_is_no_number(run, text):  # noqa: F811
    run("""
        try: anetorch.compile(affine(), device="ane")
        except ValueError as e: assert "ANETORCH_COMPILE_BUDGET is" in str(e), e
        else: raise AssertionError
        assert left() == NOTHING and get("compiles") == 0
    """, ANETORCH_COMPILE_BUDGET=text)


# ---------------------------------------------------------------- cache

CYCLE = """
x = data(1, 8, 2, 5)
k = anetorch.compile(affine(), device="ane")
same(k(x, x), cpu(affine())(x, x))
del k
assert left() == NOTHING, left()
i = anetorch.cache_info()
print(get("compiles"), i.hits, i.misses, i.stale, i.entries, flush=True)
"""

FORKING = f"""
import sys
from pathlib import Path
index, kept = Path(os.environ["ANETORCH_CACHE_DIR"]) / "ane-index", Path(os.environ["STANDIN_DAEMON"])
def entry():
    (e,) = (p for p in index.iterdir() if p.name != "lock")
    return e
def cycle(before=""):
    '''(compiles, hits, misses, stale, entries) of one program compiled, run and dropped in a fresh
    process; the daemon outlives it. A fork before the first use is one.'''
    r, w = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.dup2(w, 1)
            exec(before + {CYCLE!r}, globals())
        except BaseException as e:
            print(before, repr(e), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.close(w)
    with os.fdopen(r) as f: out = f.read()
    assert os.waitpid(pid, 0)[1] == 0, before
    return tuple(map(int, out.split()))
"""


@pytest.fixture
def forking(run, tmp_path):  # noqa: F811
    (tmp_path / "daemon").mkdir()
    return lambda code: run(FORKING + textwrap.dedent(code), STANDIN_DAEMON=str(tmp_path / "daemon"))


def test_a_second_process_compiles_nothing(forking):
    forking("""
        assert cycle() == (1, 0, 1, 0, 1)
        used = entry().stat().st_mtime_ns
        assert cycle() == (0, 1, 0, 0, 1)
        assert entry().stat().st_mtime_ns > used            # last use
        text = entry().read_text().splitlines()
        assert text[0] == "anetorch engine index 1" and text[-1] == "end"
        keys = dict(t.split(" ", 1) for t in text[1:6])
        assert list(keys) == ["program", "weights", "id", "chip", "build"]
        assert keys["id"] == entry().name
        assert (keys["chip"], keys["build"]) == ("h16g", "26A428")
        import hashlib
        (folder,) = kept.iterdir()
        digest = hashlib.sha256((folder / "model.mil").read_bytes()).hexdigest().upper()
        assert keys["id"].startswith(digest)                # the stand-in's own
    """)


def test_a_stale_entry_costs_one_compile(forking):
    """Another system, other strides, a purged daemon, no way to ask it, no entry."""
    forking("""
        exists = "knobs(hide_method=lib.standin_method_number(b'_ANEInMemoryModel', 0, b'compiledModelExists'))"
        for change, lasting in [("knobs(os_build=27)", True), ("knobs(os_build=0)", True),
                                ("knobs(row_align=128)", True), ("knobs(forget_cache=1)", False),
                                ("anetorch.cache_clear()", False), (exists, False)]:
            cycle()
            assert cycle()[:2] == (0, 1)
            compiles, hits, misses, stale, entries = cycle(change + "\\n")
            assert (compiles, hits, misses, entries) == (1, 0, 1, 1), change
            assert stale == ("row_align" in change), change
            assert cycle(change + "\\n" if lasting else "") == (0, 1, 0, 0, 1), change
    """)


def test_a_stale_program_of_the_system_is_not_believed(forking):
    """The system has other code under the identifier (another tool rewrote it), and the index
    has no entry: compiled anew, right."""
    forking("""
        import shutil
        assert cycle() == (1, 0, 1, 0, 1)
        (folder,) = kept.iterdir()
        text = (folder / "model.mil").read_text()
        shutil.rmtree(index)
        (folder / "model.mil").write_text(text.replace("= sub(", "= add("))
        assert "= add(" in (folder / "model.mil").read_text()
        assert cycle() == (1, 0, 1, 0, 1)
        assert cycle() == (0, 1, 0, 0, 1)
    """)


def test_a_damaged_entry_costs_one_compile(forking):
    forking("""
        def folder(e):
            e.unlink()
            e.mkdir()
        def link(e):
            e.rename(e.with_name("elsewhere"))
            e.symlink_to(e.with_name("elsewhere"))
        raw = None
        damages = {
            "empty": lambda e: e.write_bytes(b""),
            "cut": lambda e: e.write_bytes(raw[: len(raw) // 2]),
            "longer": lambda e: e.write_bytes(raw + b"end\\n"),
            "huge": lambda e: e.write_bytes(raw[:100] + bytes(1 << 20)),
            "binary": lambda e: e.write_bytes(bytes(range(256)) * 8),
            "another's": lambda e: e.write_bytes(raw.replace(b"\\nprogram ", b"\\nprogram 0")),
            "link": link, "folder": folder,
        }
        cycle()
        e = entry()
        raw = e.read_bytes()
        for how, damage in damages.items():
            damage(e)
            compiles, hits, misses, stale, _ = cycle()
            assert (compiles, hits, misses) == (1, 0, 1), how
            assert stale == (how == "longer"), how      # the others end before the ports
            if how != "folder": assert cycle()[:2] == (0, 1), how       # mended
        assert cycle()[0] == 1                          # nothing takes a folder's place
    """)


def test_a_flipped_byte_anywhere_costs_one_compile(run):  # noqa: F811
    """Every third byte of an entry, in one process: never a hit, always right."""
    run("""
        from pathlib import Path
        knobs(compile_budget=10**6)
        x = data(1, 8, 2, 5)
        want = cpu(affine())(x, x)
        def cycle(): same(anetorch.compile(affine(), device="ane")(x, x), want)
        cycle()
        (e,) = (p for p in Path(anetorch.cache_info().folder).iterdir() if p.name != "lock")
        raw = e.read_bytes()
        for i in range(0, len(raw), 3):
            e.write_bytes(raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1:])
            n = get("compiles")
            cycle()
            assert get("compiles") == n + 1, i
            assert e.read_bytes() == raw
        cycle()
        assert anetorch.cache_info().hits == 1 and left() == NOTHING
    """, ANETORCH_COMPILE_BUDGET="0")


@pytest.mark.parametrize("place", ["a file", "not writable", "nowhere"])
def test_no_place_for_the_index(run, tmp_path, place):  # noqa: F811
    """The program runs; the next one compiles again."""
    bad = tmp_path / "bad"
    if place == "a file": bad.write_text("")
    elif place == "not writable":
        if os.geteuid() == 0: pytest.skip("root writes everywhere")
        bad.mkdir(mode=0o500)
    env = ({"ANETORCH_CACHE_DIR": "", "XDG_CACHE_HOME": "", "HOME": ""} if place == "nowhere"
           else {"ANETORCH_CACHE_DIR": str(bad)})
    assert run(CYCLE, **env).split() == ["1", "0", "1", "0", "0"]


def test_the_index_is_bounded(run, tmp_path):  # noqa: F811
    """Beyond its limit those longest unused go."""
    run("""
        from pathlib import Path
        anetorch.compile(affine(), device="ane")
        i = anetorch.cache_info()
        for n in range(i.limit):
            f = Path(i.folder) / f"{n:064X}"
            f.write_text("old")
            os.utime(f, (1000 + n, 1000 + n))
        (Path(i.folder) / "AB.new.1").write_text("left over by a process that died")
        os.utime(Path(i.folder) / "AB.new.1", (1000, 1000))
        assert anetorch.cache_info().entries == i.limit + 1
        anetorch.compile(affine(factor=3.0), device="ane")
        now = anetorch.cache_info()
        names = {p.name for p in Path(i.folder).iterdir()}
        assert now.entries == i.limit * 7 // 8 and f"{i.limit - 1:064X}" in names
        assert f"{0:064X}" not in names and "AB.new.1" not in names
        n = get("compiles")
        anetorch.compile(affine(), device="ane")
        anetorch.compile(affine(factor=3.0), device="ane")
        assert get("compiles") == n                 # the used ones stayed
        assert anetorch.cache_clear() == now.entries and anetorch.cache_info().entries == 0
        anetorch.compile(affine(), device="ane")
        assert get("compiles") == n + 1
    """)


def test_weights_whose_join_is_equal(run):  # noqa: F811
    """The framework joins all weight files before it hashes them: the same bytes cut at another
    place share an identifier, with other weights. Never the wrong ones: not from the cache, and
    not while the other is loaded."""
    run("""
        from anetorch import _core
        header, tail = bytes(_core.build_blob_fp16(data(8))[:128]), bytes(64)
        text = '''program(1.3) { func main<ios18>(tensor<fp16, [1, 8]> x) {
            tensor<fp16, [1, 8]> a = const()[val = tensor<fp16, [1, 8]>(BLOBFILE(
                path = string("@model_path/weights/a.bin"), offset = uint64(64)))];
            tensor<fp16, [1, 8]> b = const()[val = tensor<fp16, [1, 8]>(BLOBFILE(
                path = string("@model_path/weights/b.bin"), offset = uint64(64)))];
            tensor<fp16, [1, 8]> s = add(x = x, y = a);
            tensor<fp16, [1, 8]> y = mul(x = s, y = b);
        } -> (y); }'''
        one, two = (bytes(_core.build_blob_fp16(data(8))) for _ in range(2))
        assert len(one) == 144
        pairs = [(one + one, two), (one, one + two)]    # longer files; the same bytes in a row
        programs = [anetorch.mil.Program.parse(text, weights={
            "@model_path/weights/a.bin": a, "@model_path/weights/b.bin": b}) for a, b in pairs]
        x = data(1, 8)
        want = [np.array(cpu(p)(x)) for p in programs]
        assert not np.array_equal(*want)
        first = anetorch.compile(programs[0], device="ane")
        same(first(x), want[0])
        try: anetorch.compile(programs[1], device="ane")
        except NotImplementedError as e: assert "release its kernel first" in str(e), e
        else: raise AssertionError
        same(first(x), want[0])
        del first
        for i in (1, 0, 1):
            same(anetorch.compile(programs[i], device="ane")(x), want[i])
        assert get("compiles") == 4 and left() == NOTHING
    """)


def test_the_folder_is_the_one_that_the_documentation_names(run, tmp_path, monkeypatch):  # noqa: F811
    for env in ({}, {"ANETORCH_CACHE_DIR": "", "XDG_CACHE_HOME": str(tmp_path / "xdg")},
                {"ANETORCH_CACHE_DIR": "", "XDG_CACHE_HOME": "", "HOME": str(tmp_path)}):
        run("""
            from anetorch.env import cache_dir
            assert anetorch.cache_info().folder == cache_dir() / "ane-index", anetorch.cache_info()
        """, **env)
    assert cache_dir()


def test_command_line(run, stand_in, tmp_path):  # noqa: F811
    run("anetorch.compile(affine(), device='ane')")
    def cli(*args):
        return subprocess.run([sys.executable, "-m", "anetorch", "cache", *args], text=True,
                              capture_output=True, check=True, timeout=60,
                              env=environment(stand_in, tmp_path)).stdout
    assert "1 of 1024 entries" in cli()
    assert cli("--clear").splitlines()[0] == "forgot 1 entries"
    assert "0 of 1024 entries" in cli()
    assert Path(tmp_path / "cache" / "ane-index").is_dir()
