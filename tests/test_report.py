"""What kernels say about themselves: memory and its limit, reports, traces."""

from __future__ import annotations

import html.parser
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import anetorch
from anetorch import Tensor, _core
from anetorch.report import Memory, Report, trace_events

NO = """bool no = const()[name = string("no"), val = bool(false)];
    bool yes = const()[name = string("yes"), val = bool(true)];"""
AX = 'int32 ax = const()[name = string("ax"), val = int32(-1)];'


def kernel_of(body: str, params: str, returns: str = "y", **how: object) -> anetorch.Kernel:
    return anetorch.compile(
        f"program(1.3)\n{{ func main<ios18>({params}) {{ {NO} {AX} {body} }} -> ({returns}); }}",
        **how)       # type: ignore[arg-type]


def product(m: int = 64, k: int = 96, n: int = 80, **how: object) -> anetorch.Kernel:
    """x @ constant, relu; a second product with x @ w; then a softmax: several scratch buffers."""
    values = ", ".join(f"{(i % 7 - 3) / 4}" for i in range(k * n))
    return kernel_of(f"""
        tensor<fp32, [{k}, {n}]> c = const()[name = string("c"), val = tensor<fp32, [{k}, {n}]>([{values}])];
        tensor<fp32, [{m}, {n}]> h = matmul(x = x, y = c, transpose_x = no, transpose_y = no);
        tensor<fp32, [{m}, {n}]> r = relu(x = h);
        tensor<fp32, [{m}, {n}]> q = matmul(x = x, y = w, transpose_x = no, transpose_y = no);
        tensor<fp32, [{m}, {n}]> s = softmax(x = q, axis = ax);
        tensor<fp32, [{m}, {m}]> g = matmul(x = s, y = r, transpose_x = no, transpose_y = yes);
        tensor<fp32, [{m}, {m}]> y = softmax(x = g, axis = ax);""",
                     f"tensor<fp32, [{m}, {k}]> x, tensor<fp32, [{k}, {n}]> w", **how)


# ---------------------------------------------------------------- memory


def test_memory_says_what_goes_where() -> None:
    several = product()
    m = several.memory()
    assert isinstance(m, Memory)
    assert (m["inputs"], m["outputs"], m["constants"]) == (4 * (64 * 96 + 96 * 80), 4 * 64 * 64, 4 * 96 * 80)
    assert m["total"] == sum(m[k] for k in ("inputs", "outputs", "constants", "packed", "kept", "scratch",
                                            "threads", "reference", "rounding"))
    by_kind: dict[str, int] = {}
    for b in m.buffers:
        by_kind[b["kind"]] = by_kind.get(b["kind"], 0) + b["bytes"]
    for kind, key in (("input", "inputs"), ("output", "outputs"), ("constant", "constants"),
                      ("packed", "packed"), ("thread", "threads")):
        assert by_kind.get(kind, 0) == m[key]
    names = {b["name"] for b in m.buffers}
    assert {"x", "w", "y", "c"} <= names
    assert any(b["kind"] == "packed" and b["name"] == "c" for b in m.buffers)
    scratch = [b for b in m.buffers if b["kind"] == "scratch"]
    assert len(scratch) >= 2 and 0 < m["scratch"] <= m["values"]
    for b in scratch:
        assert b["offset"] % 64 == 0 and b["offset"] + b["bytes"] <= m["scratch"]
    # Buffers in use at once have bytes of their own; where one ends the next may begin in place.
    for i, a in enumerate(scratch):
        for b in scratch[:i]:
            apart = a["offset"] + a["bytes"] <= b["offset"] or b["offset"] + b["bytes"] <= a["offset"]
            assert apart or a["last"] <= b["first"] or b["last"] <= a["first"], (a, b)
    # The same by way of a request that has run.
    request = several.bind([np.ones((64, 96), np.float32), np.ones((96, 80), np.float32)])
    request.run()
    assert request.memory() == dict(m)
    assert "scratch" in str(m) and f"{m['total']:,} bytes" in str(m)
    assert "c" in Cells.of(m._repr_html_())


