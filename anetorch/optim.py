"""AdamW over flat blocks, the learning-rate schedule and the dynamic loss scale.

The arithmetic is C (``_core.adamw_step``, ``_core.grad_norm``); what is here decides which
numbers it gets. Parameters, gradients and moments are one block each (nn/module.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from anetorch import _core
from anetorch.nn.module import Parameters

__all__ = ["AdamW", "LossScale", "Schedule"]


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a cosine down to ``floor`` times the peak; counted in optimizer
    steps, from 0.

    >>> s = Schedule(peak=1.0, warmup=10, total=110)
    >>> s(0), s(9), round(s(60), 6), round(s(110), 6)
    (0.1, 1.0, 0.55, 0.1)
    """

    peak: float
    warmup: int
    total: int
    floor: float = 0.1

    def __call__(self, step: int) -> float:
        """Learning rate of optimizer step ``step``."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return self.peak * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass
class LossScale:
    """Factor on the loss that keeps small fp16 gradients away from zero.

    A step with an inf or NaN among its gradients is skipped and the scale halved; after
    ``patience`` good steps in a row it doubles. Powers of two, so scaling is exact.

    >>> s = LossScale(1024.0, patience=2)
    >>> s.update(False); s.value
    512.0
    >>> s.update(True); s.update(True); s.value
    1024.0
    """

    value: float = 4096.0
    patience: int = 500
    good: int = 0
    most: float = 2.0**24
    fixed: bool = False         # fp32 storage needs none

    def update(self, finite: bool) -> None:
        """Tells how the step went. Raises FloatingPointError when even a tiny scale
        overflows: then the numbers themselves have run away."""
        if finite:
            self.good += 1
            if self.good >= self.patience and not self.fixed:
                self.value, self.good = min(self.value * 2, self.most), 0
            return
        self.good = 0
        if self.fixed or self.value <= 2.0**-10:
            raise FloatingPointError(
                f"[train] gradients are inf or NaN even at a loss scale of {self.value:g}: "
                "training has diverged; use a smaller --lr")
        self.value /= 2


@dataclass
class AdamW:
    """Adam with decoupled weight decay on matrices (none on the gains of norms), with one
    global-norm clip over all gradients.

    >>> from anetorch.nn.config import Config
    >>> params = Parameters(Config.preset("tiny", num_hidden_layers=1))
    >>> params.initialize(0, 0.02)
    >>> AdamW().step(params, lr=1e-3, unscale=1.0)              # all gradients are zero
    (0.0, True)
    """

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    updates: int = 0            # steps taken, for the bias correction

    def step(self, params: Parameters, lr: float, unscale: float) -> tuple[float, bool]:
        """Updates ``params`` from its gradients times ``unscale`` and stages the new weights.

        Returns (global norm of the gradients, whether it was finite); where it is not,
        nothing has changed.
        """
        norm, finite = _core.grad_norm(params.grads, unscale)
        if not finite:
            return norm, False
        self.updates += 1
        for r in params.ranges:
            part = slice(r.start, r.stop)
            _core.adamw_step(
                params.masters[part], params.grads[part], params.m[part], params.v[part],
                params.staged[part] if r.staged and params.staged is not None else None,
                lr=lr, step=self.updates, beta1=self.beta1, beta2=self.beta2, eps=self.eps,
                weight_decay=self.weight_decay if r.decay else 0.0,
                scale=unscale * _core.clip_factor(norm, self.clip))
        return norm, True
