"""Parameters by Hugging Face name, in flat blocks.

An optimizer works on whole blocks, kernels on views: every parameter is a range of the
flat fp32 block `masters`, with the same range of `grads`, `m` and `v` beside it, and, for
the weights that the engine reads, of `staged`, a copy in the storage dtype.

    masters  [ matrices of the layers | embedding, classifier | gains of the norms ]
    staged   [ matrices of the layers ]
    decay    yes                        yes                      no

Ranges begin at multiples of 32 elements (64 bytes also in fp16); the gaps hold zeros, and
stay zero under AdamW, whose update of a zero weight with zero gradient is zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from anetorch import _core
from anetorch._core import Tensor
from anetorch.nn.config import Config

__all__ = ["Parameters", "Range", "Slot", "parameter_shapes"]

ALIGN = 32


def parameter_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Hugging Face names and shapes, in the order of the published files' modules.

    Matrices are `[out, in]`. A tied classifier has no entry of its own.
    """
    h, f, d = config.hidden_size, config.intermediate_size, config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, h)}
    for i in range(config.num_hidden_layers):
        p = f"model.layers.{i}."
        shapes[p + "self_attn.q_proj.weight"] = (config.q_dim, h)
        shapes[p + "self_attn.k_proj.weight"] = (config.kv_dim, h)
        shapes[p + "self_attn.v_proj.weight"] = (config.kv_dim, h)
        shapes[p + "self_attn.o_proj.weight"] = (h, config.q_dim)
        if config.qk_norm:
            shapes[p + "self_attn.q_norm.weight"] = (d,)
            shapes[p + "self_attn.k_norm.weight"] = (d,)
        shapes[p + "mlp.gate_proj.weight"] = (f, h)
        shapes[p + "mlp.up_proj.weight"] = (f, h)
        shapes[p + "mlp.down_proj.weight"] = (h, f)
        shapes[p + "input_layernorm.weight"] = (h,)
        shapes[p + "post_attention_layernorm.weight"] = (h,)
    shapes["model.norm.weight"] = (h,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, h)
    return shapes


class Slot(NamedTuple):
    """Where a parameter lies: `block[start:stop].reshape(shape)`."""

    start: int
    stop: int
    shape: tuple[int, ...]
    staged: bool


class Range(NamedTuple):
    """Part of the flat blocks that one optimizer call treats alike."""

    start: int
    stop: int
    decay: bool
    staged: bool


