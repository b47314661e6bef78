"""MIL text: what is accepted, what it means, and that printing gives it back."""

from __future__ import annotations

import random
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from anetorch import MILError, _core
from anetorch.mil import Program

HERE = Path(__file__).parent
TEXTS = sorted([*(HERE / "corpus").glob("*.mil"), *(HERE / "fuzz/seeds/mil").glob("*.mil")])


def parse(text: str, **kw) -> Program:
    return Program.parse(text, **kw)


def body(statements: str, params: str = "", outputs: str = "", opset: str = "ios18",
         version: str = "1.3") -> str:
    """A program around some statements; they start on line 2."""
    return f"program({version}) {{ func main<{opset}>({params}) {{\n{statements}\n}} -> ({outputs}); }}"


def value_of(literal: str, type: str):
    """What a constant of this type written with this literal holds."""
    p = parse(body(f"{type} c = const()[val = {type}({literal})];"))
    return p.value("c").const


# ------------------------------------------------------------------ whole texts


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.stem)
@pytest.mark.parametrize("spelling", [None, "1.0", "1.3"])
def test_a_text_survives_printing(path: Path, spelling: str | None) -> None:
    p = parse(path.read_bytes(), allow_missing=True)
    p.verify()
    text = p.text(spelling)
    again = parse(text, allow_missing=True)
    assert again == p
    assert again.text(spelling) == text
    assert p.clone() == p
    assert p.clone().text(spelling) == text


def test_there_are_texts() -> None:
    assert len(TEXTS) >= 10


REFERENCE = """program(1.3)
[buildInfo = dict<string, string>({{"coremlc-component-MIL", "3510.2.1"}, {"coremlc-version", "3505.4.1"}})]
{
    func main<ios18>(tensor<fp16, [1, 8, 1, 32]> a) {
        tensor<int32, [4]> begin0 = const()[name = string("begin0"), val = tensor<int32, [4]>([0, 0, 0, 0])];
        tensor<int32, [4]> half = const()[name = string("half"), val = tensor<int32, [4]>([1, 4, 1, 32])];
        tensor<fp16, [1, 4, 1, 32]> lo = slice_by_size(x = a, begin = begin0, size = half)[name = string("lo")];
        int32 ax = const()[name = string("ax"), val = int32(1)];
        tensor<fp16, [1, 4, 1, 32]> p, tensor<fp16, [1, 4, 1, 32]> q = split(x = a, num_splits = int32(2), axis = ax)[name = string("pq")];
        bool no = const()[name = string("no"), val = bool(false)];
        tensor<fp16, [1, 12, 1, 32]> y = concat(values = (lo, p, q), axis = ax, interleave = no)[name = string("y")];
    } -> (y);
}
"""


def test_a_canonical_text_prints_as_it_is() -> None:
    assert parse(REFERENCE).text() == REFERENCE


def test_layout_has_no_meaning() -> None:
    p = parse(REFERENCE)
    squeezed = " ".join(REFERENCE.split()).replace(" = ", "=").replace(", ", ",")
    assert parse(squeezed) == p
    assert parse(REFERENCE.replace(";", "  ;").replace(" ", " // c\n\t\r\n ")) == p
    assert parse("// first\n\n//\n" + REFERENCE.rstrip()) == p
    assert parse(b"\xef\xbb\xbf" + REFERENCE.encode()) == p


def test_what_is_in_a_program() -> None:
    f = parse(REFERENCE).functions["main"]
    assert (f.name, f.opset) == ("main", "ios18")
    assert [(v.name, v.dtype, v.shape) for v in f.inputs] == [("a", "fp16", (1, 8, 1, 32))]
    assert [op.type for op in f.body] == ["const", "const", "slice_by_size", "const", "split",
                                          "const", "concat"]
    concat = f.body.ops[-1]
    assert [v.name for v in concat.args["values"]] == ["lo", "p", "q"]
    assert concat.const("axis") == 1 and concat.const("interleave") is False
    assert concat.name == "y" and concat.line == 11
    split = f.body.ops[4]
    assert [v.name for v in split.results] == ["p", "q"] and split.name == "pq"
    assert split.const("num_splits") == 2
    assert f.outputs == [concat.results[0]]
    assert f.body.ops[0].results[0].uses == [f.body.ops[2]]
    assert f.program.attrs() == {"buildInfo": {"coremlc-component-MIL": "3510.2.1",
                                               "coremlc-version": "3505.4.1"}}


