"""Text for training: the default corpus, the user's files, vocabulary, windows, bigram.

Everything here is bytes and positions; a training step gets token ids and nothing else.
The default corpus is what every CPython already holds: the language reference in
``pydoc_data.topics`` and the docstrings of the standard library. Both are read with
``ast``; nothing is imported or downloaded.
"""

from __future__ import annotations

import ast
import codecs
import gc
import hashlib
import json
import mmap
import os
import sys
import sysconfig
import tempfile
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from anetorch.env import InputError, available_memory, cache_dir, gigabytes

__all__ = ["Corpus", "Text", "Vocabulary", "Windows", "bigram_loss", "collect_documents",
           "default_corpus", "read_corpus"]

# Folders of the standard library that hold no prose, other people's code, or that
# distributions ship apart, so that the corpus is nearly the same everywhere.
_SKIPPED = frozenset({
    "__pycache__", "distutils", "encodings", "ensurepip", "idle_test", "idlelib", "lib2to3",
    "site-packages", "dist-packages", "test", "tests", "tkinter", "turtledemo",
})
_TOPICS = "pydoc_data/topics.py"
_FORMAT = 1                     # of the cache file
_BETWEEN = b"\n\n"              # what separates two documents of a stream


# ---------------------------------------------------------------- streams of text

class Text:
    """Bytes from several places read as one stream; large files stay mapped, not copied.

    >>> t = Text([b"hello ", b"world"])
    >>> len(t), t.window(4, 4).tobytes()
    (11, b'o wo')
    """

    def __init__(self, parts: Iterable[bytes | memoryview]) -> None:
        self._parts = [memoryview(p) for p in parts if len(p)]
        self._starts = [0]
        for p in self._parts:
            self._starts.append(self._starts[-1] + len(p))

    def __len__(self) -> int:
        return self._starts[-1]

    def window(self, start: int, n: int) -> np.ndarray:
        """Bytes [start, start+n) as a new uint8 array of shape [n].

        Raises ValueError when the range is not inside the stream.
        """
        if start < 0 or n < 0 or start + n > len(self):
            raise ValueError(f"[Text.window] bytes {start}..{start + n} are outside a stream "
                             f"of {len(self)} bytes")
        out = np.empty(n, np.uint8)
        i, filled = bisect_right(self._starts, start) - 1, 0
        while filled < n:
            part, at = self._parts[i], start + filled - self._starts[i]
            take = min(n - filled, len(part) - at)
            out[filled:filled + take] = np.frombuffer(part[at:at + take], np.uint8)
            filled, i = filled + take, i + 1
        return out

    def chunks(self, size: int = 1 << 22) -> Iterable[np.ndarray]:
        """The stream in order, as uint8 arrays of at most ``size`` bytes."""
        for part in self._parts:
            for at in range(0, len(part), size):
                yield np.frombuffer(part[at:at + size], np.uint8)

    def counts(self) -> np.ndarray:
        """How often each byte occurs: int64 [256]."""
        total = np.zeros(256, np.int64)
        for chunk in self.chunks():
            total += np.bincount(chunk, minlength=256)
        return total


@dataclass(frozen=True)
class Corpus:
    """Training and validation text. ``digest`` names the content: two corpora with the
    same digest train the same model."""

    train: Text
    val: Text
    source: str
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        h = hashlib.sha256()
        for text in (self.train, self.val):
            h.update(len(text).to_bytes(8, "little"))
            for chunk in text.chunks():
                h.update(chunk.data)
        object.__setattr__(self, "digest", h.hexdigest())

    def require(self, seq: int) -> None:
        """Raises InputError when a window of ``seq`` + 1 bytes does not fit both parts."""
        for text, part in ((self.train, "training"), (self.val, "validation")):
            if len(text) < seq + 1:
                raise InputError(
                    f"[train] {self.source} is too short: {len(text):,} bytes are left for "
                    f"{part}, and --seq {seq} needs at least {seq + 1:,}: give more text or a "
                    "smaller --seq")


# ---------------------------------------------------------------- the default corpus

def _docstrings(source: bytes) -> str:
    """Docstrings of the module, its classes and functions, in the order of the file."""
    found: list[str] = []

    def visit(node: ast.AST) -> None:
        if text := ast.get_docstring(node):
            found.append(text)
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                visit(child)

    visit(ast.parse(source))
    return "\n\n".join(found)


def _topics(source: bytes) -> dict[str, str]:
    """The dict that pydoc_data/topics.py assigns, without running the file."""
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Dict):
            return ast.literal_eval(node.value)
    return {}


