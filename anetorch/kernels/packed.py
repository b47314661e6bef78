"""The ten packed training kernels, for any configuration.

Each has one input `x` and one output `y`. Activations and weights lie side by side along
the last dimension (or activations below each other along channels), so that weights can
change without a new compilation even where an engine takes a single input. They are made
of the same layer functions as the programs with separate weights, and mean the same:
query head h uses KV head h // ratio, RoPE and the residual scale are parameters.

A configuration is anything with Hugging Face's names for the sizes: `nn.config.Config`, or
a SimpleNamespace. DIM = hidden_size, HIDDEN = intermediate_size, Q and KV the channels of
all query and of all KV heads, S = seq. Not here: QK-norm, which stays in fp32 on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from anetorch import mil
from anetorch.kernels import attention as attn
from anetorch.kernels.linear import linear
from anetorch.kernels.mlp import swiglu
from anetorch.kernels.rope import rope, tables
from anetorch.mil import Value, ops

__all__ = [
    "ALL", "ffn_bwd_w13t", "ffn_bwd_w2t", "ffn_fused", "kv_bwd", "q_bwd", "sdpa_bwd1",
    "sdpa_bwd2", "sdpa_fwd", "wo_fwd", "wot_bwd",
]  # fmt: skip


def _program(channels: int, columns: int, body: Callable[[Value], Value], dtype: str) -> mil.Program:
    return mil.build(lambda x: {"y": body(x)}, {"x": mil.spec((1, channels, 1, columns), dtype)})


def _split_columns(x: Value, *widths: int) -> list[Value]:
    """Consecutive column ranges of `[1, C, 1, sum(widths)]`."""
    at = [sum(widths[:i]) for i in range(len(widths))]
    return [ops.slice_by_size(x=x, begin=[0, 0, 0, b], size=[1, x.shape[1], 1, w]) for b, w in zip(at, widths)]


def _split_channels(x: Value, *counts: int) -> list[Value]:
    """Consecutive channel ranges of `[1, sum(counts), 1, S]`."""
    at = [sum(counts[:i]) for i in range(len(counts))]
    return [ops.slice_by_size(x=x, begin=[0, b, 0, 0], size=[1, c, 1, x.shape[3]]) for b, c in zip(at, counts)]


def _join_channels(*parts: Value) -> Value:
    return ops.concat(values=parts, axis=1, interleave=False)


def _matrix(w: Value) -> Value:
    """A weight's columns `[1, R, 1, C]` as `[R, C]`."""
    return ops.reshape(x=w, shape=[w.shape[1], w.shape[3]])


def _one_product(rows: int, seq: int, out: int, dtype: str) -> mil.Program:
    """x = act `[rows, S]` | W `[rows, out]` -> W^T act `[1, out, 1, S]`."""

    def body(x: Value) -> Value:
        act, w = _split_columns(x, seq, out)
        return linear(act, _matrix(w), "io")

    return _program(rows, seq + out, body, dtype)


def _two_products(rows: int, seq: int, out: int, dtype: str) -> mil.Program:
    """x = a, b `[rows, S]` | Wa, Wb `[rows, out]` -> Wa^T a + Wb^T b `[1, out, 1, S]`."""

    def body(x: Value) -> Value:
        a, b, wa, wb = _split_columns(x, seq, seq, out, out)
        return ops.add(x=linear(a, _matrix(wa), "io"), y=linear(b, _matrix(wb), "io"))

    return _program(rows, 2 * (seq + out), body, dtype)


def _sizes(cfg: Any) -> tuple[int, int, int, int, int, int]:
    """dim, hidden, heads, ratio, q channels, kv channels."""
    heads, kv = cfg.num_attention_heads, cfg.num_key_value_heads
    if heads % kv:
        raise ValueError(f"[packed] {heads} heads are not a multiple of {kv} KV heads")
    d = cfg.head_dim
    return cfg.hidden_size, cfg.intermediate_size, heads, heads // kv, heads * d, kv * d


def sdpa_fwd(cfg: Any, seq: int, rope_style: str = "half", theta: float | None = None,
             dtype: str = "fp16") -> mil.Program:  # fmt: skip
    """Projections, RoPE and causal attention.

    Columns: xnorm (S), Wq^T (Q), Wk^T (KV), Wv^T (KV), each `[DIM, .]` -> channels:
    attention (Q), rotated q (Q), rotated k (KV), v (KV), xnorm (DIM). `theta` None takes
    the configuration's.
    """
    dim, _, _, _, q_dim, kv_dim = _sizes(cfg)
    cos, sin = tables(seq, cfg.head_dim, cfg.rope_theta if theta is None else theta)

    def body(x: Value) -> Value:
        xn, wq, wk, wv = _split_columns(x, seq, q_dim, kv_dim, kv_dim)
        q, k, v = (linear(xn, _matrix(w), "io") for w in (wq, wk, wv))
        q, k = (rope(t, cos, sin, cfg.head_dim, rope_style) for t in (q, k))
        return _join_channels(attn.attention(q, k, v, cfg.head_dim), q, k, v, xn)

    return _program(dim, seq + q_dim + 2 * kv_dim, body, dtype)


def wo_fwd(cfg: Any, seq: int, dtype: str = "fp16") -> mil.Program:
    """Columns: attention `[Q, S]`, Wo^T `[Q, DIM]` -> o `[DIM, S]`."""
    dim, _, _, _, q_dim, _ = _sizes(cfg)
    return _one_product(q_dim, seq, dim, dtype)