def test_spellings_mix() -> None:
    new = body('fp16 c = const()[name = string("n"), val = fp16(0x1p-3)];', outputs="c")
    for old in (new.replace("fp16 c", "tensor<fp16, []> c"),
                new.replace("fp16(0x", "tensor<fp16, []>(0x"),
                new.replace('string("n")', 'tensor<string, []>("n")'),
                new.replace("1.3", "1.0"), new.replace("1.3", "1.2")):
        assert parse(old) == parse(new)


def test_version_is_text() -> None:
    p = parse("program(1.10) { }")
    assert p.version == "1.10" and p.warnings()
    assert not parse("program(1.1) { }").warnings()


def test_several_functions_share_no_names() -> None:
    f = body("int32 a = const()[val = int32(1)];", outputs="a")
    two = f[:-1] + f[f.index("func"):-1].replace("main", "other").replace("ios18", "ios15") + "}"
    p = parse(two)
    assert [f[:2] for f in p.functions()] == [("main", "ios18"), ("other", "ios15")]
    assert parse(p.text()) == p


@pytest.mark.parametrize(("tag", "ok"), [("ios15", True), ("ios16", True), ("ios26", True),
                                         ("ios14", False), ("ios", False), ("ane", False),
                                         ("ios18x", False), ("ios99999999999", False)])
def test_opset_tags(tag: str, ok: bool) -> None:
    text = body("", opset=tag)
    if not ok:
        with pytest.raises(MILError, match="opset"):
            parse(text)
    else:
        assert f"main<{tag}>" in parse(text).text()


def test_flexible_shapes_are_kept() -> None:
    t = ("tuple<tuple<tensor<string, []>, dict<tensor<string, []>, tensor<int32, [?]>>>, tuple<tensor<string, []>, "
         "dict<tensor<string, []>, list<tensor<int32, [2]>, ?>>>>")
    text = f"""program(1.0) {{ func main<ios16>(tensor<fp16, [1, ?, 4]> x)
        [FlexibleShapeInformation = {t}((("DefaultShapes", {{{{"x", [1, 5, 4]}}}}),
         ("RangeDims", {{{{"x", [[1, 1], [1, 9], [4, 4]]}}}})))] {{ }} -> (x); }}"""
    p = parse(text)
    f = p.functions["main"]
    assert f.inputs[0].shape == (1, None, 4)
    default, ranges = f.attrs["FlexibleShapeInformation"]
    assert default[0] == "DefaultShapes" and default[1]["x"].tolist() == [1, 5, 4]
    assert ranges[0] == "RangeDims" and [r.tolist() for r in ranges[1]["x"]] == [[1, 1], [1, 9], [4, 4]]
    for spelling in ("1.0", "1.3"):
        assert parse(p.text(spelling)) == p


def test_open_dimensions_are_symbols() -> None:
    """x + x keeps the dimension's identity; x + y of two open dimensions does not."""
    text = body("tensor<fp16, [?]> a = add(x = x, y = x);\ntensor<fp16, [3]> b = add(x = x, y = z);",
                "tensor<fp16, [?]> x, tensor<fp16, [3]> z", "a, b")
    assert parse(text).value("b").shape == (3,)
    bad = body("tensor<fp16, [4]> b = add(x = z, y = z);", "tensor<fp16, [3]> z", "b")
    with pytest.raises(MILError, match="declared"):
        parse(bad)


def test_states() -> None:
    text = body("tensor<fp16, [2, 3]> now = read_state(input = s);\nwrite_state(input = s, data = x)[name = string(\"w\")];",
                "state<tensor<fp16, [2, 3]>> s, tensor<fp16, [2, 3]> x", "now")
    p = parse(text)
    assert p.inputs[0].type == ("state", ("tensor", "fp16", (2, 3))) and p.inputs[0].shape == (2, 3)
    assert p.function.body.ops[1].results == []
    for spelling in ("1.0", "1.3"):
        assert parse(p.text(spelling)) == p
    with pytest.raises(MILError, match="ios18"):
        parse(text.replace("ios18", "ios17"))


# ------------------------------------------------------------------ arguments


