"""Control flow, lists, states, classify; and the walk: memory, limits, interrupts."""

from __future__ import annotations

import signal
import threading
import time

import numpy as np
import pytest

import anetorch.mil as mil
import opcase
from anetorch import _core
from opcase import same

ops, ev = mil.ops, _core._testing.eval


def only(result):
    assert len(result) == 1
    return next(iter(result.values()))


# ------------------------------------------------------------------ cond, while_loop


def test_cond_sees_outer_values():
    p = mil.build(lambda c, x: {"y": ops.cond(pred=c, true_fn=lambda: ops.add(x=x, y=x),
                                              false_fn=lambda: ops.mul(x=x, y=x))},
                  {"c": mil.spec((), "bool"), "x": mil.spec((3,), "fp32")})
    x = opcase.data((3,))
    same(only(ev(p, {"c": True, "x": x})), x + x)
    same(only(ev(p, {"c": False, "x": x})), x * x)


def test_cond_joins_types():
    """A dimension that only one branch knows is unknown in the result."""
    p = mil.build(lambda c, x, y: {"z": ops.cond(pred=c, true_fn=lambda: ops.relu(x=x),
                                                 false_fn=lambda: ops.relu(x=y))},
                  {"c": mil.spec((), "bool"), "x": mil.spec((2,), "fp32"), "y": mil.spec((None,), "fp32")})
    z = p.block_info(p.functions()[0][2])["outputs"][0]
    assert p.value_info(z)["type"][2] == (None,)
    for c, n in ((True, 2), (False, 5)):
        assert only(ev(p, {"c": c, "x": np.ones(2), "y": np.ones(5)})).shape == (n,)


def test_cond_errors():
    x = {"c": mil.spec((), "bool"), "x": mil.spec((4,), "fp32")}
    with pytest.raises(ValueError, match=r"cond.*value 0 is .*\[2\].* true block and .*\[4\].* false block"):
        mil.build(lambda c, x: ops.cond(pred=c, true_fn=lambda: ops.slice_by_size(x=x, begin=[0], size=[2]),
                                        false_fn=lambda: ops.add(x=x, y=x)), x)
    with pytest.raises(ValueError, match="cond.*value 0 is .*fp32.* true block and .*int32.* false block"):
        mil.build(lambda c, x: ops.cond(pred=c, true_fn=lambda: ops.add(x=x, y=x),
                                        false_fn=lambda: ops.cast(x=x, dtype="int32")), x)
    with pytest.raises(ValueError, match="cond.*same number of values, got 2 and 1"):
        mil.build(lambda c, x: ops.cond(pred=c, true_fn=lambda: (ops.add(x=x, y=x), ops.sub(x=x, y=x)),
                                        false_fn=lambda: ops.add(x=x, y=x)), x)


def count_to(n_type="int32"):
    return mil.build(
        lambda n, start: dict(zip("is", ops.while_loop(
            cond=lambda i, s: ops.less(x=i, y=n),
            body=lambda i, s: (ops.add(x=i, y=1), ops.add(x=s, y=ops.cast(x=i, dtype="fp32"))),
            loop_vars=(ops.mul(x=n, y=0), start)))),
        {"n": mil.spec((), n_type), "start": mil.spec((), "fp32")})


@pytest.mark.parametrize("n", [0, 1, 7, 1000])
def test_while_loop(n):
    out = ev(count_to(), {"n": n, "start": 0.5})
    assert out["i"] == max(n, 0) and out["s"] == np.float32(0.5 + n * (n - 1) / 2)


def test_while_loop_swaps_variables():
    """The next round's variables are all taken from this round's."""
    p = mil.build(lambda a, b, n: dict(zip("xyz", ops.while_loop(
        cond=lambda a, b, i: ops.greater(x=i, y=0),
        body=lambda a, b, i: (ops.identity(x=b), ops.add(x=a, y=b), ops.sub(x=i, y=1)),
        loop_vars=(a, b, n)))), {k: mil.spec((), "int32") for k in "abn"})
    out = ev(p, {"a": 0, "b": 1, "n": 20})
    assert (out["x"], out["y"], out["z"]) == (6765, 10946, 0)


def test_while_loop_errors():
    with pytest.raises((ValueError, TypeError), match="while_loop.*cond block must give one bool"):
        mil.build(lambda n: ops.while_loop(cond=lambda i: ops.add(x=i, y=1), body=lambda i: ops.add(x=i, y=1),
                                           loop_vars=(n,)), {"n": mil.spec((), "int32")})
    with pytest.raises(ValueError, match="while_loop.*value 0 is .*body's result"):
        mil.build(lambda n: ops.while_loop(cond=lambda i: ops.less(x=i, y=1),
                                           body=lambda i: ops.cast(x=i, dtype="fp32"), loop_vars=(n,)),
                  {"n": mil.spec((), "int32")})


