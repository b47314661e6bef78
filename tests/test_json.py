"""The bounded JSON reader (csrc/base/json.c) against Python's json, and its messages."""

from __future__ import annotations

import json
import random

import pytest

from anetorch._core import _testing


def reference(text: bytes):
    """json.loads, strictly: objects as pairs, numbers that are no plain integer as None."""
    def constant(name):
        raise ValueError(name)

    def number(s):
        return int(s) if s.isdigit() and len(s) <= 19 else None

    return json.loads(text.decode("utf-8"), object_pairs_hook=lambda p: [tuple(x) for x in p],
                      parse_int=number, parse_float=lambda s: None, parse_constant=constant)


GOOD = [
    b"{}", b"[]", b" [ ] ", b'""', b"0", b"-0", b"-1.5e+30", b"1E5", b"12345678901234567",
    b"true", b"false", b"null", b'{"a":{"b":[1,2,{"c":null}]},"":[]}',
    b'"\\"\\\\\\/\\b\\f\\n\\r\\t"', b'"\\u00e9\\u20AC\\ud83d\\ude00"', "\"é€😀\"".encode(),
    b'{"a":1,"a":2}', b"\t[\r\n1 , 2 ]\n", b'["\x7f"]', b'"\\u0000"',
]
BAD = [
    b"", b" ", b"{", b"[", b"]", b"{]", b"[1,]", b"[,1]", b'{"a"}', b'{"a":}', b'{"a":1,}',
    b"{1:2}", b'{"a" 1}', b'"', b'"\\', b'"\\x"', b'"\\u12"', b'"\\ud800"', b'"\\ud800\\u0041"',
    b'"\\udc00"', b'"a\nb"', b'"\x00"', b'"\xff"', b'"\xc0\xaf"', b'"\xed\xa0\x80"',
    b'"\xf5\x80\x80\x80"', b'"\xe2\x82"', b"01", b"-", b"1.", b".5", b"1e", b"+1", b"0x1",
    b"NaN", b"Infinity", b"tru", b"nulll", b"1 2", b"[1] x", b"[1 2]", b'{"a":1 "b":2}',
    b"\xef\xbb\xbf{}", b"'a'", b"//x\n1",
]


@pytest.mark.parametrize("text", GOOD)
def test_accepts(text):
    assert _testing.json(text) == reference(text)
    assert _testing.json(text, True) is None


@pytest.mark.parametrize("text", BAD)
def test_refuses(text):
    with pytest.raises(ValueError, match="JSON: "):
        _testing.json(text)
    with pytest.raises(ValueError, match="JSON: "):
        _testing.json(text, True)


def test_agrees_with_python_on_mutations():
    """Flips, cuts and doublings of good texts: both accept, with equal values, or neither."""
    rng = random.Random(7)
    seeds = [*GOOD, json.dumps({"__metadata__": {"k": "v"}, "w": {
        "dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()]
    accepted = 0
    for _ in range(20_000):
        t = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 3)):
            i = rng.randrange(len(t) + 1)
            kind = rng.randrange(3)
            if kind == 0:
                t[i:i] = bytes([rng.choice(b'{}[]",:\\0123456789eE+-.truefalsn\xc3\xa9 \n')])
            elif kind == 1:
                del t[i:i + rng.randint(1, 3)]
            else:
                t[i:i + 1] = bytes([rng.randrange(256)])
        text = bytes(t)
        try:
            want = reference(text)
            # Python lets lone surrogates through, we do not
            json.dumps(want, ensure_ascii=False).encode("utf-8")
            if text.startswith(b"\xef\xbb\xbf"):
                raise ValueError
        except (ValueError, UnicodeError):
            with pytest.raises(ValueError):
                _testing.json(text)
            continue
        accepted += 1
        assert _testing.json(text) == want, text
    assert accepted > 500


def test_depth_is_bounded():
    for o, c in ((b"[", b"]"), (b'{"a":', b"}")):
        ok = o * 64 + b"1" + c * 64
        _testing.json(ok)
        for n in (65, 100_000):
            deep = o * n + b"1" + c * n
            for skip in (False, True):
                with pytest.raises(ValueError, match="nested deeper than 64 levels"):
                    _testing.json(deep, skip)


def test_messages_say_where():
    with pytest.raises(ValueError) as e:
        _testing.json(b'{"a": 1,\n "b": [1, 2}')
    assert str(e.value) == "text:2:12: JSON: expected ',' or ']', found '}' (byte 20)"
    with pytest.raises(ValueError, match=r"text:1:3: JSON: this string is not closed \(byte 2\)"):
        _testing.json(b'[ "abc')
    with pytest.raises(ValueError, match="expected a value, the text ends"):
        _testing.json(b"[")
    with pytest.raises(ValueError, match="found byte 0xFF"):
        _testing.json(b"\xff")


@pytest.mark.parametrize("text, value", [
    (b"0", 0), (b" 18446744073709551615 ", 2**64 - 1), (b"9223372036854775808", 2**63)])
def test_u64(text, value):
    assert _testing.json_u64(text) == value


@pytest.mark.parametrize("text, message", [
    (b"18446744073709551616", r"above 2\^64-1"), (b"9" * 400, r"above 2\^64-1"),
    (b"-1", "an integer of at least 0"), (b"1.0", "no fraction or exponent"),
    (b"1e3", "no fraction or exponent"), (b"00", "starts with 0"), (b'"1"', "an integer"),
    (b"", "the text ends"), (b"1 1", "expected the end")])
def test_u64_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        _testing.json_u64(text)
