"""A Llama- or Qwen3-style language model as requests over compiled MIL programs.

    model = Model(Config.preset("tiny", vocab_size=97), batch=8, seq=128)
    loss = model.step_forward_backward(tokens, targets)     # one Pipeline run
    norm, finite = _core.grad_norm(model.params.grads, scale=1 / model.loss_scale)

Programs are compiled once; every layer has its own requests, which bind that layer's
weights and activations. A step is one Pipeline: nothing is computed in Python.

Not here: what the programs say (programs.py), the optimizer and the loop (train.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anetorch import runtime
from anetorch._core import Tensor
from anetorch.nn import programs
from anetorch.nn.config import PRESETS, Config
from anetorch.nn.module import Parameters

__all__ = ["Config", "Generator", "Model", "PRESETS"]

#: Positions that one prefill request of a generator takes.
CHUNK = 32


class Model:
    """Parameters, compiled programs and the step.

    Args:
        config: sizes; see `Config`.
        batch, seq: shape of every token array; `seq` None is the configuration's maximum.
        dtype: storage of activations and staged weights, "float16" or "float32".
        device: where projections, attention and feed-forward run; None is the CPU. Norms,
            loss and weight gradients always run on the CPU in fp32.
        precision: of products, "highest", "high" or "medium".
        numerics: "ieee", or "ane" for the engine's arithmetic in what would run on it.
        target: the chip of numerics="ane"; None has the cliffs of every chip.
        seed: of the random initialisation.
        training: without it there are no gradients and no saved activations.
        params: another model's table to share; None makes and initialises one.

    Attributes:
        params: the parameter table; see `Parameters`.
        loss_scale: what the loss's gradient is multiplied by (fp16 gradients underflow
            without); gradients in `params.grads` carry it.

    Example:
        >>> m = Model(Config.preset("tiny", vocab_size=11), batch=2, seq=8, dtype="float32")
        >>> ids = np.zeros((2, 8), np.int32)
        >>> m.logits(ids).shape
        (2, 8, 11)
    """

    def __init__(
        self,
        config: Config,
        *,
        batch: int = 1,
        seq: int | None = None,
        dtype: str = "float16",
        device: str | None = None,
        precision: str = "highest",
        numerics: str = "ieee",
        target: str | None = None,
        seed: int = 0,
        training: bool = True,
        params: Parameters | None = None,
    ) -> None:
        self.config, self.batch, self.device = config, batch, device
        self.seq = config.max_position_embeddings if seq is None else seq
        self.dtype = _STORAGE.get(dtype, dtype)
        self.precision, self.numerics, self.training = precision, numerics, training
        self.target = target
        if self.dtype not in ("float16", "float32"):
            raise ValueError(f"[Model] dtype must be float16 or float32, got {dtype!r}")
        for name, value in (("batch", batch), ("seq", self.seq)):
            if value < 1:
                raise ValueError(f"[Model] {name} must be at least 1, got {value}")
        if self.seq > config.max_position_embeddings:
            raise ValueError(
                f"[Model] seq {self.seq} is longer than the model's {config.max_position_embeddings} positions"
            )
        if params is None:
            params = Parameters(config, self.dtype, training)
            params.initialize(seed, config.initializer_range)
        self.params = params
        self._sizes = programs.Sizes(config, batch, self.seq, _MIL[self.dtype])
        self._kernels: dict[tuple[str, programs.Sizes], runtime.Kernel] = {}
        self._io = _Tensors()
        self._ids = self._io.make("ids", (batch * self.seq,), "int32")
        self._targets = self._io.make("targets", (batch * self.seq,), "int32")
        self._losses = self._io.make("losses", (batch * self.seq,), "float32")
        self._loss = self._io.make("loss", (1,), "float32")
        self._scale = self._io.make("loss_scale", (1,), "float32")
        self.loss_scale = 1.0
        self._forward, self._layers, last = self._forward_requests()
        self._evaluate = runtime.Pipeline([*self._forward, last["loss"]])
        self._scores: runtime.Pipeline | None = None
        self._last = last
        self._step = None
        if training:
            self._step = runtime.Pipeline([*self._forward, *self._backward_requests()])

    # ------------------------------------------------------------ what callers use

    @property
    def loss_scale(self) -> float:
        return self._loss_scale

    @loss_scale.setter
    def loss_scale(self, value: float) -> None:
        self._loss_scale = float(value)
        self._scale.copy_from(np.array([value], np.float32))

    def step_forward_backward(self, tokens: Any, targets: Any) -> float:
        """Forward, loss and backward of one batch, in one Pipeline run.

        Adds loss_scale * d loss / d parameter to `params.grads` and returns the loss, the
        mean over all tokens in nats. `tokens`, `targets`: integers `[batch, seq]`.
        """
        if self._step is None:
            raise RuntimeError("[Model.step_forward_backward] this model was made with training=False")
        self._set(self._ids, tokens, "tokens")
        self._set(self._targets, targets, "targets")
        self._step.run()
        return float(np.asarray(self._loss)[0])

    def token_losses(self, tokens: Any, targets: Any) -> np.ndarray:
        """-log p(target) of every position, in nats: float32 `[batch, seq]`."""
        self._set(self._ids, tokens, "tokens")
        self._set(self._targets, targets, "targets")
        self._evaluate.run()
        return np.array(self._losses).reshape(self.batch, self.seq)

    def evaluate(self, tokens: Any, targets: Any) -> float:
        """Mean loss of one batch, in nats per token, forward only."""
        return float(self.token_losses(tokens, targets).mean(dtype=np.float64))

    def logits(self, tokens: Any) -> np.ndarray:
        """Scores before softmax: float32 `[batch, seq, vocab]`."""
        if self._scores is None:
            request = self._bind(self._sizes, "logits", {"xn": self._last["xn"], "w": self._head("masters")})
            self._scores = runtime.Pipeline([*self._forward, request])
            self._scores_out = request.outputs["scores"]
        self._set(self._ids, tokens, "tokens")
        self._scores.run()
        return np.array(self._scores_out).reshape(self.batch, self.seq, self.config.vocab_size)

    def generator(self, capacity: int | None = None) -> Generator:
        """A sequence that grows token by token, sharing this model's parameters."""
        return Generator(self, self.seq if capacity is None else capacity)

    # ------------------------------------------------------------ making requests

    def _set(self, t: Tensor, values: Any, what: str) -> None:
        a = np.asarray(values)
        if a.shape != (self.batch, self.seq) or a.dtype.kind not in "iu":
            raise ValueError(
                f"[Model] {what} must be integers [{self.batch}, {self.seq}], got {a.dtype} {list(a.shape)}"
            )
        if a.size and not 0 <= int(a.min()) <= int(a.max()) < self.config.vocab_size:
            raise ValueError(
                f"[Model] {what} must lie in 0..{self.config.vocab_size - 1}, got {int(a.min())}..{int(a.max())}"
            )
        t.copy_from(np.ascontiguousarray(a.reshape(-1), np.int32))

    def _kernel(self, sizes: programs.Sizes, name: str) -> runtime.Kernel:
        key = (name, sizes)
        if key not in self._kernels:
            host = name in programs.HOST
            numerics, target = ("ieee", None) if host else (self.numerics, self.target)
            self._kernels[key] = runtime.compile(
                programs.make(name, sizes), device=None if host else self.device,
                precision=self.precision, numerics=numerics, target=target,
            )  # fmt: skip
        return self._kernels[key]

    def _bind(
        self, sizes: programs.Sizes, name: str, inputs: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor] | None = None,
    ) -> runtime.Request:  # fmt: skip
        kernel = self._kernel(sizes, name)
        return kernel.bind({p.name: inputs[p.name] for p in kernel.inputs}, outputs)

    def _act(self, name: str, channels: int, dtype: str | None = None, shared: bool = False) -> Tensor:
        """An activation `[1, channels, 1, N]`; shared ones exist once."""
        shape = (1, channels, 1, self._sizes.n)
        return self._io.get(name, shape, dtype or self.dtype) if shared else self._io.make(name, shape, dtype or self.dtype)

    def _head(self, block: str) -> Tensor:
        tied = self.config.tie_word_embeddings
        return self.params.view(block, "model.embed_tokens.weight" if tied else "lm_head.weight")

    def _weights(self, i: int) -> dict[str, Tensor]:
        """A layer's weights by the names that programs use."""
        names = _layer_names(i, self.config)
        return {k: self.params.storage(n) for k, n in names.items()}

    def _grads(self, i: int) -> dict[str, Tensor]:
        """A layer's gradients as `d<w>` and `d<w>_in`, one tensor each."""
        views = {k: self.params.view("grads", n) for k, n in _layer_names(i, self.config).items()}
        return {f"d{k}": t for k, t in views.items()} | {f"d{k}_in": t for k, t in views.items()}

    def _forward_requests(self) -> tuple[list[Any], list[dict[str, Tensor]], dict[str, Any]]:
        """Requests up to the final norm, each layer's tensors, and the last ones.

        Without training every layer's activations lie in the same tensors.
        """
        c, s, p = self.config, self._sizes, self.params
        share = not self.training

        def act(name: str, channels: int, dtype: str | None = None, shared: bool = False) -> Tensor:
            return self._act(name, channels, dtype, shared or share)

        x = act("x", c.hidden_size, "float32")
        run = [self._bind(s, "embed", {"table": p["model.embed_tokens.weight"], "ids": self._ids}, {"x": x})]
        layers: list[dict[str, Tensor]] = []
        for i in range(c.num_hidden_layers):
            w = self._weights(i)
            t: dict[str, Tensor] = {"x": x}
            layers.append(t)
            t["xn"] = act("xn", c.hidden_size)
            if i == 0:
                run.append(self._bind(s, "norm", {"x": x, "g": w["g1"]}, {"xn": t["xn"]}))
            else:
                # The previous layer's residual add and this layer's norm.
                t["x"] = act("x", c.hidden_size, "float32")
                run.append(self._bind(s, "add_norm", {"x": layers[i - 1]["mid"], "y": y, "g": w["g1"]},
                                      {"s": t["x"], "xn": t["xn"]}))  # fmt: skip
            raw = "0" if c.qk_norm else ""
            for name, channels in (("q", c.q_dim), ("k", c.kv_dim)):
                t[name + raw] = act(name + raw, channels)
            t["v"] = act("v", c.kv_dim)
            run.append(self._bind(s, "qkv", {**t, **w}, {"q": t["q" + raw], "k": t["k" + raw], "v": t["v"]}))
            if c.qk_norm:
                t["q"], t["k"] = act("q", c.q_dim), act("k", c.kv_dim)
                run.append(self._bind(s, "qk_norm", {**t, **w}, {"q": t["q"], "k": t["k"]}))
            t["a"], o = act("a", c.q_dim), act("o", c.hidden_size, shared=True)
            run.append(self._bind(s, "attend", {**t, **w}, {"a": t["a"], "o": o}))
            t["mid"], t["xn2"] = act("mid", c.hidden_size, "float32"), act("xn2", c.hidden_size)
            run.append(self._bind(s, "add_norm", {"x": t["x"], "y": o, "g": w["g2"]}, {"s": t["mid"], "xn": t["xn2"]}))
            for name in ("h1", "h3", "gate"):
                t[name] = act(name, c.intermediate_size)
            y = act("y", c.hidden_size, shared=True)
            run.append(self._bind(s, "ffn", {**w, "xn": t["xn2"]}, {"y": y, **{n: t[n] for n in ("h1", "h3", "gate")}}))
        last: dict[str, Any] = {"s": act("x", c.hidden_size, "float32"), "xn": act("final", c.hidden_size, "float32")}
        run.append(self._bind(s, "final_norm", {"x": layers[-1]["mid"], "y": y, "g": p["model.norm.weight"]},
                              {"s": last["s"], "xn": last["xn"]}))  # fmt: skip
        last["loss"] = self._bind(
            s, "loss", {"xn": last["xn"], "w": self._head("masters"), "targets": self._targets},
            {"losses": self._losses, "loss": self._loss},
        )  # fmt: skip
        return run, layers, last

    def _backward_requests(self) -> list[Any]:
        """Loss and backward: `dx` is the residual stream's gradient, passed on in place."""
        c, s, p = self.config, self._sizes, self.params
        h = c.hidden_size

        def act(name: str, channels: int, dtype: str | None = None) -> Tensor:
            return self._act(name, channels, dtype, shared=True)

        def grad(name: str) -> dict[str, Tensor]:
            t = p.view("grads", name)
            return {"dg": t, "dg_in": t}

        dx, dfinal = act("dx", h, "float32"), act("dfinal", h, "float32")
        dy, dxn = act("dy", h), act("dxn", h)
        dhead, dgate = self._head("grads"), act("dgate", c.intermediate_size)
        dh = {n: act(n, c.intermediate_size) for n in ("dh1", "dh3")}
        dqkv = {n: act(n, ch) for n, ch in (("dq", c.q_dim), ("dk", c.kv_dim), ("dv", c.kv_dim))}
        run = [
            self._bind(
                s, "loss_back",
                {"xn": self._last["xn"], "w": self._head("masters"), "targets": self._targets,
                 "dloss": self._scale, "dw_in": dhead},
                {"losses": self._losses, "loss": self._loss, "dxn": dfinal, "dw": dhead},
            )
        ]  # fmt: skip
        g = grad("model.norm.weight")
        run.append(
            self._bind(s, "final_norm_back", {"s": self._last["s"], "g": p["model.norm.weight"], "dxn": dfinal, **g},
                       {"dx": dx, "dy": dy, "dg": g["dg"]})
        )  # fmt: skip
        for i in reversed(range(c.num_hidden_layers)):
            t, w, d = self._layers[i], self._weights(i), self._grads(i)

            def bind(name: str, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
                run.append(self._bind(s, name, inputs, outputs))  # noqa: B023

            ffn = {**t, **w, **d, **dh, "xn": t["xn2"], "dy": dy, "dgate": dgate}
            bind("down_w", ffn, {"dw2": d["dw2"]})
            bind("down_back", ffn, {"dgate": dgate})
            bind("swiglu_back", ffn, dh)
            bind("up_w", ffn, {n: d[n] for n in ("dw1", "dw3")})
            bind("up_back", ffn, {"dxn": dxn})
            # dy becomes the gradient of the attention's output, dx that of its input.
            bind("add_norm_back", {"s": t["mid"], "g": w["g2"], "ds": dx, "dxn": dxn, "dg_in": d["dg2"]},
                 {"dx": dx, "dy": dy, "dg": d["dg2"]})  # fmt: skip
            attention = {**t, **w, **d, **dqkv, "do": dy}
            bind("attend_w", attention, {"dwo": d["dwo"]})
            bind("attend_back", attention, dqkv)
            if c.qk_norm:
                bind("qk_norm_back", attention,
                     {"dq0": dqkv["dq"], "dk0": dqkv["dk"], "dgq": d["dgq"], "dgk": d["dgk"]})  # fmt: skip
            bind("qkv_w", attention, {n: d[n] for n in ("dwq", "dwk", "dwv")})
            bind("qkv_back", attention, {"dxn": dxn})
            if i:
                bind("add_norm_back", {"s": t["x"], "g": w["g1"], "ds": dx, "dxn": dxn, "dg_in": d["dg1"]},
                     {"dx": dx, "dy": dy, "dg": d["dg1"]})  # fmt: skip
            else:
                bind("norm_back", {"x": t["x"], "g": w["g1"], "dxn": dxn, "dx_in": dx, "dg_in": d["dg1"]},
                     {"dx": dx, "dg": d["dg1"]})  # fmt: skip
        table = p.view("grads", "model.embed_tokens.weight")
        run.append(self._bind(s, "embed_w", {"ids": self._ids, "dx": dx, "dtable_in": table}, {"dtable": table}))
        return run


_MIL = {"float16": "fp16", "float32": "fp32"}
_STORAGE = {"fp16": "float16", "f16": "float16", "fp32": "float32", "f32": "float32"}


def _layer_names(i: int, config: Config) -> dict[str, str]:
    """Program's name of a weight -> Hugging Face's."""
    p = f"model.layers.{i}."
    names = {
        "wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj",
        "wo": "self_attn.o_proj", "w1": "mlp.gate_proj", "w3": "mlp.up_proj", "w2": "mlp.down_proj",
        "g1": "input_layernorm", "g2": "post_attention_layernorm",
    }  # fmt: skip
    if config.qk_norm:
        names |= {"gq": "self_attn.q_norm", "gk": "self_attn.k_norm"}
    return {k: f"{p}{n}.weight" for k, n in names.items()}


class _Tensors:
    """Owner of a model's activations; `get` makes a name once."""

    def __init__(self) -> None:
        self.all: list[Tensor] = []
        self.named: dict[str, Tensor] = {}

    def make(self, name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
        t = Tensor(shape, dtype, name=name)
        self.all.append(t)
        return t

    def get(self, name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
        if name not in self.named:
            self.named[name] = self.make(name, shape, dtype)
        t = self.named[name]
        assert tuple(t.shape) == shape and t.dtype == dtype, (name, t.shape, shape)
        return t


class Generator:
    """One growing sequence (batch 1) with a key-value cache; made by `Model.generator`.

    Attributes:
        capacity: positions that the cache holds.
        length: positions fed so far.

    Example:
        >>> g = Model(Config.preset("tiny", vocab_size=11), seq=8, training=False).generator()
        >>> scores = g.feed([1, 2, 3])      # of the next token
        >>> scores.shape, g.length, g.capacity
        ((11,), 3, 8)
    """

    def __init__(self, model: Model, capacity: int) -> None:
        if not 1 <= capacity <= model.config.max_position_embeddings:
            raise ValueError(
                f"[Generator] capacity must be 1..{model.config.max_position_embeddings}, got {capacity}"
            )
        self.capacity, self.length = capacity, 0
        self._model = model
        c = model.config
        shape = (1, c.kv_dim, 1, capacity)
        self._caches = [
            {n: Tensor(shape, model.dtype, name=n) for n in ("kc", "vc")} for _ in range(c.num_hidden_layers)
        ]
        self._paths: dict[int, tuple[Tensor, Tensor, runtime.Pipeline, Tensor]] = {}

    def reset(self) -> None:
        """Back to the empty sequence."""
        self.length = 0

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Appends tokens and returns the scores of the next one: float32 `[vocab]`."""
        ids = np.asarray(ids)
        vocab = self._model.config.vocab_size
        if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
            raise ValueError("[Generator.feed] expected a non-empty list of token ids")
        if not 0 <= int(ids.min()) <= int(ids.max()) < vocab:
            raise ValueError(f"[Generator.feed] ids must lie in 0..{vocab - 1}, got {int(ids.min())}..{int(ids.max())}")
        if self.length + ids.size > self.capacity:
            raise ValueError(
                f"[Generator.feed] {self.length} + {ids.size} positions exceed the cache's {self.capacity}; "
                f"reset() and feed the tail again"
            )
        at = 0
        while at < ids.size:
            m = CHUNK if ids.size - at >= CHUNK else 1
            if m not in self._paths:
                self._paths[m] = self._path(m)
            tokens, pos, pipeline, scores = self._paths[m]
            tokens.copy_from(ids[at : at + m].astype(np.int32))
            pos.copy_from(np.arange(self.length, self.length + m, dtype=np.int32))
            pipeline.run()
            self.length += m
            at += m
        return np.array(scores)[-1]

    def _path(self, m: int) -> tuple[Tensor, Tensor, runtime.Pipeline, Tensor]:
        """Requests that take m tokens at once."""
        model, c, p = self._model, self._model.config, self._model.params
        s = programs.Sizes(c, 1, m, _MIL[model.dtype], self.capacity)
        ids, pos = Tensor((m,), "int32", name="ids"), Tensor((m,), "int32", name="pos")
        io = _Tensors()

        def act(name: str, channels: int, dtype: str | None = None) -> Tensor:
            return io.get(name, (1, channels, 1, m), dtype or model.dtype)

        x, xn = act("x", c.hidden_size, "float32"), act("xn", c.hidden_size)
        o, y = act("o", c.hidden_size), act("y", c.hidden_size)
        t = {n: act(n, ch) for n, ch in (("q", c.q_dim), ("k", c.kv_dim), ("v", c.kv_dim), ("qr", c.q_dim))}
        ratio = c.num_attention_heads // c.num_key_value_heads
        mask = io.get("mask", (1, 1, ratio * m, self.capacity), model.dtype)
        h = {n: act(n, c.intermediate_size) for n in ("h1", "h3", "gate")}
        run: list[Any] = []

        def bind(name: str, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
            run.append(model._bind(s, name, inputs, outputs))

        bind("embed", {"table": p["model.embed_tokens.weight"], "ids": ids}, {"x": x})
        for i, cache in enumerate(self._caches):
            w = model._weights(i)
            if i == 0:
                bind("norm", {"x": x, "g": w["g1"]}, {"xn": xn})
            else:
                bind("add_norm", {"x": x, "y": y, "g": w["g1"]}, {"s": x, "xn": xn})
            bind("qkv", {**w, "xn": xn}, {n: t[n] for n in "qkv"})
            if c.qk_norm:
                bind("qk_norm", {**w, "q0": t["q"], "k0": t["k"]}, {"q": t["q"], "k": t["k"]})
            bind("cache", {**t, **cache, "pos": pos},
                 {"qr": t["qr"], "kc_out": cache["kc"], "vc_out": cache["vc"], "mask": mask})  # fmt: skip
            bind("attend_cached", {**t, **cache, **w, "mask": mask}, {"o": o})
            bind("add_norm", {"x": x, "y": o, "g": w["g2"]}, {"s": x, "xn": xn})
            bind("ffn", {**w, "xn": xn}, {**h, "y": y})
        last = act("final", c.hidden_size, "float32")
        bind("final_norm", {"x": x, "y": y, "g": p["model.norm.weight"]}, {"s": x, "xn": last})
        scores = Tensor((m, c.vocab_size), "float32", name="scores")
        bind("logits", {"xn": last, "w": model._head("masters")}, {"scores": scores})
        return ids, pos, runtime.Pipeline(run), scores
