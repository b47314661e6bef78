"""Malformed Core ML specifications: each is refused with a message that says what was wrong.

The specifications are written byte by byte, field numbers as in coremltools' Model.proto and
MIL.proto, so that each holds exactly one mistake. No coremltools is needed. The rows are seeds
of the fuzzer as well (tests/fuzz/malformed.py).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from anetorch import MILError, _core
from anetorch.package import save_package

FP16, FP32, FP64, BOOL, STRING, INT8, INT16, INT32, UINT16 = 10, 11, 12, 1, 2, 21, 22, 23, 32


def varint(n: int) -> bytes:
    out = b""
    while n > 0x7F:
        out += bytes([n & 0x7F | 0x80])
        n >>= 7
    return out + bytes([n])


def num(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def msg(field: int, *parts: bytes | str) -> bytes:
    data = b"".join(p.encode() if isinstance(p, str) else p for p in parts)
    return varint(field << 3 | 2) + varint(len(data)) + data


def dims(*sizes: int) -> bytes:
    return b"".join(msg(3, msg(1, num(1, n))) for n in sizes)


def tensor(dtype: int, *sizes: int) -> bytes:
    """A ValueType."""
    return msg(1, num(1, dtype), num(2, len(sizes)), dims(*sizes))


def value(type: bytes, *content: bytes) -> bytes:
    """A Value; content is the fields of its TensorValue."""
    return msg(2, type) + msg(3, msg(1, *content))


def name(text: str) -> bytes:
    return value(tensor(STRING), msg(4, msg(1, text)))


def entry(field: int, key: str, *content: bytes) -> bytes:
    return msg(field, msg(1, key), msg(2, *content))


def arg(key: str, *values: str) -> bytes:
    return entry(2, key, *(msg(1, msg(1, v)) for v in values))


def op(kind: str, *parts: bytes) -> bytes:
    return msg(3, msg(1, kind), *parts)


X = tensor(FP16, 2, 3)
RELU = op("relu", arg("x", "x"), msg(3, msg(1, "y"), msg(2, X)))


def model(*ops: bytes, params: bytes = msg(1, msg(1, "x"), msg(2, X)), outputs: bytes = msg(2, "y"),
          opset: str = "CoreML7", block: str = "CoreML7", attrs: bytes = b"",
          description: bytes = b"") -> bytes:
    body = entry(3, block, outputs, *ops)
    return num(1, 8) + msg(2, description) + msg(502, num(1, 1), entry(
        2, "main", params, msg(2, opset), body), attrs)


def attr(*content: bytes) -> bytes:
    return model(RELU, attrs=entry(4, "k", *content))


def const(type: bytes, *content: bytes) -> bytes:
    return attr(value(type, *content))


def described(*fields: bytes) -> bytes:
    """A model with one input feature of this FeatureType."""
    return model(RELU, description=msg(1, msg(1, "x"), msg(3, *fields)))


def deep(n: int) -> bytes:
    t = tensor(INT8)
    for _ in range(n):
        t = msg(2, msg(1, t))
    return t


def nested(n: int) -> bytes:
    """cond in cond in cond."""
    block = msg(2, "x")
    for _ in range(n):
        block = op("cond", arg("pred", "p"), msg(4, block), msg(4, msg(2, "x"))) + msg(2, "x")
    return block


ROWS = {
    # ---- the wire
    "tag cut off": (b"\x80", "byte 0: field tag is cut off or too long"),
    "tag too long": (b"\xff" * 10 + b"\x01", "field tag is cut off or too long"),
    "field zero": (b"\x00\x01", "field number 0 is out of range"),
    "field too large": (varint(1 << 33) + b"\x01", "field number 1073741824 is out of range"),
    "integer cut off": (b"\x08\x80", "byte 1: integer of field 1 is cut off or too long"),
    "length cut off": (b"\x12\x80", "length of field 2 is cut off or too long"),
    "length beyond the end": (b"\x12\x05abc", "field 2 claims 5 bytes, 3 are left"),
    "huge length": (b"\x12" + b"\xff" * 9 + b"\x01", "field 2 claims 18446744073709551615 bytes"),
    "four bytes cut off": (b"\x0d\x01", "field 1 needs 4 bytes, 1 are left"),
    "eight bytes cut off": (b"\x09\x01\x02", "field 1 needs 8 bytes, 2 are left"),
    "group": (b"\x0b", "field 1 has wire type 3, which this format does not use"),
    "unknown wire type": (b"\x0f", "field 1 has wire type 7"),
    "version is no number": (msg(1, "8"), "field 1 has wire type 2, expected 0"),
    "program is a number": (num(502, 1), "field 502 has wire type 0, expected 2"),
    "packed integers cut off": (described(msg(5, msg(1, b"\x02\x83"), num(2, 65568))),
                                "packed integer is cut off or too long"),
    "packed floats cut off": (const(tensor(FP32, 2), msg(1, msg(1, b"\0" * 7))),
                              "packed field is not a multiple of 4 bytes"),
    "no utf-8": (model(RELU, opset="CoreML7").replace(b"CoreML7", b"CoreM\xff7"), "UTF-8"),
    "overlong utf-8": (model(op("relu", msg(2, msg(1, b"\xe0\x80\x80")))), "UTF-8"),
    "surrogate in utf-8": (model(op("relu", msg(2, msg(1, b"\xed\xa0\x80")))), "UTF-8"),
    "overlong four": (model(op("relu", msg(2, msg(1, b"\xf0\x80\x80\x80")))), "UTF-8"),
    "beyond unicode": (model(op("relu", msg(2, msg(1, b"\xf4\x90\x80\x80")))), "UTF-8"),
    # ---- the model
    "nothing": (b"", "no model in this file (not a Core ML specification?)"),
    "only a version": (num(1, 8), "no model in this file"),
    "function without block": (model(RELU, block="CoreML6"),
                               "function 'main' has no block for its opset 'CoreML7'"),
    "unknown opset": (model(RELU, opset="CoreML77", block="CoreML77"), "unknown opset"),
    "entry without value": (num(1, 8) + msg(502, msg(2, msg(1, "main"))),
                            "map entry 'main' has no value"),
    "function twice": (num(1, 8) + msg(502, *(entry(2, "f", msg(2, "CoreML7"), entry(
        3, "CoreML7")) for _ in "ab")), 'function "f" is already defined'),
    "parameter without type": (model(RELU, params=msg(1, msg(1, "x"))), "'x' has no type"),
    "parameter twice": (model(RELU, params=2 * msg(1, msg(1, "x"), msg(2, X))), "already defined"),
    "unknown output": (model(RELU, outputs=msg(2, "z")), "'z' is not defined here"),
    # ---- operations
    "operation without type": (model(msg(3, arg("x", "x"))), "operation without a type"),
    "unknown operation": (model(op("rellu", arg("x", "x"))), "rellu"),
    "argument not defined": (model(op("relu", arg("x", "z"))), "'z' is not defined here"),
    "argument of a later operation": (model(op("relu", arg("x", "y")), RELU),
                                      "'y' is not defined here"),
    "empty binding": (model(op("relu", entry(2, "x", msg(1, b"")))), "argument 'x' is empty"),
    "unknown parameter": (model(op("relu", arg("q", "x"), msg(3, msg(1, "y"), msg(2, X)))),
                          "unknown parameter q"),
    "required parameter": (model(op("add", arg("x", "x"), msg(3, msg(1, "y"), msg(2, X)))),
                           "required parameter y is missing"),
    "declared type": (model(op("relu", arg("x", "x"), msg(3, msg(1, "y"), msg(
        2, tensor(FP32, 2, 3))))), "declared"),
    "too many arguments": (model(op("relu", *(arg(f"a{i}", "x") for i in range(65)))),
                           "relu: more than 64 arguments"),
    "too many blocks": (model(op("cond", *(msg(4, msg(2, "x")) for _ in range(9)))),
                        "cond: more than 8 blocks"),
    "const without value": (model(op("const", msg(3, msg(1, "y"), msg(2, X)))),
                            "const without value or with 1 results"),
    "const without result": (model(op("const", entry(5, "val", value(tensor(INT32), msg(2, msg(
        1, b"\x01")))))), "const without value or with 0 results"),
    "too new": (model(op("scaled_dot_product_attention", arg("query", "x"))), "ios18"),
    "result without type": (model(op("relu", arg("x", "x"), msg(3, msg(1, "y")))), "'y' has no type"),
    # ---- types
    "unknown dtype": (const(msg(1, num(1, 99))), "unknown data type 99"),
    "no dtype": (const(msg(1, num(2, 0))), "tensor without data type"),
    "rank": (const(msg(1, num(1, INT8), num(2, 3), dims(1))), "tensor of rank 3 has 1 dimensions"),
    "too many dimensions": (const(tensor(INT8, *[1] * 9)), "a tensor has more than 8 dimensions"),
    "huge dimension": (const(msg(1, num(1, INT8), num(2, 1), dims(1 << 63))), "dimension is too large"),
    "list of nothing": (const(msg(2, msg(2, msg(1, num(1, 1))))), "without an element type"),
    "dictionary of half": (const(msg(4, msg(1, tensor(STRING)))), "without an element type"),
    "unknown kind of type": (const(msg(9, b"")), "value type of an unknown kind"),
    "state of a list": (const(msg(5, msg(1, msg(2, msg(1, tensor(INT8)))))), "a state holds a tensor"),
    "types nest": (const(deep(17)), "types nest deeper than 16"),
    "blocks nest": (model(nested(60), params=msg(1, msg(1, "x"), msg(2, X)) + msg(1, msg(
        1, "p"), msg(2, tensor(BOOL)))), "nest deeper"),
    # ---- values
    "value without type": (attr(msg(3, msg(1, msg(2, msg(1, b"\x01"))))), "value without a type"),
    "value without content": (attr(msg(2, tensor(INT8))), "value without content"),
    "immediate without content": (attr(msg(2, tensor(INT8)), msg(3, b"")),
                                  "immediate value without content"),
    "tensor without content": (const(tensor(INT8)), "constant without a value"),
    "unknown size": (const(msg(1, num(1, INT8), num(2, 1), msg(3, msg(2, b""))), msg(7, msg(1, b"a"))),
                     "a constant needs a tensor type of known shape"),
    "too few bytes": (const(tensor(INT8, 3), msg(7, msg(1, b"a"))), "constant has 1 bytes, its type needs 3"),
    "too many bytes": (const(tensor(FP16, 1), msg(7, msg(1, b"abc"))), "constant has 3 bytes, its type needs 2"),
    "too few numbers": (const(tensor(FP32, 3), msg(1, msg(1, b"\0" * 4))),
                        "constant has 1 elements, its type 3"),
    "far too few numbers": (const(tensor(FP32, 1 << 40), msg(1, msg(1, b"\0" * 4))),
                            "constant does not hold the 1099511627776 elements of its type"),
    "too many numbers": (const(tensor(FP32, 1), msg(1, msg(1, b"\0" * 8))),
                         "constant has more than the 1 elements of its type"),
    "int8 out of range": (const(tensor(INT8), msg(2, msg(1, varint(300)))), "value does not fit int8"),
    "int16 out of range": (const(tensor(INT16), msg(2, msg(1, varint(1 << 15)))), "does not fit int16"),
    "uint16 out of range": (const(tensor(UINT16), msg(2, msg(1, varint(1 << 16)))), "does not fit uint16"),
    "integers for a float": (const(tensor(FP32), msg(2, msg(1, b"\x01"))), "value does not fit fp32"),
    "doubles for fp16": (const(tensor(FP16), msg(6, msg(1, b"\0" * 8))), "value does not fit fp16"),
    "strings for numbers": (const(tensor(INT8), msg(4, msg(1, "a"))), "strings for a number type"),
    "too few strings": (const(tensor(STRING, 2), msg(4, msg(1, "abc"))),
                        "2 strings declared, 1 are there"),
    "far too few strings": (const(tensor(STRING, 1 << 40), msg(4, msg(1, "a"))),
                            "1099511627776 strings declared, fewer are there"),
    "too many strings": (const(tensor(STRING, 1), msg(4, msg(1, "a"), msg(1, "b"))),
                         "more than the declared 1 strings"),
    "half a dictionary entry": (attr(msg(2, msg(4, msg(1, tensor(STRING)), msg(2, tensor(INT8)))),
                                     msg(3, msg(4, msg(1, msg(1, name("k")))))),
                                "dictionary entry without key or value"),
    "tuple of too few": (attr(msg(2, msg(3, msg(1, tensor(STRING)), msg(1, tensor(STRING)))),
                              msg(3, msg(2, msg(1, name("k"))))), "1 items do not make a value of type tuple<string, string>"),
    "list of another type": (attr(msg(2, msg(2, msg(1, tensor(INT8)))), msg(3, msg(3, msg(1, name("k"))))),
                             "1 items do not make a value of type list<int8, ?>"),
    "dictionary of other values": (attr(
        msg(2, msg(4, msg(1, tensor(STRING)), msg(2, tensor(INT8)))),
        msg(3, msg(4, msg(1, msg(1, name("k")), msg(2, name("v")))))),
        "1 items do not make a value of type dict<string, int8>"),
    "list for a tensor": (attr(msg(2, tensor(INT8, 1)), msg(3, msg(3, b""))),
                          "0 items do not make a value of type tensor<int8, [1]>"),
    "weight file without name": (attr(msg(2, tensor(FP16, 1)), msg(5, num(2, 64))),
                                 "weight file without a name"),
    "weight file outside": (attr(msg(2, tensor(FP16, 1)), msg(5, msg(1, "../../secret"), num(2, 64))),
                            "../../secret"),
    # ---- the description
    "array type": (described(msg(5, num(1, 2), num(2, 7))), "unknown array data type 7"),
    "array rank": (described(msg(5, num(2, 65568), *(num(1, 1) for _ in range(9)))),
                   "a shape has more than 8 dimensions"),
    "enumerated rank": (described(msg(5, num(1, 2), num(2, 65568), msg(21, msg(1, num(1, 2), num(1, 3))))),
                        "an enumerated shape has 2 dimensions, the default 1"),
    "image width": (described(msg(4, msg(1, "5"))), "field 1 has wire type 2, expected 0"),
}


@pytest.mark.parametrize("row", ROWS)
def test_malformed(row: str, tmp_path) -> None:
    data, message = ROWS[row]
    with pytest.raises((MILError, ValueError, TypeError, OSError)) as e:
        _core.coreml_read(data, filename="dir/m.mlmodel", weights=str(tmp_path))
    assert message in str(e.value)
    if isinstance(e.value, MILError):
        assert "dir/m.mlmodel" in str(e.value)


def test_the_base_is_sound() -> None:
    """What the rows spoil is read without a complaint."""
    program, _ = _core.coreml_read(model(RELU))
    assert "relu" in program.text()
    _core.coreml_read(const(tensor(INT8, 1), msg(7, msg(1, b"a"))))
    _core.coreml_read(const(tensor(FP32, 2), msg(1, msg(1, b"\0" * 8))))
    _core.coreml_read(described(msg(5, num(1, 2), num(2, 65568), msg(21, msg(1, num(1, 3))))))


@pytest.mark.parametrize("field, kind", [(500, "neural network"), (402, "tree ensemble classifier"),
                                         (202, "pipeline"), (3000, "serialized model")])
def test_other_models_are_named(field: int, kind: str) -> None:
    instead = "load the models inside" if kind == "pipeline" else "convert it again"
    with pytest.raises(NotImplementedError, match=f"this is a {kind} model, not an ML Program; {instead}"):
        _core.coreml_read(num(1, 4) + msg(field, b""))


def test_a_constant_keeps_its_name() -> None:
    """Its attribute, which need not be the result's name, comes back in texts and packages."""
    c = op("const", msg(3, msg(1, "c"), msg(2, tensor(FP16))), entry(5, "name", name("op_c")),
           entry(5, "val", value(tensor(FP16), msg(7, msg(1, b"\0\x3c")))))
    add = op("add", arg("x", "x"), arg("y", "c"), msg(3, msg(1, "y"), msg(2, X)),
             entry(5, "name", name("op_y")))
    program, _ = _core.coreml_read(model(c, add))
    assert 'c = const()[name = string("op_c"), val = ' in program.text("1.3")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.mlpackage"
        save_package(program, path)
        (spec,) = path.rglob("model.mlmodel")
        assert _core.coreml_read(spec.read_bytes())[0] == program


