"""The training loop in this process: steps, loss scale, schedule, accumulation, state."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from command import MICRO, TEXT

import anetorch
from anetorch.data import Corpus, Text, Vocabulary
from anetorch.env import InputError
from anetorch.nn.transformer import Config
from anetorch.optim import AdamW, LossScale, Schedule
from anetorch.session import Options, load_state, resolve_config
from anetorch.train import Trainer

RAW = TEXT.encode()
CORPUS = Corpus(Text([RAW[:5000]]), Text([RAW[5000:]]), "a text")


def trainer(**changes: object) -> Trainer:
    options = Options(model="micro", **{"steps": 40, "seq": 16, "batch": 4, "accum": 1,    # type: ignore[arg-type]
                                        "lr": 3e-3, "seed": 0, **changes})
    vocab = Vocabulary.of(CORPUS)
    return Trainer(options.settled(), CORPUS, Config.from_dict({**MICRO, "vocab_size": vocab.size}), vocab)


def masters(t: Trainer) -> np.ndarray:
    return np.array(t.model.params.masters)


# ---------------------------------------------------------------- schedule and loss scale

def test_schedule() -> None:
    s = Schedule(peak=2.0, warmup=4, total=104, floor=0.1)
    assert [s(i) for i in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert s(4) == 2.0 and s(54) == pytest.approx(1.1) and s(104) == s(1000) == pytest.approx(0.2)
    rates = [s(i) for i in range(4, 105)]
    assert rates == sorted(rates, reverse=True)
    assert Schedule(1.0, 1, 1)(0) == 1.0


def test_loss_scale_halves_and_grows() -> None:
    s = LossScale(1024.0, patience=3)
    s.update(False)
    assert s.value == 512
    for finite in (True, True, False, True, True):
        s.update(finite)
    assert s.value == 256                               # the run of good steps was broken
    s.update(True)
    assert s.value == 512
    for _ in range(1000):
        s.update(True)
    assert s.value == s.most


def test_loss_scale_gives_up_when_training_has_diverged() -> None:
    s = LossScale(1.0)
    with pytest.raises(FloatingPointError, match="use a smaller --lr"):
        for _ in range(100):
            s.update(False)
    with pytest.raises(FloatingPointError):
        LossScale(1.0, fixed=True).update(False)


# ---------------------------------------------------------------- steps

def test_training_learns() -> None:
    t = trainer()
    before = t.evaluate()
    losses = [t.train_step().loss for _ in range(40)]
    assert t.step == t.optimizer.updates == 40
    assert t.evaluate() < before - 0.5 and losses[-1] < losses[0]


def test_a_step_that_overflows_is_skipped() -> None:
    """With a loss scale beyond fp16 gradients are inf: nothing changes but the scale."""
    t = trainer()
    t.train_step()
    before, m, v = masters(t), np.array(t.model.params.m), np.array(t.model.params.v)
    t.scaler.value = 2.0**40
    r = t.train_step()
    assert not r.updated and r.scale == 2.0**40 and t.scaler.value == 2.0**39
    assert t.step == 2 and t.optimizer.updates == 1
    for was, now in ((before, masters(t)), (m, t.model.params.m), (v, t.model.params.v)):
        assert was.tobytes() == np.array(now).tobytes()
    t.scaler.value = 1024.0
    assert t.train_step().updated and t.optimizer.updates == 2


def test_the_loss_scale_does_not_change_the_gradient() -> None:
    """A power of two moves exponents only: as long as nothing leaves fp16's range, norms
    agree to the bits that fp16 subnormals cost."""
    norms = []
    for scale in (256.0, 4096.0):
        t = trainer()
        t.scaler.value = scale
        norms.append(t.train_step().norm)
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_accumulation_is_a_larger_batch() -> None:
    """Two micro-steps of 2 windows are one of the same 4: fp32 sums in another order, fp16
    rounding of other partial products, so equal to fp16's precision."""
    whole, halves = trainer(batch=4), trainer(batch=2, accum=2)
    rows = [halves.windows.batch(i) for i in range(2)]
    tokens, targets = (np.concatenate([r[k] for r in rows]) for k in range(2))
    whole.windows.batch = lambda step: (tokens, targets)        # type: ignore[method-assign]
    a, b = whole.train_step(), halves.train_step()
    assert a.loss == pytest.approx(b.loss, rel=1e-5)
    assert a.norm == pytest.approx(b.norm, rel=2e-3)
    x, y = np.array(whole.model.params.grads), np.array(halves.model.params.grads) / 2
    assert np.linalg.norm(x - y) <= 2e-3 * np.linalg.norm(x)


