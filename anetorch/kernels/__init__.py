"""Layers as MIL: functions that emit ops onto the current builder, shapes annotated.

Activations are channel-first, `[1, C, 1, N]`, with the sequences of a batch side by side
along columns; weights are inputs of their own. A program's gradient is had from
`backward`, which walks its graph, so no layer hides arithmetic from the walk.

    prog = mil.build(lambda x, w: {"y": kernels.linear(x, w)},
                     {"x": mil.spec((1, 8, 1, 5), "fp16"), "w": mil.spec((3, 8), "fp16")})
    back = kernels.backward(prog, wrt=["x"])          # inputs w, dy; output dx
"""

from __future__ import annotations

from anetorch.kernels import packed
from anetorch.kernels.attention import attend, attention, causal_mask, merge_heads, repeat_heads, split_heads
from anetorch.kernels.embed import embed
from anetorch.kernels.linear import linear
from anetorch.kernels.loss import logits, token_losses
from anetorch.kernels.mlp import swiglu
from anetorch.kernels.norm import rms_norm
from anetorch.kernels.rope import rope, tables
from anetorch.mil.grad import grad as backward

__all__ = [
    "attend", "attention", "backward", "causal_mask", "embed", "linear", "logits", "merge_heads",
    "packed", "repeat_heads", "rms_norm", "rope", "split_heads", "swiglu", "tables", "token_losses",
]  # fmt: skip
