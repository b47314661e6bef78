"""Lint: each rule fires on a program made for it and not on its rewrite; fixes keep meaning."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import anetorch
from anetorch import _core, mil
from anetorch.lint import fix, lint, report, rules

SPEC = mil.spec((1, 64, 1, 512), "fp16")


def ids(program, **kwargs):
    return {f.rule.id for f in lint(program, **kwargs)}


def build(fn, opset="ios18", **specs):
    return mil.build(fn, specs or {"x": SPEC}, opset=opset)


def small(**specs):
    return {k: mil.spec(s, d) for k, (s, d) in specs.items()}


W = np.random.default_rng(0).standard_normal((64, 64, 1, 1)).astype(np.float16)
CASES = {
    "ANE01": lambda: build(lambda x: mil.ops.concat(values=[x, x], axis=1)),
    "ANE02": lambda: build(lambda a, b: a + b, a=SPEC, b=SPEC),
    "ANE03": lambda: build(lambda a, b: a + b, a=SPEC, b=mil.spec((1, 64, 1, 1), "fp16")),
    "ANE04": lambda: build(lambda b, a: a + b, b=SPEC, a=SPEC),
    "ANE05": lambda: build(lambda x: x + 1.0, x=mil.spec((1, 4, 1, 32), "fp16")),
    "ANE07": lambda: build(
        lambda q, k, v, m: mil.ops.scaled_dot_product_attention(query=q, key=k, value=v,
                                                                attn_mask=m),
        **small(q=((1, 2, 5, 4), "fp16"), k=((1, 2, 6, 4), "fp16"), v=((1, 2, 6, 3), "fp16"),
                m=((1, 1, 5, 6), "fp16"))),
    "ANE12": lambda: build(lambda x: mil.ops.gelu(x=x, mode="TANH_APPROXIMATION")),
    "ANE13": lambda: build(lambda x: mil.ops.softmax(x=x, axis=-1)),
    "ANE14": lambda: build(lambda x: mil.ops.conv(x=x, weight=W,
                                                  bias=np.arange(64, dtype=np.float16))),
    "ANE16": lambda: build(lambda x, w: mil.ops.conv(x=x, weight=w), x=SPEC,
                           w=mil.spec((64, 64, 1, 1), "fp16")),
    "ANE17": lambda: build(lambda x: mil.ops.conv(x=x, weight=W[:, :32], groups=2)),
    "ANE18": lambda: build(lambda x: mil.ops.conv(x=x, weight=np.zeros((1, 32000, 1, 1),
                                                                       np.float16)),
                           x=mil.spec((1, 32000, 1, 2), "fp16")),
    "ANE19": lambda: build(lambda x: x + 1.0, x=mil.spec((1, 1, 1, 16385), "fp16")),
    "ANE20": lambda: build(lambda x: mil.ops.conv(x=x, weight=W)),
    "ANE21": lambda: build(lambda x: mil.ops.rsqrt(x=x)),
    "ANE22": lambda: build(lambda x: mil.ops.cast(x=x, dtype="int32")),
    "ANE23": lambda: build(lambda x: mil.ops.cast(x=x, dtype="fp16"),
                           x=mil.spec((1, 64, 1, 512), "int32")),
    "ANE25": lambda: build(lambda x: mil.ops.tile(x=x, reps=[1, 2, 1, 3])),
    "ANE26": lambda: build(lambda a, b: a * b, a=mil.spec((2, 8, 4, 64), "fp16"),
                           b=mil.spec((1, 8, 4, 64), "fp16")),
    "ANE27": lambda: build(lambda x: mil.ops.layer_norm(x=x, axes=[1], epsilon=1e-3)),
    "ANE28": lambda: build(lambda x: x + 1.0, x=mil.spec((8, 8192), "fp16")),
    "ANE29": lambda: build(lambda x: x + 1.0),
    "ANE30": lambda: build(lambda x: x + 1.0),
    "ANE31": lambda: build(lambda x: x + 1.0, x=mil.spec((1, 16000, 1, 1024), "fp16")),
    "ANE32": lambda: build(lambda x: x + 1.0, x=mil.spec((1, None, 1, 64), "fp16")),
    "ANE33": lambda: build(lambda x: mil.ops.sin(x=x)),
    "ANE35": lambda: build(lambda x: mil.ops.slice_by_size(x=x, begin=[0, 0, 0, 0],
                                                           size=[1, 64, 1, 100])),
    "ANE36": lambda: build(lambda x: mil.ops.rsqrt(x=x, epsilon=1e-5)),
}
BLOB = ("tensor<{0}, {1}>(BLOBFILE(path = string(\"@model_path/w.bin\"), offset = "
        "uint64({2})))")


def text(*lines, params="tensor<fp16, [1, 64, 1, 512]> x", outputs="y", opset="ios18", more=""):
    """One statement a line from line 3 on."""
    return "\n".join(["program(1.3) {", f"func main<{opset}>({params}) {{", *lines,
                      f"}} -> ({outputs}); {more}}}"])


RELU = "tensor<fp16, [1, 64, 1, 512]> y = relu(x = x);"


# Nothing of this is doubted: the other half of each rule's test.
RELU_ALONE = """program(1.0)
[buildInfo = dict<tensor<string, []>, tensor<string, []>>({{"coremlc-version", "3505.4.1"}})]
{
    func main<ios16>(tensor<fp16, [1, 512, 1, 512]> x) {
        tensor<fp16, [1, 512, 1, 512]> y = relu(x = x)[name = tensor<string, []>("y")];
    } -> (y);
}"""


def const(name, type, dims, offset):
    return f"tensor<{type}, {dims}> {name} = const()[val = {BLOB.format(type, dims, offset)}];"


CASES |= {
    "ANE06": lambda: text(RELU, more=" ".join(
        f"func f{i}<ios18>(fp16 a) {{}} -> (a);" for i in range(119))),
    "ANE08": lambda: text(const("w", "fp16", "[1, 64, 1, 512]", 64),
                          "tensor<fp16, [1, 64, 1, 512]> y = add(x = x, y = w);"),
    "ANE09": lambda: text(const("w", "fp16", "[1, 64, 1, 512]", 100),
                          "tensor<fp16, [1, 64, 1, 512]> y = add(x = x, y = w);"),
    "ANE10": lambda: text(const("w", "fp16", "[1, 64, 1, 512]", 64),
                          const("v", "fp16", "[1, 64, 1, 512]", 65664),
                          "tensor<fp16, [1, 64, 1, 512]> y = add(x = v, y = w);"),
    "ANE15": lambda: text(RELU, outputs="y, y"),
    "ANE24": lambda: text(
        "tensor<fp16, [1, 64, 1, 512]> w = constexpr_blockwise_shift_scale(data = "
        + BLOB.format("int8", "[1, 64, 1, 512]", 64)
        + ", scale = tensor<fp16, [1, 1, 1, 1]>([[[[0x1p-3]]]]));",
        "tensor<fp16, [1, 64, 1, 512]> y = add(x = x, y = w);"),
    "ANE34": lambda: text(
        "tensor<fp16, [1, 64, 1, 512]> y = cond(pred = p)",
        "block () { tensor<fp16, [1, 64, 1, 512]> a = relu(x = x); } -> (a)",
        "block () { } -> (x);", params="bool p, tensor<fp16, [1, 64, 1, 512]> x"),
    "ANE37": lambda: build(lambda x: mil.ops.matmul(x=x, y=x, transpose_y=True)),
    "ANE38": lambda: build(lambda x: mil.ops.round(x=x)),
    "ANE39": lambda: build(lambda x: mil.ops.round(x=x)),
    "ANE40": lambda: build(lambda x: mil.ops.reduce_sum(x=x, axes=[1], keep_dims=True),
                           x=mil.spec((1, 64, 1, 512), "int32")),
    "ANE41": lambda: build(lambda x: mil.ops.reduce_log_sum_exp(x=x, axes=[1], keep_dims=True)),
    "ANE42": lambda: build(lambda x: x + 1.0, x=mil.spec((1, 64, 1, 512), "fp32")),
    "ANE43": lambda: build(lambda x: mil.ops.reduce_sum(x=x, axes=[1], keep_dims=True)),
    "ANE44": lambda: build(lambda x: mil.ops.tanh(x=x)),
    "ANE45": lambda: build(lambda x: mil.ops.cumsum(x=x, axis=1)),
    "ANE46": lambda: build(lambda x: mil.ops.matmul(x=x, y=np.zeros((512, 8), np.float16))),
    "ANE47": lambda: text("tensor<fp16, [1, 64, 512, 512]> y = matmul(x = x, y = x, "
                          "transpose_x = true);"),
}
CHIP_ONLY = {"ANE10": "m1", "ANE20": "m3", "ANE30": "m1", "ANE35": "m2"}


@pytest.mark.parametrize("rule", CASES)
def test_rule_fires_where_it_should(rule):
    program = CASES[rule]()
    assert rule in ids(program)
    assert rule not in ids(RELU_ALONE, target=CHIP_ONLY.get(rule, "m4"))
    if rule in CHIP_ONLY:
        assert rule in ids(program, target=CHIP_ONLY[rule])
        assert rule not in ids(program, target="m5")
    assert rule not in ids(program, ignore=[rule])
    assert rule not in ids(program, ignore=[rules()[rule].name])


def test_every_rule_is_tested_and_complete():
    about_the_caller = {"ANE11"}
    assert set(rules()) - set(CASES) == about_the_caller
    # mil-reference's numbers are all there, and each row says what, who and for whom.
    assert {f"ANE{i:02}" for i in range(1, 34)} <= set(rules())
    for r in rules().values():
        assert r.name and r.message and r.evidence and r.chips and (r.inmemory or r.coreml), r.id
        assert r.severity in ("error", "warning", "info")
    assert len({r.name for r in rules().values()}) == len(rules())


@pytest.mark.parametrize("rule", [r for r in CASES if r not in ("ANE06", "ANE29")])
def test_every_finding_of_a_text_has_its_line(rule):
    """The line is the statement's, or the function's for a port, or the program's."""
    program = CASES[rule]()
    program = program if isinstance(program, str) else program.text()
    lines = program.splitlines()
    for f in lint(program):
        assert 0 < f.line <= len(lines) and f.column > 0, f
        place = lines[f.line - 1][f.column - 1:]
        what = f.what.split(" '")[0]
        if what in ("input", "function"):
            assert place.startswith(f.function), (f, place)
        elif f.op and what not in ("output", "const"):      # constants also stand in place
            assert place.startswith(what), (f, place)