def test_scratch_is_reused() -> None:
    """A long chain of products needs the room of two values, not of all."""
    body, last = "", "x"
    for i in range(10):
        body += f"tensor<fp32, [32, 32]> v{i} = matmul(x = {last}, y = x, transpose_x = no, transpose_y = no);"
        last = f"v{i}"
    m = kernel_of(body, "tensor<fp32, [32, 32]> x", "v9").memory()
    assert m["values"] == 9 * 4096 and m["scratch"] == 2 * 4096


def test_memory_allocates_nothing() -> None:
    """A kernel over a terabyte can be asked what it would take."""
    n = 1 << 20
    k = kernel_of(f"tensor<fp16, [{n}, {n}]> s = square(x = x); tensor<fp16, [{n}, {n}]> y = softmax(x = s, axis = ax);",
                  f"tensor<fp16, [{n}, {n}]> x")
    m = k.memory()
    assert m["inputs"] == m["outputs"] == 2 * n * n and m["total"] >= 4 * n * n


def test_open_shapes_are_taken_from_the_inputs() -> None:
    k = kernel_of("tensor<fp32, [?, 4]> y = square(x = x);", "tensor<fp32, [?, 4]> x")
    with pytest.raises(ValueError, match=r"\[memory\] input x has the open shape \[\?, 4\]; pass the inputs"):
        k.memory()
    assert all(k.memory(np.zeros((10, 4)))[key] == 160 for key in ("inputs", "outputs"))
    assert all(k.memory(x=Tensor((5, 4)))[key] == 80 for key in ("inputs", "outputs"))
    with pytest.raises(ValueError, match=r"input x: expected fp32 \[\?, 4\], got fp32 \[10, 5\]"):
        k.memory(np.zeros((10, 5)))


def test_the_reference_is_counted() -> None:
    """Ops without an implementation of their own are evaluated in doubles."""
    k = kernel_of("tensor<fp16, [100]> y = cumsum(x = x, axis = ax, exclusive = no, reverse = no);",
                  "tensor<fp16, [100]> x")
    assert k.report()[0]["kernel"] == "reference" and k.memory()["reference"] == 2 * 8 * 100


# ---------------------------------------------------------------- the limit


def test_limit_refuses_before_allocating() -> None:
    """The message has the parts; the output of four terabytes is never asked for."""
    n = 1 << 20
    how = "tensor<fp32, [1, 4]> x"
    body = f"""tensor<int32, [2]> reps = const()[name = string("reps"), val = tensor<int32, [2]>([{n}, {n}])];
        tensor<fp32, [{n}, {4 * n}]> t = tile(x = x, reps = reps); tensor<fp32, [{n}, {4 * n}]> y = softmax(x = t, axis = ax);"""
    k = kernel_of(body, how, memory_limit=10**9)
    _core._testing.fail_after(0)
    with pytest.raises(MemoryError, match=r"main needs \d+ bytes for these shapes .* of outputs.* the memory "
                                          r"limit is 1000000000: use smaller shapes or fewer threads, or raise memory_limit"):
        k(np.zeros((1, 4), np.float32))
    assert k.memory()["total"] > 16 * n * n        # asking is allowed


def test_limit_is_the_total_to_the_byte() -> None:
    def squared(**how: object) -> anetorch.Kernel:
        return kernel_of("tensor<fp32, [?]> s = square(x = x); tensor<fp32, [?]> y = softmax(x = s, axis = ax);",
                         "tensor<fp32, [?]> x", **how)

    x = np.ones(1000, np.float32)
    total = squared().memory(x)["total"]
    fits, short = squared(memory_limit=total), squared(memory_limit=total - 1)
    fits(x)
    fits.bind([x]).run()
    for call in (lambda: short(x), lambda: short.bind([x]),
                 lambda: short(x, out=np.empty_like(x)), lambda: short.bind([x], [np.empty_like(x)])):
        with pytest.raises(MemoryError, match=f"needs {total} bytes .* the memory limit is {total - 1}"):
            call()
    short(x[:900])                              # each shape has a plan of its own
    assert short.memory(x)["total"] == total


@pytest.mark.parametrize("bad", [0, -1, 1 << 80, "1G", 1.5])
def test_unusable_limits(bad: object) -> None:
    with pytest.raises((ValueError, TypeError, OverflowError)):
        kernel_of("tensor<fp32, [3]> y = square(x = x);", "tensor<fp32, [3]> x", memory_limit=bad)


