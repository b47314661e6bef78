"""A bounded reader of thin 64-bit Mach-O files: what a wheel built on another system says about
itself. Every offset is checked against the file; what does not fit raises MachOError.

Layout: loader.h and (for signatures) cs_blobs.h as Apple published them.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["CPU", "Dylib", "MachO", "MachOError", "Signature", "Symbol", "read"]

CPU = {0x01000007: "x86_64", 0x0100000C: "arm64"}
DYLIB = 6                               # file types


class MachOError(ValueError):
    """The file is cut, not a Mach-O, or says what cannot be."""


@dataclass(frozen=True)
class Dylib:
    name: str
    weak: bool


@dataclass(frozen=True)
class Symbol:
    name: str                           # with C's underscore
    library: str                        # install name, or "dynamic lookup", "self", ...
    weak: bool


@dataclass(frozen=True)
class Signature:
    adhoc: bool
    identifier: str
    pages_match: bool                   # every page's hash, computed anew


@dataclass
class MachO:
    arch: str
    type: int
    flags: int
    install_name: str = ""
    dylibs: list[Dylib] = field(default_factory=list)
    rpaths: list[str] = field(default_factory=list)
    platform: str = ""                  # "macos"
    minimum: tuple[int, int] = (0, 0)   # oldest system
    undefined: set[Symbol] = field(default_factory=set)
    exported: set[str] = field(default_factory=set)
    signature: Signature | None = None
    commands: set[int] = field(default_factory=set)


def _unpack(form: str, data: bytes, at: int) -> tuple[int, ...]:
    if at < 0 or at + struct.calcsize(form) > len(data):
        raise MachOError(f"{struct.calcsize(form)} bytes at {at} are beyond the end, {len(data)}")
    return struct.unpack_from(form, data, at)


def _slice(data: bytes, at: int, size: int) -> bytes:
    if at < 0 or size < 0 or at + size > len(data):
        raise MachOError(f"{size} bytes at {at} are beyond the end, {len(data)}")
    return data[at:at + size]


def _text(data: bytes, at: int) -> str:
    end = data.find(b"\0", at) if 0 <= at < len(data) else -1
    if end < 0:
        raise MachOError(f"no string at {at}")
    return data[at:end].decode("utf-8", "replace")


def read(source: Path | bytes) -> MachO:
    """What the file says. Fat files, 32-bit and big-endian ones are refused."""
    data = source if isinstance(source, bytes) else source.read_bytes()
    magic, cpu, _, kind, count, size, flags, _ = _unpack("<8I", data, 0)
    if magic != 0xFEEDFACF:
        raise MachOError(f"magic 0x{magic:08x} is not that of a thin 64-bit file")
    if cpu not in CPU:
        raise MachOError(f"CPU type 0x{cpu:08x}")
    out = MachO(CPU[cpu], kind, flags)
    commands = _slice(data, 32, size)
    info: tuple[int, ...] = ()
    at = 0
    for _ in range(count):
        cmd, length = _unpack("<2I", commands, at)
        if length < 8 or length % 8:
            raise MachOError(f"load command of {length} bytes")
        body = _slice(commands, at, length)
        out.commands.add(cmd)
        if cmd in (0xC, 0x80000018, 0x8000001F):        # load, weak, re-export
            out.dylibs.append(Dylib(_text(body, *_unpack("<I", body, 8)), cmd == 0x80000018))
        elif cmd == 0xD:
            out.install_name = _text(body, *_unpack("<I", body, 8))
        elif cmd == 0x8000001C:
            out.rpaths.append(_text(body, *_unpack("<I", body, 8)))
        elif cmd == 0x32:                               # build version
            platform, version = _unpack("<2I", body, 8)
            out.platform = {1: "macos"}.get(platform, str(platform))
            out.minimum = version >> 16, version >> 8 & 255
        elif cmd == 0x24:                               # its older form
            (version,) = _unpack("<I", body, 8)
            out.platform, out.minimum = "macos", (version >> 16, version >> 8 & 255)
        elif cmd in (0x22, 0x80000022):                 # dyld's own tables
            info = _unpack("<10I", body, 8)
        elif cmd == 0x1D:
            out.signature = _signature(data, *_unpack("<2I", body, 8))
        at += length
    if info:                            # after all commands: ordinals count them
        for k, lazy in ((2, False), (4, False), (6, True)):     # bind, weak, lazy
            _bindings(_slice(data, info[k], info[k + 1]), lazy, out)
        _exports(_slice(data, info[8], info[9]), out)
    return out


def _uleb(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        (byte,) = _unpack("<B", data, at)
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
        if shift > 63:
            raise MachOError(f"a number of more than 64 bits before {at}")


def _bindings(code: bytes, lazy: bool, out: MachO) -> None:
    """What dyld looks up, and where: the binding opcodes, of which only the names matter here."""
    at, library, name, weak = 0, "", "", False
    while at < len(code):
        opcode, immediate = code[at] & 0xF0, code[at] & 0x0F
        at += 1
        if opcode == 0x00:                              # done: of all, or of one lazy symbol
            if not lazy:
                break
        elif opcode in (0x10, 0x20):                    # library
            if opcode == 0x20:
                immediate, at = _uleb(code, at)
            if not immediate:
                library = "self"
            elif immediate <= len(out.dylibs):
                library = out.dylibs[immediate - 1].name
            else:
                raise MachOError(f"library {immediate} of {len(out.dylibs)}")
        elif opcode == 0x30:                            # a special place: 0 is ourselves
            library = {0: "self", 15: "the program", 14: "dynamic lookup",
                       13: "weak lookup"}.get(immediate, f"special {immediate}")
        elif opcode == 0x40:
            name, weak = _text(code, at), bool(immediate & 1)
            at = code.index(b"\0", at) + 1
        elif opcode in (0x60, 0x70, 0x80, 0xA0):        # addend, segment and offset, skip
            _, at = _uleb(code, at)
        elif opcode in (0x50, 0xD0):
            pass
        elif opcode in (0x90, 0xB0, 0xC0):              # bind
            out.undefined.add(Symbol(name, library, weak))
            for _ in range({0x90: 0, 0xB0: 0, 0xC0: 2}[opcode]):
                _, at = _uleb(code, at)
        else:
            raise MachOError(f"binding opcode 0x{opcode:02x}")
        if opcode == 0xA0:
            out.undefined.add(Symbol(name, library, weak))


def _exports(trie: bytes, out: MachO) -> None:
    seen, todo = set(), [(0, b"")] if trie else []
    while todo:
        at, prefix = todo.pop()
        if at in seen:
            raise MachOError(f"export node {at} is met twice")
        seen.add(at)
        size, at = _uleb(trie, at)
        if size:
            out.exported.add(prefix.decode("utf-8", "replace"))
        at += size
        (children,) = _unpack("<B", trie, at)
        at += 1
        for _ in range(children):
            edge = trie.find(b"\0", at)
            if edge < 0:
                raise MachOError("an export's name has no end")
            node, after = _uleb(trie, edge + 1)
            todo.append((node, prefix + trie[at:edge]))
            at = after


def _signature(data: bytes, offset: int, size: int) -> Signature:
    blob = _slice(data, offset, size)
    magic, _, count = _unpack(">3I", blob, 0)
    if magic != 0xFADE0CC0:
        raise MachOError(f"signature of magic 0x{magic:08x}")
    for i in range(count):
        kind, at = _unpack(">2I", blob, 12 + 8 * i)
        if kind:                                        # slot 0: the code directory
            continue
        (magic, length, _, flags, hashes, name, _, n, limit,
         hash_size, hash_type, _, page, _) = _unpack(">9I4BI", blob, at)
        directory = _slice(blob, at, length)
        if magic != 0xFADE0C02 or hash_type != 2 or hash_size != 32 or not 0 < page < 32:
            raise MachOError("a code directory that is not of SHA-256 pages")
        step = 1 << page
        code = _slice(data, 0, limit)
        good = limit == offset and n == -(-limit // step) and all(
            hashlib.sha256(code[k * step:(k + 1) * step]).digest()
            == _slice(directory, hashes + 32 * k, 32) for k in range(n))
        return Signature(bool(flags & 2), _text(directory, name), good)
    raise MachOError("a signature without a code directory")