def test_a_report_says_why_and_what_instead():
    out = report(lint(CASES["ANE12"](), target="m4"))
    r = rules()["ANE12"]
    assert out.count(r.evidence) == 1 and out.count(f"instead: {r.rewrite}") == 1
    assert r.evidence not in report(lint(CASES["ANE12"](), target="m4"), why=False)


def test_the_product_that_is_no_convolution():
    """Neither two computed operands nor a batch of constants."""
    assert "ANE46" not in ids(build(lambda x: mil.ops.matmul(x=x, y=x, transpose_x=True)))
    assert "ANE46" not in ids(build(lambda x: mil.ops.matmul(
        x=x, y=np.zeros((1, 64, 512, 8), np.float16))))


def test_fix_of_a_flexible_program_with_a_state_is_shown_equal(monkeypatch):
    program = text(
        "tensor<fp16, [4]> r = read_state(input = s);",
        "tensor<fp16, [?, 4]> g = gelu(x = x, mode = string(\"EXACT\"));",
        "tensor<fp16, [?, 4]> y = add(x = g, y = r);",
        params="state<tensor<fp16, [4]>> s, tensor<fp16, [?, 4]> x")
    assert "ANE12" not in ids(fix(program))
    # A wrong rewrite of it is caught.
    module = sys.modules[fix.__module__]
    monkeypatch.setitem(module._REWRITES, "ANE12", lambda op: op.args["x"] * 0.5)
    with pytest.raises(AssertionError, match="a rewrite changed 'y' of main"):
        fix(program)


