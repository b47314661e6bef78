"""Training with device="ane" on the stand-in: engine programs in fp16 on it, host arithmetic in
fp32 on the CPU device."""

from __future__ import annotations

import subprocess
import sys

from standin_run import environment, run, stand_in  # noqa: F401

# What is learnt from: a text of its own, so that no other file's edit changes a loss.
TEXT = "".join(f"{i} times seven is {7 * i}.\n" for i in range(1, 1500))

TRAIN = f"""
import anetorch.train as training
from anetorch import runtime
from anetorch.data import Vocabulary, read_corpus
from anetorch.nn import programs, transformer

STEPS = 6
FILES = (os.path.join(os.environ["ANETORCH_CACHE_DIR"], "text.txt"),)
with open(FILES[0], "w") as text: text.write({TEXT!r})
def train(device=None, engine=None, dtype="float16", faults=()):
    '''Losses, masters and kernels of a run. engine: numerics of the engine's programs, on the CPU.
    faults: before step i, the step is tried once with its n-th evaluation failing.'''
    class Model(transformer.Model):
        def __init__(self, *args, **kw): super().__init__(*args, dtype=dtype, **kw)
        def _kernel(self, sizes, name):
            if engine and name not in programs.HOST and (name, sizes) not in self._kernels:
                self._kernels[name, sizes] = runtime.compile(
                    programs.make(name, sizes), precision=self.precision, numerics=engine)
            return super()._kernel(sizes, name)
    training.Model, original = Model, training.Model
    try:
        o = training.Options(files=FILES, steps=STEPS, seq=32, batch=2, device=device).settled()
        corpus = read_corpus(o.files)
        vocab = Vocabulary.of(corpus)
        config = transformer.Config.preset("tiny", vocab_size=vocab.size)
        t = training.Trainer(o, corpus, config, vocab)
        steps = []
        for i in range(STEPS):
            for n in [n for at, n in faults if at == i]:
                before = np.array(t.model.params.masters)
                knobs(fault_after=n, fail_evaluate=1, evaluate_status=0x5)
                try: t.train_step()
                except RuntimeError as e: assert "status=0x5" in str(e), e
                else: raise AssertionError((i, n))
                lib.standin_reset()
                np.testing.assert_array_equal(t.model.params.masters, before)
            steps.append(t.train_step())
    finally: training.Model = original
    assert all(s.updated for s in steps)
    kernels = {{name: k for (name, _), k in t.model._kernels.items()}}
    return np.array([s.loss for s in steps]), np.array(t.model.params.masters), kernels
"""


def test_the_whole_step_runs_on_the_engine(run):  # noqa: F811
    """Which program ran where; bit for bit what the CPU device computes with the engine's
    arithmetic in the same programs; and no further from an fp32 run than the CPU's own fp16 run
    times the number of roundings: to first order a run's distance is a sum of one term for
    each value that is rounded to fp16, of the same unit in both; the engine rounds every op's
    result, the CPU device each plan step's."""
    run(TRAIN + """
losses, masters, kernels = train("ane")
assert {name for name, k in kernels.items() if k.device == "ane"} == kernels.keys() - programs.HOST
assert len(kernels.keys() - programs.HOST) == 7 and kernels.keys() & programs.HOST
assert get("evaluates") >= STEPS * 7 * 4        # each serves four layers

want, weights, _ = train(engine="ane")
np.testing.assert_array_equal(losses, want)
np.testing.assert_array_equal(masters, weights)

plain, plain_masters, cpu_kernels = train()
exact, exact_masters, _ = train(dtype="float32")
assert not np.array_equal(losses, plain)        # its arithmetic is its own
assert losses[-1] < losses[0] - 0.5             # it learns
engine = kernels.keys() - programs.HOST
rounded = [sum(p.op not in ("copy in", "copy out") for name in engine for p in ks[name].placement())
           for ks in (kernels, cpu_kernels)]
ratio = rounded[0] / rounded[1]
assert ratio > 1
def distance(a, b): return np.linalg.norm(a.astype(np.float64) - b)
for a, c, f in ((losses, plain, exact), (masters, plain_masters, exact_masters)):
    assert distance(a, f) <= ratio * distance(c, f), (distance(a, f), distance(c, f), ratio)
    assert distance(a, c) <= (ratio + 1) * distance(c, f)
del kernels, cpu_kernels
assert left() == NOTHING, left()
""")


def test_the_command_trains_on_the_engine(run, tmp_path):  # noqa: F811
    """anetorch train --device ane, killed by nothing, resumed once: the losses are those of
    one run of the same length on the CPU with the engine's arithmetic."""
    out = run(TRAIN + f"""
import json
from anetorch.cli import main
folder = {str(tmp_path / "run")!r}
args = ["train", *FILES, "--seq", "32", "--batch", "2", "--device", "ane", "--out", folder]
assert main([*args, "--steps", str(STEPS)]) == 0
rows = [json.loads(r) for r in open(folder + "/metrics.jsonl")]
losses = [r["loss"] for r in rows if "loss" in r]
np.testing.assert_array_equal(losses, train(engine="ane")[0])
before = get("compiles")
assert main([*args, "--steps", str(STEPS + 1), "--resume"]) == 0
assert get("compiles") == before                # the system still had every program
gc.collect()
assert left() == NOTHING, left()
""")
    assert "on ane" in out and "the model writes" in out


def test_an_engine_that_takes_one_surface_a_side(run, tmp_path):  # noqa: F811
    """Every program of more inputs is refused when it first runs: the command trains all the same, to
    the same losses, and says once for each program why it is packed."""
    run(TRAIN + f"""
import contextlib, io, json
from anetorch.cli import main
want = train("ane")[0]
knobs(single_surface=1)
folder, said = {str(tmp_path / "run")!r}, io.StringIO()
with contextlib.redirect_stderr(said):
    assert main(["train", *FILES, "--seq", "32", "--batch", "2", "--device", "ane", "--out", folder,
                 "--steps", str(STEPS)]) == 0
rows = [json.loads(r) for r in open(folder + "/metrics.jsonl")]
np.testing.assert_array_equal([r["loss"] for r in rows if "loss" in r], want)
lines = said.getvalue().splitlines()
assert lines and all(line.startswith("anetorch: warning: [run] packed into one surface, as its own "
                                     "ports were refused: ") for line in lines), lines
gc.collect()
assert left() == NOTHING, left()
""")


def test_a_failing_engine_stops_the_step(run):  # noqa: F811
    """The device's error; the weights are those before the step, and training goes on from
    them to the same bits."""
    run(TRAIN + """
want, masters = train("ane")[:2]
again, same_masters = train("ane", faults=[(0, 0), (2, 9), (2, 20), (5, 27)])[:2]
np.testing.assert_array_equal(again, want)
np.testing.assert_array_equal(same_masters, masters)
assert left() == NOTHING, left()
""")


def test_what_the_engine_refuses_is_one_line(stand_in, tmp_path):  # noqa: F811
    env = environment(stand_in, tmp_path) | {"ANETORCH_COMPILE_BUDGET": "1"}
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    for device, code in (("ane", 2), ("cpu", 0)):
        done = subprocess.run(
            [sys.executable, "-m", "anetorch", "train", str(text), "--device", device, "--steps", "1",
             "--seq", "16", "--batch", "1", "--out", str(tmp_path / device)],
            text=True, capture_output=True, timeout=240, env=env)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        if code:
            last = done.stderr.splitlines()[-1]
            assert last.startswith("anetorch: ") and "budget" in last, done.stderr