def ffn_fused(cfg: Any, seq: int, alpha: float = 1.0, dtype: str = "fp16") -> mil.Program:
    """The feed-forward layer with its residual, x_next = x2 + alpha * W2 gate.

    Columns: x2norm (S), x2 (S), W1^T, W3^T, W2 (HIDDEN each, W2 as stored) -> channels:
    x_next (DIM), h1, h3, gate (HIDDEN each). Published models have alpha = 1; the reference
    systems 1/sqrt(2 layers).
    """
    dim, hidden, *_ = _sizes(cfg)

    def body(x: Value) -> Value:
        xn, x2, w1, w3, w2 = _split_columns(x, seq, seq, hidden, hidden, hidden)
        h1, h3 = linear(xn, _matrix(w1), "io"), linear(xn, _matrix(w3), "io")
        gate = swiglu(h1, h3)
        y = linear(gate, _matrix(w2))
        if alpha != 1.0:
            y = ops.mul(x=y, y=alpha)
        return _join_channels(ops.add(x=x2, y=y), h1, h3, gate)

    return _program(dim, 2 * seq + 3 * hidden, body, dtype)


def ffn_bwd_w2t(cfg: Any, seq: int, dtype: str = "fp16") -> mil.Program:
    """Columns: dffn `[DIM, S]`, W2 `[DIM, HIDDEN]` -> dgate `[HIDDEN, S]`."""
    dim, hidden, *_ = _sizes(cfg)
    return _one_product(dim, seq, hidden, dtype)


def ffn_bwd_w13t(cfg: Any, seq: int, dtype: str = "fp16") -> mil.Program:
    """Columns: dh1, dh3 `[HIDDEN, S]`, W1, W3 `[HIDDEN, DIM]` -> dx `[DIM, S]`."""
    dim, hidden, *_ = _sizes(cfg)
    return _two_products(hidden, seq, dim, dtype)


def wot_bwd(cfg: Any, seq: int, dtype: str = "fp16") -> mil.Program:
    """Columns: dy `[DIM, S]`, Wo `[DIM, Q]` -> d attention `[Q, S]`."""
    dim, _, _, _, q_dim, _ = _sizes(cfg)
    return _one_product(dim, seq, q_dim, dtype)


def q_bwd(cfg: Any, seq: int, dtype: str = "fp16") -> mil.Program:
    """Columns: dq `[Q, S]`, Wq `[Q, DIM]` -> dx `[DIM, S]`."""
    dim, _, _, _, q_dim, _ = _sizes(cfg)
    return _one_product(q_dim, seq, dim, dtype)


def kv_bwd(cfg: Any, seq: int, dtype: str = "fp16") -> mil.Program:
    """Columns: dk, dv `[KV, S]`, Wk, Wv `[KV, DIM]` -> dx `[DIM, S]`."""
    dim, _, _, _, _, kv_dim = _sizes(cfg)
    return _two_products(kv_dim, seq, dim, dtype)


def sdpa_bwd1(cfg: Any, seq: int, dtype: str = "fp16") -> mil.Program:
    """First half of attention's backward, heads already repeated.

    Channels: rotated q, k, v, d attention (Q each) -> channels: dv per query head (Q),
    probabilities p (HEADS*S), dp (HEADS*S).
    """
    _, _, heads, _, q_dim, _ = _sizes(cfg)
    mask = attn.causal_mask(seq, 1, dtype)

    def body(x: Value) -> Value:
        q, k, v, da = (attn.split_heads(t, cfg.head_dim) for t in _split_channels(x, *[q_dim] * 4))
        p = attn.probabilities(q, k, mask)
        dv = attn.merge_heads(ops.matmul(x=p, y=da, transpose_x=True))
        dp = ops.matmul(x=da, y=v, transpose_y=True)
        flat = [1, heads * seq, 1, seq]
        return _join_channels(dv, ops.reshape(x=p, shape=flat), ops.reshape(x=dp, shape=flat))

    return _program(4 * q_dim, seq, body, dtype)


def sdpa_bwd2(cfg: Any, seq: int, dtype: str = "fp16") -> mil.Program:
    """Second half: ds = p (dp - sum(p dp)) / sqrt(D).

    Channels: p, dp (HEADS*S each), rotated q, k (Q each) -> channels: dq (Q), dk per query
    head (Q).
    """
    _, _, heads, _, q_dim, _ = _sizes(cfg)

    def body(x: Value) -> Value:
        p, dp, q, k = _split_channels(x, heads * seq, heads * seq, q_dim, q_dim)
        p, dp = (ops.reshape(x=t, shape=[1, heads, seq, seq]) for t in (p, dp))
        q, k = attn.split_heads(q, cfg.head_dim), attn.split_heads(k, cfg.head_dim)
        s = ops.reduce_sum(x=ops.mul(x=p, y=dp), axes=[-1], keep_dims=True)
        ds = ops.mul(x=ops.mul(x=p, y=ops.sub(x=dp, y=s)), y=1 / math.sqrt(cfg.head_dim))
        dq = ops.matmul(x=ds, y=k)
        dk = ops.matmul(x=ds, y=q, transpose_x=True)
        return _join_channels(attn.merge_heads(dq), attn.merge_heads(dk))

    return _program(2 * heads * seq + 2 * q_dim, seq, body, dtype)


#: Reference name -> generator.
ALL: dict[str, Callable[..., mil.Program]] = {
    "sdpaFwd": sdpa_fwd,
    "woFwd": wo_fwd,
    "ffnFused": ffn_fused,
    "ffnBwdW2t": ffn_bwd_w2t,
    "ffnBwdW13t": ffn_bwd_w13t,
    "wotBwd": wot_bwd,
    "sdpaBwd1": sdpa_bwd1,
    "sdpaBwd2": sdpa_bwd2,
    "qBwd": q_bwd,
    "kvBwd": kv_bwd,
}
