"""Training: the loop, one step of it on one screen (``Trainer.train_step``).

Everything inside a step is C without the interpreter lock: forward, loss and backward are
compiled MIL programs run as one Pipeline, clipping and AdamW are ``_core`` calls. Python
chooses the text windows, the learning rate and the loss scale. Windows depend on the seed
and the step's number alone, so a run that was killed and resumed ends in the same bytes as
one that was not.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from anetorch import _core
from anetorch.checkpoint import KEEP, checkpoints
from anetorch.data import (Corpus, Vocabulary, Windows, bigram_loss, default_corpus, read_corpus,
                           validation_windows)
from anetorch.env import InputError, check_memory, gigabytes
from anetorch.generate import sample
from anetorch.nn.transformer import Config, Model
from anetorch.optim import AdamW, LossScale, Schedule
from anetorch.progress import Progress
from anetorch.rundir import RUNS, RunFolder, find_run, newest_checkpoint
from anetorch.session import (Options, SavedState, load_state, make_config, memory_needed,
                              resolve_config)

__all__ = ["Options", "Outcome", "StepResult", "Trainer", "train"]


# ---------------------------------------------------------------- one step

@dataclass(frozen=True)
class StepResult:
    """What one optimizer step reports: mean loss (nats per token), learning rate, global
    gradient norm before clipping, loss scale, and whether weights changed."""

    loss: float
    lr: float
    norm: float
    scale: float
    updated: bool


class Trainer:
    """Model, optimizer and data of a run, with its state: what a checkpoint holds.

    >>> corpus = default_corpus()                                       # doctest: +SKIP
    >>> vocab = Vocabulary.of(corpus)                                   # doctest: +SKIP
    >>> config = Config.preset("tiny", vocab_size=vocab.size)           # doctest: +SKIP
    >>> trainer = Trainer(Options().settled(), corpus, config, vocab)   # doctest: +SKIP
    >>> trainer.train_step().loss                                       # doctest: +SKIP
    4.7359
    """

    def __init__(self, options: Options, corpus: Corpus, config: Config, vocab: Vocabulary) -> None:
        o = self.options = options
        self.config, self.vocab, self.digest = config, vocab, corpus.digest
        self.model = Model(config, batch=o.batch, seq=o.seq, device=o.device, seed=o.seed)
        self.windows = Windows(corpus.train, vocab, o.seq, o.batch, o.seed)
        self.val = validation_windows(corpus.val, vocab, o.seq, validation_bytes(config))
        self.schedule = Schedule(o.lr, max(1, min(100, o.steps // 10)), o.steps)
        self.optimizer = AdamW()
        self.scaler = LossScale()
        self.step = 0                   # optimizer steps done, skipped ones included

    def train_step(self) -> StepResult:
        """One optimizer step: forward and backward of ``accum`` micro-steps, clip, update.

        No arithmetic on tensors happens in Python or NumPy here.
        """
        model, o, scale = self.model, self.options, self.scaler.value
        lr = self.schedule(self.step)
        model.params.zero_grads()
        model.loss_scale = scale
        loss = 0.0
        for i in range(o.accum):
            tokens, targets = self.windows.batch(self.step * o.accum + i)
            # One Pipeline run; *adds* scale * d(mean nats per token) to params.grads.
            loss += model.step_forward_backward(tokens, targets) / o.accum
        # Clips by the global norm; with an inf or NaN among the gradients changes nothing.
        norm, updated = self.optimizer.step(model.params, lr, unscale=1 / (scale * o.accum))
        self.scaler.update(updated)
        self.step += 1
        return StepResult(loss, lr, norm, scale, updated)

    def evaluate(self, keep_going: Callable[[], bool] = lambda: True) -> float:
        """Mean nats per byte over the validation windows; NaN when stopped in between."""
        tokens, targets = self.val
        total, n, batch = 0.0, len(tokens), self.options.batch
        for at in range(0, n, batch):
            if not keep_going():
                return math.nan
            rows = np.minimum(np.arange(at, at + batch), n - 1)     # the last batch repeats a row
            losses = self.model.token_losses(tokens[rows], targets[rows])
            total += float(np.asarray(losses[:n - at], np.float64).sum())
        return total / targets.size

    # -- state

    def tensors(self) -> dict[str, Any]:
        """Weights under Hugging Face's names, and both moments of each: Tensors by name."""
        params = self.model.params
        blocks = (("", "masters"), ("optimizer.m.", "m"), ("optimizer.v.", "v"))
        return {prefix + name: params.view(block, name) for prefix, block in blocks for name in params}

    def state(self) -> dict[str, Any]:
        """All else that a resumed run needs, as JSON can hold it. Equal states are equal bytes:
        no time, no path."""
        return {"config": self.config.to_dict(), "training": {
            "updates": self.optimizer.updates, "scale": self.scaler.value, "good": self.scaler.good,
            "corpus": self.digest, "symbols": self.vocab.symbols.hex(),
            "options": {k: getattr(self.options, k)
                        for k in ("steps", "seq", "batch", "accum", "lr", "seed")}}}

    def restore(self, saved: SavedState) -> None:
        """Takes weights, moments and counters of a checkpoint."""
        try:
            saved.file.restore(self.tensors())
        except ValueError as e:
            raise InputError(f"[checkpoint] {e}: restore the file, or remove it to fall back to an "
                             "earlier one") from None
        saved.file.close()
        self.model.params.stage()
        t = saved.training
        self.step, self.optimizer.updates = saved.file.step, t["updates"]
        self.scaler.value, self.scaler.good = t["scale"], t["good"]