def test_argument_forms() -> None:
    named = body("int32 ax = const()[val = int32(0)];\n"
                 "tensor<fp16, [2]> y = concat(values = (x), axis = ax, interleave = bool(false));",
                 "tensor<fp16, [2]> x", "y")
    op = parse(named).functions["main"].body.ops[-1]
    assert isinstance(op.args["values"], tuple) and len(op.args["values"]) == 1
    with pytest.raises(MILError, match="tuple"):
        parse(named.replace("(x)", "x"))
    with pytest.raises(MILError, match="takes one value, got a tuple"):
        parse(named.replace("= ax,", "= (ax),"))


def test_a_bare_literal_is_read_with_a_warning() -> None:
    p = parse(body("tensor<fp16, [2]> y = mul(x = x, y = 2);\ntensor<fp16, [2]> z = mul(x = 0.5, y = x);\n"
                   "tensor<fp16, [2, 2]> m = matmul(x = w, y = w, transpose_y = true);",
                   "tensor<fp16, [2]> x, tensor<fp16, [2, 2]> w", "y, z"))
    y, z, m = p.functions["main"].body.ops
    assert y.args["y"].dtype == "fp16" and y.const("y") == 2.0
    assert z.args["x"].dtype == "fp16" and z.const("x") == 0.5
    assert m.const("transpose_y") is True
    assert [w[0] for w in p.warnings()] == [2, 3, 4]


def test_a_flat_list_is_read_with_a_warning() -> None:
    p = parse(body("tensor<int32, [2, 2]> c = const()[val = tensor<int32, [2, 2]>([1, 2, 3, 4])];"))
    assert p.value("c").const.tolist() == [[1, 2], [3, 4]]
    assert len(p.warnings()) == 1
    assert "[[1, 2], [3, 4]]" in p.text()


def test_warnings_say_where() -> None:
    p = parse(body('int32 a = const()[name = string("n"), val = int32(1)];\n'
                   'int32 b = const()[name = string("n"), val = int32(1)];'))
    (line, column, message), = p.warnings()
    assert (line, column) == (3, 11) and '"n"' in message


# ------------------------------------------------------------------ literals

FORMATS = {"fp16": (10, -14, 15), "fp32": (23, -126, 127), "fp64": (52, -1022, 1023),
           "bf16": (7, -126, 127)}
UINT = {"fp16": "<H", "fp32": "<I", "fp64": "<Q", "bf16": "<H"}


def rounded(exact: Fraction, dtype: str) -> Fraction | float:
    """Round to nearest even from the exact value: the oracle, in rational arithmetic."""
    mantissa, e_min, e_max = FORMATS[dtype]
    if exact == 0:
        return Fraction(0)
    sign, x = (-1, -exact) if exact < 0 else (1, exact)
    e = x.numerator.bit_length() - x.denominator.bit_length()
    if Fraction(2) ** e > x:
        e -= 1
    ulp = Fraction(2) ** (max(e, e_min) - mantissa)
    q, rest = divmod(x, ulp)
    q += rest > ulp / 2 or (rest == ulp / 2 and q % 2 == 1)
    x = q * ulp
    return sign * (float("inf") if x >= Fraction(2) ** (e_max + 1) else x)


def read(literals: list[str], dtype: str) -> np.ndarray:
    n = len(literals)
    p = parse(body(f"tensor<{dtype}, [{n}]> c = const()[val = tensor<{dtype}, [{n}]>([{', '.join(literals)}])];"))
    back = parse(p.text())
    assert back == p
    return p.value("c").const


def literal_value(text: str) -> Fraction:
    sign = -1 if text.startswith("-") else 1
    text = text.lstrip("+-")
    if text.startswith("0x"):
        digits, exponent = text[2:].split("p")
        whole, _, frac = digits.partition(".")
        return sign * Fraction(int(whole + frac, 16)) * Fraction(2) ** (int(exponent) - 4 * len(frac))
    return sign * Fraction(text)


def awkward_decimals(dtype: str, rng: random.Random) -> list[str]:
    """Halfway points of the format, and their neighbours far behind the decimal point."""
    mantissa, e_min, e_max = FORMATS[dtype]
    out = []
    for _ in range(60):
        e = rng.randint(max(e_min - mantissa - 2, -300), min(e_max, 300))
        m = rng.getrandbits(mantissa + 1) * 2 + 1
        exact = Fraction(m) * Fraction(2) ** (e - mantissa - 1)
        places = exact.denominator.bit_length() - 1
        digits = str(exact.numerator * 5**places).rjust(places + 1, "0")
        text = f"{digits[:len(digits) - places]}.{digits[len(digits) - places:]}"
        out += [text, text + "0" * 40 + "1", "-" + text[:-1] + "4" + "9" * 30]
    return out


