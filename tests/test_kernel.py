"""anetorch.compile, Kernel calls, tracing and comparison."""

from __future__ import annotations

import numpy as np
import pytest

import anetorch
from anetorch import Tensor, _core

ADD = """program(1.3)
{
    func main<ios18>(tensor<fp16, [2, 3]> a, tensor<fp16, [2, 3]> b) {
        tensor<fp16, [2, 3]> s = add(x = a, y = b);
        tensor<fp16, [2, 3]> d = sub(x = a, y = b);
    } -> (s, d);
}"""
RELU = """program(1.3)
{
    func main<ios18>(tensor<fp32, [?, 3]> x) { tensor<fp32, [?, 3]> y = relu(x = x); } -> (y);
}"""


@pytest.fixture(scope="module")
def add() -> anetorch.Kernel:
    return anetorch.compile(ADD)


def arrays() -> tuple[np.ndarray, np.ndarray]:
    a = np.arange(6, dtype=np.float16).reshape(2, 3)
    return a, a[::-1] * np.float16(0.5)


def test_ports_come_from_the_program(add: anetorch.Kernel) -> None:
    assert add.inputs == (("a", "float16", (2, 3), False), ("b", "float16", (2, 3), False))
    assert [p.name for p in add.outputs] == ["s", "d"]
    assert anetorch.compile(RELU).inputs[0].shape == (None, 3)
    assert "a: float16[2, 3]" in repr(add)


def test_positional_named_and_mixed_arguments(add: anetorch.Kernel) -> None:
    a, b = arrays()
    for out in (add(a, b), add(a=a, b=b), add(a, b=b), add(b=b, a=a), add(Tensor.from_numpy(a), b)):
        np.testing.assert_array_equal(np.asarray(out["s"]), a + b)
        np.testing.assert_array_equal(np.asarray(out["d"]), a - b)


def test_one_output_is_a_tensor() -> None:
    y = anetorch.compile(RELU)(np.array([[-1, 2, 3]], np.float32))
    assert isinstance(y, Tensor)
    np.testing.assert_array_equal(y.numpy(), [[0, 2, 3]])


def test_other_float_dtypes_and_layouts_are_converted(add: anetorch.Kernel) -> None:
    a, b = arrays()
    for cast in (np.float32, np.float64):
        out = add(a.astype(cast), np.asfortranarray(b.astype(cast)))
        np.testing.assert_array_equal(np.asarray(out["d"]), a - b)
    wide = np.zeros((2, 6), np.float16)
    wide[:, ::2] = a
    np.testing.assert_array_equal(np.asarray(add(wide[:, ::2], b[::-1][::-1])["s"]), a + b)
    np.testing.assert_array_equal(np.asarray(add(Tensor.from_numpy(a.astype(np.float32)), b)["s"]), a + b)


def test_out_writes_in_place(add: anetorch.Kernel) -> None:
    a, b = arrays()
    s, d = Tensor((2, 3), "float16"), np.zeros((2, 3), np.float16)
    out = add(a, b, out={"s": s, "d": d})
    assert out["s"] is s and out["d"] is d
    np.testing.assert_array_equal(s.numpy(), a + b)
    np.testing.assert_array_equal(d, a - b)
    out = add(a, b, out=(None, d))
    np.testing.assert_array_equal(np.asarray(out["s"]), a + b)
    strided = np.zeros((2, 6), np.float16)
    add(a, b, out=(strided[:, 1::2], None))
    np.testing.assert_array_equal(strided[:, 1::2], a + b)
    assert not strided[:, ::2].any()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda k, a: k(a), TypeError, r"\[call\] .*1 given, 2 expected.*a, b"),
        (lambda k, a: k(a, a, a), TypeError, "3 given, 2 expected"),
        (lambda k, a: k(a=a), TypeError, "'b' is missing"),
        (lambda k, a: k(a, a, c=a), TypeError, "no input is named 'c'"),
        (lambda k, a: k(a, a=a), TypeError, "given twice"),
        (lambda k, a: k(a, a.astype(np.int32)), TypeError, "float16, got int32"),
        (lambda k, a: k(a, a[:, :2]), ValueError, r"input b: expected fp16 \[2, 3\], got fp16 \[2, 2\]"),
        (lambda k, a: k(a, a, out={"z": a}), TypeError, "no output is named 'z'"),
        (lambda k, a: k(a, a, out=(a.astype(np.float32), None)), TypeError, "output s: expected fp16"),
        (lambda k, a: k(a, a, out=([1], None)), TypeError, "Tensor or a NumPy array"),
        (lambda k, a: k(a, object()), TypeError, "."),
    ],
)
def test_wrong_calls_say_what_and_where(add: anetorch.Kernel, call, error, words: str) -> None:
    with pytest.raises(error, match=words):
        call(add, arrays()[0])


