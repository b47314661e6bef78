"""The engine's device against a stand-in of Apple's run-time (tests/standin): another double
of the documented tables, so that a slip on either side shows. No hardware is involved."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from standin_run import PRELUDE, environment, run, stand_in  # noqa: F401

import anetorch

def test_says_that_it_is_a_stand_in(run, stand_in, tmp_path):
    run("""
        device = {d.name: d for d in anetorch.devices()}["ane"]
        assert device.available and "stand-in, not hardware" in device.detail
        assert anetorch.compile(affine(), device="ane").device == "ane"
    """)
    done = subprocess.run([sys.executable, "-m", "anetorch", "info"], text=True, timeout=60,
                          capture_output=True, env=environment(stand_in, tmp_path))
    assert "stand-in, not hardware" in done.stdout, done.stdout + done.stderr


def test_absent_without_a_run_time():
    """Here there is no macOS; the named device does not fall back."""
    if sys.platform == "darwin" or os.environ.get("ANETORCH_APPLE_RUNTIME"):
        pytest.skip("this machine may have the real one")
    device = {d.name: d for d in anetorch.devices()}["ane"]
    assert not device.available and "cannot load" in device.detail
    text = ("program(1.3) { func main<ios18>(tensor<fp16, [1, 4]> x) "
            "{ tensor<fp16, [1, 4]> y = relu(x = x); } -> (y); }")
    with pytest.raises(NotImplementedError, match="cannot load"):
        anetorch.compile(text, device="ane")


def test_equals_the_cpu_device(run):
    """Ports in neither alphabetical order nor order of size, rows that need padding and rows
    that do not, ranks 0 to 4, fp32 and int32 at the border, strided operands."""
    run("""
        for shape in [(1, 8, 2, 5), (1, 1, 1, 1), (2, 3, 4, 32), (1, 4, 1, 33), (7,), (3, 64), (5, 2, 31)]:
            p = affine(shape)
            x, w = data(*shape), data(*shape)
            same(anetorch.compile(p, device="ane")(x, w), cpu(p)(x, w))

        @mil.program(z=mil.spec((1, 4, 3, 7), "fp16"), m=mil.spec((7, 5), "fp16"),
                     a=mil.spec((1, 1, 1, 5), "fp32"), k=mil.spec((), "fp16"), opset="ios18")
        def many(z, m, a, k):
            r = mil.ops.matmul(x=z, y=m) * k + mil.ops.cast(x=a, dtype="fp16")
            return {"r": r, "b": mil.ops.cast(x=r, dtype="fp32"), "n": mil.ops.cast(x=z, dtype="int32")}
        args = (data(1, 4, 3, 7), data(7, 5), data(1, 1, 1, 5).astype(np.float32),
                np.array(0.5, np.float16))
        k = anetorch.compile(many, device="ane")
        same(k(*args), cpu(many)(*args))
        turned = np.ascontiguousarray(args[1].T).T
        assert not turned.flags.c_contiguous
        same(k(args[0], turned, *args[2:]), cpu(many)(*args))
        assert {p.name: p.strides for p in k.outputs}["r"] == (768, 192, 64, 2) if hasattr(
            k.outputs[0], "strides") else True
        del k
        assert left() == NOTHING, left()
    """)


def test_surfaces_of_the_right_layout_are_used_as_they_are(run):
    run("""
        shape = (1, 64, 4, 32)                      # 64-byte rows, 16 KiB
        p = affine(shape)
        k = anetorch.compile(p, device="ane")
        make = lambda: Tensor(shape, "float16", mem="iosurface")
        z, a, y = make(), make(), make()
        z.copy_(data(*shape)); a.copy_(data(*shape))
        before = get("live_surfaces")
        r = k.bind([z, a], [y])
        assert get("live_surfaces") == before       # no staging
        r.run()
        want = cpu(p)(z.numpy(), a.numpy())
        same({"y": y.numpy()}, want)
        r = k.bind([z, a], [z])                     # in place: the output is staged
        assert get("live_surfaces") == before + 1
        r.run()
        same({"y": z.numpy()}, want)
        for t in (z, a, y): t.close()
        del r, k, t, z, a, y, make, want
        assert left() == NOTHING, left()
    """)


def test_weights(run):
    run("""
        from anetorch import _core
        w = data(6, 8)
        blob = _core.build_blob_fp16(w)
        text = '''program(1.3) { func main<ios18>(tensor<fp16, [3, 8]> x) {
            tensor<fp16, [6, 8]> w = const()[val = tensor<fp16, [6, 8]>(BLOBFILE(
                path = string("@model_path/weights/w.bin"), offset = uint64(64)))];
            tensor<fp16, [3, 6]> y = linear(x = x, weight = w);
        } -> (y); }'''
        x = data(3, 8)
        p = anetorch.mil.Program.parse(text, weights={"@model_path/weights/w.bin": blob})
        k = anetorch.compile(p, device="ane")
        (folder,) = (f for f in left()["folders"] if "." not in f)     # beside its locks
        root = os.path.join(os.environ["STANDIN_TMPDIR"], folder)
        assert open(os.path.join(root, "weights", "w.bin"), "rb").read() == bytes(blob)
        same(k(x), cpu(p)(x))
        other = anetorch.mil.Program.parse(text, weights={"@model_path/weights/w.bin":
                                                          _core.build_blob_fp16(w + 1)})
        same(anetorch.compile(other, device="ane")(x), cpu(other)(x))
        assert get("compiles") == 2                 # other bytes, another identifier
        del k
        assert left() == NOTHING, left()
    """)


def test_equal_programs_share_one_model(run):
    run("""
        x, w = data(1, 8, 2, 5), data(1, 8, 2, 5)
        first, second = (anetorch.compile(affine(), device="ane") for _ in range(2))
        assert (get("compiles"), get("loads"), get("loaded")) == (1, 1, 1)
        want = cpu(affine())(x, w)
        del first
        gc.collect()
        assert get("loaded") == 1 and sum("." not in f for f in left()["folders"]) == 1
        same(second(x, w), want)                    # the first one's end took nothing away
        del second
        assert left() == NOTHING, left()
        third = anetorch.compile(affine(), device="ane")
        assert (get("compiles"), get("loads")) == (1, 2)    # the system still had it
        same(third(x, w), want)
    """)


def test_ten_thousand_cycles(run):
    run("""
        x, w = data(1, 8, 2, 5), data(1, 8, 2, 5)
        p = affine()
        want = cpu(p)(x, w)
        def pages(): return int(open("/proc/self/statm").read().split()[1])
        def descriptors(): return len(os.listdir("/proc/self/fd"))
        for i in range(10_000):
            k = anetorch.compile(p, device="ane")
            got = k(x, w)
            if i % 100 == 0: same(got, want)
            del k, got
            if i == 1000: start, files = pages(), descriptors()
        assert get("compiles") == 1 and get("loads") == 10_000
        assert left() == NOTHING, left()
        assert descriptors() == files
        grown = (pages() - start) * os.sysconf("SC_PAGESIZE")
        quarantine = "libasan" in os.environ.get("LD_PRELOAD", "")     # keeps freed memory
        assert quarantine or grown < 900 * 1024, grown      # 100 bytes a cycle would show
    """)


STEPS = {
    # knob: (calls that fail, exception, text of the message)
    "fail_describe": (1, "RuntimeError", "no descriptor"),
    "fail_model": (1, "RuntimeError", "no model"),
    "fail_hex": (1, "RuntimeError", "no usable identifier"),
    "fail_compile": (1, "RuntimeError", "[compile] _ANECompiler : ANECCompile() FAILED "
                     "(CompilationFailure) (com.apple.appleneuralengine.compiler, code 1"),
    "fail_load": (2, "RuntimeError", "[load] Program load failure (0x20004) "
                  "(com.apple.appleneuralengine, code 6; believed to mean: seen with"),
    "fail_attributes": (1, "RuntimeError", "attributes are not as expected"),
    "fail_surface": (1, "MemoryError", "IOSurfaceCreate returned null"),
    "fail_wrap": (1, "RuntimeError", "no wrapper"),
    "fail_request": (1, "RuntimeError", "no request"),
    "fail_validate": (1, "RuntimeError", "invalid"),       # ours, then the one in evaluate
    "fail_tmpdir": (1, "RuntimeError", "no temporary folder"),
    # Strings, numbers, arrays and dictionaries: no memory, or a key that finds nothing.
    "fail_cf": (1, ("MemoryError", "RuntimeError"), ""),
    "fail_lock": (1, "RuntimeError", "IOSurfaceLock failed"),
    "fail_base": (1, "RuntimeError", "base address is null"),
    "fail_unlock": (1, "RuntimeError", "IOSurfaceUnlock failed"),
    "transient_12": (9, "RuntimeError", "status=0x12 : statusType=0x9: Program Inference error "
                     "(com.apple.appleneuralengine, code 8; believed to mean: cancelled in"),
    "fail_evaluate": (1, "RuntimeError", "[run] ANEProgramProcessRequestDirect() Failed with "
                      "status=0x1d : statusType=0x9: Program Inference error (com.apple."
                      "appleneuralengine, code 8; believed to mean: a surface is too small"),
}


def test_failure_at_every_step(run):
    """For every fault, its n-th call fails, for every n until a whole cycle passes: an error
    with Apple's text, nothing left behind, the outputs as they were, and the next cycle is
    right."""
    out = run(f"""
        x, w = data(1, 8, 2, 5), data(1, 8, 2, 5)
        p = affine()
        want = cpu(p)(x, w)
        def cycle(out):     # a refused compile is not to be tried again in another form
            k = anetorch.compile(p, device="ane", lowering="inputs")
            r = k.bind([x, w], [out])
            r.run()
        for knob, (times, error, text) in {STEPS!r}.items():
            failures = 0
            for nth in range(300):
                where = (knob, nth)
                out = np.full((1, 8, 2, 5), 7, np.float16)
                # The cache is forgotten first, so that compile and load are both in the cycle.
                knobs(compile_budget=1000, forget_cache=1, fault_after=nth, **{{knob: times}})
                try:
                    cycle(out)
                except Exception as e:
                    failures += 1
                    assert type(e).__name__ in error and text in str(e), (where, e)
                    # An unlock fails after the bytes were copied; all else comes before.
                    assert (out == 7).all() or knob == "fail_unlock", where
                    assert get(knob) == 0, where    # used up: no step was repeated
                    del e
                    passed = False
                else:
                    same({{"y": out}}, want)
                    passed = get(knob) == times     # no call was left to fail
                lib.standin_reset()
                knobs(compile_budget=1000)
                assert left() == NOTHING, (where, left())
                out = np.zeros((1, 8, 2, 5), np.float16)
                cycle(out)
                same({{"y": out}}, want)
                assert left() == NOTHING, (where, left())
                if passed: break
            print(knob, failures)
    """, ANETORCH_COMPILE_BUDGET="0")
    reached = {k: int(n) for k, n in (line.split() for line in out.splitlines())}
    assert reached.keys() == STEPS.keys() and all(reached.values()), reached
    assert reached["fail_cf"] > 60, reached
    # Two inputs and an output; each surface is locked for its address and around a copy.
    assert reached["fail_surface"] == reached["fail_wrap"] == 3, reached
    assert reached["fail_lock"] == reached["fail_unlock"] + 3, reached


@pytest.mark.parametrize("relowered", [0, 1])
@pytest.mark.parametrize("sticky", [False, True])
def test_memory_that_runs_out_anywhere(run, sticky, relowered):
    """Every allocation of a cycle fails once, alone or with all that follow; also of one whose
    first evaluation is refused, and which is packed then."""
    run(f"""
        import warnings
        warnings.simplefilter("ignore")
        from anetorch import _core
        fail_after = _core._testing.fail_after
        x, w = data(1, 8, 2, 5), data(1, 8, 2, 5)
        p = affine()
        want = cpu(p)(x, w)
        def cycle(out):
            k = anetorch.compile(p, device="ane")
            k.bind([x, w], [out]).run()
        cycle(np.empty_like(x))
        failures = 0
        for n in range(1, 2000):
            knobs(compile_budget=10**6, forget_cache=1, single_surface={relowered})
            out = np.full((1, 8, 2, 5), 7, np.float16)
            fail_after(n, {sticky})
            try: cycle(out)
            except (MemoryError, RuntimeError) as e:
                failures += 1
                assert "memory" in str(e).lower() or "status=0x" in str(e) or "FAILED" in str(e) or not str(e), e
                assert (out == 7).all(), n
                done = False
            else: done = True
            finally: seen = fail_after(0)
            if done: same({{"y": out}}, want)
            assert left() == NOTHING, (n, left())
            if done and seen < n: break
        assert failures > 30 and seen < n, (failures, seen)
        out = np.empty_like(x)
        cycle(out)
        same({{"y": out}}, want)
    """, ANETORCH_COMPILE_BUDGET="0")


def test_every_method_of_the_table_is_tried():
    table = (Path(__file__).parents[1] / "csrc" / "backend" / "apple" / "table.def").read_text()
    classes = dict(re.findall(r'X\((\w+), "(\w+)", (?:REQUIRED|OPTIONAL)\)', table))
    rows = re.findall(r'X\((CLASS|INSTANCE), \w+, (\w+),\s*\\?\s*((?:"[^"]*"\s*\\?\s*)+),', table)
    found = {(classes[c], int(kind == "CLASS"), "".join(re.findall('"([^"]*)"', sel))) for kind, c, sel in rows}
    assert len(rows) == len(re.findall(r"X\((?:CLASS|INSTANCE), ", table)) >= 17
    assert found == {m[:3] for m in METHODS}


def test_recovery(run):
    """One failing load and a short power transition are retried; a failing unload is not an
    error and takes the folder all the same."""
    run("""
        x, w = data(1, 8, 2, 5), data(1, 8, 2, 5)
        p = affine()
        want = cpu(p)(x, w)
        knobs(fail_load=1, transient_12=8)
        same(anetorch.compile(p, device="ane")(x, w), want)
        assert get("fail_load") == get("transient_12") == 0
        assert left() == NOTHING, left()
        knobs(fail_unload=1)
        same(anetorch.compile(p, device="ane")(x, w), want)
        assert left() == NOTHING, left()
        # A compiled program that the system has but cannot load costs one compile.
        compiles = get("compiles")
        knobs(fail_load=2)
        same(anetorch.compile(p, device="ane")(x, w), want)
        assert get("compiles") == compiles + 1 and left() == NOTHING
    """)


def test_budget_and_slots(run):
    run("""
        knobs(compile_budget=3)
        for i in range(3): anetorch.compile(affine(factor=i + 1.0), device="ane")
        try: anetorch.compile(affine(factor=9.0), device="ane")
        except RuntimeError as e: assert "budget of compiles" in str(e), e
        else: raise AssertionError
        knobs(compile_budget=119, load_slots=2)
        held = [anetorch.compile(affine(factor=i + 1.0), device="ane") for i in range(2)]
        try: anetorch.compile(affine(factor=3.0), device="ane")
        except RuntimeError as e: assert "too many programs are loaded" in str(e), e
        else: raise AssertionError
        del held
        assert left() == NOTHING, left()
    """)


def test_what_the_engine_cannot_take(run):
    run("""
        for text, why in [
            ("tensor<fp16, [1, ?]> x) { tensor<fp16, [1, ?]> y = relu(x = x); } -> (y)", "known"),
            ("tensor<fp16, [1,1,1,2,2]> x) { tensor<fp16, [1,1,1,2,2]> y = relu(x = x); } -> (y)", "rank 4"),
            ("tensor<bool, [4]> x) { tensor<bool, [4]> y = logical_not(x = x); } -> (y)", "bool"),
            ("tensor<fp16, [4]> x) { tensor<fp16, [4]> y = relu(x = x); } -> (y, y)", "twice"),
        ]:
            try: anetorch.compile(f"program(1.3) {{ func main<ios18>({text}; }}", device="ane")
            except NotImplementedError as e: assert why in str(e), e
            else: raise AssertionError(text)
        assert get("compiles") == 0 and left() == NOTHING
    """)


METHODS = [
    ("_ANEInMemoryModelDescriptor", 1, "modelWithMILText:weights:optionsPlist:", True),
    ("_ANEInMemoryModel", 1, "inMemoryModelWithDescriptor:", True),
    ("_ANEInMemoryModel", 0, "hexStringIdentifier", True),
    ("_ANEInMemoryModel", 0, "compileWithQoS:options:error:", True),
    ("_ANEInMemoryModel", 0, "loadWithQoS:options:error:", True),
    ("_ANEInMemoryModel", 0, "evaluateWithQoS:options:request:error:", True),
    ("_ANEInMemoryModel", 0, "unloadWithQoS:error:", True),
    ("_ANEInMemoryModel", 0, "modelAttributes", True),
    ("_ANEInMemoryModel", 0, "compiledModelExists", False),
    ("_ANERequest", 1, "requestWithInputs:inputIndices:outputs:outputIndices:weightsBuffer:"
                       "perfStats:procedureIndex:", True),
    ("_ANERequest", 0, "validate", True),
    ("_ANEIOSurfaceObject", 1, "objectWithIOSurface:", True),
    ("_ANEDeviceInfo", 1, "hasANE", False),
    ("_ANEDeviceInfo", 1, "aneArchitectureType", False),
    ("_ANEClient", 1, "sharedConnection", False),
    ("_ANEClient", 0, "beginRealTimeTask", False),
    ("_ANEClient", 0, "endRealTimeTask", False),
]


def test_a_changed_run_time_is_refused(stand_in, tmp_path):
    """Each method hidden and each encoding altered, in a fresh process each (the probe runs
    once): absent with the reason, or without the optional method."""
    code = PRELUDE + textwrap.dedent("""
        import sys
        base = os.getpid()
        for cls, meta, sel, required in %r:
            for what in ("hide_method", "alter_encoding"):
                pid = os.fork()
                if pid:
                    assert os.waitpid(pid, 0)[1] == 0, (cls, sel, what)
                    continue
                try:
                    number = lib.standin_method_number(cls.encode(), meta, sel.encode())
                    assert number > 0, "the stand-in lacks it"
                    knobs(**{what: number})
                    device = {d.name: d for d in anetorch.devices()}["ane"]
                    if what == "hide_method" and not required:
                        assert device.available
                        x = data(1, 8, 2, 5)
                        same(anetorch.compile(affine(), device="ane")(x, x), cpu(affine())(x, x))
                    else:
                        assert not device.available and sel in device.detail, device
                        assert ("missing" if what == "hide_method" else "encoding") in device.detail
                        try: anetorch.compile(affine(), device="ane")
                        except NotImplementedError as e: assert sel in str(e)
                        else: raise AssertionError("fell back")
                except BaseException as e:
                    print(cls, sel, what, repr(e), file=sys.stderr, flush=True)
                    os._exit(1)
                os._exit(0)
    """) % (METHODS,)
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True,
                          timeout=120, env=environment(stand_in, tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("setup, reason", [
    ("knobs(has_ane=0)", "there is no Neural Engine"),
    # The private classes are the last seven of the stand-in's classes, in its own order.
    ("knobs(hide_class=next(i for i in range(1, 32) if (knobs(hide_class=i), "
     "not lib.objc_getClass(b'_ANERequest'))[1]))", "class _ANERequest is missing"),
])
def test_no_engine(run, setup, reason):
    run(f"""
        {setup}
        device = {{d.name: d for d in anetorch.devices()}}["ane"]
        assert not device.available and {reason!r} in device.detail, device
        try: anetorch.compile(affine(), device="ane")
        except NotImplementedError as e: assert {reason!r} in str(e)
        else: raise AssertionError("fell back")
        assert left()["live_objects"] == 0
    """)