@pytest.mark.parametrize("dtype", ["fp16", "fp32", "fp64"])
def test_decimals_round_once(dtype: str) -> None:
    rng = random.Random(1)
    texts = awkward_decimals(dtype, rng)
    texts += [f"{rng.choice(['', '-', '+'])}{rng.randint(0, 10**rng.randint(1, 25))}e{rng.randint(-60, 30)}"
              for _ in range(300)]
    texts += ["0", "-0", "0.0", "1.", "65504", "65519.999", "65520", "65519.99999999999999999999999",
              "1e-45", "5.96e-8", "2.98023223876953125e-8", "2.980232238769531250001e-8", "1e400",
              "1e-400", "1e999999999999", "-1e-999999999999", "0e999999999999",
              "3.4028235677973366e38", "3.4028235677973365e38", "2.2250738585072011e-308",
              "4.9406564584124654e-324", "2.4703282292062327e-324", "2.4703282292062328e-324",
              "1" + "0" * 800 + "e-800", "0." + "0" * 900 + "1e901"]
    got = read(texts, dtype)
    for text, x in zip(texts, got.tolist(), strict=True):
        m = text.partition("e")[2]
        if m and abs(int(m)) > 10**6:
            want = 0 if text.startswith("0") or m.startswith("-") else float("inf")
        else:
            want = rounded(literal_value(text), dtype)
        assert x == want, (text, x, float(want))
        if text.startswith("-"):
            assert np.signbit(x), text


@pytest.mark.parametrize("dtype", ["fp16", "fp32", "fp64"])
def test_hex_floats_round_once(dtype: str) -> None:
    rng = random.Random(2)
    mantissa, e_min, e_max = FORMATS[dtype]
    texts = ["0x0p+0", "-0x0p+0", "0x1p-3", "0x1.8p+0", "0x0.8p1", "0x10p-4", "0xAp0",
             "0x1.f0a3d8p-1", "-0x1.388p+13", "0x1p-1500", "0x1p+1500", "0x0.0000000000000000000001p+88",
             "0x1" + "0" * 40 + "p-160", "0x1." + "0" * 40 + "1p0"]
    for _ in range(400):
        digits = "".join(rng.choice("0123456789abcdef") for _ in range(rng.randint(1, 24)))
        texts.append(f"{rng.choice(['', '-'])}0x{rng.randint(0, 15):x}.{digits}p{rng.randint(e_min - mantissa - 6, e_max + 2):+d}")
    for _ in range(200):                        # exactly halfway, and a hair beside it
        e = rng.randint(e_min - 3, e_max - 1)
        m = (rng.getrandbits(mantissa) | 1 << mantissa) * 2 + 1
        for tail in ("", "0" * 30 + "1"):
            whole = f"{m:x}"
            texts.append(f"0x{whole}.{tail or '0'}p{e - mantissa - 1:+d}")
    for text, x in zip(texts, read(texts, dtype).tolist(), strict=True):
        assert x == rounded(literal_value(text), dtype), (text, x)


@pytest.mark.parametrize("dtype", ["fp16", "fp32", "fp64"])
def test_printed_floats_are_exact(dtype: str) -> None:
    """All fp16 values, many of the others: printing and parsing keeps every bit."""
    kind = {"fp16": np.float16, "fp32": np.float32, "fp64": np.float64}[dtype]
    if dtype == "fp16":
        bits = np.arange(65536, dtype=np.uint16)
    else:
        rng = np.random.default_rng(3)
        width = {"fp32": np.uint32, "fp64": np.uint64}[dtype]
        bits = rng.integers(0, np.iinfo(width).max, 20000, dtype=width, endpoint=True)
        bits[:6] = [0, 1, 2, np.iinfo(width).max >> 1, 1 << (np.iinfo(width).bits - 1), np.iinfo(width).max]
    values = bits.view(kind)
    p = Program()
    block, _ = p.add_function("main", "ios18", [])
    p.add_const(block, values, name="c")
    back = parse(p.text()).value("c").const
    nan = np.isnan(values)
    assert np.array_equal(np.isnan(back), nan)
    assert np.array_equal(back.view(bits.dtype)[~nan], bits[~nan])
    assert parse(p.text()) == p


def test_specials() -> None:
    x = read(["inf", "-inf", "nan", "+inf", "-nan"], "fp16")
    assert x[0] == np.inf and x[1] == -np.inf and x[3] == np.inf and np.isnan(x[[2, 4]]).all()