def _layout(config: Config) -> tuple[dict[str, Slot], list[Range]]:
    shapes = parameter_shapes(config)
    layers = {n: s for n, s in shapes.items() if len(s) == 2 and n.startswith("model.layers.")}
    tables = {n: s for n, s in shapes.items() if len(s) == 2 and n not in layers}
    gains = {n: s for n, s in shapes.items() if len(s) == 1}
    slots: dict[str, Slot] = {}
    ranges: list[Range] = []
    at = 0
    for group, decay, staged in ((layers, True, True), (tables, True, False), (gains, False, False)):
        start = at
        for name, shape in group.items():
            stop = at + math.prod(shape)
            slots[name] = Slot(at, stop, shape, staged)
            at = -(-stop // ALIGN) * ALIGN
        ranges.append(Range(start, at, decay, staged))
    return {n: slots[n] for n in shapes}, ranges


class Parameters(Mapping[str, Tensor]):
    """The parameter table of one model: a mapping of name -> fp32 master (a Tensor view).

    Attributes:
        slots: name -> Slot.
        ranges: the (at most three) runs of slots that share decay and staging, in order,
            covering the blocks without gaps.
        masters, grads, m, v: flat fp32 heap Tensors of `size` elements (the last three
            None with `training=False`).
        staged: flat Tensor of `staged_size` elements in the storage dtype, or None when
            the storage dtype is fp32 and kernels read the masters themselves.

    Example:
        >>> p = Parameters(Config.preset("tiny"), dtype="float16")
        >>> p["model.norm.weight"].shape
        (128,)
    """

    def __init__(self, config: Config, dtype: str = "float16", training: bool = True) -> None:
        self.slots, self.ranges = _layout(config)
        self.size = at = self.ranges[-1].stop
        self.staged_size = self.ranges[0].stop
        self.masters = Tensor((at,), "float32", mem="heap", name="masters")
        self.grads = self.m = self.v = None
        if training:
            self.grads = Tensor((at,), "float32", mem="heap", name="grads")
            self.m = Tensor((at,), "float32", mem="heap", name="m")
            self.v = Tensor((at,), "float32", mem="heap", name="v")
        self.staged = None if dtype == "float32" else Tensor((self.staged_size,), dtype, name="staged")
        self._views: dict[tuple[str, str], Tensor] = {}

    @staticmethod
    def sizes(config: Config) -> tuple[int, int]:
        """Elements of `masters` and of `staged`, gaps included, without allocating."""
        ranges = _layout(config)[1]
        return ranges[-1].stop, ranges[0].stop

    def __getitem__(self, name: str) -> Tensor:
        return self.view("masters", name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)

    def view(self, block: str, name: str) -> Tensor:
        """The parameter's part of `masters`, `grads`, `m`, `v` or `staged`, shaped."""
        key = (block, name)
        if key not in self._views:
            slot = self.slots[name]
            flat = getattr(self, block)
            if flat is None:
                raise ValueError(f"[Parameters.view] this model has no block {block!r}")
            if block == "staged" and not slot.staged:
                raise ValueError(f"[Parameters.view] {name} is not staged")
            self._views[key] = flat[slot.start : slot.stop].reshape(slot.shape)
        return self._views[key]

    def storage(self, name: str) -> Tensor:
        """What the engine's kernels read: the staged copy, or the master in fp32 storage."""
        if self.staged is None or not self.slots[name].staged:
            return self[name]
        return self.view("staged", name)

    def initialize(self, seed: int, std: float) -> None:
        """Gains 1, everything else normal with deviation `std`, from `seed` and the names'
        order alone. Projections back into the residual stream are scaled by
        1/sqrt(2 layers), so that the stream's variance does not grow with depth."""
        rng = np.random.default_rng(seed)
        layers = sum(n.endswith("o_proj.weight") for n in self.slots)
        for name, slot in self.slots.items():
            if len(slot.shape) == 1:
                value = np.ones(slot.shape, np.float32)
            else:
                value = rng.standard_normal(slot.shape, dtype=np.float32)
                out = name.endswith(("o_proj.weight", "down_proj.weight"))
                value *= np.float32(std / math.sqrt(2 * layers) if out else std)
            self[name].copy_from(value)
        self.stage()

    def load(self, tensors: Mapping[str, object]) -> None:
        """Sets every master from name -> array or Tensor (any float dtype), and stages.

        Names and shapes are checked before anything is written. A tied model accepts an
        extra `lm_head.weight`, as published files sometimes carry one.
        """
        missing = [n for n in self.slots if n not in tensors]
        extra = [n for n in tensors if n not in self.slots and n != "lm_head.weight"]
        if missing or extra:
            what = [f"missing {', '.join(missing[:3])}"] * bool(missing)
            what += [f"unexpected {', '.join(extra[:3])}"] * bool(extra)
            raise ValueError(f"[Parameters.load] {'; '.join(what)} ({len(missing) + len(extra)} names differ)")
        for name, slot in self.slots.items():
            if tuple(tensors[name].shape) != slot.shape:  # type: ignore[attr-defined]
                raise ValueError(
                    f"[Parameters.load] {name} has shape {tuple(tensors[name].shape)}, "  # type: ignore[attr-defined]
                    f"the model needs {slot.shape}"
                )
        for name in self.slots:
            self[name].copy_(tensors[name])
        self.stage()

    def stage(self) -> None:
        """Copies masters into the storage dtype. The optimizer's step does this itself;
        needed after masters were written any other way."""
        if self.staged is not None:
            _core.stage(self.staged, self.masters[: self.staged_size])

    def zero_grads(self) -> None:
        """Sets every gradient to zero."""
        if self.grads is None:
            raise ValueError("[Parameters.zero_grads] made with training=False")
        self.grads.fill_(0)