RUN = """
import anetorch, numpy as np
k = anetorch.compile('''program(1.3) { func main<ios18>(tensor<fp32, [1000]> x) {
    tensor<fp32, [1000]> y = reshape(x = x, shape = tensor<int32, [1]>([1000])); } -> (y); }''')
try:
    k(np.ones(1000)); print('ran')
except MemoryError as e:
    print(e)
"""


@pytest.mark.parametrize(("value", "says"), [
    ("8000", "ran"), ("7999", "the memory limit is 7999"), ("8K", "ran"), ("7k", "the memory limit is 7168"),
    ("1M", "ran"), ("2G", "ran"), ("3T", "ran"), ("", "ran"),
])
def test_limit_from_the_environment(value: str, says: str) -> None:
    run = subprocess.run([sys.executable, "-c", RUN], env={**os.environ, "ANETORCH_MEMORY_LIMIT": value},
                         capture_output=True, text=True, check=True)
    assert says in run.stdout, run.stdout


@pytest.mark.parametrize("value", ["0", "-5", "much", "2X", "2GB", "99999999999999999999", "9999999999T"])
def test_a_limit_that_is_no_number_stops(value: str) -> None:
    """Taking no limit where one was asked for would be the worst of guesses."""
    run = subprocess.run([sys.executable, "-c", RUN], env={**os.environ, "ANETORCH_MEMORY_LIMIT": value},
                         capture_output=True, text=True)
    assert run.returncode and "ANETORCH_MEMORY_LIMIT: expected bytes such as 512M or 2G, got" in run.stderr


# ---------------------------------------------------------------- reports