def test_bf16_and_fp8() -> None:
    def bits(literal: str, dtype: str) -> str:
        p = parse(body(f"{dtype} c = const()[val = {dtype}({literal})];"))
        return p.text().split("val = ")[1].split("(")[1].split(")")[0]

    assert bits("3.14159", "bf16") == "0x1.92p+1"
    assert bits("1.00390625", "bf16") == "0x1p+0"       # halfway, to even
    assert bits("1.01171875", "bf16") == "0x1.04p+0"
    assert bits("448", "fp8e4m3fn") == "0x1.cp+8"
    assert bits("463.9", "fp8e4m3fn") == "0x1.cp+8"
    assert bits("464", "fp8e4m3fn") == "0x1.cp+8"      # halfway to 480, which is NaN: to even
    assert bits("464.001", "fp8e4m3fn") == "nan"
    assert bits("0x1p-10", "fp8e4m3fn") == "0x0p+0"
    assert bits("0x1.8p-10", "fp8e4m3fn") == "0x1p-9"
    assert bits("57344", "fp8e5m2") == "0x1.cp+15"
    assert bits("61440", "fp8e5m2") == "inf"


@pytest.mark.parametrize(("dtype", "lo", "hi"), [
    *((f"int{b}", -(2 ** (b - 1)), 2 ** (b - 1) - 1) for b in (4, 8, 16, 32, 64)),
    *((f"uint{b}", 0, 2**b - 1) for b in (1, 2, 3, 4, 6, 8, 16, 32, 64)),
])
def test_integers(dtype: str, lo: int, hi: int) -> None:
    assert int(value_of(str(hi), dtype)) == hi
    assert int(value_of(str(lo), dtype)) == lo
    assert int(value_of("+1", dtype)) == 1
    assert int(value_of("0" * 30 + "1", dtype)) == 1
    for bad in (str(hi + 1), str(lo - 1), "1" + "0" * 30, "1.0", "0x1p0", "true", '"1"', "inf"):
        with pytest.raises(MILError):
            value_of(bad, dtype)


@pytest.mark.parametrize("dtype", ["int4", "uint1", "uint2", "uint3", "uint4", "uint6"])
def test_sub_byte_lists(dtype: str) -> None:
    lo, hi = (-8, 7) if dtype == "int4" else (0, 2 ** int(dtype[4:]) - 1)
    rng = random.Random(dtype)
    for n in [1, 2, 3, 5, 8, 9, 17, 64]:
        want = [rng.randint(lo, hi) for _ in range(n)]
        assert value_of(str(want), f"tensor<{dtype}, [{n}]>").tolist() == want


def list_of(tokens: list[str], dtype: str, between: str) -> str:
    tensor = f"tensor<{dtype}, [{len(tokens)}]>"
    return body(f'{tensor} c = const()[name = string("c"), val = {tensor}([{between.join(tokens)}])];{" " * 60}',
                outputs="c")


@pytest.mark.parametrize("dtype", ["fp16", "fp32", "fp64", "bf16", "fp8e4m3fn", "fp8e5m2", "int8", "uint8", "int16",
                                   "uint16", "int32", "uint32", "int64", "uint64", "bool"])
def test_long_lists_read_as_single_tokens_do(dtype: str) -> None:
    """Numbers in a row are read in one go; a comment behind each makes it a token by itself."""
    rng = random.Random(dtype)
    if dtype == "bool":
        tokens = [rng.choice(["true", "false"]) for _ in range(200)]
    elif "int" in dtype:
        bits, low = int(dtype.lstrip("uint")), -1 if dtype[0] == "i" else 0
        lo, hi = low * 2**(bits - 1), 2**(bits + low) - 1
        tokens = [str(v) for v in (lo, hi, 0, *(rng.randint(lo, hi) for _ in range(200)))] + ["+1", "-0", "007"]
    else:
        tokens = ["0", "-0", "1.", "+2.5", "0x1p0", "0X1.8P+3", "0x.8p1", "-0x0p+0", "1e2", "1.5E-3", "0x1p-30",
                  "0.1234567890123456789", "123456789012345678.9", "0x1.0123456789abcdefp+2", "0x8p-0002",
                  "00000000000000000000001.5", "0x1p-1070", "0.3333333333333333", "0." + "0" * 30 + "1"]
        if dtype != "fp8e4m3fn":
            tokens += ["inf", "-inf", "nan", "-nan", "+inf"]
        tokens += awkward_decimals(dtype, rng)[:100] if dtype in ("fp16", "fp32", "fp64") else []
        tokens += [f"0x{rng.choice('01')}.{rng.getrandbits(8 * rng.randint(1, 6)):x}p{rng.randint(-12, 6):+d}" for _ in range(200)]
        tokens += [f"{rng.uniform(-99, 99):.{rng.randint(0, 9)}f}" for _ in range(200)]
    rng.shuffle(tokens)
    want = parse(list_of(tokens, dtype, "//\n,"))
    for between in (", ", ",", ",\n", " ,\t", "\r\n,  "):
        assert parse(list_of(tokens, dtype, between)) == want


