"""Corpus, vocabulary, windows and the bigram baseline."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anetorch import data
from anetorch.data import (Corpus, Text, Vocabulary, Windows, bigram_loss, collect_documents,
                           default_corpus, read_corpus, validation_windows)
from anetorch.env import InputError

STDLIB = {
    "one.py": '"""Module one."""\n\nclass A:\n    """Class A."""\n    def f(self):\n        """f."""\n',
    "pkg/two.py": 'def g():\n    """g tells."""\n    def inner():\n        "inner"\n',
    "pkg/broken.py": "def (:\n",
    "pkg/nothing.py": "x = 1\n",
    "test/three.py": '"""A test module: skipped."""\n',
    "pydoc_data/topics.py": "import nowhere\ntopics = {'if': 'The if statement\\n', 'for': 'Loops'}\n",
}


@pytest.fixture
def stdlib(tmp_path: Path) -> Path:
    for name, text in STDLIB.items():
        path = tmp_path / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "lib"


COLLECT = """
import sys, anetorch.data as d
before = set(sys.modules)
corpus = d.default_corpus()
new = set(sys.modules) - before
assert not {'pydoc_data.topics', 'this', 'antigravity'} & new and len(new) < 20, new
print(corpus.digest)
"""


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """The default corpus, collected by another process: hundreds of modules are read and
    none of them is imported. This process then finds it in the cache."""
    done = subprocess.run([sys.executable, "-c", COLLECT], check=True, capture_output=True, text=True)
    corpus = default_corpus()
    assert corpus.digest == done.stdout.strip()
    return corpus


# ---------------------------------------------------------------- the default corpus

def test_documents_are_topics_and_docstrings(stdlib: Path) -> None:
    assert collect_documents(stdlib) == [
        ("one.py", b"Module one.\n\nClass A.\n\nf."),
        ("pkg/two.py", b"g tells.\n\ninner"),
        ("topics/for", b"Loops"),
        ("topics/if", b"The if statement"),
    ]


def test_size_and_split_of_the_default_corpus(corpus: Corpus) -> None:
    assert 1_000_000 < len(corpus.train) < 5_000_000
    assert 100_000 <= len(corpus.val) < len(corpus.train) / 8


def test_split_is_by_document() -> None:
    docs = [(f"d{i}", bytes([65 + i % 26]) * (5000 + 37 * i)) for i in range(60)]
    train, val = data._split(docs)
    assert sorted(train + val) == sorted(text for _, text in docs)
    held = sum(map(len, val))
    assert 112_000 <= held <= 112_000 * 5 // 4
    # The order in which documents are found does not matter.
    assert data._split(docs[::-1]) == (train, val)


def test_cache_is_used_and_survives_damage(stdlib: Path, tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    (stdlib / "long.py").write_text('"""' + "words and words. " * 20_000 + '"""\n')
    monkeypatch.setattr(data.sysconfig, "get_path", lambda name: str(stdlib))
    said: list[str] = []
    first = default_corpus(tmp_path / "cache", said.append)
    (kept,) = (tmp_path / "cache").iterdir()
    assert len(said) == 1
    again = default_corpus(tmp_path / "cache", said.append)
    assert len(said) == 1 and again.digest == first.digest
    kept.write_bytes(kept.read_bytes()[:-7])                    # cut short
    assert default_corpus(tmp_path / "cache", said.append).digest == first.digest
    assert len(said) == 2
    assert default_corpus(tmp_path / "cache", said.append).digest == first.digest
    assert len(said) == 2                                       # and was written anew
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [kept.name]


def test_a_cache_that_cannot_be_written_is_only_said(stdlib: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    (stdlib / "long.py").write_text('"""' + "words and words. " * 20_000 + '"""\n')
    monkeypatch.setattr(data.sysconfig, "get_path", lambda name: str(stdlib))
    (tmp_path / "file").touch()
    said: list[str] = []
    assert len(default_corpus(tmp_path / "file" / "cache", said.append).train) > 100_000
    assert "not kept" in said[-1]


def test_a_stripped_standard_library_is_an_error(stdlib: Path, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.sysconfig, "get_path", lambda name: str(stdlib))
    with pytest.raises(InputError, match="name text files of your own"):
        default_corpus(tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.is_file()]


# ---------------------------------------------------------------- the user's files

def test_the_tail_of_a_file_is_for_validation(tmp_path: Path) -> None:
    text = "".join(f"line {i}\n" for i in range(1000)).encode()
    (tmp_path / "a.txt").write_bytes(text)
    c = read_corpus([tmp_path / "a.txt"])
    train, val = c.train.window(0, len(c.train)).tobytes(), c.val.window(0, len(c.val)).tobytes()
    assert train + val == text and val.startswith(b"line ") and train.endswith(b"\n")
    assert 0.09 < len(val) / len(text) < 0.1


def test_the_cut_is_not_inside_a_character(tmp_path: Path) -> None:
    for n in range(40, 60):                     # one line without an end, of 2-byte characters
        (tmp_path / "a.txt").write_text("ä" * n, encoding="utf-8")
        c = read_corpus([tmp_path / "a.txt"])
        c.train.window(0, len(c.train)).tobytes().decode()
        c.val.window(0, len(c.val)).tobytes().decode()


def test_many_files_are_documents(tmp_path: Path) -> None:
    paths = []
    for i in range(20):
        path = tmp_path / f"{i}.txt"
        path.write_text(chr(65 + i) * 1000)
        paths.append(path)
    c = read_corpus(paths)
    train, val = c.train.counts(), c.val.counts()
    for i in range(20):
        assert sorted((train[65 + i], val[65 + i])) == [0, 1000]
    assert val[65:].sum() >= 1000


@pytest.mark.parametrize("content, what", [
    (None, "does not exist"),
    (b"", "is empty"),
    (b"abc\0def", r"is not text \(byte 0 at offset 3\)"),
    (b"abc\xff\xfe", r"is not UTF-8 text \(byte 0xff at offset 3\)"),
    (b"x" * ((1 << 22) - 1) + "ä".encode() + b"\xe4", r"byte 0xe4 at offset 4,194,305\)"),
    (b"abc\xc3", r"is not UTF-8 text \(byte 0xc3 at offset 3\)"),
])
def test_unusable_files(tmp_path: Path, content: bytes | None, what: str) -> None:
    path = tmp_path / "x.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=what) as e:
        read_corpus([path])
    assert "x.txt" in str(e.value)


@pytest.fixture
def pipe(tmp_path: Path) -> Callable[[Iterable[bytes]], Path]:
    """A named pipe that somebody writes these pieces into, until nobody reads."""
    def make(pieces: Iterable[bytes]) -> Path:
        path = tmp_path / "pipe.txt"
        os.mkfifo(path)

        def write() -> None:
            with contextlib.suppress(BrokenPipeError), open(path, "wb", buffering=0) as f:
                for piece in pieces:
                    f.write(piece)

        threading.Thread(target=write, daemon=True).start()
        return path

    return make


def test_a_pipe_is_read(pipe: Callable[[Iterable[bytes]], Path], tmp_path: Path) -> None:
    text = ("Zeile ä\n" * 1_000_000).encode()                 # a character across a piece's border
    (tmp_path / "x.txt").write_bytes(text)
    assert len(text) > 2 * data._CHUNK
    got, want = read_corpus([pipe([text])]), read_corpus([tmp_path / "x.txt"])
    assert got.digest == want.digest


@pytest.mark.parametrize("pieces, what", [
    ([], "pipe.txt is empty"),
    (itertools.chain([b"abc\n" * 1000], itertools.repeat(b"\0" * 4096)), r"not text \(byte 0 at offset 4,000\)"),
    ([b"abc\xc3"], r"not UTF-8 text \(byte 0xc3 at offset 3\)"),
    (itertools.repeat(b"text without end\n" * 4096), "has not ended after .* MB, and is read into memory: write"),
])
def test_what_a_pipe_must_not_be(pipe: Callable[[Iterable[bytes]], Path], pieces: Iterable[bytes], what: str,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "available_memory", lambda: 100 << 20)
    with pytest.raises(InputError, match=what):
        read_corpus([pipe(pieces)])


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder: name the files in it"):
        read_corpus([tmp_path])


def test_too_short_for_the_window(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short\n" * 40)
    c = read_corpus([tmp_path / "a.txt"])
    c.require(8)
    with pytest.raises(InputError, match=r"18 bytes are left for validation, and --seq 64 needs at "
                                         r"least 65"):
        c.require(64)


def test_digest_names_content_and_split() -> None:
    def digest(a: bytes, b: bytes) -> str:
        return Corpus(Text([a]), Text([b]), "x").digest
    assert digest(b"abc", b"d") == digest(b"abc", b"d")
    assert len({digest(b"abc", b"d"), digest(b"ab", b"cd"), digest(b"abc", b"e")}) == 3
    assert Corpus(Text([b"a", b"bc"]), Text([b"d"]), "y").digest == digest(b"abc", b"d")


# ---------------------------------------------------------------- streams, vocabulary, windows

@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=9), max_size=7), st.data())
def test_windows_of_a_stream_are_slices_of_its_bytes(parts: list[bytes], draw: st.DataObject) -> None:
    text, whole = Text(parts), b"".join(parts)
    assert len(text) == len(whole)
    start = draw.draw(st.integers(0, len(whole)))
    n = draw.draw(st.integers(0, len(whole) - start))
    assert text.window(start, n).tobytes() == whole[start:start + n]
    assert b"".join(c.tobytes() for c in text.chunks(4)) == whole
    assert text.counts().tolist() == np.bincount(np.frombuffer(whole, np.uint8),
                                                 minlength=256).tolist()


def test_a_window_outside_the_stream_raises() -> None:
    for start, n in ((0, 4), (3, 1), (-1, 1), (0, -1)):
        with pytest.raises(ValueError, match="are outside a stream of 3 bytes"):
            Text([b"abc"]).window(start, n)


def test_compacted_vocabulary() -> None:
    c = Corpus(Text([b"hello"]), Text([b"world"]), "x")
    v = Vocabulary.of(c)
    assert v.symbols == bytes(sorted(set(b"helloworld"))) and v.size == 7
    assert v.decode(v.encode(b"drew")) == b"drew"
    with pytest.raises(InputError, match="byte 0x7a at offset 1 is not among the 7"):
        v.encode(b"dz")


def test_vocabulary_of_a_fixed_size_keeps_bytes_as_ids() -> None:
    c = Corpus(Text([b"hello"]), Text([b"world"]), "x")
    v = Vocabulary.of(c, 32000)
    assert v.size == 32000 and v.encode(b"az\xff").tolist() == [97, 122, 255]
    assert v.decode([97, 31999]) == b"a?"
    assert Vocabulary.of(c, 128).size == 128
    with pytest.raises(InputError, match="holds the byte 0x77, and the model's vocab_size of 100"):
        Vocabulary.of(c, 100)


def test_batches_are_a_function_of_the_step() -> None:
    text, v = Text([bytes(range(256)) * 3]), Vocabulary(bytes(range(256)))
    a, b = Windows(text, v, 16, 4, seed=7), Windows(text, v, 16, 4, seed=7)
    late = a.batch(1000)
    for i in range(3):
        tokens, targets = a.batch(i)
        assert tokens.shape == targets.shape == (4, 16) and tokens.dtype == np.int32
        assert (targets == (tokens + 1) % 256).all()
        assert (tokens == b.batch(i)[0]).all()
    assert (late[0] == b.batch(1000)[0]).all()
    assert not (a.batch(0)[0] == a.batch(1)[0]).all()
    assert not (a.batch(0)[0] == Windows(text, v, 16, 4, seed=8).batch(0)[0]).all()


def test_starts_of_windows_do_not_change_between_versions() -> None:
    """A checkpoint of today must find the same text tomorrow."""
    w = Windows(Text([bytes(100_000)]), Vocabulary(b"\0"), 64, 2, seed=3)
    expected = int.from_bytes(hashlib.blake2b(b"3 5 1", digest_size=16).digest(), "little")
    assert w.start(5, 1) == expected % (100_000 - 64)
    assert {Windows(Text([b"\0\0\0"]), Vocabulary(b"\0"), 2, 1, s).start(0, 0)
            for s in range(20)} == {0}                          # just one start fits


def test_every_start_can_be_drawn() -> None:
    w = Windows(Text([bytes(13)]), Vocabulary(b"\0"), 8, 1, seed=0)
    assert {w.start(i, 0) for i in range(200)} == set(range(5))


def test_validation_windows_predict_each_byte_once() -> None:
    v = Vocabulary(bytes(range(256)))
    tokens, targets = validation_windows(Text([bytes(range(100))]), v, 8, most=50)
    assert tokens.shape == (6, 8)
    assert targets.ravel().tolist() == list(range(1, 49))
    assert tokens.ravel().tolist() == list(range(48))
    assert validation_windows(Text([bytes(range(100))]), v, 64, most=10)[0].shape == (1, 64)


# ---------------------------------------------------------------- the baseline

def test_bigram_loss_against_plain_counting() -> None:
    rng = np.random.default_rng(5)
    train = rng.choice(list(b"abcde"), 400, p=[.4, .3, .1, .1, .1]).astype(np.uint8).tobytes()
    test = b"abacabadabaeabfa"
    v = Vocabulary(bytes(sorted(set(train + test))))
    ids = v.encode(test)
    got = bigram_loss(Text([train[:123], train[123:]]), ids[:-1], ids[1:], v)
    k, total = len(v.symbols), 0.0
    for a, b in zip(test, test[1:], strict=False):
        both = sum(x == a and y == b for x, y in zip(train, train[1:], strict=False))
        single = (train.count(b) + 1) / (len(train) + k)
        total -= math.log((both + k * single) / (train[:-1].count(a) + k))
    assert got == pytest.approx(total / (len(test) - 1), rel=1e-12)


def test_bigram_is_a_distribution() -> None:
    v = Vocabulary(b"abcd")
    t = Text([b"abcabcabd"])
    for a in range(4):
        p = [math.exp(-bigram_loss(t, np.array([a]), np.array([b]), v)) for b in range(4)]
        assert sum(p) == pytest.approx(1, rel=1e-12)


def test_bigram_loss_of_the_default_corpus(corpus: Corpus) -> None:
    """About 2.6 nats per byte: a table that is much worse would be no baseline."""
    v = Vocabulary.of(corpus)
    tokens, targets = validation_windows(corpus.val, v, 128, 1 << 17)
    assert targets.size >= 100_000
    loss = bigram_loss(corpus.train, tokens, targets, v)
    ids = v.encode(corpus.train.window(0, 120_000))
    assert 2.3 < loss < 2.9
    assert abs(loss - bigram_loss(corpus.train, ids[:-1], ids[1:], v)) < 0.25
