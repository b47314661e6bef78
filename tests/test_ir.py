"""The graph from Python: building, walking, editing, and handles that cannot dangle."""

from __future__ import annotations

import contextvars
import gc
import random
import sys
import threading
import traceback
import weakref

import numpy as np
import pytest

from anetorch import _core, mil
from anetorch.mil import Program, Value, emit, spec
from anetorch.mil.builder import Spec

F16 = ("tensor", "fp16", (2, 3))


def small() -> Program:
    return mil.build(lambda x, w: {"y": (w @ x) * 2.0 + 1.0}, {"x": spec((3, 5), "fp16"), "w": spec((2, 3), "fp16")})


# ------------------------------------------------------------------ building


def test_what_is_built_parses_to_the_same_program() -> None:
    p = small()
    p.verify()
    for spelling in (None, "1.0", "1.3"):
        assert Program.parse(p.text(spelling)) == p
    assert [op.type for op in p.function.body] == ["matmul", "mul", "add"]
    assert p.outputs[0].name == "y" and p.outputs[0].shape == (2, 5)


def test_decorator() -> None:
    @mil.program(x=spec((1, 8, 1, 32), "float16"), w=spec(8, np.float32), opset="ios17", name="f")
    def prog(x, w):
        return {"y": x, "z": mil.emit("cast", {"x": w, "dtype": "fp16"})}

    assert list(prog.functions) == ["f"] and prog.function.opset == "ios17"
    assert [(v.name, v.dtype, v.shape) for v in prog.inputs] == [("x", "fp16", (1, 8, 1, 32)), ("w", "fp32", (8,))]
    assert [v.name for v in prog.outputs] == ["y", "z"]
    with pytest.raises(TypeError, match="'q', which has no spec"):
        mil.program(x=spec(2))(lambda x, q: x)


def test_spec() -> None:
    assert spec([2, None], "float16") == Spec((2, None), "fp16")
    assert spec(3) == Spec((3,), "fp32")
    assert spec((np.int64(2),), np.int32).dtype == "int32"
    with pytest.raises(TypeError):
        spec((2.0,))
    with pytest.raises(TypeError, match="expected mil.spec"):
        mil.build(lambda x: x, {"x": (2, 3)})
    with pytest.raises(ValueError, match="dimension 0 is -2"):
        mil.build(lambda x: x, {"x": spec((-2,))})
    with pytest.raises(ValueError, match="rank 9"):
        mil.build(lambda x: x, {"x": spec((1,) * 9)})
    with pytest.raises(TypeError, match="unknown dtype 'fp17'"):
        mil.build(lambda x: x, {"x": spec((1,), "fp17")})


@pytest.mark.parametrize("dtype", ["fp16", "fp32", "int32"])
def test_operators(dtype: str) -> None:
    def fn(x, y):
        return (x + y, x - y, x * y, x / y, x // y, x % y, x**y, 1 + x, 1 - x, 2 * x, 1 / x, -x, abs(x),
                x < y, x <= y, x > y, x >= 0, np.arange(3, dtype={"fp16": np.float16, "fp32": np.float32, "int32": np.int32}[dtype]) * x)

    p = mil.build(fn, {"x": spec((2, 3), dtype), "y": spec(3, dtype)})
    types = [op.type for op in p.function.body]
    assert types == ["add", "sub", "mul", "real_div", "floor_div", "mod", "pow", "add", "sub", "mul", "real_div",
                     "mul", "abs", "less", "less_equal", "greater", "greater_equal", "mul"]
    assert all(v.dtype == dtype for v in p.outputs[:13]) and all(v.dtype == "bool" for v in p.outputs[13:17])
    assert p.function.body.ops[8].args["x"].is_const            # 1 - x keeps its order
    assert Program.parse(p.text()) == p