def validation_bytes(config: Config) -> int:
    """How much validation text is scored: 128 KiB, less for models so large that scoring
    that much would take longer than training for a while."""
    return int((1 << 17) * min(1.0, 4e6 / config.num_parameters()))


# ---------------------------------------------------------------- the run

@dataclass(frozen=True)
class Outcome:
    """How a run ended: its folder, losses in nats per byte, what the model wrote, and
    whether Ctrl-C ended it."""

    folder: Path
    step: int
    val_loss: float
    bigram_loss: float
    interrupted: bool
    text: str = ""


def train(options: Options, say: Callable[[str], None] = print) -> Outcome:
    """Trains a model as ``anetorch train`` does; ``say`` gets the lines.

    Everything that can be wrong with the arguments is found before a file is touched.

    >>> outcome = train(Options(steps=100))                             # doctest: +SKIP
    >>> outcome.val_loss < outcome.bigram_loss                          # doctest: +SKIP
    True
    """
    began = time.monotonic()
    _check_device(options.device)
    if options.out == "":
        raise InputError("[train] the name of --out is empty: name a folder, or leave --out out")
    keys, has_vocabulary = resolve_config("tiny" if options.model is None else options.model)
    corpus = read_corpus(options.files) if options.files else default_corpus(say=say)
    saved = _saved_state(options, corpus)
    o = options.settled(saved.training["options"] if saved else None,
                        keys.get("max_position_embeddings"))
    corpus.require(o.seq)
    if saved and options.model is None:
        config, vocab, name = saved.config, saved.vocab, "the checkpoint's"
    else:
        vocab = Vocabulary.of(corpus, keys["vocab_size"] if has_vocabulary else None)
        config, name = make_config({**keys, "vocab_size": vocab.size}, str(o.model)), str(o.model)
    _check_fit(o, config, saved)
    folder_name = saved.path.parent if saved else o.out
    _check_room(Path(folder_name or RUNS), config, o, saved)
    with RunFolder(folder_name, o.resume, o.overwrite) as folder:
        say(f"model: {name}, {config.num_parameters():,} parameters, {config.num_hidden_layers} "
            f"layers, {config.num_attention_heads} heads over {config.num_key_value_heads} "
            f"KV heads, on {o.device or 'cpu'}")
        say(f"text: {corpus.source}: {len(corpus.train):,} bytes to train on, {len(corpus.val):,} "
            f"for validation, {len(vocab.symbols)} different bytes")
        say(f"folder: {folder.path}")
        trainer = Trainer(o, corpus, config, vocab)
        if saved:
            trainer.restore(saved)
        else:
            folder.clear()
        folder.write("config.json", (json.dumps(config.to_dict(), indent=2) + "\n").encode())
        return _run(trainer, folder, corpus, say, began)