@pytest.mark.parametrize("bad", ["1x", "0x1", "1.0.0", "-", "1e", "true", "'", '"1"', "tensor", "1 2", "/*"])
@pytest.mark.parametrize("dtype", ["int32", "fp8e4m3fn", "bool"])
def test_errors_in_long_lists_say_where(dtype: str, bad: str) -> None:
    """The same message and place, however the list is laid out up to there."""
    good, seen = "false" if dtype == "bool" else "1", []
    if dtype == "bool" and bad == "true":
        bad = "truee"
    for between in (", ", ",//\n"):
        tokens = [good] * 30 + [f"\n\n   {bad}"] + [good] * 30
        text = list_of(tokens, dtype, between)
        with pytest.raises(MILError) as e:
            parse(text)
        line = text[:text.index(f"   {bad}")].count("\n") + 1
        seen.append((e.value.lineno - line, e.value.offset, e.value.msg.rpartition(":")[2]))
    assert seen[0] == seen[1] and seen[0][0] == 0 and seen[0][1] in (4, 6)


def test_shapes_of_lists() -> None:
    assert value_of("[[[1, 2]], [[3, 4]]]", "tensor<int32, [2, 1, 2]>").tolist() == [[[1, 2]], [[3, 4]]]
    assert value_of("[]", "tensor<fp32, [0]>").shape == (0,)
    assert value_of("[]", "tensor<fp32, [0, 3]>").shape == (0, 3)
    assert value_of("[[], []]", "tensor<fp32, [2, 0]>").shape == (2, 0)
    assert value_of("[[1, 2], [3, 4], [5, 6]]", "tensor<int32, [?, 2]>").shape == (3, 2)
    assert value_of("[int32(1), tensor<int32, []>(2)]", "tensor<int32, [2]>").tolist() == [1, 2]
    assert value_of("[true, false]", "tensor<bool, [2]>").tolist() == [True, False]


def test_containers() -> None:
    assert value_of('["a", "b"]', "tensor<string, [2]>") == ["a", "b"]
    assert value_of('["a", "b", "c"]', "list<string, 3>") == ["a", "b", "c"]
    assert value_of('(1, "z", [true])', "tuple<int32, string, tensor<bool, [1]>>")[:2] == (1, "z")
    assert value_of('{{1, "a"}, {2, "b"}}', "dict<int32, string>") == {1: "a", 2: "b"}
    assert value_of('{}', "dict<int32, string>") == {}
    assert value_of('(string("x"))', "tuple<string>") == ("x",)


@pytest.mark.parametrize(("written", "meant"), [
    (r"a \"quoted\" name", 'a "quoted" name'), (r"\\", "\\"), (r"\n\t\r\a\b\f\v\'\?", "\n\t\r\a\b\f\v'?"),
    (r"\x41\101\u00e9\u20ac", "AAé€"), ("é€😀", "é€😀"), (r"\xc3\xa9", "é"), ("", ""), ("//no comment", "//no comment"),
])
def test_strings(written: str, meant: str) -> None:
    assert value_of(f'"{written}"', "string") == meant
    p = parse(body(f'string c = const()[val = string("{written}")];'))
    assert parse(p.text()).value("c").const == meant


def test_columns_count_characters() -> None:
    line = 'string c = const()[name = string("é€😀"), val = string(3)];'
    with pytest.raises(MILError) as e:
        parse(body(line))
    assert (e.value.lineno, e.value.offset) == (2, line.index("3") + 1)


# ------------------------------------------------------------------ weight files


