"""Rotary position embedding.

Pair i of a head is turned by the angle position * theta^(-2i/D). "half" pairs channel i
with i + D/2 (what published Llama and Qwen3 files mean); "interleaved" pairs 2i with
2i + 1 (what the reference kernels do). Backward is the rotation by the negative angle,
and comes out of the graph walk.
"""

from __future__ import annotations

import numpy as np

from anetorch.mil import Value, ops

__all__ = ["rope", "tables"]


def tables(seq: int, head_dim: int, theta: float, batch: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of every angle, `[D/2, batch*seq]` fp32.

    Frequencies and angles are single precision and the cosine of *that* angle is correctly
    rounded: published weights were trained with exactly these angles, and at position
    30000 an angle computed in double differs by more than 1e-3.

    Example:
        >>> cos, sin = tables(seq=16, head_dim=8, theta=10000.0)
        >>> cos.shape
        (4, 16)
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequency = np.float32(1) / (np.float32(theta) ** exponent)
    angle = (frequency[:, None] * np.arange(seq, dtype=np.float32)[None, :]).astype(np.float64)
    tile = (1, batch)
    return np.tile(np.cos(angle), tile).astype(np.float32), np.tile(np.sin(angle), tile).astype(np.float32)


def rope(x: Value, cos: Value | np.ndarray, sin: Value | np.ndarray, head_dim: int,
         style: str = "half") -> Value:  # fmt: skip
    """Turns every pair of channels of every head by its column's angle.

    Shapes:
        x `[1, H*D, 1, N]`, cos and sin `[D/2, N]` -> `[1, H*D, 1, N]`

    Example:
        >>> p = mil.build(lambda x: rope(x, *tables(5, 8, 1e4), head_dim=8),
        ...               {"x": mil.spec((1, 16, 1, 5), "fp16")})
    """
    heads, half, n = x.shape[1] // head_dim, head_dim // 2, x.shape[3]
    if style == "half":
        whole, part, axis = [1, heads, head_dim, n], [1, heads, half, n], 2
        angle, second = [1, 1, half, n], [0, 0, half, 0]
    elif style == "interleaved":
        whole, part, axis = [heads, half, 2, n], [heads, half, 1, n], 2
        angle, second = [1, half, 1, n], [0, 0, 1, 0]
    else:
        raise ValueError(f"[rope] style must be 'half' or 'interleaved', got {style!r}")
    cos, sin = (_table(t, x.dtype, angle) for t in (cos, sin))
    h = ops.reshape(x=x, shape=whole)
    a = ops.slice_by_size(x=h, begin=[0, 0, 0, 0], size=part)
    b = ops.slice_by_size(x=h, begin=second, size=part)
    turned = (
        ops.sub(x=ops.mul(x=a, y=cos), y=ops.mul(x=b, y=sin)),
        ops.add(x=ops.mul(x=b, y=cos), y=ops.mul(x=a, y=sin)),
    )
    return ops.reshape(x=ops.concat(values=turned, axis=axis, interleave=False), shape=x.shape)


def _table(t: Value | np.ndarray, dtype: str, shape: list[int]) -> Value | np.ndarray:
    if isinstance(t, Value):
        return ops.reshape(x=t, shape=shape)
    return np.ascontiguousarray(t, {"fp16": np.float16, "fp32": np.float32}[dtype]).reshape(shape)
