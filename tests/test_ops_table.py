"""The op table itself: rows are well formed, what is generated from them is current, and they
say what coremltools' definitions say."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import anetorch.mil as mil
import opcase
from anetorch import _core

ROOT = Path(__file__).resolve().parent.parent
ROWS = _core._testing.op_rows()
BY_NAME: dict[str, list[dict]] = {}
for _row in ROWS:
    BY_NAME.setdefault(_row["name"], []).append(_row)


def test_rows_are_well_formed():
    assert len(ROWS) >= 228 and len(BY_NAME) >= 150
    for name, rows in BY_NAME.items():
        opsets = [r["opset"] for r in rows]
        assert opsets == sorted(set(opsets)) and set(opsets) <= {15, 16, 17, 18}, name
        for r in rows:
            names = [p["name"] for p in r["params"]]
            assert len(set(names)) == len(names), name
            assert r["doc"].endswith("."), name
            for p in r["params"]:
                assert re.fullmatch(r"[a-z][a-z0-9_]*", p["name"]), name
                assert p["kind"] or p["dtypes"], (name, p["name"])
                assert p["default"] is None or p["optional"]
                assert not p["attribute"] or name.startswith("constexpr_")
                assert not (p["tuple"] and p["vector"])
            variables = {p["var"]: p["dtypes"] for p in r["params"] if p["var"] >= 0}
            assert all(p["dtypes"] == variables[p["var"]] for p in r["params"] if p["var"] >= 0), name


def test_what_has_no_evaluation_is_known():
    assert {r["name"] for r in ROWS if not r["evaluates"]} == \
        {"const", "cond", "while_loop", "conv_quantized"}


def test_a_newer_row_differs_from_the_older_one():
    for name, rows in BY_NAME.items():
        for old, new in zip(rows, rows[1:]):
            old, new = ({k: v for k, v in r.items() if k != "opset"} for r in (old, new))
            assert old != new or name in (
                "affine",), f"{name}: the second row says nothing new"


def test_every_op_has_a_python_function():
    for name, rows in BY_NAME.items():
        if name == "const":
            continue
        fn = getattr(mil.ops, name)
        taken = inspect.signature(fn).parameters
        for r in rows:
            for p in r["params"]:
                assert p["name"] in taken, (name, p["name"])
        assert rows[-1]["doc"] in inspect.getdoc(fn)
        for p in rows[-1]["params"]:
            required = not p["optional"] and all(
                any(q["name"] == p["name"] for q in r["params"]) for r in rows)
            assert (taken[p["name"]].default is inspect.Parameter.empty) == required, (name, p["name"])


def test_the_stub_has_the_same_functions():
    stub = Path(mil.ops.__file__).with_suffix(".pyi")
    names = {n.name for n in ast.parse(stub.read_text()).body if isinstance(n, ast.FunctionDef)}
    assert names == set(mil.ops.__all__)


def test_the_document_is_current():
    source = ROOT / "csrc/ir/gen_ops.py"
    if not source.exists():
        pytest.skip("needs the source tree")
    spec = importlib.util.spec_from_file_location("gen_ops", source)
    gen = importlib.util.module_from_spec(spec)
    import sys
    sys.modules["gen_ops"] = gen
    spec.loader.exec_module(gen)
    ops = [o for o in gen.parse((ROOT / "csrc/ir/ops.def").read_text()) if o.name not in gen.SKIP]
    assert (ROOT / "docs/ops.md").read_text() == gen.markdown(ops), \
        "run: python csrc/ir/gen_ops.py csrc/ir/ops.def anetorch/mil --markdown docs/ops.md"
    # Both readers of ops.def agree.
    mine = {(r["name"], r["opset"]): r for r in ROWS}
    for op in ops:
        for row in op.rows:
            params = mine[op.name, row.opset]["params"]
            assert [(p.name, p.const, p.vector, p.tuple_, p.attribute, p.default) for p in row.params] == \
                [(p["name"], p["const"], p["vector"], p["tuple"], p["attribute"], p["default"]) for p in params]


def test_the_newest_row_not_newer_than_the_function_applies():
    x = np.zeros((2, 3), "i1")
    with pytest.raises(TypeError, match="reshape.*x expects fp16, fp32, bool, int32.*int8"):
        opcase.run("reshape", {"x": x}, "ios16", shape=[6])
    assert opcase.run("reshape", {"x": x}, "ios17", shape=[6]).dtype == np.int8
    assert opcase.run("reshape", {"x": x}, "ios18", shape=[6]).dtype == np.int8
    with pytest.raises(ValueError, match="fill_like.*needs ios16, but function main has opset ios15"):
        opcase.run("fill_like", {"ref_tensor": np.zeros(3, "f4")}, "ios15")
    with pytest.raises(ValueError, match="topk.*parameter sort needs ios16"):
        opcase.run("topk", {"x": np.zeros(3, "f4")}, "ios15", sort=True)


# Where the table is meant to differ from coremltools: it takes more.
LENIENT = {
    ("make_list", "elem_shape", "const"),           # ours says that the items are constants
    ("topk", "k", "const"), ("random_uniform", "low", "const"), ("random_uniform", "high", "const"),
    ("random_normal", "mean", "const"), ("random_normal", "stddev", "const"),
    ("random_bernoulli", "prob", "const"),
    ("pixel_unshuffle", "downscale_factor", "types"), ("resize", "resized_dims", "types"),
    *((f"upsample_{mode}", f"scale_factor_{side}", "types")     # fp16 as well
      for mode in ("bilinear", "nearest_neighbor") for side in ("height", "width")),
    *((op, key, "types")                            # small integers as well
      for op in ("scatter", "scatter_along_axis", "scatter_nd") for key in ("data", "updates")),
    ("shape", "x", "types"),
}


@pytest.mark.oracle
def test_the_rows_are_those_of_coremltools():
    """Op by op and opset by opset: parameters, constness, optionality, dtype sets."""
    ct = pytest.importorskip("coremltools", reason="compares with coremltools' definitions")
    from coremltools.converters.mil.mil import types
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    opset = {ct.target.iOS13: 15, ct.target.iOS14: 15, ct.target.iOS15: 15, ct.target.iOS16: 16,
             ct.target.iOS17: 17, ct.target.iOS18: 18}
    wrong, seen = [], 0
    for name, versions in SSAOpRegistry.core_ops.items():
        if name.startswith("_") or name in ("const", "conv_quantized"):
            continue
        for version, cls in versions.items():
            if version not in opset:
                continue
            rows = [r for r in BY_NAME.get(name, []) if r["opset"] <= opset[version]]
            if not rows:
                wrong.append((name, version, "missing"))
                continue
            seen += 1
            ours = {p["name"]: p for p in rows[-1]["params"]}
            theirs = {k: t for k, t in cls.input_spec.input_types.items() if not k.startswith("_")}
            if set(ours) != set(theirs):
                wrong.append((name, version, set(ours) ^ set(theirs)))
                continue
            for key, t in theirs.items():
                found = {}
                if bool(getattr(t, "const", False)) != ours[key]["const"]:
                    found["const"] = ours[key]["const"]
                if bool(t.optional) != ours[key]["optional"]:
                    found["optional"] = ours[key]["optional"]
                # A named domain is looked up by us: coremltools fills type_domain only when
                # the first op of the class is made.
                domain = cls.type_domains.get(getattr(t, "type_domain_id", None)) \
                    or getattr(t, "type_domain", None)
                if domain:
                    domain = domain if isinstance(domain, (tuple, list)) else (domain,)
                    names = {{"str": "string"}.get(n, n) for n in map(types.builtin_to_string, domain)}
                    if names != set(ours[key]["dtypes"]):
                        found["types"] = ours[key]["dtypes"]
                    if not names <= set(ours[key]["dtypes"]):
                        found["refused"] = names - set(ours[key]["dtypes"])
                wrong += [(name, version, key, k, v) for k, v in found.items()
                          if (name, key, k) not in LENIENT]
    assert seen > 500
    assert not wrong, "\n".join(map(repr, wrong))