def test_fix_without_weights_cannot_be_shown():
    program = text(const("w", "fp16", "[1, 64, 1, 512]", 64),
                   "tensor<fp16, [1, 64, 1, 512]> g = gelu(x = x, mode = string(\"EXACT\"));",
                   "tensor<fp16, [1, 64, 1, 512]> y = add(x = g, y = w);")
    with pytest.raises(ValueError, match="cannot be shown equal"):
        fix(program)


def test_quiet_program_is_quiet():
    text = """program(1.0)
[buildInfo = dict<tensor<string, []>, tensor<string, []>>({{"coremlc-version", "3505.4.1"}})]
{
    func main<ios16>(tensor<fp16, [1, 64, 1, 512]> x) {
        tensor<fp16, [1, 64, 1, 512]> y = relu(x = x)[name = tensor<string, []>("y")];
    } -> (y);
}"""
    assert lint(text) == []
    assert report([]) == "nothing found"


FIXABLE = ["ANE07", "ANE12", "ANE13", "ANE14", "ANE21", "ANE25", "ANE27", "ANE29"]


@pytest.mark.parametrize("rule", FIXABLE)
def test_fix_removes_the_finding_and_keeps_the_meaning(rule):
    assert rules()[rule].fixable
    program = CASES[rule]()
    text = program.text()
    fixed = fix(program)
    assert program.text() == text                       # the original is untouched
    assert rule not in ids(fixed)
    assert [v.name for v in fixed.outputs] == [v.name for v in program.outputs]
    assert anetorch.mil.Program.parse(fixed.text()).same_as(fixed)
    rng = np.random.default_rng(3)
    inputs = {v.name: rng.uniform(0.5, 4, v.shape) for v in program.inputs}
    a = _core._testing.eval(program, inputs, wide=True)
    b = _core._testing.eval(fixed, inputs, wide=True)
    assert a.keys() == b.keys()
    # gelu's rewrites bring constants that the program's fp16 rounds; the others bring none.
    bound = 6 * 2.0**-11 if rule == "ANE12" else 1e-10
    for name in a:
        np.testing.assert_allclose(b[name], a[name], rtol=bound, atol=bound)
    # and the CPU device computes it
    half = {k: x.astype(np.float16) for k, x in inputs.items()}
    assert np.isfinite(np.asarray(anetorch.compile(fixed)(**half), np.float64)).all()


