"""The engine's device in its details, on the stand-in: reports, real time, sizes of surfaces,
what codes mean, attributes that are not as expected, and the stand-in's own traps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from standin_run import run, stand_in  # noqa: F401

TABLE = (Path(__file__).parents[1] / "csrc" / "backend" / "apple" / "table.def").read_text()


def test_report_has_the_phases(run):  # noqa: F811
    run("""
        x = data(1, 8, 2, 5)
        for cached in (False, True):
            k = anetorch.compile(affine(), device="ane")
            r = k.report(x, x)
            assert [s["op"] for s in r] == ["describe", "write", "compile", "load", "bind", "copy in",
                                            "copy in", "evaluate", "copy out", "unload"]
            assert [s["name"] for s in r if s["name"]] == ["z", "a", "y"]
            step = {s["op"]: s for s in r}
            for op in ("describe", "load", "bind", "copy in", "evaluate", "copy out"):
                assert step[op]["seconds"] > 0, op
            for op in ("write", "compile"):
                assert (step[op]["seconds"] == 0) == (step[op]["kernel"] == "cached") == cached, op
            assert (step["unload"]["seconds"] > 0) == cached        # of the kernel before
            assert step["evaluate"]["kernel"] == "stand-in" and step["copy in"]["kernel"] == "cpu"
            assert "stand-in" in str(r) and "evaluate" in r._repr_html_()
            del k
        assert left() == NOTHING
    """)


def test_placement(run):  # noqa: F811
    run("""
        p = affine((1, 64, 4, 32))
        k = anetorch.compile(p, device="ane")
        ran = [("mul", "ane", "stand-in"), ("sub", "ane", "stand-in")]
        rows = k.placement()
        assert [(r.op, r.name, r.device) for r in rows[:2]] == [("copy in", "z", "cpu"), ("copy in", "a", "cpu")]
        assert [(r.op, r.device, r.kernel) for r in rows[2:-1]] == ran
        assert rows[-1][:3] == ("copy out", "y", "cpu")
        rows = anetorch.compile(p).placement()
        assert rows and all(r.device == "cpu" and r.kernel for r in rows) and rows[-1].name == "y"
        del k
        assert left() == NOTHING
    """)


def test_realtime(run):  # noqa: F811
    run("""
        with anetorch.realtime() as granted: assert granted is False
        assert (get("realtime_begun"), get("realtime_ended")) == (1, 0)
        knobs(realtime=1)
        with anetorch.realtime() as outer:
            with anetorch.realtime() as inner: assert outer is inner is True
            assert (get("realtime_begun"), get("realtime_ended")) == (2, 0)
        assert (get("realtime_begun"), get("realtime_ended")) == (2, 1)
        try:
            with anetorch.realtime(): raise KeyError
        except KeyError: pass
        assert (get("realtime_begun"), get("realtime_ended")) == (3, 2)
        assert left() == NOTHING
    """)


def test_realtime_without_the_client(run):  # noqa: F811
    run("""
        knobs(hide_class=next(i for i in range(1, 32) if (knobs(hide_class=i),
                              not lib.objc_getClass(b"_ANEClient"))[1]))
        with anetorch.realtime() as granted: assert granted is False
        x = data(1, 8, 2, 5)
        same(anetorch.compile(affine(), device="ane")(x, x), cpu(affine())(x, x))
    """)


def test_one_size_for_all_surfaces(run):  # noqa: F811
    code = """
        knobs(equal_ports=1)
        @mil.program(x=mil.spec((1, 64, 4, 32), "fp16"), m=mil.spec((32, 1024), "fp16"), opset="ios18")
        def p(x, m): return {"y": mil.ops.matmul(x=x, y=m)}
        x, m = data(1, 64, 4, 32), data(32, 1024)
        k = anetorch.compile(p, device="ane")
        fits = Tensor((1, 64, 4, 32), "float16", mem="iosurface")
        fits.copy_(x)
        try: same(k(fits, m), cpu(p)(x, m))
        except RuntimeError as e: print(e)
        fits.close()
        del k
        assert left() == NOTHING
    """
    assert "status=0x1d" in run(code)
    assert run(code, ANETORCH_UNIFORM_PORTS="1") == ""


def test_smallest_surface(run):  # noqa: F811
    code = """
        x = data(1, 8, 2, 5)
        knobs(min_surface=49152)
        try: same(anetorch.compile(affine(), device="ane")(x, x), cpu(affine())(x, x))
        except (RuntimeError, ValueError) as e: print(e)
        assert left() == NOTHING
    """
    assert "believed to mean: a surface is too small" in run(code)
    assert run(code, ANETORCH_SURFACE_MIN="49152") == ""
    assert "ANETORCH_SURFACE_MIN is '48k'" in run(code, ANETORCH_SURFACE_MIN="48k")


def codes():
    block = TABLE[TABLE.index("#define ANE_APPLE_CODES"):]
    rows = re.findall(r'X\((\w+), (0x[0-9a-f]+|\d+), ((?:"[^"]*"\s*\\?\s*)+), \s*\\?\s*"([^"]+)"\)', block)
    found = [(kind, int(value, 0), "".join(re.findall(r'"([^"]*)"', text)), who)
             for kind, value, text, who in rows]
    assert len(found) == block.count("    X("), (len(found), block.count("    X("))
    return found


def test_every_code_has_its_meaning_and_its_source(run):  # noqa: F811
    """The table against the numbers of the public accounts, typed here a second time; and each
    number, met in an error, says what the table has."""
    table = codes()
    have = {kind: {v for k, v, _, _ in table if k == kind} for kind in ("DOMAIN", "COMPILER", "STATUS", "LOAD")}
    assert have["DOMAIN"] == {*range(1, 28), 29, 42, 47, 53}
    assert have["COMPILER"] == {1, 22}
    assert have["STATUS"] == {0x1, 0x2, 0x5, 0xe, 0xf, 0x12, 0x15, 0x16, 0x1d}
    assert have["LOAD"] == {0x50004, 0x10004, 0x20004, 0x170004}
    assert all(text and who for _, _, text, who in table)
    run(f"""
        x = data(1, 8, 2, 5)
        k = anetorch.compile(affine(), device="ane")
        def message(f):
            try: f()
            except RuntimeError as e: return str(e)
            raise AssertionError
        for kind, value, text, _ in {table!r}:
            if kind == "STATUS":
                knobs(evaluate_status=value, fail_evaluate=9 if value == 0x12 else 1)
                k = anetorch.compile(affine(), device="ane", lowering="inputs")
                got = message(lambda: k(x, x))
                assert f"status=0x{{value:x}} " in got
            elif kind == "LOAD":
                knobs(fail_load=2, load_word=value)
                got = message(lambda: anetorch.compile(affine(factor=7.0), device="ane"))
                assert f"(0x{{value:X}})" in got
            elif kind == "DOMAIN":
                knobs(fail_load=2, load_code=value)
                got = message(lambda: anetorch.compile(affine(factor=7.0), device="ane"))
                assert f"com.apple.appleneuralengine, code {{value}};" in got
            else:
                knobs(fail_compile=2, compile_code=value)  # packed as well
                got = message(lambda: anetorch.compile(affine(factor=7.0), device="ane"))
                assert f"com.apple.appleneuralengine.compiler, code {{value}};" in got
            assert "believed to mean: " + text + ")" in got, (kind, value, got)
            lib.standin_reset()
        knobs(fail_load=2, load_code=99)
        assert "code 99; believed to mean: unknown)" in message(
            lambda: anetorch.compile(affine(factor=7.0), device="ane"))
        lib.standin_reset()
        same(k(x, x), cpu(affine())(x, x))
        del k
        assert left() == NOTHING, left()
    """, ANETORCH_COMPILE_BUDGET="0")


def test_operations_that_were_refused(run):  # noqa: F811
    """What the table of facts calls refused, at compile, as the accounts have it: with the compiler's
    error and an inner one that gives no reason; lint names the same operations. Inside a block as
    well; and nothing of it without the switch."""
    table = (Path(__file__).parents[1] / "csrc" / "ir" / "target.def").read_text()
    refused = re.findall(r"^OPERATION\((\w+), REFUSED,", table, re.M)
    assert {"gelu", "sin", "max_pool", "gather"} <= set(refused) and len(refused) == 20
    run(f"""
        from anetorch.selftest.cases import CASES
        tried = 0
        for name in {refused!r}:
            program = CASES[name].program()
            try: anetorch.compile(program, device="ane", lowering="inputs")
            except RuntimeError as e:
                assert "_ANECompiler : ANECCompile() FAILED (CompilationFailure) (com.apple." in str(e), e
                assert "compiler, code 1; believed to mean: the compiler refused the program" in str(e), e
            else: raise AssertionError(name)
            said = [f for f in anetorch.lint(program) if f.rule.id in ("ANE12", "ANE33")]
            assert said and name in said[0].what, (name, said)
            knobs(refuse_ops=0)
            values = CASES[name].values()
            k = anetorch.compile(program, device="ane", lowering="inputs")
            same(k(**values), cpu(program)(**values))
            knobs(refuse_ops=1)
            del k
            tried += 1
        assert tried == len({refused!r}) == get("compiles")
        def inside(x):
            low = mil.ops.less(x=mil.ops.reduce_max(x=x, axes=[0, 1, 2, 3], keep_dims=False), y=np.float16(0))
            return mil.ops.cond(low, lambda: mil.ops.sin(x=x), lambda: x * 1.0)
        p = mil.build(inside, {{"x": mil.spec((1, 8, 1, 32), "fp16")}}, opset="ios18")
        try: anetorch.compile(p, device="ane")
        except RuntimeError as e: assert "CompilationFailure" in str(e), e
        else: raise AssertionError
        assert left() == NOTHING, left()
    """)


def test_numbers_beside_the_text(run):  # noqa: F811
    """Newer systems put status and stage into userInfo, and have codes of their own."""
    run("""
        x = data(1, 8, 2, 5)
        knobs(era27=1, fail_load=2)
        try: anetorch.compile(affine(), device="ane")
        except RuntimeError as e:
            assert "code 53, load status 0x10004; believed to mean: the program is too large" in str(e), e
        else: raise AssertionError
        k = anetorch.compile(affine(), device="ane")
        k(x, x)                         # from now on its ports are not what is wrong
        knobs(fail_evaluate=1)
        try: k(x, x)
        except RuntimeError as e: assert "code 42; believed to mean: a surface is too small" in str(e), e
        else: raise AssertionError
        knobs(fail_evaluate=1, bare_text=1, evaluate_status=0xe)
        try: k(x, x)
        except RuntimeError as e: assert "code 8, status 0xe; believed to mean: program not found" in str(e), e
        else: raise AssertionError
        del k
        assert left() == NOTHING
    """)


def test_attributes_that_are_not_as_expected(run):  # noqa: F811
    """Absent, of another type, contradicting the text, with strides that overlap: refused with the
    reason, never believed."""
    out = run("""
        x = data(1, 8, 2, 5)
        for odd in range(1, 15):
            knobs(odd_attributes=odd)
            try: anetorch.compile(affine(), device="ane")
            except RuntimeError as e: print(odd, e)
            else: raise AssertionError(odd)
            lib.standin_reset()
            assert left() == NOTHING, (odd, left())
        same(anetorch.compile(affine(), device="ane")(x, x), cpu(affine())(x, x))
    """)
    assert len(out.splitlines()) == 14
    assert all("attributes are not as expected" in r for r in out.splitlines())
    assert len({r.split(" ", 1)[1] for r in out.splitlines()}) >= 7, out


# ---------------------------------------------------------------- traps

TRAPS = {
    "over-release": ("o = string(b'x'); release(o); release(o)", "released before"),
    "use after free": ("o = string(b'x'); release(o); lib.CFGetTypeID(o); lib.CFStringGetLength(o)",
                       "released before"),
    "released while others hold it": ("c = cls(b'_ANEClient'); p = push(); "
                                      "d = described(); release(d); pop(p)", "released before"),
    "not an object": ("release(ctypes.addressof(ctypes.create_string_buffer(64)))", "is not an object"),
    "CFRelease(NULL)": ("lib.CFRelease(None)", "CFRelease(NULL)"),
    "CFRetain(NULL)": ("lib.CFRetain(None)", "CFRetain(NULL)"),
    "CFGetTypeID(NULL)": ("lib.CFGetTypeID(None)", "CFGetTypeID(NULL)"),
    "unknown selector": ("send(P, cls(b'_ANEInMemoryModel'), True, b'modelWithoutAName')",
                         "modelWithoutAName]: unrecognized selector"),
    "text of another class": ("push(); send(P, cls(b'_ANEInMemoryModelDescriptor'), True, "
                              "b'modelWithMILText:weights:optionsPlist:', string(b'x'), dictionary(), None)",
                              "expected __NSCFData, got __NSCFString"),
    "weights of another class": ("push(); send(P, cls(b'_ANEInMemoryModelDescriptor'), True, "
                                 "b'modelWithMILText:weights:optionsPlist:', blob(b'x'), blob(b'x'), None)",
                                 "expected __NSCFDictionary, got __NSCFData"),
    "an empty inner dictionary": (
        "push(); d = dictionary(); lib.CFDictionarySetValue(d, string(b'k'), dictionary()); "
        "send(P, cls(b'_ANEInMemoryModelDescriptor'), True, "
        "b'modelWithMILText:weights:optionsPlist:', blob(b'x'), d, None)", "inner weight dictionary is empty"),
    "a model of no descriptor": ("push(); send(P, cls(b'_ANEInMemoryModel'), True, "
                                 "b'inMemoryModelWithDescriptor:', string(b'x'))",
                                 "expected _ANEInMemoryModelDescriptor"),
    "nil options": ("push(); send(ctypes.c_bool, model(), False, b'loadWithQoS:options:error:', "
                    "ctypes.c_uint(21), None, None)", "options are nil"),
    "options of another class": ("push(); send(ctypes.c_bool, model(), False, "
                                 "b'compileWithQoS:options:error:', ctypes.c_uint(21), string(b'x'), None)",
                                 "expected __NSCFDictionary"),
    "a message to another class": ("push(); m = model(); lib.object_getClass.restype = P; "
                                   "imp(P, [P, P], cls(b'_ANEInMemoryModel'), False, "
                                   "b'hexStringIdentifier')(string(b'x'), None)",
                                   "expected _ANEInMemoryModel, got __NSCFString"),
    "a bare surface in a request": (
        "push(); a = array(string(b'x')); send(P, cls(b'_ANERequest'), True, b'requestWithInputs:"
        "inputIndices:outputs:outputIndices:weightsBuffer:perfStats:procedureIndex:', a, a, a, a, None, "
        "None, number(0))", "expected _ANEIOSurfaceObject"),
    "no surface to wrap": ("push(); send(P, cls(b'_ANEIOSurfaceObject'), True, b'objectWithIOSurface:', "
                           "string(b'x'))", "not an IOSurface"),
    "nil in an array": ("array(None)", "nil"),
    "beyond an array": ("lib.CFArrayGetValueAtIndex(array(string(b'x')), 1)", "index 1 beyond the array"),
    "nil into a dictionary": ("lib.CFDictionarySetValue(dictionary(), string(b'x'), None)", "with NULL"),
    "a pool popped twice": ("p = push(); pop(p); pop(p)", "popped twice"),
    "unlocked otherwise than locked": ("s = surface(); lib.IOSurfaceLock(s, 0, None); "
                                       "lib.IOSurfaceUnlock(s, 1, None)", "other options than the lock"),
    "freed while locked": ("s = surface(); lib.IOSurfaceLock(s, 0, None); lib.CFRelease(s)",
                           "freed while locked"),
    "a dictionary without callbacks": ("lib.CFDictionaryCreateMutable(None, 0, None, None)",
                                       "without the CFType callbacks"),
    "an unknown knob": ("knobs(no_such_knob=1)", "no knob 'no_such_knob'"),
}

RAW = '''
import signal, sys
P = ctypes.c_void_p
for name in ("objc_getClass", "sel_registerName", "class_getMethodImplementation", "object_getClass",
             "objc_autoreleasePoolPush", "CFStringCreateWithCString", "CFDataCreate", "CFNumberCreate",
             "CFArrayCreate", "CFDictionaryCreateMutable", "CFArrayGetValueAtIndex", "IOSurfaceCreate"):
    getattr(lib, name).restype = P
for name, types in {
    "class_getMethodImplementation": [P, P], "object_getClass": [P], "objc_release": [P],
    "objc_autoreleasePoolPop": [P], "CFRelease": [P], "CFRetain": [P], "CFGetTypeID": [P],
    "CFStringGetLength": [P], "CFStringCreateWithCString": [P, ctypes.c_char_p, ctypes.c_uint],
    "CFDataCreate": [P, ctypes.c_char_p, ctypes.c_long], "CFNumberCreate": [P, ctypes.c_long, P],
    "CFArrayCreate": [P, P, ctypes.c_long, P], "CFDictionaryCreateMutable": [P, ctypes.c_long, P, P],
    "CFDictionarySetValue": [P, P, P], "CFArrayGetValueAtIndex": [P, ctypes.c_long],
    "IOSurfaceCreate": [P], "IOSurfaceLock": [P, ctypes.c_uint, P], "IOSurfaceUnlock": [P, ctypes.c_uint, P],
}.items(): getattr(lib, name).argtypes = types
push, pop, release = lib.objc_autoreleasePoolPush, lib.objc_autoreleasePoolPop, lib.objc_release
cls = lib.objc_getClass
def address(name): return ctypes.addressof(ctypes.c_char.in_dll(lib, name))
def string(s): return lib.CFStringCreateWithCString(None, s, 0x08000100)
def blob(b): return lib.CFDataCreate(None, b, len(b))
def number(n): return lib.CFNumberCreate(None, 4, ctypes.byref(ctypes.c_int64(n)))
def array(*items): return lib.CFArrayCreate(None, (P * len(items))(*items), len(items), address("kCFTypeArrayCallBacks"))
def dictionary(): return lib.CFDictionaryCreateMutable(None, 0, address("kCFTypeDictionaryKeyCallBacks"),
                                                       address("kCFTypeDictionaryValueCallBacks"))
def imp(result, types, where, meta, selector):
    if meta: where = lib.object_getClass(where)
    return ctypes.CFUNCTYPE(result, *types)(lib.class_getMethodImplementation(where, lib.sel_registerName(selector)))
def send(result, target, meta, selector, *args):
    where = target if meta else lib.object_getClass(target)
    types = [type(a) if isinstance(a, ctypes._SimpleCData) else P for a in args]
    return imp(result, [P, P, *types], where, meta, selector)(target, lib.sel_registerName(selector), *args)
def described(): return send(P, cls(b"_ANEInMemoryModelDescriptor"), True, b"modelWithMILText:weights:optionsPlist:",
                             blob(b"x"), dictionary(), None)
def model(): return send(P, cls(b"_ANEInMemoryModel"), True, b"inMemoryModelWithDescriptor:", described())
def surface():
    d = dictionary()
    for key, value in ((b"IOSurfaceWidth", 64), (b"IOSurfaceHeight", 1)):
        lib.CFDictionarySetValue(d, string(key), number(value))
    return lib.IOSurfaceCreate(d)
'''


def test_the_stand_in_traps_misuse(run):  # noqa: F811
    """What ends a process on a Mac ends it here, with a line that says what was wrong; and the
    same calls made rightly do not."""
    run(RAW + f"""
