"""What a Llama- or Qwen3-style model is made of, in Hugging Face's own words.

A `Config` comes from a published `config.json` (`Config.load`), from a preset
(`Config.preset("tiny")`) or from keywords. Field names are the keys of `config.json`;
whatever the published file may say that this model does not do (biases, sliding windows,
scaled RoPE) is refused with the key's name rather than ignored.

Not here: parameters (module.py), programs and running (transformer.py).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Config", "PRESETS"]


@dataclass(frozen=True)
class Config:
    """Sizes and constants of one decoder-only transformer.

    Example:
        >>> c = Config(vocab_size=100, hidden_size=64, intermediate_size=96,
        ...            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
        >>> c.head_dim, c.q_dim, c.kv_dim
        (16, 64, 32)
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 0        # 0: as many as query heads
    head_dim: int = 0                   # 0: hidden_size / num_attention_heads
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    model_type: str = "llama"           # "qwen3" normalises every query and key head

    def __post_init__(self) -> None:
        counts = (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "max_position_embeddings",
        )  # fmt: skip
        for key in (*counts, "num_key_value_heads", "head_dim"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"[config] {key} must be an integer, got {value!r}")
            if value < (1 if key in counts else 0):
                raise ValueError(f"[config] {key} must be at least 1, got {value}")
        for key in ("rms_norm_eps", "rope_theta", "initializer_range"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"[config] {key} must be a number, got {value!r}")
            if not 0 < value < float("inf"):
                raise ValueError(f"[config] {key} must be positive and finite, got {value!r}")
            object.__setattr__(self, key, float(value))
        if not isinstance(self.tie_word_embeddings, bool):
            raise TypeError(
                f"[config] tie_word_embeddings must be true or false, got {self.tie_word_embeddings!r}"
            )
        if self.model_type not in ("llama", "qwen3"):
            raise ValueError(
                f"[config] model_type {self.model_type!r} is not known; expected 'llama' or 'qwen3'"
            )
        heads = self.num_attention_heads
        if self.num_key_value_heads == 0:
            object.__setattr__(self, "num_key_value_heads", heads)
        if heads % self.num_key_value_heads:
            raise ValueError(
                f"[config] num_attention_heads {heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim == 0:
            if self.hidden_size % heads:
                raise ValueError(
                    f"[config] hidden_size {self.hidden_size} is not a multiple of "
                    f"num_attention_heads {heads}, and no head_dim is given"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // heads)
        if self.head_dim % 2:
            raise ValueError(f"[config] head_dim must be even for RoPE, got {self.head_dim}")

    # -- derived sizes

    @property
    def q_dim(self) -> int:
        """Channels of all query heads."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Channels of all key (or value) heads."""
        return self.num_key_value_heads * self.head_dim

    @property
    def qk_norm(self) -> bool:
        """Whether every query and key head is RMS-normalised before RoPE (Qwen3)."""
        return self.model_type == "qwen3"

    # -- where configs come from

    @classmethod
    def from_dict(cls, keys: Mapping[str, Any], where: str = "config") -> Config:
        """Config from the keys of a Hugging Face `config.json` (Llama or Qwen3).

        Keys that do not change the mathematics are ignored; keys that would, and are not
        supported, raise. `where` names the source in messages.
        """
        if not isinstance(keys, Mapping):
            raise ValueError(f"[{where}] expected a JSON object, got {type(keys).__name__}")
        d = dict(keys)
        kind = d.get("model_type")
        if kind is None:
            raise ValueError(f"[{where}] no model_type; expected 'llama' or 'qwen3'")
        for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
            if d.get(key):
                raise ValueError(f"[{where}] {key} = {d[key]!r} is not supported; expected false")
        if d.get("hidden_act", "silu") not in ("silu", "swish"):
            raise ValueError(f"[{where}] hidden_act {d['hidden_act']!r} is not supported; expected 'silu'")
        # transformers 5 writes rope_parameters, earlier versions rope_theta + rope_scaling.
        rope: dict[str, Any] = {}
        for key in ("rope_scaling", "rope_parameters"):
            if d.get(key) is not None:
                if not isinstance(d[key], Mapping):
                    raise ValueError(f"[{where}] {key} must be an object, got {d[key]!r}")
                rope.update(d[key])
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type != "default":
            raise ValueError(f"[{where}] RoPE type {rope_type!r} is not supported; expected 'default'")
        if rope.get("rope_theta") is not None:
            d["rope_theta"] = rope["rope_theta"]
        if kind == "qwen3":
            # What Qwen3Config assumes where the file is silent.
            d.setdefault("head_dim", 128)
        if d.get("head_dim") == 0:          # the field's own word for "not given"
            raise ValueError(f"[{where}] head_dim must be at least 1, got 0")
        names = {f.name for f in dataclasses.fields(cls)}
        known = {k: v for k, v in d.items() if k in names and v is not None}
        missing = [
            f.name
            for f in dataclasses.fields(cls)
            if f.default is dataclasses.MISSING and f.name not in known
        ]
        if missing:
            raise ValueError(f"[{where}] missing key{'s' * (len(missing) > 1)}: {', '.join(missing)}")
        try:
            return cls(**known)
        except (TypeError, ValueError) as e:
            raise type(e)(str(e).replace("[config]", f"[{where}]", 1)) from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Config:
        """Config from a `config.json` file, or from the folder that holds one."""
        path = os.fspath(path)
        if os.path.isdir(path):
            path = os.path.join(path, "config.json")
        with open(path, encoding="utf-8") as f:
            try:
                keys = json.load(f)
            except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
                raise ValueError(f"[{path}] not a JSON file: {e}") from None
        return cls.from_dict(keys, where=path)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Config:
        """A named preset, with fields replaced: `Config.preset("tiny", vocab_size=97)`."""
        if name not in PRESETS:
            raise ValueError(f"[config] no preset {name!r}; there are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    def to_dict(self) -> dict[str, Any]:
        """The keys of `config.json`: what `from_dict` and transformers read back."""
        d = dataclasses.asdict(self)
        d["architectures"] = ["Qwen3ForCausalLM" if self.qk_norm else "LlamaForCausalLM"]
        d["hidden_act"] = "silu"
        d["attention_bias"] = False
        if not self.qk_norm:
            d["mlp_bias"] = False
        return d

    # -- sizes

    def num_parameters(self) -> int:
        """Number of trained numbers; a tied classifier counts once."""
        h, layers = self.hidden_size, self.num_hidden_layers
        layer = h * (2 * self.q_dim + 2 * self.kv_dim + 3 * self.intermediate_size) + 2 * h
        layer += 2 * self.head_dim * self.qk_norm
        embeddings = self.vocab_size * h * (1 if self.tie_word_embeddings else 2)
        return embeddings + layers * layer + h


_LLAMA2C = dict(vocab_size=32000, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True)

#: Name -> fields. `tiny` is ours, made for a few minutes on two cores; its vocabulary is
#: replaced by the corpus' own. The others are the published architectures.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(
        vocab_size=256, hidden_size=128, intermediate_size=352, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        max_position_embeddings=256, rms_norm_eps=1e-5, rope_theta=10000.0,
        tie_word_embeddings=True, initializer_range=0.05, model_type="llama",
    ),
    "stories15m": dict(
        _LLAMA2C, hidden_size=288, intermediate_size=768, num_hidden_layers=6,
        num_attention_heads=6, num_key_value_heads=6, head_dim=48,
        max_position_embeddings=256,
    ),
    "stories110m": dict(
        _LLAMA2C, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
        num_attention_heads=12, num_key_value_heads=12, head_dim=64,
        max_position_embeddings=1024,
    ),
    "qwen3-0.6b": dict(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        max_position_embeddings=40960, rms_norm_eps=1e-6, rope_theta=1000000.0,
        tie_word_embeddings=True, model_type="qwen3",
    ),
}  # fmt: skip
