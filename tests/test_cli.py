"""The command line from a subprocess: what it prints, leaves behind and exits with."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

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


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a text and a config that trains in a moment."""
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "micro.json").write_text(json.dumps(MICRO))
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of 6 steps in ``run``. Copy what a test changes."""
    work = tmp_path_factory.mktemp("trained")
    (work / "text.txt").write_text(TEXT)
    (work / "micro.json").write_text(json.dumps(MICRO))
    done = anetorch("train", *SMALL, "--steps", "6", "--out", "run", "--save-every", "2", cwd=work)
    assert done.returncode == 0, done.stderr
    return work


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


# ---------------------------------------------------------------- what a run gives

def test_a_run_prints_losses_and_text(work: Path) -> None:
    done = anetorch("train", *SMALL, "--steps", "8", cwd=work)
    assert done.returncode == 0, done.stderr
    losses = [float(x) for x in re.findall(r"^step \d+/8: val loss (\d+\.\d+)", done.stdout, re.M)]
    assert len(losses) == 3 and losses[2] < losses[1] < losses[0]
    assert "bigram table" in done.stdout and "folder: anetorch-runs/1\n" in done.stdout
    assert re.search(r"^step \d/8  loss \d.*tokens/s  \d+:\d\d left$", done.stdout, re.M)
    assert len(done.stdout.partition("the model writes:\n")[2]) > 100
    assert done.stdout.count("matplotlib is not installed") == 1
    run = work / "anetorch-runs" / "1"
    assert json.loads((run / "config.json").read_text())["num_hidden_layers"] == 2
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in lines if "loss" in m] == list(range(1, 9))
    assert [m["val_loss"] for m in lines if "val_loss" in m] == pytest.approx(losses, abs=1e-4)
    assert {"lr", "norm", "scale", "seconds"} <= set(next(m for m in lines if "loss" in m))
    # The next run gets the next number, here with what a user calls.
    done = anetorch("train", *SMALL, "--steps", "1", cwd=work,
                    command=[sys.executable, "-m", "anetorch"])
    assert done.returncode == 0 and "folder: anetorch-runs/2\n" in done.stdout


def test_loss_curve(trained: Path, work: Path) -> None:
    """A finished run that is resumed with matplotlib at hand gets its curve."""
    pytest.importorskip("matplotlib", reason="draws the loss curve")
    shutil.copytree(trained / "run", work / "run")
    done = anetorch("train", *SMALL, "--out", "run", "--resume", cwd=work,
                    command=[sys.executable, "-m", "anetorch"])
    assert done.returncode == 0, done.stderr
    assert "loss curve: run/loss.png\n" in done.stdout
    assert (work / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_progress_line_on_a_terminal(work: Path) -> None:
    """On a terminal the line is tqdm's, redrawn in place."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    p = subprocess.Popen([*PLAIN, "train", *SMALL, "--steps", "30"],
                         cwd=work, stdout=follower, stderr=follower)
    os.close(follower)
    seen = b""
    while select.select([leader], [], [], 240)[0]:
        try:
            piece = os.read(leader, 65536)
        except OSError:                         # Linux: the other end is closed
            break
        if not piece:
            break
        seen += piece
    os.close(leader)
    assert p.wait() == 0, seen
    assert b"\r" in seen and re.search(rb"\| \d+/30  loss \d.*tokens/s  0:\d\d left", seen), seen
    assert b"val loss" in seen


def test_same_seed_same_bytes(work: Path, trained: Path) -> None:
    done = anetorch("train", *SMALL, "--steps", "6", "--out", "again", "--save-every", "5", cwd=work)
    assert done.returncode == 0
    assert checkpoint(work / "again").read_bytes() == checkpoint(trained / "run").read_bytes()
    other = anetorch("train", *SMALL, "--steps", "6", "--out", "other", "--seed", "1", cwd=work)
    assert other.returncode == 0
    assert checkpoint(work / "other").read_bytes() != checkpoint(trained / "run").read_bytes()


