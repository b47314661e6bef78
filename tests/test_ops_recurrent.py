"""lstm, gru and rnn against loops in NumPy, and PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

import opcase
from opcase import rounded, run

ACT = {"sigmoid": lambda v: 1 / (1 + np.exp(-v)), "tanh": np.tanh, "relu": lambda v: np.maximum(v, 0),
       "linear": lambda v: v, "hard_sigmoid": lambda v: np.clip(0.2 * v + 0.5, 0, 1), "scaled_tanh": np.tanh}
S, B, I, H = 4, 2, 3, 5


def weights(gates, dtype, seed=10):
    return (opcase.data((gates * H, I), dtype, seed, -1, 1), opcase.data((gates * H, H), dtype, seed + 1, -1, 1),
            opcase.data((gates * H,), dtype, seed + 2, -1, 1))


def lstm(x, h, c, wih, whh, b, p=None, gate="sigmoid", cell="tanh", out="tanh", clip=np.inf, back=False):
    x, h, c, wih, whh, b = (a.astype("f8") for a in (x, h, c, wih, whh, b))
    p = np.zeros(3 * H) if p is None else p.astype("f8")
    pi, pf, po = np.split(p, 3)
    steps = []
    for t in range(S)[::-1] if back else range(S):
        i, f, o, z = np.split(x[t] @ wih.T + h @ whh.T + b, 4, 1)
        i, f, z = ACT[gate](i + pi * c), ACT[gate](f + pf * c), ACT[cell](z)
        c = np.clip(f * c + i * z, -clip, clip)
        h = ACT[gate](o + po * c) * ACT[out](c)
        steps.append(h)
    return np.stack(steps), h, c


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("extra", [{}, {"peephole": 1}, {"clip": 0.25},
                                   {"recurrent_activation": "hard_sigmoid", "cell_activation": "relu",
                                    "activation": "linear"}])
def test_lstm(dtype, direction, sequence, extra):
    x, h, c = (opcase.data(s, dtype, i, -1, 1) for i, s in enumerate([(S, B, I), (B, H), (B, H)]))
    wih, whh, b = weights(4, dtype)
    kw, more = dict(extra), {}
    if "peephole" in kw:
        kw["peephole"] = more["p"] = opcase.data((3 * H,), dtype, 9, -1, 1)
    if "clip" in kw:
        kw["clip"] = np.dtype(dtype).type(0.25)
        more["clip"] = 0.25
    for theirs, ours in (("recurrent_activation", "gate"), ("cell_activation", "cell"), ("activation", "out")):
        if theirs in kw:
            more[ours] = kw[theirs]
    ref, hn, cn = lstm(x, h, c, wih, whh, b, back=direction == "reverse", **more)
    got = run("lstm", {"x": x, "initial_h": h, "initial_c": c}, weight_ih=wih, weight_hh=whh, bias=b,
              direction=direction, output_sequence=sequence, **kw)
    # "reverse" gives its steps in the order walked.
    for g, r in zip(got, (ref if sequence else ref[-1:], hn, cn)):
        rounded(g, r, "lstm", 2.0**-44)


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_lstm_both_ways(sequence, bias):
    x, h, c = (opcase.data(s, "float32", i, -1, 1) for i, s in enumerate([(S, B, I), (B, 2 * H), (B, 2 * H)]))
    one, two = weights(4, "float32"), weights(4, "float32", 20)
    zero = np.zeros(4 * H, "f4")
    f = lstm(x, h[:, :H], c[:, :H], *one[:2], one[2] if bias else zero)
    r = lstm(x, h[:, H:], c[:, H:], *two[:2], two[2] if bias else zero, back=True)
    seq = np.concatenate([f[0], r[0][::-1]], -1)        # the backward half in the order of the input
    kw = {"bias": one[2], "bias_back": two[2]} if bias else {}
    got = run("lstm", {"x": x, "initial_h": h, "initial_c": c}, weight_ih=one[0], weight_hh=one[1],
              weight_ih_back=two[0], weight_hh_back=two[1], direction="bidirectional", output_sequence=sequence, **kw)
    last = np.concatenate([f[1], r[1]], -1)[None]       # each direction's own last step
    rounded(got[0], seq if sequence else last, "lstm", 2.0**-44)
    rounded(got[1], np.concatenate([f[1], r[1]], -1), "lstm", 2.0**-44)
    rounded(got[2], np.concatenate([f[2], r[2]], -1), "lstm", 2.0**-44)


def gru(x, h, wih, whh, b, gate="sigmoid", out="tanh", back=False, after=False, bi=None):
    x, h, wih, whh, b = (a.astype("f8") for a in (x, h, wih, whh, b))
    bi = np.zeros(3 * H) if bi is None else bi.astype("f8")
    steps = []
    for t in range(S)[::-1] if back else range(S):
        gr, go, gz = np.split(x[t] @ wih.T + bi, 3, 1)
        ur, uo, uz = np.split(whh, 3)
        br, bo, bz = np.split(b, 3)
        r, z = ACT[gate](gr + h @ ur.T + br), ACT[gate](gz + h @ uz.T + bz)
        o = ACT[out](go + (r * (h @ uo.T + bo) if after else (r * h) @ uo.T + bo))
        h = (1 - z) * o + z * h
        steps.append(h)
    return np.stack(steps), h


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_gru(dtype, direction, sequence, after):
    x, h = opcase.data((S, B, I), dtype, 0, -1, 1), opcase.data((B, H), dtype, 1, -1, 1)
    wih, whh, b = weights(3, dtype)
    kw = {"reset_after": True, "input_bias": opcase.data((3 * H,), dtype, 7, -1, 1)} if after else {}
    ref, hn = gru(x, h, wih, whh, b, back=direction == "reverse", after=after, bi=kw.get("input_bias"))
    got = run("gru", {"x": x, "initial_h": h}, weight_ih=wih, weight_hh=whh, bias=b, direction=direction,
              output_sequence=sequence, **kw)
    rounded(got[0], ref if sequence else ref[-1:], "gru", 2.0**-44)
    rounded(got[1], hn, "gru", 2.0**-44)


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_rnn(activation, direction):
    x, h = opcase.data((S, B, I), "float32", 0, -1, 1), opcase.data((B, H), "float32", 1, -1, 1)
    wih, whh, b = weights(1, "float32")
    steps, v = [], h.astype("f8")
    for t in range(S) if direction == "forward" else range(S)[::-1]:
        v = ACT[activation](x[t].astype("f8") @ wih.T + v @ whh.T.astype("f8") + b)
        steps.append(v)
    got = run("rnn", {"x": x, "initial_h": h}, weight_ih=wih, weight_hh=whh, bias=b, direction=direction,
              output_sequence=True, activation=activation)
    rounded(got[0], np.stack(steps), "rnn", 2.0**-44)
    rounded(got[1], v, "rnn", 2.0**-44)


@pytest.mark.oracle
def test_as_pytorch():
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    x, h, c = (opcase.data(s, "float32", i, -1, 1) for i, s in enumerate([(S, B, I), (B, 2 * H), (B, 2 * H)]))

    def order(w, to):           # PyTorch: lstm i, f, cell, output; gru r, z, new
        return np.concatenate([np.split(w, len(to))[k] for k in to]).astype("f4")

    def split(m, back, to):
        s = "_l0_reverse" if back else "_l0"
        w = [getattr(m, n + s).detach().numpy() for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        return [order(v, to) for v in w]

    torch.manual_seed(1)
    m = torch.nn.LSTM(I, H, bidirectional=True).double()
    f, r = split(m, False, [0, 1, 3, 2]), split(m, True, [0, 1, 3, 2])
    t = torch.from_numpy
    state = [t(v.reshape(B, 2, H).transpose(1, 0, 2).copy()).double() for v in (h, c)]
    out, (hn, cn) = m(t(x).double(), tuple(state))
    got = run("lstm", {"x": x, "initial_h": h, "initial_c": c}, weight_ih=f[0], weight_hh=f[1], bias=f[2] + f[3],
              weight_ih_back=r[0], weight_hh_back=r[1], bias_back=r[2] + r[3], direction="bidirectional",
              output_sequence=True)
    rounded(got[0], out.detach().numpy(), "lstm", 2.0**-20)     # the weights were rounded to fp32
    for g, v in zip(got[1:], (hn, cn)):
        rounded(g, v.detach().numpy().transpose(1, 0, 2).reshape(B, 2 * H), "lstm", 2.0**-20)
    g = torch.nn.GRU(I, H).double()
    f = split(g, False, [0, 2, 1])
    out, hn = g(t(x).double(), t(h[:, :H].copy()).double()[None])
    got = run("gru", {"x": x, "initial_h": h[:, :H].copy()}, weight_ih=f[0], weight_hh=f[1], bias=f[3],
              input_bias=f[2], reset_after=True, output_sequence=True)
    rounded(got[0], out.detach().numpy(), "gru", 2.0**-20)


@pytest.mark.parametrize("op, kw, message", [
    ("lstm", {"weight_ih": np.zeros((19, I), "f4")}, r"'weight_ih' must be \[20, 3\], got"),
    ("lstm", {"bias": np.zeros(7, "f4")}, "'bias' must have 20 elements, got 7"),
    ("lstm", {"direction": "both"}, 'forward, reverse, bidirectional, got "both"'),
    ("lstm", {"activation": "softmax"}, 'got "softmax"'),
    ("lstm", {"direction": "bidirectional"}, r"'initial_h' must be \[2, 10\]")])
def test_errors(op, kw, message):
    base = {"weight_ih": np.zeros((4 * H, I), "f4"), "weight_hh": np.zeros((4 * H, H), "f4")}
    z = np.zeros((B, H), "f4")
    with pytest.raises(ValueError, match=f"{op}.*{message}"):
        run(op, {"x": np.zeros((S, B, I), "f4"), "initial_h": z, "initial_c": z}, **{**base, **kw})


def test_lstm_needs_its_backward_weights_and_fp16_needs_ios17():
    z = np.zeros((B, 2 * H), "f4")
    base = {"weight_ih": np.zeros((4 * H, I), "f4"), "weight_hh": np.zeros((4 * H, H), "f4")}
    with pytest.raises(ValueError, match="lstm.*needs 'weight_ih_back'"):
        run("lstm", {"x": np.zeros((S, B, I), "f4"), "initial_h": z, "initial_c": z}, direction="bidirectional", **base)
    with pytest.raises(TypeError, match="rnn.*x expects fp32"):
        run("rnn", {"x": np.zeros((S, B, I), "f2"), "initial_h": np.zeros((B, H), "f2")}, "ios16",
            weight_ih=np.zeros((H, I), "f2"), weight_hh=np.zeros((H, H), "f2"))
