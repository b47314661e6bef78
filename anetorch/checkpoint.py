"""Checkpoints: one safetensors file per step, atomic and reproducible.

    >>> w, m = np.ones(4, "float32"), np.zeros(4, "float32")
    >>> path = save("out", 100, {"w": w, "adam.m": m}, {"lr": 3e-4, "rng": 7})
    >>> ckpt = load("out")                      # the newest one of the folder, or a file
    >>> ckpt.step, ckpt.meta["lr"]
    (100, 0.0003)
    >>> ckpt.restore({"w": w, "adam.m": m})     # names, dtypes and shapes are checked first

A file holds weights and optimizer state as tensors and everything else as JSON in its
metadata, and can be read by any safetensors reader. It contains no time and no path: equal
states are equal bytes. It appears under its name only when it is on the disk, and older ones
are removed only after that, so a process may be killed at any instant.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anetorch.weights import WeightFile, save_file

__all__ = ["FORMAT", "KEEP", "Checkpoint", "CheckpointError", "checkpoints", "load", "newest", "save"]

KEEP = 2        # checkpoints of a run, besides one that is being written
FORMAT = 1      # raised when an older anetorch could not read the file correctly
NAME = re.compile(r"checkpoint-(\d{8,19})\.safetensors")
LEFTOVER = re.compile(r"\.checkpoint-\d{8,19}\.safetensors\.(\d{1,10})\.tmp")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: cut, of a newer format, of another shape."""


class Checkpoint:
    """A checkpoint that was opened and checked. Tensors are read from the mapped file.

    `path`, `step`, `meta` (the dict given to `save`) and `tensors`, a `WeightFile`.
    """

    def __init__(self, path: Path, step: int, meta: dict[str, Any], tensors: WeightFile) -> None:
        self.path, self.step, self.meta, self.tensors = path, step, meta, tensors

    def __repr__(self) -> str:
        what = "closed" if self.tensors.closed else f"{len(self.tensors)} tensors"
        return f"<Checkpoint '{self.path}': step {self.step}, {what}>"

    def check(self, targets: Mapping[str, Any]) -> None:
        """CheckpointError unless the file has exactly these tensors, by name, dtype, shape."""
        missing = sorted(set(targets) - set(self.tensors))
        extra = sorted(set(self.tensors) - set(targets))
        if missing or extra:
            what = (f"has no tensor {missing[0]!r}" if missing
                    else f"has a tensor {extra[0]!r} that the model has not")
            raise CheckpointError(f"'{self.path}' is of another model: it {what} "
                                  f"({len(missing)} missing, {len(extra)} unknown)")
        for name, x in targets.items():
            info = self.tensors.info(name)
            dtype = x.dtype if isinstance(x.dtype, str) else np.dtype(x.dtype).name
            if (dtype, tuple(x.shape)) != (info["dtype"], info["shape"]):
                raise CheckpointError(
                    f"'{self.path}' is of another model: {name!r} is {info['dtype']} "
                    f"{list(info['shape'])} there, {dtype} {list(x.shape)} here")

    def restore(self, targets: Mapping[str, Any]) -> None:
        """Copies every tensor into the array or Tensor of its name, after `check`."""
        self.check(targets)
        for name, x in targets.items():
            try:
                self.tensors.read_into(name, x)
            except RuntimeError as e:
                raise CheckpointError(str(e)) from None

    def close(self) -> None:
        """Releases the file; its tensors must not be in use."""
        self.tensors.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The checkpoint files of a folder, newest step first; [] when there is no folder."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    found = [(int(m.group(1)), n) for n in names if (m := NAME.fullmatch(n))]
    return [Path(folder, n) for _, n in sorted(found, reverse=True)]


def newest(folder: str | os.PathLike[str]) -> Path | None:
    """The checkpoint of the highest step, or None."""
    found = checkpoints(folder)
    return found[0] if found else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _sweep(folder: Path, keep: int) -> None:
    """Removes checkpoints beyond the newest `keep`, and what killed processes left."""
    for old in checkpoints(folder)[keep:]:
        old.unlink(missing_ok=True)
    for name in os.listdir(folder):
        m = LEFTOVER.fullmatch(name)
        if m and not _alive(int(m.group(1))):
            Path(folder, name).unlink(missing_ok=True)


def save(folder: str | os.PathLike[str], step: int, tensors: Mapping[str, Any],
         meta: Mapping[str, Any] | None = None, *, keep: int = KEEP,
         name: str | None = None) -> Path:
    """Writes `folder/checkpoint-<step>.safetensors` and keeps the newest `keep` of them.

    `tensors`: arrays and Tensors; `meta`: anything JSON can hold. With `name` (say
    "best.safetensors") the file gets that name and takes no part in `newest` and `keep`.
    Nothing older is removed before the new file is durable. Returns its path.
    """
    if step < 0:
        raise ValueError(f"[checkpoint.save] step must be at least 0, got {step}")
    if keep < 1:
        raise ValueError(f"[checkpoint.save] keep must be at least 1, got {keep}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"checkpoint-{step:08d}.safetensors")
    save_file(tensors, path, {
        "anetorch.checkpoint": str(FORMAT),
        "anetorch.step": str(step),
        "anetorch.meta": json.dumps(dict(meta or {}), sort_keys=True, separators=(",", ":")),
        "format": "pt",         # what other safetensors readers ask for
    })
    if name is None:
        _sweep(folder, keep)
    return path


def _before(path: Path) -> str:
    """A hint at the checkpoint to fall back to."""
    if NAME.fullmatch(path.name):
        older = [p for p in checkpoints(path.parent) if p.name < path.name]
        if older:
            return f"; the one before it is '{older[0]}'"
    return ""


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a checkpoint file, or the newest one of a folder.

    FileNotFoundError when there is none; CheckpointError, in one line, when the file is cut,
    no checkpoint, or of a newer format.
    """
    path = Path(path)
    if path.is_dir():
        found = newest(path)
        if found is None:
            raise FileNotFoundError(f"no checkpoint in '{path}'")
        path = found
    try:
        tensors = WeightFile.open(path)
    except (ValueError, NotImplementedError) as e:
        raise CheckpointError(f"not a whole checkpoint: {e}{_before(path)}") from None
    try:
        return _opened(path, tensors)
    except BaseException:
        tensors.close()
        raise


def _opened(path: Path, tensors: WeightFile) -> Checkpoint:
    fields = tensors.metadata
    version = fields.get("anetorch.checkpoint")
    if tensors.format != "safetensors" or version is None:
        raise CheckpointError(f"'{path}' is a {tensors.format} file, but not a checkpoint of "
                              "anetorch")
    if not version.isdecimal() or len(version) > 9 or int(version) < 1:
        raise CheckpointError(f"'{path}': the checkpoint format is {version!r}, expected a "
                              f"number from 1 to {FORMAT}")
    if int(version) > FORMAT:
        raise CheckpointError(f"'{path}' has checkpoint format {version}, this anetorch reads "
                              f"up to {FORMAT}: install a newer anetorch")
    step = fields.get("anetorch.step", "")
    try:
        meta = json.loads(fields.get("anetorch.meta", ""))
    except (ValueError, RecursionError):
        meta = None
    if not step.isdecimal() or len(step) > 19 or not isinstance(meta, dict):
        raise CheckpointError(f"'{path}': step or metadata are damaged{_before(path)}")
    return Checkpoint(path, int(step), meta, tensors)