def test_numbers_take_the_dtype_of_the_other_operand() -> None:
    def fn(h, f, i):
        return h * 2, h + 0.5, f * np.float64(2), i * 2, h * np.float16(3), f + np.arange(3.0), i + np.arange(3)

    p = mil.build(fn, {"h": spec(3, "fp16"), "f": spec(3, "fp32"), "i": spec(3, "int32")})
    assert [v.dtype for v in p.outputs] == ["fp16", "fp16", "fp32", "int32", "fp16", "fp32", "int32"]
    assert p.function.body.ops[1].const("y") == 0.5
    x = np.arange(3.0) / 7
    got = mil.build(lambda h: h + x, {"h": spec(3, "fp16")}).function.body.ops[0].args["y"].const
    assert got.dtype == np.float16 and np.array_equal(got, x.astype(np.float16))


@pytest.mark.parametrize(("fn", "error", "message"), [
    (lambda x: x + "a", TypeError, "unsupported operand"),
    (lambda x: emit("add", {"x": x, "y": "a"}), TypeError, "parameter y takes .* got 'a'"),
    (lambda x: emit("add", {"x": x, "y": 0.5}), TypeError, "parameter y is int32 like its other operand, got the float 0.5"),
    (lambda x: emit("add", {"x": x, "y": 2**31}), ValueError, "add: parameter y.*2147483648 does not fit int32"),
    (lambda x: emit("add", {"x": x, "y": [2**70]}), (ValueError, TypeError), "add: parameter y"),
    (lambda x: emit("add", {"x": x, "y": np.arange(2, dtype=np.int64) + 2**40}), ValueError, "does not fit int32"),
    (lambda x: emit("add", {"x": x, "y": True}), TypeError, "parameter y takes"),
    (lambda x: emit("add", {"x": x}), ValueError, "add: required parameter y is missing"),
    (lambda x: emit("add", {"x": x, "y": x, "z": x}), ValueError, "add: unknown parameter z; known: x, y"),
    (lambda x: emit("ad", {"x": x}), ValueError, "ad: unknown operation"),
    (lambda x: emit("add", {"x": x, "y": np.float32(1)}), TypeError, "add: parameters x and y need one dtype"),
    (lambda x: emit("cast", {"x": x, "dtype": 3}), TypeError, "parameter dtype takes string, got 3"),
    (lambda x: emit("cast", {"x": x, "dtype": "fp99"}), (ValueError, TypeError), "cast"),
    (lambda x: emit("transpose", {"x": x, "perm": [0, 2]}), (ValueError, IndexError), "transpose"),
    (lambda x: emit("transpose", {"x": x, "perm": [0.0, 1.0]}), TypeError, "parameter perm takes int32, got the float"),
    (lambda x: emit("reshape", {"x": x, "shape": [4, 4]}), ValueError, "reshape"),
    (lambda x: emit("transpose", {"x": x, "perm": x}), ValueError, "vector|constant"),
    (lambda x: emit("concat", {"values": (x, x), "axis": 5}), (ValueError, IndexError), "concat"),
    (lambda x: emit("concat", {"values": [], "axis": 0}), ValueError, "concat"),
    (lambda x: emit("exp", {"x": x}), TypeError, "exp: parameter x expects fp16, fp32, got x of type tensor<int32"),
    (lambda x: emit("identity", {"x": x}, name="tensor"), ValueError, "reserved word"),
    (lambda x: mil.const(1, name="x"), ValueError, '"x" is already defined'),
    (lambda x: mil.const(1, name="a b"), ValueError, "not an identifier"),
    (lambda x: None, TypeError, "returned None"),
    (lambda x: {"y": 3}, TypeError, "output 'y': expected a Value, got 3"),
    (lambda x: {"x": x + 1}, ValueError, "has the name of an input"),
    (lambda x: x if x else x, TypeError, "no truth value"),
])
def test_mistakes(fn, error, message: str) -> None:
    with pytest.raises(error, match=message):
        mil.build(fn, {"x": spec((2, 3), "int32")})


def test_errors_are_raised_at_the_line_that_made_them() -> None:
    def fn(x):
        good = x * 2.0
        return good @ x                         # the culprit

    with pytest.raises(ValueError, match="matmul") as e:
        mil.build(fn, {"x": spec((2, 3))})
    mine = [f for f in traceback.extract_tb(e.value.__traceback__) if f.filename == __file__]
    assert "the culprit" in mine[-1].line


