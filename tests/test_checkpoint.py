"""Checkpoints: atomic, reproducible, and refused in one clear line when they cannot be used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from anetorch import _core, checkpoint
from anetorch.checkpoint import CheckpointError
from anetorch.weights import save_file


def state(seed=0):
    rng = np.random.default_rng(seed)
    return {"w": rng.standard_normal((5, 7)).astype("f4"), "adam.m": rng.random(35).astype("f4"),
            "half": rng.random(3).astype("f2"), "n": np.array(3, "i8")}


META = {"lr": 3e-4, "rng": [1, 2**63], "name": "tiny é", "nested": {"b": None, "a": True}}


def zeros(like):
    return {k: np.zeros_like(v) for k, v in like.items()}


def test_round_trip(tmp_path):
    s = state()
    path = checkpoint.save(tmp_path / "out", 100, s, META)
    assert path == tmp_path / "out" / "checkpoint-00000100.safetensors"
    for where in (path, tmp_path / "out", str(path)):
        with checkpoint.load(where) as c:
            assert (c.step, c.meta, c.path) == (100, META, path)
            got = zeros(s)
            c.restore(got)
            for k in s:
                assert np.array_equal(got[k], s[k]) and got[k].dtype == s[k].dtype
                assert repr(c) == f"<Checkpoint '{path}': step 100, 4 tensors>"
    assert repr(c) == f"<Checkpoint '{path}': step 100, closed>"


def test_tensors_and_every_float_survive(tmp_path):
    x = np.array([0.1, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4e38], "f4")
    t, brain = _core.Tensor.from_numpy(x), _core.Tensor((3,), "bfloat16")
    meta = {"loss": 0.1 + 0.2, "best": float("inf"), "none": float("nan"), "tiny": 5e-324}
    checkpoint.save(tmp_path, 1, {"t": t, "b": brain}, meta)
    with checkpoint.load(tmp_path) as c:
        out, brain2 = _core.Tensor((7,), "float32"), _core.Tensor((3,), "bfloat16")
        c.restore({"t": out, "b": brain2})
        assert np.array_equal(np.asarray(out).view("u4"), x.view("u4"))
        assert c.meta["loss"] == meta["loss"] and c.meta["best"] == meta["best"]
        assert c.meta["none"] != c.meta["none"] and c.meta["tiny"] == 5e-324


def test_equal_states_are_equal_bytes(tmp_path):
    a = checkpoint.save(tmp_path / "a", 7, state(), META)
    time.sleep(0.01)
    b = checkpoint.save(tmp_path / "b" / "deep", 7, dict(reversed(state().items())),
                        dict(reversed(META.items())))
    assert a.read_bytes() == b.read_bytes()
    assert str(tmp_path).encode() not in a.read_bytes()[:20_000]
    c = checkpoint.save(tmp_path / "c", 7, state(1), META)
    assert a.read_bytes() != c.read_bytes()


def test_newest_first_and_keep(tmp_path):
    assert checkpoint.newest(tmp_path / "none") is None
    assert checkpoint.checkpoints(tmp_path) == []
    for step in (1, 20, 300, 4):
        checkpoint.save(tmp_path, step, state(), keep=10)
    (tmp_path / "checkpoint-x.safetensors").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("mine")
    best = checkpoint.save(tmp_path, 4, state(), name="best.safetensors")
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == [
        f"checkpoint-{n:08d}.safetensors" for n in (300, 20, 4, 1)]
    assert checkpoint.newest(tmp_path).name == "checkpoint-00000300.safetensors"
    assert checkpoint.load(best).step == 4
    checkpoint.save(tmp_path, 301, state())
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == [
        "checkpoint-00000301.safetensors", "checkpoint-00000300.safetensors"]
    assert (tmp_path / "notes.txt").exists() and best.exists()
    assert (tmp_path / "checkpoint-x.safetensors").exists()
    checkpoint.save(tmp_path, 10**10, state(), keep=1)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == [
        "checkpoint-10000000000.safetensors"]


def test_old_ones_stay_until_the_new_one_is_durable(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, state(), keep=1)

    def fails(*args, **kwargs):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(checkpoint, "save_file", fails)
    with pytest.raises(OSError):
        checkpoint.save(tmp_path, 2, state(), keep=1)
    assert checkpoint.load(tmp_path).step == 1


def test_refuses_to_save(tmp_path):
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        checkpoint.save(tmp_path, -1, {})
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        checkpoint.save(tmp_path, 1, {}, keep=0)
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, 1, {}, {"x": object()})
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        checkpoint.save(tmp_path / "file" / "out", 1, {})
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk(tmp_path):
    """A file system of 1 MB where the runner may mount one; else the quota of a file size."""
    code = ("import resource, signal, sys\n"
            "import numpy as np\n"
            "from anetorch import checkpoint\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "checkpoint.save(sys.argv[1], 1, {'a': np.zeros(1000, 'f4')})\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
            "try:\n"
            "    checkpoint.save(sys.argv[1], 2, {'a': np.zeros(100_000, 'f4')}, keep=1)\n"
            "except OSError as e:\n"
            "    print(e)\n")
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True,
                         text=True, env=_env())
    assert "checkpoint-00000002" in run.stdout and "File too large" in run.stdout, run
    assert os.listdir(tmp_path) == ["checkpoint-00000001.safetensors"]
    assert checkpoint.load(tmp_path).step == 1


def _env():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


# ---------------------------------------------------------------- refusals


def one_line(e):
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 100, 16384, -1, -100])
def test_truncated(tmp_path, cut):
    checkpoint.save(tmp_path, 1, state())
    path = checkpoint.save(tmp_path, 2, state())
    size = path.stat().st_size
    os.truncate(path, cut if cut >= 0 else size + cut)
    with pytest.raises(CheckpointError, match="not a whole checkpoint: ") as e:
        checkpoint.load(tmp_path)
    assert str(path) in one_line(e)
    older = tmp_path / "checkpoint-00000001.safetensors"
    assert one_line(e).endswith(f"; the one before it is '{older}'")
    assert checkpoint.load(older).step == 1


def test_not_a_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpoint.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("hello, world")
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        checkpoint.load(tmp_path / "text")
    save_file({"a": np.zeros(1, "f4")}, tmp_path / "plain")
    with pytest.raises(CheckpointError, match="a safetensors file, but not a checkpoint") as e:
        checkpoint.load(tmp_path / "plain")
    one_line(e)


@pytest.mark.parametrize("fields, message", [
    ({"anetorch.checkpoint": "2"}, "has checkpoint format 2, this anetorch reads up to 1: "
     "install a newer anetorch"),
    ({"anetorch.checkpoint": "x"}, "the checkpoint format is 'x', expected a number from 1 to 1"),
    ({"anetorch.checkpoint": "0"}, "the checkpoint format is '0'"),
    ({"anetorch.checkpoint": "9" * 5000}, "the checkpoint format is"),
    ({"anetorch.step": "-1"}, "step or metadata are damaged"),
    ({"anetorch.step": "9" * 5000}, "step or metadata are damaged"),
    ({"anetorch.step": ""}, "step or metadata are damaged"),
    ({"anetorch.meta": "{"}, "step or metadata are damaged"),
    ({"anetorch.meta": "[1]"}, "step or metadata are damaged"),
    ({"anetorch.meta": "[" * 100_000}, "step or metadata are damaged")])
def test_newer_format_and_damaged_fields(tmp_path, fields, message):
    good = {"anetorch.checkpoint": "1", "anetorch.step": "3", "anetorch.meta": "{}"}
    path = tmp_path / "c"
    save_file({"a": np.zeros(1, "f4")}, path, good)
    assert checkpoint.load(path).step == 3
    save_file({"a": np.zeros(1, "f4")}, path, {**good, **fields})
    with pytest.raises(CheckpointError, match=message) as e:
        checkpoint.load(path)
    one_line(e)


def test_other_shape(tmp_path):
    s = state()
    checkpoint.save(tmp_path, 1, s)
    c = checkpoint.load(tmp_path)
    cases = [
        ({**s, "w": np.zeros((5, 8), "f4")},
         r"is of another model: 'w' is float32 \[5, 7\] there, float32 \[5, 8\] here"),
        ({**s, "half": np.zeros(3, "f4")}, r"'half' is float16 \[3\] there, float32 \[3\] here"),
        ({**s, "extra": np.zeros(1)}, "it has no tensor 'extra' .1 missing, 0 unknown"),
        ({k: v for k, v in s.items() if k != "w"},
         "it has a tensor 'w' that the model has not .0 missing, 1 unknown"),
    ]
    for targets, message in cases:
        targets = zeros(targets)
        with pytest.raises(CheckpointError, match=message) as e:
            c.restore(targets)
        one_line(e)
        assert not any(np.any(v) for v in targets.values())     # nothing half restored


def test_restore_notices_a_changed_file(tmp_path):
    s = state()
    path = checkpoint.save(tmp_path, 1, s)
    c = checkpoint.load(path)
    os.truncate(path, 16_500)
    with pytest.raises(CheckpointError, match="was truncated while it was mapped"):
        c.restore(zeros(s))


# ---------------------------------------------------------------- kill -9


KILL = r"""
import sys
import numpy as np
from anetorch import checkpoint
folder, step = sys.argv[1], 0
x = np.zeros(200_000, "f4")
print("go", flush=True)
while True:
    step += 1
    x[:] = step
    checkpoint.save(folder, step, {"x": x}, {"step": step}, keep=2)
"""


def test_kill_at_any_instant_leaves_a_whole_checkpoint(tmp_path):
    rng = np.random.default_rng()
    seed = int(rng.integers(1 << 30))
    rng = np.random.default_rng(seed)
    last = 0
    for _ in range(6):
        p = subprocess.Popen([sys.executable, "-c", KILL, str(tmp_path)], env=_env(),
                             stdout=subprocess.PIPE)
        assert p.stdout.readline() == b"go\n"
        time.sleep(0.05 + float(rng.random()) * 0.2)
        p.send_signal(signal.SIGKILL)
        p.wait()
        p.stdout.close()
        if checkpoint.newest(tmp_path) is None:
            continue
        c = checkpoint.load(tmp_path)
        x = np.zeros(200_000, "f4")
        c.restore({"x": x})
        assert c.meta["step"] == c.step and (x == c.step).all(), f"seed {seed}"
        last = max(last, c.step)
    assert last > 0
    # what the killed ones left goes with the next save
    checkpoint.save(tmp_path, last + 1000, {"x": np.zeros(1, "f4")})
    assert sorted(p.name for p in Path(tmp_path).iterdir() if p.name.startswith(".")) == []