class Cells(html.parser.HTMLParser):
    """Texts of a table's cells; anything that is not well nested fails."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("td", "th"):
            self.cells[-1] += data

    @classmethod
    def of(cls, text: str) -> list[str]:
        p = cls()
        p.feed(text)
        assert not p.open
        return p.cells


def test_report_says_what_ran() -> None:
    k = kernel_of("""tensor<fp32, [128, 128]> h = matmul(x = x, y = x, transpose_x = no, transpose_y = no);
        tensor<fp32, [128, 128]> y = relu(x = h);
        tensor<fp32, [128, 128]> e = exp(x = x); tensor<fp32, [128, 128]> z = add(x = e, y = x);
        tensor<fp32, [128, 128]> c = cumsum(x = x, axis = ax, exclusive = no, reverse = no);""",
                  "tensor<fp32, [128, 128]> x", "y, z, c")
    r = k.report(np.ones((128, 128), np.float32))
    chosen = next(n for n, state in _core.isa_tables() if state == "chosen")
    by_name = {s["name"]: s for s in r}
    product, chain, plain = by_name["y"], by_name["z"], by_name["c"]
    assert product["op"] == "matmul+relu" and product["values"] == ("h", "y")
    assert product["isa"] and product["kernel"].endswith("__" + product["isa"])
    assert product["flops"] == pytest.approx(2 * 128**3)
    assert chain["values"] == ("e", "z") and chain["isa"] in {n for n, _ in _core.isa_tables()}
    assert chain["bytes"] == 2 * 4 * 128 * 128 and chosen in {n for n, _ in _core.isa_tables()}
    assert plain["kernel"] == "reference" and plain["isa"] == "" and plain["flops"] == 0
    assert r.fused() == {"h": "y", "y": "y", "e": "z", "z": "z", "c": "c"}
    end = 0.0
    for s in r:
        assert s["seconds"] > 0 and s["begin"] >= end       # one after another
        end = s["begin"] + s["seconds"]
        assert s["gb_s"] == pytest.approx(s["bytes"] / s["seconds"] * 1e-9)
    assert product["gflop_s"] == pytest.approx(2 * 128**3 / product["seconds"] * 1e-9)
    assert product["of_flops"] == pytest.approx(product["gflop_s"] * 1e9 / r.flop_s[product["isa"]])
    size = 1 << (int(chain["bytes"]).bit_length() - 1)
    assert chain["of_copy"] == pytest.approx(chain["gb_s"] * 1e9 / r.copy_s[size])
    assert plain["of_flops"] is None
    assert all(v > 1e6 for v in [*r.flop_s.values(), *r.copy_s.values()])
    text = str(r)
    assert "matmul+relu" in text and "y (h inside)" in text and "FMA peak" in text
    assert text.startswith("on cpu\n") and text.count("\n") == len(r) + 2
    cells = Cells.of(r._repr_html_())
    assert len(cells) == 10 * (len(r) + 1) and "y (h inside)" in cells


def test_an_empty_report_and_hostile_names() -> None:
    assert str(Report([])).endswith(f"0 steps, 0.0 us, {anetorch.get_num_threads()} threads")
    row = dict(op="<b>", name="a&b", values=("a&b",), kernel="k", isa="", flops=0.0, bytes=0.0, begin=0.0,
               seconds=0.0)
    assert "&lt;b&gt;" in Report([row])._repr_html_() and "a&b" in Cells.of(Report([row])._repr_html_())


def test_measures() -> None:
    before = anetorch.get_num_threads()
    assert before == anetorch.num_threads()
    try:
        anetorch.set_num_threads(1)
        assert anetorch.get_num_threads() == 1 == Report([]).threads
        for name, state in _core.isa_tables():
            if state in ("chosen", "available"):
                assert _core.measure_flops(name, 1e-3) > 1e6
            else:
                with pytest.raises(KeyError, match=f'no kernel table "{name}" runs here'):
                    _core.measure_flops(name, 1e-3)
        assert _core.measure_copy(1 << 20) > 1e6 and _core.measure_copy(0) > 0
        with pytest.raises(MemoryError, match="out of memory for a copy of"):
            _core.measure_copy(1 << 61)
    finally:
        anetorch.set_num_threads(before)


# ---------------------------------------------------------------- traces


def test_trace_has_steps_and_threads() -> None:
    before = anetorch.get_num_threads()
    try:
        anetorch.set_num_threads(3)
        n = 400
        k = kernel_of(f"""tensor<fp32, [{n}, {n}]> h = matmul(x = x, y = x, transpose_x = no, transpose_y = no);
            tensor<fp32, [{n}, {n}]> y = softmax(x = h, axis = ax);""", f"tensor<fp32, [{n}, {n}]> x")
        request = k.bind([np.ones((n, n), np.float32)])
        assert request.threads() == []              # nothing was profiled yet
        for _ in range(50):                         # a busy machine may leave a worker out
            steps, threads = request.profile(), request.threads()
            if len({t[0] for t in threads}) > 1:
                break
        else:
            pytest.fail("no worker ever took part")
    finally:
        anetorch.set_num_threads(before)
    assert {t[0] for t in threads} <= {0, 1, 2} and {t[1] for t in threads} <= {0, 1}
    slack = 1e-9                                    # one tick of the clock
    for thread, step, begin, seconds in threads:
        s = steps[step]
        assert seconds >= 0 and begin >= s["begin"] - slack
        assert begin + seconds <= s["begin"] + s["seconds"] + slack, (thread, step)
    trace = trace_events(steps, threads, "m")
    check_trace(trace)
    tracks = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert tracks[0] == "steps" and tracks[1] == "thread 0 (caller)"
    assert [e["name"] for e in trace["traceEvents"] if e.get("cat") == "step"] == ["matmul h", "softmax y"]
    assert sum(e.get("cat") == "thread" for e in trace["traceEvents"]) == len(threads)


def check_trace(trace: dict) -> None:
    """What the trace-event format asks of complete and metadata events."""
    named = set()
    for e in trace["traceEvents"]:
        assert {"ph", "pid", "tid", "name"} <= set(e) and isinstance(e["name"], str)
        assert isinstance(e["pid"], int) and isinstance(e["tid"], int)
        if e["ph"] == "M":
            assert e["name"] in ("process_name", "thread_name", "thread_sort_index")
            named.add(e["tid"])
        else:
            assert e["ph"] == "X" and e["ts"] >= 0 and e["dur"] >= 0 and e["tid"] in named
    # Intervals of one track follow each other.
    for tid in named:
        row = sorted((e["ts"], e["ts"] + e["dur"]) for e in trace["traceEvents"]
                     if e["ph"] == "X" and e["tid"] == tid)
        assert all(a[1] <= b[0] + 1e-3 for a, b in zip(row, row[1:])), tid
    assert re.fullmatch("ms|ns", trace["displayTimeUnit"])