def test_a_read_only_output_is_refused(add: anetorch.Kernel) -> None:
    a, b = arrays()
    frozen = np.zeros((2, 3), np.float16)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="output s is read-only"):
        add(a, b, out=(frozen, None))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"device": "ane"}, NotImplementedError, 'device "ane": .*'),
        ({"device": "gpu"}, ValueError, 'unknown device "gpu"'),
        ({"precision": "fast"}, ValueError, 'unknown precision "fast"'),
        ({"numerics": "exact"}, ValueError, 'unknown numerics "exact"'),
        ({"function": "f"}, KeyError, 'no function \\\\"f\\\\"; the program has \\\\"main\\\\"|no function "f"'),
    ],
)
def test_compile_refuses_what_it_does_not_know(options: dict, error, words: str) -> None:
    with pytest.raises(error, match=words):
        anetorch.compile(ADD, **options)


def test_malformed_text_is_a_syntax_error_with_a_line() -> None:
    with pytest.raises(anetorch.MILError) as e:
        anetorch.compile(ADD.replace("sub(", "nonsense("))
    assert isinstance(e.value, SyntaxError) and e.value.lineno == 5


def test_devices_says_what_is_there_and_why_not() -> None:
    cpu, ane = anetorch.devices()
    assert cpu.name == "cpu" and cpu.available
    assert ane.name == "ane" and (ane.available or ane.detail)


def test_one_plan_per_shape() -> None:
    k = anetorch.compile(RELU)
    for n in (1, 5, 0, 1, 300):
        x = np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(k(x)), np.maximum(x, 0))
    with pytest.raises(ValueError, match="expected fp32"):
        k(np.zeros((2, 4), np.float32))


def test_a_shape_that_depends_on_data() -> None:
    k = anetorch.compile("""program(1.3)
    { func main<ios18>(tensor<fp32, [2, 3]> x) {
        tensor<int32, [?, 2]> i = non_zero(x = x); tensor<fp32, [2, 3]> y = relu(x = x); } -> (i, y); }""")
    x = np.array([[0, 1, 0], [2, 0, -3]], np.float32)
    out = k(x)
    np.testing.assert_array_equal(np.asarray(out["i"]), np.argwhere(x))
    np.testing.assert_array_equal(np.asarray(out["y"]), np.maximum(x, 0))
    req = k.bind([x])
    for _ in range(2):
        req.run()
        np.testing.assert_array_equal(np.asarray(req.outputs["i"]), np.argwhere(x))
    x[0, 0] = 5
    req.run()
    assert np.asarray(req.outputs["i"]).shape == (4, 2)
    with pytest.raises(ValueError, match="depends on data"):
        k.bind([x], {"i": np.zeros((4, 2), np.int32)})


def test_editing_the_program_later_changes_nothing() -> None:
    p = _core.Program.parse(ADD)
    k = anetorch.compile(p)
    _, _, body, params = p.functions()[0]
    p.set_outputs(body, params)
    a, b = arrays()
    np.testing.assert_array_equal(np.asarray(k(a, b)["s"]), a + b)
    assert list(k.trace(a, b)) == ["s", "d"]


