"""Lint for the engine: what is likely to go wrong with a legal program on the ANE.

Nothing of it is documented by Apple. Every rule names who saw it and on what chip; a finding
warns with that reference and never refuses. Rules live in one table (``csrc/lint/rules.def``,
printed by :func:`rules`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from anetorch import _core
from anetorch.mil import Op, Program, Value, const, ops

__all__ = ["Finding", "Rule", "fix", "lint", "report", "rules"]

_SARIF_LEVEL = {"info": "note", "warning": "warning", "error": "error"}


@dataclass(frozen=True)
class Rule:
    """One row of the table. ``chips`` lists the generations it speaks of."""

    id: str
    name: str
    severity: str
    chips: tuple[str, ...]
    inmemory: bool
    coreml: bool
    message: str
    evidence: str
    rewrite: str
    numerics: str       # of a rule about values: "modelled" in numerics="ane", or "not modelled"
    fixable: bool


@dataclass(frozen=True)
class Finding:
    """One case: the rule, where (function, what, line and column of the text; 0 for a program
    that was built), and the numbers of this case."""

    rule: Rule
    severity: str
    function: str
    what: str
    detail: str
    line: int
    column: int
    op: int

    def __str__(self) -> str:
        place = f"{self.line}:{self.column}: " if self.line else ""
        detail = f" ({self.detail})" if self.detail else ""
        fixable = " [fixable]" if self.rule.fixable else ""
        numerics = f' [{self.rule.numerics} by numerics="ane"]' if self.rule.numerics else ""
        return (
            f"{place}{self.severity}: {self.rule.id} {self.rule.name}: {self.what}: "
            f"{self.rule.message}{detail}{numerics}{fixable}"
        )


def rules() -> dict[str, Rule]:
    """Every rule by id, with message, evidence and rewrite.

    >>> rules()["ANE12"].name
    'gelu'
    """
    return {r["id"]: Rule(**{**r, "chips": tuple(r["chips"])}) for r in _core.lint_rules()}


def lint(
    program: _core.Program | str,
    target: str | None = None,
    route: str = "inmemory",
    ignore: Iterable[str] = (),
    fix: bool = False,
) -> list[Finding] | Program:
    """Findings for a program, worst first within each function; or the corrected program.

    ``target`` is a chip, ``"m1"`` to ``"m5"`` or ``"a14"`` to ``"a19"``; None speaks of all.
    ``route`` is ``"inmemory"`` (the private in-memory compiler) or ``"coreml"``. ``ignore``
    holds rule ids or names. With ``fix=True`` the result is the program of :func:`fix`.

    Raises ValueError for an unknown target, route or rule; MILError for a malformed text.

    >>> text = '''program(1.3) { func main<ios18>(tensor<fp16, [1, 64, 1, 512]> x) {
    ...   tensor<fp16, [1, 64, 1, 512]> y = gelu(x = x, mode = string("EXACT")); } -> (y); }'''
    >>> [f.rule.id for f in lint(text, target="m4") if f.severity == "error"]
    ['ANE13', 'ANE12']
    """
    if isinstance(program, str):
        program = Program.parse(program, allow_missing=True)
    table = rules()
    dropped = set()
    for name in ignore:
        ids = {r.id for r in table.values() if name in (r.id, r.name)}
        if not ids:
            raise ValueError(f"[lint] no rule '{name}'; see anetorch.lint.rules()")
        dropped |= ids
    if fix:
        return _fix(program, target, route, dropped)
    order = {"error": 0, "warning": 1, "info": 2}
    found = [
        Finding(**{**f, "rule": table[f["rule"]]})
        for f in _core.lint(program, target, route)
        if f["rule"] not in dropped
    ]
    return sorted(found, key=lambda f: order[f.severity])


# ------------------------------------------------------------------ rewrites


def _substitute(op: Op, new: Value) -> None:
    """``new`` takes the place and the name of op's only result."""
    (old,) = op.results
    name = old.name
    old.replace(new)
    op.remove()
    new.name = name


def _gelu(op: Op) -> Value:
    x, mode = op.args["x"], op.const("mode")
    if mode == "TANH_APPROXIMATION":
        inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
        return x * 0.5 * (ops.tanh(x=inner) + 1.0)
    if mode == "SIGMOID_APPROXIMATION":
        return x * ops.sigmoid(x=x * 1.702)
    return x * 0.5 * (ops.erf(x=x * math.sqrt(0.5)) + 1.0)


def _conv_bias(op: Op) -> Value:
    args = {k: v for k, v in op.args.items() if k != "bias"}
    y = ops.conv(**args)
    bias = op.const("bias")
    if bias is None:
        shaped = ops.reshape(x=op.args["bias"], shape=[1, -1] + [1] * (y.rank - 2))
    else:
        shaped = const(np.reshape(bias, (1, -1) + (1,) * (y.rank - 2)), dtype=y.dtype)
    return y + shaped


