"""A Llama- or Qwen3-style language model as requests over compiled MIL programs.

API (being filled in; the signatures below are what callers may rely on):

    model = Model(Config.preset("tiny", vocab_size=97), batch=8, seq=128,
                  dtype="float16", device=None, precision="highest", seed=0, training=True)

    model.config, model.batch, model.seq, model.dtype
    model.params                       Parameters: see module.py (masters, grads, m, v, staged, ranges)
    model.loss_scale = 1024.0          multiplies the loss's gradient (an input of the step)
    model.step_forward_backward(tokens, targets) -> float
        tokens, targets: int arrays [batch, seq]. One Pipeline run (the interpreter lock is
        released): forward, loss, backward. *Adds* loss_scale * d(mean nats per token) to
        params.grads; returns the mean loss (nats per token).
    model.params.zero_grads()
    model.token_losses(tokens, targets) -> float32 array [batch, seq], forward only
    model.evaluate(tokens, targets) -> float: mean of the above
    model.logits(tokens) -> float32 array [batch, seq, vocab]
    gen = model.generator(); gen.reset(); gen.feed(ids) -> float32 logits [vocab] after the last id
        (batch 1, KV cache of model.seq positions; when full, the caller resets and feeds the tail again)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anetorch.nn.config import PRESETS, Config
from anetorch.nn.module import Parameters

__all__ = ["Config", "Model", "PRESETS"]


class Model:
    """See the module's docstring."""

    loss_scale: float

    def __init__(self, config: Config, *, batch: int = 1, seq: int | None = None,
                 dtype: str = "float16", device: str | None = None, precision: str = "highest",
                 seed: int = 0, training: bool = True) -> None:  # fmt: skip
        self.config, self.batch, self.dtype = config, batch, dtype
        self.seq = seq if seq is not None else config.max_position_embeddings
        self.params = Parameters(config, dtype, training)
        self.params.initialize(seed, config.initializer_range)

    def step_forward_backward(self, tokens: np.ndarray, targets: np.ndarray) -> float:
        raise NotImplementedError

    def token_losses(self, tokens: np.ndarray, targets: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def evaluate(self, tokens: np.ndarray, targets: np.ndarray) -> float:
        return float(self.token_losses(tokens, targets).mean(dtype=np.float64))

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def generator(self) -> Generator:
        raise NotImplementedError


class Generator:
    """One growing sequence (batch 1) with a key-value cache."""

    capacity: int                       # positions the cache holds
    length: int                         # positions fed so far

    def reset(self) -> None:
        raise NotImplementedError

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        raise NotImplementedError