def test_trace_returns_every_intermediate() -> None:
    k = anetorch.compile("""program(1.3)
    { func main<ios18>(tensor<fp32, [3]> x) {
        tensor<fp32, [3]> a = relu(x = x); tensor<fp32, [3]> b = add(x = a, y = x);
        tensor<fp32, [3]> y = mul(x = b, y = a); } -> (y); }""")
    x = np.array([1, -2, 3], np.float32)
    t = {n: np.asarray(v) for n, v in k.trace(x).items()}
    a = np.maximum(x, 0)
    assert list(t) == ["a", "b", "y"]
    np.testing.assert_array_equal(t["b"], a + x)
    np.testing.assert_array_equal(t["y"], (a + x) * a)


def test_compare_finds_the_first_divergence() -> None:
    def kernel(c: float) -> anetorch.Kernel:
        return anetorch.compile(f"""program(1.3)
        {{ func main<ios18>(tensor<fp32, [4]> x) {{
            tensor<fp32, [4]> c = const()[name = string("c"), val = tensor<fp32, [4]>([1, 1, {c}, 1])];
            tensor<fp32, [4]> a = relu(x = x); tensor<fp32, [4]> b = mul(x = a, y = c);
            tensor<fp32, [4]> y = exp(x = b); }} -> (y); }}""")

    x = np.array([1, 2, 3, -4], np.float32)
    assert anetorch.compare(kernel(1), kernel(1), x) is None
    d = anetorch.compare(kernel(1), kernel(2), x)
    assert d is not None
    assert (d.name, d.index, d.a, d.b, d.max_abs) == ("b", (2,), 3, 6, 3)


@pytest.mark.skipif("read_state" not in {r["name"] for r in _core._testing.op_rows()},
                    reason="the op table has no states yet")
def test_states_are_changed_in_place() -> None:
    state = anetorch.compile("""program(1.3)
    { func main<ios18>(state<tensor<fp16, [3]>> s, tensor<fp16, [3]> x) {
        tensor<fp16, [3]> old = read_state(input = s); tensor<fp16, [3]> y = add(x = old, y = x);
        write_state(data = y, input = s); } -> (y); }""")
    s = Tensor((3,), "float16")
    req = state.bind({"s": s, "x": np.ones(3, np.float16)})
    for n in range(1, 4):
        req.run()
        assert (s.numpy() == n).all() and (np.asarray(req.outputs["y"]) == n).all()


def test_report_and_memory(add: anetorch.Kernel) -> None:
    report = add.report()
    assert [s["op"] for s in report] == ["add+sub"] or len(report) == 2
    assert "GB/s" in str(report) and "<table>" in report._repr_html_()
    assert add.memory()["inputs"] == 24 and add.memory()["outputs"] == 24


def test_random_ops_differ_from_run_to_run_and_repeat_by_seed() -> None:
    def kernel(seed: int) -> anetorch.Kernel:
        return anetorch.compile(f"""program(1.3)
        {{ func main<ios18>(tensor<fp32, [1]> x) {{
            tensor<int32, [1]> n = const()[name = string("n"), val = tensor<int32, [1]>([100])];
            fp32 lo = const()[name = string("lo"), val = fp32(0)];
            fp32 hi = const()[name = string("hi"), val = fp32(1)];
            int32 seed = const()[name = string("seed"), val = int32({seed})];
            tensor<fp32, [100]> y = random_uniform(shape = n, low = lo, high = hi, seed = seed);
        }} -> (y); }}""")

    x = np.zeros(1, np.float32)
    r = kernel(-1).bind([x])
    r.run()
    first = np.asarray(r.outputs["y"]).copy()
    r.run()
    assert (first != np.asarray(r.outputs["y"])).any()
    a, b = (np.asarray(kernel(7)(x)).copy() for _ in range(2))
    np.testing.assert_array_equal(a, b)