def collect_documents(stdlib: str | os.PathLike[str] | None = None) -> list[tuple[str, bytes]]:
    """Documents of the default corpus as (name, text), sorted by name.

    A document is one topic of the language reference, or the docstrings of one module.
    Takes seconds; ``default_corpus`` keeps the result.

    >>> docs = collect_documents()                              # doctest: +SKIP
    >>> docs[0][0]                                              # doctest: +SKIP
    '__future__.py'
    """
    root = Path(stdlib or sysconfig.get_path("stdlib"))
    documents: list[tuple[str, bytes]] = []
    collecting = gc.isenabled()
    gc.disable()                # a syntax tree is a million objects, and none is a cycle
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")         # invalid escapes in old modules
            for path in root.rglob("*.py"):
                name = path.relative_to(root).as_posix()
                if _SKIPPED.intersection(name.split("/")[:-1]):
                    continue
                try:
                    source = path.read_bytes()
                    if name == _TOPICS:
                        documents += [(f"topics/{k}", v.strip().encode())
                                      for k, v in _topics(source).items()]
                    elif text := _docstrings(source).strip():
                        documents.append((name, text.encode()))
                except (SyntaxError, ValueError, OSError, RecursionError):
                    continue                        # a broken file is no reason to stop
    finally:
        if collecting:
            gc.enable()
    return sorted(documents)


