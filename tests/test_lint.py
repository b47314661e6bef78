"""Lint: each rule fires on a program made for it and not on its rewrite; fixes keep meaning."""

import json

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
CHIP_ONLY = {"ANE20": "m3", "ANE30": "m1", "ANE35": "m2"}


@pytest.mark.parametrize("rule", CASES)
def test_rule_fires_where_it_should(rule):
    program = CASES[rule]()
    assert rule in ids(program)
    if rule in CHIP_ONLY:
        assert rule in ids(program, target=CHIP_ONLY[rule])
        assert rule not in ids(program, target="m5")
    assert rule not in ids(program, ignore=[rule])
    assert rule not in ids(program, ignore=[rules()[rule].name])


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
    with pytest.raises(ValueError, match="unknown form"):
        report(found, "xml")


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
