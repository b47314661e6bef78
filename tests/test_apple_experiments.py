"""Other weights without a compile: off by default, and never believed without a comparison."""

from __future__ import annotations

import pytest
from standin_run import run, stand_in  # noqa: F401

SETUP = """
from anetorch import _core
from anetorch.experiments import with_weights
TEXT = '''program(1.3) { func main<ios18>(tensor<fp16, [3, 8]> x) {
    tensor<fp16, [6, 8]> w = const()[val = tensor<fp16, [6, 8]>(BLOBFILE(
        path = string("@model_path/weights/w.bin"), offset = uint64(64)))];
    tensor<fp16, [3, 6]> y = linear(x = x, weight = w);
} -> (y); }'''
def program(w): return mil.Program.parse(TEXT, weights={"@model_path/weights/w.bin": _core.build_blob_fp16(w)})
def files(w): return {"@model_path/weights/w.bin": _core.build_blob_fp16(w)}
x, a, b = data(3, 8), data(6, 8), data(6, 8)
def want(w): return cpu(program(w))(x)
k = anetorch.compile(program(a), device="ane")
same(k(x), want(a))
def refused(k):
    try: k(x)
    except RuntimeError as e: assert "not loaded" in str(e), e
    else: raise AssertionError
"""


@pytest.mark.parametrize("allowed, works, how", [
    ("", 0, "compile"), ("patch", 0, "patch"), ("reload", 0, "compile"), ("reload", 1, "reload"),
    ("reload,patch", 0, "patch"),
])
def test_new_weights(run, allowed, works, how):  # noqa: F811
    """Always the new weights' results; a reload without effect is found out and compiled."""
    run(SETUP + f"""
knobs(reload_works={works})
loads, compiles = get("loads"), get("compiles")
new, how = with_weights(k, files(b))
assert how == {how!r}, how
same(new(x), want(b))
if {"reload" in allowed and "patch" not in allowed}: refused(k)
else: same(k(x), want(a))
again, _ = with_weights(new, files(a))
same(again(x), want(a))
del k, new, again
assert left() == NOTHING, left()
# What a reload left behind under the old identifier is used by nobody.
for w in (a, b): same(anetorch.compile(program(w), device="ane")(x), want(w))
assert left() == NOTHING, left()
""", ANETORCH_EXPERIMENTS=allowed)


def test_off_unless_allowed(run):  # noqa: F811
    run(SETUP + """
for way in ("patch", "reload"):
    try: anetorch.Kernel(program(b), device="ane", donor=k, exchange=way)
    except NotImplementedError as e: assert "ANETORCH_EXPERIMENTS" in str(e), e
    else: raise AssertionError
same(k(x), want(a))
for kw, error in [({"donor": k, "exchange": "other"}, ValueError), ({"exchange": "patch"}, ValueError),
                  ({"donor": 3, "exchange": "patch"}, TypeError)]:
    try: anetorch.Kernel(program(b), device="ane", **kw)
    except error: pass
    else: raise AssertionError(kw)
try: with_weights(cpu(program(a)), files(b))
except ValueError as e: assert "cpu" in str(e)
else: raise AssertionError
del k
assert left() == NOTHING, left()
""")


def test_what_cannot_be_exchanged(run):  # noqa: F811
    """Another text; a program that two kernels share; the failing of every step."""
    run(SETUP + """
def exchange(way, p=None): return anetorch.Kernel(p or program(b), device="ane", donor=k, exchange=way)
for way in ("patch", "reload"):
    try: exchange(way, affine())
    except ValueError as e: assert "text is not the donor's" in str(e), e
    else: raise AssertionError
second = anetorch.compile(program(a), device="ane")
try: exchange("reload")
except BufferError as e: assert "another kernel's" in str(e), e
else: raise AssertionError
del second
for knob, times in (("fail_describe", 1), ("fail_load", 2), ("fail_attributes", 1), ("fail_cf", 1)):
    for nth in range(200):
        for way in ("patch", "reload"):
            knobs(fault_after=nth, **{knob: times})
            try: new = exchange(way)
            except (RuntimeError, MemoryError): new = None
            used = get(knob) < times
            lib.standin_reset()
            del new
            k = anetorch.compile(program(a), device="ane")
            same(k(x), want(a))
        if not used: break
    assert not used, knob
del k
assert left() == NOTHING, left()
""", ANETORCH_EXPERIMENTS="patch,reload", ANETORCH_COMPILE_BUDGET="0")
