"""The progress line of a run: tqdm on a terminal, else a plain line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

__all__ = ["Progress"]


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any.

    >>> clock(75), clock(3675)
    ('1:15', '1:01:15')
    """
    s = int(seconds + 0.5)
    return f"{s // 60}:{s % 60:02d}" if s < 3600 else f"{s // 3600}:{s // 60 % 60:02d}:{s % 60:02d}"


class Progress:
    """Shows loss, tokens per second and the time left after each step.

    >>> with Progress(steps=2, done=0, tokens=1024) as bar:     # doctest: +SKIP
    ...     bar.step(4.7)
    """

    EVERY = 5.0                 # seconds between plain lines

    def __init__(self, steps: int, done: int, tokens: int) -> None:
        self._steps, self._done, self._tokens = steps, done, tokens
        self._terminal = sys.stderr.isatty()
        self._bar: tqdm | None = None
        self._rate = 0.0        # seconds a step, smoothed
        self._loss = 0.0
        self._last = self._shown = time.monotonic()

    def __enter__(self) -> Progress:
        if self._terminal:
            self._bar = tqdm(total=self._steps, initial=self._done, unit="step", dynamic_ncols=True,
                             bar_format="{percentage:3.0f}%|{bar}| {n}/{total}  {desc}",
                             leave=False)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, loss: float) -> None:
        """One step is done; ``loss`` is its training loss."""
        now = time.monotonic()
        took, self._last = now - self._last, now
        self._rate = took if not self._rate else 0.95 * self._rate + 0.05 * took
        self._loss = loss if not self._loss else 0.9 * self._loss + 0.1 * loss
        self._done += 1
        left = (self._steps - self._done) * self._rate
        line = (f"loss {self._loss:.3f}  {self._tokens / max(self._rate, 1e-9):,.0f} tokens/s  "
                f"{clock(left)} left")
        if self._bar is not None:
            self._bar.set_description_str(line, refresh=False)
            self._bar.update()
        elif now - self._shown >= self.EVERY or self._done == self._steps:
            self._shown = now
            print(f"step {self._done}/{self._steps}  {line}", flush=True)

    def say(self, say: Callable[[str], None], line: str) -> None:
        """Prints a line above the progress line; time spent since the last step (scoring,
        saving) does not count as a step's."""
        if self._bar is not None:
            self._bar.clear()
        say(line)
        if self._bar is not None:
            self._bar.refresh()
        self._last = time.monotonic()