def test_checkpoints_name_no_time_or_place(trained: Path) -> None:
    meta = metadata(checkpoint(trained / "run"))
    assert str(trained) not in json.dumps(meta)
    assert set(json.loads(meta["anetorch.meta"])["training"]) == {
        "updates", "scale", "good", "corpus", "symbols", "options"}
    assert len(list((trained / "run").glob("checkpoint-*"))) == 2
    assert not list((trained / "run").glob(".*tmp*"))


# ---------------------------------------------------------------- stopping and going on

def test_killed_at_random_and_resumed_is_the_same_bytes(work: Path) -> None:
    """kill -9 again and again, at times that differ from run to run; the end is the same."""
    args = ["train", *SMALL, "--steps", "40", "--save-every", "3"]
    whole = anetorch(*args, "--out", "whole", cwd=work)
    assert whole.returncode == 0, whole.stderr
    kills = 0
    for attempt in range(30):
        p = subprocess.Popen([*PLAIN, *args, "--out", "killed", "--resume"],
                             cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert p.stdout
        for line in p.stdout:                   # up to the first score, then a random while
            if "val loss" in line or "Traceback" in line:
                break
        time.sleep(int.from_bytes(os.urandom(2), "little") / 65536 * 0.3)
        killed = p.poll() is None and attempt < 6
        if killed:
            p.send_signal(signal.SIGKILL)
            kills += 1
        rest = p.stdout.read()
        p.stdout.close()
        if p.wait() == 0:
            break
        assert killed, rest
    assert p.returncode == 0
    assert checkpoint(work / "killed").read_bytes() == checkpoint(work / "whole").read_bytes()

    def steps(name: str) -> list[tuple[int, float]]:
        lines = (work / name / "metrics.jsonl").read_text().splitlines()
        return [(m["step"], m["loss"]) for m in map(json.loads, lines) if "loss" in m]

    assert steps("killed") == steps("whole")
    assert not list((work / "killed").glob(".*tmp*"))


def test_interrupt_saves_and_exits_130(work: Path) -> None:
    args = ["train", *SMALL, "--steps", "4000", "--out", "run", "--save-every", "4000"]
    p = subprocess.Popen([*PLAIN, *args], cwd=work, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert p.stdout and p.stderr
    for line in p.stdout:
        if "val loss" in line:
            break
    time.sleep(0.2)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=120)
    assert p.returncode == 130, (out, err)
    assert "Traceback" not in err
    said = re.search(r"interrupted after step (\d+), which is saved: continue with anetorch train "
                     r"--resume --out run", out)
    assert said, out
    assert checkpoint(work / "run").name == f"checkpoint-{int(said[1]):08d}.safetensors"


def test_resume_starts_where_there_is_nothing(work: Path) -> None:
    done = anetorch("train", *SMALL, "--steps", "2", "--out", "new", "--resume", cwd=work)
    assert done.returncode == 0 and checkpoint(work / "new").name == "checkpoint-00000002.safetensors"


def test_resume_without_out_takes_the_newest_folder(trained: Path, work: Path) -> None:
    for number in ("1", "2", "10"):
        shutil.copytree(trained / "run", work / "anetorch-runs" / number)
    (work / "anetorch-runs" / "11").mkdir()             # holds nothing
    done = anetorch("train", "text.txt", "--resume", "--steps", "7", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "folder: anetorch-runs/10\n" in done.stdout
    assert checkpoint(work / "anetorch-runs" / "10").name == "checkpoint-00000007.safetensors"


def test_resume_of_a_finished_run_shows_its_result(trained: Path) -> None:
    before = tree(trained)
    done = anetorch("train", *SMALL, "--steps", "6", "--out", "run", "--resume", cwd=trained)
    assert done.returncode == 0 and "step 6/6: val loss" in done.stdout
    after = tree(trained)
    assert {k: v for k, v in after.items() if "checkpoint-" in k} == {
        k: v for k, v in before.items() if "checkpoint-" in k}


def test_a_checkpoint_is_not_replaced_unasked(trained: Path, work: Path) -> None:
    shutil.copytree(trained / "run", work / "run")
    before = tree(work)
    done = anetorch("train", *SMALL, "--steps", "2", "--out", "run", cwd=work)
    one_line(done, r"run holds a checkpoint \(step 6\): continue it with --resume, replace it with "
                   "--overwrite")
    assert tree(work) == before
    done = anetorch("train", *SMALL, "--steps", "2", "--save-every", "2", "--out", "run", "--overwrite",
                    cwd=work)
    assert done.returncode == 0
    assert [p.name for p in (work / "run").glob("checkpoint-*")] == ["checkpoint-00000002.safetensors"]


def test_two_runs_do_not_share_a_folder(work: Path) -> None:
    args = ["train", *SMALL, "--steps", "100000", "--out", "run"]
    p = subprocess.Popen([*PLAIN, *args], cwd=work, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert p.stdout
        for line in p.stdout:
            if "val loss" in line:
                break
        one_line(anetorch(*args, cwd=work), "another training run is writing to run")
    finally:
        p.kill()
        p.communicate()


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
    p = subprocess.Popen([sys.executable, "-m", "anetorch", "info"], cwd=tmp_path, text=True,
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
    "zero rate": (["train", "--lr", "0"], "--lr: expected a number above 0, got '0'", None),
    "nan rate": (["train", "--lr", "nan"], "--lr: expected a number above 0, got 'nan'", None),
    "negative seed": (["train", "--seed", "-1"], "--seed: expected a whole number", None),
    "missing value": (["train", "--lr"], "argument --lr: expected one argument", None),
    "resume and overwrite": (["train", "--resume", "--overwrite"], "give one", None),
    "unknown preset": (["train", "--model", "tinny"],
                       "no preset or file 'tinny': presets are tiny, stories15m", None),
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


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str, work: Path) -> None:
    """Exit code 2, one line that says what, where and what to do; nothing is left behind."""
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


def test_another_text_is_refused(trained: Path, work: Path) -> None:
    (work / "other.txt").write_text(TEXT + "And more.\n")
    one_line(anetorch("train", "other.txt", "--resume", "--out", str(trained / "run"), cwd=work),
             r"was trained on other text than other\.txt: give the same files, or start anew")


def test_a_prompt_outside_the_vocabulary(trained: Path) -> None:
    one_line(anetorch("generate", "--from", "run", "--prompt", "aT€", cwd=trained),
             "byte 0xe2 at offset 2 is not among the")


FULL_DISK = """
import resource, sys
from anetorch import cli, train
run = train._run
def limited(*args):
    # From here on no file may pass 40 kB: a checkpoint has about 240 kB, all others less.
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
    return run(*args)
train._run = limited
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_full_disk_loses_nothing(work: Path) -> None:
    """A limit on the size of files stands in for a full disk: the write fails half-way."""
    def full(*args: str) -> subprocess.CompletedProcess[str]:
        return anetorch(*args, cwd=work, command=[sys.executable, "-c", HIDE + FULL_DISK])

    args = ["train", *SMALL, "--out", "run", "--save-every", "100", "--steps"]
    one_line(full(*args, "3"), r"run: checkpoint of step 3: File too large \(none was written\): make "
                               "room, then continue with --resume --out run")
    assert not list((work / "run").glob("*checkpoint-*")), "not even in part"
    assert anetorch(*args, "3", cwd=work).returncode == 0
    kept = checkpoint(work / "run").read_bytes()
    one_line(full(*args, "5", "--resume"), r"\(the checkpoint of step 3 is intact\)")
    assert checkpoint(work / "run").read_bytes() == kept
    assert not list((work / "run").glob(".*tmp*"))


def test_divergence_is_one_line(work: Path) -> None:
    done = anetorch("train", *SMALL, "--steps", "200", "--lr", "900", cwd=work)
    if done.returncode != 0:                # a model this small may survive it
        one_line(done, "use a smaller --lr")