def blob_file(records: list[tuple[int, bytes]]) -> tuple[bytes, list[int]]:
    """A MILBlob v2 file, straight from its description, and the records' offsets."""
    out = bytearray(struct.pack("<II56x", len(records), 2))
    offsets = []
    for code, data in records:
        offsets.append(len(out))
        out += struct.pack("<IIQQQ32x", 0xDEADBEEF, code, len(data), len(out) + 64, 0) + data
        out += bytes(-len(out) % 64)
    return bytes(out), offsets


BLOB = ('tensor<fp16, [3, 50]> w = const()[val = tensor<fp16, [3, 50]>(BLOBFILE(path = '
        'string("@model_path/weights/weight.bin"), offset = uint64(OFFSET)))];')


@pytest.fixture
def blob(tmp_path: Path):
    w = np.arange(150, dtype=np.float16).reshape(3, 50)
    data, offsets = blob_file([(2, bytes(400)), (1, w.tobytes())])
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/weight.bin").write_bytes(data)
    return w, data, body(BLOB.replace("OFFSET", str(offsets[1])), outputs="w"), tmp_path


def test_blobs_from_a_folder(blob) -> None:
    w, _, text, folder = blob
    p = parse(text, weights=folder)
    got = p.value("w").const
    assert np.array_equal(got, w) and not got.flags.writeable
    assert p.value_info(p.value("w").id)["blob"] == ("@model_path/weights/weight.bin", 576)
    assert "BLOBFILE" in p.text()
    for spelling in ("1.0", "1.3"):
        assert parse(p.text(spelling), weights=str(folder)) == p
    # Nothing is read: the constant is the file's mapping, and outlives the program.
    again = p.clone().value("w").const
    del p
    assert np.array_equal(again, w) and np.array_equal(got, w)
    assert got.__array_interface__["data"][0] == again.__array_interface__["data"][0]


def test_blobs_from_a_mapping(blob) -> None:
    w, data, text, _ = blob
    for key in ("@model_path/weights/weight.bin", "weights/weight.bin", "weight.bin"):
        for image in (data, bytearray(data), memoryview(data), np.frombuffer(data, np.uint8),
                      _core.Tensor.from_numpy(np.frombuffer(data, np.uint8))):
            assert np.array_equal(parse(text, weights={key: image}).value("w").const, w)


def test_a_blob_keeps_its_buffer(blob) -> None:
    _, data, text, _ = blob
    image = bytearray(data)
    p = parse(text, weights={"weight.bin": image})
    with pytest.raises(BufferError):
        image.append(0)
    del p
    image.append(0)


def test_missing_blobs(blob) -> None:
    _, data, text, folder = blob
    with pytest.raises(MILError, match="no weights were given"):
        parse(text)
    with pytest.raises(MILError, match="not in the mapping"):
        parse(text, weights={})
    (folder / "weights/weight.bin").unlink()
    with pytest.raises(OSError, match="weight.bin"):
        parse(text, weights=folder)
    p = parse(text, weights=folder, allow_missing=True)
    v = p.value("w")
    assert v.const is None and v.is_const and v.shape == (3, 50)
    assert parse(p.text(), allow_missing=True) == p
    p.clone()


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.replace("uint64(576)", "uint64(128)"), "marker|record"),
    (lambda t: t.replace("uint64(576)", "uint64(18446744073709551615)"), "576|outside|offset|record"),
    (lambda t: t.replace("uint64(576)", "int32(-64)"), "non-negative"),
    (lambda t: t.replace("uint64(576)", "bool(true)"), "non-negative integer"),
    (lambda t: t.replace("[3, 50]", "[3, 51]"), "bytes"),
    (lambda t: t.replace("fp16", "int32"), "type"),
    (lambda t: t.replace("fp16", "bool"), "cannot hold"),
    (lambda t: t.replace("[3, 50]", "[?, 50]"), "cannot hold"),
    (lambda t: t.replace("weights/weight", "../weights/weight"), "outside"),
    (lambda t: t.replace("@model_path", "/etc"), "not a path below|outside"),
    (lambda t: t.replace("offset =", "path ="), "offset"),
])
def test_bad_blobs(blob, change, message: str) -> None:
    _, _, text, folder = blob
    with pytest.raises(MILError, match=message) as e:
        parse(change(text), weights=folder)
    assert e.value.lineno == 2


def test_a_mapping_that_raises(blob) -> None:
    class Broken(dict):
        def __getitem__(self, key):
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        parse(blob[2], weights=Broken())
    with pytest.raises(TypeError):
        parse(blob[2], weights={"weight.bin": 3})
    with pytest.raises(TypeError, match="mapping"):
        parse(blob[2], weights=3)