def test_a_failed_call_leaves_nothing_behind() -> None:
    p = Program()
    block, (x,) = p.add_function("main", "ios18", [("x", F16)])
    before = p.text()
    for op, args in [("matmul", {"x": x, "y": x}), ("add", {"x": x}), ("nope", {}), ("relu", {"x": (x,)}), ("relu", {"x": 99})]:
        with pytest.raises((ValueError, KeyError)):
            p.add_op(block, op, args)
    assert p.text() == before and p.value_info(x)["uses"] == 0
    p.verify()


def test_a_failed_emit_takes_its_constants_back() -> None:
    p = small()
    body = p.function.body
    before = body.info["ops"]
    for op, args in [("transpose", {"x": p.inputs[0], "perm": [0, 5]}), ("add", {"x": p.inputs[0], "y": 1.0, "z": 2.0}),
                     ("concat", {"values": (p.inputs[0], 1.0), "axis": "a"})]:
        with pytest.raises((ValueError, TypeError, IndexError)), p.block(body):
            emit(op, args)
    assert body.info["ops"] == before
    p.verify()


def test_output_names() -> None:
    p = mil.build(lambda x: {"a": x, "b": (y := x + 1), "c": y, "x": x}, {"x": spec(2)})
    assert [v.name for v in p.outputs] == ["a", "b", "c", "x"]
    assert [op.type for op in p.function.body] == ["add", "identity", "identity"]
    # An inner value called like an output gives its name up.
    p = mil.build(lambda x: {"h": emit("exp", {"x": emit("sin", {"x": x}, name="h")})}, {"x": spec(2)})
    assert p.outputs[0].op.type == "exp"
    p.verify()


def test_names_of_operations() -> None:
    def fn(x):
        for _ in range(3):
            x = emit("exp", {"x": x}, name="h")
        return emit("split", {"x": x, "num_splits": 2, "axis": 0}, name="s")

    p = mil.build(fn, {"x": spec((4, 2))})
    names = [v.name for op in p.function.body for v in op.results]
    assert names[0] == "h" and len(set(names)) == 5 and all(n.startswith("h") for n in names[:3])
    assert [v.name for v in p.outputs] == ["s_0", "s_1"]
    assert p.function.body.ops[0].name == "h"
    assert Program.parse(p.text()) == p


def test_constants() -> None:
    big = np.arange(64, dtype=np.float32)
    small_ = np.array([1, 2, 3], np.float16)
    p = mil.build(lambda x: (x + mil.const(big, name="big"), mil.const(small_), mil.const([[1, 2]]), mil.const(0.1),
                             mil.const(True), mil.const("s"), mil.const(["a", "b"]), mil.const(0.1, "fp16")),
                  {"x": spec(64)})
    values = [v.const for v in p.outputs[1:]]
    assert np.array_equal(p.value("big").const, big)
    assert not p.value("big").const.flags.writeable
    # Large arrays are viewed: what the program sees is the caller's memory.
    big[3] = 77
    assert p.value("big").const[3] == 77
    assert values[0].tolist() == [1, 2, 3] and values[0].dtype == np.float16
    assert values[1].tolist() == [[1, 2]] and values[1].dtype == np.int32
    assert values[2] == np.float32(0.1) and values[6] == np.float16(0.1)
    assert values[3] == True and values[4:6] == ["s", ["a", "b"]]  # noqa: E712
    small_[0] = 9
    assert p.outputs[1].const.tolist() == [1, 2, 3]
    again = Program.parse(p.text())
    assert again == p and again.value("big").const[3] == 77


