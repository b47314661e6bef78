"""The ten packed kernels and the layer programs they share functions with.

Oracle: the formulas of the reference, written once more over heads in NumPy float64 with
the error bound carried along (bounded.py). Sizes are rectangular, with two KV heads for
four query heads, so that the order of heads matters.
"""

from __future__ import annotations

import doctest
import importlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
from bounded import Arith, Bounded, check

import anetorch
from anetorch import _core, kernels, mil
from anetorch.kernels import packed

evaluate = _core._testing.eval

CFG = SimpleNamespace(
    hidden_size=10, intermediate_size=14, num_attention_heads=4, num_key_value_heads=2,
    head_dim=6, rope_theta=100.0,
)  # fmt: skip
S, DIM, HIDDEN, H, KV, HD = 7, 10, 14, 4, 2, 6
Q, KVD = H * HD, KV * HD
RATIO = H // KV


# ---------------------------------------------------------------- the oracle, on [C, S]


def heads(x: Bounded, n: int) -> Bounded:
    """[n*HD, S] -> [n, S, HD]."""
    return x.reshape(n, HD, -1).transpose(0, 2, 1)


def flat(x: Bounded) -> Bounded:
    """[n, S, HD] -> [n*HD, S]."""
    return x.transpose(0, 2, 1).reshape(x.shape[0] * HD, x.shape[1])