def _epsilon(op: Op) -> Value:
    default = {"rsqrt": 1e-12, "log": 1e-45, "inverse": 1e-4}[op.type]
    # From ios17 on epsilon may be wider than x: in fp16 these defaults would become 0.
    wide = op.info["opset"] >= 17
    epsilon = const(default, dtype="fp32" if wide else op.args["x"].dtype)
    return getattr(ops, op.type)(x=op.args["x"], epsilon=epsilon)


def _attention(op: Op) -> Value:
    q, k, v, mask = (op.args[n] for n in ("query", "key", "value", "attn_mask"))
    scores = ops.matmul(x=q, y=k, transpose_x=False, transpose_y=True)
    scores = scores * (1.0 / math.sqrt(q.shape[-1]))
    if mask.dtype == "bool":
        mask = ops.select(cond=mask, a=const(0.0, dtype=q.dtype), b=const(-math.inf, dtype=q.dtype))
    return ops.matmul(x=ops.softmax(x=scores + mask, axis=-1), y=v, transpose_x=False,
                      transpose_y=False)


def _tile(op: Op) -> Value | None:
    x, reps = op.args["x"], op.const("reps")
    if reps is None:
        return None
    for axis, n in enumerate(np.atleast_1d(reps)):
        if n > 1:
            x = ops.concat(values=[x] * int(n), axis=axis, interleave=False)
    return ops.identity(x=x) if x == op.args["x"] else x


def _layer_norm(op: Op) -> Value | None:
    x, axes = op.args["x"], op.const("axes")
    axes = list(range(x.rank)) if axes is None else sorted(int(a) % x.rank for a in axes)
    if any(x.shape[a] is None for a in axes):
        return None
    centred = x - ops.reduce_mean(x=x, axes=axes, keep_dims=True)
    variance = ops.reduce_mean(x=centred * centred, axes=axes, keep_dims=True)
    epsilon = op.const("epsilon")
    y = centred * ops.rsqrt(x=variance, epsilon=1e-5 if epsilon is None else float(epsilon))
    shape = [x.shape[a] if a in axes else 1 for a in range(x.rank)]
    for name, apply in (("gamma", ops.mul), ("beta", ops.add)):
        if name in op.args:
            y = apply(x=y, y=ops.reshape(x=op.args[name], shape=shape))
    return y


_REWRITES: dict[str, Callable[[Op], Value | None]] = {
    "ANE07": _attention, "ANE12": _gelu, "ANE14": _conv_bias, "ANE21": _epsilon, "ANE25": _tile,
    "ANE27": _layer_norm,
}


def _name_constants(program: Program, op: Op) -> None:
    for value in op.args.values():
        for v in value if isinstance(value, tuple) else (value,):
            maker = v.op
            if maker is None or not maker.info["inlined"]:
                continue
            with program.block(op.block, before=op):
                named = const(v.const, dtype=v.dtype)
            v.replace(named)
            maker.remove()


def _build_info(program: Program) -> None:
    info = dict(program.attrs().get("buildInfo", {}))
    info.setdefault("coremlc-component-MIL", "3510.2.1")
    info["coremlc-version"] = "3505.4.1"
    program.set_attr("buildInfo", info)


# Lengths that unknown dimensions are given, in turn, until a program can be run with one.
_LENGTHS = (4, 8, 16, 2, 1)