def test_every_fixable_rule_is_tested():
    assert {r.id for r in rules().values() if r.fixable} == set(FIXABLE)


@pytest.mark.parametrize("mode", ["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"])
def test_gelu_modes(mode):
    program = build(lambda x: mil.ops.gelu(x=x, mode=mode), x=mil.spec((1, 64, 1, 512), "fp32"))
    fixed = fix(program)
    assert "gelu" not in {op.type for op in fixed.function.body.ops}
    x = np.random.default_rng(4).standard_normal((1, 64, 1, 512)) * 2
    (a,), (b,) = (_core._testing.eval(p, {"x": x}, wide=True).values() for p in (program, fixed))
    np.testing.assert_allclose(b, a, rtol=6 * 2.0**-24, atol=6 * 2.0**-24)


def test_bool_mask_is_decomposed_too():
    program = build(
        lambda q, k, m: mil.ops.scaled_dot_product_attention(query=q, key=k, value=k, attn_mask=m),
        **small(q=((1, 2, 5, 4), "fp16"), k=((1, 2, 6, 4), "fp16"), m=((1, 1, 5, 6), "bool")))
    fixed = fix(program)
    rng = np.random.default_rng(5)
    mask = rng.random((1, 1, 5, 6)) > 0.4
    mask[..., 0] = True
    inputs = {"q": rng.standard_normal((1, 2, 5, 4)), "k": rng.standard_normal((1, 2, 6, 4)),
              "m": mask}
    (a,), (b,) = (_core._testing.eval(p, inputs, wide=True).values() for p in (program, fixed))
    np.testing.assert_allclose(b, a, rtol=1e-12)