def test_clipping_bounds_the_update_and_reports_the_norm() -> None:
    t = trainer()
    t.optimizer = AdamW(clip=1e-3)
    r = t.train_step()
    assert r.norm > 1e-3                                # what it was before clipping
    m = np.array(t.model.params.m)                      # (1 - beta1) * clipped gradient
    assert np.linalg.norm(m) == pytest.approx(0.1 * 1e-3, rel=1e-4)


def test_gains_do_not_decay() -> None:
    """With zero gradients matrices shrink by lr * decay, gains of norms stay."""
    t = trainer()
    before = {n: np.array(t.model.params[n]) for n in t.model.params}
    t.model.params.zero_grads()
    AdamW(weight_decay=0.5).step(t.model.params, lr=0.1, unscale=1.0)
    for name, was in before.items():
        now = np.array(t.model.params[name])
        expected = was if was.ndim == 1 else was * np.float32(1 - 0.1 * 0.5)
        np.testing.assert_allclose(now, expected, rtol=2**-23, atol=0, err_msg=name)


def test_same_bits_for_every_thread_count() -> None:
    found = []
    threads = anetorch.num_threads()
    try:
        for n in (1, 2, 5):
            anetorch.set_num_threads(n)
            t = trainer()
            for _ in range(5):
                t.train_step()
            found.append(masters(t).tobytes())
    finally:
        anetorch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


def test_evaluation_counts_each_byte_once() -> None:
    """The mean over all validation bytes, whatever the batch; the padding of the last batch
    does not count."""
    losses = []
    for batch in (1, 4, 7):
        t = trainer(batch=batch)
        losses.append(t.evaluate())
        assert t.val[0].size == (len(CORPUS.val) - 1) // 16 * 16
    # fp16 activations do not depend on the batch they are in.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) == pytest.approx(losses[2], rel=1e-5)
    assert math.isnan(t.evaluate(keep_going=lambda: False))


# ---------------------------------------------------------------- state

def test_state_survives(tmp_path: Path) -> None:
    from anetorch import checkpoint

    straight, first = trainer(), trainer()
    for _ in range(6):
        straight.train_step()
    for _ in range(3):
        first.train_step()
    path = checkpoint.save(tmp_path, first.step, first.tensors(), first.state())
    second = trainer()
    second.restore(load_state(path))
    assert (second.step, second.optimizer.updates, second.scaler) == (3, 3, first.scaler)
    for _ in range(3):
        second.train_step()
    assert masters(second).tobytes() == masters(straight).tobytes()
    assert second.state() == straight.state()
    a = checkpoint.save(tmp_path / "a", 6, straight.tensors(), straight.state())
    b = checkpoint.save(tmp_path / "b", 6, second.tensors(), second.state())
    assert a.read_bytes() == b.read_bytes()


def test_published_weights_names() -> None:
    names = set(trainer().tensors())
    assert {"model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight",
            "model.norm.weight", "optimizer.m.model.norm.weight"} <= names


# ---------------------------------------------------------------- options and configs

def test_options_settle() -> None:
    o = Options().settled()
    assert (o.model, o.seed, o.device) == ("tiny", 0, None) and o.save_every
    saved = {"steps": 10, "seq": 8, "batch": 3, "accum": 2, "lr": 0.1, "seed": 4}
    o = Options(steps=20, seq=8).settled(saved)
    assert (o.steps, o.seq, o.batch, o.accum, o.lr, o.seed) == (20, 8, 3, 2, 0.1, 4)
    with pytest.raises(InputError, match="made with --batch 3, not 4"):
        Options(batch=4).settled(saved)


def test_tiny_is_what_it_promises() -> None:
    keys, has_vocabulary = resolve_config("tiny")
    assert keys["num_hidden_layers"] >= 4 and not has_vocabulary
    assert keys["num_attention_heads"] >= 2 * keys["num_key_value_heads"]
    assert Options().settled().seq >= 64


@pytest.mark.parametrize("name", ["stories15m", "stories110m", "qwen3-0.6b"])
def test_presets_keep_their_vocabulary(name: str) -> None:
    keys, has_vocabulary = resolve_config(name)
    assert has_vocabulary and keys["vocab_size"] in (32000, 151936)
    v = Vocabulary.of(CORPUS, keys["vocab_size"])
    assert v.size == keys["vocab_size"] and v.encode(b"A")[0] == ord("A")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "stories15m", "stories110m", "qwen3-0.6b"])
def test_every_preset_that_fits_runs_three_steps(name: str, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    from anetorch.train import train

    try:
        outcome = train(Options(files=("text.txt",), model=name, steps=3, seq=32, batch=1, accum=1,
                                save_every=100))
    except InputError as e:
        pytest.skip(f"does not fit this machine: {e}")
    assert outcome.step == 3 and math.isfinite(outcome.val_loss) and outcome.text