# ------------------------------------------------------------------ hostile texts


@pytest.mark.parametrize("unit", ["[", "(", "{", "tensor<", "list<", "tuple<", "block () {", "-> (", "const()["])
def test_nesting_is_bounded(unit: str) -> None:
    deep = unit * 100_000
    for text in (deep, f"program(1.3) {deep}", body(f"int32 c = const()[val = int32({deep}"),
                 body(f"{deep}"), body(f"int32 c = add(x = {deep}"), body(f"tuple<{deep}")):
        with pytest.raises(MILError):
            parse(text)


def test_nested_types_up_to_the_limit() -> None:
    def nested(n: int) -> str:
        return body("", f"{'list<' * n}fp16{', 1>' * n} x")

    assert parse(nested(14)).inputs[0].type[0] == "list"
    with pytest.raises(MILError, match="nest"):
        parse(nested(30))


def test_sizes_are_checked() -> None:
    for dims in ("9223372036854775807, 2", "4294967296, 4294967296", "99999999999999999999"):
        with pytest.raises(MILError, match=r"2\^56|63 bits"):
            parse(body("", f"tensor<fp16, [{dims}]> x"))
    # A huge type with a short literal must not reserve memory for the type.
    with pytest.raises(MILError, match="dimension 0"):
        value_of("[1]", "tensor<fp64, [1000000000000]>")
    with pytest.raises(MILError, match="at most 8"):
        parse(body("", f"tensor<fp16, [{', '.join('1' * 9)}]> x"))


def test_any_bytes_give_an_answer() -> None:
    """Damaged texts: a program or a MILError with a position, never anything else."""
    rng = random.Random(4)
    texts = [p.read_bytes() for p in TEXTS] + [REFERENCE.encode()]
    for _ in range(3000):
        data = bytearray(rng.choice(texts))
        for _ in range(rng.choice([1, 1, 2, 5])):
            at = rng.randrange(len(data))
            what = rng.randrange(4)
            if what == 0:
                data[at] = rng.randrange(256)
            elif what == 1:
                del data[at:at + rng.randint(1, 20)]
            elif what == 2:
                data[at:at] = rng.choice(b"()[]{}<>,;=?\"-0 a\n").to_bytes(1, "big") * rng.randint(1, 3)
            else:
                data[at:at] = data[rng.randrange(len(data)):][:rng.randint(1, 40)]
            if not data:
                data = bytearray(b"p")
        try:
            p = parse(bytes(data), allow_missing=True)
        except MILError as e:
            assert e.lineno >= 1 and e.offset >= 1 and e.msg
        else:
            assert parse(p.text(), allow_missing=True) == p


@pytest.mark.parametrize("sticky", [False, True])
def test_every_allocation_may_fail(sticky: bool) -> None:
    """The n-th allocation fails: MemoryError, and nothing is left behind or broken."""
    fail_after = _core._testing.fail_after
    text = body("\n".join(f"tensor<fp16, [40]> c{i} = const()[val = tensor<fp16, [40]>([{', '.join('1' * 40)}])];\n"
                          f'tensor<fp16, [40]> y{i} = add(x = c{i}, y = x)[name = string("y{i}")];' for i in range(20)),
                "tensor<fp16, [40]> x", "y3")
    good = parse(text)
    n = failures = 0
    while True:
        n += 1
        fail_after(n, sticky)
        try:
            p = parse(text)
            printed, copy = p.text("1.0"), p.clone()
        except MemoryError:
            failures += 1
            continue
        finally:
            fail_after(0)
        assert p == good == copy and parse(printed) == good
        break
    assert failures >= 20


def test_a_long_line_and_many_names() -> None:
    """A 400 kB line; 20,000 statements that each name the last."""
    n = 50_000
    values = ", ".join(str(i % 7) for i in range(n))
    p = parse(body(f"tensor<int32, [{n}]> c = const()[val = tensor<int32, [{n}]>([{values}])];"))
    assert p.value("c").const.tolist() == [i % 7 for i in range(n)]
    steps = [f"fp32 v{i + 1} = add(x = v{i}, y = v{i // 2});" for i in range(20_000)]
    p = parse(body(" ".join(steps), "fp32 v0", "v20000"))
    assert len(p.functions["main"].body.info["ops"]) == 20_000