def test_positions_and_reports():
    text = ("program(1.3)\n{\n    func main<ios18>(tensor<fp16, [1, 64, 1, 512]> x) {\n"
            "        tensor<fp16, [1, 64, 1, 512]> y = tile(x = x, reps = "
            "tensor<int32, [4]>([1, 1, 1, 1]));\n    } -> (y);\n}\n")
    found = lint(text)
    tile = next(f for f in found if f.rule.name == "tile")
    assert (tile.line, tile.function) == (4, "main")
    assert f"a.mil:4:{tile.column}: warning: ANE25 tile: tile 'y':" in report(found, "text", "a.mil")
    assert {f["rule"]["id"] for f in json.loads(report(found, "json"))} == {
        f.rule.id for f in found}
    sarif = json.loads(report(found, "sarif", "a.mil"))
    result = next(r for r in sarif["runs"][0]["results"] if r["ruleId"] == "ANE25")
    assert result["locations"][0]["physicalLocation"]["region"]["startLine"] == 4
    assert result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == "main: tile 'y'"
    with pytest.raises(ValueError, match="unknown form"):
        report(found, "xml")


def test_a_report_without_lines_names_the_function():
    def y(x):
        return {"y": mil.ops.gelu(x=x)}

    program = mil.build(y, {"x": mil.spec((1, 64, 1, 512), "fp16")}, name="one")
    assert ": error: ANE12 gelu: gelu 'y'" in report(lint(program), "text", "m")
    both = mil.build(y, {"x": mil.spec((1, 64, 1, 512), "fp16")}, name="two", program=program)
    text = report(lint(both), "text", "m")
    for name in ("one", "two"):
        assert f"m: {name}: error: ANE12 gelu: gelu 'y'" in text


def test_bad_arguments():
    program = CASES["ANE12"]()
    with pytest.raises(ValueError, match="unknown target 'm9'"):
        lint(program, target="m9")
    with pytest.raises(ValueError, match="unknown route"):
        lint(program, route="gpu")
    with pytest.raises(ValueError, match="no rule 'gelo'"):
        lint(program, ignore=["gelo"])


def test_weights_need_not_be_there():
    text = """program(1.3)
{
    func main<ios18>(tensor<fp16, [1, 64, 1, 512]> x) {
        tensor<fp16, [1, 64, 1, 512]> w = const()[name = string("w"), val = tensor<fp16, [1, 64, 1, 512]>(BLOBFILE(path = string("@model_path/weights/w.bin"), offset = uint64(128)))];
        tensor<fp16, [1, 64, 1, 512]> v = const()[name = string("v"), val = tensor<fp16, [1, 64, 1, 512]>(BLOBFILE(path = string("@model_path/weights/w.bin"), offset = uint64(70)))];
        tensor<fp16, [1, 64, 1, 512]> s = add(x = x, y = w)[name = string("s")];
        tensor<fp16, [1, 64, 1, 512]> y = add(x = s, y = v)[name = string("y")];
    } -> (y);
}"""
    assert {"ANE09", "ANE10"} <= ids(text)


def test_the_package_offers_it():
    assert anetorch.lint(CASES["ANE12"](), target="m4")
    assert anetorch.lint.rules() == rules() and anetorch.lint.fix is fix