def repeat(x: Bounded) -> Bounded:
    """KV heads [KV, S, HD] to query heads: h reads h // RATIO."""
    return x[[h // RATIO for h in range(H)]]


def rotate(a: Arith, x: Bounded, style: str, theta: float) -> Bounded:
    """x [n, S, HD]."""
    cos, sin = np.empty((S, HD)), np.empty((S, HD))
    partner, sign = np.empty(HD, int), np.empty(HD)
    for i in range(HD // 2):
        lo, hi = (i, i + HD // 2) if style == "half" else (2 * i, 2 * i + 1)
        partner[lo], partner[hi], sign[lo], sign[hi] = hi, lo, -1, 1
        for p in range(S):
            angle = np.float64(np.float32(p) * (np.float32(1) / np.float32(theta) ** (np.float32(2 * i) / np.float32(HD))))
            cos[p, [lo, hi]], sin[p, [lo, hi]] = math.cos(angle), math.sin(angle)
    # Tables are fp32 before they are stored; a last-bit difference of the frequency's power
    # moves an angle below S by less than S * 2^-24.
    tables = [a.rounded(t, S * 2.0**-23) for t in (cos, sin)]
    return x * tables[0] + x[:, :, partner] * (tables[1] * a.exact(sign))


def probabilities(a: Arith, q: Bounded, k: Bounded) -> Bounded:
    mask = np.where(np.tri(S, dtype=bool), 0.0, -65504.0)
    return a.softmax((q @ k.T) * a.exact(1 / math.sqrt(HD)) + a.exact(mask))


def oracle(name: str, a: Arith, x: Bounded, style: str = "half", theta: float = 100.0, alpha: float = 1.0) -> Bounded:
    """Output [C, S] of a packed kernel from its packed input [C, columns]."""

    def columns(*widths):
        at = np.cumsum([0, *widths])
        assert at[-1] == x.shape[1]
        return [x[:, b:e] for b, e in zip(at, at[1:])]

    def channels(*counts):
        at = np.cumsum([0, *counts])
        assert at[-1] == x.shape[0]
        return [x[b:e] for b, e in zip(at, at[1:])]

    one = {"woFwd": DIM, "ffnBwdW2t": HIDDEN, "wotBwd": Q, "qBwd": DIM}
    if name in one:
        act, w = columns(S, one[name])
        return w.T @ act
    if name in ("ffnBwdW13t", "kvBwd"):
        p, q, wp, wq = columns(S, S, DIM, DIM)
        return wp.T @ p + wq.T @ q
    if name == "sdpaFwd":
        xn, wq, wk, wv = columns(S, Q, KVD, KVD)
        q = rotate(a, heads(wq.T @ xn, H), style, theta)
        k = rotate(a, heads(wk.T @ xn, KV), style, theta)
        v = wv.T @ xn
        attn = probabilities(a, q, repeat(k)) @ repeat(heads(v, KV))
        return a.concat([flat(attn), flat(q), flat(k), v, xn], 0)
    if name == "ffnFused":
        xn, x2, w1, w3, w2 = columns(S, S, HIDDEN, HIDDEN, HIDDEN)
        h1, h3 = w1.T @ xn, w3.T @ xn
        gate = h1 * a.sigmoid(h1) * h3
        y = w2 @ gate
        y = y * a.exact(alpha) if alpha != 1.0 else y
        return a.concat([x2 + y, h1, h3, gate], 0)
    if name == "sdpaBwd1":
        q, k, v, da = (heads(t, H) for t in channels(Q, Q, Q, Q))
        p = probabilities(a, q, k)
        return a.concat([flat(p.T @ da), p.reshape(H * S, S), (da @ v.T).reshape(H * S, S)], 0)
    assert name == "sdpaBwd2"
    p, dp, q, k = channels(H * S, H * S, Q, Q)
    p, dp, q, k = p.reshape(H, S, S), dp.reshape(H, S, S), heads(q, H), heads(k, H)
    ds = p * (dp - (p * dp).sum(-1)) * a.exact(1 / math.sqrt(HD))
    return a.concat([flat(ds @ k), flat(ds.T @ q)], 0)


VARIANTS = [(n, {}) for n in packed.ALL] + [
    ("sdpaFwd", {"rope_style": "interleaved", "theta": 10000.0}),
    ("ffnFused", {"alpha": 1 / math.sqrt(24)}),
]


def run(name, dtype, how):
    program = packed.ALL[name](CFG, S, dtype=dtype, **how)
    (port,) = program.functions["main"].inputs
    a = Arith(dtype)
    x = a.exact(np.random.default_rng(3).standard_normal(port.shape[1::2]))
    style = {"style" if k == "rope_style" else k: v for k, v in how.items()}
    return program, x, oracle(name, a, x, **style)


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize(("name", "how"), VARIANTS, ids=[n + "-".join(h) for n, h in VARIANTS])
def test_packed_kernel(name, how, dtype):
    program, x, want = run(name, dtype, how)
    given = x.v.reshape(1, x.shape[0], 1, x.shape[1]).astype(x.a.dtype)
    out = anetorch.compile(program)(given)
    check(np.asarray(out)[0, :, 0], want, f"{name} {dtype} on the CPU device")
    plain = evaluate(program, {"x": given})["y"]
    check(plain[0, :, 0], want, f"{name} {dtype}, plain evaluation")


@pytest.mark.parametrize("name", packed.ALL)
def test_packed_text_round_trip(name):
    text = packed.ALL[name](CFG, S).text()
    assert _core.Program.parse(text).text() == text


@pytest.mark.parametrize(
    ("name", "sizes"),
    # Published surfaces: input [C, columns] and output channels of both configurations.
    [
        ("sdpaFwd", ((768, 2560, 3840), (1024, 4352, 7168))),
        ("woFwd", ((768, 1024, 768), (2048, 1280, 1024))),
        ("ffnFused", ((768, 6656, 6912), (1024, 9728, 10240))),
        ("ffnBwdW2t", ((768, 2304, 2048), (1024, 3328, 3072))),
        ("ffnBwdW13t", ((2048, 2048, 768), (3072, 2560, 1024))),
        ("wotBwd", ((768, 1024, 768), (1024, 2304, 2048))),
        ("sdpaBwd1", ((3072, 256, 6912), (8192, 256, 10240))),
        ("sdpaBwd2", ((7680, 256, 1536), (12288, 256, 4096))),
        ("qBwd", ((768, 1024, 768), (2048, 1280, 1024))),
        ("kvBwd", ((768, 2048, 768), (1024, 2560, 1024))),
    ],
)
def test_published_surfaces(name, sizes):
    from anetorch.nn.config import Config

    for preset, (c, columns, out) in zip(("stories110m", "qwen3-0.6b"), sizes):
        f = packed.ALL[name](Config.preset(preset), 256).functions["main"]
        assert tuple(f.inputs[0].shape) == (1, c, 1, columns)
        assert tuple(f.outputs[0].shape) == (1, out, 1, 256)


# ---------------------------------------------------------------- packed = separate weights


def act(channels, dtype="fp32"):
    return mil.spec((1, channels, 1, S), dtype)


def weight(*shape, dtype="fp32"):
    return mil.spec(shape, dtype)


def close(got, want, terms):
    """Equal up to the order of at most `terms` double operations, each within the scale
    of the largest value: what two programs for one formula may differ by."""
    scale = max(1.0, float(np.abs(want).max()))
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= terms * 2.0**-53 * scale


def test_packed_forward_equals_separate_weights():
    rng = np.random.default_rng(5)
    w = {n: rng.standard_normal(s) for n, s in
         {"wq": (Q, DIM), "wk": (KVD, DIM), "wv": (KVD, DIM), "wo": (DIM, Q),
          "w1": (HIDDEN, DIM), "w3": (HIDDEN, DIM), "w2": (DIM, HIDDEN)}.items()}  # fmt: skip
    xn, x2 = rng.standard_normal((2, DIM, S))

    def separate(xn, wq, wk, wv, wo):
        q, k, v = (kernels.linear(xn, t) for t in (wq, wk, wv))
        tables = kernels.tables(S, HD, CFG.rope_theta)
        q, k = (kernels.rope(t, *tables, head_dim=HD) for t in (q, k))
        a = kernels.attention(q, k, v, HD)
        return {"a": a, "q": q, "k": k, "o": kernels.linear(a, wo)}

    specs = {n: weight(*w[n].shape) for n in ("wq", "wk", "wv", "wo")}
    got = evaluate(
        mil.build(separate, {"xn": act(DIM), **specs}),
        {"xn": xn[None, :, None], **{n: w[n] for n in specs}}, wide=True,
    )  # fmt: skip
    x = np.concatenate([xn, w["wq"].T, w["wk"].T, w["wv"].T], 1)[None, :, None]
    y = evaluate(packed.sdpa_fwd(CFG, S, dtype="fp32"), {"x": x}, wide=True)["y"][0, :, 0]
    close(y[:Q], got["a"][0, :, 0], 1000)
    close(y[Q : 2 * Q], got["q"][0, :, 0], 1000)
    close(y[2 * Q : 2 * Q + KVD], got["k"][0, :, 0], 1000)
    x = np.concatenate([y[:Q], w["wo"].T], 1)[None, :, None]
    o = evaluate(packed.wo_fwd(CFG, S, dtype="fp32"), {"x": x}, wide=True)["y"]
    close(o, got["o"], 1000)

    def mlp(xn, x2, w1, w3, w2):
        gate = kernels.swiglu(kernels.linear(xn, w1), kernels.linear(xn, w3))
        return {"y": mil.ops.add(x=x2, y=kernels.linear(gate, w2))}

    specs = {n: weight(*w[n].shape) for n in ("w1", "w3", "w2")}
    columns = {"xn": xn[None, :, None], "x2": x2[None, :, None]}
    got = evaluate(
        mil.build(mlp, {"xn": act(DIM), "x2": act(DIM), **specs}),
        {**columns, **{n: w[n] for n in specs}}, wide=True,
    )  # fmt: skip
    x = np.concatenate([xn, x2, w["w1"].T, w["w3"].T, w["w2"]], 1)[None, :, None]
    y = evaluate(packed.ffn_fused(CFG, S, dtype="fp32"), {"x": x}, wide=True)["y"]
    close(y[:, :DIM], got["y"], 1000)


def test_packed_backward_equals_derived():
    """sdpaBwd1 and sdpaBwd2 with heads repeated and reduced around them, against the
    derivative of the grouped attention."""
    rng = np.random.default_rng(6)
    q, da = rng.standard_normal((2, Q, S))
    k, v = rng.standard_normal((2, KVD, S))
    program = mil.build(lambda q, k, v: {"a": kernels.attention(q, k, v, HD)}, {"q": act(Q), "k": act(KVD), "v": act(KVD)})
    back = kernels.backward(program, saved=())
    want = evaluate(
        back, {n: t[None, :, None] for n, t in (("q", q), ("k", k), ("v", v), ("da", da))}, wide=True
    )  # fmt: skip

    def tile(t):
        return t.reshape(KV, 1, HD, S).repeat(RATIO, 1).reshape(Q, S)

    def reduce(t):
        return t.reshape(KV, RATIO, HD, S).sum(1).reshape(KVD, S)

    x = np.concatenate([q, tile(k), tile(v), da])[None, :, None]
    y = evaluate(packed.sdpa_bwd1(CFG, S, dtype="fp32"), {"x": x}, wide=True)["y"][0, :, 0]
    close(reduce(y[:Q]), want["dv"][0, :, 0], 1000)
    x = np.concatenate([y[Q:], q, tile(k)])[None, :, None]
    y = evaluate(packed.sdpa_bwd2(CFG, S, dtype="fp32"), {"x": x}, wide=True)["y"][0, :, 0]
    close(y[:Q], want["dq"][0, :, 0], 1000)
    close(reduce(y[Q:]), want["dk"][0, :, 0], 1000)
    # The C helpers for repeated heads mean the same order.
    program = mil.build(lambda k: {"y": kernels.repeat_heads(k, HD, RATIO)}, {"k": act(KVD)})
    close(evaluate(program, {"k": k[None, :, None]}, wide=True)["y"][0, :, 0], tile(k), 0)


def test_batch_lies_along_columns():
    """Two sequences side by side attend only within themselves."""
    rng = np.random.default_rng(7)
    parts = {n: rng.standard_normal((2, c, S)) for n, c in (("q", Q), ("k", KVD), ("v", KVD))}

    def program(batch):
        cols = {n: mil.spec((1, t.shape[1], 1, batch * S), "fp32") for n, t in parts.items()}
        return mil.build(lambda q, k, v: {"y": kernels.attention(q, k, v, HD, batch)}, cols)

    alone = [evaluate(program(1), {n: t[b][None, :, None] for n, t in parts.items()}, wide=True)["y"] for b in range(2)]
    both = evaluate(
        program(2), {n: np.concatenate(list(t), 1)[None, :, None] for n, t in parts.items()}, wide=True
    )["y"]  # fmt: skip
    close(both, np.concatenate(alone, 3), 0)


def test_token_losses_do_not_overflow():
    program = mil.build(kernels.token_losses, {"scores": weight(3, 5), "targets": mil.spec((3,), "int32")})
    scores = np.array([[1e4, -1e4, 0, 0, 0], [0, 0, 0, 0, 0], [-300, -300, -300, -300, 300]], np.float32)
    out = np.asarray(anetorch.compile(program)(scores, np.array([1, 2, 4], np.int32)))
    np.testing.assert_allclose(out, [2e4, math.log(5), 0.0], rtol=2**-22)


@pytest.mark.parametrize(
    "name",
    [f"kernels.{m}" for m in ("linear", "norm", "rope", "attention", "mlp", "embed", "loss")]
    + ["mil.grad", "nn.config", "nn.module", "nn.transformer"],
)
def test_docstring_examples_run(name):
    module = importlib.import_module(f"anetorch.{name}")
    result = doctest.testmod(module, extraglobs={"mil": mil, "np": np})
    assert result.failed == 0 and result.attempted > 0