def test_blocks_beside_each_other_may_use_one_name() -> None:
    """In a package a name belongs to its block; in our graph to the function."""
    branch = msg(4, op("relu", arg("x", "x"), msg(3, msg(1, "t"), msg(2, X))),
                 op("relu", arg("x", "t"), msg(3, msg(1, "u"), msg(2, X))), msg(2, "u"))
    both = op("cond", arg("pred", "p"), branch, branch, msg(3, msg(1, "y"), msg(2, X)))
    params = msg(1, msg(1, "x"), msg(2, X)) + msg(1, msg(1, "p"), msg(2, tensor(BOOL)))
    program, _ = _core.coreml_read(model(both, params=params))
    blocks = program.op_info(next(
        o for o in program.block_info(program.functions()[0][2])["ops"]
        if program.op_info(o)["op"] == "cond"))["blocks"]
    inner = [[program.op_info(o) for o in program.block_info(b)["ops"]] for b in blocks]
    for first, second in inner:         # each block reads its own values
        assert second["args"]["x"] == first["results"][0]
    assert inner[0][0]["results"] != inner[1][0]["results"]


def inner_and_body(inner: str, after: bytes = b"", out: str = "y") -> _core.Program:
    """if p: relu(relu(x)) else: relu(x), the first relu's name being `inner`; then `after`."""
    def relu(x: str, name: str) -> bytes:
        return op("relu", arg("x", x), msg(3, msg(1, name), msg(2, X)))

    yes = msg(4, relu("x", inner), relu(inner, "u"), msg(2, "u"))
    no = msg(4, relu("x", "w"), msg(2, "w"))
    both = op("cond", arg("pred", "p"), yes, no, msg(3, msg(1, "y"), msg(2, X)))
    params = msg(1, msg(1, "x"), msg(2, X)) + msg(1, msg(1, "p"), msg(2, tensor(BOOL)))
    return _core.coreml_read(model(both + after, params=params, outputs=msg(2, out)))[0]


