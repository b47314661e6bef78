"""The folder of one training run: numbering, lock, checkpoints, metrics, loss curve.

    DIR/config.json                     the model, in Hugging Face's words
    DIR/checkpoint-00000500.safetensors weights and optimizer state; the newest two are kept
    DIR/metrics.jsonl                   one JSON object a line
    DIR/loss.png                        with matplotlib

What a checkpoint holds is train.py's business; its name and writing are checkpoint.py's.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from anetorch import checkpoint
from anetorch.env import InputError

__all__ = ["RUNS", "RunFolder", "find_run", "newest_checkpoint", "numbered_folders"]

RUNS = Path("anetorch-runs")            # below the working folder


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.stem.rpartition("-")[2])


def newest_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint of a folder, or None; also where there is no folder."""
    try:
        return checkpoint.newest(folder)
    except NotADirectoryError:
        return None


def numbered_folders(runs: Path = RUNS) -> list[Path]:
    """The numbered folders below ``runs``, lowest number first."""
    try:
        names = [n for n in os.listdir(runs) if n.isdecimal()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [runs / n for n in sorted(names, key=int)]


def find_run(out: str | os.PathLike[str] | None) -> Path | None:
    """The run folder that is meant: ``out``, or where it is None the newest numbered folder
    that holds a checkpoint (None when there is none)."""
    if out is not None:
        return Path(out)
    held = [p for p in numbered_folders() if newest_checkpoint(p)]
    return held[-1] if held else None


def _os_error(doing: str, path: Path, e: OSError) -> InputError:
    return InputError(f"[train] {path}: {doing}: {e.strerror or e}: give another folder with "
                      "--out")


class RunFolder:
    """One training run's folder, held by a lock while it is open.

    ``out=None`` takes the next free number below ``anetorch-runs``; with ``resume`` the
    newest numbered folder that holds a checkpoint, if there is one.

    >>> import os, tempfile; os.chdir(tempfile.mkdtemp())
    >>> with RunFolder(None) as run:
    ...     print(run.path, run.newest())
    anetorch-runs/1 None
    """

    def __init__(self, out: str | os.PathLike[str] | None, resume: bool = False,
                 overwrite: bool = False) -> None:
        if out is None and resume:
            out = find_run(None)
        self.path = Path(out) if out is not None else self._next_number()
        self._lock: int | None = None
        self._metrics: io.FileIO | None = None
        if not resume and not overwrite and (found := self.newest()):
            raise InputError(
                f"[train] {self.path} holds a checkpoint (step {step_of(found)}): continue it with "
                "--resume, replace it with --overwrite, or give another --out")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise _os_error("cannot make the folder", self.path, e) from None
        self._take_lock()

    @staticmethod
    def _next_number() -> Path:
        numbers = [int(p.name) for p in numbered_folders()]
        number = max(numbers, default=0) + 1
        while True:
            path = RUNS / str(number)
            try:
                path.mkdir(parents=True)        # two runs that start at once get two numbers
                return path
            except FileExistsError:
                if not RUNS.is_dir():
                    raise InputError(f"[train] {RUNS} is not a folder: move it away or give "
                                     "--out") from None
                number += 1
            except OSError as e:
                raise _os_error("cannot make the folder", path, e) from None

    def _take_lock(self) -> None:
        try:
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise InputError(f"[train] another training run is writing to {self.path}: wait for "
                             "it or give another --out") from None
        except OSError as e:
            self.close()
            raise _os_error("cannot write to the folder", self.path, e) from None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the metrics and gives the lock back."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- checkpoints

    def newest(self) -> Path | None:
        """The last checkpoint, or None."""
        return newest_checkpoint(self.path)

    def save(self, step: int, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> Path:
        """Writes the checkpoint of ``step``; the newest two are kept. An OSError (a full disk)
        says which one is still there."""
        try:
            return checkpoint.save(self.path, step, tensors, meta)
        except OSError as e:
            held = self.newest()
            still = f"the checkpoint of step {step_of(held)} is intact" if held else "none was written"
            raise OSError(e.errno, f"checkpoint of step {step}: {os.strerror(e.errno or 0)} ({still}): "
                          f"make room, then continue with --resume --out {self.path}",
                          str(self.path)) from None

    def clear(self) -> None:
        """Removes what an earlier run left: checkpoints, metrics, loss curve."""
        for path in checkpoint.checkpoints(self.path):
            path.unlink(missing_ok=True)
        for name in ("metrics.jsonl", "loss.png"):
            (self.path / name).unlink(missing_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """Replaces a small file as a whole; where that fails, the old one stays."""
        tmp = self.path / f".{name}.tmp"
        try:
            tmp.write_bytes(data)
            os.replace(tmp, self.path / name)
        except OSError as e:
            with contextlib.suppress(OSError):
                tmp.unlink(missing_ok=True)
            raise self._unwritten(name, e) from None

    def _unwritten(self, name: str, e: OSError) -> OSError:
        held = self.newest()
        still = (f"the checkpoint of step {step_of(held)} is intact" if held
                 else "there is no checkpoint yet")
        return OSError(e.errno, f"{os.strerror(e.errno or 0)} ({still}): make room, then continue "
                                f"with --resume --out {self.path}", str(self.path / name))

    # -- metrics

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl; a half-written last line is left out."""
        try:
            with open(self.path / "metrics.jsonl", encoding="utf-8") as f:
                for line in f:
                    try:
                        yield json.loads(line)
                    except ValueError:
                        return
        except FileNotFoundError:
            return

    def start_metrics(self, step: int) -> None:
        """Opens the metrics for writing and forgets lines later than ``step``: the steps
        that a killed run made after its last checkpoint are made again."""
        kept = [m for m in self.read_metrics() if m.get("step", 0) <= step]
        self.write("metrics.jsonl", "".join(json.dumps(m) + "\n" for m in kept).encode())
        self._metrics = open(self.path / "metrics.jsonl", "ab", buffering=0)  # noqa: SIM115

    def log(self, **values: Any) -> None:
        """Appends one line to the metrics; JSON has no inf and NaN, they become null."""
        if self._metrics is not None:
            known = {k: None if isinstance(v, float) and not math.isfinite(v) else v
                     for k, v in values.items()}
            rest = (json.dumps(known, allow_nan=False) + "\n").encode()
            try:
                while rest:
                    rest = rest[self._metrics.write(rest):]
            except OSError as e:
                raise self._unwritten("metrics.jsonl", e) from None

    # -- loss curve

    def draw(self) -> str:
        """Draws loss.png; returns one line that says where it is, or why there is none."""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            return ("no loss curve: matplotlib is not installed (pip install 'anetorch[plot]' and "
                    "use --resume to draw it)")
        lines = list(self.read_metrics())
        train = [(m["step"], m["loss"]) for m in lines if "loss" in m]
        val = [(m["step"], m["val_loss"]) for m in lines if "val_loss" in m]
        bigram = [m["bigram_loss"] for m in lines if "bigram_loss" in m]
        figure = Figure(figsize=(7, 4), dpi=120)        # without pyplot: no global state
        axes = figure.subplots()
        if train:
            axes.plot(*zip(*train, strict=True), color="0.7", linewidth=0.8, label="training")
        if val:
            axes.plot(*zip(*val, strict=True), marker="o", label="validation")
        if bigram:
            axes.axhline(bigram[-1], color="tab:red", linestyle="--", label="bigram table")
        axes.set(xlabel="step", ylabel="nats per byte")
        axes.legend()
        figure.tight_layout()
        image = io.BytesIO()
        FigureCanvasAgg(figure).print_png(image)
        try:
            self.write("loss.png", image.getvalue())
        except OSError as e:                            # the run itself is done and saved
            return f"no loss curve: {e.filename}: {e.strerror}"
        return f"loss curve: {self.path / 'loss.png'}"
