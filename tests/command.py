"""Running the command line from tests: a model that trains in a moment, and what is looked at."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

MICRO = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    "max_position_embeddings": 64, "initializer_range": 0.05, "rms_norm_eps": 1e-5,
}
TEXT = "".join(f"The {a} {b} jumps over {i} lazy dogs.\n"
               for i, (a, b) in enumerate([("quick", "fox"), ("slow", "ox"), ("red", "cat")] * 60))
SMALL = ["text.txt", "--model", "micro.json", "--seq", "16", "--batch", "2"]


HIDE = """
import sys, importlib.abc
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == 'matplotlib':
            raise ImportError('hidden')
sys.meta_path.insert(0, Hidden())
"""
# Importing matplotlib takes longer than all else in these runs; one test is about it.
PLAIN = [sys.executable, "-c", HIDE + "from anetorch.cli import main; sys.exit(main(sys.argv[1:]))"]


def anetorch(*args: str, cwd: Path, command: list[str] = PLAIN) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *args], cwd=cwd, text=True, capture_output=True, timeout=240)


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*")
            if p.is_file() and p.name != ".lock"}


def one_line(done: subprocess.CompletedProcess[str], expected: str) -> None:
    """Exit code 2 and one line on stderr that matches."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("\n"), done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(expected, done.stderr), done.stderr


def checkpoint(folder: Path) -> Path:
    return sorted(folder.glob("checkpoint-*.safetensors"))[-1]


def metadata(path: Path) -> dict[str, str]:
    raw = path.read_bytes()
    (n,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8:8 + n])["__metadata__"]