def _run(trainer: Trainer, folder: RunFolder, corpus: Corpus, say: Callable[[str], None],
         began: float) -> Outcome:
    o, first = trainer.options, trainer.step
    tokens, targets = trainer.val
    bigram = bigram_loss(corpus.train, tokens, targets, trainer.vocab)
    folder.start_metrics(first)
    score_at = {o.steps, *((o.steps // 3, o.steps * 2 // 3) if o.steps >= 20 else (o.steps // 2,))}
    with Interrupt(say) as interrupt, Progress(o.steps, first, o.batch * o.seq * o.accum) as bar:
        def score() -> float:
            loss = trainer.evaluate(keep_going=lambda: not interrupt.asked)
            if not math.isnan(loss):
                folder.log(step=trainer.step, val_loss=loss, bigram_loss=bigram)
                bar.say(say, f"step {trainer.step}/{o.steps}: val loss {loss:.4f}   "
                             f"(bigram table {bigram:.4f}, on the same {targets.size:,} bytes)")
            return loss

        def save() -> None:
            folder.save(trainer.step, trainer.tensors(), trainer.state())

        loss = score()
        while trainer.step < o.steps and not interrupt.asked:
            r = trainer.train_step()
            bar.step(r.loss)
            folder.log(step=trainer.step, loss=r.loss, lr=r.lr, norm=r.norm if r.updated else None,
                       scale=r.scale, updated=r.updated, seconds=round(time.monotonic() - began, 3))
            if trainer.step % o.save_every == 0 and trainer.step < o.steps:
                save()
            if trainer.step in score_at:
                loss = score()
        if trainer.step > first or folder.newest() is None:
            save()
    if interrupt.asked:
        say(f"interrupted after step {trainer.step}, which is saved: continue with anetorch train "
            f"--resume --out {folder.path}")
        return Outcome(folder.path, trainer.step, loss, bigram, interrupted=True)
    say(folder.draw())
    say(f"checkpoint: {folder.newest()}")
    say(f"val loss {loss:.4f}, {abs(bigram - loss):.4f} nats per byte "
        f"{'below' if loss <= bigram else 'above'} the bigram table, "
        f"after {time.monotonic() - began:.0f} s")
    say("the model writes:")
    # A word to begin with: after an empty line comes, in documents, often a ruled one.
    prompt = next((p for p in (b"The ", b"\n") if set(p) <= set(trainer.vocab.symbols)),
                  trainer.vocab.symbols[:1])
    new = sample(trainer.model, trainer.vocab, prompt, max_tokens=400)
    text = (prompt + new).decode(errors="replace").strip("\n")
    say(text)
    return Outcome(folder.path, trainer.step, loss, bigram, interrupted=False, text=text)


# ---------------------------------------------------------------- checks

def _check_device(name: str | None) -> None:
    if name is None:
        return
    devices = {d[0]: d[1:] for d in _core.devices()}
    if name not in devices:
        raise InputError(f"[train] there is no device {name!r}: there is {', '.join(devices)}")
    available, detail = devices[name]
    if not available:
        raise InputError(f"[train] device {name!r} is not here ({detail}): use --device cpu")


def _saved_state(options: Options, corpus: Corpus) -> SavedState | None:
    """The checkpoint to resume from, if one is asked for and there."""
    folder = find_run(options.out) if options.resume else None
    found = newest_checkpoint(folder) if folder else None
    if found is None:
        return None
    saved = load_state(found)
    if saved.training["corpus"] != corpus.digest:
        raise InputError(f"[train] {saved.path} was trained on other text than {corpus.source}: "
                         "give the same files, or start anew in another --out")
    return saved


def _check_fit(o: Options, config: Config, saved: SavedState | None) -> None:
    """That options, model, checkpoint and memory go together."""
    if saved and config != saved.config:
        mine, theirs = asdict(config), asdict(saved.config)
        k = next(k for k in mine if mine[k] != theirs[k])
        raise InputError(f"[train] {saved.path} holds a model with {k} {theirs[k]}, and --model "
                         f"{o.model} has {mine[k]}: leave --model out, or give another --out")
    if saved and saved.file.step > o.steps:
        raise InputError(f"[train] {saved.path} is past --steps {o.steps}: give more, or another "
                         "--out")
    if o.seq > config.max_position_embeddings:
        raise InputError(f"[train] --seq {o.seq} is beyond the model's max_position_embeddings of "
                         f"{config.max_position_embeddings}: use a smaller --seq")
    check_memory(memory_needed(config, o.batch, o.seq),
                 f"[train] the model with --batch {o.batch} --seq {o.seq}",
                 "use a smaller --model, --batch or --seq")


def _check_room(folder: Path, config: Config, o: Options, saved: SavedState | None) -> None:
    """Before the folder is made, so that a full disk leaves nothing behind. The old ones stay
    until the new one is whole; those that a run goes on from are there already."""
    step = saved.file.step if saved else 0
    coming = (o.steps - 1) // o.save_every - step // o.save_every + 1 if o.steps > step else 0
    have = len(checkpoints(folder)) if saved else 0
    new = max(min(have + coming, KEEP + 1) - have, 0)
    need = config.num_parameters() * 12 * new       # weights and two moments
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    disk = shutil.disk_usage(there)
    if need > disk.free and disk.total:             # what is no disk (/proc) has no size
        raise InputError(f"[train] {folder} has {gigabytes(disk.free)} free, and the run needs "
                         f"{gigabytes(need)} for {new} checkpoint{'s' * (new > 1)} at a time: make "
                         "room or give another --out")


class Interrupt:
    """Turns Ctrl-C into a wish that the loop reads between steps, so that what is saved is
    a whole step. A second Ctrl-C interrupts at once (and saves nothing more)."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.asked = False
        self._say = say
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _on(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._say("stopping after this step (Ctrl-C again: at once, without saving)")