def test_a_block_may_hide_a_name_of_the_block_around() -> None:
    """Names are unique within a scope; the inner one counts where both are visible."""
    program = inner_and_body("x")
    body = program.block_info(program.functions()[0][2])
    cond = next(i for o in body["ops"] if (i := program.op_info(o))["op"] == "cond")
    first, second = (program.op_info(o) for o in program.block_info(cond["blocks"][0])["ops"])
    assert first["args"]["x"] == program.functions()[0][3][0]
    assert second["args"]["x"] == first["results"][0]


def test_the_body_keeps_a_name_that_a_block_before_had() -> None:
    """It may be the name of an output."""
    after = op("relu", arg("x", "y"), msg(3, msg(1, "late"), msg(2, X)))
    program = inner_and_body("late", after, out="late")
    assert [program.value_info(v)["name"]
            for v in program.block_info(program.functions()[0][2])["outputs"]] == ["late"]
    assert program.text().count("relu(x = y)") == 1


def test_a_name_is_unique_within_its_block() -> None:
    for again in ("y", "x"):
        with pytest.raises(ValueError, match=f'"{again}" is already defined'):
            inner_and_body("t", op("relu", arg("x", "x"), msg(3, msg(1, again), msg(2, X))))
    with pytest.raises(ValueError, match='"u" is already defined'):
        inner_and_body("u")