def test_constants_of_any_layout_and_type() -> None:
    p = Program()
    block, _ = p.add_function("main", "ios18", [])

    def kept(value, dtype=None):
        return p.const_value(p.add_const(block, value, dtype=dtype))

    a = np.arange(600, dtype=np.int32).reshape(20, 30)
    for view in (a, a.T, a[::2, ::-1], a[3:4], a[:, :0], a.astype(">i4")):
        assert np.array_equal(kept(view), view)
    assert np.array_equal(kept(_core.Tensor.from_numpy(a)), a)
    for dtype, values in {"int4": [-8, 7, 1], "uint1": [0, 1, 1, 0, 1, 0, 1, 1, 1], "uint3": list(range(8)), "uint6": [63, 0, 9]}.items():
        assert kept(values, dtype).tolist() == values
        with pytest.raises(ValueError, match=dtype):
            kept([64], dtype)
    for dtype in ("int8", "uint8", "int16", "uint16", "int64", "uint64", "float64", "bool"):
        x = np.array([0, 1, 1], dtype)
        assert kept(x).dtype == x.dtype and np.array_equal(kept(x), x)
    v = p.add_const(block, [1.0, 3.14159], dtype="bf16")
    assert p.value_type(v) == ("tensor", "bf16", (2,)) and "[0x1p+0, 0x1.92p+1]" in p.text()
    with pytest.raises(ValueError, match="zero byte"):
        kept("a\0b")
    with pytest.raises((TypeError, ValueError)):
        kept(object())
    with pytest.raises(TypeError):
        kept(np.array(["a", "b"], object))
    p.verify()
    assert Program.parse(p.text()) == p


def test_where_operations_go() -> None:
    p = small()
    x = p.inputs[0]
    body = p.function.body
    second = body.ops[1]
    with p.block(body, before=second):
        late = emit("add", {"x": second.inputs[0], "y": 3.0})
    assert [op.type for op in body] == ["matmul", "add", "mul", "add"]
    p.verify()
    # Outside of any place an operation goes where its operand was made.
    y = late * 2.0
    assert y.op.block == body and body.ops[-1] == y.op
    with pytest.raises(RuntimeError, match="no program is being built"):
        mil.const(1)
    with pytest.raises(ValueError, match="another program"):
        mil.build(lambda a: a + x, {"a": spec((3, 5), "fp16")})
    with pytest.raises(ValueError, match="not defined before"), p.block(body, before=body.ops[0]):
        emit("exp", {"x": y})
    p.verify()


