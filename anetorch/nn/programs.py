"""The programs of a transformer, each a few lines over the layer functions.

One program serves every layer: weights are inputs. `engine` programs hold the products and
attention, in the storage dtype; `host` programs hold what must stay fp32 (embedding, norms,
SwiGLU's backward, loss, weight gradients) and cast at their borders. Backward programs are
derived from the forward ones.

                 x ─ embed ─ norm ─┬ qkv ─ (qk_norm) ─ attend ─ add_norm ─ ffn ─ add_norm ─ ... ─ loss
    residual x   (fp32, host)      └ xn (storage, engine)

N = batch * seq columns; S is the storage dtype. Shapes of activations are [1, C, 1, N].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anetorch import kernels, mil
from anetorch.mil import Value, ops
from anetorch.nn.config import Config

__all__ = ["BACKWARD", "DECODE", "FORWARD", "HOST", "Sizes", "make"]


@dataclass(frozen=True)
class Sizes:
    """What a program's shapes depend on."""

    config: Config
    batch: int
    seq: int
    dtype: str                  # storage: "fp16" or "fp32"
    cache: int = 0              # capacity of the key-value cache (decoding)

    @property
    def n(self) -> int:
        return self.batch * self.seq

    def act(self, channels: int, dtype: str | None = None) -> mil.Spec:
        """Spec of an activation."""
        return mil.spec((1, channels, 1, self.n), dtype or self.dtype)

    def weight(self, *shape: int, dtype: str | None = None) -> mil.Spec:
        return mil.spec(shape, dtype or self.dtype)


def _f32(x: Value) -> Value:
    return x if x.dtype == "fp32" else ops.cast(x=x, dtype="fp32")


def _to(x: Value, dtype: str) -> Value:
    return x if x.dtype == dtype else ops.cast(x=x, dtype=dtype)


# ---------------------------------------------------------------- forward


def embed(s: Sizes) -> mil.Program:
    """ids [N], table [V, C] -> x (fp32)."""
    c = s.config
    return mil.build(
        lambda table, ids: {"x": kernels.embed(table, ids)},
        {"table": s.weight(c.vocab_size, c.hidden_size, dtype="fp32"), "ids": mil.spec((s.n,), "int32")},
    )


def norm(s: Sizes) -> mil.Program:
    """x (fp32), g [C] -> xn (S)."""
    c = s.config
    return mil.build(
        lambda x, g: {"xn": _to(kernels.rms_norm(x, g, c.rms_norm_eps), s.dtype)},
        {"x": s.act(c.hidden_size, "fp32"), "g": s.weight(c.hidden_size, dtype="fp32")},
    )


def add_norm(s: Sizes, out: str | None = None) -> mil.Program:
    """x (fp32), y (S), g [C] -> s = x + y (fp32), xn = norm(s) (S, or `out`)."""
    c = s.config

    def body(x: Value, y: Value, g: Value) -> dict[str, Value]:
        total = ops.add(x=x, y=_f32(y))
        return {"s": total, "xn": _to(kernels.rms_norm(total, g, c.rms_norm_eps), out or s.dtype)}

    inputs = {"x": s.act(c.hidden_size, "fp32"), "y": s.act(c.hidden_size)}
    return mil.build(body, {**inputs, "g": s.weight(c.hidden_size, dtype="fp32")})


def final_norm(s: Sizes) -> mil.Program:
    """`add_norm` whose xn stays fp32 for the classifier."""
    return add_norm(s, "fp32")


def qkv(s: Sizes) -> mil.Program:
    """xn, wq [Q, C], wk, wv [KV, C] -> q, k, v."""
    c = s.config
    return mil.build(
        lambda xn, wq, wk, wv: {n: kernels.linear(xn, w) for n, w in (("q", wq), ("k", wk), ("v", wv))},
        {
            "xn": s.act(c.hidden_size),
            "wq": s.weight(c.q_dim, c.hidden_size),
            "wk": s.weight(c.kv_dim, c.hidden_size),
            "wv": s.weight(c.kv_dim, c.hidden_size),
        },
    )


def qk_norm(s: Sizes) -> mil.Program:
    """q0, k0, gq, gk [D] -> q, k, every head normalised."""
    c = s.config

    def body(q0: Value, k0: Value, gq: Value, gk: Value) -> dict[str, Value]:
        q, k = (kernels.rms_norm(_f32(t), g, c.rms_norm_eps) for t, g in ((q0, gq), (k0, gk)))
        return {"q": _to(q, s.dtype), "k": _to(k, s.dtype)}

    gains = {n: s.weight(c.head_dim, dtype="fp32") for n in ("gq", "gk")}
    return mil.build(body, {"q0": s.act(c.q_dim), "k0": s.act(c.kv_dim), **gains})


