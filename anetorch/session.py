"""What a run is made of before it runs: options, the model's config, a saved state.

Everything here is checked as hostile or mistyped input and complains with ``InputError``:
what, where and what to do. Nothing here trains (train.py) or writes (rundir.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from anetorch import checkpoint
from anetorch.data import Vocabulary
from anetorch.env import InputError
from anetorch.nn.config import PRESETS, Config

__all__ = ["Options", "SavedState", "load_state", "make_config", "memory_needed",
           "resolve_config"]

# ---------------------------------------------------------------- what the user asks for

@dataclass(frozen=True)
class Options:
    """Arguments of a run. None: what the checkpoint says when resuming, else the model's
    default.

    >>> Options(model="tiny", steps=100).settled().seq
    128
    """

    files: tuple[str, ...] = ()
    model: str | None = None    # a preset's name, or the path of a config.json
    steps: int | None = None    # optimizer steps
    seq: int | None = None      # bytes a window
    batch: int | None = None    # windows a micro-step
    accum: int | None = None    # micro-steps an optimizer step
    lr: float | None = None     # peak learning rate
    seed: int | None = None
    out: str | None = None
    save_every: int | None = None
    resume: bool = False
    overwrite: bool = False
    device: str | None = None

    def settled(self, saved: Mapping[str, Any] | None = None,
                positions: int | None = None) -> Options:
        """All fields filled in: from here, then ``saved`` (a checkpoint's), then defaults;
        a default ``seq`` keeps to the ``positions`` that the model has.

        Raises InputError where an argument contradicts the checkpoint; ``steps`` may grow.
        """
        saved = saved or {}
        for name in ("seq", "batch", "accum", "lr", "seed"):
            mine, theirs = getattr(self, name), saved.get(name)
            if mine is not None and theirs is not None and mine != theirs:
                raise InputError(f"[train] the checkpoint was made with --{name} {theirs}, not "
                                 f"{mine}: leave --{name} out, or start anew in another --out")
        known = {k: v for k, v in asdict(self).items() if v is not None}
        defaults = _defaults(self.model)
        defaults["seq"] = min(defaults["seq"], positions or defaults["seq"])
        o = Options(**{**defaults, **saved, **known})
        return replace(o, save_every=o.save_every or max(1, o.steps // 4))     # type: ignore[operator]


def _defaults(model: str | None) -> dict[str, Any]:
    """Run length and sizes that suit a model: minutes for ``tiny``, else those of the
    reference trainer."""
    common = {"model": "tiny" if model is None else model, "seed": 0}
    if common["model"] == "tiny":
        return common | {"steps": 500, "seq": 128, "batch": 8, "accum": 1, "lr": 3e-3}
    return common | {"steps": 10_000, "seq": 256, "batch": 1, "accum": 10, "lr": 3e-4}


def resolve_config(name: str) -> tuple[dict[str, Any], bool]:
    """(keys of a config.json, whether it brings its own vocabulary) for a preset or a path.

    >>> keys, has_vocabulary = resolve_config("tiny")
    >>> keys["num_hidden_layers"] >= 4, has_vocabulary
    (True, False)
    """
    if name in PRESETS:
        return Config.preset(name).to_dict(), name != "tiny"
    path = Path(name) / "config.json" if os.path.isdir(name) else Path(name)
    if not name or not path.exists():
        raise InputError(f"[train] there is no preset or file {name!r}: presets are "
                         f"{', '.join(PRESETS)}; else give the path of a config.json")
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(f"[train] {path} cannot be read: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        raise InputError(f"[train] {path} is not JSON ({e}): give a Hugging Face config.json"
                         ) from None
    if not isinstance(keys, dict):
        raise InputError(f"[train] {path} holds a JSON {type(keys).__name__}, not an object: give "
                         "a Hugging Face config.json")
    has_vocabulary = keys.get("vocab_size") is not None
    make_config(keys if has_vocabulary else {**keys, "vocab_size": 256}, str(path))
    return keys, has_vocabulary


def make_config(keys: Mapping[str, Any], where: str) -> Config:
    """``Config.from_dict`` with its complaint as one line for the user."""
    try:
        return Config.from_dict(keys, where=where)
    except (TypeError, ValueError) as e:
        raise InputError(f"{e}: correct that key") from None


def memory_needed(config: Config, batch: int, seq: int) -> int:
    """Bytes that training surely takes (a lower bound, so that nothing that fits is
    refused): masters, gradients, moments in fp32, staged weights in fp16, what the backward
    pass keeps of each layer in fp16, logits and their gradient in fp32."""
    n, columns = config.num_parameters(), batch * seq
    layer = 4 * config.hidden_size + 2 * config.q_dim + 2 * config.kv_dim
    layer += 3 * config.intermediate_size
    probabilities = config.num_attention_heads * seq
    kept = config.num_hidden_layers * (layer + probabilities) * 2
    return n * 18 + columns * (kept + 2 * config.vocab_size * 4)


# ---------------------------------------------------------------- checkpoints

@dataclass(frozen=True)
class SavedState:
    """A checkpoint that was opened and understood: the file, the model's config, the
    vocabulary, and counters and options of the training."""

    file: checkpoint.Checkpoint
    config: Config
    vocab: Vocabulary
    training: dict[str, Any]

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.file.path


def load_state(path: Path) -> SavedState:
    """Opens a checkpoint of a training run.

    Raises InputError for one that is damaged, cut short, of a newer format or not ours.
    """
    remedy = "restore the file, or remove it to fall back to an earlier one"
    try:
        file = checkpoint.load(path)
    except OSError as e:
        raise InputError(f"[checkpoint] {path} cannot be read: {e.strerror or e}") from None
    except checkpoint.CheckpointError as e:
        raise InputError(f"[checkpoint] {path} cannot be read: {e}: {remedy}") from None
    try:
        training = file.meta["training"]
        config = Config.from_dict(file.meta["config"])
        vocab = Vocabulary(bytes.fromhex(training["symbols"]), config.vocab_size)
        for key, kind in (("updates", int), ("scale", float), ("good", int), ("corpus", str),
                          ("options", dict)):
            if not isinstance(training[key], kind):
                raise TypeError(f"{key} is of type {type(training[key]).__name__}")
    except (KeyError, TypeError, ValueError) as e:
        what = f"it has no {e.args[0]!r}" if isinstance(e, KeyError) else str(e)
        raise InputError(f"[checkpoint] {path} is of no training run of anetorch ({what}): {remedy}"
                         ) from None
    return SavedState(file, config, vocab, training)
