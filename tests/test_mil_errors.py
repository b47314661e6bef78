"""Malformed texts: each is refused with a message that says where, what was expected and
what was found. One row per text: (text, line, column, a part of the message)."""

from __future__ import annotations

import pytest

from anetorch import MILError
from anetorch.mil import Program

X = "tensor<fp16, [2, 3]> x"


def stmt(line: str, mark: str, message: str, params: str = X, opset: str = "ios18") -> tuple:
    """A row for one statement on line 3; mark is the text at which the error is."""
    text = f"program(1.3) {{\nfunc main<{opset}>({params}) {{\n{line}\n}} -> (); }}"
    return text, 3, line.index(mark) + 1, message


def const(type: str, literal: str, mark: str, message: str) -> tuple:
    return stmt(f"{type} c = const()[val = {type}({literal})];", mark, message)


def whole(text: str, line: int, column: int, message: str) -> tuple:
    return text, line, column, message


END = "got the end of the text"

ROWS = {
    # ---- program
    "empty": whole("", 1, 1, f"expected 'program', as in program(1.3), {END}"),
    "only a comment": whole("// x\n", 2, 1, "expected 'program'"),
    "not a program": whole("hello", 1, 1, "expected 'program', as in program(1.3), got 'hello'"),
    "no version": whole("program { }", 1, 9, "expected '(' and a version"),
    "empty version": whole("program() { }", 1, 9, "expected a version, as 1.0 or 1.3, got ')'"),
    "integer version": whole("program(1) { }", 1, 9, "expected a version"),
    "two numbers": whole("program(1, 0) { }", 1, 9, "expected a version"),
    "negative version": whole("program(-1.3) { }", 1, 9, "expected a version"),
    "version 2": whole("program(2.0) { }", 1, 9, "version 2.0 is not known; expected 1.0 to 1.3"),
    "exponent version": whole("program(1.3e0) { }", 1, 9, "expected a version"),
    "version open": whole("program(1.3 { }", 1, 13, "expected ')' to close the '(' of line 1, column 8, got '{'"),
    "no braces": whole("program(1.3)", 1, 13, f"expected '{{' of the program, {END}"),
    "program open": whole("program(1.3) {\n\n", 3, 1, f"expected 'func' or '}}' to close the '{{' of line 1, column 14, {END}"),
    "no func": whole("program(1.3) {\n main", 2, 2, "expected 'func' or '}', got 'main'"),
    "text behind": whole("program(1.3) { } }", 1, 18, "expected the end of the text after the program, got '}'"),
    "two programs": whole("program(1.3) { }\nprogram(1.3) { }", 2, 1, "expected the end of the text"),
    "attribute without value": whole("program(1.3) [buildInfo] { }", 1, 24, "expected '=' after an attribute's name"),
    "attribute untyped": whole('program(1.3) [buildInfo = "x"] { }', 1, 27, 'expected a type, got "x"'),
    "attributes open": whole('program(1.3) [a = int32(1) { }', 1, 28, "expected ',' or ']' to close the '[' of line 1, column 14"),
    "attribute twice": whole('program(1.3) [a = int32(1), a = int32(2)] { }', 1, 29, "attribute a is given twice"),
    # ---- functions
    "function without name": whole("program(1.3) { func <ios18>() {} -> (); }", 1, 21, "expected the function's name, got '<'"),
    "no opset": whole("program(1.3) { func main(tensor<fp16,[1]> x) {} -> (); }", 1, 25, "expected '<' and the opset, as in main<ios18>"),
    "empty opset": whole("program(1.3) { func main<>() {} -> (); }", 1, 26, "expected an opset, as ios18"),
    "unknown opset": whole("program(1.3) { func main<macos15>() {} -> (); }", 1, 21, 'unknown opset "macos15"; expected ios15, ios16, ios17, ios18 or newer'),
    "opset open": whole("program(1.3) { func main<ios18() {} -> (); }", 1, 31, "expected '>' to close the '<' of line 1, column 25"),
    "parameter without name": whole("program(1.3) { func main<ios18>(fp16) {} -> (); }", 1, 37, "expected the name of the parameter, got ')'"),
    "parameter without type": whole("program(1.3) { func main<ios18>(x) {} -> (); }", 1, 33, "expected a type (fp16, fp32, int32, bool, string, ..., tensor, list, tuple, dict or state), got 'x'"),
    "parameters open": whole("program(1.3) { func main<ios18>(fp16 x {} -> (); }", 1, 40, "expected ',' or ')' to close the '(' of line 1, column 32"),
    "trailing comma": whole("program(1.3) { func main<ios18>(fp16 x,) {} -> (); }", 1, 40, "expected a type, got ')'"),
    "parameter twice": whole("program(1.3) { func main<ios18>(fp16 x, fp16 x) {} -> (); }", 1, 21, '"x" is already defined'),
    "function twice": whole("program(1.3) { func f<ios18>() {} -> ();\nfunc f<ios18>() {} -> (); }", 2, 6, 'function "f" is already defined'),
    "state too early": whole("program(1.3) { func f<ios17>(state<tensor<fp16, [1]>> s) {} -> (); }", 1, 21, 'parameter "s": state types need ios18, the function has ios17'),
    "no body": whole("program(1.3) { func f<ios18>() -> (); }", 1, 32, "expected '{' of the body, got '->'"),
    "no arrow": whole("program(1.3) { func f<ios18>() { } (); }", 1, 36, "expected '->' and the outputs"),
    "no outputs": whole("program(1.3) { func f<ios18>() { } -> ; }", 1, 39, "expected '(' of the outputs"),
    "no semicolon": whole("program(1.3) { func f<ios18>() { } -> () }", 1, 42, "expected ';' after the outputs, got '}'"),
    "unknown output": whole("program(1.3) { func f<ios18>(fp16 x) { }\n-> (x, z); }", 2, 8, "output 'z' is not defined"),
    "output is a literal": whole("program(1.3) { func f<ios18>(fp16 x) { } -> (1); }", 1, 46, "expected an output's name, got '1'"),
    "outputs open": whole("program(1.3) { func f<ios18>(fp16 x) { } -> (x; }", 1, 47, "expected ',' or ')' to close the '(' of line 1, column 45, got ';'"),
    "return": stmt("return x;", "return", "expected a statement or '}', got 'return'; outputs are named behind the block, as in } -> (y);"),
    "body not closed": whole("program(1.3) {\nfunc f<ios18>(fp16 x) {\n-> (x);}", 3, 1, "expected a statement or '}' to close the '{' of line 2, column 23, got '->'"),
    "body open": whole("program(1.3) {\nfunc f<ios18>() {\n", 3, 1, f"expected a statement or '}}' to close the '{{' of line 2, column 17, {END}"),
    # ---- statements
    "positional": stmt("tensor<fp16, [2, 3]> y = relu(x);", "x);", "relu 'y': arguments are given as name = value; expected '=' behind x, got ')'"),
    "no argument name": stmt("tensor<fp16, [2, 3]> y = relu(= x);", "= x", "relu 'y': expected a parameter's name (arguments are given as name = value), got '='"),
    "no argument": stmt("tensor<fp16, [2, 3]> y = relu(x = );", ");", "relu 'y': expected a value, got ')'"),
    "untyped list": stmt("tensor<fp16, []> y = reduce_sum(x = x, axes = [0, 1]);", "[0, 1]", "reduce_sum 'y': expected a value, got an untyped list; write its type, as in tensor<int32, [2]>([0, 1])"),
    "untyped tuple item": stmt("fp16 y = concat(values = (x, 1));", "1)", "concat 'y': expected a value, got an untyped literal; write its type, as in int32(1)"),
    "tuple of tuples": stmt("fp16 y = concat(values = ((x)));", "(x)", "a tuple of tuples is no argument"),
    "arguments open": stmt("tensor<fp16, [2, 3]> y = relu(x = x;", ";", "relu 'y': expected ',' or ')' to close the '(' of line 3, column 30, got ';'"),
    "wrong closer": whole("program(1.3) {\nfunc main<ios18>(fp16 x) {\nfp16 y = relu(x = x];\n} -> (); }", 3, 20, "relu 'y': expected ',' or ')' to close the '(' of line 3, column 14, got ']'"),
    "no operation": stmt("tensor<fp16, [2, 3]> y = ;", ";", "expected the name of an operation, got ';'"),
    "no parentheses": stmt("tensor<fp16, [2, 3]> y = relu;", ";", "relu 'y': expected '(' after the operation's name, got ';'"),
    "no result name": stmt("tensor<fp16, [2, 3]> = relu(x = x);", "= relu", "expected the name of the result, got '='"),
    "no equals": stmt("tensor<fp16, [2, 3]> y relu(x = x);", "relu", "expected '=' after the result's name, got 'relu'"),
    "no end": whole(f"program(1.3) {{\nfunc main<ios18>({X}) {{\ntensor<fp16, [2, 3]> y = relu(x = x)\n}} -> (); }}", 4, 1, "relu 'y': expected ';' at the end of the statement, got '}'"),
    "untyped result": stmt("y = relu(x = x);", "y", "expected a type (fp16"),
    "no type of second result": stmt("fp16 a, b = split(x = x);", "b =", "expected a type (fp16"),
    "undefined": stmt("tensor<fp16, [2, 3]> y = relu(x = z);", "z", "relu 'y': 'z' is not defined before this use"),
    "itself": stmt("tensor<fp16, [2, 3]> y = relu(x = y);", "y);", "'y' is not defined before this use"),
    "result twice": stmt("tensor<fp16, [2, 3]> x = relu(x = x);", "relu", "relu 'x': result: \"x\" is already defined in function main"),
    "one name for two results": stmt("tensor<fp16, [1, 3]> a, tensor<fp16, [1, 3]> a = split(x = x, num_splits = int32(2), axis = int32(0));", "split", 'result "a" is named twice'),
    "unknown operation": stmt("tensor<fp16, [2, 3]> y = rellu(x = x);", "rellu", "rellu 'y': unknown operation"),
    "operation too new": stmt("tensor<fp16, [2, 3]> y = scaled_dot_product_attention(query = x, key = x, value = x);", "scaled", "needs ios18, but function main has opset ios17", opset="ios17"),
    "unknown parameter": stmt("tensor<fp16, [2, 3]> y = relu(z = x);", "relu", "relu 'y': unknown parameter z; known: x"),
    "parameter given twice": stmt("tensor<fp16, [2, 3]> y = relu(x = x, x = x);", "relu", "relu 'y': parameter x is given twice"),
    "missing parameter": stmt("tensor<fp16, [2, 3]> y = add(x = x);", "add", "add 'y': required parameter y is missing"),
    "mixed dtypes": stmt("tensor<fp16, [2, 3]> y = add(x = x, y = fp32(1));", "add", "parameters x and y need one dtype, got x of type tensor<fp16, [2, 3]> and the constant of type fp32"),
    "wrong dtype": stmt("tensor<fp16, [2, 3]> y = relu(x = int32(1));", "relu", "relu 'y': parameter x expects fp16, fp32, got the constant of type int32"),
    "not a constant": stmt("tensor<fp16, [2, 3]> y = transpose(x = x, perm = p);", "transpose", "transpose 'y': parameter perm must be a constant, got p, which is computed", params=X + ", tensor<int32, [2]> p"),
    "list for a tensor": stmt("tensor<fp16, [2, 3]> y = relu(x = l);", "relu", "parameter x expects a tensor, got l of type list<fp16, 1>", params="list<fp16, 1> l"),
    "tuple for one": stmt("tensor<fp16, [2, 3]> y = relu(x = (x));", "relu", "parameter x takes one value, got a tuple"),
    "one for a tuple": stmt("tensor<fp16, [2, 3]> y = concat(values = x, axis = int32(0));", "concat", "parameter values takes a tuple of values, got a single value x"),
    "declared shape": stmt("tensor<fp16, [3, 2]> y = relu(x = x);", "relu", 'relu \'y\': result "y" is declared tensor<fp16, [3, 2]>, but the operation gives tensor<fp16, [2, 3]>'),
    "declared dtype": stmt("tensor<fp32, [2, 3]> y = relu(x = x);", "relu", "is declared tensor<fp32, [2, 3]>, but the operation gives tensor<fp16, [2, 3]>"),
    "declared rank": stmt("fp16 y = relu(x = x);", "relu", "is declared fp16, but"),
    "too few results": stmt("tensor<fp16, [1, 3]> a = split(x = x, num_splits = int32(2), axis = int32(0));", "split", "split 'a': gives 2 results, the statement names 1"),
    "result of nothing": stmt("relu(x = x);", "relu", "relu: gives 1 result, the statement names 0"),
    "shapes do not broadcast": stmt("tensor<fp16, [2, 3]> y = add(x = x, y = tensor<fp16, [2]>([1, 2]));", "add", "do not broadcast: 3 and 2"),
    "inner dimensions": stmt("tensor<fp16, [2, 2]> y = matmul(x = x, y = x);", "matmul", "inner dimensions differ"),
    "axis out of range": stmt("tensor<fp16, [2]> y = reduce_sum(x = x, axes = tensor<int32, [1]>([2]), keep_dims = bool(false));", "reduce_sum", "axes"),
    "name is no string": stmt("tensor<fp16, [2, 3]> y = relu(x = x)[name = int32(1)];", "relu", "the attribute name must be a string"),
    "attribute untyped here": stmt('tensor<fp16, [2, 3]> y = relu(x = x)[name = "y"];', '"y"', 'expected a type, got "y"'),
    "attribute given twice": stmt('tensor<fp16, [2, 3]> y = relu(x = x)[a = int32(1), a = int32(1)];', "a = int32(1)]", "attribute a is given twice"),
    "attributes not closed": stmt('tensor<fp16, [2, 3]> y = relu(x = x)[name = string("y");', ";", "expected ',' or ']' to close the '[' of line 3, column 37, got ';'"),
    "attribute name missing": stmt('tensor<fp16, [2, 3]> y = relu(x = x)[= string("y")];', '= string', "expected an attribute's name, got '='"),
    # ---- constants
    "const without val": stmt('fp16 c = const()[name = string("c")];', "const", "const 'c': required attribute val is missing"),
    "const with arguments": stmt("fp16 c = const(val = fp16(1));", "const", "const 'c': expected no arguments, got 1; the value is the attribute val"),
    "const of another type": stmt("int32 c = const()[val = fp16(1)];", "const", "const 'c': the result is declared int32, but val is fp16"),
    "const of another shape": stmt("tensor<fp16, [1]> c = const()[val = fp16(1)];", "const", "declared tensor<fp16, [1]>, but val is fp16"),
    "const of two": stmt("fp16 a, fp16 b = const()[val = fp16(1)];", "const", "expected one result, got 2"),
    "const twice": stmt("tensor<fp16, [2, 3]> x = const()[val = tensor<fp16, [2, 3]>([[1,1,1],[1,1,1]])];", "const", '"x" is already defined'),
    "fraction for an integer": const("int32", "1.5", "1.5", "const 'c': expected an integer of type int32, got '1.5'"),
    "bool for a number": const("fp16", "true", "true", "expected a number of type fp16, got 'true'"),
    "number for a bool": const("bool", "1)", "1)", "expected true or false, got '1'"),
    "number for a string": const("string", "7", "7", "expected a string, got '7'"),
    "string for a number": const("fp32", '"1"', '"1"', 'expected a number of type fp32, got "1"'),
    "int8 too large": const("int8", "128", "128", "int8 holds -2^7 to 2^7-1, got '128'"),
    "uint8 negative": const("uint8", "-1", "-1", "uint8 holds 0 to 2^8-1, got '-1'"),
    "int4 too small": const("int4", "-9", "-9", "int4 holds -2^3 to 2^3-1, got '-9'"),
    "nothing": const("fp16", "", ")]", "expected a number of type fp16, got ')'"),
    "list for a scalar": const("fp16", "[1]", "[1]", "expected one value of type fp16, got a list"),
    "scalar for a list": const("tensor<fp16, [1]>", "1)", "1))", "expected a list for tensor<fp16, [1]>, got '1'"),
    "list too short": const("tensor<fp16, [2, 3]>", "[[1, 2], [3, 4]]", "[1, 2]", "the list has 2 elements, but dimension 1 of tensor<fp16, [2, 3]> is 3"),
    "list too long": const("tensor<fp16, [1]>", "[8, 9]", "[8, 9]", "the list has 2 elements, but dimension 0 of tensor<fp16, [1]> is 1"),
    "list too deep": const("tensor<fp16, [2]>", "[[1], [2]]", "[1]", "the list nests deeper than the 1 dimensions of tensor<fp16, [2]>"),
    "list not deep enough": const("tensor<fp16, [2, 1, 1]>", "[[1], [2]]", "1], [2]", "expected '[' of dimension 2 of tensor<fp16, [2, 1, 1]>"),
    "list uneven": const("tensor<fp16, [2, ?]>", "[[1, 2], [3]]", "[3]", "the list has 1 elements, its neighbours have 2"),
    "flat list too short": const("tensor<fp16, [2, 2]>", "[1, 2, 3]", "[1, 2, 3]", "a flat list of 3 elements does not fill tensor<fp16, [2, 2]>"),
    "list not closed": const("tensor<fp16, [2]>", "[1, 2", ")]", "expected ',' or ']' to close the '['"),
    "element of another type": const("tensor<fp16, [2]>", "[1, int32(2)]", "int32(2", "expected a fp16, got a value of type int32"),
    "value of another type": const("tuple<fp16>", "(int32(1))", "int32(1", "expected a value of type fp16, got int32"),
    "tuple too short": const("tuple<fp16, fp16>", "(1)", "(1)", "tuple<fp16, fp16> takes 2 items, got 1"),
    "tuple too long": const("tuple<fp16>", "(1, 2)", "2)", "the tuple has more than the 1 items of tuple<fp16>"),
    "fixed list length": const("list<fp16, 3>", "[1, 2]", "[1, 2]", "list<fp16, 3> takes 3 items, got 2"),
    "dictionary pair open": const("dict<string, int32>", '{{"a", 1}', ")]", "expected ',' or '}' to close the '{'"),
    "dictionary pair short": const("dict<string, int32>", '{{"a"}}', "}}", "expected ',' between key and value, got '}'"),
    "dictionary of the wrong kind": const("dict<string, int32>", '[1]', "[1]", "expected '{' of a dictionary, got '['"),
    "state literal": const("state<tensor<fp16, [1]>>", "[8]", "[8]", "a state has no literal value"),
    "blob keys": const("tensor<fp16, [1]>", 'BLOBFILE(file = string("x"))', "file", "expected path = ... or offset = ..., got 'file'"),
    "blob without offset": const("tensor<fp16, [1]>", 'BLOBFILE(path = string("x"))', "))]", "expected ',' between path and offset, got ')'"),
    "blob path twice": const("tensor<fp16, [1]>", 'BLOBFILE(path = string("x"), path = string("x"))', 'path = string("x"))', "expected offset = ..., got 'path'"),
    "blob path is a number": const("tensor<fp16, [1]>", 'BLOBFILE(path = int32(1), offset = uint64(64))', "int32(1)", "BLOBFILE: path must be a string"),
    "blob of bool": const("tensor<bool, [1]>", 'BLOBFILE(path = string("x"), offset = uint64(64))', "BLOBFILE", "a weight file cannot hold a constant of type tensor<bool, [1]>"),
    "blob without weights": const("tensor<fp16, [1]>", 'BLOBFILE(path = string("x"), offset = uint64(64))', "BLOBFILE", "weight file 'x' is needed and no weights were given"),
    # ---- types
    "unknown type": stmt("tensr<fp16, [1]> y = relu(x = x);", "tensr", "expected a type (fp16"),
    "NumPy's name": stmt("float16 y = relu(x = x);", "float16", "expected a type (fp16"),
    "tensor without type": stmt("tensor y = relu(x = x);", "y =", "expected '<' after a type's name, got 'y'"),
    "tensor of a tensor": stmt("tensor<tensor<fp16, [1]>, [1]> y = relu(x = x);", "tensor<fp16", "expected an element type, got 'tensor'"),
    "tensor without dimensions": stmt("tensor<fp16> y = relu(x = x);", "> y", "expected ',' and the dimensions, as in tensor<fp16, [1, 8]>"),
    "negative dimension": stmt("tensor<fp16, [-1]> y = relu(x = x);", "-1", "expected a dimension (a number or ?), got '-1'"),
    "dimension not a number": stmt("tensor<fp16, [n]> y = relu(x = x);", "n]", "expected a dimension (a number or ?), got 'n'"),
    "fractional dimension": stmt("tensor<fp16, [1.5]> y = relu(x = x);", "1.5", "expected a dimension"),
    "dimensions open": stmt("tensor<fp16, [1> y = relu(x = x);", "> y", "expected ',' or ']' to close the '[' of line 3, column 14, got '>'"),
    "angle open": stmt("tensor<fp16, [1] y = relu(x = x);", "y =", "expected '>' to close the '<' of line 3, column 7, got 'y'"),
    "too many dimensions": stmt("tensor<fp16, [1,1,1,1,1,1,1,1,1]> y = relu(x = x);", "[1,1", "a tensor has at most 8 dimensions"),
    "huge": stmt("tensor<fp16, [9999999999, 9999999999]> y = relu(x = x);", "[99", "the tensor has more than 2^56 elements"),
    "list without length": stmt("list<fp16> y = relu(x = x);", "> y", "expected ',' and the length, got '>'"),
    "list length": stmt("list<fp16, n> y = relu(x = x);", "n>", "expected a length (a number or ?), got 'n'"),
    "empty tuple type": stmt("tuple<> y = relu(x = x);", "> y", "expected a type, got '>'"),
    "dict of one": stmt("dict<string> y = relu(x = x);", "> y", "expected ',' and the type of the values, got '>'"),
    "state of a list": stmt("state<list<fp16, 1>> y = relu(x = x);", "state", "a state holds a tensor"),
    # ---- tokens
    "string open": stmt('string c = const()[val = string("abc)];', '"abc', 'const \'c\': the string opened here is not closed on its line: expected "'),
    "string over lines": stmt('string c = const()[val = string("ab\nc")];', '"ab', "is not closed on its line"),
    "unknown escape": stmt(r'string c = const()[val = string("a\qb")];', '"a', "unknown escape \\q in a string"),
    "zero escape": stmt(r'string c = const()[val = string("a\0b")];', '"a', "unknown escape \\0"),
    "escaped surrogate": stmt(r'string c = const()[val = string("\ud800")];', r'"\u', "unknown escape \\u"),
    "bytes that are no text": stmt(r'string c = const()[val = string("\xff")];', r'"\x', "do not make valid UTF-8"),
    "stray character": stmt("tensor<fp16, [2, 3]> y = relu(x = x) #;", "#", "relu 'y': unexpected character '#'"),
    "stray letter": stmt("tensor<fp16, [2, 3]> y = relu(x = é);", "é", "unexpected byte 0xc3"),
    "block comment": stmt("/* no */", "/*", "comments start with //; /* */ is not MIL"),
    "lone slash": stmt("/", "/", "unexpected character '/'"),
    "sign apart": const("fp16", "- 1", "- 1", "a sign belongs directly before its number; expected a digit after '-'"),
    "signed word": const("fp16", "-x", "-x", "malformed number '-x'"),
    "number and letters": const("fp16", "1x", "1x", "malformed number '1x'"),
    "two points": const("fp16", "1.2.3", "1.2.3", "malformed number '1.2.3'"),
    "no exponent": const("fp16", "1e", "1e", "malformed number '1e'"),
    "hex without exponent": const("fp16", "0x1.8", "0x1.8", "malformed number '0x1.8'"),
    "hex without digits": const("fp16", "0xp1", "0xp1", "malformed number '0xp1'"),
    "binary exponent of a decimal": const("fp16", "1p3", "1p3", "malformed number '1p3'"),
    "point first": const("fp16", ".5", ".5", "unexpected character '.'"),
}


@pytest.mark.parametrize("name", ROWS)
def test_malformed(name: str) -> None:
    text, line, column, message = ROWS[name]
    with pytest.raises(MILError) as e:
        Program.parse(text, filename="dir/model.mil")
    assert message in e.value.msg
    assert (e.value.lineno, e.value.offset) == (line, column), e.value.msg
    assert e.value.filename == "dir/model.mil"
    assert f"(column {column})" in str(e.value) and f"line {line}" in str(e.value)


def test_there_are_enough() -> None:
    assert len(ROWS) >= 130


def test_bytes_that_are_no_utf8() -> None:
    for raw, what in ((b'program(1.3) { } "\xff"', "not valid UTF-8"), (b"\xff", "unexpected byte 0xff"),
                      (b"program\0", "unexpected byte 0x00"), (b'"a\0"', "zero byte"),
                      (b'"\xed\xa0\x80"', "not valid UTF-8"), (b'"\xc0\x80"', "not valid UTF-8")):
        with pytest.raises(MILError, match=what):
            Program.parse(raw)