def attend(s: Sizes) -> mil.Program:
    """q, k, v before RoPE, wo [C, Q] -> a (attention), o = wo a."""
    c = s.config
    cos, sin = kernels.tables(s.seq, c.head_dim, c.rope_theta, s.batch)

    def body(q: Value, k: Value, v: Value, wo: Value) -> dict[str, Value]:
        q, k = (kernels.rope(t, cos, sin, c.head_dim) for t in (q, k))
        a = kernels.attention(q, k, v, c.head_dim, s.batch)
        return {"a": a, "o": kernels.linear(a, wo)}

    inputs = {"q": s.act(c.q_dim), "k": s.act(c.kv_dim), "v": s.act(c.kv_dim)}
    return mil.build(body, {**inputs, "wo": s.weight(c.hidden_size, c.q_dim)})


def _up(s: Sizes) -> dict[str, mil.Spec]:
    c = s.config
    w = s.weight(c.intermediate_size, c.hidden_size)
    return {"xn": s.act(c.hidden_size), "w1": w, "w3": w}


def up(s: Sizes) -> mil.Program:
    """xn, w1, w3 [F, C] -> h1, h3."""
    return mil.build(
        lambda xn, w1, w3: {"h1": kernels.linear(xn, w1), "h3": kernels.linear(xn, w3)}, _up(s)
    )


def swiglu(s: Sizes) -> mil.Program:
    """h1, h3 -> gate = silu(h1) h3, in fp32 inside."""
    f = s.act(s.config.intermediate_size)
    return mil.build(
        lambda h1, h3: {"gate": _to(kernels.swiglu(_f32(h1), _f32(h3)), s.dtype)}, {"h1": f, "h3": f}
    )


def _down(s: Sizes) -> mil.Spec:
    return s.weight(s.config.hidden_size, s.config.intermediate_size)


def down(s: Sizes) -> mil.Program:
    """gate, w2 [C, F] -> y."""
    return mil.build(
        lambda gate, w2: {"y": kernels.linear(gate, w2)},
        {"gate": s.act(s.config.intermediate_size), "w2": _down(s)},
    )


def ffn(s: Sizes) -> mil.Program:
    """xn, w1, w3 [F, C], w2 [C, F] -> h1, h3, gate, y: `up`, `swiglu` and `down` in one."""

    def body(xn: Value, w1: Value, w3: Value, w2: Value) -> dict[str, Value]:
        h1, h3 = kernels.linear(xn, w1), kernels.linear(xn, w3)
        gate = kernels.swiglu(h1, h3)
        return {"h1": h1, "h3": h3, "gate": gate, "y": kernels.linear(gate, w2)}

    return mil.build(body, {**_up(s), "w2": _down(s)})


def _head(s: Sizes) -> dict[str, mil.Spec]:
    c = s.config
    return {"xn": s.act(c.hidden_size, "fp32"), "w": s.weight(c.vocab_size, c.hidden_size, dtype="fp32")}


def loss(s: Sizes) -> mil.Program:
    """xn (fp32), w [V, C], targets [N] -> losses [N], loss [1] (their mean)."""

    def body(xn: Value, w: Value, targets: Value) -> dict[str, Value]:
        losses = kernels.token_losses(kernels.logits(xn, w), targets)
        return {"losses": losses, "loss": ops.reduce_mean(x=losses, axes=[0], keep_dims=True)}

    return mil.build(body, {**_head(s), "targets": mil.spec((s.n,), "int32")})


def logits(s: Sizes) -> mil.Program:
    """xn (fp32), w [V, C] -> scores [N, V]."""
    return mil.build(lambda xn, w: {"scores": kernels.logits(xn, w)}, _head(s))


# ---------------------------------------------------------------- decoding


