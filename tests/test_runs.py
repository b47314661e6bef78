"""Training runs from a subprocess: what they leave behind, and how they survive."""

from __future__ import annotations

import dataclasses
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
from pathlib import Path

import pytest
from command import HIDE, PLAIN, SMALL, anetorch, checkpoint, metadata, one_line, tree

from anetorch.rundir import RunFolder


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


def test_resume_of_a_finished_run_shows_its_result(trained: Path, work: Path) -> None:
    shutil.copytree(trained / "run", work / "run")
    done = anetorch("train", *SMALL, "--steps", "6", "--out", "run", "--resume", cwd=work)
    assert done.returncode == 0 and "step 6/6: val loss" in done.stdout
    before, after = tree(trained / "run"), tree(work / "run")
    assert {k: v for k, v in before.items() if "checkpoint" in k} == {
        k: v for k, v in after.items() if "checkpoint" in k}


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


FULL_DISK = """
import resource, sys
from anetorch import cli, train
run = train._run
def limited(*args):
    # From here on no file may pass that size: a checkpoint has about 240 kB, all others less.
    resource.setrlimit(resource.RLIMIT_FSIZE, (@SIZE@, resource.RLIM_INFINITY))
    return run(*args)
train._run = limited
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_full_disk_loses_nothing(work: Path) -> None:
    """A limit on the size of files stands in for a full disk: the write fails half-way."""
    def full(*args: str, size: int = 40_000) -> subprocess.CompletedProcess[str]:
        code = HIDE + FULL_DISK.replace("@SIZE@", str(size))
        return anetorch(*args, cwd=work, command=[sys.executable, "-c", code])

    args = ["train", *SMALL, "--out", "run", "--save-every", "100", "--steps"]
    one_line(full(*args, "3"), r"run: checkpoint of step 3: File too large \(none was written\): make "
                               "room, then continue with --resume --out run")
    assert not list((work / "run").glob("*checkpoint-*")), "not even in part"
    assert anetorch(*args, "3", cwd=work).returncode == 0
    kept = checkpoint(work / "run").read_bytes()
    one_line(full(*args, "5", "--resume"), r"\(the checkpoint of step 3 is intact\)")
    assert checkpoint(work / "run").read_bytes() == kept
    assert not list((work / "run").glob(".*tmp*"))
    # Now its last line of metrics does not fit either; half a line is forgotten on resuming.
    size = (work / "run" / "metrics.jsonl").stat().st_size
    assert size > 900                       # config.json is smaller
    one_line(full(*args, "5", "--resume", size=size - 20),
             r"run/metrics\.jsonl: File too large \(the checkpoint of step 3 is intact\): make room, "
             r"then continue with --resume --out run")
    assert checkpoint(work / "run").read_bytes() == kept
    assert anetorch(*args, "5", "--resume", cwd=work).returncode == 0
    lines = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in lines if "loss" in m] == [1, 2, 3, 4, 5]
    # Not even the first line: there is nothing to go back to.
    one_line(full("train", *SMALL, "--out", "new", "--steps", "3", size=20),
             r"new/metrics\.jsonl: File too large \(there is no checkpoint yet\): make room")


def test_a_small_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder(tmp_path / "run") as run:
        run.write("config.json", b"old")

        def half(path: Path, data: bytes) -> None:
            path.open("wb").write(data[:1])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match="No space left on device .there is no checkpoint yet.: make") as e:
            run.write("config.json", b"new")
        assert e.value.filename == str(tmp_path / "run" / "config.json")
        assert (tmp_path / "run" / "config.json").read_bytes() == b"old"
        assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [".lock", "config.json"]


def test_a_small_disk_is_noticed_before_anything_is_written(work: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    from anetorch.train import InputError, Options, train

    monkeypatch.chdir(work)
    asked = []
    usage = shutil.disk_usage(work)

    def small(path: os.PathLike[str]) -> object:
        asked.append(Path(path))
        return usage._replace(free=1000)

    monkeypatch.setattr(shutil, "disk_usage", small)
    before = sorted(work.rglob("*"))
    for out, there in ((None, "."), ("a/b/c", "."), (str(work / "x"), str(work))):
        with pytest.raises(InputError, match="has 0.0 MB free, and the run needs 0.2 MB for 1 checkpoint at a "
                                             "time: make"):
            train(Options(files=("text.txt",), model="micro.json", seq=16, steps=1, out=out))
        assert asked.pop() == Path(there)
    # Two are kept while the third is written; a run that goes on has some of them already.
    size = 250_000
    options = Options(files=("text.txt",), model="micro.json", seq=16, steps=4, out="run", save_every=1)
    with pytest.raises(InputError, match="needs 0.7 MB for 3 checkpoints at a time"):
        train(options)
    assert sorted(work.rglob("*")) == before
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3 * size + 50_000))
    train(dataclasses.replace(options, steps=2), say=lambda line: None)
    monkeypatch.setattr(shutil, "disk_usage", small)
    with pytest.raises(InputError, match="needs 0.2 MB for 1 checkpoint at a time"):
        train(dataclasses.replace(options, resume=True))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size + 50_000))
    train(dataclasses.replace(options, resume=True), say=lambda line: None)


def test_divergence_is_one_line(work: Path) -> None:
    """Weights so large that the first forward pass leaves fp16: no step can help."""
    keys = json.loads((work / "micro.json").read_text())
    (work / "huge.json").write_text(json.dumps({**keys, "initializer_range": 1e4}))
    done = anetorch("train", "text.txt", "--model", "huge.json", "--seq", "16", "--batch", "2", "--steps",
                    "200", "--out", "run", cwd=work)
    one_line(done, "training has diverged; use a smaller --lr")
    # JSON has no NaN: whoever reads the lines must not trip over them.
    lines = [json.loads(line, parse_constant=pytest.fail)
             for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any(m["loss"] is None for m in lines if "loss" in m)