p = push()
m = model()
assert send(P, m, False, b"hexStringIdentifier")
send(ctypes.c_bool, m, False, b"compileWithQoS:options:error:", ctypes.c_uint(21), dictionary(), None)
pop(p)
for name, (code, text) in {TRAPS!r}.items():
    r, w = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(w, 2)
        signal.alarm(20)
        try: exec(code)
        except BaseException as e: print("not trapped:", repr(e), file=sys.stderr, flush=True)
        os._exit(0)
    os.close(w)
    with os.fdopen(r) as f: said = f.read()
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGABRT, (name, status, said)
    assert text in said and said.startswith("stand-in: "), (name, said)
""")


@pytest.mark.parametrize("what", ["a file", "a link"])
def test_a_folder_s_name_that_is_taken(run, what):  # noqa: F811
    run(f"""
        x = data(1, 8, 2, 5)
        k = anetorch.compile(affine(), device="ane")
        root = os.environ["STANDIN_TMPDIR"]
        (folder,) = (f for f in os.listdir(root) if "." not in f)
        del k
        path = os.path.join(root, folder)
        if {what!r} == "a file": open(path, "w").close()
        else: os.symlink(os.environ["ANETORCH_CACHE_DIR"], path)
        anetorch.cache_clear()
        try: anetorch.compile(affine(), device="ane")
        except OSError as e: assert "is not a folder of this user" in str(e), e
        else: raise AssertionError
        assert os.path.isdir(os.environ["ANETORCH_CACHE_DIR"] + "/ane-index")   # nothing behind a link went
        same(anetorch.compile(affine(), device="ane")(x, x), cpu(affine())(x, x))
        assert left() == NOTHING, left()
    """)


@pytest.mark.parametrize("how", ["input", "constant"])
@pytest.mark.parametrize("counts", [0, 1])
def test_an_attention_mask_is_ignored(run, how, counts):
    """As the engine is reported to do: lint warns (ANE07), and here the outcome shows it."""
    run(f"""
        shape, how, counts = (1, 2, 4, 32), {how!r}, {counts}
        knobs(masks_count=counts)
        mask = np.where(np.tri(4, dtype=bool), 0, -30000).astype(np.float16)[None, None]
        ports = {{n: mil.spec(shape, "fp16") for n in ("q", "k", "v")}}
        def without(q, k, v):
            return {{"y": mil.ops.scaled_dot_product_attention(query=q, key=k, value=v)}}
        plain = mil.build(without, ports, opset="ios18")
        if how == "input":
            ports = {{**ports, "m": mil.spec((1, 1, 4, 4), "fp16")}}
        def attend(q, k, v, m=mask):
            return {{"y": mil.ops.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=m)}}
        masked = mil.build(attend, ports, opset="ios18")
        qkv = [data(*shape) for _ in range(3)]
        args = [*qkv, mask] if how == "input" else qkv
        heeded, ignored = cpu(masked)(*args), cpu(plain)(*qkv)
        assert not np.array_equal(np.asarray(heeded), np.asarray(ignored))
        same(anetorch.compile(masked, device="ane")(*args), heeded if counts else ignored)
    """)
