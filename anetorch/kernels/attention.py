"""Causal grouped-query attention, written out in plain ops.

Heads leave the channel-first columns only here: `[1, H*D, 1, B*T]` becomes
`[1, B*G, R*T, D]`, where G counts key-value heads and R = H/G the query heads that share
one. Query head h uses KV head h // R, so the R query heads of a group stack along rows and
no key or value is ever repeated; the gradient of a shared key is then the sum over its
group by itself.
"""

from __future__ import annotations

import math

import numpy as np

from anetorch.mil import Value, ops

__all__ = ["attend", "attention", "causal_mask", "merge_heads", "probabilities", "repeat_heads", "split_heads"]


def split_heads(x: Value, head_dim: int, batch: int = 1, ratio: int = 1) -> Value:
    """`[1, H*D, 1, B*T]` -> `[1, B*G, R*T, D]` with G = H/ratio, R = ratio.

    Example:
        >>> p = mil.build(lambda q: split_heads(q, head_dim=4, batch=2, ratio=2),
        ...               {"q": mil.spec((1, 16, 1, 10), "fp16")})
        >>> p.outputs[0].shape
        (1, 4, 10, 4)
    """
    heads, seq = x.shape[1] // head_dim, x.shape[3] // batch
    h = ops.reshape(x=x, shape=[heads, head_dim, batch, seq])
    h = ops.transpose(x=h, perm=[2, 0, 3, 1])  # [B, H, T, D]
    return ops.reshape(x=h, shape=[1, batch * heads // ratio, ratio * seq, head_dim])


def merge_heads(x: Value, batch: int = 1, ratio: int = 1) -> Value:
    """The inverse of `split_heads`: `[1, B*G, R*T, D]` -> `[1, H*D, 1, B*T]`.

    Example:
        >>> p = mil.build(lambda x: merge_heads(x, batch=2, ratio=2),
        ...               {"x": mil.spec((1, 4, 10, 4), "fp16")})
        >>> p.outputs[0].shape
        (1, 16, 1, 10)
    """
    _, groups, rows, head_dim = x.shape
    heads, seq = groups // batch * ratio, rows // ratio
    h = ops.reshape(x=x, shape=[batch, heads, seq, head_dim])
    h = ops.transpose(x=h, perm=[1, 3, 0, 2])  # [H, D, B, T]
    return ops.reshape(x=h, shape=[1, heads * head_dim, 1, batch * seq])


def repeat_heads(x: Value, head_dim: int, ratio: int) -> Value:
    """KV head g to query heads g*ratio .. g*ratio + ratio - 1: `[1, G*D, 1, N]` -> `[1, H*D, 1, N]`.

    Only kernels whose surfaces hold repeated heads need it; `attend` does not.
    """
    groups, n = x.shape[1] // head_dim, x.shape[3]
    h = ops.reshape(x=x, shape=[groups, 1, head_dim, n])
    h = ops.concat(values=(h,) * ratio, axis=1, interleave=False)
    return ops.reshape(x=h, shape=[1, groups * ratio * head_dim, 1, n])


def causal_mask(seq: int, ratio: int, dtype: str) -> np.ndarray:
    """`[1, 1, R*T, T]`: 0 where key <= query, else -65504, the most negative fp16.

    A finite mask keeps the engine away from inf - inf; exp makes it an exact 0.
    """
    mask = np.where(np.tri(seq, dtype=bool), 0.0, -65504.0)
    mask = np.tile(mask, (ratio, 1)).reshape(1, 1, ratio * seq, seq)
    return mask.astype({"fp16": np.float16, "fp32": np.float32}[dtype])


def probabilities(q: Value, k: Value, mask: Value | np.ndarray) -> Value:
    """softmax(q k^T / sqrt(D) + mask): `[1, G, M, D]`, `[1, G, T, D]`, `[1, 1, M, T]` -> `[1, G, M, T]`."""
    scores = ops.matmul(x=q, y=k, transpose_y=True)
    scores = ops.mul(x=scores, y=1 / math.sqrt(q.shape[3]))
    return ops.softmax(x=ops.add(x=scores, y=mask), axis=-1)


def attend(q: Value, k: Value, v: Value, mask: Value | np.ndarray, head_dim: int,
           batch: int = 1, ratio: int = 1) -> Value:  # fmt: skip
    """Attention of queries over keys under any mask.

    Shapes:
        q `[1, H*D, 1, B*M]`, k and v `[1, G*D, 1, B*T]`, mask broadcast to
        `[1, B*G, R*M, T]` -> `[1, H*D, 1, B*M]`

    Example:
        >>> mask = np.zeros((1, 1, 3, 5), np.float16)       # three queries see all five keys
        >>> p = mil.build(lambda q, kv: attend(q, kv, kv, mask, head_dim=4),
        ...               {"q": mil.spec((1, 8, 1, 3), "fp16"), "kv": mil.spec((1, 8, 1, 5), "fp16")})
    """
    p = probabilities(split_heads(q, head_dim, batch, ratio), split_heads(k, head_dim, batch), mask)
    return merge_heads(ops.matmul(x=p, y=split_heads(v, head_dim, batch)), batch, ratio)


def attention(q: Value, k: Value, v: Value, head_dim: int, batch: int = 1) -> Value:
    """Causal self-attention; the group ratio follows from the channels.

    Shapes:
        q `[1, H*D, 1, B*T]`, k and v `[1, G*D, 1, B*T]` -> `[1, H*D, 1, B*T]`

    Example:
        >>> p = mil.build(lambda q, k, v: attention(q, k, v, head_dim=4, batch=2),
        ...               {"q": mil.spec((1, 16, 1, 10), "fp16"),
        ...                "k": mil.spec((1, 8, 1, 10), "fp16"), "v": mil.spec((1, 8, 1, 10), "fp16")})
    """
    ratio, seq = q.shape[1] // k.shape[1], k.shape[3] // batch
    return attend(q, k, v, causal_mask(seq, ratio, q.dtype), head_dim, batch, ratio)
