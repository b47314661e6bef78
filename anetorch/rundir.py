"""The folder of one training run: numbering, lock, checkpoints, metrics, loss curve.

    DIR/config.json                     the model, in Hugging Face's words
    DIR/step-00000500.safetensors       weights and optimizer state; the newest two are kept
    DIR/metrics.jsonl                   one JSON object a line
    DIR/loss.png                        with matplotlib

What a checkpoint holds is train.py's business; how a file is written is checkpoint.py's.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from anetorch.env import InputError

__all__ = ["RunFolder", "find_run", "newest_checkpoint", "numbered_folders"]

RUNS = Path("anetorch-runs")            # below the working folder
KEEP = 2                                # checkpoints
_NAME = re.compile(r"step-(\d{8,})\.safetensors")


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of the checkpoints in a folder, oldest first."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((int(m[1]), folder / n) for n in names if (m := _NAME.fullmatch(n)))


def newest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """The last checkpoint of a folder, or None."""
    return found[-1] if (found := checkpoints(folder)) else None


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
    held = [p for p in numbered_folders() if checkpoints(p)]
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
        self._metrics: TextIO | None = None
        if not resume and not overwrite and (found := self.newest()):
            raise InputError(
                f"[train] {self.path} holds a checkpoint (step {found[0]}): continue it with "
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

    def newest(self) -> tuple[int, Path] | None:
        """(step, file) of the last checkpoint, or None."""
        return newest_checkpoint(self.path)

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of ``step`` goes."""
        return self.path / f"step-{step:08d}.safetensors"

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Lets ``write`` make the checkpoint of ``step`` and then drops all but the newest
        two. An OSError says which checkpoint is still there."""
        path = self.checkpoint_path(step)
        try:
            write(path)
        except OSError as e:
            held = self.newest()
            still = f"the checkpoint of step {held[0]} is intact" if held else "none was written"
            raise OSError(e.errno, f"{e.strerror or e} ({still}): make room, then continue with "
                                   f"--resume --out {self.path}", str(path)) from None
        for _, old in checkpoints(self.path)[:-KEEP]:
            old.unlink(missing_ok=True)
        return path

    def clear(self) -> None:
        """Removes what an earlier run left: checkpoints, metrics, loss curve."""
        for _, path in checkpoints(self.path):
            path.unlink(missing_ok=True)
        for name in ("metrics.jsonl", "loss.png"):
            (self.path / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Removes temporary files of a run that was killed while writing."""
        for path in self.path.glob(".*.tmp*"):
            path.unlink(missing_ok=True)

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
        tmp = self.path / ".metrics.tmp"
        with open(tmp, "w", encoding="utf-8") as f:
            f.writelines(json.dumps(m) + "\n" for m in kept)
        os.replace(tmp, self.path / "metrics.jsonl")
        self._metrics = open(self.path / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115

    def log(self, **values: Any) -> None:
        """Appends one line to the metrics."""
        if self._metrics is not None:
            self._metrics.write(json.dumps(values) + "\n")
            self._metrics.flush()

    # -- loss curve

    def draw(self) -> str:
        """Draws loss.png; returns one line that says where it is, or why there is none."""
        try:
            import matplotlib
        except ImportError:
            return ("no loss curve: matplotlib is not installed (pip install 'anetorch[plot]' and "
                    "use --resume to draw it)")
        matplotlib.use("Agg")
        from matplotlib import pyplot

        lines = list(self.read_metrics())
        train = [(m["step"], m["loss"]) for m in lines if "loss" in m]
        val = [(m["step"], m["val_loss"]) for m in lines if "val_loss" in m]
        bigram = [m["bigram_loss"] for m in lines if "bigram_loss" in m]
        figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120)
        if train:
            axes.plot(*zip(*train, strict=True), color="0.7", linewidth=0.8, label="training")
        if val:
            axes.plot(*zip(*val, strict=True), marker="o", label="validation")
        if bigram:
            axes.axhline(bigram[-1], color="tab:red", linestyle="--", label="bigram table")
        axes.set(xlabel="step", ylabel="nats per byte")
        axes.legend()
        figure.tight_layout()
        tmp = self.path / ".loss.tmp.png"
        figure.savefig(tmp)
        pyplot.close(figure)
        os.replace(tmp, self.path / "loss.png")
        return f"loss curve: {self.path / 'loss.png'}"