def _split(documents: Sequence[tuple[str, bytes]]) -> tuple[list[bytes], list[bytes]]:
    """(train, validation) by document: in the order of the names' hashes, validation takes
    what fits until it has a sixteenth of all bytes, at least 112 kB where there is that much."""
    total = sum(len(text) for _, text in documents)
    target = min(max(total // 16, 112_000), total // 2)
    train: list[bytes] = []
    val: list[bytes] = []
    held = 0
    for name, text in sorted(documents, key=lambda d: hashlib.sha256(d[0].encode()).digest()):
        if held < target and held + len(text) <= target * 5 // 4:
            val.append(text)
            held += len(text)
        else:
            train.append(text)
    return train, val


def default_corpus(cache: str | os.PathLike[str] | None = None,
                   say: Callable[[str], None] = lambda line: None) -> Corpus:
    """About 2 MB of English and code that every CPython holds, split by document.

    ``cache`` is the folder to keep it in (default: ``env.cache_dir()``); a cache that
    cannot be written only costs the next run a few seconds.

    >>> corpus = default_corpus()                               # doctest: +SKIP
    >>> len(corpus.val) >= 100_000                              # doctest: +SKIP
    True
    """
    root = Path(sysconfig.get_path("stdlib"))
    key = hashlib.sha256(f"{_FORMAT} {sys.version} {root}".encode()).hexdigest()[:16]
    path = Path(cache or cache_dir()) / f"corpus-{key}.json"
    documents = _load_cached(path)
    if documents is None:
        say("collecting the default corpus from the standard library (kept for next time)")
        documents = collect_documents(root)
        total = sum(len(text) for _, text in documents)
        if total < 300_000:
            raise InputError(
                f"[train] the standard library in {root} has only {total:,} bytes of "
                "documentation (stripped or zipped?): name text files of your own")
        try:
            _store_cached(path, documents)
        except OSError as e:
            say(f"the corpus is not kept: {e.strerror or e} ({path.parent})")
    train, val = _split(documents)
    return Corpus(Text(_between(train)), Text(_between(val)),
                  f"the documentation of Python {sys.version.split()[0]}")


def _between(parts: Sequence[bytes]) -> list[bytes]:
    return [piece for p in parts for piece in (p, _BETWEEN)]


def _load_cached(path: Path) -> list[tuple[str, bytes]] | None:
    """The cached documents, or None when the file is missing, damaged or of another form."""
    try:
        digest, _, body = path.read_bytes().partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            return None
        return [(name, text.encode()) for name, text in json.loads(body)]
    except (OSError, ValueError):
        return None


def _store_cached(path: Path, documents: Sequence[tuple[str, bytes]]) -> None:
    body = json.dumps([(name, text.decode()) for name, text in documents]).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, tmp = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        os.replace(tmp, path)
    except BaseException:
        os.unlink(tmp)
        raise


# ---------------------------------------------------------------- the user's files

_CHUNK = 1 << 22


class _TextCheck:
    """Looks at text piece by piece. Raises InputError for what is not UTF-8 text."""

    def __init__(self, where: str) -> None:
        self.where, self.at = where, 0
        self.decoder = codecs.getincrementaldecoder("utf-8")()

    def piece(self, chunk: bytes, final: bool) -> None:
        if (zero := chunk.find(0)) >= 0:
            raise InputError(f"{self.where} is not text (byte 0 at offset {self.at + zero:,}): give "
                             "text files only")
        try:
            self.decoder.decode(chunk, final=final)
        except UnicodeDecodeError as e:
            first = self.at + len(chunk) - len(e.object) + e.start
            raise InputError(f"{self.where} is not UTF-8 text (byte 0x{e.object[e.start]:02x} at offset "
                             f"{first:,}): convert it, e.g. with iconv -t UTF-8") from None
        self.at += len(chunk)


def _read_stream(f: BinaryIO, where: str) -> bytes:
    """What has no size beforehand: a pipe, a terminal, a device. It is looked at as it comes and
    bounded by the memory that is free, since it need not end."""
    check, pieces = _TextCheck(where), []
    most = (available_memory() or 1 << 32) // 4
    while chunk := f.read(_CHUNK):
        check.piece(chunk, False)
        pieces.append(chunk)
        if check.at > most:
            raise InputError(f"{where} has not ended after {gigabytes(check.at)}, and is read into "
                             "memory: write it to a file and name that")
    check.piece(b"", True)
    return b"".join(pieces)


def _open_text(path: Path) -> memoryview:
    """A text file, mapped. Raises InputError for what is not readable UTF-8 text."""
    where = f"[train] {path}"
    try:
        with open(path, "rb") as f:
            if not os.fstat(f.fileno()).st_size:            # a pipe has size 0 too
                if not (data := _read_stream(f, where)):
                    raise InputError(f"{where} is empty: give a file with text")
                return memoryview(data)
            view = memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise InputError(f"{where} does not exist: check the name") from None
    except IsADirectoryError:
        raise InputError(f"{where} is a folder: name the files in it") from None
    except OSError as e:
        raise InputError(f"{where} cannot be read: {e.strerror}") from None
    check = _TextCheck(where)
    for at in range(0, len(view), _CHUNK):
        check.piece(bytes(view[at:at + _CHUNK]), at + _CHUNK >= len(view))
    return view


def read_corpus(paths: Sequence[str | os.PathLike[str]]) -> Corpus:
    """The user's text files as a corpus.

    With 16 files or more each is a document, and they are split as the default corpus is.
    With fewer, the last tenth of each file (from the next line on) is for validation.

    Raises InputError for a missing, empty, unreadable or binary file.

    >>> import pathlib, tempfile
    >>> f = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
    >>> _ = f.write_text("one line of text\\n" * 100)
    >>> corpus = read_corpus([f])
    >>> len(corpus.train), len(corpus.val)
    (1547, 153)
    """
    if not all(os.fspath(p) for p in paths):
        raise InputError("[train] the name of a FILE is empty: name a file with text")
    views = [(os.fspath(p), _open_text(Path(p))) for p in paths]
    source = views[0][0] if len(views) == 1 else f"the text of {len(views)} files"
    if len(views) >= 16:
        train, val = _split([(name, view) for name, view in views])     # type: ignore[misc]
        return Corpus(Text(_between(train)), Text(_between(val)), source)
    train, val = [], []
    for _, view in views:
        cut = len(view) * 9 // 10
        line = bytes(view[cut:cut + 4096]).find(b"\n")
        cut += line + 1 if 0 <= line < len(view) - cut - 1 else 0
        while cut < len(view) and view[cut] & 0xC0 == 0x80:     # not inside a character
            cut += 1
        train.append(view[:cut])
        val.append(view[cut:])
    if len(views) == 1:
        return Corpus(Text(train), Text(val), source)
    return Corpus(Text(_between(train)), Text(_between(val)), source)


# ---------------------------------------------------------------- vocabulary

class Vocabulary:
    """Bytes <-> token ids.

    Compacted: the bytes that occur, in their order, are ids 0..n-1. Of a fixed size:
    byte b is id b, as in the models that bring a vocabulary of their own.

    >>> v = Vocabulary(b"abn")
    >>> v.encode(b"banana").tolist(), v.decode([1, 0, 2])
    ([1, 0, 2, 0, 2, 0], b'ban')
    """

    def __init__(self, symbols: bytes, size: int | None = None) -> None:
        if len(set(symbols)) != len(symbols) or not symbols:
            raise ValueError(f"[Vocabulary] expected distinct bytes, at least one, got {symbols!r}")
        self.symbols = symbols
        self.size = len(symbols) if size is None else size
        if self.size < len(symbols):
            raise ValueError(f"[Vocabulary] {len(symbols)} bytes do not fit {self.size} ids")
        self._ids = np.full(256, -1, np.int32)
        self._ids[np.frombuffer(symbols, np.uint8)] = np.arange(len(symbols), dtype=np.int32)

    @classmethod
    def of(cls, corpus: Corpus, size: int | None = None) -> Vocabulary:
        """For a corpus: compacted, or of a fixed ``size``, which must reach the highest byte.

        >>> Vocabulary.of(Corpus(Text([b"abc"]), Text([b"abd"]), "letters")).size
        4
        """
        occurs = np.flatnonzero(corpus.train.counts() + corpus.val.counts())
        if size is None:
            return cls(occurs.astype(np.uint8).tobytes())
        if occurs[-1] >= size:
            raise InputError(f"[train] {corpus.source} holds the byte 0x{occurs[-1]:02x}, and the "
                             f"model's vocab_size of {size} ends before it: use at least 256")
        return cls(bytes(range(min(size, 256))), size)

    def encode(self, text: bytes | np.ndarray) -> np.ndarray:
        """Token ids, int32, of the shape of ``text``.

        Raises InputError for a byte that has no id.
        """
        raw = np.frombuffer(text, np.uint8) if isinstance(text, bytes) else text
        ids = self._ids[raw]
        if ids.size and ids.min() < 0:
            at = int(np.flatnonzero(ids.ravel() < 0)[0])
            raise InputError(f"[encode] byte 0x{raw.ravel()[at]:02x} at offset {at} is not among "
                             f"the {len(self.symbols)} the model was trained on: leave it out")
        return ids

    def decode(self, ids: Iterable[int]) -> bytes:
        """Bytes of token ids; an id that stands for no byte becomes ``?``."""
        n = len(self.symbols)
        return bytes(self.symbols[i] if 0 <= i < n else ord("?") for i in ids)


# ---------------------------------------------------------------- windows

class Windows:
    """Random windows of a stream, a pure function of (seed, micro-step, row), so that a
    resumed run sees the same text as one that was never stopped.

    >>> w = Windows(Text([bytes(range(100))]), Vocabulary(bytes(range(256))), 8, 2, seed=1)
    >>> tokens, targets = w.batch(5)
    >>> tokens.shape, bool((tokens[:, 1:] == targets[:, :-1]).all())
    ((2, 8), True)
    """

    def __init__(self, text: Text, vocab: Vocabulary, seq: int, batch: int, seed: int) -> None:
        self._text, self._vocab = text, vocab
        self._seq, self._batch, self._seed = seq, batch, seed
        self._room = len(text) - seq            # starts 0 .. room-1 leave a target
        if self._room < 1:
            raise ValueError(f"[Windows] {len(text)} bytes hold no window of {seq} + 1")

    def start(self, micro_step: int, row: int) -> int:
        """Where row ``row`` of micro-step ``micro_step`` begins."""
        name = f"{self._seed} {micro_step} {row}".encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little") % self._room

    def batch(self, micro_step: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, targets), int32 [batch, seq] each: targets are tokens one position on."""
        rows = [self._text.window(self.start(micro_step, r), self._seq + 1)
                for r in range(self._batch)]
        ids = self._vocab.encode(np.stack(rows))
        return ids[:, :-1], ids[:, 1:]


def validation_windows(text: Text, vocab: Vocabulary, seq: int,
                       most: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, targets), int32 [n, seq] each: the stream from its start in windows that
    follow each other, at most ``most`` bytes (at least one window). Every target is
    predicted once."""
    n = max(1, min(len(text) - 1, most) // seq)
    ids = vocab.encode(text.window(0, n * seq + 1))
    return ids[:-1].reshape(n, seq), ids[1:].reshape(n, seq)


# ---------------------------------------------------------------- the baseline

def bigram_loss(train: Text, tokens: np.ndarray, targets: np.ndarray,
                vocab: Vocabulary) -> float:
    """Nats per byte of a smoothed bigram table counted on ``train`` and scored on the
    very pairs (tokens[i], targets[i]) that the model is scored on.

    p(b | a) = (count(a, b) + k * p(b)) / (count(a) + k), where p(b) is the table of
    single bytes with one added to each count, and k the number of bytes that occur: the
    usual back-off, so that a pair never seen has a probability.

    >>> t = Text([b"ababab" * 50])
    >>> v = Vocabulary(b"ab")
    >>> ids = v.encode(b"ababa")
    >>> round(bigram_loss(t, ids[:-1], ids[1:], v), 4)
    0.0066
    """
    pairs = np.zeros(1 << 16, np.int64)
    last: int | None = None
    for chunk in train.chunks():
        wide = chunk.astype(np.int64)
        pairs += np.bincount(wide[:-1] * 256 + wide[1:], minlength=1 << 16)
        if last is not None:
            pairs[last * 256 + int(wide[0])] += 1
        last = int(wide[-1])
    symbols = np.frombuffer(vocab.symbols, np.uint8)
    table = pairs.reshape(256, 256)[np.ix_(symbols, symbols)].astype(np.float64)
    single = train.counts()[symbols] + 1.0
    single /= single.sum()
    k = float(len(symbols))
    p = (table + k * single) / (table.sum(1, keepdims=True) + k)
    return float(-np.log(p[tokens.ravel(), targets.ravel()]).mean())