def shapes(field: int, *rows: tuple[int, ...]) -> bytes:
    """Enumerated shapes (21) or ranges (31) of an array."""
    if field == 21:
        return msg(21, *(msg(1, *(num(1, n) for n in row)) for row in rows))
    return msg(31, *(msg(1, num(1, a), num(2, b)) for a, b in rows))


def feature(*parts: bytes) -> dict:
    _, d = _core.coreml_read(described(*parts))
    return d["functions"][0]["inputs"][0]


def test_of_several_types_the_last_counts() -> None:
    """They are alternatives on the wire; nothing of one may be read as part of another."""
    array = msg(5, num(1, 2), num(1, 3), num(2, 65568), shapes(21, (2, 3), (4, 5), (6, 7)))
    image = msg(4, num(1, 8), num(2, 9), num(3, 20))
    found = feature(array, image)
    assert found["kind"] == "image" and found["shape"] == (9, 8) and "enumerated" not in found
    found = feature(msg(5, num(1, 1), num(2, 65568), shapes(31, *[(1, 9)] * 100)), array)
    assert found["shape"] == (2, 3) and "ranges" not in found
    assert found["enumerated"] == ((2, 3), (4, 5), (6, 7))
    found = feature(array, array)
    assert found["enumerated"] == ((2, 3), (4, 5), (6, 7))
    # The same inside one: ranges after shapes, shapes in front of the default.
    found = feature(msg(5, num(1, 2), num(2, 65568), shapes(21, (2,), (3,), (4,)), shapes(31, (1, 9))))
    assert found["ranges"] == ((1, 9),) and "enumerated" not in found
    found = feature(msg(5, shapes(21, (2, 3), (4, 5)), num(1, 2), num(1, 3), num(2, 65568)))
    assert found["shape"] == (2, 3) and found["enumerated"] == ((2, 3), (4, 5))
    for wrong in (msg(5, shapes(21, (2,)), num(1, 2), num(1, 3)), msg(5, shapes(21, (), (1, 2, 3)))):
        with pytest.raises(MILError, match="an enumerated shape has"):
            feature(wrong)


def test_metadata_in_parts() -> None:
    """As protobuf says of a message that comes several times: they are merged."""
    pairs = {f"k{i}": f"v{i}" for i in range(9)}
    parts = b"".join(msg(100, msg(100, msg(1, key), msg(2, text))) for key, text in pairs.items())
    _, d = _core.coreml_read(model(RELU, description=parts))
    assert d["metadata"]["user"] == pairs