def cache(s: Sizes) -> mil.Program:
    """Puts M = seq new positions into the key-value cache.

    q, k, v before RoPE, pos [M] int32, kc, vc [1, KV, 1, cache] -> qr (rotated), kc and vc
    with columns pos replaced (bind them in place), mask [1, 1, R*M, cache].
    """
    c = s.config
    kind = {"fp16": np.float16, "fp32": np.float32}[s.dtype]
    cos, sin = (t.astype(kind) for t in kernels.tables(s.cache, c.head_dim, c.rope_theta))
    ratio = c.num_attention_heads // c.num_key_value_heads
    every = np.arange(s.cache, dtype=np.int32).reshape(1, s.cache)

    def body(q: Value, k: Value, v: Value, pos: Value, kc: Value, vc: Value) -> dict[str, Value]:
        angles = [ops.gather(x=t, indices=pos, axis=1) for t in (cos, sin)]
        qr, kr = (kernels.rope(t, *angles, head_dim=c.head_dim) for t in (q, k))
        kc, vc = (
            ops.scatter(data=old, indices=pos, updates=new, axis=3, mode="update")
            for old, new in ((kc, kr), (vc, v))
        )
        seen = ops.less_equal(x=every, y=ops.reshape(x=pos, shape=[s.seq, 1]))
        mask = ops.select(cond=seen, a=kind(0), b=kind(-65504))
        mask = ops.tile(x=mask, reps=[ratio, 1]) if ratio > 1 else mask
        mask = ops.reshape(x=mask, shape=[1, 1, ratio * s.seq, s.cache])
        return {"qr": qr, "kc_out": kc, "vc_out": vc, "mask": mask}

    inputs = {"q": s.act(c.q_dim), "k": s.act(c.kv_dim), "v": s.act(c.kv_dim)}
    kv = mil.spec((1, c.kv_dim, 1, s.cache), s.dtype)
    return mil.build(body, {**inputs, "pos": mil.spec((s.seq,), "int32"), "kc": kv, "vc": kv})


def attend_cached(s: Sizes) -> mil.Program:
    """qr, kc, vc, mask, wo [C, Q] -> o."""
    c = s.config
    ratio = c.num_attention_heads // c.num_key_value_heads

    def body(qr: Value, kc: Value, vc: Value, mask: Value, wo: Value) -> dict[str, Value]:
        return {"o": kernels.linear(kernels.attend(qr, kc, vc, mask, c.head_dim, 1, ratio), wo)}

    kv = mil.spec((1, c.kv_dim, 1, s.cache), s.dtype)
    mask = mil.spec((1, 1, ratio * s.seq, s.cache), s.dtype)
    inputs = {"qr": s.act(c.q_dim), "kc": kv, "vc": kv, "mask": mask}
    return mil.build(body, {**inputs, "wo": s.weight(c.hidden_size, c.q_dim)})


# ---------------------------------------------------------------- backward

# Name -> (forward program, arguments of kernels.backward). "_w" programs hold the weight
# gradients: fp32, added in place.
_DERIVED: dict[str, tuple[Callable[[Sizes], mil.Program], dict]] = {
    "loss_back": (loss, dict(wrt=("xn", "w"), seeds=("loss",), accumulate=("w",), values=("losses", "loss"))),
    "final_norm_back": (final_norm, dict(wrt=("x", "y", "g"), seeds=("xn",), accumulate=("g",))),
    "down_w": (down, dict(wrt=("w2",), accumulate=("w2",))),
    "down_back": (down, dict(wrt=("gate",))),
    "swiglu_back": (swiglu, dict(saved=())),
    "up_w": (up, dict(wrt=("w1", "w3"), accumulate=("w1", "w3"))),
    "up_back": (up, dict(wrt=("xn",))),
    "add_norm_back": (add_norm, dict(saved=("s",), accumulate=("g",))),
    "attend_w": (attend, dict(wrt=("wo",), seeds=("o",), accumulate=("wo",))),
    "attend_back": (attend, dict(wrt=("q", "k", "v"), seeds=("o",), saved=())),
    "qk_norm_back": (qk_norm, dict(saved=(), accumulate=("gq", "gk"))),
    "qkv_w": (qkv, dict(wrt=("wq", "wk", "wv"), accumulate=("wq", "wk", "wv"))),
    "qkv_back": (qkv, dict(wrt=("xn",))),
    # The residual passes the norm by: its gradient is added in place.
    "norm_back": (norm, dict(saved=(), accumulate=("x", "g"))),
    "embed_w": (embed, dict(wrt=("table",), accumulate=("table",))),
}

FORWARD = {
    f.__name__: f
    for f in (embed, norm, qkv, qk_norm, attend, add_norm, ffn, final_norm, loss, logits, up, swiglu, down)
}
BACKWARD = tuple(_DERIVED)
DECODE = {f.__name__: f for f in (cache, attend_cached)}

#: Programs that run on the CPU device wherever the model runs.
HOST = frozenset(
    [n for n in BACKWARD if n.endswith("_w")]
    + ["embed", "norm", "qk_norm", "add_norm", "final_norm", "loss", "logits", "swiglu", "cache"]
    + ["loss_back", "final_norm_back", "swiglu_back", "add_norm_back", "qk_norm_back", "norm_back"]
)


def make(name: str, s: Sizes) -> mil.Program:
    """The program of this name for these sizes."""
    if name in _DERIVED:
        forward, how = _DERIVED[name]
        return kernels.backward(forward(s), **how)
    return {**FORWARD, **DECODE}[name](s)
