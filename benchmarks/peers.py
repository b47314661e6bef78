"""The peers of the training benchmarks: a lean Llama in PyTorch and in JAX, hand-written with
nothing that costs time for generality's sake, from the same parameters and configuration.

Not a reference for correctness (tests/test_oracle_hf.py has transformers): the benchmarks
compare losses before they time anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from anetorch.nn.config import Config


def rope_table(c: Config, seq: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, `[seq, head_dim]`, half-split."""
    half = np.arange(0, c.head_dim, 2) / c.head_dim
    angle = np.outer(np.arange(seq), c.rope_theta ** -half)
    angle = np.concatenate([angle, angle], axis=1).astype(np.float32)
    return np.cos(angle), np.sin(angle)


# ------------------------------------------------------------------ PyTorch


def torch_layer(c: Config, x, w: dict[str, Any], cos, sin):  # noqa: ANN001, ANN201
    """One decoder layer, `[B, T, C]`; w by the names of one layer."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    def norm(v, g):  # noqa: ANN001, ANN202
        return F.rms_norm(v, (v.shape[-1],), g, c.rms_norm_eps)

    def turn(v):  # noqa: ANN001, ANN202
        a, b = v.chunk(2, dim=-1)
        return v * cos.to(v.dtype) + torch.cat([-b, a], dim=-1) * sin.to(v.dtype)

    b, t, _ = x.shape
    h, kv, d = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    n = norm(x, w["input_layernorm.weight"])
    q = F.linear(n, w["self_attn.q_proj.weight"]).view(b, t, h, d).transpose(1, 2)
    k = F.linear(n, w["self_attn.k_proj.weight"]).view(b, t, kv, d).transpose(1, 2)
    v = F.linear(n, w["self_attn.v_proj.weight"]).view(b, t, kv, d).transpose(1, 2)
    if "self_attn.q_norm.weight" in w:
        q, k = norm(q, w["self_attn.q_norm.weight"]), norm(k, w["self_attn.k_norm.weight"])
    o = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True, enable_gqa=h != kv)
    x = x + F.linear(o.transpose(1, 2).reshape(b, t, h * d), w["self_attn.o_proj.weight"])
    n = norm(x, w["post_attention_layernorm.weight"])
    gate = F.silu(F.linear(n, w["mlp.gate_proj.weight"])) * F.linear(n, w["mlp.up_proj.weight"])
    return x + F.linear(gate, w["mlp.down_proj.weight"])


def layers_of(c: Config, params: dict[str, Any]) -> list[dict[str, Any]]:
    return [{n.removeprefix(f"model.layers.{i}."): p for n, p in params.items()
             if n.startswith(f"model.layers.{i}.")} for i in range(c.num_hidden_layers)]


def torch_step(c: Config, weights: dict[str, np.ndarray], tokens: np.ndarray,
               targets: np.ndarray, kind: str) -> tuple[Callable[[], float], Callable[[], None]]:
    """forward + backward, and clearing of the gradients. `kind`: "fp32", "bf16" (parameters and
    all else in bf16) or "autocast" (fp32 parameters, bf16 autocast), compiled."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    params = {n: torch.from_numpy(a.copy()).to(dtype).requires_grad_() for n, a in weights.items()}
    layers = layers_of(c, params)
    cos, sin = (torch.from_numpy(a) for a in rope_table(c, tokens.shape[1]))
    x_ids, y_ids = torch.from_numpy(tokens.copy()), torch.from_numpy(targets.copy())

    def loss(ids, goal):  # noqa: ANN001, ANN202
        x = F.embedding(ids, params["model.embed_tokens.weight"])
        for w in layers:
            x = torch_layer(c, x, w, cos, sin)
        x = F.rms_norm(x, (c.hidden_size,), params["model.norm.weight"], c.rms_norm_eps)
        head = params.get("lm_head.weight", params["model.embed_tokens.weight"])
        return F.cross_entropy(F.linear(x, head).flatten(0, 1).float(), goal.flatten())

    compiled = torch.compile(loss)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            out = compiled(x_ids, y_ids)
        out.backward()
        return float(out.detach())

    def clear() -> None:            # the cheapest way: the next backward keeps its own arrays
        for p in params.values():
            p.grad = None

    return step, clear


def torch_update(weights: dict[str, np.ndarray]) -> Callable[[], None]:
    """Clipping and fused AdamW over fp32 parameters."""
    import torch

    params = [torch.from_numpy(a.copy()).requires_grad_() for a in weights.values()]
    for p in params:
        p.grad = torch.full_like(p, 1e-3)
    optimizer = torch.optim.AdamW(params, lr=1e-9, fused=True)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()

    return update


# ------------------------------------------------------------------ JAX


def jax_step(c: Config, weights: dict[str, np.ndarray], tokens: np.ndarray,
             targets: np.ndarray) -> Callable[[], float]:
    """forward + backward in fp32, jitted. JAX has no thread switch of its own: start the
    process on as many CPUs as the others use threads."""
    import jax
    import jax.numpy as jnp

    cos, sin = rope_table(c, tokens.shape[1])
    h, kv, d = c.num_attention_heads, c.num_key_value_heads, c.head_dim

    def norm(v, g):  # noqa: ANN001, ANN202
        return v * jax.lax.rsqrt(jnp.mean(v * v, -1, keepdims=True) + c.rms_norm_eps) * g

    def turn(v):  # noqa: ANN001, ANN202
        a, b = jnp.split(v, 2, axis=-1)
        return v * cos[:, None] + jnp.concatenate([-b, a], -1) * sin[:, None]

    def loss(params, ids, goal):  # noqa: ANN001, ANN202
        b, t = ids.shape
        x = params["model.embed_tokens.weight"][ids]
        for w in layers_of(c, params):
            n = norm(x, w["input_layernorm.weight"])
            q = (n @ w["self_attn.q_proj.weight"].T).reshape(b, t, h, d)
            k = (n @ w["self_attn.k_proj.weight"].T).reshape(b, t, kv, d)
            v = (n @ w["self_attn.v_proj.weight"].T).reshape(b, t, kv, d)
            if "self_attn.q_norm.weight" in w:
                q, k = norm(q, w["self_attn.q_norm.weight"]), norm(k, w["self_attn.k_norm.weight"])
            o = jax.nn.dot_product_attention(turn(q), turn(k), v, is_causal=True)
            x = x + o.reshape(b, t, h * d) @ w["self_attn.o_proj.weight"].T
            n = norm(x, w["post_attention_layernorm.weight"])
            x = x + (jax.nn.silu(n @ w["mlp.gate_proj.weight"].T)
                     * (n @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T
        x = norm(x, params["model.norm.weight"])
        head = params.get("lm_head.weight", params["model.embed_tokens.weight"])
        logp = jax.nn.log_softmax(x @ head.T)
        return -jnp.mean(jnp.take_along_axis(logp, goal[..., None], -1))

    both = jax.jit(jax.value_and_grad(loss))
    params = {n: jnp.asarray(a) for n, a in weights.items()}
    ids, goal = jnp.asarray(tokens), jnp.asarray(targets)

    def step() -> float:
        value, grads = both(params, ids, goal)
        jax.block_until_ready(grads)
        return float(value)

    return step