def _made_up(values: Sequence[Value], length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = {}
    for v in values:
        kind, *rest = v.type
        if kind == "state":
            kind, *rest = rest[0]
        if kind != "tensor":
            raise ValueError(f"input '{v.name}' is a {kind}")
        dtype, shape = rest[0], [length if n is None else n for n in rest[1]]
        a = rng.uniform(0.5, 1.5, shape)
        inputs[v.name] = (a > 1) if dtype == "bool" else np.ones(shape) if "int" in dtype else a
    return inputs


def _equal(before: Program, after: Program) -> None:
    """Both programs agree in double arithmetic on the same random inputs; AssertionError
    otherwise. Only constants are rounded there: a rewrite brings up to six, each off by at
    most half a unit of its dtype, so a wrong rewrite cannot hide in it. Raises ValueError for
    a changed program that cannot be run (weights that are absent, say)."""
    if before.text() == after.text():
        return
    half = any(v.dtype == "fp16" for f in after.functions.values() for op in f.body.ops
               for v in op.results if v.type[0] == "tensor")
    bound = 6 * (2.0**-11 if half else 2.0**-24)

    def run(name: str, length: int) -> list[dict[str, Any]]:
        return [_core._testing.eval(p, _made_up(before.functions[name].inputs, length),
                                    function=name, wide=True) for p in (before, after)]

    for name in before.functions:
        failures = []
        for length in _LENGTHS:
            try:
                results = run(name, length)
                break
            except (ValueError, TypeError, KeyError, NotImplementedError, OSError) as e:
                failures.append(str(e))
        else:
            raise ValueError(
                f"[lint] the rewrites of {name} cannot be shown equal, because the program does "
                f"not run: {failures[0]}"
            )
        for key, a in results[0].items():
            b = results[1][key]
            if isinstance(a, (str, dict, list)):
                same = a == b
            else:
                same = np.allclose(a, b, rtol=bound, atol=bound, equal_nan=True)
            if not same:
                raise AssertionError(
                    f"[lint] a rewrite changed '{key}' of {name}; please report this"
                )


def _fix(program: _core.Program, target: str | None, route: str, dropped: set[str]) -> Program:
    # Through the text, so that the result is a Program of ours with fresh handles.
    result = Program.parse(program.text(), allow_missing=True) if not isinstance(
        program, Program) else program.clone()
    for _ in range(4):                  # a rewrite may leave work for another
        changed = False
        for found in _core.lint(result, target, route):
            rule = found["rule"]
            if rule in dropped or rule not in _REWRITES or not found["op"]:
                continue
            op = Op(result, found["op"])
            with result.block(op.block, before=op):
                new = _REWRITES[rule](op)
            if new is not None:
                _substitute(op, new)
                changed = True
        if not changed:
            break
    wanted = {f["rule"] for f in _core.lint(result, target, route)} - dropped
    if "ANE13" in wanted:
        for found in _core.lint(result, target, route):
            if found["rule"] == "ANE13":
                _name_constants(result, Op(result, found["op"]))
    if "ANE29" in wanted:
        _build_info(result)
    result.verify()
    _equal(program, result)
    return result


def fix(
    program: _core.Program | str, target: str | None = None, route: str = "inmemory",
    ignore: Iterable[str] = (),
) -> Program:
    """A copy of the program with every mechanical rewrite applied (rules marked fixable), shown
    equal to the original in double arithmetic on the CPU device.

    >>> text = '''program(1.3) { func main<ios18>(tensor<fp16, [1, 64, 1, 512]> x) {
    ...   tensor<fp16, [1, 64, 1, 512]> y = gelu(x = x, mode = string("EXACT")); } -> (y); }'''
    >>> sorted({op.type for op in fix(text).function.body.ops} - {"const"})
    ['add', 'erf', 'mul']
    """
    result = lint(program, target, route, ignore, fix=True)
    assert isinstance(result, Program)
    return result


# ------------------------------------------------------------------ reports


def _why(findings: Sequence[Finding]) -> Iterable[str]:
    """For each rule that was met: the chips it speaks of, the evidence, the rewrite."""
    for r in {f.rule.id: f.rule for f in findings}.values():
        chips = "every chip" if len(r.chips) == 5 else ", ".join(r.chips)
        yield f"  {r.id} {r.name} ({chips}): {r.evidence}"
        if r.rewrite:
            yield f"    instead: {r.rewrite}"


def report(
    findings: Sequence[Finding], form: str = "text", filename: str = "<mil>", why: bool = True
) -> str:
    """The findings as ``"text"`` (a line each, then why and what to write instead for every rule
    among them), ``"json"`` or ``"sarif"`` (2.1.0, which code hosts show beside the lines).

    >>> print(report(lint("program(1.3) { }")))                         # doctest: +SKIP
    """
    if form == "text":
        # A line of the text says which function it is; without lines the function has to.
        several = len({f.function for f in findings}) > 1
        lines = [f"{filename}:{f}" if f.line else
                 f"{filename}: {f.function + ': ' if several else ''}{f}" for f in findings]
        if why:
            lines += _why(findings)
        counts = [
            f"{n} {what}{'s' * (n != 1)}" for what in ("error", "warning", "info")
            if (n := sum(f.severity == what for f in findings))
        ]
        return "\n".join([*lines, ", ".join(counts) or "nothing found"])
    if form == "json":
        return json.dumps([asdict(f) for f in findings], indent=2)
    if form != "sarif":
        raise ValueError(f"[lint] unknown form '{form}'; expected text, json or sarif")
    used = {f.rule.id: f.rule for f in findings}
    return json.dumps({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "anetorch lint", "version": _core.version(),
                "rules": [{
                    "id": r.id, "name": r.name, "shortDescription": {"text": r.message},
                    "fullDescription": {"text": f"{r.message}. Evidence: {r.evidence}."},
                    "help": {"text": r.rewrite or "no rewrite is known"},
                } for r in used.values()],
            }},
            "results": [{
                "ruleId": f.rule.id, "level": _SARIF_LEVEL[f.severity],
                "message": {"text": str(f)},
                "locations": [{"physicalLocation": {
                    "artifactLocation": {"uri": filename},
                    "region": {"startLine": max(1, f.line), "startColumn": max(1, f.column)},
                }, "logicalLocations": [{
                    "name": f.what, "fullyQualifiedName": f"{f.function}: {f.what}"}]}],
            } for f in findings],
        }],
    }, indent=2)


# The package offers the function under the module's own name: what else it has comes along.
lint.rules, lint.fix, lint.report = rules, fix, report      # type: ignore[attr-defined]