def test_deep_nesting():
    depth = 30              # the graph allows 32

    def nest(x, k):
        if not k:
            return ops.add(x=x, y=x)
        return ops.cond(pred=ops.greater(x=x, y=float(-k)), true_fn=lambda: nest(x, k - 1),
                        false_fn=lambda: ops.mul(x=x, y=0.0))

    p = mil.build(lambda x: {"y": nest(x, depth)}, {"x": mil.spec((), "fp32")})
    assert only(ev(p, {"x": 2.0})) == 4
    assert only(ev(p, {"x": -15.5})) == 0


def test_an_endless_loop_can_be_interrupted():
    p = mil.build(lambda x: {"y": ops.while_loop(cond=lambda v: ops.equal(x=v, y=v),
                                                 body=lambda v: ops.mul(x=v, y=1.0), loop_vars=(x,))},
                  {"x": mil.spec((), "fp32")})
    threading.Timer(0.2, lambda: signal.raise_signal(signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ev(p, {"x": 1.0})
    assert time.monotonic() - started < 10


# ------------------------------------------------------------------ lists


def test_list_round_trip():
    def body(x, k):
        ls = ops.make_list(init_length=np.int32(2), elem_shape=(np.int32(3),), dtype="fp32")
        ls = ops.list_write(ls=ls, index=np.int32(1), value=x)
        ls = ops.list_write(ls=ls, index=np.int32(4), value=ops.mul(x=x, y=2.0))     # grows
        rows = ops.stack(values=[x, ops.square(x=x)], axis=0)
        more = ops.list_scatter(ls=ls, indices=np.int32([0, 6]), value=rows)
        return {"n": ops.list_length(ls=ls), "one": ops.list_read(ls=ls, index=k),
                "all": ops.list_gather(ls=more, indices=np.int32([6, 0, 4, 1, 3])),
                "m": ops.list_length(ls=more)}

    p = mil.build(body, {"x": mil.spec((3,), "fp32"), "k": mil.spec((), "int32")})
    x = opcase.data((3,))
    out = ev(p, {"x": x, "k": 1})
    assert out["n"] == 5 and out["m"] == 7
    same(out["one"], x)
    same(out["all"], np.stack([x * x, x, x * 2, x, 0 * x]))
    same(ev(p, {"x": x, "k": -1})["one"], x * 2)
    with pytest.raises(IndexError, match="list_read.*index 5 is outside the list of 5"):
        ev(p, {"x": x, "k": 5})


def test_fixed_lists_and_errors():
    def fixed(x, k):
        ls = ops.make_list(init_length=np.int32(2), dynamic_length=False, elem_shape=(np.int32(3),))
        return {"y": ops.list_read(ls=ops.list_write(ls=ls, index=k, value=x), index=np.int32(0))}

    p = mil.build(fixed, {"x": mil.spec((3,), "fp32"), "k": mil.spec((), "int32")})
    same(only(ev(p, {"x": [1, 2, 3], "k": 1})), np.zeros(3, "f4"))
    with pytest.raises(IndexError, match="list_write.*index 2 is outside the list of 2"):
        ev(p, {"x": [1, 2, 3], "k": 2})
    with pytest.raises(ValueError, match=r"list_write.*holds .*\[3\].*got .*\[4\]"):
        mil.build(fixed, {"x": mil.spec((4,), "fp32"), "k": mil.spec((), "int32")})
    grow = mil.build(lambda x, k: {"n": ops.list_length(ls=ops.list_write(
        ls=ops.make_list(elem_shape=(np.int32(3),)), index=k, value=x))},
        {"x": mil.spec((3,), "fp32"), "k": mil.spec((), "int32")})
    with pytest.raises(MemoryError, match="list_write.*a list of 2147483648 elements"):
        ev(grow, {"x": [1, 2, 3], "k": 2**31 - 1})


def test_a_growing_list_declared_with_the_length_it_begins_with():
    """As coremltools writes every list into a package."""
    text = """program(1.0) {
        func main<ios15>(tensor<fp32, [2]> a, tensor<fp32, [2]> b) {
            tensor<int32, []> n = const()[name = string("n"), val = tensor<int32, []>(2)];
            tensor<bool, []> more = const()[name = string("more"), val = tensor<bool, []>(GROWS)];
            tensor<string, []> d = const()[name = string("d"), val = tensor<string, []>("fp32")];
            tensor<int32, []> zero = const()[name = string("zero"), val = tensor<int32, []>(0)];
            tensor<int32, []> four = const()[name = string("four"), val = tensor<int32, []>(4)];
            tensor<int32, [3]> at = const()[name = string("at"), val = tensor<int32, [3]>([4, 0, 2])];
            list<tensor<fp32, [2]>, 2> ls = make_list(init_length = n, dynamic_length = more,
                elem_shape = (n), dtype = d)[name = string("ls")];
            list<tensor<fp32, [2]>, 2> l0 = list_write(ls = ls, index = zero, value = a)[name = string("l0")];
            list<tensor<fp32, [2]>, 2> l4 = list_write(ls = l0, index = four, value = b)[name = string("l4")];
            tensor<fp32, [3, 2]> y = list_gather(ls = l4, indices = at)[name = string("y")];
        } -> (y); }"""
    x = {"a": [1, 3], "b": [2, 4]}
    same(only(ev(mil.parse(text.replace("GROWS", "true")), x)), np.float32([[2, 4], [1, 3], [0, 0]]))
    with pytest.raises(IndexError, match="list_write.*index 4 is outside the list of 2"):
        ev(mil.parse(text.replace("GROWS", "false")), x)


def test_a_loop_over_a_list():
    """A list as loop variable: how TensorArrays come out of a converter."""
    def body(x):
        ls = ops.make_list(init_length=np.int32(4), elem_shape=(np.int32(5),))
        zero = ops.mul(x=ops.cast(x=ops.reduce_sum(x=x), dtype="int32"), y=0)
        _, out = ops.while_loop(
            cond=lambda i, q: ops.less(x=i, y=4),
            body=lambda i, q: (ops.add(x=i, y=1), ops.list_write(
                ls=q, index=i, value=ops.squeeze(x=ops.gather(x=x, indices=ops.expand_dims(x=i, axes=[0]), axis=0),
                                                 axes=[0]))),
            loop_vars=(zero, ls))
        return {"y": ops.list_gather(ls=out, indices=np.int32([3, 2, 1, 0]))}

    x = opcase.data((4, 5))
    same(only(ev(mil.build(body, {"x": mil.spec((4, 5), "fp32")}), {"x": x})), x[::-1])


# ------------------------------------------------------------------ states, classify


def test_states():
    def step(x, kv):
        old = ops.read_state(input=kv)
        new = ops.coreml_update_state(state=kv, value=ops.add(x=old, y=x))
        later = ops.read_state(input=kv)
        return {"old": old, "new": new, "later": later}

    p = mil.build(step, {"x": mil.spec((3,), "fp16"), "kv": mil.state((3,), "fp16")})
    x, s = np.float16([1, 2, 3]), np.float16([10, 20, 30])
    out = ev(p, {"x": x, "kv": s})
    same(out["old"], s)
    for k in ("new", "later", "kv"):
        same(out[k], s + x, k)


def test_write_state_is_a_statement():
    p = _core.Program.parse("""program(1.3) {
        func main<ios18>(tensor<fp16, [2]> x, state<tensor<fp16, [2]>> kv) {
            write_state(data = x, input = kv)[name = string("w")];
            tensor<fp16, [2]> y = read_state(input = kv);
        } -> (y); }""")
    out = ev(p, {"x": [5, 6], "kv": [1, 2]})
    same(out["y"], np.float16([5, 6]))
    same(out["kv"], np.float16([5, 6]))
    with pytest.raises(SyntaxError, match=r"write_state.*the state holds .*\[2\].*\[3\]"):
        _core.Program.parse("""program(1.3) {
            func main<ios18>(tensor<fp16, [3]> x, state<tensor<fp16, [2]>> kv) {
                write_state(data = x, input = kv);
                tensor<fp16, [3]> y = relu(x = x);
            } -> (y); }""")


@pytest.mark.parametrize("labels, kind", [(["cat", "dog", "cow"], "string"), ([7, 8, 9], "int64")])
def test_classify(labels, kind):
    text = ", ".join(f'"{v}"' if kind == "string" else str(v) for v in labels)
    p = _core.Program.parse(f"""program(1.3) {{
        func main<ios18>(tensor<fp32, [1, 3]> p) {{
            {kind} label, dict<{kind}, fp64> all = classify(classes = list<{kind}, 3>([{text}]), probabilities = p);
        }} -> (label, all); }}""")
    out = ev(p, {"p": [[0.25, 0.5, 0.25]]})
    assert out["label"] == labels[1]
    assert {k: float(v) for k, v in out["all"].items()} == dict(zip(labels, [0.25, 0.5, 0.25]))


# ------------------------------------------------------------------ the walk


def test_results_that_do_not_fit_are_refused_before_they_are_made():
    for op, inputs, kw in (("tile", {"x": np.zeros((3,), "f4")}, {"reps": [2**31 - 1]}),
                           ("fill", {}, {"shape": [2**31 - 1] * 2}), ("fill", {}, {"shape": [2**31 - 1] * 4}),
                           ("fill", {"shape": np.int32([2**31 - 1] * 2)}, {}),
                           ("one_hot", {"indices": np.zeros(2**16, np.int32)},
                            {"one_hot_vector_size": np.int32(2**31 - 1)}),
                           ("resize_bilinear", {"x": np.zeros((1, 2, 2), "f4")},
                            {"target_size_height": 2**31 - 1, "target_size_width": 2**31 - 1}),
                           ("pad", {"x": np.zeros((1, 1), "f4")}, {"pad": [2**31 - 1] * 4})):
        started = time.monotonic()
        with pytest.raises((MemoryError, ValueError), match=op):
            opcase.run(op, inputs, **kw)
        assert time.monotonic() - started < 2


def test_dims_that_overflow_are_refused():
    x = np.zeros((1, 0), "f4")
    for _ in range(2):
        with pytest.raises((ValueError, MemoryError), match="fill"):
            opcase.run("fill", {}, shape=[2**31 - 1] * 8)
    with pytest.raises((ValueError, MemoryError), match="tile|too large|elements"):
        mil.build(lambda x: ops.tile(x=ops.tile(x=ops.tile(x=x, reps=[2**31 - 1, 1]), reps=[2**31 - 1, 1]),
                                     reps=[2**31 - 1, 1]), {"x": mil.spec((1, 1), "fp32")})
    same(opcase.run("tile", {"x": x}, reps=[5, 7]), np.zeros((5, 0), "f4"))


def programs():
    x = opcase.data((2, 3, 4, 4))
    yield opcase.build("conv", {"x": x}, weight=opcase.data((2, 3, 3, 3)), pad_type="same")
    yield opcase.build("scaled_dot_product_attention", {k: x for k in ("query", "key", "value")})
    yield opcase.build("layer_norm", {"x": x}, axes=[1])
    yield opcase.build("topk", {"x": x}, k=np.int32(2), axis=1)
    yield opcase.build("select", {"cond": x[:1] > 0, "a": x, "b": x[:, :1].copy()})
    yield count_to(), {"n": np.int32(3), "start": np.float32(0)}
    h = np.zeros((3, 5), "f4")
    yield opcase.build("lstm", {"x": opcase.data((2, 3, 4)), "initial_h": h, "initial_c": h},
                       weight_ih=opcase.data((20, 4)), weight_hh=opcase.data((20, 5)))


@pytest.mark.parametrize("case", range(7))
def test_every_allocation_may_fail(case):
    p, values = list(programs())[case]
    want = ev(p, values)
    _core._testing.fail_after(0)
    ev(p, values)
    total = _core._testing.fail_after(0)
    assert total > 3
    for n in range(1, total + 1):
        _core._testing.fail_after(n)
        try:
            with pytest.raises(MemoryError):
                ev(p, values)
        finally:
            _core._testing.fail_after(0)
    for k, v in ev(p, values).items():
        same(v, want[k], k)


def test_a_value_is_released_after_its_last_use():
    """A chain of 60 results of 8 MB each must not need 480 MB: only two live at once."""
    import resource

    def chain(x):
        for _ in range(60):
            x = ops.relu(x=x)
        return {"y": x}

    p = mil.build(chain, {"x": mil.spec((1 << 20,), "fp32")})
    ev(p, {"x": np.ones(1 << 20, "f4")})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ev(p, {"x": np.ones(1 << 20, "f4")})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_inputs_are_checked():
    p, _ = opcase.build("relu", {"x": np.zeros(3, "f4")})
    with pytest.raises(TypeError, match="takes 1 inputs, got 0"):
        ev(p, {})
    with pytest.raises(TypeError, match="input 'x_' is missing"):
        ev(p, {"y": np.zeros(3)})
    with pytest.raises(ValueError, match="input 'x_' has the wrong shape"):
        ev(p, {"x_": np.zeros(4)})
    with pytest.raises(KeyError, match="no function 'other'"):
        ev(p, {"x_": np.zeros(3)}, function="other")
