"""The command line from a subprocess: what it prints, what it refuses and how it exits."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from command import MICRO, PLAIN, SMALL, TEXT, anetorch, checkpoint, metadata, one_line, tree


# ---------------------------------------------------------------- generate, info

def test_generate(trained: Path) -> None:
    args = ["generate", "--from", "run", "--prompt", "The ", "--max-tokens", "90"]
    one = anetorch(*args, "--seed", "5", cwd=trained)
    assert one.returncode == 0, one.stderr
    assert one.stdout.startswith("The ") and len(one.stdout) == 4 + 90 + 1
    assert anetorch(*args, "--seed", "5", cwd=trained).stdout == one.stdout
    assert anetorch(*args, "--seed", "6", cwd=trained).stdout != one.stdout
    cold = anetorch(*args, "--temperature", "0", "--seed", "1", cwd=trained).stdout
    assert anetorch(*args, "--temperature", "0", "--seed", "2", cwd=trained).stdout == cold
    long = anetorch("generate", "--from", "run", "--prompt", "The " * 30, "--max-tokens", "1",
                    cwd=trained)
    assert long.returncode == 0 and len(long.stdout) == 122
    none = anetorch("generate", "--from", "run", "--max-tokens", "0", cwd=trained)
    assert none.returncode == 0 and none.stdout == "\n"


def test_info(tmp_path: Path) -> None:
    done = anetorch("info", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    import anetorch as package

    assert done.stdout.startswith(f"anetorch {package.__version__} (")
    assert re.search(r"^device cpu: available", done.stdout, re.M)
    assert re.search(r"^CPU: .+ threads", done.stdout, re.M)
    assert re.search(r"^kernel table scalar: ", done.stdout, re.M)


def test_help_and_version(tmp_path: Path) -> None:
    for args in (["--help"], ["train", "--help"], ["generate", "--help"], ["info", "--help"]):
        done = anetorch(*args, cwd=tmp_path)
        assert done.returncode == 0 and done.stdout.startswith("usage: ") and not done.stderr
    assert anetorch("--version", cwd=tmp_path).stdout.startswith("anetorch ")


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    p = subprocess.Popen([*PLAIN, "info"], cwd=tmp_path, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert p.stdout and p.stderr
    p.stdout.close()
    err = p.stderr.read()
    p.stderr.close()
    assert p.wait() == 0 and "Traceback" not in err


# ---------------------------------------------------------------- bad input

def config(**changes: object) -> Callable[[Path], None]:
    def write(work: Path) -> None:
        keys = {k: v for k, v in {**MICRO, **changes}.items() if v is not None}
        (work / "bad.json").write_text(json.dumps(keys))
    return write


def text(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda work: (work / name).write_bytes(content) and None


BAD = ["text.txt", "--model", "bad.json", "--seq", "16", "--batch", "2", "--steps", "2"]
MISTAKES: dict[str, tuple[list[str], str, Callable[[Path], None] | None]] = {
    "no command": ([], "the following arguments are required: COMMAND", None),
    "unknown command": (["trian"], "invalid choice: 'trian'", None),
    "unknown flag": (["train", "--stesp", "3"], "unknown argument --stesp: did you mean --steps", None),
    "shortened flag": (["train", "--step", "3"], "unknown argument --step: did you mean --steps", None),
    "zero steps": (["train", "--steps", "0"],
                   "argument --steps: expected a whole number of at least 1, got '0'", None),
    "negative seq": (["train", "--seq", "-4"], "--seq: expected a whole number of at least 1", None),
    "zero batch": (["train", "--batch", "0"], "--batch: expected a whole number", None),
    "fractional accum": (["train", "--accum", "1.5"], "--accum: expected a whole number", None),
    "zero save-every": (["train", "--save-every", "0"], "--save-every: expected a whole", None),
    "no number": (["train", "--steps", "many"], "--steps: .* got 'many'", None),
    "seq beyond all numbers": (["train", "--seq", "9" * 20], "at least 1 and at most 4611686018427387904, "
                               "got '9{20}'", None),
    "seed beyond all numbers": (["train", "--seed", "9" * 20], "at least 0 and at most", None),
    "endless rate": (["train", "--lr", "inf"], "--lr: expected a number above 0 and at most 1000", None),
    "zero rate": (["train", "--lr", "0"], "--lr: expected a number above 0, got '0'", None),
    "nan rate": (["train", "--lr", "nan"], "--lr: expected a number above 0, got 'nan'", None),
    "negative seed": (["train", "--seed", "-1"], "--seed: expected a whole number", None),
    "missing value": (["train", "--lr"], "argument --lr: expected one argument", None),
    "resume and overwrite": (["train", "--resume", "--overwrite"], "give one", None),
    "unknown preset": (["train", "--model", "tinny"],
                       "no preset or file 'tinny': presets are tiny, stories15m", None),
    "empty preset": (["train", *SMALL[:1], "--model", ""], "no preset or file '': presets are", None),
    "empty out": (["train", *SMALL, "--out", ""], "the name of --out is empty", None),
    "empty file name": (["train", ""], "the name of a FILE is empty", None),
    "unknown device": (["train", *SMALL, "--device", "gpu"], "no device 'gpu': there is cpu", None),
    "missing file": (["train", "nowhere.txt"], r"nowhere\.txt does not exist: check", None),
    "empty file": (["train", "e.txt"], r"e\.txt is empty: give a file", text("e.txt", b"")),
    "binary file": (["train", "b.bin"], r"b\.bin is not text \(byte 0 at offset 2\)",
                    text("b.bin", b"ab\0cd")),
    "not utf-8": (["train", "l.txt"], r"l\.txt is not UTF-8 text .*iconv", text("l.txt", b"caf\xe9 ")),
    "folder as file": (["train", "."], r"\. is a folder: name the files", None),
    "too short": (["train", "s.txt", "--model", "micro.json", "--seq", "16"],
                  r"s\.txt is too short: .* give more text or a smaller --seq", text("s.txt", b"a b c")),
    "config missing": (["train", "--model", "no/config.json"], "no preset or file", None),
    "config no json": (["train", "--model", "j.json"], r"j\.json is not JSON", text("j.json", b"{")),
    "config a list": (["train", "--model", "j.json"], "JSON list, not an object", text("j.json", b"[]")),
    "config without sizes": (["train", "--model", "j.json"], "missing keys: .*hidden_size",
                             text("j.json", b'{"model_type": "llama"}')),
    "config of another kind": (["train", *BAD], "model_type 'gpt2' is not known",
                               config(model_type="gpt2")),
    "kv heads do not divide": (["train", *BAD], "num_attention_heads 4 is not a multiple of "
                               "num_key_value_heads 3", config(num_key_value_heads=3)),
    "heads do not divide": (["train", *BAD], "hidden_size 34 is not a multiple",
                            config(hidden_size=34)),
    "negative size": (["train", *BAD], "intermediate_size must be at least 1, got -64",
                      config(intermediate_size=-64)),
    "zero layers": (["train", *BAD], "num_hidden_layers must be at least 1", config(num_hidden_layers=0)),
    "zero head width": (["train", *BAD], "head_dim must be at least 1, got 0", config(head_dim=0)),
    "a size that is text": (["train", *BAD], "hidden_size must be an integer, got '32'",
                            config(hidden_size="32")),
    "vocabulary too small": (["train", *BAD], "vocab_size of 64 ends before it: use at least 256",
                             config(vocab_size=64)),
    "beyond the positions": (["train", *SMALL, "--seq", "65"], "--seq 65 is beyond the model's "
                             "max_position_embeddings of 64", None),
    "more than memory": (["train", *SMALL, "--batch", "1000000000000"],
                         r"--batch 1000000000000 --seq 16 needs [\d,]+\.\d GB of memory and .* are "
                         "free: use a smaller", None),
    "a model beyond memory": (["train", *BAD], r"needs [\d,]+\.\d GB of memory",
                              config(intermediate_size=2**40)),
    "folder below a file": (["train", *SMALL, "--out", "text.txt/run"],
                            r"text\.txt/run: cannot make the folder: Not a directory: give another", None),
    "unwritable folder": (["train", *SMALL, "--out", "/proc/run"], "/proc/run: cannot make the folder",
                          None),
    "folder that takes no file": (["train", *SMALL, "--out", "/proc/self"],
                                  "/proc/self: cannot write to the folder: .*: give another", None),
    "file that fails": (["train", "/proc/self/mem", *SMALL[1:]],
                        r"/proc/self/mem cannot be read: Input/output error", None),
    "a device without end": (["train", "/dev/zero", *SMALL[1:]],
                             r"/dev/zero is not text \(byte 0 at offset 0\)", None),
    "runs is a file": (["train", *SMALL], "anetorch-runs.*--out",
                       text("anetorch-runs", b"")),
    "generate from nowhere": (["generate", "--from", "nowhere"], "nowhere does not exist: give the "
                              "folder", None),
    "generate from nothing": (["generate", "--from", "."], "holds no checkpoint", None),
    "generate untrained": (["generate"], "no trained model below anetorch-runs: run anetorch train", None),
    "generate too hot": (["generate", "--temperature", "-1"], "--temperature: expected a number of at "
                         "least 0", None),
    "generate top-p": (["generate", "--top-p", "0"], "--top-p: expected a number above 0", None),
    "generate less than none": (["generate", "--max-tokens", "-1"], "--max-tokens: expected", None),
    "generate from another file": (["generate", "--from", "text.txt"], r"text\.txt cannot be read", None),
}


# Names that only Linux has.
LINUX = {"unwritable folder", "folder that takes no file", "file that fails"}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str, work: Path) -> None:
    """Exit code 2, one line that says what, where and what to do; nothing is left behind."""
    if name in LINUX and not os.path.isdir("/proc/self"):
        pytest.skip("no /proc here")
    args, expected, prepare = MISTAKES[name]
    if prepare:
        prepare(work)
    before = sorted(work.rglob("*")), tree(work)
    one_line(anetorch(*args, cwd=work), expected)
    assert (sorted(work.rglob("*")), tree(work)) == before


def test_unreadable_file(work: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (work / "text.txt").chmod(0)
    one_line(anetorch("train", *SMALL, cwd=work), r"text\.txt cannot be read: Permission denied")


def damage(path: Path, how: str) -> None:
    raw = path.read_bytes()
    (n,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + n])
    body = raw[8 + n:]
    if how == "truncated":
        path.write_bytes(raw[:-100])
        return
    if how == "empty":
        path.write_bytes(b"")
        return
    if how == "newer":
        header["__metadata__"]["anetorch.checkpoint"] = "99"
    elif how == "foreign":
        del header["__metadata__"]
    elif how == "nonsense":
        header["__metadata__"]["anetorch.meta"] = "{}"
    elif how == "shape":
        name = "model.layers.0.mlp.up_proj.weight"
        header[name]["shape"] = header[name]["shape"][::-1]
    elif how == "incomplete":
        # The last tensor of the file goes, header and bytes, so that the rest is well-formed.
        name = max((k for k in header if k != "__metadata__"),
                   key=lambda k: header[k]["data_offsets"][1])
        start, _ = header.pop(name)["data_offsets"]
        body = body[:start]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.mark.parametrize("how, expected", [
    ("truncated", "cannot be read"), ("empty", "cannot be read"),
    ("newer", "has checkpoint format 99, this anetorch reads up to 1: install a newer anetorch"),
    ("foreign", "not a checkpoint of anetorch"), ("nonsense", "is of no training run of anetorch"),
    ("shape", r"up_proj\.weight' is float32 \[32, 64\] there, float32 \[64, 32\] here"),
    ("incomplete", r"has no tensor '.*weight' .*: restore the file"),
])
def test_damaged_checkpoints(how: str, expected: str, trained: Path, work: Path) -> None:
    (work / "run").mkdir()
    path = work / "run" / checkpoint(trained / "run").name
    path.write_bytes(checkpoint(trained / "run").read_bytes())
    damage(path, how)
    before = tree(work)
    done = anetorch("train", *SMALL, "--steps", "8", "--out", "run", "--resume", cwd=work)
    one_line(done, expected)
    assert path.name in done.stderr
    assert tree(work) == before
    if how != "incomplete":                 # the model's own weights may all be there
        one_line(anetorch("generate", "--from", "run", cwd=work),
                 "is of another model" if how == "shape" else expected)


@pytest.mark.parametrize("args, expected", [
    (["--seq", "8"], "made with --seq 16, not 8: leave --seq out"),
    (["--batch", "3"], "made with --batch 2, not 3"),
    (["--seed", "9"], "made with --seed 0, not 9"),
    (["--lr", "0.5"], "made with --lr 0.0003, not 0.5"),
    (["--steps", "5"], "is past --steps 5"),
    (["--model", "tiny"], "holds a model with hidden_size 32, and --model tiny has"),
])
def test_a_checkpoint_of_another_run_is_refused(args: list[str], expected: str, trained: Path) -> None:
    before = tree(trained)
    one_line(anetorch("train", "text.txt", "--out", "run", "--resume", *args, cwd=trained), expected)
    assert tree(trained) == before


def test_the_default_window_fits_the_model(work: Path) -> None:
    """micro.json has 64 positions, --seq defaults to 256: only who asks for more is refused."""
    done = anetorch("train", "text.txt", "--model", "micro.json", "--steps", "1", "--out", "run", cwd=work)
    assert done.returncode == 0, done.stderr
    options = json.loads(metadata(checkpoint(work / "run"))["anetorch.meta"])["training"]["options"]
    assert options["seq"] == 64


def test_another_text_is_refused(trained: Path, work: Path) -> None:
    (work / "other.txt").write_text(TEXT + "And more.\n")
    one_line(anetorch("train", "other.txt", "--resume", "--out", str(trained / "run"), cwd=work),
             r"was trained on other text than other\.txt: give the same files, or start anew")


def test_a_prompt_outside_the_vocabulary(trained: Path) -> None:
    done = anetorch("generate", "--from", "run", "--prompt", "aT€", cwd=trained)
    one_line(done, "byte 0xe2 at offset 2 is not among the")
    assert done.stdout == ""