def test_builds_in_threads_do_not_mix() -> None:
    results: dict[int, Program] = {}
    barrier = threading.Barrier(4)

    def work(n: int) -> None:
        def fn(x):
            for _ in range(50):
                x = x + float(n)
            return {"y": x}

        barrier.wait()
        results[n] = mil.build(fn, {"x": spec(n + 1)})

    threads = [threading.Thread(target=contextvars.copy_context().run, args=(work, n)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for n, p in results.items():
        assert len(p.function.body.ops) == 50 and all(op.const("y") == n for op in p.function.body)


def test_several_functions() -> None:
    p = mil.build(lambda x: {"y": x + 1.0}, {"x": spec(2)}, name="a")
    mil.build(lambda x: {"y": x * 2.0}, {"x": spec(3)}, name="b", opset="ios16", program=p)
    assert list(p.functions) == ["a", "b"] and len(p.functions) == 2 and "b" in p.functions
    assert p.functions["b"].inputs[0].shape == (3,)
    assert p.functions()[1][:2] == ("b", "ios16")
    with pytest.raises(ValueError, match='function "a" is already defined'):
        mil.build(lambda x: x, {"x": spec(3)}, name="a", program=p)
    with pytest.raises(KeyError, match="it has a, b"):
        p.functions["c"]
    assert Program.parse(p.text()) == p


def test_attributes() -> None:
    p = small()
    p.set_attr("buildInfo", {"coremlc-version": "1", "k": "v"})
    p.set_attr("extra", [1, 2], function="main")
    assert p.attrs()["buildInfo"] == {"coremlc-version": "1", "k": "v"}
    assert p.function.attrs["extra"].tolist() == [1, 2]
    again = Program.parse(p.text())
    assert again == p and again.attrs() == p.attrs()
    p.set_attr("buildInfo", {"k": "w"})
    assert p.attrs() == {"buildInfo": {"k": "w"}} and again != p
    p.set_attr("buildInfo", None)
    assert p.attrs() == {}
    with pytest.raises(KeyError, match="no function g"):
        p.set_attr("a", 1, function="g")


def test_flexible_shapes_from_python() -> None:
    p = mil.build(lambda x: {"y": x}, {"x": spec((1, None), "fp16")})
    text, ints = ("tensor", "string", ()), ("tensor", "int32", (None,))
    pair = ("tensor", "int32", (2,))
    kind = ("tuple", ("tuple", text, ("dict", text, ints)), ("tuple", text, ("dict", text, ("list", pair, None))))
    value = (("DefaultShapes", {"x": [1, 4]}), ("RangeDims", {"x": [[1, 1], [1, 9]]}))
    p.set_attr("FlexibleShapeInformation", value, function="main", type=kind)
    assert 'FlexibleShapeInformation = tuple<tuple<string, dict<string, tensor<int32, [?]>>>, ' in p.text()
    assert '((("DefaultShapes", {{"x", [1, 4]}}), ("RangeDims", {{"x", [[1, 1], [1, 9]]}})))' in p.text()
    assert Program.parse(p.text()) == p
    for bad in (value[:1], 3, "x", (("a", {}), ("b", [1])), (("a", {"x": [[1]]}), ("b", {}))):
        with pytest.raises((TypeError, ValueError), match="set_attr"):
            p.set_attr("FlexibleShapeInformation", bad, function="main", type=kind)


# ------------------------------------------------------------------ nested blocks


def test_specialize() -> None:
    """One function alone, with known shapes; the program itself stays as it was."""
    p = mil.build(lambda x, s: {"y": mil.ops.read_state(input=s) @ x},
                  {"x": mil.spec((None, 4), "fp16"), "s": mil.state((2, 3), "fp16")})
    mil.build(lambda x: {"y": x}, {"x": mil.spec((None,), "fp32")}, name="two", program=p)
    before = p.text()
    q = p.specialize({"x": (3, 4)})
    assert list(q.functions) == ["main"] and q.outputs[0].shape == (2, 4)
    assert [op.type for op in q.function.body] == [op.type for op in p.function.body]
    assert p.specialize({"x": np.array([7])}, "two").function.outputs[0].shape == (7,)
    assert p.specialize({}, "two") == mil.build(
        lambda x: {"y": x}, {"x": mil.spec((None,), "fp32")}, name="two")
    for shapes, text in [({"x": (3, 5)}, "cannot have the shape"), ({"x": (3,)}, "cannot have"),
                         ({"x": (-1, 4)}, "cannot have"), ({"z": (1,)}, "takes x, s"),
                         ({"x": (2, 4)}, "matmul 'y': the inner dimensions differ")]:
        with pytest.raises(ValueError, match=text):
            p.specialize(shapes)
    with pytest.raises(KeyError):
        p.specialize({}, "three")
    assert p.text() == before


def test_cond() -> None:
    def fn(x, flag):
        scale = x * 2.0
        return {"y": mil.ops.cond(pred=flag, true_fn=lambda: scale + 1.0, false_fn=lambda: x)}

    p = mil.build(fn, {"x": spec(3), "flag": spec((), "bool")})
    p.verify()
    op = p.outputs[0].op
    assert op.type == "cond" and len(op.blocks) == 2 and op.blocks[0].owner == op
    assert [o.type for o in op.blocks[0]] == ["add"] and op.blocks[1].outputs == [p.inputs[0]]
    for spelling in ("1.0", "1.3"):
        assert Program.parse(p.text(spelling)) == p
    assert p.clone() == p
    run = _core._testing.eval
    x = np.arange(3, dtype=np.float32)
    for flag, want in ((True, x * 2 + 1), (False, x)):
        got = run(p, {"x": x, "flag": np.array(flag)})["y"]
        assert np.array_equal(got, want)


def test_while_loop() -> None:
    def fn(n, x):
        i, y = mil.ops.while_loop(loop_vars=(n, x), cond=lambda i, y: i > 0, body=lambda i, y: (i - 1, y * 2.0))
        return {"i": i, "y": y}

    p = mil.build(fn, {"n": spec((), "int32"), "x": spec(2)})
    p.verify()
    assert Program.parse(p.text()) == p and p.clone() == p
    got = _core._testing.eval(p, {"n": np.int32(5), "x": np.ones(2, np.float32)})
    assert got["y"].tolist() == [32, 32] and got["i"] == 0


def test_nested_blocks_see_outwards_only() -> None:
    p = mil.build(lambda x, f: x + 1.0, {"x": spec(3), "f": spec((), "bool")})
    body, (x, f) = p.function.body.id, [v.id for v in p.inputs]
    one, _ = p.add_block(body)
    _, (inner,) = p.add_op(one, "exp", {"x": x})
    p.set_outputs(one, [inner])
    two, _ = p.add_block(body)
    _, (bad,) = p.add_op(two, "exp", {"x": inner})
    p.set_outputs(two, [bad])
    with pytest.raises(ValueError, match="block 1 uses a value that is not defined before"):
        p.add_op(body, "cond", {"pred": f}, blocks=[one, two])
    with pytest.raises(ValueError, match="given twice"):
        p.add_op(body, "cond", {"pred": f}, blocks=[one, one])
    with pytest.raises(ValueError, match="already belongs"):
        p.add_op(body, "cond", {"pred": f}, blocks=[one, body])
    with pytest.raises(ValueError, match="not defined"):
        p.add_op(body, "exp", {"x": inner})
    three, _ = p.add_block(body)
    p.set_outputs(three, [x])
    op, _ = p.add_op(body, "cond", {"pred": f}, blocks=[one, three])
    p.verify()
    with pytest.raises(ValueError, match="already belongs"):
        p.add_op(body, "cond", {"pred": f}, blocks=[one, three])
    p.remove_op(op)
    with pytest.raises(KeyError, match="removed"):
        p.block_info(one)
    with pytest.raises(KeyError, match="removed"):
        p.value_info(inner)
    p.verify()


def test_blocks_nest_to_a_limit() -> None:
    def nested(depth: int, f, x):
        if not depth:
            return x + 1.0
        return mil.ops.cond(pred=f, true_fn=lambda: nested(depth - 1, f, x), false_fn=lambda: x)

    inputs = {"f": spec((), "bool"), "x": spec(3)}
    p = mil.build(lambda f, x: nested(30, f, x), inputs)
    assert Program.parse(p.text()) == p and p.clone() == p
    with pytest.raises(ValueError, match="blocks nest deeper than 32"):
        mil.build(lambda f, x: nested(40, f, x), inputs)


def test_class_labels_are_a_list() -> None:
    p = mil.build(lambda x: mil.ops.classify(probabilities=x, classes=["cat", "dog", "hen"]), {"x": spec(3)})
    op = p.function.body.ops[-1]
    assert op.const("classes") == ["cat", "dog", "hen"]
    assert 'list<string, 3>(["cat", "dog", "hen"])' in p.text()
    assert Program.parse(p.text()) == p


# ------------------------------------------------------------------ editing


def test_replace_rename_remove() -> None:
    p = small()
    body = p.function.body
    matmul, mul, add = body.ops
    with pytest.raises(BufferError, match="still used 1 times"):
        mul.remove()
    mul.results[0].replace(matmul.results[0])
    assert add.args["x"] == matmul.results[0]
    generation = p.generation
    mul.remove()
    assert p.generation > generation
    assert [op.type for op in body] == ["matmul", "add"]
    matmul.results[0].name = "product"
    assert "matmul(x = w, y = x)" in p.text() and "product" in p.text()
    with pytest.raises(ValueError, match='"x" is already defined'):
        matmul.results[0].name = "x"
    with pytest.raises(ValueError, match="defined after a use"):
        matmul.results[0].replace(add.results[0])
    with pytest.raises(ValueError, match=r"is tensor<fp16, \[3, 5\]>"):
        p.inputs[0].replace(p.inputs[1])
    p.verify()
    assert Program.parse(p.text()) == p


def test_a_name_is_free_again_after_removal() -> None:
    p = small()
    v = p.function.body.ops[0].results[0]
    old = v.name
    v.name = "other"
    with p.block(p.function.body):
        emit("exp", {"x": p.inputs[0]}, name=old)
    assert p.value(old).op.type == "exp"


def test_handles_of_removed_things() -> None:
    p = small()
    op = p.function.body.ops[-1]
    v, y = op.results[0], op.args["y"]
    p.function.body.outputs = [op.args["x"]]
    op.remove()
    for use in (lambda: v.name, lambda: v.shape, lambda: v.uses, lambda: op.args, lambda: op.type,
                lambda: p.set_outputs(p.function.body.id, [v.id]), op.remove, lambda: v.const,
                lambda: p.add_op(p.function.body.id, "exp", {"x": v.id}), lambda: y.const):
        with pytest.raises(KeyError, match="was removed from the program"):
            use()
    assert "removed" in repr(v) and "removed" in repr(op)
    p.verify()


@pytest.mark.parametrize("bad", [0, -1, 2**32, 2**70, 10**6, None, "x", 1.5])
def test_ids_that_never_were(bad) -> None:
    p = small()
    calls = [p.block_info, p.op_info, p.value_info, p.value_type, p.const_value, p.remove_op, p.users,
             lambda i: p.rename(i, "q"), lambda i: p.replace_value(i, p.inputs[0].id),
             lambda i: p.replace_value(p.inputs[0].id, i), lambda i: p.set_outputs(p.function.body.id, [i]),
             lambda i: p.set_outputs(i, []), lambda i: p.add_op(i, "relu", {}), lambda i: p.add_const(i, 1),
             lambda i: p.add_block(i), lambda i: p.add_op(p.function.body.id, "relu", {"x": i})]
    text = p.text()
    for call in calls:
        with pytest.raises((KeyError, TypeError)):
            call(bad)
    assert p.text() == text


def test_an_id_of_another_kind() -> None:
    p = small()
    op, v, b = p.function.body.ops[0].id, p.inputs[0].id, p.function.body.id
    for call, wrong in ((p.op_info, v), (p.value_info, op), (p.block_info, v), (p.remove_op, b)):
        with pytest.raises(KeyError, match="has no"):
            call(wrong)


def test_random_edits_keep_the_graph_sound() -> None:
    rng = random.Random(5)
    for _ in range(20):
        p = mil.build(lambda x: {"y": x + 1.0}, {"x": spec((2, 3))})
        body = p.function.body
        for _ in range(60):
            values = [v for op in body for v in op.results if v.shape == (2, 3)] + p.inputs
            kind = rng.randrange(5)
            try:
                if kind <= 1:
                    before = rng.choice([None, *body.ops])
                    with p.block(body, before=before):
                        rng.choice([lambda v: v * 2.0, lambda v: v + rng.choice(values), lambda v: emit("exp", {"x": v})])(rng.choice(values))
                elif kind == 2:
                    rng.choice(values).replace(rng.choice(values))
                elif kind == 3 and body.ops:
                    rng.choice(body.ops).remove()
                else:
                    body.outputs = rng.sample(values, min(2, len(values)))
            except (ValueError, BufferError):
                pass
            p.verify()
        assert Program.parse(p.text()) == p
        assert p.clone() == p


def test_many_inserts_at_one_place() -> None:
    """Positions are numbers with gaps: they are handed out anew when a gap is used up."""
    p = mil.build(lambda x: {"y": x + 1.0}, {"x": spec(2)})
    body = p.function.body
    last = body.ops[-1]
    for i in range(100):
        with p.block(body, before=last):
            emit("exp", {"x": p.inputs[0]}, name=f"e{i}")
    assert [op.name for op in body][:-1] == [f"e{i}" for i in range(100)]
    p.verify()


def test_equality() -> None:
    assert small() == small() and not small() != small()
    assert small().same_as(small())
    a, b = small(), small()
    b.outputs[0].name = "z"
    assert a != b
    assert a != 3 and not a == "text"
    with pytest.raises(TypeError, match="unhashable"):
        hash(a)
    changed = a.text().replace("0x1p+1", "0x1.8p+1")
    assert Program.parse(changed) != a
    assert Program.parse(a.text().replace("ios18", "ios17")) != a


# ------------------------------------------------------------------ life


def test_constants_die_with_the_program() -> None:
    a = np.zeros(1000, np.float32)
    before = sys.getrefcount(a)
    p = mil.build(lambda x: x + mil.const(a), {"x": spec(1000)})
    assert sys.getrefcount(a) > before
    copy = p.clone()
    del p
    gc.collect()
    assert copy.function.body.ops[0].results[0].const is not None
    del copy
    gc.collect()
    assert sys.getrefcount(a) == before


def test_programs_can_be_referred_to_weakly() -> None:
    p = small()
    ref = weakref.ref(p)
    del p
    gc.collect()
    assert ref() is None


def test_values_are_handles() -> None:
    p = small()
    a, b = p.inputs[0], p.function.body.params[0]
    assert a == b and hash(a) == hash(b) and a != p.inputs[1] and a != a.id
    assert a in [b] and {a: 1}[b] == 1
    assert isinstance(a, Value) and repr(a) == "<Value x: fp16[3, 5]>"
    assert a.op is None and a.uses == [p.function.body.ops[0]] and a.const is None
    assert p.outputs[0].op.results == [p.outputs[0]]


def test_subclasses() -> None:
    class Mine(Program):
        pass

    p = Mine.parse(small().text())
    assert type(p) is Mine and type(p.clone()) is Mine and p == small()


@pytest.mark.parametrize("bad", [("tensor",), ("tensor", "fp16"), ("tensor", "nope", ()), ("tensor", "fp16", (-1,)),
                                 ("tensor", "fp16", ("a",)), ("what", 1), "tensor", 3, None, ("list", F16),
                                 ("dict", F16), ("state", 3), ("tensor", "fp16", (1,) * 9)])
def test_bad_types(bad) -> None:
    with pytest.raises((TypeError, ValueError)):
        Program().add_function("main", "ios18", [("x", bad)])


def test_types_of_every_kind() -> None:
    kinds = [F16, ("tensor", "string", ()), ("list", F16, None), ("list", F16, 3), ("state", F16),
             ("dict", ("tensor", "string", ()), ("tensor", "int32", (None,))), ("tuple", F16, ("list", F16, 2)), ("tuple",)]
    p = Program()
    _, ids = p.add_function("main", "ios18", [(f"p{i}", t) for i, t in enumerate(kinds)])
    assert [p.value_type(i) for i in ids] == kinds
    deep = F16
    for _ in range(40):
        deep = ("list", deep, 1)
    with pytest.raises((TypeError, ValueError)):
        p.add_function("deep", "ios18", [("x", deep)])


def test_keys_that_run_python() -> None:
    """An id object that edits the program while it is asked for its value."""
    p = small()
    op = p.function.body.ops[-1]
    p.function.body.outputs = [op.args["x"]]

    class Evil:
        def __index__(self) -> int:
            op.remove()
            return op.id

    with pytest.raises(KeyError, match="removed"):
        p.op_info(Evil())
    p.verify()


@pytest.mark.parametrize("sticky", [False, True])
def test_every_allocation_of_an_edit_may_fail(sticky: bool) -> None:
    p = small()
    text = p.text()
    body = p.function.body.id
    x = p.inputs[0].id
    ops = [op.id for op in p.function.body]
    failures = 0
    for n in range(1, 60):
        _core._testing.fail_after(n, sticky)
        try:
            c = p.add_const(body, np.ones(100, np.float32), name="c")
            op, (v,) = p.add_op(body, "exp", {"x": x}, name="e")
            p.rename(v, "renamed")
            p.set_outputs(body, [v])
        except MemoryError:
            failures += 1
        else:
            _core._testing.fail_after(0)
            assert failures
            break
        finally:
            _core._testing.fail_after(0)
        p.verify()
        # Undo what was done before the failure.
        p.set_outputs(body, [p.op_info(ops[-1])["results"][0]])
        for op in p.block_info(body)["ops"]:
            if op not in ops and p.op_info(op)["op"] in ("exp", "const") and not p.op_info(op)["inlined"]:
                p.remove_op(op)
        assert p.text() == text
    else:
        pytest.fail("no attempt came through")
    p.verify()
    del c
